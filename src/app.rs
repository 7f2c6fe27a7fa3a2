//! The composition root: builds the parts from the settings, starts them in order, drains them in order.
//!
//! Start: prompts → listener → store → keys, webhooks, server → orphans of a crash are ended → workers, sweeper → HTTP.
//! Whatever can fail fails before the first job is claimed and the first request taken, but for the models, which are
//! looked up meanwhile. Stop: no more requests and claims → attempts get SHUTDOWN_GRACE → store closed.
//!
//! - `door`: the listener and its connections
//! - `machine`: what the machine allows
//! - `model_check`: whether the models exist
//! - `parts`: each part's configuration, and the constants that are not settings
//! - `secrets`: the data folder and the secrets that are generated
//! - `upkeep`: the schema is compiled ahead, old prices are noted

mod door;
mod machine;
mod model_check;
mod parts;
mod secrets;
mod upkeep;

use std::{
    io::{self, Write},
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use axum_server::Handle;
use secrecy::SecretString;
use tokio::task::{self, JoinError, JoinHandle};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{error, info, warn};

use self::upkeep::Upkeep;
pub use self::{
    parts::{Tuning, is_in_use},
    secrets::{admin_token_file, stored_admin_token},
};
use crate::{
    agent::Agent,
    auth::{self, Auth, AuthError, jwt::JwtError},
    claude::{Claude, ClientError},
    clock::Clock,
    config::{
        ConfigError, Settings,
        environment::{self, GatewayAccess},
    },
    dashboard,
    digest::ModelKey,
    http::{self, Api, failures::Failures, memory::MemoryBudget, observe::RefusalLog},
    limits::Limits,
    metrics::Metrics,
    prompts::{PromptError, Prompts},
    queue::{Queue, QueueError, audit::Deed},
    store::{
        JobStore,
        sled::{
            OpenError, SledStore,
            salvage::{self, SalvageError, Summary},
        },
    },
    sweeper::{self, disk::DiskWatch},
    webhook::{WebhookError, Webhooks, secrets::Secrets},
    worker::Worker,
};

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
    /// A secret can't be read or stored.
    #[error("the {what} can't be stored in {}: {source}. Make DATA_DIR writable, or set {setting}", path.display())]
    Secret { what: &'static str, setting: &'static str, path: PathBuf, source: io::Error },
    /// Other users can read the file of a secret.
    #[error(
        "other users can read {} (mode {mode:o}) and may know the secret in it. Delete the file to get a new one at the \
         next start, or run: chmod 600 {}",
        path.display(),
        path.display()
    )]
    OpenSecret { path: PathBuf, mode: u32 },
    /// The stored admin token can't be used.
    #[error("the admin token in {} is not safe: {source}; or delete the file to get a new one at the next start", path.display())]
    StoredToken { path: PathBuf, source: ConfigError },
    /// The callers' keys can't be used.
    #[error(transparent)]
    Keys(#[from] AuthError),
    /// Callers' tokens can't be checked.
    #[error(transparent)]
    Tokens(#[from] JwtError),
    /// A text is not an origin.
    #[error("CORS_ORIGINS: {0:?} is not an origin. Use scheme and host only, for example https://app.example.")]
    Origin(String),
    /// Webhooks can't be sent.
    #[error(transparent)]
    Webhooks(#[from] WebhookError),
    /// A part of the start panicked.
    #[error("the start failed: {0}")]
    Panicked(#[from] JoinError),
    /// Every model that the settings name is retired, or never was.
    #[error(
        "MODEL_NAME: {models} can't be used (retired, or unknown to Claude). Set a current model, for example {current}"
    )]
    NoModel {
        /// As they are set.
        models: String,
        /// Those that are known to be current.
        current: String,
    },
    /// A budget that not even one call fits into.
    #[error("DAILY_BUDGET: {given} is too small, because one call may need {need}. Raise it, or lower MAX_TOKENS")]
    BudgetTooSmall { given: String, need: String },
    /// Money is bounded, and a model's price is not known.
    #[error(
        "DAILY_BUDGET in USD needs the price of {model}, which is not known. Set it in MODEL_PRICES, for example \
         {model}=2/10 (US dollars per million input and output tokens), or choose another model"
    )]
    NoPrice { model: String },
    /// The store failed for good.
    #[error("the job store failed repeatedly and can't be recovered by this process; start the service again")]
    StoreLost,
    /// There is no key.
    #[error(
        "ANTHROPIC_API_KEY is not set, nor ANTHROPIC_AUTH_TOKEN. Set one of them in the environment or in .env to serve; or \
         try the service without a key, against a simulated Claude: ceoagent demo"
    )]
    NoKey,
}

impl StartError {
    /// Whether a person must change a setting or a file before the service can start; else another start may succeed.
    pub fn is_of_settings(&self) -> bool {
        match self {
            StartError::Prompts(_)
            | StartError::Claude(_)
            | StartError::OpenSecret { .. }
            | StartError::StoredToken { .. }
            | StartError::Keys(_)
            | StartError::Tokens(_)
            | StartError::Origin(_)
            | StartError::Webhooks(_)
            | StartError::NoModel { .. }
            | StartError::BudgetTooSmall { .. }
            | StartError::NoPrice { .. }
            | StartError::NoKey => true,
            StartError::Listen { .. }
            | StartError::Store(_)
            | StartError::Recovery(_)
            | StartError::Secret { .. }
            | StartError::Panicked(_)
            | StartError::StoreLost => false,
        }
    }
}

/// Checks of the settings what can be checked without a start.
///
/// # Errors
/// As [`App::start`].
pub fn check(settings: &Settings) -> Result<(), StartError> {
    parts::tokens(settings)?;
    parts::cors_origins(settings)?;
    auth::of_settings(settings.api_keys.as_ref())?;
    access_to_claude(settings).map(drop)
}

/// The credentials for Claude, besides the key of the settings. One of them must be set.
fn access_to_claude(settings: &Settings) -> Result<GatewayAccess, StartError> {
    let access = environment::gateway_access();
    let has_key = settings.anthropic_api_key.is_some() || access.auth_token.is_some();
    if has_key { Ok(access) } else { Err(StartError::NoKey) }
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
    auth: Arc<Auth>,
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
        App::start_tuned(settings, Tuning::default(), clock).await
    }

    /// Starts the service with other constants than an operator gets.
    ///
    /// # Errors
    /// As [`App::start`].
    pub async fn start_tuned(settings: &Settings, tuning: Tuning, clock: Clock) -> Result<App, StartError> {
        let prompts = Prompts::load(&settings.prompts_dir)?;
        let tokens = parts::tokens(settings)?;
        let cors_origins = parts::cors_origins(settings)?;
        let access = access_to_claude(settings)?;
        let (listener, address) = door::listen(SocketAddr::new(settings.host, settings.port))?;
        secrets::guard_folder(&settings.data_dir);
        let metrics = Metrics::new();
        let (store, claude) = open(settings, access, &clock, &metrics).await?;
        let (admin_token, is_new) = match &settings.admin_token {
            Some(token) => (token.clone(), false),
            None => secrets::admin_token(&settings.data_dir)?,
        };
        let fallbacks = settings.model_name.iter().skip(1).cloned().collect();
        let prices = parts::prices(settings);
        let agent = Agent::new(claude.clone(), prompts.clone(), parts::agent(settings), fallbacks, prices);
        let budget = parts::budget(settings, &agent, &clock, &store)?;
        let workers = parts::workers(settings);
        let limits = {
            let agent = agent.clone();
            let in_use = Arc::new(move || ModelKey::of(agent.model_in_use()));
            Limits::new(settings.rate_limits.unwrap_or_default(), workers, budget, in_use)
        };
        let closing = CancellationToken::new();
        let policy = parts::policy(settings, tuning, &agent, &limits, &clock);
        let queue = Queue::new(Arc::clone(&store), clock.clone(), policy, metrics.clone(), closing.clone());
        let is_key_required = settings.requires_api_key();
        let keys = settings.api_keys.as_ref();
        let auth = Auth::new(admin_token.clone(), keys, tokens, is_key_required, queue.clone()).map(Arc::new)?;
        let callbacks = parts::callbacks(settings);
        let secrets = match &settings.webhook_secret {
            Some(listed) => Secrets::of_setting(listed, queue.clone())?,
            None => Secrets::derived(&secrets::webhook_root(&settings.data_dir)?, queue.clone())?,
        };
        let webhooks = Webhooks::new(queue.clone(), secrets, callbacks.clone(), metrics.clone())?;
        let http = Handle::new();
        let server = door::server(listener, address, machine::max_connections(), metrics.clone(), &http)?;
        let orphans = queue.recover().await.map_err(StartError::Recovery)?;
        if orphans > 0 {
            warn!(orphans, "attempts of the last run ended with an unknown outcome");
        }
        while queue.end_overdue().await.map_err(StartError::Recovery)? > 0 {}

        // Nothing can fail any more: what runs from here on would outlive a start that does.
        announce_access(auth.is_open(), address, tuning.is_simulated);
        let folder = parts::store_folder(settings);
        let disk = DiskWatch::new(folder, parts::STORE_FILE, tuning.has_disk_floor, metrics.clone());
        disk.look(&queue).await;
        let tracker = TaskTracker::new();
        let worker = Worker {
            queue: queue.clone(),
            limits: limits.clone(),
            agent: agent.clone(),
            metrics: metrics.clone(),
            closing: closing.clone(),
        };
        let upkeep =
            Upkeep { queue: queue.clone(), limits: limits.clone(), agent: agent.clone(), closing: closing.clone() };
        upkeep.load();
        worker.start_pool(workers, &tracker);
        tracker.spawn(upkeep.run(tuning.warm_up_after.filter(|_| !tuning.is_simulated)));
        tracker.spawn(sweeper::run(queue.clone(), closing.clone()));
        tracker.spawn(disk.run(queue.clone(), closing.clone()));
        tracker.spawn(sweeper::history::run(queue.clone(), closing.clone()));
        tracker.spawn(webhooks.clone().run(closing.clone()));
        let api = Api {
            queue: queue.clone(),
            limits,
            models: agent.known_models().clone(),
            notes: {
                let agent = agent.clone();
                Arc::new(move || upkeep::notes(&agent, clock.now()))
            },
            prompts: prompts.clone(),
            metrics,
            auth: Arc::clone(&auth),
            memory: MemoryBudget::new(machine::body_budget_bytes()),
            refusals: RefusalLog::default(),
            failures: Failures::default(),
            trusted_proxies: settings.trusted_proxies.clone().into(),
            cors_origins,
            callbacks,
            webhooks,
            max_query_length: settings.max_query_length,
        };
        let shown = dashboard::Shown {
            max_query_length: settings.max_query_length,
            is_simulated: tuning.is_simulated,
            is_open: !is_key_required,
            is_exposed: !is_key_required && !address.ip().is_loopback(),
        };
        let pages_queue = queue.clone();
        let router = http::router(api, |api| dashboard::router(api, pages_queue, shown));
        let server = tokio::spawn(server.serve(router.into_make_service_with_connect_info::<SocketAddr>()));
        let models = tokio::spawn({
            let closing = closing.clone();
            async move {
                let check = closing.run_until_cancelled(model_check::check(&claude, &agent));
                check.await.and_then(Result::err)
            }
        });
        info!(%address, model = settings.model(), "ceoagent is ready");
        Ok(App {
            address,
            new_admin_token: is_new.then(|| admin_token.clone()),
            admin_token,
            grace: settings.shutdown_grace,
            closing,
            tracker,
            prompts,
            auth,
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

    /// Reloads the prompts, all or none of them, and the keys of JWTs. The log has the outcome, and the audit log new
    /// prompts. `actor` is who wants it.
    pub async fn reload(&self, actor: &str) {
        let (prompts, auth) = (self.prompts.clone(), Arc::clone(&self.auth));
        let reload = move || {
            auth.reload();
            prompts.reload()
        };
        match task::spawn_blocking(reload).await {
            Ok(Ok(())) => {
                let deed = Deed { actor, action: "prompts_reload", detail: None };
                if let Err(error) = self.queue.note(deed, None).await {
                    warn!(%error, "the prompts are reloaded, but the audit log has no entry");
                }
            }
            // The log has it.
            Ok(Err(_)) => {}
            Err(error) => error!(%error, "failed to reload the prompts"),
        }
    }

    /// Drains and stops. Attempts that are under way get the grace; what has not ended then is recovered at the next
    /// start as of unknown outcome. Nothing that was accepted is lost, however this ends.
    pub async fn stop(self) {
        info!(grace_s = self.grace.as_secs(), "stopping: running attempts may finish");
        self.closing.cancel();
        self.tracker.close();
        if tokio::time::timeout(self.grace, self.tracker.wait()).await.is_err() {
            warn!("SHUTDOWN_GRACE is over: running attempts end with an unknown outcome");
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
    salvage::export(&parts::store_folder(settings), out)
}

/// Opens the store and makes the client for Claude. Side by side, each on a thread that may block: a cold disk here,
/// hundreds of certificates there.
async fn open(
    settings: &Settings,
    access: GatewayAccess,
    clock: &Clock,
    metrics: &Metrics,
) -> Result<(Arc<dyn JobStore>, Claude), StartError> {
    let opening = task::spawn_blocking({
        let config = parts::store(settings);
        let (clock, metrics) = (clock.clone(), metrics.clone());
        move || SledStore::open(config, clock, metrics)
    });
    let client = task::spawn_blocking({
        let config = parts::client(settings, access);
        move || Claude::new(config)
    });
    let store: Arc<dyn JobStore> = Arc::new(opening.await??);
    Ok((store, client.await??))
}

/// Says who may use the service, loudly where that is everybody.
fn announce_access(is_open: bool, address: SocketAddr, is_simulated: bool) {
    if !is_open {
        info!("callers need an API key or a JWT");
    } else if !address.ip().is_loopback() && !is_simulated {
        warn!(
            "OPEN TO EVERYONE who can reach {address}: they can ask questions at your cost. To require API keys, start it \
             with REQUIRE_API_KEY=true; `ceoagent keys create NAME` makes a key. To accept only this machine, set \
             HOST=127.0.0.1"
        );
    } else {
        info!("callers need no API key (REQUIRE_API_KEY=true changes that)");
    }
}
