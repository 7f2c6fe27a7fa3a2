//! Redis or Valkey, beside PostgreSQL where several nodes share a database: the text of running attempts, and callers' quotas
//! that all nodes count together. Nothing else: a lost, slow or absent Redis costs text and quota counters, and no job.
//!
//! Every command has a time limit of 50 ms. The first that fails opens the breaker: the connection is given up, and no command is
//! sent until [`Redis::run`] has a new one, at the earliest after 5 s. So a caller waits for a dead server once in that time,
//! and nobody waits for a connection.
//!
//! Redis holds no names, keys or addresses: who is counted is a hash with a key that only the nodes have. It does hold the
//! text of running attempts.

use std::{num::NonZeroU32, sync::Arc, time::Duration};

use async_trait::async_trait;
use parking_lot::Mutex;
use redis::{
    AsyncConnectionConfig, Client, Cmd, ErrorKind, FromRedisValue, Pipeline, RedisError, ServerErrorKind,
    aio::MultiplexedConnection,
};
use ring::hmac;
use secrecy::{ExposeSecret, SecretString};
use tokio::{
    sync::Notify,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    job::JobId,
    metrics::Metrics,
    queue::{MINUTE, SharedRates, Taken, TextPiece, TextPlace, TextRelay},
};

/// How long a text stays that grows no more, if the node that wrote it is gone.
const TEXT_LIFETIME: Duration = Duration::from_mins(10);

#[derive(Clone, Copy)]
struct Times {
    /// Limit of one command, or of several that are sent together.
    limit: Duration,
    /// Limit of connecting, with TLS and the password.
    connect: Duration,
    /// From a failure to the next try to connect. Also how often an idle connection is tried.
    pause: Duration,
}

const TIMES: Times =
    Times { limit: Duration::from_millis(50), connect: Duration::from_secs(1), pause: Duration::from_secs(5) };

const TAKE: &str = include_str!("redis/take.lua");
const SEND: &str = include_str!("redis/send.lua");

/// A value of REDIS_URL that can't be right. No message holds a password.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("REDIS_URL: {0}. The form is redis://USER:PASSWORD@HOST:PORT/DATABASE, or rediss:// with TLS")]
    Url(String),
    #[error("REDIS_URL: the server refuses to serve with this user, password and database: {0}")]
    Refused(String),
    #[error("REDIS_URL: the server is in cluster mode, which this service can't use ({0}). Use a Redis without it")]
    Cluster(String),
}

pub struct Redis {
    client: Client,
    times: Times,
    config: AsyncConnectionConfig,
    /// Hashes who is counted.
    key: hmac::Key,
    state: Mutex<State>,
    /// Signalled when a command has failed.
    failed: Notify,
    metrics: Metrics,
}

enum State {
    New,
    Connected(MultiplexedConnection),
    Away(String),
}

impl Redis {
    /// Connects. A server that can't be reached is no error: [`Redis::run`] tries again. All nodes need the same `secret`.
    ///
    /// # Errors
    /// [`OpenError`].
    pub async fn open(url: &SecretString, secret: &SecretString, metrics: Metrics) -> Result<Arc<Redis>, OpenError> {
        Redis::open_with(url, secret, metrics, TIMES).await
    }

    async fn open_with(
        url: &SecretString,
        secret: &SecretString,
        metrics: Metrics,
        times: Times,
    ) -> Result<Arc<Redis>, OpenError> {
        let client = Client::open(url.expose_secret()).map_err(|error| OpenError::Url(error.to_string()))?;
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(times.connect))
            .set_response_timeout(Some(times.limit));
        let redis = Redis {
            client,
            times,
            config,
            key: hmac::Key::new(hmac::HMAC_SHA256, secret.expose_secret().as_bytes()),
            state: Mutex::new(State::New),
            failed: Notify::new(),
            metrics,
        };
        match redis.connect().await {
            Err(error) if is_of_cluster(&error) => return Err(OpenError::Cluster(error.to_string())),
            Err(error) if is_of_settings(&error) => return Err(OpenError::Refused(error.to_string())),
            connected => redis.set(connected),
        }
        Ok(Arc::new(redis))
    }

    /// Connects again whenever the connection has failed.
    pub async fn run(self: Arc<Self>, closing: CancellationToken) {
        let connect_again = async {
            loop {
                let failed = self.failed.notified();
                if self.trouble().is_some() {
                    sleep(self.times.pause).await;
                    self.set(self.connect().await);
                } else if timeout(self.times.pause, failed).await.is_err() {
                    // Else nobody would notice a lost connection before it is needed.
                    let _: Option<[String; 1]> = self.query(redis::pipe().cmd("PING")).await;
                }
            }
        };
        closing.run_until_cancelled(connect_again).await;
    }

    /// Why Redis can't be used at the moment.
    pub fn trouble(&self) -> Option<String> {
        match &*self.state.lock() {
            State::New => Some("not connected yet".to_owned()),
            State::Connected(_) => None,
            State::Away(why) => Some(why.clone()),
        }
    }

    /// A connection on which the commands work that are needed.
    async fn connect(&self) -> Result<MultiplexedConnection, RedisError> {
        let mut connection = self.client.get_multiplexed_async_connection_with_config(&self.config).await?;
        let (count, text) = ("ceoagent:probe", "ceoagent:probe:text");
        for command in [
            take(count, 0, NonZeroU32::MIN),
            send(text, 0, "a"),
            send(text, 1, "b"),
            redis::cmd("GETRANGE").arg(text).arg(0).arg(0).take(),
            // Of different slots: in cluster mode no command may have both.
            redis::cmd("UNLINK").arg(&[count, text]).take(),
        ] {
            command.exec_async(&mut connection).await?;
        }
        Ok(connection)
    }

    /// Changes the state. A change is logged once.
    fn set(&self, connected: Result<MultiplexedConnection, RedisError>) {
        let mut state = self.state.lock();
        let is_news = !matches!(*state, State::Away(_));
        *state = match connected {
            Ok(connection) => {
                info!("connected to Redis");
                State::Connected(connection)
            }
            Err(error) => {
                if is_news {
                    warn!(
                        %error,
                        "Redis can't be used: each node counts quotas for itself, and the text of running attempts comes \
                         on their own nodes only; trying again"
                    );
                }
                State::Away(error.to_string())
            }
        };
        self.metrics.redis_unavailable.set(i64::from(matches!(*state, State::Away(_))));
    }

    /// The replies to commands that are sent together; `None` if Redis can't be used at the moment.
    async fn query<T: FromRedisValue>(&self, commands: &Pipeline) -> Option<T> {
        let mut connection = match &*self.state.lock() {
            State::Connected(connection) => connection.clone(),
            State::New | State::Away(_) => return None,
        };
        match commands.query_async(&mut connection).await {
            Ok(replies) => Some(replies),
            Err(error) => {
                self.set(Err(error));
                self.failed.notify_one();
                None
            }
        }
    }
}

#[async_trait]
impl SharedRates for Redis {
    async fn take(&self, what: &str, who: &[u8], count: i64, per_minute: NonZeroU32) -> Option<Taken> {
        let mut context = hmac::Context::with_key(&self.key);
        [what.as_bytes(), &[0], who].iter().for_each(|part| context.update(part));
        let key = format!("ceoagent:rate:{}", &hex::encode(context.sign())[..32]);
        let [(is_granted, full_in)]: [(bool, u64); 1] =
            self.query(redis::pipe().add_command(take(&key, count, per_minute))).await?;
        Some(Taken { is_granted, full_in: Duration::from_micros(full_in) })
    }
}

#[async_trait]
impl TextRelay for Redis {
    async fn send(&self, pieces: &[TextPiece]) -> Option<Vec<usize>> {
        let mut pipeline = redis::pipe();
        for TextPiece { place, text } in pieces {
            pipeline.add_command(send(&text_key(place.id, place.attempt), place.at, text));
        }
        self.query(&pipeline).await
    }

    async fn read(&self, places: &[TextPlace], most: usize) -> Option<Vec<Vec<u8>>> {
        let mut pipeline = redis::pipe();
        for place in places {
            let key = text_key(place.id, place.attempt);
            pipeline.cmd("GETRANGE").arg(key).arg(place.at).arg(place.at + most - 1);
        }
        self.query(&pipeline).await
    }

    async fn remove(&self, attempts: &[(JobId, u32)]) -> Option<()> {
        let keys: Vec<String> = attempts.iter().map(|(id, attempt)| text_key(*id, *attempt)).collect();
        let [_]: [usize; 1] = self.query(redis::pipe().cmd("UNLINK").arg(keys)).await?;
        Some(())
    }
}

fn text_key(id: JobId, attempt: u32) -> String {
    format!("ceoagent:text:{id}:{attempt}")
}

fn take(key: &str, count: i64, per_minute: NonZeroU32) -> Cmd {
    let minute = i64::try_from(MINUTE.as_micros()).unwrap_or(i64::MAX);
    // Rounded down: a rounded up price would refuse the last of a minute.
    let price = count * minute / i64::from(per_minute.get());
    redis::cmd("EVAL").arg(TAKE).arg(1).arg(key).arg(price).arg(minute).take()
}

fn send(key: &str, at: usize, text: &str) -> Cmd {
    redis::cmd("EVAL").arg(SEND).arg(1).arg(key).arg(at).arg(text).arg(TEXT_LIFETIME.as_secs()).take()
}

/// Whether only a server in cluster mode answers so.
fn is_of_cluster(error: &RedisError) -> bool {
    use ServerErrorKind::{Ask, ClusterDown, CrossSlot, Moved};
    matches!(error.kind(), ErrorKind::Server(CrossSlot | Moved | Ask | ClusterDown))
}

/// Whether the server will answer the same until a person changes REDIS_URL or the server's users.
fn is_of_settings(error: &RedisError) -> bool {
    match error.kind() {
        ErrorKind::AuthenticationFailed
        | ErrorKind::InvalidClientConfig
        | ErrorKind::Server(ServerErrorKind::NoPerm) => true,
        // An unknown database, or a password where none is set.
        ErrorKind::Server(ServerErrorKind::ResponseError) => !error.to_string().contains("max number of clients"),
        _ => matches!(error.code(), Some("NOAUTH" | "WRONGPASS")),
    }
}

#[cfg(test)]
mod tests;
