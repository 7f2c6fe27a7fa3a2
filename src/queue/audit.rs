//! The audit log: who among the operators did what, when, and to how many jobs. Durable, with the newest
//! [`MAX_JOURNAL`](crate::store::MAX_JOURNAL) entries kept.
//!
//! What is done to one thing is on record once it is done, for it is done at once. What is done to many jobs is on
//! record before, with no outcome, and again after each step: so an entry without an end tells of a crash in the middle.

use serde::{Deserialize, Serialize};
use tracing::{info, warn};
use utoipa::ToSchema;
use uuid::Uuid;

use super::{Queue, QueueError, new_id};
use crate::clock::Timestamp;

/// Longest description of an action that is kept, in bytes.
const MAX_DETAIL: usize = 4 << 10;

/// One action of an operator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = AuditEntry)]
pub struct Entry {
    /// Ids sort by time.
    #[schema(value_type = String, format = Uuid)]
    pub id: Uuid,
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
    /// The operator: `admin_token`, the name of the API key, or the subject of the token.
    pub actor: String,
    /// Stable word: `pause`, `resume`, `limits`, `cancel`, `retry`, `delete`, `reparse`, `import`, `prompts_reload`,
    /// `key_create`, `key_revoke`, `webhook_secret_rotate`, `webhook_resend`.
    pub action: String,
    /// The target or the new values.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// Number of changed jobs. Absent if the action is not about jobs or did not finish.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jobs: Option<usize>,
}

/// An action of an operator, before it is on record.
#[derive(Clone, Copy, Debug)]
pub struct Deed<'a> {
    /// As [`Entry::actor`].
    pub actor: &'a str,
    /// As [`Entry::action`].
    pub action: &'a str,
    /// As [`Entry::detail`].
    pub detail: Option<&'a str>,
}

impl Queue {
    /// Puts an action on record. Gives the entry, to be put on record again once more is known of it.
    ///
    /// # Errors
    /// [`QueueError::Unavailable`].
    pub async fn note(&self, deed: Deed<'_>, jobs: Option<usize>) -> Result<Entry, QueueError> {
        let Deed { actor, action, detail } = deed;
        let at = self.now();
        let detail = detail.map(|detail| detail[..detail.floor_char_boundary(MAX_DETAIL)].to_owned());
        let entry = Entry { id: new_id(at), at, actor: actor.to_owned(), action: action.to_owned(), detail, jobs };
        info!(
            audit.actor = actor,
            audit.action = action,
            audit.detail = entry.detail,
            audit.jobs = jobs,
            "operator action"
        );
        self.note_again(&entry).await?;
        Ok(entry)
    }

    /// Puts what is known of an action on record in place of what was.
    ///
    /// # Errors
    /// [`QueueError::Unavailable`].
    pub async fn note_again(&self, entry: &Entry) -> Result<(), QueueError> {
        let text = serde_json::to_string(entry).map_err(|error| QueueError::Unavailable(error.to_string()))?;
        Ok(self.0.store.journal(entry.id, text).await?)
    }

    /// Entries before `before`, newest first.
    ///
    /// # Errors
    /// [`QueueError::Unavailable`].
    pub async fn audit(&self, before: Option<Uuid>, limit: usize) -> Result<Vec<Entry>, QueueError> {
        let entries = self.0.store.journalled(before, limit).await?;
        let read = |(id, text): (Uuid, String)| {
            serde_json::from_str(&text).inspect_err(|error| warn!(%id, %error, "failed to read an audit entry")).ok()
        };
        Ok(entries.into_iter().filter_map(read).collect())
    }
}
