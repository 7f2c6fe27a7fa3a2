//! `GET /api/v1/jobs/{id}/events`: a job's progress as server-sent events.
//!
//! No response takes longer than 30 s, so the stream ends after [`MAX_HOLD`]. The client reconnects with the id of the
//! last event, which every `EventSource` does by itself. Nothing is lost in between, because the event id says what the
//! client has received. A `204` makes the client stop.

use std::{convert::Infallible, fmt, str::FromStr, sync::Arc, time::Duration};

use axum::{
    extract::State,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{
        IntoResponse, Response,
        sse::{Event, Sse},
    },
};
use futures_util::stream;
use serde::Serialize;
use tokio::time::{Instant, timeout_at};
use tracing::warn;
use utoipa::ToSchema;
use uuid::Uuid;

use super::{
    api::Api,
    extract::{Access, Id, Params},
    observe,
    problem::Problem,
    view::{Include, JobView},
    wait::MAX_HOLD,
};
use crate::{
    job::{Job, JobId, JobStatus},
    queue::{Follower, Kind, News, Outlook, Seen},
};

const RETRY: Duration = Duration::from_secs(1);

/// Longest silence: proxies cut a silent stream, usually after 15 s or more. A waiting job's new outlook is sent, or a
/// comment.
const HEARTBEAT: Duration = Duration::from_secs(5);

/// Follow a job
///
/// Server-sent events: `status`, `progress` and, as the last one, `done`. The schema `JobEvent` has each type with its `data`,
/// which is JSON. Ignore types that you do not know.
///
/// The stream ends after at most 29 s. Reconnect with `Last-Event-ID`, which every `EventSource` does by itself. The stream
/// then continues where it ended, also after a restart of the service. `204` means that no more events will come.
#[utoipa::path(
    get, path = "/api/v1/jobs/{id}/events", operation_id = "follow_job", tag = "analysis",
    params(
        ("id" = uuid::Uuid, Path, description = "The job"),
        ("Last-Event-ID" = Option<String>, Header, description = "The `id` of the last received event")
    ),
    responses(
        (status = 200, description = "The stream of events", body = StreamEvent, content_type = "text/event-stream"),
        (status = 204, description = "The job has ended and `Last-Event-ID` is the id of its `done` event"),
        (status = 400, description = "`invalid_parameter`: the route has no query parameters")
    )
)]
pub(super) async fn events(
    State(api): State<Arc<Api>>,
    Id { job: id, access, .. }: Id,
    params: Params,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    params.end()?;
    let last = headers.get("last-event-id").and_then(|id| id.to_str().ok()?.parse().ok());
    let EventId(seen) = last.unwrap_or_default();
    let follower = api.queue.follow(id, seen).await?;
    if follower.is_over().await {
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    let now = Instant::now();
    let record = api.queue.get(id).await?;
    let kind = Kind::of(&record.request, record.job.waited_for);
    let ends_at = observe::started() + MAX_HOLD;
    let open = EventStream { api, id, kind, access, follower, outlook: None, next_beat: now, ends_at };
    let head = stream::iter([Ok::<_, Infallible>(Event::default().retry(RETRY))]);
    let events = stream::unfold(open, |mut open| async move {
        let event = open.next().await?;
        Some((Ok(event), open))
    });
    let mut response = Sse::new(stream::StreamExt::chain(head, events)).into_response();
    // Proxies buffer or compress answers, and would hold the events back to the end.
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, no-transform"));
    response.headers_mut().insert("x-accel-buffering", HeaderValue::from_static("no"));
    Ok(response)
}

struct EventStream {
    api: Arc<Api>,
    id: JobId,
    kind: Kind,
    /// By which the stream was opened. A revoked key ends it.
    access: Access,
    follower: Follower,
    outlook: Option<Outlook>,
    next_beat: Instant,
    ends_at: Instant,
}

/// An event as it is sent: a field a line.
#[derive(ToSchema)]
#[expect(dead_code, reason = "only for the OpenAPI document")]
pub(super) struct StreamEvent {
    /// For `Last-Event-ID`.
    id: String,
    /// `status`, `progress` or `done`.
    event: String,
    /// The `data` of a `JobEvent` of this type.
    #[schema(content_media_type = "application/json")]
    data: String,
}

/// An event of a job's stream, with its `data` as parsed JSON.
#[derive(Serialize, ToSchema, strum::IntoStaticStr)]
#[serde(tag = "event", content = "data", rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub(super) enum JobEvent<'a> {
    /// The job's status, attempt or, while it waits, position or estimate changed.
    #[schema(title = "StatusEvent")]
    Status(StatusUpdate<'a>),
    /// New text of Claude's answer, at most ten times a second and 256 KiB in all.
    #[schema(title = "ProgressEvent")]
    Progress(TextUpdate<'a>),
    /// The job has ended. The last event.
    #[schema(title = "DoneEvent")]
    Done(Box<JobView<'a>>),
}

/// How far a job is.
#[derive(Serialize, ToSchema)]
pub(super) struct StatusUpdate<'a> {
    id: Uuid,
    status: JobStatus,
    /// Number of attempts, including the running one.
    attempts_made: u32,
    /// Position and estimate of a waiting job.
    #[schema(value_type = Option<Outlook>)]
    #[serde(skip_serializing_if = "Option::is_none")]
    queue: Option<&'a Outlook>,
}

/// A piece of Claude's answer.
#[derive(Serialize, ToSchema)]
pub(super) struct TextUpdate<'a> {
    /// Number of the attempt that the answer belongs to.
    attempt: u32,
    /// This is the start of an attempt's text. It replaces all earlier text.
    reset: bool,
    /// The text, which continues that of the event before.
    text: &'a str,
}

impl EventStream {
    async fn next(&mut self) -> Option<Event> {
        let pause_ends = self.next_beat.min(self.ends_at);
        let news = timeout_at(pause_ends, self.follower.next()).await;
        self.next_beat = Instant::now() + HEARTBEAT;
        if !self.access.holds(&self.api.auth).await {
            return None;
        }
        match news {
            Ok(Ok(news)) => self.event_of(news?),
            Ok(Err(error)) => {
                warn!(job.id = %self.id, %error, "failed to follow a job; its event stream ends");
                None
            }
            Err(_) if Instant::now() >= self.ends_at => None,
            Err(_) => Some(self.beat().await),
        }
    }

    fn event_of(&mut self, news: News) -> Option<Event> {
        match news {
            News::Status(job) => {
                self.outlook = self.api.outlook(&job, &self.kind);
                self.status(&job)
            }
            News::Text { attempt, from_start, text } => {
                self.event(&JobEvent::Progress(TextUpdate { attempt, reset: from_start, text: &text }))
            }
            News::Ended(record) => {
                let done = JobView::new(&record, self.api.queue.now(), Include::ALL, &self.api.memos);
                self.event(&JobEvent::Done(Box::new(done)))
            }
        }
    }

    /// The heartbeat: the job's new outlook, or a comment.
    async fn beat(&mut self) -> Event {
        let nothing = Event::default().comment("");
        let Ok(Ok(job)) = timeout_at(self.ends_at, self.api.queue.find(self.id)).await else { return nothing };
        let outlook = self.api.outlook(&job, &self.kind);
        // The follower sends a changed status.
        if outlook == self.outlook || Some(job.status(self.api.queue.now())) != self.follower.seen().status {
            return nothing;
        }
        self.outlook = outlook;
        self.status(&job).unwrap_or(nothing)
    }

    fn status(&self, job: &Job) -> Option<Event> {
        let status = job.status(self.api.queue.now());
        let queue = self.outlook.as_ref();
        self.event(&JobEvent::Status(StatusUpdate { id: job.id, status, attempts_made: job.attempt, queue }))
    }

    fn event(&self, event: &JobEvent<'_>) -> Option<Event> {
        let sent = Event::default().event(<&str>::from(event)).id(EventId(self.follower.seen()).to_string());
        let sent = match event {
            JobEvent::Status(data) => sent.json_data(data),
            JobEvent::Progress(data) => sent.json_data(data),
            JobEvent::Done(data) => sent.json_data(data),
        };
        sent.ok()
    }
}

/// What a client has received, as an event id: `<attempt>.<status>.<bytes of the attempt's text>`.
#[derive(Debug, Default, PartialEq, Eq)]
struct EventId(Seen);

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Seen { attempt, status, bytes } = self.0;
        write!(f, "{attempt}.{}.{bytes}", status.map_or("", Into::into))
    }
}

impl FromStr for EventId {
    type Err = ();

    /// With an unknown id the stream starts from the beginning.
    fn from_str(id: &str) -> Result<EventId, ()> {
        let [attempt, status, bytes] = *id.split('.').collect::<Vec<_>>() else { return Err(()) };
        Ok(EventId(Seen {
            attempt: attempt.parse().map_err(drop)?,
            status: Some(status.parse().map_err(drop)?),
            bytes: bytes.parse().map_err(drop)?,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_id_survives_a_round_trip_and_an_unknown_one_is_ignored() {
        let id = EventId(Seen { attempt: 2, status: Some(JobStatus::Running), bytes: 1840 });
        assert_eq!(id.to_string(), "2.running.1840");
        assert_eq!("2.running.1840".parse(), Ok(id));
        for strange in ["", "2", "2.running", "2.walking.7", "x.running.1", "2.running.-1", "2.running.1.1", ".."] {
            assert_eq!(strange.parse::<EventId>(), Err(()), "{strange:?}");
        }
    }
}
