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
    problem::{FORBIDDEN, FieldError, INVALID_JOB_ID, INVALID_PARAMETER, Problem, UNAUTHORIZED},
    wait::Wait,
};
use crate::{
    auth::{Auth, Identity, Refused, Scope},
    config::values::Network,
    job::{
        JobId,
        caller::{self, ADMIN_TOKEN},
    },
    metrics::ReasonLabel,
    queue::QueueError,
};

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// The `{id}` of the path, of a job that the caller may read or, with another method than `GET`, change. Another caller's
/// job is answered with the same 404 as an unknown id.
pub(super) struct Id {
    pub(super) job: JobId,
    /// The operator's name for the audit log, if the caller is an operator.
    pub(super) operator: Option<String>,
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
    /// Whether the credential is still in force.
    pub(super) fn holds(&mut self, auth: &Auth) -> bool {
        let revocations = auth.revocations();
        if revocations == self.revocations {
            return true;
        }
        self.revocations = revocations;
        auth.identify(self.header.as_ref().map(HeaderValue::as_bytes)).as_ref() == Ok(&self.caller)
    }
}

impl FromRequestParts<Arc<Api>> for Id {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, api: &Arc<Api>) -> Result<Id, Problem> {
        let revocations = api.auth.revocations();
        let looks = matches!(parts.method, Method::GET | Method::HEAD);
        let caller = authenticate(parts, api, if looks { Scope::Read } else { Scope::Analyze })?;
        let Path(id) = Path::<JobId>::from_request_parts(parts, api).await.map_err(|_| {
            let detail = "the id in the path is not a UUID, for example 019aaf2e-5c3d-7a10-8f3b-2d9e4c6b1a70";
            Problem::new(INVALID_JOB_ID, detail)
        })?;
        // The handler answers an unknown id, in the same words.
        if caller.scope < Scope::Admin {
            match api.queue.is_of(id, caller.name.as_deref()).await {
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

/// Whether `Cache-Control` (RFC 9111) asks for a call of its own instead of a cached or shared answer.
pub(super) fn wants_its_own(headers: &HeaderMap) -> bool {
    let directives = headers.get_all(header::CACHE_CONTROL).iter().filter_map(|value| value.to_str().ok());
    directives
        .flat_map(|value| value.split(','))
        .any(|directive| ["no-cache", "no-store"].iter().any(|own| directive.trim().eq_ignore_ascii_case(own)))
}

/// The name of a caller who lists their own jobs. In an open service only callers with a key have one.
pub(super) struct Named(pub(super) String);

impl FromRequestParts<Arc<Api>> for Named {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, api: &Arc<Api>) -> Result<Named, Problem> {
        let caller = authenticate(parts, api, Scope::Read)?;
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
    /// The operator's name for the audit log, if the caller is an operator.
    pub(super) operator: Option<String>,
}

impl FromRequestParts<Arc<Api>> for SecretOwner {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, api: &Arc<Api>) -> Result<SecretOwner, Problem> {
        let caller = authenticate(parts, api, Scope::Analyze)?;
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
    /// The name to store with the jobs.
    pub(super) name: Option<String>,
    /// Whose bounds apply.
    pub(super) by: caller::Caller,
}

impl FromRequestParts<Arc<Api>> for Submitter {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, api: &Arc<Api>) -> Result<Submitter, Problem> {
        let caller = authenticate(parts, api, Scope::Analyze)?;
        let by = digest(&caller, address(parts, api));
        Ok(Submitter { name: job_name(caller, api), by })
    }
}

/// The caller's digest, by which bounds are counted.
fn digest(caller: &Identity, address: IpAddr) -> caller::Caller {
    caller.name.as_deref().map_or_else(|| caller::unnamed(address), caller::named)
}

/// The caller, if their scope is at least `needed`. Refusals are counted.
fn authenticate(parts: &Parts, api: &Api, needed: Scope) -> Result<Identity, Problem> {
    let header = parts.headers.get(header::AUTHORIZATION);
    let (reason, problem) = match api.auth.identify(header.map(HeaderValue::as_bytes)) {
        Ok(caller) if caller.scope >= needed => return Ok(caller),
        // Without API keys callers are anonymous, but admin routes still need a token.
        Ok(Identity { name: None, .. }) if header.is_none() => missing(),
        Ok(Identity { name: None, .. }) => wrong(parts, api),
        Ok(caller) => {
            let detail = format!("needs scope {needed}, but {} has scope {}", caller.actor(), caller.scope);
            ("forbidden", Problem::new(FORBIDDEN, detail))
        }
        Err(Refused::Missing) => missing(),
        Err(Refused::Wrong) => wrong(parts, api),
    };
    api.metrics.auth_refused.get_or_create(&ReasonLabel { reason }).inc();
    Err(problem)
}

fn missing() -> (&'static str, Problem) {
    ("missing", Problem::new(UNAUTHORIZED, Refused::Missing.to_string()))
}

fn wrong(parts: &Parts, api: &Api) -> (&'static str, Problem) {
    match api.failures.count(address(parts, api)) {
        Ok(()) => ("wrong", Problem::new(UNAUTHORIZED, Refused::Wrong.to_string())),
        Err(too_many) => ("too_many", too_many),
    }
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
    let is_trusted = |address: IpAddr| trusted.iter().any(|network| network.contains(address));
    let mut address = peer;
    let hops =
        headers.get_all(FORWARDED_FOR).iter().filter_map(|value| value.to_str().ok()).flat_map(|all| all.split(','));
    for hop in hops.collect::<Vec<_>>().into_iter().rev() {
        if !is_trusted(address) {
            break;
        }
        let Ok(hop) = hop.trim().parse() else { break };
        address = hop;
    }
    address
}

/// The query parameters in their order, repeated ones included.
pub(super) struct Params(pub(super) Vec<(String, String)>);

impl<S: Send + Sync> FromRequestParts<S> for Params {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Params, Infallible> {
        // A text that can't be parsed counts as no parameters.
        Ok(Params(Query::try_from_uri(&parts.uri).map_or_else(|_| Vec::new(), |query| query.0)))
    }
}

impl Params {
    /// Calls `take` with each parameter's name and value. It returns `None` for an unknown name, or what is wrong with the
    /// value. `taken` lists the known names, for the error.
    pub(super) fn read(
        &self,
        taken: &str,
        take: impl FnMut(&str, &str) -> Option<Result<(), String>>,
    ) -> Result<(), Problem> {
        let errors = self.errors(taken, take);
        if errors.is_empty() { Ok(()) } else { Err(Problem::listing(INVALID_PARAMETER, errors)) }
    }

    /// Like [`Params::read`], for a route that checks more once it has all parameters.
    pub(super) fn errors(
        &self,
        taken: &str,
        mut take: impl FnMut(&str, &str) -> Option<Result<(), String>>,
    ) -> Vec<FieldError> {
        let mut errors = Vec::new();
        for (name, value) in &self.0 {
            let unknown = || Err(format!("is not a parameter of this route; allowed parameters: {taken}"));
            if let Err(message) = take(name, value).unwrap_or_else(unknown) {
                errors.push(FieldError::new(name, message));
            }
        }
        errors
    }

    /// `wait`, for a route without other parameters.
    pub(super) fn wait(&self) -> Result<Option<Wait>, Problem> {
        let mut wait = None;
        self.read("wait", |name, value| {
            (name == "wait").then(|| Wait::parse(value).map(|parsed| wait = Some(parsed)))
        })?;
        Ok(wait)
    }
}

/// Parses a count from 1 to `most`.
pub(super) fn count_up_to(most: usize, value: &str) -> Result<usize, String> {
    let count = value.parse().ok().filter(|count| (1..=most).contains(count));
    count.ok_or_else(|| format!("must be from 1 to {most}, not {value:?}"))
}

/// Proof that an operator sent the request.
pub(super) struct Admin {
    /// The operator's name for the audit log.
    pub(super) actor: String,
}

impl FromRequestParts<Arc<Api>> for Admin {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, api: &Arc<Api>) -> Result<Admin, Problem> {
        let caller = authenticate(parts, api, Scope::Admin)?;
        Ok(Admin { actor: caller.actor().to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn params(pairs: &[(&str, &str)]) -> Params {
        Params(pairs.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect())
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
    fn a_misspelt_parameter_is_refused_and_not_ignored() {
        assert_eq!(params(&[]).wait().unwrap(), None);
        assert_eq!(params(&[("wait", "3")]).wait().unwrap(), Wait::parse("3").ok());
        assert!(params(&[("wiat", "3")]).wait().is_err());
        assert!(params(&[("wait", "long")]).wait().is_err());
    }

    #[test]
    fn all_wrong_parameters_are_reported_in_their_order() {
        let given = params(&[("a", "1"), ("x", "2"), ("a", "7"), ("y", "3")]);
        let mut taken = Vec::new();
        let errors = given.errors("a and b", |name, value| {
            (name == "a").then(|| count_up_to(6, value).map(|count| taken.push(count)))
        });
        let unknown = "is not a parameter of this route; allowed parameters: a and b";
        let expected = [("x", unknown), ("a", "must be from 1 to 6, not \"7\""), ("y", unknown)]
            .map(|(a, b)| FieldError::new(a, b));
        assert_eq!((errors, taken), (expected.to_vec(), vec![1]));
    }
}
