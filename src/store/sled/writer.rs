//! The one writer: an OS thread that takes the changes that wait, writes them, syncs once, and only then shows, answers
//! and announces them (group commit). Changes of jobs go before new jobs; each kind keeps its order.
//!
//! Within a group later changes see earlier ones through [`Group::staged`]; readers don't. On any error everybody in
//! the group hears of it, the database is closed (sled stays in error after a full disk), and the thread tries to open
//! it again while it answers `unavailable`.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    num::NonZeroU64,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        mpsc::{self, Receiver, RecvTimeoutError, SyncSender},
    },
    thread,
    time::{Duration, Instant},
};

use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tracing::{error, info, warn};

use super::{
    CLOSED, Shared,
    beside::{Beside, BesideChange},
    book::{Entry, Page},
    codec::{encode, read_chunks, write_chunks},
    disk::Disk,
    idempotency::{self, Keys, Known},
    index::Index,
    keys::{self, Seq},
    recent::Bodies,
};
use crate::{
    clock::{Clock, Timestamp},
    job::{
        Attempt, AttemptOutcome, AttemptReport, Job, JobEvent, JobId, JobRecord, JobRequest, JobState, MAX_ATTEMPTS,
        caller::{self, Caller},
        delivery::Delivery,
    },
    ledger::{Day, Sums, UNKNOWN_MODEL},
    store::{Claimed, ClaimedJob, Insertion, Lanes, Pick, StoreError, bounds::Admission},
};

/// Most jobs that a group changes: bounds how long its first change waits for the last.
const MAX_CHANGES: usize = 1_024;

/// From so many new jobs on, a group takes no further command that brings any: at most one whole batch, so that a change
/// waits for two such groups at most, however many questions come in. All changes that wait go before new jobs.
const MAX_NEW: usize = 128;

/// Most bytes of each kind in a group, for the same reason. One command goes however large it is.
const MAX_BYTES: usize = 4 << 20;

/// Most jobs that a group removes: their list must fit into one record.
const MAX_REMOVED: usize = 2_048;

/// Idempotency keys that a group forgets: of most there is no record, and the record of the others is small.
const PRUNED_KEYS: usize = 1_024;

/// Jobs that a start reads at a time, and how many such batches it is ahead of the index.
const READ_BATCH: usize = 4_096;
const READ_AHEAD: usize = 4;

/// Most jobs that a claim ends because their deadline has passed; the sweeper ends the others.
const MAX_OVERDUE: usize = 64;

/// Most queued jobs that ask the same, and most of a group that take the answer of another: each gets a copy of it, and
/// all are moved when one of them is claimed. What comes beyond has an answer of its own.
const MAX_SHARED: usize = 512;

/// Stands in the ledger for calls that belong to no job. No job has this number.
const NO_JOB: Seq = Seq::MAX;

/// First and longest pause between two tries to open the database again.
const REOPEN_PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// Panics without a commit between them after which the writer gives up: then a fresh process is worth more.
const MAX_PANICS: u32 = 8;

/// A change, and where its answer goes.
pub(super) enum Command {
    Insert { new: NewJob, reply: Reply<Insertion> },
    InsertAll { all: Vec<NewJob>, reply: Reply<Vec<Insertion>> },
    Import { all: Vec<NewJob>, reply: Reply<Vec<Insertion>> },
    Claim { pick: Pick, lanes: Lanes, lease_until: Timestamp, now: Timestamp, reply: Reply<Claimed> },
    Transition { id: JobId, event: JobEvent, now: Timestamp, reply: Reply<Job> },
    Succeed { id: JobId, attempt: u32, report: Arc<AttemptReport>, now: Timestamp, reply: Reply<Vec<Job>> },
    NoteDelivery { id: JobId, delivery: Delivery, reply: Reply<()> },
    Prune { before: Timestamp, keep: usize, limit: usize, now: Timestamp, reply: Reply<usize> },
    Remove { ids: Vec<JobId>, now: Timestamp, reply: Reply<usize> },
    Beside { change: BesideChange, reply: Reply<()> },
    Book { day: Day, model: String, sums: Sums, reply: Reply<()> },
}

/// A job to be added. Its request comes with its bytes, so that the writer need not write them out.
pub(super) struct NewJob {
    job: Job,
    request: Arc<JobRequest>,
    bytes: Vec<u8>,
    /// What came of it before, here or elsewhere: attempts by their number.
    history: Vec<(u32, Vec<u8>)>,
    is_import: bool,
}

impl NewJob {
    pub(super) fn new(job: Job, request: Arc<JobRequest>) -> Result<NewJob, StoreError> {
        let corrupt = |error: serde_json::Error| StoreError::Corrupt { id: job.id, reason: error.to_string() };
        let bytes = serde_json::to_vec(&*request).map_err(corrupt)?;
        Ok(NewJob { job, request, bytes, history: Vec::new(), is_import: false })
    }

    pub(super) fn with_history(record: JobRecord) -> Result<NewJob, StoreError> {
        let JobRecord { job, request, attempts, delivery: _ } = record;
        let corrupt = |error: serde_json::Error| StoreError::Corrupt { id: job.id, reason: error.to_string() };
        let history =
            attempts.iter().map(|attempt| Ok((attempt.number, serde_json::to_vec(attempt).map_err(corrupt)?)));
        let history = history.collect::<Result<_, StoreError>>()?;
        Ok(NewJob { history, ..NewJob::new(job, request)? })
    }

    pub(super) fn of_another_store(record: JobRecord) -> Result<NewJob, StoreError> {
        Ok(NewJob { is_import: true, ..NewJob::with_history(record)? })
    }

    /// About how much it writes.
    fn size(&self) -> usize {
        self.bytes.len() + self.history.iter().map(|(_, bytes)| bytes.len()).sum::<usize>()
    }
}

pub(super) type Reply<T> = oneshot::Sender<Result<T, StoreError>>;

/// A command with its place in the bounded line.
pub(super) struct Envelope {
    pub(super) command: Command,
    pub(super) _place: OwnedSemaphorePermit,
}

/// The commands that wait for a group, those of each kind in the order in which they came. A new job is heard of by nobody
/// before it is written, so nothing that overtakes it can speak of it.
#[derive(Default)]
struct Line {
    changes: VecDeque<Envelope>,
    new: VecDeque<Envelope>,
}

impl Line {
    fn push(&mut self, envelope: Envelope) {
        let lane = if envelope.command.brings_jobs() { &mut self.new } else { &mut self.changes };
        lane.push_back(envelope);
    }

    fn is_empty(&self) -> bool {
        self.changes.is_empty() && self.new.is_empty()
    }

    /// Moves what makes up the next group.
    fn fill(&mut self, group: &mut Vec<Envelope>) {
        for (lane, most) in [(&mut self.changes, MAX_CHANGES), (&mut self.new, MAX_NEW)] {
            let (mut count, mut bytes) = (0, 0);
            while count < most && bytes < MAX_BYTES {
                let Some(next) = lane.pop_front() else { break };
                count += next.command.jobs();
                bytes += next.command.bytes();
                group.push(next);
            }
        }
    }

    fn fail(&mut self, reason: &str) {
        self.changes.drain(..).chain(self.new.drain(..)).for_each(|envelope| envelope.command.fail(reason));
    }
}

/// The writer's own state.
pub(super) struct Writer {
    shared: Arc<Shared>,
    commands: Receiver<Envelope>,
    line: Line,
    next_seq: Seq,
}

/// An answer that waits for the sync.
enum Answer {
    Insert(Reply<Insertion>, Insertion),
    InsertAll(Reply<Vec<Insertion>>, Vec<Insertion>),
    Claim(Reply<Claimed>, Box<Claimed>),
    Transition(Reply<Job>, Box<Job>),
    Succeed(Reply<Vec<Job>>, Vec<Job>),
    NoteDelivery(Reply<()>),
    Prune(Reply<usize>, usize),
    Beside(Reply<()>),
}

/// What has been written since the last sync.
#[derive(Default)]
struct Group {
    answers: Vec<Answer>,
    /// In order; none removes the job.
    changes: Vec<(Seq, Option<Job>, Timestamp)>,
    /// The newest state of every job that the group has touched.
    staged: HashMap<Seq, Option<Job>>,
    /// What is owed to callback URLs, where the group changes that.
    deliveries: HashMap<Seq, Delivery>,
    /// Records that no metadata spoke of before.
    bodies: Vec<(Seq, Body)>,
    change: Change,
    /// Attempts that leave the history.
    obsolete: Vec<(Seq, u32)>,
    /// Questions of jobs that the group claims.
    under_way: HashSet<NonZeroU64>,
    /// Jobs that the group makes queued, by their question.
    asking: HashMap<NonZeroU64, Vec<Seq>>,
    /// Jobs that take the answer of another, and the bytes of it.
    shared: (usize, usize),
    /// Jobs that are there together or not at all, each batch by its first.
    batches: Vec<Seq>,
    /// Keys of the jobs inserted, and keys to forget.
    keys: Keys,
    expired_keys: Vec<[u8; 16]>,
    /// What the attempts that end in this group cost.
    entries: Vec<Entry>,
    /// The ledger's records with these in them.
    pages: Vec<Page>,
    /// Jobs that the group removes.
    removed: Vec<Seq>,
    beside: Vec<BesideChange>,
    /// Something was written besides jobs.
    wrote: bool,
}

/// What a group changes in the number of pending jobs, which the index does not know yet.
#[derive(Default)]
struct Change {
    pending: isize,
    of_caller: HashMap<Caller, isize>,
    /// New jobs for later.
    scheduled: usize,
}

/// A record beside a job's metadata, with its size on disk.
enum Body {
    Request(Arc<JobRequest>, usize),
    Attempt(Arc<Attempt>, usize),
}

/// Why a group failed as a whole.
struct Fault(String);

impl From<sled::Error> for Fault {
    fn from(error: sled::Error) -> Fault {
        Fault(error.to_string())
    }
}

impl Writer {
    pub(super) fn new(shared: Arc<Shared>, commands: Receiver<Envelope>, next_seq: Seq) -> Writer {
        Writer { shared, commands, line: Line::default(), next_seq }
    }

    /// Works until the sender is gone and all that was sent is done.
    ///
    /// A panic anywhere in it, sled's drop included (it unwraps a failed sync), closes the store and opens it again. After
    /// [`MAX_PANICS`] without a commit between them the writer gives up, and `Shared::lost` is cancelled.
    pub(super) fn run(mut self) {
        let mut panics = 0;
        while catch_unwind(AssertUnwindSafe(|| self.work(&mut panics))).is_err() {
            panics += 1;
            let reason = "the job store panicked; the log has the details";
            error!(panics, "the job store's writer panicked");
            self.line.fail(reason);
            // Its drop may be what panicked, or panic too.
            let _ = catch_unwind(AssertUnwindSafe(|| self.shared.close(reason)));
            if panics == MAX_PANICS {
                error!("the job store can't be recovered: the service has to be restarted");
                self.shared.lost.cancel();
                return;
            }
        }
        self.shared.close(CLOSED);
    }

    fn work(&mut self, panics: &mut u32) {
        let mut group = Vec::new();
        if *panics > 0 {
            self.reopen();
        }
        loop {
            if self.line.is_empty() {
                let Ok(first) = self.commands.recv() else { return };
                self.line.push(first);
            }
            self.commands.try_iter().for_each(|envelope| self.line.push(envelope));
            self.line.fill(&mut group);
            if self.commit(&mut group) {
                *panics = 0;
            }
        }
    }

    /// Commits a group; true if it is durable.
    fn commit(&mut self, line: &mut Vec<Envelope>) -> bool {
        let started = Instant::now();
        let mut group = Group::default();
        let Some(disk) = self.shared.disk() else {
            let reason = self.shared.trouble().unwrap_or_default();
            line.drain(..).for_each(|envelope| envelope.command.fail(&reason));
            return false;
        };
        // A panic inside sled must cost a group, not the service.
        let mut commands = line.drain(..);
        let written = catch_unwind(AssertUnwindSafe(|| {
            for Envelope { command, .. } in commands.by_ref() {
                self.stage(&disk, &mut group, command)?;
            }
            if group.changes.is_empty() && !group.wrote { Ok(()) } else { self.write(&disk, &mut group) }
        }))
        .unwrap_or_else(|_| Err(Fault("sled panicked".to_owned())));
        match written {
            Ok(()) => {
                self.publish(group, started);
                true
            }
            Err(Fault(reason)) => {
                error!(%reason, "the job store failed; it is closed and will be reopened");
                // Before anybody hears of it, so that whoever asks next is told the same.
                self.shared.close(&reason);
                for Envelope { command, .. } in commands {
                    command.fail(&reason);
                }
                group.answers.into_iter().for_each(|answer| answer.fail(&reason));
                self.line.fail(&reason);
                // sled syncs once more in its drop, and panics if that fails too.
                if catch_unwind(AssertUnwindSafe(|| drop(disk))).is_err() {
                    warn!("sled could not sync the closed job store");
                }
                self.reopen();
                false
            }
        }
    }

    /// Writes the metadata of all jobs that the group touches, the commit point of its changes, and syncs.
    fn write(&self, disk: &Disk, group: &mut Group) -> Result<(), Fault> {
        let mut touched: Vec<Seq> = group.staged.keys().copied().collect();
        touched.sort_unstable();
        disk.begin(touched.clone(), &self.shared.index.read(), self.shared.clock.save()).map_err(Fault)?;
        // Before the metadata: what that does not confirm after a crash will not count.
        group.pages = self.shared.book.read().pages(&group.entries);
        if !group.pages.is_empty() {
            for key in self.shared.book.read().surplus() {
                disk.tree().remove(key)?;
            }
        }
        for page in &group.pages {
            disk.tree().insert(page.key(), page.encode().map_err(Fault)?)?;
        }
        for seq in &touched {
            match &group.staged[seq] {
                Some(job) => drop(disk.tree().insert(keys::metadata(*seq), encode(job).map_err(Fault)?)?),
                None => {
                    disk.tree().remove(keys::metadata(*seq))?;
                    // Never before: a job must not be there without its request.
                    disk.remove_bodies(*seq)?;
                }
            }
        }
        // After the metadata: until then the history may have to be as it was.
        for (seq, number) in &group.obsolete {
            disk.remove_attempt(*seq, *number)?;
        }
        for first in &group.batches {
            disk.end_batch(*first)?;
        }
        let syncing = Instant::now();
        disk.commit()?;
        self.shared.metrics.store_sync_seconds.observe(syncing.elapsed().as_secs_f64());
        Ok(())
    }

    /// Writes what belongs to one command's jobs, stages the jobs and notes the answer; a refusal of the life cycle is
    /// answered at once.
    fn stage(&mut self, disk: &Disk, group: &mut Group, command: Command) -> Result<(), Fault> {
        match command {
            Command::Insert { new, reply } => {
                match self.known(group, &new.job) {
                    // It may be a job of this very group: heard of only once that is durable.
                    Some(Known::Job(id)) => group.answers.push(Answer::Insert(reply, Insertion::Existing(id))),
                    Some(Known::OtherRequest) => drop(reply.send(Err(StoreError::KeyReused))),
                    None => {
                        if let Err(refused) = self.admit_new(group, &[&new.job]) {
                            drop(reply.send(Err(refused)));
                            return Ok(());
                        }
                        let insertion = self.insert(disk, group, new)?;
                        group.answers.push(Answer::Insert(reply, insertion));
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
                        Ok(existing) => group.answers.push(Answer::InsertAll(reply, existing)),
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
                group.answers.push(Answer::InsertAll(reply, vec![Insertion::Accepted; all.len()]));
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
                group.answers.push(Answer::InsertAll(reply, insertions));
                Ok(())
            }
            Command::Claim { pick, lanes, lease_until, now, reply } => {
                match self.claim(disk, group, (pick, &lanes), lease_until, now)? {
                    Ok(claimed) => group.answers.push(Answer::Claim(reply, Box::new(claimed))),
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
                    Ok(after) => group.answers.push(Answer::Transition(reply, Box::new(after))),
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
                        group.answers.push(Answer::Succeed(reply, jobs));
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
                    && current.number == delivery.number
                    && !matches!(group.staged.get(&seq), Some(None))
                {
                    disk.write_delivery(seq, &delivery).map_err(Fault)?;
                    group.deliveries.insert(seq, delivery);
                    group.wrote = true;
                }
                group.answers.push(Answer::NoteDelivery(reply));
                Ok(())
            }
            Command::Prune { before, keep, limit, now, reply } => {
                let mut seqs = self.shared.index.read().prunable(before, keep, limit, now);
                seqs.retain(|seq| !group.staged.contains_key(seq));
                seqs.truncate(MAX_REMOVED.saturating_sub(group.removed.len()));
                let expired = self.shared.keys.read().expired(self.shared.key_time(now), limit.max(PRUNED_KEYS));
                // As many as asked for: there may be more.
                let pruned = if expired.len() < PRUNED_KEYS { seqs.len() } else { limit };
                group.answers.push(Answer::Prune(reply, pruned));
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
                group.answers.push(Answer::Prune(reply, seqs.len()));
                self.remove(disk, group, &seqs, now)
            }
            Command::Book { day, model, sums, reply } => {
                // Of no job, so nothing else has to be durable for it to count.
                group.entries.push(Entry { day, seq: NO_JOB, attempt: 0, model, sums });
                group.wrote = true;
                group.answers.push(Answer::Beside(reply));
                Ok(())
            }
            Command::Beside { change, reply } => {
                self.shared.beside.read().write(disk.tree(), &change)?;
                group.wrote = true;
                group.beside.push(change);
                group.answers.push(Answer::Beside(reply));
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

    /// Makes a durable group visible, answers it and announces it.
    fn publish(&self, group: Group, started: Instant) {
        let recent = &self.shared.recent;
        for (seq, body) in group.bodies {
            match body {
                Body::Request(request, bytes) => recent.insert(seq, Bodies { request, attempts: Vec::new(), bytes }),
                Body::Attempt(attempt, bytes) => recent.push(seq, attempt, bytes),
            }
        }
        {
            let mut keys = self.shared.keys.write();
            group.expired_keys.iter().for_each(|key| keys.remove(key));
            group.changes.iter().filter_map(|(_, job, _)| job.as_ref()).for_each(|job| keys.note(job));
        }
        group.beside.into_iter().for_each(|change| self.shared.beside.write().apply(change));
        // Before the jobs: whoever sees an attempt ended finds what it cost.
        if !group.pages.is_empty() {
            let mut book = self.shared.book.write();
            book.forget_surplus();
            group.pages.into_iter().for_each(|page| book.settle(page));
        }
        // With those that have become ready or not with the change of another.
        let (mut moved, mut held_back) = (Vec::new(), Vec::new());
        if !group.changes.is_empty() || !group.deliveries.is_empty() {
            let mut index = self.shared.index.write();
            // With the jobs, never before: nobody may find a message due whose job has not ended.
            let mut deliveries = self.shared.deliveries.write();
            for (seq, job, now) in &group.changes {
                index.replace(*seq, job.as_ref(), *now);
                if job.is_none() {
                    recent.remove(*seq);
                    deliveries.replace(*seq, None);
                }
            }
            for (seq, delivery) in group.deliveries {
                // What the group removed is owed nothing.
                if index.get(seq).is_some() {
                    index.set_untold(seq, delivery.next_at().is_some());
                    let caller = index.get(seq).and_then(|job| job.caller);
                    deliveries.replace(seq, Some((caller, delivery)));
                }
            }
            drop(deliveries);
            let mut seqs = index.take_moved();
            // What has changed itself is told with its change.
            seqs.retain(|seq| !group.staged.contains_key(seq));
            seqs.sort_unstable();
            seqs.dedup();
            moved.extend(seqs.iter().filter_map(|seq| index.get(*seq).cloned()));
            let touched = group.changes.iter().map(|(seq, _, _)| seq).chain(&seqs);
            held_back.extend(
                touched.filter_map(|seq| index.get(*seq).filter(|_| index.is_held_back(*seq))).map(|job| job.id),
            );
        }
        if !group.changes.is_empty() {
            let metrics = &self.shared.metrics;
            metrics.store_commits.inc();
            metrics.store_commit_seconds.observe(started.elapsed().as_secs_f64());
        }
        // Workers first: their way to Claude is longer than an answer's to its client.
        if let Some(observer) = self.shared.observer.get() {
            let changed: Vec<Job> = group.changes.into_iter().filter_map(|(_, job, _)| job).chain(moved).collect();
            observer(&changed, &held_back);
        }
        group.answers.into_iter().for_each(Answer::send);
    }

    /// Opens the database again, however long it takes; meanwhile everybody hears `unavailable`.
    fn reopen(&mut self) {
        let mut pause = REOPEN_PAUSE.0;
        let mut next_try = Instant::now() + pause;
        loop {
            // Commands that keep coming must not put the next try off.
            let left = next_try.saturating_duration_since(Instant::now());
            if !left.is_zero() {
                match self.commands.recv_timeout(left) {
                    Ok(Envelope { command, .. }) => {
                        command.fail(&self.shared.trouble().unwrap_or_default());
                        continue;
                    }
                    Err(RecvTimeoutError::Disconnected) => return,
                    Err(RecvTimeoutError::Timeout) => {}
                }
            }
            match self.shared.reopen() {
                Ok(next_seq) => {
                    self.next_seq = next_seq.max(self.next_seq);
                    info!("the job store works again");
                    return;
                }
                Err(error) => {
                    warn!(%error, "failed to reopen the job store; trying again");
                    pause = (pause * 2).min(REOPEN_PAUSE.1);
                    next_try = Instant::now() + pause;
                }
            }
        }
    }
}

impl Group {
    /// Counts a job that is new or has another state.
    fn count(&mut self, before: Option<&Job>, after: &Job) {
        let is_pending = |job: &Job| !job.state.is_final();
        let change = isize::from(is_pending(after)) - isize::from(before.is_some_and(is_pending));
        self.change.pending += change;
        *self.change.of_caller.entry(after.caller).or_default() += change;
        self.change.scheduled += usize::from(before.is_none() && after.is_timed);
    }

    fn note(&mut self, seq: Seq, job: Option<Job>, now: Timestamp) {
        if let Some(Job { question: Some(question), state: JobState::Queued { .. }, .. }) = &job {
            self.asking.entry(*question).or_default().push(seq);
        }
        self.staged.insert(seq, job.clone());
        self.changes.push((seq, job, now));
    }
}

impl Command {
    /// Whether it brings new jobs; all others change jobs that are there, or nothing.
    pub(super) fn brings_jobs(&self) -> bool {
        matches!(self, Command::Insert { .. } | Command::InsertAll { .. } | Command::Import { .. })
    }

    /// How many jobs it is about.
    pub(super) fn jobs(&self) -> usize {
        match self {
            Command::InsertAll { all, .. } | Command::Import { all, .. } => all.len().max(1),
            Command::Remove { ids, .. } => ids.len().max(1),
            Command::Prune { limit, .. } => *limit,
            Command::Insert { .. }
            | Command::Claim { .. }
            | Command::Transition { .. }
            | Command::Succeed { .. }
            | Command::NoteDelivery { .. }
            | Command::Beside { .. }
            | Command::Book { .. } => 1,
        }
    }

    /// About how much it writes.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Command::Insert { new, .. } => new.size(),
            Command::InsertAll { all, .. } | Command::Import { all, .. } => all.iter().map(NewJob::size).sum(),
            Command::Transition { event, .. } => event.report().map_or(0, answer_bytes),
            Command::Succeed { report, .. } => answer_bytes(report),
            Command::Beside { change, .. } => change.bytes(),
            Command::Claim { .. }
            | Command::NoteDelivery { .. }
            | Command::Prune { .. }
            | Command::Remove { .. }
            | Command::Book { .. } => 0,
        }
    }

    /// Tells the caller that nothing is known to have happened. Nobody may be listening any more.
    fn fail(self, reason: &str) {
        let error = StoreError::Unavailable { reason: reason.to_owned() };
        match self {
            Command::Insert { reply, .. } => drop(reply.send(Err(error))),
            Command::InsertAll { reply, .. } | Command::Import { reply, .. } => drop(reply.send(Err(error))),
            Command::Claim { reply, .. } => drop(reply.send(Err(error))),
            Command::Transition { reply, .. } => drop(reply.send(Err(error))),
            Command::Succeed { reply, .. } => drop(reply.send(Err(error))),
            Command::NoteDelivery { reply, .. } => drop(reply.send(Err(error))),
            Command::Prune { reply, .. } | Command::Remove { reply, .. } => drop(reply.send(Err(error))),
            Command::Beside { reply, .. } | Command::Book { reply, .. } => drop(reply.send(Err(error))),
        }
    }
}

impl Answer {
    fn send(self) {
        match self {
            Answer::Insert(reply, insertion) => drop(reply.send(Ok(insertion))),
            Answer::InsertAll(reply, insertions) => drop(reply.send(Ok(insertions))),
            Answer::Claim(reply, claimed) => drop(reply.send(Ok(*claimed))),
            Answer::Transition(reply, job) => drop(reply.send(Ok(*job))),
            Answer::Succeed(reply, jobs) => drop(reply.send(Ok(jobs))),
            Answer::NoteDelivery(reply) => drop(reply.send(Ok(()))),
            Answer::Prune(reply, pruned) => drop(reply.send(Ok(pruned))),
            Answer::Beside(reply) => drop(reply.send(Ok(()))),
        }
    }

    fn fail(self, reason: &str) {
        let error = StoreError::Unavailable { reason: reason.to_owned() };
        match self {
            Answer::Insert(reply, _) => drop(reply.send(Err(error))),
            Answer::InsertAll(reply, _) => drop(reply.send(Err(error))),
            Answer::Claim(reply, _) => drop(reply.send(Err(error))),
            Answer::Transition(reply, _) => drop(reply.send(Err(error))),
            Answer::Succeed(reply, _) => drop(reply.send(Err(error))),
            Answer::NoteDelivery(reply) => drop(reply.send(Err(error))),
            Answer::Prune(reply, _) => drop(reply.send(Err(error))),
            Answer::Beside(reply) => drop(reply.send(Err(error))),
        }
    }
}

/// About how much an answer takes.
fn answer_bytes(report: &AttemptReport) -> usize {
    report.result.as_ref().map_or(0, |result| result.get().len()) + report.raw_answer.as_ref().map_or(0, String::len)
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

/// Sends all jobs in their order, in batches.
fn read_jobs(disk: &Disk, batches: &SyncSender<Vec<(Seq, Job)>>) -> Result<(), String> {
    let mut jobs = disk.jobs();
    loop {
        let batch = jobs.by_ref().take(READ_BATCH).collect::<Result<Vec<_>, _>>()?;
        // The other side is gone only if it panicked.
        if batch.is_empty() || batches.send(batch).is_err() {
            return Ok(());
        }
    }
}

/// The index and the idempotency keys as the database tells them, and the first number that is free.
///
/// Of a job that has outlived its key, the key is not taken up again.
pub(super) fn load(disk: &Disk, keep_answers: bool, clock: &Clock) -> Result<(Index, Keys, Beside, Seq), String> {
    clock.resume(disk.time());
    let now = clock.now();
    let keys_at = idempotency::time(clock, now);
    // Before anything is removed, so that no number is given twice.
    let next_seq = disk.next_seq().map_err(|error| error.to_string())?;
    disk.sweep_batches().map_err(|error| error.to_string())?;
    let (mut keys, mut newest) = (Keys::default(), 0);
    // One thread reads records while the other indexes what they say: together they take most of a start.
    let index = thread::scope(|scope| {
        let (sender, batches) = mpsc::sync_channel(READ_AHEAD);
        let reading = scope.spawn(move || read_jobs(disk, &sender));
        let jobs = batches.into_iter().flatten().inspect(|(seq, job)| {
            if job.idempotency.as_ref().is_some_and(|key| key.expires_at > keys_at) {
                keys.note(job);
            }
            newest = *seq;
        });
        let index = Index::of(jobs, keep_answers, now, clock.lead());
        reading.join().unwrap_or_else(|_| Err("sled panicked".to_owned())).map(|()| index)
    })?;
    for entry in disk.orphaned_keys() {
        let (key, job, caller) = entry?;
        keys.insert(&key, job, caller);
    }
    // Before anything is removed.
    disk.check(&index)?;
    disk.sweep_orphans(newest).map_err(|error| error.to_string())?;
    let beside = Beside::load(disk.tree())?;
    Ok((index, keys, beside, next_seq))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        job::Priority,
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

    /// A command that brings the job `n`, or one that changes jobs.
    fn envelope(n: Option<u128>) -> Envelope {
        let places = Arc::new(tokio::sync::Semaphore::new(1));
        let command = match n {
            Some(n) => {
                let job = Job::new(JobId::from_u128(n), Priority::Normal, Timestamp::from_millis(0));
                let new = NewJob::new(job, Arc::default()).unwrap();
                Command::Insert { new, reply: oneshot::channel().0 }
            }
            None => Command::Remove { ids: Vec::new(), now: Timestamp::from_millis(0), reply: oneshot::channel().0 },
        };
        Envelope { command, _place: places.try_acquire_owned().unwrap() }
    }

    #[test]
    fn changes_go_before_new_jobs_of_which_a_group_has_only_so_many_and_in_their_order() {
        let mut line = Line::default();
        (0..=MAX_NEW as u128).for_each(|n| line.push(envelope(Some(n))));
        (0..3).for_each(|_| line.push(envelope(None)));
        let mut group = Vec::new();
        line.fill(&mut group);
        let new = |group: &[Envelope]| -> Vec<u128> {
            let ids = group.iter().filter_map(|envelope| match &envelope.command {
                Command::Insert { new, .. } => Some(new.job.id.as_u128()),
                _ => None,
            });
            ids.collect()
        };
        assert!(group[..3].iter().all(|envelope| matches!(envelope.command, Command::Remove { .. })));
        assert_eq!(new(&group), (0..MAX_NEW as u128).collect::<Vec<_>>());
        group.clear();
        line.fill(&mut group);
        assert_eq!((new(&group), line.is_empty()), (vec![MAX_NEW as u128], true));
    }
}
