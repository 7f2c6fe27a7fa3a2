//! The configuration of each part, from the settings, and the constants that no operator needs to set.

use std::{
    borrow::Cow,
    fs::{File, TryLockError},
    net::SocketAddr,
    num::NonZeroU32,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use secrecy::ExposeSecret;

use super::{error::StartError, machine};
use crate::{
    agent::{
        Agent,
        plan::{AgentConfig, Assignment, Planner},
    },
    auth::jwt::{JwtError, Tokens},
    claude::{Claude, ClientConfig, price::Prices},
    clock::Clock,
    config::{INTERACTIVE_TIMEOUT, OnUnknownOutcome, Settings, environment::GatewayAccess},
    dashboard::Shown,
    digest::ModelKey,
    http,
    job::{IdempotencyKey, JobRequest, Owner, callback::Callbacks},
    ledger::{Spending, dollars},
    limits::{
        Limits, MAX_CALLS_AT_ONCE,
        budget::{Budget, Need},
    },
    metrics::Metrics,
    prompts::Prompts,
    queue::{Policy, SharedRates, TextRelay, retry::RetryBounds},
    redis::Redis,
    store::{Alone, LEASE, Nodes, postgres::PostgresStore, sled::SledConfig},
    sweeper::disk::DiskWatch,
};

/// The node of a service on its own disk.
const OWN_NODE: &str = "embedded";

const STORE_FOLDER: &str = "queue";

/// The store's file in it, as sled names it.
const STORE_FILE: &str = "db";

/// Time to connect to the Claude API: a handshake takes less than a second, also across the world.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long an answer may be silent, before and while it streams: a model may think in silence.
const STREAM_IDLE_TIMEOUT: Duration = Duration::from_secs(90);

/// A question that comes within this time of the start compiles the schema itself, and nothing is spent on a warm-up.
const WARM_UP_AFTER: Duration = Duration::from_secs(10);

/// One in so many calls is for jobs that no client waits for, however many wait: so that none starves.
const BACKGROUND_SHARE: u32 = 5;

/// One caller, by name or by network, may have this part of MAX_QUEUED_JOBS, so that no caller alone fills the queue.
const CALLER_SHARE: usize = 10;

/// Jobs for later may have this part of MAX_QUEUED_JOBS: they hold their places for up to a year.
const SCHEDULED_SHARE: usize = 2;

/// How long after it was due a job may still wait for rate limits or a paused queue: a long weekend.
const MAX_RELEASE: Duration = Duration::from_hours(72);

/// Retries after a lost connection, for each of MAX_RETRIES: nothing was sent and nothing billed, and an outage of
/// minutes should fail no job.
const CONNECT_RETRIES: u32 = 10;

/// Retries of an overloaded API, for each of MAX_RETRIES: not billed, and over within minutes.
const OVERLOAD_RETRIES: u32 = 3;

/// Retries after an answer that can't be read, each billed: a repair prompt says what was wrong. More would not help.
const INVALID_RETRIES: u32 = 1;

/// Set by tests and load tests only.
#[derive(Clone, Copy, Debug)]
pub struct Tuning {
    /// Shown on the pages.
    pub is_simulated: bool,
    /// Jobs whose clients wait go first, by deadline; else all go in the order of submission, for comparison.
    pub deadlines_first: bool,
    pub lease: Duration,
    /// Refuse questions while the disk is almost full.
    pub has_disk_floor: bool,
    /// When the schema of memos is compiled, if no question has come until then; never if `None`.
    pub warm_up_after: Option<Duration>,
}

impl Default for Tuning {
    fn default() -> Tuning {
        Tuning {
            is_simulated: false,
            deadlines_first: true,
            lease: LEASE,
            has_disk_floor: true,
            warm_up_after: Some(WARM_UP_AFTER),
        }
    }
}

/// Whether a service uses this data folder at the moment: the store's file is locked.
pub fn is_in_use(data_dir: &Path) -> bool {
    let file = File::open(data_dir.join(STORE_FOLDER).join(STORE_FILE));
    file.is_ok_and(|file| matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)))
}

/// Whether there is a store in this data folder.
pub(super) fn has_store(data_dir: &Path) -> bool {
    data_dir.join(STORE_FOLDER).join(STORE_FILE).exists()
}

pub(super) fn store_folder(data_dir: &Path) -> PathBuf {
    data_dir.join(STORE_FOLDER)
}

pub(super) fn store(data_dir: &Path, keep_answers: bool) -> SledConfig {
    SledConfig { path: store_folder(data_dir), cache_bytes: machine::store_cache_bytes(), keep_answers }
}

pub(super) fn client(settings: &Settings, access: GatewayAccess) -> ClientConfig {
    ClientConfig {
        base_url: settings.anthropic_base_url.clone(),
        api_key: settings.anthropic_api_key.clone(),
        auth_token: access.auth_token,
        custom_headers: access.custom_headers,
        connect_timeout: CONNECT_TIMEOUT,
        // A call that may take only a few seconds may not be silent for as long.
        idle_timeout: settings.request_timeout.map_or(STREAM_IDLE_TIMEOUT, |most| STREAM_IDLE_TIMEOUT.min(most / 2)),
    }
}

/// What nodes of a database must have in common. Another budget or rate would hold from the moment another node is the dispatcher.
pub(super) fn common_settings(settings: &Settings) -> Vec<(&'static str, Cow<'_, str>)> {
    let secrets = [
        ("ADMIN_TOKEN", &settings.admin_token),
        ("WEBHOOK_SECRET", &settings.webhook_secret),
        ("ANTHROPIC_API_KEY", &settings.anthropic_api_key),
        ("API_KEYS", &settings.api_keys),
    ];
    let secrets = secrets.map(|(name, value)| (name, value.as_ref().map_or("", |value| value.expose_secret()).into()));
    let bounds = [
        ("DAILY_BUDGET", format!("{:?}", settings.daily_budget).into()),
        ("RATE_LIMITS", format!("{:?}", settings.rate_limits).into()),
    ];
    secrets.into_iter().chain(bounds).collect()
}

pub(super) fn agent(settings: &Settings, claude: Claude, prompts: Prompts) -> Agent {
    let config = AgentConfig {
        model: settings.model().to_owned(),
        allowed_models: settings.allowed_models.clone(),
        max_tokens: settings.max_tokens,
        effort: settings.effort,
        interactive_timeout: INTERACTIVE_TIMEOUT,
        request_timeout: settings.request_timeout,
    };
    let set = settings.model_prices.iter();
    let prices = Prices::new(set.map(|set| (set.model.clone(), set.input.0, set.output.0)));
    let fallbacks = settings.model_name.iter().skip(1).cloned().collect();
    Agent { claude, planner: Planner::new(prompts, config, fallbacks, prices) }
}

pub(super) fn limits(settings: &Settings, planner: &Planner, budget: Option<Budget>) -> Limits {
    let in_use = {
        let models = planner.models.clone();
        Arc::new(move || ModelKey::of(models.pick(&[])))
    };
    Limits::new(settings.rate_limits.unwrap_or_default(), workers(settings), budget, in_use)
}

pub(super) fn shown(settings: &Settings, tuning: Tuning, address: SocketAddr) -> Shown {
    let is_open = !settings.requires_api_key();
    Shown {
        max_query_length: settings.max_query_length,
        is_simulated: tuning.is_simulated,
        is_open,
        is_exposed: is_open && !address.ip().is_loopback(),
    }
}

pub(super) fn workers(settings: &Settings) -> usize {
    settings.workers.unwrap_or(MAX_CALLS_AT_ONCE)
}

/// What nodes share besides the database. The admin token is the same on all of them.
pub(super) async fn redis(settings: &Settings, metrics: &Metrics) -> Result<Option<Arc<Redis>>, StartError> {
    let (Some(url), Some(secret)) = (&settings.redis_url, &settings.admin_token) else { return Ok(None) };
    Ok(Some(Redis::open(url, secret, metrics.clone()).await?))
}

/// The policy of a node that shares quotas and the text of attempts.
pub(super) fn shared(policy: Policy, redis: Option<&Arc<Redis>>) -> Policy {
    Policy {
        shared_rates: redis.map(|redis| Arc::clone(redis) as Arc<dyn SharedRates>),
        text_relay: redis.map(|redis| Arc::clone(redis) as Arc<dyn TextRelay>),
        ..policy
    }
}

/// The name of this node, which no other live node has.
pub(super) fn node(settings: &Settings, address: SocketAddr) -> String {
    match settings.database_url {
        Some(_) => format!("{}:{}", machine::host_name(), address.port()),
        None => OWN_NODE.to_owned(),
    }
}

/// The nodes that can make calls.
pub(super) fn nodes(database: Option<&PostgresStore>) -> Arc<dyn Nodes> {
    let alone = || Arc::new(Alone::new(Owner::new(OWN_NODE, rand::random()))) as _;
    database.map_or_else(alone, PostgresStore::nodes)
}

pub(super) fn policy(
    settings: &Settings,
    tuning: Tuning,
    address: SocketAddr,
    planner: &Planner,
    limits: &Limits,
    clock: &Clock,
    nodes: Arc<dyn Nodes>,
) -> Policy {
    let estimate_risk = {
        let (planner, clock) = (planner.clone(), clock.clone());
        Arc::new(move |request: &JobRequest| planner.at_risk(Assignment::of(request, clock.now())))
    };
    let dedup_key = {
        let planner = planner.clone();
        Arc::new(move |request: &JobRequest, is_waited_for, now| planner.question(request, is_waited_for, now))
    };
    Policy {
        node: node(settings, address),
        nodes,
        workers: workers(settings),
        deadlines_first: tuning.deadlines_first,
        max_pending: settings.max_queued_jobs,
        max_scheduled: settings.max_queued_jobs.div_ceil(SCHEDULED_SHARE),
        max_pending_per_caller: settings.max_queued_jobs.div_ceil(CALLER_SHARE),
        submits_per_minute: NonZeroU32::new(settings.submits_per_minute),
        shared_rates: None,
        text_relay: None,
        background_share: BACKGROUND_SHARE,
        retries: RetryBounds {
            other: settings.max_retries,
            connect: settings.max_retries * CONNECT_RETRIES,
            overload: settings.max_retries * OVERLOAD_RETRIES,
            invalid_output: settings.max_retries.min(INVALID_RETRIES),
            give_back_for: MAX_RELEASE,
        },
        estimate_risk,
        allowance: {
            let limits = limits.clone();
            Arc::new(move |lane| http::api::allowance(&limits, lane))
        },
        dedup_key,
        cache_for: settings.cache_ttl,
        idempotency_window: IdempotencyKey::WINDOW,
        lease: tuning.lease,
        retry_unknown_outcome: settings.on_unknown_outcome == OnUnknownOutcome::Retry,
        keep_finished_for: settings.retention.age,
        max_finished: settings.retention.jobs,
    }
}

/// The watch of the data folder's disk. A database watches its own.
pub(super) fn disk_watch(settings: &Settings, tuning: Tuning, metrics: &Metrics) -> Option<DiskWatch> {
    let is_own = settings.database_url.is_none();
    is_own.then(|| DiskWatch::new(store_folder(&settings.data_dir), STORE_FILE, tuning.has_disk_floor, metrics.clone()))
}

pub(super) fn tokens(settings: &Settings) -> Result<Option<Tokens>, JwtError> {
    settings.jwt_auth.as_ref().map(|jwt| Tokens::load(&jwt.keys, &jwt.issuer, &jwt.audience)).transpose()
}

pub(super) fn callbacks(settings: &Settings) -> Callbacks {
    Callbacks::new(settings.webhook_allow_private.clone())
}

/// The daily budget, if one is set.
pub(super) fn budget(
    settings: &Settings,
    planner: &Planner,
    clock: &Clock,
    spending: Spending,
) -> Result<Option<Budget>, StartError> {
    let Some(daily) = settings.daily_budget else { return Ok(None) };
    if let Some(model) = planner.unpriced_model().filter(|_| daily.cost.is_some()) {
        return Err(StartError::NoPrice { model: model.to_owned() });
    }
    let shortest = planner.at_risk(Assignment::of(&JobRequest::default(), clock.now()));
    let usual = Need::from(shortest);
    let check = |given: Option<u64>, need: u64, in_words: fn(u64) -> String| match given {
        Some(given) if given < need => Err(StartError::BudgetTooSmall { given: in_words(given), need: in_words(need) }),
        _ => Ok(()),
    };
    check(daily.tokens, usual.tokens, |tokens| format!("{tokens} tokens"))?;
    check(daily.cost.map(|cost| cost.0), usual.nanodollars, |cost| format!("{:.2} USD", dollars(cost)))?;
    Ok(Some(Budget::new(daily, usual, clock.clone(), spending)))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::{claude::Claude, clock::Timestamp, job::Depth, prompts::Prompts};

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        settings: Settings,
    }

    #[test]
    fn by_default_no_limit_cuts_45_seconds_of_thinking_or_a_full_memo_at_a_slow_pace() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let settings = Line::parse_from(["test", "--anthropic-api-key=sk-test"]).settings;
        let prompts = Prompts::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("prompts")).unwrap();
        let config = client(&settings, GatewayAccess { auth_token: None, custom_headers: None });
        let (thinking, slow) = (Duration::from_secs(45), Duration::from_secs(30 + 3_700 / 40));
        assert!(config.idle_timeout > thinking);
        let agent = agent(&settings, Claude::new(config).unwrap(), prompts);
        let request = JobRequest { query: "Buy or build?".to_owned(), ..JobRequest::default() };
        let plan = agent.planner.plan(Assignment::of(&request, Timestamp::from_millis(1_800_000_000_000))).unwrap();
        assert_eq!(plan.depth, Depth::Full);
        assert!(plan.call.time_limit >= thinking + slow, "{:?}", plan.call.time_limit);
        assert!(plan.call.max_tokens >= 3_700 + 45 * 90, "{}", plan.call.max_tokens);
    }
}
