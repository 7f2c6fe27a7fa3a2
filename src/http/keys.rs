//! `/api/v1/admin/keys`: the API keys of callers, to make, list and revoke.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Path, State, rejection::PathRejection},
    http::StatusCode,
};
use secrecy::ExposeSecret;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    Api,
    body::JsonBody,
    extract::Admin,
    problem::{CONFLICT, FieldError, KEY_NOT_FOUND, Problem, VALIDATION_FAILED},
};
use crate::{
    auth::{Key, KeyError, Scope},
    queue::audit::Deed,
};

/// A key that is wanted.
#[derive(Deserialize, ToSchema)]
pub(super) struct KeyRequest {
    /// Names the key and its callers: up to 64 letters, digits or any of `. _ - @`.
    #[schema(required, value_type = String, min_length = 1, max_length = 64, pattern = "^[A-Za-z0-9._@-]+$")]
    name: Option<String>,
    /// What it may be used for; `analyze` if absent.
    scope: Option<Scope>,
}

/// A key that was made.
#[derive(Serialize, ToSchema)]
pub(super) struct NewKey {
    /// The key itself, shown only once: the service stores its hash.
    key: String,
    #[serde(flatten)]
    known: Shown,
    /// What else to do; only while the service needs no keys, and so this one only names its caller.
    #[serde(skip_serializing_if = "Option::is_none")]
    notice: Option<&'static str>,
}

/// For the answer to a new key while the service needs none.
const NO_KEY_REQUIRED: &str = "This service does not require API keys: the key only names its caller. To require keys, \
                               start the service with REQUIRE_API_KEY=true.";

/// All keys.
#[derive(Serialize, ToSchema)]
pub(super) struct KeyList {
    /// By name, revoked ones included.
    keys: Vec<Shown>,
}

/// A key without what it takes to use it.
#[derive(Serialize, ToSchema)]
#[schema(as = ApiKey)]
pub(super) struct Shown {
    /// Names the key and its callers.
    name: String,
    /// What it may be used for.
    scope: Scope,
    /// When it was made; absent for one of the setting API_KEYS.
    #[schema(value_type = Option<String>, format = DateTime)]
    #[serde(skip_serializing_if = "Option::is_none")]
    created_at: Option<crate::clock::Timestamp>,
    /// Which operator made it; absent for one of the setting API_KEYS.
    #[serde(skip_serializing_if = "Option::is_none")]
    created_by: Option<String>,
    /// When it was revoked; absent while it is in force.
    #[schema(value_type = Option<String>, format = DateTime)]
    #[serde(skip_serializing_if = "Option::is_none")]
    revoked_at: Option<crate::clock::Timestamp>,
}

impl From<Key> for Shown {
    fn from(key: Key) -> Shown {
        let Key { name, scope, created_at, created_by, revoked_at, .. } = key;
        Shown { name, scope, created_at, created_by, revoked_at }
    }
}

/// List the API keys
#[utoipa::path(
    get, path = "/api/v1/admin/keys", operation_id = "list_keys", tag = "admin",
    responses(
        (status = 200, description = "All keys, without what it takes to use them", body = KeyList)
    )
)]
pub(super) async fn list(_: Admin, State(api): State<Arc<Api>>) -> Json<KeyList> {
    Json(KeyList { keys: api.auth.keys().into_iter().map(Shown::from).collect() })
}

/// Make an API key
///
/// The answer shows it only once. Whether callers need a key is the setting REQUIRE_API_KEY: while it is false, a key only
/// names its caller, and `notice` says so.
#[utoipa::path(
    post, path = "/api/v1/admin/keys", operation_id = "create_key", tag = "admin",
    request_body = KeyRequest,
    responses(
        (status = 201, description = "The key", body = NewKey),
        (status = 409, description = "`conflict`: there is one of that name, or there are too many"),
        (status = 503, description = "`storage_unavailable`")
    )
)]
pub(super) async fn create(
    admin: Admin,
    State(api): State<Arc<Api>>,
    JsonBody(request): JsonBody<KeyRequest>,
) -> Result<(StatusCode, Json<NewKey>), Problem> {
    let name = request.name.unwrap_or_default();
    let scope = request.scope.unwrap_or(Scope::Analyze);
    let (key, secret) = api.auth.create(&name, scope, &admin.actor).await?;
    let detail = format!("{name} ({scope})");
    api.queue.note(Deed { actor: &admin.actor, action: "key_create", detail: Some(&detail) }, None).await?;
    let notice = api.auth.is_open().then_some(NO_KEY_REQUIRED);
    Ok((StatusCode::CREATED, Json(NewKey { key: secret.expose_secret().to_owned(), known: key.into(), notice })))
}

/// Revoke an API key
///
/// It opens nothing from this moment on. Its jobs stay, for operators to see.
#[utoipa::path(
    delete, path = "/api/v1/admin/keys/{name}", operation_id = "revoke_key", tag = "admin",
    params(("name" = String, Path, description = "The key's name")),
    responses(
        (status = 200, description = "The key, revoked", body = Shown),
        (status = 404, description = "`key_not_found`"),
        (status = 409, description = "`conflict`: it is one of the setting API_KEYS"),
        (status = 503, description = "`storage_unavailable`")
    )
)]
pub(super) async fn revoke(
    admin: Admin,
    State(api): State<Arc<Api>>,
    name: Result<Path<String>, PathRejection>,
) -> Result<Json<Shown>, Problem> {
    // What is no text is no key's name.
    let Path(name) = name.map_err(|_| KeyError::NotFound(String::new()))?;
    let key = api.auth.revoke(&name).await?;
    api.queue.note(Deed { actor: &admin.actor, action: "key_revoke", detail: Some(&key.name) }, None).await?;
    Ok(Json(key.into()))
}

impl From<KeyError> for Problem {
    fn from(error: KeyError) -> Problem {
        let detail = error.to_string();
        match error {
            KeyError::Exists(_) | KeyError::OfSettings(_) | KeyError::TooMany => Problem::new(CONFLICT, detail),
            KeyError::NotFound(_) => Problem::new(KEY_NOT_FOUND, detail),
            KeyError::BadName => Problem::listing(VALIDATION_FAILED, vec![FieldError::new("name", detail)]),
            KeyError::Queue(error) => error.into(),
        }
    }
}
