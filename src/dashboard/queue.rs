//! `/admin`: the queue for those who run it. Needs a session; without one every address leads to the form and back.

use std::{collections::BTreeMap, sync::Arc};

use axum::{
    Form,
    extract::{Query, State},
    http::{HeaderMap, Method, StatusCode},
    response::{IntoResponse, Redirect, Response},
};
use minijinja::{context, value::Serde};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{
    history::{Charts, Range},
    pages::{Mark, Page, Pages, sign_in_first},
    reader::Reader,
};

/// Jobs on a page: two screens.
const JOBS: usize = 30;

/// Audit entries on a page.
const ENTRIES: usize = 50;

/// Conditions that a filter of the API takes once, and those that it takes as lists.
const SINGLE: [&str; 5] = ["text", "model", "caller", "created_from", "created_before"];
const LISTS: [&str; 3] = ["status", "priority", "code"];

/// The pairs of an address.
type Pairs = Vec<(String, String)>;

/// `GET /admin`
pub(super) async fn show(State(pages): State<Arc<Pages>>, reader: Reader, Query(pairs): Query<Pairs>) -> Response {
    if reader.session.is_none() {
        return sign_in_first(&reader.here);
    }
    // What a form leaves empty is no condition.
    let pairs: Pairs = pairs.into_iter().filter(|(_, value)| !value.trim().is_empty()).collect();
    // How far back the charts go does not concern the list.
    let (ranges, listed): (Pairs, Pairs) = pairs.iter().cloned().partition(|(name, _)| name == "range");
    let range: Range = ranges.last().and_then(|(_, name)| name.parse().ok()).unwrap_or_default();
    let conditions = conditions(&pairs);
    let listing = format!("/api/v1/admin/jobs?{}", encode(listed.iter().cloned().chain([limit(JOBS)])));
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
        given => Serde(pairs.iter().cloned().collect::<BTreeMap<String, String>>()),
        filter => encode(conditions.iter().cloned()),
        next => address(&list.body["next_cursor"]),
        previous => address(&list.body["prev_cursor"]),
        is_first => pairs.iter().all(|(name, _)| name != "cursor"),
    };
    pages.render(&reader, StatusCode::OK, "queue.html", shown)
}

/// What to do to all jobs of a filter.
#[derive(Deserialize)]
pub(super) struct Bulk {
    mark: String,
    action: String,
    /// Conditions, as in the address.
    #[serde(default)]
    filter: String,
    /// Do it, and not just tell what would be done.
    #[serde(default)]
    confirmed: bool,
    /// Where the step before left off.
    #[serde(default)]
    cursor: String,
}

/// `POST /admin/actions`
pub(super) async fn act(State(pages): State<Arc<Pages>>, reader: Reader, Form(bulk): Form<Bulk>) -> Page {
    pages.check_mark(&reader, &bulk.mark)?;
    let pairs: Pairs = form_urlencoded::parse(bulk.filter.as_bytes()).into_owned().collect();
    let mut body = json!({ "action": bulk.action, "filter": filter(&pairs), "dry_run": !bulk.confirmed });
    if !bulk.cursor.is_empty() {
        body["cursor"] = Value::from(bulk.cursor);
    }
    let answer = pages.api.post(&reader.caller, "/api/v1/admin/jobs/actions", Some(&body)).await;
    let report = Serde(pages.done(&reader, answer)?);
    let shown = context! { report, action => bulk.action, filter => bulk.filter, conditions => Serde(pairs) };
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

/// `GET /admin/audit`
pub(super) async fn audit(State(pages): State<Arc<Pages>>, reader: Reader, Query(pairs): Query<Pairs>) -> Page {
    let cursor = pairs.into_iter().filter(|(name, _)| name == "cursor");
    let path = format!("/api/v1/admin/audit?{}", encode(cursor.chain([limit(ENTRIES)])));
    pages.answer_page(&reader, &path, "audit.html", false).await
}

fn limit(limit: usize) -> (String, String) {
    ("limit".to_owned(), limit.to_string())
}

fn encode(pairs: impl IntoIterator<Item = (String, String)>) -> String {
    form_urlencoded::Serializer::new(String::new()).extend_pairs(pairs).finish()
}

/// The pairs that say which jobs are meant, without those that say which page of them.
fn conditions(pairs: &Pairs) -> Pairs {
    let is_condition = |name: &str| SINGLE.contains(&name) || LISTS.contains(&name) || name == "metadata";
    pairs.iter().filter(|(name, _)| is_condition(name)).cloned().collect()
}

/// The same as the API takes it in a body.
fn filter(pairs: &Pairs) -> Value {
    let mut filter = Map::new();
    for (name, value) in pairs {
        if LISTS.contains(&name.as_str()) {
            if let Some(list) = filter.entry(name).or_insert_with(|| json!([])).as_array_mut() {
                list.push(Value::from(value.as_str()));
            }
        } else if let ("metadata", Some((key, label))) = (name.as_str(), value.split_once('=')) {
            filter.entry(name).or_insert_with(|| json!({}))[key] = Value::from(label);
        } else {
            filter.insert(name.clone(), Value::from(value.as_str()));
        }
    }
    Value::from(filter)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_becomes_the_filter_that_means_the_same() {
        let query = "status=failed&status=cancelled&text=a%26b&metadata=team%3Dops&order=oldest&cursor=x";
        let pairs: Pairs = form_urlencoded::parse(query.as_bytes()).into_owned().collect();
        let meant = conditions(&pairs);
        assert_eq!(encode(meant.clone()), "status=failed&status=cancelled&text=a%26b&metadata=team%3Dops");
        let expected = json!({"status": ["failed", "cancelled"], "text": "a&b", "metadata": {"team": "ops"}});
        assert_eq!(filter(&meant), expected);
        assert_eq!(filter(&Pairs::new()), json!({}), "which means all");
    }
}
