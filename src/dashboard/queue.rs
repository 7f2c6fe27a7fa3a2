//! `/admin`: the queue, for operators. Needs a session; without one every address leads to the sign-in form and back.

use std::collections::BTreeMap;

use axum::{
    Form,
    extract::Query,
    http::{Method, StatusCode},
    response::{IntoResponse, Redirect, Response},
};
use minijinja::{context, value::Serde};
use serde::Deserialize;
use serde_json::{Map, Value, json as object};
use strum::VariantNames;

use super::{
    api::request,
    filter::{Pairs, chips, conditions, encode, given, json},
    history::{Charts, range},
    pages::{Mark, Page, Visit},
};
use crate::job::FailureCode;

/// On a page.
const JOBS: usize = 30;

/// On a page of the audit log, and of failing webhooks.
const ENTRIES: usize = 50;

/// The actions on many jobs, and the statuses of the jobs that each applies to.
const ACTIONS: [(&str, &[&str]); 3] = [
    ("cancel", &["queued", "scheduled", "running"]),
    ("retry", &["failed", "cancelled"]),
    ("delete", &["succeeded", "failed", "cancelled"]),
];

pub(super) async fn show(visit: Visit, Query(pairs): Query<Pairs>) -> Response {
    if visit.session.is_none() {
        return visit.sign_in_first();
    }
    // The script continues a search without counting all matches again.
    let (uncounted, pairs): (Pairs, Pairs) = given(pairs).into_iter().partition(|(name, _)| name == "count");
    // How far back the charts go does not concern the list.
    let (ranges, listed): (Pairs, Pairs) = pairs.iter().cloned().partition(|(name, _)| name == "range");
    let range = range(ranges.last().map_or("", |(_, name)| name));
    let conditions = conditions(&pairs);
    let listed = encode(&listed);
    let listing = format!("/api/v1/admin/jobs?{listed}&limit={JOBS}&count={}", uncounted.is_empty());
    let history = format!("/api/v1/admin/history?resolution={}", range.resolution);
    let running = format!("/api/v1/admin/jobs?status=running&limit={JOBS}");
    let (list, running, stats, usage, hour, history) = tokio::join!(
        visit.api.get(&listing),
        visit.api.get(&running),
        visit.api.get("/api/v1/admin/stats"),
        visit.api.get("/api/v1/admin/usage?days=1"),
        visit.api.get("/api/v1/admin/history"),
        visit.api.get(&history),
    );
    if list.status == StatusCode::UNAUTHORIZED || list.status == StatusCode::FORBIDDEN {
        return visit.sign_in_first();
    }
    let problem = (!list.status.is_success()).then(|| list.body["detail"].as_str().map(str::to_owned));
    // The first page with another value of a parameter; with a cursor, the page there.
    let with = |name: &str, value: &str| {
        let others = pairs.iter().filter(|(other, _)| other != name && other != "cursor");
        encode(others.chain([&(name.to_owned(), value.to_owned())]))
    };
    let at = |cursor: &Value| Some(format!("/admin?{}", with("cursor", cursor.as_str()?)));
    let is_oldest = pairs.iter().any(|(name, value)| name == "order" && value == "oldest");
    let shown = context! {
        hour => hour.ok().ok().map(|mut history| Serde(history["total"].take())),
        charts => Charts::of(range, &history.body).map(Serde),
        reordered => with("order", if is_oldest { "newest" } else { "oldest" }),
        range_address => if listed.is_empty() { "/admin?".to_owned() } else { format!("/admin?{listed}&") },
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
        filter => encode(&conditions),
        next => at(&list.body["next_cursor"]),
        previous => at(&list.body["prev_cursor"]),
        is_first => pairs.iter().all(|(name, _)| name != "cursor"),
    };
    visit.page("queue.html", shown)
}

fn values(pairs: &Pairs) -> BTreeMap<&str, Vec<&str>> {
    let mut values = BTreeMap::<&str, Vec<&str>>::new();
    for (name, value) in pairs {
        values.entry(name).or_default().push(value);
    }
    values
}

/// The buttons of the actions on all jobs of the filter. `count` is missing if counting takes too long.
fn buttons(matched: &Value) -> Value {
    let button = |(action, statuses): (&str, &[&str])| {
        let counts: Option<Vec<u64>> = statuses.iter().map(|status| matched[*status].as_u64()).collect();
        object!({ "action": action, "statuses": statuses, "count": counts.map(|counts| counts.iter().sum::<u64>()) })
    };
    ACTIONS.into_iter().map(button).collect()
}

/// `POST /admin/actions`: a dry run or, once confirmed, the action, on the selected jobs or, without any, on all of the
/// filter.
pub(super) async fn act(visit: Visit, Form(form): Form<Pairs>) -> Page {
    let field = |name: &str| form.iter().find(|(field, _)| field == name).map_or("", |(_, value)| value.as_str());
    visit.check_mark(field("mark"))?;
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
    let report = visit.done(visit.api.post("/api/v1/admin/jobs/actions", Some(&body)).await)?;
    let shown = context! { report => Serde(report), action, filter => encode(&filter), conditions => Serde(filter) };
    Ok(visit.page("bulk.html", shown))
}

pub(super) async fn switch(visit: Visit, form: Form<Mark>, action: &str) -> Page {
    visit.check_mark(&form.mark)?;
    visit.done(visit.api.post(&format!("/api/v1/admin/queue/{action}"), None).await)?;
    Ok(Redirect::to("/admin").into_response())
}

/// `GET /admin/audit` and `/admin/webhooks`: a page of a list of the API.
pub(super) async fn listing(visit: Visit, Query(pairs): Query<Pairs>, path: &str, template: &str) -> Page {
    let cursor = encode(pairs.iter().filter(|(name, _)| name == "cursor"));
    let answer = visit.read(&format!("{path}?{cursor}&limit={ENTRIES}")).await?;
    Ok(visit.page(template, context! { answer => Serde(answer) }))
}

/// The limits of the form. An empty one does not change.
#[derive(Deserialize)]
pub(super) struct LimitsForm {
    mark: String,
    #[serde(flatten)]
    limits: BTreeMap<String, String>,
}

pub(super) async fn limits(visit: Visit, Query(pairs): Query<Pairs>) -> Page {
    let saved = pairs.iter().any(|(name, _)| name == "saved");
    let answer = visit.read("/api/v1/admin/limits").await?;
    Ok(visit.page("limits.html", context! { answer => Serde(answer), saved }))
}

pub(super) async fn set_limits(visit: Visit, Form(LimitsForm { mark, limits }): Form<LimitsForm>) -> Page {
    visit.check_mark(&mark)?;
    // What is not a number is sent too: the API says what is wrong with it.
    let value = |text: String| text.trim().parse::<u64>().map_or(Value::from(text), Value::from);
    let given = limits.into_iter().filter(|(_, text)| !text.trim().is_empty());
    let body = Value::from(given.map(|(name, text)| (name, value(text))).collect::<Map<String, Value>>());
    visit.done(visit.api.ask(request(Method::PATCH, "/api/v1/admin/limits", Some(&body))).await)?;
    Ok(Redirect::to("/admin/limits?saved=1").into_response())
}
