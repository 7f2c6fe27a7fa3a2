//! Why the database can't be used.

use std::error::Error as _;

use tokio_postgres::error::SqlState;

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(
        "DATABASE_URL is not a URL of a PostgreSQL database: {0}. Example: postgres://ceoagent:PASSWORD@db.example/ceoagent"
    )]
    Url(String),
    #[error("can't use the database of DATABASE_URL: {0}")]
    Connect(String),
    #[error("the database of DATABASE_URL is PostgreSQL {0}; the service needs 15 or newer")]
    TooOld(String),
    #[error("the database of DATABASE_URL is read-only, for example a replica. Use the primary server")]
    ReadOnly,
    #[error(
        "PostgreSQL has {setting}={value}, so {consequence}. Set {setting}=on in postgresql.conf and restart the server"
    )]
    Unsafe { setting: &'static str, value: String, consequence: &'static str },
    #[error(
        "the database has schema version {found}, and this program knows versions up to {newest}: start the ceoagent that \
         made it, or a newer one"
    )]
    NewSchema { found: i32, newest: i32 },
    #[error(
        "the database has schema version {found}, and this program needs {oldest} or newer: run `ceoagent migrate` of this \
         program once"
    )]
    OldSchema { found: i32, oldest: i32 },
    #[error(
        "the schema can't be changed at the moment, because another process or a long transaction uses it. Nothing was \
         changed. Try again"
    )]
    SchemaInUse,
    #[error(
        "the nodes of this database write format {found}, and this program can use {oldest} to {newest}: start {program} \
         ceoagent. See \"Upgrade\" in docs/cluster.md"
    )]
    Format { found: i32, oldest: u8, newest: u8, program: &'static str },
    #[error(
        "DATABASE_URL leads to a pooler that shares server connections between clients, such as PgBouncer with \
         pool_mode=transaction. Connect to PostgreSQL itself, or use pool_mode=session"
    )]
    Pooled,
    #[error(
        "another process uses the database as the node {name}. This name is the host name and PORT: stop that process, or \
         give this one another PORT, for example PORT=8081"
    )]
    NameTaken { name: String },
    #[error("the database of DATABASE_URL can store nothing more: {0}")]
    Full(String),
    #[error("another node has taken the seat")]
    SeatLost,
    #[error("the changes of other nodes came faster than this one could read them")]
    Behind,
    #[error("a record in the database can't be read: {0}")]
    Unreadable(String),
}

impl OpenError {
    /// Whether a person must change a setting or the server; else another start may succeed.
    pub fn is_of_settings(&self) -> bool {
        match self {
            OpenError::Url(_)
            | OpenError::TooOld(_)
            | OpenError::Unsafe { .. }
            | OpenError::NewSchema { .. }
            | OpenError::OldSchema { .. }
            | OpenError::Format { .. }
            | OpenError::Pooled => true,
            OpenError::Connect(_)
            | OpenError::ReadOnly
            | OpenError::SchemaInUse
            | OpenError::NameTaken { .. }
            | OpenError::Full(_)
            | OpenError::SeatLost
            | OpenError::Behind
            | OpenError::Unreadable(_) => false,
        }
    }
}

impl From<tokio_postgres::Error> for OpenError {
    fn from(error: tokio_postgres::Error) -> OpenError {
        let is = |state| error.code() == Some(&state);
        // A statement's name is its connection's own.
        if is(SqlState::DUPLICATE_PSTATEMENT) || is(SqlState::INVALID_SQL_STATEMENT_NAME) {
            return OpenError::Pooled;
        }
        let kind = if is(SqlState::DISK_FULL) { OpenError::Full } else { OpenError::Connect };
        kind(describe(&error))
    }
}

/// An error with its causes: the driver's own text leaves them out.
pub(super) fn describe(error: &tokio_postgres::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}
