//! Every setting, once: its flag, environment name, default, bounds and whether it is a secret.
//!
//! A setting is taken from its flag, else its environment variable, else `.env` in the working folder, else its default.
//! The flag is the variable's name in lower case: `MAX_RETRIES` is `--max-retries`. A variable that is set but empty
//! counts as unset, because that is what `X=${X:-}` in a compose file leaves behind. The commands call, in this order,
//! [`load_dotenv`], [`ignore_empty_environment`] on the command before it parses, and [`Settings::validate`].
//!
//! Lacks what only another part can judge: whether the folders can be used, the prompts hold and the model exists. That
//! a key must be there is up to the command: most do without.

use std::env;
use std::fmt::Display;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use base64::{Engine, prelude::BASE64_STANDARD};
use clap::{ArgAction, Args, Command, ValueEnum};
use secrecy::{ExposeSecret, SecretString};

/// The file of settings, looked for in the working folder only: a parent's would surprise.
const DOTENV: &str = ".env";
/// A shorter admin token could be guessed: 16 random characters of base64 are 96 bits.
const MIN_ADMIN_TOKEN_CHARS: usize = 16;

/// The settings. The documentation of a field is also its help text and its comment in `.env.example`.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Settings")]
pub struct Settings {
    /// Key of the Claude API; only from the environment or .env, as a flag would show in the process list
    #[arg(long, env, hide_env_values = true, value_parser = secret)]
    pub anthropic_api_key: Option<SecretString>,

    /// Where the Claude API is: Anthropic's address or a gateway's, http or https
    // Checked by `validate`, and hidden in the help, because a mistaken one may hold a password.
    #[arg(long, env, hide_env_values = true, default_value = "https://api.anthropic.com")]
    pub anthropic_base_url: String,

    /// Claude model that analyses the questions
    #[arg(long, env, default_value = "claude-sonnet-5-5", value_parser = model_name)]
    pub model_name: String,

    /// Models to ask in this order while the one above is overloaded or retired, separated by commas; none if unset
    // For jobs that name no model: who names one gets that one.
    #[arg(long, env, value_delimiter = ',', value_parser = model_name)]
    pub fallback_models: Vec<String>,

    /// Most tokens of one answer, thinking included (1 to 128000)
    // The upper bound is the largest any model takes.
    #[arg(long, env, default_value = "16000", value_parser = within(1..=128_000_u32))]
    pub max_tokens: u32,

    /// How hard Claude thinks: low, medium, high, xhigh, max, or none to leave it to the API
    #[arg(long, env, default_value = "high", ignore_case = true)]
    pub effort: Effort,

    /// EFFORT for questions whose client waits: a quick answer is worth more to it
    #[arg(long, env, default_value = "low", ignore_case = true)]
    pub interactive_effort: Effort,

    /// Have Claude count the input tokens of each call before it, by a free request of its own, instead of estimating them
    /// (true or false)
    #[arg(
        long, env, default_value = "false", value_parser = boolean, action = ArgAction::Set, num_args = 0..=1,
        require_equals = true, default_missing_value = "true"
    )]
    pub count_tokens: bool,

    /// IP address to listen on; 127.0.0.1 keeps the service to this machine
    #[arg(long, env, default_value = "0.0.0.0", value_parser = ip_address)]
    pub host: IpAddr,

    /// Port to listen on; 0 takes any free one
    #[arg(long, env, default_value = "8000", value_parser = within(0..=u16::MAX))]
    pub port: u16,

    /// Log in detail, questions and answers included (true or false)
    // `--debug` alone is enough; a value needs `=`, so that the flag never swallows a question that follows it.
    #[arg(
        long, env, default_value = "false", value_parser = boolean, action = ArgAction::Set, num_args = 0..=1,
        require_equals = true, default_missing_value = "true"
    )]
    pub debug: bool,

    /// How log lines are written: text for people, json for machines
    #[arg(long, env, default_value = "text", ignore_case = true)]
    pub log_format: LogFormat,

    /// Folder that holds the queue; one running service for each
    #[arg(long, env, default_value = "data")]
    pub data_dir: PathBuf,

    /// Folder that holds the prompts
    #[arg(long, env, default_value = "prompts")]
    pub prompts_dir: PathBuf,

    /// Version of the prompts for questions that name none: a folder in PROMPTS_DIR
    #[arg(long, env, default_value = "v1", value_parser = version_name)]
    pub prompt_version: String,

    /// Most calls to Claude at one time; if unset, as many as the account's limits and the time of a call need (1 to 1024)
    #[arg(long, env, value_parser = within(1..=1024_usize))]
    pub workers: Option<usize>,

    /// Most calls to Claude a minute; Anthropic's Start tier allows 1000 (1 to 1000000)
    #[arg(
        long, env, default_value = "1000",
        value_parser = within(REQUESTS_PER_MINUTE)
    )]
    pub requests_per_minute: NonZeroU32,

    /// Most input tokens a minute; Anthropic's Start tier allows 2000000 (1000 to 1000000000)
    #[arg(long, env, default_value = "2000000", value_parser = within(TOKENS_PER_MINUTE))]
    pub input_tokens_per_minute: NonZeroU32,

    /// Most output tokens a minute; Anthropic's Start tier allows 400000 (1000 to 1000000000)
    #[arg(long, env, default_value = "400000", value_parser = within(TOKENS_PER_MINUTE))]
    pub output_tokens_per_minute: NonZeroU32,

    /// Most tokens a day (UTC), of all kinds; then the queue is held until the day turns; no budget if unset (1000 to
    /// 1000000000000)
    #[arg(long, env, value_parser = within(1_000..=1_000_000_000_000_u64))]
    pub daily_token_budget: Option<u64>,

    /// Most US dollars a day (UTC); then the queue is held until the day turns; no budget if unset (0.01 to 1000000)
    #[arg(long, env, value_parser = budget)]
    pub daily_cost_budget_usd: Option<Nanodollars>,

    /// Prices that the built-in table lacks or has wrong: MODEL=INPUT/OUTPUT in US dollars a million tokens, separated by
    /// commas
    #[arg(long, env, value_delimiter = ',', value_parser = model_price)]
    pub model_prices: Vec<ModelPrice>,

    /// Longest question taken, in characters; the largest body grows with it (1 to 100000)
    #[arg(long, env, default_value = "10000", value_parser = within(1..=100_000_usize))]
    pub max_query_length: usize,

    /// Seconds one call may take; if unset, 60 where a client waits, and otherwise what MAX_TOKENS need at 40 tokens a
    /// second and 30 more (1 to 3600)
    #[arg(long, env, value_parser = seconds(1..=3600))]
    pub request_timeout: Option<Duration>,

    /// Seconds to connect to the Claude API (1 to 60)
    #[arg(long, env, default_value = "10", value_parser = seconds(1..=60))]
    pub connect_timeout: Duration,

    /// Seconds an answer may be silent, before and while it streams; a model may think in silence (1 to 600)
    #[arg(
        long = "stream-idle-timeout", env = "STREAM_IDLE_TIMEOUT", value_name = "STREAM_IDLE_TIMEOUT",
        default_value = "90", value_parser = seconds(1..=600)
    )]
    pub idle_timeout: Duration,

    /// How often a failed analysis is tried again, after failures that have no bound of their own below (0 to 20)
    #[arg(long, env, default_value = "3", value_parser = within(0..=20_u32))]
    pub max_retries: u32,

    /// How often a call that found no connection is made again; nothing was sent and nothing billed (0 to 1000)
    #[arg(long, env, default_value = "30", value_parser = within(0..=1000_u32))]
    pub max_connect_retries: u32,

    /// How often a call that the overloaded API turned away is made again (0 to 1000)
    #[arg(long, env, default_value = "10", value_parser = within(0..=1000_u32))]
    pub max_overload_retries: u32,

    /// How often Claude is asked again, told what was wrong, after an answer that is cut or can't be read (0 to 20)
    #[arg(long, env, default_value = "1", value_parser = within(0..=20_u32))]
    pub max_invalid_retries: u32,

    /// Hours after it was due at which a job fails that rate limits or a held queue still give back (1 to 8760)
    #[arg(long, env, default_value = "72", value_parser = within(1..=8760_u32))]
    pub give_back_hours: u32,

    /// Most jobs that wait; further ones are refused until some are done (1 to 10000000)
    #[arg(long, env, default_value = "100000", value_parser = within(1..=10_000_000_usize))]
    pub max_queued_jobs: usize,

    /// Most waiting jobs of one caller, if callers have names; its further ones are refused (1 to 10000000)
    #[arg(long, env, default_value = "10000", value_parser = within(1..=10_000_000_usize))]
    pub max_pending_per_caller: usize,

    /// Which job goes next: deadline (while clients wait, what can still be answered in time) or fifo (for comparison)
    #[arg(long, env, default_value = "deadline", ignore_case = true)]
    pub claim_order: ClaimOrder,

    /// One in so many calls is for questions that nobody waits for, however many clients wait (2 to 1000)
    #[arg(long, env, default_value = "5", value_parser = within(2..=1000_u32))]
    pub ordinary_share: u32,

    /// Hours in which the same Idempotency-Key means the same job (1 to 8760)
    #[arg(long, env, default_value = "24", value_parser = within(1..=8760_u32))]
    pub idempotency_hours: u32,

    /// Seconds for which an answer is also given to whoever asks the same again; 0 asks Claude each time (0 to 2592000)
    #[arg(long, env, default_value = "0", value_parser = seconds(0..=2_592_000))]
    pub cache_ttl: Duration,

    /// What follows when a crash hides whether a call succeeded: retry (it may be billed twice) or fail
    #[arg(long, env, default_value = "retry", ignore_case = true)]
    pub on_unknown_outcome: OnUnknownOutcome,

    /// Seconds after which an attempt is given up whose worker has died (3 to 3600)
    // Shorter ones would have heartbeats write more than the jobs do.
    #[arg(
        long = "lease-seconds", env = "LEASE_SECONDS", value_name = "LEASE_SECONDS",
        default_value = "30", value_parser = seconds(3..=3600)
    )]
    pub lease: Duration,

    /// Seconds running attempts get to finish when the service stops (0 to 600)
    #[arg(long, env, default_value = "25", value_parser = seconds(0..=600))]
    pub shutdown_grace: Duration,

    /// Days a finished job is kept (1 to 3650)
    #[arg(long, env, default_value = "30", value_parser = within(1..=3650_u32))]
    pub retention_days: u32,

    /// Most finished jobs kept; the oldest go first (1 to 10000000)
    #[arg(long, env, default_value = "100000", value_parser = within(1..=10_000_000_usize))]
    pub max_finished_jobs: usize,

    /// Memory the store may use as cache, in MiB (16 to 65536)
    #[arg(long, env, default_value = "64", value_parser = within(16..=65_536_u64))]
    pub store_cache_mb: u64,

    /// Free disk space, in MiB, below which no question is taken while all else goes on; 0 sets no floor (0 to 1048576)
    #[arg(long, env, default_value = "256", value_parser = within(0..=1_048_576_u64))]
    pub min_free_disk_mb: u64,

    /// Where traces are sent by OTLP over HTTP, such as http://localhost:4318; unset, none are made
    // Hidden in the help as the other address is.
    #[arg(long, env, hide_env_values = true)]
    pub otel_exporter_otlp_endpoint: Option<String>,

    /// Secret that webhooks are signed with, as Standard Webhooks has it: whsec_ and 24 to 64 bytes in base64; without one,
    /// no callback_url is taken
    #[arg(long, env, hide_env_values = true, value_parser = secret)]
    pub webhook_secret: Option<SecretString>,

    /// Let callback URLs lead to private addresses, and be unencrypted (true or false)
    #[arg(
        long, env, default_value = "false", value_parser = boolean, action = ArgAction::Set, num_args = 0..=1,
        require_equals = true, default_missing_value = "true"
    )]
    pub webhook_allow_private: bool,

    /// Token of the admin pages, 16 or more characters; if unset, one is made at first start and kept in DATA_DIR
    #[arg(long, env, hide_env_values = true, value_parser = secret)]
    pub admin_token: Option<SecretString>,

    /// Keys of callers as name:key, name:scope:key or name:sha256:hash, with commas between; without any key or JWT_KEYS_FILE, who can reach the port may ask
    #[arg(long, env, hide_env_values = true, value_parser = secret)]
    pub api_keys: Option<SecretString>,

    /// File with the keys that callers' JWTs are checked by: a JWKS, a public key as PEM, or a shared secret
    #[arg(long, env)]
    pub jwt_keys_file: Option<PathBuf>,

    /// Who must have issued a JWT: its iss
    #[arg(long, env)]
    pub jwt_issuer: Option<String>,

    /// Whom a JWT must be meant for: its aud
    #[arg(long, env)]
    pub jwt_audience: Option<String>,

    /// Most questions a minute of one caller, or of one address where callers have no names; 0 sets no limit (0 to 1000000)
    #[arg(long, env, default_value = "0", value_parser = within(0..=1_000_000_u32))]
    pub submits_per_minute: u32,

    /// Origins whose web pages may call the API from a browser, with commas between, such as https://app.example
    #[arg(long, env, value_delimiter = ',')]
    pub cors_origins: Vec<String>,

    /// Most connections at one time; further ones are closed at once (10 to 1000000)
    #[arg(long, env, default_value = "20000", value_parser = within(10..=1_000_000_usize))]
    pub max_connections: usize,
}

/// An amount of money in whole nano-dollars (1e-9 $).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nanodollars(pub u64);

/// A model's price.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelPrice {
    /// The model's id.
    pub model: String,
    /// Of an input token at the full price; that of a million is a million times as much.
    pub input: Nanodollars,
    /// Of an output token.
    pub output: Nanodollars,
}

/// How hard Claude thinks, and so how long and how dear an answer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Effort {
    /// As the API has it; also for gateways and models that know no effort.
    None,
    /// The quickest and cheapest.
    Low,
    /// Between.
    Medium,
    /// The API's own default.
    High,
    /// For long work.
    Xhigh,
    /// Whatever it takes.
    Max,
}

impl Effort {
    /// The API's word for it, if anything is to be sent.
    pub fn word(self) -> Option<&'static str> {
        match self {
            Effort::None => None,
            Effort::Low => Some("low"),
            Effort::Medium => Some("medium"),
            Effort::High => Some("high"),
            Effort::Xhigh => Some("xhigh"),
            Effort::Max => Some("max"),
        }
    }
}

/// How long a call may take where a client waits, unless REQUEST_TIMEOUT is set.
pub const INTERACTIVE_TIMEOUT: Duration = Duration::from_secs(60);

/// Calls a minute that can be allowed.
pub const REQUESTS_PER_MINUTE: RangeInclusive<NonZeroU32> = NonZeroU32::MIN..=not_zero(1_000_000);

/// Tokens a minute that can be allowed: below a thousand no call would fit.
pub const TOKENS_PER_MINUTE: RangeInclusive<NonZeroU32> = not_zero(1_000)..=not_zero(1_000_000_000);

const fn not_zero(number: u32) -> NonZeroU32 {
    NonZeroU32::new(number).expect("not zero")
}

/// Where a command finds the service that it is to talk to. No setting of the service itself.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Service")]
pub struct ServiceAddress {
    /// Where the service is, such as https://memos.example.com; the one on this machine if absent
    #[arg(long, env = "CEOAGENT_URL", value_name = "URL")]
    pub url: Option<String>,

    /// Token to come with; for a service on this machine, ADMIN_TOKEN or the one kept in DATA_DIR is used if absent
    #[arg(long, env = "CEOAGENT_TOKEN", value_name = "TOKEN", hide_env_values = true, value_parser = secret)]
    pub token: Option<SecretString>,
}

/// How log lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// One readable line an event.
    Text,
    /// One JSON object an event.
    Json,
}

/// Which job goes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ClaimOrder {
    /// Those that clients wait for and can still have in time, by deadline; then the others by age.
    Deadline,
    /// All by age: under overload nobody is answered in time.
    Fifo,
}

/// What becomes of a job whose attempt may or may not have been answered and billed: the process died in the middle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OnUnknownOutcome {
    /// Try again, at the risk of paying twice.
    Retry,
    /// Fail the job.
    Fail,
}

/// Settings that can't be used. No message holds a secret's value.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// `.env` is there but can't be read as text.
    #[error("can't read the settings file {}: {source}", path.display())]
    DotenvUnreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A line of `.env` is no setting. The line itself is left out: it may hold a secret.
    #[error(
        "line {line} of the settings file {} can't be read: each line must be NAME=value, with quotes that are closed; \
         put a value with blanks, #, $ or \\ in single quotes",
        path.display()
    )]
    DotenvLine {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
    },
    /// A setting's value isn't allowed.
    #[error("{name} is {value:?}, but it must be {allowed}")]
    Value {
        /// The environment name.
        name: &'static str,
        /// As it was given.
        value: String,
        /// In words.
        allowed: &'static str,
    },
    /// The value of a secret, or one that seems to hold a secret, isn't allowed.
    #[error("{name} (its value isn't shown) must be {allowed}")]
    SecretValue {
        /// The environment name.
        name: &'static str,
        /// In words.
        allowed: &'static str,
    },
    /// A setting that would do nothing, where whoever made it counts on it.
    #[error(
        "{name} is set, but JWT_KEYS_FILE is not: without keys no token is checked, and the routes may be open to \
         everybody. Set JWT_KEYS_FILE, or leave {name} out"
    )]
    NoTokenKeys {
        /// The environment name.
        name: &'static str,
    },
}

impl Settings {
    /// Checks what must not be checked while the command line is parsed, because a parse error shows the value.
    ///
    /// # Errors
    /// Names the setting and what is allowed.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if let Some(key) = &self.anthropic_api_key
            && !is_visible_ascii(key.expose_secret())
        {
            let allowed = "a key as Anthropic's console shows it: no blanks, line breaks or other special characters";
            return Err(ConfigError::SecretValue { name: "ANTHROPIC_API_KEY", allowed });
        }
        if let Some(token) = &self.admin_token
            && (token.expose_secret().len() < MIN_ADMIN_TOKEN_CHARS || !is_visible_ascii(token.expose_secret()))
        {
            const { assert!(MIN_ADMIN_TOKEN_CHARS == 16, "the message says so") };
            let allowed = "16 or more visible ASCII characters without blanks";
            return Err(ConfigError::SecretValue { name: "ADMIN_TOKEN", allowed });
        }
        if let Some(endpoint) = &self.otel_exporter_otlp_endpoint {
            let secret = "an address without user name and password; secrets go to OTEL_EXPORTER_OTLP_HEADERS";
            let allowed =
                "an address that starts with http:// or https://, without ? and #, such as http://localhost:4318";
            check_address("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint, allowed, secret)?;
        }
        if let Some(secret) = &self.webhook_secret
            && !is_webhook_secret(secret.expose_secret())
        {
            let allowed =
                "whsec_ followed by 24 to 64 bytes in base64: make one with `echo whsec_$(openssl rand -base64 32)`";
            return Err(ConfigError::SecretValue { name: "WEBHOOK_SECRET", allowed });
        }
        let of_tokens = [("JWT_ISSUER", &self.jwt_issuer), ("JWT_AUDIENCE", &self.jwt_audience)];
        if let Some((name, _)) = of_tokens.into_iter().find(|(_, value)| value.is_some())
            && self.jwt_keys_file.is_none()
        {
            return Err(ConfigError::NoTokenKeys { name });
        }
        let secret = "an address without user name and password; the key goes to ANTHROPIC_API_KEY";
        let allowed =
            "an address that starts with http:// or https://, without ? and #, such as https://api.anthropic.com";
        check_address("ANTHROPIC_BASE_URL", &self.anthropic_base_url, allowed, secret)
    }
}

/// What was taken from `.env`.
#[derive(Clone, Debug, Default)]
pub struct Dotenv {
    /// Variables that have its value, as they had none.
    taken: Vec<String>,
    /// Names in it that are no setting's but nearly one's, each with the one that is probably meant.
    pub misspelt: Vec<(String, String)>,
}

impl Dotenv {
    /// Where the value of a variable is from, in words; none if it has none.
    pub fn source(&self, name: &str) -> Option<String> {
        let is_set = env::var_os(name).is_some_and(|value| !value.is_empty());
        let from_file = self.taken.iter().any(|taken| taken == name);
        is_set.then(|| match from_file {
            true => format!("{name} in the settings file {DOTENV}"),
            false => format!("the environment variable {name}"),
        })
    }
}

/// Loads `.env`, if the working folder has one, into the environment: variables that are unset or empty there get the
/// file's value, of which the last counts if a name comes twice. Call it before any thread is started.
///
/// # Errors
/// If the file can't be read, or has a line that is no setting; then nothing was loaded.
pub fn load_dotenv() -> Result<Dotenv, ConfigError> {
    let unset = |name: &str| env::var_os(name).is_none_or(|value| value.is_empty());
    let path = Path::new(DOTENV);
    let entries = read_dotenv(path)?;
    let names: Vec<&str> = entries.iter().map(|(name, _)| name.as_str()).collect();
    let misspelt = misspelt(&names);
    let (mut taken, mut missing) = (Vec::new(), String::new());
    for (name, value) in entries.into_iter().filter(|(name, _)| unset(name)) {
        missing.push_str(&format!("{name}=\"{}\"\n", quoted(&value)));
        taken.push(name);
    }
    // dotenvy either keeps all that is set, even if empty, or overrides all: so it is given what is missing only.
    dotenvy::from_read_override(missing.as_bytes()).map_err(|error| dotenv_error(path, &missing, error))?;
    Ok(Dotenv { taken, misspelt })
}

/// Those of `names` that are nearly the name of a setting, with it. Others may be another program's: compose, shells and
/// libraries read the same file.
fn misspelt(names: &[&str]) -> Vec<(String, String)> {
    let known = ServiceAddress::augment_args(Settings::augment_args(Command::new("known")));
    let known: Vec<&str> = known.get_arguments().filter_map(|arg| arg.get_env()?.to_str()).collect();
    let meant = |name: &str| {
        let (edits, meant) = known.iter().map(|known| (edits(&name.to_uppercase(), known), known)).min()?;
        (edits <= name.len() / 4).then(|| (name.to_owned(), (*meant).to_owned()))
    };
    names.iter().filter(|name| !known.contains(name)).filter_map(|name| meant(name)).collect()
}

/// How many letters must be put in, left out, replaced or swapped with their neighbour to make one name of the other.
fn edits(one: &str, other: &str) -> usize {
    let (one, other) = (one.as_bytes(), other.as_bytes());
    // A row for each letter of `one`: what it takes from its beginning to that of `other`, by the letters of that.
    let mut rows: Vec<Vec<usize>> = vec![(0..=other.len()).collect()];
    for (i, letter) in one.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, wanted) in other.iter().enumerate() {
            let replaced = rows[i][j] + usize::from(letter != wanted);
            let mut least = replaced.min(rows[i][j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && letter == &other[j - 1] && &one[i - 1] == wanted {
                least = least.min(rows[i - 1][j - 1] + 1);
            }
            row.push(least);
        }
        rows.push(row);
    }
    rows[one.len()][other.len()]
}

/// Makes variables that are set but empty count as unset, in `command` and all its subcommands.
pub fn ignore_empty_environment(command: Command) -> Command {
    command
        .mut_args(|arg| {
            let empty = arg.get_env().and_then(env::var_os).is_some_and(|value| value.is_empty());
            if empty { arg.env(None::<&'static str>) } else { arg }
        })
        .mut_subcommands(ignore_empty_environment)
}

/// The entries of a settings file, in order; none if there is no such file.
fn read_dotenv(path: &Path) -> Result<Vec<(String, String)>, ConfigError> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(ConfigError::DotenvUnreadable { path: path.to_owned(), source }),
    };
    // Some editors put a byte order mark first.
    let text = text.trim_start_matches('\u{feff}');
    if let Some(line) = text.lines().position(|line| line.contains('\0')) {
        return Err(ConfigError::DotenvLine { path: path.to_owned(), line: line + 1 });
    }
    dotenvy::from_read_iter(text.as_bytes())
        .map(|entry| entry.map_err(|error| dotenv_error(path, text, error)))
        .collect()
}

/// dotenvy tells what the line holds, which may be a secret, but not which line it is.
fn dotenv_error(path: &Path, text: &str, error: dotenvy::Error) -> ConfigError {
    let path = path.to_owned();
    let broken = match error {
        dotenvy::Error::LineParse(broken, _) => broken,
        dotenvy::Error::Io(source) => return ConfigError::DotenvUnreadable { path, source },
        other => return ConfigError::DotenvUnreadable { path, source: io::Error::other(other) },
    };
    let mut rest = text;
    let before = text.split_inclusive('\n').take_while(|line| {
        let found = rest.strip_prefix(&broken).is_some_and(|end| end.is_empty() || end.starts_with(['\n', '\r', '#']));
        rest = &rest[line.len()..];
        !found
    });
    ConfigError::DotenvLine { line: before.count() + 1, path }
}

/// `value` for between double quotes in a settings file.
fn quoted(value: &str) -> String {
    value.replace('\\', r"\\").replace('"', "\\\"").replace('$', r"\$")
}

fn check_address(
    name: &'static str,
    url: &str,
    allowed: &'static str,
    no_secret: &'static str,
) -> Result<(), ConfigError> {
    if url.contains('@') {
        return Err(ConfigError::SecretValue { name, allowed: no_secret });
    }
    let parsed = reqwest::Url::parse(url).ok();
    if parsed.is_some_and(|url| matches!(url.scheme(), "http" | "https") && url.query().or(url.fragment()).is_none()) {
        return Ok(());
    }
    Err(ConfigError::Value { name, value: url.to_owned(), allowed })
}

/// The form and the lengths that the Standard Webhooks specification has.
fn is_webhook_secret(text: &str) -> bool {
    let key = text.strip_prefix("whsec_").map(|encoded| BASE64_STANDARD.decode(encoded));
    matches!(key, Some(Ok(key)) if (24..=64).contains(&key.len()))
}

fn is_visible_ascii(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic())
}

/// Never fails, so that no parse error can show the value.
#[expect(clippy::unnecessary_wraps, reason = "clap wants a Result")]
fn secret(text: &str) -> Result<SecretString, std::convert::Infallible> {
    Ok(text.into())
}

fn model_name(text: &str) -> Result<String, &'static str> {
    let allowed = "must be a model's id such as claude-sonnet-5-5: visible ASCII characters without blanks";
    if is_visible_ascii(text) { Ok(text.to_owned()) } else { Err(allowed) }
}

fn version_name(text: &str) -> Result<String, &'static str> {
    let allowed = "must be the name of a folder in PROMPTS_DIR, such as v1";
    if is_visible_ascii(text) && !text.contains('/') { Ok(text.to_owned()) } else { Err(allowed) }
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

/// A whole number within `range`.
fn within<N>(range: RangeInclusive<N>) -> impl Fn(&str) -> Result<N, String> + Clone
where
    N: FromStr + PartialOrd + Display + Clone,
{
    move |text| {
        let allowed = || format!("must be a whole number from {} to {}", range.start(), range.end());
        text.parse().ok().filter(|number| range.contains(number)).ok_or_else(allowed)
    }
}

/// A day's budget. A cent is less than any call of use costs.
fn budget(text: &str) -> Result<Nanodollars, &'static str> {
    let amount = decimal(text, 9).filter(|amount| (10_000_000..=1_000_000_000_000_000).contains(amount));
    amount.map(Nanodollars).ok_or("must be an amount of US dollars from 0.01 to 1000000, such as 25 or 7.50")
}

fn model_price(text: &str) -> Result<ModelPrice, &'static str> {
    let parse = || {
        let (model, prices) = text.trim().rsplit_once('=')?;
        let (input, output) = prices.split_once('/')?;
        // A dollar a million tokens is a thousand nano-dollars a token.
        let price = |text| decimal(text, 3).map(Nanodollars);
        is_visible_ascii(model).then_some(ModelPrice {
            model: model.to_owned(),
            input: price(input)?,
            output: price(output)?,
        })
    };
    parse().ok_or(
        "must be MODEL=INPUT/OUTPUT, such as my-model=2/10 or my-model=0.1/0.5: US dollars a million tokens, with at \
         most three decimals",
    )
}

/// A decimal number of at most `places` places, times ten to their power. Without floats, so that money is exact.
fn decimal(text: &str, places: usize) -> Option<u64> {
    let (whole, part) = text.trim().split_once('.').unwrap_or((text.trim(), "0"));
    let is_number = |digits: &str| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    if !is_number(whole) || !is_number(part) || part.len() > places {
        return None;
    }
    format!("{whole}{part:0<places$}").parse().ok()
}

/// A whole number of seconds within `range`.
fn seconds(range: RangeInclusive<u64>) -> impl Fn(&str) -> Result<Duration, String> + Clone {
    let number = within(range);
    move |text| number(text).map(Duration::from_secs)
}

/// The proxy for addresses of this scheme, as the HTTP client takes it from the environment: the variable's name, and the
/// address without user name and password.
pub fn proxy_of(scheme: &str) -> Option<(&'static str, String)> {
    let names = match scheme {
        "http" => ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"],
        _ => ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"],
    };
    let (name, value) =
        names.into_iter().find_map(|name| Some((name, env::var(name).ok().filter(|at| !at.is_empty())?)))?;
    let address = value.rsplit('@').next().unwrap_or_default();
    let address = address.split_once("://").map_or(address, |(_, rest)| rest).trim_end_matches('/');
    Some((name, address.to_owned()))
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;
    use std::process;

    use clap::FromArgMatches;

    use super::*;

    const SECRET: &str = "sk-ant-0123456789-do-not-tell";

    fn command() -> Command {
        Settings::augment_args(Command::new("ceoagent"))
    }

    /// Reads and checks `flags`, whatever the environment of the test run.
    fn parse(flags: &[&str]) -> Result<Settings, String> {
        let command = command().no_binary_name(true).mut_args(|arg| arg.env(None::<&'static str>));
        let matches = command.try_get_matches_from(flags).map_err(|error| error.to_string())?;
        let settings = Settings::from_arg_matches(&matches).map_err(|error| error.to_string())?;
        settings.validate().map(|()| settings).map_err(|error| error.to_string())
    }

    fn refusal(flags: &[&str]) -> String {
        parse(flags).expect_err("should be refused")
    }

    /// What a process makes of a `.env` file, an environment and flags: the settings as `Debug` shows them, or the error.
    fn start(dotenv: &str, environment: &[(&str, &str)], flags: &[&str]) -> String {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(DOTENV), dotenv).unwrap();
        let output = process::Command::new(env::current_exe().unwrap())
            .args(["--exact", "config::tests::a_process_reads_its_settings", "--nocapture"])
            .current_dir(folder.path())
            .env_clear()
            .envs(environment.iter().copied())
            .env("FLAGS_OF_THE_TEST", flags.join("\n"))
            .output()
            .unwrap();
        // The test runner's last line tells how long it took, which differs.
        let said = String::from_utf8(output.stdout).unwrap();
        said.lines().filter(|line| !line.starts_with("test result")).map(|line| format!("{line}\n")).collect()
    }

    /// The other half of [`start`]: does nothing unless that runs it.
    #[test]
    fn a_process_reads_its_settings() {
        let Ok(flags) = env::var("FLAGS_OF_THE_TEST") else { return };
        if let Err(error) = load_dotenv() {
            return println!("{error}");
        }
        match ignore_empty_environment(command().no_binary_name(true)).try_get_matches_from(flags.lines()) {
            Ok(matches) => println!("{:?}", Settings::from_arg_matches(&matches).unwrap()),
            Err(error) => println!("{error}"),
        }
    }

    #[test]
    fn without_any_setting_the_defaults_hold_and_there_is_no_secret() {
        let settings = parse(&[]).unwrap();
        assert_eq!(settings.host.to_string(), "0.0.0.0");
        assert_eq!((settings.port, settings.max_query_length, settings.max_retries), (8000, 10_000, 3));
        assert_eq!((settings.request_timeout, INTERACTIVE_TIMEOUT), (None, Duration::from_secs(60)));
        assert_eq!(settings.model_name, "claude-sonnet-5-5");
        assert_eq!(settings.on_unknown_outcome, OnUnknownOutcome::Retry);
        assert!(settings.anthropic_api_key.is_none() && settings.admin_token.is_none() && !settings.debug);
    }

    #[test]
    fn a_bad_value_is_refused_with_the_setting_the_value_and_what_is_allowed() {
        let cases = [
            ("MAX_TOKENS", "128001", "from 1 to 128000"),
            ("PORT", "65536", "from 0 to 65535"),
            ("PORT", "http", "from 0 to 65535"),
            ("WORKERS", "0", "from 1 to 1024"),
            ("WORKERS", "-1", "from 1 to 1024"),
            ("REQUESTS_PER_MINUTE", "0", "from 1 to 1000000"),
            ("MAX_QUERY_LENGTH", "100001", "from 1 to 100000"),
            ("REQUEST_TIMEOUT", "1.5", "from 1 to 3600"),
            ("CONNECT_TIMEOUT", "61", "from 1 to 60"),
            ("STREAM_IDLE_TIMEOUT", "30s", "from 1 to 600"),
            ("MAX_RETRIES", "21", "from 0 to 20"),
            ("MAX_CONNECT_RETRIES", "1001", "from 0 to 1000"),
            ("GIVE_BACK_HOURS", "0", "from 1 to 8760"),
            ("MAX_QUEUED_JOBS", "0", "from 1 to 10000000"),
            ("MAX_PENDING_PER_CALLER", "0", "from 1 to 10000000"),
            ("CLAIM_ORDER", "lifo", "deadline, fifo"),
            ("ORDINARY_SHARE", "1", "from 2 to 1000"),
            ("IDEMPOTENCY_HOURS", "0", "from 1 to 8760"),
            ("LEASE_SECONDS", "2", "from 3 to 3600"),
            ("SHUTDOWN_GRACE", "601", "from 0 to 600"),
            ("RETENTION_DAYS", "3651", "from 1 to 3650"),
            ("MAX_FINISHED_JOBS", "10000001", "from 1 to 10000000"),
            ("STORE_CACHE_MB", "15", "from 16 to 65536"),
            ("MIN_FREE_DISK_MB", "1048577", "from 0 to 1048576"),
            ("HOST", "localhost", "IP address such as"),
            ("DEBUG", "maybe", "true or false"),
            ("LOG_FORMAT", "xml", "text, json"),
            ("ON_UNKNOWN_OUTCOME", "ignore", "retry, fail"),
            ("MODEL_NAME", " ", "model's id such as"),
            ("MODEL_NAME", "claude sonnet", "model's id such as"),
            ("ANTHROPIC_BASE_URL", "api.anthropic.com", "https://"),
            ("ANTHROPIC_BASE_URL", "ftp://api.anthropic.com", "https://"),
            ("ANTHROPIC_BASE_URL", "https://api.anthropic.com/?key=1", "without ?"),
            ("ANTHROPIC_BASE_URL", "foo", "such as https://api.anthropic.com"),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "foo", "such as http://localhost:4318"),
        ];
        for (name, value, allowed) in cases {
            let flag = format!("--{}={value}", name.to_lowercase().replace('_', "-"));
            let error = refusal(&[&flag]);
            assert!([name, value, allowed].iter().all(|part| error.contains(part)), "{name}: {error}");
        }
    }

    #[test]
    fn the_bounds_told_in_the_help_are_those_that_hold() {
        for arg in command().get_arguments() {
            let help = arg.get_help().unwrap().to_string();
            let Some((low, high)) = help.rsplit_once(" (").and_then(|(_, range)| range.split_once(" to ")) else {
                continue;
            };
            let (flag, high) = (arg.get_long().unwrap(), high.trim_end_matches(')'));
            assert!(parse(&[&format!("--{flag}={low}")]).is_ok(), "{flag} {low}");
            assert!(parse(&[&format!("--{flag}={high}")]).is_ok(), "{flag} {high}");
            assert!(refusal(&[&format!("--{flag}=none")]).contains(&format!("from {low} to {high}")), "{flag}");
        }
    }

    #[test]
    fn a_flag_is_its_variables_name_in_lower_case() {
        for arg in command().get_arguments() {
            let name = arg.get_env().unwrap().to_str().unwrap();
            assert_eq!(arg.get_long().unwrap(), name.to_lowercase().replace('_', "-"));
            assert_eq!(arg.get_value_names().unwrap(), [name], "errors show the value's name");
        }
    }

    #[test]
    fn debug_needs_no_value_and_takes_none_that_follows_it() {
        assert!(parse(&["--debug"]).unwrap().debug);
        assert!(!parse(&["--debug=off"]).unwrap().debug);
        assert!(refusal(&["--debug", "false"]).contains("unexpected argument"));
    }

    #[test]
    fn an_unfit_secret_is_refused_by_name_and_never_shown() {
        let cases = [
            ("ANTHROPIC_API_KEY", format!("{SECRET} {SECRET}")),
            ("ANTHROPIC_API_KEY", format!("{SECRET}\n")),
            ("ANTHROPIC_API_KEY", String::new()),
            ("WEBHOOK_SECRET", SECRET.to_owned()),
            ("WEBHOOK_SECRET", format!("whsec_{}", BASE64_STANDARD.encode([7; 23]))),
            ("ADMIN_TOKEN", SECRET[..15].to_owned()),
            ("ADMIN_TOKEN", format!("{SECRET}密")),
            ("ANTHROPIC_BASE_URL", format!("https://me:{SECRET}@gateway.example")),
        ];
        for (name, value) in cases {
            let error = refusal(&[&format!("--{}={value}", name.to_lowercase().replace('_', "-"))]);
            assert!(error.contains(name) && error.contains("must be"), "{error}");
            assert!(!error.contains("sk-ant"), "{error}");
        }
    }

    #[test]
    fn money_is_read_exactly_and_only_where_it_is_exact() {
        let read = |flag: &str| parse(&[flag]).map(|settings| settings.daily_cost_budget_usd.map(|budget| budget.0));
        for (text, nanodollars) in [("7.50", 7_500_000_000), ("0.01", 10_000_000), ("25", 25_000_000_000)] {
            assert_eq!(read(&format!("--daily-cost-budget-usd={text}")), Ok(Some(nanodollars)));
        }
        for text in ["0", "0.001", "-1", "1e3", "1,5", "7.", ".5", "1.0000000001", "1000000.1", "99999999999999999999"]
        {
            let error = read(&format!("--daily-cost-budget-usd={text}")).unwrap_err();
            assert!(error.contains("US dollars from 0.01 to 1000000"), "{error}");
        }
    }

    #[test]
    fn prices_and_models_are_lists() {
        let settings = parse(&["--model-prices=a=2/10,b=x=0.1/0.005", "--fallback-models=c,d"]).unwrap();
        let price = |model: &str, input, output| ModelPrice {
            model: model.to_owned(),
            input: Nanodollars(input),
            output: Nanodollars(output),
        };
        assert_eq!(settings.model_prices, [price("a", 2_000, 10_000), price("b=x", 100, 5)]);
        assert_eq!(settings.fallback_models, ["c", "d"]);
        for text in ["a", "a=1", "=1/2", "a b=1/2", "a=1/0.0001", "a=1/2/3", "a=-1/2"] {
            let error = parse(&[&format!("--model-prices={text}")]).unwrap_err();
            assert!(error.contains("US dollars a million tokens"), "{error}");
        }
    }

    #[test]
    fn a_secret_shows_in_no_debug_output_and_in_no_help() {
        let given = parse(&["--anthropic-api-key", SECRET, "--admin-token", SECRET]).unwrap();
        assert_eq!(given.admin_token.as_ref().unwrap().expose_secret(), SECRET);
        assert!(!format!("{given:?}").contains(SECRET));
        let environment = [("ANTHROPIC_API_KEY", SECRET), ("ADMIN_TOKEN", SECRET), ("ANTHROPIC_BASE_URL", SECRET)];
        let help = start("", &environment, &["--help"]);
        assert!(help.contains("ADMIN_TOKEN") && !help.contains(SECRET), "{help}");
    }

    #[test]
    fn a_flag_goes_before_the_environment_before_the_file_before_the_default() {
        let file = "WORKERS=2\nPORT=2000\nMAX_RETRIES=2\n";
        let output = start(file, &[("WORKERS", "3"), ("PORT", "3000")], &["--workers=4"]);
        for part in ["workers: Some(", "port: 3000,", "max_retries: 2,", "max_query_length: 10000,"] {
            assert!(output.contains(part), "{part} {output}");
        }
    }

    #[test]
    fn an_empty_variable_counts_as_unset() {
        let names: Vec<String> =
            command().get_arguments().map(|arg| arg.get_env().unwrap().to_str().unwrap().to_owned()).collect();
        let empty: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "")).collect();
        let defaults = start("", &[], &[]);
        assert!(defaults.contains("port: 8000"), "{defaults}");
        assert_eq!(start("", &empty, &[]), defaults);
        assert!(start("PORT=2000", &empty, &[]).contains("port: 2000"));
        assert_eq!(start("PORT=\n", &[], &[]), defaults);
    }

    #[test]
    fn a_value_of_the_file_arrives_as_it_stands_there() {
        let settings = start("\u{feff}DATA_DIR='a\"b\\c$d #e'\r\nexport PORT=\"2000\" # mine\n", &[], &[]);
        assert!(settings.contains(&format!("data_dir: {:?}", r#"a"b\c$d #e"#)), "{settings}");
        assert!(settings.contains("port: 2000"), "{settings}");
    }

    #[test]
    fn a_broken_line_of_the_file_is_told_by_its_number_without_what_it_holds() {
        let cases = [
            (format!("PORT=1\n\n{SECRET}\n"), 3),
            (format!("WORKERS=1\r\nADMIN_TOKEN='{SECRET}\r\nPORT=1\r\n"), 2),
            (format!("A='1\n2'\nPORT\u{20}{SECRET} # comment"), 3),
            (format!("PORTS=1\nPORT\nADMIN_TOKEN={SECRET}"), 2),
            (format!("PORT=1\nADMIN_TOKEN={SECRET}\0"), 2),
        ];
        for (text, line) in cases {
            let output = start(&text, &[], &[]);
            assert!(output.contains(&format!("line {line} of the settings file .env")), "{line} {output}");
            assert!(output.contains("NAME=value") && !output.contains("sk-ant"), "{output}");
        }
    }

    #[test]
    fn without_a_file_there_are_no_entries_and_an_unreadable_one_is_told() {
        let folder = tempfile::tempdir().unwrap();
        assert!(read_dotenv(&folder.path().join(DOTENV)).unwrap().is_empty());
        let error = read_dotenv(folder.path()).unwrap_err().to_string();
        assert!(error.contains(folder.path().to_str().unwrap()), "{error}");
    }

    #[test]
    fn the_example_file_holds_every_setting_with_its_help_and_default_and_nothing_else() {
        let mut expected = String::new();
        for arg in command().get_arguments() {
            let name = arg.get_env().unwrap().to_str().unwrap();
            let default = arg.get_default_values().first().map_or("", |value| value.to_str().unwrap());
            // A default that stood there as a setting would be taken for one that was made.
            let mark = if default.is_empty() { "" } else { "#" };
            write!(expected, "\n# {}\n{mark}{name}={default}\n", arg.get_help().unwrap()).unwrap();
        }
        let example = include_str!("../.env.example");
        let (_, settings) = example.split_once("\n\n").expect("an introduction, a blank line, the settings");
        assert_eq!(settings.trim_end(), expected.trim(), "expected:\n{expected}");
    }

    #[test]
    fn a_copy_of_the_example_file_sets_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(DOTENV);
        fs::write(&path, include_str!("../.env.example")).unwrap();
        let entries = read_dotenv(&path).unwrap();
        assert!(entries.iter().any(|(name, _)| name == "ANTHROPIC_API_KEY"));
        assert!(entries.iter().all(|(_, value)| value.is_empty()), "{entries:?}");
    }

    #[test]
    fn a_name_that_is_nearly_a_settings_is_told_with_it_and_what_is_none_of_ours_is_not() {
        for (name, meant) in [
            ("WORKRES", "WORKERS"),
            ("workers", "WORKERS"),
            ("MAX_RETRYS", "MAX_RETRIES"),
            ("API_KEY", "API_KEYS"),
            ("HOTS", "HOST"),
            ("CEOAGENT_TOKENS", "CEOAGENT_TOKEN"),
        ] {
            assert_eq!(misspelt(&[name]), [(name.to_owned(), meant.to_owned())]);
        }
        let others = ["RUST_LOG", "HTTP_PROXY", "NO_COLOR", "TMPDIR", "OTEL_EXPORTER_OTLP_HEADERS", "PATH", "TZ"];
        assert_eq!(misspelt(&others), []);
        let ours = command();
        let ours: Vec<&str> = ours.get_arguments().map(|arg| arg.get_env().unwrap().to_str().unwrap()).collect();
        assert_eq!(misspelt(&ours), []);
    }

    #[test]
    fn a_setting_of_tokens_without_keys_for_them_is_refused_as_it_would_leave_the_service_open() {
        for flag in ["--jwt-issuer=https://issuer.example", "--jwt-audience=ceoagent"] {
            let error = refusal(&[flag]);
            assert!(error.contains("JWT_KEYS_FILE") && error.contains("open"), "{error}");
            assert!(parse(&[flag, "--jwt-keys-file=keys.json"]).is_ok());
        }
    }

    #[test]
    fn the_page_of_settings_is_made_from_them() {
        let mut expected = String::new();
        for arg in command().get_arguments() {
            let name = arg.get_env().unwrap().to_str().unwrap();
            let default = arg.get_default_values().first().map_or("", |value| value.to_str().unwrap());
            let default = if default.is_empty() { String::new() } else { format!("`{default}`") };
            writeln!(expected, "| `{name}` | {default} | {} |", arg.get_help().unwrap()).unwrap();
        }
        let page = include_str!("../docs/configuration.md");
        let (_, table) = page.split_once("|---|---|---|\n").expect("a table");
        assert_eq!(table, expected, "expected:\n{expected}");
    }

    #[test]
    fn compose_hands_on_every_setting() {
        let compose = include_str!("../docker-compose.yml");
        for arg in command().get_arguments() {
            let name = arg.get_env().unwrap().to_str().unwrap();
            let handed = compose.lines().map(str::trim).any(|line| {
                line.strip_prefix("- ").is_some_and(|entry| entry == name || entry.starts_with(&format!("{name}=")))
            });
            assert!(handed, "docker-compose.yml does not hand on {name}");
        }
    }
}
