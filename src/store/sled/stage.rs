//! What a command makes of jobs: its records are written, its jobs are staged in the group. Bounds, deadlines and the life
//! cycle are checked here, in the step that uses them.

use std::{collections::HashSet, num::NonZeroU64, sync::Arc};

use super::{
    book::Entry,
    codec::{read_chunks, write_chunks},
    commands::{Command, MAX_BYTES, NewJob, answer_bytes},
    disk::Disk,
    group::{Body, Change, Fault, Group},
    idempotency::{self, Known},
    keys::{self, Seq},
    writer::Writer,
};
use crate::{
    clock::Timestamp,
    job::{
        Attempt, AttemptOutcome, AttemptReport, Job, JobEvent, JobId, JobRequest, JobState, MAX_ATTEMPTS,
        TransitionError, caller, delivery::Delivery,
    },
    ledger::{Day, Sums, UNKNOWN_MODEL},
    store::{Claimed, ClaimedJob, Insertion, Lanes, Pick, StoreError, bounds::Admission},
};

/// Most jobs that a group removes: their list must fit into one record.
const MAX_REMOVED: usize = 2_048;

/// Idempotency keys that a group forgets: of most there is no record, and the record of the others is small.
const PRUNED_KEYS: usize = 1_024;

/// Most jobs that a claim ends because their deadline has passed; the sweeper ends the others.
const MAX_OVERDUE: usize = 64;

/// Most queued jobs that ask the same, and most of a group that take the answer of another: each gets a copy of it, and
/// all are moved when one of them is claimed. What comes beyond has an answer of its own.
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
                        if let Err(refused) = self.admit_new(group, &[&new.job]) {
                            drop(reply.send(Err(refused)));
                            return Ok(());
                        }
                        let insertion = self.insert(disk, group, new)?;
                        group.answer(reply, insertion);
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
                if let Err(refused) = self.admit_new(group, &all.iter().map(|new| &new.job).collect::<Vec<_>>()) {
                    drop(reply.send(Err(refused)));
                    return Ok(());
                }
                // One alone has its commit point in its metadata.
                if all.len() > 1 {
                    disk.begin_batch(self.next_seq, all.len())?;
                    group.batches.push(self.next_seq);
                }
                group.answer(reply, vec![Insertion::Accepted; all.len()]);
                all.into_iter().try_for_each(|new| self.insert(disk, group, new).map(drop))
            }
            Command::Import { all, reply } => {
                // Of the same id twice, in two imports or in one, the first counts.
                let mut ids: HashSet<JobId> = group.staged.values().flatten().map(|job| job.id).collect();
                let is_here: Vec<bool> = {
                    let index = self.shared.index.read();
                    all.iter().map(|new| index.seq(new.job.id).is_some() || !ids.insert(new.job.id)).collect()
                };
                let new = all.iter().zip(&is_here).filter(|(_, is_here)| !**is_here).map(|(new, _)| &new.job);
                // An operator brings them, whosever they are.
                let asked = Admission { by: caller::operator(), ..asked(new) };
                if let Err(refused) = self.admit(group, asked) {
                    drop(reply.send(Err(refused)));
                    return Ok(());
                }
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
            Command::Claim { pick, lanes, lease_until, now, reply } => {
                match self.claim(disk, group, (pick, &lanes), lease_until, now)? {
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
            Command::Succeed { id, attempt, report, now, reply } => {
                let Some((seq, job)) = self.newest(group, id) else {
                    let _ = reply.send(Err(StoreError::NotFound(id)));
                    return Ok(());
                };
                let event = JobEvent::Succeed { attempt, report: Arc::clone(&report) };
                match self.transit(disk, group, (seq, &job), &event, now)? {
                    Ok(after) => {
                        let mut jobs = vec![after];
                        if let Some(question) = job.question {
                            jobs.extend(self.share(disk, group, question, &report.shared(id), now)?);
                        }
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

    /// Stages the claim of a ready job, and the end of those before it whose deadline has passed. The outer error is the
    /// disk's.
    fn claim(
        &self,
        disk: &Disk,
        group: &mut Group,
        (pick, lanes): (Pick, &Lanes),
        lease_until: Timestamp,
        now: Timestamp,
    ) -> Result<Result<Claimed, StoreError>, Fault> {
        let mut claimed = Claimed::default();
        while claimed.expired.len() < MAX_OVERDUE
            && let Some((seq, job)) = self.take(group, pick, lanes, now)
        {
            // What is ready is due, also by a clock that another caller looked at a moment ago.
            let JobState::Queued { run_at } = job.state else { unreachable!("only queued jobs are ready") };
            let at = now.max(run_at);
            if job.is_overdue(at) {
                let ended = self.transit(disk, group, (seq, &job), &JobEvent::MissDeadline, at)?;
                claimed.expired.extend(ended.ok());
                continue;
            }
            let request = self.request(disk, seq, job.id)?;
            let taken = job.apply(&JobEvent::Claim { lease_until }, at).map_err(StoreError::from);
            match request.and_then(|request| Ok(ClaimedJob { job: taken?, request })) {
                Ok(taken) => {
                    self.hold_back(group, &taken.job);
                    group.note(seq, Some(taken.job.clone()), now);
                    claimed.job = Some(taken);
                    break;
                }
                Err(refused) => {
                    self.shared.index.write().put_back(seq);
                    return Ok(Err(refused));
                }
            }
        }
        Ok(Ok(claimed))
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
        if let JobEvent::Requeue { by, .. } = event
            && let Err(refused) =
                self.admit(group, Admission { by: *by, owner: job.caller, scheduled: 0, ..asked([&after]) })
        {
            return Ok(Err(refused));
        }
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
        group.count(Some(job), &after);
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

    /// Gives an answer to those who ask the same, as far as a group has room for it.
    fn share(
        &self,
        disk: &Disk,
        group: &mut Group,
        question: NonZeroU64,
        report: &AttemptReport,
        now: Timestamp,
    ) -> Result<Vec<Job>, Fault> {
        let here = group.asking.get(&question).into_iter().flatten().copied();
        let asking: Vec<Seq> = self.shared.index.read().asking(question).chain(here).collect();
        let (size, event) = (answer_bytes(report), JobEvent::Share { report: Arc::new(report.clone()) });
        let mut answered = Vec::new();
        for seq in asking {
            // As it is by now: a job that became queued more than once in this group is here as often.
            let newest = match group.staged.get(&seq) {
                Some(staged) => staged.clone(),
                None => self.shared.index.read().get(seq).cloned(),
            };
            let Some(job) = newest else { continue };
            let (jobs, bytes) = group.shared;
            if jobs == MAX_SHARED || bytes > MAX_BYTES {
                break;
            }
            // Whoever isn't due, or has come to an end a moment ago, goes its own way.
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

    /// Asks whether new jobs, all of one caller, may become pending.
    fn admit_new(&self, group: &Group, jobs: &[&Job]) -> Result<(), StoreError> {
        let caller = jobs.first().and_then(|job| job.caller);
        self.admit(group, Admission { by: caller, owner: caller, ..asked(jobs.iter().copied()) })
    }

    /// Asks whether jobs may become pending, beside what is by now.
    fn admit(&self, group: &Group, asked: Admission) -> Result<(), StoreError> {
        let Change { pending, of_caller, scheduled } = &group.change;
        let of_owner = of_caller.get(&asked.owner).copied().unwrap_or(0);
        let admission = {
            let index = self.shared.index.read();
            Admission {
                pending: index.pending_len().saturating_add_signed(*pending),
                pending_scheduled: index.scheduled_len() + scheduled,
                pending_of_owner: index.pending_of(asked.owner).saturating_add_signed(of_owner),
                ..asked
            }
        };
        self.shared.admit.get().map_or(Ok(()), |admit| Ok(admit(&admission)?))
    }

    /// Writes a new job's request and stages the job.
    fn insert(&mut self, disk: &Disk, group: &mut Group, new: NewJob) -> Result<Insertion, Fault> {
        let NewJob { mut job, request, bytes, history, is_import } = new;
        let mut insertion = Insertion::Accepted;
        job.question = job.question.filter(|question| {
            let here = group.asking.get(question).map_or(0, Vec::len);
            here + self.shared.index.read().asking(*question).take(MAX_SHARED).count() < MAX_SHARED
        });
        if let Some(question) = job.question.filter(|_| job.is_running() && !is_import) {
            if group.under_way.contains(&question) || self.shared.index.read().is_under_way(Some(question)) {
                (job.state, job.attempt, job.started_at) = (JobState::Queued { run_at: job.due_at }, 0, None);
                insertion = Insertion::Unclaimed;
            } else {
                self.hold_back(group, &job);
            }
        }
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
        group.count(None, &job);
        group.note(seq, Some(job), created_at);
        Ok(insertion)
    }

    /// Takes the job picked out of the order of claiming. Jobs whose time has come become ready here.
    ///
    /// It is gone from there at once, so that the next claim of the group finds the next job. If the group fails, the
    /// whole index is read anew.
    fn take(&self, group: &Group, pick: Pick, lanes: &Lanes, now: Timestamp) -> Option<(Seq, Job)> {
        let lead = self.shared.clock.lead();
        let mut index = self.shared.index.write();
        if index.has_due(now, lead) {
            index.promote(now, lead);
        }
        loop {
            let seq = index.take(pick, lanes)?;
            // What this group has changed already gets its place when the group is published.
            if group.staged.contains_key(&seq) {
                continue;
            }
            let job = index.get(seq)?.clone();
            // The index knows nothing yet of what this group claims, and a reader may have made the job ready since.
            if let Some(question) = job.question.filter(|question| group.under_way.contains(question)) {
                index.put_back(seq);
                index.hold_back(question);
                continue;
            }
            return Some((seq, job));
        }
    }

    /// Keeps the next claims of the group from what asks the same as a job that it claims.
    fn hold_back(&self, group: &mut Group, job: &Job) {
        if let Some(question) = job.question {
            group.under_way.insert(question);
            self.shared.index.write().hold_back(question);
        }
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
            Some(staged) => staged.clone()?,
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

/// What is asked of the bounds for jobs as they are to be.
fn asked<'a>(jobs: impl IntoIterator<Item = &'a Job>) -> Admission {
    jobs.into_iter().fold(Admission::default(), |mut asked, job| {
        asked.submits += 1;
        asked.jobs += usize::from(!job.state.is_final());
        asked.scheduled += usize::from(job.is_timed);
        asked
    })
}

/// What the attempt that ended adds to the ledger, if anything.
fn entry(seq: Seq, attempt: &Attempt) -> Option<Entry> {
    let sums = Sums::of(&attempt.report)?;
    let model = attempt.report.model.as_deref().unwrap_or(UNKNOWN_MODEL).to_owned();
    Some(Entry { day: Day::of(attempt.finished_at), seq, attempt: attempt.number, model, sums })
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::{
        clock::Clock,
        metrics::Metrics,
        store::{
            JobStore,
            contract::{at, job, request},
            sled::{SledConfig, SledStore},
        },
    };

    #[tokio::test]
    async fn a_job_that_a_reader_makes_ready_while_the_same_question_is_claimed_waits_for_its_answer() {
        let folder = tempfile::tempdir().unwrap();
        let config = SledConfig { path: folder.path().to_owned(), cache_bytes: 16 << 20, keep_answers: false };
        let store = SledStore::open(config, Clock::manual(at(0)), Metrics::new()).unwrap();
        let asking = |n| Job { question: NonZeroU64::new(7), ..job(n) };
        let later = Job { state: JobState::Queued { run_at: at(20) }, ..asking(1) };
        store.insert(asking(0), request(0)).await.unwrap();
        store.insert(later.clone(), request(1)).await.unwrap();
        // The store's own writer has nothing to do. This one stands between the claims of a group.
        let writer = Writer::new(Arc::clone(&store.shared), mpsc::channel().1, 9);
        let (disk, mut group) = (store.shared.disk().unwrap(), Group::default());
        let mut claim = |pick, now| {
            writer.claim(&disk, &mut group, (pick, &Lanes::All), at(60), at(now)).ok().unwrap().unwrap().job
        };
        assert_eq!(claim(Pick::First, 10).unwrap().job.id, job(0).id);
        assert_eq!(store.claimable(at(20)), 1, "a reader makes it ready");
        assert!(claim(Pick::First, 20).is_none() && claim(Pick::Job(later.id), 20).is_none());
        assert_eq!(store.claimable(at(20)), 0);
    }
}
