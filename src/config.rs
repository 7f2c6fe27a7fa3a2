//! Every setting, once: its flag, environment name, default, bounds and whether it is a secret.
//!
//! A setting is taken from its flag, else its environment variable, else `.env` in the working folder, else its default.
//! The flag is the variable's name in lower case: `MAX_RETRIES` is `--max-retries`. An empty variable counts as unset,
//! because that is what `X=${X:-}` in a compose file leaves behind. The commands call, in this order,
//! [`dotenv::load`], [`environment::tidy`], [`finish`] on the command before it parses, and [`Settings::validate`].
//!
//! Only what an operator decides is a setting. What the service can find out (memory, open files, the account's limits)
//! it finds out; what nobody sets is a constant beside the code that uses it. Checks that need another part stay there:
//! whether the folders can be used, the prompts are valid and the model exists.

pub mod dotenv;
pub mod environment;
mod error;
pub mod placeholder;
pub mod proxy;
#[cfg(test)]
mod tests;
pub mod text;
pub mod values;

use std::{env, fmt::Display, net::IpAddr, ops::RangeInclusive, path::PathBuf, str::FromStr, time::Duration};

use base64::{Engine, prelude::BASE64_STANDARD};
use clap::{Arg, ArgAction, Args, Command, ValueEnum};
use secrecy::{ExposeSecret, SecretString};

pub use self::error::ConfigError;
use self::{
    environment::Variable,
    values::{DailyBudget, JwtAuth, LogLevel, ModelPrice, Network, Origin, RateCaps, Retention, is_visible_ascii},
};

/// The OpenTelemetry specification's variable for where traces are sent.
const OTLP_ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
/// A shorter admin token could be guessed: 16 random characters of base64 are 96 bits.
const MIN_ADMIN_TOKEN_CHARS: usize = 16;

/// Headings of the settings in the help. `.env.example` has only the first group, `-h` only what a first run may need of it.
pub const SETTINGS: &str = "Settings";
pub const FURTHER: &str = "Further settings";

/// The settings. The documentation of a field is also its help text and its comment in `.env.example`.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = SETTINGS)]
pub struct Settings {
    /// Key of the Claude API; set it in the environment or in .env, because a flag shows in the process list
    #[arg(long, env, hide_env_values = true, value_parser = secret)]
    pub anthropic_api_key: Option<SecretString>,

    /// Claude model, or several with commas: the next one is used while one is overloaded or retired
    // Jobs that name a model use only that one.
    #[arg(long, env, default_value = "claude-sonnet-5-5", value_delimiter = ',', value_parser = model_name)]
    pub model_name: Vec<String>,

    /// IP address to listen on; 127.0.0.1 accepts connections from this machine only
    #[arg(long, env, default_value = "0.0.0.0", value_parser = ip_address)]
    pub host: IpAddr,

    /// Port to listen on; 0 takes any free port
    #[arg(long, env, default_value = "8000", value_parser = within(0..=u16::MAX))]
    pub port: u16,

    /// Log details, including questions and answers (true or false)
    // `--debug` alone is enough; a value needs `=`, so that the flag never swallows a question that follows it.
    #[arg(
        long, env, default_value = "false", value_parser = boolean, action = ArgAction::Set, num_args = 0..=1,
        require_equals = true, default_missing_value = "true"
    )]
    pub debug: bool,

    /// Longest accepted question, in characters (1 to 100000)
    #[arg(long, env, default_value = "10000", value_parser = within(1..=100_000_usize), hide_short_help = true)]
    pub max_query_length: usize,

    /// Seconds that one call to Claude may take; if unset, 60 if a client waits, else MAX_TOKENS / 40 + 30 (1 to 3600)
    #[arg(long, env, value_parser = seconds(1..=3600), hide_short_help = true)]
    pub request_timeout: Option<Duration>,

    /// Retries of a failed analysis; lost connections and an overloaded API are retried more often (0 to 20)
    #[arg(long, env, default_value = "3", value_parser = within(0..=20_u32), hide_short_help = true)]
    pub max_retries: u32,

    /// Folder for the queue and the generated secrets; each running service needs its own
    #[arg(long, env, default_value = "data")]
    pub data_dir: PathBuf,

    /// PostgreSQL in place of the queue in DATA_DIR, for several nodes: postgres://USER:PASSWORD@HOST/DATABASE; needs
    /// ADMIN_TOKEN and WEBHOOK_SECRET
    #[arg(long, env, hide_env_values = true, value_parser = secret, help_heading = FURTHER)]
    pub database_url: Option<SecretString>,

    /// Redis or Valkey beside DATABASE_URL: the nodes count quotas together, and any node streams any job;
    /// redis://USER:PASSWORD@HOST:PORT/DATABASE, or rediss:// with TLS
    #[arg(long, env, hide_env_values = true, value_parser = secret, help_heading = FURTHER)]
    pub redis_url: Option<SecretString>,

    /// Folder of the prompts, with one folder for each version; the highest version is the default
    #[arg(long, env, default_value = "prompts", help_heading = FURTHER)]
    pub prompts_dir: PathBuf,

    /// Log level: error, warn, info or debug, or a filter such as warn,ceoagent=debug; info if unset
    #[arg(long, env, value_parser = values::log_level)]
    pub log_level: Option<LogLevel>,

    /// Format of log lines: text or json
    #[arg(long, env, default_value = "text", ignore_case = true, hide_possible_values = true, hide_short_help = true)]
    pub log_format: LogFormat,

    /// URL of the Claude API or of a gateway
    // Checked by `validate`, and hidden in the help, because a mistaken one may hold a password.
    #[arg(long, env, hide_env_values = true, default_value = "https://api.anthropic.com", help_heading = FURTHER)]
    pub anthropic_base_url: String,

    /// Most tokens of one answer, including thinking (1 to 128000)
    // The upper bound is the largest that any model takes.
    #[arg(long, env, default_value = "16000", value_parser = within(1..=128_000_u32), help_heading = FURTHER)]
    pub max_tokens: u32,

    /// How hard Claude thinks: low, medium, high, xhigh, max, none (not sent), or auto (low if a client waits, else high)
    #[arg(long, env, default_value = "auto", ignore_case = true, hide_possible_values = true, hide_short_help = true)]
    pub effort: Effort,

    /// Most calls to Claude at the same time; if unset, as many as the rate limits allow (1 to 1024)
    #[arg(long, env, value_parser = within(1..=1024_usize))]
    pub workers: Option<usize>,

    /// Caps per minute, for example `1000 requests, 2000000 input tokens, 400000 output tokens`; if unset, the account's
    /// limits, as Claude reports them
    #[arg(long, env, value_parser = values::rate_caps, hide_short_help = true)]
    pub rate_limits: Option<RateCaps>,

    /// Most to spend a day (UTC), for example `25 USD`, `2000000 tokens` or both with a comma; no limit if unset
    #[arg(long, env, value_parser = values::daily_budget)]
    pub daily_budget: Option<DailyBudget>,

    /// Prices of models that the built-in table lacks: MODEL=INPUT/OUTPUT in US dollars per million tokens, with commas
    #[arg(long, env, value_delimiter = ',', value_parser = values::model_price, help_heading = FURTHER)]
    pub model_prices: Vec<ModelPrice>,

    /// Models that a question may name, besides those of MODEL_NAME, with commas; if unset, every model with a price
    #[arg(long, env, value_delimiter = ',', value_parser = model_name, help_heading = FURTHER)]
    pub allowed_models: Vec<String>,

    /// Most jobs in the queue; one caller may have a tenth of them (1 to 10000000)
    #[arg(long, env, default_value = "100000", value_parser = within(1..=10_000_000_usize), help_heading = FURTHER)]
    pub max_queued_jobs: usize,

    /// How long finished jobs stay, and how many of them
    #[arg(long, env, default_value = "30 days, 100000 jobs", value_parser = values::retention, hide_short_help = true)]
    pub retention: Retention,

    /// Seconds for which an identical question gets the same answer; 0 calls Claude each time (0 to 2592000)
    #[arg(long, env, default_value = "0", value_parser = seconds(0..=2_592_000), help_heading = FURTHER)]
    pub cache_ttl: Duration,

    /// What to do with a call that a crash interrupted: retry (it may be billed twice) or fail
    #[arg(long, env, default_value = "retry", ignore_case = true, hide_possible_values = true, help_heading = FURTHER)]
    pub on_unknown_outcome: OnUnknownOutcome,

    /// Seconds that running calls get to finish when the service stops (0 to 600)
    #[arg(long, env, default_value = "25", value_parser = seconds(0..=600), help_heading = FURTHER)]
    pub shutdown_grace: Duration,

    /// Whether callers need an API key or a JWT (true or false); if unset, true if API_KEYS or JWT_AUTH is set
    #[arg(
        long, env, value_parser = boolean, action = ArgAction::Set, num_args = 0..=1, require_equals = true,
        default_missing_value = "true"
    )]
    pub require_api_key: Option<bool>,

    /// API keys as name:key, name:scope:key or name:sha256:hash, with commas; `ceoagent keys create` makes more
    #[arg(long, env, hide_env_values = true, value_parser = secret, help_heading = FURTHER)]
    pub api_keys: Option<SecretString>,

    /// Accept JWTs, for example `keys=jwks.json, issuer=https://login.example, audience=ceoagent`; the file holds a JWKS,
    /// a public key in PEM form or a shared secret
    #[arg(long, env, value_parser = values::jwt_auth, help_heading = FURTHER)]
    pub jwt_auth: Option<JwtAuth>,

    /// Token for the admin pages and commands, 16 or more characters; if unset, it is made and stored in DATA_DIR
    #[arg(long, env, hide_env_values = true, value_parser = secret, hide_short_help = true)]
    pub admin_token: Option<SecretString>,

    /// Most questions and retries per minute of one caller, or of one address if callers have no keys; 0 is no limit (0 to
    /// 1000000)
    #[arg(long, env, default_value = "0", value_parser = within(0..=1_000_000_u32), hide_short_help = true)]
    pub submits_per_minute: u32,

    /// Proxies whose X-Forwarded-For is trusted: IP addresses or networks, with commas, for example 10.0.0.0/8
    #[arg(long, env, value_delimiter = ',', value_parser = values::network, help_heading = FURTHER)]
    pub trusted_proxies: Vec<Network>,

    /// Origins whose web pages may call the API, with commas, for example https://app.example
    #[arg(long, env, value_delimiter = ',', value_parser = values::origin, hide_short_help = true)]
    pub cors_origins: Vec<Origin>,

    /// Address by which browsers reach the service, for example https://ceo.example: for links, for secure cookies, and
    /// accepted from browsers while no key is required
    #[arg(long, env, value_parser = values::origin, help_heading = FURTHER)]
    pub public_url: Option<Origin>,

    /// Secrets that sign all webhooks, with commas: whsec_ and 24 to 64 bytes in base64; if unset, each caller has its own
    #[arg(long, env, hide_env_values = true, value_parser = secret, help_heading = FURTHER)]
    pub webhook_secret: Option<SecretString>,

    /// Private networks that webhooks may be sent to, also without TLS, with commas, for example 10.0.0.0/8
    #[arg(long, env, value_delimiter = ',', value_parser = values::network, help_heading = FURTHER)]
    pub webhook_allow_private: Vec<Network>,
}

/// How hard Claude thinks, and so how long an answer takes and what it costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, strum::IntoStaticStr)]
#[strum(serialize_all = "lowercase")]
pub enum Effort {
    /// High, and low where a client waits: a quick answer is worth more to it.
    Auto,
    /// Not sent: the API's default, and for gateways and models that know no effort.
    None,
    Low,
    Medium,
    High,
    Xhigh,
    Max,
}

impl Effort {
    pub fn resolved(self, is_waited_for: bool) -> Effort {
        match self {
            Effort::Auto if is_waited_for => Effort::Low,
            Effort::Auto => Effort::High,
            level => level,
        }
    }

    pub fn word(self) -> Option<&'static str> {
        match self {
            Effort::Auto | Effort::None => None,
            level => Some(level.into()),
        }
    }
}

/// Where a command finds the service that it talks to. Not a setting of the service itself.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Service")]
pub struct ServiceAddress {
    /// URL of the service, for example https://memos.example.com. Default: HOST and PORT on this machine
    #[arg(long, env = "CEOAGENT_URL", value_name = "URL")]
    pub url: Option<String>,

    /// API key or admin token. Default for a service on this machine: ADMIN_TOKEN, or the one in DATA_DIR
    #[arg(long, env = "CEOAGENT_TOKEN", value_name = "TOKEN", hide_env_values = true, value_parser = secret)]
    pub token: Option<SecretString>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    Text,
    Json,
}

/// What to do with a job whose attempt a crash interrupted: it may have been billed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OnUnknownOutcome {
    Retry,
    Fail,
}

/// How long a call may take where a client waits, unless REQUEST_TIMEOUT is set.
pub const INTERACTIVE_TIMEOUT: Duration = Duration::from_secs(60);

impl Settings {
    /// Checks values that a parse error of the command line must not show.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if let Some(key) = self.anthropic_api_key.as_ref().map(ExposeSecret::expose_secret) {
            let name = "ANTHROPIC_API_KEY";
            if !is_visible_ascii(key) {
                let allowed =
                    "a key as Anthropic's console shows it: no blanks, line breaks or other special characters";
                return Err(ConfigError::SecretValue { name, allowed });
            }
            if placeholder::is_placeholder(key) {
                let instead = "the key from Anthropic's console, https://platform.claude.com";
                return Err(ConfigError::Placeholder { name, instead });
            }
        }
        if let Some(token) = &self.admin_token {
            check_admin_token(token)?;
        }
        if let Some(secret) = &self.webhook_secret
            && !is_webhook_secrets(secret.expose_secret())
        {
            let allowed = "whsec_ followed by 24 to 64 bytes in base64, or up to 5 of these with commas: make one with `echo \
                           whsec_$(openssl rand -base64 32)`";
            return Err(ConfigError::SecretValue { name: "WEBHOOK_SECRET", allowed });
        }
        if self.database_url.is_some() {
            // Made by a node alone, they would differ from those of the others.
            for (name, is_set, make) in [
                ("ADMIN_TOKEN", self.admin_token.is_some(), "openssl rand -hex 16"),
                ("WEBHOOK_SECRET", self.webhook_secret.is_some(), "echo whsec_$(openssl rand -base64 32)"),
            ] {
                if !is_set {
                    return Err(ConfigError::NeededByCluster { name, make });
                }
            }
        }
        if let Some(url) = &self.redis_url {
            check_redis_url(url)?;
            // A node that was meant to share a database would accept jobs on a disk of its own.
            if self.database_url.is_none() {
                return Err(ConfigError::RedisAlone);
            }
        }
        let secret = "a URL without user name and password; the key goes to ANTHROPIC_API_KEY";
        let allowed =
            "a URL that starts with http:// or https://, without ? and #, for example https://api.anthropic.com";
        check_url("ANTHROPIC_BASE_URL", &self.anthropic_base_url, allowed, secret)
    }

    pub fn model(&self) -> &str {
        self.model_name.first().map_or("", String::as_str)
    }

    pub fn requires_api_key(&self) -> bool {
        self.require_api_key.unwrap_or(self.api_keys.is_some() || self.jwt_auth.is_some())
    }
}

pub fn check_admin_token(token: &SecretString) -> Result<(), ConfigError> {
    let (name, token) = ("ADMIN_TOKEN", token.expose_secret());
    if placeholder::is_guessable(token) {
        let instead = "a random token, for example of `openssl rand -hex 16`,";
        return Err(ConfigError::Placeholder { name, instead });
    }
    if token.len() < MIN_ADMIN_TOKEN_CHARS || !is_visible_ascii(token) {
        const { assert!(MIN_ADMIN_TOKEN_CHARS == 16, "the message says so") };
        let allowed = "16 or more visible ASCII characters without blanks: make one with `openssl rand -hex 16`";
        return Err(ConfigError::SecretValue { name, allowed });
    }
    Ok(())
}

/// Where traces are sent by OTLP over HTTP. All OTEL_ variables are OpenTelemetry's, and not settings of this service.
pub fn otlp_endpoint() -> Result<Option<String>, ConfigError> {
    let Some(endpoint) = env::var(OTLP_ENDPOINT).ok().filter(|endpoint| !endpoint.is_empty()) else { return Ok(None) };
    let secret = "a URL without user name and password; secrets go to OTEL_EXPORTER_OTLP_HEADERS";
    let allowed = "a URL that starts with http:// or https://, without ? and #, for example http://localhost:4318";
    check_url(OTLP_ENDPOINT, &endpoint, allowed, secret)?;
    Ok(Some(endpoint))
}

/// What holds for the settings in `command` and all its subcommands: variables that are set but empty count as unset, and
/// the further settings have no place in the short help.
pub fn finish(command: Command) -> Command {
    let finish_arg = |arg: Arg| {
        let is_further = arg.get_help_heading() == Some(FURTHER);
        let is_empty = arg.get_env().and_then(env::var_os).is_some_and(|value| value.is_empty());
        let arg = if is_further { arg.hide_short_help(true) } else { arg };
        if is_empty { arg.env(None::<&'static str>) } else { arg }
    };
    command.mut_args(finish_arg).mut_subcommands(finish)
}

/// The variables of all settings.
pub fn variables() -> Vec<Variable> {
    let command = ServiceAddress::augment_args(Settings::augment_args(Command::new("settings")));
    let variable = |arg: &Arg| {
        let name = arg.get_env()?.to_string_lossy().into_owned();
        Some(Variable { name, is_secret: arg.is_hide_env_values_set() })
    };
    let otlp_endpoint = Variable { name: OTLP_ENDPOINT.to_owned(), is_secret: false };
    command.get_arguments().filter_map(variable).chain([otlp_endpoint]).collect()
}

fn check_redis_url(url: &SecretString) -> Result<(), ConfigError> {
    let parsed = reqwest::Url::parse(url.expose_secret()).ok();
    if parsed.is_some_and(|url| matches!(url.scheme(), "redis" | "rediss") && url.has_host()) {
        return Ok(());
    }
    let allowed = "a URL that starts with redis:// or rediss:// (TLS), for example redis://:PASSWORD@redis.example:6379/0. \
                   Percent-encode special characters of the password";
    Err(ConfigError::SecretValue { name: "REDIS_URL", allowed })
}

fn check_url(name: &'static str, url: &str, allowed: &'static str, no_secret: &'static str) -> Result<(), ConfigError> {
    if url.contains('@') {
        return Err(ConfigError::SecretValue { name, allowed: no_secret });
    }
    let parsed = reqwest::Url::parse(url).ok();
    if parsed.is_some_and(|url| matches!(url.scheme(), "http" | "https") && url.query().or(url.fragment()).is_none()) {
        return Ok(());
    }
    Err(ConfigError::Value { name, value: url.to_owned(), allowed })
}

/// Most secrets of WEBHOOK_SECRET: each makes a webhook's header longer by a signature.
const MAX_WEBHOOK_SECRETS: usize = 5;

/// The form and the lengths of the Standard Webhooks specification, with commas between several.
fn is_webhook_secrets(text: &str) -> bool {
    let is_one = |text: &str| {
        let key = text.trim().strip_prefix("whsec_").map(|encoded| BASE64_STANDARD.decode(encoded));
        matches!(key, Some(Ok(key)) if (24..=64).contains(&key.len()))
    };
    text.split(',').count() <= MAX_WEBHOOK_SECRETS && text.split(',').all(is_one)
}

/// Never fails, so that no parse error can show the value.
#[expect(clippy::unnecessary_wraps, reason = "clap wants a Result")]
fn secret(text: &str) -> Result<SecretString, std::convert::Infallible> {
    Ok(text.into())
}

fn model_name(text: &str) -> Result<String, &'static str> {
    let allowed = "must be a model's id such as claude-sonnet-5-5: visible ASCII characters without blanks";
    let text = text.trim();
    if is_visible_ascii(text) { Ok(text.to_owned()) } else { Err(allowed) }
}

fn ip_address(text: &str) -> Result<IpAddr, &'static str> {
    text.parse().map_err(|_| "must be an IP address such as 0.0.0.0 (all interfaces), 127.0.0.1 or ::1")
}

fn boolean(text: &str) -> Result<bool, &'static str> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "1" | "yes" | "on" => Ok(true),
        "false" | "0" | "no" | "off" => Ok(false),
        _ => Err("must be true or false (or 1, yes, on; 0, no, off)"),
    }
}

fn within<N>(range: RangeInclusive<N>) -> impl Fn(&str) -> Result<N, String> + Clone
where
    N: FromStr + PartialOrd + Display + Clone,
{
    move |text| {
        let allowed = || format!("must be a whole number from {} to {}", range.start(), range.end());
        text.parse().ok().filter(|number| range.contains(number)).ok_or_else(allowed)
    }
}

fn seconds(range: RangeInclusive<u64>) -> impl Fn(&str) -> Result<Duration, String> + Clone {
    let number = within(range);
    move |text| number(text).map(Duration::from_secs)
}
