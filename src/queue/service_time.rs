//! How long attempts last: the mean tells how fast the queue moves, the time that 9 of 10 took tells whether a client
//! that waits can be answered in time. Both follow recent successes.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use parking_lot::Mutex;

/// What an attempt is taken to last before any has been seen: a memo of usual length.
const USUAL: Duration = Duration::from_secs(20);

/// The weight of the newest attempt in the running mean: some twenty attempts make up most of it.
const NEWEST_WEIGHT: f64 = 0.1;

/// How many attempts of a kind are remembered: enough for a ninth decile, few enough to follow a change in minutes.
const REMEMBERED: usize = 100;

/// With fewer nothing is said of a kind: what can't be known keeps no client from waiting.
const LEAST: usize = 5;

/// Most kinds told apart; clients can name any model. Further ones are taken to be the service's own.
const MAX_KINDS: usize = 128;

/// The figures.
#[derive(Debug, Default)]
pub(super) struct ServiceTime(Mutex<Seen>);

#[derive(Debug, Default)]
struct Seen {
    /// Of all attempts, in seconds.
    mean: Option<f64>,
    kinds: HashMap<Kind, VecDeque<Duration>>,
}

/// What attempts have in common that take about as long: the model that was asked for, none for the service's own; and
/// whether a client asked to wait, as Claude then thinks less hard.
type Kind = (Option<String>, bool);

impl ServiceTime {
    pub(super) fn observe(&self, model: Option<&str>, is_waited_for: bool, took: Duration) {
        let mut seen = self.0.lock();
        let seconds = took.as_secs_f64();
        seen.mean = Some(seen.mean.map_or(seconds, |mean| mean + NEWEST_WEIGHT * (seconds - mean)));
        let mut kind = (model.map(str::to_owned), is_waited_for);
        if seen.kinds.len() >= MAX_KINDS && !seen.kinds.contains_key(&kind) {
            kind.0 = None;
        }
        let times = seen.kinds.entry(kind).or_default();
        if times.len() == REMEMBERED {
            times.pop_front();
        }
        times.push_back(took);
    }

    pub(super) fn mean(&self) -> Duration {
        self.0.lock().mean.map_or(USUAL, Duration::from_secs_f64)
    }

    /// The time within which 9 of 10 recent attempts of a model ended whose clients waited; until there are enough of them, of
    /// the others. None if there are too few of those too.
    pub(super) fn ninth_decile(&self, model: Option<&str>) -> Option<Duration> {
        let seen = self.0.lock();
        let of = |is_waited_for| {
            // A borrowed key would need an unsized `Option`; a client that names a model pays for the copy.
            let times =
                seen.kinds.get(&(model.map(str::to_owned), is_waited_for)).filter(|times| times.len() >= LEAST)?;
            let mut times: Vec<Duration> = times.iter().copied().collect();
            let place = (times.len() * 9).div_ceil(10) - 1;
            Some(*times.select_nth_unstable(place).1)
        };
        of(true).or_else(|| of(false))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn the_mean_follows_what_is_seen() {
        let times = ServiceTime::default();
        assert_eq!(times.mean(), USUAL);
        times.observe(None, true, seconds(2));
        assert_eq!(times.mean(), seconds(2), "the first counts for what it is");
        (0..100).for_each(|_| times.observe(None, true, seconds(4)));
        assert_eq!(times.mean().as_secs_f64().round(), 4.0);
    }

    #[test]
    fn nine_of_ten_recent_attempts_ended_within_the_ninth_decile() {
        let times = ServiceTime::default();
        (1..5).for_each(|n| times.observe(None, true, seconds(n)));
        assert_eq!(times.ninth_decile(None), None, "too few to tell");
        (5..=10).for_each(|n| times.observe(None, true, seconds(n)));
        assert_eq!(times.ninth_decile(None), Some(seconds(9)));
        (0..100).for_each(|_| times.observe(None, true, seconds(1)));
        assert_eq!(times.ninth_decile(None), Some(seconds(1)), "what is long past is forgotten");
    }

    #[test]
    fn each_model_has_its_own_and_their_number_is_bounded() {
        let times = ServiceTime::default();
        (0..10).for_each(|_| times.observe(Some("slow"), true, seconds(40)));
        (0..10).for_each(|_| times.observe(None, true, seconds(2)));
        assert_eq!(times.ninth_decile(Some("slow")), Some(seconds(40)));
        assert_eq!(times.ninth_decile(None), Some(seconds(2)));
        assert_eq!(times.ninth_decile(Some("other")), None);
        (0..1_000).for_each(|n| times.observe(Some(&format!("model {n}")), true, seconds(1)));
        assert_eq!(times.0.lock().kinds.len(), MAX_KINDS);
    }

    #[test]
    fn those_whose_clients_wait_are_told_apart_once_there_are_enough() {
        let times = ServiceTime::default();
        (0..10).for_each(|_| times.observe(None, false, seconds(40)));
        assert_eq!(times.ninth_decile(None), Some(seconds(40)), "better than nothing");
        (0..LEAST).for_each(|_| times.observe(None, true, seconds(8)));
        assert_eq!(times.ninth_decile(None), Some(seconds(8)));
    }
}
