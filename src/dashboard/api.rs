//! The pages' way to the API: its own routes, asked in process, so that nothing of what they do is written twice.

use std::net::SocketAddr;

use axum::{
    Router,
    body::{Body, to_bytes},
    extract::{ConnectInfo, Request},
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header, request::Parts},
    response::Response,
};
use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;
use tower::ServiceExt;

/// Largest answer that is read: 200 jobs with the largest memos there are.
const MAX_ANSWER_BYTES: usize = 256 << 20;

/// Headers by which a proxy tells the API where a request came from.
const ORIGIN_HEADERS: [HeaderName; 2] =
    [HeaderName::from_static("x-forwarded-for"), HeaderName::from_static("forwarded")];

/// The API.
pub(super) struct Api(Router);

/// On whose behalf it is asked.
#[derive(Clone, Debug, Default)]
pub(super) struct Caller {
    /// Goes along as a bearer token.
    pub(super) credential: Option<SecretString>,
    peer: Option<ConnectInfo<SocketAddr>>,
    headers: HeaderMap,
}

impl Caller {
    /// Whoever sent the request, without a credential.
    pub(super) fn of(parts: &Parts) -> Caller {
        let kept = ORIGIN_HEADERS.into_iter().filter_map(|name| {
            let value = parts.headers.get(&name)?.clone();
            Some((name, value))
        });
        Caller { credential: None, peer: parts.extensions.get().copied(), headers: kept.collect() }
    }

    /// The same, with a credential.
    pub(super) fn with(self, credential: SecretString) -> Caller {
        Caller { credential: Some(credential), ..self }
    }
}

/// What the API said.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    /// JSON; null where there was none.
    pub(super) body: Value,
}

impl Answer {
    /// The body of a success, else the answer as the error.
    pub(super) fn ok(self) -> Result<Value, Answer> {
        if self.status.is_success() { Ok(self.body) } else { Err(self) }
    }
}

impl Api {
    pub(super) fn new(router: Router) -> Api {
        Api(router)
    }

    pub(super) async fn get(&self, caller: &Caller, path: &str) -> Answer {
        self.ask(caller, Method::GET, path, HeaderMap::new(), None).await
    }

    pub(super) async fn post(&self, caller: &Caller, path: &str, body: Option<&Value>) -> Answer {
        self.ask(caller, Method::POST, path, HeaderMap::new(), body).await
    }

    pub(super) async fn ask(
        &self,
        caller: &Caller,
        method: Method,
        path: &str,
        headers: HeaderMap,
        body: Option<&Value>,
    ) -> Answer {
        let response = self.send(caller, method, path, headers, body).await;
        let status = response.status();
        let body = to_bytes(response.into_body(), MAX_ANSWER_BYTES).await.unwrap_or_default();
        Answer { status, body: serde_json::from_slice(&body).unwrap_or_default() }
    }

    /// The API's answer as it is, which may be a stream.
    pub(super) async fn send(
        &self,
        caller: &Caller,
        method: Method,
        path: &str,
        headers: HeaderMap,
        body: Option<&Value>,
    ) -> Response {
        let body = body.map(Value::to_string);
        let is_json = body.is_some();
        let mut request = Request::new(body.map_or_else(Body::empty, Body::from));
        *request.method_mut() = method;
        // Paths are made here, of ids and encoded parameters.
        *request.uri_mut() = path.parse().unwrap_or_default();
        let given = request.headers_mut();
        given.extend(caller.headers.clone());
        given.extend(headers);
        if is_json {
            given.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        }
        if let Some(credential) = &caller.credential
            && let Ok(mut value) = HeaderValue::try_from(format!("Bearer {}", credential.expose_secret()))
        {
            value.set_sensitive(true);
            given.insert(header::AUTHORIZATION, value);
        }
        if let Some(peer) = caller.peer {
            request.extensions_mut().insert(peer);
        }
        match self.0.clone().oneshot(request).await {
            Ok(response) => response,
            Err(never) => match never {},
        }
    }
}
