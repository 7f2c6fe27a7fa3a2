//! The report of a load test, as text and JSON.

use std::fmt;

use hdrhistogram::Histogram;
use serde::Serialize;

use super::{
    load::Load,
    oracle::{self, First},
    tally::{Bin, Counts, IN_TIME, LONGEST_HOLD, Tally},
};

#[derive(Serialize)]
pub(super) struct Setup {
    pub(super) simulated: bool,
    /// A signal ended it early: the report covers the time until then.
    pub(super) interrupted: bool,
    #[serde(flatten)]
    pub(super) load: Load,
    /// Answers a second that the account allows, if that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) capacity_per_second: Option<f64>,
    /// Calls at once, if the service was started for this load.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) workers: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) service: Option<String>,
}

#[derive(Serialize)]
pub(super) struct Report {
    pub(super) setup: Setup,
    pub(super) loaded_seconds: f64,
    pub(super) sent: u64,
    /// Of clients that wait.
    pub(super) sent_by_waiters: u64,
    /// Results; missing ones were open when the load was interrupted.
    pub(super) met: Counts,
    /// `200`s within 30 s of the question.
    pub(super) answered_in_time: u64,
    /// How many could have been: by an oracle that takes questions in the order of their deadlines; without one, all
    /// waiting clients' questions, or what the capacity allows if that is less.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) answerable: Option<u64>,
    /// How many an oracle could have answered that picks the shortest answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) answerable_shortest_first: Option<u64>,
    /// Clients that wait and got their `202` at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) declined: Option<Declined>,
    /// `answered_in_time` as a share of `answerable`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) share_of_answerable: Option<f64>,
    /// From the moment of the question to the `200`.
    pub(super) latency: Latency,
    /// From the moment of the question to any answer.
    pub(super) answers: Latency,
    /// The largest delay with which this program sent a question.
    pub(super) generator_lag_ms: f64,
    pub(super) estimates: Estimates,
    pub(super) ordinary: Ordinary,
    /// Seconds that each entry of `over_time` stands for.
    pub(super) part_seconds: f64,
    pub(super) over_time: Vec<Part>,
}

/// Clients that wait and got their `202` at once.
#[derive(Serialize)]
pub(super) struct Declined {
    pub(super) count: u64,
    /// Those of them for whom no worker was free for long enough.
    pub(super) right: u64,
}

/// Percentiles, in milliseconds.
#[derive(Serialize)]
pub(super) struct Latency {
    pub(super) count: u64,
    pub(super) p50_ms: f64,
    pub(super) p90_ms: f64,
    pub(super) p99_ms: f64,
    pub(super) max_ms: f64,
}

/// `eta_seconds` compared with the real time, of jobs whose end was seen.
#[derive(Serialize)]
pub(super) struct Estimates {
    pub(super) compared: u64,
    /// As a part of the time that it took.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) median_error: Option<f64>,
}

/// Jobs whose clients did not wait for their end.
#[derive(Serialize)]
pub(super) struct Ordinary {
    /// Of clients that did not wait, accepted.
    pub(super) accepted: u64,
    /// Of these, finished when the load was over.
    pub(super) finished: u64,
    /// Of clients that waited and got a `202`, finished when the load was over.
    pub(super) of_waiters_finished: u64,
}

#[derive(Serialize)]
pub(super) struct Part {
    pub(super) second: f64,
    pub(super) met: Counts,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) p50_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) p90_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) p99_ms: Option<f64>,
    /// Of the clients that began to wait in it and did not hang up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) in_time_share: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) queued: Option<u64>,
}

impl Report {
    pub(super) fn new(setup: Setup, tally: &Tally) -> Report {
        let loaded_seconds = tally.loaded_for().as_secs_f64();
        let part_seconds = tally.bin().as_secs_f64();
        let ended = tally.elapsed().div_duration_f64(tally.bin()).ceil();
        let known = tally.known();
        let oracle = |first| {
            let workers = setup.workers.filter(|_| !known.asked.is_empty())?;
            Some(oracle::answerable(&known.asked, workers, first))
        };
        // The last questions can still be answered in time after the load.
        let answering_seconds = loaded_seconds + LONGEST_HOLD.as_secs_f64();
        let by_capacity =
            || setup.capacity_per_second.map(|capacity| (known.waiters as f64).min(capacity * answering_seconds));
        let answerable = oracle(First::Deadline).map(|count| count as f64).or_else(by_capacity);
        let declined = setup.workers.map(|workers| Declined {
            count: known.declined.len() as u64,
            right: oracle::rightly_declined(&known.declined, &known.calls, workers),
        });
        let share_of_answerable = answerable
            .filter(|answerable| *answerable > 0.0)
            .map(|answerable| rounded(known.in_time as f64 / answerable));
        let eta_errors = &known.eta_errors;
        let over_time = known
            .bins
            .iter()
            .enumerate()
            .take_while(|(place, _)| (*place as f64) < ended)
            .map(|(place, bin)| Part::new(place as f64 * part_seconds, bin))
            .collect();
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "not negative, and far from the bound"
        )]
        let answerable = answerable.map(|answerable| answerable.round() as u64);
        Report {
            answerable_shortest_first: oracle(First::Shortest),
            setup,
            loaded_seconds: rounded(loaded_seconds),
            sent: known.sent,
            sent_by_waiters: known.waiters,
            met: known.counts,
            answered_in_time: known.in_time,
            answerable,
            declined,
            share_of_answerable,
            latency: Latency::of(&known.latency),
            answers: Latency::of(&known.answers),
            generator_lag_ms: rounded(known.lag.as_secs_f64() * 1e3),
            estimates: Estimates {
                compared: eta_errors.len(),
                median_error: (!eta_errors.is_empty()).then(|| eta_errors.value_at_quantile(0.5) as f64 / 1e3),
            },
            ordinary: Ordinary {
                accepted: known.ordinary_accepted,
                finished: known.ordinary_finished,
                of_waiters_finished: known.late_finished,
            },
            part_seconds,
            over_time,
        }
    }
}

impl Latency {
    fn of(histogram: &Histogram<u64>) -> Latency {
        Latency {
            count: histogram.len(),
            p50_ms: quantile(histogram, 0.5),
            p90_ms: quantile(histogram, 0.9),
            p99_ms: quantile(histogram, 0.99),
            max_ms: rounded(histogram.max() as f64 / 1e3),
        }
    }
}

impl Part {
    fn new(second: f64, bin: &Bin) -> Part {
        let latency = |q| (!bin.latency.is_empty()).then(|| quantile(&bin.latency, q));
        Part {
            second,
            met: bin.counts,
            p50_ms: latency(0.5),
            p90_ms: latency(0.9),
            p99_ms: latency(0.99),
            in_time_share: (bin.waiters > 0).then(|| rounded(bin.waiters_in_time as f64 / bin.waiters as f64)),
            queued: bin.queued,
        }
    }
}

fn quantile(histogram: &Histogram<u64>, q: f64) -> f64 {
    rounded(histogram.value_at_quantile(q) as f64 / 1e3)
}

/// To the thousandth: more would be noise.
fn rounded(number: f64) -> f64 {
    (number * 1e3).round() / 1e3
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Report { setup, met, .. } = self;
        if setup.interrupted {
            writeln!(f, "Interrupted: the report covers the time until then.")?;
        }
        write!(f, "{:.0} s of {} questions/s on average", self.loaded_seconds, setup.load.rate)?;
        match &setup.service {
            Some(service) => writeln!(f, ", Claude SIMULATED: {service}")?,
            None => writeln!(f)?,
        }
        writeln!(f, "  sent               {:8}   {} by waiting clients", self.sent, self.sent_by_waiters)?;
        writeln!(
            f,
            "  200 with the memo  {:8}   {} within {} s",
            met.answered,
            self.answered_in_time,
            IN_TIME.as_secs()
        )?;
        writeln!(f, "  202 with the job   {:8}", met.accepted)?;
        let others = [("refused", met.refused), ("other statuses", met.failed), ("no answer", met.unanswered)];
        for (what, count) in others.into_iter().chain([("disconnected", met.hung_up)]).filter(|(_, count)| *count > 0) {
            writeln!(f, "  {what:17}  {count:8}")?;
        }
        for (what, latency) in [("to the memo", &self.latency), ("to any answer", &self.answers)] {
            let Latency { p50_ms, p90_ms, p99_ms, max_ms, .. } = latency;
            let [p50, p90, p99, max] = [p50_ms, p90_ms, p99_ms, max_ms].map(|ms| ms / 1e3);
            writeln!(f, "  {what:17}  p50 {p50:.3}  p90 {p90:.3}  p99 {p99:.3}  longest {max:.3} s")?;
        }
        if let (Some(answerable), Some(share)) = (self.answerable, self.share_of_answerable) {
            let in_time = self.answered_in_time;
            write!(f, "  in time            {in_time:8}   of {answerable} possible: {:.1} %", share * 100.0)?;
            match self.answerable_shortest_first {
                Some(shortest) => writeln!(f, " ({shortest} if the short answers were picked)")?,
                None => writeln!(f)?,
            }
        }
        if let Some(Declined { count, right }) = self.declined.as_ref().filter(|declined| declined.count > 0) {
            writeln!(f, "  202 at once        {count:8}   {right} of them with no worker free in their time")?;
        }
        if let Some(error) = self.estimates.median_error {
            let compared = self.estimates.compared;
            writeln!(f, "  estimates          {compared:8}   compared, median error {:.0} %", error * 100.0)?;
        }
        let Ordinary { accepted, finished, of_waiters_finished } = self.ordinary;
        writeln!(f, "  background jobs    {accepted:8}   {finished} finished, and {of_waiters_finished} after a 202")?;
        writeln!(
            f,
            "  generator delay    {:8.1}   ms, the longest delay before a question was sent",
            self.generator_lag_ms
        )
    }
}
