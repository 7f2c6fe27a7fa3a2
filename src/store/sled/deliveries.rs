//! Webhooks that are not settled yet, in memory: every job that ends looks at them, and so does the sender. Settled ones
//! are on disk only, with the jobs they belong to; of those that failed, memory has the job's number.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use super::{index::Index, keys::Seq};
use crate::{
    clock::Timestamp,
    job::{
        caller::Caller,
        delivery::{Delivery, DeliveryState},
    },
};

/// A caller, and the host of its callback URLs.
type Lane = (Caller, Arc<str>);

/// The open deliveries.
#[derive(Debug, Default)]
pub(super) struct Deliveries {
    open: HashMap<Seq, (Caller, Delivery)>,
    due: BTreeSet<(Timestamp, Seq)>,
    /// The same, of each caller to each host: the sender gives each its share of slots.
    lanes: BTreeMap<Lane, BTreeSet<(Timestamp, Seq)>>,
    /// Those that were tried and not accepted, settled ones included.
    failing: BTreeSet<Seq>,
}

impl Deliveries {
    /// Makes this the delivery of a job and its caller; a settled one is forgotten.
    pub(super) fn replace(&mut self, seq: Seq, delivery: Option<(Caller, Delivery)>) {
        if let Some((caller, old)) = self.open.remove(&seq)
            && let Some(next_at) = old.next_at()
        {
            self.due.remove(&(next_at, seq));
            let lane = (caller, old.host.into());
            if let Some(due) = self.lanes.get_mut(&lane) {
                due.remove(&(next_at, seq));
                if due.is_empty() {
                    self.lanes.remove(&lane);
                }
            }
        }
        self.failing.remove(&seq);
        if delivery.as_ref().is_some_and(|(_, delivery)| delivery.is_failing()) {
            self.failing.insert(seq);
        }
        let Some((caller, delivery)) = delivery.filter(|(_, delivery)| delivery.is_open()) else { return };
        if let Some(next_at) = delivery.next_at() {
            self.due.insert((next_at, seq));
            self.lanes.entry((caller, delivery.host.as_str().into())).or_default().insert((next_at, seq));
        }
        self.open.insert(seq, (caller, delivery));
    }

    pub(super) fn get(&self, seq: Seq) -> Option<&Delivery> {
        self.open.get(&seq).map(|(_, delivery)| delivery)
    }

    /// Jobs whose delivery is due at `now`: of each caller the earliest `most` to each host.
    pub(super) fn due(&self, now: Timestamp, most: usize) -> Vec<(Seq, Caller, Arc<str>)> {
        let lanes = self.lanes.iter().flat_map(|((caller, host), due)| {
            let due = due.iter().take_while(|(next_at, _)| *next_at <= now).take(most);
            due.map(|(_, seq)| (*seq, *caller, Arc::clone(host)))
        });
        lanes.collect()
    }

    /// The jobs whose message was tried and not accepted, newest first, from before `before`.
    pub(super) fn failing(&self, before: Option<Seq>) -> impl Iterator<Item = Seq> + '_ {
        self.failing.range(..before.unwrap_or(Seq::MAX)).rev().copied()
    }

    /// The ended jobs whose message is still to be sent.
    pub(super) fn pending(&self) -> impl Iterator<Item = Seq> + '_ {
        self.due.iter().map(|(_, seq)| *seq)
    }

    /// When one is due after `now`.
    pub(super) fn next_after(&self, now: Timestamp) -> Option<Timestamp> {
        self.due.range((now.plus(std::time::Duration::from_millis(1)), 0)..).next().map(|(next_at, _)| *next_at)
    }
}

/// A delivery as it was found on disk, by the state of its job: it is written before the job's metadata, so that a
/// crash can have left it one step ahead.
pub(super) fn reconciled(delivery: Delivery, seq: Seq, index: &Index) -> Option<Delivery> {
    let job = index.get(seq)?;
    Some(match delivery.state {
        DeliveryState::Pending { .. } if !job.state.is_final() => {
            Delivery { number: delivery.number - 1, ..delivery.withdrawn() }
        }
        // The job was about to be queued again. Whether its end was told is not known any more, so it is told under the
        // same name, by which a receiver knows it.
        DeliveryState::Waiting if job.state.is_final() => {
            let next_at = job.finished_at.unwrap_or(job.created_at);
            Delivery { number: delivery.number.max(1), state: DeliveryState::Pending { next_at }, ..delivery }
        }
        _ => delivery,
    })
}

/// The record of a delivery.
pub(super) fn encode(delivery: &Delivery) -> Result<Vec<u8>, String> {
    serde_json::to_vec(delivery).map_err(|error| error.to_string())
}

/// What [`encode`] wrote.
pub(super) fn decode(bytes: &[u8]) -> Result<Delivery, String> {
    serde_json::from_slice(bytes).map_err(|error| format!("a delivery: {error}"))
}
