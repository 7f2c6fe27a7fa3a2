//! Webhooks by the Standard Webhooks specification (<https://www.standardwebhooks.com>): when a job with a `callback_url`
//! ends, a signed message is sent until the receiver accepts it or a day has passed.
//!
//! The store makes a message durable together with the end of its job ([`crate::job::delivery`]), so no crash loses one; a
//! message that was being sent is sent again under the same `webhook-id`. Redirects are not followed, no proxy is used, and
//! connections go only to addresses that were checked ([`crate::job::callback`]).
//!
//! - `message`: the bodies
//! - `secrets`: what signs them
//! - `slots`: which messages may be sent now

pub mod message;
pub mod secrets;
mod slots;

use std::{
    error::Error,
    iter::successors,
    net::SocketAddr,
    panic::AssertUnwindSafe,
    sync::Arc,
    time::{Duration, UNIX_EPOCH},
};

use futures_util::FutureExt;
use reqwest::{
    dns::{Addrs, Name, Resolve, Resolving},
    header,
    redirect::Policy,
};
use serde::Serialize;
use tokio::{sync::Semaphore, task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};
use utoipa::ToSchema;

use self::{
    message::{Message, TestMessage},
    secrets::{CallerSecrets, Secrets},
    slots::{MAX_PER_HOST, Slots},
};
use crate::{
    clock::{self, Timestamp},
    config::values::Origin,
    job::{
        JobId, JobRecord,
        callback::Callbacks,
        delivery::{Delivery, DeliveryState, DeliveryTry},
    },
    metrics::{Metrics, kind},
    queue::{Queue, QueueError},
    registry::Unavailable,
    store::{Due, Outbox},
    telemetry::{Span, TRACEPARENT},
};

/// A receiver must have answered within this time, as the specification recommends.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Looks for what is due at most so often: jobs may end by the thousand a second.
const LEAST_POLL: Duration = Duration::from_millis(10);

/// Looks for what is due at least so often, should it have missed a signal.
const POLL: Duration = Duration::from_secs(1);

/// Pause before a message goes on whose outcome was not written: it will be sent again.
const UNWRITTEN_PAUSE: Duration = Duration::from_secs(5);

const MAX_ERROR: usize = 200;

/// Most test messages that are sent at a time: each holds its request until the receiver answers.
const MAX_TESTS: usize = 16;

#[derive(Clone)]
pub struct Webhooks {
    queue: Queue,
    outbox: Arc<dyn Outbox>,
    http: reqwest::Client,
    secrets: Secrets,
    callbacks: Callbacks,
    public_url: Option<Origin>,
    metrics: Metrics,
    tests: Arc<Semaphore>,
}

struct Outgoing<'a> {
    url: &'a str,
    id: String,
    secrets: &'a CallerSecrets,
    body: String,
    traceparent: Option<String>,
}

/// What the receiver did with the test message.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = WebhookTest)]
pub struct Tested {
    /// The `webhook-id` of the message.
    id: String,
    /// Whether the receiver accepted it, with a `2xx`.
    accepted: bool,
    /// The status of the receiver's answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    http_status: Option<u16>,
    /// Why there was no answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    /// How long the receiver took.
    duration_ms: u64,
}

impl Webhooks {
    /// A sender; it sends nothing until [`Webhooks::run`].
    pub fn new(
        queue: Queue,
        outbox: Arc<dyn Outbox>,
        secrets: Secrets,
        callbacks: Callbacks,
        public_url: Option<Origin>,
        metrics: Metrics,
    ) -> reqwest::Result<Webhooks> {
        // reqwest wants one to be named.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder()
            .dns_resolver(Arc::new(PublicResolver(callbacks.clone())))
            .redirect(Policy::none())
            // A proxy would look the name up itself, unchecked.
            .no_proxy()
            .timeout(ANSWER_TIMEOUT)
            .connect_timeout(CONNECT_TIMEOUT)
            .https_only(!callbacks.allow_plain_http())
            .user_agent(concat!("ceoagent/", env!("CARGO_PKG_VERSION")))
            .build()?;
        let tests = Arc::new(Semaphore::new(MAX_TESTS));
        Ok(Webhooks { queue, outbox, http, secrets, callbacks, public_url, metrics, tests })
    }

    pub fn secrets(&self) -> &Secrets {
        &self.secrets
    }

    /// Sends a test message of `caller` at once and waits for the receiver's answer. `None` if too many are being sent.
    ///
    /// # Errors
    /// [`Unavailable`] if the caller's secrets can't be read.
    pub async fn test(&self, caller: Option<&str>, url: &str) -> Result<Option<Tested>, Unavailable> {
        let Ok(_slot) = self.tests.try_acquire() else { return Ok(None) };
        let secrets = &self.secrets.of(caller).await?;
        let id = format!("msg_test_{:032x}", rand::random::<u128>());
        let wall = self.queue.wall();
        let body = serde_json::to_string(&TestMessage::new(caller, url, wall)).unwrap_or_default();
        let started = Instant::now();
        let sent = self.send(Outgoing { url, id: id.clone(), secrets, body, traceparent: None }, wall).await;
        let duration_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        let (http_status, error) = match sent {
            Ok(answer) => (Some(answer.status().as_u16()), None),
            Err(error) => (None, Some(error)),
        };
        info!(webhook.id = id, http.status = http_status, error, "test webhook sent");
        Ok(Some(Tested { id, accepted: matches!(http_status, Some(200..=299)), http_status, error, duration_ms }))
    }

    /// Sends until `closing` is cancelled, and ends once what is under way then has been answered.
    pub async fn run(self, closing: CancellationToken) {
        let mut sending = JoinSet::new();
        let mut slots = Slots::default();
        while !closing.is_cancelled() {
            // Those under way stay due until their outcome is written.
            let Some(due) = closing.run_until_cancelled(self.due()).await else { break };
            for due in slots.take(due, Instant::now()) {
                let (webhooks, id) = (self.clone(), due.job);
                // It comes back with its id whatever happens: else the job would stay under way for ever.
                sending.spawn(async move {
                    let sent = AssertUnwindSafe(webhooks.deliver(id)).catch_unwind().await;
                    if sent.is_err() {
                        error!(job.id = %id, "sending a webhook panicked; trying again");
                        tokio::time::sleep(UNWRITTEN_PAUSE).await;
                    }
                    (id, sent.unwrap_or(true))
                });
            }
            tokio::select! {
                Some(Ok((id, is_answered))) = sending.join_next() => {
                    slots.give_back(id, is_answered, Instant::now());
                    while let Some(Ok((id, is_answered))) = sending.try_join_next() {
                        slots.give_back(id, is_answered, Instant::now());
                    }
                }
                () = self.until_due() => tokio::time::sleep(LEAST_POLL).await,
                () = closing.cancelled() => {}
            }
        }
        while sending.join_next().await.is_some() {}
    }

    /// Messages that are due. None while the store can't be used.
    async fn due(&self) -> Vec<Due> {
        let due = self.outbox.due(self.queue.now(), 2 * MAX_PER_HOST).await;
        due.inspect_err(|error| debug!(%error, "failed to look for due webhooks")).unwrap_or_default()
    }

    /// Waits until another message may be due, at most [`POLL`].
    async fn until_due(&self) {
        let ended = self.queue.ended().notified();
        let now = self.queue.now();
        let next = self.outbox.next_due(now).await.ok().flatten();
        let wait = next.map_or(POLL, |due| due.since(now).min(POLL));
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = ended => {}
        }
    }

    /// Sends a job's message once and records the outcome. False if its receiver did not answer.
    async fn deliver(&self, id: JobId) -> bool {
        let (record, secrets) = match self.load(id).await {
            Ok(loaded) => loaded,
            Err(QueueError::NotFound(_)) => return true,
            Err(error) => {
                warn!(job.id = %id, %error, "failed to load a webhook; trying again");
                tokio::time::sleep(UNWRITTEN_PAUSE).await;
                return true;
            }
        };
        let Some(delivery) = due_delivery(&record).cloned() else { return true };
        let message = Message::new(&record, self.public_url.as_ref());
        // A person had it resent, so it is sent even if its event was not chosen.
        if delivery.resends == 0 && !message.is_chosen(&record.request.callback_events) {
            self.record(id, delivery.skipped()).await;
            return true;
        }
        let body = serde_json::to_string(&message).unwrap_or_default();
        let span = Span::sender("webhook", record.request.traceparent.as_deref());
        span.note("job.id", id.to_string());
        span.scope(self.attempt(&record, &secrets, delivery, body, &span)).await
    }

    /// What a job's message needs, before a try is made: a store that can't be read is no failure of the receiver.
    async fn load(&self, id: JobId) -> Result<(JobRecord, CallerSecrets), QueueError> {
        let record = self.queue.get(id).await?;
        let secrets = self.secrets.of(record.request.caller.as_deref()).await?;
        Ok((record, secrets))
    }

    /// One try, as a step of the question's trace. False if the receiver did not answer.
    async fn attempt(
        &self,
        record: &JobRecord,
        secrets: &CallerSecrets,
        delivery: Delivery,
        body: String,
        span: &Span,
    ) -> bool {
        let (id, at, wall) = (record.job.id, self.queue.now(), self.queue.wall());
        let outgoing = Outgoing {
            url: record.request.callback_url.as_deref().unwrap_or_default(),
            id: delivery.message_id(id),
            secrets,
            body,
            traceparent: span.traceparent(),
        };
        let (http_status, error, asked) = match self.send(outgoing, wall).await {
            Ok(answer) => (Some(answer.status().as_u16()), None, retry_after(answer.headers(), wall)),
            Err(error) => (None, Some(error), None),
        };
        note_answer(span, http_status, error.as_deref());
        let after = delivery.tried(DeliveryTry { at, http_status, error }, asked);
        let outcome = if after.is_open() { "failed" } else { after.state.into() };
        self.metrics.webhooks.get_or_create(&kind(outcome)).inc();
        let error = after.tries.last().and_then(|this| this.error.as_deref()).unwrap_or_default();
        if after.state == DeliveryState::Delivered {
            info!(job.id = %id, webhook.outcome = outcome, http.status = http_status, "webhook sent");
        } else {
            warn!(job.id = %id, webhook.outcome = outcome, http.status = http_status, error, "webhook failed");
        }
        self.record(id, after).await;
        http_status.is_some()
    }

    async fn record(&self, id: JobId, delivery: Delivery) {
        if let Err(error) = self.outbox.record(id, delivery).await {
            warn!(job.id = %id, %error, "failed to store the result of a webhook; it will be sent again");
            tokio::time::sleep(UNWRITTEN_PAUSE).await;
        }
    }

    /// The head of the receiver's answer, or why there is no answer.
    async fn send(&self, outgoing: Outgoing<'_>, wall: Timestamp) -> Result<reqwest::Response, String> {
        let Outgoing { url, id, secrets, body, traceparent } = outgoing;
        // Checked again, because the setting may have changed since the job was accepted.
        let url = self.callbacks.check(url).map_err(|why| format!("the callback URL {why}"))?;
        let seconds = wall.as_millis().div_euclid(1_000);
        let signatures = secrets.sign(&id, seconds, &body);
        let mut request = self
            .http
            .post(url)
            .header(header::CONTENT_TYPE, "application/json")
            .header("webhook-id", id)
            .header("webhook-timestamp", seconds)
            .header("webhook-signature", signatures)
            .body(body);
        if let Some(context) = traceparent {
            request = request.header(TRACEPARENT, context);
        }
        request.send().await.map_err(|error| with_causes(&error.without_url()))
    }
}

/// Adds the answer to the span of a try, by the conventions for calls over HTTP:
/// <https://opentelemetry.io/docs/specs/semconv/http/http-spans/>.
fn note_answer(span: &Span, http_status: Option<u16>, error: Option<&str>) {
    span.note("http.request.method", "POST");
    match http_status {
        Some(status) => {
            span.note("http.response.status_code", i64::from(status));
            if !(200..300).contains(&status) {
                span.fail(&status.to_string());
            }
        }
        None => span.fail(error.unwrap_or_default()),
    }
}

/// Nothing is sent while the job has not ended, for example after a retry.
fn due_delivery(record: &JobRecord) -> Option<&Delivery> {
    record.delivery.as_ref().filter(|delivery| delivery.next_at().is_some() && record.job.state.is_final())
}

fn retry_after(headers: &header::HeaderMap, wall: Timestamp) -> Option<Duration> {
    let now = UNIX_EPOCH + Duration::from_millis(wall.as_millis().cast_unsigned());
    clock::retry_after(headers.get(header::RETRY_AFTER)?.to_str().ok()?, now)
}

fn with_causes(error: &dyn Error) -> String {
    let causes: Vec<String> = successors(Some(error), |&error| error.source()).map(ToString::to_string).collect();
    causes.join(": ").chars().take(MAX_ERROR).collect()
}

/// Looks names up and gives only addresses that may be called. The connection is made to one of these and to no other:
/// the name is not looked up again.
struct PublicResolver(Callbacks);

impl Resolve for PublicResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let callbacks = self.0.clone();
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await;
            let found = found.into_iter().flatten();
            let allowed: Vec<SocketAddr> = found.filter(|address| callbacks.allows(address.ip())).collect();
            if allowed.is_empty() {
                // The same where there is no such host: a caller must not find out which names exist inside.
                return Err("the host has no public address".into());
            }
            Ok(Box::new(allowed.into_iter()) as Addrs)
        })
    }
}

#[cfg(test)]
mod tests;
