//! Webhooks after the Standard Webhooks specification (<https://www.standardwebhooks.com>): whoever submitted a job with a
//! `callback_url` is told of its end, by a signed message that is sent until it is taken or a day has passed.
//!
//! What is owed is on disk with the end itself ([`crate::job::delivery`]), so no crash loses a message; one that was
//! under way is sent again under the same `webhook-id`. Redirects are not followed, no proxy is asked, and a connection
//! is made to no address but one that was checked ([`crate::job::callback`]). The signature covers the body, and the body
//! names the caller and the URL: all callers share one secret, so a receiver checks both.
//!
//! - `slots`: which messages may be sent now

mod slots;

use std::{
    error::Error,
    net::SocketAddr,
    panic::AssertUnwindSafe,
    sync::Arc,
    time::{Duration, UNIX_EPOCH},
};

use base64::{Engine, prelude::BASE64_STANDARD};
use futures_util::FutureExt;
use reqwest::{
    dns::{Addrs, Name, Resolve, Resolving},
    header,
    redirect::Policy,
};
use ring::hmac;
use secrecy::{ExposeSecret, SecretString};
use serde::Serialize;
use tokio::{task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};
use utoipa::ToSchema;

use self::slots::{MAX_PER_HOST, Slots};
use crate::{
    analysis::{
        decision::Asked,
        memo::{Memo, Shown},
    },
    clock::Timestamp,
    job::{
        AttemptError, JobId, JobRecord, JobStatus,
        callback::Callbacks,
        delivery::{Delivery, DeliveryState, DeliveryTry},
    },
    metrics::{Metrics, kind},
    queue::{Queue, QueueError},
    telemetry::{Span, TRACEPARENT},
};

/// A receiver must have answered within this time, as the specification recommends.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);

/// Time to connect.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Looks for what is due at most so often: jobs may end by the thousand a second.
const LEAST_POLL: Duration = Duration::from_millis(10);

/// Looks for what is due at least so often, should it have missed a signal.
const POLL: Duration = Duration::from_secs(1);

/// Pause before a message goes on whose outcome was not written: it will be sent again.
const UNWRITTEN_PAUSE: Duration = Duration::from_secs(5);

/// Most characters of an error that are kept with a try.
const MAX_ERROR: usize = 200;

/// Why no webhook can be sent at all.
#[derive(Debug, thiserror::Error)]
pub enum WebhookError {
    /// The secret is none.
    #[error("WEBHOOK_SECRET is not valid")]
    Secret,
    /// The client can't be made.
    #[error("failed to create the HTTP client for webhooks: {0}")]
    Client(#[from] reqwest::Error),
}

/// Sends what is due. Clones share everything.
#[derive(Clone)]
pub struct Webhooks {
    queue: Queue,
    http: reqwest::Client,
    key: hmac::Key,
    callbacks: Callbacks,
    metrics: Metrics,
}

/// A webhook's message.
#[derive(Serialize, ToSchema)]
#[schema(as = WebhookMessage)]
pub struct Message<'a> {
    /// `job.succeeded`, `job.failed` or `job.cancelled`. Ignore types that you do not know.
    r#type: String,
    /// When the job ended.
    #[schema(value_type = Option<String>, format = DateTime)]
    timestamp: Option<Timestamp>,
    data: Data<'a>,
}

/// The job that ended.
#[derive(Serialize, ToSchema)]
#[schema(as = WebhookData)]
struct Data<'a> {
    #[schema(value_type = String, format = Uuid)]
    id: JobId,
    status: JobStatus,
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
    #[schema(value_type = Option<String>, format = DateTime)]
    #[serde(skip_serializing_if = "Option::is_none")]
    finished_at: Option<Timestamp>,
    /// Who submitted the job. Absent for callers without a name.
    #[serde(skip_serializing_if = "Option::is_none")]
    caller: Option<&'a str>,
    /// The URL that the job's caller named. Check that it is yours.
    callback_url: &'a str,
    /// The question, as submitted.
    query: &'a str,
    /// The labels, as submitted.
    metadata: &'a std::collections::BTreeMap<String, String>,
    /// The memo of a succeeded job.
    #[schema(value_type = Option<Memo>)]
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<Shown<'a>>,
    /// Why the job failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<AttemptError>,
}

impl Webhooks {
    /// A sender that signs with `secret`; sends nothing until [`Webhooks::run`].
    ///
    /// # Errors
    /// [`WebhookError`].
    pub fn new(
        queue: Queue,
        secret: &SecretString,
        callbacks: Callbacks,
        metrics: Metrics,
    ) -> Result<Webhooks, WebhookError> {
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
        let secret = secret.expose_secret().trim_start_matches("whsec_");
        let secret = BASE64_STANDARD.decode(secret).map_err(|_| WebhookError::Secret)?;
        let key = hmac::Key::new(hmac::HMAC_SHA256, &secret);
        Ok(Webhooks { queue, http, key, callbacks, metrics })
    }

    /// Sends until `closing` is cancelled, and ends once what is under way then has been answered.
    pub async fn run(self, closing: CancellationToken) {
        let mut sending = JoinSet::new();
        let mut slots = Slots::default();
        while !closing.is_cancelled() {
            // Those under way stay due until their outcome is written.
            for due in slots.take(self.queue.deliveries_due(2 * MAX_PER_HOST), Instant::now()) {
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
                () = self.queue.until_delivery_due(POLL) => tokio::time::sleep(LEAST_POLL).await,
                () = closing.cancelled() => {}
            }
        }
        while sending.join_next().await.is_some() {}
    }

    /// Sends a job's message once and notes what came of it. False if its receiver did not answer.
    async fn deliver(&self, id: JobId) -> bool {
        let record = match self.queue.get(id).await {
            Ok(record) => record,
            // Removed meanwhile.
            Err(QueueError::NotFound(_)) => return true,
            Err(error) => {
                warn!(job.id = %id, %error, "failed to load a webhook; trying again");
                tokio::time::sleep(UNWRITTEN_PAUSE).await;
                return true;
            }
        };
        let Some(delivery) = owed(&record).cloned() else { return true };
        let span = Span::sender("webhook", record.request.traceparent.as_deref());
        span.note("job.id", id.to_string());
        span.scope(self.attempt(&record, delivery, &span)).await
    }

    /// One try, as a step of the question's trace. False if the receiver did not answer.
    async fn attempt(&self, record: &JobRecord, delivery: Delivery, span: &Span) -> bool {
        let (id, at, wall) = (record.job.id, self.queue.now(), self.queue.wall());
        let (http_status, error, asked) = match self.send(record, &delivery, wall, span).await {
            Ok(answer) => (Some(answer.status().as_u16()), None, retry_after(answer.headers(), wall)),
            Err(error) => (None, Some(error), None),
        };
        tell(span, http_status, error.as_deref());
        let after = delivery.tried(DeliveryTry { at, http_status, error }, asked);
        let outcome = match after.state {
            DeliveryState::Delivered => "delivered",
            DeliveryState::GivenUp => "given_up",
            DeliveryState::Disabled => "disabled",
            DeliveryState::Pending { .. } | DeliveryState::Waiting | DeliveryState::Skipped => "failed",
        };
        self.metrics.webhooks.get_or_create(&kind(outcome)).inc();
        let error = after.tries.last().and_then(|this| this.error.as_deref()).unwrap_or_default();
        if after.state == DeliveryState::Delivered {
            info!(job.id = %id, webhook.outcome = outcome, http.status = http_status, "webhook sent");
        } else {
            warn!(job.id = %id, webhook.outcome = outcome, http.status = http_status, error, "webhook failed");
        }
        if let Err(error) = self.queue.note_delivery(id, after).await {
            warn!(job.id = %id, %error, "failed to store the result of a webhook; it will be sent again");
            tokio::time::sleep(UNWRITTEN_PAUSE).await;
        }
        http_status.is_some()
    }

    /// The answer's head, or why there is none.
    async fn send(
        &self,
        record: &JobRecord,
        delivery: &Delivery,
        wall: Timestamp,
        span: &Span,
    ) -> Result<reqwest::Response, String> {
        let url = record.request.callback_url.as_deref().unwrap_or_default();
        // Again, since the setting may be another now than when the job was taken.
        let url = self.callbacks.check(url).map_err(|why| format!("the callback URL {why}"))?;
        let body = serde_json::to_string(&message(record)).map_err(|error| error.to_string())?;
        let id = delivery.message_id(record.job.id);
        let seconds = wall.as_millis().div_euclid(1_000);
        let signature = hmac::sign(&self.key, format!("{id}.{seconds}.{body}").as_bytes());
        let mut request = self
            .http
            .post(url)
            .header(header::CONTENT_TYPE, "application/json")
            .header("webhook-id", id)
            .header("webhook-timestamp", seconds)
            .header("webhook-signature", format!("v1,{}", BASE64_STANDARD.encode(signature)))
            .body(body);
        if let Some(context) = span.traceparent() {
            request = request.header(TRACEPARENT, context);
        }
        request.send().await.map_err(|error| told(&error.without_url()))
    }
}

/// Ends the step of a try in the job's trace, by the conventions for calls over HTTP:
/// <https://opentelemetry.io/docs/specs/semconv/http/http-spans/>.
fn tell(span: &Span, http_status: Option<u16>, error: Option<&str>) {
    span.note("http.request.method", "POST");
    if let Some(status) = http_status {
        span.note("http.response.status_code", i64::from(status));
    }
    match (http_status, error) {
        (Some(200..=299), _) => {}
        (Some(status), _) => span.fail(&status.to_string()),
        (None, error) => span.fail(error.unwrap_or_default()),
    }
}

/// What is to be sent of a job as it is in this record: nothing while it has not ended, whatever is due.
fn owed(record: &JobRecord) -> Option<&Delivery> {
    record.delivery.as_ref().filter(|delivery| delivery.next_at().is_some() && record.job.state.is_final())
}

fn message(record: &JobRecord) -> Message<'_> {
    let JobRecord { job, request, .. } = record;
    // A job that is told of has ended, so the hour makes no difference.
    let status = job.status(job.created_at);
    let asked = Asked { query: &request.query, options: &request.options, is_brief: record.is_brief() };
    let data = Data {
        id: job.id,
        status,
        created_at: job.created_at,
        finished_at: job.finished_at,
        caller: request.caller.as_deref(),
        callback_url: request.callback_url.as_deref().unwrap_or_default(),
        query: &request.query,
        metadata: &request.metadata,
        result: record.result().map(|stored| Shown::new(stored, &asked)),
        error: record.error(),
    };
    Message { r#type: format!("job.{status}"), timestamp: job.finished_at, data }
}

/// The pause that a receiver requests, in seconds or until a date.
fn retry_after(headers: &header::HeaderMap, wall: Timestamp) -> Option<Duration> {
    let value = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    let date = || {
        let date = httpdate::parse_http_date(value).ok()?.duration_since(UNIX_EPOCH).ok()?;
        let date = Timestamp::from_millis(i64::try_from(date.as_millis()).ok()?);
        Some(date.since(wall))
    };
    value.parse().ok().map(Duration::from_secs).or_else(date)
}

/// An error with its causes, in one line.
fn told(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text.chars().take(MAX_ERROR).collect()
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
