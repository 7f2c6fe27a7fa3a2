//! Runtime settings, all of them in memory too, and the audit log, of which only ids and sizes are in memory. Both are small
//! and change seldom.

use std::collections::BTreeMap;

use uuid::Uuid;

use super::keys;
use crate::store::MAX_AUDIT_BYTES;

/// Most old entries that one new entry removes: more at once would delay jobs.
const REMOVED_AT_ONCE: usize = 64;

/// The part that readers see.
#[derive(Debug, Default)]
pub(super) struct Beside {
    kept: BTreeMap<String, String>,
    /// Each entry's size in bytes.
    audit: BTreeMap<Uuid, usize>,
    /// Sum of the sizes.
    audit_bytes: usize,
}

/// A change of it.
#[derive(Debug)]
pub(super) enum BesideChange {
    Keep { name: String, value: Option<String> },
    Audit { id: Uuid, entry: String, oldest: Uuid },
}

impl BesideChange {
    /// About how much it writes.
    pub(super) fn bytes(&self) -> usize {
        match self {
            BesideChange::Keep { value, .. } => value.as_ref().map_or(0, String::len),
            BesideChange::Audit { entry, .. } => entry.len(),
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
        for entry in tree.scan_prefix(keys::ALL_AUDIT) {
            let (key, value) = entry.map_err(|error| error.to_string())?;
            let id = Uuid::from_slice(&key[1..]).map_err(|error| format!("an entry of the audit log: {error}"))?;
            beside.insert_audit(id, value.len());
        }
        Ok(beside)
    }

    /// Writes a change that readers don't see yet.
    pub(super) fn write(&self, tree: &sled::Tree, change: &BesideChange) -> Result<(), sled::Error> {
        match change {
            BesideChange::Keep { name, value: Some(value) } => tree.insert(keys::kept(name), value.as_bytes())?,
            BesideChange::Keep { name, value: None } => tree.remove(keys::kept(name))?,
            BesideChange::Audit { id, entry, oldest } => {
                // A group of several entries may leave a few too many. The first entry after the next start removes them.
                for old in self.surplus(*id, entry.len(), *oldest) {
                    tree.remove(keys::audit(old))?;
                }
                tree.insert(keys::audit(*id), entry.as_bytes())?
            }
        };
        Ok(())
    }

    /// Shows a change that has been made durable.
    pub(super) fn apply(&mut self, change: BesideChange) {
        match change {
            BesideChange::Keep { name, value: Some(value) } => drop(self.kept.insert(name, value)),
            BesideChange::Keep { name, value: None } => drop(self.kept.remove(&name)),
            BesideChange::Audit { id, entry, oldest } => {
                for old in self.surplus(id, entry.len(), oldest) {
                    self.audit_bytes -= self.audit.remove(&old).unwrap_or_default();
                }
                self.insert_audit(id, entry.len());
            }
        }
    }

    fn insert_audit(&mut self, id: Uuid, bytes: usize) {
        self.audit_bytes += bytes;
        self.audit_bytes -= self.audit.insert(id, bytes).unwrap_or_default();
    }

    /// The entries to remove when `id` is written with this size.
    fn surplus(&self, id: Uuid, bytes: usize, oldest: Uuid) -> Vec<Uuid> {
        let replaced = self.audit.get(&id).copied().unwrap_or_default();
        let mut total = self.audit_bytes + bytes - replaced;
        let others = self.audit.iter().filter(|(other, _)| **other != id);
        let surplus = others.take_while(|(other, bytes)| {
            let is_surplus = **other < oldest || total > MAX_AUDIT_BYTES;
            total -= **bytes;
            is_surplus
        });
        surplus.take(REMOVED_AT_ONCE).map(|(other, _)| *other).collect()
    }

    pub(super) fn kept(&self, prefix: &str) -> Vec<(String, String)> {
        let from = self.kept.range(prefix.to_owned()..);
        let with = from.take_while(|(name, _)| name.starts_with(prefix));
        with.map(|(name, value)| (name.clone(), value.clone())).collect()
    }

    pub(super) fn audit_before(&self, before: Option<Uuid>, limit: usize) -> Vec<Uuid> {
        use std::ops::Bound::{Excluded, Unbounded};
        let range = (Unbounded, before.map_or(Unbounded, Excluded));
        self.audit.range(range).rev().take(limit).map(|(id, _)| *id).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_audit_log_is_bounded_in_bytes_and_its_oldest_entries_go_first() {
        const ENTRY: usize = 1 << 20;
        let mut beside = Beside::default();
        let id = |n: usize| Uuid::from_u128(n as u128);
        let write = |beside: &mut Beside, n: usize, bytes: usize| {
            beside.apply(BesideChange::Audit { id: id(n), entry: "x".repeat(bytes), oldest: Uuid::nil() });
        };
        let fit = MAX_AUDIT_BYTES / ENTRY;
        (0..fit + 3).for_each(|n| write(&mut beside, n, ENTRY));
        write(&mut beside, 9, ENTRY);
        assert_eq!((beside.audit.len(), beside.audit.first_key_value()), (fit, Some((&id(3), &ENTRY))));
        write(&mut beside, 3, 2 * ENTRY);
        assert_eq!((beside.audit.len(), beside.audit_bytes), (fit - 1, MAX_AUDIT_BYTES));
        assert!(
            beside.audit.contains_key(&id(3)) && !beside.audit.contains_key(&id(4)),
            "what is written is not removed"
        );
    }
}
