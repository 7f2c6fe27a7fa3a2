//! The part of the OpenAPI document that is not about one route: what the API is, who may call what, and the problems
//! and headers that are the same on many routes. Each route says what is its own; [`complete`] adds the rest.

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

/// What stands in `Authorization: Bearer`.
const BEARER: &str = "bearer";

/// What clients send: other fields than the known ones are refused.
const CLOSED: [&str; 6] =
    ["ActionRequest", "AnalyzeRequest", "BatchRequest", "JobFilter", "KeyRequest", "LimitsChange"];

/// The document before its routes.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "ceoagent",
        description = "Takes a decision question, has Claude analyse it behind a durable queue, and gives back a \
                       structured decision memo.\n\nEvery error is `application/problem+json` (RFC 9457) with a stable \
                       `code`. Every response has an `x-request-id`; a given one is kept."
    ),
    tags(
        (name = "analysis", description = "Ask, and collect the memo"),
        (name = "admin", description = "For operators; needs the admin token, or a key or token of scope `admin`"),
        (name = "service", description = "For monitoring")
    ),
    components(schemas(ProblemBody<'static>, Label)),
    modifiers(&Finish)
)]
pub(super) struct Document;

/// What the derive can't say.
struct Finish;

impl Modify for Finish {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        // The derive makes an empty one where Cargo.toml has none, which is not valid.
        document.info.license = None;
        let mut scheme = Http::new(HttpAuthScheme::Bearer);
        scheme.description = Some(
            "The admin token, an API key, or a JWT of the issuer that the service trusts. Each has a scope: `read` is \
             enough to look at one's own jobs, `analyze` also to ask, cancel and retry, `admin` for everything. A service \
             that has no keys and takes no JWTs leaves the routes of `analysis` open."
                .to_owned(),
        );
        document.components.get_or_insert_default().add_security_scheme(BEARER, SecurityScheme::Http(scheme));
    }
}

/// A route, as far as it tells what can go wrong on it.
struct Route {
    /// The scope that it takes; none if everybody may.
    scope: Option<Scope>,
    has_job: bool,
    has_query: bool,
    has_body: bool,
    has_json: bool,
}

/// A problem, and the routes that can have it.
type Shared = (Kind, fn(&Route) -> bool);

/// The problems that come from what routes have in common.
const SHARED: [Shared; 14] = [
    (INVALID_PARAMETER, |route| route.has_query),
    (INVALID_JOB_ID, |route| route.has_job),
    (INVALID_JSON, |route| route.has_json),
    (INVALID_BODY, |route| route.has_body),
    (UNAUTHORIZED, |route| route.scope.is_some()),
    // No scope is less than the least one.
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

/// Adds to every route what it shares with others.
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

/// A header or query parameter that is not given is left out: it is never null.
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

/// What a route takes: a credential of this scope, or none where the service is open to everybody.
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
            Some(_) if looks => Some(Scope::Read),
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

/// Adds a problem to what a route answers, or to what it says of that status.
fn add(operation: &mut Operation, kind: Kind) {
    let told = format!("`{}`", kind.code());
    let entry = operation.responses.responses.entry(kind.status().as_u16().to_string());
    let RefOr::T(response) = entry.or_insert_with(|| RefOr::T(Response::new(told.clone()))) else { return };
    if !response.description.contains(&told) {
        response.description = format!("{}; {told}", response.description);
    }
}

/// Adds what every answer of this status has.
fn furnish(status: &str, response: &mut Response) {
    let is_problem = status.starts_with(['4', '5']);
    if is_problem {
        let content = Content::new(Some(Ref::from_schema_name("Problem")));
        response.content.insert("application/problem+json".to_owned(), content.into());
    }
    let mut header = |name: &str, told: &str, kind| {
        let schema = Some(ObjectBuilder::new().schema_type(kind));
        let header = Header::builder().schema(schema).description(Some(told));
        response.headers.entry(name.to_owned()).or_insert_with(|| header.build().into());
    };
    header("x-request-id", "Names the request in the log", Type::String);
    if status == "401" {
        header("WWW-Authenticate", "`Bearer`", Type::String);
    }
    if matches!(status, "429" | "503") {
        header("Retry-After", "So many seconds later it may go better, if that can be said", Type::Integer);
    }
}
