//! A job and its life: pure data and one pure function, [`Job::apply`], that owns every transition.
//!
//! ```text
//! enqueue ─▶ Queued{run_at} ──Claim──▶ Running{lease} ──Succeed──▶ Succeeded
//!               ▲ ▲   Retry, Release     │ │  ├─ Fail ─────────────▶ Failed{code}
//!               │ └──────────────────────┘ │  └─ Cancel ───────────▶ Cancelled
//!               │        Expire (lease over, outcome unknown) ─▶ Queued | Failed
//! Queued ─Cancel─▶ Cancelled · Queued ─MissDeadline─▶ Failed(deadline_exceeded)
//! Failed, Cancelled ─Requeue─▶ Queued · Failed ─Reparse (the stored answer parses after all)─▶ Succeeded
//! Queued ─Share (another job's answer is its answer too)─▶ Succeeded
//! ```
//!
//! Every event of a worker carries the number of its attempt, the *fence*: an event of an attempt that is not the
//! running one is [`TransitionError::LeaseLost`] and changes nothing. Numbers are never used twice in a job's life; a
//! released attempt keeps its own.
//!
//! Nothing here reads a clock, touches a disk or knows how an answer is made. Stores make transitions atomic and
//! durable; `queue` decides which event to send.

mod attempt;
pub mod callback;
pub mod caller;
pub mod delivery;
pub mod disposition;
mod event;
mod filter;
mod id;
mod life;
mod record;
mod request;
mod status;
#[cfg(test)]
mod tests;

pub use self::{
    attempt::{
        AtRisk, Attempt, AttemptError, AttemptOutcome, AttemptReport, Cached, FailureClass, FailureCode, Failures,
        MAX_ATTEMPTS, TokenUsage,
    },
    event::{JobEvent, TransitionError},
    filter::{Cursor, JobFilter, JobPage, JobSelection, Listing, Order, Side, UnfinishedSearch},
    id::{JobId, Owner},
    life::{Job, JobState, PRIORITY_OFFSET},
    record::JobRecord,
    request::{Depth, IdempotencyKey, JobRequest, Priority},
    status::{JobStatus, StatusCounts},
};
