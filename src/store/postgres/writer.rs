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
    collections::BTreeMap,
    sync::Arc,
    task::Poll,
    time::{Duration, Instant},
};

use futures_util::{poll, try_join};
use tokio::{
    sync::{mpsc, oneshot},
    time::{sleep, sleep_until, timeout},
};
use tokio_postgres::{Row, Statement, types::ToSql};
use tracing::{error, info, warn};

use super::{
    batch::{Batch, Entry, Key, Needs},
    columns::{Columns, LedgerRows},
    connection::{ANSWER_TIMEOUT, Link, OpenError, answer},
    feed::{self, MAX_ROWS, News},
    shared::{Reset, Shared, Standing},
    state::{Counts, State},
};
use crate::{
    clock::{SavedTime, Timestamp},
    job::{IdempotencyKey, JobId, MAX_ATTEMPTS},
    ledger::{ByModel, Day},
    store::{
        record,
        traits::{EndedCounts, MAX_AUDIT_BYTES},
    },
};

/// Most jobs that a batch changes, and from so many new jobs on it takes no further command that brings any.
const MAX_CHANGES: usize = 1_024;

/// Most bytes of a batch, or one command that is larger.
const MAX_BYTES: usize = 4 << 20;

/// First and longest pause between two tries to connect.
const CONNECT_PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// Longest wait for the end of a transaction that failed.
const ROLLBACK_TIMEOUT: Duration = Duration::from_secs(1);

/// The advisory lock that a transaction which writes holds to its end.
const WRITE_LOCK: i64 = i64::from_be_bytes(*b"ceoagen3");

/// Idempotency keys that a batch forgets.
pub(super) const FORGOTTEN_KEYS: i64 = 1_024;

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

macro_rules! statements {
    ($($name:ident)*) => {
        /// The writer's statements, prepared once a connection.
        struct Statements { $($name: Statement),* }

        impl Statements {
            async fn prepare(link: &Link) -> Result<Statements, tokio_postgres::Error> {
                Ok(Statements { $($name: link.client.prepare(include_str!(concat!(stringify!($name), ".sql"))).await?),* })
            }
        }
    };
}

statements! {
    lock catch_up take_seat check_seat load_jobs load_requests load_last_attempts load_keys save_jobs save_requests save_attempts drop_attempts
    trim_attempts save_deliveries save_keys delete_keys delete_jobs save_ledger delete_days save_settings delete_settings
    append_audit trim_audit save_feed
}

pub(super) struct Writer {
    shared: Arc<Shared>,
    lanes: Lanes,
    link: Link,
    statements: Statements,
    /// Once this node has the seat.
    epoch: Option<i64>,
    /// Taken from the lanes and not yet part of a batch.
    next: Option<Command>,
}

type Sql<'a> = &'a (dyn ToSql + Sync);

impl Writer {
    pub(super) async fn open(shared: Arc<Shared>, lanes: Lanes) -> Result<Writer, OpenError> {
        let (link, statements) = connect(&shared).await?;
        let time = link.client.query_one(include_str!("saved_time.sql"), &[]).await?;
        let time = time.try_get::<_, Option<&[u8]>>(0)?.and_then(|time| postcard::from_bytes::<SavedTime>(time).ok());
        shared.clock.resume(time.as_ref());
        Ok(Writer { shared, lanes, link, statements, epoch: None, next: None })
    }

    pub(super) async fn run(mut self) {
        let lost = self.shared.lost.clone();
        loop {
            let closed = self.link.closed.clone();
            let command = match self.next.take() {
                Some(command) => Some(command),
                None => tokio::select! {
                    biased;
                    () = lost.cancelled() => break,
                    () = closed.cancelled() => {
                        self.fail("the connection to the database is gone");
                        if !self.reconnect().await {
                            return;
                        }
                        continue;
                    }
                    Ok(()) = self.link.newest.changed() => None,
                    command = self.lanes.next() => match command {
                        None => return,
                        command => command,
                    },
                },
            };
            let result = match command {
                None => self.catch_up().await,
                Some(Command::Reset(reset)) => self.reset(reset).await,
                Some(Command::TakeSeat(reply)) => self.take_seat(true).await.map(|()| _ = reply.send(())),
                Some(first) => self.commit(first).await,
            };
            match result {
                Ok(()) => {}
                Err(OpenError::SeatLost) => break,
                Err(error) => {
                    self.fail(&error.to_string());
                    if !self.reconnect().await {
                        return;
                    }
                }
            }
        }
        error!("another node has taken the seat; this process has to end");
        self.shared.set_trouble(Some("another node has taken the seat".to_owned()));
        lost.cancel();
    }

    fn fail(&self, reason: &str) {
        if !self.shared.lost.is_cancelled() {
            error!(reason, "the job store failed; connecting to the database again");
        }
        self.shared.set_trouble(Some(reason.to_owned()));
    }

    /// Connects again, however long it takes. Meanwhile all commands fail. False if the store was closed.
    async fn reconnect(&mut self) -> bool {
        let mut pause = CONNECT_PAUSE.0;
        self.next = None;
        // A transaction that is still open would keep all nodes from writing.
        let _ = timeout(ROLLBACK_TIMEOUT, self.link.client.batch_execute("rollback")).await;
        loop {
            let shared = Arc::clone(&self.shared);
            let connecting = async {
                let connection = connect(&shared).await?;
                read_all(&shared, &connection.0).await?;
                Ok(connection)
            };
            let mut connected = match self.failing_commands(connecting).await {
                None => return false,
                Some(Ok(connection)) => {
                    (self.link, self.statements) = connection;
                    Ok(())
                }
                Some(Err(error)) => Err(error),
            };
            if connected.is_ok() && self.epoch.is_some() {
                // Raises the epoch: a transaction of the old connection has been committed, or never will be.
                connected = self.take_seat(false).await;
            }
            match connected {
                Ok(()) => {
                    self.shared.set_trouble(None);
                    info!("the job store works again");
                    return true;
                }
                Err(OpenError::SeatLost) => {
                    self.shared.lost.cancel();
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

    /// Raises the epoch, between two transactions of other nodes, and reads what they have committed.
    async fn take_seat(&mut self, is_first: bool) -> Result<(), OpenError> {
        let Writer { shared, link: Link { client, .. }, statements, .. } = self;
        let n = shared.state.read().n;
        let (lock, news, holder): ([Sql<'_>; 1], [Sql<'_>; 2], [Sql<'_>; 2]) =
            ([&WRITE_LOCK], [&n, &MAX_ROWS], [&shared.database.node, &is_first]);
        let (_, _, news, seat, _) = answer(async {
            try_join!(
                client.batch_execute("begin isolation level read committed"),
                client.execute(&statements.lock, &lock),
                client.query(&statements.catch_up, &news),
                client.query_opt(&statements.take_seat, &holder),
                client.batch_execute("commit"),
            )
        })
        .await?;
        self.epoch = Some(seat.ok_or(OpenError::SeatLost)?.try_get(0)?);
        self.apply(&news)?;
        self.shared.standing.send_replace(Standing::Seated);
        Ok(())
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
        read_all(&self.shared, &self.link).await?;
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
        let deadline = tokio::time::Instant::now() + ANSWER_TIMEOUT * 2;
        let late = || OpenError::Connect("no answer".to_owned());
        let work = async {
            let mut batch = self.load(&needs).await?;
            let answers: Vec<Answer> = runs.into_iter().map(|run| run(&mut batch)).collect();
            if batch.is_empty() {
                self.link.client.batch_execute("rollback").await?;
                return Ok((batch, State::default(), answers));
            }
            let state = self.save(&batch).await?;
            Ok::<_, OpenError>((batch, state, answers))
        };
        let (batch, state, answers) = tokio::select! {
            done = work => done?,
            () = sleep_until(deadline) => return Err(late()),
        };
        if !batch.is_empty() {
            self.publish(&batch, state, started);
        }
        answers.into_iter().for_each(|answer| answer());
        Ok(())
    }

    /// Begins the transaction once no other node has one, checks the seat, and reads what the changes need. No row is locked
    /// but the seat's.
    async fn load(&self, needs: &Needs) -> Result<Batch, OpenError> {
        let (client, statements) = (&self.link.client, &self.statements);
        let rows = async |statement: &Statement, values: Vec<Sql<'_>>, is_empty: bool| {
            if is_empty { Ok(Vec::new()) } else { client.query(statement, &values).await }
        };
        let (n, lock): (i64, [Sql<'_>; 1]) = (self.shared.state.read().n, [&WRITE_LOCK]);
        let (_, _, news, seat, jobs, requests, attempts, keys) = try_join!(
            // Each statement has to see what was committed before it, whatever the role's default is.
            client.batch_execute("begin isolation level read committed"),
            client.execute(&statements.lock, &lock),
            rows(&statements.catch_up, vec![&n, &MAX_ROWS], false),
            rows(&statements.check_seat, vec![&self.epoch], self.epoch.is_none()),
            rows(&statements.load_jobs, vec![&needs.jobs], needs.jobs.is_empty()),
            rows(&statements.load_requests, vec![&needs.requests], needs.requests.is_empty()),
            rows(&statements.load_last_attempts, vec![&needs.last_attempts], needs.last_attempts.is_empty()),
            rows(&statements.load_keys, vec![&needs.keys], needs.keys.is_empty()),
        )?;
        if self.epoch.is_some() && seat.is_empty() {
            return Err(OpenError::SeatLost);
        }
        self.apply(&news)?;
        let skipped = self.shared.clock.skipped(IdempotencyKey::WINDOW);
        let next_seq = self.shared.state.read().counts.next_seq;
        let mut batch = Batch { next_seq, skipped, ..Batch::default() };
        for row in jobs {
            let (id, entry) = entry(&row)?;
            batch.entries.insert(id, entry);
        }
        for row in requests {
            let body: &[u8] = row.try_get(1)?;
            batch.requests.insert(row.try_get(0)?, serde_json::from_slice(body).map_err(|error| error.to_string()));
        }
        for row in attempts {
            if let Some(entry) = batch.entries.get_mut(&row.try_get(0)?) {
                entry.last_attempt = serde_json::from_slice(row.try_get(1)?).ok();
            }
        }
        for row in keys {
            let key = Key {
                body: row.try_get(1)?,
                job: row.try_get(2)?,
                expires_at: Timestamp::from_millis(row.try_get(3)?),
                is_new: false,
            };
            batch.keys.insert(row.try_get(0)?, key);
        }
        Ok(batch)
    }

    /// Reads what other nodes have committed.
    async fn catch_up(&mut self) -> Result<(), OpenError> {
        let newest = *self.link.newest.borrow_and_update();
        let n = self.shared.state.read().n;
        // Else it is a commit of this node, or one that it has read under the lock.
        if n < newest {
            let rows = answer(self.link.client.query(&self.statements.catch_up, &[&n, &MAX_ROWS])).await?;
            self.apply(&rows)?;
        }
        Ok(())
    }

    /// Makes changes of other nodes visible and notifies the feed.
    fn apply(&self, rows: &[Row]) -> Result<(), OpenError> {
        if rows.is_empty() {
            return Ok(());
        }
        let mut state = self.shared.state.read().clone();
        let News { jobs, settings } = feed::apply(rows, &mut state)?;
        let totals = state.totals();
        *self.shared.state.write() = state;
        settings.iter().for_each(|name| self.shared.settings_watch.changed(name));
        let feed = self.shared.feed.lock().clone();
        feed.inspect(|feed| feed.changed(&jobs, totals));
        Ok(())
    }

    /// Writes the batch and commits. Returns the state of the store after it.
    async fn save(&self, batch: &Batch) -> Result<State, OpenError> {
        let mut state = self.shared.state.read().clone();
        let client = &self.link.client;
        for (id, entry, oldest) in &batch.audit {
            let surplus = state.counts.audit_bytes - i64::try_from(MAX_AUDIT_BYTES).unwrap_or(i64::MAX);
            let written = client.query_one(&self.statements.append_audit, &[id, &entry.as_bytes()]).await?;
            let written = i64::from(written.try_get::<_, i32>(0)?);
            let trimmed = client.query_one(&self.statements.trim_audit, &[id, oldest, &(surplus + written)]).await?;
            state.counts.audit_bytes += written - trimmed.try_get::<_, i64>(0)?;
        }
        let ledger = state.add_costs(batch);
        for entry in batch.entries.values().filter(|entry| entry.is_changed) {
            state.count(entry);
        }
        state.n += 1;
        state.counts.next_seq = batch.next_seq;
        let jobs = Columns::of(batch).map_err(OpenError::Unreadable)?;
        let body = feed::encode(batch, &state, &ledger).map_err(OpenError::Unreadable)?;
        let commit = async {
            let syncing = Instant::now();
            client.batch_execute("commit").await?;
            self.shared.metrics.store_sync_seconds.observe(syncing.elapsed().as_secs_f64());
            Ok(())
        };
        self.write(batch, &jobs, &ledger, (&state, &body), commit).await?;
        state.forget_days();
        Ok(state)
    }

    /// Sends all statements and `commit` at once, in this order.
    async fn write(
        &self,
        batch: &Batch,
        jobs: &Columns,
        ledger: &LedgerRows,
        (state, body): (&State, &Vec<u8>),
        commit: impl Future<Output = Result<(), tokio_postgres::Error>>,
    ) -> Result<(), OpenError> {
        let (client, of) = (&self.link.client, &self.statements);
        let (request_seqs, requests): (Vec<i64>, Vec<&[u8]>) =
            batch.new_requests.iter().map(|(seq, bytes)| (*seq, &bytes[..])).unzip();
        let (places, bodies): (Vec<(i64, i64)>, Vec<&[u8]>) =
            batch.attempts.iter().map(|(place, bytes)| (*place, &bytes[..])).unzip();
        let (attempt_seqs, numbers): (Vec<i64>, Vec<i64>) = places.into_iter().unzip();
        let (dropped_seqs, dropped): (Vec<i64>, Vec<i64>) = batch.dropped_attempts.iter().copied().unzip();
        let most_attempts = i64::try_from(MAX_ATTEMPTS).unwrap_or(i64::MAX);
        let forget_keys = batch.forget_keys.map_or(i64::MIN, Timestamp::as_millis);
        let set = batch.settings.iter().filter_map(|(name, value)| Some((name.as_bytes(), value.as_ref()?.as_bytes())));
        let (names, values): (Vec<&[u8]>, Vec<&[u8]>) = set.unzip();
        let unset = batch.settings.iter().filter(|(_, value)| value.is_none()).map(|(name, _)| name.as_bytes());
        let unset: Vec<&[u8]> = unset.collect();
        let oldest_day = state.first_kept_day();
        let Columns { seqs, ids, records, statuses, callers, questions, created, finished, unnotified, .. } = jobs;
        let Columns { delivery_seqs, delivery_callers, hosts, next, failing, deliveries, removed, .. } = jobs;
        let Columns { keys, key_bodies, key_jobs, key_ends, .. } = jobs;
        let LedgerRows { days, models, sums } = ledger;
        let all: [(&Statement, &[Sql<'_>], bool); 14] = [
            (
                &of.save_jobs,
                &[seqs, ids, records, statuses, callers, questions, created, finished, unnotified],
                seqs.is_empty(),
            ),
            (&of.save_requests, &[&request_seqs, &requests], requests.is_empty()),
            (&of.drop_attempts, &[&dropped_seqs, &dropped], dropped.is_empty()),
            (&of.save_attempts, &[&attempt_seqs, &numbers, &bodies], bodies.is_empty()),
            (&of.trim_attempts, &[&batch.long_histories, &most_attempts], batch.long_histories.is_empty()),
            (
                &of.save_deliveries,
                &[delivery_seqs, delivery_callers, hosts, next, failing, deliveries],
                deliveries.is_empty(),
            ),
            (&of.save_keys, &[keys, key_bodies, key_jobs, key_ends], keys.is_empty()),
            (&of.delete_keys, &[&forget_keys, &FORGOTTEN_KEYS], batch.forget_keys.is_none()),
            (&of.delete_jobs, &[removed], removed.is_empty()),
            (&of.save_ledger, &[days, models, sums], days.is_empty()),
            (&of.delete_days, &[&oldest_day], days.is_empty()),
            (&of.save_settings, &[&names, &values], names.is_empty()),
            (&of.delete_settings, &[&unset], unset.is_empty()),
            (&of.save_feed, &[&state.n, body], false),
        ];
        let mut sent = Vec::with_capacity(all.len());
        for (statement, values, is_empty) in all {
            if !is_empty {
                let mut answer = Box::pin(client.execute(statement, values));
                // The first poll sends it.
                match poll!(&mut answer) {
                    Poll::Ready(answer) => drop(answer?),
                    Poll::Pending => sent.push(answer),
                }
            }
        }
        let answers = async {
            for answer in sent {
                answer.await?;
            }
            Ok(())
        };
        // Polls `commit` before the answers have come.
        try_join!(answers, commit)?;
        Ok(())
    }

    /// Makes a committed batch visible and notifies the feed.
    fn publish(&self, batch: &Batch, state: State, started: Instant) {
        let totals = state.totals();
        *self.shared.state.write() = state;
        batch.settings.keys().for_each(|name| self.shared.settings_watch.changed(name));
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

/// A connection for the writer, and its statements.
async fn connect(shared: &Shared) -> Result<(Link, Statements), OpenError> {
    let link = shared.database.connect().await?;
    // Before it reads the state of the store: it hears of every change after that.
    answer(link.client.batch_execute("listen ceoagent")).await?;
    let statements = answer(Statements::prepare(&link)).await?;
    Ok((link, statements))
}

/// Reads the sums over all jobs, the ledger and, if there is a feed, all pending jobs for it, as of one moment.
async fn read_all(shared: &Shared, link: &Link) -> Result<(), OpenError> {
    let client = &link.client;
    // Millions of jobs take their time; a dead connection ends it too.
    client.batch_execute("begin isolation level repeatable read read only; set local statement_timeout to 0").await?;
    let n = client.query_one(include_str!("newest_feed.sql"), &[]).await?.try_get(0)?;
    let totals = client.query_one(include_str!("totals.sql"), &[]).await?;
    let count = |column| Ok::<_, OpenError>(usize::try_from(totals.try_get::<_, i64>(column)?).unwrap_or(0));
    let ended = EndedCounts { succeeded: count(0)?, failed: count(1)?, cancelled: count(2)? };
    let mut days = BTreeMap::<Day, ByModel>::new();
    for row in client.query(include_str!("ledger.sql"), &[]).await? {
        let day = Day::from_number(u32::try_from(row.try_get::<_, i64>(0)?).unwrap_or(u32::MAX));
        let sums = postcard::from_bytes(row.try_get(2)?).map_err(|error| OpenError::Unreadable(error.to_string()))?;
        days.entry(day).or_default().insert(row.try_get(1)?, sums);
    }
    let next_seq = totals.try_get::<_, i64>(4)?.max(shared.state.read().counts.next_seq);
    let counts = Counts { ended, unnotified: count(3)?, audit_bytes: totals.try_get(5)?, next_seq };
    let state = State { n, counts, days: Arc::new(days) };
    let totals = state.totals();
    *shared.state.write() = state;
    let feed = shared.feed.lock().clone();
    if let Some(feed) = feed {
        let rows = client.query(include_str!("pending.sql"), &[]).await?;
        let jobs =
            rows.iter().map(|row| record::decode(row.try_get(0).map_err(|error| error.to_string())?).map(Arc::new));
        let jobs = jobs.collect::<Result<Vec<_>, String>>().map_err(OpenError::Unreadable)?;
        feed.reset(jobs, totals);
    }
    shared.settings_watch.any_changed();
    Ok(client.batch_execute("commit").await?)
}

fn entry(row: &Row) -> Result<(JobId, Entry), OpenError> {
    let job = record::decode(row.try_get(2)?).map_err(OpenError::Unreadable)?;
    let delivery: Option<&[u8]> = row.try_get(4)?;
    let delivery = delivery.map(serde_json::from_slice).transpose();
    let delivery = delivery.map_err(|error| OpenError::Unreadable(error.to_string()))?;
    let entry = Entry {
        seq: row.try_get(1)?,
        before: Some((job.state, row.try_get(3)?)),
        job: Some(Arc::new(job)),
        delivery,
        last_attempt: None,
        is_changed: false,
        has_new_delivery: false,
    };
    Ok((row.try_get(0)?, entry))
}
