//! The rate limit of wrong credentials for each address.

use std::{net::IpAddr, num::NonZeroU32};

use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter, clock::Clock, clock::DefaultClock};

use super::problem::{Problem, TOO_MANY_FAILURES};
use crate::job::caller::network;

/// Wrong credentials that an address may send a minute. A right credential is always accepted, so that nobody is locked
/// out by others behind the same gateway. Keys are too long to be guessed at any rate.
const FAILURES_PER_MINUTE: NonZeroU32 = NonZeroU32::new(30).expect("not zero");

/// Above this number of remembered addresses, those with a full quota are forgotten. Each takes about 100 bytes.
const MAX_REMEMBERED: usize = 10_000;

pub struct Failures(DefaultKeyedRateLimiter<IpAddr>);

impl Default for Failures {
    fn default() -> Failures {
        Failures(RateLimiter::keyed(Quota::per_minute(FAILURES_PER_MINUTE)))
    }
}

impl Failures {
    pub(super) fn count(&self, address: IpAddr) -> Result<(), Problem> {
        if self.0.len() > MAX_REMEMBERED {
            self.0.retain_recent();
        }
        self.0.check_key(&network(address)).map_err(|refused| {
            let wait = refused.wait_time_from(DefaultClock::default().now());
            let detail = "this address sent too many wrong keys or tokens";
            Problem::new(TOO_MANY_FAILURES, detail).retry_after(wait.as_secs() + 1)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_credentials_of_an_address_are_limited() {
        let (failures, here) = (Failures::default(), "192.0.2.1".parse().unwrap());
        assert!((0..FAILURES_PER_MINUTE.get()).all(|_| failures.count(here).is_ok()));
        assert!(failures.count(here).is_err());
        assert!(failures.count("192.0.2.2".parse().unwrap()).is_ok());
    }
}
