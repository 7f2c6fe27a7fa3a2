//! How the service fared over time: what happened in each minute of the last two days, and in each hour of the last ninety
//! days. In memory for those who look, in the store for the next start; a crash costs the minute that it falls into.
//!
//! Counted as things happen, written once a minute by `sweeper`: two small rows, however much happened. Each node writes rows
//! of its own and follows those of the others; a period is their sum. So of other nodes the minute under way is missing. Any
//! node deletes the oldest rows, so that the store holds so many periods and no more, whatever the clock does.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use async_trait::async_trait;
use futures_util::future::try_join_all;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::{
    clock::{Clock, Timestamp},
    job::StatusCounts,
    metrics::{Metrics, kind},
    registry::{Live, Registry, Unavailable},
};

/// Stored minutes: two days, so that yesterday can be compared with today.
const MINUTES: usize = 2 * 24 * 60;

/// Stored hours: a quarter of a year.
const HOURS: usize = 90 * 24;

const MINUTE: Duration = Duration::from_mins(1);
const HOUR: Duration = Duration::from_hours(1);

/// What the names of the rows begin with. The number of the period and the name of the node follow.
const SETTING: &str = "history/";
const MINUTE_SETTING: &str = "history/minute/";
const HOUR_SETTING: &str = "history/hour/";

/// Most rows of each kind that are deleted at a time.
const MAX_DELETED: usize = 256;

/// Times are recorded to about 4 %: so many steps from one power of two to the next.
const STEPS: f64 = 8.0;

/// What happened in a period.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Period {
    /// When it began.
    pub at: Timestamp,
    /// Jobs accepted.
    pub accepted: u64,
    /// Jobs that ended with a memo.
    pub succeeded: u64,
    /// Jobs that ended with an error.
    pub failed: u64,
    /// Jobs given up.
    pub cancelled: u64,
    /// Clients that asked to wait and got their answer in that time.
    pub in_time: u64,
    /// Clients that asked to wait and got a `202`.
    pub late: u64,
    /// Jobs waiting that could run: the most at the end of any of its minutes.
    pub queued: usize,
    /// Jobs being analysed: the most at the end of any of its minutes.
    pub running: usize,
    /// Input tokens that were reported, of all kinds.
    pub input_tokens: u64,
    /// Output tokens that were reported.
    pub output_tokens: u64,
    /// How long those took that ended with a memo, from acceptance.
    times: Times,
}

/// How often a time was seen, by steps that grow with it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Times(BTreeMap<u16, u64>);

/// The length of the periods of a history.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::EnumString, strum::IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum Resolution {
    /// A minute; the last two days.
    Minute,
    /// 15 minutes; the last two days.
    QuarterHour,
    /// An hour; the last 90 days.
    Hour,
    /// A day of UTC; the last 90 days.
    Day,
}

/// The history.
pub struct History {
    clock: Clock,
    metrics: Metrics,
    registry: Registry,
    /// The name of this node, which no other live node has.
    node: String,
    state: Mutex<State>,
}

/// By the number of the period since 1970, and the node.
type Rows = BTreeMap<(u32, String), Period>;

#[derive(Debug, Default)]
struct State {
    minutes: Rows,
    hours: Rows,
    /// On this node since its last record.
    times: Times,
    in_time: u64,
    late: u64,
    /// What the metrics had counted by then.
    counted: Counted,
}

/// What the metrics count from the start of the process on.
#[derive(Clone, Copy, Debug, Default)]
struct Counted {
    accepted: u64,
    succeeded: u64,
    failed: u64,
    cancelled: u64,
    input_tokens: u64,
    output_tokens: u64,
}

impl Resolution {
    /// How long a period is.
    pub fn period(self) -> Duration {
        match self {
            Resolution::Minute => MINUTE,
            Resolution::QuarterHour => 15 * MINUTE,
            Resolution::Hour => HOUR,
            Resolution::Day => 24 * HOUR,
        }
    }
}

impl Period {
    /// One in which nothing happened.
    pub fn new(at: Timestamp) -> Period {
        Period {
            at,
            accepted: 0,
            succeeded: 0,
            failed: 0,
            cancelled: 0,
            in_time: 0,
            late: 0,
            queued: 0,
            running: 0,
            input_tokens: 0,
            output_tokens: 0,
            times: Times::default(),
        }
    }

    /// Adds what happened in another period.
    pub fn add(&mut self, other: &Period) {
        for (sum, more) in [
            (&mut self.accepted, other.accepted),
            (&mut self.succeeded, other.succeeded),
            (&mut self.failed, other.failed),
            (&mut self.cancelled, other.cancelled),
            (&mut self.in_time, other.in_time),
            (&mut self.late, other.late),
            (&mut self.input_tokens, other.input_tokens),
            (&mut self.output_tokens, other.output_tokens),
        ] {
            *sum = sum.saturating_add(more);
        }
        self.queued = self.queued.max(other.queued);
        self.running = self.running.max(other.running);
        for (step, count) in &other.times.0 {
            *self.times.0.entry(*step).or_default() += count;
        }
    }

    /// The time within which this part of the memos came, 0.95 for 95 of 100; none if none came.
    pub fn quantile(&self, part: f64) -> Option<Duration> {
        let Times(times) = &self.times;
        let all: u64 = times.values().sum();
        let enough = all as f64 * part;
        let mut seen = 0;
        let step = times.iter().find(|(_, count)| {
            seen += **count;
            seen as f64 >= enough
        });
        // The middle of the step.
        step.map(|(step, _)| Duration::from_secs_f64(((f64::from(*step) + 0.5) / STEPS).exp2() / 1e3))
    }
}

impl Times {
    #[expect(clippy::cast_possible_truncation, reason = "no time has more than 80 powers of two of milliseconds")]
    fn add(&mut self, took: Duration) {
        let millis = (took.as_secs_f64() * 1e3).max(1.0);
        *self.0.entry((millis.log2() * STEPS) as u16).or_default() += 1;
    }
}

impl History {
    /// As the last run stored it.
    ///
    /// # Errors
    /// [`Unavailable`].
    pub async fn load(
        registry: Registry,
        clock: Clock,
        metrics: Metrics,
        node: String,
    ) -> Result<History, Unavailable> {
        let minutes = read_rows(&registry, MINUTE_SETTING, MINUTE_SETTING).await?;
        let hours = read_rows(&registry, HOUR_SETTING, HOUR_SETTING).await?;
        let state = State { minutes, hours, ..State::default() };
        Ok(History { clock, metrics, registry, node, state: Mutex::new(state) })
    }

    /// A job has ended with a memo, so long after it was accepted.
    pub fn succeeded(&self, took: Duration) {
        self.state.lock().times.add(took);
    }

    /// A client that asked to wait got its answer in time, or did not.
    pub fn waited(&self, in_time: bool) {
        let mut state = self.state.lock();
        *(if in_time { &mut state.in_time } else { &mut state.late }) += 1;
    }

    /// What happened from `from` on. The newest period is the one under way, with the jobs that wait and run now by
    /// `counts`. Periods in which the service did not run are not there.
    pub fn read(&self, resolution: Resolution, from: Timestamp, counts: StatusCounts) -> Vec<Period> {
        let now = self.clock.now();
        let state = self.state.lock();
        let (news, _) = state.news(now, &self.metrics, counts);
        let rows = match resolution {
            Resolution::Minute | Resolution::QuarterHour => &state.minutes,
            Resolution::Hour | Resolution::Day => &state.hours,
        };
        let length = resolution.period();
        let first = number(from, length);
        let mut periods: BTreeMap<u32, Period> = BTreeMap::new();
        for part in rows.values().chain([&news]).filter(|part| part.at <= now) {
            let place = number(part.at, length);
            if place >= first {
                periods.entry(place).or_insert_with(|| Period::new(start(place, length))).add(part);
            }
        }
        periods.into_values().collect()
    }

    /// Stores what has happened since the last record, as of the minute that `at` lies in.
    ///
    /// # Errors
    /// [`Unavailable`]; then it is in memory, and in the store with the next record of the same hour.
    pub async fn record(&self, at: Timestamp, counts: StatusCounts) -> Result<(), Unavailable> {
        let (minute, hour, surplus) = {
            let mut state = self.state.lock();
            let (minute, hour) = state.record(at, &self.metrics, counts, &self.node);
            (minute, hour, state.remove_surplus())
        };
        let put = async |setting: &str, length: Duration, period: &Period| {
            self.registry.put(name(setting, number(at, length), &self.node), period).await
        };
        tokio::try_join!(put(MINUTE_SETTING, MINUTE, &minute), put(HOUR_SETTING, HOUR, &hour))?;
        try_join_all(surplus.into_iter().map(|name| self.registry.delete(name))).await?;
        Ok(())
    }
}

#[async_trait]
impl Live for History {
    fn prefix(&self) -> &'static str {
        SETTING
    }

    async fn reload(&self, changed: &str) -> Result<(), Unavailable> {
        for (setting, rows_of) in
            [(MINUTE_SETTING, State::minutes as fn(&mut State) -> &mut Rows), (HOUR_SETTING, State::hours)]
        {
            let changed = if changed == SETTING { setting } else { changed };
            if !changed.starts_with(setting) {
                continue;
            }
            let stored = read_rows(&self.registry, setting, changed).await?;
            let mut state = self.state.lock();
            let rows = rows_of(&mut state);
            // What this node has in memory is newer than its rows.
            let is_own = |node: &String| *node == self.node;
            rows.retain(|(number, node), _| is_own(node) || !name(setting, *number, node).starts_with(changed));
            rows.extend(stored.into_iter().filter(|((_, node), _)| !is_own(node)));
        }
        Ok(())
    }
}

/// The rows of a kind whose names begin with `prefix`.
async fn read_rows(registry: &Registry, setting: &str, prefix: &str) -> Result<Rows, Unavailable> {
    let stored = registry.load::<Period>(prefix).await?.into_iter();
    let row = |(rest, period): (String, Period)| {
        let name = format!("{prefix}{rest}");
        let (number, node) = name.strip_prefix(setting)?.split_once('/')?;
        Some(((number.parse().ok()?, node.to_owned()), period))
    };
    Ok(stored.filter_map(row).collect())
}

fn name(setting: &str, number: u32, node: &str) -> String {
    format!("{setting}{number:010}/{node}")
}

/// Takes the rows of the oldest of more than `most` periods out, a part of very many.
fn take_surplus(rows: &mut Rows, most: usize) -> Vec<(u32, String)> {
    let numbers: BTreeSet<u32> = rows.keys().map(|(number, _)| *number).collect();
    let Some(oldest) = numbers.len().checked_sub(most).and_then(|surplus| numbers.into_iter().nth(surplus)) else {
        return Vec::new();
    };
    let surplus = rows.keys().take_while(|(number, _)| *number < oldest).take(MAX_DELETED);
    let surplus: Vec<(u32, String)> = surplus.cloned().collect();
    surplus.iter().for_each(|row| drop(rows.remove(row)));
    surplus
}

impl Counted {
    fn of(metrics: &Metrics) -> Counted {
        let Metrics { jobs_submitted, jobs_finished, tokens, .. } = metrics;
        let ended = |status| jobs_finished.get_or_create(&kind(status)).get();
        let tokens = |name| tokens.get_or_create(&kind(name)).get();
        Counted {
            accepted: jobs_submitted.get(),
            succeeded: ended("succeeded"),
            failed: ended("failed"),
            cancelled: ended("cancelled"),
            input_tokens: tokens("input") + tokens("cache_write") + tokens("cache_read"),
            output_tokens: tokens("output"),
        }
    }
}

impl State {
    /// What has happened since the last record, as of the minute that `at` lies in; and what `metrics` have counted. They
    /// are read here, behind the lock: read before it, they might be older than the last record.
    fn news(&self, at: Timestamp, metrics: &Metrics, counts: StatusCounts) -> (Period, Counted) {
        let (before, now) = (self.counted, Counted::of(metrics));
        let news = Period {
            accepted: now.accepted - before.accepted,
            succeeded: now.succeeded - before.succeeded,
            failed: now.failed - before.failed,
            cancelled: now.cancelled - before.cancelled,
            in_time: self.in_time,
            late: self.late,
            queued: counts.queued,
            running: counts.running,
            input_tokens: now.input_tokens - before.input_tokens,
            output_tokens: now.output_tokens - before.output_tokens,
            times: self.times.clone(),
            ..Period::new(start(number(at, MINUTE), MINUTE))
        };
        (news, now)
    }

    fn minutes(&mut self) -> &mut Rows {
        &mut self.minutes
    }

    fn hours(&mut self) -> &mut Rows {
        &mut self.hours
    }

    /// Adds the news to this node's row of their minute, and that to its row of the hour. Returns both.
    fn record(&mut self, at: Timestamp, metrics: &Metrics, counts: StatusCounts, node: &str) -> (Period, Period) {
        let (news, counted) = self.news(at, metrics, counts);
        (self.times, self.in_time, self.late, self.counted) = (Times::default(), 0, 0, counted);
        let at = news.at;
        let minute = self.minutes.entry((number(at, MINUTE), node.to_owned())).or_insert_with(|| Period::new(at));
        minute.add(&news);
        let minute = minute.clone();
        let of_hour = number(at, HOUR);
        let first = of_hour.saturating_mul(60);
        let mut hour = Period::new(start(of_hour, HOUR));
        let minutes = self.minutes.range((first, String::new())..(first.saturating_add(60), String::new()));
        minutes.filter(|((_, of), _)| of == node).for_each(|(_, minute)| hour.add(minute));
        self.hours.insert((of_hour, node.to_owned()), hour.clone());
        (minute, hour)
    }

    /// Forgets the rows that are too old. Returns their names.
    fn remove_surplus(&mut self) -> Vec<String> {
        let named = |setting: &'static str| move |(number, node): (u32, String)| name(setting, number, &node);
        let minutes = take_surplus(&mut self.minutes, MINUTES).into_iter().map(named(MINUTE_SETTING));
        minutes.chain(take_surplus(&mut self.hours, HOURS).into_iter().map(named(HOUR_SETTING))).collect()
    }
}

/// The number of the period of this length that a moment lies in, counted from 1970.
fn number(at: Timestamp, length: Duration) -> u32 {
    let periods = u128::try_from(at.as_millis()).unwrap_or(0) / length.as_millis();
    u32::try_from(periods).unwrap_or(u32::MAX)
}

/// When the period of this number begins.
fn start(number: u32, length: Duration) -> Timestamp {
    Timestamp::from_millis(i64::try_from(length.as_millis() * u128::from(number)).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::store::{self, Registry as _, memory::MemoryStore};

    /// Noon of some day.
    const NOON: i64 = 1_795_435_200_000;

    fn noon() -> Timestamp {
        Timestamp::from_millis(NOON)
    }

    async fn open(store: &Arc<MemoryStore>, clock: &Clock) -> History {
        node("a", store, clock).await
    }

    async fn node(name: &str, store: &Arc<MemoryStore>, clock: &Clock) -> History {
        let registry = Registry::new(Arc::clone(store) as Arc<dyn store::Registry>);
        History::load(registry, clock.clone(), Metrics::new(), name.to_owned()).await.unwrap()
    }

    fn read(history: &History, resolution: Resolution, from: Timestamp) -> Vec<Period> {
        history.read(resolution, from, StatusCounts::default())
    }

    /// So many memos, each after so long.
    fn memos(history: &History, count: u64, took: Duration) {
        history.metrics.jobs_finished.get_or_create(&kind("succeeded")).inc_by(count);
        (0..count).for_each(|_| history.succeeded(took));
    }

    fn succeeded(periods: &[Period]) -> Vec<(Timestamp, u64)> {
        periods.iter().map(|period| (period.at, period.succeeded)).collect()
    }

    #[tokio::test]
    async fn what_was_noted_is_there_after_a_crash_and_goes_on_in_the_same_minute() {
        let (store, clock) = (Arc::<MemoryStore>::default(), Clock::manual(noon()));
        let history = open(&store, &clock).await;
        history.metrics.jobs_submitted.inc_by(3);
        history.metrics.tokens.get_or_create(&kind("cache_read")).inc_by(70);
        memos(&history, 2, Duration::from_secs(10));
        history.waited(true);
        history.record(noon(), StatusCounts::default()).await.unwrap();
        memos(&history, 40, Duration::from_secs(1));
        drop(history);

        clock.advance(Duration::from_secs(30));
        let history = open(&store, &clock).await;
        memos(&history, 1, Duration::from_secs(10));
        history.waited(false);
        for (resolution, at) in [
            (Resolution::Minute, noon()),
            (Resolution::QuarterHour, noon()),
            (Resolution::Hour, noon()),
            (Resolution::Day, noon().minus(12 * HOUR)),
        ] {
            for noted in [false, true] {
                let [period] = &read(&history, resolution, noon())[..] else { panic!("one period") };
                assert_eq!((period.at, period.accepted, period.succeeded), (at, 3, 3), "{resolution:?} {noted}");
                assert_eq!((period.in_time, period.late, period.input_tokens), (1, 1, 70));
                history.record(clock.now(), StatusCounts::default()).await.unwrap();
            }
        }
    }

    #[tokio::test]
    async fn whoever_looks_while_a_record_is_made_is_told_what_happened_and_no_more() {
        const JOBS: u64 = 20_000;
        let history = &open(&Arc::default(), &Clock::manual(noon())).await;
        let metrics = &history.metrics;
        let told = || read(history, Resolution::Minute, noon())[0].accepted;
        std::thread::scope(|scope| {
            let records = scope.spawn(|| {
                for _ in 0..JOBS {
                    metrics.jobs_submitted.inc();
                    history.state.lock().record(noon(), metrics, StatusCounts::default(), "a");
                }
            });
            let mut before = 0;
            while !records.is_finished() {
                let now = told();
                assert!((before..=JOBS).contains(&now), "{now} after {before}");
                before = now;
            }
        });
        assert_eq!(told(), JOBS);
    }

    #[tokio::test]
    async fn minutes_add_up_and_what_is_before_is_not_told() {
        let (store, clock) = (Arc::<MemoryStore>::default(), Clock::manual(noon()));
        let history = open(&store, &clock).await;
        for minute in 0..20 {
            memos(&history, minute, Duration::from_secs(minute));
            history.record(clock.now(), StatusCounts::default()).await.unwrap();
            clock.advance(MINUTE);
        }
        let quarter = 15 * MINUTE;
        let told = read(&history, Resolution::QuarterHour, noon());
        assert_eq!(succeeded(&told), [(noon(), (0..15).sum()), (noon().plus(quarter), (15..20).sum())]);
        assert_eq!(succeeded(&read(&history, Resolution::QuarterHour, noon().plus(quarter))).len(), 1);
        assert_eq!(succeeded(&read(&history, Resolution::Hour, noon())), [(noon(), (0..20).sum())]);
        let minutes = read(&history, Resolution::Minute, noon().plus(18 * MINUTE));
        assert_eq!(
            minutes.iter().map(|minute| minute.succeeded).collect::<Vec<_>>(),
            [18, 19, 0],
            "and the one under way"
        );
    }

    #[tokio::test]
    async fn however_long_it_runs_so_many_rows_are_stored_and_no_more() {
        let (store, clock) = (Arc::<MemoryStore>::default(), Clock::manual(noon()));
        let history = open(&store, &clock).await;
        let hours = HOURS + 10;
        for _ in 0..hours {
            let mut state = history.state.lock();
            for minute in 0..60 {
                state.record(clock.now().plus(minute * MINUTE), &history.metrics, StatusCounts::default(), "a");
            }
            state.remove_surplus();
            clock.advance(HOUR);
        }
        let kept = |length| {
            let state = history.state.lock();
            if length == MINUTE { state.minutes.len() } else { state.hours.len() }
        };
        assert_eq!((kept(MINUTE), kept(HOUR)), (MINUTES, HOURS));
        assert!(store.prefix(SETTING).await.unwrap().is_empty());
        for minute in 0..MINUTES + 10 {
            let at = clock.now().plus(u32::try_from(minute).unwrap() * MINUTE);
            history.record(at, StatusCounts::default()).await.unwrap();
        }
        assert_eq!(store.prefix(MINUTE_SETTING).await.unwrap().len(), MINUTES, "each row replaces the oldest");
        assert_eq!(store.prefix(HOUR_SETTING).await.unwrap().len(), MINUTES / 60 + 1);
    }

    #[tokio::test]
    async fn rows_of_all_nodes_add_up_on_each_and_none_replaces_that_of_another() {
        let (store, clock) = (Arc::<MemoryStore>::default(), Clock::manual(noon()));
        let [one, other] = [node("one", &store, &clock).await, node("other", &store, &clock).await];
        let queued = StatusCounts { queued: 5, ..StatusCounts::default() };
        for (history, count) in [(&one, 3), (&other, 4)] {
            memos(history, count, Duration::from_secs(1));
            history.record(clock.now(), queued).await.unwrap();
        }
        for name in [name(MINUTE_SETTING, number(noon(), MINUTE), "other"), SETTING.to_owned()] {
            one.reload(&name).await.unwrap();
        }
        other.reload(SETTING).await.unwrap();
        let again = node("third", &store, &clock).await;
        for history in [&one, &other, &again] {
            for resolution in [Resolution::Minute, Resolution::Hour] {
                let [period] = &read(history, resolution, noon())[..] else { panic!("one period") };
                let times: u64 = period.times.0.values().sum();
                assert_eq!((period.succeeded, times, period.queued), (7, 7, 5), "all nodes see the same queue");
            }
        }
        memos(&one, 1, Duration::from_secs(1));
        one.reload(SETTING).await.unwrap();
        assert_eq!(succeeded(&read(&one, Resolution::Minute, noon())), [(noon(), 8)]);
        // A node that is gone leaves rows, which any other deletes.
        drop(other);
        for minute in 1..=MINUTES {
            let at = noon().plus(u32::try_from(minute).unwrap() * MINUTE);
            one.record(at, StatusCounts::default()).await.unwrap();
        }
        let rows = store.prefix(MINUTE_SETTING).await.unwrap();
        assert!(rows.len() == MINUTES && rows.iter().all(|(name, _)| name.ends_with("/one")));
    }

    #[test]
    fn quantiles_are_told_to_a_few_percent_and_none_of_nothing() {
        let mut period = Period::new(noon());
        assert_eq!(period.quantile(0.5), None);
        (1..=1_000).for_each(|n| period.times.add(Duration::from_millis(n * 20)));
        for (part, expected) in [(0.5, 10.0), (0.95, 19.0), (1.0, 20.0)] {
            let told = period.quantile(part).unwrap().as_secs_f64();
            assert!((told / expected - 1.0).abs() < 0.06, "{part}: {told}");
        }
        let mut twice = period.clone();
        twice.add(&period);
        assert_eq!(twice.quantile(0.95), period.quantile(0.95));
        period.times.add(Duration::ZERO);
        period.times.add(Duration::MAX);
    }
}
