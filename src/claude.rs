//! The client of Claude's Messages API.
//!
//! One [`Claude::send`] is one HTTP request: it never retries, waits for no limit and has no state but its connections.
//!
//! - `message`: a question and its answer
//! - `access`: the address and the credentials
//! - `wire`: the JSON sent and read
//! - `events`: from bytes to server-sent events
//! - `intake`: how much of a stream is taken, and how fast
//! - `stream`: from the event stream to an answer
//! - `reuse`: whether a call went out on a connection used before
//! - `error`: the error table: what a failure means
//! - `price`: what tokens cost
//! - `simulator`: a stand-in for the API on a real socket, for the demo, tests and load tests

mod access;
pub mod error;
mod events;
mod intake;
pub mod message;
pub mod price;
mod reuse;
pub mod simulator;
mod stream;
mod wire;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use reqwest::header::{CONTENT_TYPE, HeaderMap};
use reqwest::{RequestBuilder, Response, StatusCode, Url};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use tokio::time::{Instant, timeout};

use crate::config::proxy::proxy_of;
pub use access::ClientError;
use error::{CallError, ErrorKind, MAX_ERROR_BODY_BYTES, cause};
use message::{MessageRequest, OnProgress, Progress, Reply, StopReason};
use stream::Answer;

/// TCP probes idle connections after this time, so that one that died silently (NAT, suspended peer) leaves the pool.
const TCP_KEEPALIVE: Duration = Duration::from_secs(60);

/// An idle connection is dropped after this time: nginx and most load balancers close theirs after 60 s or more.
const POOL_IDLE_TIMEOUT: Duration = Duration::from_secs(50);

/// A reused connection that closes within this time after a call went out was idle. Later, the call may have begun.
const IDLE_CLOSE: Duration = Duration::from_secs(2);

/// Most tokens that the API adds to a request, for instance for structured output. Other tokens have at least a byte.
const MAX_ADDED_TOKENS: u64 = 10_000;

const LOOKUP_TIMEOUT: Duration = Duration::from_secs(60);

/// The HTTP client's error if a proxy answers 407 to CONNECT.
const PROXY_REFUSED: &str = "proxy authorization required";

#[derive(Debug, Clone)]
pub struct ClientConfig {
    /// `https://api.anthropic.com` or a gateway's address; may carry a path prefix and end in `/` or `/v1` or neither.
    pub base_url: String,
    /// The three credentials are never logged and never part of an error.
    pub api_key: Option<SecretString>,
    pub auth_token: Option<SecretString>,
    /// As lines of `name: value`.
    pub custom_headers: Option<SecretString>,
    pub connect_timeout: Duration,
    /// Longest silence: no answer yet, or no event and no ping.
    pub idle_timeout: Duration,
}

/// Clones share one pool of connections.
#[derive(Debug, Clone)]
pub struct Claude(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    http: reqwest::Client,
    messages_url: Url,
    headers: HeaderMap,
    secrets: Vec<SecretString>,
    idle_timeout: Duration,
}

#[derive(Debug, Clone, Deserialize)]
pub struct ModelInfo {
    pub id: String,
    pub lifecycle: Option<String>,
    pub retires_at: Option<String>,
    pub max_tokens: Option<u64>,
}

impl Claude {
    /// Connects later. Proxies come from the environment (`HTTPS_PROXY` and the like).
    pub fn new(config: ClientConfig) -> Result<Claude, ClientError> {
        let messages_url = access::messages_url(&config.base_url)?;
        let (headers, secrets) = access::headers(config.api_key, config.auth_token, config.custom_headers)?;
        // Process-wide; fails if it is set already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut builder = reqwest::Client::builder();
        if access::is_loopback(&messages_url) {
            // A gateway on this machine is not behind the network's proxy.
            builder = builder.no_proxy();
        }
        let http = builder
            .user_agent(concat!("ceoagent/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(config.connect_timeout)
            .tcp_nodelay(true)
            .tcp_keepalive(TCP_KEEPALIVE)
            .pool_idle_timeout(POOL_IDLE_TIMEOUT)
            .connector_layer(reuse::connections())
            // A redirect to elsewhere would take the key along.
            .redirect(reqwest::redirect::Policy::none())
            // Only `answered` repeats a request.
            .retry(reqwest::retry::never())
            .build()
            .map_err(|error| ClientError::Http(cause(&error)))?;
        let idle_timeout = config.idle_timeout;
        Ok(Claude(Arc::new(Inner { http, messages_url, headers, secrets, idle_timeout })))
    }

    /// Makes one call. Dropping the future aborts it. An error has the part of the answer that came.
    pub async fn send(&self, request: &MessageRequest, on_progress: OnProgress<'_>) -> Result<Reply, CallError> {
        let mut head = Head::default();
        let mut answer = Answer::default();
        let body = wire::body(request)
            .map_err(|error| CallError::new(ErrorKind::InvalidRequest, format!("can't make the request: {error}")))?;
        let most_input = (body.len() as u64).saturating_add(MAX_ADDED_TOKENS);
        let idle = self.0.idle_timeout + request.extra_silence;
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
            }),
        }
    }

    pub async fn model(&self, id: &str) -> Result<ModelInfo, CallError> {
        let mut head = Head::default();
        let mut url = self.0.messages_url.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop().push("models").push(id);
        }
        let ask = async {
            let response = self.answered(self.0.http.get(url), self.0.idle_timeout, &mut head).await?;
            let body = self.bounded_body(response).await;
            serde_json::from_slice(&body).map_err(|error| stream::malformed(format!("model {id}: {error}")))
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
        let call = self.0.http.post(self.0.messages_url.clone());
        let call = call.header(CONTENT_TYPE, "application/json").body(body);
        let answered = self.answered(call, idle, head).await;
        if head.status.is_some() {
            on_progress(Progress::Head(head.rate_limits));
        }
        let response = answered?;
        let kind = text(response.headers(), "content-type").and_then(|kind| kind.split(';').next()).unwrap_or_default();
        // Gateways may send a stream under another type: then its first bytes decide.
        let is_stream = kind.is_empty() || kind.trim().eq_ignore_ascii_case("text/event-stream");
        stream::read(response.bytes_stream(), is_stream, idle, answer, on_progress).await
    }

    async fn answered(&self, call: RequestBuilder, idle: Duration, head: &mut Head) -> Result<Response, CallError> {
        let mut call = call.headers(self.0.headers.clone());
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
        head.rate_limits = ["requests", "input-tokens", "output-tokens"]
            .map(|name| text(headers, &format!("anthropic-ratelimit-{name}-limit"))?.parse().ok());
        if status.is_success() {
            return Ok(response);
        }
        if status == StatusCode::PROXY_AUTHENTICATION_REQUIRED {
            return Err(self.proxy_refused());
        }
        let headers = headers.clone();
        let body = self.bounded_body(response).await;
        Err(CallError::from_answer(status.as_u16(), &headers, &body, SystemTime::now()))
    }

    fn unsent_or_lost(&self, error: &reqwest::Error) -> CallError {
        let cause = cause(error);
        if cause.ends_with(PROXY_REFUSED) {
            return self.proxy_refused();
        }
        if !error.is_connect() {
            let message = format!("the connection to Claude broke before it answered: {cause}");
            return CallError::new(ErrorKind::ConnectionLost, message);
        }
        let check = match self.proxy() {
            Some((name, proxy)) => format!("the base URL, the network and the proxy {proxy} of {name}"),
            None => "the base URL and the network".to_owned(),
        };
        CallError::new(ErrorKind::ConnectFailed, format!("no connection to Claude (check {check}): {cause}"))
    }

    /// The variable and the address of the proxy for calls; NO_PROXY may exempt them from it.
    fn proxy(&self) -> Option<(&'static str, String)> {
        let url = &self.0.messages_url;
        if access::is_loopback(url) { None } else { proxy_of(url.scheme()) }
    }

    fn proxy_refused(&self) -> CallError {
        let (name, address) = self.proxy().unwrap_or(("HTTPS_PROXY", "between here and Claude".to_owned()));
        let message = format!(
            "the proxy {address} needs a user name and password (407): set {name} to http://USER:PASSWORD@HOST:PORT"
        );
        CallError::new(ErrorKind::ProxyAuth, message)
    }

    /// The part of a body that comes within the bounds of size and silence.
    async fn bounded_body(&self, mut response: Response) -> Vec<u8> {
        let mut body = Vec::new();
        while let Ok(Ok(Some(chunk))) = timeout(self.0.idle_timeout, response.chunk()).await {
            body.extend_from_slice(&chunk[..chunk.len().min(MAX_ERROR_BODY_BYTES - body.len())]);
            if body.len() == MAX_ERROR_BODY_BYTES {
                break;
            }
        }
        body
    }

    fn finish(&self, error: CallError, head: Head) -> CallError {
        let secrets = self.0.secrets.iter();
        CallError {
            status: head.status,
            request_id: head.request_id.or(error.request_id),
            message: secrets.fold(error.message, |text, secret| text.replace(secret.expose_secret(), "[secret]")),
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

#[derive(Default)]
struct Head {
    status: Option<u16>,
    request_id: Option<String>,
    rate_limits: [Option<u64>; 3],
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod tests;
