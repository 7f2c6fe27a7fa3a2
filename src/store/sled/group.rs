//! A group of commands that one sync makes durable, as far as it is staged.

use std::{collections::HashMap, sync::Arc};

use super::{
    beside::BesideChange,
    book::{Entry, Page},
    commands::Reply,
    idempotency::Keys,
    keys::Seq,
};
use crate::{
    clock::Timestamp,
    job::{Attempt, Job, JobRequest, delivery::Delivery},
    store::StoreError,
};

/// Sends what was asked for, or the error that the group failed with.
type Answer = Box<dyn FnOnce(Option<StoreError>)>;

/// What has been written since the last sync.
#[derive(Default)]
pub(super) struct Group {
    pub(super) answers: Vec<Answer>,
    /// In order; none removes the job.
    pub(super) changes: Vec<(Seq, Option<Arc<Job>>, Timestamp)>,
    /// The newest state of every job that the group has touched.
    pub(super) staged: HashMap<Seq, Option<Arc<Job>>>,
    /// What is owed to callback URLs, where the group changes that.
    pub(super) deliveries: HashMap<Seq, Delivery>,
    /// Records that no metadata spoke of before.
    pub(super) bodies: Vec<(Seq, Body)>,
    /// Attempts that leave the history.
    pub(super) obsolete: Vec<(Seq, u32)>,
    /// Jobs that take the answer of another, and the bytes of it.
    pub(super) shared: (usize, usize),
    /// Jobs that are there together or not at all, each batch by its first.
    pub(super) batches: Vec<Seq>,
    /// Keys of the jobs inserted, and keys to forget.
    pub(super) keys: Keys,
    pub(super) expired_keys: Vec<[u8; 16]>,
    /// What the attempts that end in this group cost.
    pub(super) entries: Vec<Entry>,
    /// The ledger's records with these in them.
    pub(super) pages: Vec<Page>,
    /// Jobs that the group removes.
    pub(super) removed: Vec<Seq>,
    pub(super) beside: Vec<BesideChange>,
    /// Something was written besides jobs.
    pub(super) wrote: bool,
}

/// A record beside a job's metadata, with its size on disk.
pub(super) enum Body {
    Request(Arc<JobRequest>, usize),
    Attempt(Arc<Attempt>, usize),
}

/// Why a group failed as a whole.
pub(super) struct Fault(pub(super) String);

impl From<sled::Error> for Fault {
    fn from(error: sled::Error) -> Fault {
        Fault(error.to_string())
    }
}

impl Group {
    /// Has `value` sent once the group is durable.
    pub(super) fn answer<T: 'static>(&mut self, reply: Reply<T>, value: T) {
        // Nobody may be listening any more.
        self.answers.push(Box::new(move |fault| drop(reply.send(fault.map_or(Ok(value), Err)))));
    }

    pub(super) fn note(&mut self, seq: Seq, job: Option<Job>, now: Timestamp) {
        let job = job.map(Arc::new);
        self.staged.insert(seq, job.clone());
        self.changes.push((seq, job, now));
    }
}
