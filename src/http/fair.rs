//! Rate limits: submissions a minute for each caller, and wrong credentials for each address. A caller is identified by
//! name or, without one, by address.

use std::{
    net::{IpAddr, Ipv6Addr},
    num::NonZeroU32,
    time::Duration,
};

use axum::http::{HeaderName, HeaderValue};
use governor::{
    DefaultKeyedRateLimiter, Quota, RateLimiter, clock::Clock, clock::DefaultClock,
    middleware::StateInformationMiddleware,
};

use super::{
    observe,
    problem::{Problem, RATE_LIMITED, TOO_MANY_FAILURES},
};
use crate::auth::Caller;

/// Wrong credentials that an address may send a minute. A right credential is always accepted, so that nobody is locked
/// out by others behind the same gateway. Keys are too long to be guessed at any rate.
const FAILURES_PER_MINUTE: NonZeroU32 = NonZeroU32::new(30).expect("not zero");

/// Above this number of remembered callers, those with a full quota are forgotten. Each takes about 100 bytes.
const MAX_REMEMBERED: usize = 10_000;

const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

/// A minute, the window of all limits here.
const WINDOW: Duration = Duration::from_mins(1);

/// Whose quota it is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Who {
    Named(String),
    From(IpAddr),
}

pub struct Fair {
    submits: Option<(NonZeroU32, Submits)>,
    failures: DefaultKeyedRateLimiter<IpAddr>,
}

type Submits =
    RateLimiter<Who, governor::state::keyed::DefaultKeyedStateStore<Who>, DefaultClock, StateInformationMiddleware>;

impl Fair {
    /// `submits_per_minute` is the quota of each caller; `None` means no limit.
    pub fn new(submits_per_minute: Option<NonZeroU32>) -> Fair {
        let limiter = |quota| RateLimiter::keyed(Quota::per_minute(quota)).with_middleware();
        Fair {
            submits: submits_per_minute.map(|quota| (quota, limiter(quota))),
            failures: RateLimiter::keyed(Quota::per_minute(FAILURES_PER_MINUTE)),
        }
    }

    /// Takes `count` jobs from the caller's quota, and adds the `RateLimit` headers to the response.
    pub(super) fn submit(&self, caller: &Caller, address: IpAddr, count: usize) -> Result<(), Problem> {
        let Some((quota, submits)) = &self.submits else { return Ok(()) };
        let Some(count) = u32::try_from(count).ok().and_then(NonZeroU32::new) else { return Ok(()) };
        if submits.len() > MAX_REMEMBERED {
            submits.retain_recent();
        }
        let who = caller.name.clone().map_or_else(|| Who::From(network(address)), Who::Named);
        let refill = |missing: u32| (WINDOW.as_secs_f64() * f64::from(missing) / f64::from(quota.get())).ceil();
        let add_headers = |left: u32| {
            let policy = format!("\"submits\";q={quota};w={}", WINDOW.as_secs());
            let state = format!("\"submits\";r={left};t={}", refill(quota.get() - left.min(quota.get())));
            for (name, text) in [(RATE_LIMIT_POLICY, policy), (RATE_LIMIT, state)] {
                if let Ok(value) = HeaderValue::from_str(&text) {
                    observe::add_header(name, value);
                }
            }
        };
        match submits.check_key_n(&who, count) {
            Ok(Ok(state)) => {
                add_headers(state.remaining_burst_capacity());
                Ok(())
            }
            Ok(Err(refused)) => {
                add_headers(0);
                let wait = refused.wait_time_from(DefaultClock::default().now());
                let detail = format!("you may submit {quota} jobs a minute (SUBMITS_PER_MINUTE)");
                Err(Problem::new(RATE_LIMITED, detail).retry_after(wait.as_secs() + 1))
            }
            Err(_) => {
                let detail = format!(
                    "the batch has {count} jobs, but you may submit {quota} a minute (SUBMITS_PER_MINUTE): send smaller \
                     batches"
                );
                Err(Problem::new(RATE_LIMITED, detail).retry_after(WINDOW.as_secs()))
            }
        }
    }

    /// Counts a wrong credential from an address. Fails if there were too many.
    pub(super) fn failed(&self, address: IpAddr) -> Result<(), Problem> {
        if self.failures.len() > MAX_REMEMBERED {
            self.failures.retain_recent();
        }
        self.failures.check_key(&network(address)).map_err(|refused| {
            let wait = refused.wait_time_from(DefaultClock::default().now());
            let detail = "this address sent too many wrong keys or tokens";
            Problem::new(TOO_MANY_FAILURES, detail).retry_after(wait.as_secs() + 1)
        })
    }
}

/// The address or, for IPv6, its /64 network, in which a client can use any address.
fn network(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(six) => six
            .to_ipv4_mapped()
            .map_or_else(|| Ipv6Addr::from_bits(six.to_bits() & (u128::MAX << 64)).into(), IpAddr::V4),
    }
}

#[cfg(test)]
mod tests {
    use axum::{http::StatusCode, response::IntoResponse};

    use super::*;
    use crate::auth::Scope;

    fn caller(name: &str) -> Caller {
        Caller { name: Some(name.to_owned()), scope: Scope::Analyze }
    }

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    #[test]
    fn each_caller_has_a_quota_of_its_own() {
        let fair = Fair::new(NonZeroU32::new(3));
        assert!((0..3).all(|_| fair.submit(&caller("a"), HERE, 1).is_ok()));
        let refused = fair.submit(&caller("a"), HERE, 1).unwrap_err().into_response();
        assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(refused.headers()["retry-after"], "20");
        assert!(fair.submit(&caller("b"), HERE, 3).is_ok(), "another caller has its own quota");
        assert!(fair.submit(&caller("c"), HERE, 4).is_err(), "a batch counts by its jobs");
        let nobody = Caller { name: None, scope: Scope::Analyze };
        assert!(fair.submit(&nobody, HERE, 3).is_ok() && fair.submit(&nobody, HERE, 1).is_err());
        assert!(fair.submit(&nobody, "192.0.2.1".parse().unwrap(), 1).is_ok(), "of another address");
        assert!((0..100).all(|_| Fair::new(None).submit(&nobody, HERE, 1_000).is_ok()));
    }

    #[test]
    fn callers_with_a_full_quota_are_forgotten() {
        let fair = Fair::new(NonZeroU32::new(1_000_000));
        for n in 0..2 * MAX_REMEMBERED {
            fair.submit(&caller(&n.to_string()), HERE, 1).unwrap();
        }
        assert!(fair.submits.unwrap().1.len() <= MAX_REMEMBERED + 1);
    }

    #[test]
    fn ipv6_addresses_of_one_network_share_a_quota() {
        let [a, b, c] = ["2001:db8::1", "2001:db8::2", "2001:db8:0:1::1"].map(|text| network(text.parse().unwrap()));
        assert!(a == b && a != c);
        assert_eq!(network("::ffff:192.0.2.1".parse().unwrap()), network("192.0.2.1".parse().unwrap()));
    }

    #[test]
    fn wrong_credentials_of_an_address_are_limited() {
        let fair = Fair::new(None);
        assert!((0..FAILURES_PER_MINUTE.get()).all(|_| fair.failed(HERE).is_ok()));
        assert!(fair.failed(HERE).is_err());
        assert!(fair.failed("192.0.2.1".parse().unwrap()).is_ok());
    }
}
