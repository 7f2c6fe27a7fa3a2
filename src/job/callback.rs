//! Which callback URLs are allowed. A caller chooses the URL, so it must not give access to the service's own network. The
//! URL is checked at submission, and every address of its host again before each call.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use reqwest::Url;

use crate::config::values::Network;

pub const MAX_CALLBACK_URL: usize = 2_048;

/// Accepts URLs that lead to the public internet over TLS or to these private networks, also without TLS. Never link-local
/// addresses, where clouds have their metadata services.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Callbacks(Arc<[Network]>);

impl Callbacks {
    pub fn new(private: Vec<Network>) -> Callbacks {
        Callbacks(private.into())
    }

    pub fn allow_plain_http(&self) -> bool {
        !self.0.is_empty()
    }

    /// The URL, if it may be called as far as that shows without a look-up of its host; else what is wrong with it.
    pub fn check(&self, url: &str) -> Result<Url, String> {
        if url.len() > MAX_CALLBACK_URL {
            return Err(format!("must be at most {MAX_CALLBACK_URL} bytes, not {}", url.len()));
        }
        let may_be_plain = self.allow_plain_http();
        let is_fit = |url: &Url| url.has_host() && (url.scheme() == "https" || may_be_plain && url.scheme() == "http");
        let Some(parsed) = Url::parse(url).ok().filter(is_fit) else {
            let wanted = if may_be_plain { "http:// or https://" } else { "https://" };
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

    pub fn allows(&self, address: IpAddr) -> bool {
        !is_never_allowed(address) && (is_public(address) || self.0.iter().any(|network| network.contains(address)))
    }
}

/// Host and port of a callback URL; empty if it is not a URL.
pub fn host(url: &str) -> String {
    let read = || {
        let url = Url::parse(url).ok()?;
        Some(format!("{}:{}", url.host_str()?, url.port_or_known_default()?))
    };
    read().unwrap_or_default()
}

/// The address in a URL. The parser has brought it to its usual form from `127.1`, `0x7f000001` or `017700000001`.
pub fn literal(url: &Url) -> Option<IpAddr> {
    url.host_str()?.trim_start_matches('[').trim_end_matches(']').parse().ok()
}

/// Link-local addresses, and those of cloud metadata services elsewhere. No setting opens them.
fn is_never_allowed(address: IpAddr) -> bool {
    let metadata = [Ipv4Addr::new(100, 100, 100, 200), Ipv4Addr::new(168, 63, 129, 16), Ipv4Addr::new(192, 0, 0, 192)];
    match unwrapped(address) {
        IpAddr::V4(four) => four.is_link_local() || metadata.contains(&four),
        IpAddr::V6(six) => six.is_unicast_link_local() || six == Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254),
    }
}

/// Not of any range that IANA's special-purpose registries (RFC 6890) reserve for other uses.
fn is_public(address: IpAddr) -> bool {
    match unwrapped(address) {
        IpAddr::V4(four) => is_public_v4(four),
        IpAddr::V6(six) => is_public_v6(six),
    }
}

/// The IPv4 address in an IPv6 one: mapped, compatible (and with it :: and ::1), translated (NAT64), 6to4.
fn unwrapped(address: IpAddr) -> IpAddr {
    let IpAddr::V6(six) = address else { return address };
    match six.segments() {
        [0, 0, 0, 0, 0, 0 | 0xffff, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] | [0x2002, high, low, ..] => {
            Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low)).into()
        }
        _ => address,
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let is_special = match address.octets() {
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
        _ => address.is_private() || address.is_loopback() || address.is_link_local() || address.is_documentation(),
    };
    !is_special
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    match address.segments() {
        // Teredo and other protocol assignments, documentation.
        [0x2001, 0..=0x1ff, ..] | [0x2001, 0xdb8, ..] | [0x3fff, 0..=0xfff, ..] => false,
        // Only this part is given to the public internet; unique local, link-local and multicast are not of it.
        [first, ..] => first & 0xe000 == 0x2000,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::values::network;

    fn private(networks: &[&str]) -> Callbacks {
        Callbacks::new(networks.iter().map(|text| network(text).unwrap()).collect())
    }

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
        let everywhere = private(&["0.0.0.0/0", "::/0"]);
        for host in hosts {
            let url = format!("https://{host}/hook");
            let error = Callbacks::default().check(&url).expect_err(host);
            assert!(error.contains("not a public address"), "{host}: {error}");
            let is_link_local = ["169.254.169.254", "[::ffff:a9fe:a9fe]", "[fe80::1]"].contains(&host);
            assert_eq!(everywhere.check(&url).is_ok(), !is_link_local, "{host}");
        }
        let public = ["1.1.1.1", "172.32.0.1", "100.63.0.1", "198.20.0.1", "[2606:4700::1111]", "[2002:101:101::1]"];
        for host in public.into_iter().chain(["example.com", "[::ffff:1.1.1.1]", "[64:ff9b::1.1.1.1]"]) {
            assert!(Callbacks::default().check(&format!("https://{host}:8443/hook?x=1")).is_ok(), "{host}");
        }
    }

    #[test]
    fn a_private_network_opens_itself_and_no_other() {
        let callbacks = private(&["10.1.0.0/16", "fd00::/8"]);
        for (address, is_allowed) in [
            ("10.1.2.3", true),
            ("::ffff:10.1.2.3", true),
            ("10.2.0.1", false),
            ("127.0.0.1", false),
            ("fd12::1", true),
            ("fd00:ec2::254", false),
            ("fe80::1", false),
            ("1.1.1.1", true),
            ("168.63.129.16", false),
        ] {
            assert_eq!(callbacks.allows(address.parse().unwrap()), is_allowed, "{address}");
        }
        let clouds = private(&["0.0.0.0/0", "::/0"]);
        for metadata in
            ["169.254.169.254", "64:ff9b::169.254.169.254", "100.100.100.200", "192.0.0.192", "fd00:ec2::254"]
        {
            assert!(!clouds.allows(metadata.parse().unwrap()), "{metadata}");
        }
    }

    #[test]
    fn hosts_differ_by_their_port_too() {
        assert_eq!(host("https://Example.com/hook"), "example.com:443");
        assert_eq!(host("http://10.0.0.1:9000"), "10.0.0.1:9000");
        assert_eq!(host("nothing"), "");
    }

    #[test]
    fn a_bad_callback_url_is_refused_with_the_reason() {
        let long = format!("https://example.com/{}", "x".repeat(MAX_CALLBACK_URL));
        let (public, private) = (Callbacks::default(), private(&["10.0.0.0/8"]));
        let cases = [
            (&public, "http://example.com", "starts with https://"),
            (&private, "ftp://example.com", "starts with http:// or https://"),
            (&private, "file:///etc/passwd", "starts with"),
            (&public, "example.com/hook", "starts with https://"),
            (&public, "https://me:secret@example.com", "must not have a user name"),
            (&public, &long, "at most 2048"),
        ];
        for (callbacks, url, words) in cases {
            let error = callbacks.check(url).expect_err(url);
            assert!(error.contains(words) && !error.contains("secret@"), "{url}: {error}");
        }
        assert!(private.check("http://10.0.0.1:9000").is_ok());
    }
}
