//! The board: every pending job, in memory, and which of them can be claimed. The store feeds it ([`Feed`]), so it is the
//! same over any store.
//!
//! It is synchronous, and it only proposes: a job that is picked here is claimed by the store, which refuses what is no
//! longer as the board has it. Between the two the job is *proposed*, so that no other claim picks it. A job that was
//! admitted and has not come through the feed yet is *arriving*: bounds count it.
//!
//! Jobs that ask the same ([`Job::question`]) are asked one at a time. While one of them runs, is proposed or arrives
//! claimed, the others are *blocked*: they are due and can't be claimed, and their deadlines wait.
//!
//! [`Feed`]: crate::store::Feed

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, hash_map::Entry},
    num::NonZeroU64,
    sync::Arc,
    time::Duration,
};

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;

use super::{
    admission::{Admission, Bounds},
    fair_queue::{FairQueue, Lanes, List, Place, Wanted},
    refused::Refused,
};
use crate::{
    clock::{Clock, Timestamp},
    digest::Lane,
    job::{Job, JobId, JobState, StatusCounts, caller::Caller},
    store::EndedCounts,
};

/// Most queued jobs that ask the same: all are moved when one of them is claimed, and each gets a copy of the answer. A job
/// beyond that is asked by itself.
const MAX_SAME_QUESTION: usize = 512;

type Question = NonZeroU64;

/// Which of the ready jobs a claim is to take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pick {
    /// The first in order.
    First,
    /// The first job whose client did not ask to wait ([`Job::waited_for`]), else the first of all.
    Background,
    /// This one, of whatever lane; if it is not ready, the first of all.
    Job(JobId),
}

/// How many ready jobs go before one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Ahead {
    /// Of all.
    pub(super) all: usize,
    /// Of the background jobs.
    pub(super) background: usize,
}

/// What a change of some jobs did to others.
#[derive(Debug, Default)]
pub(super) struct Moved {
    /// Jobs that were blocked, or are no longer.
    pub(super) jobs: Vec<Arc<Job>>,
    /// Of these and of the jobs that changed: those that are blocked.
    pub(super) blocked: HashSet<JobId>,
    /// A job has become ready. The dispatcher is to be woken.
    pub(super) has_new_ready: bool,
}

/// The board.
#[derive(Debug)]
pub(super) struct Board {
    clock: Clock,
    state: Mutex<State>,
    /// Signalled when a job is ready.
    ready: Arc<Notify>,
    /// What claims were to take, for tests to see.
    #[cfg(test)]
    pub(super) picks: Mutex<Vec<Pick>>,
}

#[derive(Debug, Default)]
struct State {
    /// Queued and running jobs. Ids sort by submission.
    jobs: BTreeMap<JobId, Arc<Job>>,
    /// Queued, due and neither blocked, proposed nor expired, in the order of claiming.
    ready: FairQueue<(Timestamp, JobId)>,
    /// Queued for later, by their time.
    scheduled: BTreeSet<(Timestamp, JobId)>,
    /// Queued for a wall-clock time that their clients asked for ([`Job::is_timed`]), by it.
    timed: BTreeSet<(Timestamp, JobId)>,
    /// How far the service time is ahead of the wall clock.
    lead: Duration,
    running: BTreeSet<JobId>,
    /// Queued with a deadline that does not wait, by it.
    deadlines: BTreeSet<(Timestamp, JobId)>,
    /// Queued, and their deadline has passed: they can't be claimed.
    expired: BTreeSet<JobId>,
    /// How many pending jobs each caller has, arriving ones included.
    pending_of: HashMap<NonZeroU64, usize>,
    /// Queued jobs by their question.
    asking: BTreeSet<(Question, JobId)>,
    /// Questions of jobs that run, are proposed or arrive claimed, and of how many: mostly one.
    under_way: HashMap<Question, usize>,
    /// Jobs picked for a claim that the store has not confirmed yet.
    proposed: HashSet<JobId>,
    arriving: HashMap<JobId, Arrival>,
    /// How many of them are for later.
    arriving_timed: usize,
    /// Queued jobs that missed the answer to their question, each with the job that has the answer. They were stored at the
    /// same time as the answer, or were too many for one commit.
    answered_by: HashMap<JobId, JobId>,
    ended: EndedCounts,
    /// Jobs that were blocked or unblocked since the last change.
    moved: Vec<JobId>,
    /// A job has become ready since the dispatcher was last woken.
    has_new_ready: bool,
}

#[derive(Clone, Copy, Debug)]
struct Arrival {
    caller: Caller,
    is_timed: bool,
    /// Its question, if it arrives claimed.
    question: Option<Question>,
}

/// Jobs that were admitted. Those that the store did not take are forgotten when this is dropped.
#[derive(Debug, Default)]
pub(super) struct Arrivals {
    board: Option<Arc<Board>>,
    ids: Vec<JobId>,
}

impl Drop for Arrivals {
    fn drop(&mut self) {
        let Some(board) = &self.board else { return };
        let mut state = board.state.lock();
        for id in &self.ids {
            let question = state.arrive(*id);
            state.end(question);
        }
        // Others that ask the same may have become ready.
        board.wake(&mut state);
    }
}

/// A job that was picked for a claim. Withdrawn when this is dropped, unless the store has confirmed the claim by then.
#[derive(Debug)]
pub struct Proposal {
    board: Arc<Board>,
    pub(super) job: Arc<Job>,
    /// The job whose answer is this one's too, so that no call is needed.
    pub(super) answered_by: Option<JobId>,
}

impl Proposal {
    /// The store has claimed the job. The feed reports it too, maybe a moment later.
    pub(super) fn confirm(&self, claimed: &Job) {
        let (now, mut state) = (self.board.clock.now(), self.board.state.lock());
        let is_news = state.jobs.get(&claimed.id).is_some_and(|job| job.attempt < claimed.attempt);
        if is_news && state.proposed.contains(&claimed.id) {
            state.change(&Arc::new(claimed.clone()), now);
        }
    }
}

impl Drop for Proposal {
    fn drop(&mut self) {
        self.board.withdraw(self.job.id);
    }
}

impl Board {
    pub(super) fn new(clock: Clock, ready: Arc<Notify>) -> Board {
        Board {
            clock,
            state: Mutex::default(),
            ready,
            #[cfg(test)]
            picks: Mutex::default(),
        }
    }

    /// The state as of now: what has become due is ready, and what has missed its deadline is not.
    fn state(&self) -> MutexGuard<'_, State> {
        let (now, mut state) = (self.clock.now(), self.state.lock());
        state.promote(now, self.clock.lead());
        state.expire(now);
        self.wake(&mut state);
        state
    }

    /// Wakes the dispatcher if a job has become ready.
    fn wake(&self, state: &mut State) {
        if std::mem::take(&mut state.has_new_ready) {
            self.ready.notify_one();
        }
    }

    /// Replaces all jobs by these pending ones. Claims in flight hear from the store what became of them.
    pub(super) fn reset(&self, pending: &[Arc<Job>], ended: EndedCounts) {
        let mut state = self.state.lock();
        let arriving = std::mem::take(&mut state.arriving);
        *state = State { ended, lead: self.clock.lead(), ..State::default() };
        for (id, arrival) in arriving {
            state.expect(id, arrival);
            state.begin(arrival.question);
        }
        for job in pending {
            let question = state.arrive(job.id);
            state.end(question);
            state.begin(job.question.filter(|_| job.is_running()));
        }
        // Those that are blocked have to be known by now.
        pending.iter().for_each(|job| state.list(job, self.clock.now()));
        // Collected, for then its nodes are full; of insertions in order they would be half empty.
        state.jobs = pending.iter().map(|job| (job.id, Arc::clone(job))).collect();
        state.moved.clear();
    }

    /// Takes note of jobs as they are now.
    pub(super) fn changed(&self, jobs: &[Arc<Job>], ended: EndedCounts) -> Moved {
        let mut state = self.state.lock();
        state.ended = ended;
        for job in jobs {
            state.change(job, self.clock.now());
        }
        let changed: HashSet<JobId> = jobs.iter().map(|job| job.id).collect();
        let mut moved = std::mem::take(&mut state.moved);
        moved.retain(|id| !changed.contains(id));
        moved.sort_unstable();
        moved.dedup();
        let touched = moved.iter().chain(&changed);
        Moved {
            blocked: touched.filter(|id| state.is_blocked(**id)).copied().collect(),
            jobs: moved.iter().filter_map(|id| state.jobs.get(id).cloned()).collect(),
            has_new_ready: std::mem::take(&mut state.has_new_ready),
        }
    }

    /// Asks the bounds whether jobs of `owner` may become pending, and counts them from now on if they may. `is_counted`: the
    /// quota that the nodes share has counted them as submissions of `by`.
    ///
    /// # Errors
    /// [`Refused`].
    pub(super) fn admit(
        self: &Arc<Self>,
        bounds: &Bounds,
        (by, owner): (Caller, Caller),
        jobs: &[&Job],
        is_counted: bool,
    ) -> Result<Arrivals, Refused> {
        let mut state = self.state.lock();
        let pending = || jobs.iter().filter(|job| !job.state.is_final() && !state.jobs.contains_key(&job.id));
        bounds.admit(&Admission {
            by,
            owner,
            submits: jobs.len(),
            is_counted,
            jobs: pending().count(),
            scheduled: pending().filter(|job| job.is_timed).count(),
            pending: state.jobs.len() + state.arriving.len(),
            pending_scheduled: state.timed.len() + state.arriving_timed,
            pending_of_owner: owner.and_then(|owner| state.pending_of.get(&owner)).copied().unwrap_or(0),
        })?;
        let arrivals =
            pending().map(|job| (job.id, Arrival { caller: job.caller, is_timed: job.is_timed, question: None }));
        let mut arrivals: Vec<(JobId, Arrival)> = arrivals.collect();
        // One that arrives already is another request's.
        arrivals.retain(|(id, arrival)| state.expect(*id, *arrival));
        let ids = arrivals.into_iter().map(|(id, _)| id).collect();
        Ok(Arrivals { board: Some(Arc::clone(self)), ids })
    }

    /// Whether an arriving job can be claimed at once: no other job is ready, and none that asks the same is under way.
    pub(super) fn is_next(&self, job: &Job) -> bool {
        self.state().is_next(job)
    }

    /// As [`Board::is_next`], and if so, it arrives claimed: its question is under way from now on.
    pub(super) fn arrives_claimed(&self, job: &Job) -> bool {
        let mut state = self.state();
        let is_next = state.is_next(job);
        let Some(arrival) = state.arriving.get_mut(&job.id).filter(|_| is_next) else { return false };
        arrival.question = job.question;
        state.begin(job.question);
        true
    }

    /// Picks a ready job of these lanes for a claim.
    pub(super) fn propose(self: &Arc<Self>, pick: Pick, lanes: &Lanes) -> Option<Proposal> {
        let mut state = self.state();
        let id = state.take(pick, lanes)?;
        let job = state.jobs.get(&id).cloned()?;
        state.proposed.insert(id);
        state.begin(job.question);
        let answered_by = state.answered_by.get(&id).copied();
        Some(Proposal { board: Arc::clone(self), job, answered_by })
    }

    /// A job that was proposed has not been claimed: it takes its place again, if it is still queued.
    fn withdraw(&self, id: JobId) {
        let mut state = self.state.lock();
        if !state.proposed.remove(&id) {
            return;
        }
        let Some(job) = state.jobs.get(&id).cloned() else { return };
        state.end(job.question);
        if !state.is_under_way(job.question) {
            state.make_ready(&job);
        }
        self.wake(&mut state);
    }

    /// The job, if it is pending.
    pub(super) fn get(&self, id: JobId) -> Option<Arc<Job>> {
        self.state.lock().jobs.get(&id).cloned()
    }

    /// How many jobs can be claimed now, of a list or of both.
    pub(super) fn ready(&self, list: Option<List>) -> usize {
        self.state().ready.len(list)
    }

    /// The models that ready jobs name, and `None` if some name none.
    pub(super) fn ready_lanes(&self) -> Vec<Lane> {
        self.state().ready.lanes()
    }

    /// How many ready jobs go before this one.
    pub(super) fn ahead_of(&self, job: &Job) -> Ahead {
        let state = self.state.lock();
        let ahead = |list| state.ready.ahead_of(job.caller, &(job.effective_at(), job.id), list);
        Ahead { all: ahead(None), background: ahead(Some(List::Background)) }
    }

    /// Whether a job of this question is under way.
    pub(super) fn is_under_way(&self, question: Option<Question>) -> bool {
        self.state.lock().is_under_way(question)
    }

    /// Whether the job is due and blocked.
    pub(super) fn is_blocked(&self, id: JobId) -> bool {
        self.state().is_blocked(id)
    }

    /// Whether no more jobs may be queued with this question.
    pub(super) fn is_crowded(&self, question: Question) -> bool {
        self.state.lock().asking(question).take(MAX_SAME_QUESTION).count() == MAX_SAME_QUESTION
    }

    /// The queued jobs that ask what a running job asks. Its answer is theirs too, unless they are for later.
    pub(super) fn followers(&self, id: JobId) -> Vec<JobId> {
        let state = self.state();
        let question = state.jobs.get(&id).and_then(|job| job.question);
        question.into_iter().flat_map(|question| state.asking(question)).collect()
    }

    /// How many jobs there are in each state.
    pub(super) fn counts(&self) -> StatusCounts {
        let state = self.state();
        let (scheduled, running) = (state.scheduled.len() + state.timed.len(), state.running.len());
        let EndedCounts { succeeded, failed, cancelled } = state.ended;
        let queued = state.jobs.len() - scheduled - running;
        StatusCounts { queued, scheduled, running, succeeded, failed, cancelled }
    }

    /// Queued jobs past their deadline.
    pub(super) fn overdue(&self, limit: usize) -> Vec<Arc<Job>> {
        let state = self.state();
        state.expired.iter().filter_map(|id| state.jobs.get(id)).take(limit).cloned().collect()
    }

    /// The next moment at which waiting alone changes something: a job becomes ready, or a deadline ends. Past if
    /// that has not been acted on yet.
    pub(super) fn next_due(&self) -> Option<Timestamp> {
        let state = self.state.lock();
        let timed = state.timed.first().map(|(at, _)| at.plus(state.lead));
        let expired = state.expired.first().and_then(|id| state.jobs.get(id)?.deadline_at);
        let lists = [&state.scheduled, &state.deadlines];
        lists.iter().filter_map(|list| list.first()).map(|(at, _)| *at).chain(timed).chain(expired).min()
    }

    /// When the job was due that has waited longest of those that go first among their caller's.
    pub(super) fn oldest_queued(&self) -> Option<Timestamp> {
        let state = self.state();
        state.ready.heads().filter_map(|(_, id)| state.jobs.get(id)).map(|job| job.due_at).min()
    }

    /// Every running job.
    pub(super) fn running(&self) -> Vec<Arc<Job>> {
        let state = self.state.lock();
        state.running.iter().filter_map(|id| state.jobs.get(id).cloned()).collect()
    }

    /// Panics unless every list agrees with the jobs, and these with the store's.
    #[cfg(test)]
    pub(super) fn assert_consistent(&self, pending: Vec<Arc<Job>>) {
        let state = self.state();
        assert!(state.proposed.is_empty() && state.arriving.is_empty(), "nothing is under way");
        let pending = pending.into_iter().map(|job| (job.id, job)).collect();
        assert_eq!(state.jobs, pending, "the board disagrees with the store");
        let mut fresh = State::default();
        for job in pending.values().filter(|job| job.is_running()) {
            fresh.begin(job.question);
        }
        for job in pending.values() {
            // A queued job stands in one of two lists, by the moment of the last promotion.
            let waits = matches!(job.state, JobState::Queued { .. }) && !state.is_due(job);
            fresh.list(job, Timestamp::from_millis(if waits { i64::MIN } else { i64::MAX }));
        }
        fresh.jobs.clone_from(&state.jobs);
        fresh.expire(self.clock.now());
        let lists = |state: &State| {
            let State { scheduled, timed, deadlines, running, expired, .. } = state;
            ([scheduled, timed, deadlines].map(Clone::clone), [running, expired].map(Clone::clone))
        };
        assert_eq!(lists(&state), lists(&fresh), "a list disagrees with the jobs");
        assert_eq!(state.pending_of, fresh.pending_of, "the callers' counts disagree with the jobs");
        assert_eq!((&state.asking, &state.under_way), (&fresh.asking, &fresh.under_way), "the questions disagree");
        let ready = |state: &State| -> BTreeSet<_> { state.ready.iter().map(|(place, job)| (place, *job)).collect() };
        assert_eq!(ready(&state), ready(&fresh), "the order of claiming disagrees with the jobs");
        state.ready.assert_consistent();
    }
}

impl State {
    /// Makes a job what it is now.
    fn change(&mut self, job: &Arc<Job>, now: Timestamp) {
        let arrived = self.arrive(job.id);
        let old = self.jobs.remove(&job.id);
        let was_proposed = self.proposed.remove(&job.id);
        let was_under_way = old.as_ref().filter(|old| was_proposed || old.is_running()).and_then(|old| old.question);
        if let Some(old) = &old {
            self.unlist(old);
        }
        self.answered_by.remove(&job.id);
        let is_under_way = job.question.filter(|_| job.is_running());
        let was_under_way = was_under_way.or(arrived);
        if let (JobState::Succeeded, Some(question)) = (job.state, was_under_way) {
            let missed = self.due(question).into_iter().map(|follower| (follower, job.id));
            self.answered_by.extend(missed.collect::<Vec<_>>());
        }
        // The end of another's turn lets this one go too.
        if was_under_way != is_under_way {
            self.end(was_under_way);
        }
        if !job.state.is_final() {
            self.jobs.insert(job.id, Arc::clone(job));
            self.list(job, now);
        }
        if was_under_way != is_under_way {
            self.begin(is_under_way);
        }
    }

    /// Counts a job that arrives from now on; false if it does already.
    fn expect(&mut self, id: JobId, arrival: Arrival) -> bool {
        let Entry::Vacant(place) = self.arriving.entry(id) else { return false };
        place.insert(arrival);
        self.count(arrival.caller, true);
        self.arriving_timed += usize::from(arrival.is_timed);
        true
    }

    /// An arriving job has arrived, or never will: gives its question if it was to arrive claimed.
    fn arrive(&mut self, id: JobId) -> Option<Question> {
        let arrival = self.arriving.remove(&id)?;
        self.count(arrival.caller, false);
        self.arriving_timed -= usize::from(arrival.is_timed);
        arrival.question
    }

    /// Counts a pending job of a caller, or one less.
    fn count(&mut self, caller: Caller, is_pending: bool) {
        let Some(caller) = caller else { return };
        let count = self.pending_of.entry(caller).or_default();
        *count = if is_pending { *count + 1 } else { *count - 1 };
        if *count == 0 {
            self.pending_of.remove(&caller);
        }
    }

    fn list(&mut self, job: &Job, now: Timestamp) {
        self.count(job.caller, true);
        match job.state {
            JobState::Queued { run_at } => {
                if let Some(question) = job.question {
                    self.asking.insert((question, job.id));
                }
                let reached = if job.is_timed { now.minus(self.lead) } else { now };
                if run_at > reached {
                    self.later(job.is_timed).insert((run_at, job.id));
                    self.deadlines.extend(job.deadline_at.map(|deadline| (deadline, job.id)));
                } else if !self.is_under_way(job.question) {
                    self.make_ready(job);
                }
            }
            JobState::Running => {
                self.running.insert(job.id);
            }
            JobState::Succeeded | JobState::Failed { .. } | JobState::Cancelled => {}
        }
    }

    fn unlist(&mut self, old: &Job) {
        self.count(old.caller, false);
        match old.state {
            JobState::Queued { run_at } => {
                if let Some(question) = old.question {
                    self.asking.remove(&(question, old.id));
                }
                self.later(old.is_timed).remove(&(run_at, old.id));
                self.make_unready(old);
            }
            JobState::Running => {
                self.running.remove(&old.id);
            }
            JobState::Succeeded | JobState::Failed { .. } | JobState::Cancelled => {}
        }
    }

    fn make_ready(&mut self, job: &Job) {
        self.ready.insert(Place::of(job), (job.effective_at(), job.id));
        self.has_new_ready = true;
        self.deadlines.extend(job.deadline_at.map(|deadline| (deadline, job.id)));
    }

    /// Tells whether it was ready, or would have been but for its deadline.
    fn make_unready(&mut self, job: &Job) -> bool {
        if let Some(deadline) = job.deadline_at {
            self.deadlines.remove(&(deadline, job.id));
        }
        self.ready.remove(Place::of(job), &(job.effective_at(), job.id)) | self.expired.remove(&job.id)
    }

    /// Jobs whose deadline has passed can't be claimed any more.
    fn expire(&mut self, now: Timestamp) {
        while let Some(&(deadline, id)) = self.deadlines.first().filter(|(deadline, _)| *deadline <= now) {
            self.deadlines.remove(&(deadline, id));
            self.expired.insert(id);
            if let Some(job) = self.jobs.get(&id) {
                self.ready.remove(Place::of(job), &(job.effective_at(), id));
            }
        }
    }

    /// The list in which a job waits for its time.
    fn later(&mut self, is_timed: bool) -> &mut BTreeSet<(Timestamp, JobId)> {
        if is_timed { &mut self.timed } else { &mut self.scheduled }
    }

    /// Whether a job is queued and its time has come, as of the last promotion.
    fn is_due(&self, job: &Job) -> bool {
        let later = if job.is_timed { &self.timed } else { &self.scheduled };
        matches!(job.state, JobState::Queued { run_at } if !later.contains(&(run_at, job.id)))
    }

    fn is_under_way(&self, question: Option<Question>) -> bool {
        question.is_some_and(|question| self.under_way.contains_key(&question))
    }

    fn is_next(&self, job: &Job) -> bool {
        self.ready.len(None) == 0 && !self.is_under_way(job.question)
    }

    fn is_blocked(&self, id: JobId) -> bool {
        let job = self.jobs.get(&id).filter(|job| !self.proposed.contains(&job.id));
        job.is_some_and(|job| self.is_under_way(job.question) && self.is_due(job))
    }

    fn asking(&self, question: Question) -> impl Iterator<Item = JobId> + '_ {
        self.asking.range((question, JobId::nil())..=(question, JobId::max())).map(|(_, id)| *id)
    }

    /// Queued jobs of a question whose time has come.
    fn due(&self, question: Question) -> Vec<JobId> {
        self.asking(question).filter(|id| self.jobs.get(id).is_some_and(|job| self.is_due(job))).collect()
    }

    /// A job begins to ask a question: the others that ask it are blocked.
    fn begin(&mut self, question: Option<Question>) {
        let Some(question) = question else { return };
        let count = self.under_way.entry(question).or_default();
        *count += 1;
        if *count == 1 {
            self.move_due(question, State::make_unready);
        }
    }

    /// A job no longer asks a question. If it was the last one, those that were blocked can be claimed.
    fn end(&mut self, question: Option<Question>) {
        let Some(question) = question else { return };
        let Some(count) = self.under_way.get_mut(&question) else { return };
        *count -= 1;
        if *count == 0 {
            self.under_way.remove(&question);
            self.move_due(question, |state, job| {
                state.make_ready(job);
                true
            });
        }
    }

    fn move_due(&mut self, question: Question, shift: impl Fn(&mut State, &Job) -> bool) {
        for id in self.due(question) {
            if let Some(job) = self.jobs.get(&id).cloned()
                && shift(self, &job)
            {
                self.moved.push(id);
            }
        }
    }

    /// Takes a ready job of these lanes out of the order of claiming.
    fn take(&mut self, pick: Pick, lanes: &Lanes) -> Option<JobId> {
        let picked = match pick {
            Pick::First => None,
            Pick::Background => self.ready.take(Wanted { list: Some(List::Background), lanes }).map(|(_, id)| id),
            Pick::Job(id) => {
                let job = self.jobs.get(&id).cloned();
                job.filter(|job| self.ready.remove(Place::of(job), &(job.effective_at(), id))).map(|job| job.id)
            }
        };
        picked.or_else(|| self.ready.take(Wanted { list: None, lanes }).map(|(_, id)| id))
    }

    /// Makes ready the jobs whose time has come. The service time is `lead` ahead of the wall clock.
    fn promote(&mut self, now: Timestamp, lead: Duration) {
        self.lead = lead;
        for (is_timed, now) in [(false, now), (true, now.minus(lead))] {
            while let Some(&(run_at, id)) = self.later(is_timed).first().filter(|(run_at, _)| *run_at <= now) {
                self.later(is_timed).remove(&(run_at, id));
                let Some(job) = self.jobs.get(&id).cloned() else { continue };
                if self.is_under_way(job.question) {
                    self.make_unready(&job);
                } else {
                    self.make_ready(&job);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
