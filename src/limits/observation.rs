//! What a call shows of Claude's state. The node that makes a call notes it, and the dispatcher hears it as a letter.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::{sync::broadcast, time::Instant};

use crate::job::{FailureCode, disposition::SharedFailure};

/// Observations that wait to be sent. If there are more, the oldest are lost: the next calls show the same.
const PLACES: usize = 4_096;

/// Of a call for a question, to a model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Observation {
    pub(super) model: String,
    pub(super) question: u64,
    /// How long ago the call began.
    pub(super) age: Duration,
    pub(super) seen: Seen,
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
    /// A digest of the question.
    pub question: u64,
    pub begun: Instant,
}

/// Where a node's observations go.
#[derive(Debug)]
pub(super) struct Observations(pub(super) broadcast::Sender<Observation>);

impl Default for Observations {
    fn default() -> Observations {
        Observations(broadcast::Sender::new(PLACES))
    }
}
