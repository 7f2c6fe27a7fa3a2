//! What a command makes of jobs: its records are written, its jobs are staged in the group. The life cycle is checked here,
//! in the step that uses it.

use std::{collections::HashSet, sync::Arc};

use super::{
    book::Entry,
    codec::{read_chunks, write_chunks},
    commands::{Command, MAX_BYTES, NewJob, answer_bytes},
    disk::Disk,
    group::{Body, Fault, Group},
    idempotency::{self, Known},
    keys::{self, Seq},
    writer::Writer,
};
use crate::{
    clock::Timestamp,
    job::{
        Attempt, AttemptOutcome, AttemptReport, Job, JobEvent, JobId, JobRequest, MAX_ATTEMPTS, TransitionError,
        delivery::Delivery,
    },
    ledger::{Day, Sums, UNKNOWN_MODEL},
    store::{ClaimedJob, Insertion, StoreError},
};

/// Most jobs that a group removes: their list must fit into one record.
const MAX_REMOVED: usize = 2_048;

/// Idempotency keys that a group forgets: of most there is no record, and the record of the others is small.
const PRUNED_KEYS: usize = 1_024;

/// Most jobs of a group that take the answer of another, as each gets a copy of it.
const MAX_SHARED: usize = 512;

/// Stands in the ledger for calls that belong to no job. No job has this number.
const NO_JOB: Seq = Seq::MAX;

impl Writer {
    /// Writes what belongs to one command's jobs, stages the jobs and notes the answer; a refusal of the life cycle is
    /// answered at once.
    pub(super) fn stage(&mut self, disk: &Disk, group: &mut Group, command: Command) -> Result<(), Fault> {
        match command {
            Command::Insert { new, reply } => {
                match self.known(group, &new.job) {
                    // It may be a job of this very group: heard of only once that is durable.
                    Some(Known::Job(id)) => group.answer(reply, Insertion::Existing(id)),
                    Some(Known::OtherRequest) => drop(reply.send(Err(StoreError::KeyReused))),
                    None => {
                        self.insert(disk, group, new)?;
                        group.answer(reply, Insertion::Accepted);
                    }
                }
                Ok(())
            }
            Command::InsertAll { all, reply } => {
                let known: Vec<Option<Known>> = all.iter().map(|new| self.known(group, &new.job)).collect();
                if known.iter().any(Option::is_some) {
                    let existing = known.into_iter().map(|known| match known {
                        Some(Known::Job(id)) => Ok(Insertion::Existing(id)),
                        Some(Known::OtherRequest) | None => Err(StoreError::KeyReused),
                    });
                    match existing.collect() {
                        Ok(existing) => group.answer(reply, existing),
                        Err(reused) => drop(reply.send(Err(reused))),
                    }
                    return Ok(());
                }
                // One alone has its commit point in its metadata.
                if all.len() > 1 {
                    disk.begin_batch(self.next_seq, all.len())?;
                    group.batches.push(self.next_seq);
                }
                group.answer(reply, vec![Insertion::Accepted; all.len()]);
                all.into_iter().try_for_each(|new| self.insert(disk, group, new))
            }
            Command::Import { all, reply } => {
                // Of the same id twice, in two imports or in one, the first counts.
                let mut ids: HashSet<JobId> = group.staged.values().flatten().map(|job| job.id).collect();
                let is_here: Vec<bool> = {
                    let index = self.shared.index.read();
                    all.iter().map(|new| index.seq(new.job.id).is_some() || !ids.insert(new.job.id)).collect()
                };
                let mut insertions = Vec::with_capacity(all.len());
                for (new, is_here) in all.into_iter().zip(is_here) {
                    if is_here {
                        insertions.push(Insertion::Existing(new.job.id));
                    } else {
                        insertions.push(Insertion::Accepted);
                        self.insert(disk, group, new)?;
                    }
                }
                group.answer(reply, insertions);
                Ok(())
            }
            Command::Claim { id, owner, lease_until, now, reply } => {
                match self.claim(disk, group, id, &JobEvent::Claim { owner, lease_until }, now)? {
                    Ok(claimed) => group.answer(reply, claimed),
                    Err(refused) => drop(reply.send(Err(refused))),
                }
                Ok(())
            }
            Command::Transition { id, event, now, reply } => {
                let Some((seq, job)) = self.newest(group, id) else {
                    let _ = reply.send(Err(StoreError::NotFound(id)));
                    return Ok(());
                };
                match self.transit(disk, group, (seq, &job), &event, now)? {
                    Ok(after) => group.answer(reply, after),
                    Err(refused) => drop(reply.send(Err(refused))),
                }
                Ok(())
            }
            Command::Succeed { id, attempt, report, followers, now, reply } => {
                let Some((seq, job)) = self.newest(group, id) else {
                    let _ = reply.send(Err(StoreError::NotFound(id)));
                    return Ok(());
                };
                let event = JobEvent::Succeed { attempt, report: Arc::clone(&report) };
                match self.transit(disk, group, (seq, &job), &event, now)? {
                    Ok(after) => {
                        let mut jobs = vec![after];
                        jobs.extend(self.share(disk, group, followers, &report.shared(id), now)?);
                        group.answer(reply, jobs);
                    }
                    Err(refused) => drop(reply.send(Err(refused))),
                }
                Ok(())
            }
            Command::NoteDelivery { id, delivery, reply } => {
                let seq = self.shared.index.read().seq(id);
                if let Some(seq) = seq
                    && let Some(current) = self.delivery(group, seq)
                    && current.next_at().is_some()
                    && current.is_same_round(&delivery)
                    && !matches!(group.staged.get(&seq), Some(None))
                {
                    disk.write_delivery(seq, &delivery).map_err(Fault)?;
                    group.deliveries.insert(seq, delivery);
                    group.wrote = true;
                }
                group.answer(reply, ());
                Ok(())
            }
            Command::Resend { id, now, reply } => {
                match self.resend(disk, group, id, now)? {
                    Ok(()) => group.answer(reply, ()),
                    Err(refused) => drop(reply.send(Err(refused))),
                }
                Ok(())
            }
            Command::Prune { before, keep, limit, now, reply } => {
                let mut seqs = self.shared.index.read().prunable(before, keep, limit, now);
                seqs.retain(|seq| !group.staged.contains_key(seq));
                seqs.truncate(MAX_REMOVED.saturating_sub(group.removed.len()));
                let expired = self.shared.keys.read().expired(self.shared.key_time(now), limit.max(PRUNED_KEYS));
                // As many as asked for: there may be more.
                let pruned = if expired.len() < PRUNED_KEYS { seqs.len() } else { limit };
                group.answer(reply, pruned);
                for key in &expired {
                    disk.tree().remove(keys::idempotency(key))?;
                }
                group.wrote |= !expired.is_empty();
                group.expired_keys.extend(expired);
                self.remove(disk, group, &seqs, now)
            }
            Command::Remove { ids, now, reply } => {
                let mut seqs: Vec<Seq> = {
                    let index = self.shared.index.read();
                    let is_final = |seq: &Seq| index.get(*seq).is_some_and(|job| job.state.is_final());
                    ids.into_iter().filter_map(|id| index.seq(id)).filter(is_final).collect()
                };
                seqs.retain(|seq| !group.staged.contains_key(seq));
                seqs.truncate(MAX_REMOVED.saturating_sub(group.removed.len()));
                group.answer(reply, seqs.len());
                self.remove(disk, group, &seqs, now)
            }
            Command::Book { day, model, sums, reply } => {
                // Of no job, so nothing else has to be durable for it to count.
                group.entries.push(Entry { day, seq: NO_JOB, attempt: 0, model, sums });
                group.wrote = true;
                group.answer(reply, ());
                Ok(())
            }
            Command::Beside { change, reply } => {
                self.shared.beside.read().write(disk.tree(), &change)?;
                group.wrote = true;
                group.beside.push(change);
                group.answer(reply, ());
                Ok(())
            }
        }
    }

    /// Stages the claim of a queued job. The outer error is the disk's.
    fn claim(
        &self,
        disk: &Disk,
        group: &mut Group,
        id: JobId,
        claim: &JobEvent,
        now: Timestamp,
    ) -> Result<Result<ClaimedJob, StoreError>, Fault> {
        let Some((seq, job)) = self.newest(group, id) else { return Ok(Err(StoreError::NotFound(id))) };
        let request = match self.request(disk, seq, id)? {
            Ok(request) => request,
            Err(corrupt) => return Ok(Err(corrupt)),
        };
        let claimed = self.transit(disk, group, (seq, &job), claim, now)?;
        Ok(claimed.map(|job| ClaimedJob { job, request }))
    }

    /// Stages what an event makes of a job, and writes what belongs to it. The outer error is the disk's, the inner one
    /// the life cycle's.
    fn transit(
        &self,
        disk: &Disk,
        group: &mut Group,
        (seq, job): (Seq, &Job),
        event: &JobEvent,
        now: Timestamp,
    ) -> Result<Result<Job, StoreError>, Fault> {
        let after = match job.apply(event, now) {
            Ok(after) => after,
            Err(refused) => return Ok(Err(refused.into())),
        };
        if let Some(delivery) = self.delivery_after(disk, group, seq, job, &after, now)? {
            disk.write_delivery(seq, &delivery).map_err(Fault)?;
            group.deliveries.insert(seq, delivery);
        }
        if let Some(attempt) = job.closed_attempt(event, now) {
            group.entries.extend(entry(seq, &attempt));
            let attempt = self.shorten_history(disk, group, seq, attempt)?;
            let bytes = serde_json::to_vec(&attempt).map_err(|error| Fault(error.to_string()))?;
            write_chunks(disk.tree(), &keys::attempt(seq, attempt.number), &bytes)?;
            group.bodies.push((seq, Body::Attempt(Arc::new(attempt), bytes.len())));
        }
        group.note(seq, Some(after.clone()), now);
        Ok(Ok(after))
    }

    /// The entry of an attempt that ends, in place of those that the history need not have any more: of releases in a row
    /// all but the last, and the oldest of very many.
    fn shorten_history(&self, disk: &Disk, group: &mut Group, seq: Seq, attempt: Attempt) -> Result<Attempt, Fault> {
        let before = attempt.number - 1;
        let attempt = match attempt.outcome {
            AttemptOutcome::Released => match read_chunks(disk.tree(), &keys::attempt(seq, before))? {
                Some(bytes) => serde_json::from_slice(&bytes).map_or(attempt.clone(), |before| attempt.fold(&before)),
                None => attempt,
            },
            _ => attempt,
        };
        if attempt.folded > 0 {
            group.obsolete.push((seq, before));
        } else if before as usize >= MAX_ATTEMPTS {
            let numbers = disk.attempts(seq)?;
            let surplus = (numbers.len() + 1).saturating_sub(MAX_ATTEMPTS);
            group.obsolete.extend(numbers.into_iter().take(surplus).map(|number| (seq, number)));
        }
        Ok(attempt)
    }

    /// Gives an answer to those of the followers that are still queued, as far as a group has room for it.
    fn share(
        &self,
        disk: &Disk,
        group: &mut Group,
        followers: Vec<JobId>,
        report: &AttemptReport,
        now: Timestamp,
    ) -> Result<Vec<Job>, Fault> {
        let (size, event) = (answer_bytes(report), JobEvent::Share { report: Arc::new(report.clone()) });
        let mut answered = Vec::new();
        for id in followers {
            let (jobs, bytes) = group.shared;
            if jobs == MAX_SHARED || bytes > MAX_BYTES {
                break;
            }
            let Some((seq, job)) = self.newest(group, id) else { continue };
            // One that isn't due, or has come to an end a moment ago, goes its own way.
            if let Ok(after) = self.transit(disk, group, (seq, &job), &event, now)? {
                group.shared = (jobs + 1, bytes + size);
                answered.push(after);
            }
        }
        Ok(answered)
    }

    /// What is owed to a job's callback URL as the group sees it, as long as it is open.
    fn delivery(&self, group: &Group, seq: Seq) -> Option<Delivery> {
        group.deliveries.get(&seq).cloned().or_else(|| self.shared.deliveries.read().get(seq).cloned())
    }

    /// What is owed to a job's callback URL after a change of the job, if that makes a difference.
    fn delivery_after(
        &self,
        disk: &Disk,
        group: &Group,
        seq: Seq,
        before: &Job,
        after: &Job,
        now: Timestamp,
    ) -> Result<Option<Delivery>, Fault> {
        Ok(match (before.state.is_final(), after.state.is_final()) {
            (false, true) => self.delivery(group, seq).map(|delivery| delivery.due(now)),
            (true, false) => match self.delivery(group, seq) {
                Some(open) => Some(open.withdrawn()),
                None => disk.delivery(seq).map_err(Fault)?.map(Delivery::withdrawn),
            },
            // An answer read again can turn a failure into a success.
            (true, true) if before.state != after.state => {
                let known = match self.delivery(group, seq) {
                    Some(open) => Some(open),
                    None => disk.delivery(seq).map_err(Fault)?,
                };
                known.map(|delivery| delivery.due(now))
            }
            (false, false) | (true, true) => None,
        })
    }

    /// Makes the newest message of an ended job due. The outer error is the disk's.
    fn resend(
        &self,
        disk: &Disk,
        group: &mut Group,
        id: JobId,
        now: Timestamp,
    ) -> Result<Result<(), StoreError>, Fault> {
        let Some((seq, job)) = self.newest(group, id) else { return Ok(Err(StoreError::NotFound(id))) };
        if !job.state.is_final() {
            let wanted = "sent to its callback URL";
            return Ok(Err(TransitionError::Illegal { status: job.status(now), wanted }.into()));
        }
        let known = match self.delivery(group, seq) {
            Some(open) => Some(open),
            None => disk.delivery(seq).map_err(Fault)?,
        };
        let delivery = match known {
            Some(delivery) => delivery,
            // One that came by import after its end has none yet.
            None => match self.request(disk, seq, id)? {
                Ok(request) => match request.callback_url.as_deref() {
                    Some(url) => Delivery::to(url),
                    None => return Ok(Err(StoreError::NotFound(id))),
                },
                Err(corrupt) => return Ok(Err(corrupt)),
            },
        };
        let delivery = delivery.resent(now);
        disk.write_delivery(seq, &delivery).map_err(Fault)?;
        group.deliveries.insert(seq, delivery);
        group.wrote = true;
        Ok(Ok(()))
    }

    /// Stages the removal of jobs. Their keys outlive them.
    fn remove(&self, disk: &Disk, group: &mut Group, seqs: &[Seq], now: Timestamp) -> Result<(), Fault> {
        if seqs.is_empty() {
            return Ok(());
        }
        self.keep_keys(disk, seqs, now)?;
        group.removed.extend_from_slice(seqs);
        let list: Vec<u8> = group.removed.iter().flat_map(|seq| seq.to_be_bytes()).collect();
        disk.tree().insert(keys::PRUNING, list)?;
        for seq in seqs {
            group.note(*seq, None, now);
        }
        Ok(())
    }

    /// Writes a new job's request and stages the job.
    fn insert(&mut self, disk: &Disk, group: &mut Group, new: NewJob) -> Result<(), Fault> {
        let NewJob { job, request, bytes, history, is_import } = new;
        let seq = self.next_seq;
        self.next_seq += 1;
        group.keys.note(&job);
        write_chunks(disk.tree(), &keys::request(seq), &bytes)?;
        for (number, attempt) in &history {
            write_chunks(disk.tree(), &keys::attempt(seq, *number), attempt)?;
        }
        // Nobody is told again of what ended elsewhere.
        if let Some(url) = request.callback_url.as_deref().filter(|_| !(is_import && job.state.is_final())) {
            let delivery = Delivery::to(url);
            let delivery = if job.state.is_final() { delivery.due(job.created_at) } else { delivery };
            disk.write_delivery(seq, &delivery).map_err(Fault)?;
            group.deliveries.insert(seq, delivery);
        }
        // One with a history is not lately used.
        if history.is_empty() {
            group.bodies.push((seq, Body::Request(request, bytes.len())));
        }
        let created_at = job.created_at;
        group.note(seq, Some(job), created_at);
        Ok(())
    }

    /// What the job's key, if it has one, stands for as the group sees it.
    fn known(&self, group: &Group, job: &Job) -> Option<Known> {
        let (key, now) = (job.idempotency.as_ref()?, self.shared.key_time(job.created_at));
        group.keys.find(key, now).or_else(|| self.shared.keys.read().find(key, now))
    }

    /// Has the keys of jobs that are about to be pruned outlive them, as far as they are in force.
    fn keep_keys(&self, disk: &Disk, seqs: &[Seq], now: Timestamp) -> Result<(), Fault> {
        let (index, now) = (self.shared.index.read(), self.shared.key_time(now));
        for job in seqs.iter().filter_map(|seq| index.get(*seq)) {
            if let Some(key) = job.idempotency.as_deref().filter(|key| key.expires_at > now) {
                disk.tree().insert(
                    keys::idempotency(&key.key),
                    idempotency::encode(key, job.id, job.caller).map_err(Fault)?,
                )?;
            }
        }
        Ok(())
    }

    /// The job as the group sees it.
    fn newest(&self, group: &Group, id: JobId) -> Option<(Seq, Job)> {
        let index = self.shared.index.read();
        let seq = index.seq(id)?;
        let job = match group.staged.get(&seq) {
            Some(staged) => (**staged.as_ref()?).clone(),
            None => index.get(seq)?.clone(),
        };
        Some((seq, job))
    }

    /// The request of a job. The outer error is the disk's, the inner one the record's.
    fn request(&self, disk: &Disk, seq: Seq, id: JobId) -> Result<Result<Arc<JobRequest>, StoreError>, Fault> {
        if let Some(request) = self.shared.recent.request(seq) {
            return Ok(Ok(request));
        }
        let corrupt = |reason: String| StoreError::Corrupt { id, reason };
        Ok(match read_chunks(disk.tree(), &keys::request(seq))? {
            None => Err(corrupt("its request is missing".to_owned())),
            Some(bytes) => serde_json::from_slice(&bytes).map_err(|error| corrupt(error.to_string())),
        })
    }
}

/// What the attempt that ended adds to the ledger, if anything.
fn entry(seq: Seq, attempt: &Attempt) -> Option<Entry> {
    let sums = Sums::of(&attempt.report)?;
    let model = attempt.report.model.as_deref().unwrap_or(UNKNOWN_MODEL).to_owned();
    Some(Entry { day: Day::of(attempt.finished_at), seq, attempt: attempt.number, model, sums })
}
