//! The report of a load test, as text and JSON.

use std::fmt;

use hdrhistogram::Histogram;
use serde::Serialize;

use super::{
    load::Load,
    oracle::{self, First},
    tally::{Bin, Counts, IN_TIME, LONGEST_HOLD, Ordinary, Sums, Tally, Times},
};

#[derive(Serialize)]
pub(super) struct Setup {
    pub(super) simulated: bool,
    pub(super) interrupted: bool,
    #[serde(flatten)]
    pub(super) load: Load,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) capacity_per_second: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) workers: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) service: Option<String>,
}

#[derive(Serialize)]
pub(super) struct Report {
    pub(super) setup: Setup,
    loaded_seconds: f64,
    #[serde(flatten)]
    sums: Sums,
    /// How many could have been answered in time: by an oracle that takes questions in the order of their deadlines;
    /// without one, all waiting clients' questions, or what the capacity allows if that is less.
    #[serde(skip_serializing_if = "Option::is_none")]
    answerable: Option<u64>,
    /// The same for an oracle that picks the shortest answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    answerable_shortest_first: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    declined: Option<Declined>,
    /// `answered_in_time` as a share of `answerable`.
    #[serde(skip_serializing_if = "Option::is_none")]
    share_of_answerable: Option<f64>,
    /// From the time of the question to the `200`.
    latency: Latency,
    /// From the time of the question to any answer.
    answers: Latency,
    generator_lag_ms: f64,
    estimates: Estimates,
    ordinary: Ordinary,
    pub(super) part_seconds: f64,
    pub(super) over_time: Vec<Part>,
}

/// Clients that wait and got their `202` at once.
#[derive(Serialize)]
struct Declined {
    count: u64,
    /// Those of them for whom no worker was free for long enough.
    right: u64,
}

#[derive(Serialize)]
struct Latency {
    count: u64,
    #[serde(flatten)]
    percentiles: Percentiles,
    max_ms: f64,
}

#[derive(Serialize)]
pub(super) struct Percentiles {
    pub(super) p50_ms: f64,
    pub(super) p90_ms: f64,
    pub(super) p99_ms: f64,
}

/// `eta_seconds` compared with the real time, of jobs whose end was seen.
#[derive(Serialize)]
struct Estimates {
    compared: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    median_error: Option<f64>,
}

#[derive(Serialize)]
pub(super) struct Part {
    pub(super) second: f64,
    pub(super) met: Counts,
    #[serde(flatten)]
    pub(super) latency: Option<Percentiles>,
    /// Of the clients that began to wait in it and did not hang up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) in_time_share: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) queued: Option<u64>,
}

impl Report {
    pub(super) fn new(setup: Setup, tally: &Tally) -> Report {
        let loaded_seconds = tally.loaded_for().as_secs_f64();
        let part_seconds = tally.bin.as_secs_f64();
        let ended = tally.elapsed().as_nanos().div_ceil(tally.bin.as_nanos());
        let known = tally.known();
        let (Times { asked, declined, calls, .. }, eta_errors) = (&known.times, &known.eta_errors);
        let workers = setup.workers.filter(|_| !asked.is_empty());
        let oracle = |first| workers.map(|workers| oracle::answerable(asked, workers, first));
        let by_capacity = || {
            // The last questions can still be answered in time after the load.
            let possible = setup.capacity_per_second? * (loaded_seconds + LONGEST_HOLD.as_secs_f64());
            Some(possible.min(known.sums.sent_by_waiters as f64))
        };
        let answerable = oracle(First::Deadline).map(|count| count as f64).or_else(by_capacity);
        let share = |answerable: f64| rounded(known.sums.answered_in_time as f64 / answerable);
        let seconds = (0..).map(|place| f64::from(place) * part_seconds);
        let parts = known.bins.iter().zip(seconds).map(|(bin, second)| Part::new(second, bin));
        let over_time = parts.take(usize::try_from(ended).unwrap_or(usize::MAX)).collect();
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count of questions")]
        let answerable_count = answerable.map(|answerable| answerable.round() as u64);
        Report {
            loaded_seconds: rounded(loaded_seconds),
            sums: known.sums,
            answerable: answerable_count,
            answerable_shortest_first: oracle(First::Shortest),
            declined: setup.workers.map(|workers| Declined {
                count: declined.len() as u64,
                right: oracle::rightly_declined(declined, calls, workers),
            }),
            share_of_answerable: answerable.filter(|answerable| *answerable > 0.0).map(share),
            latency: Latency::of(&known.latency),
            answers: Latency::of(&known.answers),
            generator_lag_ms: rounded(known.lag.as_secs_f64() * 1e3),
            estimates: Estimates {
                compared: eta_errors.len(),
                median_error: (!eta_errors.is_empty()).then(|| eta_errors.value_at_quantile(0.5) as f64 / 1e3),
            },
            ordinary: known.ordinary,
            part_seconds,
            over_time,
            setup,
        }
    }
}

impl Latency {
    fn of(histogram: &Histogram<u64>) -> Latency {
        Latency {
            count: histogram.len(),
            percentiles: Percentiles::of(histogram),
            max_ms: rounded(histogram.max() as f64 / 1e3),
        }
    }
}

impl Percentiles {
    fn of(histogram: &Histogram<u64>) -> Percentiles {
        let [p50_ms, p90_ms, p99_ms] = [0.5, 0.9, 0.99].map(|q| rounded(histogram.value_at_quantile(q) as f64 / 1e3));
        Percentiles { p50_ms, p90_ms, p99_ms }
    }
}

impl Part {
    fn new(second: f64, bin: &Bin) -> Part {
        Part {
            second,
            met: bin.counts,
            latency: (!bin.latency.is_empty()).then(|| Percentiles::of(&bin.latency)),
            in_time_share: (bin.waiters > 0).then(|| rounded(bin.waiters_in_time as f64 / bin.waiters as f64)),
            queued: bin.queued,
        }
    }
}

/// To the thousandth: more would be noise.
fn rounded(number: f64) -> f64 {
    (number * 1e3).round() / 1e3
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Report { setup, sums, .. } = self;
        let Sums { sent, sent_by_waiters, met, answered_in_time } = sums;
        if setup.interrupted {
            writeln!(f, "Interrupted: the report covers the time until then.")?;
        }
        write!(f, "{:.0} s of {} questions/s on average", self.loaded_seconds, setup.load.rate)?;
        match &setup.service {
            Some(service) => writeln!(f, ", Claude SIMULATED: {service}")?,
            None => writeln!(f)?,
        }
        let seconds = IN_TIME.as_secs();
        writeln!(f, "  sent               {sent:8}   {sent_by_waiters} by waiting clients")?;
        writeln!(f, "  200 with the memo  {:8}   {answered_in_time} within {seconds} s", met.answered)?;
        writeln!(f, "  202 with the job   {:8}", met.accepted)?;
        for (what, count) in [
            ("refused", met.refused),
            ("other statuses", met.failed),
            ("no answer", met.unanswered),
            ("disconnected", met.hung_up),
        ] {
            if count > 0 {
                writeln!(f, "  {what:17}  {count:8}")?;
            }
        }
        for (what, latency) in [("to the memo", &self.latency), ("to any answer", &self.answers)] {
            let Percentiles { p50_ms, p90_ms, p99_ms } = latency.percentiles;
            let [p50, p90, p99, max] = [p50_ms, p90_ms, p99_ms, latency.max_ms].map(|ms| ms / 1e3);
            writeln!(f, "  {what:17}  p50 {p50:.3}  p90 {p90:.3}  p99 {p99:.3}  longest {max:.3} s")?;
        }
        if let (Some(answerable), Some(share)) = (self.answerable, self.share_of_answerable) {
            write!(f, "  in time            {answered_in_time:8}   of {answerable} possible: {:.1} %", share * 100.0)?;
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
        let lag = self.generator_lag_ms;
        writeln!(f, "  generator delay    {lag:8.1}   ms, the longest delay before a question was sent")
    }
}
