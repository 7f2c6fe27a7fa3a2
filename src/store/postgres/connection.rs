//! Connections to the database, and what must hold of it.

use std::{future::poll_fn, sync::Arc, time::Duration};

use parking_lot::Mutex;
use secrecy::{ExposeSecret, SecretString};
use tokio::{
    sync::{broadcast, watch},
    time::timeout,
};
use tokio_postgres::{AsyncMessage, Client, Config, SimpleQueryMessage, config::TargetSessionAttrs};
use tokio_postgres_rustls::MakeRustlsConnect;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{
    error::{OpenError, describe},
    marks::{CommonSettings, Marks},
    schema::{Migration, Schema},
};
use crate::store::watch::SettingsWatch;

/// `server_version_num` of the oldest PostgreSQL whose tests this store has passed.
const OLDEST_SERVER: i32 = 150_000;

/// How often a start looks for a pooler.
const POOLER_LOOKS: usize = 8;

/// Longest time to connect, with TLS and authentication.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Longest answer of the server to one statement. A partition of the network shows after this time at the latest.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(12);

/// Set for each connection. The server ends a statement before [`ANSWER_TIMEOUT`] does. A transaction whose node has gone
/// silent must not keep the other nodes from writing, not even if the server is sending it an answer, which no time limit of
/// a statement ends. Connections of a machine that has died are closed. The server would
/// compile a statement that it wrongly expects to be long, which takes up to a second.
const SESSION: &str = "set search_path to ceoagent; set jit to off; set statement_timeout to '10s'; set lock_timeout to '10s'; \
                       set idle_in_transaction_session_timeout to '2s'; set client_min_messages to warning; \
                       set tcp_user_timeout to '5s'; set tcp_keepalives_idle to 5; set tcp_keepalives_interval to 2; \
                       set tcp_keepalives_count to 3";

/// The channel of hints. Statements name it too.
pub(super) const HINT_CHANNEL: &str = "ceoagent_hint";

/// The channel of changed settings. Statements name it too.
pub(super) const SETTING_CHANNEL: &str = "ceoagent_setting";

/// Texts that wait for a slow receiver. If there are more, the oldest are lost.
const HINT_PLACES: usize = 256;

/// A database, and how to connect to it.
pub(super) struct Database {
    config: Config,
    tls: MakeRustlsConnect,
    /// Of this process: stands in the seat, and names its connections.
    pub(super) node: String,
    /// Of the writer's newest connection: it announces what it has saved itself.
    pub(super) writer: Arc<Mutex<String>>,
    pub(super) marks: Marks,
    /// What nodes send each other without storing it.
    pub(super) hints: broadcast::Sender<String>,
    pub(super) settings_watch: SettingsWatch,
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
        let (database, mut link) = Database::connected(url, common).await?;
        in_time(Schema::OF_THIS_PROGRAM.prepare(&mut link.client)).await?;
        Ok(database)
    }

    /// Creates the schema, or upgrades it.
    ///
    /// # Errors
    /// [`OpenError`].
    pub(super) async fn migrate(url: &SecretString, schema: Schema<'_>) -> Result<Migration, OpenError> {
        let (_, mut link) = Database::connected(url, &[]).await?;
        // Without a time limit on the whole: an upgrade may rewrite a large table.
        link.client.batch_execute("set statement_timeout to 0").await?;
        schema.migrate(&mut link.client).await
    }

    async fn connected(url: &SecretString, common: &CommonSettings<'_>) -> Result<(Database, Link), OpenError> {
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
        let (hints, settings_watch) = (broadcast::Sender::new(HINT_PLACES), SettingsWatch::default());
        let database = Database { config, tls: tls(), node, writer: Arc::default(), marks, hints, settings_watch };
        let link = database.connect().await?;
        let other = database.connect().await?;
        in_time(check_session(&link.client, &other.client)).await?;
        Ok((database, link))
    }

    /// A checked connection.
    pub(super) async fn connect(&self) -> Result<Link, OpenError> {
        let connecting = async {
            let (client, mut connection) = self.config.connect(self.tls.clone()).await?;
            let (heard, newest) = watch::channel(0);
            let closed = CancellationToken::new();
            let guard = closed.clone().drop_guard();
            let (hints, settings_watch, own) = (self.hints.clone(), self.settings_watch.clone(), self.writer.clone());
            tokio::spawn(async move {
                // Callers that wait for an answer get the error too.
                while let Some(Ok(message)) = poll_fn(|context| connection.poll_message(context)).await {
                    let AsyncMessage::Notification(notification) = message else { continue };
                    let text = notification.payload();
                    match notification.channel() {
                        // Fails if nobody listens.
                        HINT_CHANNEL => _ = hints.send(text.to_owned()),
                        SETTING_CHANNEL => {
                            changed_elsewhere(text, &own.lock()).iter().for_each(|name| settings_watch.changed(name));
                        }
                        _ => _ = heard.send_replace(text.parse().unwrap_or(i64::MAX)),
                    }
                }
                drop(guard);
            });
            client.batch_execute(SESSION).await?;
            check(&client).await?;
            Ok(Link { client, closed, newest })
        };
        timeout(CONNECT_TIMEOUT * 2, connecting).await.unwrap_or_else(|_| {
            let seconds = (CONNECT_TIMEOUT * 2).as_secs();
            Err(OpenError::Connect(format!("no answer in {seconds} s, as from a pooler that has no connection left")))
        })
    }
}

/// The name of the setting that a notification is about, unless the writer of this process announces it. What its former
/// connection still commits, it does not announce.
fn changed_elsewhere(text: &str, own: &str) -> Option<String> {
    let (node, name) = text.split_once(' ')?;
    String::from_utf8(hex::decode(name).ok()?).ok().filter(|_| node != own)
}

/// The answer of the server, if it comes in time.
pub(super) async fn answer<T>(asking: impl Future<Output = Result<T, tokio_postgres::Error>>) -> Result<T, OpenError> {
    in_time(async { Ok(asking.await?) }).await
}

/// The same for several statements.
pub(super) async fn in_time<T>(asking: impl Future<Output = Result<T, OpenError>>) -> Result<T, OpenError> {
    let no_answer = |_| Err(OpenError::Connect(format!("no answer in {} s", ANSWER_TIMEOUT.as_secs())));
    timeout(ANSWER_TIMEOUT, asking).await.unwrap_or_else(no_answer)
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

fn check_version(number: i32, name: &str) -> Result<(), OpenError> {
    if number < OLDEST_SERVER { Err(OpenError::TooOld(name.to_owned())) } else { Ok(()) }
}

/// Refuses a server that can't keep the store's promises.
async fn check(client: &Client) -> Result<(), OpenError> {
    let row = client.query_one(include_str!("check.sql"), &[]).await?;
    check_version(row.try_get(0)?, row.try_get(1)?)?;
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
    // Not prepared: a statement is closed after its answer has come, and its client has the server connection until then.
    let pid = async |client: &Client| {
        let answer = client.simple_query("select pg_backend_pid()").await?;
        let pid = answer.iter().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
            _ => None,
        });
        pid.ok_or_else(|| OpenError::Connect("the server does not tell its process".to_owned()))
    };
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_before_version_15_are_refused_in_words() {
        assert!(check_version(150_000, "15.0").is_ok());
        let refused = check_version(140_022, "14.22").unwrap_err().to_string();
        assert!(refused.contains("is PostgreSQL 14.22; the service needs 15 or newer"), "{refused}");
    }
}
