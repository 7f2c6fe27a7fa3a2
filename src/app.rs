//! The composition root: builds the parts from the settings, starts them in order, drains them in order.
//!
//! Start: prompts → listener → store → keys, webhooks, server → orphans of a crash are ended → dispatcher, sweeper → HTTP.
//! Everything that can fail comes before the first claim and the first request, except for the lookup of the models. Of the
//! nodes of a database one has a dispatcher; another begins to dispatch when that one ends.
//! Stop: a node beside others is not ready, and accepts for a moment → no more requests and claims → another node becomes the
//! dispatcher → attempts get SHUTDOWN_GRACE → store closed.
//!
//! - `door`: the listener and its connections
//! - `duties`: what one node does for all
//! - `error`: why the service can't start
//! - `fitness`: whether the dispatcher may give calls to this node
//! - `letters`: what nodes tell each other of waiting clients and of calls
//! - `machine`: what the machine allows
//! - `memo`: what the dispatcher knows, for the other nodes
//! - `model_check`: whether the models exist
//! - `parts`: each part's configuration, and the constants that are not settings
//! - `secrets`: the data folder and the secrets that are generated
//! - `transfer`: offline exports, imports and moves
//! - `upkeep`: the schema is compiled ahead, old prices are noted

mod door;
mod duties;
pub mod error;
mod fitness;
mod letters;
mod machine;
mod memo;
mod model_check;
mod parts;
mod secrets;
pub mod transfer;
mod upkeep;

use std::{
    io::{self, Write},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use axum_server::Handle;
use secrecy::SecretString;
use tokio::{
    sync::mpsc,
    task::{self, JoinHandle},
};
use tokio_util::{
    sync::CancellationToken,
    task::{AbortOnDropHandle, TaskTracker},
};
use tracing::{error, info, warn};

use self::{duties::Duties, error::StartError, letters::Letters, memo::Memo, upkeep::Upkeep};
pub use self::{
    parts::{Tuning, is_in_use},
    secrets::{admin_token_file, stored_admin_token},
};
use crate::{
    agent::Agent,
    audit::{AuditAction, AuditLog},
    auth::{self, Auth},
    claude::Claude,
    clock::Clock,
    config::{
        Settings,
        environment::{self, GatewayAccess},
    },
    dashboard::{self, Sessions},
    dispatch::assigned,
    http::{self, api::Api, caps::Caps, failures::Failures, memory::MemoryBudget, memos::Memos, observe::RefusalLog},
    ledger::Spending,
    limits::Limits,
    metrics::Metrics,
    prompts::{PromptError, Prompts},
    queue::{Operations, Queue},
    redis::Redis,
    registry::{Live, Registry, Unavailable},
    store::{
        Store,
        archive::{self, Writer},
        postgres::{Member, PostgresStore},
        sled::{
            SledStore,
            salvage::{self, SalvageError, Summary},
        },
    },
    sweeper,
    webhook::Webhooks,
    worker::Worker,
};

const CONNECTION_GRACE: Duration = Duration::from_secs(2);

/// How long a node beside others still accepts after it was told to stop. Load balancers see meanwhile that it is not ready, and
/// Kubernetes hears that it is to send it nothing more.
const NOTICE: Duration = Duration::from_secs(5);

/// How long a node that stops waits for its last claims before it leaves the rest to another.
const CLAIM_GRACE: Duration = Duration::from_secs(3);

/// Checks the settings as far as that is possible without a start.
pub fn check(settings: &Settings) -> Result<(), StartError> {
    parts::tokens(settings)?;
    auth::of_settings(settings.api_keys.as_ref())?;
    access_to_claude(settings).map(drop)
}

/// The credentials for Claude besides the key of the settings.
fn access_to_claude(settings: &Settings) -> Result<GatewayAccess, StartError> {
    let access = environment::gateway_access();
    let has_key = settings.anthropic_api_key.is_some() || access.auth_token.is_some();
    if has_key { Ok(access) } else { Err(StartError::NoKey) }
}

pub struct App {
    address: SocketAddr,
    /// A token that was made at this start, to be shown once.
    new_admin_token: Option<SecretString>,
    admin_token: SecretString,
    grace: Duration,
    stopping: CancellationToken,
    closing: CancellationToken,
    /// Follows attempts to their end.
    tracker: TaskTracker,
    /// Follows claims until they are stored.
    claims: TaskTracker,
    /// Works with the other nodes, until all attempts have ended.
    _together: Option<AbortOnDropHandle<()>>,
    prompts: Prompts,
    auth: Arc<Auth>,
    operations: Operations,
    memo: Option<Arc<Memo>>,
    audit: Arc<AuditLog>,
    store: Arc<dyn Store>,
    database: Option<Arc<PostgresStore>>,
    http: Handle<SocketAddr>,
    server: JoinHandle<io::Result<()>>,
    /// Receives an error if no model of the settings can be used, or this node can't take over from another.
    faults: mpsc::Receiver<StartError>,
}

impl App {
    /// Starts the service. It is ready when this returns.
    pub async fn start(settings: &Settings, clock: Clock) -> Result<App, StartError> {
        App::start_tuned(settings, Tuning::default(), clock).await
    }

    pub async fn start_tuned(settings: &Settings, tuning: Tuning, clock: Clock) -> Result<App, StartError> {
        let prompts = Prompts::load(&settings.prompts_dir)?;
        let tokens = parts::tokens(settings)?;
        let access = access_to_claude(settings)?;
        let (listener, address) = door::listen(SocketAddr::new(settings.host, settings.port))?;
        secrets::guard_folder(&settings.data_dir);
        let metrics = Metrics::new();
        let redis = parts::redis(settings, &metrics).await?;
        let name = parts::node(settings, address);
        let (store, database, claude) = open(settings, (&name, tuning), access, &clock, &metrics).await?;
        let seat = database.as_ref().map(|database| database.seat());
        if let Some(origin) = archive::marked(&*store).await.map_err(Unavailable::from)? {
            store.close().await;
            return Err(StartError::HalfMoved { origin });
        }
        let (admin_token, is_new) = secrets::admin_token(settings)?;
        let agent = parts::agent(settings, claude, prompts.clone());
        let spending = Spending::default();
        let budget = parts::budget(settings, &agent.planner, &clock, spending.clone())?;
        let limits = parts::limits(settings, &agent.planner, budget);
        let (stopping, closing) = (CancellationToken::new(), CancellationToken::new());
        let nodes = parts::nodes(database.as_deref());
        let policy = parts::policy(settings, tuning, address, &agent.planner, &limits, &clock, nodes);
        let policy = parts::shared(policy, redis.as_ref());
        let queue = Queue::open(Arc::clone(&store), clock.clone(), policy, metrics.clone(), spending, closing.clone());
        let queue = queue.await.map_err(StartError::Recovery)?;
        let node = settings.database_url.is_some().then(|| parts::node(settings, address));
        let registry = Registry::new(Arc::clone(&store) as _);
        if settings.database_url.is_some() {
            prompts.share(registry.clone()).await?;
        }
        let audit = Arc::new(AuditLog::new(Arc::clone(&store) as _, clock.clone(), node));
        let keys = settings.api_keys.as_ref();
        let needs_key = settings.requires_api_key();
        let auth = Auth::load(admin_token.clone(), keys, tokens, needs_key, registry.clone(), clock.clone()).await?;
        let auth = Arc::new(auth);
        let webhooks = webhooks(settings, &queue, &store, registry.clone(), &clock, &metrics)?;
        let http = Handle::new();
        let server = door::server(listener, address, machine::max_connections(), metrics.clone(), &http)?;
        let sessions = Sessions::new(registry.clone(), clock.clone());
        let caps = Arc::new(Caps::new(limits.clone(), registry.clone()));
        caps.reload(caps.prefix()).await?;
        let upkeep = Arc::new(Upkeep {
            operations: queue.operations(),
            registry: registry.clone(),
            ledger: Arc::clone(&store) as _,
            limits: limits.clone(),
            agent: agent.clone(),
            closing: closing.clone(),
            warm_up_after: tuning.warm_up_after.filter(|_| !tuning.is_simulated),
        });
        let memo = seat.is_some().then(|| Arc::new(memo(&queue, &registry, &limits, &agent, &clock)));
        let worker = Worker {
            queue: queue.work(),
            limits: limits.clone(),
            agent: agent.clone(),
            metrics: metrics.clone(),
            closing: closing.clone(),
        };
        let (tracker, claims, operations) = (TaskTracker::new(), TaskTracker::new(), queue.operations());
        let (fault, faults) = mpsc::channel(1);
        let duties = Duties {
            worker: worker.clone(),
            calls: parts::workers(settings),
            webhooks: webhooks.clone(),
            upkeep: Arc::clone(&upkeep),
            memo: memo.clone(),
            tracker: tracker.clone(),
            claims: claims.clone(),
        };
        if let Some(disk) = parts::disk_watch(settings, tuning, &metrics) {
            disk.look(&worker.queue).await;
            tracker.spawn(disk.run(worker.queue.clone(), closing.clone()));
        }
        let mut copies = operations.live();
        copies.extend([Arc::clone(&auth) as Arc<dyn Live>, Arc::clone(&caps) as _, upkeep as _]);
        copies.push(Arc::new(prompts.clone()));
        copies.extend(memo.clone().map(|memo| memo as _));
        duties::recover(&worker.queue).await.map_err(StartError::Recovery)?;
        duties.begin(seat).await?;

        // From here on nothing fails: tasks that run already would outlive a failed start.
        announce_access(auth.is_open(), address, tuning.is_simulated);
        tracker.spawn(sweeper::history::run(operations.clone(), closing.clone()));
        let together = database.as_ref().zip(memo.as_ref()).map(|(database, memo)| {
            let (database, memo, tracker) = (Arc::clone(database), Arc::clone(memo), tracker.clone());
            let letters = Letters { queue: queue.clone(), node: name, database, memo };
            let (worker, work) = (worker.clone(), queue.work());
            let offering = fitness::offer_calls(Arc::clone(&letters.database), prompts.clone());
            AbortOnDropHandle::new(tokio::spawn(async move {
                tokio::join!(assigned::run(worker, tracker), work.follow_own_node(), letters.run(), offering);
            }))
        });
        let following = closing.clone();
        tracker.spawn(async move { following.run_until_cancelled(registry.follow(copies, &metrics)).await });
        if let Some(redis) = &redis {
            let relaying = queue.work();
            tracker.spawn(async move { relaying.relay_texts().await });
            tracker.spawn(Arc::clone(redis).run(closing.clone()));
        }
        let stored = (&store, database.as_ref(), &audit);
        let shared = (webhooks, redis, memo.as_ref());
        let api = api(settings, &queue, (&worker, &stopping), &prompts, (&auth, caps), stored, shared);
        let shown = parts::shown(settings, tuning, address);
        let router = http::router(api, |api| dashboard::router(api, sessions, shown));
        let server = tokio::spawn(server.serve(router.into_make_service_with_connect_info::<SocketAddr>()));
        check_models(agent, closing.clone(), fault);
        let url = settings.public_url.as_ref().map_or_else(|| format!("http://{address}"), ToString::to_string);
        info!(%address, url, model = settings.model(), "ceoagent is ready");
        let new_admin_token = is_new.then(|| admin_token.clone());
        let grace = settings.shutdown_grace;
        Ok(App {
            address,
            new_admin_token,
            admin_token,
            grace,
            stopping,
            closing,
            tracker,
            claims,
            _together: together,
            prompts,
            auth,
            operations,
            memo,
            audit,
            store,
            database,
            http,
            server,
            faults,
        })
    }

    /// Returns when the service can't do its work and is to be stopped.
    pub async fn unfit(&mut self) -> StartError {
        let lost = self.store.lost();
        tokio::select! {
            Some(error) = self.faults.recv() => error,
            () = lost.cancelled() => StartError::StoreLost,
        }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn admin_token(&self) -> &SecretString {
        &self.admin_token
    }

    pub fn new_admin_token(&self) -> Option<&SecretString> {
        self.new_admin_token.as_ref()
    }

    /// Reloads the prompts and the keys of JWTs. The outcome is logged; the audit log names `actor`.
    pub async fn reload(&self, actor: &str) {
        let auth = Arc::clone(&self.auth);
        if let Err(error) = task::spawn_blocking(move || auth.reload_tokens()).await {
            error!(%error, "failed to reload the keys of JWTs");
        }
        match self.prompts.reload().await {
            Ok(()) => {
                let action = AuditAction { actor, action: "prompts_reload", detail: None };
                if let Err(error) = self.audit.record(action, None).await {
                    warn!(%error, "the prompts are reloaded, but the audit log has no entry");
                }
            }
            Err(error @ PromptError::NotShared(_)) => error!(%error, "the old prompts stay in use"),
            // It is logged already.
            Err(_) => {}
        }
    }

    /// Drains and stops. Attempts that have not ended after the grace are recovered at the next start, with an unknown
    /// outcome.
    pub async fn stop(self) {
        info!(grace_s = self.grace.as_secs(), "stopping: running attempts may finish");
        self.stopping.cancel();
        let has_others = |database: &Arc<PostgresStore>| database.nodes().ready().len() > 1;
        if self.database.as_ref().is_some_and(has_others) {
            _ = tokio::time::timeout(NOTICE, self.store.lost().cancelled()).await;
        }
        self.closing.cancel();
        self.tracker.close();
        if let Some(database) = &self.database {
            self.claims.close();
            if tokio::time::timeout(CLAIM_GRACE, self.claims.wait()).await.is_err() {
                warn!("the last claims take long to store");
            }
            if let Some(memo) = &self.memo {
                memo.leave().await;
            }
            // From now on another node hands out the calls.
            database.drain().await;
        }
        if self.store.lost().is_cancelled() {
            warn!("running attempts end with an unknown outcome, because their end could not be stored");
        } else if tokio::time::timeout(self.grace, self.tracker.wait()).await.is_err() {
            warn!("SHUTDOWN_GRACE is over: running attempts end with an unknown outcome");
        }
        self.http.graceful_shutdown(Some(CONNECTION_GRACE));
        if let Err(error) = self.server.await.unwrap_or_else(|panic| Err(io::Error::other(panic))) {
            error!(%error, "the HTTP server failed");
        }
        if let Err(error) = self.operations.history().record(self.operations.now(), self.operations.counts()).await {
            warn!(%error, "the last minute of the history is lost");
        }
        self.store.close().await;
        info!("stopped");
    }
}

/// Writes what can be read of the jobs in the data folder. Needs no service, changes nothing.
pub fn salvage<W: Write>(settings: &Settings, out: &mut Writer<W>) -> Result<Summary, SalvageError> {
    salvage::export(&parts::store_folder(&settings.data_dir), out)
}

/// Makes the schema of a database, or upgrades it. Returns what was done, in words.
pub async fn migrate(url: &SecretString) -> Result<String, StartError> {
    Ok(PostgresStore::migrate(url).await?.to_string())
}

/// Opens the store and makes the client for Claude, at the same time, as both block: on the disk, and on hundreds of
/// certificates.
async fn open(
    settings: &Settings,
    (name, tuning): (&str, Tuning),
    access: GatewayAccess,
    clock: &Clock,
    metrics: &Metrics,
) -> Result<(Arc<dyn Store>, Option<Arc<PostgresStore>>, Claude), StartError> {
    let client = task::spawn_blocking({
        let config = parts::client(settings, access);
        move || Claude::new(config)
    });
    let (clock, metrics) = (clock.clone(), metrics.clone());
    if let Some(url) = &settings.database_url {
        let common = parts::common_settings(settings);
        let member = Member { name: Some(name), common: &common, lease: tuning.lease, ..Member::COMMAND };
        let store = Arc::new(PostgresStore::open(url, &member, clock, metrics).await?);
        return Ok((Arc::clone(&store) as _, Some(store), client.await??));
    }
    let config = parts::store(&settings.data_dir, !settings.cache_ttl.is_zero());
    let store = task::spawn_blocking(move || SledStore::open(config, clock, metrics)).await??;
    Ok((Arc::new(store), None, client.await??))
}

fn memo(queue: &Queue, registry: &Registry, limits: &Limits, agent: &Agent, clock: &Clock) -> Memo {
    Memo::new(registry.clone(), queue.operations(), limits.clone(), agent.planner.models.clone(), clock.clone())
}

fn webhooks(
    settings: &Settings,
    queue: &Queue,
    store: &Arc<dyn Store>,
    registry: Registry,
    clock: &Clock,
    metrics: &Metrics,
) -> Result<Webhooks, StartError> {
    let secrets = secrets::webhook_secrets(settings, registry, clock.clone())?;
    let (callbacks, public_url) = (parts::callbacks(settings), settings.public_url.clone());
    let outbox = Arc::clone(store) as _;
    Webhooks::new(queue.clone(), outbox, secrets, callbacks, public_url, metrics.clone()).map_err(StartError::Webhooks)
}

fn api(
    settings: &Settings,
    queue: &Queue,
    (worker, stopping): (&Worker, &CancellationToken),
    prompts: &Prompts,
    (auth, caps): (&Arc<Auth>, Arc<Caps>),
    (store, database, audit): (&Arc<dyn Store>, Option<&Arc<PostgresStore>>, &Arc<AuditLog>),
    (webhooks, redis, memo): (Webhooks, Option<Arc<Redis>>, Option<&Arc<Memo>>),
) -> Api {
    Api {
        queue: queue.clone(),
        stopping: stopping.clone(),
        operations: queue.operations(),
        ledger: Arc::clone(store) as _,
        store: Arc::clone(store),
        audit: Arc::clone(audit),
        limits: worker.limits.clone(),
        caps,
        models: worker.agent.planner.models.clone(),
        notes: {
            let (planner, queue, redis) = (worker.agent.planner.clone(), queue.clone(), redis.clone());
            let database = database.cloned();
            Arc::new(move || {
                let mut notes = upkeep::notes(&planner, queue.now());
                notes.extend(redis.as_ref().and_then(|redis| upkeep::redis_note(redis)));
                notes.extend(database.as_ref().and_then(|database| upkeep::settings_note(database)));
                notes
            })
        },
        dispatcher_missing_since: {
            let memo = memo.cloned();
            Arc::new(move || memo.as_ref().and_then(|memo| memo.missing_since()))
        },
        prompts: prompts.clone(),
        metrics: worker.metrics.clone(),
        auth: Arc::clone(auth),
        memory: MemoryBudget::new(machine::body_budget_bytes()),
        refusals: RefusalLog::default(),
        failures: Failures::new(redis.map(|redis| redis as _)),
        trusted_proxies: settings.trusted_proxies.clone().into(),
        cors_origins: settings.cors_origins.clone(),
        public_url: settings.public_url.clone(),
        callbacks: parts::callbacks(settings),
        webhooks,
        max_query_length: settings.max_query_length,
        memos: Memos::default(),
    }
}

/// Looks the models up in the background: the service accepts questions meanwhile.
fn check_models(agent: Agent, closing: CancellationToken, faults: mpsc::Sender<StartError>) {
    tokio::spawn(async move {
        if let Some(Err(error)) = closing.run_until_cancelled(model_check::check(&agent)).await {
            let _ = faults.send(error).await;
        }
    });
}

/// Says who may use the service, as a warning if that is everybody.
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
