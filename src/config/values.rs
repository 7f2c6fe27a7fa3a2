//! Settings that are more than a number or a word, and how their text is read: amounts with their units, separated by
//! commas (`25 USD, 2000000 tokens`), prices, where JWTs come from, log levels.

use std::{fmt, net::IpAddr, num::NonZeroU32, ops::RangeInclusive, path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};
use tracing_subscriber::filter::Targets;
use utoipa::ToSchema;

pub const REQUESTS_PER_MINUTE: RangeInclusive<NonZeroU32> = NonZeroU32::MIN..=not_zero(1_000_000);

/// Below a thousand no call would fit.
pub const TOKENS_PER_MINUTE: RangeInclusive<NonZeroU32> = not_zero(1_000)..=not_zero(1_000_000_000);

/// Decimal places of a nano-dollar.
const NANO_PLACES: usize = 9;

const DAY: Duration = Duration::from_hours(24);

const fn not_zero(number: u32) -> NonZeroU32 {
    NonZeroU32::new(number).expect("not zero")
}

/// Caps on the calls to Claude per minute. Without a cap, only the account's limit applies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RateCaps {
    /// Calls.
    #[schema(value_type = Option<u32>, minimum = 1)]
    #[serde(rename = "requests_per_minute")]
    pub requests: Option<NonZeroU32>,
    /// Input tokens; those read from the prompt cache do not count.
    #[schema(value_type = Option<u32>, minimum = 1)]
    #[serde(rename = "input_tokens_per_minute")]
    pub input_tokens: Option<NonZeroU32>,
    /// Output tokens.
    #[schema(value_type = Option<u32>, minimum = 1)]
    #[serde(rename = "output_tokens_per_minute")]
    pub output_tokens: Option<NonZeroU32>,
}

/// What may be spent a day; at least one of the two is set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DailyBudget {
    /// Tokens of all kinds.
    pub tokens: Option<u64>,
    pub cost: Option<Nanodollars>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nanodollars(pub u64);

/// How long finished jobs stay, and how many of them, whichever is less.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    pub age: Duration,
    pub jobs: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelPrice {
    pub model: String,
    /// Of one input token at the full price.
    pub input: Nanodollars,
    pub output: Nanodollars,
}

/// Which JWTs are accepted. Issuer and audience are required: without them, tokens for others would be accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JwtAuth {
    pub keys: PathBuf,
    pub issuer: String,
    pub audience: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    prefix: u32,
}

impl Network {
    /// Whether the address is in the network. An IPv4 address that is written as an IPv6 one counts as IPv4.
    pub fn contains(self, address: IpAddr) -> bool {
        let shared_bits = match (self.address, address.to_canonical()) {
            (IpAddr::V4(own), IpAddr::V4(other)) => (own.to_bits() ^ other.to_bits()).leading_zeros(),
            (IpAddr::V6(own), IpAddr::V6(other)) => (own.to_bits() ^ other.to_bits()).leading_zeros(),
            _ => return false,
        };
        shared_bits >= self.prefix
    }
}

pub(super) fn is_visible_ascii(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic())
}

pub fn network(text: &str) -> Result<Network, &'static str> {
    let read = || {
        let (address, prefix) = text.trim().split_once('/').map_or((text.trim(), None), |(a, b)| (a, Some(b)));
        let address: IpAddr = address.parse().ok().filter(|address: &IpAddr| address.to_canonical() == *address)?;
        let bits = if address.is_ipv4() { 32 } else { 128 };
        let prefix = prefix.map_or(Some(bits), |prefix| prefix.parse().ok().filter(|prefix| *prefix <= bits))?;
        Some(Network { address, prefix })
    };
    read().ok_or("must be IP addresses or networks, separated by commas, for example 10.0.0.0/8,192.168.1.7,fd00::/8")
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin(String);

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Origin {
    pub fn is_https(&self) -> bool {
        self.0.starts_with("https://")
    }

    /// Host and port, as browsers send them in `Host`.
    pub fn host(&self) -> &str {
        self.0.split_once("://").map_or("", |(_, host)| host)
    }
}

pub fn origin(text: &str) -> Result<Origin, String> {
    let text = text.trim().trim_end_matches('/');
    let url = reqwest::Url::parse(text).ok().filter(|url| matches!(url.scheme(), "http" | "https"));
    // The same without a path, a user or characters that a browser writes in another way.
    let origin = url.map(|url| url.origin().ascii_serialization()).filter(|origin| origin.eq_ignore_ascii_case(text));
    let wrong = || format!("{text:?} is not an origin. Use scheme and host only, for example https://ceo.example");
    origin.map(Origin).ok_or_else(wrong)
}

/// A filter of log events in the syntax of `tracing_subscriber::filter::Targets`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLevel(pub String);

impl LogLevel {
    /// This crate's details; those of the libraries would bury them.
    pub fn debug() -> LogLevel {
        LogLevel("info,ceoagent=debug".to_owned())
    }
}

pub(super) fn log_level(text: &str) -> Result<LogLevel, &'static str> {
    let text = text.trim().to_ascii_lowercase();
    match text.as_str() {
        "off" | "error" | "warn" | "info" | "trace" => Ok(LogLevel(text)),
        "debug" => Ok(LogLevel::debug()),
        // A misspelt level alone would be taken for the name of a module.
        filter if filter.contains(['=', ',']) && filter.parse::<Targets>().is_ok() => Ok(LogLevel(text)),
        _ => Err("must be error, warn, info or debug, or a filter such as warn,ceoagent=debug"),
    }
}

/// Amounts with their units, at most one of each unit. Units may be in the singular, and follow without a blank.
fn amounts<'a, const N: usize>(text: &'a str, units: [&str; N]) -> Option<[Option<&'a str>; N]> {
    let mut found = [None; N];
    for part in text.split(',') {
        let is_digit = |c: char| c.is_ascii_digit() || c == '.';
        let (amount, unit) = part.trim().split_at(part.trim().find(|c| !is_digit(c))?);
        let unit = unit.trim().to_ascii_lowercase();
        let is_named = |known: &&str| unit == **known || Some(unit.as_str()) == known.strip_suffix('s');
        let place = units.iter().position(&is_named)?;
        if found[place].replace(amount).is_some() {
            return None;
        }
    }
    Some(found)
}

/// The amount as a whole number within `range`; `Some(None)` if there is no amount.
#[expect(clippy::option_option, reason = "absent is allowed, wrong is not")]
fn whole<N: std::str::FromStr + PartialOrd>(amount: Option<&str>, range: RangeInclusive<N>) -> Option<Option<N>> {
    match amount {
        None => Some(None),
        Some(text) => text.parse().ok().filter(|number| range.contains(number)).map(Some),
    }
}

pub(super) fn rate_caps(text: &str) -> Result<RateCaps, &'static str> {
    let read = || {
        let [requests, input, output] = amounts(text, ["requests", "input tokens", "output tokens"])?;
        Some(RateCaps {
            requests: whole(requests, REQUESTS_PER_MINUTE)?,
            input_tokens: whole(input, TOKENS_PER_MINUTE)?,
            output_tokens: whole(output, TOKENS_PER_MINUTE)?,
        })
    };
    read().ok_or(
        "must be `N requests` (1 to 1000000), `N input tokens` and `N output tokens` (1000 to 1000000000), or some of \
         them, separated by commas, for example `1000 requests, 400000 output tokens`",
    )
}

pub(super) fn daily_budget(text: &str) -> Result<DailyBudget, &'static str> {
    let read = || {
        let [cost, tokens] = amounts(text, ["usd", "tokens"])?;
        // A cent is less than any useful call costs.
        let in_bounds = |cost: &u64| (10_000_000..=1_000_000_000_000_000).contains(cost);
        let cost = match cost {
            None => None,
            Some(text) => Some(Nanodollars(decimal(text, NANO_PLACES).filter(in_bounds)?)),
        };
        Some(DailyBudget { cost, tokens: whole(tokens, 1_000..=1_000_000_000_000)? })
    };
    read().ok_or(
        "must be `N USD` (0.01 to 1000000), `N tokens` (1000 to 1000000000000) or both, separated by a comma, for \
         example `7.50 USD` or `25 USD, 2000000 tokens`",
    )
}

pub(super) fn retention(text: &str) -> Result<Retention, &'static str> {
    let read = || {
        let [days, jobs] = amounts(text, ["days", "jobs"])?;
        let days = whole(days, 1..=3_650_u32)?.unwrap_or(30);
        Some(Retention { age: DAY * days, jobs: whole(jobs, 1..=10_000_000_usize)?.unwrap_or(100_000) })
    };
    read().ok_or(
        "must be `N days` (1 to 3650), `N jobs` (1 to 10000000) or both, separated by a comma, for example \
         `7 days, 50000 jobs`",
    )
}

pub(super) fn model_price(text: &str) -> Result<ModelPrice, &'static str> {
    let read = || {
        let (model, prices) = text.trim().rsplit_once('=')?;
        let (input, output) = prices.split_once('/')?;
        // A dollar per million tokens is a thousand nano-dollars per token.
        let price = |text| decimal(text, 3).map(Nanodollars);
        is_visible_ascii(model).then_some(ModelPrice {
            model: model.to_owned(),
            input: price(input)?,
            output: price(output)?,
        })
    };
    read().ok_or(
        "must be MODEL=INPUT/OUTPUT, such as my-model=2/10 or my-model=0.1/0.5: US dollars per million tokens, with at \
         most three decimals",
    )
}

pub(super) fn jwt_auth(text: &str) -> Result<JwtAuth, &'static str> {
    let part = |name: &str| {
        let mut values = text.split(',').filter_map(|part| part.trim().split_once('='));
        values.find(|(key, value)| *key == name && !value.is_empty()).map(|(_, value)| value.to_owned())
    };
    let read = || {
        let auth = JwtAuth { keys: part("keys")?.into(), issuer: part("issuer")?, audience: part("audience")? };
        (text.split(',').count() == 3).then_some(auth)
    };
    read().ok_or(
        "must name all of keys, issuer and audience, for example `keys=jwks.json, issuer=https://login.example, \
         audience=ceoagent`: without issuer and audience, tokens for others would be accepted",
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_has_the_addresses_that_share_its_first_bits() {
        for (text, address, is_in) in [
            ("10.0.0.0/8", "10.255.0.1", true),
            ("10.0.0.0/8", "::ffff:10.1.2.3", true),
            ("10.0.0.0/8", "11.0.0.1", false),
            ("10.1.2.3", "10.1.2.3", true),
            ("10.1.2.3", "10.1.2.4", false),
            ("0.0.0.0/0", "203.0.113.9", true),
            ("0.0.0.0/0", "2001:db8::1", false),
            ("fd00::/8", "fdff::1", true),
            ("::/0", "2001:db8::1", true),
            ("::1", "::2", false),
        ] {
            assert_eq!(network(text).unwrap().contains(address.parse().unwrap()), is_in, "{text} {address}");
        }
    }
}
