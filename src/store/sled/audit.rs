//! The audit log: its entries are on disk, of each memory has the id and the size.

use std::{
    collections::BTreeMap,
    ops::Bound::{Excluded, Unbounded},
};

use uuid::Uuid;

use super::{error::Fault, keys};
use crate::store::traits::MAX_AUDIT_BYTES;

/// Most old entries that one new entry removes: more at once would delay jobs.
const REMOVED_AT_ONCE: usize = 64;

#[derive(Debug, Default)]
pub(super) struct AuditIndex {
    /// Each entry's size in bytes.
    entries: BTreeMap<Uuid, usize>,
    bytes: usize,
}

impl AuditIndex {
    pub(super) fn load(tree: &sled::Tree) -> Result<AuditIndex, Fault> {
        let mut audit = AuditIndex::default();
        for entry in tree.scan_prefix(keys::AUDIT) {
            let (key, value) = entry?;
            let id = Uuid::from_slice(&key[1..]);
            let id = id.map_err(|error| Fault(format!("an entry of the audit log: {error}")))?;
            audit.set(id, value.len());
        }
        Ok(audit)
    }

    /// Adds or replaces an entry of this size, and removes the surplus.
    pub(super) fn append(&mut self, id: Uuid, bytes: usize, oldest: Uuid) {
        for old in self.surplus(id, bytes, oldest) {
            self.bytes -= self.entries.remove(&old).unwrap_or_default();
        }
        self.set(id, bytes);
    }

    fn set(&mut self, id: Uuid, bytes: usize) {
        self.bytes += bytes;
        self.bytes -= self.entries.insert(id, bytes).unwrap_or_default();
    }

    /// The entries to remove when `id` is written with this size: those before `oldest`, and beyond [`MAX_AUDIT_BYTES`].
    pub(super) fn surplus(&self, id: Uuid, bytes: usize, oldest: Uuid) -> Vec<Uuid> {
        let replaced = self.entries.get(&id).copied().unwrap_or_default();
        let mut total = self.bytes + bytes - replaced;
        let others = self.entries.iter().filter(|(other, _)| **other != id);
        let surplus = others.take_while(|(other, bytes)| {
            let is_surplus = **other < oldest || total > MAX_AUDIT_BYTES;
            total -= **bytes;
            is_surplus
        });
        surplus.take(REMOVED_AT_ONCE).map(|(other, _)| *other).collect()
    }

    pub(super) fn before(&self, before: Option<Uuid>, limit: usize) -> Vec<Uuid> {
        let range = (Unbounded, before.map_or(Unbounded, Excluded));
        self.entries.range(range).rev().take(limit).map(|(id, _)| *id).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_audit_log_is_bounded_in_bytes_and_its_oldest_entries_go_first() {
        const ENTRY: usize = 1 << 20;
        let mut audit = AuditIndex::default();
        let id = |n: usize| Uuid::from_u128(n as u128);
        let fit = MAX_AUDIT_BYTES / ENTRY;
        (0..fit + 3).for_each(|n| audit.append(id(n), ENTRY, Uuid::nil()));
        audit.append(id(9), ENTRY, Uuid::nil());
        assert_eq!((audit.entries.len(), audit.entries.first_key_value()), (fit, Some((&id(3), &ENTRY))));
        audit.append(id(3), 2 * ENTRY, Uuid::nil());
        assert_eq!((audit.entries.len(), audit.bytes), (fit - 1, MAX_AUDIT_BYTES));
        let has = |n| audit.entries.contains_key(&id(n));
        assert!(has(3) && !has(4), "what is written is not removed");
    }
}
