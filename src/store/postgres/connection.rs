//! Connections to the database, what must hold of it, and its schema.

use std::{error::Error as _, future::poll_fn, time::Duration};

use secrecy::{ExposeSecret, SecretString};
use tokio::{
    sync::{broadcast, watch},
    time::timeout,
};
use tokio_postgres::{AsyncMessage, Client, Config, config::TargetSessionAttrs};
use tokio_postgres_rustls::MakeRustlsConnect;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::marks::{CommonSettings, Marks};

/// Versions of the schema that this program can use.
const SCHEMA: i32 = 1;

/// `server_version_num` of the oldest PostgreSQL whose tests this store has passed.
const OLDEST_SERVER: i32 = 150_000;

/// The advisory lock under which the schema is created.
const SCHEMA_LOCK: i64 = i64::from_be_bytes(*b"ceoagen2");

/// How often a start looks for a pooler.
const POOLER_LOOKS: usize = 8;

/// Longest time to connect, with TLS and authentication.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Longest answer of the server to one statement. A partition of the network shows after this time at the latest.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(12);

/// Set for each connection. The server ends a statement before [`ANSWER_TIMEOUT`] does. A transaction whose node has gone
/// silent must not keep the other nodes from writing, not even if the server is sending it an answer, which no time limit of
/// a statement ends. Connections of a machine that has died are closed.
const SESSION: &str = "set search_path to ceoagent; set statement_timeout to '10s'; set lock_timeout to '10s'; \
                       set idle_in_transaction_session_timeout to '2s'; set client_min_messages to warning; \
                       set tcp_user_timeout to '5s'; set tcp_keepalives_idle to 5; set tcp_keepalives_interval to 2; \
                       set tcp_keepalives_count to 3";

/// Why the database can't be used.
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
        "the database has schema version {found}, this program knows version {SCHEMA}: start the ceoagent that made it, or a newer one"
    )]
    Schema { found: i32 },
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
            | OpenError::Schema { .. }
            | OpenError::Pooled => true,
            OpenError::Connect(_)
            | OpenError::ReadOnly
            | OpenError::NameTaken { .. }
            | OpenError::SeatLost
            | OpenError::Behind
            | OpenError::Unreadable(_) => false,
        }
    }
}

impl From<tokio_postgres::Error> for OpenError {
    fn from(error: tokio_postgres::Error) -> OpenError {
        OpenError::Connect(describe(&error))
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

/// The channel of hints. Statements name it too.
pub(super) const HINT_CHANNEL: &str = "ceoagent_hint";

/// Texts that wait for a slow receiver. If there are more, the oldest are lost.
const HINT_PLACES: usize = 256;

/// A database, and how to connect to it.
pub(super) struct Database {
    config: Config,
    tls: MakeRustlsConnect,
    /// Of this process: stands in the seat, and names its connections.
    pub(super) node: String,
    pub(super) marks: Marks,
    /// What nodes send each other without storing it.
    pub(super) hints: broadcast::Sender<String>,
}

/// A connection.
pub(super) struct Link {
    pub(super) client: Client,
    /// Cancelled when the connection is gone.
    pub(super) closed: CancellationToken,
    /// The newest row of the feed that this connection was notified of.
    pub(super) newest: watch::Receiver<i64>,
}

impl Database {
    /// Checks the database. Creates the schema if it has none.
    ///
    /// # Errors
    /// [`OpenError`].
    pub(super) async fn open(url: &SecretString, common: &CommonSettings<'_>) -> Result<Database, OpenError> {
        let mut config: Config =
            url.expose_secret().parse().map_err(|error: tokio_postgres::Error| OpenError::Url(describe(&error)))?;
        let (node, marks) = (Uuid::now_v7().simple().to_string(), Marks::new(common));
        config
            .application_name(marks.connection_name(&node))
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_user_timeout(ANSWER_TIMEOUT)
            .keepalives_idle(Duration::from_secs(5))
            .keepalives_interval(Duration::from_secs(2))
            .keepalives_retries(3);
        // With several hosts, take the primary. With one, `check` refuses a replica in words.
        if config.get_hosts().len() > 1 {
            config.target_session_attrs(TargetSessionAttrs::ReadWrite);
        }
        let database = Database { config, tls: tls(), node, marks, hints: broadcast::Sender::new(HINT_PLACES) };
        let mut link = database.connect().await?;
        let other = database.connect().await?;
        check_session(&link.client, &other.client).await?;
        migrate(&mut link.client).await?;
        Ok(database)
    }

    /// A checked connection.
    pub(super) async fn connect(&self) -> Result<Link, OpenError> {
        let connecting = async {
            let (client, mut connection) = self.config.connect(self.tls.clone()).await?;
            let (heard, newest) = watch::channel(0);
            let closed = CancellationToken::new();
            let guard = closed.clone().drop_guard();
            let hints = self.hints.clone();
            tokio::spawn(async move {
                // Callers that wait for an answer get the error too.
                while let Some(Ok(message)) = poll_fn(|context| connection.poll_message(context)).await {
                    let AsyncMessage::Notification(notification) = message else { continue };
                    if notification.channel() == HINT_CHANNEL {
                        // Fails if nobody listens.
                        let _ = hints.send(notification.payload().to_owned());
                    } else {
                        heard.send_replace(notification.payload().parse().unwrap_or(i64::MAX));
                    }
                }
                drop(guard);
            });
            client.batch_execute(SESSION).await?;
            check(&client).await?;
            Ok(Link { client, closed, newest })
        };
        timeout(CONNECT_TIMEOUT * 2, connecting)
            .await
            .unwrap_or_else(|_| Err(OpenError::Connect("no answer".to_owned())))
    }
}

/// The answer of the server, if it comes in time.
pub(super) async fn answer<T>(asking: impl Future<Output = Result<T, tokio_postgres::Error>>) -> Result<T, OpenError> {
    let no_answer = |_| Err(OpenError::Connect(format!("no answer in {} s", ANSWER_TIMEOUT.as_secs())));
    timeout(ANSWER_TIMEOUT, asking).await.map_or_else(no_answer, |answer| Ok(answer?))
}

/// TLS as `sslmode` in the URL asks for it. Certificates are always checked, against the system's or those of SSL_CERT_FILE.
fn tls() -> MakeRustlsConnect {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let without_roots = || {
        let config = rustls::ClientConfig::builder().with_root_certificates(rustls::RootCertStore::empty());
        MakeRustlsConnect::new(config.with_no_client_auth())
    };
    MakeRustlsConnect::with_native_certs().map_or_else(|_| without_roots(), |(tls, _)| tls)
}

/// Refuses a server that can't keep the store's promises.
async fn check(client: &Client) -> Result<(), OpenError> {
    let row = client.query_one(include_str!("check.sql"), &[]).await?;
    if row.try_get::<_, i32>(0)? < OLDEST_SERVER {
        return Err(OpenError::TooOld(row.try_get(1)?));
    }
    if row.try_get(2)? {
        return Err(OpenError::ReadOnly);
    }
    let consequences = [
        (3, "fsync", "a power cut loses acknowledged jobs or damages the whole database"),
        (4, "full_page_writes", "a power cut can damage the whole database"),
        (5, "synchronous_commit", "a crash loses jobs that were acknowledged"),
    ];
    for (column, setting, consequence) in consequences {
        let value: String = row.try_get(column)?;
        if value == "off" {
            return Err(OpenError::Unsafe { setting, value, consequence });
        }
    }
    Ok(())
}

/// Refuses a pooler that gives the server connection of an idle client to another: the seat is a lock of a session.
async fn check_session(client: &Client, other: &Client) -> Result<(), OpenError> {
    const PID: &str = "select pg_backend_pid()";
    let pid = async |client: &Client| Ok::<i32, OpenError>(client.query_one(PID, &[]).await?.try_get(0)?);
    // Other nodes may use the pooler at the same moment, so that a single look can miss it.
    for _ in 0..POOLER_LOOKS {
        let before = pid(client).await?;
        // A pooler that shares connections between statements refuses it; a server does not.
        if let Err(error) = other.batch_execute("begin").await {
            return Err(if error.as_db_error().is_some() { OpenError::Pooled } else { error.into() });
        }
        let others = pid(other).await?;
        let after = pid(client).await?;
        other.batch_execute("rollback").await?;
        if before == others || before != after {
            return Err(OpenError::Pooled);
        }
    }
    Ok(())
}

/// Creates the schema, or checks its version.
async fn migrate(client: &mut Client) -> Result<(), OpenError> {
    let transaction = client.transaction().await?;
    transaction.execute("select pg_advisory_xact_lock($1)", &[&SCHEMA_LOCK]).await?;
    let exists = transaction.query_one("select to_regclass('ceoagent.schema_version') is not null", &[]).await?;
    if !exists.try_get(0)? {
        transaction.batch_execute(include_str!("schema.sql")).await?;
    }
    let found = transaction.query_one("select version from ceoagent.schema_version", &[]).await?.try_get(0)?;
    if found != SCHEMA {
        return Err(OpenError::Schema { found });
    }
    Ok(transaction.commit().await?)
}
