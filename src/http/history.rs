//! `/api/v1/admin/history`: how the service fared over time.

use std::{sync::Arc, time::Duration};

use axum::{Json, extract::State};
use serde::Serialize;
use utoipa::ToSchema;

use super::{
    Api,
    extract::{Admin, Params},
    filter,
    problem::Problem,
};
use crate::{
    clock::Timestamp,
    queue::history::{Period, Resolution},
};

/// What happened, period by period.
#[derive(Serialize, ToSchema)]
#[schema(as = History)]
pub(super) struct HistoryView {
    /// How long a period is, in seconds.
    period_seconds: u64,
    /// All of it together.
    total: PeriodView,
    /// Oldest first, the last one under way. Those in which the service did not run are not there.
    periods: Vec<PeriodView>,
}

/// What happened in a period.
#[derive(Serialize, ToSchema)]
#[schema(as = Period)]
struct PeriodView {
    /// When it began; days are of UTC.
    #[schema(value_type = String, format = DateTime)]
    at: Timestamp,
    /// Jobs accepted.
    accepted: u64,
    /// Jobs that ended with a memo.
    succeeded: u64,
    /// Jobs that ended with an error.
    failed: u64,
    /// Jobs given up.
    cancelled: u64,
    /// Clients that asked to wait and got their answer in that time.
    in_time: u64,
    /// Clients that asked to wait and were told to come back.
    late: u64,
    /// Seconds from acceptance within which half of the memos came, to about 4 %; null if none came.
    p50_seconds: Option<f64>,
    /// Seconds from acceptance within which 95 of 100 memos came, to about 4 %; null if none came.
    p95_seconds: Option<f64>,
    /// Jobs waiting that could run: the most at the end of any minute.
    queued: usize,
    /// Jobs being analysed: the most at the end of any minute.
    running: usize,
    /// Input tokens that were reported, of all kinds.
    input_tokens: u64,
    /// Output tokens that were reported.
    output_tokens: u64,
}

impl From<&Period> for PeriodView {
    fn from(period: &Period) -> PeriodView {
        let seconds = |part| period.quantile(part).map(|time| (time.as_secs_f64() * 1e3).round() / 1e3);
        PeriodView {
            at: period.at,
            accepted: period.accepted,
            succeeded: period.succeeded,
            failed: period.failed,
            cancelled: period.cancelled,
            in_time: period.in_time,
            late: period.late,
            p50_seconds: seconds(0.5),
            p95_seconds: seconds(0.95),
            queued: period.queued,
            running: period.running,
            input_tokens: period.input_tokens,
            output_tokens: period.output_tokens,
        }
    }
}

/// Look at the past
///
/// Throughput, latency, depth and tokens over time. Minutes are kept for two days and hours for 90, also across restarts; a
/// crash costs at most the minute that it falls into.
#[utoipa::path(
    get, path = "/api/v1/admin/history", operation_id = "get_history", tag = "admin",
    params(
        ("resolution" = Option<String>, Query, pattern = "^(minute|quarter_hour|hour|day)$",
            description = "How long a period is: `minute`, `quarter_hour`, `hour` or `day`; `minute` if absent"),
        ("from" = Option<String>, Query, format = DateTime,
            description = "Periods that end after then; if absent, the last hour of minutes, day of quarter hours, week \
                           of hours, or 90 days")
    ),
    responses(
        (status = 200, description = "What happened", body = HistoryView)
    )
)]
pub(super) async fn get(_: Admin, State(api): State<Arc<Api>>, params: Params) -> Result<Json<HistoryView>, Problem> {
    let (resolution, from) = read(&params)?;
    let period = resolution.period();
    // With the one under way it is as many periods as its name says.
    let from = from.unwrap_or_else(|| api.queue.now().minus(span(resolution) - period));
    let periods = api.queue.history(resolution, from);
    let mut total = periods.first().cloned();
    if let Some(total) = &mut total {
        periods[1..].iter().for_each(|period| total.add(period));
    }
    Ok(Json(HistoryView {
        period_seconds: period.as_secs(),
        total: PeriodView::from(&total.unwrap_or_else(|| Period::new(from))),
        periods: periods.iter().map(PeriodView::from).collect(),
    }))
}

/// How far back is told if the client does not say.
fn span(resolution: Resolution) -> Duration {
    const HOUR: Duration = Duration::from_hours(1);
    match resolution {
        Resolution::Minute => HOUR,
        Resolution::QuarterHour => 24 * HOUR,
        Resolution::Hour => 7 * 24 * HOUR,
        Resolution::Day => 90 * 24 * HOUR,
    }
}

fn read(params: &Params) -> Result<(Resolution, Option<Timestamp>), Problem> {
    let (mut resolution, mut from) = (Resolution::Minute, None);
    params.read("resolution and from", |name, value| match name {
        "resolution" => {
            let wrong = |_| format!("must be minute, quarter_hour, hour or day, not {value:?}");
            Some(value.parse().map(|given| resolution = given).map_err(wrong))
        }
        "from" => Some(filter::time(value).map(|given| from = Some(given))),
        _ => None,
    })?;
    Ok((resolution, from))
}
