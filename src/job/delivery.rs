//! The webhook of a job: one message each time that the job ends, tried until the receiver accepts it or a day has passed.
//! Pure: stores write it beside its job, `webhook` sends it.
//!
//! ```text
//! Waiting ──the job ends──▶ Pending{next_at} ──2xx──▶ Delivered
//!    ▲                          │  ▲  ├─ no more tries ─▶ GivenUp
//!    │                          └──┘  ├─ 410 ─▶ Disabled: no further message of this job
//!    │    any other answer, or none   └─ the event was not chosen ─▶ Skipped
//!    └── the job is queued again
//! Delivered, GivenUp, Disabled, Skipped, Pending ──a person resends it──▶ Pending{now}
//! ```

use std::time::Duration;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{callback, id::JobId};
use crate::clock::Timestamp;

/// Pauses after a failed try: a short one for a hiccup, then ever longer ones, a day in all.
pub const PAUSES: [Duration; 8] = [
    Duration::from_secs(5),
    Duration::from_mins(5),
    Duration::from_mins(30),
    Duration::from_hours(2),
    Duration::from_hours(4),
    Duration::from_hours(5),
    Duration::from_hours(6),
    Duration::from_hours(7),
];

const MAX_ASKED_PAUSE: Duration = Duration::from_hours(1);

/// Retention spares a job whose message is still due for so long after its end. Time for all the pauses, also where the
/// receiver asks for longer ones; not for ever, since a service that has lost its secret sends nothing.
pub const UNNOTIFIED_RETENTION: Duration = Duration::from_hours(48);

/// Tries that are remembered of a message, which people may resend any number of times: two rounds.
const MAX_TRIES: usize = 2 * (PAUSES.len() + 1);

/// The messages to a callback URL, and what came of the newest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delivery {
    /// Host and port of the callback URL: messages to one host share its slots.
    pub host: String,
    /// The message's number among those of its job; 0 before the first.
    pub number: u32,
    /// How often a person resent this message.
    pub resends: u16,
    /// Failed tries since the job's end or the last resend: the pause after a try depends on it.
    pub failed: u16,
    pub state: DeliveryState,
    /// The newest tries of this message, oldest first.
    pub tries: Vec<DeliveryTry>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, strum::IntoStaticStr)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum DeliveryState {
    /// The job has not ended.
    #[default]
    Waiting,
    /// To be sent, not before `next_at`.
    Pending { next_at: Timestamp },
    /// The receiver accepted the message.
    Delivered,
    /// No try of a day succeeded.
    GivenUp,
    /// The receiver answered `410`: it gets no further message of this job.
    Disabled,
    /// The request did not choose the event of this message, or another service sends it; and nobody resent it.
    Skipped,
}

/// An event that a webhook can report: the `type` of its message.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Serialize,
    Deserialize,
    ToSchema,
    strum::Display,
    strum::EnumString,
    strum::VariantNames,
)]
pub enum CallbackEvent {
    /// The job has a memo.
    #[serde(rename = "job.succeeded")]
    #[strum(serialize = "job.succeeded")]
    Succeeded,
    /// The job has a memo that asks for more information: its `status` is `needs_information`.
    #[serde(rename = "job.needs_information")]
    #[strum(serialize = "job.needs_information")]
    NeedsInformation,
    /// The job has failed.
    #[serde(rename = "job.failed")]
    #[strum(serialize = "job.failed")]
    Failed,
    /// The job was cancelled.
    #[serde(rename = "job.cancelled")]
    #[strum(serialize = "job.cancelled")]
    Cancelled,
}

/// One try to deliver a webhook.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DeliveryTry {
    pub at: Timestamp,
    /// The HTTP status of the receiver's answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http_status: Option<u16>,
    /// Why there was no answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl Delivery {
    pub fn to(callback_url: &str) -> Delivery {
        Delivery { host: callback::host(callback_url), ..Delivery::default() }
    }

    /// The next message: the job has ended.
    pub fn due(self, now: Timestamp) -> Delivery {
        match self.state {
            DeliveryState::Disabled => self,
            _ => Delivery {
                host: self.host,
                number: self.number + 1,
                state: DeliveryState::Pending { next_at: now },
                ..Delivery::default()
            },
        }
    }

    /// A person resends the newest message: its tries start again from the first.
    pub fn resent(self, now: Timestamp) -> Delivery {
        Delivery {
            number: self.number.max(1),
            resends: self.resends.wrapping_add(1),
            failed: 0,
            state: DeliveryState::Pending { next_at: now },
            ..self
        }
    }

    pub fn skipped(self) -> Delivery {
        Delivery { state: DeliveryState::Skipped, ..self }
    }

    /// Not if the job has ended again or the message was resent.
    pub fn is_same_round(&self, other: &Delivery) -> bool {
        (self.number, self.resends) == (other.number, other.resends)
    }

    /// The job is queued again: its last end is outdated.
    pub fn withdrawn(self) -> Delivery {
        match self.state {
            DeliveryState::Disabled => self,
            _ => Delivery { state: DeliveryState::Waiting, ..self },
        }
    }

    /// After a try; the receiver may have asked for a pause.
    pub fn tried(mut self, this: DeliveryTry, asked: Option<Duration>) -> Delivery {
        let at = this.at;
        self.state = match (this.http_status, PAUSES.get(usize::from(self.failed))) {
            (Some(200..=299), _) => DeliveryState::Delivered,
            (Some(410), _) => DeliveryState::Disabled,
            (_, None) => DeliveryState::GivenUp,
            (_, Some(pause)) => {
                let pause = asked.map_or(*pause, |asked| asked.min(MAX_ASKED_PAUSE).max(*pause));
                DeliveryState::Pending { next_at: at.plus(pause) }
            }
        };
        self.failed += u16::from(self.state != DeliveryState::Delivered);
        self.tries.push(this);
        if self.tries.len() > MAX_TRIES {
            self.tries.remove(0);
        }
        self
    }

    /// The same at every try, another for every message.
    pub fn message_id(&self, job: JobId) -> String {
        format!("msg_{}_{}", job.simple(), self.number)
    }

    pub fn next_at(&self) -> Option<Timestamp> {
        match self.state {
            DeliveryState::Pending { next_at } => Some(next_at),
            DeliveryState::Waiting
            | DeliveryState::Delivered
            | DeliveryState::GivenUp
            | DeliveryState::Disabled
            | DeliveryState::Skipped => None,
        }
    }

    /// The message was tried and is not accepted.
    pub fn is_failing(&self) -> bool {
        match self.state {
            DeliveryState::Pending { .. } => self.failed > 0,
            DeliveryState::GivenUp | DeliveryState::Disabled => true,
            DeliveryState::Waiting | DeliveryState::Delivered | DeliveryState::Skipped => false,
        }
    }

    pub fn is_open(&self) -> bool {
        matches!(self.state, DeliveryState::Waiting | DeliveryState::Pending { .. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_millis(1_800_000_000_000).plus(Duration::from_secs(seconds))
    }

    fn answered(at: Timestamp, status: u16) -> DeliveryTry {
        DeliveryTry { at, http_status: Some(status), error: None }
    }

    #[test]
    fn a_message_that_is_not_accepted_is_tried_for_a_day_and_then_given_up() {
        let mut delivery = Delivery::default().due(at(0));
        let mut tries = 0;
        let id = delivery.message_id(JobId::nil());
        while let Some(next_at) = delivery.next_at() {
            delivery = delivery.tried(answered(next_at, 500), None);
            tries += 1;
        }
        let day = delivery.tries.last().unwrap().at.since(at(0));
        assert_eq!((delivery.state, tries), (DeliveryState::GivenUp, 9));
        assert!((Duration::from_hours(24)..Duration::from_hours(26)).contains(&day), "{day:?}");
        assert_eq!(delivery.message_id(JobId::nil()), id);
    }

    #[test]
    fn an_answer_ends_a_message_a_410_ends_all_and_the_next_end_of_the_job_is_another_message() {
        let first = Delivery::default().due(at(0));
        let taken = first.clone().tried(answered(at(1), 204), None);
        assert_eq!((taken.state, taken.next_at()), (DeliveryState::Delivered, None));
        let second = taken.withdrawn().due(at(9));
        assert_eq!((second.number, second.next_at(), second.tries.len()), (2, Some(at(9)), 0));
        let gone = second.tried(answered(at(9), 410), None);
        assert_eq!(gone.clone().withdrawn().due(at(20)), gone);
        let moved = first.clone().tried(answered(at(1), 301), None);
        assert_eq!(moved.next_at(), Some(at(6)), "a redirect is no delivery");
        let asked = first.tried(answered(at(1), 503), Some(Duration::from_hours(9)));
        assert_eq!(asked.next_at(), Some(at(3_601)));
    }

    #[test]
    fn a_resent_message_starts_its_tries_again_under_the_same_id_and_remembers_so_many() {
        let mut delivery = Delivery::default().due(at(0));
        let id = delivery.message_id(JobId::nil());
        for round in 0..4 {
            while let Some(next_at) = delivery.next_at() {
                delivery = delivery.tried(answered(next_at, 500), None);
                assert!(delivery.is_failing());
            }
            assert_eq!((delivery.state, delivery.resends), (DeliveryState::GivenUp, round));
            let before = delivery.clone();
            delivery = delivery.resent(at(round.into()));
            assert_eq!((delivery.next_at(), delivery.is_failing()), (Some(at(round.into())), false));
            assert!(!delivery.is_same_round(&before));
        }
        assert_eq!((delivery.tries.len(), delivery.message_id(JobId::nil())), (MAX_TRIES, id));
        let gone = delivery.tried(answered(at(9), 410), None);
        let taken = gone.resent(at(10)).tried(answered(at(10), 200), None);
        assert_eq!((taken.state, taken.is_failing()), (DeliveryState::Delivered, false));
        assert!(taken.due(at(11)).next_at().is_some(), "resent and accepted, it is no longer disabled");
    }
}
