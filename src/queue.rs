//! The queue's policy: what is accepted, which job is next, what becomes of it afterwards. It has three handles, by use:
//! [`Queue`] for clients, [`WorkQueue`] for those who work on jobs, [`Operations`] for operators.
//!
//! - `admission`: the bounds on pending jobs
//! - `board`: all pending jobs in memory, and which can be claimed
//! - `bulk`: one action for many jobs
//! - `claim`: a claimed job
//! - `core`: the methods that the handles share
//! - `draft`: the text of a running attempt
//! - `elsewhere`: attempts that the dispatcher has other nodes make
//! - `error`: why the queue could not do as asked
//! - `estimate`: when the answer of a queued job comes
//! - `fair_queue`: callers take turns
//! - `follow`: news of a job for those who follow it
//! - `handles`: the handles by use
//! - `hearing`: what nodes tell each other of their waiting clients
//! - `hint`: clients that wait on other nodes
//! - `hold`: clients that are held for an answer
//! - `jobs`: what clients do with jobs
//! - `listener`: what news from the store brings about
//! - `memo`: what the dispatcher knows, for the other nodes
//! - `operations`: what operators do and see
//! - `order`: which job is claimed next while clients wait
//! - `outlook`: why a job waits and when its answer may come
//! - `pause`: no job is claimed until an operator says so
//! - `policy`: the queue's settings
//! - `rates`: submissions a minute of each caller
//! - `refused`: why a job can't become pending
//! - `relay`: the text of attempts that run on other nodes
//! - `reparse`: reading kept answers again
//! - `retry`: what becomes of a job after an attempt
//! - `running`: the attempts under way
//! - `service_time`: how long attempts last
//! - `submit`: how a question becomes a job
//! - `sweep`: what time runs out on
//! - `wait`: who waits for what, and who is woken
//! - `webhooks`: those that fail, and those that a person resends
//! - `work`: a job's way from ready to claimed to settled
//!
//! It runs no job (`worker` does) and watches no clock of its own (`sweeper` does).

mod admission;
mod board;
pub mod bulk;
mod claim;
mod core;
mod draft;
mod elsewhere;
mod error;
mod estimate;
mod fair_queue;
mod follow;
mod handles;
mod hearing;
mod hint;
mod hold;
mod jobs;
mod listener;
mod memo;
mod operations;
mod order;
mod outlook;
mod pause;
mod policy;
mod rates;
mod refused;
mod relay;
mod reparse;
pub mod retry;
mod running;
mod service_time;
mod submit;
mod sweep;
mod wait;
mod webhooks;
mod work;

pub use self::{
    board::Proposal,
    claim::{Claim, Reserved, Standby},
    draft::Draft,
    elsewhere::{Choice, Preview},
    error::QueueError,
    fair_queue::Lanes,
    follow::{Follower, News, Seen},
    handles::{Operations, Queue, WorkQueue},
    hint::Hint,
    memo::Memo,
    order::Waiting,
    outlook::{Allowance, Hold, Outlook, WaitingFor},
    pause::Pause,
    policy::Policy,
    rates::{MINUTE, Quota, SharedRates, Taken},
    refused::Refused,
    relay::{TextPiece, TextPlace, TextRelay},
    service_time::{Kind, Times},
    submit::{Accepted, Submission},
};

#[cfg(test)]
mod tests;
