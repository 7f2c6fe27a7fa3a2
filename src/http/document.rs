//! The parts of the OpenAPI document that many routes share: title, security, common problems and headers. Each route
//! documents only its own; [`complete`] adds the rest.

use utoipa::{
    Modify, OpenApi,
    openapi::{
        Content, Header, HttpMethod, Ref, RefOr, Response,
        path::{Operation, Parameter, ParameterIn, PathItem},
        schema::{AdditionalProperties, ObjectBuilder, Schema, SchemaType, Type},
        security::{Http, HttpAuthScheme, SecurityRequirement, SecurityScheme},
    },
};

use super::{
    admin::Label,
    problem::{
        BODY_TIMEOUT, BODY_TOO_LARGE, FORBIDDEN, INTERNAL, INVALID_BODY, INVALID_JOB_ID, INVALID_JSON,
        INVALID_PARAMETER, JOB_NOT_FOUND, Kind, ProblemBody, TIMEOUT, TOO_MANY_FAILURES, UNAUTHORIZED,
        UNSUPPORTED_MEDIA_TYPE, VALIDATION_FAILED,
    },
};
use crate::auth::Scope;

/// The name of the security scheme `Authorization: Bearer`.
const BEARER: &str = "bearer";

/// Schemas of request bodies, which refuse unknown fields.
const CLOSED: [&str; 8] = [
    "ActionRequest",
    "AnalyzeRequest",
    "BatchRequest",
    "JobFilter",
    "KeyRequest",
    "LimitsChange",
    "RotationRequest",
    "WebhookTestRequest",
];

/// The document before its routes.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "ceoagent",
        description = "Accepts a decision question, queues it durably, has Claude analyse it, and returns a structured \
                       decision memo.\n\nEvery error is `application/problem+json` (RFC 9457) with a stable `code`. Every \
                       response has an `x-request-id`: the one of the request, or a new one."
    ),
    tags(
        (name = "analysis", description = "Submit questions and get memos"),
        (name = "admin", description = "For operators. Needs the admin token, or a key or token with scope `admin`"),
        (name = "service", description = "Health and metrics, for monitoring")
    ),
    components(schemas(ProblemBody<'static>, Label)),
    modifiers(&Finish)
)]
pub(super) struct Document;

/// Changes that the derive macro can't express.
struct Finish;

impl Modify for Finish {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        // Without a license in Cargo.toml the derive macro adds an empty one, which is not valid.
        document.info.license = None;
        let mut scheme = Http::new(HttpAuthScheme::Bearer);
        scheme.description = Some(
            "The admin token, an API key, or a JWT of the trusted issuer. Each has a scope: `read` allows reading your \
             own jobs; `analyze` also submitting, cancelling, retrying and deleting them; `admin` everything. If the service has no \
             API keys and accepts no JWTs, the `analysis` routes need no credential."
                .to_owned(),
        );
        document.components.get_or_insert_default().add_security_scheme(BEARER, SecurityScheme::Http(scheme));
    }
}

/// What decides which common problems a route can have.
struct Route {
    /// The needed scope; `None` for public routes.
    scope: Option<Scope>,
    has_job: bool,
    has_query: bool,
    has_body: bool,
    has_json: bool,
}

/// A problem and which routes can have it.
type Shared = (Kind, fn(&Route) -> bool);

/// The common problems.
const SHARED: [Shared; 14] = [
    (INVALID_PARAMETER, |route| route.has_query),
    (INVALID_JOB_ID, |route| route.has_job),
    (INVALID_JSON, |route| route.has_json),
    (INVALID_BODY, |route| route.has_body),
    (UNAUTHORIZED, |route| route.scope.is_some()),
    // No scope is smaller than `read`.
    (FORBIDDEN, |route| route.scope.is_some_and(|scope| scope > Scope::Read)),
    (JOB_NOT_FOUND, |route| route.has_job),
    (BODY_TIMEOUT, |route| route.has_body),
    (BODY_TOO_LARGE, |route| route.has_body),
    (UNSUPPORTED_MEDIA_TYPE, |route| route.has_json),
    (VALIDATION_FAILED, |route| route.has_json),
    (TOO_MANY_FAILURES, |route| route.scope.is_some()),
    (INTERNAL, |_| true),
    (TIMEOUT, |_| true),
];

/// Adds the shared parts to every route.
pub(super) fn complete(document: &mut utoipa::openapi::OpenApi) {
    let schemas = &mut document.components.get_or_insert_default().schemas;
    for name in CLOSED {
        if let Some(RefOr::T(Schema::Object(object))) = schemas.get_mut(name) {
            object.additional_properties = Some(Box::new(AdditionalProperties::FreeForm(false)));
        }
    }
    for (path, item) in &mut document.paths.paths {
        for (method, operation) in operations(item) {
            let route = Route::of(path, &method, operation);
            operation.parameters.iter_mut().flatten().for_each(unnull);
            operation.security = route.scope.map(security);
            for (kind, concerns) in SHARED {
                if concerns(&route) {
                    add(operation, kind);
                }
            }
            for (status, response) in &mut operation.responses.responses {
                if let RefOr::T(response) = response {
                    furnish(status, response);
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

/// The credentials of a route: this scope or, except for admin routes, also none, because a service without API keys needs
/// none.
fn security(scope: Scope) -> Vec<SecurityRequirement> {
    let none = (scope < Scope::Admin).then(SecurityRequirement::default);
    [SecurityRequirement::new(BEARER, [scope.to_string()])].into_iter().chain(none).collect()
}

impl Route {
    fn of(path: &str, method: &HttpMethod, operation: &Operation) -> Route {
        let looks = *method == HttpMethod::Get;
        let scope = match path.strip_prefix("/api/v1/") {
            None => None,
            Some(rest) if rest.starts_with("admin/") => Some(Scope::Admin),
            // Whoever has the secret can forge messages to the caller's receivers.
            Some(rest) if looks && rest != "webhooks/secret" => Some(Scope::Read),
            Some(_) => Some(Scope::Analyze),
        };
        let body = operation.request_body.as_ref().and_then(|body| match body {
            RefOr::T(body) => Some(body),
            RefOr::Ref(_) => None,
        });
        let mut parameters = operation.parameters.iter().flatten();
        Route {
            scope,
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
fn furnish(status: &str, response: &mut Response) {
    let is_problem = status.starts_with(['4', '5']);
    if is_problem {
        let content = Content::new(Some(Ref::from_schema_name("Problem")));
        response.content.insert("application/problem+json".to_owned(), content.into());
    }
    let mut header = |name: &str, description: &str, kind| {
        let schema = Some(ObjectBuilder::new().schema_type(kind));
        let header = Header::builder().schema(schema).description(Some(description));
        response.headers.entry(name.to_owned()).or_insert_with(|| header.build().into());
    };
    header("x-request-id", "The request's id, also in the log", Type::String);
    if status == "401" {
        header("WWW-Authenticate", "`Bearer`", Type::String);
    }
    if matches!(status, "429" | "503") {
        header("Retry-After", "Seconds to wait before the next try, if known", Type::Integer);
    }
}
