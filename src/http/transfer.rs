//! `/api/v1/admin/export` and `/import`: moves all jobs from one service to another, page by page, as JSON lines.

use std::sync::Arc;

use axum::{
    Json,
    body::Body,
    extract::State,
    http::{HeaderValue, header},
    response::Response,
};
use serde::Serialize;
use utoipa::ToSchema;

use super::{
    api::Api,
    body,
    extract::{Admin, Params},
    filter::{decode_cursor, encode_cursor},
    pages::Here,
    problem::{INTERNAL, INVALID_BODY, Problem},
};
use crate::{
    audit::AuditAction,
    job::{JobPage, Listing, Order, archive},
};

/// Jobs on a page of an export. Fewer than in a listing, because each has all of Claude's answers.
const EXPORT_PAGE: usize = 50;

/// Largest body of an import: room for the largest job, or many usual ones.
const MAX_IMPORT_BYTES: usize = 32 << 20;

/// Most lines of an import: they are written in one commit, for which others have to wait.
const MAX_IMPORT: usize = 200;

const NDJSON: HeaderValue = HeaderValue::from_static("application/x-ndjson");

/// The result of an import.
#[derive(Serialize, ToSchema)]
pub(super) struct Imported {
    /// Number of new jobs.
    imported: usize,
    /// Number of jobs that exist already. They do not change.
    skipped: usize,
    /// Lines that can't be read as a job.
    refused: Vec<Refused>,
}

/// A line that can't be read as a job.
#[derive(Serialize, ToSchema)]
#[schema(as = RefusedLine)]
struct Refused {
    /// Number of the line, from 1.
    line: usize,
    /// What is wrong with the line.
    message: String,
}

/// Export jobs
///
/// A page of up to 50 jobs as JSON lines, oldest first. The header `Link` with `rel="next"` has the address of the next
/// page; the last page has no such header. Each page shows its jobs at the time of the request.
#[utoipa::path(
    get, path = "/api/v1/admin/export", operation_id = "export_jobs", tag = "admin",
    params(("after" = Option<String>, Query, description = "Where the previous page ended, from its `Link`",
        pattern = "^A[A-Za-f][A-Za-z0-9_-]{10}$")),
    responses(
        (status = 200, description = "Jobs, one on each line", body = String, content_type = "application/x-ndjson")
    )
)]
pub(super) async fn export(
    _: Admin,
    State(api): State<Arc<Api>>,
    mut params: Params,
    here: Here,
) -> Result<Response, Problem> {
    let wrong = || "is not from a Link of this service; start without it".to_owned();
    let cursor = params.last("after", |value| decode_cursor(value).ok_or_else(wrong));
    params.end()?;
    let queue = api.queue.clone();
    let listing = Listing { order: Order::OldestFirst, cursor, limit: EXPORT_PAGE, ..Listing::default() };
    let read = async move { Ok(queue.list(listing).await?) };
    let make = move |page: JobPage| {
        let mut lines = String::new();
        for record in &page.jobs {
            let line = archive::write(record).map_err(|error| Problem::new(INTERNAL, error.to_string()))?;
            lines.push_str(&line);
            lines.push('\n');
        }
        let lines = ([(header::CONTENT_TYPE, NDJSON)], lines);
        Ok(here.link_next(lines, "after", page.next.map(encode_cursor)))
    };
    api.memory.list(read, make).await?
}

/// Import jobs
///
/// Accepts up to 200 lines and 32 MiB from an export. A job with an existing id is skipped, so importing the same lines
/// twice changes nothing. Pending jobs continue here. A running attempt gets an unknown outcome, as after a crash.
#[utoipa::path(
    post, path = "/api/v1/admin/import", operation_id = "import_jobs", tag = "admin",
    request_body(content_type = "application/x-ndjson", description = "Exported jobs, one on each line"),
    responses(
        (status = 200, description = "The number of imported, skipped and refused lines", body = Imported),
        (status = 503, description = "`queue_full`, `storage_low`, `shutting_down`, `storage_unavailable`, `timeout`")
    )
)]
pub(super) async fn import(admin: Admin, State(api): State<Arc<Api>>, body: Body) -> Result<Json<Imported>, Problem> {
    let body = body::read_whole(body, MAX_IMPORT_BYTES).await?;
    let text = std::str::from_utf8(&body).map_err(|_| Problem::new(INVALID_BODY, "the body is not UTF-8 text"))?;
    let lines = text.lines().zip(1..).filter(|(line, _)| !line.trim().is_empty());
    if lines.clone().count() > MAX_IMPORT {
        let detail = format!("the body must have at most {MAX_IMPORT} lines; send the rest in another request");
        return Err(Problem::new(INVALID_BODY, detail));
    }
    let (mut records, mut refused) = (Vec::new(), Vec::new());
    for (text, line) in lines {
        match archive::read(text) {
            Ok(record) => records.push(record),
            Err(error) => refused.push(Refused { line, message: error.to_string() }),
        }
    }
    let count = records.len();
    let imported = api.operations.import(records).await?;
    api.audit.record(AuditAction { actor: &admin.actor, action: "import", detail: None }, Some(imported)).await?;
    Ok(Json(Imported { imported, skipped: count - imported, refused }))
}
