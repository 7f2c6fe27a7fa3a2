//! `/api/v1/admin/history`: throughput, latency, queue depth and tokens over time.

use std::{sync::Arc, time::Duration};

use axum::{Json, extract::State};
use serde::Serialize;
use utoipa::ToSchema;

use super::{
    api::Api,
    extract::{Admin, Params},
    filter,
    problem::Problem,
};
use crate::{
    clock::Timestamp,
    history::{Period, Resolution},
};

/// Activity by period.
#[derive(Serialize, ToSchema)]
#[schema(as = History)]
pub(super) struct HistoryView {
    /// Length of a period.
    period_seconds: u64,
    /// Sum of all periods.
    total: PeriodView,
    /// Oldest first. The last period is not complete. Periods in which the service did not run are absent.
    periods: Vec<PeriodView>,
}

/// Activity in a period.
#[derive(Serialize, ToSchema)]
#[schema(as = Period)]
struct PeriodView {
    /// Start of the period. Days start at midnight UTC.
    at: Timestamp,
    /// Accepted jobs.
    accepted: u64,
    /// Succeeded jobs.
    succeeded: u64,
    /// Failed jobs.
    failed: u64,
    /// Cancelled jobs.
    cancelled: u64,
    /// Waiting clients that got the job's end in time.
    in_time: u64,
    /// Waiting clients that got `202` because the job did not end in time.
    late: u64,
    /// Median time from acceptance to memo, within 4 %; null without memos.
    p50_seconds: Option<f64>,
    /// 95th percentile of the time from acceptance to memo, within 4 %; null without memos.
    p95_seconds: Option<f64>,
    /// Most queued jobs at the end of any minute.
    queued: usize,
    /// Most running jobs at the end of any minute.
    running: usize,
    /// Input tokens of all kinds, as reported by Claude.
    input_tokens: u64,
    /// Output tokens, as reported by Claude.
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

/// Get the history
///
/// Throughput, latency, queue depth and tokens over time. Minutes are stored for 2 days, hours for 90 days, also across
/// restarts. A crash loses at most one minute.
#[utoipa::path(
    get, path = "/api/v1/admin/history", operation_id = "get_history", tag = "admin",
    params(
        ("resolution" = Option<String>, Query, pattern = "^(minute|quarter_hour|hour|day)$",
            description = "Length of a period: `minute` (default), `quarter_hour`, `hour` or `day`"),
        ("from" = Option<Timestamp>, Query,
            description = "Periods that end after this time. Default: one hour ago for minutes, a day for quarter hours, \
                           a week for hours, 90 days for days")
    ),
    responses((status = 200, description = "The activity by period", body = HistoryView))
)]
pub(super) async fn get(
    _: Admin,
    State(api): State<Arc<Api>>,
    mut params: Params,
) -> Result<Json<HistoryView>, Problem> {
    let wrong = |value: &str| format!("must be minute, quarter_hour, hour or day, not {value:?}");
    let resolution = params.last("resolution", |value| value.parse().map_err(|_| wrong(value)));
    let resolution = resolution.unwrap_or(Resolution::Minute);
    let from = params.last("from", filter::time);
    params.end()?;
    let period = resolution.period();
    // Minus one period, because the current one counts.
    let from = from.unwrap_or_else(|| api.queue.now().minus(span(resolution) - period));
    let periods = api.operations.history().read(resolution, from, api.queue.counts());
    let mut total = periods.first().cloned().unwrap_or_else(|| Period::new(from));
    periods.iter().skip(1).for_each(|period| total.add(period));
    Ok(Json(HistoryView {
        period_seconds: period.as_secs(),
        total: PeriodView::from(&total),
        periods: periods.iter().map(PeriodView::from).collect(),
    }))
}

fn span(resolution: Resolution) -> Duration {
    const HOUR: Duration = Duration::from_hours(1);
    match resolution {
        Resolution::Minute => HOUR,
        Resolution::QuarterHour => 24 * HOUR,
        Resolution::Hour => 7 * 24 * HOUR,
        Resolution::Day => 90 * 24 * HOUR,
    }
}
