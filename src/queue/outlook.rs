//! Why a job waits, how many go before it, and when its answer may come: told from live figures, so an estimate.

use std::time::Duration;

use serde::Serialize;
use utoipa::ToSchema;

use crate::{
    clock::Timestamp,
    job::{Job, JobState},
};

/// Position and estimate of a waiting job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Outlook {
    /// Its place among the jobs that are ready; the next one has place 1. Absent while the job is scheduled.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub position: Option<usize>,
    /// Estimated seconds until the answer. Absent if there is no estimate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eta_seconds: Option<u64>,
    /// What the job waits for.
    pub waiting_for: WaitingFor,
}

/// What a job waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema, strum::EnumIter)]
#[serde(rename_all = "snake_case")]
pub enum WaitingFor {
    /// A free worker, and the jobs before it.
    Worker,
    /// The account's rate of calls.
    RateLimit,
    /// The gate: Claude turns every call away at the moment; `/health/ready` tells why.
    Gate,
    /// The daily budget: it is used up; `/api/v1/admin/usage` tells.
    Budget,
    /// The time it was scheduled for.
    RunAt,
    /// The pause before it is tried again.
    Retry,
    /// An operator, who has paused the queue.
    Paused,
    /// The answer of another job that asks the same and is running.
    SameQuestion,
}

/// What the limits on calls allow at the moment.
#[derive(Clone, Copy, Debug)]
pub struct Allowance {
    /// Calls a second.
    pub calls_per_second: f64,
    /// Calls at one time.
    pub calls_at_once: usize,
    /// A limit keeps a worker from the job that it has in view.
    pub is_exhausted: bool,
    /// What keeps every job from running, if something does.
    pub hold: Option<Hold>,
}

/// Something that holds the whole queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hold {
    /// What.
    pub waiting_for: WaitingFor,
    /// How long it will; none if only a person can end it, so that nobody can tell.
    pub opens_in: Option<Duration>,
}

/// The figures that an estimate is made from.
#[derive(Clone, Debug)]
pub(super) struct Figures {
    /// Ready jobs that go before this one as things stand.
    pub(super) place: usize,
    /// Jobs that are likely to be claimed before it, including jobs to come.
    pub(super) ahead: usize,
    /// How long each attempt under way is likely to take from now, including those that were claimed ahead.
    pub(super) running: Vec<Duration>,
    /// Calls that can be under way.
    pub(super) workers: usize,
    /// How long a call lasts on average.
    pub(super) service_time: Duration,
    /// How long the call of this job is likely to last.
    pub(super) own_time: Duration,
    /// No job is claimed until an operator says so.
    pub(super) is_paused: bool,
}

/// The outlook of a queued job; none for any other.
pub(super) fn outlook(job: &Job, figures: &Figures, allowance: Allowance, now: Timestamp) -> Option<Outlook> {
    let JobState::Queued { run_at } = job.state else { return None };
    let Figures { place, own_time, is_paused, .. } = *figures;
    if is_paused {
        let position = (run_at <= now).then_some(place + 1);
        return Some(Outlook { position, eta_seconds: None, waiting_for: WaitingFor::Paused });
    }
    let starts_in = start_in(figures, allowance);
    if run_at > now {
        let waiting_for = match allowance.hold {
            _ if job.attempt == 0 => WaitingFor::RunAt,
            // It was released until the next probe.
            Some(hold) => hold.waiting_for,
            None => WaitingFor::Retry,
        };
        let eta_seconds = starts_in.map(|_| (run_at.since(now) + own_time).as_secs());
        return Some(Outlook { position: None, eta_seconds, waiting_for });
    }
    let (worker, rate) = (until_a_worker_is_free(figures, allowance), until_its_call(figures, allowance));
    let waiting_for = match allowance.hold {
        Some(hold) => hold.waiting_for,
        None if allowance.is_exhausted || rate > worker => WaitingFor::RateLimit,
        None => WaitingFor::Worker,
    };
    let eta_seconds = starts_in.map(|start| start.saturating_add(own_time).as_secs());
    Some(Outlook { position: Some(place + 1), eta_seconds, waiting_for })
}

/// The outlook of a job that waits for the answer of another, which comes within the time that one takes.
pub(super) fn behind_the_same(service_time: Duration) -> Outlook {
    Outlook { position: None, eta_seconds: Some(service_time.as_secs()), waiting_for: WaitingFor::SameQuestion }
}

/// How long it takes until a job with so many before it starts. `None` if that can't be known.
pub(super) fn start_in(figures: &Figures, allowance: Allowance) -> Option<Duration> {
    let start = until_a_worker_is_free(figures, allowance).max(until_its_call(figures, allowance));
    let held = allowance.hold.map_or(Some(Duration::ZERO), |hold| hold.opens_in)?;
    Some(held.saturating_add(start))
}

/// How long the rate of calls needs for the jobs before it.
fn until_its_call(figures: &Figures, allowance: Allowance) -> Duration {
    Duration::try_from_secs_f64(figures.ahead as f64 / allowance.calls_per_second).unwrap_or(Duration::MAX)
}

/// Workers become free as their attempts end, and then in the same order after each service time.
fn until_a_worker_is_free(figures: &Figures, allowance: Allowance) -> Duration {
    let Figures { ahead, ref running, workers, service_time, .. } = *figures;
    let workers = workers.min(allowance.calls_at_once).max(1);
    let mut free = running.clone();
    free.resize(workers.max(free.len()), Duration::ZERO);
    free.sort_unstable();
    // More attempts than workers: the others were claimed ahead, or their results are being stored.
    let turn = ahead + free.len() - workers;
    let rounds = u32::try_from(turn / workers).unwrap_or(u32::MAX);
    free[turn % workers].saturating_add(service_time.saturating_mul(rounds))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::{JobId, Priority};

    const FREE: Allowance = Allowance { calls_per_second: 100.0, calls_at_once: 100, is_exhausted: false, hold: None };

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_millis(1_800_000_000_000 + seconds * 1000)
    }

    fn queued(run_at: Timestamp, attempt: u32) -> Job {
        let mut job = Job::new(JobId::nil(), Priority::Normal, at(0));
        (job.state, job.attempt) = (JobState::Queued { run_at }, attempt);
        job
    }

    /// Of four workers, with attempts under way that end after these seconds.
    fn figures(ahead: usize, running: &[u64]) -> Figures {
        let service_time = Duration::from_secs(10);
        let running = running.iter().copied().map(Duration::from_secs).collect();
        Figures { place: ahead, ahead, running, workers: 4, service_time, own_time: service_time, is_paused: false }
    }

    /// Position, seconds and reason of a job that is ready.
    fn ready(ahead: usize, running: &[u64], allowance: Allowance) -> (Option<usize>, u64, WaitingFor) {
        let outlook = outlook(&queued(at(0), 0), &figures(ahead, running), allowance, at(0)).unwrap();
        (outlook.position, outlook.eta_seconds.unwrap(), outlook.waiting_for)
    }

    #[test]
    fn a_job_waits_for_its_turn_and_then_for_its_own_attempt() {
        assert_eq!(ready(0, &[9, 9, 9], FREE), (Some(1), 10, WaitingFor::Worker), "a worker is free");
        assert_eq!(ready(0, &[9, 2, 5, 7], FREE), (Some(1), 12, WaitingFor::Worker), "one is free in 2 s");
        assert_eq!([1, 4, 39].map(|ahead| ready(ahead, &[9, 2, 5, 7], FREE).1), [15, 22, 109]);
        assert_eq!(ready(0, &[9, 2, 5, 7, 10, 10], FREE).1, 17, "two that were claimed ahead go before it");
    }

    #[test]
    fn the_rate_of_calls_tells_where_it_is_the_narrower() {
        let slow = Allowance { calls_per_second: 0.1, ..FREE };
        assert_eq!(ready(6, &[1; 4], slow), (Some(7), 70, WaitingFor::RateLimit));
        let exhausted = Allowance { is_exhausted: true, ..FREE };
        assert_eq!(ready(0, &[], exhausted).2, WaitingFor::RateLimit);
    }

    #[test]
    fn an_overloaded_upstream_is_as_good_as_fewer_workers() {
        assert_eq!(ready(19, &[5, 5], Allowance { calls_at_once: 2, ..FREE }), (Some(20), 105, WaitingFor::Worker));
    }

    #[test]
    fn what_holds_the_whole_queue_comes_before_everything() {
        for waiting_for in [WaitingFor::Gate, WaitingFor::Budget] {
            let hold = Some(Hold { waiting_for, opens_in: Some(Duration::from_secs(30)) });
            let held = Allowance { hold, is_exhausted: true, ..FREE };
            assert_eq!(ready(0, &[], held), (Some(1), 40, waiting_for));
        }
    }

    #[test]
    fn a_scheduled_job_waits_for_its_time_and_has_no_place_yet() {
        for (attempt, waiting_for) in [(0, WaitingFor::RunAt), (1, WaitingFor::Retry)] {
            let outlook = outlook(&queued(at(60), attempt), &figures(5, &[5; 4]), FREE, at(0)).unwrap();
            assert_eq!(outlook, Outlook { position: None, eta_seconds: Some(70), waiting_for });
        }
    }

    #[test]
    fn of_a_paused_queue_nobody_can_tell_the_end() {
        let paused = Figures { is_paused: true, ..figures(5, &[5; 4]) };
        for (run_at, position) in [(at(0), Some(6)), (at(60), None)] {
            let outlook = outlook(&queued(run_at, 0), &paused, FREE, at(0)).unwrap();
            assert_eq!(outlook, Outlook { position, eta_seconds: None, waiting_for: WaitingFor::Paused });
        }
    }

    #[test]
    fn of_a_queue_that_a_person_must_set_free_nobody_can_tell_the_end() {
        let hold = Some(Hold { waiting_for: WaitingFor::Gate, opens_in: None });
        let held = Allowance { hold, ..FREE };
        for (run_at, attempt, position, waiting_for) in [
            (at(0), 1, Some(6), WaitingFor::Gate),
            (at(60), 1, None, WaitingFor::Gate),
            (at(60), 0, None, WaitingFor::RunAt),
        ] {
            let outlook = outlook(&queued(run_at, attempt), &figures(5, &[5; 4]), held, at(0)).unwrap();
            assert_eq!(outlook, Outlook { position, eta_seconds: None, waiting_for });
        }
    }

    #[test]
    fn a_job_that_does_not_wait_has_no_outlook() {
        let mut job = queued(at(0), 1);
        job.state = JobState::Succeeded;
        assert_eq!(outlook(&job, &figures(0, &[]), FREE, at(0)), None);
    }
}
