//! The in-memory index: authoritative for order, counts and the state of every job; rebuilt at start from the metadata
//! records. Holds only what is durable: the writer changes it after the disk has it.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    hash::{BuildHasher, RandomState},
    num::NonZeroU64,
    time::Duration,
};

use hashbrown::HashTable;

use super::{codec::fingerprint, keys::Seq};
use crate::{
    clock::Timestamp,
    digest::Lane,
    job::{Job, JobId, JobState, JobStatus, Side, StatusCounts, UnfinishedSearch, caller::Caller, delivery},
    store::{
        Ahead, Pick,
        turns::{Lanes, List, Place, Turns, Wanted},
    },
};

/// Jobs whose webhook is still to be sent may be this part of the finished jobs that stay: dead receivers must not push out
/// all others.
const UNTOLD_PART: usize = 2;

/// All jobs, and each in the one list of its state.
///
/// [`Index::replace`] is the only function that changes a job, so a job and its lists can't disagree.
#[derive(Debug, Default)]
pub(super) struct Index {
    jobs: BTreeMap<Seq, Job>,
    by_id: ById,
    /// Queued and due, in the order of claiming. Not those that the writer is about to change.
    ready: Turns<(Timestamp, Seq)>,
    /// Queued for later, by their time.
    scheduled: BTreeSet<(Timestamp, Seq)>,
    /// Queued for a wall-clock time that their clients asked for ([`Job::is_timed`]), by it.
    timed: BTreeSet<(Timestamp, Seq)>,
    /// How far the service time is ahead of the wall clock.
    lead: Duration,
    /// Running, by the end of their lease.
    leases: BTreeSet<(Timestamp, Seq)>,
    /// Queued with a deadline, by it.
    deadlines: BTreeSet<(Timestamp, Seq)>,
    /// In a final state, by when they got there.
    finished: BTreeSet<(Timestamp, Seq)>,
    /// As `finished`, but somebody is still to be told of that end: a list of its own, so that retention need not walk
    /// past them.
    untold: BTreeSet<(Timestamp, Seq)>,
    /// Each status in order of submission, for listings. A job queued for later stands with the scheduled until it is
    /// promoted.
    by_status: HashMap<JobStatus, BTreeSet<Seq>>,
    /// How many pending jobs each caller has.
    pending: HashMap<NonZeroU64, usize>,
    questions: Questions,
    /// The sum of the fingerprints of all jobs.
    fingerprint: u64,
}

impl Index {
    /// Makes `seq` stand for `job`, or for nothing. A queued job whose time has come by `now` is ready.
    pub(super) fn replace(&mut self, seq: Seq, job: Option<&Job>, now: Timestamp) {
        let old = self.jobs.remove(&seq);
        // A heartbeat is no news to those who wait for the answer.
        let asks = |job: &Job| (job.question, std::mem::discriminant(&job.state));
        let asks_anew = old.as_ref().map(asks) != job.map(asks);
        let is_untold = old.as_ref().is_some_and(|old| self.untold.contains(&(end_of(old), seq)));
        if let Some(old) = &old {
            self.unlist(seq, old);
            self.fingerprint = self.fingerprint.wrapping_sub(fingerprint(seq, old));
            if job.is_none() {
                self.by_id.remove(old.id, seq);
            }
            if asks_anew && let Some(question) = self.questions.forget(seq, old) {
                self.let_go(question);
            }
        }
        let Some(job) = job else { return };
        self.jobs.insert(seq, job.clone());
        if asks_anew && let Some(question) = self.questions.note(seq, job) {
            self.hold_back(question);
        }
        self.list(seq, job, now);
        if is_untold {
            self.set_untold(seq, true);
        }
        if old.is_none() {
            self.by_id.insert(job.id, seq, &self.jobs);
        }
    }

    /// Notes whether somebody is still to be told of a job's end; without effect on one that has none.
    pub(super) fn set_untold(&mut self, seq: Seq, is_untold: bool) {
        let Some(job) = self.jobs.get(&seq) else { return };
        let (from, to) = match is_untold {
            true => (&mut self.finished, &mut self.untold),
            false => (&mut self.untold, &mut self.finished),
        };
        if from.remove(&(end_of(job), seq)) {
            to.insert((end_of(job), seq));
        }
    }

    /// The index of all these jobs, in the order of their numbers, where the service time is `lead` ahead of the wall clock. Answers can be looked for by their question if
    /// `keep_answers`.
    pub(super) fn of(
        jobs: impl IntoIterator<Item = (Seq, Job)>,
        keep_answers: bool,
        now: Timestamp,
        lead: Duration,
    ) -> Index {
        let mut index = Index { lead, ..Index::default() };
        let listed = jobs.into_iter().inspect(|(seq, job)| index.list(*seq, job, now));
        let jobs: Vec<(Seq, Job)> = listed.collect();
        // Room for all at once: it would have to find every job again to make more.
        index.by_id.reserve(jobs.len());
        for (seq, job) in &jobs {
            index.by_id.insert(job.id, *seq, &index.jobs);
        }
        index.questions = Questions::of(&jobs, keep_answers);
        // Collected, for then its nodes are full; of insertions in order they would be half empty.
        index.jobs = jobs.into_iter().collect();
        for question in index.questions.under_way.keys().copied().collect::<Vec<_>>() {
            index.hold_back(question);
        }
        index.take_moved();
        index
    }

    fn list(&mut self, seq: Seq, job: &Job, now: Timestamp) {
        self.fingerprint = self.fingerprint.wrapping_add(fingerprint(seq, job));
        if let Some(caller) = job.caller.filter(|_| !job.state.is_final()) {
            *self.pending.entry(caller).or_default() += 1;
        }
        let reached = if job.is_timed { now.minus(self.lead) } else { now };
        let is_due = matches!(job.state, JobState::Queued { run_at } if run_at <= reached);
        self.move_list(seq, None, Some(job.status(reached)));
        match job.state {
            JobState::Queued { run_at } => {
                if !is_due {
                    self.later(job.is_timed).insert((run_at, seq));
                } else if self.is_under_way(job.question) {
                    return;
                } else {
                    self.make_ready(seq, job);
                }
                if let Some(deadline) = job.deadline_at {
                    self.deadlines.insert((deadline, seq));
                }
            }
            JobState::Running { lease_until } => {
                self.leases.insert((lease_until, seq));
            }
            JobState::Succeeded | JobState::Failed { .. } | JobState::Cancelled => {
                self.finished.insert((end_of(job), seq));
            }
        }
    }

    fn unlist(&mut self, seq: Seq, old: &Job) {
        if let Some(caller) = old.caller.filter(|_| !old.state.is_final())
            && let Some(pending) = self.pending.get_mut(&caller)
        {
            *pending -= 1;
            if *pending == 0 {
                self.pending.remove(&caller);
            }
        }
        let mut status = old.status(old.created_at);
        match old.state {
            JobState::Queued { run_at } => {
                let waits = self.later(old.is_timed).remove(&(run_at, seq));
                status = if waits { JobStatus::Scheduled } else { JobStatus::Queued };
                self.ready.remove(Place::of(old), &(old.effective_at(), seq));
                if let Some(deadline) = old.deadline_at {
                    self.deadlines.remove(&(deadline, seq));
                }
            }
            JobState::Running { lease_until } => {
                self.leases.remove(&(lease_until, seq));
            }
            JobState::Succeeded | JobState::Failed { .. } | JobState::Cancelled => {
                if !self.finished.remove(&(end_of(old), seq)) {
                    self.untold.remove(&(end_of(old), seq));
                }
            }
        }
        self.move_list(seq, Some(status), None);
    }

    /// Takes the due jobs of a question that is under way out of the order of claiming: they wait for its answer, and
    /// while they do, their deadlines wait too.
    pub(super) fn hold_back(&mut self, question: NonZeroU64) {
        for seq in self.due(question) {
            let Some(job) = self.jobs.get(&seq) else { continue };
            if let Some(deadline) = job.deadline_at {
                self.deadlines.remove(&(deadline, seq));
            }
            if self.ready.remove(Place::of(job), &(job.effective_at(), seq)) {
                self.questions.moved.push(seq);
            }
        }
    }

    /// The question is no longer under way: puts its due jobs back into the order of claiming.
    fn let_go(&mut self, question: NonZeroU64) {
        for seq in self.due(question) {
            let Some(job) = self.jobs.get(&seq) else { continue };
            self.ready.insert(Place::of(job), (job.effective_at(), seq));
            if let Some(deadline) = job.deadline_at {
                self.deadlines.insert((deadline, seq));
            }
            self.questions.moved.push(seq);
        }
    }

    /// Queued jobs of a question whose time has come.
    fn due(&self, question: NonZeroU64) -> Vec<Seq> {
        self.asking(question).filter(|seq| self.jobs.get(seq).is_some_and(|job| self.is_due(*seq, job))).collect()
    }

    /// Whether a job is queued and its time has come, as of the last promotion.
    fn is_due(&self, seq: Seq, job: &Job) -> bool {
        let later = if job.is_timed { &self.timed } else { &self.scheduled };
        matches!(job.state, JobState::Queued { run_at } if !later.contains(&(run_at, seq)))
    }

    /// The list in which a job waits for its time.
    fn later(&mut self, is_timed: bool) -> &mut BTreeSet<(Timestamp, Seq)> {
        if is_timed { &mut self.timed } else { &mut self.scheduled }
    }

    /// Whether a job of this question is running.
    pub(super) fn is_under_way(&self, question: Option<NonZeroU64>) -> bool {
        question.is_some_and(|question| self.questions.under_way.contains_key(&question))
    }

    /// Queued jobs of this question, in the order of their submission.
    pub(super) fn asking(&self, question: NonZeroU64) -> impl Iterator<Item = Seq> + '_ {
        self.questions.asking(question)
    }

    /// The job of this question whose answer is the newest.
    pub(super) fn newest_answer(&self, question: NonZeroU64) -> Option<&Job> {
        let all =
            (question, Timestamp::from_millis(i64::MIN), 0)..=(question, Timestamp::from_millis(i64::MAX), Seq::MAX);
        let (_, _, seq) = self.questions.answers.as_ref()?.range(all).next_back()?;
        self.jobs.get(seq)
    }

    /// The jobs that have been held back or let go since this was last asked.
    pub(super) fn take_moved(&mut self) -> Vec<Seq> {
        std::mem::take(&mut self.questions.moved)
    }

    /// Whether a job is due and not ready, as its question is under way.
    pub(super) fn is_held_back(&self, seq: Seq) -> bool {
        self.jobs.get(&seq).is_some_and(|job| self.is_under_way(job.question) && self.is_due(seq, job))
    }

    /// Moves a job from the list of one status to that of another.
    fn move_list(&mut self, seq: Seq, from: Option<JobStatus>, to: Option<JobStatus>) {
        if let Some(list) = from.and_then(|status| self.by_status.get_mut(&status)) {
            list.remove(&seq);
        }
        if let Some(status) = to {
            self.by_status.entry(status).or_default().insert(seq);
        }
    }

    fn make_ready(&mut self, seq: Seq, job: &Job) {
        self.ready.insert(Place::of(job), (job.effective_at(), seq));
    }

    /// Takes a ready job of these lanes out of the order of claiming, to be changed or put back.
    pub(super) fn take(&mut self, pick: Pick, lanes: &Lanes) -> Option<Seq> {
        let picked = match pick {
            Pick::First => None,
            Pick::Unwaited => self.ready.take(Wanted { list: Some(List::Unwaited), lanes }).map(|(_, seq)| seq),
            Pick::Job(id) => self.seq(id).filter(|seq| {
                let place = self.jobs.get(seq).map(|job| (Place::of(job), job.effective_at()));
                place.is_some_and(|(place, at)| self.ready.remove(place, &(at, *seq)))
            }),
        };
        picked.or_else(|| self.ready.take(Wanted { list: None, lanes }).map(|(_, seq)| seq))
    }

    /// Puts a job that was taken and not changed back into the order of claiming.
    pub(super) fn put_back(&mut self, seq: Seq) {
        if let Some(job) = self.jobs.get(&seq).filter(|job| !self.is_under_way(job.question)).cloned() {
            self.make_ready(seq, &job);
        }
    }

    /// Makes ready what was queued for a moment that has come. The service time is `lead` ahead of the wall clock.
    pub(super) fn promote(&mut self, now: Timestamp, lead: Duration) {
        self.lead = lead;
        for (is_timed, now) in [(false, now), (true, now.minus(lead))] {
            self.promote_list(is_timed, now);
        }
    }

    fn promote_list(&mut self, is_timed: bool, now: Timestamp) {
        while let Some(&(run_at, seq)) = self.later(is_timed).first().filter(|(run_at, _)| *run_at <= now) {
            self.later(is_timed).remove(&(run_at, seq));
            if let Some(job) = self.jobs.get(&seq) {
                if self.is_under_way(job.question) {
                    if let Some(deadline) = job.deadline_at {
                        self.deadlines.remove(&(deadline, seq));
                    }
                } else {
                    let place = (job.effective_at(), seq);
                    self.ready.insert(Place::of(job), place);
                }
                self.move_list(seq, Some(JobStatus::Scheduled), Some(JobStatus::Queued));
            }
        }
    }

    /// True if [`Index::promote`] has something to do.
    pub(super) fn has_due(&self, now: Timestamp, lead: Duration) -> bool {
        let is_due = |list: &BTreeSet<(Timestamp, Seq)>, now| list.first().is_some_and(|(run_at, _)| *run_at <= now);
        is_due(&self.scheduled, now) || is_due(&self.timed, now.minus(lead)) || self.lead < lead
    }

    /// The sum of the fingerprints of all jobs.
    pub(super) fn fingerprint(&self) -> u64 {
        self.fingerprint
    }

    pub(super) fn seq(&self, id: JobId) -> Option<Seq> {
        self.by_id.get(id, &self.jobs)
    }

    pub(super) fn get(&self, seq: Seq) -> Option<&Job> {
        self.jobs.get(&seq)
    }

    /// How many ready jobs come before this one.
    pub(super) fn ahead_of(&self, job: &Job) -> Ahead {
        let Some(seq) = self.seq(job.id) else { return Ahead::default() };
        let ahead = |list| self.ready.ahead_of(job.caller, &(job.effective_at(), seq), list);
        Ahead { all: ahead(None), unwaited: ahead(Some(List::Unwaited)) }
    }

    /// How many ready jobs there are, of a list or of both.
    pub(super) fn ready_len(&self, list: Option<List>) -> usize {
        self.ready.len(list)
    }

    /// The models that ready jobs name, and whether some name none.
    pub(super) fn ready_lanes(&self) -> Vec<Lane> {
        self.ready.lanes()
    }

    /// Queued, scheduled and running jobs: what the bound on pending jobs counts.
    pub(super) fn pending_len(&self) -> usize {
        self.jobs.len() - self.finished.len() - self.untold.len()
    }

    /// Jobs whose clients asked for a later time.
    pub(super) fn scheduled_len(&self) -> usize {
        self.timed.len()
    }

    /// Pending jobs of a caller.
    pub(super) fn pending_of(&self, caller: Caller) -> usize {
        caller.and_then(|caller| self.pending.get(&caller)).copied().unwrap_or(0)
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
        let timed = self.timed.first().map(|(at, _)| at.plus(self.lead));
        let lists = [&self.scheduled, &self.leases, &self.deadlines];
        lists.iter().filter_map(|list| list.first()).map(|(at, _)| *at).chain(timed).min()
    }

    pub(super) fn oldest_queued(&self) -> Option<Timestamp> {
        let first = self.by_status.get(&JobStatus::Queued)?.first()?;
        self.jobs.get(first).map(|job| job.due_at)
    }

    /// Finished jobs to remove, oldest end first: those that ended before `before`, and those beyond the newest `keep`.
    /// One whose webhook is still to be sent stays longer, but no more than a part of `keep` are such jobs.
    pub(super) fn prunable(&self, before: Timestamp, keep: usize, limit: usize, now: Timestamp) -> Vec<Seq> {
        let untold_surplus = self.untold.len().saturating_sub(keep.div_ceil(UNTOLD_PART));
        let surplus = (self.finished.len() + self.untold.len() - untold_surplus).saturating_sub(keep);
        let expired = |(place, (end, _)): &(usize, &(Timestamp, Seq))| *place < surplus || *end < before;
        let told = self.finished.iter().enumerate().take_while(expired).map(|(_, end)| end);
        let cutoff = before.min(now.minus(delivery::KEPT_UNTOLD));
        let expired = |(place, (end, _)): &(usize, &(Timestamp, Seq))| *place < untold_surplus || *end < cutoff;
        let given_up = self.untold.iter().enumerate().take_while(expired).map(|(_, end)| end);
        told.chain(given_up).take(limit).map(|(_, seq)| *seq).collect()
    }

    /// The jobs whose end is still to be told.
    #[cfg(test)]
    pub(super) fn untold(&self) -> BTreeSet<Seq> {
        self.untold.iter().map(|(_, seq)| *seq).collect()
    }

    /// The jobs of any of these statuses (all if empty) on one side of `from`, the nearest first. What is scheduled is
    /// as of the last promotion.
    pub(super) fn walk<'a>(
        &'a self,
        statuses: &'a [JobStatus],
        side: Side,
        from: Option<Seq>,
    ) -> Box<dyn Iterator<Item = (Seq, &'a Job)> + 'a> {
        use std::ops::Bound::{Excluded, Unbounded};
        let from = from.map_or(Unbounded, Excluded);
        let range = match side {
            Side::Older => (Unbounded, from),
            Side::Newer => (from, Unbounded),
        };
        if statuses.is_empty() {
            let jobs = self.jobs.range(range).map(|(seq, job)| (*seq, job));
            return match side {
                Side::Older => Box::new(jobs.rev()),
                Side::Newer => Box::new(jobs),
            };
        }
        let lists = self.by_status.iter().filter(|(status, _)| statuses.contains(status));
        let mut lists: Vec<_> = lists.map(|(_, list)| list.range(range).copied()).collect();
        // The next of each list, of which the nearest goes first.
        let next = move |list: &mut std::iter::Copied<std::collections::btree_set::Range<'a, Seq>>| match side {
            Side::Older => list.next_back(),
            Side::Newer => list.next(),
        };
        let mut heads: Vec<Option<Seq>> = lists.iter_mut().map(next).collect();
        let merged = std::iter::from_fn(move || {
            let found = heads.iter().enumerate().filter_map(|(place, head)| head.map(|seq| (seq, place)));
            let (seq, place) = match side {
                Side::Older => found.max()?,
                Side::Newer => found.min()?,
            };
            heads[place] = next(&mut lists[place]);
            Some(seq)
        });
        Box::new(merged.filter_map(|seq| Some((seq, self.jobs.get(&seq)?))))
    }

    /// As [`Index::walk`], but those of these ids.
    pub(super) fn walk_ids<'a>(
        &'a self,
        ids: &BTreeSet<JobId>,
        side: Side,
        from: Option<Seq>,
    ) -> Box<dyn Iterator<Item = (Seq, &'a Job)> + 'a> {
        let is_ahead = |seq: &Seq| match (side, from) {
            (_, None) => true,
            (Side::Older, Some(from)) => *seq < from,
            (Side::Newer, Some(from)) => *seq > from,
        };
        let seqs: BTreeSet<Seq> = ids.iter().filter_map(|id| self.seq(*id)).filter(is_ahead).collect();
        let job = |seq: Seq| Some((seq, self.jobs.get(&seq)?));
        match side {
            Side::Older => Box::new(seqs.into_iter().rev().filter_map(job)),
            Side::Newer => Box::new(seqs.into_iter().filter_map(job)),
        }
    }

    /// How far a search to this side has come at `seq`.
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

    pub(super) fn counts(&self, now: Timestamp) -> StatusCounts {
        let of = |status| self.by_status.get(&status).map_or(0, BTreeSet::len);
        // Due but not yet promoted: few, and only for moments.
        let due = |list: &BTreeSet<(Timestamp, Seq)>, now| list.iter().take_while(|(run_at, _)| *run_at <= now).count();
        let due = due(&self.scheduled, now) + due(&self.timed, now.minus(self.lead));
        StatusCounts {
            queued: of(JobStatus::Queued) + due,
            scheduled: self.scheduled.len() + self.timed.len() - due,
            running: of(JobStatus::Running),
            succeeded: of(JobStatus::Succeeded),
            failed: of(JobStatus::Failed),
            cancelled: of(JobStatus::Cancelled),
        }
    }

    /// Panics unless every list agrees with the jobs: the checker that tests run after every step.
    #[cfg(test)]
    pub(super) fn assert_consistent(&self) {
        let mut rebuilt =
            Index::of(Vec::new(), self.questions.answers.is_some(), Timestamp::from_millis(0), Duration::ZERO);
        for (seq, job) in &self.jobs {
            // A queued job stands in one of two lists, by the moment of the last promotion.
            let waits = matches!(job.state, JobState::Queued { .. }) && !self.is_due(*seq, job);
            rebuilt.replace(*seq, Some(job), Timestamp::from_millis(if waits { i64::MIN } else { i64::MAX }));
        }
        self.untold.iter().for_each(|(_, seq)| rebuilt.set_untold(*seq, true));
        for list in self.by_status.keys() {
            rebuilt.by_status.entry(*list).or_default();
        }
        let lists = |index: &Index| {
            let Index { scheduled, timed, leases, deadlines, finished, untold, .. } = index;
            [scheduled, timed, leases, deadlines, finished, untold].map(Clone::clone)
        };
        assert_eq!(lists(self), lists(&rebuilt), "a list disagrees with the jobs");
        assert_eq!(self.by_id, rebuilt.by_id, "the ids disagree with the jobs");
        assert_eq!(self.by_status, rebuilt.by_status, "the lists by status disagree with the jobs");
        assert_eq!(self.pending, rebuilt.pending, "the callers' counts disagree with the jobs");
        let questions = |index: &Index| {
            let Questions { queued, under_way, answers, moved: _ } = &index.questions;
            (queued.clone(), under_way.clone(), answers.clone())
        };
        assert_eq!(questions(self), questions(&rebuilt), "the questions disagree with the jobs");
        assert_eq!(self.fingerprint, rebuilt.fingerprint, "the sum disagrees with the jobs");
        let ready = |index: &Index| -> BTreeSet<_> { index.ready.iter().map(|(place, job)| (place, *job)).collect() };
        assert_eq!(ready(self), ready(&rebuilt), "the order of claiming disagrees with the jobs");
        self.ready.assert_consistent();
    }
}

/// By which a job that has ended is listed.
fn end_of(job: &Job) -> Timestamp {
    job.finished_at.unwrap_or(job.created_at)
}

/// The jobs that may share an answer, by their question ([`Job::question`]).
#[derive(Debug, Default)]
struct Questions {
    /// Of queued jobs.
    queued: BTreeSet<(NonZeroU64, Seq)>,
    /// Of running jobs, and how many of each: mostly one, as the others are held back.
    under_way: HashMap<NonZeroU64, usize>,
    /// Of succeeded jobs, by when they did; none where nobody looks for them.
    answers: Option<BTreeSet<(NonZeroU64, Timestamp, Seq)>>,
    /// Jobs held back or let go, until somebody asks.
    moved: Vec<Seq>,
}

impl Questions {
    /// Those of all these jobs.
    fn of(jobs: &[(Seq, Job)], keep_answers: bool) -> Questions {
        let entries = || jobs.iter().filter_map(|(seq, job)| Some((job.question?, *seq, job)));
        let queued = entries().filter(|(_, _, job)| matches!(job.state, JobState::Queued { .. }));
        let answers = || entries().filter(|(_, _, job)| job.state == JobState::Succeeded);
        // Collected, which takes less time than to insert one by one, and less room.
        let mut under_way = HashMap::new();
        for (question, _, _) in entries().filter(|(_, _, job)| job.is_running()) {
            *under_way.entry(question).or_default() += 1;
        }
        Questions {
            under_way,
            queued: queued.map(|(question, seq, _)| (question, seq)).collect(),
            answers: keep_answers.then(|| {
                answers().filter_map(|(question, seq, job)| Some((question, job.finished_at?, seq))).collect()
            }),
            ..Questions::default()
        }
    }

    /// Takes note of a job; tells its question if that is under way from now on.
    fn note(&mut self, seq: Seq, job: &Job) -> Option<NonZeroU64> {
        let question = job.question?;
        match job.state {
            JobState::Queued { .. } => drop(self.queued.insert((question, seq))),
            JobState::Running { .. } => {
                let running = self.under_way.entry(question).or_default();
                *running += 1;
                return (*running == 1).then_some(question);
            }
            JobState::Succeeded => {
                if let (Some(answers), Some(finished_at)) = (&mut self.answers, job.finished_at) {
                    answers.insert((question, finished_at, seq));
                }
            }
            JobState::Failed { .. } | JobState::Cancelled => {}
        }
        None
    }

    /// Forgets a job as it was; tells its question if that is under way no more.
    fn forget(&mut self, seq: Seq, old: &Job) -> Option<NonZeroU64> {
        let question = old.question?;
        match old.state {
            JobState::Queued { .. } => drop(self.queued.remove(&(question, seq))),
            JobState::Running { .. } => {
                let running = self.under_way.get_mut(&question)?;
                *running -= 1;
                if *running == 0 {
                    self.under_way.remove(&question);
                    return Some(question);
                }
            }
            JobState::Succeeded => {
                if let (Some(answers), Some(finished_at)) = (&mut self.answers, old.finished_at) {
                    answers.remove(&(question, finished_at, seq));
                }
            }
            JobState::Failed { .. } | JobState::Cancelled => {}
        }
        None
    }

    fn asking(&self, question: NonZeroU64) -> impl Iterator<Item = Seq> + '_ {
        self.queued.range((question, 0)..=(question, Seq::MAX)).map(|(_, seq)| *seq)
    }
}

/// Numbers by id: of each job its number alone, as the id stands in the job itself. A table of both would take 50 MB for a
/// million jobs, this one 19.
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

    /// `jobs` holds every job inserted before.
    fn insert(&mut self, id: JobId, seq: Seq, jobs: &BTreeMap<Seq, Job>) {
        let ById { seqs, hasher } = self;
        seqs.insert_unique(hasher.hash_one(id), seq, |seq| jobs.get(seq).map_or(0, |job| hasher.hash_one(job.id)));
    }

    fn remove(&mut self, id: JobId, seq: Seq) {
        if let Ok(entry) = self.seqs.find_entry(self.hasher.hash_one(id), |found| *found == seq) {
            entry.remove();
        }
    }

    fn get(&self, id: JobId, jobs: &BTreeMap<Seq, Job>) -> Option<Seq> {
        let is = |seq: &Seq| jobs.get(seq).is_some_and(|job| job.id == id);
        self.seqs.find(self.hasher.hash_one(id), is).copied()
    }
}

/// Each hashes with keys of its own, so what they hold is compared.
#[cfg(test)]
impl PartialEq for ById {
    fn eq(&self, other: &ById) -> bool {
        let sorted = |table: &ById| table.seqs.iter().copied().collect::<BTreeSet<Seq>>();
        self.seqs.len() == other.seqs.len() && sorted(self) == sorted(other)
    }
}
