//! The calls that the simulator received, and counters.

use std::{collections::VecDeque, sync::Arc, time::SystemTime};

use axum::body::Bytes;
use parking_lot::Mutex;
use serde_json::Value;
use tokio::sync::watch;

use crate::claude::message::Usage;

/// Only the newest calls are recorded; a demo may run for long. The counters go on.
pub const MAX_RECORDED_CALLS: usize = 1_000;

#[derive(Debug, Clone)]
pub struct Call {
    pub at: SystemTime,
    pub request_id: String,
    pub model: String,
    pub prompt: String,
    pub body: Bytes,
    /// `None` if the connection was closed instead.
    pub status: Option<u16>,
    /// The text answered, also when the stream broke before its end.
    pub answer: Option<Arc<str>>,
    pub usage: Usage,
}

impl Call {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    pub connections: usize,
    pub calls: usize,
    /// Those of them that the account's limits refused with a 429.
    pub limited: usize,
    /// Calls that the caller left before their answer was out.
    pub aborted: usize,
    pub in_flight: usize,
    pub peak_in_flight: usize,
    pub usage: Usage,
}

#[derive(Default)]
pub(super) struct Record {
    pub(super) calls: Mutex<VecDeque<Call>>,
    pub(super) counters: watch::Sender<Counters>,
}

impl Record {
    pub(super) fn count(&self, change: impl FnOnce(&mut Counters)) {
        self.counters.send_modify(change);
    }

    pub(super) fn receive(self: &Arc<Self>, call: Call) -> Flight {
        let usage = call.usage;
        let mut calls = self.calls.lock();
        if calls.len() == MAX_RECORDED_CALLS {
            calls.pop_front();
        }
        calls.push_back(call);
        drop(calls);
        self.count(|counters| {
            counters.calls += 1;
            counters.in_flight += 1;
            counters.peak_in_flight = counters.peak_in_flight.max(counters.in_flight);
            counters.usage.input_tokens += usage.input_tokens;
            counters.usage.output_tokens += usage.output_tokens;
            counters.usage.cache_creation_input_tokens += usage.cache_creation_input_tokens;
            counters.usage.cache_read_input_tokens += usage.cache_read_input_tokens;
        });
        Flight { record: Arc::clone(self), landed: false }
    }
}

/// A call being answered. Dropped before it has landed, it counts as aborted.
pub(super) struct Flight {
    record: Arc<Record>,
    landed: bool,
}

impl Flight {
    pub(super) fn land(&mut self) {
        self.landed = true;
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.record.count(|counters| {
            counters.in_flight -= 1;
            counters.aborted += usize::from(!self.landed);
        });
    }
}
