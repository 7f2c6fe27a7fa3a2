//! The one writer: an OS thread that takes the changes that wait, writes them, syncs once, and only then shows, answers
//! and announces them (group commit). Changes of jobs go before new jobs; each kind keeps its order.
//!
//! Within a group later changes see earlier ones through [`Group::staged`]; readers don't. On any error everybody in
//! the group hears of it, the database is closed (sled stays in error after a full disk), and the thread tries to open
//! it again while it answers `unavailable`.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError},
    },
    time::{Duration, Instant},
};

use tracing::{error, info, warn};

use super::{
    CLOSED, Shared,
    codec::encode,
    commands::{Envelope, Line},
    disk::Disk,
    group::{Body, Fault, Group},
    keys::{self, Seq},
    recent::Bodies,
};
use crate::{
    job::Job,
    store::{StoreError, Totals},
};

/// First and longest pause between two tries to open the database again.
const REOPEN_PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// Panics without a commit between them after which the writer gives up: then a fresh process is worth more.
const MAX_PANICS: u32 = 8;

/// The writer's own state.
pub(super) struct Writer {
    pub(super) shared: Arc<Shared>,
    commands: Receiver<Envelope>,
    line: Line,
    pub(super) next_seq: Seq,
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
                let fault = StoreError::Unavailable { reason: reason.clone() };
                group.answers.into_iter().for_each(|answer| answer(Some(fault.clone())));
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
        let has_spent = !group.pages.is_empty();
        if has_spent {
            let mut book = self.shared.book.write();
            book.forget_surplus();
            group.pages.into_iter().for_each(|page| book.settle(page));
        }
        if !group.changes.is_empty() || !group.deliveries.is_empty() {
            let mut index = self.shared.index.write();
            // With the jobs, never before: nobody may find a message due whose job has not ended.
            let mut deliveries = self.shared.deliveries.write();
            for (seq, job, now) in &group.changes {
                index.replace(*seq, job.clone(), *now);
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
        }
        let is_news = !group.changes.is_empty() || has_spent;
        if !group.changes.is_empty() {
            let metrics = &self.shared.metrics;
            metrics.store_commits.inc();
            metrics.store_commit_seconds.observe(started.elapsed().as_secs_f64());
        }
        // Workers first: their way to Claude is longer than an answer's to its client.
        if let Some(feed) = self.shared.feed.get().filter(|_| is_news) {
            let changed: Vec<Arc<Job>> = group.changes.into_iter().filter_map(|(_, job, _)| job).collect();
            let totals = Totals { ended: self.shared.index.read().ended(), spent: self.shared.book.read().spent() };
            feed.changed(&changed, totals);
        }
        group.answers.into_iter().for_each(|answer| answer(None));
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
