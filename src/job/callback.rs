//! Which callback URLs are allowed. A caller chooses the URL, so it must not give access to the service's own network. The
//! URL is checked at submission, and every address of its host again before each call.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use reqwest::Url;

/// Longest callback URL.
pub const MAX_CALLBACK_URL: usize = 2_048;

/// Which callback URLs are taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Callbacks {
    /// Those that lead to the public internet, encrypted.
    #[default]
    Public,
    /// Also those that lead to private addresses, and unencrypted ones.
    Private,
}

impl Callbacks {
    /// The URL, if it may be called as far as that can be told by looking at it.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(self, url: &str) -> Result<Url, String> {
        if url.len() > MAX_CALLBACK_URL {
            return Err(format!("must be at most {MAX_CALLBACK_URL} bytes, not {}", url.len()));
        }
        let wanted = if self == Callbacks::Private { "http:// or https://" } else { "https://" };
        let parsed = Url::parse(url).ok().filter(Url::has_host);
        let schemes: &[&str] = if self == Callbacks::Private { &["http", "https"] } else { &["https"] };
        let Some(parsed) = parsed.filter(|url| schemes.contains(&url.scheme())) else {
            return Err(format!("must be a URL that starts with {wanted}, for example https://example.com/hook"));
        };
        if !parsed.username().is_empty() || parsed.password().is_some() {
            return Err("must not have a user name or password; webhooks are signed instead".to_owned());
        }
        match literal(&parsed) {
            Some(address) if !self.allows(address) => {
                Err(format!("must not lead to {address}, which is not a public address"))
            }
            _ => Ok(parsed),
        }
    }

    /// Whether an address may be called.
    pub fn allows(self, address: IpAddr) -> bool {
        match self {
            Callbacks::Public => is_public(address),
            Callbacks::Private => true,
        }
    }
}

/// The address that stands in a URL in place of a name. The parser has brought it to its usual form, however it was
/// written (`127.1`, `0x7f000001`, `017700000001`).
pub fn literal(url: &Url) -> Option<IpAddr> {
    let host = url.host_str()?;
    host.trim_start_matches('[').trim_end_matches(']').parse().ok()
}

/// Whether an address is of the public internet: not of any range that IANA's special-purpose registries (RFC 6890)
/// keep for other uses, nor an IPv6 address that carries such an IPv4 one.
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let special = match address.octets() {
        // This network, which stands for this machine.
        [0, ..] => true,
        // Shared with the provider's other customers (RFC 6598).
        [100, 64..=127, ..] => true,
        // Protocol assignments, and the former relays from IPv6.
        [192, 0, 0, _] | [192, 88, 99, _] => true,
        // Benchmarks.
        [198, 18..=19, ..] => true,
        // Multicast, reserved, broadcast.
        [224..=255, ..] => true,
        _ => false,
    };
    // Link-local is where clouds keep their metadata services.
    let special = special
        || address.is_private()
        || address.is_loopback()
        || address.is_link_local()
        || address.is_documentation();
    !special
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    let carried = |high: u16, low: u16| {
        let [a, b] = high.to_be_bytes();
        let [c, d] = low.to_be_bytes();
        is_public_v4(Ipv4Addr::new(a, b, c, d))
    };
    match address.segments() {
        // An IPv4 address in other clothes: mapped, compatible (and with it :: and ::1), translated (NAT64), 6to4.
        [0, 0, 0, 0, 0, 0xffff, high, low] => carried(high, low),
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => carried(high, low),
        [0x2002, high, low, ..] => carried(high, low),
        // Teredo and other protocol assignments, documentation.
        [0x2001, 0..=0x1ff, ..] | [0x2001, 0xdb8, ..] | [0x3fff, 0..=0xfff, ..] => false,
        // Only this part is given to the public internet; unique local, link-local and multicast are not of it.
        [first, ..] => first & 0xe000 == 0x2000,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_private_address_passes_however_it_is_written() {
        let hosts = [
            "127.0.0.1",
            "127.1",
            "0x7f000001",
            "2130706433",
            "017700000001",
            "0.0.0.0",
            "10.1.2.3",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "100.127.255.255",
            "192.0.0.8",
            "198.18.0.1",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "192.0.2.1",
            "[::1]",
            "[::]",
            "[::ffff:127.0.0.1]",
            "[::ffff:10.0.0.1]",
            "[::ffff:a9fe:a9fe]",
            "[::127.0.0.1]",
            "[64:ff9b::10.0.0.1]",
            "[64:ff9b:1::1]",
            "[2002:7f00:1::]",
            "[2002:a00:1::1]",
            "[2001::1]",
            "[2001:db8::1]",
            "[fc00::1]",
            "[fd12:3456::1]",
            "[fe80::1]",
            "[fec0::1]",
            "[ff02::1]",
            "[100::1]",
        ];
        for host in hosts {
            let url = format!("https://{host}/hook");
            let error = Callbacks::Public.check(&url).expect_err(host);
            assert!(error.contains("not a public address"), "{host}: {error}");
            assert!(Callbacks::Private.check(&url).is_ok(), "{host}");
        }
        let public = ["1.1.1.1", "172.32.0.1", "100.63.0.1", "198.20.0.1", "[2606:4700::1111]", "[2002:101:101::1]"];
        for host in public.into_iter().chain(["example.com", "[::ffff:1.1.1.1]", "[64:ff9b::1.1.1.1]"]) {
            assert!(Callbacks::Public.check(&format!("https://{host}:8443/hook?x=1")).is_ok(), "{host}");
        }
    }

    #[test]
    fn what_is_no_callback_is_told() {
        let long = format!("https://example.com/{}", "x".repeat(MAX_CALLBACK_URL));
        let cases = [
            (Callbacks::Public, "http://example.com", "starts with https://"),
            (Callbacks::Private, "ftp://example.com", "starts with http:// or https://"),
            (Callbacks::Private, "file:///etc/passwd", "starts with"),
            (Callbacks::Public, "example.com/hook", "starts with https://"),
            (Callbacks::Public, "https://me:secret@example.com", "must not have a user name"),
            (Callbacks::Public, &long, "at most 2048"),
        ];
        for (callbacks, url, words) in cases {
            let error = callbacks.check(url).expect_err(url);
            assert!(error.contains(words) && !error.contains("secret@"), "{url}: {error}");
        }
        assert!(Callbacks::Private.check("http://10.0.0.1:9000").is_ok());
    }
}
