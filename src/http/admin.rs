//! `/api/v1/admin/jobs`: every job, page by page, for operators.

use std::sync::Arc;

use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response},
};
use serde::Serialize;
use utoipa::ToSchema;

use super::{
    Api,
    extract::{Admin, Params, count_up_to},
    filter::{Conditions, WRONG_CURSOR, decode_cursor, encode_cursor},
    problem::{FieldError, INVALID_PARAMETER, Problem},
    view::JobView,
};
use crate::job::{FailureCode, JobStatus, Listing, Order, Priority, StatusCounts};

/// Jobs on a page if the client does not say.
const DEFAULT_LIMIT: usize = 50;

/// Most jobs on a page: each is read from disk.
const MAX_LIMIT: usize = 200;

/// What the route takes.
const TAKEN: &str = "status, priority, code, created_from, created_before, text, model, metadata, caller, order, limit \
                     and cursor";

/// A label as a query parameter.
#[derive(ToSchema)]
#[schema(value_type = String, pattern = "^[^=]*=")]
#[expect(dead_code, reason = "for the document alone")]
pub(super) struct Label(String);

/// A page of jobs.
#[derive(Serialize, ToSchema)]
pub(super) struct JobList<'a> {
    /// The jobs.
    jobs: Vec<JobView<'a>>,
    /// Give it as `cursor`, with the same conditions, for the next page; null on the last one. A page may be short, even
    /// empty, and have a next one: a search leaves off after 200 ms, or 2,000 questions read, and goes on from there.
    next_cursor: Option<String>,
    /// Give it as `cursor`, with the same conditions, for the page before; null on the first one.
    prev_cursor: Option<String>,
    /// How many jobs there are in all, by status, whatever the filter.
    total: StatusCounts,
}

/// List jobs
///
/// Conditions add up; those that can be repeated mean any of their values, but `metadata` means all.
#[utoipa::path(
    get, path = "/api/v1/admin/jobs", operation_id = "list_jobs", tag = "admin",
    params(
        ("status" = Option<Vec<JobStatus>>, Query, description = "Any of these; repeat the parameter for more than one"),
        ("priority" = Option<Vec<Priority>>, Query, description = "Any of these; repeatable"),
        ("code" = Option<Vec<FailureCode>>, Query, description = "Failed with any of these; repeatable"),
        ("created_from" = Option<String>, Query, format = DateTime, description = "Accepted then or later"),
        ("created_before" = Option<String>, Query, format = DateTime, description = "Accepted before then"),
        ("text" = Option<String>, Query, min_length = 1, max_length = 500,
            description = "The query holds this, in upper or lower case"),
        ("model" = Option<String>, Query, min_length = 1, max_length = 500,
            description = "The model asked for, or one that answered"),
        ("metadata" = Option<Vec<Label>>, Query, max_items = 16, description = "Has this label, as `key=value`; repeatable, up to 16"),
        ("caller" = Option<String>, Query, min_length = 1, max_length = 500,
            description = "Submitted by this key or token subject"),
        ("order" = Option<String>, Query, pattern = "^(newest|oldest)$",
            description = "`newest` first (if absent) or `oldest` first, by submission"),
        ("limit" = Option<usize>, Query, description = "Jobs on a page: 1 to 200, 50 if absent", minimum = 1,
            maximum = 200),
        ("cursor" = Option<String>, Query, description = "The `next_cursor` or `prev_cursor` of another page",
            pattern = "^A[A-Za-f][A-Za-z0-9_-]{10}$")
    ),
    responses(
        (status = 200, description = "A page of jobs", body = JobList<'static>),
        (status = 503, description = "`storage_unavailable`")
    )
)]
pub(super) async fn list(_: Admin, State(api): State<Arc<Api>>, params: Params) -> Result<Response, Problem> {
    let listing = listing(&params).map_err(|errors| Problem::listing(INVALID_PARAMETER, errors))?;
    let page = api.queue.list(listing).await?;
    let now = api.queue.now();
    let list = JobList {
        jobs: page.jobs.iter().map(|record| api.view(record, now)).collect(),
        next_cursor: page.next.map(encode_cursor),
        prev_cursor: page.prev.map(encode_cursor),
        total: api.queue.counts(),
    };
    Ok(Json(list).into_response())
}

/// The page that the parameters ask for, or everything that is wrong with them.
fn listing(params: &Params) -> Result<Listing, Vec<FieldError>> {
    let mut conditions = Conditions::default();
    let mut listing = Listing { limit: DEFAULT_LIMIT, ..Listing::default() };
    let errors = params.errors(TAKEN, |name, value| match name {
        "limit" => Some(count_up_to(MAX_LIMIT, value).map(|limit| listing.limit = limit)),
        "order" => Some(order(value).map(|order| listing.order = order)),
        "cursor" => {
            let cursor = decode_cursor(value).ok_or_else(|| WRONG_CURSOR.to_owned());
            Some(cursor.map(|cursor| listing.cursor = Some(cursor)))
        }
        _ => conditions.take(name, value),
    });
    match conditions.filter() {
        Ok(filter) if errors.is_empty() => Ok(Listing { filter, ..listing }),
        Ok(_) => Err(errors),
        Err(more) => Err([errors, more].concat()),
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

    fn of(pairs: &[(&str, &str)]) -> Result<Listing, Vec<FieldError>> {
        listing(&Params(pairs.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect()))
    }

    #[test]
    fn a_page_is_fifty_of_the_newest_unless_asked_otherwise() {
        let plain = of(&[]).unwrap();
        assert_eq!((plain.limit, plain.order, plain.cursor), (DEFAULT_LIMIT, Order::NewestFirst, None));
        let cursor = crate::job::Cursor { side: Side::Newer, from: 7 };
        let asked = of(&[("limit", "200"), ("order", "oldest"), ("cursor", &encode_cursor(cursor))]).unwrap();
        assert_eq!((asked.limit, asked.order, asked.cursor), (200, Order::OldestFirst, Some(cursor)));
    }

    #[test]
    fn everything_wrong_with_the_parameters_is_told() {
        let wrong =
            [("status", "done"), ("limit", "0"), ("cursor", "x"), ("state", "failed"), ("order", "up"), ("text", "")];
        let fields: Vec<String> = of(&wrong).unwrap_err().into_iter().map(|error| error.field).collect();
        assert_eq!(fields, ["status", "limit", "cursor", "state", "order", "text"]);
        assert!(of(&[("limit", "201")]).is_err());
    }
}
