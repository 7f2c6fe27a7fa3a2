//! Variables as people and platforms write them: with blanks or a line break at the end (Kubernetes secrets), in quotes
//! (`docker run --env-file`), or as a file that holds the value (`NAME_FILE`, for secrets of compose and Kubernetes).

use std::{env, io, net::Ipv4Addr};

use secrecy::SecretString;

use super::{proxy, text};

/// Variables of Anthropic's SDKs, which hold secrets and are not settings.
const AUTH_TOKEN: &str = "ANTHROPIC_AUTH_TOKEN";
const CUSTOM_HEADERS: &str = "ANTHROPIC_CUSTOM_HEADERS";

/// Why the environment can't be used. No message holds a value.
#[derive(Debug, thiserror::Error)]
pub enum EnvironmentError {
    #[error("{name}_FILE: can't read the file {path}: {source}")]
    Unreadable { name: String, path: String, source: io::Error },
    #[error("{name} and {name}_FILE are both set. Set one of them")]
    Twice { name: String },
    #[error("the environment can't be set: {0}")]
    Unusable(dotenvy::Error),
}

#[derive(Clone, Debug)]
pub struct Variable {
    pub name: String,
    pub is_secret: bool,
}

#[derive(Clone, Debug, Default)]
pub struct GatewayAccess {
    pub auth_token: Option<SecretString>,
    pub custom_headers: Option<SecretString>,
}

pub fn gateway_access() -> GatewayAccess {
    let secret = |name| env::var(name).ok().filter(|value| !value.is_empty()).map(SecretString::from);
    GatewayAccess { auth_token: secret(AUTH_TOKEN), custom_headers: secret(CUSTOM_HEADERS) }
}

/// Trims and unquotes the variables of all settings, and reads secrets from their files. Call it before any thread is
/// started.
pub fn tidy(settings: &[Variable]) -> Result<(), EnvironmentError> {
    let settings = settings.iter().map(|variable| (variable.name.as_str(), variable.is_secret));
    // Libraries read these.
    let standard = proxy::NAMES.into_iter().chain(["NO_PROXY", "no_proxy"]).map(|name| (name, false));
    let all = settings.chain([(AUTH_TOKEN, true), (CUSTOM_HEADERS, true)]).chain(standard);
    let changed = changes(all, |name| env::var(name).ok().filter(|value| !value.is_empty()))?;
    // Setting a variable is unsafe while there are threads. dotenvy hides that.
    dotenvy::from_read_override(assignments(&changed).as_bytes()).map_err(EnvironmentError::Unusable)
}

/// The variables that get another value: of those given, each with whether it is a secret.
fn changes<'a>(
    variables: impl IntoIterator<Item = (&'a str, bool)>,
    get: impl Fn(&str) -> Option<String>,
) -> Result<Vec<(String, String)>, EnvironmentError> {
    let mut changes = Vec::new();
    for (variable, is_secret) in variables {
        let name = variable.to_owned();
        let given = get(variable);
        let file = get(&format!("{name}_FILE")).filter(|_| is_secret);
        let value = match (&given, file) {
            (None, None) => continue,
            (Some(_), Some(_)) => return Err(EnvironmentError::Twice { name }),
            // An address is listened on, and a name could stand for several.
            (Some(value), None) if name == "HOST" && meant(value).eq_ignore_ascii_case("localhost") => {
                Ipv4Addr::LOCALHOST.to_string()
            }
            (Some(value), None) => meant(value).to_owned(),
            (None, Some(path)) => match text::read(path.trim()) {
                Ok(text) => meant(&text).to_owned(),
                Err(source) => return Err(EnvironmentError::Unreadable { name, path, source }),
            },
        };
        if given.as_ref() != Some(&value) {
            changes.push((name, value));
        }
    }
    Ok(changes)
}

/// A value without the blanks around it and the quotes around the whole.
fn meant(value: &str) -> &str {
    let value = value.trim();
    let quoted = |quote| value.strip_prefix(quote)?.strip_suffix(quote);
    quoted('"').or_else(|| quoted('\'')).map_or(value, str::trim)
}

pub(super) fn assignments(variables: &[(String, String)]) -> String {
    let escaped = |value: &str| value.replace('\\', r"\\").replace('"', "\\\"").replace('$', r"\$");
    variables.iter().map(|(name, value)| format!("{name}=\"{}\"\n", escaped(value))).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn changed(given: &[(&str, &str)]) -> Result<Vec<(String, String)>, String> {
        let get = |name: &str| given.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
        changes([("KEY", true), ("HOST", false)], get).map_err(|error| error.to_string())
    }

    fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn blanks_line_breaks_and_quotes_around_a_value_go() {
        let given = [("KEY", "\"sk-ant-test\"\n"), ("HOST", " 127.0.0.1 ")];
        assert_eq!(changed(&given), Ok(pairs(&[("KEY", "sk-ant-test"), ("HOST", "127.0.0.1")])));
        assert_eq!(changed(&[("KEY", "'a b'"), ("HOST", "::1")]), Ok(pairs(&[("KEY", "a b")])));
        assert_eq!(changed(&[("KEY", "\""), ("HOST", "a\"b")]), Ok(vec![]));
        assert_eq!(changed(&[("HOST", "localhost")]), Ok(pairs(&[("HOST", "127.0.0.1")])));
    }

    #[test]
    fn a_secret_is_read_from_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        fs::write(&path, "\u{feff}sk-ant-test\r\n").unwrap();
        let path = path.to_str().unwrap();
        assert_eq!(changed(&[("KEY_FILE", path)]), Ok(pairs(&[("KEY", "sk-ant-test")])));
        assert_eq!(changed(&[("HOST_FILE", path)]), Ok(vec![]), "only secrets have files");
        assert!(changed(&[("KEY", "x"), ("KEY_FILE", path)]).unwrap_err().contains("both set"));
        assert!(changed(&[("KEY_FILE", "/none")]).unwrap_err().starts_with("KEY_FILE: can't read the file /none"));
    }
}
