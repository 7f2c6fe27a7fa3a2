//! The only wall clock of the service, and the one type for a moment in time.
//!
//! Everything else is told `now`: pure functions take it as an argument, services ask a [`Clock`]. Tests use a
//! [`Clock::manual`] one, so that hours pass at once. Durations of calls and waits that need no date use tokio's
//! monotonic clock instead.

use std::{
    fmt,
    num::NonZeroI64,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

/// A moment: milliseconds since the Unix epoch, UTC.
///
/// Written as RFC 3339 with milliseconds in JSON, as a plain integer in compact formats. The epoch itself is not
/// representable (it becomes one millisecond later), which keeps `Option<Timestamp>` at eight bytes: the queue holds
/// several in memory for every job.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(NonZeroI64);

/// What stands in for the epoch itself.
const FIRST: NonZeroI64 = NonZeroI64::new(1).expect("one is not zero");

impl Timestamp {
    /// The moment `millis` milliseconds after the Unix epoch.
    pub const fn from_millis(millis: i64) -> Timestamp {
        match NonZeroI64::new(millis) {
            Some(millis) => Timestamp(millis),
            None => Timestamp(FIRST),
        }
    }

    /// Milliseconds since the Unix epoch.
    pub fn as_millis(self) -> i64 {
        self.0.get()
    }

    /// This moment moved into the future, or the last representable one.
    pub fn plus(self, duration: Duration) -> Timestamp {
        Timestamp::from_millis(self.as_millis().saturating_add(millis(duration)))
    }

    /// This moment moved into the past, or the first representable one.
    pub fn minus(self, duration: Duration) -> Timestamp {
        Timestamp::from_millis(self.as_millis().saturating_sub(millis(duration)))
    }

    /// How long after `earlier` this is; zero if it is before.
    pub fn since(self, earlier: Timestamp) -> Duration {
        let millis = self.as_millis().saturating_sub(earlier.as_millis());
        Duration::from_millis(u64::try_from(millis).unwrap_or(0))
    }

    /// The UTC date, as `2026-11-23`.
    pub fn date(self) -> String {
        self.to_string().chars().take_while(|&c| c != 'T').collect()
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A moment outside jiff's years (-9999 to 9999) is shown as its nearest end.
        let moment = jiff::Timestamp::from_millisecond(self.as_millis()).unwrap_or(if self.as_millis() < 0 {
            jiff::Timestamp::MIN
        } else {
            jiff::Timestamp::MAX
        });
        write!(f, "{moment:.3}")
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

/// Where `now` comes from. Cloning gives another handle to the same clock.
#[derive(Clone, Debug)]
pub struct Clock(Source);

#[derive(Clone, Debug)]
enum Source {
    System,
    Manual(Arc<AtomicI64>),
}

impl Clock {
    /// The machine's clock.
    pub fn system() -> Clock {
        Clock(Source::System)
    }

    /// A clock that stands at `start` until it is [advanced](Clock::advance).
    pub fn manual(start: Timestamp) -> Clock {
        Clock(Source::Manual(Arc::new(AtomicI64::new(start.as_millis()))))
    }

    /// The current moment.
    pub fn now(&self) -> Timestamp {
        match &self.0 {
            Source::System => {
                let elapsed = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
                Timestamp::from_millis(millis(elapsed))
            }
            Source::Manual(now) => Timestamp::from_millis(now.load(Ordering::SeqCst)),
        }
    }

    /// Moves a manual clock back, as a correction of the machine's may; that one can't be moved and stays as it is.
    pub fn set_back(&self, by: Duration) {
        if let Source::Manual(now) = &self.0 {
            now.fetch_sub(millis(by), Ordering::SeqCst);
        }
    }

    /// Moves a manual clock forward; the machine's clock can't be moved and stays as it is.
    pub fn advance(&self, by: Duration) {
        if let Source::Manual(now) = &self.0 {
            now.fetch_add(millis(by), Ordering::SeqCst);
        }
    }
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
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
    fn an_optional_timestamp_costs_nothing_extra() {
        assert_eq!(size_of::<Option<Timestamp>>(), 8);
        assert_eq!(Timestamp::from_millis(0).as_millis(), 1);
    }

    #[test]
    fn the_ends_of_time_are_shown_rather_than_a_panic() {
        assert!(Timestamp::from_millis(i64::MAX).to_string().starts_with("9999"));
        assert!(Timestamp::from_millis(i64::MIN).to_string().starts_with("-009999"));
    }
}
