//! How long a client wants to wait for the end of a job: body, query parameter or `Prefer` header.

use std::{fmt, time::Duration};

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use serde::{Deserialize, Deserializer, de::Visitor};
use tokio::time::Instant;
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{OneOfBuilder, RefOr, Schema, schema::Type},
};

use super::{headers::members, observe};
use crate::{
    job::JobState,
    metrics::{Metrics, kind},
};

/// Longest wait; more counts as this.
pub(super) const MAX_WAIT: Duration = Duration::from_secs(30);

/// Longest time that a request waits, counted from its arrival: the answer must be sent within 30 s.
pub(super) const MAX_HOLD: Duration = Duration::from_secs(29);

const PREFER: HeaderName = HeaderName::from_static("prefer");

pub(super) const PREFERENCE_APPLIED: HeaderName = HeaderName::from_static("preference-applied");

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wait(Duration);

/// A waiting client, counted in the metrics by how its wait ends.
pub(super) struct Held<'a> {
    metrics: &'a Metrics,
    /// How the wait ended: `left` if it is dropped before the answer, because the client disconnected.
    end: &'static str,
}

impl Held<'_> {
    pub(super) fn new(metrics: &Metrics) -> Held<'_> {
        Held { metrics, end: "left" }
    }

    pub(super) fn answered(mut self, state: &JobState) {
        self.end = match state {
            JobState::Succeeded => "answered",
            JobState::Failed { .. } | JobState::Cancelled => "failed",
            JobState::Queued { .. } | JobState::Running => "late",
        };
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.metrics.waits.get_or_create(&kind(self.end)).inc();
    }
}

const WANTED: &str = "true, false or a number of seconds, 0 or more (more than 30 counts as 30)";

impl Wait {
    fn of(wanted: bool) -> Wait {
        Wait(if wanted { MAX_WAIT } else { Duration::ZERO })
    }

    fn of_seconds(seconds: f64) -> Option<Wait> {
        (seconds >= 0.0).then(|| Wait(Duration::from_secs_f64(seconds.min(MAX_WAIT.as_secs_f64()))))
    }

    pub(super) fn parse(text: &str) -> Result<Wait, String> {
        let wait = match text {
            "true" => Some(Wait::of(true)),
            "false" => Some(Wait::of(false)),
            seconds => seconds.parse().ok().and_then(Wait::of_seconds),
        };
        wait.ok_or_else(|| format!("must be {WANTED}, not {text:?}"))
    }

    /// Parses `Prefer: wait=N` (RFC 7240). An invalid preference is ignored.
    pub(super) fn preferred(headers: &HeaderMap) -> Option<Wait> {
        members(headers, PREFER).find_map(|preference| {
            let (name, value) = preference.split(';').next()?.split_once('=')?;
            let seconds: u64 = value.trim().trim_matches('"').parse().ok()?;
            let wait = Wait(Duration::from_secs(seconds).min(MAX_WAIT));
            name.trim().eq_ignore_ascii_case("wait").then_some(wait)
        })
    }

    pub(super) fn applied(self) -> HeaderValue {
        HeaderValue::try_from(format!("wait={}", self.0.as_secs())).unwrap_or_else(|_| HeaderValue::from_static("wait"))
    }

    /// When the wait of the current request ends; `None` without a wait.
    pub(super) fn until(self) -> Option<Instant> {
        let latest = observe::started() + MAX_HOLD;
        (!self.0.is_zero()).then(|| (Instant::now() + self.0).min(latest))
    }
}

impl PartialSchema for Wait {
    fn schema() -> RefOr<Schema> {
        use utoipa::openapi::ObjectBuilder;
        OneOfBuilder::new()
            .item(ObjectBuilder::new().schema_type(Type::Boolean))
            .item(ObjectBuilder::new().schema_type(Type::Number).minimum(Some(0)))
            .description(Some("Wait for the end of the job: `true`, or seconds up to 30."))
            .into()
    }
}

impl ToSchema for Wait {}

impl<'de> Deserialize<'de> for Wait {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Wait, D::Error> {
        struct Wanted;

        impl Visitor<'_> for Wanted {
            type Value = Wait;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(WANTED)
            }

            fn visit_bool<E>(self, wanted: bool) -> Result<Wait, E> {
                Ok(Wait::of(wanted))
            }

            fn visit_u64<E>(self, seconds: u64) -> Result<Wait, E> {
                Ok(Wait(Duration::from_secs(seconds).min(MAX_WAIT)))
            }

            fn visit_f64<E: serde::de::Error>(self, seconds: f64) -> Result<Wait, E> {
                Wait::of_seconds(seconds).ok_or_else(|| E::invalid_value(serde::de::Unexpected::Float(seconds), &self))
            }
        }

        deserializer.deserialize_any(Wanted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: u64) -> Wait {
        Wait(Duration::from_secs(seconds))
    }

    #[test]
    fn a_wait_is_a_yes_a_no_or_seconds_up_to_thirty() {
        for (text, wait) in [("true", 30), ("false", 0), ("0", 0), ("7", 7), ("31", 30), ("1e300", 30)] {
            assert_eq!(Wait::parse(text), Ok(seconds(wait)), "{text}");
            assert_eq!(serde_json::from_str::<Wait>(text).unwrap(), seconds(wait), "{text}");
        }
        assert_eq!(Wait::parse("0.25"), Ok(Wait(Duration::from_millis(250))));
    }

    #[test]
    fn any_other_wait_is_refused_with_what_is_allowed() {
        for text in ["-1", "-0.5", "NaN", "soon", ""] {
            assert!(Wait::parse(text).unwrap_err().contains("a number of seconds"), "{text}");
        }
        for json in ["-1", "-0.5", "\"5\"", "[]", "null"] {
            let error = serde_json::from_str::<Wait>(json).unwrap_err().to_string();
            assert!(error.contains("true, false or a number of seconds"), "{json}: {error}");
        }
    }

    #[test]
    fn a_wait_preference_is_found_among_others_and_ignored_if_invalid() {
        let preferred = |value: &'static str| {
            Wait::preferred(&HeaderMap::from_iter([("prefer".parse().unwrap(), value.parse().unwrap())]))
        };
        assert_eq!(preferred("wait=10"), Some(seconds(10)));
        assert_eq!(preferred("respond-async, Wait = \"99\"; x=1"), Some(seconds(30)));
        assert_eq!(preferred("wait=soon"), None);
        assert_eq!(preferred("await=10"), None);
        assert_eq!(Wait::preferred(&HeaderMap::new()), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_never_waits_longer_than_the_limit() {
        assert_eq!(seconds(0).until(), None);
        assert_eq!(seconds(5).until(), Some(Instant::now() + Duration::from_secs(5)));
        assert_eq!(seconds(30).until(), Some(Instant::now() + MAX_HOLD));
    }
}
