//! A simulated Claude: a server on a real socket that speaks the Messages API.
//!
//! The demo, the tests and the load tests talk to it over HTTP like to the real one. It checks requests as the API
//! does, streams or not, keeps an account's rate limits, and fails on purpose where a script says so. Every answer
//! says that it is simulated. It serves `POST /v1/messages`, `POST /v1/messages/count_tokens`, `GET /v1/models` and
//! `GET /v1/models/{id}`, and nothing else of the API: no batches, no tools.
//!
//! - `check`: what it checks in a request
//! - `answer`: the memo it gives
//! - `pace`: how long an answer takes
//! - `sse`: how an answer goes out, whole or broken
//! - `account`: its rate limits

mod account;
mod answer;
mod check;
pub mod pace;
mod sse;

use std::collections::{HashSet, VecDeque};
use std::f64::consts::TAU;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::Response;
use axum::routing::{get, post};
use axum::serve::ListenerExt;
use parking_lot::Mutex;
use secrecy::SecretString;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub use account::AccountLimits;
use account::{Account, Exceeded};
use check::Asked;
use pace::Timing;
use sse::{Message, Step};

use super::{
    message::{CacheTtl, Usage},
    stream::tokens,
};

/// Calls kept in the record, the newest; a demo may run for long. The counters go on beyond it.
pub const MAX_RECORDED_CALLS: usize = 1_000;

/// The API's own bound on a request.
const MAX_REQUEST_BYTES: usize = 32 << 20;

/// No answer takes longer than this, whatever the distribution draws.
const MAX_LATENCY: Duration = Duration::from_secs(600);

/// System prompts remembered as cached; forgotten together when full.
const MAX_CACHED_PROMPTS: usize = 64;

/// Shorter system prompts are silently not cached.
const MIN_CACHED_TOKENS: u64 = 1_024;

/// How the simulator behaves.
#[derive(Debug, Clone)]
pub struct SimulatorConfig {
    /// Where to listen; port 0 picks a free one.
    pub addr: SocketAddr,
    /// How long a whole answer takes.
    pub latency: Latency,
    /// Into how many writes a streamed answer is spread over its latency, at most. Fewer are cheaper.
    pub writes: u32,
    /// The only key accepted; any, if none is given.
    pub api_key: Option<SecretString>,
    /// Limits to enforce; if none, it tells those of [`AccountLimits::UNLIMITED`].
    pub limits: Option<AccountLimits>,
}

impl Default for SimulatorConfig {
    fn default() -> SimulatorConfig {
        SimulatorConfig {
            addr: (Ipv4Addr::LOCALHOST, 0).into(),
            latency: Latency::Zero,
            writes: 32,
            api_key: None,
            limits: None,
        }
    }
}

/// How long a whole answer takes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Latency {
    /// No longer than the work itself.
    Zero,
    /// As long as real memos take: until the first token, thinking in silence, text by its length.
    Claude,
    /// Always as long.
    Fixed(Duration),
    /// Log-normally distributed, as the times of a real model are.
    LogNormal {
        /// Half the answers are faster.
        median: Duration,
        /// The standard deviation of the logarithm; 0.5 has its p99 at 3.2 medians.
        sigma: f64,
    },
}

/// What goes wrong with one call, or is special about it.
#[derive(Debug, Clone, PartialEq)]
pub enum Fault {
    /// Nothing: takes this place in the script.
    Normal,
    /// An answer as given, usually an error.
    Error(ErrorAnswer),
    /// The stream ends properly after so many events.
    CutAfter(usize),
    /// The stream ends properly when only its last event is missing.
    CutBeforeLast,
    /// The stream ends properly after its text, before its stop reason.
    CutBeforeStop,
    /// A stream was asked for and one JSON message comes, as from a gateway that can't stream.
    Unstreamed,
    /// The connection breaks after so many events.
    DropAfter(usize),
    /// The stream falls silent after so many events, without end.
    StallAfter(usize),
    /// The whole stream comes in pieces of so many bytes, with a pause after each.
    SlowBytes {
        /// Bytes in a piece.
        bytes: usize,
        /// Pause after each.
        pause: Duration,
    },
    /// An event in the middle is not JSON.
    Malformed,
    /// An `error` event of this type comes in the middle.
    ErrorEvent(String),
    /// The model declines before any output, which is not billed though its usage is shown.
    Refusal,
    /// The answer is cut off at half, as by `max_tokens`.
    MaxTokens,
    /// A whole answer with this stop reason.
    Stop(String),
    /// The answer is cut off at half, with this stop reason.
    StopAtHalf(String),
    /// A thinking block precedes the text.
    ThinkingFirst,
    /// This text is the answer.
    Answer(String),
    /// The answer is billed as these tokens.
    Usage(Usage),
    /// The answer takes so long.
    Takes(Duration),
    /// The connection is closed with no answer at all; nothing is billed.
    CloseBeforeAnswer,
    /// The call is parked until [`Simulator::release`], then answered as usual.
    Hold,
}

/// An HTTP answer other than a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ErrorAnswer {
    status: u16,
    error_type: &'static str,
    message: String,
    error_code: Option<String>,
    headers: Vec<(String, String)>,
    html: Option<String>,
}

/// One call, as received and answered.
#[derive(Debug, Clone)]
pub struct Call {
    /// When it was received.
    pub at: SystemTime,
    /// The `request-id` it was answered with.
    pub request_id: String,
    /// The model asked for; empty if the request was not understood.
    pub model: String,
    /// The text of the messages.
    pub prompt: String,
    /// The whole request body.
    pub body: Bytes,
    /// The status answered; none if the connection was closed instead.
    pub status: Option<u16>,
    /// The text answered, also when the stream broke before its end.
    pub answer: Option<Arc<str>>,
    /// Tokens billed.
    pub usage: Usage,
}

impl Call {
    /// The request body as JSON; null if it is none.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }
}

/// Counts since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Connections accepted.
    pub connections: usize,
    /// Calls received.
    pub calls: usize,
    /// Those of them that the account's limits turned away with a 429.
    pub limited: usize,
    /// Calls the caller left before their answer was out.
    pub aborted: usize,
    /// Calls being answered right now.
    pub in_flight: usize,
    /// Most calls answered at the same time.
    pub peak_in_flight: usize,
    /// Tokens billed.
    pub usage: Usage,
}

/// A running simulator. Dropping it stops it.
#[derive(Debug)]
pub struct Simulator {
    addr: SocketAddr,
    shared: Arc<Shared>,
}

/// Which requests meet a fault, and which one.
type Rule = (Box<dyn Fn(&Value) -> bool + Send + Sync>, Fault);

struct Shared {
    config: SimulatorConfig,
    script: Mutex<VecDeque<Fault>>,
    rules: Mutex<Vec<Rule>>,
    record: Mutex<VecDeque<Call>>,
    counters: watch::Sender<Counters>,
    releases: watch::Sender<u64>,
    /// Until when every call gets this.
    storm: Mutex<Option<(Instant, ErrorAnswer)>>,
    account: Mutex<Account>,
    cached_prompts: Mutex<HashSet<u64>>,
    good_schema: Mutex<String>,
    end: CancellationToken,
}

impl Simulator {
    /// Starts it. Fails when the address is taken or the latency makes no sense.
    pub async fn start(config: SimulatorConfig) -> io::Result<Simulator> {
        config.latency.sample().map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        let listener = TcpListener::bind(config.addr).await?;
        let addr = listener.local_addr()?;
        let shared = Arc::new(Shared {
            account: Mutex::new(Account::new(config.limits, Instant::now())),
            config,
            script: Mutex::default(),
            rules: Mutex::default(),
            record: Mutex::default(),
            counters: watch::Sender::default(),
            releases: watch::Sender::default(),
            storm: Mutex::default(),
            cached_prompts: Mutex::default(),
            good_schema: Mutex::default(),
            end: CancellationToken::new(),
        });
        let router = Router::new()
            .route("/v1/messages", post(messages))
            .route("/v1/messages/count_tokens", post(count_tokens))
            .route("/v1/models", get(models))
            .route("/v1/models/{id}", get(model))
            .method_not_allowed_fallback(async || {
                ErrorAnswer::status(405).message("Method Not Allowed").response("req_sim")
            })
            .fallback(async || ErrorAnswer::status(404).message("Not Found").response("req_sim"))
            .with_state(shared.clone());
        let accepted = shared.clone();
        let listener = listener.tap_io(move |socket| {
            accepted.counters.send_modify(|counters| counters.connections += 1);
            // Only a loss of speed where it fails.
            let _ = socket.set_nodelay(true);
        });
        let end = shared.end.clone().cancelled_owned();
        tokio::spawn(axum::serve(listener, router).with_graceful_shutdown(end).into_future());
        Ok(Simulator { addr, shared })
    }

    /// The base URL for a client.
    pub fn base_url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// The next calls get these, in order; then all is normal again.
    pub fn script(&self, faults: impl IntoIterator<Item = Fault>) {
        self.shared.script.lock().extend(faults);
    }

    /// Every request that `matches` gets this, while the script has nothing for it.
    pub fn always(&self, matches: impl Fn(&Value) -> bool + Send + Sync + 'static, fault: impl Into<Fault>) {
        self.shared.rules.lock().push((Box::new(matches), fault.into()));
    }

    /// Forgets what [`Simulator::always`] said.
    pub fn relent(&self) {
        self.shared.rules.lock().clear();
    }

    /// Changes the account's limits from this moment, as the API may do at any time; none takes them away. What has been
    /// used of them already stays used.
    pub fn set_limits(&self, limits: Option<AccountLimits>) {
        self.shared.account.lock().set(limits, Instant::now());
    }

    /// Every call gets `answer` until `until`; the script waits.
    pub fn turn_away(&self, until: Instant, answer: ErrorAnswer) {
        *self.shared.storm.lock() = Some((until, answer));
    }

    /// The newest calls received, at most [`MAX_RECORDED_CALLS`], oldest first.
    pub fn calls(&self) -> Vec<Call> {
        self.shared.record.lock().iter().cloned().collect()
    }

    /// Counts since the start.
    pub fn counters(&self) -> Counters {
        *self.shared.counters.borrow()
    }

    /// Waits until `n` calls in all have been received. A parked call counts, and [`Simulator::release`] finds it.
    pub async fn wait_for_calls(&self, n: usize) {
        self.wait_until(|counters| counters.calls >= n).await;
    }

    /// Waits until `n` calls in all have been left by their callers before their answers were out.
    pub async fn wait_for_aborted(&self, n: usize) {
        self.wait_until(|counters| counters.aborted >= n).await;
    }

    /// Lets all parked calls go on.
    pub fn release(&self) {
        self.shared.releases.send_modify(|releases| *releases += 1);
    }

    async fn wait_until(&self, reached: impl FnMut(&Counters) -> bool) {
        // The sender lives in `self`, so waiting cannot fail.
        let _ = self.shared.counters.subscribe().wait_for(reached).await;
    }
}

impl Drop for Simulator {
    fn drop(&mut self) {
        self.shared.end.cancel();
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Latency {
    fn sample(self) -> Result<Duration, String> {
        match self {
            Latency::Zero | Latency::Claude => Ok(Duration::ZERO),
            Latency::Fixed(time) => Ok(time.min(MAX_LATENCY)),
            Latency::LogNormal { median, sigma } => {
                // Two even numbers make a normal one (Box and Muller). The first is never 0, which has no logarithm.
                let (radius, angle) = (1.0 - rand::random::<f64>(), rand::random::<f64>() * TAU);
                let normal = (-2.0 * radius.ln()).sqrt() * angle.cos();
                let seconds = (median.as_secs_f64() * (sigma * normal).exp()).clamp(0.0, MAX_LATENCY.as_secs_f64());
                Duration::try_from_secs_f64(seconds)
                    .map_err(|error| format!("latency of median {median:?} and sigma {sigma}: {error}"))
            }
        }
    }
}

impl ErrorAnswer {
    /// An answer with this status and the error type the API gives with it.
    pub fn status(status: u16) -> ErrorAnswer {
        let error_type = match status {
            401 => "authentication_error",
            402 => "billing_error",
            403 => "permission_error",
            404 => "not_found_error",
            409 => "conflict_error",
            413 => "request_too_large",
            429 => "rate_limit_error",
            408 | 504 => "timeout_error",
            529 => "overloaded_error",
            500.. => "api_error",
            _ => "invalid_request_error",
        };
        ErrorAnswer {
            status,
            error_type,
            message: format!("simulated {status}"),
            error_code: None,
            headers: Vec::new(),
            html: None,
        }
    }

    /// With this message.
    #[must_use]
    pub fn message(self, message: impl Into<String>) -> ErrorAnswer {
        ErrorAnswer { message: message.into(), ..self }
    }

    /// With `error.details.error_code`.
    #[must_use]
    pub fn error_code(self, code: impl Into<String>) -> ErrorAnswer {
        ErrorAnswer { error_code: Some(code.into()), ..self }
    }

    /// With a header more, such as `retry-after` or `x-should-retry`.
    #[must_use]
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> ErrorAnswer {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// With this HTML page as its body, as a proxy would answer.
    #[must_use]
    pub fn html(self, page: impl Into<String>) -> ErrorAnswer {
        ErrorAnswer { html: Some(page.into()), ..self }
    }

    fn response(self, request_id: &str) -> Response {
        let (content_type, body) = match self.html {
            Some(page) => ("text/html", page),
            None => {
                let code = self.error_code.as_deref();
                ("application/json", error_body(self.error_type, &self.message, code, request_id).to_string())
            }
        };
        let mut response = Response::new(sse::whole(body));
        *response.status_mut() = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        put(response.headers_mut(), "content-type", content_type);
        put(response.headers_mut(), "request-id", request_id);
        for (name, value) in &self.headers {
            put(response.headers_mut(), name, value);
        }
        response
    }
}

impl From<ErrorAnswer> for Fault {
    fn from(answer: ErrorAnswer) -> Fault {
        Fault::Error(answer)
    }
}

/// A call being answered. Dropped before it has landed, it counts as aborted.
struct Flight {
    shared: Arc<Shared>,
    landed: bool,
}

impl Flight {
    fn land(&mut self) {
        self.landed = true;
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.shared.counters.send_modify(|counters| {
            counters.in_flight -= 1;
            counters.aborted += usize::from(!self.landed);
        });
    }
}

/// What a call is to be answered with.
struct Plan {
    text: Arc<str>,
    stop_reason: String,
    usage: Usage,
    /// Before the text.
    start: Option<Timing>,
    /// Of the text.
    latency: Duration,
}

async fn model(State(shared): State<Arc<Shared>>, Path(id): Path<String>, headers: HeaderMap) -> Response {
    let found = check::headers(&headers, shared.config.api_key.as_ref()).and_then(|()| check::model(&id));
    match found {
        Ok(model) => json_response(&model, "req_sim"),
        Err(error) => error.response("req_sim"),
    }
}

async fn models(State(shared): State<Arc<Shared>>, headers: HeaderMap) -> Response {
    match check::headers(&headers, shared.config.api_key.as_ref()) {
        Ok(()) => json_response(&check::models(), "req_sim"),
        Err(error) => error.response("req_sim"),
    }
}

/// Not billed, and no part of the record.
async fn count_tokens(State(shared): State<Arc<Shared>>, headers: HeaderMap, body: Bytes) -> Response {
    let checked = check::headers(&headers, shared.config.api_key.as_ref())
        .and_then(|()| check::to_count(&body, &shared.good_schema));
    match checked {
        Ok(asked) => {
            let system = asked.system.as_ref().map_or(0, |(system, _)| tokens(system));
            let input_tokens = system + tokens(&asked.prompt) + asked.schema_bytes as u64 / 4;
            json_response(&json!({ "input_tokens": input_tokens }), "req_sim")
        }
        Err(error) => error.response("req_sim"),
    }
}

async fn messages(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let (head, body) = request.into_parts();
    let body = axum::body::to_bytes(body, MAX_REQUEST_BYTES).await;
    let fault = shared.next_fault(body.as_deref().unwrap_or_default());
    let request_id = format!("req_sim_{:016x}", rand::random::<u64>());
    let checked = match &body {
        Err(_) => Err(ErrorAnswer::status(413).message("Request exceeds the maximum size")),
        Ok(body) => check::headers(&head.headers, shared.config.api_key.as_ref())
            .and_then(|()| check::body(body, &shared.good_schema)),
    };
    let planned = match &fault {
        Fault::Error(answer) => Err(answer.clone()),
        _ => checked.as_ref().map_err(Clone::clone).and_then(|asked| shared.plan(asked, &fault)),
    };
    // Looked at before the call is on record, so a release after that is not missed.
    let mut releases = shared.releases.subscribe();
    let released = *releases.borrow() + 1;
    let mut flight = shared.receive(Call {
        at: SystemTime::now(),
        request_id: request_id.clone(),
        model: checked.as_ref().map(|asked| asked.model.clone()).unwrap_or_default(),
        prompt: checked.as_ref().map(|asked| asked.prompt.clone()).unwrap_or_default(),
        body: body.unwrap_or_default(),
        status: match &planned {
            Err(answer) => Some(answer.status),
            Ok(_) => (fault != Fault::CloseBeforeAnswer).then_some(200),
        },
        answer: planned.as_ref().ok().map(|plan| plan.text.clone()),
        usage: match (&planned, &fault) {
            (Err(_), _) | (_, Fault::Refusal | Fault::CloseBeforeAnswer) => Usage::default(),
            (Ok(plan), _) => plan.usage,
        },
    });
    let (plan, asked) = match (planned, checked) {
        (Ok(plan), Ok(asked)) => (plan, asked),
        (Err(answer), _) | (_, Err(answer)) => {
            flight.land();
            return shared.with_limits(answer.response(&request_id));
        }
    };
    if fault == Fault::Hold {
        tokio::select! {
            _ = releases.wait_for(|now| *now >= released) => {}
            () = shared.end.cancelled() => {}
        }
    }
    let end = shared.end.clone();
    if fault == Fault::CloseBeforeAnswer {
        return Response::new(sse::body(vec![Step::Break], flight, end));
    }
    let message = Message {
        id: &request_id.replace("req", "msg"),
        model: &asked.model,
        text: &plan.text,
        thinking: fault == Fault::ThinkingFirst || plan.start.is_some(),
        stop_reason: &plan.stop_reason,
        usage: plan.usage,
    };
    let response = if asked.stream && fault != Fault::Unstreamed {
        let mut steps = message.steps(plan.start, plan.latency, shared.config.writes, &fault);
        let body = match steps.as_mut_slice() {
            [Step::Send(bytes)] => {
                flight.land();
                sse::whole(std::mem::take(bytes))
            }
            _ => sse::body(steps, flight, end),
        };
        let mut response = Response::new(body);
        put(response.headers_mut(), "content-type", "text/event-stream; charset=utf-8");
        put(response.headers_mut(), "request-id", &request_id);
        response
    } else {
        let response = json_response(&message.json(), &request_id);
        let start = plan.start.map_or(Duration::ZERO, |start| start.first + start.thinking);
        tokio::time::sleep(start + plan.latency).await;
        flight.land();
        response
    };
    shared.with_limits(response)
}

impl Shared {
    /// What the next call gets.
    fn next_fault(&self, request: &[u8]) -> Fault {
        match &*self.storm.lock() {
            Some((until, answer)) if Instant::now() < *until => answer.clone().into(),
            _ => self.script.lock().pop_front().unwrap_or_else(|| self.by_rule(request)),
        }
    }

    fn by_rule(&self, request: &[u8]) -> Fault {
        let rules = self.rules.lock();
        if rules.is_empty() {
            return Fault::Normal;
        }
        let request = serde_json::from_slice(request).unwrap_or_default();
        rules.iter().find(|(matches, _)| matches(&request)).map_or(Fault::Normal, |(_, fault)| fault.clone())
    }

    /// Makes up the answer to a good request, if the account's limits let it pass.
    fn plan(&self, asked: &Asked, fault: &Fault) -> Result<Plan, ErrorAnswer> {
        let mut text = match fault {
            Fault::Answer(text) => text.clone(),
            Fault::Refusal => String::new(),
            _ => answer::compose(&asked.prompt),
        };
        let mut stop_reason = match fault {
            Fault::Refusal => "refusal",
            Fault::Stop(reason) | Fault::StopAtHalf(reason) => reason,
            _ => "end_turn",
        };
        let full = tokens(&text).max(1);
        let half = matches!(fault, Fault::MaxTokens | Fault::StopAtHalf(_));
        let most = if half { full / 2 } else { asked.max_tokens };
        if full > most {
            let kept = text.len() as u128 * u128::from(most) / u128::from(full);
            text.truncate(text.floor_char_boundary(usize::try_from(kept).unwrap_or(usize::MAX)));
            if !matches!(fault, Fault::StopAtHalf(_)) {
                stop_reason = "max_tokens";
            }
        }
        let timing = (self.config.latency == Latency::Claude).then(|| {
            let question = pace::question(&asked.prompt);
            let is_brief = answer::Size::of(&asked.prompt) == answer::Size::Brief;
            let timing = Timing::of(question, is_brief, asked.effort.as_deref(), asked.thinking.as_deref());
            if is_brief { timing.with_length(full) } else { timing }
        });
        let output_tokens = timing.map_or(full, |timing| timing.tokens()).min(most);
        let usage = match fault {
            Fault::Usage(usage) => *usage,
            _ => Usage { output_tokens, ..self.input_usage(asked) },
        };
        let counted = usage.input_tokens + usage.cache_creation_input_tokens;
        let taken = self.account.lock().take(counted, usage.output_tokens, Instant::now());
        taken.map_err(|Exceeded { limit, wait }| {
            self.counters.send_modify(|counters| counters.limited += 1);
            let message = format!("This request would exceed your organization's rate limit of {limit}");
            let seconds = wait.as_secs_f64().ceil().max(1.0);
            ErrorAnswer::status(429).message(message).header("retry-after", seconds.to_string())
        })?;
        let (start, latency) = match (fault, timing) {
            (Fault::Takes(time), _) => (None, *time),
            (_, Some(timing)) => (Some(timing), timing.writing),
            // Checked at the start.
            (_, None) => (None, self.config.latency.sample().unwrap_or_default()),
        };
        Ok(Plan { text: text.into(), stop_reason: stop_reason.to_owned(), usage, start, latency })
    }

    /// Input tokens, the system prompt's counted as the prompt cache would.
    fn input_usage(&self, asked: &Asked) -> Usage {
        let fresh = tokens(&asked.prompt) + asked.schema_bytes as u64 / 4;
        let Some((system, cached)) = &asked.system else {
            return Usage { input_tokens: fresh, ..Usage::default() };
        };
        let system_tokens = tokens(system);
        if *cached == CacheTtl::Off || system_tokens < MIN_CACHED_TOKENS {
            return Usage { input_tokens: fresh + system_tokens, ..Usage::default() };
        }
        let mut hasher = DefaultHasher::new();
        (&asked.model, system, asked.schema_bytes).hash(&mut hasher);
        let mut cached_prompts = self.cached_prompts.lock();
        if cached_prompts.len() == MAX_CACHED_PROMPTS {
            cached_prompts.clear();
        }
        if cached_prompts.insert(hasher.finish()) {
            let written_1h = if *cached == CacheTtl::OneHour { system_tokens } else { 0 };
            Usage {
                input_tokens: fresh,
                cache_creation_input_tokens: system_tokens,
                cache_creation_1h_input_tokens: written_1h,
                ..Usage::default()
            }
        } else {
            Usage { input_tokens: fresh, cache_read_input_tokens: system_tokens, ..Usage::default() }
        }
    }

    /// Puts a call on record.
    fn receive(self: &Arc<Self>, call: Call) -> Flight {
        let usage = call.usage;
        let mut record = self.record.lock();
        if record.len() == MAX_RECORDED_CALLS {
            record.pop_front();
        }
        record.push_back(call);
        drop(record);
        self.counters.send_modify(|counters| {
            counters.calls += 1;
            counters.in_flight += 1;
            counters.peak_in_flight = counters.peak_in_flight.max(counters.in_flight);
            counters.usage.input_tokens += usage.input_tokens;
            counters.usage.output_tokens += usage.output_tokens;
            counters.usage.cache_creation_input_tokens += usage.cache_creation_input_tokens;
            counters.usage.cache_read_input_tokens += usage.cache_read_input_tokens;
        });
        Flight { shared: self.clone(), landed: false }
    }

    fn with_limits(&self, mut response: Response) -> Response {
        for (name, value) in self.account.lock().headers() {
            put(response.headers_mut(), &name, &value);
        }
        response
    }
}

fn json_response(value: &Value, request_id: &str) -> Response {
    let mut response = Response::new(Body::from(value.to_string()));
    put(response.headers_mut(), "content-type", "application/json");
    put(response.headers_mut(), "request-id", request_id);
    response
}

/// The API's error envelope.
fn error_body(error_type: &str, message: &str, error_code: Option<&str>, request_id: &str) -> Value {
    let mut body = json!({
        "type": "error", "request_id": request_id, "error": {"type": error_type, "message": message},
    });
    if let Some(code) = error_code {
        body["error"]["details"] = json!({"error_code": code});
    }
    body
}

/// Sets a header; one that cannot be a header is left out.
fn put(headers: &mut HeaderMap, name: &str, value: &str) {
    if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
        headers.insert(name, value);
    }
}

#[cfg(test)]
mod tests;
