//! The client of Claude's Messages API.
//!
//! One [`Claude::send`] is one HTTP request: it never retries, waits for no limit and keeps no state but its
//! connections. Retries, rate limits and the meaning of an answer are others' business; it knows nothing of jobs.
//!
//! - `access`: the address, and the headers that let a call in
//! - `wire`: the shapes sent and read
//! - `events`: from bytes to server-sent events
//! - `stream`: from the event stream to an answer
//! - `reuse`: whether a call went out on a connection used before
//! - `error`: the error table: what a failure means
//! - `price`: what tokens cost
//! - `simulator`: a stand-in for the API on a real socket, for the demo, tests and load tests

mod access;
pub mod error;
mod events;
pub mod price;
mod reuse;
pub mod simulator;
mod stream;
mod wire;

use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::{RequestBuilder, Response, StatusCode, Url};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::time::{Instant, timeout};

use crate::config::proxy::proxy_of;
use error::{CallError, ErrorKind};
use stream::Answer;
pub use wire::Usage;

/// Most bytes read of an error answer's body: the API's are short, a proxy's HTML page need not be read whole.
pub const MAX_ERROR_BODY_BYTES: usize = 64 << 10;

/// How long after the last byte TCP probes an idle connection, so that one that died silently (NAT, suspended peer)
/// leaves the pool.
const TCP_KEEPALIVE: Duration = Duration::from_secs(60);

/// An idle connection is dropped after this time: nginx and most load balancers close theirs after 60 s or more.
const POOL_IDLE_TIMEOUT: Duration = Duration::from_secs(50);

/// A reused connection that closes within this time after a call went out was closed for being idle. Later, the server
/// may have begun to work on the call.
const IDLE_CLOSE: Duration = Duration::from_secs(2);

/// Most tokens that the API adds to a request: for structured output, for instance. Beyond them no token is less than a
/// byte.
const MAX_ADDED_TOKENS: u64 = 10_000;

/// Longest time for a call that no model works on: a count of tokens, a look at a model.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(60);

/// Longest time in which the API compiles a schema at its first use: silence before the answer begins.
pub const SCHEMA_COMPILE_TIME: Duration = Duration::from_secs(180);

/// How long the API keeps a compiled schema after its last use.
pub const SCHEMA_COMPILED_FOR: Duration = Duration::from_hours(24);

/// What the HTTP client says where a proxy answers 407 to the opening of a tunnel.
const PROXY_REFUSED: &str = "proxy authorization required";

/// How to reach Claude.
#[derive(Debug, Clone)]
pub struct ClientConfig {
    /// `https://api.anthropic.com` or a gateway's address; may carry a path prefix and end in `/` or `/v1` or neither.
    pub base_url: String,
    /// Sent as `x-api-key`. Never logged, never part of an error.
    pub api_key: Option<SecretString>,
    /// Sent as `Authorization: Bearer`, likewise.
    pub auth_token: Option<SecretString>,
    /// Further headers, as lines of `name: value`; their values are secrets too.
    pub custom_headers: Option<SecretString>,
    /// Longest time to connect, TLS included.
    pub connect_timeout: Duration,
    /// Longest silence: no answer yet, or no event and no ping.
    pub idle_timeout: Duration,
}

/// The client. Clones share one pool of connections.
#[derive(Debug, Clone)]
pub struct Claude {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    http: reqwest::Client,
    messages_url: Url,
    headers: HeaderMap,
    /// Blanked out in errors.
    secrets: Vec<SecretString>,
    idle_timeout: Duration,
}

/// A question for Claude: one system prompt, one user message.
#[derive(Debug, Clone, Default)]
pub struct MessageRequest {
    /// The model's id.
    pub model: String,
    /// Most output tokens, thinking included.
    pub max_tokens: u32,
    /// The system prompt, marked for the prompt cache. May be empty.
    pub system: String,
    /// The user message.
    pub prompt: String,
    /// An answer to it that was of no use, if it is asked again.
    pub again: Option<Again>,
    /// How hard the model shall think, in the API's own word; none leaves it to the API.
    pub effort: Option<&'static str>,
    /// The API's own word for how it shall think; none leaves it to the API.
    pub thinking: Option<&'static str>,
    /// A JSON schema the answer shall fit (structured output), sent as it is; the API knows no `$schema`.
    pub schema: Option<Arc<RawValue>>,
    /// Longest time for the whole call.
    pub time_limit: Duration,
    /// The answer may be silent for so much longer than others: for [`SCHEMA_COMPILE_TIME`] at the first use of a schema.
    pub extra_silence: Duration,
    /// How long the system prompt stays in the prompt cache.
    pub cache: CacheTtl,
}

/// How long a prompt stays in the prompt cache after its last use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, strum::IntoStaticStr)]
pub enum CacheTtl {
    /// The API's default.
    #[default]
    #[strum(serialize = "5m")]
    FiveMinutes,
    /// Writing costs more than for five minutes.
    #[strum(serialize = "1h")]
    OneHour,
    /// It is not cached.
    #[strum(serialize = "none")]
    Off,
}

/// What is heard of a call while it is made.
#[derive(Debug, Clone, Copy)]
pub enum Progress<'a> {
    /// The head of the answer came, of a failure too, with the account's limits.
    Head(&'a RateLimits),
    /// The next piece of the model's thinking.
    Thinking(&'a str),
    /// The next piece of the answer's text.
    Text(&'a str),
}

/// Takes what is heard of a call.
pub type OnProgress<'a> = &'a (dyn Fn(Progress<'_>) + Send + Sync);

/// An answer that was of no use, so that the model can do better.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Again {
    /// The answer, or as much of it as is worth its tokens. The API takes no blank one.
    pub answer: String,
    /// What was wrong with it and what to do.
    pub complaint: String,
}

/// A complete answer. Look at `stop` before you trust `text`.
#[derive(Debug, Clone, PartialEq)]
pub struct Reply {
    /// The text blocks and after them the inputs of tools, joined. Thinking is left out.
    pub text: String,
    /// The model that answered; the one asked where the answer does not say.
    pub model: String,
    /// Why it stopped.
    pub stop: StopReason,
    /// False if the stream ended after its stop reason, without its last event.
    pub is_complete: bool,
    /// Whether any content came, thinking included.
    pub has_content: bool,
    /// What is billed; where it was not reported, the output is estimated.
    pub usage: Usage,
    /// Whether input and output tokens were both reported.
    pub has_whole_usage: bool,
    /// Anthropic's id of this call, for their support.
    pub request_id: Option<String>,
    /// The account's limits as the answer's headers tell them.
    pub rate_limits: RateLimits,
}

/// Why Claude stopped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StopReason {
    /// The answer is complete.
    EndTurn,
    /// Cut off at `max_tokens`.
    MaxTokens,
    /// A stop sequence came.
    StopSequence,
    /// It wants to use a tool.
    ToolUse,
    /// It paused a long turn.
    PauseTurn,
    /// It declined; billed, and the same question will be declined again.
    Refusal {
        /// The policy's name, if it has one.
        category: Option<String>,
        /// In words; not stable.
        explanation: Option<String>,
    },
    /// Prompt and answer together outgrew the model's context window.
    ModelContextWindowExceeded,
    /// A reason newer than this program.
    Other(String),
    /// It gives none, as some gateways do.
    Unstated,
}

/// The `anthropic-ratelimit-*` headers; `None` where an answer had none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RateLimits {
    /// Requests per minute.
    pub requests: Option<RateLimit>,
    /// Input tokens per minute, cache reads not counted.
    pub input_tokens: Option<RateLimit>,
    /// Output tokens per minute.
    pub output_tokens: Option<RateLimit>,
}

/// One limit. The API rounds `remaining` tokens to thousands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RateLimit {
    /// Allowed per minute.
    pub limit: u64,
    /// Left right now.
    pub remaining: u64,
}

/// What `GET /v1/models/{id}` tells of a model.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct ModelInfo {
    /// The model's id.
    pub id: String,
    /// `active`, `deprecated` or `retired`.
    #[serde(default)]
    pub lifecycle: Option<String>,
    /// When it retires (RFC 3339), if that is set.
    #[serde(default)]
    pub retires_at: Option<String>,
    /// Most input tokens.
    #[serde(default)]
    pub max_input_tokens: Option<u64>,
    /// Most output tokens.
    #[serde(default)]
    pub max_tokens: Option<u64>,
}

/// Why a client could not be built.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The base URL cannot be used. It is not repeated here, as it might hold a password.
    #[error("the base URL of the Claude API {0}")]
    BaseUrl(&'static str),
    /// The key cannot be a header value. It is not shown.
    #[error("the Claude API key is empty or has a character that is not allowed, such as a space or a line break")]
    ApiKey,
    /// The further headers can't be read. They are not shown.
    #[error("ANTHROPIC_CUSTOM_HEADERS must be lines of `name: value`, such as `x-team: ops`")]
    CustomHeaders,
    #[error("the HTTPS client for Claude could not be set up (are CA certificates installed?): {0}")]
    Http(String),
}

impl Claude {
    /// Builds a client; connects to nothing yet. Proxies come from the environment
    /// (`HTTPS_PROXY` and the like), but for a base URL on this machine.
    pub fn new(config: ClientConfig) -> Result<Claude, ClientError> {
        let messages_url = access::messages_url(&config.base_url)?;
        let (headers, secrets) = access::headers(config.api_key, config.auth_token, config.custom_headers)?;
        // Process-wide; a second call finds it set, by us or by the embedding program, and either is fine.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut builder = reqwest::Client::builder();
        if access::is_loopback(&messages_url) {
            // A gateway or simulator on this machine is not behind the network's proxy.
            builder = builder.no_proxy();
        }
        let http = builder
            .user_agent(concat!("ceoagent/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(config.connect_timeout)
            .tcp_nodelay(true)
            .tcp_keepalive(TCP_KEEPALIVE)
            .pool_idle_timeout(POOL_IDLE_TIMEOUT)
            .connector_layer(reuse::Connections)
            // A redirect to elsewhere would take the key along.
            .redirect(reqwest::redirect::Policy::none())
            // One call is one request, but for what `answered` repeats.
            .retry(reqwest::retry::never())
            .build()
            .map_err(|error| ClientError::Http(cause(&error)))?;
        Ok(Claude {
            inner: Arc::new(Inner { http, messages_url, headers, secrets, idle_timeout: config.idle_timeout }),
        })
    }

    /// Sends one request and reads the whole answer, giving what comes of it to `on_progress`. Dropping the future aborts
    /// the HTTP call. A failure tells how far the answer came.
    pub async fn send(&self, request: &MessageRequest, on_progress: OnProgress<'_>) -> Result<Reply, CallError> {
        let mut head = Head::default();
        let mut answer = Answer::default();
        let body = serde_json::to_vec(&wire::Body::new(request))
            .map_err(|error| CallError::new(ErrorKind::InvalidRequest, format!("can't make the request: {error}")))?;
        let most_input = (body.len() as u64).saturating_add(MAX_ADDED_TOKENS);
        let idle = self.inner.idle_timeout + request.extra_silence;
        let exchange = self.exchange(body, idle, on_progress, &mut head, &mut answer);
        let outcome = within(request.time_limit, exchange).await;
        answer.finish(on_progress, most_input, request.max_tokens.into());
        match outcome {
            Err(error) if !answer.has_ended(&error) => Err(CallError {
                usage: answer.usage().map(Box::new),
                text: Some(answer.text).filter(|text| !text.is_empty()),
                ..self.finish(error, head)
            }),
            _ => Ok(Reply {
                usage: answer.usage().unwrap_or_default(),
                has_whole_usage: answer.has_whole_usage(),
                text: answer.text,
                model: if answer.model.is_empty() { request.model.clone() } else { answer.model },
                stop: answer.stop.unwrap_or(StopReason::Unstated),
                is_complete: answer.is_complete,
                has_content: answer.has_content,
                request_id: head.request_id,
                rate_limits: head.rate_limits,
            }),
        }
    }

    /// Asks for a model's life cycle and limits: the check at start. Not billed.
    pub async fn model(&self, id: &str) -> Result<ModelInfo, CallError> {
        let mut head = Head::default();
        let mut url = self.inner.messages_url.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop().push("models").push(id);
        }
        let ask = async {
            let response = self.answered(self.inner.http.get(url), self.inner.idle_timeout, &mut head).await?;
            let body = self.bounded_body(response, MAX_ERROR_BODY_BYTES).await;
            serde_json::from_slice(&body).map_err(|error| stream::malformed(&format!("model {id}: {error}")))
        };
        let outcome = within(LOOKUP_TIMEOUT, ask).await;
        outcome.map_err(|error| CallError { surely_unbilled: true, ..self.finish(error, head) })
    }

    async fn exchange(
        &self,
        body: Vec<u8>,
        idle: Duration,
        on_progress: OnProgress<'_>,
        head: &mut Head,
        answer: &mut Answer,
    ) -> Result<(), CallError> {
        let call = self.inner.http.post(self.inner.messages_url.clone());
        let call = call.header(CONTENT_TYPE, HeaderValue::from_static("application/json")).body(body);
        let answered = self.answered(call, idle, head).await;
        if head.status.is_some() {
            on_progress(Progress::Head(&head.rate_limits));
        }
        let response = answered?;
        let kind = response.headers().get(CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
        let kind = String::from_utf8_lossy(kind).to_ascii_lowercase();
        let kind = kind.split(';').next().unwrap_or_default().trim();
        // A stream was asked for. Gateways that send one under another type are told from pages by what they send.
        let is_stream = matches!(kind, "text/event-stream" | "");
        stream::read(response.bytes_stream(), is_stream, idle, answer, on_progress).await
    }

    /// Sends `call` and returns its answer if that is a success, without its body.
    async fn answered(&self, call: RequestBuilder, idle: Duration, head: &mut Head) -> Result<Response, CallError> {
        let mut call = call.headers(self.inner.headers.clone());
        let response = loop {
            let (again, begin) = (call.try_clone(), Instant::now());
            let (sent, was_reused) = reuse::watch(timeout(idle, call.send())).await;
            match (sent.map_err(|_| stream::silent(idle))?, again) {
                (Ok(response), _) => break response,
                // Such a connection leaves the pool, so this ends with a new one.
                (Err(error), Some(again))
                    if was_reused && begin.elapsed() < IDLE_CLOSE && reuse::was_closed(&error) =>
                {
                    call = again;
                }
                (Err(error), _) => return Err(self.unsent_or_lost(&error)),
            }
        };
        let status = response.status();
        let headers = response.headers();
        head.status = Some(status.as_u16());
        head.request_id = text(headers, "request-id").map(str::to_owned);
        head.rate_limits = RateLimits::read(headers);
        if status.is_success() {
            return Ok(response);
        }
        if status == StatusCode::PROXY_AUTHENTICATION_REQUIRED {
            return Err(self.proxy_refused());
        }
        let headers = headers.clone();
        let body = self.bounded_body(response, MAX_ERROR_BODY_BYTES).await;
        Err(CallError::of_answer(status.as_u16(), &headers, &body, SystemTime::now()))
    }

    fn unsent_or_lost(&self, error: &reqwest::Error) -> CallError {
        let cause = cause(error);
        match () {
            () if cause.ends_with(PROXY_REFUSED) => self.proxy_refused(),
            () if error.is_connect() => CallError::new(
                ErrorKind::ConnectFailed,
                match self.proxy() {
                    Some((name, proxy)) => {
                        format!(
                            "no connection to Claude (check the base URL, the network and the proxy {proxy} of {name}): {cause}"
                        )
                    }
                    None => format!("no connection to Claude (check the base URL and the network): {cause}"),
                },
            ),
            () => CallError::new(
                ErrorKind::ConnectionLost,
                format!("the connection to Claude broke before it answered: {cause}"),
            ),
        }
    }

    /// The variable and the address of the proxy for calls; NO_PROXY may exempt them from it.
    fn proxy(&self) -> Option<(&'static str, String)> {
        let url = &self.inner.messages_url;
        if access::is_loopback(url) { None } else { proxy_of(url.scheme()) }
    }

    /// The proxy answered 407, to the request or to the opening of a tunnel.
    fn proxy_refused(&self) -> CallError {
        let (name, address) = self.proxy().unwrap_or(("HTTPS_PROXY", "between here and Claude".to_owned()));
        let message = format!(
            "the proxy {address} needs a user name and password (407): set {name} to http://USER:PASSWORD@HOST:PORT"
        );
        CallError::new(ErrorKind::ProxyAuth, message)
    }

    /// As much of a body as comes within bounds of size and silence: what has come is better than nothing.
    async fn bounded_body(&self, mut response: Response, limit: usize) -> Vec<u8> {
        let mut body = Vec::new();
        while let Ok(Ok(Some(chunk))) = timeout(self.inner.idle_timeout, response.chunk()).await {
            body.extend_from_slice(&chunk[..chunk.len().min(limit - body.len())]);
            if body.len() == limit {
                break;
            }
        }
        body
    }

    /// Adds what the answer's head told, and makes sure that no server can have a secret repeated in a message.
    fn finish(&self, error: CallError, head: Head) -> CallError {
        CallError {
            status: head.status,
            request_id: head.request_id.or(error.request_id),
            rate_limits: Box::new(head.rate_limits),
            message: self
                .inner
                .secrets
                .iter()
                .fold(error.message, |message, secret| message.replace(secret.expose_secret(), "[secret]")),
            ..error
        }
    }
}

async fn within<T>(limit: Duration, call: impl Future<Output = Result<T, CallError>>) -> Result<T, CallError> {
    timeout(limit, call).await.unwrap_or_else(|_| {
        let message = format!("the call to Claude was not complete after {limit:?}, its time limit");
        Err(CallError::new(ErrorKind::TotalTimeout, message))
    })
}

/// What an answer's head told.
#[derive(Default)]
struct Head {
    status: Option<u16>,
    request_id: Option<String>,
    rate_limits: RateLimits,
}

impl RateLimits {
    fn read(headers: &HeaderMap) -> RateLimits {
        let number = |name: &str, what| text(headers, &format!("anthropic-ratelimit-{name}-{what}"))?.parse().ok();
        let limit = |name| Some(RateLimit { limit: number(name, "limit")?, remaining: number(name, "remaining")? });
        RateLimits {
            requests: limit("requests"),
            input_tokens: limit("input-tokens"),
            output_tokens: limit("output-tokens"),
        }
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// The root of a failure in words, without the URLs the outer errors carry.
fn cause(error: &(dyn Error + 'static)) -> String {
    let mut root = error;
    while let Some(source) = root.source() {
        root = source;
    }
    root.to_string()
}

#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod tests;
