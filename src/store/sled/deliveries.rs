//! Webhooks that are still to be sent or may become so, in memory. Settled ones are on disk only; of those that failed, memory
//! has the job's number.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use super::{
    disk::Disk,
    error::Fault,
    index::Index,
    keys::{self, Seq},
    records,
};
use crate::{
    clock::Timestamp,
    job::{
        Job,
        caller::Caller,
        delivery::{Delivery, DeliveryState},
    },
};

/// A caller, and the host of its callback URLs: the sender gives each its share of slots.
type Lane = (Caller, Arc<str>);

#[derive(Debug, Default)]
pub(super) struct Deliveries {
    open: HashMap<Seq, (Caller, Delivery)>,
    due: BTreeMap<Lane, BTreeSet<(Timestamp, Seq)>>,
    /// Those that were tried and not accepted, settled ones included.
    failing: BTreeSet<Seq>,
}

impl Deliveries {
    /// The webhooks of the jobs in the index; removes those of other jobs.
    pub(super) fn load(disk: &Disk, index: &Index) -> Result<Deliveries, Fault> {
        let mut deliveries = Deliveries::default();
        for entry in disk.tree().scan_prefix(keys::DELIVERY) {
            let (key, record) = entry?;
            let seq = records::seq_of(&key)?;
            match index.get(seq).map(|job| (job, records::parse_delivery(&record))) {
                Some((job, delivery)) => {
                    deliveries.replace(seq, Some((job.caller, reconcile(delivery?, job))));
                }
                None => drop(disk.tree().remove(key)?),
            }
        }
        Ok(deliveries)
    }

    /// Makes this the delivery of a job and its caller; a settled one is forgotten.
    pub(super) fn replace(&mut self, seq: Seq, delivery: Option<(Caller, Delivery)>) {
        if let Some((caller, old)) = self.open.remove(&seq)
            && let Some(next_at) = old.next_at()
        {
            let lane = (caller, old.host.into());
            if let Some(due) = self.due.get_mut(&lane) {
                due.remove(&(next_at, seq));
                if due.is_empty() {
                    self.due.remove(&lane);
                }
            }
        }
        self.failing.remove(&seq);
        let Some((caller, delivery)) = delivery else { return };
        if delivery.is_failing() {
            self.failing.insert(seq);
        }
        if let Some(next_at) = delivery.next_at() {
            self.due.entry((caller, delivery.host.as_str().into())).or_default().insert((next_at, seq));
        }
        if delivery.is_open() {
            self.open.insert(seq, (caller, delivery));
        }
    }

    pub(super) fn get(&self, seq: Seq) -> Option<&Delivery> {
        self.open.get(&seq).map(|(_, delivery)| delivery)
    }

    pub(super) fn due(&self, now: Timestamp, most: usize) -> Vec<(Seq, Caller, Arc<str>)> {
        let due = self.due.iter().flat_map(|((caller, host), due)| {
            let due = due.iter().take_while(|(next_at, _)| *next_at <= now).take(most);
            due.map(|(_, seq)| (*seq, *caller, Arc::clone(host)))
        });
        due.collect()
    }

    /// The jobs whose message was tried and not accepted, newest first, from before `before`.
    pub(super) fn failing(&self, before: Option<Seq>) -> impl Iterator<Item = Seq> + '_ {
        self.failing.range(..before.unwrap_or(Seq::MAX)).rev().copied()
    }

    pub(super) fn pending(&self) -> impl Iterator<Item = Seq> + '_ {
        self.due.values().flatten().map(|(_, seq)| *seq)
    }

    pub(super) fn next_after(&self, now: Timestamp) -> Option<Timestamp> {
        let after = (now.plus(Duration::from_millis(1)), 0);
        self.due.values().filter_map(|due| due.range(after..).next()).map(|(next_at, _)| *next_at).min()
    }
}

/// A delivery as found on disk, corrected by its job: it is written before the job's metadata, so a crash can have left it
/// one step ahead.
pub(super) fn reconcile(delivery: Delivery, job: &Job) -> Delivery {
    match delivery.state {
        DeliveryState::Pending { .. } if !job.state.is_final() => {
            Delivery { number: delivery.number - 1, ..delivery.withdrawn() }
        }
        // The job was about to be queued again. The message may have been sent before: it is sent again under the same
        // number, by which a receiver recognizes it.
        DeliveryState::Waiting if job.state.is_final() => {
            let next_at = job.finished_at.unwrap_or(job.created_at);
            Delivery { number: delivery.number.max(1), state: DeliveryState::Pending { next_at }, ..delivery }
        }
        _ => delivery,
    }
}
