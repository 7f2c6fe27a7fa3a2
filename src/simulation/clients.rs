//! Clients of all nodes: they submit, wait, cancel, retry and read, and repeat what was not answered on another node.

use std::{sync::Arc, time::Duration};

use rand::{RngExt, rngs::StdRng};
use tokio::time::{Instant, sleep};

use super::{
    journal::{GREEDY, Journal},
    machine::{Machine, SHARED, World},
};
use crate::{
    job::{JobId, JobRequest, caller},
    queue::{Allowance, Queue, QueueError, Submission},
};

/// Jobs of one greedy caller that wait at least, and all that it ever submits.
const GREEDY_BATCH: usize = 5;
const GREEDY_JOBS: usize = 30;

pub(super) struct Client {
    pub(super) world: Arc<World>,
    pub(super) machines: Vec<Arc<Machine>>,
    pub(super) random: StdRng,
    pub(super) name: String,
    pub(super) until: Instant,
}

impl Client {
    fn journal(&self) -> &Journal {
        &self.world.database.journal
    }

    fn machine(&mut self) -> Arc<Machine> {
        Arc::clone(&self.machines[self.random.random_range(0..self.machines.len())])
    }

    /// One of the acknowledged jobs.
    fn any_job(&mut self) -> Option<JobId> {
        let jobs = self.journal().acknowledged_jobs();
        (!jobs.is_empty()).then(|| jobs[self.random.random_range(0..jobs.len())])
    }

    /// Does one thing after the other.
    pub(super) async fn run(mut self) {
        let mut number = 0;
        while Instant::now() < self.until {
            number += 1;
            match self.random.random_range(0..100) {
                0..55 => self.submit(number).await,
                55..65 => self.cancel().await,
                65..75 => self.requeue().await,
                _ => self.read().await,
            }
            sleep(Duration::from_millis(self.random.random_range(50..3_000))).await;
        }
    }

    /// Always has jobs that wait.
    pub(super) async fn run_greedy(mut self, place: usize) {
        let caller = caller::named(GREEDY[place]);
        let mut submitted = 0;
        while Instant::now() < self.until && submitted < GREEDY_JOBS {
            let (pending, _, _) = self.world.database.feed.all();
            let own = pending.iter().filter(|job| job.caller == caller && !job.is_running()).count();
            if own < GREEDY_BATCH {
                let submissions: Vec<Submission> =
                    (0..GREEDY_BATCH).map(|n| self.submission(&format!("{submitted}-{n}"), GREEDY[place])).collect();
                let machine = self.machine();
                let accepted = machine.request(|queue| async move { queue.enqueue_all(submissions, None).await });
                if let Some(Ok((jobs, _))) = accepted.await {
                    jobs.iter().for_each(|job| self.journal().acknowledged(None, job.id));
                }
                submitted += GREEDY_BATCH;
            }
            sleep(Duration::from_millis(self.random.random_range(100..600))).await;
        }
    }

    fn submission(&mut self, question: &str, caller: &str) -> Submission {
        let request = JobRequest {
            query: question.to_owned(),
            caller: Some(caller.to_owned()),
            request_id: Some(format!("{}-{}", self.name, self.random.random::<u64>())),
            ..JobRequest::default()
        };
        Submission { request, ..Submission::default() }
    }

    async fn submit(&mut self, number: usize) {
        let is_shared = self.random.random_bool(0.5);
        let question = match is_shared {
            true => format!("{SHARED} {}", self.random.random_range(0..3)),
            false => format!("{}-{number}", self.name),
        };
        let caller = format!("client {}", self.random.random_range(0..3));
        let mut submission = self.submission(&question, &caller);
        submission.deadline = self.random.random_bool(0.1).then(|| Duration::from_secs(20));
        if self.random.random_bool(0.05) {
            // Longer than the simulation lasts.
            submission.run_at = Some(self.machines[0].clock.wall().plus(Duration::from_hours(24 * 300)));
        }
        let key = format!("{}-{number}", self.name);
        submission.idempotency_key = self.random.random_bool(0.5).then(|| key.clone());
        let waits = self.random.random_bool(0.3);
        for _ in 0..4 {
            submission.request.request_id = Some(format!("{key}-{}", self.random.random::<u64>()));
            let again = submission.clone();
            let hold = Duration::from_secs(self.random.random_range(1..29));
            let machine = self.machine();
            let accepted = if waits {
                machine.request(move |queue| ask(queue, again, Instant::now() + hold)).await
            } else {
                machine.request(|queue| async move { Ok(queue.enqueue(again).await?.record) }).await
            };
            if let Some(Ok(record)) = &accepted {
                self.journal().acknowledged(submission.idempotency_key.as_deref(), record.job.id);
                self.journal().told(&record.job);
            }
            let is_over = matches!(accepted, Some(Ok(_))) && self.random.random_bool(0.8);
            if is_over || submission.idempotency_key.is_none() {
                return;
            }
            sleep(Duration::from_millis(self.random.random_range(10..1_000))).await;
        }
    }

    async fn cancel(&mut self) {
        let Some(id) = self.any_job() else { return };
        let machine = self.machine();
        let cancelled = machine.request(|queue| async move { queue.cancel(id).await });
        if let Some(Ok(record)) = cancelled.await {
            self.journal().told(&record.job);
        }
    }

    async fn requeue(&mut self) {
        let Some(id) = self.any_job() else { return };
        self.journal().requeues(id);
        self.machine().request(|queue| async move { queue.requeue(id, None).await }).await;
    }

    async fn read(&mut self) {
        let Some(id) = self.any_job() else { return };
        let hold = Duration::from_secs(self.random.random_range(0..20));
        let machine = self.machine();
        let read = machine.request(|queue| async move { queue.wait(id, Instant::now() + hold).await });
        match read.await {
            Some(Ok(record)) => self.journal().told(&record.job),
            Some(Err(QueueError::NotFound(_))) => {
                self.journal().violated(format!("{id} was acknowledged, and not found"));
            }
            _ => {}
        }
    }
}

/// Submits and waits for the answer.
async fn ask(queue: Queue, submission: Submission, until: Instant) -> Result<crate::job::JobRecord, QueueError> {
    let allowance = || Allowance { calls_per_second: 1.0, calls_at_once: 8, is_exhausted: false, hold: None };
    let (accepted, waiting) = queue.ask(submission, until, allowance).await?;
    match waiting {
        Some(waiting) => queue.answer(&waiting).await,
        None => Ok(accepted.record),
    }
}
