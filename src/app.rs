//! The composition root: builds the parts from the settings, starts them in order, drains them in order.
//!
//! Start: prompts → listener → store → orphans of a crash are ended → workers, sweeper → HTTP. Whatever can fail fails
//! before the first request is taken. Stop: no more requests and claims → attempts get SHUTDOWN_GRACE → store closed.

use std::{
    fs,
    io::{self, Write},
    net::{SocketAddr, TcpListener},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use axum_server::{Handle, accept::NoDelayAcceptor};
use rand::distr::{Alphanumeric, SampleString};
use secrecy::{ExposeSecret, SecretString};
use tokio::task::{self, JoinError, JoinHandle};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{error, info, warn};

use crate::{
    agent::{Agent, AgentConfig},
    claude::{Claude, ClientConfig, ClientError},
    clock::Clock,
    config::{ClaimOrder, OnUnknownOutcome, Settings},
    dashboard,
    http::{self, Api},
    job::{JobRequest, callback::Callbacks},
    limits::{Limits, PerMinute},
    metrics::Metrics,
    prompts::{PromptError, Prompts},
    queue::{Policy, Queue, QueueError, retry::RetryBounds},
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

/// How much later than the client of Claude a worker gives an attempt up: the client knows what came of the answer, and
/// what it cost.
const ATTEMPT_GRACE: Duration = Duration::from_secs(2);

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
    /// Webhooks can't be sent.
    #[error(transparent)]
    Webhooks(#[from] WebhookError),
    /// A part of the start panicked.
    #[error("the start failed: {0}")]
    Panicked(#[from] JoinError),
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
    grace: Duration,
    closing: CancellationToken,
    tracker: TaskTracker,
    prompts: Prompts,
    store: Arc<dyn JobStore>,
    http: Handle<SocketAddr>,
    server: JoinHandle<io::Result<()>>,
}

impl App {
    /// Starts the service. It is ready when this returns.
    ///
    /// # Errors
    /// [`StartError`]; nothing keeps running then.
    pub async fn start(settings: &Settings, clock: Clock) -> Result<App, StartError> {
        let prompts = Prompts::load(&settings.prompts_dir, &settings.prompt_version)?;
        let api_key = settings.anthropic_api_key.clone().ok_or(StartError::NoKey)?;
        let address = SocketAddr::new(settings.host, settings.port);
        let listener = TcpListener::bind(address).map_err(|source| StartError::Listen { address, source })?;
        drop_stalled_readers(&listener);
        let address = listener.local_addr().map_err(|source| StartError::Listen { address, source })?;
        let metrics = Metrics::new();
        // Side by side, each on a thread that may block: a cold disk here, hundreds of certificates there.
        let opening = task::spawn_blocking({
            let config = SledConfig {
                path: settings.data_dir.join(STORE_FOLDER),
                cache_bytes: settings.store_cache_mb << 20,
                max_pending: settings.max_queued_jobs,
            };
            let (clock, metrics) = (clock.clone(), metrics.clone());
            move || SledStore::open(config, clock, metrics)
        });
        let client = task::spawn_blocking({
            let config = ClientConfig {
                base_url: settings.anthropic_base_url.clone(),
                api_key,
                connect_timeout: settings.connect_timeout,
                idle_timeout: settings.idle_timeout,
                request_timeout: settings.request_timeout,
            };
            move || Claude::new(config)
        });
        let store: Arc<dyn JobStore> = Arc::new(opening.await??);
        let claude = client.await??;
        let (admin_token, is_new) = match &settings.admin_token {
            Some(token) => (token.clone(), false),
            None => keep_token(&settings.data_dir.join(TOKEN_FILE))?,
        };
        let closing = CancellationToken::new();
        let config = AgentConfig {
            model: settings.model_name.clone(),
            max_tokens: settings.max_tokens,
            effort: settings.effort,
            interactive_effort: settings.interactive_effort,
        };
        let agent = Agent::new(claude, prompts.clone(), config);
        let estimate_risk = {
            let (agent, clock) = (agent.clone(), clock.clone());
            Arc::new(move |request: &JobRequest| agent.at_risk(request, clock.now()))
        };
        let policy = Policy {
            workers: settings.workers,
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
            idempotency_window: Duration::from_hours(1) * settings.idempotency_hours,
            lease: settings.lease,
            retry_unknown_outcome: settings.on_unknown_outcome == OnUnknownOutcome::Retry,
            keep_finished_for: Duration::from_hours(24) * settings.retention_days,
            max_finished: settings.max_finished_jobs,
        };
        let queue = Queue::new(Arc::clone(&store), clock.clone(), policy, metrics.clone(), closing.clone());
        let orphans = queue.recover().await.map_err(StartError::Recovery)?;
        if orphans > 0 {
            warn!(orphans, "attempts of the last run ended with an unknown outcome");
        }
        let disk = DiskWatch {
            folder: settings.data_dir.join(STORE_FOLDER),
            floor_bytes: settings.min_free_disk_mb << 20,
            metrics: metrics.clone(),
        };
        disk.look(&queue).await;

        let per_minute = PerMinute {
            requests: settings.requests_per_minute,
            input_tokens: settings.input_tokens_per_minute,
            output_tokens: settings.output_tokens_per_minute,
        };
        let limits = Limits::new(per_minute, settings.workers);
        let tracker = TaskTracker::new();
        let worker = Worker {
            queue: queue.clone(),
            limits: limits.clone(),
            agent,
            attempt_timeout: settings.request_timeout + ATTEMPT_GRACE,
            metrics: metrics.clone(),
            closing: closing.clone(),
        };
        worker.start_pool(settings.workers, &tracker);
        tracker.spawn(sweeper::run(queue.clone(), closing.clone()));
        tracker.spawn(disk.run(queue.clone(), closing.clone()));

        let callbacks = match (&settings.webhook_secret, settings.webhook_allow_private) {
            (None, _) => Callbacks::Off,
            (Some(_), false) => Callbacks::Public,
            (Some(_), true) => Callbacks::Private,
        };
        if let Some(secret) = &settings.webhook_secret {
            let webhooks = Webhooks::new(queue.clone(), secret, callbacks, metrics.clone())?;
            tracker.spawn(webhooks.run(closing.clone()));
        }

        let api = Api {
            queue: queue.clone(),
            limits,
            prompts: prompts.clone(),
            metrics,
            admin_token: admin_token.clone(),
            callbacks,
            max_query_length: settings.max_query_length,
        };
        let router = http::router(api, |api| dashboard::router(api, clock, settings.max_query_length));
        let http = Handle::new();
        let mut server = axum_server::from_tcp(listener)
            .map_err(|source| StartError::Listen { address, source })?
            .acceptor(NoDelayAcceptor::new())
            .handle(http.clone())
            .http1_only();
        server.http_builder().http1().header_read_timeout(HEADER_TIMEOUT);
        let server = tokio::spawn(server.serve(router.into_make_service()));
        info!(%address, model = settings.model_name, workers = settings.workers, "ceoagent is ready");
        Ok(App {
            address,
            new_admin_token: is_new.then_some(admin_token),
            grace: settings.shutdown_grace,
            closing,
            tracker,
            prompts,
            store,
            http,
            server,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The admin token, if it was made at this start.
    pub fn new_admin_token(&self) -> Option<&SecretString> {
        self.new_admin_token.as_ref()
    }

    /// Reads the prompts anew, all or none of them; what came of it is in the log.
    pub async fn reload_prompts(&self) {
        let prompts = self.prompts.clone();
        if let Err(error) = task::spawn_blocking(move || prompts.reload()).await {
            error!(%error, "reading the prompts failed");
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
    let text = fs::read_to_string(data_dir.join(TOKEN_FILE)).ok()?;
    Some(text.trim()).filter(|token| !token.is_empty()).map(Into::into)
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
