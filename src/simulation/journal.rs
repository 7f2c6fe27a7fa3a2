//! What was promised and what happened, and every broken promise.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::{
    clock::Timestamp,
    job::{Attempt, AttemptOutcome, Job, JobId, JobRecord, JobRequest, JobState, Owner, caller},
};

/// These always have jobs that wait, and so are to get the same number of calls.
pub(super) const GREEDY: [&str; 3] = ["ann", "bob", "cyd"];

/// Fewer claims say nothing of the turns.
const ENOUGH_CLAIMS: u32 = 18;

pub(super) struct Journal(Mutex<State>);

struct State {
    started: Instant,
    is_printed: bool,
    violations: Vec<(Duration, String)>,
    /// A digest of all that happened, in its order.
    trace: u64,
    /// By the id of the HTTP request that brought them.
    jobs: BTreeMap<String, JobId>,
    lives: BTreeMap<JobId, Life>,
    acknowledged: BTreeSet<JobId>,
    /// The job that an idempotency key stands for.
    keys: BTreeMap<String, JobId>,
    /// Ends that a client was told.
    told: BTreeMap<JobId, End>,
    /// Jobs that somebody asked to be retried.
    requeued: BTreeSet<JobId>,
    /// Who owns attempts.
    owners: Vec<(u32, Owner)>,
    /// The newest attempt of each job that an owner was given.
    granted: BTreeMap<(String, JobId), u32>,
    calls: BTreeSet<(JobId, u32)>,
    /// Claims of greedy callers while all of them waited, by seat.
    terms: Vec<[u32; GREEDY.len()]>,
}

#[derive(Default)]
struct Life {
    state: Option<JobState>,
    attempt: u32,
    ends: BTreeSet<End>,
}

type End = (u32, String, Option<Timestamp>);

fn end_of(job: &Job) -> End {
    (job.attempt, format!("{:?}", job.state), job.finished_at)
}

impl Journal {
    pub(super) fn new() -> Journal {
        Journal(Mutex::new(State {
            started: Instant::now(),
            is_printed: std::env::var_os("CEOAGENT_TEST_TRACE").is_some(),
            violations: Vec::new(),
            trace: 0,
            jobs: BTreeMap::new(),
            lives: BTreeMap::new(),
            acknowledged: BTreeSet::new(),
            keys: BTreeMap::new(),
            told: BTreeMap::new(),
            requeued: BTreeSet::new(),
            owners: Vec::new(),
            granted: BTreeMap::new(),
            calls: BTreeSet::new(),
            terms: vec![[0; GREEDY.len()]],
        }))
    }

    pub(super) fn violated(&self, what: String) {
        self.0.lock().violated(what);
    }

    pub(super) fn violations(&self) -> Vec<String> {
        let state = self.0.lock();
        state.violations.iter().map(|(at, what)| format!("after {at:?}: {what}")).collect()
    }

    pub(super) fn trace(&self) -> u64 {
        self.0.lock().trace
    }

    /// Something happened.
    pub(super) fn event(&self, what: &str) {
        self.0.lock().event(what);
    }

    /// A node is about to store this job.
    pub(super) fn sent(&self, id: JobId, request: &JobRequest) {
        if let Some(request) = &request.request_id {
            self.0.lock().jobs.insert(request.clone(), id);
        }
    }

    /// The job is like this from now on; these were pending before.
    pub(super) fn committed<J: std::ops::Deref<Target = Job>>(&self, job: &Job, pending: &BTreeMap<JobId, J>) {
        let mut state = self.0.lock();
        state.event(&format!("{} {} {:?} {:?}", job.id, job.attempt, job.state, job.owner));
        state.count_turn(job, pending);
        state.grant(job);
        let life = state.lives.entry(job.id).or_default();
        let before = life.state.replace(job.state);
        let attempt_before = std::mem::replace(&mut life.attempt, job.attempt);
        if job.state.is_final() {
            life.ends.insert(end_of(job));
        }
        let was_final = before.is_some_and(JobState::is_final);
        let was_running = matches!(before, Some(JobState::Running));
        let is_step = match job.state {
            JobState::Running if was_running => job.attempt == attempt_before,
            JobState::Running => !was_final && job.attempt == attempt_before + 1,
            JobState::Queued { .. } => before.is_none_or(|before| !matches!(before, JobState::Succeeded)),
            _ => !was_final,
        };
        if !is_step {
            state.violated(format!("{before:?} (attempt {attempt_before}) was followed by {job:?}"));
        }
    }

    /// A process makes the attempts of this owner.
    pub(super) fn owns(&self, process: u32, owner: Owner) {
        let mut state = self.0.lock();
        state.event(&format!("process {process} is {owner:?}"));
        state.owners.push((process, owner));
    }

    /// A process calls Claude. `stored` is the job as the database has it.
    pub(super) fn called(&self, process: u32, request: &JobRequest, stored: impl Fn(JobId) -> Option<JobRecord>) {
        let mut state = self.0.lock();
        let id = request.request_id.as_ref().and_then(|request| state.jobs.get(request).copied());
        let own: Vec<String> =
            state.owners.iter().filter(|(of, _)| *of == process).map(|(_, owner)| format!("{owner:?}")).collect();
        let mut take = |id| own.iter().find_map(|owner| state.granted.remove(&(owner.clone(), id)));
        let granted = id.and_then(|id| Some((id, take(id)?)));
        let Some((id, attempt)) = granted else {
            return state.violated(format!("process {process} calls for {id:?} without a claim"));
        };
        state.event(&format!("call {id} {attempt} by {process}"));
        if !state.calls.insert((id, attempt)) {
            state.violated(format!("two calls for attempt {attempt} of {id}"));
        }
        let Some(record) = stored(id).filter(|record| record.job.attempt >= attempt) else {
            return state.violated(format!("a call for attempt {attempt} of {id}, which is not on record"));
        };
        let earlier: Vec<u32> = state.calls.range((id, 0)..(id, attempt)).map(|(_, attempt)| *attempt).collect();
        for earlier in earlier {
            let ended = record.attempts.iter().find(|ended| ended.number == earlier || ended.stands_for(earlier));
            let may_be_repeated = ended.is_some_and(|ended| {
                use AttemptOutcome::{Cancelled, Failed, OutcomeUnknown, Released};
                matches!(ended.outcome, Failed | OutcomeUnknown | Released | Cancelled)
            });
            if !may_be_repeated {
                state.violated(format!("attempt {attempt} of {id} calls again after attempt {earlier}: {ended:?}"));
            }
        }
    }

    /// A client got this job for its submission.
    pub(super) fn acknowledged(&self, key: Option<&str>, id: JobId) {
        let mut state = self.0.lock();
        state.acknowledged.insert(id);
        if let Some(key) = key {
            let first = *state.keys.entry(key.to_owned()).or_insert(id);
            if first != id {
                state.violated(format!("the key {key} stands for {first} and for {id}"));
            }
        }
    }

    pub(super) fn acknowledged_jobs(&self) -> Vec<JobId> {
        self.0.lock().acknowledged.iter().copied().collect()
    }

    /// Somebody asks for a retry of this job, which may be done or not.
    pub(super) fn requeues(&self, id: JobId) {
        self.0.lock().requeued.insert(id);
    }

    /// A client was shown this job.
    pub(super) fn told(&self, job: &Job) {
        let mut state = self.0.lock();
        if !job.state.is_final() {
            return;
        }
        let end = end_of(job);
        if !state.lives.get(&job.id).is_some_and(|life| life.ends.contains(&end)) {
            state.violated(format!("a client was told an end that is not stored: {job:?}"));
        }
        state.told.insert(job.id, end);
    }

    /// Turns start again: another node has the seat, or the same one read all jobs again.
    pub(super) fn new_term(&self) {
        self.0.lock().terms.push([0; GREEDY.len()]);
    }

    /// Checks the end, when all jobs are as `stored` gives them.
    pub(super) fn check_end(&self, stored: impl Fn(JobId) -> Option<JobRecord>) {
        let mut state = self.0.lock();
        let acknowledged: Vec<JobId> = state.acknowledged.iter().copied().collect();
        for id in acknowledged {
            let Some(record) = stored(id) else {
                state.violated(format!("{id} was acknowledged and is lost"));
                continue;
            };
            let told = state.told.get(&id).filter(|_| !state.requeued.contains(&id));
            if let Some(told) = told.filter(|told| **told != end_of(&record.job)) {
                let what = format!("a client was told {told:?}, and now it is {:?}", record.job);
                state.violated(what);
            }
        }
        for claims in state.terms.clone() {
            let all: u32 = claims.iter().sum();
            let share = all / u32::try_from(GREEDY.len()).unwrap();
            if all >= ENOUGH_CLAIMS && claims.iter().any(|claims| claims * 2 < share) {
                state.violated(format!("callers that always waited were given {claims:?} calls"));
            }
        }
    }

    /// Attempts of unknown outcome that made no call, but might have.
    pub(super) fn uncalled(&self, stored: impl Fn(JobId) -> Option<JobRecord>) -> u64 {
        let state = self.0.lock();
        let records = state.lives.keys().filter_map(|id| stored(*id));
        let is_uncalled = |id: JobId, attempt: &Attempt| {
            matches!(attempt.outcome, AttemptOutcome::OutcomeUnknown | AttemptOutcome::Cancelled)
                && !state.calls.contains(&(id, attempt.number))
        };
        records.map(|record| record.attempts.iter().filter(|one| is_uncalled(record.job.id, one)).count() as u64).sum()
    }

    /// How much happened: acknowledged jobs, calls, seats, and claims that say something of the turns.
    pub(super) fn figures(&self) -> (usize, usize, usize, u32) {
        let state = self.0.lock();
        let claims = state.terms.iter().map(|claims| claims.iter().sum::<u32>()).filter(|all| *all >= ENOUGH_CLAIMS);
        (state.acknowledged.len(), state.calls.len(), state.terms.len(), claims.sum())
    }
}

impl State {
    fn violated(&mut self, what: String) {
        let at = self.started.elapsed();
        self.violations.push((at, what));
    }

    fn event(&mut self, what: &str) {
        let at = self.started.elapsed();
        if self.is_printed {
            println!("{at:?} {what}");
        }
        let at = u64::try_from(at.as_micros()).unwrap_or(u64::MAX);
        for byte in at.to_le_bytes().iter().chain(what.as_bytes()) {
            self.trace = (self.trace ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    /// A claim gives the attempt to its owner.
    fn grant(&mut self, job: &Job) {
        if let Some(owner) = job.owner {
            self.granted.insert((format!("{owner:?}"), job.id), job.attempt);
        }
    }

    /// Counts a claim of a greedy caller if each of them has another job that could have been claimed.
    fn count_turn<J: std::ops::Deref<Target = Job>>(&mut self, job: &Job, pending: &BTreeMap<JobId, J>) {
        let is_claim = job.is_running() && pending.get(&job.id).is_none_or(|before| !before.is_running());
        let Some(place) = GREEDY.iter().position(|name| job.caller == caller::named(name)) else { return };
        let Some(now) = job.started_at.filter(|_| is_claim) else { return };
        let waits = |name: &&str| {
            let caller = caller::named(name);
            let is_ready = |other: &Job| matches!(other.state, JobState::Queued { run_at } if run_at < now);
            pending.values().any(|other| other.id != job.id && other.caller == caller && is_ready(other))
        };
        if GREEDY.iter().all(waits)
            && let Some(term) = self.terms.last_mut()
        {
            term[place] += 1;
        }
    }
}
