//! A batch of changes that one transaction makes durable: what was read of the jobs, and what the changes make of them.
//! Within a batch later changes see earlier ones; readers don't.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use uuid::Uuid;

use crate::{
    clock::Timestamp,
    job::{
        Attempt, AttemptReport, IdempotencyKey, Job, JobEvent, JobId, JobRecord, JobRequest, JobState, MAX_ATTEMPTS,
        caller::Caller, delivery::Delivery,
    },
    ledger::{Day, Sums},
    store::{
        change,
        new_job::{NewJob, json},
        traits::{ClaimedJob, Insertion, StoreError},
    },
};

/// Most jobs of a batch that take the answer of another, and most bytes of these answers, as each gets a copy.
const MAX_SHARED: (usize, usize) = (512, 4 << 20);

/// What a change has to know of the database.
#[derive(Debug, Default)]
pub(super) struct Needs {
    pub(super) jobs: Vec<JobId>,
    /// Jobs of which it needs the request.
    pub(super) requests: Vec<JobId>,
    /// Jobs of which it needs the newest entry of the history.
    pub(super) last_attempts: Vec<JobId>,
    pub(super) keys: Vec<Vec<u8>>,
    /// Names of settings.
    pub(super) settings: Vec<Vec<u8>>,
    /// About how much it writes, and how many jobs it changes.
    pub(super) bytes: usize,
    pub(super) count: usize,
}

impl Needs {
    pub(super) fn job(id: JobId) -> Needs {
        Needs { jobs: vec![id], count: 1, ..Needs::default() }
    }

    /// Of a change that brings these jobs.
    pub(super) fn of_new(new: &[NewJob]) -> Needs {
        let keys = new.iter().filter_map(|new| Some(new.record.job.idempotency.as_ref()?.key.to_vec()));
        Needs { keys: keys.collect(), bytes: new.iter().map(NewJob::bytes).sum(), count: new.len(), ..Needs::default() }
    }

    pub(super) fn add(&mut self, other: &mut Needs) {
        self.jobs.append(&mut other.jobs);
        self.requests.append(&mut other.requests);
        self.last_attempts.append(&mut other.last_attempts);
        self.keys.append(&mut other.keys);
        self.settings.append(&mut other.settings);
        self.bytes += other.bytes;
        self.count += other.count;
    }
}

/// A job as the batch has it.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) seq: i64,
    /// `None` once it is removed.
    pub(super) job: Option<Arc<Job>>,
    pub(super) delivery: Option<Delivery>,
    /// The state in the database, and whether a message was to be sent; `None` for a new job.
    pub(super) before: Option<(JobState, bool)>,
    /// The newest entry of its history, if that was read or written by this batch.
    pub(super) last_attempt: Option<Attempt>,
    pub(super) is_changed: bool,
    pub(super) has_new_delivery: bool,
}

impl Entry {
    /// Its message is still to be sent.
    pub(super) fn is_unnotified(&self) -> bool {
        self.delivery.as_ref().is_some_and(|delivery| delivery.next_at().is_some())
    }
}

/// An idempotency key in force.
#[derive(Debug)]
pub(super) struct Key {
    pub(super) body: Vec<u8>,
    pub(super) job: JobId,
    pub(super) expires_at: Timestamp,
    /// Of a new one.
    pub(super) caller: Caller,
    pub(super) is_new: bool,
}

/// A new entry of the audit log: id, text, and the oldest id that may stay.
pub(super) type AuditEntry = (Uuid, String, Uuid);

/// The batch.
#[derive(Debug, Default)]
pub(super) struct Batch {
    /// This node leaves the seat, or has left it.
    pub(super) is_leaving: bool,
    pub(super) entries: HashMap<JobId, Entry>,
    pub(super) requests: HashMap<JobId, Result<Arc<JobRequest>, String>>,
    pub(super) keys: HashMap<Vec<u8>, Key>,
    /// How much of the time was jumped over: so much longer keys are in force.
    pub(super) skipped: Duration,
    pub(super) next_seq: i64,
    pub(super) new_requests: Vec<(i64, Vec<u8>)>,
    pub(super) attempts: BTreeMap<(i64, i64), Vec<u8>>,
    pub(super) dropped_attempts: Vec<(i64, i64)>,
    /// Jobs with more than [`MAX_ATTEMPTS`] attempts.
    pub(super) long_histories: Vec<i64>,
    pub(super) costs: Vec<(Day, String, Sums)>,
    /// Changed settings.
    pub(super) settings: BTreeMap<String, Option<String>>,
    /// Settings that were read.
    pub(super) stored_settings: HashMap<String, String>,
    pub(super) audit: Vec<AuditEntry>,
    /// Keys that were in force until then can go.
    pub(super) forget_keys: Option<Timestamp>,
    /// For the feed, in order.
    pub(super) changes: Vec<Arc<Job>>,
    pub(super) shared: (usize, usize),
}

impl Batch {
    /// Applies an event to a job.
    pub(super) fn apply(&mut self, id: JobId, event: &JobEvent, now: Timestamp) -> Result<Job, StoreError> {
        let entry = self.entries.get_mut(&id).ok_or(StoreError::NotFound(id))?;
        let before = entry.job.clone().ok_or(StoreError::NotFound(id))?;
        let after = before.apply(event, now)?;
        if let Some(attempt) = before.closed_attempt(event, now) {
            let cost = change::cost_of(&attempt);
            let attempt = match &entry.last_attempt {
                Some(last) => attempt.fold(last),
                None => attempt,
            };
            let number = i64::from(attempt.number);
            self.attempts.insert((entry.seq, number), json(id, &attempt)?);
            if attempt.folded > 0 && self.attempts.remove(&(entry.seq, number - 1)).is_none() {
                self.dropped_attempts.push((entry.seq, number - 1));
            }
            if attempt.number as usize > MAX_ATTEMPTS {
                self.long_histories.push(entry.seq);
            }
            self.costs.extend(cost);
            entry.last_attempt = Some(attempt);
        }
        if let Some(delivery) = entry.delivery.take() {
            entry.delivery = Some(change::delivery_after(&before, &after, delivery, now));
            entry.has_new_delivery |= before.state.is_final() != after.state.is_final() || before.state.is_final();
        }
        let job = Arc::new(after.clone());
        (entry.job, entry.is_changed) = (Some(Arc::clone(&job)), true);
        self.changes.push(job);
        Ok(after)
    }

    /// The next dispatcher counts the calls under way when it takes the seat. It would not count that of a later claim.
    fn check_claim(&self) -> Result<(), StoreError> {
        let reason = || "this node leaves the dispatcher's seat, so it claims no more jobs".to_owned();
        if self.is_leaving { Err(StoreError::Unavailable { reason: reason() }) } else { Ok(()) }
    }

    pub(super) fn claim(&mut self, id: JobId, event: &JobEvent, now: Timestamp) -> Result<ClaimedJob, StoreError> {
        self.check_claim()?;
        if !self.entries.contains_key(&id) {
            return Err(StoreError::NotFound(id));
        }
        let request = match self.requests.get(&id) {
            Some(Ok(request)) => Arc::clone(request),
            Some(Err(reason)) => return Err(StoreError::Corrupt { id, reason: reason.clone() }),
            None => return Err(StoreError::Corrupt { id, reason: "its request is missing".to_owned() }),
        };
        Ok(ClaimedJob { job: self.apply(id, event, now)?, request })
    }

    pub(super) fn succeed(
        &mut self,
        id: JobId,
        attempt: u32,
        report: &Arc<AttemptReport>,
        followers: Vec<JobId>,
        now: Timestamp,
    ) -> Result<Vec<Job>, StoreError> {
        let event = JobEvent::Succeed { attempt, report: Arc::clone(report) };
        let mut jobs = vec![self.apply(id, &event, now)?];
        let share = JobEvent::Share { report: Arc::new(report.shared(id)) };
        for follower in followers {
            if self.shared.0 == MAX_SHARED.0 || self.shared.1 > MAX_SHARED.1 {
                break;
            }
            // One that isn't due, or has come to an end a moment ago, goes its own way.
            if let Ok(job) = self.apply(follower, &share, now) {
                self.shared = (self.shared.0 + 1, self.shared.1 + change::report_bytes(report));
                jobs.push(job);
            }
        }
        Ok(jobs)
    }

    /// What a job's idempotency key stands for.
    pub(super) fn known(&self, job: &Job) -> Result<Option<Insertion>, StoreError> {
        let Some(key) = job.idempotency.as_deref() else { return Ok(None) };
        let now = job.created_at.minus(self.skipped);
        match self.keys.get(&key.key[..]).filter(|known| known.expires_at > now) {
            None => Ok(None),
            Some(known) if known.body == key.body => Ok(Some(Insertion::Existing(known.job))),
            Some(_) => Err(StoreError::KeyReused),
        }
    }

    pub(super) fn insert_all(&mut self, all: Vec<NewJob>) -> Result<Vec<Insertion>, StoreError> {
        let known = all.iter().map(|new| self.known(&new.record.job)).collect::<Result<Vec<_>, _>>()?;
        if known.iter().any(Option::is_some) {
            return known.into_iter().collect::<Option<_>>().ok_or(StoreError::KeyReused);
        }
        if all.iter().any(|new| new.record.job.is_running()) {
            self.check_claim()?;
        }
        let accepted = vec![Insertion::Accepted; all.len()];
        all.into_iter().for_each(|new| self.add(new, None));
        Ok(accepted)
    }

    /// Adds those that are not here yet.
    pub(super) fn import(&mut self, all: Vec<NewJob>, places: Option<Vec<u64>>) -> Vec<Insertion> {
        let mut insertions = Vec::with_capacity(all.len());
        let mut places = places.into_iter().flatten();
        for new in all {
            let place = places.next().map(u64::cast_signed);
            let id = new.record.job.id;
            if self.entries.get(&id).is_some_and(|entry| entry.job.is_some()) {
                insertions.push(Insertion::Existing(id));
                continue;
            }
            insertions.push(Insertion::Accepted);
            self.add(new, place);
        }
        insertions
    }

    fn add(&mut self, new: NewJob, place: Option<i64>) {
        let NewJob { record: JobRecord { job, delivery, .. }, request, attempts } = new;
        let (id, seq) = (job.id, place.unwrap_or(self.next_seq));
        self.next_seq = self.next_seq.max(seq + 1);
        if let Some(key) = job.idempotency.as_deref() {
            self.add_key(key, id, job.caller);
        }
        self.new_requests.push((seq, request));
        self.attempts.extend(attempts.into_iter().map(|(number, bytes)| ((seq, i64::from(number)), bytes)));
        let job = Arc::new(job);
        self.changes.push(Arc::clone(&job));
        let has_new_delivery = delivery.is_some();
        let entry = Entry {
            seq,
            job: Some(job),
            delivery,
            before: None,
            last_attempt: None,
            is_changed: true,
            has_new_delivery,
        };
        self.entries.insert(id, entry);
    }

    /// A key that was used again after its time belongs to the later job.
    pub(super) fn add_key(&mut self, key: &IdempotencyKey, job: JobId, caller: Caller) {
        if self.keys.get(&key.key[..]).is_none_or(|known| known.expires_at <= key.expires_at) {
            let new = Key { body: key.body.to_vec(), job, expires_at: key.expires_at, caller, is_new: true };
            self.keys.insert(key.key.to_vec(), new);
        }
    }

    /// Removes those jobs that are finished and not changed by this batch, and that `is_wanted`.
    pub(super) fn remove(&mut self, ids: &HashSet<JobId>, is_wanted: impl Fn(&Job, bool) -> bool) -> usize {
        let mut removed = 0;
        for (id, entry) in &mut self.entries {
            let is_unnotified = entry.is_unnotified();
            let Some(job) = entry.job.as_ref().filter(|job| job.state.is_final() && ids.contains(id)) else { continue };
            if !entry.is_changed && is_wanted(job, is_unnotified) {
                (entry.job, entry.is_changed) = (None, true);
                removed += 1;
            }
        }
        removed
    }

    pub(super) fn resend(&mut self, id: JobId, now: Timestamp) -> Result<(), StoreError> {
        let entry = self.entries.get_mut(&id).ok_or(StoreError::NotFound(id))?;
        let job = entry.job.as_ref().ok_or(StoreError::NotFound(id))?;
        let callback_url = || match self.requests.get(&id) {
            Some(Ok(request)) => Ok(request.callback_url.clone()),
            Some(Err(reason)) => Err(StoreError::Corrupt { id, reason: reason.clone() }),
            None => Ok(None),
        };
        entry.delivery = Some(change::resent(job, entry.delivery.clone(), callback_url, now)?);
        (entry.is_changed, entry.has_new_delivery) = (true, true);
        Ok(())
    }

    pub(super) fn record(&mut self, id: JobId, delivery: Delivery) {
        let Some(entry) = self.entries.get_mut(&id).filter(|entry| entry.job.is_some()) else { return };
        let is_newest = |current: &Delivery| current.next_at().is_some() && current.is_same_round(&delivery);
        if entry.delivery.as_ref().is_some_and(is_newest) {
            entry.delivery = Some(delivery);
            (entry.is_changed, entry.has_new_delivery) = (true, true);
        }
    }

    /// Changes a setting, which was read, if its value is the expected one.
    pub(super) fn compare_and_set(&mut self, name: String, expected: Option<&str>, value: Option<String>) -> bool {
        let current = match self.settings.get(&name) {
            Some(changed) => changed.as_deref(),
            None => self.stored_settings.get(&name).map(String::as_str),
        };
        let is_expected = current == expected;
        if is_expected {
            self.settings.insert(name, value);
        }
        is_expected
    }

    /// Whether there is anything to write.
    pub(super) fn is_empty(&self) -> bool {
        self.changes.is_empty()
            && self.costs.is_empty()
            && self.settings.is_empty()
            && self.audit.is_empty()
            && self.forget_keys.is_none()
            && !self.keys.values().any(|key| key.is_new)
            && !self.entries.values().any(|entry| entry.is_changed)
    }
}
