//! The parts of the OpenAPI document that many routes share: title, security, common problems and headers. Each route
//! documents only its own; [`complete`] adds the rest.
//!
//! - `schemas`: open enums, descriptions of codes
//! - `webhooks`: the requests that the service sends

mod schemas;
mod webhooks;

use utoipa::{
    OpenApi,
    openapi::{
        Content, Header, HttpMethod, Ref, RefOr, Response,
        path::{Operation, Parameter, ParameterIn, PathItem},
        schema::{ObjectBuilder, Schema, SchemaType, Type},
        security::{Http, HttpAuthScheme, SecurityRequirement, SecurityScheme},
    },
};

use super::{
    events::JobEvent,
    listing::Label,
    problem::{
        BODY_TIMEOUT, BODY_TOO_LARGE, FORBIDDEN, FOREIGN_HOST, INTERNAL, INVALID_BODY, INVALID_HOST, INVALID_JOB_ID,
        INVALID_JSON, INVALID_PARAMETER, JOB_NOT_FOUND, Kind, ProblemBody, SERVER_BUSY, STORAGE_UNAVAILABLE, TIMEOUT,
        TOO_MANY_FAILURES, UNAUTHORIZED, UNSUPPORTED_MEDIA_TYPE, VALIDATION_FAILED,
    },
};
use crate::{
    auth::Scope,
    webhook::message::{Message, TestMessage},
};

const BEARER: &str = "bearer";

/// Operations that count as submissions.
const SUBMITTING: &[&str] = &["analyze", "analyze_batch", "resend_webhook", "retry_job", "test_webhook"];

/// Operations that answer page by page.
const LISTING: &[&str] =
    &["list_audit", "list_failing_webhooks", "list_jobs", "list_own_failing_webhooks", "list_own_jobs"];

/// Operations with a scope that do not need the store.
const IN_MEMORY: &[&str] = &["get_history", "get_limits", "get_stats", "list_keys", "list_prompts", "test_webhook"];

#[derive(OpenApi)]
#[openapi(
    info(
        title = "ceoagent",
        description = "Accepts a decision question, queues it durably, has Claude analyse it, and returns a structured \
                       decision memo.\n\nEvery error is `application/problem+json` (RFC 9457) with a stable `code`. Every \
                       response has an `x-request-id`: the one of the request, or a new one.\n\nWithin a version, \
                       fields, event types and codes can be added: ignore those that you do not know. An enum that can \
                       get new values is listed as `anyOf` with `string`. Durations and waiting times in headers are in \
                       whole seconds."
    ),
    servers((url = "/", description = "The service that this document is from")),
    tags(
        (name = "analysis", description = "Submit questions and get memos"),
        (name = "admin", description = "For operators. Needs the admin token, or a key or token with scope `admin`"),
        (name = "service", description = "Health and metrics, for monitoring"),
        (name = "webhooks", description = "Requests that the service sends")
    ),
    components(schemas(ProblemBody<'static>, Label, JobEvent<'static>, Message<'static>, TestMessage<'static>))
)]
pub(super) struct Document;

/// What decides which common problems a route can have.
struct Route {
    /// The needed scope; `None` for public routes.
    scope: Option<Scope>,
    needs_store: bool,
    has_job: bool,
    has_query: bool,
    has_body: bool,
    has_json: bool,
}

type Shared = (Kind, fn(&Route) -> bool);

const SHARED: [Shared; 18] = [
    (INVALID_HOST, |_| true),
    (INVALID_PARAMETER, |route| route.has_query),
    (INVALID_JOB_ID, |route| route.has_job),
    (INVALID_JSON, |route| route.has_json),
    (INVALID_BODY, |route| route.has_body),
    (UNAUTHORIZED, |route| route.scope.is_some()),
    // No scope is smaller than `read`.
    (FORBIDDEN, |route| route.scope.is_some_and(|scope| scope > Scope::Read)),
    // Only browsers get it.
    (FOREIGN_HOST, |_| true),
    (JOB_NOT_FOUND, |route| route.has_job),
    (BODY_TIMEOUT, |route| route.has_body),
    (BODY_TOO_LARGE, |route| route.has_body),
    (UNSUPPORTED_MEDIA_TYPE, |route| route.has_json),
    (VALIDATION_FAILED, |route| route.has_json),
    (TOO_MANY_FAILURES, |route| route.scope.is_some()),
    (INTERNAL, |_| true),
    (STORAGE_UNAVAILABLE, |route| route.needs_store),
    (SERVER_BUSY, |_| true),
    (TIMEOUT, |_| true),
];

/// Headers of some answers: of which operations (`&[]`: of all), with which statuses, and the description.
const HEADERS: [(&[&str], &str, &str, &str); 7] = [
    (&[], "401", "WWW-Authenticate", "`Bearer`"),
    (
        SUBMITTING,
        "200 202 429",
        "RateLimit",
        "The caller's quota, if SUBMITS_PER_MINUTE is set: `r` submissions are left; in `t` seconds it is full again",
    ),
    (SUBMITTING, "200 202 429", "RateLimit-Policy", "The caller's quota: `q` submissions in `w` seconds"),
    (LISTING, "200", "Link", "The address of the next page as `rel=\"next\"`; absent on the last page"),
    (&["analyze"], "200 202 409 502 504", "Location", "The job"),
    (&["analyze", "get_job"], "200 202 304", "Preference-Applied", "`wait=N`, if `Prefer` was honoured"),
    (&["get_job"], "200 304", "ETag", "The job's version, for `If-None-Match`"),
];

pub(super) fn complete(document: &mut utoipa::openapi::OpenApi) {
    // Cargo.toml has no `license`, which is for the owner of the service to set. The macro makes an empty one, which is
    // not valid.
    document.info.license.take_if(|license| license.name.is_empty());
    document.webhooks = Some(webhooks::webhooks());
    let components = document.components.get_or_insert_default();
    schemas::complete(components);
    let mut scheme = Http::new(HttpAuthScheme::Bearer);
    scheme.description = Some(
        "The admin token, an API key, or a JWT of the trusted issuer. Each has a scope: `read` allows reading your \
         own jobs; `analyze` also submitting, cancelling, retrying and deleting them; `admin` everything. If the service has no \
         API keys and accepts no JWTs, the `analysis` routes need no credential."
            .to_owned(),
    );
    components.add_security_scheme(BEARER, SecurityScheme::Http(scheme));
    for (path, item) in &mut document.paths.paths {
        for (method, operation) in operations(item) {
            let route = Route::of(path, &method, operation);
            operation.parameters.iter_mut().flatten().for_each(unnull);
            operation.security = Some(route.scope.map_or_else(Vec::new, security));
            for (kind, _) in SHARED.iter().filter(|(_, concerns)| concerns(&route)) {
                add(operation, *kind);
            }
            for (status, response) in &mut operation.responses.responses {
                if let RefOr::T(response) = response {
                    furnish(operation.operation_id.as_deref().unwrap_or_default(), status, response);
                }
            }
        }
    }
}

fn operations(item: &mut PathItem) -> impl Iterator<Item = (HttpMethod, &mut Operation)> {
    let PathItem { get, post, patch, delete, .. } = item;
    let all =
        [(HttpMethod::Get, get), (HttpMethod::Post, post), (HttpMethod::Patch, patch), (HttpMethod::Delete, delete)];
    all.into_iter().filter_map(|(method, operation)| Some((method, operation.as_mut()?)))
}

/// Removes `null` from a parameter's type: an absent header or query parameter is never null.
fn unnull(parameter: &mut RefOr<Parameter>) {
    let RefOr::T(Parameter { schema: Some(RefOr::T(schema)), .. }) = parameter else { return };
    let kinds = match schema {
        Schema::Object(object) => &mut object.schema_type,
        Schema::Array(array) => &mut array.schema_type,
        _ => return,
    };
    if let SchemaType::Array(listed) = kinds {
        listed.retain(|kind| *kind != Type::Null);
        if let [only] = &listed[..] {
            *kinds = SchemaType::Type(only.clone());
        }
    }
}

/// A service without API keys needs no credentials, except for admin routes.
fn security(scope: Scope) -> Vec<SecurityRequirement> {
    let needs_nothing = (scope < Scope::Admin).then(SecurityRequirement::default);
    [SecurityRequirement::new(BEARER, [scope.to_string()])].into_iter().chain(needs_nothing).collect()
}

impl Route {
    fn of(path: &str, method: &HttpMethod, operation: &Operation) -> Route {
        let looks = *method == HttpMethod::Get;
        let scope = match path.strip_prefix("/api/v1/") {
            None => None,
            Some(rest) if rest.starts_with("admin/") => Some(Scope::Admin),
            // With the secret, anybody can forge messages to the caller's receivers.
            Some(rest) if looks && rest != "webhooks/secret" => Some(Scope::Read),
            Some(_) => Some(Scope::Analyze),
        };
        let body = operation.request_body.as_ref().and_then(|body| match body {
            RefOr::T(body) => Some(body),
            RefOr::Ref(_) => None,
        });
        let mut parameters = operation.parameters.iter().flatten();
        let is_in_memory = operation.operation_id.as_deref().is_some_and(|id| IN_MEMORY.contains(&id));
        Route {
            scope,
            needs_store: scope.is_some() && !is_in_memory,
            has_job: path.contains("/jobs/{id}"),
            has_query: parameters
                .any(|parameter| matches!(parameter, RefOr::T(known) if known.parameter_in == ParameterIn::Query)),
            has_body: body.is_some(),
            has_json: body.is_some_and(|body| body.content.contains_key("application/json")),
        }
    }
}

/// Adds a problem to a route's responses, or to the description of an existing response.
fn add(operation: &mut Operation, kind: Kind) {
    let code = format!("`{}`", kind.code());
    let entry = operation.responses.responses.entry(kind.status().as_u16().to_string());
    let RefOr::T(response) = entry.or_insert_with(|| RefOr::T(Response::new(code.clone()))) else { return };
    if !response.description.contains(&code) {
        response.description = format!("{}; {code}", response.description);
    }
}

/// Adds the body and headers that every response of this status has.
fn furnish(operation: &str, status: &str, response: &mut Response) {
    if status.starts_with(['4', '5']) {
        let content = Content::new(Some(Ref::from_schema_name("Problem")));
        response.content.insert("application/problem+json".to_owned(), content.into());
    }
    let mut header = |name: &str, description: &str, kind| {
        let schema = Some(ObjectBuilder::new().schema_type(kind));
        let header = Header::builder().schema(schema).description(Some(description));
        response.headers.entry(name.to_owned()).or_insert_with(|| header.build().into());
    };
    header("x-request-id", "The request's id, also in the log", Type::String);
    if matches!(status, "429" | "503") {
        header("Retry-After", "Seconds to wait before the next try, if known", Type::Integer);
    }
    for (operations, statuses, name, description) in HEADERS {
        if (operations.is_empty() || operations.contains(&operation)) && statuses.contains(status) {
            header(name, description, Type::String);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    fn document() -> Value {
        serde_json::to_value(crate::http::openapi()).unwrap()
    }

    #[test]
    fn an_answer_can_have_a_new_value_of_an_open_enum_and_a_request_cannot() {
        let document = document();
        let schemas = &document["components"]["schemas"];
        let property = |schema: &str, name: &str| schemas[schema]["properties"][name].clone();
        for (schema, name, known) in [
            ("Problem", "code", "ProblemCode"),
            ("AttemptError", "code", "FailureCode"),
            ("Attempt", "outcome", "AttemptOutcome"),
            ("Outlook", "waiting_for", "WaitingFor"),
            ("Flag", "code", "FlagCode"),
            ("WebhookMessage", "type", "CallbackEvent"),
        ] {
            let open = json!([{"$ref": format!("#/components/schemas/{known}")}, {"type": "string"}]);
            assert_eq!(property(schema, name)["anyOf"], open, "{schema}.{name}");
            assert!(schemas[known]["enum"].is_array(), "{known}");
        }
        assert_eq!(property("JobFilter", "code")["items"]["$ref"], "#/components/schemas/FailureCode");
        for request in ["AnalyzeRequest", "BatchRequest", "ActionRequest", "JobFilter", "KeyRequest", "LimitsChange"] {
            assert_eq!(schemas[request]["additionalProperties"], false, "{request}");
        }
    }

    #[test]
    fn no_description_has_a_note_for_those_who_write_the_service() {
        let mut parts = vec![document()];
        while let Some(part) = parts.pop() {
            if let Some(text) = part["description"].as_str() {
                let internal = ["[`", "::", "Option<", "Vec<", "serde", "utoipa", "schema of the"];
                assert!(internal.iter().all(|note| !text.contains(note)), "{text}");
            }
            match part {
                Value::Object(fields) => parts.extend(fields.into_iter().map(|(_, part)| part)),
                Value::Array(items) => parts.extend(items),
                _ => {}
            }
        }
    }
}
