//! ceoagent takes decision questions over HTTP, has Claude analyse them, and gives back structured decision memos.
//! At its heart is a job queue on disk that never loses a question. This page is the map.
//!
//! # Layers
//!
//! Imports point down only; `tests/tidy.rs` holds them to it.
//!
//! ```text
//! main ─▶ cli ─▶ app ─▶ http · dashboard · dispatch ─▶ worker · sweeper · webhook · redis ─▶ queue ─▶ audit · history
//!                                            │           └─▶ agent ─▶ prompts · claude · analysis
//!                                            └─▶ limits
//! auth · audit · history ─▶ registry ─▶ store ─▶ ledger ─▶ job
//! anyone ─▶ config · clock · digest · metrics · telemetry
//! ```
//!
//! # A question's way
//!
//! `POST /api/v1/analyze` → [`http`] checks it → [`queue::Queue::enqueue`] → [`store`] has it on disk, synced → `202`.
//! The store's feed puts it on the queue's board of pending jobs → the [`dispatch`]er gets a permit from [`limits`] → the board
//! proposes the job, the store claims it, durably → [`agent`] renders the [`prompts`], asks
//! [`claude`], has [`analysis`] read the answer → [`queue::WorkQueue::settle`], durably → the waiting clients are woken.
//!
//! # What holds, and where
//!
//! - An accepted job is on disk before its `202`: [`store::sled`].
//! - Every transition is decided by one pure function, [`job::Job::apply`], and a late worker changes nothing.
//! - A call to Claude is on record before it is made; after a crash it is marked `outcome_unknown`, never forgotten.
//! - While a question is being asked, nobody's same question is; an answer and those that share it are on disk together:
//!   [`store::JobStore::succeed`].
//! - Whether to try again is decided in one file, [`queue::retry`].
//! - What an attempt cost is on disk together with its end: [`ledger`]; and no more is spent a day than the budget has:
//!   [`limits::budget`].
//! - No HTTP answer takes over 30 seconds: [`http`].

pub mod agent;
pub mod analysis;
pub mod app;
pub mod audit;
pub mod auth;
pub mod claude;
pub mod cli;
pub mod clock;
pub mod config;
pub mod dashboard;
pub mod digest;
pub mod dispatch;
pub mod history;
pub mod http;
pub mod ids;
pub mod job;
pub mod ledger;
pub mod limits;
pub mod metrics;
pub mod process;
pub mod prompts;
pub mod queue;
pub mod redis;
pub mod registry;
pub mod store;
pub mod sweeper;
pub mod telemetry;
pub mod webhook;
pub mod worker;

#[cfg(test)]
mod simulation;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;
