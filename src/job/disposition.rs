//! What happens to a job after an attempt. `agent` decides it once, and everything up to the settlement uses it.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::attempt::{FailureClass, FailureCode};

/// What becomes of a job after an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Disposition {
    /// There is a memo in the report.
    Succeed,
    /// Another attempt may succeed, as often as the class allows. `after` is the upstream's own wish, which outranks the
    /// backoff.
    Retry { code: FailureCode, class: FailureClass, after: Option<Duration> },
    /// The attempt spent nothing and does not count: the job is queued again. A demoted one may be the only one that
    /// fails, so all jobs queued by then go first.
    Release { code: FailureCode, after: Duration, is_demoted: bool },
    /// Every attempt would fail alike.
    Fail { code: FailureCode },
    /// Other calls may fail alike: the gate decides whether they do. `alone` is what becomes of the job while too few others
    /// have met the failure.
    Block { failure: SharedFailure, alone: Box<Disposition> },
}

/// A failure that other calls may meet too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SharedFailure {
    pub code: FailureCode,
    pub scope: Scope,
    /// The same for failures that count as one.
    pub signature: u64,
    /// How many different questions must have met it since the last answer before it counts as everyone's.
    pub witnesses: usize,
    /// It ends by itself after so long; `None`: a person must act.
    pub opens_after: Option<Duration>,
}

/// Which calls a failure concerns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Scope {
    Account,
    Model,
}

impl Disposition {
    /// The job is queued again at once; what keeps it from running does the waiting.
    pub fn released(code: FailureCode) -> Disposition {
        Disposition::Release { code, after: Duration::ZERO, is_demoted: false }
    }
}
