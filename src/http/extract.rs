//! The parts of a request that more than one route reads, with their errors as problems.

use std::{convert::Infallible, sync::Arc};

use axum::{
    extract::{FromRequestParts, Path, Query},
    http::{header, request::Parts},
};
use secrecy::ExposeSecret;
use subtle::ConstantTimeEq;

use super::{
    Api,
    problem::{FieldError, INVALID_JOB_ID, INVALID_PARAMETER, Problem, UNAUTHORIZED},
    wait::Wait,
};
use crate::job::JobId;

/// The `{id}` of the path.
pub(super) struct Id(pub(super) JobId);

impl<S: Send + Sync> FromRequestParts<S> for Id {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Id, Problem> {
        let id = Path::<JobId>::from_request_parts(parts, state).await.map_err(|_| {
            let detail = "the id in the path is not a UUID such as 019aaf2e-5c3d-7a10-8f3b-2d9e4c6b1a70";
            Problem::new(INVALID_JOB_ID, detail)
        })?;
        Ok(Id(id.0))
    }
}

/// The query parameters as they came, repeated ones included.
pub(super) struct Params(pub(super) Vec<(String, String)>);

impl<S: Send + Sync> FromRequestParts<S> for Params {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Params, Infallible> {
        // Any text is a list of pairs, if need be an empty one.
        Ok(Params(Query::try_from_uri(&parts.uri).map_or_else(|_| Vec::new(), |query| query.0)))
    }
}

impl Params {
    /// `wait`, where that is the only parameter there is.
    pub(super) fn wait(&self) -> Result<Option<Wait>, Problem> {
        let mut wait = None;
        let mut errors = Vec::new();
        for (name, value) in &self.0 {
            match (name.as_str(), Wait::parse(value)) {
                ("wait", Ok(parsed)) => wait = Some(parsed),
                ("wait", Err(message)) => errors.push(FieldError::new("wait", message)),
                _ => errors.push(FieldError::new(name, "is not a parameter of this route, which takes wait")),
            }
        }
        if errors.is_empty() { Ok(wait) } else { Err(Problem::listing(INVALID_PARAMETER, errors)) }
    }
}

/// What the audit log calls who has the admin token.
const ADMIN_TOKEN: &str = "admin_token";

/// Proof that an operator sent the request.
pub(super) struct Admin {
    /// Who, as the audit log has it.
    pub(super) actor: String,
}

impl FromRequestParts<Arc<Api>> for Admin {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, api: &Arc<Api>) -> Result<Admin, Problem> {
        let Some(given) = parts.headers.get(header::AUTHORIZATION) else {
            return Err(Problem::new(UNAUTHORIZED, "send the admin token as Authorization: Bearer <ADMIN_TOKEN>"));
        };
        if admits(api.admin_token.expose_secret(), given.as_bytes()) {
            Ok(Admin { actor: ADMIN_TOKEN.to_owned() })
        } else {
            Err(Problem::new(UNAUTHORIZED, "the Authorization header does not hold Bearer and the right admin token"))
        }
    }
}

/// True if `header` is `Bearer` and the token, which is not empty. Takes the same time for every wrong token of a length.
fn admits(token: &str, header: &[u8]) -> bool {
    let Some((scheme, given)) = header.split_at_checked("Bearer ".len()) else { return false };
    let right: bool = given.trim_ascii().ct_eq(token.as_bytes()).into();
    scheme.eq_ignore_ascii_case(b"Bearer ") && right && !token.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_right_token_opens_the_admin_routes() {
        assert!(admits("s3cret", b"Bearer s3cret"));
        assert!(admits("s3cret", b"bearer  s3cret"));
        for wrong in ["Bearer s3cre", "Bearer s3cret1", "Bearer", "s3cret", "Basic s3cret", "Bearer ", ""] {
            assert!(!admits("s3cret", wrong.as_bytes()), "{wrong:?}");
        }
        assert!(!admits("", b"Bearer "), "a service without a token lets nobody in");
    }

    fn params(pairs: &[(&str, &str)]) -> Params {
        Params(pairs.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect())
    }

    #[test]
    fn a_misspelt_parameter_is_told_and_not_ignored() {
        assert_eq!(params(&[]).wait().unwrap(), None);
        assert_eq!(params(&[("wait", "3")]).wait().unwrap(), Wait::parse("3").ok());
        assert!(params(&[("wiat", "3")]).wait().is_err());
        assert!(params(&[("wait", "long")]).wait().is_err());
    }
}
