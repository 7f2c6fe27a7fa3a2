//! What is counted while a load runs: in all, and over time in [`BINS`] equal parts, so that memory is bounded however
//! long it runs and however much it sends.

use std::{collections::HashMap, fmt, sync::OnceLock, time::Duration};

use hdrhistogram::Histogram;
use parking_lot::{Mutex, MutexGuard};
use rand::RngExt;
use tokio::time::Instant;

use super::oracle::Asked;
use crate::{clock::Timestamp, job::JobId};

/// Parts of the time, unless a part would be shorter than a second.
const BINS: u32 = 120;

/// The service answers within this time.
pub(super) const IN_TIME: Duration = Duration::from_secs(30);

/// The longest that the service holds a client.
pub(super) const LONGEST_HOLD: Duration = Duration::from_secs(29);

/// A `202` that comes within this time came at once.
const AT_ONCE: Duration = Duration::from_secs(1);

/// Most questions whose times are stored.
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
    pub(super) told_at: Timestamp,
    pub(super) eta_seconds: Option<u64>,
}

/// Counts of questions by what they met.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq, serde::Serialize)]
pub(super) struct Counts {
    /// Answered `200` with the memo.
    pub(super) answered: u64,
    /// Answered `202` with the job.
    pub(super) accepted: u64,
    /// Answered `503` or `429`.
    pub(super) refused: u64,
    /// Answered otherwise.
    pub(super) failed: u64,
    /// Not answered, or only in part.
    pub(super) unanswered: u64,
    /// Whose clients hung up.
    pub(super) hung_up: u64,
}

/// A part of the time.
#[derive(Clone)]
pub(super) struct Bin {
    /// By the moment of the end.
    pub(super) counts: Counts,
    /// Latencies of `200`s by the moment of the end, in microseconds.
    pub(super) latency: Histogram<u64>,
    /// Waiting clients by the moment of their question, and those of them answered in time; without those that hung up.
    pub(super) waiters: u64,
    pub(super) waiters_in_time: u64,
    pub(super) queued: Option<u64>,
}

pub(super) struct Known {
    pub(super) sent: u64,
    pub(super) waiters: u64,
    pub(super) counts: Counts,
    /// `200`s within 30 s of the moment of the question.
    pub(super) in_time: u64,
    /// Of `200`s, in microseconds.
    pub(super) latency: Histogram<u64>,
    /// Of all answers, in microseconds.
    pub(super) answers: Histogram<u64>,
    /// The longest delay of this program before it sent a question.
    pub(super) lag: Duration,
    pub(super) bins: Vec<Bin>,
    /// How far estimates were off, as a part of the time that it took, in thousandths.
    pub(super) eta_errors: Histogram<u64>,
    /// Jobs of clients that did not wait: accepted, and finished at the end.
    pub(super) ordinary_accepted: u64,
    pub(super) ordinary_finished: u64,
    /// Jobs of clients that waited in vain, finished at the end.
    pub(super) late_finished: u64,
    pending: Vec<Pending>,
    pendings_seen: u64,
    /// Questions of clients that wait and the time that their answers take, where that is known.
    pub(super) asked: Vec<Asked>,
    /// Those of them that got their `202` at once.
    pub(super) declined: Vec<Asked>,
    /// Calls that were made: begin and end.
    pub(super) calls: Vec<(Duration, Duration)>,
    /// Accepted jobs: when that was, and how long their answers take.
    takes: HashMap<JobId, (Duration, Duration)>,
}

pub(super) struct Tally {
    duration: Duration,
    bin: Duration,
    started: OnceLock<Instant>,
    known: Mutex<Known>,
}

impl Tally {
    pub(super) fn new(duration: Duration) -> Tally {
        let bin = (duration / BINS).max(Duration::from_secs(1));
        // The last answers come up to 30 s after the last question.
        let bins = (duration + 2 * IN_TIME).div_duration_f64(bin).ceil().clamp(1.0, 10_000.0);
        let empty =
            Bin { counts: Counts::default(), latency: histogram(2), waiters: 0, waiters_in_time: 0, queued: None };
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped")]
        let bins = vec![empty; bins as usize];
        let known = Known {
            sent: 0,
            waiters: 0,
            counts: Counts::default(),
            in_time: 0,
            latency: histogram(3),
            answers: histogram(3),
            lag: Duration::ZERO,
            bins,
            eta_errors: histogram(3),
            ordinary_accepted: 0,
            ordinary_finished: 0,
            late_finished: 0,
            pending: Vec::new(),
            pendings_seen: 0,
            asked: Vec::new(),
            declined: Vec::new(),
            calls: Vec::new(),
            takes: HashMap::new(),
        };
        Tally { duration, bin, started: OnceLock::new(), known: Mutex::new(known) }
    }

    pub(super) fn start(&self) -> Instant {
        *self.started.get_or_init(Instant::now)
    }

    pub(super) fn elapsed(&self) -> Duration {
        self.started.get().map_or(Duration::ZERO, Instant::elapsed)
    }

    pub(super) fn bin(&self) -> Duration {
        self.bin
    }

    pub(super) fn loaded_for(&self) -> Duration {
        self.elapsed().min(self.duration)
    }

    pub(super) fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock()
    }

    fn place(&self, at: Duration, bins: usize) -> usize {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a count of parts, cut to those there are"
        )]
        let place = at.div_duration_f64(self.bin) as usize;
        place.min(bins - 1)
    }

    /// A question was sent, `lag` after its moment.
    pub(super) fn note_sent(&self, waits: bool, lag: Duration) {
        let mut known = self.known();
        known.sent += 1;
        known.waiters += u64::from(waits);
        known.lag = known.lag.max(lag);
    }

    /// The client of the question of the moment `at` has its result now. `wait`: for how many seconds it waits at most, if
    /// it waits. `takes`: how long its answer takes, if that is known.
    pub(super) fn note_met(&self, at: Duration, wait: Option<f64>, takes: Option<Duration>, met: Met) {
        let waits = wait.is_some();
        let ended = self.elapsed();
        let took = ended.saturating_sub(at);
        let micros = u64::try_from(took.as_micros()).unwrap_or(MAX_MICROS).clamp(1, MAX_MICROS);
        let mut known = self.known();
        let known = &mut *known;
        let (asked_in, ended_in) = (self.place(at, known.bins.len()), self.place(ended, known.bins.len()));
        let in_time = matches!(met, Met::Answer) && took <= IN_TIME;
        if let Some(takes) = takes.filter(|_| known.asked.len() + known.calls.len() < MAX_ASKED) {
            known.note_takes(at, ended, wait, takes, met);
        }
        if waits && !matches!(met, Met::HungUp) {
            known.bins[asked_in].waiters += 1;
            known.bins[asked_in].waiters_in_time += u64::from(in_time);
        }
        let count = |counts: &mut Counts| match met {
            Met::Answer => counts.answered += 1,
            Met::Accepted(_) => counts.accepted += 1,
            Met::Refused => counts.refused += 1,
            Met::Failed => counts.failed += 1,
            Met::Nothing => counts.unanswered += 1,
            Met::HungUp => counts.hung_up += 1,
        };
        count(&mut known.counts);
        count(&mut known.bins[ended_in].counts);
        if !matches!(met, Met::Nothing | Met::HungUp) {
            known.answers.saturating_record(micros);
        }
        if let Met::Answer = met {
            known.latency.saturating_record(micros);
            known.bins[ended_in].latency.saturating_record(micros);
            known.in_time += u64::from(in_time);
        }
        if let Met::Accepted(pending) = met {
            known.ordinary_accepted += u64::from(!waits);
            known.keep(pending);
        }
    }

    pub(super) fn note_queued(&self, queued: Option<u64>) {
        let mut known = self.known();
        let place = self.place(self.elapsed(), known.bins.len());
        known.bins[place].queued = queued;
    }

    pub(super) fn pending(&self) -> Vec<Pending> {
        self.known().pending.clone()
    }

    /// A job that was pending has its answer since `finished_at`.
    pub(super) fn note_finished(&self, pending: Pending, finished_at: Timestamp) {
        let mut known = self.known();
        known.ordinary_finished += u64::from(!pending.waits);
        known.late_finished += u64::from(pending.waits);
        if let Some((ended, takes)) = known.takes.remove(&pending.id) {
            let finished = ended + finished_at.since(pending.told_at);
            known.calls.push((finished.saturating_sub(takes), finished));
        }
        if let Some(eta_seconds) = pending.eta_seconds {
            known.eta_errors.saturating_record(eta_error(eta_seconds, finished_at.since(pending.told_at)));
        }
    }
}

/// How far an estimate was off, in thousandths of the time that it took. Estimates are whole seconds: what took less
/// than one counts as one.
fn eta_error(eta_seconds: u64, took: Duration) -> u64 {
    let took_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX).max(1_000);
    eta_seconds.saturating_mul(1_000).abs_diff(took_ms).saturating_mul(1_000) / took_ms
}

impl Known {
    /// Records the times from which the oracle makes its schedule.
    fn note_takes(&mut self, at: Duration, ended: Duration, wait: Option<f64>, takes: Duration, met: Met) {
        let asked = wait.map(|wait| Asked { at, takes, until: at + Duration::from_secs_f64(wait).min(LONGEST_HOLD) });
        self.asked.extend(asked);
        match met {
            Met::Answer => self.calls.push((ended.saturating_sub(takes), ended)),
            Met::Accepted(pending) => {
                self.takes.insert(pending.id, (ended, takes));
                self.declined.extend(asked.filter(|_| ended.saturating_sub(at) < AT_ONCE));
            }
            Met::Refused | Met::Failed | Met::Nothing | Met::HungUp => {}
        }
    }

    /// Stores the job, or drops one of the jobs, each with the same chance (reservoir sampling).
    fn keep(&mut self, pending: Pending) {
        self.pendings_seen += 1;
        if self.pending.len() < MAX_PENDING {
            self.pending.push(pending);
        } else {
            let place = rand::rng().random_range(0..self.pendings_seen);
            if let Some(kept) = usize::try_from(place).ok().and_then(|place| self.pending.get_mut(place)) {
                *kept = pending;
            }
        }
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let known = self.known();
        let Counts { answered, accepted, refused, failed, unanswered, hung_up } = known.counts;
        let open = known.sent.saturating_sub(answered + accepted + refused + failed + unanswered + hung_up);
        write!(
            f,
            "sent {}  open {open}  200: {answered}  202: {accepted}  refused {refused}  failed {}  p99 {:.1} s",
            known.sent,
            failed + unanswered,
            known.latency.value_at_quantile(0.99) as f64 / 1e6
        )
    }
}

fn histogram(digits: u8) -> Histogram<u64> {
    // These bounds are in the range that the library takes.
    Histogram::new_with_bounds(1, MAX_MICROS, digits).expect("the bounds are fit for a histogram")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pending(waits: bool) -> Pending {
        let told_at = Timestamp::from_millis(1_800_000_000_000);
        Pending { id: JobId::nil(), waits, told_at, eta_seconds: Some(10) }
    }

    #[tokio::test(start_paused = true)]
    async fn latency_counts_from_the_moment_of_the_question_however_late_it_was_sent() {
        let tally = Tally::new(Duration::from_secs(10));
        tally.start();
        tally.note_sent(true, Duration::from_secs(2));
        tokio::time::advance(Duration::from_secs(9)).await;
        tally.note_met(Duration::from_secs(1), Some(30.0), None, Met::Answer);
        let known = tally.known();
        assert_eq!(known.latency.max() / 100_000, 80, "8 s, to three digits");
        assert_eq!((known.in_time, known.lag), (1, Duration::from_secs(2)));
        assert_eq!((known.bins[1].waiters, known.bins[1].waiters_in_time), (1, 1), "asked in the second second");
        assert_eq!(known.bins[9].counts.answered, 1, "answered in the tenth");
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_within_thirty_seconds_counts_even_if_it_comes_after_the_load() {
        let tally = Tally::new(Duration::from_secs(20));
        tally.start();
        tokio::time::advance(Duration::from_secs(35)).await;
        tally.note_met(Duration::from_secs(2), Some(30.0), None, Met::Answer);
        tally.note_met(Duration::from_secs(19), Some(30.0), None, Met::Answer);
        let known = tally.known();
        assert_eq!((known.counts.answered, known.in_time), (2, 1), "the other took 33 s");
    }

    #[tokio::test(start_paused = true)]
    async fn what_became_of_accepted_jobs_is_counted_by_who_asked() {
        let tally = Tally::new(Duration::from_secs(5));
        tally.start();
        for waits in [true, false, false] {
            tally.note_met(Duration::ZERO, waits.then_some(30.0), None, Met::Accepted(pending(waits)));
        }
        for pending in tally.pending() {
            tally.note_finished(pending, pending.told_at.plus(Duration::from_secs(8)));
        }
        let known = tally.known();
        assert_eq!((known.ordinary_accepted, known.ordinary_finished, known.late_finished), (2, 2, 1));
        assert_eq!(known.eta_errors.max(), 250, "10 s instead of 8");
    }

    #[test]
    fn memory_is_bounded_whatever_the_load() {
        let tally = Tally::new(Duration::from_hours(1));
        assert!(tally.known().bins.len() <= 200);
        let mut known = tally.known();
        (0..=MAX_PENDING).for_each(|_| known.keep(pending(true)));
        assert_eq!(known.pending.len(), MAX_PENDING);
    }

    #[test]
    fn an_estimate_is_judged_by_the_time_that_it_took() {
        assert_eq!(eta_error(10, Duration::from_secs(8)), 250);
        assert_eq!(eta_error(6, Duration::from_secs(8)), 250);
        assert_eq!(eta_error(1, Duration::from_millis(3)), 0);
    }
}
