//! Overload in virtual time: the real queue, with answers that take as long as brief memos do. A claim or a commit takes
//! no time here, so the figures are those of the order and the estimates alone.

#![allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "some thousands")]

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap},
};

use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::*;

const WORKERS: usize = 10;

/// How long questions come.
const LOAD_MS: u64 = 120_000;

/// How long a client is held.
const HOLD: Duration = Duration::from_secs(29);

/// The mean time of an answer, and the longest.
const MEAN_MS: f64 = 10_400.0;
const LONGEST_MS: u64 = 12_250;

/// How long the answer to a question takes.
fn takes_ms(random: &mut StdRng) -> u64 {
    let (thought, length): (f64, f64) = (random.random(), random.random());
    (1_200.0 + 1_000.0 * thought * thought + (700.0 + 200.0 * length) / 90.0 * 1_000.0) as u64
}

/// What happens at a moment.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Asked(usize),
    Ends(JobId),
}

#[derive(Default)]
struct Seen {
    answered: usize,
    /// Clients that were held in vain.
    held_in_vain: usize,
    /// How far each estimate was off, as a part of the time that it took.
    eta_errors: Vec<f64>,
}

/// Questions at random moments, so many times as fast as they can be answered.
fn questions(load: f64, random: &mut StdRng) -> Vec<(u64, u64)> {
    let (mut at, mut questions) = (0.0, Vec::new());
    loop {
        at += -(1.0 - random.random::<f64>()).ln() * MEAN_MS / WORKERS as f64 / load;
        if at >= LOAD_MS as f64 {
            return questions;
        }
        questions.push((at as u64, takes_ms(random)));
    }
}

/// How many could be answered in time without an idle worker and without a call in vain, in the order of submission.
fn possible(questions: &[(u64, u64)]) -> usize {
    let hold = HOLD.as_millis() as u64;
    let mut free: BinaryHeap<Reverse<u64>> = (0..WORKERS).map(|_| Reverse(0)).collect();
    let (mut next, mut answered) = (0, 0);
    while let (Some(Reverse(now)), Some(&(at, takes))) = (free.pop(), questions.get(next)) {
        next += 1;
        let begin = now.max(at);
        let is_in_time = begin + LONGEST_MS <= at + hold;
        answered += usize::from(is_in_time);
        free.push(Reverse(if is_in_time { begin + takes } else { now }));
    }
    answered
}

/// Puts the load on a queue, and waits until all jobs have ended.
async fn run(questions: &[(u64, u64)]) -> Seen {
    let folder = folder();
    let (clock, metrics) = (Clock::manual(Timestamp::from_millis(1_800_000_000_000)), Metrics::new());
    let policy = Policy { workers: WORKERS, lease: Duration::from_hours(1), ..Policy::plain() };
    let config = SledConfig { path: folder.path().to_owned(), cache_bytes: 16 << 20, keep_answers: false };
    let store = FaultStore::over(SledStore::open(config, clock.clone(), metrics.clone()).unwrap());
    let queue = Queue::over(Arc::new(store), &clock, &policy, &metrics).await;
    let mut events: BinaryHeap<Reverse<(u64, Event)>> =
        (0..).zip(questions).map(|(n, (at, _))| Reverse((*at, Event::Asked(n)))).collect();
    let (mut times, mut waiting, mut told) = (HashMap::new(), HashMap::new(), HashMap::new());
    let (mut running, mut seen, mut now) = (HashMap::<JobId, Claim>::new(), Seen::default(), 0);
    while let Some(Reverse((at, event))) = events.pop() {
        clock.advance(Duration::from_millis(at - now));
        tokio::time::advance(Duration::from_millis(at - now)).await;
        now = at;
        match event {
            Event::Asked(n) => {
                let (accepted, hold) = queue.ask(Submission::default(), Instant::now() + HOLD, free).await.unwrap();
                let job = accepted.record.job;
                times.insert(job.id, questions[n].1);
                match hold {
                    Some(hold) => drop(waiting.insert(job.id, hold)),
                    None => drop(told.insert(job.id, (now, outlook(&queue, &job).eta_seconds.unwrap()))),
                }
            }
            Event::Ends(id) => {
                let claim = running.remove(&id).unwrap();
                answer(&queue, &claim).await;
                let is_in_time = waiting.remove(&id).is_some_and(|hold: Waiting| Instant::now() <= hold.until());
                seen.answered += usize::from(is_in_time);
                if let Some((told_at, eta)) = told.remove(&id) {
                    let took = (now - told_at) as f64 / 1_000.0;
                    seen.eta_errors.push((eta as f64 - took).abs() / took);
                }
            }
        }
        while running.len() < WORKERS && queue.0.board.ready(None) > 0 {
            let claim = claimed(&queue).await;
            let id = claim.job.id;
            events.push(Reverse((now + times[&id], Event::Ends(id))));
            running.insert(id, claim);
        }
        for (id, _) in waiting.extract_if(|_, hold| hold.is_demoted()) {
            seen.held_in_vain += 1;
            told.insert(id, (now, outlook(&queue, &queue.find(id).await.unwrap()).eta_seconds.unwrap()));
        }
    }
    assert!(waiting.is_empty() && told.is_empty() && running.is_empty());
    seen.eta_errors.sort_unstable_by(f64::total_cmp);
    seen
}

/// The share of what is possible that is answered in time, and the median error of the estimates.
async fn measure(load: f64) -> (f64, f64) {
    let questions = questions(load, &mut StdRng::seed_from_u64(1));
    let seen = run(&questions).await;
    let median = seen.eta_errors.get(seen.eta_errors.len() / 2).copied().unwrap_or_default();
    assert!(seen.held_in_vain * 20 < questions.len(), "{} held in vain", seen.held_in_vain);
    (seen.answered as f64 / possible(&questions) as f64, median)
}

#[tokio::test(start_paused = true)]
async fn below_the_capacity_every_client_is_answered_in_time() {
    assert_eq!(measure(0.5).await.0, 1.0);
}

#[tokio::test(start_paused = true)]
async fn at_three_times_the_capacity_nearly_all_that_can_be_are_answered_in_time_and_estimates_hold() {
    let (share, error) = measure(3.0).await;
    assert!(share >= 0.95 && error <= 0.25, "{share} {error}");
}

#[tokio::test(start_paused = true)]
async fn at_ten_times_the_capacity_nearly_all_that_can_be_are_answered_in_time_and_estimates_hold() {
    let (share, error) = measure(10.0).await;
    assert!(share >= 0.9 && error <= 0.25, "{share} {error}");
}
