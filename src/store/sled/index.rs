//! The in-memory index: authoritative for order, counts and the state of every job; rebuilt at start from the metadata
//! records. Holds only what is durable: the writer changes it after the disk has it.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::keys::Seq;
use crate::{
    clock::Timestamp,
    job::{Job, JobId, JobState, JobStatus, StatusCounts},
};

/// All jobs, and each in the one list of its state.
///
/// [`Index::replace`] is the only function that changes a job, so a job and its lists can't disagree.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Index {
    jobs: BTreeMap<Seq, Job>,
    by_id: HashMap<JobId, Seq>,
    /// Queued and due, in the order of claiming. A set that also tells at once how many come before one.
    ready: indexset::BTreeSet<(Timestamp, Seq)>,
    /// Queued for later, by their time.
    scheduled: BTreeSet<(Timestamp, Seq)>,
    /// Running, by the end of their lease.
    leases: BTreeSet<(Timestamp, Seq)>,
    /// Queued with a deadline, by it.
    deadlines: BTreeSet<(Timestamp, Seq)>,
    /// In a final state, by when they got there.
    finished: BTreeSet<(Timestamp, Seq)>,
    /// Each status in order of submission, for listings. Jobs queued for later stand with the queued.
    by_status: BTreeMap<u8, BTreeSet<Seq>>,
}

impl Index {
    /// Makes `seq` stand for `job`, or for nothing. A queued job whose time has come by `now` is ready.
    pub(super) fn replace(&mut self, seq: Seq, job: Option<&Job>, now: Timestamp) {
        if let Some(old) = self.jobs.remove(&seq) {
            self.unlist(seq, &old);
            if job.is_none() {
                self.by_id.remove(&old.id);
            }
        }
        let Some(job) = job else { return };
        self.by_id.insert(job.id, seq);
        self.by_status.entry(list_of(job.state)).or_default().insert(seq);
        match job.state {
            JobState::Queued { run_at } => {
                if run_at > now {
                    self.scheduled.insert((run_at, seq));
                } else {
                    self.ready.insert((job.effective_at(), seq));
                }
                if let Some(deadline) = job.deadline_at {
                    self.deadlines.insert((deadline, seq));
                }
            }
            JobState::Running { lease_until } => {
                self.leases.insert((lease_until, seq));
            }
            JobState::Succeeded | JobState::Failed { .. } | JobState::Cancelled => {
                self.finished.insert((job.finished_at.unwrap_or(job.created_at), seq));
            }
        }
        self.jobs.insert(seq, job.clone());
    }

    fn unlist(&mut self, seq: Seq, old: &Job) {
        if let Some(list) = self.by_status.get_mut(&list_of(old.state)) {
            list.remove(&seq);
        }
        match old.state {
            JobState::Queued { run_at } => {
                self.scheduled.remove(&(run_at, seq));
                self.ready.remove(&(old.effective_at(), seq));
                if let Some(deadline) = old.deadline_at {
                    self.deadlines.remove(&(deadline, seq));
                }
            }
            JobState::Running { lease_until } => {
                self.leases.remove(&(lease_until, seq));
            }
            JobState::Succeeded | JobState::Failed { .. } | JobState::Cancelled => {
                self.finished.remove(&(old.finished_at.unwrap_or(old.created_at), seq));
            }
        }
    }

    /// Makes ready what was queued for a moment that has come; tells whether there was any.
    pub(super) fn promote(&mut self, now: Timestamp) -> bool {
        let mut promoted = false;
        while let Some(&(run_at, seq)) = self.scheduled.first().filter(|(run_at, _)| *run_at <= now) {
            self.scheduled.remove(&(run_at, seq));
            if let Some(job) = self.jobs.get(&seq) {
                self.ready.insert((job.effective_at(), seq));
            }
            promoted = true;
        }
        promoted
    }

    /// True if [`Index::promote`] would find something.
    pub(super) fn has_due(&self, now: Timestamp) -> bool {
        self.scheduled.first().is_some_and(|(run_at, _)| *run_at <= now)
    }

    pub(super) fn seq(&self, id: JobId) -> Option<Seq> {
        self.by_id.get(&id).copied()
    }

    pub(super) fn get(&self, seq: Seq) -> Option<&Job> {
        self.jobs.get(&seq)
    }

    /// How many ready jobs come before this one.
    pub(super) fn ahead_of(&self, job: &Job) -> usize {
        self.seq(job.id).map_or(0, |seq| self.ready.rank(&(job.effective_at(), seq)))
    }

    pub(super) fn ready_len(&self) -> usize {
        self.ready.len()
    }

    /// Queued, scheduled and running jobs: what the bound on pending jobs counts.
    pub(super) fn pending_len(&self) -> usize {
        self.jobs.len() - self.finished.len()
    }

    /// The ready jobs in the order of claiming, from the one after `place`.
    pub(super) fn ready_after(&self, place: Option<(Timestamp, Seq)>) -> impl Iterator<Item = (Timestamp, Seq)> + '_ {
        use std::ops::Bound::{Excluded, Unbounded};
        self.ready.range((place.map_or(Unbounded, Excluded), Unbounded)).copied()
    }

    pub(super) fn running(&self) -> impl Iterator<Item = &Job> + '_ {
        self.leases.iter().filter_map(|(_, seq)| self.jobs.get(seq))
    }

    /// Running jobs whose lease is over and queued ones past their deadline.
    pub(super) fn overdue(&self, now: Timestamp, limit: usize) -> Vec<Job> {
        let over = |(end, _): &&(Timestamp, Seq)| *end <= now;
        let leases = self.leases.iter().take_while(over);
        let deadlines = self.deadlines.iter().take_while(over);
        leases.chain(deadlines).filter_map(|(_, seq)| self.jobs.get(seq)).take(limit).cloned().collect()
    }

    pub(super) fn next_due(&self) -> Option<Timestamp> {
        [&self.scheduled, &self.leases, &self.deadlines].iter().filter_map(|list| list.first()).map(|(at, _)| *at).min()
    }

    /// Finished jobs to remove, oldest end first: those that ended before `before`, and those beyond the newest `keep`.
    pub(super) fn prunable(&self, before: Timestamp, keep: usize, limit: usize) -> Vec<Seq> {
        let surplus = self.finished.len().saturating_sub(keep);
        let expired = |(place, (end, _)): &(usize, &(Timestamp, Seq))| *place < surplus || *end < before;
        self.finished.iter().enumerate().take_while(expired).take(limit).map(|(_, (_, seq))| *seq).collect()
    }

    /// Jobs of any of these statuses (all if empty), newest first, older than `before`, at most `limit`.
    pub(super) fn newest(
        &self,
        statuses: &[JobStatus],
        before: Option<Seq>,
        limit: usize,
        now: Timestamp,
    ) -> Vec<(Seq, Job)> {
        let end = before.unwrap_or(Seq::MAX);
        let found = |seq: &Seq| self.jobs.get(seq).map(|job| (*seq, job.clone()));
        if statuses.is_empty() {
            return self.jobs.range(..end).rev().map(|(seq, job)| (*seq, job.clone())).take(limit).collect();
        }
        let wanted = |(_, job): &(Seq, Job)| statuses.contains(&job.status(now));
        let mut lists: Vec<u8> = statuses.iter().map(|status| list_named(*status)).collect();
        lists.sort_unstable();
        lists.dedup();
        let mut jobs: Vec<(Seq, Job)> = lists
            .iter()
            .filter_map(|list| self.by_status.get(list))
            .flat_map(|list| list.range(..end).rev().filter_map(found).filter(wanted).take(limit))
            .collect();
        jobs.sort_unstable_by_key(|(seq, _)| std::cmp::Reverse(*seq));
        jobs.truncate(limit);
        jobs
    }

    pub(super) fn counts(&self, now: Timestamp) -> StatusCounts {
        let of = |status| self.by_status.get(&list_named(status)).map_or(0, BTreeSet::len);
        // Due but not yet promoted: few, and only for moments.
        let due = self.scheduled.iter().take_while(|(run_at, _)| *run_at <= now).count();
        StatusCounts {
            queued: self.ready.len() + due,
            scheduled: self.scheduled.len() - due,
            running: of(JobStatus::Running),
            succeeded: of(JobStatus::Succeeded),
            failed: of(JobStatus::Failed),
            cancelled: of(JobStatus::Cancelled),
        }
    }

    /// Panics unless every list agrees with the jobs: the checker that tests run after every step.
    #[cfg(test)]
    pub(super) fn assert_consistent(&self) {
        let mut rebuilt = Index::default();
        for (seq, job) in &self.jobs {
            // A queued job stands in one of two lists, by the moment of the last promotion.
            let waits = matches!(job.state, JobState::Queued { run_at } if self.scheduled.contains(&(run_at, *seq)));
            rebuilt.replace(*seq, Some(job), Timestamp::from_millis(if waits { i64::MIN } else { i64::MAX }));
        }
        for list in self.by_status.keys() {
            rebuilt.by_status.entry(*list).or_default();
        }
        assert_eq!(*self, rebuilt, "the index disagrees with its jobs");
    }
}

/// The list that a job in this state stands in.
fn list_of(state: JobState) -> u8 {
    match state {
        JobState::Queued { .. } => 0,
        JobState::Running { .. } => 1,
        JobState::Succeeded => 2,
        JobState::Failed { .. } => 3,
        JobState::Cancelled => 4,
    }
}

/// The list that jobs of this status stand in.
fn list_named(status: JobStatus) -> u8 {
    match status {
        JobStatus::Queued | JobStatus::Scheduled => 0,
        JobStatus::Running => 1,
        JobStatus::Succeeded => 2,
        JobStatus::Failed => 3,
        JobStatus::Cancelled => 4,
    }
}
