//! `/api/v1/jobs` and `/api/v1/admin/jobs`: lists the jobs of a caller or all jobs, page by page.

use std::{sync::Arc, time::Duration};

use axum::{Json, extract::State, response::Response};
use serde::Serialize;
use tokio::time::Instant;
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::{
    api::Api,
    extract::{Admin, Named, Params},
    filter::{Conditions, cursor, encode_cursor, once},
    pages::{self, Here},
    problem::{INVALID_PARAMETER, Problem},
    view::{Include, JobView},
};
use crate::{
    clock::Timestamp,
    job::{FailureCode, JobPage, JobStatus, Listing, Order, Priority, StatusCounts, UnfinishedSearch},
};

const COUNT_TIME: Duration = Duration::from_millis(500);

/// The parameters of the routes that list jobs, for the OpenAPI document.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "only for the OpenAPI document")]
pub(super) struct Listed {
    /// Jobs with one of these ids; repeat the parameter or separate the ids with commas; up to 200
    #[param(max_items = 200)]
    ids: Option<Vec<Uuid>>,
    /// Jobs with this status; repeat the parameter for several
    status: Option<Vec<JobStatus>>,
    /// Jobs with this priority; repeatable
    priority: Option<Vec<Priority>>,
    /// Jobs that failed with this code; repeatable
    code: Option<Vec<FailureCode>>,
    /// Jobs accepted at this time or later
    created_from: Option<Timestamp>,
    /// Jobs accepted before this time
    created_before: Option<Timestamp>,
    /// Jobs whose query contains this text, ignoring case
    #[param(min_length = 1, max_length = 500)]
    text: Option<String>,
    /// Jobs that requested this model or were answered by it
    #[param(min_length = 1, max_length = 500)]
    model: Option<String>,
    /// Jobs with this label, as `key=value`; repeatable, up to 16
    #[param(max_items = 16)]
    metadata: Option<Vec<Label>>,
    /// `newest` (default) or `oldest` first
    #[param(pattern = "^(newest|oldest)$")]
    order: Option<String>,
    /// Large fields that the jobs have only if they are listed here: `context`, `result`, `raw_answer`, such as
    /// `include=result,context`
    #[param(pattern = "^(context|result|raw_answer)(,(context|result|raw_answer))*$")]
    include: Option<String>,
    /// Jobs on a page: 1 to 200, default 50. A page ends early after 4 MiB of texts
    #[param(minimum = 1, maximum = 200)]
    limit: Option<usize>,
    /// The `next_cursor` or `prev_cursor` of another page
    #[param(pattern = "^A[A-Za-f][A-Za-z0-9_-]{10}$")]
    cursor: Option<String>,
}

/// A label as a query parameter.
#[derive(ToSchema)]
#[schema(value_type = String, pattern = "^[^=]*=")]
#[expect(dead_code, reason = "only for the OpenAPI document")]
pub(super) struct Label(String);

/// A page of jobs.
#[derive(Serialize, ToSchema)]
pub(super) struct JobList<'a> {
    jobs: Vec<JobView<'a>>,
    /// The `cursor` of the next page, to send with the same filter; null on the last page.
    next_cursor: Option<String>,
    /// The `cursor` of the previous page, to send with the same filter; null on the first page.
    prev_cursor: Option<String>,
    /// How far the search came, if its 500 ms were over before the page was full; null otherwise. The next page continues
    /// the search. Only then can a page with a next one be empty.
    unfinished_search: Option<UnfinishedSearch>,
    /// Number of all jobs that match, by status, with `count=true`; null without it, or if counting takes 500 ms.
    matched: Option<StatusCounts>,
    /// Number of all jobs by status, without the filter.
    total: StatusCounts,
}

/// List jobs
///
/// Lists the jobs that match all parameters. If a parameter is repeated, a job must match one of its values; for
/// `metadata`, all of them.
#[utoipa::path(
    get, path = "/api/v1/admin/jobs", operation_id = "list_jobs", tag = "admin",
    params(
        Listed,
        ("caller" = Option<String>, Query, min_length = 1, max_length = 500,
            description = "Jobs submitted with this API key's name or token's subject"),
        ("count" = Option<bool>, Query, description = "`true` also counts all jobs that match: see `matched`")
    ),
    responses((status = 200, description = "A page of jobs", body = JobList<'static>))
)]
pub(super) async fn list(
    _: Admin,
    State(api): State<Arc<Api>>,
    params: Params,
    here: Here,
) -> Result<Response, Problem> {
    let Wanted { listing, include, is_counted } = wanted(params, None)?;
    let (queue, operations, memory) = (api.queue.clone(), api.operations.clone(), api.memory.clone());
    let read = async move {
        let counted = is_counted.then(|| listing.filter.clone());
        let page = queue.list(listing).await?;
        let matched = match counted {
            Some(filter) => operations.count(filter, Instant::now() + COUNT_TIME).await?,
            None => None,
        };
        Ok((page, matched))
    };
    let make = move |(page, matched): (JobPage, _)| {
        let list = JobList {
            jobs: api.listed(&page.jobs, include),
            next_cursor: page.next.map(encode_cursor),
            prev_cursor: page.prev.map(encode_cursor),
            unfinished_search: page.unfinished,
            matched,
            total: api.queue.counts(),
        };
        here.link_next(Json(list), "cursor", page.next.map(encode_cursor))
    };
    memory.list(read, make).await
}

/// A page of a caller's jobs.
#[derive(Serialize, ToSchema)]
pub(super) struct OwnJobs<'a> {
    jobs: Vec<JobView<'a>>,
    /// The `cursor` of the next page, to send with the same filter; null on the last page.
    next_cursor: Option<String>,
    /// The `cursor` of the previous page, to send with the same filter; null on the first page.
    prev_cursor: Option<String>,
    /// How far the search came, if its 500 ms were over before the page was full; null otherwise. The next page continues
    /// the search. Only then can a page with a next one be empty.
    unfinished_search: Option<UnfinishedSearch>,
}

/// List your jobs
///
/// The jobs that were submitted with your key or token. Not available if the service has no API keys and takes no tokens.
#[utoipa::path(
    get, path = "/api/v1/jobs", operation_id = "list_own_jobs", tag = "analysis",
    params(Listed),
    responses((status = 200, description = "A page of jobs", body = OwnJobs<'static>))
)]
pub(super) async fn list_own(
    Named(caller): Named,
    State(api): State<Arc<Api>>,
    params: Params,
    here: Here,
) -> Result<Response, Problem> {
    let Wanted { listing, include, .. } = wanted(params, Some(caller))?;
    let (queue, memory) = (api.queue.clone(), api.memory.clone());
    let read = async move { Ok(queue.list(listing).await?) };
    let make = move |page: JobPage| {
        let jobs = OwnJobs {
            jobs: api.listed(&page.jobs, include),
            next_cursor: page.next.map(encode_cursor),
            prev_cursor: page.prev.map(encode_cursor),
            unfinished_search: page.unfinished,
        };
        here.link_next(Json(jobs), "cursor", page.next.map(encode_cursor))
    };
    memory.list(read, make).await
}

#[derive(Debug)]
struct Wanted {
    listing: Listing,
    include: Include,
    is_counted: bool,
}

/// Parses the parameters of a listing. `own` limits it to the jobs of one caller.
fn wanted(mut params: Params, own: Option<String>) -> Result<Wanted, Problem> {
    let (mut caller, mut is_counted) = (None, false);
    if own.is_none() {
        caller = once(&mut params, "caller");
        let is = |value: &str| value.parse().map_err(|_| format!("must be true or false, not {value:?}"));
        is_counted = params.last("count", is).unwrap_or_default();
    }
    let conditions = Conditions::from_params(caller, &mut params);
    let order = params.last("order", order).unwrap_or_default();
    let mut include = Include::default();
    params.all("include", |value| include.add(value));
    let limit = pages::limit(&mut params);
    let cursor = params.last("cursor", cursor);
    let mut errors = params.errors();
    match conditions.filter() {
        Ok(mut filter) if errors.is_empty() => {
            filter.caller = own.or(filter.caller);
            Ok(Wanted { listing: Listing { filter, order, cursor, limit }, include, is_counted })
        }
        filter => {
            errors.extend(filter.err().into_iter().flatten());
            Err(Problem::listing(INVALID_PARAMETER, errors))
        }
    }
}

fn order(value: &str) -> Result<Order, String> {
    match value {
        "newest" => Ok(Order::NewestFirst),
        "oldest" => Ok(Order::OldestFirst),
        _ => Err(format!("must be newest or oldest, not {value:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::Side;

    fn of(pairs: &[(&str, &str)]) -> Result<Listing, Problem> {
        let params = pairs.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect();
        wanted(Params::new(params), None).map(|wanted| wanted.listing)
    }

    #[test]
    fn a_page_has_the_fifty_newest_jobs_by_default() {
        let plain = of(&[]).unwrap();
        assert_eq!((plain.limit, plain.order, plain.cursor), (50, Order::NewestFirst, None));
        let cursor = crate::job::Cursor { side: Side::Newer, from: 7 };
        let asked = of(&[("limit", "200"), ("order", "oldest"), ("cursor", &encode_cursor(cursor))]).unwrap();
        assert_eq!((asked.limit, asked.order, asked.cursor), (200, Order::OldestFirst, Some(cursor)));
    }

    #[test]
    fn all_wrong_parameters_are_reported() {
        let wrong = [
            ("status", "done"),
            ("limit", "0"),
            ("cursor", "x"),
            ("state", "failed"),
            ("order", "up"),
            ("text", ""),
            ("count", "1"),
        ];
        let problem = of(&wrong).unwrap_err();
        let fields: Vec<&str> = problem.errors().iter().map(|error| error.field.as_str()).collect();
        assert_eq!(fields, ["status", "limit", "cursor", "state", "order", "count", "text"]);
        assert!(of(&[("limit", "201")]).is_err());
    }
}
