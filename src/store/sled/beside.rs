//! What is kept beside the jobs: settings made while the service runs, all in memory too, and the journal, of which only
//! the ids are. Both are small and of few changes.

use std::collections::{BTreeMap, BTreeSet};

use uuid::Uuid;

use super::keys;
use crate::store::MAX_JOURNAL;

/// All of it that readers see.
#[derive(Debug, Default)]
pub(super) struct Beside {
    kept: BTreeMap<String, String>,
    journal: BTreeSet<Uuid>,
}

/// A change of it.
#[derive(Debug)]
pub(super) enum BesideChange {
    Keep { name: String, value: Option<String> },
    Journal { id: Uuid, entry: String },
}

impl BesideChange {
    /// About how much it writes.
    pub(super) fn bytes(&self) -> usize {
        match self {
            BesideChange::Keep { value, .. } => value.as_ref().map_or(0, String::len),
            BesideChange::Journal { entry, .. } => entry.len(),
        }
    }
}

impl Beside {
    /// As the database has it.
    pub(super) fn load(tree: &sled::Tree) -> Result<Beside, String> {
        let mut beside = Beside::default();
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).map_err(|_| "a setting is not text".to_owned());
        for entry in tree.scan_prefix(keys::ALL_KEPT) {
            let (key, value) = entry.map_err(|error| error.to_string())?;
            beside.kept.insert(text(&key[1..])?, text(&value)?);
        }
        for key in tree.scan_prefix(keys::ALL_JOURNAL).keys() {
            let key = key.map_err(|error| error.to_string())?;
            let id = Uuid::from_slice(&key[1..]).map_err(|error| format!("an entry of the audit log: {error}"))?;
            beside.journal.insert(id);
        }
        Ok(beside)
    }

    /// Writes a change that readers don't see yet.
    pub(super) fn write(&self, tree: &sled::Tree, change: &BesideChange) -> Result<(), sled::Error> {
        match change {
            BesideChange::Keep { name, value: Some(value) } => tree.insert(keys::kept(name), value.as_bytes())?,
            BesideChange::Keep { name, value: None } => tree.remove(keys::kept(name))?,
            BesideChange::Journal { id, entry } => {
                // A group of several entries may leave a few too many, which the first one after the next start removes.
                for old in self.surplus(*id) {
                    tree.remove(keys::journal(old))?;
                }
                tree.insert(keys::journal(*id), entry.as_bytes())?
            }
        };
        Ok(())
    }

    /// Shows a change that has been made durable.
    pub(super) fn apply(&mut self, change: BesideChange) {
        match change {
            BesideChange::Keep { name, value: Some(value) } => drop(self.kept.insert(name, value)),
            BesideChange::Keep { name, value: None } => drop(self.kept.remove(&name)),
            BesideChange::Journal { id, .. } => {
                for old in self.surplus(id) {
                    self.journal.remove(&old);
                }
                self.journal.insert(id);
            }
        }
    }

    /// The entries that go when `id` is added.
    fn surplus(&self, id: Uuid) -> Vec<Uuid> {
        if self.journal.contains(&id) {
            return Vec::new();
        }
        self.journal.iter().take((self.journal.len() + 1).saturating_sub(MAX_JOURNAL)).copied().collect()
    }

    pub(super) fn kept(&self, prefix: &str) -> Vec<(String, String)> {
        let from = self.kept.range(prefix.to_owned()..);
        let with = from.take_while(|(name, _)| name.starts_with(prefix));
        with.map(|(name, value)| (name.clone(), value.clone())).collect()
    }

    pub(super) fn journalled(&self, before: Option<Uuid>, limit: usize) -> Vec<Uuid> {
        use std::ops::Bound::{Excluded, Unbounded};
        let range = (Unbounded, before.map_or(Unbounded, Excluded));
        self.journal.range(range).rev().take(limit).copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_journal_is_bounded_and_its_oldest_entries_go() {
        let mut beside = Beside::default();
        let id = |n: usize| Uuid::from_u128(n as u128);
        for n in 0..MAX_JOURNAL + 3 {
            beside.apply(BesideChange::Journal { id: id(n), entry: String::new() });
        }
        beside.apply(BesideChange::Journal { id: id(9), entry: "written anew".to_owned() });
        assert_eq!((beside.journal.len(), beside.journal.first()), (MAX_JOURNAL, Some(&id(3))));
    }
}
