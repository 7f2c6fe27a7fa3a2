//! The gate: stops calls while all of them would fail alike, and finds out when that is over.
//!
//! A failure that concerns every call closes the gate: for a time (a rate limit), or until a call is answered (a refused key).
//! One question alone never closes it for long:
//!
//! ```text
//!  open ──block, enough different questions met it──▶ closed ──its time is over, or a probe is answered──▶ open
//!    └──block, too few──▶ only that job is set aside    └──a probe fails──▶ closed, next probe later
//! ```
//!
//! - While it is closed, one call at a time probes, with another job than the one that closed it.
//! - If only one question met the failure, the first probe follows after [`FIRST_PROBE`]; else after [`BLOCK_PAUSE`], or at the end of
//!   the rate limit. A question that a probe disproved closes the gate again only together with another.
//! - A failure that may be the fault of one question (a firewall's page, an unknown 400) needs two or three questions.

use std::{collections::VecDeque, time::Duration};

use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use utoipa::ToSchema;

use crate::{
    clock::{Moments, Timestamp},
    job::{FailureCode, disposition::SharedFailure},
};

/// Pause between probes if several questions met the failure and only a person can end it.
pub(super) const BLOCK_PAUSE: Duration = Duration::from_secs(30);

const FIRST_PROBE: Duration = Duration::from_secs(1);

/// The random part of a closing, so that callers of one account do not all come back at once.
const JITTER: f64 = 0.1;

/// Most failures since the last answer that are remembered: more than any failure needs.
const MAX_MET: usize = 64;

const MAX_DISPROVED: usize = 256;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ruling {
    Closed {
        /// It was open, or closed for another reason.
        is_news: bool,
        probe_in: Duration,
    },
    /// Too few questions met it: it concerns this one alone until others do.
    Alone,
}

/// The closed gate.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = Gate)]
pub struct Closed {
    /// When it opens by itself; `None`: it is closed until a call is answered.
    #[serde(skip)]
    pub opens_at: Option<Instant>,
    /// Stable code of the reason.
    #[serde(rename = "reason")]
    #[schema(value_type = String)]
    pub code: FailureCode,
    /// Claude's message.
    pub detail: String,
    #[serde(skip)]
    since: Instant,
    #[serde(skip)]
    next_probe: Instant,
    #[serde(skip)]
    probes: u32,
}

impl Closed {
    pub fn opens_in(&self, now: Instant) -> Option<Duration> {
        self.opens_at.map(|at| at.saturating_duration_since(now))
    }
}

/// Why no call may begin: of several lanes, the least counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Refusal {
    For(Duration),
    /// As many calls are under way as may be. This is not a limit that keeps a caller waiting.
    Busy,
    UntilChanged,
}

#[derive(Debug, Default)]
pub(super) struct Gate {
    closed: Option<Closed>,
    is_probing: bool,
    met: Vec<(u64, u64)>,
    /// Questions whose failure closed the gate while others were answered.
    disproved: VecDeque<u64>,
}

/// A gate, as the dispatcher tells other nodes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct GateMemo {
    closed: Option<ClosedMemo>,
    met: Vec<(u64, u64)>,
    disproved: Vec<u64>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct ClosedMemo {
    opens_at: Option<Timestamp>,
    code: FailureCode,
    detail: String,
    since: Timestamp,
    next_probe: Timestamp,
    probes: u32,
}

impl Gate {
    pub(super) fn memo(&mut self, moments: &Moments) -> GateMemo {
        let closed = self.closed(Instant::now()).cloned().map(|closed| ClosedMemo {
            opens_at: closed.opens_at.map(|at| moments.timestamp(at)),
            code: closed.code,
            detail: closed.detail,
            since: moments.timestamp(closed.since),
            next_probe: moments.timestamp(closed.next_probe),
            probes: closed.probes,
        });
        GateMemo { closed, met: self.met.clone(), disproved: self.disproved.iter().copied().collect() }
    }

    pub(super) fn adopt(&mut self, memo: GateMemo, moments: &Moments) {
        self.closed = memo.closed.map(|closed| Closed {
            opens_at: closed.opens_at.map(|at| moments.instant(at)),
            code: closed.code,
            detail: closed.detail,
            since: moments.instant(closed.since),
            next_probe: moments.instant(closed.next_probe),
            probes: closed.probes,
        });
        (self.met, self.disproved) = (memo.met, memo.disproved.into());
    }

    /// Allows a call; true if it is a probe: see [`Gate::begin_probe`].
    pub(super) fn admit(&mut self, now: Instant) -> Result<bool, Refusal> {
        let is_probing = self.is_probing;
        let Some(closed) = self.closed(now) else { return Ok(false) };
        match closed.opens_at {
            Some(at) if is_probing => Err(Refusal::For(at - now)),
            None if is_probing => Err(Refusal::UntilChanged),
            _ if closed.next_probe <= now => Ok(true),
            _ => Err(Refusal::For(closed.next_probe - now)),
        }
    }

    pub(super) fn closed(&mut self, now: Instant) -> Option<&Closed> {
        self.closed.take_if(|closed| closed.opens_at.is_some_and(|at| at <= now));
        self.closed.as_ref()
    }

    pub(super) fn begin_probe(&mut self) {
        self.is_probing = true;
    }

    /// The probe has ended. One that was `made` and changed nothing is followed by the next after a pause.
    pub(super) fn end_probe(&mut self, made: bool, now: Instant) {
        self.is_probing = false;
        if let Some(closed) = self.closed.as_mut().filter(|closed| made && closed.next_probe <= now) {
            closed.probes += 1;
            closed.next_probe = now + quick(closed.probes);
        }
    }

    /// A call met a failure that may concern all. `random` in 0..1 is the jitter.
    pub(super) fn block(
        &mut self,
        failure: &SharedFailure,
        question: u64,
        detail: &str,
        now: Instant,
        random: f64,
    ) -> Ruling {
        let witness = (failure.signature, question);
        if !self.met.contains(&witness) {
            if self.met.len() == MAX_MET {
                self.met.remove(0);
            }
            self.met.push(witness);
        }
        let met_by = self.met.iter().filter(|(signature, _)| *signature == failure.signature).count();
        let is_disproved = self.disproved.contains(&question);
        let needed = if is_disproved { failure.witnesses.max(2) } else { failure.witnesses };
        if met_by < needed {
            return Ruling::Alone;
        }
        let before = self.closed(now).cloned();
        let probes = before.as_ref().map_or(0, |closed| closed.probes + 1);
        let stretch = 1.0 + JITTER * random;
        let opens_at = failure.opens_after.map(|time| now + time.mul_f64(stretch));
        let pause = match opens_at {
            _ if met_by == 1 => FIRST_PROBE,
            Some(at) => at - now,
            None if needed > 1 => quick(probes),
            None => BLOCK_PAUSE.mul_f64(stretch),
        };
        let next_probe = opens_at.map_or(now + pause, |at| at.min(now + pause));
        let is_news = before.as_ref().is_none_or(|closed| closed.code != failure.code);
        let closed = match before {
            // A limit ends nothing that a person must end, and a shorter one no longer one.
            Some(closed) if opens_at.is_some() && closed.opens_at.is_none_or(|at| Some(at) > opens_at) => {
                let at = closed.opens_at.filter(|_| met_by > 1).unwrap_or(next_probe);
                Closed { next_probe: closed.next_probe.max(at), probes, ..closed }
            }
            before => Closed {
                opens_at,
                code: failure.code,
                detail: detail.to_owned(),
                since: before.map_or(now, |closed| closed.since),
                next_probe,
                probes,
            },
        };
        let probe_in = closed.opens_at.unwrap_or(closed.next_probe).saturating_duration_since(now);
        self.closed = Some(closed);
        Ruling::Closed { is_news, probe_in }
    }

    /// A call that began at `begun` was answered. Returns whether that opened the gate.
    pub(super) fn answered(&mut self, question: u64, begun: Instant) -> bool {
        self.disproved.retain(|known| *known != question);
        let Some(closed) = &self.closed else {
            self.met.clear();
            return false;
        };
        if begun < closed.since {
            return false;
        }
        for (_, other) in std::mem::take(&mut self.met) {
            if other != question && !self.disproved.contains(&other) {
                if self.disproved.len() == MAX_DISPROVED {
                    self.disproved.pop_front();
                }
                self.disproved.push_back(other);
            }
        }
        self.closed = None;
        true
    }
}

/// The pause before probe number `probes` where another question is likely to be answered.
fn quick(probes: u32) -> Duration {
    FIRST_PROBE.saturating_mul(1 << probes.min(8)).min(BLOCK_PAUSE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::disposition::Scope;

    const SECOND: Duration = Duration::from_secs(1);

    fn denied(witnesses: usize) -> SharedFailure {
        let (code, scope) = (FailureCode::PermissionDenied, Scope::Account);
        SharedFailure { code, scope, signature: 403, witnesses, opens_after: None }
    }

    fn limit(seconds: u64) -> SharedFailure {
        let opens_after = Some(Duration::from_secs(seconds));
        SharedFailure { code: FailureCode::RateLimited, signature: 429, opens_after, ..denied(1) }
    }

    fn block(gate: &mut Gate, question: u64, failure: SharedFailure, now: Instant) -> Ruling {
        gate.block(&failure, question, "no", now, 0.0)
    }

    /// A probe of a closed gate, which must be due.
    fn probe(gate: &mut Gate, now: Instant) {
        assert_eq!(gate.admit(now), Ok(true));
        gate.begin_probe();
        assert!(gate.admit(now).is_err(), "one at a time");
    }

    fn closed_for(ruling: Ruling) -> Duration {
        let Ruling::Closed { probe_in, .. } = ruling else { panic!("not closed") };
        probe_in
    }

    #[test]
    fn what_one_question_met_is_probed_after_a_second_and_what_two_met_after_a_pause() {
        let (mut gate, now) = (Gate::default(), Instant::now());
        assert_eq!(block(&mut gate, 1, denied(1), now), Ruling::Closed { is_news: true, probe_in: SECOND });
        assert_eq!(gate.admit(now), Err(Refusal::For(SECOND)));
        probe(&mut gate, now + SECOND);
        assert_eq!(
            block(&mut gate, 2, denied(1), now + SECOND),
            Ruling::Closed { is_news: false, probe_in: BLOCK_PAUSE }
        );
        gate.end_probe(true, now + SECOND);
        assert_eq!(gate.admit(now + SECOND), Err(Refusal::For(BLOCK_PAUSE)));
        assert!(gate.answered(3, now + SECOND));
        assert_eq!(gate.admit(now), Ok(false));
    }

    #[test]
    fn a_firewalls_page_concerns_its_question_alone_until_a_different_one_meets_it_too() {
        let (mut gate, now) = (Gate::default(), Instant::now());
        for _ in 0..10 {
            assert_eq!(block(&mut gate, 1, denied(2), now), Ruling::Alone, "the same question again is no witness");
        }
        gate.answered(2, now);
        assert_eq!(block(&mut gate, 3, denied(2), now), Ruling::Alone, "one was answered in between");
        assert_eq!(closed_for(block(&mut gate, 1, denied(2), now)), SECOND);
        for pause in [2, 4, 8, 16, 30, 30].map(Duration::from_secs) {
            assert_eq!(closed_for(block(&mut gate, 1, denied(2), now)), pause);
        }
    }

    #[test]
    fn a_question_that_a_probe_proved_wrong_never_closes_the_gate_alone_again_until_it_is_answered() {
        for first in [denied(1), limit(3600)] {
            let (mut gate, now) = (Gate::default(), Instant::now());
            closed_for(block(&mut gate, 1, first, now));
            probe(&mut gate, now + SECOND);
            assert!(gate.answered(2, now + SECOND));
            gate.end_probe(true, now + SECOND);
            for _ in 0..10 {
                assert_eq!(block(&mut gate, 1, first, now + SECOND), Ruling::Alone);
                gate.answered(3, now + SECOND);
            }
            assert_eq!(block(&mut gate, 1, first, now + SECOND), Ruling::Alone);
            closed_for(block(&mut gate, 4, first, now + SECOND));
            gate.answered(1, now + SECOND);
            closed_for(block(&mut gate, 1, first, now + SECOND));
        }
    }

    #[test]
    fn an_hour_of_retry_after_for_one_question_costs_the_others_a_second() {
        let (mut gate, now) = (Gate::default(), Instant::now());
        assert_eq!(closed_for(block(&mut gate, 1, limit(3600), now)), Duration::from_hours(1));
        assert_eq!(gate.admit(now), Err(Refusal::For(SECOND)));
        probe(&mut gate, now + SECOND);
        block(&mut gate, 2, limit(3599), now + SECOND);
        gate.end_probe(true, now + SECOND);
        assert_eq!(gate.admit(now + SECOND), Err(Refusal::For(Duration::from_secs(3599))), "it is true of all");
        assert_eq!(gate.admit(now + Duration::from_hours(2)), Ok(false));
    }

    #[test]
    fn a_probe_that_fails_in_another_way_is_followed_by_the_next_after_a_pause() {
        let (mut gate, now) = (Gate::default(), Instant::now());
        block(&mut gate, 1, denied(1), now);
        let mut at = now + SECOND;
        for pause in [2, 4, 8, 16, 30, 30].map(Duration::from_secs) {
            probe(&mut gate, at);
            gate.end_probe(true, at);
            assert_eq!(gate.admit(at), Err(Refusal::For(pause)));
            at += pause;
        }
        probe(&mut gate, at);
        gate.end_probe(false, at);
        assert_eq!(gate.admit(at), Ok(true), "no call was made");
    }

    #[test]
    fn only_a_call_that_began_after_the_closing_opens_it() {
        let (mut gate, now) = (Gate::default(), Instant::now() + SECOND);
        block(&mut gate, 1, denied(1), now);
        assert!(!gate.answered(2, now - SECOND));
        assert!(gate.answered(2, now));
    }

    #[test]
    fn a_limit_ends_no_closing_by_a_person_and_a_shorter_limit_no_longer_one() {
        let (mut gate, now) = (Gate::default(), Instant::now());
        block(&mut gate, 1, denied(1), now);
        block(&mut gate, 2, limit(5), now);
        assert_eq!(
            gate.closed(now + Duration::from_secs(6)).map(|closed| closed.code),
            Some(FailureCode::PermissionDenied)
        );
        let mut gate = Gate::default();
        block(&mut gate, 1, limit(60), now);
        block(&mut gate, 2, limit(5), now);
        assert!(gate.closed(now + Duration::from_secs(59)).is_some());
        assert!(gate.closed(now + Duration::from_secs(60)).is_none());
    }
}
