//! Connections for reads. Statements on one connection wait for each other, so searches have one of their own.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use parking_lot::Mutex;
use tokio::time::timeout;
use tokio_postgres::{Row, Statement, types::ToSql};

use super::{
    connection::{ANSWER_TIMEOUT, Database, Link},
    error::OpenError,
};

/// Connections for reads of single jobs.
const READERS: usize = 3;

/// A connection with the statements that it has prepared.
struct Reader {
    link: Link,
    statements: Mutex<HashMap<&'static str, Statement>>,
}

pub(super) struct Readers {
    database: Arc<Database>,
    /// The last one is for searches. Each is opened when it is first used.
    slots: Vec<tokio::sync::Mutex<Option<Arc<Reader>>>>,
    turn: AtomicUsize,
}

impl Readers {
    pub(super) fn new(database: Arc<Database>) -> Readers {
        Readers {
            database,
            slots: (0..=READERS).map(|_| tokio::sync::Mutex::default()).collect(),
            turn: AtomicUsize::new(0),
        }
    }

    /// The rows of a query for a single job or few records.
    pub(super) async fn read(&self, sql: &'static str, values: &[&(dyn ToSql + Sync)]) -> Result<Vec<Row>, OpenError> {
        self.query(self.turn.fetch_add(1, Ordering::Relaxed) % READERS, sql, values).await
    }

    /// The rows of a search.
    pub(super) async fn search(
        &self,
        sql: &'static str,
        values: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, OpenError> {
        self.query(READERS, sql, values).await
    }

    /// A connection that does not answer in time is given up.
    async fn query(
        &self,
        slot: usize,
        sql: &'static str,
        values: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, OpenError> {
        let rows = timeout(ANSWER_TIMEOUT, self.try_query(slot, sql, values)).await;
        rows.unwrap_or_else(|_| {
            if let Ok(mut reader) = self.slots[slot].try_lock() {
                *reader = None;
            }
            Err(OpenError::Connect(format!("no answer in {} s", ANSWER_TIMEOUT.as_secs())))
        })
    }

    async fn try_query(
        &self,
        slot: usize,
        sql: &'static str,
        values: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, OpenError> {
        let mut is_retry = false;
        loop {
            let reader = self.reader(slot).await?;
            let statement = reader.statements.lock().get(sql).cloned();
            let statement = match statement {
                Some(statement) => Ok(statement),
                None => reader.link.client.prepare(sql).await,
            };
            let rows = match statement {
                Ok(statement) => {
                    reader.statements.lock().entry(sql).or_insert_with(|| statement.clone());
                    reader.link.client.query(&statement, values).await
                }
                Err(error) => Err(error),
            };
            // A connection that died unnoticed is not the database's end.
            if rows.is_ok() || is_retry || !reader.link.client.is_closed() {
                return Ok(rows?);
            }
            is_retry = true;
        }
    }

    async fn reader(&self, slot: usize) -> Result<Arc<Reader>, OpenError> {
        let mut reader = self.slots[slot].lock().await;
        if let Some(open) = reader.as_ref().filter(|reader| !reader.link.client.is_closed()) {
            return Ok(Arc::clone(open));
        }
        let opened = Arc::new(Reader { link: self.database.connect().await?, statements: Mutex::default() });
        *reader = Some(Arc::clone(&opened));
        Ok(opened)
    }
}
