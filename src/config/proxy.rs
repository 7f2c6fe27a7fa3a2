//! The proxies of the environment, as the HTTP client reads them: `HTTPS_PROXY`, `HTTP_PROXY` and `ALL_PROXY`, also in small
//! letters. The client ignores an address that it can't use, and would call Claude without the proxy: [`check`] refuses it.

use std::env;

use axum::http::{Uri, uri::Authority};

use super::error::ConfigError;

pub(super) const NAMES: [&str; 6] =
    ["HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"];

const SCHEMES: [&str; 6] = ["http", "https", "socks4", "socks4a", "socks5", "socks5h"];

pub fn check() -> Result<(), ConfigError> {
    NAMES.into_iter().try_for_each(|name| match value(name) {
        Some(value) => check_value(name, &value),
        None => Ok(()),
    })
}

fn check_value(name: &'static str, value: &str) -> Result<(), ConfigError> {
    let wrong = |problem| Err(ConfigError::Proxy { name, problem });
    let is_address = |at: &Authority| {
        let has_port = at.port_u16().is_some() || at.as_str().ends_with(at.host());
        has_port && !at.host().is_empty()
    };
    match value.split_once("://") {
        Some((scheme, _)) if !SCHEMES.contains(&scheme) => wrong(format!("the scheme {scheme:?} is not allowed")),
        _ if value.parse::<Uri>().is_ok_and(|uri| uri.authority().is_some_and(is_address)) => Ok(()),
        _ => wrong("the address (not shown) can't be read".to_owned()),
    }
}

/// The proxy for addresses of this scheme: the variable's name, and the address without user name and password.
pub fn proxy_of(scheme: &str) -> Option<(&'static str, String)> {
    let names = match scheme {
        "http" => ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"],
        _ => ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"],
    };
    let (name, value) = names.into_iter().find_map(|name| Some((name, value(name)?)))?;
    let address = value.rsplit('@').next().unwrap_or_default();
    let address = address.split_once("://").map_or(address, |(_, rest)| rest).trim_end_matches('/');
    Some((name, address.to_owned()))
}

fn value(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxy_is_an_address_of_a_scheme_that_the_client_can_use() {
        let said = |value: &str| check_value("ALL_PROXY", value).err().map(|error| error.to_string());
        for good in [
            "http://proxy.example:3128",
            "https://user:secret@proxy.example",
            "socks4://10.0.0.1:1080",
            "socks4a://proxy.example:1080",
            "socks5://[::1]:1080",
            "socks5h://127.0.0.1:1080/",
            "proxy.example:3128",
            "127.0.0.1:3128",
        ] {
            assert_eq!(said(good), None, "{good}");
        }
        for (bad, problem) in [
            ("ftp://user:secret@proxy.example", "the scheme \"ftp\""),
            ("htp://proxy.example:3128", "the scheme \"htp\""),
            ("sock5://127.0.0.1:1080", "the scheme \"sock5\""),
            ("SOCKS5://127.0.0.1:1080", "the scheme \"SOCKS5\""),
            ("socks://127.0.0.1:1080", "the scheme \"socks\""),
            ("://proxy.example", "the scheme \"\""),
            ("http:proxy.example", "can't be read"),
            ("http://", "can't be read"),
            ("http:/proxy.example:3128", "can't be read"),
            ("http://pro xy:3128", "can't be read"),
            ("/run/proxy.sock", "can't be read"),
        ] {
            let said = said(bad).unwrap_or_else(|| panic!("{bad} passes"));
            assert!(said.starts_with("ALL_PROXY: ") && said.contains(problem), "{bad}: {said}");
            assert!(said.contains("socks5h") && !said.contains("secret"), "{said}");
        }
    }
}
