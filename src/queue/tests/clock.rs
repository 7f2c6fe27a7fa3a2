//! Jumps of the wall clock, while the service runs and across a restart, with jobs in every state.

use super::*;
use crate::job::delivery::DeliveryState;

const HOUR: Duration = Duration::from_hours(1);
const MONTH: Duration = Duration::from_hours(24 * 31);
const BACKOFF: Duration = Duration::from_secs(30);
const KEY: &str = "key";

#[derive(Clone, Copy, Debug)]
enum Jump {
    Forward(Duration),
    Back(Duration),
}

const JUMPS: [Jump; 4] = [Jump::Forward(HOUR), Jump::Forward(MONTH), Jump::Back(HOUR), Jump::Back(MONTH)];

impl Jump {
    fn make(self, clock: &Clock) {
        match self {
            Jump::Forward(by) => clock.set_forward(by),
            Jump::Back(by) => clock.set_back(by),
        }
    }

    fn undo(self, clock: &Clock) {
        match self {
            Jump::Forward(by) => clock.set_back(by),
            Jump::Back(by) => clock.set_forward(by),
        }
    }
}

/// A service with a job in each state.
struct Jobs {
    folder: TempDir,
    clock: Clock,
    policy: Policy,
    queue: Queue,
    finished: JobId,
    queued: JobId,
    /// Its client asked for it to run in an hour.
    timed: JobId,
    /// It waits for its next attempt.
    retried: JobId,
    running: Claim,
    /// It asks the same as the running one.
    blocked: JobId,
    /// Claims that are at work.
    claims: Vec<Claim>,
}

fn about(context: &str) -> Submission {
    let request = JobRequest { context: Some(context.to_owned()), ..JobRequest::default() };
    Submission { request, ..Submission::default() }
}

impl Jobs {
    async fn new() -> Jobs {
        let policy = Policy {
            retries: RetryBounds { other: 3, overload: 3, ..Policy::plain().retries },
            retry_unknown_outcome: true,
            keep_finished_for: Duration::from_hours(24 * 30),
            idempotency_window: IdempotencyKey::WINDOW,
            lease: LEASE,
            dedup_key: Arc::new(|request, _, _| asked(request)),
            ..Policy::plain()
        };
        let (folder, metrics) = (folder(), Metrics::new());
        let clock = Clock::manual(Timestamp::from_millis(1_800_000_000_000));
        let queue = Queue::over(open(folder.path(), &clock, &metrics), &clock, &policy, &metrics).await;
        let ask = async |submission| queue.enqueue(submission).await.unwrap().record.job.id;
        let finished = ask(finished()).await;
        answer(&queue, &claimed(&queue).await).await;
        let retried = ask(about("retried")).await;
        let claim = claimed(&queue).await;
        let again =
            Disposition::Retry { code: FailureCode::Overloaded, class: FailureClass::Overload, after: Some(BACKOFF) };
        queue.work().settle(&claim.job, &again, AttemptReport::default()).await;
        drop(claim);
        ask(about("running")).await;
        let running = claimed(&queue).await;
        let blocked = ask(about("running")).await;
        let timed = ask(Submission { run_at: Some(clock.wall().plus(HOUR)), ..about("timed") }).await;
        let queued = ask(about("queued")).await;
        Jobs { folder, clock, policy, queue, finished, queued, timed, retried, running, blocked, claims: Vec::new() }
    }

    async fn restart(&mut self) {
        self.queue.0.store.close().await;
        self.clock = self.clock.restarted();
        let metrics = Metrics::new();
        let store = open(self.folder.path(), &self.clock, &metrics);
        self.queue = Queue::over(store, &self.clock, &self.policy, &metrics).await;
        self.queue.work().end_lost().await.unwrap();
    }

    /// Has time pass, with the sweeper at work every second.
    async fn pass(&self, time: Duration) {
        for _ in 0..time.as_secs() {
            self.clock.advance(Duration::from_secs(1));
            while self.queue.work().sweep().await.unwrap() {}
        }
    }

    async fn status(&self, id: JobId) -> JobStatus {
        self.queue.find(id).await.unwrap().status(self.queue.now())
    }

    /// Claims all jobs that a worker can claim now. Gives their ids, in order.
    async fn claim_all(&mut self) -> Vec<JobId> {
        let before = self.claims.len();
        while let Some(proposal) = self.queue.work().propose(&Lanes::All) {
            self.claims.extend(self.queue.work().claim(proposal).await.unwrap());
        }
        self.claims[before..].iter().map(|claim| claim.job.id).collect()
    }

    /// What was finished is there, its key is in force, and its message is due.
    async fn assert_kept(&self, what: &str) {
        let record = self.queue.get(self.finished).await.unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!(record.job.state, JobState::Succeeded);
        assert!(matches!(record.delivery.unwrap().state, DeliveryState::Pending { .. }), "{what}");
        let due: Vec<_> =
            self.queue.0.outbox.due(self.queue.now(), 9).await.unwrap().into_iter().map(|due| due.job).collect();
        assert_eq!(due, [self.finished], "{what}");
        let again = self.queue.enqueue(finished()).await.unwrap();
        assert_eq!((again.replayed, again.record.job.id), (true, self.finished), "{what}");
    }
}

fn finished() -> Submission {
    let mut submission = Submission { idempotency_key: Some(KEY.to_owned()), ..about("finished") };
    submission.request.callback_url = Some("https://example.com/hook".to_owned());
    submission
}

#[tokio::test]
async fn a_jump_of_the_clock_while_the_service_runs_moves_no_job() {
    for jump in JUMPS {
        let what = format!("{jump:?}");
        let mut jobs = Jobs::new().await;
        jump.make(&jobs.clock);
        jobs.pass(Duration::from_secs(5)).await;
        jobs.assert_kept(&what).await;
        assert_eq!(jobs.claim_all().await, [jobs.queued], "{what}: neither the timed, the retried nor the blocked one");
        jump.undo(&jobs.clock);
        jobs.pass(Duration::from_secs(5)).await;
        jobs.assert_kept(&what).await;
        assert!(!jobs.running.lost.is_cancelled(), "{what}");
        assert_eq!(jobs.status(jobs.running.job.id).await, JobStatus::Running);
        assert_eq!(jobs.status(jobs.blocked).await, JobStatus::Queued);
        assert_eq!(
            (jobs.status(jobs.timed).await, jobs.status(jobs.retried).await),
            (JobStatus::Scheduled, JobStatus::Scheduled)
        );
        jobs.pass(BACKOFF).await;
        assert_eq!(jobs.claim_all().await, [jobs.retried], "{what}: its backoff is over");
        jobs.clock.advance(HOUR);
        jobs.queue.work().sweep().await.unwrap();
        assert!(jobs.claim_all().await.contains(&jobs.timed), "{what}");
        answer(&jobs.queue, &jobs.running).await;
        assert_eq!(jobs.status(jobs.blocked).await, JobStatus::Succeeded, "{what}: it shares the answer");
    }
}

#[tokio::test]
async fn a_clock_that_jumps_across_a_restart_and_is_put_right_deletes_nothing_and_holds_up_no_job() {
    for jump in JUMPS {
        let what = format!("{jump:?}");
        let mut jobs = Jobs::new().await;
        jump.make(&jobs.clock);
        jobs.restart().await;
        jobs.pass(Duration::from_secs(5)).await;
        jobs.assert_kept(&what).await;
        let accepted = jobs.queue.enqueue(about("accepted while the clock was wrong")).await.unwrap().record.job.id;
        jump.undo(&jobs.clock);
        for _ in 0..2 {
            jobs.pass(BACKOFF).await;
            jobs.assert_kept(&what).await;
            jobs.restart().await;
        }
        let claimed = jobs.claim_all().await;
        for id in [jobs.queued, jobs.retried, jobs.running.job.id, accepted] {
            assert!(claimed.contains(&id), "{what}: {:?} is not claimed", jobs.queue.find(id).await);
        }
        // An hour on, the retention would believe the clock.
        jobs.pass(2 * HOUR).await;
        jobs.restart().await;
        jobs.pass(2 * HOUR).await;
        assert!(jobs.queue.get(jobs.finished).await.is_ok(), "{what}");
    }
}

#[tokio::test]
async fn a_client_that_names_a_time_gets_it_by_the_wall_clock() {
    for back in [HOUR, MONTH] {
        let mut jobs = Jobs::new().await;
        jobs.clock.set_back(back);
        jobs.pass(Duration::from_secs(5)).await;
        jobs.claim_all().await;
        let run_at = jobs.queue.find(jobs.timed).await.unwrap().due_at;
        jobs.clock.advance(run_at.since(jobs.clock.wall()) - Duration::from_secs(10));
        jobs.queue.work().sweep().await.unwrap();
        assert!(!jobs.claim_all().await.contains(&jobs.timed), "the wall clock shows {}", jobs.clock.wall());
        jobs.clock.advance(Duration::from_secs(10));
        jobs.queue.work().sweep().await.unwrap();
        assert!(jobs.claim_all().await.contains(&jobs.timed), "the wall clock shows {}", jobs.clock.wall());
    }
}

#[tokio::test]
async fn a_clock_that_was_ahead_does_not_have_each_new_memo_removed() {
    let mut jobs = Jobs::new().await;
    jobs.policy.max_finished = 3;
    jobs.clock.set_forward(MONTH);
    jobs.restart().await;
    let finish = async |jobs: &Jobs| {
        let id = jobs.queue.enqueue(Submission::default()).await.unwrap().record.job.id;
        loop {
            let claim = claimed(&jobs.queue).await;
            answer(&jobs.queue, &claim).await;
            if claim.job.id == id {
                return id;
            }
        }
    };
    for _ in 0..4 {
        finish(&jobs).await;
        jobs.pass(Duration::from_secs(1)).await;
    }
    jobs.clock.set_back(MONTH);
    jobs.restart().await;
    let newest = finish(&jobs).await;
    jobs.pass(Duration::from_secs(5)).await;
    assert!(jobs.queue.get(newest).await.is_ok());
    let counts = jobs.queue.counts();
    assert_eq!(counts.succeeded + counts.failed + counts.cancelled, 3);
}

#[tokio::test]
async fn what_the_service_has_measured_is_removed_by_age_also_after_a_restart() {
    let mut jobs = Jobs::new().await;
    let cancelled = jobs.queue.cancel(jobs.queued).await.unwrap().job.id;
    jobs.clock.advance(MONTH);
    jobs.restart().await;
    jobs.pass(Duration::from_secs(5)).await;
    assert!(jobs.queue.get(cancelled).await.is_ok(), "only the wall clock says that a month has passed");
    jobs.pass(crate::clock::PROOF).await;
    assert_eq!(jobs.queue.get(cancelled).await.unwrap_err(), QueueError::NotFound(cancelled));
}
