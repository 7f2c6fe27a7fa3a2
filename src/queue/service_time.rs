//! How long an answer takes, learnt from recent ones: the time until its text begins, with the thinking, by model and by
//! whether a client waits; the length of its text by model and depth; and the pace of the text by model.
//!
//! What has not been seen yet is taken from [`Prior`], the figures of real memos. Only successes are observed.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::job::{Depth, JobRequest};

/// What an attempt is taken to last before any has been seen.
const USUAL: Duration = Duration::from_secs(20);

/// The weight of the newest attempt in the running mean: some twenty attempts make up most of it.
const NEWEST_WEIGHT: f64 = 0.1;

/// How many observations are remembered: enough for a ninth decile, few enough to follow a change in minutes.
const REMEMBERED: usize = 100;

/// With fewer observations the prior holds.
const LEAST: usize = 5;

/// With fewer observations of a kind, its times are computed from the start, the length and the pace.
const ENOUGH_TOTALS: usize = 30;

/// Most models with figures of their own, as clients can name any. Further ones count as the service's own.
const MAX_MODELS: usize = 64;

/// Most models whose figures other nodes get.
const MAX_SHARED_MODELS: usize = 16;

/// How finely a distribution is recorded.
const QUANTILES: usize = 20;

/// Answers of one kind take about as long.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Kind {
    /// The model that the request names. `None` is the service's own model.
    pub(super) model: Option<String>,
    pub(super) depth: Depth,
    /// Claude thinks less where a client waits.
    pub(super) is_waited_for: bool,
}

impl Kind {
    /// The kind of the answers to a request.
    pub fn of(request: &JobRequest, is_waited_for: bool) -> Kind {
        Kind { model: request.model.clone(), depth: request.depth.resolved(is_waited_for), is_waited_for }
    }
}

/// A successful attempt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Observed {
    /// From its claim to its end.
    pub(super) took: Duration,
    /// From the first piece of its text to the last.
    pub(super) writing: Duration,
    /// Bytes of its text.
    pub(super) bytes: usize,
}

/// How far an attempt has come.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Progress {
    /// Since its claim.
    pub(super) elapsed: Duration,
    /// Since the first piece of its text, and how many bytes came; none before it.
    pub(super) text: Option<(Duration, usize)>,
}

impl Progress {
    /// Of an attempt that was claimed then, and the first piece of whose text came then, and so many bytes.
    pub(super) fn of((begun_at, text): (Instant, Option<(Instant, usize)>)) -> Progress {
        Progress { elapsed: begun_at.elapsed(), text: text.map(|(first, bytes)| (first.elapsed(), bytes)) }
    }
}

/// What was seen, for other nodes: enough of it to expect the same.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Times {
    mean: Option<f64>,
    means: [Option<f64>; 2],
    models: Vec<(Option<String>, ModelTimes)>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct ModelTimes {
    starts: Vec<(bool, Vec<f64>)>,
    bytes: Vec<(Depth, Vec<f64>)>,
    seconds_per_byte: Vec<f64>,
    totals: Vec<((Depth, bool), Vec<f64>)>,
}

/// What is expected of the answers of one kind.
#[derive(Debug)]
pub(super) struct Expectation {
    /// Seconds until the text begins, and bytes of the text: quantiles, ascending.
    starts: Vec<f64>,
    bytes: Vec<f64>,
    seconds_per_byte: f64,
    /// Seconds in all, ascending.
    totals: Vec<f64>,
    /// The pace and the start were seen, not taken from the prior.
    pub(super) is_learnt: bool,
}

/// The figures.
#[derive(Debug, Default)]
pub(super) struct ServiceTime(Mutex<Seen>);

#[derive(Debug, Default)]
struct Seen {
    /// Running means in seconds: of all attempts, and of those that a client waited for or not.
    mean: Option<f64>,
    means: [Option<f64>; 2],
    models: HashMap<Option<String>, Model>,
}

#[derive(Debug, Default)]
struct Model {
    starts: HashMap<bool, VecDeque<f64>>,
    bytes: HashMap<Depth, VecDeque<f64>>,
    seconds_per_byte: VecDeque<f64>,
    totals: HashMap<(Depth, bool), VecDeque<f64>>,
    /// Made of the above when asked for, until the next observation.
    expectations: HashMap<(Depth, bool), Arc<Expectation>>,
}

/// What real memos take, at a quantile from 0 to 1.
struct Prior;

impl Prior {
    /// Bytes of a token of JSON, and tokens a second.
    const SECONDS_PER_BYTE: f64 = 1.0 / (4.0 * 90.0);

    fn start(is_waited_for: bool, quantile: f64) -> f64 {
        if is_waited_for { 1.2 + 1.8 * quantile } else { 3.0 + 42.0 * quantile * quantile }
    }

    fn bytes(depth: Depth, quantile: f64) -> f64 {
        let tokens = match depth {
            Depth::Brief => 700.0 + 200.0 * quantile,
            Depth::Full | Depth::Auto => 1_300.0 + 2_400.0 * quantile.powf(1.5),
        };
        4.0 * tokens
    }
}

impl ServiceTime {
    pub(super) fn observe(&self, kind: &Kind, observed: Observed) {
        let Observed { took, writing, bytes } = observed;
        let mut seen = self.0.lock();
        let seconds = took.as_secs_f64();
        let follow = |mean: &mut Option<f64>| {
            *mean = Some(mean.map_or(seconds, |mean| mean + NEWEST_WEIGHT * (seconds - mean)));
        };
        follow(&mut seen.mean);
        follow(&mut seen.means[usize::from(kind.is_waited_for)]);
        let is_known = seen.models.contains_key(&kind.model) || seen.models.len() < MAX_MODELS;
        let model = seen.models.entry(kind.model.clone().filter(|_| is_known)).or_default();
        model.expectations.clear();
        let start = took.saturating_sub(writing).as_secs_f64();
        remember(model.starts.entry(kind.is_waited_for).or_default(), start);
        remember(model.totals.entry((kind.depth, kind.is_waited_for)).or_default(), seconds);
        // An answer that comes whole has all its time before its text.
        remember(&mut model.seconds_per_byte, writing.as_secs_f64() / bytes.max(1) as f64);
        if bytes > 0 {
            remember(model.bytes.entry(kind.depth).or_default(), bytes as f64);
        }
    }

    pub(super) fn times(&self) -> Times {
        let seen = self.0.lock();
        let mut models: Vec<_> = seen.models.iter().collect();
        // The service's own first.
        models.sort_unstable_by_key(|(name, _)| *name);
        let models = models.into_iter().take(MAX_SHARED_MODELS).map(|(name, model)| (name.clone(), model.times()));
        Times {
            mean: seen.mean.map(rounded),
            means: seen.means.map(|mean| mean.map(rounded)),
            models: models.collect(),
        }
    }

    /// Takes over what another node has seen.
    pub(super) fn adopt(&self, times: Times) {
        let models = times.models.into_iter().map(|(name, times)| (name, Model::seen(times))).collect();
        *self.0.lock() = Seen { mean: times.mean, means: times.means, models };
    }

    /// The mean of all attempts: how fast the queue moves.
    pub(super) fn mean(&self) -> Duration {
        self.0.lock().mean.map_or(USUAL, Duration::from_secs_f64)
    }

    /// The mean of so many attempts, of which nobody waits for some.
    pub(super) fn mean_of(&self, attempts: usize, background: usize) -> Duration {
        let mean = |is_waited_for| {
            let seen = self.0.lock();
            seen.means[usize::from(is_waited_for)].or(seen.mean).unwrap_or_else(|| {
                let depth = Depth::Auto.resolved(is_waited_for);
                Model::default().expectation(&Kind { model: None, depth, is_waited_for }).within(0.5).as_secs_f64()
            })
        };
        let share = background.min(attempts) as f64 / attempts.max(1) as f64;
        Duration::from_secs_f64(share * mean(false) + (1.0 - share) * mean(true))
    }

    /// How long an answer of this kind is likely to take.
    pub(super) fn whole(&self, kind: &Kind) -> Duration {
        self.likely(kind, |expectation| expectation.within(0.5), |mean| mean)
    }

    /// How long an answer of this kind that has come so far is likely to take from now.
    pub(super) fn rest(&self, kind: &Kind, progress: Progress) -> Duration {
        self.likely(kind, |expectation| expectation.rest(progress), |mean| mean.saturating_sub(progress.elapsed))
    }

    /// By what was learnt of this kind, else by the mean of all attempts, and before the first by the prior.
    fn likely(
        &self,
        kind: &Kind,
        by_kind: impl FnOnce(&Expectation) -> Duration,
        by_mean: impl FnOnce(Duration) -> Duration,
    ) -> Duration {
        let expectation = self.expectation(kind);
        let mean = self.0.lock().mean.filter(|_| !expectation.is_learnt);
        mean.map_or_else(|| by_kind(&expectation), |mean| by_mean(Duration::from_secs_f64(mean)))
    }

    pub(super) fn expectation(&self, kind: &Kind) -> Arc<Expectation> {
        let mut seen = self.0.lock();
        let place = if seen.models.contains_key(&kind.model) { &kind.model } else { &None };
        match seen.models.get_mut(place) {
            Some(model) => {
                let place = (kind.depth, kind.is_waited_for);
                if let Some(expectation) = model.expectations.get(&place) {
                    return Arc::clone(expectation);
                }
                let expectation = Arc::new(model.expectation(kind));
                model.expectations.insert(place, Arc::clone(&expectation));
                expectation
            }
            None => Arc::new(Model::default().expectation(kind)),
        }
    }
}

impl Model {
    fn times(&self) -> ModelTimes {
        let mut times = ModelTimes {
            starts: self.starts.iter().map(|(key, seen)| (*key, sample(seen))).collect(),
            bytes: self.bytes.iter().map(|(key, seen)| (*key, sample(seen))).collect(),
            seconds_per_byte: sample(&self.seconds_per_byte),
            totals: self.totals.iter().map(|(key, seen)| (*key, sample(seen))).collect(),
        };
        times.starts.sort_unstable_by_key(|(key, _)| *key);
        times.bytes.sort_unstable_by_key(|(depth, _)| *depth as u8);
        times.totals.sort_unstable_by_key(|((depth, is_waited_for), _)| (*depth as u8, *is_waited_for));
        times
    }

    fn seen(times: ModelTimes) -> Model {
        let ModelTimes { starts, bytes, seconds_per_byte, totals } = times;
        Model {
            starts: starts.into_iter().map(|(key, seen)| (key, seen.into())).collect(),
            bytes: bytes.into_iter().map(|(key, seen)| (key, seen.into())).collect(),
            seconds_per_byte: seconds_per_byte.into(),
            totals: totals.into_iter().map(|(key, seen)| (key, seen.into())).collect(),
            expectations: HashMap::new(),
        }
    }

    fn expectation(&self, kind: &Kind) -> Expectation {
        let starts = self.starts.get(&kind.is_waited_for).and_then(quantiles);
        let bytes = self.bytes.get(&kind.depth).and_then(quantiles);
        let paces = quantiles(&self.seconds_per_byte);
        let is_learnt = starts.is_some() && paces.is_some();
        let seconds_per_byte = paces.map_or(Prior::SECONDS_PER_BYTE, |paces| paces[QUANTILES / 2]);
        let prior = |of: &dyn Fn(f64) -> f64| (0..QUANTILES).map(|place| of(middle(place))).collect();
        let starts: Vec<f64> = starts.unwrap_or_else(|| prior(&|q| Prior::start(kind.is_waited_for, q)));
        let bytes: Vec<f64> = bytes.unwrap_or_else(|| prior(&|q| Prior::bytes(kind.depth, q)));
        // What was seen has the variation of the pace too.
        let seen = self.totals.get(&(kind.depth, kind.is_waited_for)).filter(|seen| seen.len() >= ENOUGH_TOTALS);
        let mut totals: Vec<f64> = match seen {
            Some(seen) => seen.iter().copied().collect(),
            None => {
                let total = |start| bytes.iter().map(move |bytes| start + bytes * seconds_per_byte);
                starts.iter().flat_map(total).collect()
            }
        };
        totals.sort_unstable_by(f64::total_cmp);
        Expectation { starts, bytes, seconds_per_byte, totals, is_learnt }
    }
}

impl Expectation {
    /// The time in which this part of the answers is there.
    pub(super) fn within(&self, part: f64) -> Duration {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a place in the list")]
        let place = ((self.totals.len() as f64 * part).ceil() as usize).clamp(1, self.totals.len()) - 1;
        Duration::try_from_secs_f64(self.totals[place]).unwrap_or(Duration::MAX)
    }

    /// The chance that an answer that begins now is there within `left`.
    pub(super) fn chance(&self, left: Duration) -> f64 {
        let in_time = self.totals.partition_point(|total| *total <= left.as_secs_f64());
        in_time as f64 / self.totals.len() as f64
    }

    /// How long an answer that has come so far is likely to take from now.
    fn rest(&self, progress: Progress) -> Duration {
        let median = |quantiles: &[f64]| quantiles[quantiles.len() / 2];
        let (start, seen) = match progress.text {
            Some((_, bytes)) => (0.0, bytes as f64),
            None => ((median(&self.starts) - progress.elapsed.as_secs_f64()).max(0.0), 0.0),
        };
        let seconds = start + (median(&self.bytes) - seen).max(0.0) * self.seconds_per_byte;
        Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
    }

    /// The chance that an answer that has come so far is there within `left`.
    pub(super) fn chance_from(&self, progress: Progress, left: Duration) -> f64 {
        let left = left.as_secs_f64();
        let (starts, seen, pace) = match progress.text {
            // The pace of this very answer, once there is enough of it.
            Some((writing, bytes)) if writing >= Duration::from_secs(1) && bytes > 0 => {
                (vec![0.0], bytes, writing.as_secs_f64() / bytes as f64)
            }
            Some((_, bytes)) => (vec![0.0], bytes, self.seconds_per_byte),
            None => {
                let elapsed = progress.elapsed.as_secs_f64();
                let later: Vec<f64> =
                    self.starts.iter().filter(|start| **start > elapsed).map(|start| start - elapsed).collect();
                (if later.is_empty() { vec![0.0] } else { later }, 0, self.seconds_per_byte)
            }
        };
        let rest: Vec<f64> = self
            .bytes
            .iter()
            .map(|bytes| bytes - seen as f64)
            .filter(|rest| *rest > 0.0)
            .map(|rest| rest * pace)
            .collect();
        if rest.is_empty() {
            // Longer than any before: it may end at any moment.
            return 1.0;
        }
        let in_time: usize = starts.iter().map(|start| rest.iter().filter(|rest| start + **rest <= left).count()).sum();
        in_time as f64 / (starts.len() * rest.len()) as f64
    }
}

/// A sample of this size, evenly spread over what was seen.
fn sample(seen: &VecDeque<f64>) -> Vec<f64> {
    if seen.len() <= ENOUGH_TOTALS {
        return seen.iter().copied().map(rounded).collect();
    }
    let mut sorted: Vec<f64> = seen.iter().copied().map(rounded).collect();
    sorted.sort_unstable_by(f64::total_cmp);
    (0..ENOUGH_TOTALS).map(|place| sorted[(2 * place + 1) * sorted.len() / (2 * ENOUGH_TOTALS)]).collect()
}

/// To a millionth, so that it is short as text.
fn rounded(number: f64) -> f64 {
    (number * 1e6).round() / 1e6
}

fn remember(seen: &mut VecDeque<f64>, newest: f64) {
    if seen.len() == REMEMBERED {
        seen.pop_front();
    }
    seen.push_back(newest);
}

/// The quantile in the middle of a place of a list of [`QUANTILES`].
fn middle(place: usize) -> f64 {
    (place as f64 + 0.5) / QUANTILES as f64
}

/// Those of what was seen, if it is enough.
fn quantiles(seen: &VecDeque<f64>) -> Option<Vec<f64>> {
    if seen.len() < LEAST {
        return None;
    }
    let mut sorted: Vec<f64> = seen.iter().copied().collect();
    sorted.sort_unstable_by(f64::total_cmp);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a place in the list")]
    let at = |place| sorted[(middle(place) * sorted.len() as f64) as usize];
    Some((0..QUANTILES).map(at).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    fn kind(model: Option<&str>, depth: Depth, is_waited_for: bool) -> Kind {
        Kind { model: model.map(str::to_owned), depth, is_waited_for }
    }

    fn seen(took: f64, writing: f64, bytes: usize) -> Observed {
        Observed { took: seconds(took), writing: seconds(writing), bytes }
    }

    const BRIEF: fn(Option<&str>) -> Kind = |model| kind(model, Depth::Brief, true);
    const FULL: fn(Option<&str>) -> Kind = |model| kind(model, Depth::Full, true);

    #[test]
    fn the_mean_follows_what_is_seen() {
        let times = ServiceTime::default();
        let whole_seconds = |time: Duration| time.as_secs_f64().round();
        let prior = [times.mean(), times.mean_of(1, 0), times.mean_of(1, 1), times.whole(&BRIEF(None))];
        assert_eq!(prior.map(whole_seconds), [20.0, 11.0, 41.0, 11.0]);
        times.observe(&BRIEF(None), seen(2.0, 0.0, 0));
        assert_eq!((times.mean(), times.whole(&FULL(None))), (seconds(2.0), seconds(2.0)), "the first counts in full");
        (0..100).for_each(|_| times.observe(&BRIEF(None), seen(4.0, 0.0, 0)));
        assert_eq!(times.mean().as_secs_f64().round(), 4.0);
        assert_eq!(times.mean_of(1, 1), times.mean(), "no other is known");
        (0..100).for_each(|_| times.observe(&kind(None, Depth::Full, false), seen(34.0, 0.0, 0)));
        let mean_of = |attempts, background| times.mean_of(attempts, background).as_secs_f64().round();
        assert_eq!([mean_of(0, 0), mean_of(3, 0), mean_of(3, 1), mean_of(3, 9)], [4.0, 4.0, 14.0, 34.0]);
    }

    #[test]
    fn before_anything_is_seen_memos_take_what_real_ones_took() {
        let times = ServiceTime::default();
        let median = |kind: &Kind| times.expectation(kind).within(0.5).as_secs_f64();
        assert!((10.0..12.0).contains(&median(&BRIEF(None))), "{}", median(&BRIEF(None)));
        assert!((22.0..30.0).contains(&median(&FULL(None))), "{}", median(&FULL(None)));
        assert!(median(&kind(None, Depth::Full, false)) > median(&FULL(None)), "it thinks longer");
    }

    #[test]
    fn the_pace_of_brief_memos_tells_how_long_a_full_one_would_take() {
        let times = ServiceTime::default();
        (0..LEAST).for_each(|_| times.observe(&BRIEF(Some("quick")), seen(3.0, 2.0, 3_200)));
        let full = times.expectation(&FULL(Some("quick")));
        assert!(full.is_learnt && full.chance(seconds(15.0)) > 0.9, "{:?}", full.within(0.9));
        assert!(!times.expectation(&FULL(None)).is_learnt);
    }

    #[test]
    fn what_is_long_past_is_forgotten_and_the_number_of_models_bounded() {
        let times = ServiceTime::default();
        (0..10).for_each(|_| times.observe(&BRIEF(None), seen(40.0, 0.0, 0)));
        assert_eq!(times.expectation(&BRIEF(None)).within(0.5), seconds(40.0));
        (0..REMEMBERED).for_each(|_| times.observe(&BRIEF(None), seen(1.0, 0.0, 0)));
        assert_eq!(times.expectation(&BRIEF(None)).within(1.0), seconds(1.0));
        (0..1_000).for_each(|n| times.observe(&BRIEF(Some(&format!("model {n}"))), seen(1.0, 0.0, 0)));
        assert!(times.0.lock().models.len() <= MAX_MODELS);
    }

    #[test]
    fn the_rest_of_an_answer_follows_from_what_has_come() {
        let times = ServiceTime::default();
        (0..20).for_each(|_| times.observe(&BRIEF(None), seen(11.0, 9.0, 3_000)));
        let expected = times.expectation(&BRIEF(None));
        let rest = |elapsed: f64, bytes: Option<usize>| {
            let text = bytes.map(|bytes| (seconds(elapsed - 2.0), bytes));
            expected.rest(Progress { elapsed: seconds(elapsed), text }).as_secs_f64().round()
        };
        assert_eq!([rest(0.0, None), rest(1.0, None), rest(5.0, None)], [11.0, 10.0, 9.0]);
        assert_eq!([rest(5.0, Some(1_000)), rest(12.0, Some(4_000))], [6.0, 0.0]);
    }

    #[test]
    fn the_chance_follows_the_bytes_that_came_and_their_pace() {
        let times = ServiceTime::default();
        (0..20).for_each(|n| times.observe(&BRIEF(None), seen(11.0, 9.0, 3_000 + 50 * n)));
        let expected = times.expectation(&BRIEF(None));
        let at = |elapsed: f64, text: Option<(f64, usize)>, left: f64| {
            let text = text.map(|(writing, bytes)| (seconds(writing), bytes));
            expected.chance_from(Progress { elapsed: seconds(elapsed), text }, seconds(left))
        };
        assert_eq!((at(0.0, None, 14.0), at(0.0, None, 9.0)), (1.0, 0.0));
        assert_eq!(at(6.0, None, 14.0), 1.0, "late to begin, and still in time");
        assert_eq!(at(4.0, Some((2.0, 700)), 10.0), 1.0, "at its usual pace");
        assert_eq!(at(4.0, Some((2.0, 200)), 10.0), 0.0, "too slow");
        assert!((0.3..0.7).contains(&at(9.0, Some((7.0, 2_450)), 2.9)), "even");
        assert_eq!(at(20.0, Some((18.0, 9_000)), 0.1), 1.0, "longer than any before");
    }

    #[test]
    fn another_node_expects_about_the_same_from_what_it_is_sent() {
        let times = ServiceTime::default();
        let kinds = [BRIEF(None), FULL(None), kind(Some("m"), Depth::Full, false)];
        for n in 0..90 {
            for (place, kind) in kinds.iter().enumerate() {
                times.observe(kind, seen(5.0 + (place + 1) as f64 * f64::from(n) / 10.0, 3.0, 2_000 + n as usize));
            }
        }
        let sent = serde_json::to_string(&times.times()).unwrap();
        assert!(sent.len() < 8 << 10, "{} bytes", sent.len());
        let other = ServiceTime::default();
        other.adopt(serde_json::from_str(&sent).unwrap());
        assert_eq!(other.times(), times.times(), "and a third node from that");
        assert!((other.mean().as_secs_f64() - times.mean().as_secs_f64()).abs() < 1e-3);
        for kind in &kinds {
            let [here, there] = [&times, &other].map(|times| times.expectation(kind));
            assert!(there.is_learnt);
            for part in [0.1, 0.5, 0.9] {
                let [here, there] = [&here, &there].map(|expectation| expectation.within(part).as_secs_f64());
                assert!((here / there - 1.0).abs() < 0.1, "{kind:?} {part}: {here} {there}");
            }
        }
    }
}
