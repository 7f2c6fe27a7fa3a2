//! What a client asked, and how.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::delivery::CallbackEvent;
use crate::clock::Timestamp;

/// What a client asked. Written once at submission, never changed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobRequest {
    pub query: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub context: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
    /// If unset, the service's own setting at the time of the attempt; so is the version of the prompts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_version: Option<String>,
    /// The queue replaces `auto` at submission, as only it can tell what fits the client's time.
    #[serde(default, skip_serializing_if = "Depth::is_auto")]
    pub depth: Depth,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
    /// Name of the key or token subject that submitted it; unset if callers have no names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub caller: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub callback_url: Option<String>,
    /// The events that the webhook is sent for; if empty, every end of the job.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub callback_events: Vec<CallbackEvent>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    /// The trace of the HTTP request as a W3C `traceparent`, if traces are sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
}

/// Priority of a job: a fixed head start in the queue, so that no priority starves another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[derive(strum::Display, strum::EnumString, strum::VariantNames)]
#[strum(serialize_all = "snake_case")]
pub enum Priority {
    /// As if submitted ten minutes earlier.
    High,
    /// In the order of submission.
    #[default]
    Normal,
    /// As if submitted ten minutes later.
    Low,
}

/// Length of a memo. A longer memo takes longer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[derive(strum::Display, strum::EnumString, strum::IntoStaticStr, strum::VariantNames)]
#[strum(serialize_all = "snake_case")]
pub enum Depth {
    /// `brief` where a client waits and a full memo would not be ready in time, else `full`.
    #[default]
    Auto,
    /// The conclusion and what carries it: 700 to 900 tokens.
    Brief,
    /// Everything: 1,300 to 3,700 tokens.
    Full,
}

impl Depth {
    pub fn is_auto(&self) -> bool {
        *self == Depth::Auto
    }

    /// This depth, or for `auto` the usual one of a client that waits or does not.
    #[must_use]
    pub fn resolved(self, is_waited_for: bool) -> Depth {
        match self {
            Depth::Auto if is_waited_for => Depth::Brief,
            Depth::Auto => Depth::Full,
            Depth::Brief | Depth::Full => self,
        }
    }
}

/// A client's name for a submission: while it is in force, the same name means the same job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdempotencyKey {
    /// The first half of the SHA-256 of the client's name.
    pub key: [u8; 16],
    /// The same of the request: another request under the same name is a mistake.
    pub body: [u8; 16],
    pub expires_at: Timestamp,
}

impl IdempotencyKey {
    /// How long a key is in force: longer than any client retries, shorter than its jobs stay.
    pub const WINDOW: Duration = Duration::from_hours(24);
}
