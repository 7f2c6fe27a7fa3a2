//! A simulated Claude: a server on a real socket that speaks the Messages API.
//!
//! The demo, the tests and the load tests use it over HTTP. It checks requests as the API does, has an account's rate
//! limits, and fails if a script says so. Every answer says that it is simulated. No batches, no tools.
//!
//! - `account`: the rate limits
//! - `answer`: the memo
//! - `check`: the checks of a request
//! - `fault`: what goes wrong on purpose
//! - `pace`: how long an answer takes
//! - `record`: the calls received, and counters
//! - `sse`: the bytes of an answer, whole or broken

mod account;
mod answer;
mod check;
mod fault;
pub mod pace;
mod record;
mod sse;

use std::{
    collections::{HashSet, VecDeque},
    f64::consts::TAU,
    hash::{DefaultHasher, Hash, Hasher},
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::{Duration, SystemTime},
};

use axum::{
    Router,
    body::Bytes,
    extract::{Path, Request, State},
    http::HeaderMap,
    response::{IntoResponse, Response},
    routing::{get, post},
    serve::ListenerExt,
};
use parking_lot::Mutex;
use secrecy::SecretString;
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

use self::{
    account::Account,
    check::Asked,
    fault::put,
    pace::Timing,
    record::Record,
    sse::{Message, Step},
};
pub use self::{
    account::AccountLimits,
    fault::{ErrorAnswer, Fault},
    record::{Call, Counters, MAX_RECORDED_CALLS},
};
use super::{
    message::{CacheTtl, Usage},
    stream::tokens,
};

const MAX_REQUEST_BYTES: usize = 32 << 20;

/// No answer takes longer than this, whatever the distribution draws.
const MAX_LATENCY: Duration = Duration::from_secs(600);

/// System prompts remembered as cached; forgotten together when full.
const MAX_CACHED_PROMPTS: usize = 64;

/// Shorter system prompts are silently not cached.
const MIN_CACHED_TOKENS: u64 = 1_024;

#[derive(Debug, Clone)]
pub struct SimulatorConfig {
    pub addr: SocketAddr,
    pub latency: Latency,
    /// Most writes of a streamed answer. Fewer are cheaper.
    pub writes: u32,
    pub api_key: Option<SecretString>,
    /// Without limits, the headers have [`AccountLimits::UNLIMITED`].
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

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Latency {
    Zero,
    /// As long as real memos take: until the first token, thinking in silence, text by its length.
    Claude,
    Fixed(Duration),
    LogNormal {
        median: Duration,
        /// The standard deviation of the logarithm; 0.5 has its p99 at 3.2 medians.
        sigma: f64,
    },
}

pub struct Simulator {
    addr: SocketAddr,
    shared: Arc<Shared>,
}

type Rule = (Box<dyn Fn(&Value) -> bool + Send + Sync>, Fault);

struct Shared {
    config: SimulatorConfig,
    script: Mutex<VecDeque<Fault>>,
    rules: Mutex<Vec<Rule>>,
    record: Arc<Record>,
    releases: watch::Sender<u64>,
    storm: Mutex<Option<(Instant, ErrorAnswer)>>,
    account: Mutex<Account>,
    cached_prompts: Mutex<HashSet<u64>>,
    good_schema: Mutex<String>,
    end: CancellationToken,
}

impl Simulator {
    pub async fn start(config: SimulatorConfig) -> io::Result<Simulator> {
        config.latency.sample().map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        let listener = TcpListener::bind(config.addr).await?;
        let addr = listener.local_addr()?;
        let shared = Arc::new(Shared {
            account: Mutex::new(Account::new(config.limits, Instant::now())),
            config,
            script: Mutex::default(),
            rules: Mutex::default(),
            record: Arc::default(),
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
        let accepted = Arc::clone(&shared.record);
        let listener = listener.tap_io(move |socket| {
            accepted.count(|counters| counters.connections += 1);
            // Without it, answers are only slower.
            let _ = socket.set_nodelay(true);
        });
        let end = shared.end.clone().cancelled_owned();
        tokio::spawn(axum::serve(listener, router).with_graceful_shutdown(end).into_future());
        Ok(Simulator { addr, shared })
    }

    pub fn base_url(&self) -> String {
        format!("http://{}", self.addr)
    }

    pub fn script(&self, faults: impl IntoIterator<Item = Fault>) {
        self.shared.script.lock().extend(faults);
    }

    /// Every request that `matches` gets this, while the script has nothing for it.
    pub fn always(&self, matches: impl Fn(&Value) -> bool + Send + Sync + 'static, fault: impl Into<Fault>) {
        self.shared.rules.lock().push((Box::new(matches), fault.into()));
    }

    pub fn relent(&self) {
        self.shared.rules.lock().clear();
    }

    /// Changes the account's limits. What has been used stays used.
    pub fn set_limits(&self, limits: Option<AccountLimits>) {
        self.shared.account.lock().set(limits, Instant::now());
    }

    /// Every call gets `answer` until `until`; the script waits.
    pub fn turn_away(&self, until: Instant, answer: ErrorAnswer) {
        *self.shared.storm.lock() = Some((until, answer));
    }

    /// The newest calls received, at most [`MAX_RECORDED_CALLS`], oldest first.
    pub fn calls(&self) -> Vec<Call> {
        self.shared.record.calls.lock().iter().cloned().collect()
    }

    pub fn counters(&self) -> Counters {
        *self.shared.record.counters.borrow()
    }

    /// Waits until `n` calls in all have been received, parked ones included.
    pub async fn wait_for_calls(&self, n: usize) {
        self.wait_until(|counters| counters.calls >= n).await;
    }

    pub async fn wait_for_aborted(&self, n: usize) {
        self.wait_until(|counters| counters.aborted >= n).await;
    }

    pub fn release(&self) {
        self.shared.releases.send_modify(|releases| *releases += 1);
    }

    async fn wait_until(&self, reached: impl FnMut(&Counters) -> bool) {
        let _ = self.shared.record.counters.subscribe().wait_for(reached).await;
    }
}

impl Drop for Simulator {
    fn drop(&mut self) {
        self.shared.end.cancel();
    }
}

impl std::fmt::Debug for Simulator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Simulator").field("config", &self.shared.config).finish_non_exhaustive()
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

async fn model(State(shared): State<Arc<Shared>>, Path(id): Path<String>, headers: HeaderMap) -> Response {
    shared.look_up(&headers, || check::model(&id))
}

async fn models(State(shared): State<Arc<Shared>>, headers: HeaderMap) -> Response {
    shared.look_up(&headers, || Ok(check::models()))
}

async fn count_tokens(State(shared): State<Arc<Shared>>, headers: HeaderMap, body: Bytes) -> Response {
    shared.look_up(&headers, || {
        let asked = check::body(&body, &shared.good_schema, true)?;
        let system = asked.system.as_ref().map_or(0, |(system, _)| tokens(system));
        Ok(json!({ "input_tokens": system + tokens(&asked.prompt) + asked.schema_bytes as u64 / 4 }))
    })
}

async fn messages(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let (head, body) = request.into_parts();
    let body = axum::body::to_bytes(body, MAX_REQUEST_BYTES).await;
    let fault = shared.next_fault(body.as_deref().unwrap_or_default());
    let request_id = format!("req_sim_{:016x}", rand::random::<u64>());
    let asked = match &body {
        Err(_) => Err(ErrorAnswer::status(413).message("Request exceeds the maximum size")),
        Ok(body) => check::headers(&head.headers, shared.config.api_key.as_ref())
            .and_then(|()| check::body(body, &shared.good_schema, false)),
    };
    let planned = match &fault {
        Fault::Error(answer) => Err(answer.clone()),
        _ => asked.as_ref().map_err(Clone::clone).and_then(|asked| shared.plan(asked, &fault, &request_id)),
    };
    // Before the call is recorded, so that no release is missed.
    let mut releases = shared.releases.subscribe();
    let released = *releases.borrow() + 1;
    let asked = asked.ok();
    let mut flight = shared.record.receive(Call {
        at: SystemTime::now(),
        request_id: request_id.clone(),
        model: asked.as_ref().map(|asked| asked.model.clone()).unwrap_or_default(),
        prompt: asked.as_ref().map(|asked| asked.prompt.clone()).unwrap_or_default(),
        body: body.unwrap_or_default(),
        status: match &planned {
            Err(answer) => Some(answer.status),
            Ok(_) => (fault != Fault::CloseBeforeAnswer).then_some(200),
        },
        answer: planned.as_ref().ok().map(|message| message.text.clone()),
        usage: match (&planned, &fault) {
            (Err(_), _) | (_, Fault::Refusal | Fault::CloseBeforeAnswer) => Usage::default(),
            (Ok(message), _) => message.usage,
        },
    });
    let message = match planned {
        Ok(message) => message,
        Err(answer) => {
            flight.land();
            return shared.with_limits(answer.response(&request_id));
        }
    };
    match fault {
        Fault::Hold => tokio::select! {
            _ = releases.wait_for(|now| *now >= released) => {}
            () = shared.end.cancelled() => {}
        },
        Fault::CloseBeforeAnswer => {
            return Response::new(sse::body(vec![Step::Break], flight, shared.end.clone()));
        }
        _ => {}
    }
    if !asked.is_some_and(|asked| asked.stream) || fault == Fault::Unstreamed {
        let response = json_response(&message.json(), &request_id);
        tokio::time::sleep(message.silence() + message.latency).await;
        flight.land();
        return shared.with_limits(response);
    }
    let body = sse::body(message.steps(shared.config.writes, &fault), flight, shared.end.clone());
    let headers = [("content-type", "text/event-stream; charset=utf-8"), ("request-id", &request_id)];
    shared.with_limits((headers, body).into_response())
}

impl Shared {
    fn look_up(&self, headers: &HeaderMap, answer: impl FnOnce() -> Result<Value, ErrorAnswer>) -> Response {
        match check::headers(headers, self.config.api_key.as_ref()).and_then(|()| answer()) {
            Ok(answer) => json_response(&answer, "req_sim"),
            Err(error) => error.response("req_sim"),
        }
    }

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

    fn plan(&self, asked: &Asked, fault: &Fault, request_id: &str) -> Result<Message, ErrorAnswer> {
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
            let question = answer::question(&asked.prompt);
            let is_brief = answer::Size::of(&asked.prompt) == answer::Size::Brief;
            let timing = Timing::of(&question, is_brief, asked.effort.as_deref(), asked.thinking.as_deref());
            if is_brief { timing.with_length(full) } else { timing }
        });
        let output_tokens = timing.map_or(full, |timing| timing.tokens()).min(most);
        let usage = match fault {
            Fault::Usage(usage) => *usage,
            _ => Usage { output_tokens, ..self.input_usage(asked) },
        };
        let counted = usage.input_tokens + usage.cache_creation_input_tokens;
        let taken = self.account.lock().take(counted, usage.output_tokens, Instant::now());
        taken.inspect_err(|_| self.record.count(|counters| counters.limited += 1))?;
        let (start, latency) = match (fault, timing) {
            (Fault::Takes(time), _) => (None, *time),
            (_, Some(timing)) => (Some(timing), timing.writing),
            (_, None) => (None, self.config.latency.sample().unwrap_or_default()),
        };
        Ok(Message {
            id: request_id.replace("req", "msg"),
            model: asked.model.clone(),
            text: text.into(),
            has_thinking: *fault == Fault::ThinkingFirst || start.is_some(),
            stop_reason: stop_reason.to_owned(),
            usage,
            start,
            latency,
        })
    }

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
        let mut usage = Usage { input_tokens: fresh, ..Usage::default() };
        if cached_prompts.insert(hasher.finish()) {
            usage.cache_creation_input_tokens = system_tokens;
            usage.cache_creation_1h_input_tokens = if *cached == CacheTtl::OneHour { system_tokens } else { 0 };
        } else {
            usage.cache_read_input_tokens = system_tokens;
        }
        usage
    }

    fn with_limits(&self, mut response: Response) -> Response {
        for (name, value) in self.account.lock().headers() {
            put(response.headers_mut(), &name, &value);
        }
        response
    }
}

fn json_response(value: &Value, request_id: &str) -> Response {
    ([("content-type", "application/json"), ("request-id", request_id)], value.to_string()).into_response()
}

#[cfg(test)]
mod tests;
