//! The HTTP client of the commands: finds the service and its token, and turns its problems into messages.

use std::{
    collections::VecDeque,
    fmt, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::{Duration, Instant},
};

use anyhow::{Context, anyhow, ensure};
use reqwest::{ClientBuilder, Method, RequestBuilder, Response, StatusCode, Url, header::HeaderMap};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde_json::Value;

use super::terminal::{clean, print_json};
use crate::{
    app,
    config::{ServiceAddress, Settings},
};

/// The demo's folder within the data folder, so that its jobs never mix with real ones.
pub(super) const DEMO_FOLDER: &str = "demo";

/// Longer than the service holds a request.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(40);

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long to retry while the service does not answer: it may be restarting.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

pub(super) const RETRY_PAUSE: Duration = Duration::from_secs(1);

const MAX_QUOTED: usize = 200;

/// Exit code if something could not be read.
pub(super) const INCOMPLETE: u8 = 3;

/// Exit code if the service refused the request.
pub(super) const REFUSED: u8 = 4;

#[derive(clap::Args, Debug)]
pub(super) struct Connection {
    #[command(flatten)]
    address: ServiceAddress,

    /// The service's settings; HOST, PORT, DATA_DIR and ADMIN_TOKEN lead to the service on this machine
    #[command(flatten)]
    pub(super) settings: Settings,
}

/// The lines of an answer, as they come.
pub(super) struct Lines {
    answer: Response,
    lines: VecDeque<Vec<u8>>,
    rest: Vec<u8>,
}

#[derive(clap::Args, Debug)]
pub(super) struct Call {
    /// Print the service's answer as JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    connection: Connection,
}

#[derive(Clone, Debug)]
pub(super) struct Client {
    http: reqwest::Client,
    base: String,
    token: Option<SecretString>,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum ClientError {
    #[error(
        "no service answers at {base}: start one with `ceoagent serve`, or set its address with --url or CEOAGENT_URL"
    )]
    Unreachable { base: String, source: reqwest::Error },
    #[error("{0}")]
    Refused(Box<Refusal>),
    #[error(transparent)]
    Other(#[from] anyhow::Error),
}

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
        if !self.request_id.is_empty() {
            write!(f, "\n  request {}", clean(&self.request_id))?;
        }
        Ok(())
    }
}

impl Connection {
    /// To another service than the options name.
    pub(super) fn to(url: String, token: Option<SecretString>, settings: Settings) -> Connection {
        Connection { address: ServiceAddress { url: Some(url), token }, settings }
    }

    pub(super) fn client(&self) -> anyhow::Result<Client> {
        let base = self.address.url.as_deref().map_or_else(|| Ok(local_base(&self.settings)), base)?;
        // The token of the service on this machine must not be sent to another one.
        let is_local = !self.has_url() || is_at_home(&base);
        let token = self.address.token.clone().or_else(|| local_token(&self.settings).filter(|_| is_local));
        Client::new(base, token)
    }

    pub(super) fn has_url(&self) -> bool {
        self.address.url.is_some()
    }
}

impl Lines {
    /// The next line, with its line break; `None` at the end, or in place of a line that was cut off.
    pub(super) async fn next(&mut self) -> reqwest::Result<Option<Vec<u8>>> {
        while self.lines.is_empty() {
            let Some(bytes) = self.answer.chunk().await? else { return Ok(None) };
            for part in bytes.split_inclusive(|byte| *byte == b'\n') {
                self.rest.extend_from_slice(part);
                if part.ends_with(b"\n") {
                    self.lines.push_back(std::mem::take(&mut self.rest));
                }
            }
        }
        Ok(self.lines.pop_front())
    }
}

impl Call {
    /// Makes the request and prints its answer, as JSON or with `print`.
    pub(super) async fn run(
        &self,
        request: impl FnOnce(&Client) -> RequestBuilder,
        print: impl FnOnce(&Value) -> io::Result<()>,
    ) -> anyhow::Result<Value> {
        let client = self.connection.client()?;
        let answer = client.send(request(&client)).await?;
        if self.json {
            print_json(&answer)?;
        } else {
            print(&answer)?;
        }
        Ok(answer)
    }
}

impl Client {
    pub(super) fn new(base: String, token: Option<SecretString>) -> anyhow::Result<Client> {
        let builder = reqwest::Client::builder().connect_timeout(CONNECT_TIMEOUT).read_timeout(ANSWER_TIMEOUT);
        let builder = if is_at_home(&base) { builder.no_proxy() } else { builder };
        Client::with(builder, base, token)
    }

    pub(super) fn with(builder: ClientBuilder, base: String, token: Option<SecretString>) -> anyhow::Result<Client> {
        // reqwest needs a TLS provider, also for unencrypted calls.
        let _ = rustls::crypto::ring::default_provider().install_default();
        Ok(Client { http: builder.build().context("failed to create the HTTP client")?, base, token })
    }

    pub(super) fn base(&self) -> &str {
        &self.base
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

    pub(super) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self.http.request(method, self.at(path));
        match &self.token {
            Some(token) => request.bearer_auth(token.expose_secret()),
            None => request,
        }
    }

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

    /// An archive of the service.
    pub(super) async fn export(&self) -> Result<Lines, ClientError> {
        let request = self.request(Method::GET, "/api/v1/admin/export");
        let unreachable =
            |error: reqwest::Error| ClientError::Unreachable { base: self.base.clone(), source: error.without_url() };
        let answer = request.send().await.map_err(unreachable)?;
        let status = answer.status();
        if status.is_success() {
            return Ok(Lines { answer, lines: VecDeque::new(), rest: Vec::new() });
        }
        Err(self.refusal(status, &answer.text().await.map_err(unreachable)?))
    }

    /// Fails unless the answer is a success.
    pub(super) async fn once(&self, request: RequestBuilder) -> Result<(HeaderMap, String), ClientError> {
        let (status, headers, text) = self.answer(request).await?;
        if status.is_success() {
            return Ok((headers, text));
        }
        Err(self.refusal(status, &text))
    }

    fn refusal(&self, status: StatusCode, text: &str) -> ClientError {
        match serde_json::from_str(text) {
            Ok(refusal) => ClientError::Refused(refusal),
            Err(_) => self.foreign(status, text),
        }
    }

    pub(super) async fn send(&self, request: RequestBuilder) -> Result<Value, ClientError> {
        let (_, text) = self.once(request).await?;
        if text.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_str(&text).map_err(|_| self.foreign(StatusCode::OK, &text))
    }

    fn foreign(&self, status: StatusCode, text: &str) -> ClientError {
        let (base, text) = (&self.base, clean(text).chars().take(MAX_QUOTED).collect::<String>());
        ClientError::Other(anyhow!(
            "the answer from {base} does not come from ceoagent but from another program or a proxy: {status}, {text:?}"
        ))
    }
}

impl ClientError {
    /// Whether the same request may succeed soon, because the service or its store restarts.
    pub(super) fn may_pass(&self) -> bool {
        match self {
            ClientError::Unreachable { .. } => true,
            ClientError::Refused(refusal) => matches!(refusal.status, 429 | 503),
            ClientError::Other(_) => false,
        }
    }
}

pub(super) fn job_path(id: &str) -> String {
    format!("/api/v1/jobs/{}", path_segment(id))
}

/// An id or name as one segment of a path. Characters that neither contains become `~`, which neither contains either.
pub(super) fn path_segment(name: &str) -> String {
    // A segment of dots would address another path.
    if name.chars().all(|c| c == '.') {
        return "~".to_owned();
    }
    name.replace(|c: char| !c.is_ascii_alphanumeric() && !"._-@/".contains(c), "~").replace('/', "%2F")
}

/// The checked address of a service, without a slash at the end.
pub(super) fn base(url: &str) -> anyhow::Result<String> {
    let parsed = Url::parse(url).ok().filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
    ensure!(
        parsed.is_some(),
        "{:?} is not the URL of a service: --url and CEOAGENT_URL must be like http://localhost:8000",
        clean(url)
    );
    Ok(url.trim_end_matches('/').to_owned())
}

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
    let folder = &settings.data_dir;
    let demo = || app::stored_admin_token(&folder.join(DEMO_FOLDER)).filter(|_| !app::is_in_use(folder));
    settings.admin_token.clone().or_else(demo).or_else(|| app::stored_admin_token(folder))
}

fn is_at_home(url: &str) -> bool {
    let Ok(url) = Url::parse(url) else { return false };
    let host = url.host_str().unwrap_or_default();
    let ip = host.trim_matches(['[', ']']).parse::<IpAddr>();
    host == "localhost" || ip.is_ok_and(|ip| ip.is_loopback())
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
        for here in ["http://localhost:1", "http://127.0.0.7", "http://[::1]:8000/x"] {
            assert!(is_at_home(here), "{here}");
        }
        for elsewhere in ["http://localhost.example", "https://10.0.0.1", "http://[2001:db8::1]"] {
            assert!(!is_at_home(elsewhere), "{elsewhere}");
        }
    }
}
