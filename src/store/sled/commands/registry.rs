//! Records beside the jobs: runtime settings, the audit log, and costs and idempotency keys that belong to no job.

use uuid::Uuid;

use super::super::{batch::Batch, error::Result, idempotency, keys, ledger::LedgerEntry};
use crate::{
    ledger::{Day, Sums},
    store::traits::OrphanedKey,
};

impl Batch<'_> {
    pub(crate) fn put_setting(&mut self, name: String, value: Option<String>) -> Result<()> {
        match &value {
            Some(value) => self.disk.tree().insert(keys::setting(&name), value.as_bytes())?,
            None => self.disk.tree().remove(keys::setting(&name))?,
        };
        self.staged.has_other_writes = true;
        self.staged.settings.push(name.clone());
        self.show(move |view, _| match value {
            Some(value) => drop(view.settings.insert(name, value)),
            None => drop(view.settings.remove(&name)),
        });
        Ok(())
    }

    pub(crate) fn compare_and_set(
        &mut self,
        name: String,
        expected: Option<&str>,
        value: Option<String>,
    ) -> Result<bool> {
        // The tree has what this batch wrote so far.
        let stored = self.disk.tree().get(keys::setting(&name))?;
        if stored.as_deref() != expected.map(str::as_bytes) {
            return Ok(false);
        }
        self.put_setting(name, value)?;
        Ok(true)
    }

    pub(crate) fn append_audit(&mut self, id: Uuid, entry: &str, oldest: Uuid) -> Result<()> {
        // A batch of several entries may leave a few too many. The first entry after the next start removes them.
        let surplus = self.shared.view.read().audit.surplus(id, entry.len(), oldest);
        for old in surplus {
            self.disk.tree().remove(keys::audit(old))?;
        }
        self.disk.tree().insert(keys::audit(id), entry.as_bytes())?;
        self.staged.has_other_writes = true;
        let bytes = entry.len();
        self.show(move |view, _| view.audit.append(id, bytes, oldest));
        Ok(())
    }

    pub(crate) fn add_keys(&mut self, added: Vec<OrphanedKey>) -> Result<()> {
        for (key, job, caller) in &added {
            self.disk.tree().insert(keys::idempotency(&key.key), idempotency::encode(key, *job, *caller)?)?;
        }
        self.staged.has_other_writes = true;
        self.show(move |view, _| added.iter().for_each(|(key, job, caller)| view.keys.insert(key, *job, *caller)));
        Ok(())
    }

    pub(crate) fn add_cost(&mut self, day: Day, model: String, sums: Sums) -> Result<()> {
        self.staged.entries.push(LedgerEntry::without_job(day, model, sums));
        self.staged.has_other_writes = true;
        Ok(())
    }
}
