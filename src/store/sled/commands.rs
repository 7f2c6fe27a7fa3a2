//! What the writer is asked to do, and the line in which that waits.

use std::{collections::VecDeque, sync::Arc};

use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::beside::BesideChange;
use crate::{
    clock::Timestamp,
    job::{AttemptReport, Job, JobEvent, JobId, JobRecord, JobRequest, Owner, delivery::Delivery},
    ledger::{Day, Sums},
    store::{ClaimedJob, Insertion, StoreError},
};

/// Most jobs that a group changes: bounds how long its first change waits for the last.
const MAX_CHANGES: usize = 1_024;

/// From so many new jobs on, a group takes no further command that brings any: at most one whole batch, so that a change
/// waits for two such groups at most, however many questions come in. All changes that wait go before new jobs.
const MAX_NEW: usize = 128;

/// Most bytes of each kind in a group, for the same reason. One command goes however large it is.
pub(super) const MAX_BYTES: usize = 4 << 20;

/// A change, and where its answer goes.
pub(super) enum Command {
    Insert {
        new: NewJob,
        reply: Reply<Insertion>,
    },
    InsertAll {
        all: Vec<NewJob>,
        reply: Reply<Vec<Insertion>>,
    },
    Import {
        all: Vec<NewJob>,
        reply: Reply<Vec<Insertion>>,
    },
    Claim {
        id: JobId,
        owner: Owner,
        lease_until: Timestamp,
        now: Timestamp,
        reply: Reply<ClaimedJob>,
    },
    Transition {
        id: JobId,
        event: JobEvent,
        now: Timestamp,
        reply: Reply<Job>,
    },
    Succeed {
        id: JobId,
        attempt: u32,
        report: Arc<AttemptReport>,
        followers: Vec<JobId>,
        now: Timestamp,
        reply: Reply<Vec<Job>>,
    },
    NoteDelivery {
        id: JobId,
        delivery: Delivery,
        reply: Reply<()>,
    },
    Resend {
        id: JobId,
        now: Timestamp,
        reply: Reply<()>,
    },
    Prune {
        before: Timestamp,
        keep: usize,
        limit: usize,
        now: Timestamp,
        reply: Reply<usize>,
    },
    Remove {
        ids: Vec<JobId>,
        now: Timestamp,
        reply: Reply<usize>,
    },
    Beside {
        change: BesideChange,
        reply: Reply<()>,
    },
    Book {
        day: Day,
        model: String,
        sums: Sums,
        reply: Reply<()>,
    },
}

/// A job to be added. Its request comes with its bytes, so that the writer need not write them out.
pub(super) struct NewJob {
    pub(super) job: Job,
    pub(super) request: Arc<JobRequest>,
    pub(super) bytes: Vec<u8>,
    /// What came of it before, here or elsewhere: attempts by their number.
    pub(super) history: Vec<(u32, Vec<u8>)>,
    pub(super) is_import: bool,
}

impl NewJob {
    pub(super) fn new(job: Job, request: Arc<JobRequest>) -> Result<NewJob, StoreError> {
        let corrupt = |error: serde_json::Error| StoreError::Corrupt { id: job.id, reason: error.to_string() };
        let bytes = serde_json::to_vec(&*request).map_err(corrupt)?;
        Ok(NewJob { job, request, bytes, history: Vec::new(), is_import: false })
    }

    pub(super) fn with_history(record: JobRecord) -> Result<NewJob, StoreError> {
        let JobRecord { job, request, attempts, delivery: _ } = record;
        let corrupt = |error: serde_json::Error| StoreError::Corrupt { id: job.id, reason: error.to_string() };
        let history =
            attempts.iter().map(|attempt| Ok((attempt.number, serde_json::to_vec(attempt).map_err(corrupt)?)));
        let history = history.collect::<Result<_, StoreError>>()?;
        Ok(NewJob { history, ..NewJob::new(job, request)? })
    }

    pub(super) fn of_another_store(record: JobRecord) -> Result<NewJob, StoreError> {
        Ok(NewJob { is_import: true, ..NewJob::with_history(record)? })
    }

    /// About how much it writes.
    fn size(&self) -> usize {
        self.bytes.len() + self.history.iter().map(|(_, bytes)| bytes.len()).sum::<usize>()
    }
}

pub(super) type Reply<T> = oneshot::Sender<Result<T, StoreError>>;

/// A command with its place in the bounded line.
pub(super) struct Envelope {
    pub(super) command: Command,
    pub(super) _place: OwnedSemaphorePermit,
}

/// The commands that wait for a group, those of each kind in the order in which they came. A new job is heard of by nobody
/// before it is written, so nothing that overtakes it can speak of it.
#[derive(Default)]
pub(super) struct Line {
    changes: VecDeque<Envelope>,
    new: VecDeque<Envelope>,
}

impl Line {
    pub(super) fn push(&mut self, envelope: Envelope) {
        let lane = if envelope.command.brings_jobs() { &mut self.new } else { &mut self.changes };
        lane.push_back(envelope);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.changes.is_empty() && self.new.is_empty()
    }

    /// Moves what makes up the next group.
    pub(super) fn fill(&mut self, group: &mut Vec<Envelope>) {
        for (lane, most) in [(&mut self.changes, MAX_CHANGES), (&mut self.new, MAX_NEW)] {
            let (mut count, mut bytes) = (0, 0);
            while count < most && bytes < MAX_BYTES {
                let Some(next) = lane.pop_front() else { break };
                count += next.command.jobs();
                bytes += next.command.bytes();
                group.push(next);
            }
        }
    }

    pub(super) fn fail(&mut self, reason: &str) {
        self.changes.drain(..).chain(self.new.drain(..)).for_each(|envelope| envelope.command.fail(reason));
    }
}

impl Command {
    /// Whether it brings new jobs; all others change jobs that are there, or nothing.
    pub(super) fn brings_jobs(&self) -> bool {
        matches!(self, Command::Insert { .. } | Command::InsertAll { .. } | Command::Import { .. })
    }

    /// How many jobs it is about.
    pub(super) fn jobs(&self) -> usize {
        match self {
            Command::InsertAll { all, .. } | Command::Import { all, .. } => all.len().max(1),
            Command::Remove { ids, .. } => ids.len().max(1),
            Command::Prune { limit, .. } => *limit,
            Command::Insert { .. }
            | Command::Claim { .. }
            | Command::Transition { .. }
            | Command::Succeed { .. }
            | Command::NoteDelivery { .. }
            | Command::Resend { .. }
            | Command::Beside { .. }
            | Command::Book { .. } => 1,
        }
    }

    /// About how much it writes.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Command::Insert { new, .. } => new.size(),
            Command::InsertAll { all, .. } | Command::Import { all, .. } => all.iter().map(NewJob::size).sum(),
            Command::Transition { event, .. } => event.report().map_or(0, answer_bytes),
            Command::Succeed { report, .. } => answer_bytes(report),
            Command::Beside { change, .. } => change.bytes(),
            Command::Claim { .. }
            | Command::NoteDelivery { .. }
            | Command::Resend { .. }
            | Command::Prune { .. }
            | Command::Remove { .. }
            | Command::Book { .. } => 0,
        }
    }

    /// Tells the caller that nothing is known to have happened. Nobody may be listening any more.
    pub(super) fn fail(self, reason: &str) {
        let error = StoreError::Unavailable { reason: reason.to_owned() };
        match self {
            Command::Insert { reply, .. } => drop(reply.send(Err(error))),
            Command::InsertAll { reply, .. } | Command::Import { reply, .. } => drop(reply.send(Err(error))),
            Command::Claim { reply, .. } => drop(reply.send(Err(error))),
            Command::Transition { reply, .. } => drop(reply.send(Err(error))),
            Command::Succeed { reply, .. } => drop(reply.send(Err(error))),
            Command::NoteDelivery { reply, .. } | Command::Resend { reply, .. } => drop(reply.send(Err(error))),
            Command::Prune { reply, .. } | Command::Remove { reply, .. } => drop(reply.send(Err(error))),
            Command::Beside { reply, .. } | Command::Book { reply, .. } => drop(reply.send(Err(error))),
        }
    }
}

/// About how much an answer takes.
pub(super) fn answer_bytes(report: &AttemptReport) -> usize {
    report.result.as_ref().map_or(0, |result| result.get().len()) + report.raw_answer.as_ref().map_or(0, String::len)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::Priority;

    /// A command that brings the job `n`, or one that changes jobs.
    fn envelope(n: Option<u128>) -> Envelope {
        let places = Arc::new(tokio::sync::Semaphore::new(1));
        let command = match n {
            Some(n) => {
                let job = Job::new(JobId::from_u128(n), Priority::Normal, Timestamp::from_millis(0));
                let new = NewJob::new(job, Arc::default()).unwrap();
                Command::Insert { new, reply: oneshot::channel().0 }
            }
            None => Command::Remove { ids: Vec::new(), now: Timestamp::from_millis(0), reply: oneshot::channel().0 },
        };
        Envelope { command, _place: places.try_acquire_owned().unwrap() }
    }

    #[test]
    fn changes_go_before_new_jobs_of_which_a_group_has_only_so_many_and_in_their_order() {
        let mut line = Line::default();
        (0..=MAX_NEW as u128).for_each(|n| line.push(envelope(Some(n))));
        (0..3).for_each(|_| line.push(envelope(None)));
        let mut group = Vec::new();
        line.fill(&mut group);
        let new = |group: &[Envelope]| -> Vec<u128> {
            let ids = group.iter().filter_map(|envelope| match &envelope.command {
                Command::Insert { new, .. } => Some(new.job.id.as_u128()),
                _ => None,
            });
            ids.collect()
        };
        assert!(group[..3].iter().all(|envelope| matches!(envelope.command, Command::Remove { .. })));
        assert_eq!(new(&group), (0..MAX_NEW as u128).collect::<Vec<_>>());
        group.clear();
        line.fill(&mut group);
        assert_eq!((new(&group), line.is_empty()), (vec![MAX_NEW as u128], true));
    }
}
