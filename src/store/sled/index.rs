//! The state of every job in memory, and the lists that reads and retention need; built at start from the metadata records.
//! Holds only what is durable: the writer changes it after the disk has it.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    hash::{BuildHasher, RandomState},
    num::NonZeroU64,
    ops::{
        Bound::{Excluded, Unbounded},
        RangeBounds,
    },
    sync::Arc,
    time::Duration,
};

use hashbrown::HashTable;

use super::{codec::fingerprint, keys::Seq};
use crate::{
    clock::Timestamp,
    job::{Job, JobFilter, JobId, JobState, JobStatus, Side, UnfinishedSearch, delivery},
    store::traits::EndedCounts,
};

/// Of the finished jobs that stay, at most this part may be those whose webhook is still to be sent: dead receivers must not
/// push out all others.
const UNNOTIFIED_PART: usize = 2;

/// All jobs, and each in the lists of its state.
///
/// [`Index::replace`] is the only function that changes a job, so a job and its lists can't disagree.
#[derive(Debug, Default)]
pub(super) struct Index {
    jobs: BTreeMap<Seq, Arc<Job>>,
    by_id: ById,
    /// In a final state, by their end.
    finished: BTreeSet<(Timestamp, Seq)>,
    /// As `finished`, but the webhook is still to be sent: a list of its own, so that retention need not walk past them.
    unnotified: BTreeSet<(Timestamp, Seq)>,
    /// Each status in order of submission. A job queued for later is listed as scheduled until [`Index::promote`].
    by_status: HashMap<JobStatus, BTreeSet<Seq>>,
    scheduled: BTreeSet<(Timestamp, Seq)>,
    /// How far the service time is ahead of the wall clock.
    lead: Duration,
    /// Succeeded jobs by their question and end, if the store keeps answers.
    answers: Option<BTreeSet<(NonZeroU64, Timestamp, Seq)>>,
    fingerprint: u64,
}

impl Index {
    /// Makes `seq` stand for `job`, or for nothing. A job queued for a moment after `now` is scheduled.
    pub(super) fn replace(&mut self, seq: Seq, job: Option<Arc<Job>>, now: Timestamp) {
        let old = self.jobs.remove(&seq);
        let is_unnotified = old.as_ref().is_some_and(|old| self.unnotified.contains(&(end_of(old), seq)));
        if let Some(old) = &old {
            self.unlist(seq, old);
            if job.is_none() {
                self.by_id.remove(old.id, seq);
            }
        }
        let Some(job) = job else { return };
        let id = job.id;
        self.list(seq, &job, now);
        self.jobs.insert(seq, job);
        if is_unnotified {
            self.set_unnotified(seq, true);
        }
        if old.is_none() {
            self.by_id.insert(id, seq, &self.jobs);
        }
    }

    /// Records whether the webhook of a job's end is still to be sent; without effect on a job that has not ended.
    pub(super) fn set_unnotified(&mut self, seq: Seq, is_unnotified: bool) {
        let Some(job) = self.jobs.get(&seq) else { return };
        let (from, to) = match is_unnotified {
            true => (&mut self.finished, &mut self.unnotified),
            false => (&mut self.unnotified, &mut self.finished),
        };
        if from.remove(&(end_of(job), seq)) {
            to.insert((end_of(job), seq));
        }
    }

    /// The index of these jobs, in the order of their numbers, where the service time is `lead` ahead of the wall clock.
    pub(super) fn from_jobs(
        jobs: impl IntoIterator<Item = (Seq, Job)>,
        keep_answers: bool,
        now: Timestamp,
        lead: Duration,
    ) -> Index {
        let mut index = Index { answers: keep_answers.then(BTreeSet::new), lead, ..Index::default() };
        let listed = jobs.into_iter().inspect(|(seq, job)| index.list(*seq, job, now));
        let jobs: Vec<(Seq, Arc<Job>)> = listed.map(|(seq, job)| (seq, Arc::new(job))).collect();
        // Room for all at once: it would have to find every job again to make more.
        index.by_id.reserve(jobs.len());
        // Collected, because then its nodes are full; of insertions in order they would be half empty.
        index.jobs = jobs.into_iter().collect();
        for (seq, job) in &index.jobs {
            index.by_id.insert(job.id, *seq, &index.jobs);
        }
        index
    }

    fn list(&mut self, seq: Seq, job: &Job, now: Timestamp) {
        self.fingerprint = self.fingerprint.wrapping_add(fingerprint(seq, job));
        let reached = if job.is_timed { now.minus(self.lead) } else { now };
        self.by_status.entry(job.status(reached)).or_default().insert(seq);
        if let JobState::Queued { run_at } = job.state
            && run_at > reached
        {
            self.scheduled.insert((run_at, seq));
        }
        if job.state.is_final() {
            self.finished.insert((end_of(job), seq));
        }
        if let (Some(answers), Some(answer)) = (&mut self.answers, answer_of(seq, job)) {
            answers.insert(answer);
        }
    }

    fn unlist(&mut self, seq: Seq, old: &Job) {
        self.fingerprint = self.fingerprint.wrapping_sub(fingerprint(seq, old));
        let mut status = old.status(old.created_at);
        if let JobState::Queued { run_at } = old.state {
            let is_scheduled = self.scheduled.remove(&(run_at, seq));
            status = if is_scheduled { JobStatus::Scheduled } else { JobStatus::Queued };
        } else if old.state.is_final() && !self.finished.remove(&(end_of(old), seq)) {
            self.unnotified.remove(&(end_of(old), seq));
        }
        self.by_status.entry(status).or_default().remove(&seq);
        if let (Some(answers), Some(answer)) = (&mut self.answers, answer_of(seq, old)) {
            answers.remove(&answer);
        }
    }

    pub(super) fn newest_answer(&self, question: NonZeroU64) -> Option<&Job> {
        let all =
            (question, Timestamp::from_millis(i64::MIN), 0)..=(question, Timestamp::from_millis(i64::MAX), Seq::MAX);
        let (_, _, seq) = self.answers.as_ref()?.range(all).next_back()?;
        self.get(*seq)
    }

    /// Lists as queued what was scheduled for a moment that has come. A job whose client set that moment waits for the wall
    /// clock, which the service time is `lead` ahead of.
    pub(super) fn promote(&mut self, now: Timestamp, lead: Duration) {
        self.lead = lead;
        let due = self.scheduled.range(..=(now, Seq::MAX)).copied();
        let is_due = |(run_at, seq): &(Timestamp, Seq)| {
            *run_at <= now.minus(lead) || self.jobs.get(seq).is_some_and(|job| !job.is_timed)
        };
        for (run_at, seq) in due.filter(is_due).collect::<Vec<_>>() {
            self.scheduled.remove(&(run_at, seq));
            self.by_status.entry(JobStatus::Scheduled).or_default().remove(&seq);
            self.by_status.entry(JobStatus::Queued).or_default().insert(seq);
        }
    }

    pub(super) fn has_due(&self, now: Timestamp, lead: Duration) -> bool {
        self.scheduled.first().is_some_and(|(run_at, _)| *run_at <= now) || self.lead < lead
    }

    pub(super) fn fingerprint(&self) -> u64 {
        self.fingerprint
    }

    pub(super) fn seq(&self, id: JobId) -> Option<Seq> {
        self.by_id.get(id, &self.jobs)
    }

    pub(super) fn get(&self, seq: Seq) -> Option<&Job> {
        self.jobs.get(&seq).map(|job| &**job)
    }

    pub(super) fn pending(&self) -> Vec<Arc<Job>> {
        self.jobs.values().filter(|job| !job.state.is_final()).cloned().collect()
    }

    pub(super) fn ended(&self) -> EndedCounts {
        let count = |status| self.by_status.get(&status).map_or(0, BTreeSet::len);
        EndedCounts {
            succeeded: count(JobStatus::Succeeded),
            failed: count(JobStatus::Failed),
            cancelled: count(JobStatus::Cancelled),
        }
    }

    /// Finished jobs to remove, oldest end first: those that ended before `before`, and those beyond the newest `keep`.
    /// A job whose webhook is still to be sent stays longer, but such jobs are at most a part of `keep`.
    pub(super) fn prunable(&self, before: Timestamp, keep: usize, limit: usize, now: Timestamp) -> Vec<Seq> {
        let unnotified_surplus = self.unnotified.len().saturating_sub(keep.div_ceil(UNNOTIFIED_PART));
        let surplus = (self.finished.len() + self.unnotified.len() - unnotified_surplus).saturating_sub(keep);
        let given_up = before.min(now.minus(delivery::UNNOTIFIED_RETENTION));
        let notified = oldest(&self.finished, surplus, before);
        notified.chain(oldest(&self.unnotified, unnotified_surplus, given_up)).take(limit).collect()
    }

    /// The jobs that can meet the filter on one side of `from`, the nearest first: by its ids, or else its statuses, which
    /// are as of the last promotion.
    pub(super) fn walk<'a>(&'a self, filter: &JobFilter, side: Side, from: Option<Seq>) -> Walk<'a> {
        let from = from.map_or(Unbounded, Excluded);
        let range = match side {
            Side::Older => (Unbounded, from),
            Side::Newer => (from, Unbounded),
        };
        if let Some(ids) = &filter.ids {
            let seqs: BTreeSet<Seq> = ids.iter().filter_map(|id| self.seq(*id)).collect();
            let ahead = seqs.into_iter().filter(move |seq| range.contains(seq));
            return onward(side, ahead.filter_map(|seq| Some((seq, self.get(seq)?))));
        }
        if filter.statuses.is_empty() {
            return onward(side, self.jobs.range(range).map(|(seq, job)| (*seq, &**job)));
        }
        let lists = self.by_status.iter().filter(|(status, _)| filter.statuses.contains(status));
        let lists = lists.map(|(_, list)| onward(side, list.range(range).copied()).peekable());
        let mut lists: Vec<_> = lists.collect();
        let merged = std::iter::from_fn(move || {
            let heads = lists.iter_mut().filter_map(|list| Some((*list.peek()?, list)));
            let (seq, list) = match side {
                Side::Older => heads.max_by_key(|(seq, _)| *seq)?,
                Side::Newer => heads.min_by_key(|(seq, _)| *seq)?,
            };
            list.next();
            Some(seq)
        });
        Box::new(merged.filter_map(|seq| Some((seq, self.get(seq)?))))
    }

    pub(super) fn progress(&self, side: Side, seq: Seq) -> Option<UnfinishedSearch> {
        let ((first, _), (last, newest)) = (self.jobs.first_key_value()?, self.jobs.last_key_value()?);
        let passed = match side {
            Side::Older => last.saturating_sub(seq),
            Side::Newer => seq.saturating_sub(*first),
        };
        let percent = u8::try_from(passed * 100 / (last - first).max(1)).unwrap_or(100).min(99);
        // The job itself may have been removed meanwhile.
        let searched_to = self.jobs.range(seq..).next().map_or(newest, |(_, job)| job).created_at;
        Some(UnfinishedSearch { searched_to, percent })
    }
}

type Walk<'a> = Box<dyn Iterator<Item = (Seq, &'a Job)> + 'a>;

fn onward<'a, I: DoubleEndedIterator + 'a>(side: Side, items: I) -> Box<dyn Iterator<Item = I::Item> + 'a> {
    match side {
        Side::Older => Box::new(items.rev()),
        Side::Newer => Box::new(items),
    }
}

fn oldest(ends: &BTreeSet<(Timestamp, Seq)>, surplus: usize, before: Timestamp) -> impl Iterator<Item = Seq> + '_ {
    let ends = ends.iter().enumerate();
    ends.take_while(move |(place, (end, _))| *place < surplus || *end < before).map(|(_, (_, seq))| *seq)
}

fn end_of(job: &Job) -> Timestamp {
    job.finished_at.unwrap_or(job.created_at)
}

/// By which a job is found whose answer may be given to others.
fn answer_of(seq: Seq, job: &Job) -> Option<(NonZeroU64, Timestamp, Seq)> {
    Some((job.question.filter(|_| job.state == JobState::Succeeded)?, job.finished_at?, seq))
}

/// Numbers by id. Of each job it has the number alone, because the id is in the job itself: a table of both would take 50 MB
/// for a million jobs, this one 19.
#[derive(Debug, Default)]
struct ById {
    seqs: HashTable<Seq>,
    hasher: RandomState,
}

impl ById {
    /// Has room for `jobs` without looking at any of them again.
    fn reserve(&mut self, jobs: usize) {
        self.seqs.reserve(jobs, |_| 0);
    }

    fn insert(&mut self, id: JobId, seq: Seq, jobs: &BTreeMap<Seq, Arc<Job>>) {
        let ById { seqs, hasher } = self;
        seqs.insert_unique(hasher.hash_one(id), seq, |seq| jobs.get(seq).map_or(0, |job| hasher.hash_one(job.id)));
    }

    fn remove(&mut self, id: JobId, seq: Seq) {
        if let Ok(entry) = self.seqs.find_entry(self.hasher.hash_one(id), |found| *found == seq) {
            entry.remove();
        }
    }

    fn get(&self, id: JobId, jobs: &BTreeMap<Seq, Arc<Job>>) -> Option<Seq> {
        let is = |seq: &Seq| jobs.get(seq).is_some_and(|job| job.id == id);
        self.seqs.find(self.hasher.hash_one(id), is).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Index {
        pub(crate) fn unnotified(&self) -> BTreeSet<Seq> {
            self.unnotified.iter().map(|(_, seq)| *seq).collect()
        }

        /// Panics unless every list agrees with the jobs: the checker that tests run after every step.
        pub(crate) fn assert_consistent(&self) {
            let answers = self.answers.as_ref().map(|_| BTreeSet::new());
            let mut rebuilt = Index { answers, ..Index::default() };
            for (seq, job) in &self.jobs {
                // A queued job stands in one of two lists, by the moment of the last promotion.
                let waits =
                    matches!(job.state, JobState::Queued { run_at } if self.scheduled.contains(&(run_at, *seq)));
                rebuilt.replace(
                    *seq,
                    Some(Arc::clone(job)),
                    Timestamp::from_millis(if waits { i64::MIN } else { i64::MAX }),
                );
            }
            self.unnotified.iter().for_each(|(_, seq)| rebuilt.set_unnotified(*seq, true));
            let lists = |index: &Index| [&index.scheduled, &index.finished, &index.unnotified].map(Clone::clone);
            assert_eq!(lists(self), lists(&rebuilt), "a list disagrees with the jobs");
            assert_eq!(self.by_id, rebuilt.by_id, "the ids disagree with the jobs");
            let filled = |index: &Index| -> HashMap<JobStatus, BTreeSet<Seq>> {
                let lists = index.by_status.iter().filter(|(_, list)| !list.is_empty());
                lists.map(|(status, list)| (*status, list.clone())).collect()
            };
            assert_eq!(filled(self), filled(&rebuilt), "the lists by status disagree with the jobs");
            assert_eq!(self.answers, rebuilt.answers, "the answers disagree with the jobs");
            assert_eq!(self.fingerprint, rebuilt.fingerprint, "the sum disagrees with the jobs");
        }
    }

    /// Each hashes with keys of its own, so what they hold is compared.
    impl PartialEq for ById {
        fn eq(&self, other: &ById) -> bool {
            let sorted = |table: &ById| table.seqs.iter().copied().collect::<BTreeSet<Seq>>();
            self.seqs.len() == other.seqs.len() && sorted(self) == sorted(other)
        }
    }
}
