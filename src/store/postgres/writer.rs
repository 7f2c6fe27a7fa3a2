//! The one writer of a node: takes the changes that wait, reads the jobs that they touch, applies them in order, writes all of
//! it and commits once (group commit). Only then it notifies the feed and answers. Changes of jobs go before new jobs.
//!
//! The writers of all nodes take turns: a transaction holds a lock from its start to its end, and begins with what other nodes
//! have committed since. So each sees all that was committed before, and changes nothing that it has not seen. A commit to
//! disk takes longer than all else, and the lock costs none: a writer has one transaction under way anyway.
//!
//! On an error the whole batch fails, its outcome unknown, and the connection with it. The writer connects again and reads all
//! pending jobs. What the old connection still commits comes by the feed.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use tokio::{
    sync::{mpsc, oneshot},
    time::{MissedTickBehavior, interval, sleep, timeout},
};
use tokio_postgres::Row;
use tracing::{error, info, warn};

use super::{
    batch::{Batch, Needs},
    columns::Columns,
    connection::ANSWER_TIMEOUT,
    error::OpenError,
    feed,
    session::Session,
    shared::{Reset, Shared, Standing},
    state::State,
};
use crate::job::IdempotencyKey;

/// Most jobs that a batch changes, and from so many new jobs on it takes no further command that brings any.
const MAX_CHANGES: usize = 1_024;

/// Most bytes of a batch, or one command that is larger.
const MAX_BYTES: usize = 4 << 20;

/// First and longest pause between two tries to connect.
const CONNECT_PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// Longest time for one step of the writer while commands wait.
const WORK_TIMEOUT: Duration = ANSWER_TIMEOUT.saturating_mul(2);

/// Longest read of all pending jobs while commands fail, or before there are any.
const READ_TIMEOUT: Duration = Duration::from_mins(5);

/// How often the writer looks whether a full database has room again.
const ROOM_PAUSE: Duration = Duration::from_secs(1);

/// Longest wait for the end of a transaction that failed.
const ROLLBACK_TIMEOUT: Duration = Duration::from_secs(1);

/// How often a batch begins again because the feed is too far ahead.
const BEGINS: usize = 3;

/// Answers a caller. If it is dropped, the caller hears that the outcome is unknown.
pub(super) type Answer = Box<dyn FnOnce() + Send>;

/// Makes a change in the batch.
pub(super) type Run = Box<dyn FnOnce(&mut Batch) -> Answer + Send + Sync>;

/// A change on its way to the writer.
pub(super) enum Command {
    Change {
        needs: Needs,
        run: Run,
    },
    Reset(Reset),
    /// The node holds the seat's lock: from now on it writes only as long as no other takes the seat.
    TakeSeat(oneshot::Sender<()>),
    /// The node is about to leave the seat: from now on it writes as any other node.
    LeaveSeat(oneshot::Sender<()>),
}

/// The two lanes of commands.
pub(super) struct Lanes {
    pub(super) changes: mpsc::Receiver<Command>,
    pub(super) new: mpsc::Receiver<Command>,
}

impl Lanes {
    /// The next command, changes first; `None` once the store is closed and all is done.
    async fn next(&mut self) -> Option<Command> {
        tokio::select! {
            biased;
            Some(command) = self.changes.recv() => Some(command),
            Some(command) = self.new.recv() => Some(command),
            else => None,
        }
    }

    /// A command that waits already.
    fn try_next(&mut self) -> Option<Command> {
        self.changes.try_recv().or_else(|_| self.new.try_recv()).ok()
    }
}

pub(super) struct Writer {
    shared: Arc<Shared>,
    lanes: Lanes,
    session: Session,
    /// Once this node has the seat.
    epoch: Option<i64>,
    /// Taken from the lanes and not yet part of a batch.
    next: Option<Command>,
}

impl Writer {
    pub(super) async fn open(shared: Arc<Shared>, lanes: Lanes) -> Result<Writer, OpenError> {
        let session = Session::open(&shared.database).await?;
        session.resume(&shared.clock).await?;
        Ok(Writer { shared, lanes, session, epoch: None, next: None })
    }

    pub(super) async fn run(mut self) {
        let lost = self.shared.lost.clone();
        let (mut newest, mut looks) = (self.shared.newest.subscribe(), interval(ROOM_PAUSE));
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let closed = self.session.link.closed.clone();
            let command = match self.next.take() {
                Some(command) => Some(command),
                None => tokio::select! {
                    biased;
                    () = lost.cancelled() => return self.end(),
                    () = closed.cancelled() => {
                        self.fail(&OpenError::Connect("the connection is gone".to_owned()));
                        if !self.reconnect().await {
                            return;
                        }
                        continue;
                    }
                    _ = looks.tick(), if self.shared.full.lock().is_some() => {
                        self.look_for_room().await;
                        continue;
                    }
                    Ok(()) = self.session.link.newest.changed() => None,
                    Ok(()) = newest.changed() => None,
                    command = self.lanes.next() => match command {
                        None => return,
                        command => command,
                    },
                },
            };
            let result = match command {
                None => in_time(self.catch_up()).await,
                Some(Command::Reset(reset)) => self.reset(reset).await,
                Some(Command::TakeSeat(reply)) => in_time(self.take_seat_for(reply)).await,
                Some(Command::LeaveSeat(reply)) => {
                    self.epoch = None;
                    let _ = reply.send(());
                    Ok(())
                }
                Some(first) => self.commit(first).await,
            };
            match result {
                Ok(()) => {}
                Err(OpenError::SeatLost) => self.lose_seat(),
                Err(error) => {
                    self.fail(&error);
                    if !self.reconnect().await {
                        return;
                    }
                }
            }
        }
    }

    fn lose_seat(&self) {
        error!("another node has taken the seat; this process has to end");
        self.shared.set_trouble(Some("another node has taken the seat".to_owned()));
        self.shared.lost.cancel();
    }

    /// The store was lost, and who found that has logged why.
    fn end(&self) {
        self.shared.trouble.lock().get_or_insert_with(|| "this process has to end; its log has the reason".to_owned());
    }

    async fn look_for_room(&self) {
        // After another error the next batch shows whether there is room.
        if !matches!(self.session.check_room().await, Err(OpenError::Full(_))) {
            *self.shared.full.lock() = None;
            info!("the database has room again");
        }
    }

    fn fail(&self, error: &OpenError) {
        let reason = error.to_string();
        if matches!(error, OpenError::Full(_)) {
            *self.shared.full.lock() = Some(reason.clone());
        }
        if !self.shared.lost.is_cancelled() {
            error!(reason, "the job store failed; connecting to the database again");
        }
        self.shared.set_trouble(Some(reason));
    }

    /// Connects again, however long it takes. Meanwhile all commands fail. False if the store was closed.
    async fn reconnect(&mut self) -> bool {
        let mut pause = CONNECT_PAUSE.0;
        self.next = None;
        // A transaction that is still open would keep all nodes from writing.
        let _ = timeout(ROLLBACK_TIMEOUT, self.session.rollback()).await;
        loop {
            let shared = Arc::clone(&self.shared);
            let connecting = async {
                let session = Session::open(&shared.database).await?;
                read_all(&shared, &session).await?;
                Ok(session)
            };
            let mut connected = match self.failing_commands(connecting).await {
                None => return false,
                Some(Ok(session)) => {
                    self.session = session;
                    Ok(())
                }
                Some(Err(error)) => Err(error),
            };
            if connected.is_ok() && self.epoch.is_some() {
                // Raises the epoch: a transaction of the old connection has been committed, or never will be.
                connected = in_time(self.take_seat(false)).await.map(|epoch| self.seat(epoch));
            }
            match connected {
                Ok(()) => {
                    self.shared.set_trouble(None);
                    info!("the job store works again");
                    return true;
                }
                Err(OpenError::SeatLost) => {
                    self.lose_seat();
                    return true;
                }
                Err(error) => {
                    warn!(%error, "failed to connect to the database; trying again");
                    self.shared.set_trouble(Some(error.to_string()));
                }
            }
            if self.failing_commands(sleep(pause)).await.is_none() {
                return false;
            }
            pause = (pause * 2).min(CONNECT_PAUSE.1);
        }
    }

    /// Takes the seat, if its task still waits for that: else another node may have the lock.
    async fn take_seat_for(&mut self, reply: oneshot::Sender<()>) -> Result<(), OpenError> {
        // It may take long. The former holder has the seat meanwhile.
        self.read_news().await?;
        if reply.is_closed() {
            return Ok(());
        }
        let epoch = self.take_seat(true).await?;
        if reply.send(()).is_ok() {
            self.seat(epoch);
        }
        Ok(())
    }

    /// Raises the epoch, and reads all that other nodes have committed under the former holder.
    async fn take_seat(&self, is_first: bool) -> Result<i64, OpenError> {
        let n = self.shared.state.read().n;
        let (news, epoch) = self.session.take_seat(n, &self.shared.database.node, is_first, &self.shared.clock).await?;
        self.read_missing(self.apply(&news)).await?;
        if feed::is_full(&news) {
            self.read_news().await?;
        }
        Ok(epoch)
    }

    fn seat(&mut self, epoch: i64) {
        self.epoch = Some(epoch);
        self.shared.standing.send_replace(Standing::Seated);
    }

    /// Waits for `work`. Whatever is asked meanwhile fails. `None` if the store was closed.
    async fn failing_commands<T>(&mut self, work: impl Future<Output = T>) -> Option<T> {
        let mut work = std::pin::pin!(work);
        loop {
            tokio::select! {
                result = &mut work => return Some(result),
                command = self.lanes.next() => drop(command?),
            }
        }
    }

    async fn reset(&mut self, reset: Reset) -> Result<(), OpenError> {
        *self.shared.feed.lock() = Some(reset.feed);
        read_all(&self.shared, &self.session).await?;
        self.shared.set_trouble(None);
        let _ = reset.reply.send(Ok(()));
        Ok(())
    }

    /// Takes the commands that wait for this batch.
    fn fill(&mut self, first: Command) -> (Needs, Vec<Run>) {
        let (mut needs, mut runs) = (Needs::default(), Vec::new());
        let mut next = Some(first);
        while let Some(command) = next.take() {
            match command {
                Command::Change { needs: mut more, run } => {
                    needs.add(&mut more);
                    runs.push(run);
                }
                other => {
                    self.next = Some(other);
                    break;
                }
            }
            if needs.count < MAX_CHANGES && needs.bytes < MAX_BYTES {
                next = self.lanes.try_next();
            }
        }
        (needs, runs)
    }

    async fn commit(&mut self, first: Command) -> Result<(), OpenError> {
        let started = Instant::now();
        let (needs, runs) = self.fill(first);
        let (batch, state, answers) = in_time(async {
            let mut batch = self.begin(&needs).await?;
            let answers: Vec<Answer> = runs.into_iter().map(|run| run(&mut batch)).collect();
            if batch.is_empty() {
                self.session.rollback().await?;
                return Ok((batch, State::default(), answers));
            }
            let state = self.save(&batch).await?;
            Ok((batch, state, answers))
        })
        .await?;
        if !batch.is_empty() {
            self.publish(&batch, state, started);
        }
        answers.into_iter().for_each(|answer| answer());
        Ok(())
    }

    /// Begins the transaction, with what other nodes have committed before it.
    async fn begin(&self, needs: &Needs) -> Result<Batch, OpenError> {
        for _ in 0..BEGINS {
            let n = self.shared.state.read().n;
            let (news, mut batch) = self.session.begin(needs, n, self.epoch).await?;
            let applied = self.apply(&news);
            if applied.is_ok() && !feed::is_full(&news) {
                batch.is_leaving = self.shared.leaving.is_cancelled();
                batch.skipped = self.shared.clock.skipped(IdempotencyKey::WINDOW);
                batch.next_seq = self.shared.state.read().counts.next_seq.max(1);
                return Ok(batch);
            }
            // The other nodes can write while this one reads.
            self.session.rollback().await?;
            self.read_missing(applied).await?;
        }
        Err(OpenError::Behind)
    }

    /// Reads all if rows of the feed are missing: they were deleted as old, or this node has just started.
    async fn read_missing(&self, applied: Result<(), OpenError>) -> Result<(), OpenError> {
        match applied {
            Err(OpenError::Behind) => read_all(&self.shared, &self.session).await,
            applied => applied,
        }
    }

    /// Reads what other nodes have committed, if this node was notified of any of it.
    async fn catch_up(&mut self) -> Result<(), OpenError> {
        let newest = (*self.session.link.newest.borrow_and_update()).max(*self.shared.newest.borrow());
        let n = self.shared.state.read().n;
        // Else it is a commit of this node, or one that it has read under the lock.
        if n < newest { self.read_news().await } else { Ok(()) }
    }

    /// Reads all that other nodes have committed.
    async fn read_news(&self) -> Result<(), OpenError> {
        loop {
            let n = self.shared.state.read().n;
            let rows = self.session.catch_up(n).await?;
            self.read_missing(self.apply(&rows)).await?;
            if !feed::is_full(&rows) {
                return Ok(());
            }
        }
    }

    /// Makes changes of other nodes visible and notifies the feed.
    fn apply(&self, rows: &[Row]) -> Result<(), OpenError> {
        if rows.is_empty() {
            return Ok(());
        }
        let mut state = self.shared.state.read().clone();
        let jobs = feed::apply(rows, self.shared.formats, &mut state)?;
        let totals = state.totals();
        self.shared.set_state(state);
        let feed = self.shared.feed.lock().clone();
        feed.inspect(|feed| feed.changed(&jobs, totals));
        Ok(())
    }

    /// Writes the batch and commits. Returns the state of the store after it.
    async fn save(&self, batch: &Batch) -> Result<State, OpenError> {
        let mut state = self.shared.state.read().clone();
        for entry in &batch.audit {
            state.counts.audit_bytes += self.session.append_audit(entry, state.counts.audit_bytes).await?;
        }
        let ledger = state.add_costs(batch);
        for entry in batch.entries.values().filter(|entry| entry.is_changed) {
            state.count(entry);
        }
        state.n += 1;
        state.counts.next_seq = batch.next_seq;
        let jobs = Columns::of(batch).map_err(OpenError::Unreadable)?;
        let body = feed::encode(self.shared.format.load(Ordering::Relaxed), batch, &state, &ledger)
            .map_err(OpenError::Unreadable)?;
        let commit = async {
            let syncing = Instant::now();
            self.session.link.client.batch_execute("commit").await?;
            self.shared.metrics.store_sync_seconds.observe(syncing.elapsed().as_secs_f64());
            Ok(())
        };
        self.session.write(batch, &jobs, &ledger, (&state, &body), commit).await?;
        state.forget_days();
        Ok(state)
    }

    /// Makes a committed batch visible and notifies the feed.
    fn publish(&self, batch: &Batch, state: State, started: Instant) {
        let totals = state.totals();
        self.shared.set_state(state);
        batch.settings.keys().for_each(|name| self.shared.database.settings_watch.changed(name));
        let has_jobs = batch.entries.values().any(|entry| entry.is_changed);
        if has_jobs {
            self.shared.metrics.store_commits.inc();
            self.shared.metrics.store_commit_seconds.observe(started.elapsed().as_secs_f64());
        }
        if has_jobs || !batch.costs.is_empty() {
            let feed = self.shared.feed.lock().clone();
            feed.inspect(|feed| feed.changed(&batch.changes, totals));
        }
    }
}

/// The result of a step of the writer, if it comes in time. Else the writer connects again, and meanwhile commands fail at once.
async fn in_time<T>(work: impl Future<Output = Result<T, OpenError>>) -> Result<T, OpenError> {
    timeout(WORK_TIMEOUT, work).await.unwrap_or_else(|_| Err(OpenError::Connect("no answer".to_owned())))
}

/// Reads the sums over all jobs, the ledger and all pending jobs, as of one moment, and resets the feed.
async fn read_all(shared: &Shared, session: &Session) -> Result<(), OpenError> {
    let feed = shared.feed.lock().clone();
    let reading = timeout(READ_TIMEOUT, session.read_all(feed.is_some()));
    let (mut state, pending) = reading.await.map_err(|_| OpenError::Connect("no answer".to_owned()))??;
    state.counts.next_seq = state.counts.next_seq.max(shared.state.read().counts.next_seq);
    let totals = state.totals();
    shared.set_state(state);
    feed.inspect(|feed| feed.reset(pending, totals));
    shared.database.settings_watch.any_changed();
    Ok(())
}
