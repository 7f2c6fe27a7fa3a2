//! The records of a database: reading them, and removing what a crash left behind.

use std::sync::Arc;

use serde::de::DeserializeOwned;

use super::{
    codec::read_chunks,
    disk::Disk,
    error::{Fault, Result},
    keys::{self, Seq},
};
use crate::{
    job::{Attempt, Job, JobId, JobRequest, delivery::Delivery},
    store::{record, traits::StoreError},
};

impl Disk {
    /// Every job, by the metadata records alone.
    pub(super) fn jobs(&self) -> impl Iterator<Item = Result<(Seq, Job), Fault>> + '_ {
        self.tree().scan_prefix(keys::METADATA).map(|entry| {
            let (key, value) = entry?;
            let seq = seq_of(&key)?;
            let job = record::decode(&value)
                .map_err(|reason| Fault(format!("the metadata of job number {seq}: {reason}")))?;
            Ok((seq, job))
        })
    }

    /// A job's request, if it has a record, and the size of that.
    pub(super) fn request(&self, seq: Seq, id: JobId) -> Result<Option<(Arc<JobRequest>, usize)>> {
        self.json(&keys::request(seq), id)
    }

    pub(super) fn attempt(&self, seq: Seq, n: u32, id: JobId) -> Result<Option<(Arc<Attempt>, usize)>> {
        self.json(&keys::attempt(seq, n), id)
    }

    fn json<T: DeserializeOwned>(&self, record: &[u8], id: JobId) -> Result<Option<(T, usize)>> {
        let Some(bytes) = read_chunks(self.tree(), record)? else { return Ok(None) };
        let value = serde_json::from_slice(&bytes);
        let value = value.map_err(|error| StoreError::Corrupt { id, reason: error.to_string() })?;
        Ok(Some((value, bytes.len())))
    }

    /// The numbers of a job's attempts that have a record: a job of another store may count billions.
    pub(super) fn attempts(&self, seq: Seq) -> sled::Result<Vec<u32>> {
        let mut numbers = Vec::new();
        for key in self.tree().range(keys::attempts(seq)).keys() {
            numbers.extend(keys::parse_attempt(&key?));
        }
        numbers.dedup();
        Ok(numbers)
    }

    pub(super) fn delivery(&self, seq: Seq) -> Result<Option<Delivery>, Fault> {
        let record = self.tree().get(keys::of_job(keys::DELIVERY, seq))?;
        record.map(|record| parse_delivery(&record)).transpose()
    }

    /// The webhook of a job that is settled. If it is open by now, then because the job has changed since.
    pub(super) fn settled_delivery(&self, seq: Seq) -> Result<Option<Delivery>, Fault> {
        Ok(self.delivery(seq)?.map(|now| if now.is_open() { now.withdrawn() } else { now }))
    }

    pub(super) fn write_delivery(&self, seq: Seq, delivery: &Delivery) -> Result<(), Fault> {
        self.tree().insert(keys::of_job(keys::DELIVERY, seq), serde_json::to_vec(delivery)?)?;
        Ok(())
    }

    /// Begins to insert `count` jobs from number `first` on together: while this record stands, none of them counts. Before
    /// the first of their metadata.
    pub(super) fn begin_insert_all(&self, first: Seq, count: usize) -> sled::Result<()> {
        self.tree().insert(keys::of_job(keys::INSERT_ALL, first), &(count as u64).to_be_bytes()).map(drop)
    }

    /// The commit point of jobs inserted together: after the last of their metadata.
    pub(super) fn end_insert_all(&self, first: Seq) -> sled::Result<()> {
        self.tree().remove(keys::of_job(keys::INSERT_ALL, first)).map(drop)
    }

    /// Removes what a crash left of jobs inserted together before their commit point. Before the jobs are read.
    pub(super) fn sweep_unfinished_inserts(&self) -> sled::Result<()> {
        for entry in self.tree().scan_prefix(keys::INSERT_ALL) {
            let (key, count) = entry?;
            let count = count.as_ref().try_into().map_or(0, u64::from_be_bytes);
            if let Some(first) = keys::parse_seq(&key) {
                for seq in first..first.saturating_add(count) {
                    self.tree().remove(keys::metadata(seq))?;
                    self.remove_bodies(seq)?;
                }
            }
            // Last: a crash in this moment leaves the rest to the next start.
            self.tree().remove(key)?;
        }
        Ok(())
    }

    pub(super) fn next_seq(&self) -> sled::Result<Seq> {
        let mut next = 1;
        for kind in [keys::METADATA, keys::REQUEST, keys::ATTEMPT] {
            if let Some(last) = self.tree().scan_prefix(kind).next_back() {
                next = next.max(keys::parse_seq(&last?.0).unwrap_or(0) + 1);
            }
        }
        Ok(next)
    }

    pub(super) fn remove_attempt(&self, seq: Seq, number: u32) -> sled::Result<()> {
        self.remove_all(&keys::attempt(seq, number))
    }

    pub(super) fn remove_bodies(&self, seq: Seq) -> sled::Result<()> {
        for kind in keys::BODIES {
            self.remove_all(&keys::of_job(kind, seq))?;
        }
        self.tree().remove(keys::of_job(keys::DELIVERY, seq)).map(drop)
    }

    fn remove_all(&self, prefix: &[u8]) -> sled::Result<()> {
        for key in self.tree().scan_prefix(prefix).keys() {
            self.tree().remove(key?)?;
        }
        Ok(())
    }

    /// Removes the bodies of jobs without metadata: what a crash left of inserts after the last committed one (`newest`), and
    /// of the prune step that it interrupted.
    pub(super) fn sweep_orphans(&self, newest: Seq) -> sled::Result<()> {
        let mut orphans: Vec<Seq> = Vec::new();
        for kind in keys::BODIES {
            let after = keys::of_job(kind, newest + 1)..keys::of_job(kind, Seq::MAX);
            for key in self.tree().range(after).keys() {
                orphans.extend(keys::parse_seq(&key?));
            }
        }
        if let Some(pruned) = self.tree().get(keys::PRUNING)? {
            orphans.extend(keys::parse_pruning(&pruned));
        }
        orphans.dedup();
        for seq in orphans {
            if self.tree().get(keys::metadata(seq))?.is_none() {
                self.remove_bodies(seq)?;
            }
        }
        Ok(())
    }
}

/// The job of a record that must belong to one.
pub(super) fn seq_of(key: &[u8]) -> Result<Seq, Fault> {
    keys::parse_seq(key).ok_or_else(|| Fault(format!("{key:?} is not a key of this store")))
}

pub(super) fn parse_delivery(record: &[u8]) -> Result<Delivery, Fault> {
    serde_json::from_slice(record).map_err(|error| Fault(format!("a delivery: {error}")))
}
