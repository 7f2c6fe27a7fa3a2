//! Digests of who submitted a job, small enough to be in memory for every job. Bounds, turns and listings use them.
//!
//! The two lowest bits of a digest hold its [`Kind`], so that no address can pass for a name.

use std::{
    net::{IpAddr, Ipv6Addr},
    num::NonZeroU64,
};

use crate::digest::sha256;

/// The caller name of the admin token, in the audit log and in jobs.
pub const ADMIN_TOKEN: &str = "admin_token";

/// A digest of a caller; `None` if nothing is known, as of imported jobs without a name.
pub type Caller = Option<NonZeroU64>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Known by the network of its address.
    Unnamed = 1,
    /// Known by the name of its key or token.
    Named = 2,
    /// The admin token.
    Operator = 3,
}

pub fn named(name: &str) -> Caller {
    if name == ADMIN_TOKEN { operator() } else { digest(Kind::Named, name.as_bytes()) }
}

/// All callers without a name in the network of this address.
pub fn unnamed(address: IpAddr) -> Caller {
    let octets = match network(address) {
        IpAddr::V4(four) => four.to_ipv6_mapped().octets(),
        IpAddr::V6(six) => six.octets(),
    };
    digest(Kind::Unnamed, &octets)
}

pub fn operator() -> Caller {
    digest(Kind::Operator, ADMIN_TOKEN.as_bytes())
}

pub fn kind(caller: Caller) -> Kind {
    match caller.map_or(0, |digest| digest.get() & 3) {
        2 => Kind::Named,
        3 => Kind::Operator,
        _ => Kind::Unnamed,
    }
}

/// The address or, for IPv6, its /64 network, in which a client can use any address.
pub fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(six) => Ipv6Addr::from_bits(six.to_bits() & (u128::MAX << 64)).into(),
        four => four,
    }
}

fn digest(kind: Kind, bytes: &[u8]) -> Caller {
    let [a, b, c, d, e, f, g, h, ..] = sha256(&[bytes]);
    NonZeroU64::new(u64::from_be_bytes([a, b, c, d, e, f, g, h]) & !3 | kind as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn callers_differ_by_name_or_by_network() {
        let from = |address: &str| unnamed(address.parse().unwrap());
        assert_ne!(named("alice"), named("bob"));
        assert_eq!(from("::ffff:192.0.2.1"), from("192.0.2.1"));
        assert_ne!(from("192.0.2.1"), from("192.0.2.2"));
        assert_eq!(from("2001:db8::1"), from("2001:db8::2"), "one /64 network");
        assert_ne!(from("2001:db8::1"), from("2001:db8:0:1::1"));
        assert_eq!(named(ADMIN_TOKEN), operator());
        let kinds = [named("alice"), from("192.0.2.1"), operator(), None].map(kind);
        assert_eq!(kinds, [Kind::Named, Kind::Unnamed, Kind::Operator, Kind::Unnamed]);
    }
}
