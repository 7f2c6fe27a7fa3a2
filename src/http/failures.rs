//! The rate limit of wrong credentials for each address.

use std::{net::IpAddr, num::NonZeroU32, sync::Arc, time::Duration};

use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter, clock::Clock, clock::DefaultClock};

use super::problem::{Problem, TOO_MANY_FAILURES};
use crate::{job::caller::network, queue::SharedRates};

/// Wrong credentials that an address may send a minute. A right credential is always accepted, so that nobody is locked
/// out by others behind the same gateway. Keys are too long to be guessed at any rate.
const FAILURES_PER_MINUTE: NonZeroU32 = NonZeroU32::new(30).expect("not zero");

/// Above this number of remembered addresses, those with a full quota are forgotten. Each takes about 100 bytes.
const MAX_REMEMBERED: usize = 10_000;

/// Names these counts among the shared ones.
const FAILURES: &str = "failures";

/// Counts on this node, and on all nodes together where they share counts.
pub struct Failures {
    own: DefaultKeyedRateLimiter<IpAddr>,
    shared: Option<Arc<dyn SharedRates>>,
}

impl Failures {
    pub fn new(shared: Option<Arc<dyn SharedRates>>) -> Failures {
        Failures { own: RateLimiter::keyed(Quota::per_minute(FAILURES_PER_MINUTE)), shared }
    }

    /// Counts one, unless the address has sent too many. What is too much for one node is too much for all: the shared count
    /// is asked only about the others.
    pub(super) async fn count(&self, address: IpAddr) -> Result<(), Problem> {
        let network = network(address);
        if self.own.len() > MAX_REMEMBERED {
            self.own.retain_recent();
        }
        if let Err(refused) = self.own.check_key(&network) {
            return Err(too_many(refused.wait_time_from(DefaultClock::default().now())));
        }
        let Some(shared) = &self.shared else { return Ok(()) };
        let octets = match network {
            IpAddr::V4(four) => four.to_ipv6_mapped(),
            IpAddr::V6(six) => six,
        };
        match shared.take(FAILURES, &octets.octets(), 1, FAILURES_PER_MINUTE).await {
            Some(taken) if !taken.is_granted => Err(too_many(taken.retry_after(1, FAILURES_PER_MINUTE))),
            _ => Ok(()),
        }
    }
}

fn too_many(wait: Duration) -> Problem {
    let detail = "this address sent too many wrong keys or tokens";
    Problem::new(TOO_MANY_FAILURES, detail).retry_after(wait.as_secs() + 1)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use async_trait::async_trait;

    use super::*;
    use crate::queue::Taken;

    #[tokio::test]
    async fn wrong_credentials_of_an_address_are_limited() {
        let (failures, here) = (Failures::new(None), "192.0.2.1".parse().unwrap());
        for _ in 0..FAILURES_PER_MINUTE.get() {
            assert!(failures.count(here).await.is_ok());
        }
        assert!(failures.count(here).await.is_err());
        assert!(failures.count("192.0.2.2".parse().unwrap()).await.is_ok());
    }
    /// Counts three for all nodes.
    #[derive(Default)]
    struct Three(AtomicU32);

    #[async_trait]
    impl SharedRates for Three {
        async fn take(&self, what: &str, who: &[u8], count: i64, _: NonZeroU32) -> Option<Taken> {
            assert_eq!(
                (what, who, count),
                ("failures", &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255, 192, 0, 2, 1][..], 1)
            );
            let is_granted = self.0.fetch_add(1, Ordering::Relaxed) < 3;
            Some(Taken { is_granted, full_in: Duration::from_secs(60) })
        }
    }

    #[tokio::test]
    async fn nodes_that_share_counts_limit_an_address_together() {
        let (shared, here) = (Arc::new(Three::default()), "192.0.2.1".parse().unwrap());
        let nodes = [Failures::new(Some(Arc::clone(&shared) as _)), Failures::new(Some(shared))];
        for node in [0, 1, 0] {
            assert!(nodes[node].count(here).await.is_ok());
        }
        assert!(nodes[0].count(here).await.is_err() && nodes[1].count(here).await.is_err());
    }
}
