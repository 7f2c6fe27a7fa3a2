//! `/api/v1/admin/jobs`: every job, page by page, for operators.

use std::sync::Arc;

use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response},
};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use serde::Serialize;
use strum::VariantNames;
use utoipa::ToSchema;

use super::{
    Api,
    extract::{Admin, Params},
    problem::{FieldError, INVALID_PARAMETER, Problem, ProblemBody},
    view::JobView,
};
use crate::job::{JobFilter, JobStatus, StatusCounts};

/// Jobs on a page if the client does not say.
const DEFAULT_LIMIT: usize = 50;

/// Most jobs on a page: each is read from disk.
const MAX_LIMIT: usize = 200;

/// A page of jobs, newest first.
#[derive(Serialize, ToSchema)]
pub(super) struct JobList<'a> {
    /// The jobs.
    jobs: Vec<JobView<'a>>,
    /// Give it as `cursor` for the next page; null on the last one.
    next_cursor: Option<String>,
    /// How many jobs there are in all, by status, whatever the filter.
    total: StatusCounts,
}

/// List jobs, newest first
#[utoipa::path(
    get, path = "/api/v1/admin/jobs", tag = "admin",
    security(("admin_token" = [])),
    params(
        ("status" = Option<Vec<JobStatus>>, Query, description = "Any of these; repeat the parameter for more than one"),
        ("limit" = Option<usize>, Query, description = "Jobs on a page: 1 to 200, 50 if absent", minimum = 1,
            maximum = 200),
        ("cursor" = Option<String>, Query, description = "The `next_cursor` of the page before")
    ),
    responses(
        (status = 200, description = "A page of jobs", body = JobList<'static>),
        (status = 400, description = "`invalid_parameter`", body = ProblemBody<'static>,
            content_type = "application/problem+json"),
        (status = 401, description = "`unauthorized`", body = ProblemBody<'static>,
            content_type = "application/problem+json"),
        (status = 503, description = "`storage_unavailable`", body = ProblemBody<'static>,
            content_type = "application/problem+json")
    )
)]
pub(super) async fn list(_: Admin, State(api): State<Arc<Api>>, params: Params) -> Result<Response, Problem> {
    let filter = filter(&params).map_err(|errors| Problem::listing(INVALID_PARAMETER, errors))?;
    let page = api.queue.list(filter).await?;
    let now = api.queue.now();
    let list = JobList {
        jobs: page.jobs.iter().map(|record| api.view(record, now)).collect(),
        next_cursor: page.next.map(encode_cursor),
        total: api.queue.counts(),
    };
    Ok(Json(list).into_response())
}

/// The filter that the parameters ask for, or everything that is wrong with them.
fn filter(params: &Params) -> Result<JobFilter, Vec<FieldError>> {
    let mut filter = JobFilter { statuses: Vec::new(), limit: DEFAULT_LIMIT, before: None };
    let mut errors = Vec::new();
    for (name, value) in &params.0 {
        let wrong = match name.as_str() {
            "status" => match value.parse() {
                Ok(status) => {
                    filter.statuses.push(status);
                    continue;
                }
                Err(_) => format!("must be one of {}, not {value:?}", JobStatus::VARIANTS.join(", ")),
            },
            "limit" => match value.parse() {
                Ok(limit) if (1..=MAX_LIMIT).contains(&limit) => {
                    filter.limit = limit;
                    continue;
                }
                _ => format!("must be from 1 to {MAX_LIMIT}, not {value:?}"),
            },
            "cursor" => match decode_cursor(value) {
                Some(before) => {
                    filter.before = Some(before);
                    continue;
                }
                None => "is not a next_cursor of this service; start again without one".to_owned(),
            },
            _ => "is not a parameter of this route, which takes status, limit and cursor".to_owned(),
        };
        errors.push(FieldError::new(name, wrong));
    }
    if errors.is_empty() { Ok(filter) } else { Err(errors) }
}

pub(super) fn encode_cursor(before: u64) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(before.to_be_bytes())
}

pub(super) fn decode_cursor(cursor: &str) -> Option<u64> {
    let bytes = BASE64_URL_SAFE_NO_PAD.decode(cursor).ok()?;
    Some(u64::from_be_bytes(bytes.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(pairs: &[(&str, &str)]) -> Result<JobFilter, Vec<FieldError>> {
        filter(&Params(pairs.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect()))
    }

    #[test]
    fn a_cursor_comes_back_as_it_was_given_and_nothing_else_does() {
        for before in [0, 1, 72_623_859_790_382_856, u64::MAX] {
            assert_eq!(decode_cursor(&encode_cursor(before)), Some(before));
        }
        for bad in ["", "1", "AAAAAAAAAAA=", "AAAAAAAAAAAA", "!!!!!!!!!!!", "AAAAAAAAAAB"] {
            assert_eq!(decode_cursor(bad), None, "{bad}");
        }
    }

    #[test]
    fn statuses_add_up() {
        let filter = of(&[("status", "failed"), ("limit", "200"), ("status", "scheduled")]).unwrap();
        assert_eq!(filter.statuses, [JobStatus::Failed, JobStatus::Scheduled]);
        assert_eq!((filter.limit, filter.before), (200, None));
        assert_eq!(of(&[]).unwrap().limit, DEFAULT_LIMIT);
    }

    #[test]
    fn everything_wrong_with_the_parameters_is_told() {
        let errors = of(&[("status", "done"), ("limit", "0"), ("cursor", "x"), ("state", "failed")]).unwrap_err();
        let fields: Vec<&str> = errors.iter().map(|error| error.field.as_str()).collect();
        assert_eq!(fields, ["status", "limit", "cursor", "state"]);
        assert!(errors[0].message.contains("queued, scheduled, running"), "{}", errors[0].message);
        assert!(of(&[("limit", "201")]).is_err());
    }
}
