//! Who a caller is and what it may do.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What a caller may do. Each scope includes those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[derive(strum::Display, strum::EnumString)]
#[strum(serialize_all = "snake_case")]
pub enum Scope {
    /// Read the caller's own jobs.
    Read,
    /// Submit jobs; cancel and retry the caller's own jobs.
    Analyze,
    /// Everything, on all jobs.
    Admin,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Name of the key, `jwt:` and the subject of the token, or [`ADMIN_TOKEN`](crate::job::caller::ADMIN_TOKEN). Unset if
    /// the service is open and the caller has no key.
    pub name: Option<String>,
    pub scope: Scope,
}

impl Identity {
    pub fn actor(&self) -> &str {
        self.name.as_deref().unwrap_or("anonymous")
    }
}
