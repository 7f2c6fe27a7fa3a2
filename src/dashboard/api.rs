//! The pages' way to the API: its own routes, called in process.

use std::net::SocketAddr;

use axum::{
    Router,
    body::{Body, to_bytes},
    extract::{ConnectInfo, Request},
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header, request::Parts},
    response::Response,
};
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Value, json};
use tower::ServiceExt;

use crate::registry::Unavailable;

/// Largest answer that is read: 200 jobs with the largest memos there are.
const MAX_ANSWER_BYTES: usize = 256 << 20;

/// Headers by which a proxy names the address of a client.
const ORIGIN_HEADERS: [HeaderName; 2] =
    [HeaderName::from_static("x-forwarded-for"), HeaderName::from_static("forwarded")];

#[derive(Clone)]
pub(super) struct Api {
    routes: Router,
    pub(super) credential: Option<SecretString>,
    peer: Option<ConnectInfo<SocketAddr>>,
    headers: HeaderMap,
}

pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) body: Value,
}

impl Answer {
    /// The sessions can't be read or stored.
    pub(super) fn unavailable(error: &Unavailable) -> Answer {
        Answer { status: StatusCode::SERVICE_UNAVAILABLE, body: json!({ "detail": error.to_string() }) }
    }

    pub(super) fn ok(self) -> Result<Value, Answer> {
        if self.status.is_success() { Ok(self.body) } else { Err(self) }
    }
}

impl Api {
    pub(super) fn new(routes: Router, parts: &Parts, credential: Option<SecretString>) -> Api {
        let origin =
            ORIGIN_HEADERS.into_iter().filter_map(|name| Some((name.clone(), parts.headers.get(name)?.clone())));
        Api { routes, credential, peer: parts.extensions.get().copied(), headers: origin.collect() }
    }

    pub(super) async fn get(&self, path: &str) -> Answer {
        self.ask(request(Method::GET, path, None)).await
    }

    pub(super) async fn post(&self, path: &str, body: Option<&Value>) -> Answer {
        self.ask(request(Method::POST, path, body)).await
    }

    pub(super) async fn delete(&self, path: &str) -> Answer {
        self.ask(request(Method::DELETE, path, None)).await
    }

    pub(super) async fn ask(&self, request: Request) -> Answer {
        let response = self.send(request).await;
        let status = response.status();
        let body = to_bytes(response.into_body(), MAX_ANSWER_BYTES).await.unwrap_or_default();
        Answer { status, body: serde_json::from_slice(&body).unwrap_or_default() }
    }

    /// The response itself, which may be a stream.
    pub(super) async fn send(&self, mut request: Request) -> Response {
        let headers = request.headers_mut();
        headers.extend(self.headers.clone());
        if let Some(credential) = &self.credential
            && let Ok(mut value) = HeaderValue::try_from(format!("Bearer {}", credential.expose_secret()))
        {
            value.set_sensitive(true);
            headers.insert(header::AUTHORIZATION, value);
        }
        if let Some(peer) = self.peer {
            request.extensions_mut().insert(peer);
        }
        let Ok(response) = self.routes.clone().oneshot(request).await;
        response
    }
}

pub(super) fn request(method: Method, path: &str, body: Option<&Value>) -> Request {
    let mut request = Request::new(body.map_or_else(Body::empty, |body| Body::from(body.to_string())));
    *request.method_mut() = method;
    // Paths are made of ids and encoded parameters.
    *request.uri_mut() = path.parse().unwrap_or_default();
    if body.is_some() {
        request.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    }
    request
}
