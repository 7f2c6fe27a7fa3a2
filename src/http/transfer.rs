//! `/api/v1/admin/export` and `/import`: an archive of a running service, and records of one into a running service.

use std::{borrow::Cow, io, sync::Arc};

use axum::{
    Json,
    body::{Body, Bytes},
    extract::State,
    http::{HeaderValue, header},
    response::{IntoResponse, Response},
};
use futures_util::stream::{self, StreamExt};
use serde::Serialize;
use tracing::error;
use utoipa::ToSchema;

use super::{
    api::Api,
    body,
    extract::{Admin, Params},
    memory::MemoryBudget,
    observe,
    problem::{INTERNAL, INVALID_BODY, Problem},
};
use crate::{
    audit::AuditAction,
    clock::Timestamp,
    queue::QueueError,
    store::archive::{Line, Reader, Record, Scope, Writer},
};

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
    /// Lines that can't be read.
    refused: Vec<Refused>,
}

/// A line that can't be read.
#[derive(Serialize, ToSchema)]
#[schema(as = RefusedLine)]
struct Refused {
    /// Number of the line, from 1.
    line: usize,
    /// What is wrong with the line.
    message: String,
}

/// An archive on its way to a client.
struct Export {
    memory: MemoryBudget,
    reader: Reader,
    writer: Writer<Vec<u8>>,
}

impl Export {
    /// The next lines, and the export unless it has ended. They take memory and time as a page of a list does.
    async fn next(self) -> Result<(Bytes, Option<Export>), Problem> {
        let Export { memory, mut reader, mut writer } = self;
        let read = async move {
            let records = reader.next().await.map_err(QueueError::from)?;
            Ok((reader, records))
        };
        let make = move |(reader, records): (Reader, Option<Vec<Record>>)| {
            let is_end = records.is_none();
            records.into_iter().flatten().try_for_each(|record| writer.record(&record))?;
            if is_end {
                writer.end()?;
            }
            let lines = std::mem::take(writer.out()).into();
            Ok::<_, io::Error>((lines, (!is_end).then_some((reader, writer))))
        };
        let made = memory.list(read, make).await?;
        let (lines, rest) = made.map_err(|error| Problem::new(INTERNAL, error.to_string()))?;
        Ok((lines, rest.map(|(reader, writer)| Export { memory, reader, writer })))
    }
}

/// Export an archive
///
/// Streams jobs, the ledger, the history and the audit log as JSON lines: a header, the records, and an end line with the
/// count of each kind. Without an end line the archive is cut off. API keys, sessions and settings are left out. A job that
/// can't be read is a line of the kind `unreadable_job` with its id and the reason.
#[utoipa::path(
    get, path = "/api/v1/admin/export", operation_id = "export_jobs", tag = "admin",
    responses((status = 200, description = "The archive", body = String, content_type = "application/x-ndjson"))
)]
pub(super) async fn export(_: Admin, State(api): State<Arc<Api>>, params: Params) -> Result<Response, Problem> {
    params.end()?;
    let now = api.queue.now();
    let export = Export {
        memory: api.memory.clone(),
        reader: Reader::new(Arc::clone(&api.store), Scope::ForOperators, Timestamp::from_millis(0)),
        writer: Writer::new(Vec::new(), |line| Cow::Borrowed(line), now, true),
    };
    // Before the answer begins, so that a store that can't be read is a problem and not a cut archive.
    let (first, rest) = export.next().await?;
    let rest = stream::unfold(rest, |export| async {
        Some(match export?.next().await {
            Ok((lines, rest)) => (Ok(lines), rest),
            Err(_) => {
                error!(request.id = observe::request_id(), "an export was cut off: the job store can't be read");
                (Err(io::Error::other("cut off")), None)
            }
        })
    });
    let lines = stream::iter([Ok(first)]).chain(rest);
    Ok(([(header::CONTENT_TYPE, NDJSON)], Body::from_stream(lines)).into_response())
}

/// Import jobs
///
/// Accepts up to 200 lines and 32 MiB of an archive. A job with an existing id is skipped, so importing the same lines
/// twice changes nothing. Pending jobs continue here. A running attempt gets an unknown outcome, as after a crash. Lines
/// other than jobs and idempotency keys are ignored.
#[utoipa::path(
    post, path = "/api/v1/admin/import", operation_id = "import_jobs", tag = "admin",
    request_body(content_type = "application/x-ndjson", description = "Lines of an archive"),
    responses(
        (status = 200, description = "The number of imported, skipped and refused lines", body = Imported),
        (status = 503, description = "`queue_full`, `storage_low`, `shutting_down`, `storage_unavailable`, `timeout`")
    )
)]
pub(super) async fn import(admin: Admin, State(api): State<Arc<Api>>, body: Body) -> Result<Json<Imported>, Problem> {
    let body = body::read_whole(body, MAX_IMPORT_BYTES).await?;
    let lines = body.split(|byte| *byte == b'\n').zip(1..).filter(|(line, _)| !line.trim_ascii().is_empty());
    if lines.clone().count() > MAX_IMPORT {
        let detail = format!("the body must have at most {MAX_IMPORT} lines; send the rest in another request");
        return Err(Problem::new(INVALID_BODY, detail));
    }
    let (mut jobs, mut keys, mut refused) = (Vec::new(), Vec::new(), Vec::new());
    for (text, line) in lines {
        match Line::read(text) {
            Ok(Line::Record(record)) => match *record {
                Record::Job(job) => jobs.push(job),
                Record::Key(key) => keys.push(key),
                // The audit log and the costs of this service are its own.
                Record::UnreadableJob(..) | Record::Setting(..) | Record::Audit(..) | Record::Day(_) => {}
            },
            Ok(Line::Header(_) | Line::End(_)) => {}
            Err(error) => refused.push(Refused { line, message: error.to_string() }),
        }
    }
    let count = jobs.len();
    let imported = api.operations.import(jobs, keys).await?;
    api.audit.record(AuditAction { actor: &admin.actor, action: "import", detail: None }, Some(imported)).await?;
    Ok(Json(Imported { imported, skipped: count - imported, refused }))
}
