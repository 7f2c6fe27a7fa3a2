//! What of the past is drawn and not just told: a bar for each period, stacked. Places and heights only; the templates draw.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use strum::{EnumIter, EnumString, IntoStaticStr};

use crate::clock::Timestamp;

/// How much of its place's width a bar takes.
const BAR: f64 = 0.8;

/// How far the charts reach back. Each is in bars that a phone can show.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, EnumIter, EnumString, IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub(super) enum Range {
    #[default]
    Hour,
    Day,
    Week,
    Quarter,
}

impl Range {
    /// How the API calls its periods.
    pub(super) fn resolution(self) -> &'static str {
        match self {
            Range::Hour => "minute",
            Range::Day => "quarter_hour",
            Range::Week => "hour",
            Range::Quarter => "day",
        }
    }

    /// How many periods it has.
    fn bars(self) -> u32 {
        match self {
            Range::Hour => 60,
            Range::Day => 96,
            Range::Week => 168,
            Range::Quarter => 90,
        }
    }
}

/// A period, as far as it is drawn.
#[derive(Deserialize)]
struct Period {
    at: Timestamp,
    succeeded: f64,
    failed: f64,
    cancelled: f64,
    p50_seconds: Option<f64>,
    p95_seconds: Option<f64>,
    queued: f64,
    running: f64,
    input_tokens: f64,
    output_tokens: f64,
}

/// A series before it is drawn: its name, its colour, and what of a period it shows.
type Layer = (&'static str, usize, fn(&Period) -> f64);

/// The charts of a time.
#[derive(Serialize)]
pub(super) struct Charts {
    range: &'static str,
    bars: u32,
    period_seconds: u64,
    /// When the first bar begins, and the last.
    from: Timestamp,
    to: Timestamp,
    charts: Vec<Chart>,
    /// As the API told it, newest first: the table.
    rows: Vec<Value>,
}

/// One chart.
#[derive(Debug, Serialize)]
struct Chart {
    name: &'static str,
    is_time: bool,
    /// What a bar of full height stands for.
    most: f64,
    series: Vec<Series>,
}

/// A colour of the bars.
#[derive(Debug, Serialize)]
struct Series {
    name: &'static str,
    colour: usize,
    /// Its pieces of all bars, as a path of SVG in a box as wide as there are bars and 100 high.
    path: String,
}

impl Charts {
    /// From what the API says; none if that has no periods.
    pub(super) fn of(range: Range, told: &Value) -> Option<Charts> {
        let rows = told["periods"].as_array()?;
        let periods = rows.iter().map(Period::deserialize).collect::<Result<Vec<Period>, _>>().ok()?;
        let period_seconds = told["period_seconds"].as_u64().filter(|seconds| *seconds > 0)?;
        let to = periods.last()?.at;
        let bars = range.bars();
        let from = to.minus(std::time::Duration::from_secs(period_seconds * u64::from(bars - 1)));
        let draw = |name, is_time, series: &[Layer]| {
            let stacks = periods.iter().filter(|period| period.at >= from).map(|period| {
                let place = period.at.since(from).as_secs() / period_seconds;
                (place, series.iter().map(|(_, _, value)| value(period).max(0.0)).collect::<Vec<f64>>())
            });
            chart(
                name,
                is_time,
                &series.iter().map(|(n, c, _)| (*n, *c)).collect::<Vec<_>>(),
                &stacks.collect::<Vec<_>>(),
            )
        };
        let charts = vec![
            draw(
                "throughput",
                false,
                &[
                    ("status_succeeded", 2, |p| p.succeeded),
                    ("status_failed", 4, |p| p.failed),
                    ("status_cancelled", 1, |p| p.cancelled),
                ],
            ),
            draw(
                "latency",
                true,
                &[
                    ("series_p50", 0, |p| p.p50_seconds.unwrap_or(0.0)),
                    ("series_p95", 1, |p| p.p95_seconds.unwrap_or(0.0) - p.p50_seconds.unwrap_or(0.0)),
                ],
            ),
            draw("depth", false, &[("status_running", 0, |p| p.running), ("status_queued", 1, |p| p.queued)]),
            draw(
                "tokens",
                false,
                &[("series_input", 5, |p| p.input_tokens), ("series_output", 1, |p| p.output_tokens)],
            ),
        ];
        let rows = rows.iter().rev().cloned().collect();
        Some(Charts { range: range.into(), bars, period_seconds, from, to, charts, rows })
    }
}

/// Stacks the values of each bar, the first one at the bottom.
fn chart(name: &'static str, is_time: bool, series: &[(&'static str, usize)], stacks: &[(u64, Vec<f64>)]) -> Chart {
    let most = round_up(stacks.iter().map(|(_, values)| values.iter().sum()).fold(0.0, f64::max));
    let path = |which: usize| {
        stacks.iter().filter(|(_, values)| values[which] > 0.0).fold(String::new(), |path, (place, values)| {
            let top = 100.0 * (1.0 - values[..=which].iter().sum::<f64>() / most);
            let height = 100.0 * values[which] / most;
            path + &format!("M{place} {top:.1}h{BAR}v{height:.1}h-{BAR}z")
        })
    };
    let series =
        series.iter().enumerate().map(|(which, (name, colour))| Series { name, colour: *colour, path: path(which) });
    Chart { name, is_time, most, series: series.collect() }
}

/// The next round number: 1, 2 or 5 with as many zeros as it takes; 1 for nothing.
fn round_up(value: f64) -> f64 {
    if value <= 0.0 {
        return 1.0;
    }
    let magnitude = 10_f64.powf(value.log10().floor());
    let steps = [1.0, 2.0, 5.0, 10.0].map(|step| step * magnitude);
    steps.into_iter().find(|step| *step >= value).unwrap_or(value)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn period(at: &str, succeeded: u32, failed: u32) -> Value {
        json!({"at": at, "accepted": 0, "succeeded": succeeded, "failed": failed, "cancelled": 0, "in_time": 0, "late": 0,
               "p50_seconds": null, "p95_seconds": null, "queued": 0, "running": 0, "input_tokens": 0, "output_tokens": 0})
    }

    #[test]
    fn bars_stand_at_their_time_and_are_as_high_as_their_values() {
        let told = json!({"period_seconds": 60, "periods": [
            period("2026-11-23T10:00:00Z", 9, 9),
            period("2026-11-23T10:58:00Z", 4, 1),
            period("2026-11-23T11:00:00Z", 1, 0),
        ]});
        let charts = Charts::of(Range::Hour, &told).unwrap();
        let throughput = &charts.charts[0];
        assert_eq!(throughput.most, 5.0, "what lies before does not count");
        let paths: Vec<&str> = throughput.series.iter().map(|series| &*series.path).collect();
        assert_eq!(paths, ["M57 20.0h0.8v80.0h-0.8zM59 80.0h0.8v20.0h-0.8z", "M57 0.0h0.8v20.0h-0.8z", ""]);
        assert_eq!((charts.rows.len(), &charts.rows[0]["succeeded"]), (3, &json!(1)));
        assert!(Charts::of(Range::Hour, &json!({"period_seconds": 60, "periods": []})).is_none());
        assert!(Charts::of(Range::Hour, &Value::Null).is_none());
    }

    #[test]
    fn the_scale_ends_at_a_round_number() {
        for (value, most) in [(0.0, 1.0), (0.3, 0.5), (1.0, 1.0), (3.0, 5.0), (12.0, 20.0), (72_576.0, 100_000.0)] {
            assert!((round_up(value) - most).abs() < 1e-9, "{value}");
        }
    }
}
