//! `/admin`: the queue for those who run it. Needs a session; without one every address leads to the form and back.

use std::{collections::BTreeMap, sync::Arc};

use axum::{
    Form,
    extract::{Query, State},
    http::{HeaderMap, Method, StatusCode},
    response::{IntoResponse, Redirect, Response},
};
use minijinja::{context, value::Serde};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json as object};
use strum::VariantNames;

use super::{
    filter::{Pairs, chips, conditions, encode, given, json},
    history::{Charts, Range},
    pages::{Mark, Page, Pages, sign_in_first},
    reader::Reader,
};
use crate::job::FailureCode;

/// Jobs on a page: two screens.
const JOBS: usize = 30;

/// The actions on many jobs, and the statuses of the jobs that each applies to.
const ACTIONS: [(&str, &[&str]); 3] = [
    ("cancel", &["queued", "scheduled", "running"]),
    ("retry", &["failed", "cancelled"]),
    ("delete", &["succeeded", "failed", "cancelled"]),
];

/// The button of an action on all jobs of the filter.
#[derive(Serialize)]
struct Button {
    action: &'static str,
    statuses: &'static [&'static str],
    /// How many jobs; none if counting takes too long.
    count: Option<u64>,
}

/// `GET /admin`
pub(super) async fn show(State(pages): State<Arc<Pages>>, reader: Reader, Query(pairs): Query<Pairs>) -> Response {
    if reader.session.is_none() {
        return sign_in_first(&reader.here);
    }
    // The script continues a search without counting all matches again.
    let (uncounted, pairs): (Pairs, Pairs) = given(pairs).into_iter().partition(|(name, _)| name == "count");
    // How far back the charts go does not concern the list.
    let (ranges, listed): (Pairs, Pairs) = pairs.iter().cloned().partition(|(name, _)| name == "range");
    let range: Range = ranges.last().and_then(|(_, name)| name.parse().ok()).unwrap_or_default();
    let conditions = conditions(&pairs);
    let counted = ("count".to_owned(), uncounted.is_empty().to_string());
    let listing = format!("/api/v1/admin/jobs?{}", encode(listed.iter().cloned().chain([limit(JOBS), counted])));
    let history = format!("/api/v1/admin/history?resolution={}", range.resolution());
    let running = format!("/api/v1/admin/jobs?{}", encode([("status".into(), "running".into()), limit(JOBS)]));
    let (list, running, stats, usage, hour, history) = tokio::join!(
        pages.api.get(&reader.caller, &listing),
        pages.api.get(&reader.caller, &running),
        pages.api.get(&reader.caller, "/api/v1/admin/stats"),
        pages.api.get(&reader.caller, "/api/v1/admin/usage?days=1"),
        pages.api.get(&reader.caller, "/api/v1/admin/history"),
        pages.api.get(&reader.caller, &history),
    );
    if list.status == StatusCode::UNAUTHORIZED || list.status == StatusCode::FORBIDDEN {
        return sign_in_first(&reader.here);
    }
    let problem = (!list.status.is_success()).then(|| list.body["detail"].as_str().map(str::to_owned));
    let address = |cursor: &Value| {
        let kept = pairs.iter().filter(|(name, _)| name != "cursor").cloned();
        Some(format!("/admin?{}", encode(kept.chain([("cursor".to_owned(), cursor.as_str()?.to_owned())]))))
    };
    let other_order =
        if pairs.iter().any(|(name, value)| name == "order" && value == "oldest") { "newest" } else { "oldest" };
    let in_order = pairs.iter().filter(|(name, _)| name != "cursor" && name != "order").cloned();
    let in_range = encode(pairs.iter().filter(|(name, _)| name != "range").cloned());
    let shown = context! {
        hour => hour.ok().ok().map(|mut history| Serde(history["total"].take())),
        charts => Charts::of(range, &history.body).map(Serde),
        reordered => encode(in_order.chain([("order".to_owned(), other_order.to_owned())])),
        range_address => if in_range.is_empty() { "/admin?".to_owned() } else { format!("/admin?{in_range}&") },
        list => Serde(&list.body),
        running => running.ok().ok().map(Serde),
        stats => stats.ok().ok().map(Serde),
        usage => usage.ok().ok().map(Serde),
        problem,
        given => Serde(values(&pairs)),
        codes => Serde(FailureCode::VARIANTS),
        chips => Serde(chips(&pairs)),
        buttons => Serde(buttons(&list.body["matched"])),
        page_size => JOBS,
        filter => encode(conditions.iter().cloned()),
        next => address(&list.body["next_cursor"]),
        previous => address(&list.body["prev_cursor"]),
        is_first => pairs.iter().all(|(name, _)| name != "cursor"),
    };
    pages.render(&reader, StatusCode::OK, "queue.html", shown)
}

/// The values of each parameter.
fn values(pairs: &Pairs) -> BTreeMap<&str, Vec<&str>> {
    let mut values = BTreeMap::<&str, Vec<&str>>::new();
    for (name, value) in pairs {
        values.entry(name).or_default().push(value);
    }
    values
}

fn buttons(matched: &Value) -> Vec<Button> {
    let button = |(action, statuses): (&'static str, &'static [&'static str])| {
        let counts: Option<Vec<u64>> = statuses.iter().map(|status| matched[*status].as_u64()).collect();
        Button { action, statuses, count: counts.map(|counts| counts.iter().sum()) }
    };
    ACTIONS.map(button).into()
}

/// `POST /admin/actions`: a dry run or, once confirmed, the action, on the selected jobs or, without any, on all of the
/// filter.
pub(super) async fn act(State(pages): State<Arc<Pages>>, reader: Reader, Form(form): Form<Pairs>) -> Page {
    let field = |name: &str| form.iter().find(|(field, _)| field == name).map_or("", |(_, value)| value.as_str());
    pages.check_mark(&reader, field("mark"))?;
    let selected: Pairs = form.iter().filter(|(name, _)| name == "ids").cloned().collect();
    let filter = if selected.is_empty() {
        form_urlencoded::parse(field("filter").as_bytes()).into_owned().collect()
    } else {
        selected
    };
    let action = field("action");
    let mut body = object!({ "action": action, "filter": json(&filter), "dry_run": field("confirmed") != "true" });
    if !field("cursor").is_empty() {
        body["cursor"] = Value::from(field("cursor"));
    }
    let answer = pages.api.post(&reader.caller, "/api/v1/admin/jobs/actions", Some(&body)).await;
    let (report, conditions) = (Serde(pages.done(&reader, answer)?), Serde(filter.clone()));
    let shown = context! { report, action, filter => encode(filter), conditions };
    Ok(pages.render(&reader, StatusCode::OK, "bulk.html", shown))
}

/// `POST /admin/pause`
pub(super) async fn pause(State(pages): State<Arc<Pages>>, reader: Reader, Form(Mark { mark }): Form<Mark>) -> Page {
    pages.switch_queue(&reader, &mark, "pause").await
}

/// `POST /admin/resume`
pub(super) async fn resume(State(pages): State<Arc<Pages>>, reader: Reader, Form(Mark { mark }): Form<Mark>) -> Page {
    pages.switch_queue(&reader, &mark, "resume").await
}

impl Pages {
    async fn switch_queue(&self, reader: &Reader, mark: &str, action: &str) -> Page {
        self.check_mark(reader, mark)?;
        let answer = self.api.post(&reader.caller, &format!("/api/v1/admin/queue/{action}"), None).await;
        self.done(reader, answer)?;
        Ok(Redirect::to("/admin").into_response())
    }

    /// A page made of one answer of the API.
    async fn answer_page(&self, reader: &Reader, path: &str, template: &str, saved: bool) -> Page {
        let answer = Serde(self.read(reader, path).await?);
        Ok(self.render(reader, StatusCode::OK, template, context! { answer, saved }))
    }
}

/// The limits, as the form has them: empty ones stay as they are.
#[derive(Deserialize)]
pub(super) struct LimitsForm {
    mark: String,
    #[serde(flatten)]
    limits: BTreeMap<String, String>,
}

/// `GET /admin/limits`
pub(super) async fn limits(State(pages): State<Arc<Pages>>, reader: Reader, Query(pairs): Query<Pairs>) -> Page {
    let saved = pairs.iter().any(|(name, _)| name == "saved");
    pages.answer_page(&reader, "/api/v1/admin/limits", "limits.html", saved).await
}

/// `POST /admin/limits`
pub(super) async fn set_limits(
    State(pages): State<Arc<Pages>>,
    reader: Reader,
    Form(LimitsForm { mark, limits }): Form<LimitsForm>,
) -> Page {
    pages.check_mark(&reader, &mark)?;
    // What is no number goes along as it is: the API says what is wrong with it.
    let value = |text: String| text.trim().parse::<u64>().map_or(Value::from(text), Value::from);
    let given = limits.into_iter().filter(|(_, text)| !text.trim().is_empty());
    let body = Value::from(given.map(|(name, text)| (name, value(text))).collect::<Map<String, Value>>());
    let answer =
        pages.api.ask(&reader.caller, Method::PATCH, "/api/v1/admin/limits", HeaderMap::new(), Some(&body)).await;
    pages.done(&reader, answer)?;
    Ok(Redirect::to("/admin/limits?saved=1").into_response())
}

fn limit(limit: usize) -> (String, String) {
    ("limit".to_owned(), limit.to_string())
}
