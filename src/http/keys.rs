//! `/api/v1/admin/keys`: creates, lists and revokes API keys.

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
    api::Api,
    body::JsonBody,
    extract::Admin,
    problem::{CONFLICT, FieldError, KEY_NOT_FOUND, Problem, VALIDATION_FAILED},
};
use crate::{
    auth::{self, Key, KeyError, Scope},
    clock::Timestamp,
};

/// An API key to create.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields, expecting = "an object")]
pub(super) struct KeyRequest {
    /// Name of the key, shown as `caller` of its jobs: up to 64 letters, digits or `. _ - @`. Several
    /// keys of a caller are named `caller/key`.
    #[schema(required, value_type = String, min_length = 1, max_length = 64, pattern = "^[A-Za-z0-9._@-]+(/[A-Za-z0-9._@-]+)?$")]
    name: Option<String>,
    /// Default `analyze`.
    scope: Option<Scope>,
}

/// A new API key.
#[derive(Serialize, ToSchema)]
pub(super) struct NewKey {
    /// The secret key. It is shown only once; the service stores its hash.
    key: String,
    #[serde(flatten)]
    known: Shown,
    /// What to do next. Present only while the service requires no keys.
    #[serde(skip_serializing_if = "Option::is_none")]
    notice: Option<&'static str>,
}

const NO_KEY_REQUIRED: &str = "This service does not require API keys: the key only names its caller. To require keys, \
                               start the service with REQUIRE_API_KEY=true.";

/// All API keys.
#[derive(Serialize, ToSchema)]
pub(super) struct KeyList {
    /// Sorted by name, including revoked keys.
    keys: Vec<Shown>,
}

/// An API key without its secret.
#[derive(Serialize, ToSchema)]
#[schema(as = ApiKey)]
pub(super) struct Shown {
    /// Name of the key, shown as `caller` of its jobs.
    name: String,
    scope: Scope,
    /// When the key was created. Absent for keys of the setting API_KEYS.
    #[serde(skip_serializing_if = "Option::is_none")]
    created_at: Option<Timestamp>,
    /// The operator who created the key. Absent for keys of the setting API_KEYS.
    #[serde(skip_serializing_if = "Option::is_none")]
    created_by: Option<String>,
    /// When the key was revoked. Absent while the key is valid.
    #[serde(skip_serializing_if = "Option::is_none")]
    revoked_at: Option<Timestamp>,
}

impl From<Key> for Shown {
    fn from(key: Key) -> Shown {
        let Key { name, scope, created_at, created_by, revoked_at, .. } = key;
        Shown { name, scope, created_at, created_by, revoked_at }
    }
}

/// List the API keys
///
/// Also those that are revoked and those of the setting API_KEYS, without their secrets.
#[utoipa::path(
    get, path = "/api/v1/admin/keys", operation_id = "list_keys", tag = "admin",
    responses((status = 200, description = "All keys, without their secrets", body = KeyList))
)]
pub(super) async fn list(_: Admin, State(api): State<Arc<Api>>) -> Json<KeyList> {
    Json(KeyList { keys: api.auth.keys().into_iter().map(Shown::from).collect() })
}

/// Create an API key
///
/// Only this response shows the key. The setting REQUIRE_API_KEY decides whether callers need a key. While it is false,
/// a key only names its caller, and `notice` says so.
#[utoipa::path(
    post, path = "/api/v1/admin/keys", operation_id = "create_key", tag = "admin",
    request_body = KeyRequest,
    responses(
        (status = 201, description = "The new key", body = NewKey),
        (status = 409, description = "`conflict`: the name is in use, or there are too many keys")
    )
)]
pub(super) async fn create(
    admin: Admin,
    State(api): State<Arc<Api>>,
    request: JsonBody<KeyRequest>,
) -> Result<(StatusCode, Json<NewKey>), Problem> {
    let (name, scope) = request.checked(|KeyRequest { name, scope }| {
        let name = name.unwrap_or_default();
        let wrong = || vec![FieldError::new("name", KeyError::BadName.to_string())];
        auth::is_name(&name).then_some((name, scope.unwrap_or(Scope::Analyze))).ok_or_else(wrong)
    })?;
    let (key, secret) = api.auth.create(&name, scope, &admin.actor).await?;
    admin.record(&api, "key_create", Some(&format!("{name} ({scope})"))).await?;
    let notice = api.auth.is_open().then_some(NO_KEY_REQUIRED);
    Ok((StatusCode::CREATED, Json(NewKey { key: secret.expose_secret().to_owned(), known: key.into(), notice })))
}

/// Revoke an API key
///
/// The key stops working at once. Its jobs stay, visible to operators.
#[utoipa::path(
    delete, path = "/api/v1/admin/keys/{name}", operation_id = "revoke_key", tag = "admin",
    params(("name" = String, Path, description = "The key's name")),
    responses(
        (status = 200, description = "The revoked key", body = Shown),
        (status = 404, description = "`key_not_found`"),
        (status = 409, description = "`conflict`: the key comes from the setting API_KEYS")
    )
)]
pub(super) async fn revoke(
    admin: Admin,
    State(api): State<Arc<Api>>,
    name: Result<Path<String>, PathRejection>,
) -> Result<Json<Shown>, Problem> {
    // A name that is not UTF-8 is not the name of a key.
    let Path(name) = name.map_err(|_| KeyError::NotFound(String::new()))?;
    let key = api.auth.revoke(&name).await?;
    admin.record(&api, "key_revoke", Some(&key.name)).await?;
    Ok(Json(key.into()))
}

impl From<KeyError> for Problem {
    fn from(error: KeyError) -> Problem {
        let detail = error.to_string();
        match error {
            KeyError::Exists(_) | KeyError::OfSettings(_) | KeyError::TooMany => Problem::new(CONFLICT, detail),
            KeyError::NotFound(_) => Problem::new(KEY_NOT_FOUND, detail),
            KeyError::BadName => Problem::listing(VALIDATION_FAILED, vec![FieldError::new("name", detail)]),
            KeyError::Unavailable(error) => error.into(),
        }
    }
}
