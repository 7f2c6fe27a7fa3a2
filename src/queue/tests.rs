//! The queue against a plain model: random sequences of what clients, workers, the clock, a failing store and the end of
//! the process can do to it, over the real store and [`FaultStore`].
//!
//! After every step each job must be as the model has it, with its whole history; nothing else may be there; the ledger
//! must be what all attempts cost that there ever were; the store's index must agree with itself; every announced change
//! must be a step of one life, in which no attempt number comes twice and no end without a requeue follows another; every
//! attempt must know whether it still owns its job; and whoever waits for a job that has ended must have heard of it. At
//! the end of a sequence every job is brought to its end.

mod nodes;
mod overload;

use std::{
    collections::{HashMap, HashSet},
    num::NonZeroU64,
    path::Path,
    pin::Pin,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Wake, Waker},
    time::Duration,
};

use futures_util::{future::join_all, poll};
use parking_lot::Mutex;
use proptest::prelude::*;
use serde_json::value::RawValue;
use tempfile::TempDir;
use tokio::{task::JoinHandle, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{board::Pick, hold::CHANCE_POLL, retry::RetryBounds, *};
use crate::{
    clock::{Clock, Timestamp},
    digest::Lane,
    job::{
        AttemptOutcome, AttemptReport, Cached, Depth, FailureClass, FailureCode, IdempotencyKey, Job, JobId, JobRecord,
        JobRequest, JobState, JobStatus, Listing, Owner, PRIORITY_OFFSET, Priority, TokenUsage, caller,
        disposition::Disposition,
    },
    ledger::{Risk, Spending, Sums, total},
    metrics::Metrics,
    store::{
        Alone, JobStore as _, Ledger as _, Store, StoreError,
        fault::{Call, FaultStore, Moment},
        memory::MemoryStore,
        nodes::{Live, OneOfMany},
        sled::{SledConfig, SledStore},
    },
};

mod clock;

/// More for the long version: `CEOAGENT_TEST_SEQUENCES=50000 cargo test --lib queue::tests`.
const SEQUENCES: u32 = 1_000;

/// So few that the bound is met.
const MAX_PENDING: usize = 9;

/// How long a claim of these tests lasts.
const LEASE: Duration = Duration::from_secs(30);

/// Later than any sequence gets.
const NEVER: Duration = Duration::from_hours(24 * 365);

/// A waiter that needs longer was not signalled: it needs its slow poll. In virtual time, which passes only while all tasks wait.
const SIGNALLED: Duration = Duration::from_millis(1);

/// What each attempt costs that is answered.
const COST: TokenUsage =
    TokenUsage { input_tokens: 0, output_tokens: 10, cache_creation_input_tokens: 0, cache_read_input_tokens: 0 };

/// A job to submit.
#[derive(Clone, Debug)]
struct New {
    priority: Priority,
    /// Seconds from now.
    run_in: Option<u64>,
    /// Seconds from now.
    deadline: Option<u64>,
    /// 0 for one without a name.
    caller: u8,
    /// Its client waits for the answer.
    waits: bool,
    /// What it asks, if others may ask the same.
    asks: Option<u8>,
}

/// How an attempt ends.
#[derive(Clone, Copy, Debug)]
enum How {
    Succeed,
    /// To be tried again after so many seconds.
    Retry(u64),
    Fail,
    /// To be claimed again after so many seconds.
    Release(u64),
}

/// Something done to one job. Numbers choose among the newest claims or jobs.
#[derive(Clone, Debug)]
enum Op {
    Settle(usize, How),
    Cancel(usize),
    Requeue(usize),
}

#[derive(Clone, Debug)]
enum Step {
    /// Several clients at once.
    Submit(Vec<New>),
    /// A job that can be claimed at its submission, if no other is ready.
    HandOver {
        new: New,
        /// Its call may be made at this moment.
        permit: bool,
    },
    /// So many workers at once.
    Claim(usize),
    /// All at once, in this order.
    Together(Vec<Op>),
    /// A client waits for a job's end.
    Wait(usize),
    /// A client that waits for its answer hangs up.
    HangUp(usize),
    Pass(u64),
    /// The wall clock jumps.
    SetClock {
        hours: u64,
        forward: bool,
    },
    /// The worker of one of the newest claims dies.
    Die(usize),
    Sweep,
    /// The process ends and starts again: in good order, or with the files as they are.
    Restart {
        kill: bool,
    },
}

/// A step, and what goes wrong in it.
#[derive(Clone, Debug)]
struct Event {
    step: Step,
    /// The store's call that fails, if the step does one thing only.
    fault: Option<(usize, Moment)>,
    /// What the step changes is not announced.
    deaf: bool,
}

fn any_event() -> impl Strategy<Value = Event> {
    let new = || {
        let priority = prop_oneof![Just(Priority::High), Just(Priority::Normal), Just(Priority::Low)];
        let later = proptest::option::weighted(0.3, 0u64..50);
        let asks = proptest::option::weighted(0.6, 0u8..2);
        (priority, later.clone(), later, 0u8..3, proptest::bool::weighted(0.4), asks).prop_map(
            |(priority, run_in, deadline, caller, waits, asks)| New { priority, run_in, deadline, caller, waits, asks },
        )
    };
    let how = prop_oneof![
        2 => Just(How::Succeed),
        3 => (0u64..20).prop_map(How::Retry),
        1 => Just(How::Fail),
        2 => (0u64..5).prop_map(How::Release),
    ];
    let op = prop_oneof![
        5 => (0usize..10, how).prop_map(|(claim, how)| Op::Settle(claim, how)),
        2 => (0usize..10).prop_map(Op::Cancel),
        2 => (0usize..10).prop_map(Op::Requeue),
    ];
    let together = prop_oneof![
        3 => proptest::collection::vec(op.clone(), 1),
        2 => proptest::collection::vec(op, 2..6),
    ];
    let submit = prop_oneof![3 => proptest::collection::vec(new(), 1), 1 => proptest::collection::vec(new(), 2..5)];
    let step = prop_oneof![
        8 => submit.prop_map(Step::Submit),
        3 => (new(), proptest::bool::weighted(0.8))
            .prop_map(|(new, permit)| Step::HandOver { new, permit }),
        9 => prop_oneof![Just(1usize), 2usize..5].prop_map(Step::Claim),
        14 => together.prop_map(Step::Together),
        4 => (0usize..10).prop_map(Step::Wait),
        2 => (0usize..10).prop_map(Step::HangUp),
        5 => prop_oneof![8 => 1u64..20, 2 => 25u64..50, 1 => Just(4_000)].prop_map(Step::Pass),
        2 => (prop_oneof![Just(1u64), Just(24 * 31)], any::<bool>())
            .prop_map(|(hours, forward)| Step::SetClock { hours, forward }),
        2 => (0usize..10).prop_map(Step::Die),
        5 => Just(Step::Sweep),
        1 => any::<bool>().prop_map(|kill| Step::Restart { kill }),
    ];
    let fault = (0usize..3, prop_oneof![Just(Moment::Before), Just(Moment::After)]);
    (step, proptest::option::weighted(0.25, fault), proptest::bool::weighted(0.1))
        .prop_map(|(step, fault, deaf)| Event { step, fault, deaf })
}

/// A job as the model has it.
#[derive(Clone, Debug)]
struct Expected {
    id: JobId,
    query: String,
    priority: Priority,
    caller: Option<String>,
    waited_for: bool,
    question: Option<NonZeroU64>,
    created_at: Timestamp,
    due_at: Timestamp,
    /// It waits for the wall clock, until somebody has seen that its time has come.
    is_timed: bool,
    is_reached: bool,
    deadline_at: Option<Timestamp>,
    state: JobState,
    claimed_at: Timestamp,
    attempt: u32,
    overloads: u32,
    unknown: u32,
    releases: u32,
    finished_at: Option<Timestamp>,
    history: Vec<(u32, AttemptOutcome)>,
}

impl Expected {
    /// Whether it is due and can be claimed while these questions are being asked.
    fn is_ready(&self, under_way: &HashSet<NonZeroU64>, clock: &Clock) -> bool {
        let is_overdue = self.deadline_at.is_some_and(|deadline| deadline <= clock.now());
        self.is_due(clock) && !self.is_asked(under_way) && !is_overdue
    }

    fn is_due(&self, clock: &Clock) -> bool {
        let lead = if self.is_timed && !self.is_reached { clock.lead() } else { Duration::ZERO };
        matches!(self.state, JobState::Queued { run_at } if run_at <= clock.now().minus(lead))
    }

    fn is_asked(&self, under_way: &HashSet<NonZeroU64>) -> bool {
        self.question.is_some_and(|question| under_way.contains(&question))
    }

    /// Takes the answer of another that asked the same, if it may.
    fn share(&mut self, now: Timestamp) {
        if matches!(self.state, JobState::Queued { .. }) && self.due_at <= now {
            self.attempt += 1;
            self.question = None;
            self.history.push((self.attempt, AttemptOutcome::Shared));
            self.end(JobState::Succeeded, now);
        }
    }

    fn caller(&self) -> Option<NonZeroU64> {
        caller::named(self.caller.as_deref()?)
    }

    fn is_running(&self) -> bool {
        matches!(self.state, JobState::Running)
    }

    fn owned_by(&self, job: &Job) -> bool {
        self.is_running() && self.id == job.id && self.attempt == job.attempt
    }

    fn place(&self) -> i64 {
        let offset = i64::try_from(PRIORITY_OFFSET.as_millis()).unwrap();
        match self.priority {
            Priority::High => self.created_at.as_millis() - offset,
            Priority::Normal => self.created_at.as_millis(),
            Priority::Low => self.created_at.as_millis() + offset,
        }
    }

    fn claim(&mut self, now: Timestamp) {
        self.state = JobState::Running;
        self.claimed_at = now;
        self.is_timed = false;
        self.attempt += 1;
    }

    fn end(&mut self, state: JobState, now: Timestamp) {
        self.state = state;
        self.finished_at = Some(now);
    }

    fn settle(&mut self, how: How, policy: &Policy, now: Timestamp) {
        let (outcome, state) = match how {
            How::Succeed => (AttemptOutcome::Succeeded, JobState::Succeeded),
            How::Retry(after)
                if self.overloads == policy.retries.overload
                    || self.deadline_at.is_some_and(|deadline| deadline <= now.plus(Duration::from_secs(after))) =>
            {
                (AttemptOutcome::Failed, JobState::Failed { code: FailureCode::Overloaded })
            }
            How::Retry(after) => {
                self.overloads += 1;
                (AttemptOutcome::Failed, JobState::Queued { run_at: now.plus(Duration::from_secs(after)) })
            }
            How::Fail => (AttemptOutcome::Failed, JobState::Failed { code: FailureCode::Refused }),
            How::Release(after) => return self.give_back(now.plus(Duration::from_secs(after))),
        };
        self.history.push((self.attempt, outcome));
        match state {
            JobState::Queued { .. } => self.state = state,
            _ => self.end(state, now),
        }
    }

    fn give_back(&mut self, run_at: Timestamp) {
        // Releases in a row are one entry.
        self.history.pop_if(|(_, outcome)| *outcome == AttemptOutcome::Released);
        self.history.push((self.attempt, AttemptOutcome::Released));
        self.state = JobState::Queued { run_at };
        self.releases += 1;
    }

    fn expire(&mut self, policy: &Policy, now: Timestamp) {
        self.history.push((self.attempt, AttemptOutcome::OutcomeUnknown));
        if policy.retry_unknown_outcome && self.unknown < policy.retries.other {
            self.unknown += 1;
            self.state = JobState::Queued { run_at: now };
        } else {
            self.end(JobState::Failed { code: FailureCode::OutcomeUnknown }, now);
        }
    }

    /// Tells whether it may.
    fn cancel(&mut self, now: Timestamp) -> bool {
        match self.state {
            JobState::Succeeded | JobState::Failed { .. } => return false,
            JobState::Cancelled => return true,
            JobState::Queued { .. } => {}
            JobState::Running => self.history.push((self.attempt, AttemptOutcome::Cancelled)),
        }
        self.end(JobState::Cancelled, now);
        true
    }

    /// Tells whether it may.
    fn requeue(&mut self, now: Timestamp) -> bool {
        let (JobState::Failed { .. } | JobState::Cancelled) = self.state else { return false };
        self.state = JobState::Queued { run_at: now };
        (self.due_at, self.is_timed) = (now, false);
        (self.overloads, self.unknown, self.releases, self.finished_at) = (0, 0, 0, None);
        self.deadline_at = self.deadline_at.filter(|deadline| *deadline > now);
        true
    }

    /// Ends what time has run out on, but for an attempt that somebody is at work on.
    fn sweep(&mut self, policy: &Policy, under_way: &HashSet<NonZeroU64>, is_at_work: bool, clock: &Clock) {
        let now = clock.now();
        match self.state {
            // Its deadline waits with it.
            JobState::Queued { .. } if self.is_due(clock) && self.is_asked(under_way) => {}
            JobState::Running if !is_at_work && self.claimed_at.plus(policy.lease) <= now => self.expire(policy, now),
            JobState::Queued { .. } if self.deadline_at.is_some_and(|deadline| deadline <= now) => {
                self.end(JobState::Failed { code: FailureCode::DeadlineExceeded }, now);
            }
            _ => {}
        }
    }

    /// What its attempts cost.
    fn spent(&self) -> Sums {
        let mut spent = Sums::default();
        for (_, outcome) in &self.history {
            match outcome {
                AttemptOutcome::Succeeded | AttemptOutcome::Failed => {
                    let tokens = TokenUsage { output_tokens: COST.output_tokens, ..TokenUsage::default() };
                    spent.add(&Sums { calls: 1, tokens, unpriced_calls: 1, ..Sums::default() });
                }
                // As the policy estimates it.
                AttemptOutcome::Cancelled | AttemptOutcome::OutcomeUnknown => {
                    let at_risk =
                        Risk { calls: 1, input_tokens: 1, output_tokens: 1, nanodollars: 1, unpriced_calls: 0 };
                    spent.add(&Sums { at_risk, ..Sums::default() });
                }
                // Read again, not asked again.
                AttemptOutcome::Released | AttemptOutcome::Reparsed | AttemptOutcome::Shared => {}
            }
        }
        spent
    }

    #[track_caller]
    fn assert_is(&self, record: &JobRecord) {
        let job = &record.job;
        let failures = [FailureClass::Overload, FailureClass::Other].map(|class| job.failures.count(class));
        let is = (job.state, job.attempt, failures, job.releases, job.deadline_at, job.finished_at);
        let failures = [self.overloads, self.unknown];
        let want = (self.state, self.attempt, failures, self.releases, self.deadline_at, self.finished_at);
        assert_eq!(is, want, "job {}", self.query);
        assert_eq!(record.request.query, self.query);
        let history: Vec<_> = record.attempts.iter().map(|attempt| (attempt.number, attempt.outcome)).collect();
        assert_eq!(history, self.history, "the history of {}", self.query);
    }
}

/// What the announcements told of a job.
#[derive(Default)]
struct Life {
    state: Option<JobState>,
    attempts: u32,
}

impl Life {
    /// The next announcement: it must be a step of a life that has no number and no end twice.
    fn go_on(&mut self, job: &Job) {
        let before = self.state.replace(job.state);
        let was_final = before.is_some_and(JobState::is_final);
        match job.state {
            JobState::Running if matches!(before, Some(JobState::Running)) => {
                assert_eq!(job.attempt, self.attempts, "one attempt followed another that had not ended: {job:?}");
            }
            JobState::Running => {
                assert!(!was_final, "claimed after its end: {job:?}");
                assert_eq!(job.attempt, self.attempts + 1, "an attempt's number was left out or used twice: {job:?}");
                self.attempts = job.attempt;
            }
            JobState::Queued { .. } => {
                assert_ne!(before, Some(JobState::Succeeded), "queued after its success: {job:?}");
                assert_eq!(job.attempt, self.attempts, "{job:?}");
            }
            JobState::Succeeded | JobState::Failed { .. } | JobState::Cancelled => {
                assert!(!was_final, "ended twice: {job:?}");
                // Another's answer is an attempt of its own, which nobody claimed.
                let was_running = matches!(before, Some(JobState::Running));
                self.attempts += u32::from(job.state == JobState::Succeeded && !was_running);
                assert_eq!(job.attempt, self.attempts, "{job:?}");
            }
        }
    }
}

/// A claim that was given out.
struct Held {
    claim: Claim,
    /// Which of the processes has it.
    process: usize,
    /// Its worker has neither settled it nor died.
    is_at_work: bool,
    /// It settled, or need not know whether it still owns its job: that was not announced.
    excused: bool,
}

/// What an [`Op`] brought.
#[expect(clippy::large_enum_variant, reason = "few at a time")]
enum Done {
    Settled,
    Changed(Result<JobRecord, QueueError>),
}

/// The queue under test beside its model.
struct World {
    folder: TempDir,
    clock: Clock,
    policy: Policy,
    metrics: Metrics,
    store: Arc<FaultStore<SledStore>>,
    queue: Queue,
    process: usize,
    submitted: usize,
    /// In the order of submission.
    jobs: Vec<Expected>,
    /// What the attempts cost of jobs that were pruned since.
    spent_before: Sums,
    claims: Vec<Held>,
    waiters: Vec<(JobId, JoinHandle<Result<JobRecord, QueueError>>)>,
    /// Clients that wait for their answers, in the order of their deadlines.
    clients: Vec<Waiting>,
    /// The turns of the callers that have jobs ready, or had their turn early; the turn served last.
    turns: HashMap<Option<NonZeroU64>, u64>,
    turn: u64,
    /// The wall clock was set: waiting clients of jobs with a `run_at` may have another order.
    was_set: bool,
    lives: HashMap<JobId, Life>,
    late: u64,
}

/// A folder in memory where there is one: a sync costs nothing there, and these tests lose no power.
fn folder() -> TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

fn open(path: &Path, clock: &Clock, metrics: &Metrics) -> Arc<FaultStore<SledStore>> {
    let config = SledConfig { path: path.to_owned(), cache_bytes: 16 << 20, keep_answers: true };
    Arc::new(FaultStore::over(SledStore::open(config, clock.clone(), metrics.clone()).unwrap()))
}

impl World {
    async fn new(retry_unknown_outcome: bool) -> World {
        let policy = Policy {
            nodes: Arc::new(Alone::new(Owner::new("node", 0))),
            retries: RetryBounds { other: 2, overload: 2, ..Policy::plain().retries },
            lease: LEASE,
            retry_unknown_outcome,
            keep_finished_for: Duration::from_hours(1),
            max_finished: 10,
            max_pending: MAX_PENDING,
            dedup_key: Arc::new(|request, _, _| asked(request)),
            ..Policy::plain()
        };
        let clock = Clock::manual(Timestamp::from_millis(1_800_000_000_000));
        let (folder, metrics) = (folder(), Metrics::new());
        let store = open(folder.path(), &clock, &metrics);
        let queue = Queue::over(store.clone(), &clock, &policy, &metrics).await;
        World {
            folder,
            clock,
            policy,
            metrics,
            store,
            queue,
            process: 0,
            submitted: 0,
            jobs: Vec::new(),
            spent_before: Sums::default(),
            claims: Vec::new(),
            waiters: Vec::new(),
            clients: Vec::new(),
            turns: HashMap::new(),
            turn: 0,
            was_set: false,
            lives: HashMap::new(),
            late: 0,
        }
    }

    fn now(&self) -> Timestamp {
        self.clock.now()
    }

    fn ready(&self) -> usize {
        let under_way = self.under_way();
        self.jobs.iter().filter(|job| job.is_ready(&under_way, &self.clock)).count()
    }

    /// The questions that are being asked.
    fn under_way(&self) -> HashSet<NonZeroU64> {
        self.jobs.iter().filter(|job| job.is_running()).filter_map(|job| job.question).collect()
    }

    fn pending(&self) -> usize {
        self.jobs.iter().filter(|job| !job.state.is_final()).count()
    }

    /// The first job for a claim, with its caller's turn served.
    fn first(&mut self, pick: Pick) -> Option<&mut Expected> {
        let (clock, under_way) = (self.clock.clone(), self.under_way());
        if let Pick::Job(id) = pick
            && let Some(place) = self.jobs.iter().position(|job| job.id == id && job.is_ready(&under_way, &clock))
        {
            return self.jobs.get_mut(place);
        }
        let ready = |job: &Expected| job.is_ready(&under_way, &clock);
        let background = pick == Pick::Background && self.jobs.iter().any(|job| ready(job) && !job.waited_for);
        let may = |job: &&mut Expected| ready(job) && !(background && job.waited_for);
        let callers = self.jobs.iter_mut().filter(may).map(|job| job.caller());
        let (turn, caller) = callers.map(|caller| (self.turns[&caller], caller)).min()?;
        self.turns.insert(caller, turn.max(self.turn) + 1);
        self.turn = self.turn.max(turn);
        self.jobs.iter_mut().filter(may).filter(|job| job.caller() == caller).min_by_key(|job| (job.place(), job.id))
    }

    /// Callers that have jobs ready come in at the turn served last, unless theirs is a later one.
    fn note_callers(&mut self) {
        let under_way = self.under_way();
        let ready = self.jobs.iter().filter(|job| job.is_ready(&under_way, &self.clock));
        let callers: Vec<_> = ready.map(Expected::caller).collect();
        self.turns.retain(|caller, turn| *turn > self.turn || callers.contains(caller));
        for caller in callers {
            self.turns.entry(caller).or_insert(self.turn);
        }
    }

    /// Who waits goes by the earliest deadline, each among its caller's; they have come in this order.
    fn assert_first_of_its_caller(&self, id: JobId) {
        let under_way = self.under_way();
        let client = self.clients.iter().position(|client| client.job() == id).expect("a client waits for it");
        let of = |id| self.jobs.iter().find(|job| job.id == id);
        let caller = of(id).map(Expected::caller);
        let earlier = self.clients[..client].iter().filter_map(|client| of(client.job()));
        let earlier = earlier.filter(|job| !(self.was_set && job.is_timed));
        let passed =
            earlier.filter(|job| Some(job.caller()) == caller && job.is_ready(&under_way, &self.clock)).count();
        assert!(passed == 0, "{id} is claimed before {passed} with an earlier deadline");
    }

    fn job(&mut self, id: JobId) -> Option<&mut Expected> {
        self.jobs.iter_mut().find(|job| job.id == id)
    }

    fn hold(&mut self, claim: Claim) {
        self.claims.push(Held { claim, process: self.process, is_at_work: true, excused: false });
    }

    /// Takes a step and checks everything.
    async fn take(&mut self, event: Event) {
        let Event { step, fault, deaf } = event;
        let alone = match &step {
            Step::Submit(new) => new.len() == 1,
            Step::Together(ops) => ops.len() == 1,
            Step::Claim(workers) => *workers == 1,
            Step::HandOver { .. } | Step::Sweep | Step::Restart { .. } => true,
            Step::Wait(_) | Step::HangUp(_) | Step::Pass(_) | Step::SetClock { .. } | Step::Die(_) => false,
        };
        let fault = fault.filter(|_| alone);
        let deaf = deaf && matches!(step, Step::Together(_) | Step::Sweep);
        if let Some((calls, moment)) = fault
            && !matches!(step, Step::Restart { .. })
        {
            self.store.fail_after(calls, moment);
        }
        self.store.set_deaf(deaf).await;
        self.was_set |= matches!(step, Step::SetClock { .. });
        // Time wakes nobody; the board is looked at after each step.
        let wakes = !matches!(step, Step::Pass(_) | Step::SetClock { .. } | Step::Restart { .. });
        let sleeper = (wakes && self.ready() == 0).then(|| Sleeper::at(&self.queue));
        // A settle that fails tries again after a pause, which is nothing to wait for.
        if fault.is_some() || deaf {
            tokio::time::pause();
        }
        match step {
            Step::Submit(new) => self.submit(new).await,
            Step::HandOver { new, permit } => self.hand_over(new, permit).await,
            Step::Claim(workers) => self.claim(workers).await,
            Step::Together(ops) => self.together(ops).await,
            Step::Wait(n) => self.wait(n),
            Step::HangUp(n) => self.hang_up(n),
            Step::Pass(seconds) => self.clock.advance(Duration::from_secs(seconds)),
            Step::SetClock { hours, forward: true } => self.clock.set_forward(Duration::from_hours(hours)),
            Step::SetClock { hours, forward: false } => self.clock.set_back(Duration::from_hours(hours)),
            Step::Die(n) => self.die(n),
            Step::Sweep => self.sweep().await,
            Step::Restart { kill } => self.restart(kill, fault).await,
        }
        self.store.take_fired();
        self.store.set_deaf(false).await;
        if let Some(sleeper) = sleeper {
            assert!(sleeper.is_woken() || self.ready() == 0, "a job is ready, and the dispatcher sleeps on");
        }
        if deaf {
            // The board was rebuilt.
            (self.turns, self.turn) = (HashMap::new(), 0);
            self.jobs.iter_mut().for_each(|job| job.is_reached = false);
        }
        if fault.is_some() && !deaf {
            tokio::time::resume();
        }
        self.check(deaf).await;
    }

    fn submission(&mut self, new: &New) -> (Submission, Expected) {
        let now = self.now();
        self.submitted += 1;
        let query = format!("question {}", self.submitted);
        let later = |seconds: u64| now.plus(Duration::from_secs(seconds));
        let caller = (new.caller > 0).then(|| format!("caller {}", new.caller));
        let submission = Submission {
            request: JobRequest {
                query: query.clone(),
                context: new.asks.map(|number| format!("context {number}")),
                caller: caller.clone(),
                ..JobRequest::default()
            },
            priority: new.priority,
            run_at: new.run_in.map(later),
            deadline: new.deadline.map(Duration::from_secs),
            idempotency_key: None,
            wants_its_own: false,
            by: None,
        };
        let expected = Expected {
            claimed_at: self.now(),
            id: JobId::nil(),
            query,
            priority: new.priority,
            caller,
            waited_for: new.waits,
            question: asked(&submission.request),
            created_at: now,
            due_at: new.run_in.map_or(now, later),
            deadline_at: new.deadline.map(later),
            is_timed: new.run_in.is_some_and(|seconds| later(seconds) > now.minus(self.clock.lead())),
            is_reached: false,
            state: JobState::Queued { run_at: new.run_in.map_or(now, later) },
            attempt: 0,
            overloads: 0,
            unknown: 0,
            releases: 0,
            finished_at: None,
            history: Vec::new(),
        };
        (submission, expected)
    }

    /// What became of a submission; the job, if it was accepted or is there all the same.
    fn accepted(
        &mut self,
        result: Result<Accepted, QueueError>,
        fired: &[(Call, Moment)],
        mut expected: Expected,
    ) -> Option<&mut Expected> {
        let full = self.pending() >= MAX_PENDING;
        expected.id = match (result, fired.first()) {
            (Ok(accepted), _) => {
                assert!(!full, "accepted beyond the bound");
                accepted.record.job.id
            }
            (Err(QueueError::Refused(Refused::Full { limit, .. })), None) => {
                assert_eq!((full, limit), (true, MAX_PENDING));
                return None;
            }
            (Err(QueueError::Unavailable(_)), Some((Call::Insert(id), Moment::After))) if !full => *id,
            (Err(QueueError::Unavailable(_)), Some((Call::Insert(_), _))) => return None,
            (Err(error), fired) => panic!("{error} after {fired:?}"),
        };
        self.jobs.push(expected);
        self.jobs.last_mut()
    }

    async fn submit(&mut self, new: Vec<New>) {
        let (submissions, expected): (Vec<_>, Vec<_>) = new.iter().map(|new| self.submission(new)).unzip();
        let submit = async |(submission, new): (Submission, &New)| {
            if new.waits {
                return self.queue.ask(submission, Instant::now() + NEVER, free).await;
            }
            Ok((self.queue.enqueue(submission).await?, None))
        };
        let results = join_all(submissions.into_iter().zip(&new).map(submit)).await;
        let fired = self.store.take_fired();
        for (result, expected) in results.into_iter().zip(expected) {
            let (result, waiting) = match result {
                Ok((accepted, waiting)) => (Ok(accepted), waiting),
                Err(error) => (Err(error), None),
            };
            self.accepted(result, &fired, expected);
            self.clients.extend(waiting);
        }
    }

    async fn hand_over(&mut self, mut new: New, permit: bool) {
        new.waits = false;
        if self.ready() > 0 {
            return self.submit(vec![new]).await;
        }
        let now = self.now();
        let (submission, expected) = self.submission(&new);
        let is_due = !expected.is_timed && new.deadline != Some(0);
        let is_reserved = permit && is_due && !expected.is_asked(&self.under_way());
        let standby = OnStandby::at(&self.queue, permit);
        let result = self.queue.enqueue(submission).await;
        let is_answered = result.is_ok();
        let fired = self.store.take_fired();
        if let Some(job) = self.accepted(result, &fired, expected)
            && is_reserved
        {
            job.claim(now);
        }
        let claims = standby.take();
        assert_eq!(claims.len(), usize::from(is_reserved && is_answered), "its attempt starts if it was accepted");
        claims.into_iter().for_each(|claim| self.hold(claim));
    }

    async fn claim(&mut self, count: usize) {
        let count = count.min(self.ready());
        let proposals: Vec<_> = (0..count).map(|_| self.queue.work().propose(&Lanes::All)).collect();
        let queue = &self.queue;
        let claims = proposals.into_iter().map(async |proposal| match proposal {
            Some(proposal) => queue.work().claim(proposal).await,
            None => Ok(None),
        });
        let claims = join_all(claims).await;
        self.claimed(claims);
    }

    /// What came of claims that were made at once: each takes the next job.
    fn claimed(&mut self, results: Vec<Result<Option<Claim>, QueueError>>) {
        let (now, picks) = (self.now(), self.take_picks());
        let fired = self.store.take_fired();
        assert_eq!((picks.len(), fired.len()), (results.len(), results.iter().filter(|claim| claim.is_err()).count()));
        let mut expected = Vec::new();
        for (pick, result) in picks.into_iter().zip(&results) {
            if let Pick::Job(id) = pick {
                self.assert_first_of_its_caller(id);
            }
            let fault = fired.first().filter(|_| result.is_err()).map(|(_, moment)| *moment);
            let job = self.first(pick);
            expected.push(job.as_ref().map(|job| job.id));
            // After a fault it runs, and nobody is at work on it, until its lease is over.
            if let Some(job) = job.filter(|_| fault != Some(Moment::Before)) {
                job.claim(now);
            }
        }
        for (result, expected) in results.into_iter().zip(expected) {
            match result {
                Ok(claim) => {
                    // All that were ready may have asked the same as a job that was claimed.
                    assert_eq!(claim.as_ref().map(|claim| claim.job.id), expected, "claims follow the order");
                    let Some(claim) = claim else { continue };
                    let job = self.job(claim.job.id).unwrap();
                    assert_eq!((claim.job.attempt, &claim.request.query), (job.attempt, &job.query));
                    self.hold(claim);
                }
                Err(error) => assert!(matches!(error, QueueError::Unavailable(_)), "{error}"),
            }
        }
    }

    /// The `n`-th newest claim, whoever has it.
    fn held(&mut self, n: usize) -> Option<&mut Held> {
        let among = self.claims.len().min(10);
        (among > 0).then(|| self.claims.iter_mut().rev().nth(n % among).unwrap())
    }

    /// The `n`-th newest job, or one that never was.
    fn named(&self, n: usize) -> JobId {
        self.jobs.iter().rev().nth(n).map_or(JobId::nil(), |job| job.id)
    }

    async fn together(&mut self, ops: Vec<Op>) {
        let now = self.now();
        let mut works = Vec::new();
        // A requeue is sent by a task of its own, so its order beside another change of its job, or an answer, is open.
        let target = |op: &Op| match op {
            Op::Settle(n, _) => {
                let among = self.claims.len().clamp(1, 10);
                self.claims.iter().rev().nth(n % among).map(|held| held.claim.job.id)
            }
            Op::Cancel(n) | Op::Requeue(n) => Some(self.named(*n)),
        };
        let targets: Vec<Option<JobId>> = ops.iter().map(target).collect();
        let answers = ops.iter().any(|op| matches!(op, Op::Settle(_, How::Succeed)));
        let is_alone = |id: &Option<JobId>| targets.iter().filter(|other| *other == id).count() == 1;
        let ops = ops.into_iter().zip(&targets);
        let ops = ops.filter(|(op, id)| !matches!(op, Op::Requeue(_)) || !answers && is_alone(id));
        let ops: Vec<Op> = ops.map(|(op, _)| op).collect();
        for op in ops {
            let (job, id) = match op {
                Op::Settle(n, _) => {
                    let Some(held) = self.held(n) else { continue };
                    (held.excused, held.is_at_work) = (true, false);
                    (Some(held.claim.job.clone()), held.claim.job.id)
                }
                Op::Cancel(n) | Op::Requeue(n) => (None, self.named(n)),
            };
            works.push((op, job, id));
        }
        // What a requeue depends on may be looked at before the changes beside it, or after.
        let mut places = MAX_PENDING - self.pending().min(MAX_PENDING);
        let ended = |job: &Expected| matches!(job.state, JobState::Failed { .. } | JobState::Cancelled);
        let ended: HashSet<JobId> = self.jobs.iter().filter(|job| ended(job)).map(|job| job.id).collect();
        let results = join_all(works.iter().map(|(op, job, id)| act(&self.queue, op, job.as_ref(), *id))).await;
        let fired = self.store.take_fired();
        let fired = fired.first().map(|(_, moment)| *moment);
        let policy = self.policy.clone();
        for ((op, claimed, id), done) in works.into_iter().zip(results) {
            let owns = claimed.is_some_and(|claimed| self.job(id).is_some_and(|job| job.owned_by(&claimed)));
            let Some(job) = self.jobs.iter_mut().find(|job| job.id == id) else {
                // It was pruned, or never was.
                match (&done, fired) {
                    (Done::Settled, _) => self.late += 1,
                    (Done::Changed(Err(QueueError::NotFound(_))), None) => {}
                    (Done::Changed(Err(QueueError::Unavailable(_))), Some(_)) => {}
                    _ => panic!("{op:?} of a job that is not there"),
                }
                continue;
            };
            match (op, done) {
                (Op::Settle(_, how), Done::Settled) => {
                    if owns {
                        job.settle(how, &policy, now);
                        let answered = job.question.filter(|_| job.state == JobState::Succeeded);
                        if answered.is_some() {
                            let same = |job: &&mut Expected| job.question == answered;
                            self.jobs.iter_mut().filter(same).for_each(|job| job.share(now));
                        }
                    }
                    // It is tried again until the store answers; what was done already is then refused.
                    self.late += u64::from(!owns || fired == Some(Moment::After));
                }
                (Op::Requeue(_), Done::Changed(Err(QueueError::Conflict(_)))) if !ended.contains(&id) => {}
                (Op::Requeue(_), Done::Changed(Err(QueueError::Refused(Refused::Full { .. })))) => {
                    assert_eq!(places, 0, "refused, and there is room");
                }
                (Op::Cancel(_) | Op::Requeue(_), Done::Changed(result)) if fired == Some(Moment::Before) => {
                    assert!(matches!(result, Err(QueueError::Unavailable(_))), "{result:?}");
                }
                (op @ (Op::Cancel(_) | Op::Requeue(_)), Done::Changed(result)) => {
                    let may = if let Op::Cancel(_) = op {
                        job.cancel(now)
                    } else {
                        places = places.saturating_sub(1);
                        job.requeue(now)
                    };
                    match result {
                        Ok(record) => assert_eq!((record.job.id, may, fired), (id, true, None)),
                        Err(QueueError::Conflict(_)) => assert_eq!((may, fired), (false, None)),
                        Err(QueueError::Unavailable(_)) => assert!(fired.is_some()),
                        Err(error) => panic!("{op:?}: {error}"),
                    }
                }
                (op, _) => unreachable!("{op:?} brought something else"),
            }
            self.note_callers();
        }
    }

    fn die(&mut self, n: usize) {
        let running = Arc::clone(&self.queue.0.running);
        if let Some(held) = self.held(n) {
            running.end(held.claim.job.id, held.claim.job.attempt);
            (held.is_at_work, held.excused) = (false, true);
        }
    }

    fn wait(&mut self, n: usize) {
        let id = self.named(n);
        if id.is_nil() {
            return;
        }
        let queue = self.queue.clone();
        let until = Instant::now() + NEVER;
        self.waiters.push((id, tokio::spawn(async move { queue.wait(id, until).await })));
    }

    fn hang_up(&mut self, n: usize) {
        if n < self.clients.len() {
            drop(self.clients.remove(n));
        }
    }

    async fn sweep(&mut self) {
        let (now, policy, under_way) = (self.now(), self.policy.clone(), self.under_way());
        let result = self.queue.work().sweep().await;
        let fired = self.store.take_fired();
        assert_eq!(result.is_err(), !fired.is_empty(), "{result:?} after {fired:?}");
        let at_work = self.claims.iter().filter(|held| held.is_at_work && held.process == self.process);
        let at_work: HashSet<_> = at_work.map(|held| (held.claim.job.id, held.claim.job.attempt)).collect();
        for job in &mut self.jobs {
            let mut swept = job.clone();
            swept.sweep(&policy, &under_way, at_work.contains(&(job.id, job.attempt)), &self.clock);
            // An interrupted sweep did it or did not.
            if result.is_ok() || self.store.find(job.id).await.unwrap().is_some_and(|is| is.state == swept.state) {
                *job = swept;
            }
        }
        if result.is_err() && !matches!(fired.first(), Some((Call::Prune, Moment::After))) {
            return;
        }
        let mut ends: Vec<_> =
            self.jobs.iter().enumerate().filter_map(|(n, job)| Some((job.finished_at?, n))).collect();
        ends.sort_unstable();
        let surplus = ends.len().saturating_sub(policy.max_finished);
        let before = now.minus(policy.keep_finished_for).minus(self.clock.skipped(policy.keep_finished_for));
        let mut gone: Vec<_> = ends
            .iter()
            .enumerate()
            .filter(|(place, (end, _))| *place < surplus || *end < before)
            .map(|(_, (_, n))| *n)
            .collect();
        gone.sort_unstable();
        for n in gone.into_iter().rev() {
            let pruned = self.jobs.remove(n);
            self.spent_before.add(&pruned.spent());
        }
    }

    async fn restart(&mut self, kill: bool, fault: Option<(usize, Moment)>) {
        let policy = self.policy.clone();
        if kill {
            self.waiters.drain(..).for_each(|(_, waiter)| waiter.abort());
            self.folder = copy_of(self.folder.path());
        } else {
            self.queue.0.closing.cancel();
            for (id, waiter) in self.waiters.drain(..) {
                let answer = waiter.await.unwrap();
                assert!(answer.is_ok_and(|record| record.job.id == id), "who waits is answered at the end");
            }
            self.store.close().await;
        }
        self.clients.clear();
        (self.turns, self.turn) = (HashMap::new(), 0);
        self.announced();
        self.process += 1;
        self.metrics = Metrics::new();
        self.late = 0;
        self.clock = self.clock.restarted();
        self.store = open(self.folder.path(), &self.clock, &self.metrics);
        self.policy.nodes = Arc::new(Alone::new(Owner::new("node", u32::try_from(self.process).unwrap())));
        self.queue = Queue::over(self.store.clone(), &self.clock, &self.policy, &self.metrics).await;
        if let Some((calls, moment)) = fault {
            self.store.fail_after(calls, moment);
            if let Err(error) = self.queue.work().end_lost().await {
                assert_eq!(self.store.take_fired().len(), 1, "{error}");
            }
            self.store.take_fired();
        }
        self.queue.work().end_lost().await.unwrap();
        let now = self.now();
        for job in &mut self.jobs {
            job.is_reached = false;
            if job.is_running() {
                job.expire(&policy, now);
            }
        }
    }

    fn announced(&mut self) {
        for job in self.store.take_announced() {
            self.lives.entry(job.id).or_default().go_on(&job);
        }
    }

    /// What claims were to take since this was last asked.
    fn take_picks(&self) -> Vec<Pick> {
        std::mem::take(&mut *self.queue.0.board.picks.lock())
    }

    async fn check(&mut self, deaf: bool) {
        self.store.inner().assert_consistent();
        self.announced();
        for job in &self.jobs {
            job.assert_is(&self.queue.get(job.id).await.unwrap());
        }
        let mut spent = self.spent_before;
        self.jobs.iter().for_each(|job| spent.add(&job.spent()));
        let ledger = self.store.days(usize::MAX).await.unwrap();
        assert_eq!(total(ledger.iter().flat_map(|day| day.models.values())), spent, "the ledger is what attempts cost");
        let counts = self.queue.counts();
        let pending = counts.queued + counts.scheduled + counts.running;
        assert_eq!(pending, self.pending());
        assert_eq!(pending + counts.succeeded + counts.failed + counts.cancelled, self.jobs.len(), "nothing besides");
        assert_eq!(self.queue.0.board.ready(None), self.ready());
        self.queue.0.board.assert_consistent(self.store.inner().pending());
        for job in &mut self.jobs {
            job.is_reached |= job.is_due(&self.clock);
        }
        self.note_callers();
        assert_eq!(self.metrics.leases_lost.get(), self.late, "late settles and heartbeats are counted");

        for held in self.claims.iter_mut().filter(|held| held.process == self.process && !held.excused) {
            let owns = self.jobs.iter().any(|job| job.owned_by(&held.claim.job));
            if deaf && !owns {
                held.excused = true;
            } else {
                assert_eq!(held.claim.lost.is_cancelled(), !owns, "an attempt knows whether it owns its job");
            }
        }

        let mut waiting = Vec::new();
        if !deaf {
            tokio::time::pause();
        }
        for (id, waiter) in std::mem::take(&mut self.waiters) {
            match self.jobs.iter().find(|job| job.id == id) {
                Some(job) if !job.state.is_final() => waiting.push((id, waiter)),
                _ => {
                    // Unheard changes are found by the slow poll.
                    let patience = if deaf { NEVER } else { SIGNALLED };
                    let record = tokio::time::timeout(patience, waiter).await.expect("the waiter was woken").unwrap();
                    match record {
                        Ok(record) => assert!(record.job.state.is_final(), "{record:?}"),
                        Err(error) => assert_eq!(error, QueueError::NotFound(id), "it may have been pruned meanwhile"),
                    }
                }
            }
        }
        self.waiters = waiting;
        tokio::time::resume();
    }

    /// Brings every job to its end: none may be stuck.
    async fn finish(&mut self) {
        // Or jobs with a run_at would wait until the wall clock shows it.
        self.clock.set_forward(self.clock.lead());
        let mut rounds = 0;
        while self.pending() > 0 {
            rounds += 1;
            assert!(rounds < 10, "jobs are stuck: {:?}", self.jobs);
            for held in &mut self.claims {
                self.queue.0.running.end(held.claim.job.id, held.claim.job.attempt);
                (held.is_at_work, held.excused) = (false, true);
            }
            let plain = |step| Event { step, fault: None, deaf: false };
            self.take(plain(Step::Pass(60))).await;
            self.take(plain(Step::Sweep)).await;
            let before = self.claims.len();
            self.take(plain(Step::Claim(MAX_PENDING))).await;
            let claimed = self.claims.len() - before;
            let settle = (0..claimed.min(10)).map(|n| Op::Settle(n, How::Succeed)).collect();
            self.take(plain(Step::Together(settle))).await;
        }
        assert!(self.waiters.is_empty(), "everybody was answered");
    }
}

impl Queue {
    pub(crate) async fn over(store: Arc<dyn Store>, clock: &Clock, policy: &Policy, metrics: &Metrics) -> Queue {
        let (policy, spending, closing) = (policy.clone(), Spending::default(), CancellationToken::new());
        Queue::open(store, clock.clone(), policy, metrics.clone(), spending, closing).await.unwrap()
    }

    /// Over a store in memory.
    async fn in_memory(clock: &Clock, policy: &Policy) -> Queue {
        Queue::over(Arc::<MemoryStore>::default(), clock, policy, &Metrics::new()).await
    }
}

/// A dispatcher that waits for a job.
struct Sleeper {
    woken: Arc<Woken>,
    _wait: Pin<Box<dyn Future<Output = ()> + Send>>,
}

#[derive(Default)]
struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::SeqCst);
    }
}

impl Sleeper {
    fn at(queue: &Queue) -> Sleeper {
        let (woken, work) = (Arc::<Woken>::default(), queue.work());
        let mut wait: Pin<Box<dyn Future<Output = ()> + Send>> = Box::pin(async move { work.until_ready().await });
        let polled = wait.as_mut().poll(&mut Context::from_waker(&Waker::from(Arc::clone(&woken))));
        assert!(polled.is_pending(), "there is no job to wake for");
        Sleeper { woken, _wait: wait }
    }

    fn is_woken(&self) -> bool {
        self.woken.0.load(Ordering::SeqCst)
    }
}

/// Takes jobs at their submission, for the test to work on.
struct OnStandby {
    permit: bool,
    claims: Arc<Mutex<Vec<Claim>>>,
}

impl OnStandby {
    /// Until it is dropped.
    fn at(queue: &Queue, permit: bool) -> Arc<OnStandby> {
        let standby = Arc::new(OnStandby { permit, claims: Arc::default() });
        let known: Weak<dyn Standby> = Arc::downgrade(&standby) as _;
        queue.work().set_standby(known);
        standby
    }

    fn take(&self) -> Vec<Claim> {
        std::mem::take(&mut *self.claims.lock())
    }
}

impl Standby for OnStandby {
    fn reserve(self: Arc<Self>, _: Lane) -> Option<Box<dyn Reserved>> {
        self.permit.then(|| Box::new(Hand(Arc::clone(&self.claims))) as _)
    }
}

struct Hand(Arc<Mutex<Vec<Claim>>>);

impl Reserved for Hand {
    fn start(self: Box<Self>, claim: Claim) {
        self.0.lock().push(claim);
    }
}

/// The question of a request of the model: what its context says, of its caller.
fn asked(request: &JobRequest) -> Option<NonZeroU64> {
    let context = request.context.as_ref()?;
    caller::named(&format!("{:?} {context}", request.caller))
}

/// Calls can be made as fast as one likes.
fn free() -> Allowance {
    Allowance { calls_per_second: 1e6, calls_at_once: 1_000, is_exhausted: false, hold: None }
}

/// The files as they are now, in another folder: what a kill at this moment would leave.
fn copy_of(path: &Path) -> TempDir {
    let copy = folder();
    for entry in std::fs::read_dir(path).unwrap().map(Result::unwrap) {
        if entry.file_type().unwrap().is_file() {
            std::fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
        }
    }
    copy
}

async fn act(queue: &Queue, op: &Op, claimed: Option<&Job>, id: JobId) -> Done {
    match (op, claimed) {
        (Op::Settle(_, how), Some(job)) => {
            let answered = AttemptReport { usage: Some(COST), ..AttemptReport::default() };
            let (disposition, report) = match *how {
                How::Succeed => {
                    let result = serde_json::value::to_raw_value("the memo").ok();
                    (Disposition::Succeed, AttemptReport { result, ..answered })
                }
                How::Retry(after) => {
                    let code = FailureCode::Overloaded;
                    let after = Some(Duration::from_secs(after));
                    (Disposition::Retry { code, class: FailureClass::Overload, after }, answered)
                }
                How::Fail => (Disposition::Fail { code: FailureCode::Refused }, answered),
                How::Release(after) => {
                    let code = FailureCode::RateLimited;
                    let after = Duration::from_secs(after);
                    (Disposition::Release { code, after, is_demoted: false }, AttemptReport::default())
                }
            };
            queue.work().settle(job, &disposition, report).await;
            queue.0.running.end(job.id, job.attempt);
            Done::Settled
        }
        (Op::Cancel(_), _) => Done::Changed(queue.cancel(id).await),
        (Op::Requeue(_), _) => Done::Changed(queue.requeue(id, None).await),
        (Op::Settle(..), None) => unreachable!("only claims are settled"),
    }
}

/// Each sequence in a world of its own.
fn walk(retry_unknown_outcome: bool) {
    let cases = std::env::var("CEOAGENT_TEST_SEQUENCES").ok().map_or(SEQUENCES, |cases| cases.parse().unwrap());
    let config = ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() };
    proptest!(config, |(events in proptest::collection::vec(any_event(), 1..40))| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut world = World::new(retry_unknown_outcome).await;
            for event in events {
                world.take(event).await;
            }
            world.finish().await;
        });
    });
}

#[test]
fn whatever_happens_each_job_lives_one_life_and_none_is_lost_or_stuck() {
    walk(true);
}

#[test]
fn so_it_is_where_an_unknown_outcome_fails_a_job() {
    walk(false);
}

#[tokio::test]
async fn an_idempotency_key_is_its_callers_own() {
    let clock = Clock::system();
    let queue = Queue::in_memory(&clock, &Policy::plain()).await;
    let submit = async |caller: Option<&str>| {
        let request = JobRequest { caller: caller.map(str::to_owned), ..JobRequest::default() };
        let submission = Submission { request, idempotency_key: Some("k".to_owned()), ..Submission::default() };
        queue.enqueue(submission).await.unwrap()
    };
    let first = submit(Some("ann")).await;
    let again = submit(Some("ann")).await;
    assert_eq!((again.replayed, again.record.job.id), (true, first.record.job.id));
    assert!(!submit(Some("ben")).await.replayed && !submit(None).await.replayed);
}

#[tokio::test]
async fn an_attempt_under_way_may_take_long_and_one_that_nobody_makes_ends_with_its_lease() {
    let clock = Clock::manual(Timestamp::from_millis(1_800_000_000_000));
    let policy = Policy { lease: LEASE, ..Policy::plain() };
    let queue = Queue::in_memory(&clock, &policy).await;
    let ask = async || queue.enqueue(Submission::default()).await.unwrap().record.job.id;
    ask().await;
    let claim = claimed(&queue).await;
    clock.advance(LEASE * 10);
    queue.work().sweep().await.unwrap();
    assert_eq!(queue.find(claim.job.id).await.unwrap().state, JobState::Running);
    assert!(!claim.lost.is_cancelled());
    queue.work().settle(&claim.job, &Disposition::Succeed, AttemptReport::default()).await;
    let record = queue.get(claim.job.id).await.unwrap();
    assert_eq!((record.job.state, record.attempts.len()), (JobState::Succeeded, 1));

    ask().await;
    let dead = claimed(&queue).await.job;
    clock.advance(LEASE);
    queue.work().sweep().await.unwrap();
    let record = queue.get(dead.id).await.unwrap();
    assert_eq!(record.attempts[0].outcome, AttemptOutcome::OutcomeUnknown, "nobody was at work on it any more");
}

#[tokio::test]
async fn a_job_whose_question_is_lost_on_disk_fails_and_stands_in_nobodys_way() {
    let folder = folder();
    let (clock, metrics) = (Clock::manual(Timestamp::from_millis(1_800_000_000_000)), Metrics::new());
    let store = open(folder.path(), &clock, &metrics);
    let queue = Queue::over(store.clone(), &clock, &Policy::plain(), &metrics).await;
    let ask = async || queue.enqueue(Submission::default()).await.unwrap().record.job.id;
    let (lost, given_up, next) = (ask().await, ask().await, ask().await);
    store.inner().lose_request(lost);
    store.inner().lose_request(given_up);
    let _ = queue.cancel(given_up).await;
    assert_eq!(queue.find(given_up).await.unwrap().state, JobState::Cancelled);
    let proposal = queue.work().propose(&Lanes::All).unwrap();
    assert!(queue.work().claim(proposal).await.unwrap().is_none());
    assert_eq!(queue.find(lost).await.unwrap().state, JobState::Failed { code: FailureCode::Internal });
    assert_eq!(claimed(&queue).await.job.id, next);
    let page = queue.list(Listing { limit: 9, ..Listing::default() }).await.unwrap();
    assert_eq!(page.jobs.iter().map(|record| record.job.id).collect::<Vec<_>>(), [next]);
    store.inner().assert_consistent();
}

#[tokio::test]
async fn a_clock_that_is_set_back_holds_up_no_job() {
    let (queue, clock) = sharing().await;
    let ids =
        [queue.enqueue(question("a")).await, queue.enqueue(question("b")).await, queue.enqueue(question("a")).await]
            .map(|accepted| accepted.unwrap().record.job.id);
    clock.set_back(Duration::from_hours(24));
    let first = claimed(&queue).await;
    assert_eq!(first.job.id, ids[0]);
    assert_eq!(claimed(&queue).await.job.id, ids[1]);
    answer(&queue, &first).await;
    assert_eq!(queue.find(ids[2]).await.unwrap().state, JobState::Succeeded, "it shares the answer, and pays for none");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_that_meets_a_claim_records_what_the_call_may_cost() {
    let (clock, folder, metrics) = (Clock::system(), folder(), Metrics::new());
    let on_disk = Queue::over(open(folder.path(), &clock, &metrics), &clock, &Policy::plain(), &metrics).await;
    for queue in [Queue::in_memory(&clock, &Policy::plain()).await, on_disk].iter().flat_map(|queue| [queue; 80]) {
        let id = queue.enqueue(Submission::default()).await.unwrap().record.job.id;
        let claim = tokio::spawn({
            let (store, now) = (Arc::clone(&queue.0.store), clock.now());
            async move { store.claim(id, Owner::ANY, None, now).await }
        });
        let cancel = tokio::spawn({
            let queue = queue.clone();
            async move { queue.cancel(id).await.unwrap() }
        });
        let claimed = claim.await.unwrap();
        assert!(matches!(claimed, Ok(_) | Err(StoreError::Transition(_))), "{claimed:?}");
        let record = cancel.await.unwrap();
        assert_eq!(record.job.state, JobState::Cancelled);
        for attempt in record.attempts {
            assert_eq!((attempt.outcome, attempt.report.at_risk.is_some()), (AttemptOutcome::Cancelled, true));
        }
    }
}

/// A queue of one worker, whose attempts have all taken ten seconds so far.
async fn queue_of_ten_seconds() -> (Queue, Clock) {
    let clock = Clock::manual(Timestamp::from_millis(1_800_000_000_000));
    let policy = Policy { lease: Duration::from_hours(1), ..Policy::plain() };
    let queue = Queue::in_memory(&clock, &policy).await;
    for _ in 0..5 {
        let until = Instant::now() + Duration::from_secs(29);
        let (_, _waiting) = queue.ask(Submission::default(), until, free).await.unwrap();
        let claim = claimed(&queue).await;
        clock.advance(Duration::from_secs(10));
        queue.work().settle(&claim.job, &Disposition::Succeed, AttemptReport::default()).await;
    }
    (queue, clock)
}

async fn claimed(queue: &Queue) -> Claim {
    queue.work().until_ready().await;
    let proposal = queue.work().propose(&Lanes::All).unwrap();
    queue.work().claim(proposal).await.unwrap().unwrap()
}

async fn ask(queue: &Queue, seconds: u64) -> (JobRecord, Option<Waiting>) {
    let until = Instant::now() + Duration::from_secs(seconds);
    let (accepted, waiting) = queue.ask(Submission::default(), until, free).await.unwrap();
    (accepted.record, waiting)
}

/// The outlook of a queued job while calls can be made at any rate.
fn outlook(queue: &Queue, job: &Job) -> Outlook {
    queue.outlook(job, &Kind::of(&JobRequest::default(), job.waited_for), free).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_wait_that_can_not_be_met_is_declined_at_the_submission() {
    let (queue, _) = queue_of_ten_seconds().await;
    assert!(ask(&queue, 9).await.1.is_none(), "an attempt takes ten seconds");
    let _running = claimed(&queue).await;
    let (first, holds) = ask(&queue, 29).await;
    assert!(holds.is_some() && first.job.waited_for, "ten for the running one, ten of its own");
    assert!(ask(&queue, 29).await.1.is_none(), "ten more");
    let hold = Hold { waiting_for: WaitingFor::Gate, opens_in: Some(Duration::from_secs(60)) };
    let closed = || Allowance { hold: Some(hold), ..free() };
    let until = Instant::now() + Duration::from_secs(29);
    assert!(queue.ask(Submission::default(), until, closed).await.unwrap().1.is_none(), "no call is made before that");
    let outlook = outlook(&queue, &first.job);
    assert_eq!((outlook.position, outlook.eta_seconds), (Some(1), Some(20)));
}

#[tokio::test(start_paused = true)]
async fn in_a_rush_the_estimate_of_other_jobs_counts_their_share_and_the_time_after_the_rush() {
    let (queue, _) = queue_of_ten_seconds().await;
    let ordinary = queue.enqueue(Submission::default()).await.unwrap().record.job;
    let _running = claimed(&queue).await;
    let second = queue.enqueue(Submission::default()).await.unwrap().record.job;
    let seconds = |job: &Job| outlook(&queue, job).eta_seconds.unwrap();
    assert_eq!(seconds(&second), 20, "ten for the running one, and its own");
    let (_, held) = ask(&queue, 29).await;
    let (declined, hold) = ask(&queue, 29).await;
    assert!(hold.is_none() && !ordinary.waited_for);
    assert_eq!(seconds(&second), 30, "the rush has only begun: after the client that is held");
    assert_eq!((seconds(&declined.job), outlook(&queue, &declined.job).position), (40, Some(3)));
    for _ in 0..10 {
        tokio::time::advance(Duration::from_secs(20)).await;
        queue.0.order.record_declined();
    }
    // The rush is likely to last 100 s more, which are ten claims. The running attempt may end at any moment.
    assert_eq!(seconds(&second), 50, "one claim in five is for such jobs");
    assert_eq!(
        seconds(&declined.job),
        120,
        "after ten claims, one of them for the second job, and the client that is held"
    );
    drop(held);
    assert_eq!(seconds(&second), 10, "the rush is over");
}

#[tokio::test(start_paused = true)]
async fn a_client_whose_answer_can_not_come_in_time_any_more_is_told_at_that_moment() {
    let (queue, _) = queue_of_ten_seconds().await;
    let (record, waiting) = ask(&queue, 29).await;
    let waiting = waiting.unwrap();
    let asked = Instant::now();
    let answer = queue.answer(&waiting).await.unwrap();
    assert_eq!(asked.elapsed().as_secs(), 20, "less than ten seconds are left");
    assert_eq!((answer.job.id, answer.job.status(queue.now())), (record.job.id, JobStatus::Queued));
    assert_eq!(queue.work().pick(queue.now(), &Lanes::All), Pick::First, "its job is an ordinary one now");
}

#[tokio::test(start_paused = true)]
async fn a_client_whose_answer_comes_too_slowly_is_told_long_before_the_end() {
    let clock = Clock::manual(Timestamp::from_millis(1_800_000_000_000));
    let policy = Policy { lease: Duration::from_hours(1), ..Policy::plain() };
    let queue = Queue::in_memory(&clock, &policy).await;
    let (_, waiting) = ask(&queue, 29).await;
    let running = claimed(&queue).await;
    let waiting = waiting.unwrap();
    let mut answer = Box::pin(queue.answer(&waiting));
    let asked = Instant::now();
    for _ in 0..28 {
        // Some 3,000 bytes are to come, and nobody knows that before there is some text.
        running.draft.push("twenty bytes of text");
        tokio::time::advance(Duration::from_secs(1)).await;
        if let std::task::Poll::Ready(record) = poll!(&mut answer) {
            assert!(
                record.unwrap().job.is_running() && asked.elapsed() < Duration::from_secs(5),
                "{:?}",
                asked.elapsed()
            );
            return;
        }
    }
    panic!("the client was held though its answer could not come in time");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_waits_is_answered_when_the_queue_is_paused_or_held_beyond_its_time() {
    let clock = Clock::manual(Timestamp::from_millis(1_800_000_000_000));
    let hold: Arc<parking_lot::Mutex<Option<Hold>>> = Arc::default();
    let allowance = {
        let hold = Arc::clone(&hold);
        Arc::new(move |_| Allowance { hold: *hold.lock(), ..free() })
    };
    let policy = Policy { allowance, ..Policy::plain() };
    let queue = Queue::in_memory(&clock, &policy).await;
    let close = |waiting_for, seconds: Option<u64>| {
        *hold.lock() = Some(Hold { waiting_for, opens_in: seconds.map(Duration::from_secs) });
    };
    let waits_for = |job: &Job| {
        let kind = Kind::of(&JobRequest::default(), true);
        queue.outlook(job, &kind, || (queue.0.policy.allowance)(job.model)).unwrap().waiting_for
    };
    for (reason, seconds) in [
        (WaitingFor::Gate, Some(60)),
        (WaitingFor::Gate, None),
        (WaitingFor::Budget, Some(3_600)),
        (WaitingFor::Paused, None),
    ] {
        let waiting = ask(&queue, 29).await.1.unwrap();
        let mut answer = Box::pin(queue.answer(&waiting));
        assert!(poll!(&mut answer).is_pending());
        if reason == WaitingFor::Paused {
            queue.operations().pause("ann").await.unwrap();
        } else {
            close(reason, seconds);
        }
        let closed_at = Instant::now();
        let job = answer.await.unwrap().job;
        assert!(closed_at.elapsed() <= CHANCE_POLL, "{reason:?} {seconds:?}");
        assert_eq!(waits_for(&job), reason);
        queue.operations().resume().await.unwrap();
        *hold.lock() = None;
    }
    let waiting = ask(&queue, 29).await.1.unwrap();
    close(WaitingFor::Gate, Some(5));
    let closed_at = Instant::now();
    queue.answer(&waiting).await.unwrap();
    assert!(closed_at.elapsed() > Duration::from_secs(10), "a gate that opens in time keeps the client");
}

#[tokio::test(start_paused = true)]
async fn a_memo_is_brief_where_a_client_waits_until_the_pace_shows_that_a_full_one_fits() {
    let clock = Clock::manual(Timestamp::from_millis(1_800_000_000_000));
    let policy = Policy { lease: Duration::from_hours(1), ..Policy::plain() };
    let queue = Queue::in_memory(&clock, &policy).await;
    let ordinary = queue.enqueue(Submission::default()).await.unwrap().record;
    assert_eq!(ordinary.request.depth, Depth::Full);
    answer(&queue, &claimed(&queue).await).await;
    for _ in 0..5 {
        let (record, waiting) = ask(&queue, 29).await;
        assert_eq!(record.request.depth, Depth::Brief);
        let claim = claimed(&queue).await;
        claim.draft.push("begins");
        clock.advance(Duration::from_secs(2));
        tokio::time::advance(Duration::from_secs(2)).await;
        // As quick as a small model: 1,500 bytes a second.
        claim.draft.push(&"x".repeat(3_000));
        answer(&queue, &claim).await;
        drop(waiting);
    }
    assert_eq!(ask(&queue, 29).await.0.request.depth, Depth::Full);
    assert_eq!(ask(&queue, 5).await.0.request.depth, Depth::Brief, "not within five seconds");
}

#[tokio::test(start_paused = true)]
async fn a_client_whose_job_is_running_is_held_to_the_end() {
    let (queue, _) = queue_of_ten_seconds().await;
    let (_, waiting) = ask(&queue, 29).await;
    let _running = claimed(&queue).await;
    let asked = Instant::now();
    let answer = queue.answer(&waiting.unwrap()).await.unwrap();
    assert_eq!((asked.elapsed().as_secs(), answer.job.is_running()), (29, true));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_waits_passes_those_that_do_not_until_it_hangs_up() {
    let (queue, _) = queue_of_ten_seconds().await;
    let ordinary = queue.enqueue(Submission::default()).await.unwrap().record.job;
    let (asked, waiting) = ask(&queue, 29).await;
    assert_eq!(queue.work().pick(queue.now(), &Lanes::All), Pick::Job(asked.job.id));
    queue.0.place(&asked.job, queue.now());
    let ahead = [&ordinary, &asked.job].map(|job| outlook(&queue, job).position);
    assert_eq!(ahead, [Some(2), Some(1)]);
    drop(waiting);
    assert_eq!(claimed(&queue).await.job.id, ordinary.id);
}

#[tokio::test(start_paused = true)]
async fn in_the_order_of_submission_nobody_passes_and_nobody_is_declined() {
    let clock = Clock::system();
    let policy = Policy { deadlines_first: false, ..Policy::plain() };
    let queue = Queue::in_memory(&clock, &policy).await;
    let first = queue.enqueue(Submission::default()).await.unwrap().record.job;
    let (_, waiting) = ask(&queue, 29).await;
    assert_eq!(claimed(&queue).await.job.id, first.id);
    let asked = Instant::now();
    queue.answer(&waiting.unwrap()).await.unwrap();
    assert_eq!(asked.elapsed().as_secs(), 29);
}

#[tokio::test]
async fn each_caller_has_its_own_bound_by_name_or_by_address() {
    let clock = Clock::system();
    let policy = Policy { max_pending_per_caller: 2, ..Policy::plain() };
    let queue = Queue::in_memory(&clock, &policy).await;
    let by = |caller: Option<&str>| Submission {
        request: JobRequest { caller: caller.map(str::to_owned), ..JobRequest::default() },
        idempotency_key: Some(format!("one of {caller:?}")),
        ..Submission::default()
    };
    let new = |caller| Submission { idempotency_key: None, ..by(caller) };
    let first = queue.enqueue(by(Some("ann"))).await.unwrap().record.job;
    let two = queue.enqueue_all(vec![new(Some("ann")), new(Some("ann"))], None).await;
    assert_eq!(two.unwrap_err(), QueueError::Refused(Refused::CallerFull { pending: 1, more: 2, limit: 2 }));
    queue.enqueue(new(Some("ann"))).await.unwrap();
    let refused = queue.enqueue(new(Some("ann"))).await.unwrap_err();
    assert_eq!(refused, QueueError::Refused(Refused::CallerFull { pending: 2, more: 1, limit: 2 }));
    assert!(refused.to_string().contains("the limit of one caller is"));
    assert!(queue.enqueue(by(Some("ann"))).await.unwrap().replayed, "a repeated request is no further job");
    queue.enqueue(new(Some("ben"))).await.unwrap();
    let from = |address: [u8; 4]| Submission { by: caller::unnamed(address.into()), ..new(None) };
    for _ in 0..2 {
        queue.enqueue(from([192, 0, 2, 1])).await.unwrap();
    }
    queue.enqueue(from([192, 0, 2, 1])).await.unwrap_err();
    queue.enqueue(from([192, 0, 2, 2])).await.unwrap();
    queue.cancel(first.id).await.unwrap();
    queue.enqueue(new(Some("ann"))).await.unwrap();
}

/// A queue that knows what is the same by the question's text alone, and gives answers again for a minute.
async fn sharing() -> (Queue, Clock) {
    let clock = Clock::manual(Timestamp::from_millis(1_800_000_000_000));
    let policy = Policy {
        dedup_key: Arc::new(|request, _, _| caller::named(&request.query)),
        cache_for: Duration::from_mins(1),
        lease: Duration::from_hours(1),
        ..Policy::plain()
    };
    (Queue::in_memory(&clock, &policy).await, clock)
}

fn question(query: &str) -> Submission {
    Submission { request: JobRequest { query: query.to_owned(), ..JobRequest::default() }, ..Submission::default() }
}

/// Settles a claim with a memo that has cost something.
async fn answer(queue: &Queue, claim: &Claim) {
    let report = AttemptReport {
        usage: Some(COST),
        result: serde_json::value::to_raw_value("the memo").ok(),
        ..AttemptReport::default()
    };
    queue.work().settle(&claim.job, &Disposition::Succeed, report).await;
}

#[tokio::test]
async fn an_answer_is_given_again_while_it_is_young_and_costs_nothing() {
    let (queue, clock) = sharing().await;
    let first = queue.enqueue(question("a")).await.unwrap().record.job;
    answer(&queue, &claimed(&queue).await).await;
    let finished_at = clock.now();
    clock.advance(Duration::from_millis(59_999));
    let mut told = question("a");
    told.request.callback_url = Some("https://example.com/".to_owned());
    told.idempotency_key = Some("k".to_owned());
    let again = queue.enqueue(told.clone()).await.unwrap();
    let (job, report) = (&again.record.job, &again.record.answer().unwrap().report);
    assert_eq!((job.state, job.finished_at), (JobState::Succeeded, Some(clock.now())));
    assert_eq!(report.cached, Some(Cached { job_id: first.id, finished_at }));
    assert_eq!((again.record.result().map(RawValue::get), report.usage), (Some("\"the memo\""), None));
    assert_eq!(queue.0.outbox.due(queue.now(), 9).await.unwrap()[0].job, job.id, "who wants to be told is told");
    let kept = queue.get(job.id).await.unwrap();
    assert_eq!((&kept.job, kept.attempts.len()), (job, 1));
    let replayed = queue.enqueue(told).await.unwrap();
    assert_eq!((replayed.replayed, replayed.record.job.id), (true, job.id));
    let (batch, _) = queue.enqueue_all(vec![question("a"), question("b")], None).await.unwrap();
    assert_eq!(
        batch.iter().map(|job| job.status(clock.now())).collect::<Vec<_>>(),
        ["succeeded", "queued"].map(|status| status.parse().unwrap())
    );
    assert_eq!((queue.operations().spent_today().calls, queue.0.metrics.answers_cached.get()), (1, 2));

    let own = queue.enqueue(Submission { wants_its_own: true, ..question("a") }).await.unwrap().record.job;
    let later = Submission { run_at: Some(clock.now().plus(Duration::from_millis(1))), ..question("a") };
    let later = queue.enqueue(later).await.unwrap().record.job;
    clock.advance(Duration::from_millis(1));
    let old = queue.enqueue(question("a")).await.unwrap().record.job;
    for job in [own, later, old] {
        assert!(
            !job.state.is_final(),
            "its own, for later, or when the answer is too old, however young its copies are"
        );
    }
}

#[tokio::test]
async fn a_job_that_is_imported_with_a_due_webhook_sends_the_message_of_its_next_end() {
    let (old, new) = (sharing().await.0, sharing().await.0);
    let mut told = question("a");
    told.request.callback_url = Some("https://example.com/".to_owned());
    let job = old.enqueue(told).await.unwrap().record.job;
    old.cancel(job.id).await.unwrap();
    let record = old.get(job.id).await.unwrap();
    assert!(record.delivery.as_ref().unwrap().next_at().is_some());
    assert_eq!(new.operations().import(vec![record], Vec::new()).await, Ok(1));
    let due = async || new.0.outbox.due(new.now(), 9).await.unwrap();
    assert!(due().await.is_empty(), "the old service sends it");
    new.requeue(job.id, caller::operator()).await.unwrap();
    answer(&new, &claimed(&new).await).await;
    assert_eq!(due().await[0].job, job.id);
    assert_eq!(new.get(job.id).await.unwrap().delivery.unwrap().number, 2, "under another id than the old service's");
}

#[tokio::test]
async fn an_answer_is_given_again_no_more_once_its_job_is_gone() {
    let (queue, clock) = sharing().await;
    let first = queue.enqueue(question("a")).await.unwrap().record.job;
    answer(&queue, &claimed(&queue).await).await;
    assert!(queue.enqueue(question("a")).await.unwrap().record.job.state.is_final());
    queue.0.store.remove(vec![first.id], clock.now()).await.unwrap();
    assert!(!queue.enqueue(question("a")).await.unwrap().record.job.state.is_final(), "its copy is no source");
}

#[tokio::test(start_paused = true)]
async fn a_client_whose_question_is_being_asked_is_held_for_that_answer_and_asks_itself_without_it() {
    let (queue, clock) = sharing().await;
    for n in 0..5 {
        let until = Instant::now() + Duration::from_secs(29);
        let (_, _waiting) = queue.ask(question(&format!("before {n}")), until, free).await.unwrap();
        let claim = claimed(&queue).await;
        clock.advance(Duration::from_secs(10));
        answer(&queue, &claim).await;
    }
    queue.enqueue(question("a")).await.unwrap();
    let first = claimed(&queue).await;
    let hold = async |query| {
        let until = Instant::now() + Duration::from_secs(9);
        let (accepted, waiting) = queue.ask(question(query), until, free).await.unwrap();
        (accepted.record.job, waiting)
    };
    assert!(hold("b").await.1.is_none(), "an attempt takes ten seconds");
    let (second, waiting) = hold("a").await;
    let waits = outlook(&queue, &second);
    assert_eq!((waits.position, waits.waiting_for), (None, WaitingFor::SameQuestion));
    assert_eq!(queue.work().pick(queue.now(), &Lanes::All), Pick::First, "it has no place of its own");
    let waiting = waiting.unwrap();
    let mut answered = Box::pin(queue.answer(&waiting));
    assert!(poll!(&mut answered).is_pending(), "the answer may come in time");

    queue.work().settle(&first.job, &Disposition::released(FailureCode::RateLimited), AttemptReport::default()).await;
    assert!(outlook(&queue, &second).waiting_for != WaitingFor::SameQuestion);
    let again = claimed(&queue).await;
    assert_eq!(again.job.id, first.job.id, "its client could not be answered in time any more");
    answer(&queue, &again).await;
    let record = answered.await.unwrap();
    assert_eq!(record.job.id, second.id);
    assert!(record.answer().is_none_or(|attempt| attempt.report.shared_with == Some(first.job.id)));
    assert_eq!(queue.get(second.id).await.unwrap().answer().unwrap().report.shared_with, Some(first.job.id));
    assert_eq!(queue.0.metrics.answers_shared.get(), 1);
}

#[tokio::test]
async fn of_the_same_questions_one_is_handed_over_and_the_others_leave_their_workers_free() {
    let (queue, _) = sharing().await;
    let standby = OnStandby::at(&queue, true);
    let same = join_all((0..4).map(|_| queue.enqueue(question("a")))).await;
    let same: Vec<Job> = same.into_iter().map(|accepted| accepted.unwrap().record.job).collect();
    assert_eq!(same.iter().filter(|job| job.is_running()).count(), 1, "{same:?}");
    let other = queue.enqueue(question("b")).await.unwrap().record.job;
    let mut claims = standby.take();
    assert_eq!(claims.len(), 2);
    claims.sort_by_key(|claim| claim.job.id == other.id);
    assert_eq!(claims[1].job.id, other.id);
    answer(&queue, &claims[0]).await;
    for job in same {
        assert_eq!(queue.find(job.id).await.unwrap().state, JobState::Succeeded);
    }
    assert_eq!(queue.0.metrics.answers_shared.get(), 3);
}

#[tokio::test]
async fn attempts_end_whose_node_is_lost_or_started_again_and_no_others() {
    let (clock, store) = (Clock::manual(Timestamp::from_millis(1_800_000_000_000)), Arc::new(MemoryStore::default()));
    let (live, owner) = (Live::default(), |node: &str, incarnation| Owner::new(node, incarnation));
    let start = async |owner| {
        let policy = Policy { nodes: Arc::new(OneOfMany::new(owner, &live)), lease: LEASE, ..Policy::plain() };
        Queue::over(store.clone(), &clock, &policy, &Metrics::new()).await
    };
    let (first, second) = (start(owner("a", 1)).await, start(owner("b", 1)).await);
    let ids = [0, 1].map(|_| async { first.enqueue(Submission::default()).await.unwrap().record.job.id });
    let ids = join_all(ids).await;
    let (lost, kept) = (claimed(&first).await, claimed(&second).await);
    assert_eq!([lost.job.id, kept.job.id], ids[..], "two nodes share the jobs of one store");
    drop(first);
    assert_eq!(second.work().end_lost().await, Ok(0), "it may come back");
    live.lock().retain(|other| *other != owner("a", 1));
    let again = start(owner("a", 2)).await;
    assert_eq!(again.work().end_lost().await, Ok(1));
    assert_eq!(again.find(lost.job.id).await.unwrap().state, JobState::Failed { code: FailureCode::OutcomeUnknown });
    assert!(lost.lost.is_cancelled() && !kept.lost.is_cancelled());

    clock.advance(LEASE * 10);
    assert_eq!(again.work().end_lost().await, Ok(0));
    answer(&second, &kept).await;
    assert_eq!(again.find(kept.job.id).await.unwrap().state, JobState::Succeeded, "the other node's attempt lived on");
}

#[tokio::test]
async fn a_job_that_was_stored_while_its_answer_was_gets_it_without_a_call() {
    let clock = Clock::system();
    let policy = Policy { dedup_key: Arc::new(|_, _, _| NonZeroU64::new(7)), ..Policy::plain() };
    let queue = Queue::in_memory(&clock, &policy).await;
    let [first, second] = [0, 1].map(|_| queue.enqueue(Submission::default()));
    let (first, second) = (first.await.unwrap().record.job.id, second.await.unwrap().record.job.id);
    let claim = claimed(&queue).await;
    assert_eq!(claim.job.id, first);
    let result = serde_json::value::to_raw_value("the memo").ok();
    let report = Arc::new(AttemptReport { result, ..AttemptReport::default() });
    // The store was told of no follower.
    queue.0.store.succeed(first, 1, report, Vec::new(), clock.now()).await.unwrap();
    let proposal = queue.work().propose(&Lanes::All).unwrap();
    assert!(queue.work().claim(proposal).await.unwrap().is_none());
    let record = queue.get(second).await.unwrap();
    assert_eq!((record.job.state, record.answer().unwrap().outcome), (JobState::Succeeded, AttemptOutcome::Shared));
}
