//! The HTTP client of the commands. The only place that finds the service and its token, and turns its problems into
//! messages.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::{Duration, Instant},
};

use reqwest::{Method, RequestBuilder, StatusCode, Url, header::HeaderMap};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde_json::Value;

use super::terminal::clean;
use crate::{
    app,
    config::{ServiceAddress, Settings},
};

/// The demo's folder within the data folder, so that its jobs never mix with real ones.
pub(super) const DEMO_FOLDER: &str = "demo";

/// Longest silence of a connection. The service answers within 30 s.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(40);

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long to retry while the service does not answer: it may be restarting.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

pub(super) const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// Most characters that an error quotes from an answer of another program.
const MAX_QUOTED: usize = 200;

/// Exit code if the service refused the request. 2 means a wrong command line.
pub(super) const REFUSED: u8 = 4;

/// The address of the service and the token for it.
#[derive(clap::Args, Debug)]
pub(super) struct Connection {
    #[command(flatten)]
    address: ServiceAddress,

    /// The service's settings; HOST, PORT, DATA_DIR and ADMIN_TOKEN lead to the service on this machine
    #[command(flatten)]
    pub(super) settings: Settings,
}

#[derive(Clone, Debug)]
pub(super) struct Client {
    http: reqwest::Client,
    base: String,
    token: Option<SecretString>,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum ClientError {
    #[error("{0:?} is not the URL of a service: --url and CEOAGENT_URL must be like http://localhost:8000")]
    Address(String),
    #[error(
        "no service answers at {base}: start one with `ceoagent serve`, or set its address with --url or CEOAGENT_URL"
    )]
    Unreachable { base: String, source: reqwest::Error },
    #[error(
        "the answer from {base} does not come from ceoagent but from another program or a proxy: {status}, {text:?}"
    )]
    Foreign {
        base: String,
        status: StatusCode,
        /// The beginning of its answer.
        text: String,
    },
    #[error("{0}")]
    Refused(Box<Refusal>),
    #[error("failed to create the HTTP client")]
    Client(#[source] reqwest::Error),
}

/// A problem of the API.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Refusal {
    pub(super) status: u16,
    pub(super) code: String,
    detail: String,
    #[serde(default)]
    request_id: String,
    #[serde(default)]
    errors: Vec<Wrong>,
}

#[derive(Clone, Debug, Deserialize)]
struct Wrong {
    field: String,
    message: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let code = clean(&self.code);
        match &self.errors[..] {
            [] => write!(f, "{} ({code})", clean(&self.detail))?,
            errors => {
                write!(f, "the service refused the request ({code}):")?;
                for wrong in errors {
                    write!(f, "\n  {}: {}", clean(&wrong.field), clean(&wrong.message))?;
                }
            }
        }
        if self.code == "unauthorized" {
            f.write_str("\n  set CEOAGENT_TOKEN or use --token")?;
        }
        match self.request_id.as_str() {
            "" => Ok(()),
            id => write!(f, "\n  request {}", clean(id)),
        }
    }
}

impl Connection {
    /// The service at --url, or the one on this machine.
    pub(super) fn client(&self) -> Result<Client, ClientError> {
        let (base, token) = match &self.address.url {
            Some(url) => {
                let base = base(url)?;
                // The token of the service on this machine must not be sent to another one.
                let token = if is_at_home(&base) { local_token(&self.settings) } else { None };
                (base, token)
            }
            None => (local_base(&self.settings), local_token(&self.settings)),
        };
        Client::new(base, self.address.token.clone().or(token))
    }

    pub(super) fn has_url(&self) -> bool {
        self.address.url.is_some()
    }
}

impl Client {
    pub(super) fn new(base: String, token: Option<SecretString>) -> Result<Client, ClientError> {
        // reqwest needs a TLS provider, also for unencrypted calls.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let builder = reqwest::Client::builder().connect_timeout(CONNECT_TIMEOUT).read_timeout(ANSWER_TIMEOUT);
        let builder = if is_at_home(&base) { builder.no_proxy() } else { builder };
        Ok(Client { http: builder.build().map_err(ClientError::Client)?, base, token })
    }

    pub(super) fn has_token(&self) -> bool {
        self.token.is_some()
    }

    pub(super) async fn get(&self, path: &str) -> Result<Value, ClientError> {
        self.send(self.request(Method::GET, path)).await
    }

    pub(super) async fn post(&self, path: &str) -> Result<Value, ClientError> {
        self.send(self.request(Method::POST, path)).await
    }

    pub(super) fn analyze(&self, body: &Value) -> RequestBuilder {
        self.request(Method::POST, "/api/v1/analyze").json(body)
    }

    /// A request to `path`, with the token if there is one.
    pub(super) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self.http.request(method, self.at(path));
        match &self.token {
            Some(token) => request.bearer_auth(token.expose_secret()),
            None => request,
        }
    }

    /// Sends a request that may be repeated, and repeats it while the service restarts.
    pub(super) async fn patiently(
        &self,
        request: impl Fn() -> RequestBuilder,
    ) -> Result<(HeaderMap, String), ClientError> {
        let started = Instant::now();
        loop {
            match self.once(request()).await {
                Err(error) if error.may_pass() && started.elapsed() < PATIENCE => tokio::time::sleep(RETRY_PAUSE).await,
                answer => return answer,
            }
        }
    }

    pub(super) fn at(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }

    /// The status, headers and text of any answer.
    pub(super) async fn answer(&self, request: RequestBuilder) -> Result<(StatusCode, HeaderMap, String), ClientError> {
        let unreachable = |error: reqwest::Error| ClientError::Unreachable {
            base: self.base.clone(),
            // The message has the address already.
            source: error.without_url(),
        };
        let answer = request.send().await.map_err(unreachable)?;
        let (status, headers) = (answer.status(), answer.headers().clone());
        Ok((status, headers, answer.text().await.map_err(unreachable)?))
    }

    /// The headers and text of a successful answer.
    pub(super) async fn once(&self, request: RequestBuilder) -> Result<(HeaderMap, String), ClientError> {
        let (status, headers, text) = self.answer(request).await?;
        if status.is_success() {
            return Ok((headers, text));
        }
        Err(match serde_json::from_str(&text) {
            Ok(refusal) => ClientError::Refused(refusal),
            Err(_) => self.foreign(status, &text),
        })
    }

    /// The answer as JSON.
    pub(super) async fn send(&self, request: RequestBuilder) -> Result<Value, ClientError> {
        let (_, text) = self.once(request).await?;
        // A `204` has no body.
        if text.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_str(&text).map_err(|_| self.foreign(StatusCode::OK, &text))
    }

    fn foreign(&self, status: StatusCode, text: &str) -> ClientError {
        let text = clean(text).chars().take(MAX_QUOTED).collect();
        ClientError::Foreign { base: self.base.clone(), status, text }
    }
}

impl ClientError {
    /// Whether the same request may succeed soon, because the service or its store restarts.
    pub(super) fn may_pass(&self) -> bool {
        match self {
            ClientError::Unreachable { .. } => true,
            ClientError::Refused(refusal) => matches!(refusal.status, 429 | 503),
            ClientError::Address(_) | ClientError::Foreign { .. } | ClientError::Client(_) => false,
        }
    }
}

pub(super) fn job_path(id: &str) -> String {
    format!("/api/v1/jobs/{}", path_segment(id))
}

/// An id as part of a path. Characters that no id contains become `_`.
pub(super) fn path_segment(id: &str) -> String {
    id.chars().map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' }).collect()
}

/// The checked address of a service, without a slash at the end.
pub(super) fn base(url: &str) -> Result<String, ClientError> {
    let parsed = Url::parse(url).ok().filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
    parsed.map(|_| url.trim_end_matches('/').to_owned()).ok_or_else(|| ClientError::Address(clean(url)))
}

/// The address of the service at HOST and PORT, seen from this machine.
pub(super) fn local_base(settings: &Settings) -> String {
    link(SocketAddr::new(settings.host, settings.port))
}

/// The URL that reaches `address` from this machine.
pub(super) fn link(address: SocketAddr) -> String {
    let host = match address.ip() {
        // A service that listens on all addresses listens on loopback too.
        IpAddr::V4(host) if host.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(host) if host.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        host => host,
    };
    format!("http://{}", SocketAddr::new(host, address.port()))
}

/// The admin token of the service on this machine, if this user may read it: of the demo, if there was one and no service
/// uses DATA_DIR itself.
fn local_token(settings: &Settings) -> Option<SecretString> {
    let stored = || {
        let demo = app::stored_admin_token(&settings.data_dir.join(DEMO_FOLDER));
        demo.filter(|_| !app::is_in_use(&settings.data_dir)).or_else(|| app::stored_admin_token(&settings.data_dir))
    };
    settings.admin_token.clone().or_else(stored)
}

fn is_at_home(base: &str) -> bool {
    Url::parse(base).is_ok_and(|url| is_here(&url))
}

fn is_here(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let ip: Option<IpAddr> = host.trim_start_matches('[').trim_end_matches(']').parse().ok();
    host == "localhost" || ip.is_some_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_is_one_sentence_and_each_wrong_field_one_line() {
        let problem = serde_json::json!({
            "type": "urn:x", "title": "t", "status": 503, "code": "queue_full", "detail": "the queue is full\u{1b}[2J",
            "request_id": "r1"
        });
        let refusal: Refusal = serde_json::from_value(problem).unwrap();
        assert_eq!(refusal.to_string(), "the queue is full (queue_full)\n  request r1");
        assert!(ClientError::Refused(Box::new(refusal)).may_pass());
        let problem = serde_json::json!({
            "status": 422, "code": "validation_failed", "detail": "query: must not be blank", "request_id": "r2",
            "errors": [{"field": "query", "message": "must not be blank"}, {"field": "model", "message": "must be short"}]
        });
        let refusal: Refusal = serde_json::from_value(problem).unwrap();
        let expected = "the service refused the request (validation_failed):\n  query: must not be blank\n  \
                        model: must be short\n  request r2";
        assert_eq!(refusal.to_string(), expected);
        assert!(!ClientError::Refused(Box::new(refusal)).may_pass());
    }

    #[test]
    fn a_link_can_be_opened_on_this_machine() {
        let link = |address: &str| link(address.parse().unwrap());
        assert_eq!([link("0.0.0.0:80"), link("[::]:80")], ["http://127.0.0.1:80", "http://[::1]:80"]);
        assert_eq!(link("10.0.0.7:8000"), "http://10.0.0.7:8000");
    }

    #[test]
    fn only_loopback_addresses_are_this_machine() {
        let here = |url: &str| is_here(&Url::parse(url).unwrap());
        assert!(here("http://localhost:1") && here("http://127.0.0.7") && here("http://[::1]:8000/x"));
        assert!(!here("http://localhost.example") && !here("https://10.0.0.1") && !here("http://[2001:db8::1]"));
    }
}
