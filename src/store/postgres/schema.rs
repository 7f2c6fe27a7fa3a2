//! The schema of the database, and its versions.

use std::fmt;

use tokio_postgres::{Client, Transaction, error::SqlState};

use super::error::OpenError;

/// The advisory lock under which the schema changes.
pub(super) const LOCK: i64 = i64::from_be_bytes(*b"ceoagen2");

/// Longest wait of a migration for a lock. Meanwhile statements of nodes may wait behind it.
const MIGRATION: &str = "set local lock_timeout to '2s'";

/// The versions that a program can use.
#[derive(Clone, Copy)]
pub(super) struct Schema<'a> {
    /// Each makes the next version, the first one of an empty database. It sets the table `schema_version` too.
    pub(super) steps: &'a [&'a str],
    /// The oldest version that it can use.
    pub(super) oldest: i32,
}

/// What a migration did.
#[derive(Debug, PartialEq, Eq)]
pub struct Migration {
    /// 0 if there was no schema.
    pub from: i32,
    pub to: i32,
}

impl fmt::Display for Migration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Migration { from: 0, to } => write!(f, "created the schema ceoagent, version {to}"),
            Migration { from, to } if from == to => write!(f, "nothing to do: the schema has version {to}"),
            Migration { from, to } => write!(f, "upgraded the schema from version {from} to {to}"),
        }
    }
}

/// What is in the database.
struct Found {
    version: i32,
    /// The oldest program that can use it, by its newest version of the schema.
    usable_from: i32,
}

impl Schema<'static> {
    pub(super) const OF_THIS_PROGRAM: Schema<'static> = Schema { steps: &[include_str!("schema.sql")], oldest: 1 };
}

impl Schema<'_> {
    fn newest(&self) -> i32 {
        i32::try_from(self.steps.len()).unwrap_or(i32::MAX)
    }

    /// Makes the schema of an empty database, or checks its version.
    ///
    /// # Errors
    /// [`OpenError`].
    pub(super) async fn prepare(&self, client: &mut Client) -> Result<(), OpenError> {
        let transaction = begin(client, "").await?;
        match found(&transaction).await? {
            None => self.apply(&transaction, 0).await?,
            Some(found) => {
                self.check(&found)?;
                if found.version < self.oldest {
                    return Err(OpenError::OldSchema { found: found.version, oldest: self.oldest });
                }
            }
        }
        Ok(transaction.commit().await?)
    }

    /// Makes the schema, or brings it to the newest version of this program.
    ///
    /// # Errors
    /// [`OpenError`].
    pub(super) async fn migrate(&self, client: &mut Client) -> Result<Migration, OpenError> {
        let transaction = begin(client, MIGRATION).await?;
        let from = match found(&transaction).await? {
            None => 0,
            Some(found) => {
                self.check(&found)?;
                found.version
            }
        };
        self.apply(&transaction, from).await?;
        transaction.commit().await?;
        Ok(Migration { from, to: from.max(self.newest()) })
    }

    async fn apply(&self, transaction: &Transaction<'_>, from: i32) -> Result<(), OpenError> {
        for step in self.steps.iter().skip(usize::try_from(from).unwrap_or(0)) {
            transaction.batch_execute(step).await.map_err(in_words)?;
        }
        Ok(())
    }

    fn check(&self, found: &Found) -> Result<(), OpenError> {
        if found.usable_from > self.newest() {
            return Err(OpenError::NewSchema { found: found.version, newest: self.newest() });
        }
        Ok(())
    }
}

/// Begins a transaction that no other change of the schema can disturb.
async fn begin<'a>(client: &'a mut Client, setting: &str) -> Result<Transaction<'a>, OpenError> {
    let transaction = client.transaction().await?;
    transaction.batch_execute(setting).await?;
    transaction.execute(include_str!("lock.sql"), &[&LOCK]).await.map_err(in_words)?;
    Ok(transaction)
}

async fn found(transaction: &Transaction<'_>) -> Result<Option<Found>, OpenError> {
    let exists = transaction.query_one("select to_regclass('ceoagent.schema_version') is not null", &[]).await?;
    if !exists.try_get(0)? {
        return Ok(None);
    }
    let row = transaction.query_one(include_str!("schema_version.sql"), &[]).await?;
    Ok(Some(Found { version: row.try_get(0)?, usable_from: row.try_get(1)? }))
}

fn in_words(error: tokio_postgres::Error) -> OpenError {
    if error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE) { OpenError::SchemaInUse } else { error.into() }
}
