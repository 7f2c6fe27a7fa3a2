//! Parts of a request that several routes read. Errors become problems.

use std::{
    convert::Infallible,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
};

use axum::{
    extract::{ConnectInfo, FromRequestParts, Path, Query},
    http::{Extensions, HeaderMap, HeaderName, HeaderValue, Method, header, request::Parts},
};

use super::{
    api::Api,
    headers::members,
    problem::{FORBIDDEN, FieldError, INVALID_JOB_ID, INVALID_PARAMETER, Problem, UNAUTHORIZED},
};
use crate::{
    audit::AuditAction,
    auth::{Auth, Identity, Refused, Scope},
    config::values::Network,
    job::{
        JobId,
        caller::{self, ADMIN_TOKEN},
    },
    metrics::ReasonLabel,
    queue::QueueError,
    registry::Unavailable,
};

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// The `{id}` of the path, of a job that the caller may read or, with another method than `GET`, change. Another caller's
/// job is answered with the same 404 as an unknown id.
pub(super) struct Id {
    pub(super) job: JobId,
    operator: Option<String>,
    /// Whose bounds apply to a retry.
    pub(super) by: caller::Caller,
    pub(super) access: Access,
}

/// What a request was let in by, to be looked at again while its answer goes on.
pub(super) struct Access {
    header: Option<HeaderValue>,
    caller: Identity,
    revocations: u64,
}

impl Access {
    pub(super) async fn holds(&mut self, auth: &Auth) -> bool {
        let revocations = auth.revocations();
        if revocations == self.revocations && auth.hears() {
            return true;
        }
        self.revocations = revocations;
        auth.identify(self.header.as_ref().map(HeaderValue::as_bytes)).await.as_ref() == Ok(&self.caller)
    }
}

impl Id {
    /// Writes an operator's action on the job to the audit log, with whether it changed the job. Actions of callers on
    /// their own jobs are not logged.
    pub(super) async fn record(&self, api: &Api, action: &str, changed: bool) -> Result<(), Unavailable> {
        if let Some(actor) = &self.operator {
            let detail = self.job.to_string();
            let action = AuditAction { actor, action, detail: Some(&detail) };
            api.audit.record(action, Some(usize::from(changed))).await?;
        }
        Ok(())
    }
}

impl FromRequestParts<Arc<Api>> for Id {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, api: &Arc<Api>) -> Result<Id, Problem> {
        let revocations = api.auth.revocations();
        let looks = matches!(parts.method, Method::GET | Method::HEAD);
        let caller = authenticate(parts, api, if looks { Scope::Read } else { Scope::Analyze }).await?;
        let Path(id) = Path::<JobId>::from_request_parts(parts, api).await.map_err(|_| {
            let detail = "the id in the path is not a UUID, for example 019aaf2e-5c3d-7a10-8f3b-2d9e4c6b1a70";
            Problem::new(INVALID_JOB_ID, detail)
        })?;
        if caller.scope < Scope::Admin {
            match api.queue.is_of(id, caller.name.as_deref()).await {
                // The handler answers an unknown id, after it has checked the parameters.
                Ok(true) | Err(QueueError::NotFound(_)) => {}
                Ok(false) => return Err(QueueError::NotFound(id).into()),
                Err(error) => return Err(error.into()),
            }
        }
        let operator = (caller.scope == Scope::Admin).then(|| caller.actor().to_owned());
        let by = if operator.is_some() { caller::operator() } else { digest(&caller, address(parts, api)) };
        let access = Access { header: parts.headers.get(header::AUTHORIZATION).cloned(), caller, revocations };
        Ok(Id { job: id, operator, by, access })
    }
}

/// The name of a caller who lists their own jobs. In an open service only callers with a key have one.
pub(super) struct Named(pub(super) String);

impl FromRequestParts<Arc<Api>> for Named {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, api: &Arc<Api>) -> Result<Named, Problem> {
        let caller = authenticate(parts, api, Scope::Read).await?;
        caller.name.map(Named).ok_or_else(|| nameless(parts))
    }
}

/// The answer to a caller without a name on a route that shows what belongs to the caller.
fn nameless(parts: &Parts) -> Problem {
    let path = parts.uri.path().replacen("/api/v1/", "/api/v1/admin/", 1);
    let detail = format!(
        "without an API key the service does not know what is yours; send your key, or use {} {path} with the admin token",
        parts.method
    );
    Problem::new(UNAUTHORIZED, detail)
}

/// A caller who may see and replace the secret of their webhooks.
pub(super) struct SecretOwner {
    /// The name that their jobs have; `None` for an operator of an open service.
    pub(super) name: Option<String>,
    pub(super) operator: Option<String>,
}

impl FromRequestParts<Arc<Api>> for SecretOwner {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, api: &Arc<Api>) -> Result<SecretOwner, Problem> {
        let caller = authenticate(parts, api, Scope::Analyze).await?;
        let operator = (caller.scope == Scope::Admin).then(|| caller.actor().to_owned());
        let name = job_name(caller, api);
        if name.is_none() && operator.is_none() {
            return Err(nameless(parts));
        }
        Ok(SecretOwner { name, operator })
    }
}

/// The name that the jobs of a caller have. In an open service most callers have no name, so a job that an operator submits
/// is everybody's too.
fn job_name(caller: Identity, api: &Api) -> Option<String> {
    caller.name.filter(|name| name != ADMIN_TOKEN || !api.auth.is_open())
}

/// A caller who may submit jobs.
pub(super) struct Submitter {
    pub(super) name: Option<String>,
    pub(super) by: caller::Caller,
}

impl FromRequestParts<Arc<Api>> for Submitter {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, api: &Arc<Api>) -> Result<Submitter, Problem> {
        let caller = authenticate(parts, api, Scope::Analyze).await?;
        let by = digest(&caller, address(parts, api));
        Ok(Submitter { name: job_name(caller, api), by })
    }
}

fn digest(caller: &Identity, address: IpAddr) -> caller::Caller {
    caller.name.as_deref().map_or_else(|| caller::unnamed(address), caller::named)
}

/// The caller, if their scope is at least `needed`. Refusals are counted.
async fn authenticate(parts: &Parts, api: &Api, needed: Scope) -> Result<Identity, Problem> {
    let header = parts.headers.get(header::AUTHORIZATION);
    let (reason, problem) = match api.auth.identify(header.map(HeaderValue::as_bytes)).await {
        Ok(caller) if caller.scope >= needed => return Ok(caller),
        Ok(caller) if caller.name.is_some() => {
            let detail = format!("needs scope {needed}, but {} has scope {}", caller.actor(), caller.scope);
            ("forbidden", Problem::new(FORBIDDEN, detail))
        }
        Err(error @ Refused::Unavailable) => return Err(Unavailable(error.to_string()).into()),
        // Without API keys callers are anonymous, but admin routes still need a token.
        _ if header.is_none() => ("missing", Problem::new(UNAUTHORIZED, Refused::Missing.to_string())),
        _ => match api.failures.count(address(parts, api)).await {
            Ok(()) => ("wrong", Problem::new(UNAUTHORIZED, Refused::Wrong.to_string())),
            Err(too_many) => ("too_many", too_many),
        },
    };
    api.metrics.auth_refused.get_or_create(&ReasonLabel { reason }).inc();
    Err(problem)
}

fn address(parts: &Parts, api: &Api) -> IpAddr {
    address_of(&parts.extensions, &parts.headers, api)
}

/// The address that the request comes from: the peer's or, behind trusted proxies, what the first of them saw.
pub(super) fn address_of(extensions: &Extensions, headers: &HeaderMap, api: &Api) -> IpAddr {
    let peer = extensions.get::<ConnectInfo<SocketAddr>>();
    let peer = peer.map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |ConnectInfo(peer)| peer.ip());
    behind(&api.trusted_proxies, peer, headers)
}

/// Each proxy appends the address that it saw. So the last one that no trusted proxy has is the client's; whatever stands
/// before it, the client may have invented.
fn behind(trusted: &[Network], peer: IpAddr, headers: &HeaderMap) -> IpAddr {
    let mut address = peer;
    for hop in members(headers, FORWARDED_FOR).rev() {
        let is_trusted = trusted.iter().any(|network| network.contains(address));
        let Some(hop) = hop.parse().ok().filter(|_| is_trusted) else { break };
        address = hop;
    }
    address
}

/// The query parameters. A route takes each that it knows, and then ends the reading: any others are errors.
pub(super) struct Params {
    given: Vec<(String, String)>,
    known: Vec<&'static str>,
    errors: Vec<(usize, FieldError)>,
}

impl<S: Send + Sync> FromRequestParts<S> for Params {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Params, Infallible> {
        // A text that can't be parsed counts as no parameters.
        Ok(Params::new(Query::try_from_uri(&parts.uri).map_or_else(|_| Vec::new(), |query| query.0)))
    }
}

impl Params {
    pub(super) fn new(given: Vec<(String, String)>) -> Params {
        Params { given, known: Vec::new(), errors: Vec::new() }
    }

    /// All values of a parameter that can be repeated. The error of `parse` says what is wrong with a value.
    pub(super) fn all<T>(&mut self, name: &'static str, mut parse: impl FnMut(&str) -> Result<T, String>) -> Vec<T> {
        self.known.push(name);
        let mut values = Vec::new();
        for (place, (_, value)) in self.given.iter().enumerate().filter(|(_, (given, _))| given == name) {
            match parse(value) {
                Ok(value) => values.push(value),
                Err(message) => self.errors.push((place, FieldError::new(name, message))),
            }
        }
        values
    }

    /// The value of a parameter, the last one if it is repeated.
    pub(super) fn last<T>(&mut self, name: &'static str, parse: impl FnMut(&str) -> Result<T, String>) -> Option<T> {
        self.all(name, parse).pop()
    }

    pub(super) fn end(self) -> Result<(), Problem> {
        let errors = self.errors();
        if errors.is_empty() { Ok(()) } else { Err(Problem::listing(INVALID_PARAMETER, errors)) }
    }

    /// The errors of all parameters, in their order.
    pub(super) fn errors(mut self) -> Vec<FieldError> {
        let allowed = match &self.known[..] {
            [] => "none".to_owned(),
            [only] => (*only).to_owned(),
            [others @ .., last] => format!("{} and {last}", others.join(", ")),
        };
        for (place, (name, _)) in self.given.iter().enumerate().filter(|(_, (name, _))| !self.known.contains(&&**name))
        {
            let message = format!("is not a parameter of this route; allowed parameters: {allowed}");
            self.errors.push((place, FieldError::new(name, message)));
        }
        self.errors.sort_by_key(|(place, _)| *place);
        self.errors.into_iter().map(|(_, error)| error).collect()
    }
}

pub(super) fn count_up_to(most: usize, value: &str) -> Result<usize, String> {
    let count = value.parse().ok().filter(|count| (1..=most).contains(count));
    count.ok_or_else(|| format!("must be from 1 to {most}, not {value:?}"))
}

/// Proof that an operator sent the request.
pub(super) struct Admin {
    pub(super) actor: String,
}

impl Admin {
    pub(super) async fn record(&self, api: &Api, action: &str, detail: Option<&str>) -> Result<(), Unavailable> {
        api.audit.record(AuditAction { actor: &self.actor, action, detail }, None).await.map(drop)
    }
}

impl FromRequestParts<Arc<Api>> for Admin {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, api: &Arc<Api>) -> Result<Admin, Problem> {
        let caller = authenticate(parts, api, Scope::Admin).await?;
        Ok(Admin { actor: caller.actor().to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret;

    use super::*;
    use crate::{
        clock::{Clock, Timestamp},
        registry::Registry,
        store::memory::MemoryStore,
    };

    #[tokio::test]
    async fn what_a_key_opened_ends_with_it_on_a_node_that_has_not_heard_of_that() {
        let registry = Registry::new(Arc::<MemoryStore>::default());
        let clock = Clock::manual(Timestamp::from_millis(1_800_000_000_000));
        let node =
            async || Auth::load("s3cret".into(), None, None, true, registry.clone(), clock.clone()).await.unwrap();
        let (one, other) = (node().await, node().await);
        let (_, key) = one.create("ci", Scope::Read, "ops").await.unwrap();
        let header = HeaderValue::try_from(format!("Bearer {}", key.expose_secret())).unwrap();
        let caller = other.identify(Some(header.as_bytes())).await.unwrap();
        let mut access = Access { header: Some(header), caller, revocations: other.revocations() };
        assert!(access.holds(&other).await);
        one.revoke("ci").await.unwrap();
        assert!(!access.holds(&other).await);
    }

    #[test]
    fn only_trusted_proxies_say_where_a_request_comes_from() {
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        let trusted = ["10.0.0.0/8", "fd00::/8"].map(|text| crate::config::values::network(text).unwrap());
        for (peer, given, expected) in [
            ("192.0.2.1", "198.51.100.7", "192.0.2.1"),
            ("10.0.0.1", "198.51.100.7", "198.51.100.7"),
            ("10.0.0.1", "1.1.1.1, 198.51.100.7, 10.2.3.4", "198.51.100.7"),
            ("::ffff:10.0.0.1", "198.51.100.7", "198.51.100.7"),
            ("fd00::1", "2001:db8::1", "2001:db8::1"),
            ("10.0.0.1", "1.1.1.1, unknown", "10.0.0.1"),
            ("10.0.0.1", "", "10.0.0.1"),
            ("10.0.0.1", "10.0.0.2", "10.0.0.2"),
        ] {
            let mut headers = HeaderMap::new();
            given.split_inclusive(", ").for_each(|part| {
                let value = HeaderValue::from_str(part.trim_end_matches(", ")).unwrap();
                headers.append(FORWARDED_FOR, value);
            });
            assert_eq!(behind(&trusted, address(peer), &headers), address(expected), "{peer} {given}");
        }
    }

    #[test]
    fn all_wrong_and_unknown_parameters_are_reported_in_their_order() {
        let errors = |known: &[&'static str]| {
            let given = [("a", "1"), ("x", "2"), ("a", "7"), ("y", "3")].map(|(a, b)| (a.to_owned(), b.to_owned()));
            let mut params = Params::new(given.to_vec());
            let taken: Vec<_> = known.iter().map(|name| params.all(name, |value| count_up_to(6, value))).collect();
            (taken, params.errors().into_iter().map(|error| (error.field, error.message)).collect::<Vec<_>>())
        };
        let unknown = |name: &str, allowed: &str| {
            (name.to_owned(), format!("is not a parameter of this route; allowed parameters: {allowed}"))
        };
        let wrong = ("a".to_owned(), "must be from 1 to 6, not \"7\"".to_owned());
        assert_eq!(
            errors(&["b", "a"]),
            (vec![vec![], vec![1]], vec![unknown("x", "b and a"), wrong.clone(), unknown("y", "b and a")])
        );
        assert_eq!(errors(&["a"]).1, [unknown("x", "a"), wrong.clone(), unknown("y", "a")]);
        assert_eq!(errors(&["a", "x", "y"]), (vec![vec![1], vec![2], vec![3]], vec![wrong]));
        assert_eq!(errors(&[]).1.len(), 4);
        assert!(errors(&[]).1[0].1.ends_with("allowed parameters: none"));
    }
}
