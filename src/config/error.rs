//! Settings that can't be used.

use std::{io, path::PathBuf};

/// No message holds a secret's value.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("can't read the settings file {}: {source}", path.display())]
    DotenvUnreadable { path: PathBuf, source: io::Error },
    /// Without the line itself: it may hold a secret.
    #[error(
        "line {line} of the settings file {} can't be read. Write NAME=value, and close quotes; put a value with blanks, \
         #, $ or \\ in single quotes, for example DAILY_BUDGET='25 USD'",
        path.display()
    )]
    DotenvLine { path: PathBuf, line: usize },
    #[error("{name}: {value:?} is not allowed. It must be {allowed}")]
    Value { name: &'static str, value: String, allowed: &'static str },
    #[error("{name}: the value (not shown) is not allowed. It must be {allowed}")]
    SecretValue { name: &'static str, allowed: &'static str },
    #[error("{name}: the value (not shown) is a placeholder or easy to guess. Put {instead} there")]
    Placeholder { name: &'static str, instead: &'static str },
    #[error("DATABASE_URL needs {name} to be set, to the same value on every node: make one with `{make}`")]
    NeededByCluster { name: &'static str, make: &'static str },
    #[error(
        "REDIS_URL is set, but DATABASE_URL is not. One node on its own disk needs no Redis: set DATABASE_URL to share a \
         database with other nodes, or remove REDIS_URL"
    )]
    RedisAlone,
    /// Without the address, which may hold a password.
    #[error(
        "{name}: {problem}. Use a proxy of the scheme http, https, socks4, socks4a, socks5 or socks5h, for example \
         {name}=http://proxy.example:3128"
    )]
    Proxy { name: &'static str, problem: String },
}
