//! The time of the service, and the one type for a moment in time.
//!
//! The machine's clock (the wall clock) may be wrong, and may be corrected at any moment. So the service orders and dates
//! everything by a time of its own, [`Clock::now`]. This service time:
//!
//! - never runs back. It runs with the monotonic clock, which also counts the time that a machine sleeps.
//! - follows the wall clock as long as that does not jump. Where the wall clock is behind, it runs a tenth slower until both
//!   agree.
//! - follows a forward jump of the wall clock that has lasted for [`FOLLOW_AFTER`].
//! - goes on after a restart from the last time on disk ([`SavedTime`]), or from the wall clock if that is later.
//!
//! Nothing is deleted on the word of a jump: [`Clock::skipped`] says how much of a span was jumped over and not measured.
//!
//! A node of a database takes the database's clock for the wall clock ([`Clock::follow`]), as the other nodes do.
//!
//! The wall clock itself counts where others compare with it: signatures, HTTP dates, and the `run_at` of a client.
//! Pure functions take `now` as an argument. Tests use a [`Clock::manual`], so that hours pass at once. Timeouts of calls
//! use tokio's clock.

use std::{
    fmt,
    num::NonZeroI64,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::{Duration, SystemTime},
};

use parking_lot::{Mutex, MutexGuard};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use tracing::warn;

/// How long the wall clock must have been ahead before the service follows it. Mistakes are usually corrected sooner.
pub const FOLLOW_AFTER: Duration = Duration::from_mins(10);

/// How long the wall clock must agree after a start before the time since the last run counts for deletion.
pub const PROOF: Duration = Duration::from_hours(1);

/// A smaller difference is not a jump.
const TOLERANCE: Duration = Duration::from_secs(1);

/// The service time loses one part in so many while it is ahead of the wall clock.
const SLOWER: i64 = 10;

/// 1 November 2026. A wall clock before this, such as one that starts in 1970, is wrong.
const EARLIEST: Timestamp = Timestamp::from_millis(1_793_491_200_000);

/// A smaller difference to the clock that is followed is not corrected.
const PRECISION: Duration = Duration::from_millis(20);

/// More jumps are remembered as one.
const MAX_JUMPS: usize = 32;

/// A moment: milliseconds since the Unix epoch, UTC.
///
/// Written as RFC 3339 with milliseconds in JSON, as a plain integer in compact formats. The epoch itself is not
/// representable (it becomes one millisecond later), which keeps `Option<Timestamp>` at eight bytes: the queue holds
/// several in memory for every job.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(NonZeroI64);

const FIRST: NonZeroI64 = NonZeroI64::new(1).expect("one is not zero");

impl Timestamp {
    pub const fn from_millis(millis: i64) -> Timestamp {
        match NonZeroI64::new(millis) {
            Some(millis) => Timestamp(millis),
            None => Timestamp(FIRST),
        }
    }

    pub fn as_millis(self) -> i64 {
        self.0.get()
    }

    pub fn plus(self, duration: Duration) -> Timestamp {
        Timestamp::from_millis(self.as_millis().saturating_add(millis(duration)))
    }

    pub fn minus(self, duration: Duration) -> Timestamp {
        Timestamp::from_millis(self.as_millis().saturating_sub(millis(duration)))
    }

    /// How long after `earlier` this is; zero if it is before.
    pub fn since(self, earlier: Timestamp) -> Duration {
        let millis = self.as_millis().saturating_sub(earlier.as_millis());
        Duration::from_millis(u64::try_from(millis).unwrap_or(0))
    }

    pub fn date(self) -> String {
        self.to_string().chars().take_while(|&c| c != 'T').collect()
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // jiff has the years -9999 to 9999.
        let end = if self.as_millis() < 0 { jiff::Timestamp::MIN } else { jiff::Timestamp::MAX };
        write!(f, "{:.3}", jiff::Timestamp::from_millisecond(self.as_millis()).unwrap_or(end))
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.collect_str(self)
        } else {
            serializer.serialize_i64(self.as_millis())
        }
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Timestamp, D::Error> {
        if deserializer.is_human_readable() {
            let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
            let moment: jiff::Timestamp = text.parse().map_err(|_| {
                D::Error::custom(format_args!("{text:?} is not an RFC 3339 time such as 2026-11-23T09:30:00Z"))
            })?;
            Ok(Timestamp::from_millis(moment.as_millisecond()))
        } else {
            i64::deserialize(deserializer).map(Timestamp::from_millis)
        }
    }
}

#[derive(Clone, Debug)]
pub struct Clock(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    source: Source,
    time: Mutex<ServiceTime>,
}

#[derive(Debug)]
enum Source {
    /// The machine's clock, and by how many microseconds the clock that is followed is ahead of it.
    System(AtomicI64),
    Manual(Arc<Hands>),
}

/// A manual clock's wall and monotonic time in microseconds.
#[derive(Debug)]
struct Hands {
    wall: AtomicI64,
    monotonic: AtomicI64,
    /// They also run with the time of tokio from then on.
    running_since: Option<tokio::time::Instant>,
}

#[derive(Debug)]
struct ServiceTime {
    now: i64,
    /// The monotonic time of `now`.
    monotonic: i64,
    /// Since when, in monotonic time, the wall clock has been ahead.
    ahead_since: Option<i64>,
    /// The wall clock is behind, and the log says so.
    is_ahead: bool,
    is_guess: bool,
    /// [`Clock::resume`] was called.
    is_resumed: bool,
    jumps: Vec<Jump>,
}

/// A span of service time that nothing measured.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Jump {
    to: i64,
    by: i64,
    /// The time between two runs, taken from the wall clock: it counts from this monotonic time on, if the wall clock
    /// still agrees with it.
    proven_at: Option<i64>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedTime {
    now: i64,
    /// The end and length of each jump, and whether it is to be proven.
    jumps: Vec<(i64, i64, bool)>,
}

impl Clock {
    pub fn system() -> Clock {
        Clock::of(Source::System(AtomicI64::new(0)))
    }

    /// A clock that stands at `start` until it is [advanced](Clock::advance).
    pub fn manual(start: Timestamp) -> Clock {
        let wall = AtomicI64::new(start.as_millis().saturating_mul(1_000));
        Clock::of(Source::Manual(Arc::new(Hands { wall, monotonic: AtomicI64::new(0), running_since: None })))
    }

    /// A manual clock that also runs with the time of tokio, which tests pause.
    #[cfg(test)]
    pub(crate) fn running(start: Timestamp) -> Clock {
        let wall = AtomicI64::new(start.as_millis().saturating_mul(1_000));
        let running_since = Some(tokio::time::Instant::now());
        Clock::of(Source::Manual(Arc::new(Hands { wall, monotonic: AtomicI64::new(0), running_since })))
    }

    /// The clock of the service's next run on the same machine.
    #[must_use]
    pub fn restarted(&self) -> Clock {
        match &self.0.source {
            Source::System(_) => Clock::system(),
            Source::Manual(hands) => Clock::of(Source::Manual(Arc::clone(hands))),
        }
    }

    fn of(source: Source) -> Clock {
        let (wall, monotonic) = source.read();
        Clock(Arc::new(Inner { source, time: Mutex::new(ServiceTime::starting(wall, monotonic)) }))
    }

    pub fn now(&self) -> Timestamp {
        moment(self.time().0.now)
    }

    /// The machine's clock, or that of the database: for what others compare with their clocks.
    pub fn wall(&self) -> Timestamp {
        moment(self.0.source.read().0)
    }

    /// How far the service time is ahead of a wall clock that was set back.
    pub fn lead(&self) -> Duration {
        let (time, wall) = self.time();
        let lead = duration(time.now.saturating_sub(wall));
        if lead > TOLERANCE { lead } else { Duration::ZERO }
    }

    /// How much of the service time was jumped over in the last `measured`. Deletion by age waits for so much longer.
    pub fn skipped(&self, measured: Duration) -> Duration {
        let (time, _) = self.time();
        let mut from = time.now.saturating_sub(micros(measured));
        let mut skipped = 0;
        for jump in time.jumps.iter().rev().filter(|jump| jump.by > 0) {
            if from < jump.to {
                from = from.saturating_sub(jump.by);
                skipped += jump.by;
            }
        }
        duration(skipped)
    }

    pub fn save(&self) -> SavedTime {
        let (time, _) = self.time();
        let jumps = time.jumps.iter().map(|jump| (jump.to, jump.by, jump.proven_at.is_some()));
        SavedTime { now: time.now, jumps: jumps.collect() }
    }

    /// Continues from the last run, if there was one. Only the first call counts: a store may be opened again in one run.
    pub fn resume(&self, saved: Option<&SavedTime>) {
        let (mut time, _) = self.time();
        let is_first = !std::mem::replace(&mut time.is_resumed, true);
        if let Some(saved) = saved.filter(|_| is_first) {
            time.resume(saved);
        }
    }

    /// Follows another clock instead of the machine's, here and on all nodes. It showed `now` at most `ago` before this
    /// call. Before [`Clock::resume`] the service time starts from it. Does nothing to a manual clock.
    pub fn follow(&self, now: Timestamp, ago: Duration) {
        let Source::System(ahead) = &self.0.source else { return };
        let machine = micros(SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default());
        let found = now.as_millis().saturating_mul(1_000).saturating_add(micros(ago / 2)).saturating_sub(machine);
        let before = ahead.load(Ordering::SeqCst);
        if found.abs_diff(before) < (PRECISION + ago).as_micros().try_into().unwrap_or(u64::MAX) {
            return;
        }
        if found.unsigned_abs() > TOLERANCE.as_micros().try_into().unwrap_or(u64::MAX) {
            warn!(
                seconds_ahead = -found / 1_000_000,
                "this machine's clock differs from the database's: the service follows the database's"
            );
        }
        let mut time = self.0.time.lock();
        ahead.store(found, Ordering::SeqCst);
        if !time.is_resumed {
            let (wall, monotonic) = self.0.source.read();
            *time = ServiceTime::starting(wall, monotonic);
        }
    }

    /// Lets time pass on a manual clock. Does nothing to the machine's clock.
    pub fn advance(&self, by: Duration) {
        self.move_hands(micros(by), micros(by));
    }

    /// Sets the wall clock of a manual clock without time passing.
    pub fn set_forward(&self, by: Duration) {
        self.move_hands(micros(by), 0);
    }

    pub fn set_back(&self, by: Duration) {
        self.move_hands(-micros(by), 0);
    }

    fn move_hands(&self, wall: i64, monotonic: i64) {
        if let Source::Manual(hands) = &self.0.source {
            hands.wall.fetch_add(wall, Ordering::SeqCst);
            hands.monotonic.fetch_add(monotonic, Ordering::SeqCst);
        }
    }

    fn time(&self) -> (MutexGuard<'_, ServiceTime>, i64) {
        // Read under the lock, so that no reading is older than the one before.
        let mut time = self.0.time.lock();
        let (wall, monotonic) = self.0.source.read();
        time.tick(wall, monotonic);
        (time, wall)
    }
}

impl Source {
    fn read(&self) -> (i64, i64) {
        match self {
            Source::System(ahead) => {
                let machine = micros(SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default());
                (machine.saturating_add(ahead.load(Ordering::SeqCst)), micros(since_boot()))
            }
            Source::Manual(hands) => {
                let run = hands.running_since.map_or(0, |since| micros(since.elapsed()));
                (hands.wall.load(Ordering::SeqCst) + run, hands.monotonic.load(Ordering::SeqCst) + run)
            }
        }
    }
}

/// Monotonic time that goes on while the machine sleeps.
#[cfg(target_os = "linux")]
fn since_boot() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

#[cfg(not(target_os = "linux"))]
fn since_boot() -> Duration {
    static START: std::sync::LazyLock<std::time::Instant> = std::sync::LazyLock::new(std::time::Instant::now);
    START.elapsed()
}

impl ServiceTime {
    fn starting(wall: i64, monotonic: i64) -> ServiceTime {
        let earliest = EARLIEST.as_millis() * 1_000;
        ServiceTime {
            now: wall.max(earliest),
            monotonic,
            ahead_since: None,
            is_ahead: false,
            is_guess: wall < earliest,
            is_resumed: false,
            jumps: Vec::new(),
        }
    }

    fn tick(&mut self, wall: i64, monotonic: i64) {
        let elapsed = (monotonic - self.monotonic).max(0);
        self.monotonic = self.monotonic.max(monotonic);
        self.now = self.now.saturating_add(elapsed);
        let ahead = wall.saturating_sub(self.now);
        if ahead <= micros(TOLERANCE) {
            self.ahead_since = None;
            self.now += if ahead < 0 { -(elapsed / SLOWER).min(-ahead) } else { ahead };
        } else {
            let since = *self.ahead_since.get_or_insert_with(|| {
                warn!(
                    seconds = ahead / 1_000_000,
                    "the machine's clock has jumped ahead; the service follows if it stays so"
                );
                monotonic
            });
            if monotonic - since >= micros(FOLLOW_AFTER) || (self.is_guess && wall >= EARLIEST.as_millis() * 1_000) {
                warn!(seconds = ahead / 1_000_000, "the machine's clock has stayed ahead: the service follows it");
                self.now = wall;
                self.ahead_since = None;
                self.jumped(Jump { to: wall, by: ahead, proven_at: None });
            }
        }
        self.is_guess &= self.now != wall;
        self.doubt(self.now.saturating_sub(wall));
        self.jumps.retain(|jump| jump.proven_at.is_none_or(|at| monotonic < at));
    }

    /// `lead` is how far the wall clock is behind: it may have been wrong when this run began.
    fn doubt(&mut self, lead: i64) {
        let is_ahead = lead > micros(TOLERANCE);
        if is_ahead && !self.is_ahead {
            warn!(
                seconds = lead / 1_000_000,
                "the machine's clock was set back: times of the service stay ahead until it has caught up"
            );
        }
        self.is_ahead = is_ahead;
        for jump in self.jumps.iter_mut().filter(|jump| lead > jump.by / 2) {
            jump.proven_at = None;
        }
    }

    fn resume(&mut self, saved: &SavedTime) {
        let proven_at = self.monotonic.saturating_add(micros(PROOF));
        for &(to, by, is_unproven) in &saved.jumps {
            self.jumps.push(Jump { to, by, proven_at: is_unproven.then_some(proven_at) });
        }
        let gap = self.now.saturating_sub(saved.now);
        self.now = self.now.max(saved.now);
        if gap > micros(TOLERANCE) {
            self.jumped(Jump { to: self.now, by: gap, proven_at: Some(proven_at) });
        }
    }

    fn jumped(&mut self, jump: Jump) {
        self.jumps.push(jump);
        while self.jumps.len() > MAX_JUMPS {
            // Merged with the next: deletion rather too late than too early.
            let first = self.jumps.remove(0);
            let next = &mut self.jumps[0];
            next.by = next.by.saturating_add(first.by);
            next.proven_at = next.proven_at.and(first.proven_at);
        }
    }
}

/// The pause that a `Retry-After` header asks for, in seconds or until a date (of HTTP or RFC 3339). Zero for a past date.
pub fn retry_after(text: &str, now: SystemTime) -> Option<Duration> {
    let text = text.trim();
    if let Ok(seconds) = text.parse::<f64>() {
        // A billion seconds is more than any caller waits.
        return Duration::try_from_secs_f64(seconds.min(1e9)).ok().filter(|_| seconds.is_finite());
    }
    let date = || text.parse::<jiff::Timestamp>().map(SystemTime::from).ok();
    let date = httpdate::parse_http_date(text).ok().or_else(date)?;
    Some(date.duration_since(now).unwrap_or_default())
}

fn moment(micros: i64) -> Timestamp {
    Timestamp::from_millis(micros.div_euclid(1_000))
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

fn duration(micros: i64) -> Duration {
    Duration::from_micros(u64::try_from(micros).unwrap_or(0))
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// A smaller difference is that of two readings.
const SAME_MOMENT: Duration = Duration::from_millis(100);

/// One moment by both clocks. The same moment is always converted to the same time.
#[derive(Clone, Copy, Debug)]
pub struct Moments {
    instant: tokio::time::Instant,
    at: Timestamp,
}

impl Moments {
    pub fn now(clock: &Clock) -> Moments {
        Moments { instant: tokio::time::Instant::now(), at: clock.now() }
    }

    /// The same, unless the clocks have run apart.
    pub fn renewed(self, clock: &Clock) -> Moments {
        let now = Moments::now(clock);
        let expected = self.timestamp(now.instant);
        let is_apart = expected.since(now.at).max(now.at.since(expected)) > SAME_MOMENT;
        if is_apart { now } else { self }
    }

    /// The same moment by a clock that has already shown `at`.
    pub fn no_earlier(self, at: Timestamp) -> Moments {
        Moments { at: self.at.max(at), ..self }
    }

    pub fn timestamp(&self, instant: tokio::time::Instant) -> Timestamp {
        match instant.checked_duration_since(self.instant) {
            Some(later) => self.at.plus(later),
            None => self.at.minus(self.instant - instant),
        }
    }

    /// A moment from before this machine's start counts as now.
    pub fn instant(&self, at: Timestamp) -> tokio::time::Instant {
        let moved = match at >= self.at {
            true => self.instant.checked_add(at.since(self.at)),
            false => self.instant.checked_sub(self.at.since(at)),
        };
        moved.unwrap_or(self.instant)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timestamp_is_written_as_rfc_3339_with_milliseconds_and_read_back() {
        let moment = Timestamp::from_millis(1_795_428_600_120);
        let json = serde_json::to_string(&moment).unwrap();
        assert_eq!(json, "\"2026-11-23T10:10:00.120Z\"");
        assert_eq!(serde_json::from_str::<Timestamp>(&json).unwrap(), moment);
        assert_eq!(moment.date(), "2026-11-23");
    }

    #[test]
    fn a_timestamp_with_an_offset_is_the_same_moment_in_utc() {
        let read: Timestamp = serde_json::from_str("\"2026-11-23T18:10:00+08:00\"").unwrap();
        assert_eq!(read.to_string(), "2026-11-23T10:10:00.000Z");
    }

    #[test]
    fn what_is_not_a_time_is_refused_with_an_example() {
        let error = serde_json::from_str::<Timestamp>("\"tomorrow\"").unwrap_err().to_string();
        assert!(error.contains("tomorrow") && error.contains("RFC 3339"), "{error}");
    }

    #[test]
    fn a_node_follows_the_clock_of_the_database_from_its_start_and_when_it_changes() {
        let (clock, machine) = (Clock::system(), Clock::system());
        let (minute, second) = (Duration::from_mins(1), Duration::from_secs(1));
        clock.follow(machine.now().minus(minute), Duration::ZERO);
        clock.resume(None);
        assert!(machine.now().since(clock.now()) > minute - second, "the machine is a minute ahead");
        clock.follow(machine.now(), minute * 3);
        assert!(machine.wall().since(clock.wall()) > minute - second, "an answer that took minutes says nothing");
        clock.follow(machine.now(), Duration::ZERO);
        assert!(machine.wall().since(clock.wall()) < second);
    }

    #[test]
    fn an_optional_timestamp_costs_nothing_extra() {
        assert_eq!(size_of::<Option<Timestamp>>(), 8);
        assert_eq!(Timestamp::from_millis(0).as_millis(), 1);
    }

    #[test]
    fn the_ends_of_time_are_shown_rather_than_a_panic() {
        assert!(Timestamp::from_millis(i64::MAX).to_string().starts_with("9999"));
        assert!(Timestamp::from_millis(i64::MIN).to_string().starts_with("-009999"));
    }

    const HOUR: Duration = Duration::from_hours(1);
    const MONTH: Duration = Duration::from_hours(24 * 31);

    fn clock() -> Clock {
        Clock::manual(Timestamp::from_millis(1_800_000_000_000))
    }

    /// Has time pass in steps of a second, as a service looks at its clock, and checks that it never runs back.
    fn pass(clock: &Clock, by: Duration) -> Duration {
        let start = clock.now();
        let mut last = start;
        for _ in 0..by.as_secs() {
            clock.advance(Duration::from_secs(1));
            let now = clock.now();
            assert!(now >= last, "{now} is before {last}");
            last = now;
        }
        last.since(start)
    }

    #[test]
    fn a_jump_of_the_wall_clock_that_does_not_last_changes_nothing() {
        for by in [HOUR, MONTH] {
            let clock = clock();
            clock.set_forward(by);
            assert_eq!(pass(&clock, Duration::from_secs(5)).as_secs(), 5);
            assert_eq!((clock.wall(), clock.lead()), (clock.now().plus(by), Duration::ZERO));
            clock.set_back(by);
            assert_eq!((clock.now(), clock.skipped(MONTH)), (clock.wall(), Duration::ZERO));
        }
    }

    #[test]
    fn a_forward_jump_that_lasts_is_followed_and_counts_for_no_deletion() {
        let clock = clock();
        clock.now();
        clock.set_forward(MONTH);
        pass(&clock, FOLLOW_AFTER + TOLERANCE);
        assert_eq!(clock.now(), clock.wall());
        assert_eq!(clock.skipped(Duration::ZERO), Duration::ZERO);
        assert_eq!(clock.skipped(HOUR), MONTH, "what is an hour old seems a month older");
        clock.advance(MONTH);
        assert_eq!((clock.skipped(HOUR), clock.skipped(2 * MONTH)), (Duration::ZERO, MONTH));
    }

    #[test]
    fn behind_it_the_wall_clock_is_caught_up_with_by_running_a_tenth_slower() {
        let clock = clock();
        clock.now();
        clock.set_back(HOUR);
        assert_eq!(clock.lead(), HOUR);
        assert_eq!(pass(&clock, Duration::from_secs(1_000)).as_secs(), 900);
        pass(&clock, 10 * HOUR);
        assert_eq!((clock.now(), clock.lead()), (clock.wall(), Duration::ZERO));
    }

    #[test]
    fn a_restart_goes_on_from_the_last_time_or_the_wall_clock_whichever_is_later() {
        let first = clock();
        let saved = first.save();
        first.set_back(MONTH);
        let second = first.restarted();
        second.resume(Some(&saved));
        assert_eq!(second.now(), Timestamp::from_millis(1_800_000_000_000));
        second.set_forward(MONTH);
        second.advance(2 * HOUR);
        let third = second.restarted();
        third.resume(Some(&saved));
        assert_eq!(third.now(), third.wall());
        assert_eq!(third.skipped(HOUR), 2 * HOUR, "for the moment nobody knows");
        third.resume(Some(&SavedTime::default()));
        pass(&third, PROOF);
        assert_eq!(third.skipped(MONTH), Duration::ZERO, "the wall clock has stood the test");
    }

    #[test]
    fn a_wall_clock_that_was_wrong_at_the_start_and_is_put_right_never_counts_for_deletion() {
        let first = clock();
        let saved = first.save();
        first.set_forward(MONTH);
        let second = first.restarted();
        second.resume(Some(&saved));
        assert_eq!(second.now(), second.wall());
        pass(&second, Duration::from_secs(5));
        second.set_back(MONTH);
        pass(&second, 2 * PROOF);
        assert_eq!(second.skipped(PROOF), Duration::ZERO);
        assert_eq!(second.skipped(3 * PROOF), MONTH);
        let third = second.restarted();
        third.resume(Some(&second.save()));
        assert_eq!((third.now(), third.skipped(3 * PROOF)), (second.now(), MONTH), "also after the next restart");
    }

    #[test]
    fn a_start_in_1970_takes_the_right_time_as_soon_as_there_is_one() {
        let clock = Clock::manual(Timestamp::from_millis(5_000));
        assert_eq!(clock.now(), EARLIEST);
        pass(&clock, Duration::from_secs(20));
        clock.set_forward(Timestamp::from_millis(1_800_000_000_000).since(clock.wall()));
        assert_eq!(clock.now(), clock.wall());
        assert!(clock.skipped(HOUR) > MONTH, "what was dated meanwhile is not old");
        clock.set_forward(HOUR);
        pass(&clock, Duration::from_secs(5));
        assert_eq!(clock.wall().since(clock.now()), HOUR, "from then on jumps have to last");
    }

    #[test]
    fn very_many_jumps_are_remembered_as_fewer() {
        let clock = clock();
        for _ in 0..3 * MAX_JUMPS {
            clock.set_forward(HOUR);
            clock.now();
            clock.advance(FOLLOW_AFTER);
            clock.now();
        }
        assert_eq!(clock.save().jumps.len(), MAX_JUMPS);
        assert_eq!(clock.skipped(MONTH), HOUR * 3 * u32::try_from(MAX_JUMPS).unwrap());
    }

    #[test]
    fn the_machines_clock_runs() {
        let clock = Clock::system();
        let (now, wall) = (clock.now(), clock.wall());
        assert!(wall.since(now) <= TOLERANCE && clock.lead() <= TOLERANCE, "{now} {wall}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_moment_has_the_same_time_on_both_nodes_and_after_a_jump_of_the_clock_the_new_one() {
        let clock = Clock::manual(Timestamp::from_millis(1_800_000_000_000));
        let moments = Moments::now(&clock);
        for instant in
            [tokio::time::Instant::now() + Duration::from_secs(5), tokio::time::Instant::now() - Duration::from_secs(5)]
        {
            assert_eq!(moments.instant(moments.timestamp(instant)), instant);
        }
        let later = tokio::time::Instant::now() + Duration::from_secs(1);
        tokio::time::advance(Duration::from_secs(1)).await;
        clock.advance(Duration::from_secs(1));
        assert_eq!(moments.renewed(&clock).timestamp(later), clock.now());
        clock.advance(Duration::from_mins(1));
        assert_eq!(moments.renewed(&clock).timestamp(later), clock.now());
    }
}
