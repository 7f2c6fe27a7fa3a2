//! The composition root: builds the parts from the settings, starts them in order, drains them in order.
//!
//! Start: prompts → listener → store → keys, webhooks, server → orphans of a crash are ended → workers, sweeper → HTTP.
//! Whatever can fail fails before the first job is claimed and the first request taken, but for the models, which are
//! looked up meanwhile. Stop: no more requests and claims → attempts get SHUTDOWN_GRACE → store closed.

mod door;
mod model_check;

use std::{
    fs,
    io::{self, Write},
    net::{SocketAddr, TcpListener},
    num::NonZeroU32,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use axum::http::HeaderValue;
use axum_server::{Handle, Server};
use rand::distr::{Alphanumeric, SampleString};
use secrecy::{ExposeSecret, SecretString};
use tokio::task::{self, JoinError, JoinHandle};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{error, info, warn};

use self::door::Door;
use crate::{
    agent::{Agent, AgentConfig, Assignment},
    auth::{
        Auth, AuthError,
        jwt::{JwtError, Tokens},
    },
    claude::{
        Claude, ClientConfig, ClientError,
        price::{MAX_AGE_DAYS, Prices},
    },
    clock::Clock,
    config::{ClaimOrder, INTERACTIVE_TIMEOUT, OnUnknownOutcome, Settings},
    dashboard,
    http::{self, Api, fair::Fair},
    job::{JobRequest, callback::Callbacks},
    ledger::dollars,
    limits::{
        Limits, MAX_CALLS_AT_ONCE, PerMinute,
        budget::{Budget, Daily, Need},
    },
    metrics::Metrics,
    prompts::{PromptError, Prompts},
    queue::{Policy, Queue, QueueError, audit::Deed, retry::RetryBounds},
    store::{
        JobStore,
        sled::{
            OpenError, SledConfig, SledStore,
            salvage::{self, SalvageError, Summary},
        },
    },
    sweeper::{self, disk::DiskWatch},
    webhook::{WebhookError, Webhooks},
    worker::Worker,
};

/// The store's folder within the data folder.
const STORE_FOLDER: &str = "queue";

/// The admin token's file within the data folder.
const TOKEN_FILE: &str = "admin-token";

/// Characters of a token made here: 32 of 62 kinds are 190 bits.
const TOKEN_LENGTH: usize = 32;

/// A client must have sent its request's head within this time.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// Largest head of a request: room for many cookies and a long token. What is larger gets `431`.
const MAX_HEAD_BYTES: usize = 64 << 10;

/// A client that takes nothing of its answer for so long is cut off: with its connection goes all that is held for it.
#[cfg(target_os = "linux")]
const STALL_TIMEOUT: Duration = Duration::from_secs(20);

/// How long open connections get to take their last answer, once everything else has stopped.
const CONNECTION_GRACE: Duration = Duration::from_secs(2);

/// Why the service could not start. Each says what to do.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The address can't be listened on.
    #[error(
        "can't listen on {address}: {source}; another program may use the port: stop it, or choose another PORT or HOST"
    )]
    Listen {
        /// The address wanted.
        address: SocketAddr,
        /// What the system says.
        source: io::Error,
    },
    /// The prompts can't be used.
    #[error(transparent)]
    Prompts(#[from] PromptError),
    /// The client for Claude can't be made.
    #[error(transparent)]
    Claude(#[from] ClientError),
    /// The store can't be opened.
    #[error(transparent)]
    Store(#[from] OpenError),
    /// The orphans of a crash can't be ended.
    #[error("the jobs of the last run can't be recovered: {0}")]
    Recovery(QueueError),
    /// The admin token can't be read or kept.
    #[error("the admin token can't be kept in {}: {source}; set ADMIN_TOKEN, or make DATA_DIR writable", path.display())]
    Token {
        /// Its file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The callers' keys can't be used.
    #[error(transparent)]
    Keys(#[from] AuthError),
    /// Callers' tokens can't be checked.
    #[error(transparent)]
    Tokens(#[from] JwtError),
    /// An origin is none.
    #[error("CORS_ORIGINS has {0:?}, which is no origin such as https://app.example, without a path")]
    Origin(String),
    /// Webhooks can't be sent.
    #[error(transparent)]
    Webhooks(#[from] WebhookError),
    /// A part of the start panicked.
    #[error("the start failed: {0}")]
    Panicked(#[from] JoinError),
    /// Every model that the settings name is retired, or never was.
    #[error(
        "Claude answers no more for {models} (retired, or no such model). Set MODEL_NAME to a current model, such as \
         {current}"
    )]
    NoModel {
        /// As they are set.
        models: String,
        /// Those that are known to be current.
        current: String,
    },
    /// A budget that not even one call fits into.
    #[error("{setting} is {given}, and one call may need {need}: set it higher, or MAX_TOKENS lower")]
    BudgetTooSmall {
        /// Which.
        setting: &'static str,
        /// As it is set.
        given: String,
        /// What a short question may need.
        need: String,
    },
    /// Money is bounded, and a model's price is not known.
    #[error(
        "DAILY_COST_BUDGET_USD is set, but the price of {model} is not known, so it can't be held to it: tell the price in \
         MODEL_PRICES (as {model}=2/10, in US dollars a million input and output tokens), or choose another model"
    )]
    NoPrice {
        /// The model.
        model: String,
    },
    /// The store failed for good.
    #[error("the job store failed again and again and can't be recovered by this process; start it again")]
    StoreLost,
    /// There is no key.
    #[error(
        "ANTHROPIC_API_KEY is not set. Set it in the environment or in .env to serve; or try the service without a key, \
         against a simulated Claude: ceoagent demo"
    )]
    NoKey,
}

/// The running service.
pub struct App {
    address: SocketAddr,
    /// A token that was made at this start, to be shown once.
    new_admin_token: Option<SecretString>,
    admin_token: SecretString,
    grace: Duration,
    closing: CancellationToken,
    tracker: TaskTracker,
    prompts: Prompts,
    queue: Queue,
    store: Arc<dyn JobStore>,
    http: Handle<SocketAddr>,
    server: JoinHandle<io::Result<()>>,
    /// The lookup of the models; none once it is over.
    models: Option<JoinHandle<Option<StartError>>>,
}

impl App {
    /// Starts the service. It is ready when this returns.
    ///
    /// # Errors
    /// [`StartError`]; nothing keeps running then.
    pub async fn start(settings: &Settings, clock: Clock) -> Result<App, StartError> {
        App::start_with(settings, clock, false).await
    }

    /// Starts the service with settings that lead to a simulated Claude, which its pages say.
    ///
    /// # Errors
    /// As [`App::start`].
    pub async fn start_simulated(settings: &Settings, clock: Clock) -> Result<App, StartError> {
        App::start_with(settings, clock, true).await
    }

    async fn start_with(settings: &Settings, clock: Clock, is_simulated: bool) -> Result<App, StartError> {
        let prompts = Prompts::load(&settings.prompts_dir, &settings.prompt_version)?;
        let tokens = tokens(settings)?;
        let cors_origins = settings.cors_origins.iter().map(|origin| read_origin(origin)).collect::<Result<_, _>>()?;
        let api_key = settings.anthropic_api_key.clone().ok_or(StartError::NoKey)?;
        let (listener, address) = listen(SocketAddr::new(settings.host, settings.port))?;
        guard_folder(&settings.data_dir);
        let metrics = Metrics::new();
        let (store, claude) = open(settings, api_key, &clock, &metrics).await?;
        let (admin_token, is_new) = match &settings.admin_token {
            Some(token) => (token.clone(), false),
            None => keep_token(&admin_token_file(&settings.data_dir))?,
        };
        let fallbacks = settings.fallback_models.clone();
        let agent = Agent::new(claude.clone(), prompts.clone(), agent_config(settings), fallbacks, prices(settings));
        warn_of_prices(&agent, &clock);
        let budget = budget(settings, &agent, &clock, &store)?;
        let limits = Limits::new(per_minute(settings), workers(settings), budget, &settings.model_name);
        let closing = CancellationToken::new();
        let policy = policy(settings, &agent, &limits, &clock);
        let queue = Queue::new(Arc::clone(&store), clock, policy, metrics.clone(), closing.clone());
        let auth = Auth::new(admin_token.clone(), settings.api_keys.as_ref(), tokens, queue.clone()).map(Arc::new)?;
        let callbacks = callbacks(settings);
        let webhooks = settings.webhook_secret.as_ref();
        let webhooks = webhooks.map(|secret| Webhooks::new(queue.clone(), secret, callbacks, metrics.clone()));
        let webhooks = webhooks.transpose()?;
        let http = Handle::new();
        let server = server(listener, address, settings.max_connections, &http)?;
        let orphans = queue.recover().await.map_err(StartError::Recovery)?;
        if orphans > 0 {
            warn!(orphans, "attempts of the last run ended with an unknown outcome");
        }
        while queue.end_overdue().await.map_err(StartError::Recovery)? > 0 {}

        // Nothing can fail any more: what runs from here on would outlive a start that does.
        if auth.is_open() && !is_simulated {
            warn!(
                "the public routes are open: whoever can reach the port may ask, at your cost. Make a key (POST \
                 /api/v1/admin/keys), or set API_KEYS or JWT_KEYS_FILE, to close them"
            );
        }
        let disk = DiskWatch {
            folder: settings.data_dir.join(STORE_FOLDER),
            floor_bytes: settings.min_free_disk_mb << 20,
            metrics: metrics.clone(),
        };
        disk.look(&queue).await;
        let tracker = TaskTracker::new();
        let worker = Worker {
            queue: queue.clone(),
            limits: limits.clone(),
            agent: agent.clone(),
            metrics: metrics.clone(),
            closing: closing.clone(),
        };
        worker.start_pool(workers(settings), &tracker);
        tracker.spawn(sweeper::run(queue.clone(), closing.clone()));
        tracker.spawn(disk.run(queue.clone(), closing.clone()));
        tracker.spawn(sweeper::history::run(queue.clone(), closing.clone()));
        if let Some(webhooks) = webhooks {
            tracker.spawn(webhooks.run(closing.clone()));
        }
        let api = Api {
            queue: queue.clone(),
            limits,
            models: agent.known_models().clone(),
            prompts: prompts.clone(),
            metrics,
            auth: Arc::clone(&auth),
            fair: Fair::new(NonZeroU32::new(settings.submits_per_minute)),
            cors_origins,
            callbacks,
            max_query_length: settings.max_query_length,
        };
        let pages_queue = queue.clone();
        let router = http::router(api, |api| {
            dashboard::router(api, pages_queue, settings.max_query_length, is_simulated, move || auth.is_open())
        });
        let server = tokio::spawn(server.serve(router.into_make_service_with_connect_info::<SocketAddr>()));
        let models = tokio::spawn({
            let closing = closing.clone();
            async move {
                let check = closing.run_until_cancelled(model_check::check(&claude, &agent));
                check.await.and_then(Result::err)
            }
        });
        info!(%address, model = settings.model_name, "ceoagent is ready");
        Ok(App {
            address,
            new_admin_token: is_new.then(|| admin_token.clone()),
            admin_token,
            grace: settings.shutdown_grace,
            closing,
            tracker,
            prompts,
            queue,
            store,
            http,
            server,
            models: Some(models),
        })
    }

    /// Returns if it turns out that the service can't do its work: then it is to be stopped. Until then it accepts
    /// questions, which keep.
    pub async fn unfit(&mut self) -> StartError {
        let lost = self.store.lost();
        tokio::select! {
            error = self.no_model() => error,
            () = lost.cancelled() => StartError::StoreLost,
        }
    }

    /// Returns if no model answers that the settings name.
    async fn no_model(&mut self) -> StartError {
        if let Some(models) = &mut self.models
            && let Ok(Some(error)) = models.await
        {
            self.models = None;
            return error;
        }
        // They are there, which is found out once.
        self.models = None;
        std::future::pending().await
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The admin token.
    pub fn admin_token(&self) -> &SecretString {
        &self.admin_token
    }

    /// The admin token, if it was made at this start.
    pub fn new_admin_token(&self) -> Option<&SecretString> {
        self.new_admin_token.as_ref()
    }

    /// Reads the prompts anew, all or none of them; what came of it is in the log, and on record if they are new.
    /// `actor` is who wants it.
    pub async fn reload_prompts(&self, actor: &str) {
        let prompts = self.prompts.clone();
        match task::spawn_blocking(move || prompts.reload()).await {
            Ok(Ok(())) => {
                let deed = Deed { actor, action: "prompts_reload", detail: None };
                if let Err(error) = self.queue.note(deed, None).await {
                    warn!(%error, "the prompts are read, but that is not on record");
                }
            }
            // The log has it.
            Ok(Err(_)) => {}
            Err(error) => error!(%error, "reading the prompts failed"),
        }
    }

    /// Drains and stops. Attempts that are under way get the grace; what has not ended then is recovered at the next
    /// start as of unknown outcome. Nothing that was accepted is lost, however this ends.
    pub async fn stop(self) {
        info!(grace_s = self.grace.as_secs(), "stopping: attempts under way may finish");
        self.closing.cancel();
        self.tracker.close();
        if tokio::time::timeout(self.grace, self.tracker.wait()).await.is_err() {
            warn!("the grace is over: attempts still under way end with an unknown outcome");
        }
        self.http.graceful_shutdown(Some(CONNECTION_GRACE));
        match self.server.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => error!(%error, "the HTTP server failed"),
            Err(error) => error!(%error, "the HTTP server failed"),
        }
        if let Err(error) = self.queue.note_history(self.queue.now()).await {
            warn!(%error, "the last minute of the history is lost");
        }
        self.store.close().await;
        info!("stopped");
    }
}

/// Writes what can be read of the jobs in the data folder to `out`, a JSON line each. Needs no service, changes nothing.
///
/// # Errors
/// [`SalvageError`].
pub fn salvage(settings: &Settings, out: &mut dyn Write) -> Result<Summary, SalvageError> {
    salvage::export(&settings.data_dir.join(STORE_FOLDER), out)
}

/// What checks the callers' tokens, if they are set up.
fn tokens(settings: &Settings) -> Result<Option<Tokens>, JwtError> {
    let load = |path| Tokens::load(path, settings.jwt_issuer.as_deref(), settings.jwt_audience.as_deref());
    settings.jwt_keys_file.as_deref().map(load).transpose()
}

/// Takes the address; tells which, as the port may be any.
fn listen(address: SocketAddr) -> Result<(TcpListener, SocketAddr), StartError> {
    let failed = |source| StartError::Listen { address, source };
    let listener = TcpListener::bind(address).map_err(failed)?;
    drop_stalled_readers(&listener);
    let address = listener.local_addr().map_err(failed)?;
    Ok((listener, address))
}

/// Opens the store and makes the client for Claude. Side by side, each on a thread that may block: a cold disk here,
/// hundreds of certificates there.
async fn open(
    settings: &Settings,
    api_key: SecretString,
    clock: &Clock,
    metrics: &Metrics,
) -> Result<(Arc<dyn JobStore>, Claude), StartError> {
    let opening = task::spawn_blocking({
        let config = SledConfig {
            path: settings.data_dir.join(STORE_FOLDER),
            cache_bytes: settings.store_cache_mb << 20,
            max_pending: settings.max_queued_jobs,
            keep_answers: !settings.cache_ttl.is_zero(),
        };
        let (clock, metrics) = (clock.clone(), metrics.clone());
        move || SledStore::open(config, clock, metrics)
    });
    let client = task::spawn_blocking({
        let config = ClientConfig {
            base_url: settings.anthropic_base_url.clone(),
            api_key: Some(api_key),
            auth_token: None,
            custom_headers: None,
            connect_timeout: settings.connect_timeout,
            idle_timeout: settings.idle_timeout,
        };
        move || Claude::new(config)
    });
    let store: Arc<dyn JobStore> = Arc::new(opening.await??);
    Ok((store, client.await??))
}

fn agent_config(settings: &Settings) -> AgentConfig {
    AgentConfig {
        model: settings.model_name.clone(),
        max_tokens: settings.max_tokens,
        effort: settings.effort,
        interactive_effort: settings.interactive_effort,
        count_tokens: settings.count_tokens,
        interactive_timeout: INTERACTIVE_TIMEOUT,
        request_timeout: settings.request_timeout,
    }
}

/// Most calls at once.
fn workers(settings: &Settings) -> usize {
    settings.workers.unwrap_or(MAX_CALLS_AT_ONCE)
}

fn per_minute(settings: &Settings) -> PerMinute {
    PerMinute {
        requests: settings.requests_per_minute,
        input_tokens: settings.input_tokens_per_minute,
        output_tokens: settings.output_tokens_per_minute,
    }
}

/// What the queue goes by; what a question is and may cost, it asks the agent.
fn policy(settings: &Settings, agent: &Agent, limits: &Limits, clock: &Clock) -> Policy {
    let estimate_risk = {
        let (agent, clock) = (agent.clone(), clock.clone());
        Arc::new(move |request: &JobRequest| agent.at_risk(Assignment::of(request, clock.now())))
    };
    let identify = {
        let agent = agent.clone();
        Arc::new(move |request: &JobRequest, is_waited_for, now| agent.question(request, is_waited_for, now))
    };
    Policy {
        workers: workers(settings),
        deadlines_first: settings.claim_order == ClaimOrder::Deadline,
        max_pending_per_caller: settings.max_pending_per_caller,
        ordinary_share: settings.ordinary_share,
        retries: RetryBounds {
            other: settings.max_retries,
            connect: settings.max_connect_retries,
            overload: settings.max_overload_retries,
            invalid_output: settings.max_invalid_retries,
            give_back_for: Duration::from_hours(1) * settings.give_back_hours,
        },
        estimate_risk,
        allowance: {
            let limits = limits.clone();
            Arc::new(move || http::allowance(&limits))
        },
        identify,
        cache_for: settings.cache_ttl,
        idempotency_window: Duration::from_hours(1) * settings.idempotency_hours,
        lease: settings.lease,
        retry_unknown_outcome: settings.on_unknown_outcome == OnUnknownOutcome::Retry,
        keep_finished_for: Duration::from_hours(24) * settings.retention_days,
        max_finished: settings.max_finished_jobs,
    }
}

/// Which callback URLs are taken.
fn callbacks(settings: &Settings) -> Callbacks {
    match (&settings.webhook_secret, settings.webhook_allow_private) {
        (None, _) => Callbacks::Off,
        (Some(_), false) => Callbacks::Public,
        (Some(_), true) => Callbacks::Private,
    }
}

/// The HTTP server, which takes nothing yet.
fn server(
    listener: TcpListener,
    address: SocketAddr,
    max_connections: usize,
    handle: &Handle<SocketAddr>,
) -> Result<Server<SocketAddr, Door>, StartError> {
    let mut server = axum_server::from_tcp(listener)
        .map_err(|source| StartError::Listen { address, source })?
        .acceptor(Door::new(max_connections))
        .handle(handle.clone())
        .http1_only();
    server.http_builder().http1().header_read_timeout(HEADER_TIMEOUT).max_buf_size(MAX_HEAD_BYTES);
    Ok(server)
}

/// The prices in force.
fn prices(settings: &Settings) -> Prices {
    let set = settings.model_prices.iter();
    Prices::new(set.map(|set| (set.model.clone(), set.input.0, set.output.0)))
}

/// Warns of list prices that may have changed: costs and the budget would be wrong.
fn warn_of_prices(agent: &Agent, clock: &Clock) {
    let today = clock.now().date();
    for (model, as_of) in agent.outdated_prices(&today) {
        warn!(
            model, %as_of,
            "the list price of this model is more than {MAX_AGE_DAYS} days old: check it, and set it in MODEL_PRICES"
        );
    }
}

/// The daily budget, if one is set and can be kept to.
fn budget(
    settings: &Settings,
    agent: &Agent,
    clock: &Clock,
    store: &Arc<dyn JobStore>,
) -> Result<Option<Budget>, StartError> {
    let nanodollars = settings.daily_cost_budget_usd.map(|budget| budget.0);
    let daily = Daily { tokens: settings.daily_token_budget, nanodollars };
    if daily == Daily::default() {
        return Ok(None);
    }
    if let Some(model) = agent.unpriced_model().filter(|_| nanodollars.is_some()) {
        return Err(StartError::NoPrice { model: model.to_owned() });
    }
    let shortest = agent.at_risk(Assignment::of(&JobRequest::default(), clock.now()));
    let usual = Need {
        tokens: shortest.input_tokens.saturating_add(shortest.output_tokens),
        nanodollars: shortest.nanodollars,
    };
    if let Some(tokens) = daily.tokens.filter(|tokens| *tokens < usual.tokens) {
        return Err(StartError::BudgetTooSmall {
            setting: "DAILY_TOKEN_BUDGET",
            given: tokens.to_string(),
            need: format!("{} tokens", usual.tokens),
        });
    }
    let need = usual.nanodollars.unwrap_or(0);
    if let Some(nanodollars) = daily.nanodollars.filter(|nanodollars| *nanodollars < need) {
        return Err(StartError::BudgetTooSmall {
            setting: "DAILY_COST_BUDGET_USD",
            given: format!("{:.2}", dollars(nanodollars)),
            need: format!("{:.2} US dollars", dollars(need)),
        });
    }
    let spent = {
        let store = Arc::clone(store);
        Arc::new(move |day| store.spent(day))
    };
    Ok(Some(Budget::new(daily, usual, clock.clone(), spent)))
}

/// Has the kernel end connections whose clients read nothing, which no time-out of the server sees: its answer has been
/// made and waits to be written. A connection has its listener's setting, see tcp(7).
#[cfg(target_os = "linux")]
fn drop_stalled_readers(listener: &TcpListener) {
    let millis = u32::try_from(STALL_TIMEOUT.as_millis()).unwrap_or(u32::MAX);
    if let Err(error) = rustix::net::sockopt::set_tcp_user_timeout(listener, millis) {
        warn!(%error, "clients that read nothing of their answer can't be cut off");
    }
}

/// Other systems have no such setting.
#[cfg(not(target_os = "linux"))]
fn drop_stalled_readers(_: &TcpListener) {}

/// The admin token that a service keeps in `data_dir`, if there is one that this user may read.
pub fn kept_admin_token(data_dir: &Path) -> Option<SecretString> {
    let text = fs::read_to_string(admin_token_file(data_dir)).ok()?;
    Some(text.trim()).filter(|token| !token.is_empty()).map(Into::into)
}

/// Where a service with this data folder keeps its admin token, unless ADMIN_TOKEN is set.
pub fn admin_token_file(data_dir: &Path) -> PathBuf {
    data_dir.join(TOKEN_FILE)
}

/// An origin as browsers send it.
fn read_origin(text: &str) -> Result<HeaderValue, StartError> {
    let text = text.trim();
    let host = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://")).unwrap_or_default();
    let is_origin = !host.is_empty() && !host.contains(['/', '*', '@', '?', '#']);
    let value = HeaderValue::from_str(text).ok().filter(|_| is_origin);
    value.ok_or_else(|| StartError::Origin(text.to_owned()))
}

/// Makes the data folder for its owner alone, and tells if one that is there is open to everybody. Whether it can be used
/// at all is the store's to tell.
fn guard_folder(path: &Path) {
    if !path.exists() {
        let _ = fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    } else if let Some(mode) = mode_if_open(path) {
        warn!(
            "the data folder {} can be read by every user of this machine (mode {mode:o}): chmod 700",
            path.display()
        );
    }
    let dotenv = Path::new(".env");
    if let Some(mode) = mode_if_open(dotenv) {
        warn!("the settings file .env can be read by every user of this machine (mode {mode:o}): chmod 600 .env");
    }
}

/// The permissions of a path that everybody may read.
fn mode_if_open(path: &Path) -> Option<u32> {
    let mode = fs::metadata(path).ok()?.permissions().mode() & 0o777;
    (mode & 0o004 != 0).then_some(mode)
}

/// The token of the file; makes both if there is none. Tells whether it is new.
fn keep_token(path: &Path) -> Result<(SecretString, bool), StartError> {
    let failed = |source| StartError::Token { path: path.to_owned(), source };
    match fs::read_to_string(path) {
        Ok(text) if !text.trim().is_empty() => Ok((text.trim().into(), false)),
        Ok(_) => Err(failed(io::Error::new(io::ErrorKind::InvalidData, "the file is empty"))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let token = SecretString::from(Alphanumeric.sample_string(&mut rand::rng(), TOKEN_LENGTH));
            let mut file =
                fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(failed)?;
            writeln!(file, "{}", token.expose_secret()).and_then(|()| file.sync_all()).map_err(failed)?;
            Ok((token, true))
        }
        Err(error) => Err(failed(error)),
    }
}
