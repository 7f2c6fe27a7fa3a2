//! The idempotency keys in force, in memory: of jobs that are there, by their metadata, and of jobs that were pruned
//! before their key expired, by a record of its own that prune leaves behind.

use std::collections::{BTreeSet, HashMap};

use serde::{Deserialize, Serialize};

use crate::{
    clock::{Clock, Timestamp},
    job::{IdempotencyKey, Job, JobId},
};

/// The time by which keys are in force: a jump of the clock ends none.
pub(super) fn time(clock: &Clock, now: Timestamp) -> Timestamp {
    now.minus(clock.skipped(IdempotencyKey::WINDOW))
}

/// What a key stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    body: [u8; 16],
    job: JobId,
    expires_at: Timestamp,
}

/// What is known of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Known {
    /// It stands for this job.
    Job(JobId),
    /// It came with another request.
    OtherRequest,
}

/// The keys.
#[derive(Debug, Default)]
pub(super) struct Keys {
    entries: HashMap<[u8; 16], Entry>,
    expiry: BTreeSet<(Timestamp, [u8; 16])>,
}

impl Keys {
    /// Notes the job's key, if it has one.
    pub(super) fn note(&mut self, job: &Job) {
        if let Some(key) = &job.idempotency {
            self.insert(key, job.id);
        }
    }

    pub(super) fn insert(&mut self, key: &IdempotencyKey, job: JobId) {
        // A key that was used again after its time belongs to the later job.
        if self.entries.get(&key.key).is_some_and(|known| known.expires_at > key.expires_at) {
            return;
        }
        let entry = Entry { body: key.body, job, expires_at: key.expires_at };
        if let Some(old) = self.entries.insert(key.key, entry) {
            self.expiry.remove(&(old.expires_at, key.key));
        }
        self.expiry.insert((key.expires_at, key.key));
    }

    /// What the key stands for at `now`, if it was used and is still in force.
    pub(super) fn find(&self, key: &IdempotencyKey, now: Timestamp) -> Option<Known> {
        let entry = self.entries.get(&key.key).filter(|entry| entry.expires_at > now)?;
        Some(if entry.body == key.body { Known::Job(entry.job) } else { Known::OtherRequest })
    }

    /// Keys out of force, oldest first.
    pub(super) fn expired(&self, now: Timestamp, limit: usize) -> Vec<[u8; 16]> {
        self.expiry.iter().take_while(|(expires_at, _)| *expires_at <= now).take(limit).map(|(_, key)| *key).collect()
    }

    pub(super) fn remove(&mut self, key: &[u8; 16]) {
        if let Some(entry) = self.entries.remove(key) {
            self.expiry.remove(&(entry.expires_at, *key));
        }
    }
}

/// The record of a key whose job is gone. Encoded by position, as a job's metadata.
#[derive(Serialize, Deserialize)]
enum StoredKey {
    V1 { body: [u8; 16], job: [u8; 16], expires_at: Timestamp },
}

/// The record that keeps `key` in force without its job.
pub(super) fn encode(key: &IdempotencyKey, job: JobId) -> Result<Vec<u8>, String> {
    let stored = StoredKey::V1 { body: key.body, job: *job.as_bytes(), expires_at: key.expires_at };
    postcard::to_stdvec(&stored).map_err(|error| error.to_string())
}

/// What [`encode`] wrote under `key`.
pub(super) fn decode(key: [u8; 16], bytes: &[u8]) -> Result<(IdempotencyKey, JobId), String> {
    let StoredKey::V1 { body, job, expires_at } = postcard::from_bytes(bytes).map_err(|error| error.to_string())?;
    Ok((IdempotencyKey { key, body, expires_at }, JobId::from_bytes(job)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(body: u8, expires: i64) -> IdempotencyKey {
        IdempotencyKey { key: [7; 16], body: [body; 16], expires_at: Timestamp::from_millis(expires) }
    }

    fn at(millis: i64) -> Timestamp {
        Timestamp::from_millis(millis)
    }

    #[test]
    fn a_key_stands_for_its_job_until_it_expires_and_then_for_the_next() {
        let (first, second) = (JobId::from_u128(1), JobId::from_u128(2));
        let mut keys = Keys::default();
        keys.insert(&key(1, 100), first);
        assert_eq!(keys.find(&key(1, 200), at(99)), Some(Known::Job(first)));
        assert_eq!(keys.find(&key(2, 200), at(99)), Some(Known::OtherRequest));
        assert_eq!(keys.find(&key(1, 200), at(100)), None);
        keys.insert(&key(2, 200), second);
        // The first job moves on, with the key that it once had.
        keys.insert(&key(1, 100), first);
        assert_eq!(keys.find(&key(2, 200), at(150)), Some(Known::Job(second)));
        assert_eq!(keys.expired(at(199), 9), Vec::<[u8; 16]>::new(), "the old term is forgotten");
        assert_eq!(keys.expired(at(200), 9), [[7; 16]]);
        keys.remove(&[7; 16]);
        assert_eq!((keys.find(&key(2, 200), at(150)), keys.expired(at(200), 9).len()), (None, 0));
    }

    #[test]
    fn a_key_outlives_its_job_on_disk() {
        let written = encode(&key(1, 100), JobId::from_u128(5)).unwrap();
        assert_eq!(decode([7; 16], &written).unwrap(), (key(1, 100), JobId::from_u128(5)));
        decode([7; 16], &written[..9]).unwrap_err();
    }
}
