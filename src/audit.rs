//! The audit log: which operator did what, when, and to how many jobs. Durable.
//!
//! The same action of the same operator, repeated within [`FOLD_WITHIN`], is added to one entry, so that nobody can push
//! older entries out by repeating an action. An entry is removed after [`STORED_FOR`]; the store also bounds their size.
//!
//! An action on one job is recorded after it is done. An action on many jobs is recorded before its first step, and
//! counted in its entry after each step, so a crash in the middle is visible.

use std::{collections::HashMap, sync::Arc, time::Duration};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex as AsyncMutex;
use tracing::{info, warn};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::{
    clock::{Clock, Timestamp},
    ids::{self, Ids},
    registry::Unavailable,
    store,
};

/// Longest text of an entry's details, in bytes.
const MAX_DETAIL: usize = 1 << 10;

/// An action is added to the operator's last entry of the same action if that is not older. With [`LONGEST_ENTRY`], an
/// operator makes at most 144 entries of an action a day, and at most 24 when the action is repeated all the time.
const FOLD_WITHIN: Duration = Duration::from_mins(10);

/// Longest time that one entry covers.
const LONGEST_ENTRY: Duration = Duration::from_hours(1);

/// How long entries are stored: a year and a month.
const STORED_FOR: Duration = Duration::from_hours(400 * 24);

/// The words of the actions.
pub const ACTIONS: [&str; 13] = [
    "pause",
    "resume",
    "limits",
    "cancel",
    "retry",
    "delete",
    "reparse",
    "import",
    "prompts_reload",
    "key_create",
    "key_revoke",
    "webhook_secret_rotate",
    "webhook_resend",
];

/// Actions of an operator: one, or the same action repeated within ten minutes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = AuditEntry)]
pub struct Entry {
    /// Ids sort by the time of the first action.
    pub id: Uuid,
    /// Time of the first action.
    pub at: Timestamp,
    /// Time of the last action.
    pub last_at: Timestamp,
    /// Number of actions.
    pub count: u64,
    /// The operator: `admin_token`, the name of the API key, or the subject of the token.
    pub actor: String,
    /// Stable word: `pause`, `resume`, `limits`, `cancel`, `retry`, `delete`, `reparse`, `import`, `prompts_reload`,
    /// `key_create`, `key_revoke`, `webhook_secret_rotate`, `webhook_resend`.
    pub action: String,
    /// The targets or the new values of each action, separated by commas, up to 1 KiB of text; then `…`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// Number of changed jobs. Absent if the action is not about jobs or has not changed any yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jobs: Option<usize>,
    /// The node that the operator used. Absent on a service on its own disk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
}

/// An action of an operator, before it is recorded.
#[derive(Clone, Copy, Debug)]
pub struct AuditAction<'a> {
    /// As [`Entry::actor`].
    pub actor: &'a str,
    /// As [`Entry::action`].
    pub action: &'a str,
    /// As [`Entry::detail`].
    pub detail: Option<&'a str>,
}

/// The audit log.
pub struct AuditLog {
    store: Arc<dyn store::Registry>,
    clock: Clock,
    /// The name of this node, if there may be several.
    node: Option<String>,
    ids: Ids,
    /// The entries to which a repeated action may be added, by actor and action.
    open: Mutex<HashMap<(String, String), Arc<OpenEntry>>>,
}

/// A recorded entry to which more may be added.
pub struct OpenEntry {
    /// The entry, and how often it was changed.
    state: Mutex<(Entry, u64)>,
    /// How many of the changes are durable. Locked while the entry is written, so that the newest state is written last
    /// and one write serves all who wait.
    written: AsyncMutex<u64>,
}

impl Entry {
    fn add(&mut self, detail: Option<&str>, jobs: Option<usize>, now: Timestamp) {
        self.count += 1;
        self.last_at = now;
        self.add_jobs(jobs);
        let Some(more) = detail else { return };
        let known = self.detail.get_or_insert_default();
        if known.split(", ").any(|one| one == more) || known.ends_with('…') {
            return;
        }
        if known.len() + more.len() + 2 > MAX_DETAIL {
            known.push_str(", …");
        } else {
            known.push_str(", ");
            known.push_str(more);
        }
    }

    fn add_jobs(&mut self, jobs: Option<usize>) {
        if let Some(more) = jobs {
            *self.jobs.get_or_insert_default() += more;
        }
    }
}

impl OpenEntry {
    fn takes_more(&self, now: Timestamp) -> bool {
        let (entry, _) = &*self.state.lock();
        now.since(entry.last_at) < FOLD_WITHIN && now.since(entry.at) < LONGEST_ENTRY
    }

    fn change(&self, change: impl FnOnce(&mut Entry)) {
        let (entry, changes) = &mut *self.state.lock();
        change(entry);
        *changes += 1;
    }
}

impl AuditLog {
    pub fn new(store: Arc<dyn store::Registry>, clock: Clock, node: Option<String>) -> AuditLog {
        AuditLog { store, clock, node, ids: Ids::default(), open: Mutex::default() }
    }

    /// Records an action. Returns its entry, to which [`AuditLog::record_jobs`] adds.
    ///
    /// # Errors
    /// [`Unavailable`]; the action is recorded with the next one then.
    pub async fn record(&self, action: AuditAction<'_>, jobs: Option<usize>) -> Result<Arc<OpenEntry>, Unavailable> {
        debug_assert!(ACTIONS.contains(&action.action), "{} is missing in ACTIONS", action.action);
        let detail = action.detail.map(|detail| &detail[..detail.floor_char_boundary(MAX_DETAIL)]);
        let action = AuditAction { detail, ..action };
        info!(
            audit.actor = action.actor,
            audit.action = action.action,
            audit.detail = action.detail,
            audit.jobs = jobs,
            "operator action"
        );
        let entry = self.add(action, jobs);
        self.write(&entry).await?;
        Ok(entry)
    }

    /// Adds changed jobs to a recorded action.
    ///
    /// # Errors
    /// As [`AuditLog::record`].
    pub async fn record_jobs(&self, entry: &OpenEntry, jobs: usize) -> Result<(), Unavailable> {
        entry.change(|entry| entry.add_jobs(Some(jobs)));
        self.write(entry).await
    }

    /// Entries before `before`, newest first.
    ///
    /// # Errors
    /// [`Unavailable`].
    pub async fn read(&self, before: Option<Uuid>, limit: usize) -> Result<Vec<Entry>, Unavailable> {
        let entries = self.store.read_audit(before, limit).await?;
        let read = |(id, text): (Uuid, String)| {
            serde_json::from_str(&text).inspect_err(|error| warn!(%id, %error, "failed to read an audit entry")).ok()
        };
        Ok(entries.into_iter().filter_map(read).collect())
    }

    /// Adds the action to an entry that takes it, or starts one.
    fn add(&self, action: AuditAction<'_>, jobs: Option<usize>) -> Arc<OpenEntry> {
        let AuditAction { actor, action, detail } = action;
        let (now, mut open) = (self.clock.now(), self.open.lock());
        open.retain(|_, entry| entry.takes_more(now));
        let key = (actor.to_owned(), action.to_owned());
        if let Some(entry) = open.get(&key) {
            entry.change(|entry| entry.add(detail, jobs, now));
            return Arc::clone(entry);
        }
        let (actor, action) = key.clone();
        let (id, detail) = (self.ids.next(now), detail.map(str::to_owned));
        let entry = Entry { id, at: now, last_at: now, count: 1, actor, action, detail, jobs, node: self.node.clone() };
        let entry = Arc::new(OpenEntry { state: Mutex::new((entry, 1)), written: AsyncMutex::new(0) });
        open.insert(key, Arc::clone(&entry));
        entry
    }

    /// Makes all changes of an entry so far durable.
    async fn write(&self, entry: &OpenEntry) -> Result<(), Unavailable> {
        let wanted = entry.state.lock().1;
        let mut written = entry.written.lock().await;
        if *written >= wanted {
            return Ok(());
        }
        let (id, text, changes) = {
            let (entry, changes) = &*entry.state.lock();
            let text = serde_json::to_string(entry).map_err(|error| Unavailable(error.to_string()))?;
            (entry.id, text, *changes)
        };
        // A clock that has jumped ahead makes nothing old.
        let oldest = self.clock.now().minus(STORED_FOR).minus(self.clock.skipped(STORED_FOR));
        self.store.append_audit(id, text, ids::first_at(oldest)).await?;
        *written = changes;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use futures_util::future::join_all;

    use super::*;
    use crate::store::memory::MemoryStore;

    fn log() -> (Arc<MemoryStore>, AuditLog, Clock) {
        let (store, clock) = (Arc::<MemoryStore>::default(), Clock::manual(Timestamp::from_millis(1_795_435_200_000)));
        (Arc::clone(&store), AuditLog::new(store, clock.clone(), None), clock)
    }

    fn cancel<'a>(actor: &'a str, detail: &'a str) -> AuditAction<'a> {
        AuditAction { actor, action: "cancel", detail: Some(detail) }
    }

    fn counts(entries: &[Entry]) -> Vec<(&str, u64)> {
        entries.iter().map(|entry| (entry.actor.as_str(), entry.count)).collect()
    }

    #[tokio::test]
    async fn twenty_thousand_actions_of_one_operator_push_out_no_entry_of_another_also_after_a_restart() {
        let (store, log, clock) = log();
        log.record(cancel("alice", "first"), Some(1)).await.unwrap();
        let details: Vec<String> = (0..20_000).map(|n| format!("job {n}")).collect();
        for several in details.chunks(1_000) {
            clock.advance(Duration::from_secs(1));
            for recorded in join_all(several.iter().map(|one| log.record(cancel("bob", one), Some(1)))).await {
                recorded.unwrap();
            }
        }
        let entries = AuditLog::new(store, clock, None).read(None, 9).await.unwrap();
        assert_eq!(counts(&entries), [("bob", 20_000), ("alice", 1)]);
        let folded = &entries[0];
        assert_eq!((folded.jobs, folded.last_at.since(folded.at)), (Some(20_000), Duration::from_secs(19)));
        let detail = folded.detail.as_deref().unwrap();
        assert!(detail.starts_with("job 0, job 1, ") && detail.ends_with(", …") && detail.len() < MAX_DETAIL + 9);
    }

    #[tokio::test]
    async fn an_entry_ends_after_ten_quiet_minutes_or_an_hour_and_other_actions_have_their_own() {
        let (_, log, clock) = log();
        let next = async |after: u64| {
            clock.advance(Duration::from_mins(after));
            log.record(cancel("alice", "a job"), Some(0)).await.unwrap();
            log.read(None, 1).await.unwrap()[0].count
        };
        let first = next(0).await;
        clock.advance(Duration::from_millis(1));
        log.record(AuditAction { action: "pause", ..cancel("alice", "") }, None).await.unwrap();
        assert_eq!((first, next(9).await, next(10).await, next(9).await), (1, 1, 1, 2), "the pause is newer");
        let entries = log.read(None, 9).await.unwrap();
        assert_eq!(entries.iter().map(|entry| entry.count).collect::<Vec<_>>(), [2, 1, 2]);
        assert_eq!(entries[0].detail.as_deref(), Some("a job"), "the same detail is written once");
        for _ in 0..5 {
            next(9).await;
        }
        assert_eq!(next(9).await, 1, "an hour is over");
    }

    #[tokio::test]
    async fn entries_are_removed_after_400_days_and_not_before() {
        let (_, log, clock) = log();
        for (days, expected) in [(0, &["0"][..]), (399, &["399", "0"]), (2, &["2", "399"])] {
            clock.advance(Duration::from_hours(24 * days));
            log.record(cancel("alice", &days.to_string()), None).await.unwrap();
            let entries = log.read(None, 9).await.unwrap();
            assert_eq!(entries.iter().filter_map(|entry| entry.detail.as_deref()).collect::<Vec<_>>(), expected);
        }
    }

    #[tokio::test]
    async fn entries_of_two_nodes_at_one_moment_are_apart_and_name_their_node() {
        let (store, _, clock) = log();
        let node = |name: &str| AuditLog::new(Arc::clone(&store) as _, clock.clone(), Some(name.to_owned()));
        let nodes = [node("a"), node("b")];
        for n in 0..100 {
            let actor = format!("operator {n}");
            for log in &nodes {
                log.record(cancel(&actor, "x"), None).await.unwrap();
            }
        }
        let entries = nodes[0].read(None, 300).await.unwrap();
        let of = |name: &str| entries.iter().filter(|entry| entry.node.as_deref() == Some(name)).count();
        assert_eq!((entries.len(), of("a"), of("b")), (200, 100, 100));
    }
}
