//! Counts of a load: in all, and over time in at most [`BINS`] parts and those of the last wait. So memory is bounded,
//! however long the load is and however much it sends.

use std::{fmt, time::Duration};

use hdrhistogram::Histogram;
use parking_lot::{Mutex, MutexGuard};
use rand::RngExt;
use serde::Serialize;
use tokio::time::Instant;

use super::oracle::Asked;
use crate::{clock::Timestamp, job::JobId};

/// Parts of the load, unless a part would be shorter than a second.
const BINS: u32 = 120;

pub(super) const IN_TIME: Duration = Duration::from_secs(30);

pub(super) const LONGEST_HOLD: Duration = Duration::from_secs(29);

const AT_ONCE: Duration = Duration::from_secs(1);

const MAX_ASKED: usize = 400_000;

/// Most accepted jobs that are read after the load; of more, a random choice.
const MAX_PENDING: usize = 20_000;

/// The longest latency of the histograms, in microseconds: longer than any client waits.
const MAX_MICROS: u64 = 120_000_000;

#[derive(Clone, Copy)]
pub(super) enum Met {
    Answer,
    Accepted(Pending),
    Refused,
    Failed,
    Nothing,
    HungUp,
}

/// A job that was accepted and had not ended when its client was answered.
#[derive(Clone, Copy)]
pub(super) struct Pending {
    pub(super) id: JobId,
    pub(super) waits: bool,
    pub(super) answered_at: Timestamp,
    pub(super) eta_seconds: Option<u64>,
    /// When it was accepted, and how long its answer takes, if that is known.
    pub(super) takes: Option<(Duration, Duration)>,
}

#[derive(Clone, Copy, Default, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Counts {
    /// `200`.
    pub(super) answered: u64,
    /// `202`.
    pub(super) accepted: u64,
    /// `503` or `429`.
    pub(super) refused: u64,
    /// Other statuses.
    pub(super) failed: u64,
    /// Not answered, or only in part.
    pub(super) unanswered: u64,
    pub(super) hung_up: u64,
}

#[derive(Clone)]
pub(super) struct Bin {
    /// By the time of the end.
    pub(super) counts: Counts,
    /// Latencies of `200`s by the time of the end, in microseconds.
    pub(super) latency: Histogram<u64>,
    /// Waiting clients by the time of their question, and those of them answered in time; without those that hung up.
    pub(super) waiters: u64,
    pub(super) waiters_in_time: u64,
    pub(super) queued: Option<u64>,
}

#[derive(Clone, Copy, Default, Serialize)]
pub(super) struct Sums {
    pub(super) sent: u64,
    pub(super) sent_by_waiters: u64,
    /// Questions that were open when the load was interrupted are missing.
    pub(super) met: Counts,
    /// `200`s within 30 s of the time of the question.
    pub(super) answered_in_time: u64,
}

#[derive(Clone, Copy, Default, Serialize)]
pub(super) struct Ordinary {
    pub(super) accepted: u64,
    pub(super) finished: u64,
    /// Jobs of waiting clients that got a `202`.
    pub(super) of_waiters_finished: u64,
}

/// For the oracle.
#[derive(Default)]
pub(super) struct Times {
    /// By clients that wait.
    pub(super) asked: Vec<Asked>,
    /// Those of them that got their `202` at once.
    pub(super) declined: Vec<Asked>,
    pub(super) calls: Vec<(Duration, Duration)>,
}

pub(super) struct Known {
    pub(super) sums: Sums,
    pub(super) ordinary: Ordinary,
    /// Of `200`s, in microseconds.
    pub(super) latency: Histogram<u64>,
    /// Of all answers.
    pub(super) answers: Histogram<u64>,
    pub(super) lag: Duration,
    pub(super) bins: Vec<Bin>,
    /// Errors of estimates relative to the real time, in thousandths.
    pub(super) eta_errors: Histogram<u64>,
    pub(super) times: Times,
    pending: Vec<Pending>,
    pendings_seen: u64,
}

pub(super) struct Tally {
    duration: Duration,
    pub(super) bin: Duration,
    pub(super) started: Instant,
    known: Mutex<Known>,
}

impl Tally {
    /// Times count from now.
    pub(super) fn new(duration: Duration) -> Tally {
        let bin = (duration / BINS).max(Duration::from_secs(1));
        let empty =
            Bin { counts: Counts::default(), latency: histogram(2), waiters: 0, waiters_in_time: 0, queued: None };
        // The last answers come up to 30 s after the last question.
        let bins = parts(duration + 2 * IN_TIME, bin) + 1;
        let known = Known {
            sums: Sums::default(),
            ordinary: Ordinary::default(),
            latency: histogram(3),
            answers: histogram(3),
            lag: Duration::ZERO,
            bins: vec![empty; bins],
            eta_errors: histogram(3),
            times: Times::default(),
            pending: Vec::new(),
            pendings_seen: 0,
        };
        Tally { duration, bin, started: Instant::now(), known: Mutex::new(known) }
    }

    pub(super) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    pub(super) fn loaded_for(&self) -> Duration {
        self.elapsed().min(self.duration)
    }

    pub(super) fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock()
    }

    pub(super) fn record_sent(&self, waits: bool, lag: Duration) {
        let mut known = self.known();
        known.sums.sent += 1;
        known.sums.sent_by_waiters += u64::from(waits);
        known.lag = known.lag.max(lag);
    }

    /// The question of the time `at` has ended for its client. `wait`: how many seconds the client waits, if it waits.
    /// `takes`: how long its answer takes, if that is known.
    pub(super) fn record_end(&self, at: Duration, wait: Option<f64>, takes: Option<Duration>, met: Met) {
        let waits = wait.is_some();
        let ended = self.elapsed();
        let took = ended.saturating_sub(at);
        let micros = u64::try_from(took.as_micros()).unwrap_or(MAX_MICROS).max(1);
        let in_time = matches!(met, Met::Answer) && took <= IN_TIME;
        let mut known = self.known();
        let known = &mut *known;
        let takes = takes.filter(|_| known.times.asked.len() + known.times.calls.len() < MAX_ASKED);
        if let Some(takes) = takes {
            known.times.record(at, ended, wait, takes, met);
        }
        if waits && !matches!(met, Met::HungUp) {
            let bin = known.bin(at, self.bin);
            bin.waiters += 1;
            bin.waiters_in_time += u64::from(in_time);
        }
        let bin = known.bin(ended, self.bin);
        bin.counts.add(met);
        if let Met::Answer = met {
            bin.latency.saturating_record(micros);
            known.latency.saturating_record(micros);
        }
        known.sums.met.add(met);
        known.sums.answered_in_time += u64::from(in_time);
        if !matches!(met, Met::Nothing | Met::HungUp) {
            known.answers.saturating_record(micros);
        }
        if let Met::Accepted(pending) = met {
            known.ordinary.accepted += u64::from(!waits);
            known.store(Pending { takes: takes.map(|takes| (ended, takes)), ..pending });
        }
    }

    pub(super) fn record_queued(&self, queued: Option<u64>) {
        self.known().bin(self.elapsed(), self.bin).queued = queued;
    }

    pub(super) fn pending(&self) -> Vec<Pending> {
        self.known().pending.clone()
    }

    /// The job, which was pending, has its answer since `finished_at`.
    pub(super) fn record_finished(&self, pending: Pending, finished_at: Timestamp) {
        let mut known = self.known();
        known.ordinary.finished += u64::from(!pending.waits);
        known.ordinary.of_waiters_finished += u64::from(pending.waits);
        let took = finished_at.since(pending.answered_at);
        if let Some((accepted, takes)) = pending.takes {
            let finished = accepted + took;
            known.times.calls.push((finished.saturating_sub(takes), finished));
        }
        if let Some(eta_seconds) = pending.eta_seconds {
            known.eta_errors.saturating_record(eta_error(eta_seconds, took));
        }
    }
}

/// The error of an estimate relative to the real time, in thousandths. Estimates are whole seconds: a shorter time counts
/// as one second.
fn eta_error(eta_seconds: u64, took: Duration) -> u64 {
    let took_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX).max(1_000);
    eta_seconds.saturating_mul(1_000).abs_diff(took_ms).saturating_mul(1_000) / took_ms
}

impl Counts {
    fn add(&mut self, met: Met) {
        *match met {
            Met::Answer => &mut self.answered,
            Met::Accepted(_) => &mut self.accepted,
            Met::Refused => &mut self.refused,
            Met::Failed => &mut self.failed,
            Met::Nothing => &mut self.unanswered,
            Met::HungUp => &mut self.hung_up,
        } += 1;
    }
}

impl Times {
    fn record(&mut self, at: Duration, ended: Duration, wait: Option<f64>, takes: Duration, met: Met) {
        let asked = wait.map(|wait| Asked { at, takes, until: at + Duration::from_secs_f64(wait).min(LONGEST_HOLD) });
        self.asked.extend(asked);
        match met {
            Met::Answer => self.calls.push((ended.saturating_sub(takes), ended)),
            Met::Accepted(_) => self.declined.extend(asked.filter(|_| ended.saturating_sub(at) < AT_ONCE)),
            Met::Refused | Met::Failed | Met::Nothing | Met::HungUp => {}
        }
    }
}

impl Known {
    /// The part of the time `at`; the last one takes all later times.
    fn bin(&mut self, at: Duration, bin: Duration) -> &mut Bin {
        let last = self.bins.len() - 1;
        &mut self.bins[parts(at, bin).min(last)]
    }

    /// Stores the job, or drops one of the jobs, each with the same chance (reservoir sampling).
    fn store(&mut self, pending: Pending) {
        self.pendings_seen += 1;
        if self.pending.len() < MAX_PENDING {
            self.pending.push(pending);
            return;
        }
        let place = rand::rng().random_range(0..self.pendings_seen);
        if let Some(stored) = usize::try_from(place).ok().and_then(|place| self.pending.get_mut(place)) {
            *stored = pending;
        }
    }
}

fn parts(time: Duration, part: Duration) -> usize {
    usize::try_from(time.as_nanos() / part.as_nanos()).unwrap_or(usize::MAX)
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let known = self.known();
        let Counts { answered, accepted, refused, failed, unanswered, hung_up } = known.sums.met;
        let sent = known.sums.sent;
        let open = sent.saturating_sub(answered + accepted + refused + failed + unanswered + hung_up);
        let failed = failed + unanswered;
        let p99 = known.latency.value_at_quantile(0.99) as f64 / 1e6;
        write!(f, "sent {sent}  open {open}  200: {answered}  202: {accepted}  ")?;
        write!(f, "refused {refused}  failed {failed}  p99 {p99:.1} s")
    }
}

fn histogram(digits: u8) -> Histogram<u64> {
    Histogram::new_with_bounds(1, MAX_MICROS, digits).expect("the bounds are fit for a histogram")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pending(waits: bool) -> Pending {
        let answered_at = Timestamp::from_millis(1_800_000_000_000);
        Pending { id: JobId::nil(), waits, answered_at, eta_seconds: Some(10), takes: None }
    }

    #[tokio::test(start_paused = true)]
    async fn latency_counts_from_the_moment_of_the_question_however_late_it_was_sent() {
        let tally = Tally::new(Duration::from_secs(10));
        tally.record_sent(true, Duration::from_secs(2));
        tokio::time::advance(Duration::from_secs(9)).await;
        tally.record_end(Duration::from_secs(1), Some(30.0), None, Met::Answer);
        let known = tally.known();
        assert_eq!(known.latency.max() / 100_000, 80, "8 s, to three digits");
        assert_eq!((known.sums.answered_in_time, known.lag), (1, Duration::from_secs(2)));
        assert_eq!((known.bins[1].waiters, known.bins[1].waiters_in_time), (1, 1), "asked in the second second");
        assert_eq!(known.bins[9].counts.answered, 1, "answered in the tenth");
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_within_thirty_seconds_counts_even_if_it_comes_after_the_load() {
        let tally = Tally::new(Duration::from_secs(20));
        tokio::time::advance(Duration::from_secs(35)).await;
        tally.record_end(Duration::from_secs(2), Some(30.0), None, Met::Answer);
        tally.record_end(Duration::from_secs(19), Some(30.0), None, Met::Answer);
        let known = tally.known();
        assert_eq!((known.sums.met.answered, known.sums.answered_in_time), (2, 1), "the other took 33 s");
    }

    #[tokio::test(start_paused = true)]
    async fn what_became_of_accepted_jobs_is_counted_by_who_asked() {
        let tally = Tally::new(Duration::from_secs(5));
        for waits in [true, false, false] {
            tally.record_end(Duration::ZERO, waits.then_some(30.0), None, Met::Accepted(pending(waits)));
        }
        for pending in tally.pending() {
            tally.record_finished(pending, pending.answered_at.plus(Duration::from_secs(8)));
        }
        let known = tally.known();
        let Ordinary { accepted, finished, of_waiters_finished } = known.ordinary;
        assert_eq!((accepted, finished, of_waiters_finished), (2, 2, 1));
        assert_eq!(known.eta_errors.max(), 250, "10 s instead of 8");
    }

    #[test]
    fn memory_is_bounded_whatever_the_load() {
        let tally = Tally::new(Duration::from_hours(1));
        assert!(tally.known().bins.len() <= 200);
        let mut known = tally.known();
        (0..=MAX_PENDING).for_each(|_| known.store(pending(true)));
        assert_eq!(known.pending.len(), MAX_PENDING);
    }

    #[test]
    fn an_estimate_is_judged_by_the_time_that_it_took() {
        assert_eq!(eta_error(10, Duration::from_secs(8)), 250);
        assert_eq!(eta_error(6, Duration::from_secs(8)), 250);
        assert_eq!(eta_error(1, Duration::from_millis(3)), 0);
    }
}
