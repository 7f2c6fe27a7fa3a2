//! The writer's connection: its statements, and what it says to the server.

use std::{collections::BTreeMap, sync::Arc, task::Poll, time::Instant};

use futures_util::{poll, try_join};
use tokio_postgres::{Row, Statement, types::ToSql};
use uuid::Uuid;

use super::{
    batch::{AuditEntry, Batch, Entry, Key, Needs},
    columns::{Columns, LedgerRows},
    connection::{Database, HINT_CHANNEL, Link, answer},
    error::OpenError,
    feed::MAX_ROWS,
    state::{Counts, State},
};
use crate::{
    clock::{Clock, Timestamp},
    job::{Job, JobId, MAX_ATTEMPTS},
    ledger::{ByModel, Day},
    store::{
        record,
        traits::{EndedCounts, MAX_AUDIT_BYTES},
    },
};

/// The advisory lock that a transaction which writes holds to its end.
pub(super) const WRITE_LOCK: i64 = i64::from_be_bytes(*b"ceoagen3");

/// A file of some 300 KiB, for a moment. A row may find room in an old one on a full disk.
const NEEDS_ROOM: &str = "create temporary table room on commit drop as select n from generate_series(1, 10000) n";

/// Idempotency keys that a batch forgets.
pub(super) const FORGOTTEN_KEYS: i64 = 1_024;

/// The writer finds rows by their keys alone. So a plan holds for any number of rows, and a tenth of a millisecond for a new
/// one each time is saved. A plan of an empty table must not read all of it later.
const PLANS: &str = "set plan_cache_mode to force_generic_plan; set enable_seqscan to off";

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
    lock catch_up take_seat check_seat load_jobs load_requests load_last_attempts load_keys load_settings save_jobs save_requests
    save_attempts drop_attempts trim_attempts save_deliveries save_keys delete_keys delete_jobs save_ledger delete_days save_settings delete_settings
    append_audit trim_audit save_feed
}

type Sql<'a> = &'a (dyn ToSql + Sync);

pub(super) struct Session {
    pub(super) link: Link,
    statements: Statements,
    /// Stands in the announcements of changed settings.
    name: String,
}

impl Session {
    pub(super) async fn open(database: &Database) -> Result<Session, OpenError> {
        let name = Uuid::now_v7().simple().to_string();
        database.writer.lock().clone_from(&name);
        let link = database.connect().await?;
        // Before it reads the state of the store: it hears of every change after that.
        answer(link.client.batch_execute(&format!("listen ceoagent; listen {HINT_CHANNEL}; {PLANS}"))).await?;
        let statements = answer(Statements::prepare(&link)).await?;
        Ok(Session { link, statements, name })
    }

    /// Fails with [`OpenError::Full`] if the database has no room.
    pub(super) async fn check_room(&self) -> Result<(), OpenError> {
        answer(self.link.client.batch_execute(NEEDS_ROOM)).await
    }

    /// Sets the clock to the database's, and to the service time that the last holder of the seat has saved.
    pub(super) async fn resume(&self, clock: &Clock) -> Result<(), OpenError> {
        let asked_at = Instant::now();
        let row = answer(self.link.client.query_one(include_str!("saved_time.sql"), &[])).await?;
        clock.follow(Timestamp::from_millis(row.try_get(1)?), asked_at.elapsed());
        let saved = row.try_get::<_, Option<&[u8]>>(0)?.and_then(|time| postcard::from_bytes(time).ok());
        clock.resume(saved.as_ref());
        Ok(())
    }

    /// Raises the epoch, between two transactions of other nodes. Returns the rows of the feed after `n`, and the epoch.
    pub(super) async fn take_seat(
        &self,
        n: i64,
        node: &String,
        is_first: bool,
        clock: &Clock,
    ) -> Result<(Vec<Row>, i64), OpenError> {
        let Session { link: Link { client, .. }, statements, .. } = self;
        // A process that ends before its first beat, such as a move, saves the service time with this.
        let time = postcard::to_stdvec(&clock.save()).unwrap_or_default();
        let (lock, news, holder): ([Sql<'_>; 1], [Sql<'_>; 2], [Sql<'_>; 3]) =
            ([&WRITE_LOCK], [&n, &MAX_ROWS], [node, &is_first, &time]);
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
        Ok((news, seat.ok_or(OpenError::SeatLost)?.try_get(0)?))
    }

    /// The rows of the feed after `n`.
    pub(super) async fn catch_up(&self, n: i64) -> Result<Vec<Row>, OpenError> {
        answer(self.link.client.query(&self.statements.catch_up, &[&n, &MAX_ROWS])).await
    }

    /// Begins a transaction once no other node has one, checks the seat, and reads the rows of the feed after `n` and what the
    /// changes need. No row is locked but the seat's.
    pub(super) async fn begin(
        &self,
        needs: &Needs,
        n: i64,
        epoch: Option<i64>,
    ) -> Result<(Vec<Row>, Batch), OpenError> {
        let (client, statements) = (&self.link.client, &self.statements);
        let rows = async |statement: &Statement, values: Vec<Sql<'_>>, is_empty: bool| {
            if is_empty { Ok(Vec::new()) } else { client.query(statement, &values).await }
        };
        let lock: [Sql<'_>; 1] = [&WRITE_LOCK];
        let (_, _, news, seat, jobs, requests, attempts, keys, settings) = try_join!(
            // Each statement has to see what was committed before it, whatever the role's default is.
            client.batch_execute("begin isolation level read committed"),
            client.execute(&statements.lock, &lock),
            rows(&statements.catch_up, vec![&n, &MAX_ROWS], false),
            rows(&statements.check_seat, vec![&epoch], epoch.is_none()),
            rows(&statements.load_jobs, vec![&needs.jobs], needs.jobs.is_empty()),
            rows(&statements.load_requests, vec![&needs.requests], needs.requests.is_empty()),
            rows(&statements.load_last_attempts, vec![&needs.last_attempts], needs.last_attempts.is_empty()),
            rows(&statements.load_keys, vec![&needs.keys], needs.keys.is_empty()),
            rows(&statements.load_settings, vec![&needs.settings], needs.settings.is_empty()),
        )?;
        if epoch.is_some() && seat.is_empty() {
            return Err(OpenError::SeatLost);
        }
        let mut batch = Batch::default();
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
                caller: None,
                is_new: false,
            };
            batch.keys.insert(row.try_get(0)?, key);
        }
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        for row in settings {
            batch.stored_settings.insert(text(row.try_get(0)?), text(row.try_get(1)?));
        }
        Ok((news, batch))
    }

    pub(super) async fn rollback(&self) -> Result<(), OpenError> {
        Ok(self.link.client.batch_execute("rollback").await?)
    }

    /// Writes an entry of the audit log, and removes old ones. Returns by how much the log has grown, in bytes.
    pub(super) async fn append_audit(&self, (id, entry, oldest): &AuditEntry, bytes: i64) -> Result<i64, OpenError> {
        let (client, of) = (&self.link.client, &self.statements);
        let surplus = bytes - i64::try_from(MAX_AUDIT_BYTES).unwrap_or(i64::MAX);
        let written = client.query_one(&of.append_audit, &[id, &entry.as_bytes()]).await?;
        let written = i64::from(written.try_get::<_, i32>(0)?);
        let trimmed = client.query_one(&of.trim_audit, &[id, oldest, &(surplus + written)]).await?;
        Ok(written - trimmed.try_get::<_, i64>(0)?)
    }

    /// Sends all statements and `commit` at once, in this order.
    pub(super) async fn write(
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
        let Columns { keys, key_bodies, key_jobs, key_ends, key_callers, .. } = jobs;
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
            (&of.save_keys, &[keys, key_bodies, key_jobs, key_ends, key_callers], keys.is_empty()),
            (&of.delete_keys, &[&forget_keys, &FORGOTTEN_KEYS], batch.forget_keys.is_none()),
            (&of.delete_jobs, &[removed], removed.is_empty()),
            (&of.save_ledger, &[days, models, sums], days.is_empty()),
            (&of.delete_days, &[&oldest_day], days.is_empty()),
            (&of.save_settings, &[&names, &values, &self.name], names.is_empty()),
            (&of.delete_settings, &[&unset, &self.name], unset.is_empty()),
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

    /// The sums over all jobs, the ledger and, if wanted, all pending jobs, as of one moment.
    pub(super) async fn read_all(&self, with_pending: bool) -> Result<(State, Vec<Arc<Job>>), OpenError> {
        let client = &self.link.client;
        // Millions of jobs take their time; a dead connection ends it too.
        let begin = "begin isolation level repeatable read read only; set local statement_timeout to 0; \
                     set local enable_seqscan to on";
        client.batch_execute(begin).await?;
        let n = client.query_one(include_str!("newest_feed.sql"), &[]).await?.try_get(0)?;
        let totals = client.query_one(include_str!("totals.sql"), &[]).await?;
        let ledger = client.query(include_str!("ledger.sql"), &[]).await?;
        let pending = if with_pending { client.query(include_str!("pending.sql"), &[]).await? } else { Vec::new() };
        // First, as the server ends a transaction in which nothing happens.
        client.batch_execute("commit").await?;
        let count = |column| Ok::<_, OpenError>(usize::try_from(totals.try_get::<_, i64>(column)?).unwrap_or(0));
        let ended = EndedCounts { succeeded: count(0)?, failed: count(1)?, cancelled: count(2)? };
        let mut days = BTreeMap::<Day, ByModel>::new();
        for row in ledger {
            let day = Day::from_number(u32::try_from(row.try_get::<_, i64>(0)?).unwrap_or(u32::MAX));
            let sums =
                postcard::from_bytes(row.try_get(2)?).map_err(|error| OpenError::Unreadable(error.to_string()))?;
            days.entry(day).or_default().insert(row.try_get(1)?, sums);
        }
        let counts =
            Counts { ended, unnotified: count(3)?, audit_bytes: totals.try_get(5)?, next_seq: totals.try_get(4)? };
        let job = |row: &Row| record::decode(row.try_get(0).map_err(|error| error.to_string())?).map(Arc::new);
        let pending = pending.iter().map(job).collect::<Result<_, String>>().map_err(OpenError::Unreadable)?;
        Ok((State { n, counts, days: Arc::new(days) }, pending))
    }
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
