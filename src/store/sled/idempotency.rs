//! The idempotency keys in force, in memory. On disk they are part of their jobs' metadata; a key whose job is pruned before
//! the key expires gets a record of its own.

use std::collections::{BTreeSet, HashMap};

use serde::{Deserialize, Serialize};

use super::error::Fault;
use crate::{
    clock::{Clock, Timestamp},
    job::{IdempotencyKey, Job, JobId, caller::Caller},
    store::traits::OrphanedKey,
};

/// Most keys in force, at some 200 bytes of memory each. Beyond, the caller with the most keys loses its oldest: so who
/// floods the store with keys loses its own.
const MAX_KEYS: usize = 400_000;

/// The time by which keys are in force: a jump of the clock ends none.
pub(super) fn key_time(clock: &Clock, now: Timestamp) -> Timestamp {
    now.minus(clock.skipped(IdempotencyKey::WINDOW))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    body: [u8; 16],
    job: JobId,
    expires_at: Timestamp,
    caller: Caller,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Known {
    Job(JobId),
    OtherRequest,
}

#[derive(Debug, Default)]
pub(super) struct Keys {
    entries: HashMap<[u8; 16], Entry>,
    expiry: BTreeSet<(Timestamp, [u8; 16])>,
    by_caller: HashMap<Caller, BTreeSet<(Timestamp, [u8; 16])>>,
}

impl Keys {
    pub(super) fn record(&mut self, job: &Job) {
        if let Some(key) = &job.idempotency {
            self.insert(key, job.id, job.caller);
        }
    }

    pub(super) fn insert(&mut self, key: &IdempotencyKey, job: JobId, caller: Caller) {
        // A key that was used again after its time belongs to the later job.
        if self.entries.get(&key.key).is_some_and(|known| known.expires_at > key.expires_at) {
            return;
        }
        self.remove(&key.key);
        self.entries.insert(key.key, Entry { body: key.body, job, expires_at: key.expires_at, caller });
        self.expiry.insert((key.expires_at, key.key));
        self.by_caller.entry(caller).or_default().insert((key.expires_at, key.key));
    }

    /// What the key stands for, if it is in force at `now`.
    pub(super) fn find(&self, key: &IdempotencyKey, now: Timestamp) -> Option<Known> {
        let entry = self.entries.get(&key.key).filter(|entry| entry.expires_at > now)?;
        Some(if entry.body == key.body { Known::Job(entry.job) } else { Known::OtherRequest })
    }

    /// The keys after `after` whose jobs are wanted, sorted.
    pub(super) fn after(
        &self,
        after: Option<[u8; 16]>,
        most: usize,
        is_wanted: impl Fn(JobId) -> bool,
    ) -> Vec<OrphanedKey> {
        let is_after = |key: &[u8; 16]| after.is_none_or(|after| *key > after);
        let found = self.entries.iter().filter(|(key, entry)| is_after(key) && is_wanted(entry.job));
        let key = |(key, entry): (&[u8; 16], &Entry)| {
            (IdempotencyKey { key: *key, body: entry.body, expires_at: entry.expires_at }, entry.job, entry.caller)
        };
        let mut found: Vec<OrphanedKey> = found.map(key).collect();
        found.sort_unstable_by_key(|(key, ..)| key.key);
        found.truncate(most);
        found
    }

    /// Keys to forget: the expired ones, oldest first, and those beyond [`MAX_KEYS`].
    pub(super) fn expired(&self, now: Timestamp, limit: usize) -> Vec<[u8; 16]> {
        let expired = self.expiry.iter().take_while(|(expires_at, _)| *expires_at <= now);
        let keys: Vec<[u8; 16]> = expired.take(limit).map(|(_, key)| *key).collect();
        if keys.is_empty() { self.surplus(MAX_KEYS, limit) } else { keys }
    }

    /// The oldest keys of the caller with the most of them, as many as there are beyond `most`.
    fn surplus(&self, most: usize, limit: usize) -> Vec<[u8; 16]> {
        let count = self.entries.len().saturating_sub(most).min(limit);
        if count == 0 {
            return Vec::new();
        }
        let largest = self.by_caller.values().max_by_key(|keys| keys.len());
        largest.into_iter().flatten().take(count).map(|(_, key)| *key).collect()
    }

    pub(super) fn remove(&mut self, key: &[u8; 16]) {
        let Some(entry) = self.entries.remove(key) else { return };
        self.expiry.remove(&(entry.expires_at, *key));
        if let Some(keys) = self.by_caller.get_mut(&entry.caller) {
            keys.remove(&(entry.expires_at, *key));
            if keys.is_empty() {
                self.by_caller.remove(&entry.caller);
            }
        }
    }
}

/// The record of a key whose job is gone.
#[derive(Serialize, Deserialize)]
enum StoredKey {
    V1 { body: [u8; 16], job: [u8; 16], expires_at: Timestamp, caller: Caller },
}

pub(super) fn encode(key: &IdempotencyKey, job: JobId, caller: Caller) -> Result<Vec<u8>, Fault> {
    let stored = StoredKey::V1 { body: key.body, job: *job.as_bytes(), expires_at: key.expires_at, caller };
    Ok(postcard::to_stdvec(&stored)?)
}

pub(super) fn decode(key: [u8; 16], bytes: &[u8]) -> Result<OrphanedKey, Fault> {
    let stored = postcard::from_bytes(bytes).map_err(|error| Fault(format!("an idempotency key: {error}")))?;
    let StoredKey::V1 { body, job, expires_at, caller } = stored;
    Ok((IdempotencyKey { key, body, expires_at }, JobId::from_bytes(job), caller))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::caller;

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
        keys.insert(&key(1, 100), first, None);
        assert_eq!(keys.find(&key(1, 200), at(99)), Some(Known::Job(first)));
        assert_eq!(keys.find(&key(2, 200), at(99)), Some(Known::OtherRequest));
        assert_eq!(keys.find(&key(1, 200), at(100)), None);
        keys.insert(&key(2, 200), second, None);
        // The first job moves on, with the key that it once had.
        keys.insert(&key(1, 100), first, None);
        assert_eq!(keys.find(&key(2, 200), at(150)), Some(Known::Job(second)));
        assert_eq!(keys.expired(at(199), 9), Vec::<[u8; 16]>::new(), "the old term is forgotten");
        assert_eq!(keys.expired(at(200), 9), [[7; 16]]);
        keys.remove(&[7; 16]);
        assert_eq!((keys.find(&key(2, 200), at(150)), keys.expired(at(200), 9).len()), (None, 0));
    }

    #[test]
    fn beyond_the_bound_the_caller_with_the_most_keys_loses_its_oldest() {
        let mut keys = Keys::default();
        for n in 0..10 {
            let key = IdempotencyKey { key: [n; 16], body: [0; 16], expires_at: at(100 + i64::from(n)) };
            keys.insert(&key, JobId::from_u128(1), caller::named(if n % 3 == 0 { "a" } else { "b" }));
        }
        assert_eq!(keys.surplus(10, 9), Vec::<[u8; 16]>::new());
        assert_eq!(keys.surplus(8, 9), [[1; 16], [2; 16]]);
        assert_eq!(keys.surplus(8, 1), [[1; 16]]);
        (0..10).for_each(|n| keys.remove(&[n; 16]));
        assert!(keys.expiry.is_empty() && keys.by_caller.is_empty());
    }

    #[test]
    fn a_key_outlives_its_job_on_disk() {
        let alice = caller::named("alice");
        let written = encode(&key(1, 100), JobId::from_u128(5), alice).unwrap();
        assert_eq!(decode([7; 16], &written).unwrap(), (key(1, 100), JobId::from_u128(5), alice));
        decode([7; 16], &written[..9]).unwrap_err();
    }
}
