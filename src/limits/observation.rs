//! What a call shows of Claude's state. The node that makes a call notes it, and the dispatcher hears it as a letter.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::{sync::broadcast, time::Instant};

use super::{Limits, gate::Ruling};
use crate::job::{FailureCode, disposition::SharedFailure};

/// Observations that wait to be sent. If there are more, the oldest are lost: the next calls show the same.
const PLACES: usize = 4_096;

/// Of a call for a question, to a model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Observation {
    model: String,
    question: u64,
    /// How long ago the call began.
    age: Duration,
    seen: Seen,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Seen {
    /// Claude begins to answer.
    Reached,
    /// It answered to the end.
    Answered,
    Overloaded,
    /// A failure that other calls may meet too.
    Blocked {
        failure: SharedFailure,
        detail: String,
    },
    /// Requests, input tokens and output tokens a minute.
    Limits([Option<u64>; 3]),
    /// It was answered, if only by an error.
    Connected,
    /// There was no connection.
    Unconnected {
        code: FailureCode,
        detail: String,
    },
}

/// A call that is being watched.
#[derive(Clone, Copy, Debug)]
pub struct Call<'a> {
    pub model: &'a str,
    /// A digest of what is asked.
    pub question: u64,
    pub begun: Instant,
}

/// Where a node's observations go.
#[derive(Debug)]
pub(super) struct Observations(broadcast::Sender<Observation>);

impl Default for Observations {
    fn default() -> Observations {
        Observations(broadcast::Sender::new(PLACES))
    }
}

impl Limits {
    /// What the calls of this node show.
    pub fn observations(&self) -> broadcast::Receiver<Observation> {
        self.0.observations.0.subscribe()
    }

    /// Takes note of what a call of this node shows. Returns whether that changed what was known of the gate or of the
    /// connection.
    pub fn saw(&self, call: Call<'_>, seen: Seen) -> bool {
        let is_news = self.apply(call, &seen);
        self.tell(call, seen);
        is_news
    }

    /// As [`Limits::block`]. The ruling is by what this node knows: at most a second behind the dispatcher.
    pub fn saw_block(&self, call: Call<'_>, failure: &SharedFailure, detail: &str) -> Ruling {
        self.tell(call, Seen::Blocked { failure: *failure, detail: detail.to_owned() });
        self.block(call.model, failure, call.question, detail)
    }

    /// Takes note of what a call of another node showed.
    pub fn hear(&self, observation: Observation) {
        let Observation { model, question, age, seen } = observation;
        let now = Instant::now();
        self.apply(Call { model: &model, question, begun: now.checked_sub(age).unwrap_or(now) }, &seen);
    }

    fn tell(&self, call: Call<'_>, seen: Seen) {
        let (model, question, age) = (call.model.to_owned(), call.question, call.begun.elapsed());
        // Fails if there are no other nodes.
        let _ = self.0.observations.0.send(Observation { model, question, age, seen });
    }

    fn apply(&self, Call { model, question, begun }: Call<'_>, seen: &Seen) -> bool {
        match seen {
            Seen::Reached => return self.reached(model, question, begun),
            Seen::Connected => return self.connected(),
            Seen::Unconnected { code, detail } => return self.connection_failed(question, *code, detail),
            Seen::Answered => self.answered(model),
            Seen::Overloaded => self.overloaded(model, question),
            Seen::Limits(limits) => self.learn(model, *limits, begun),
            Seen::Blocked { failure, detail } => drop(self.block(model, failure, question, detail)),
        }
        false
    }
}
