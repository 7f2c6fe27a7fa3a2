//! The charts of the past: a stack of bars for each period. Places and heights only; the templates draw.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::clock::Timestamp;

/// How much of its place's width a bar takes.
const BAR: f64 = 0.8;

/// How far the charts reach back: as many periods of the API as a phone can show bars.
#[derive(Clone, Copy)]
pub(super) struct Range {
    name: &'static str,
    pub(super) resolution: &'static str,
    bars: u32,
}

const RANGES: [Range; 4] = [
    Range { name: "hour", resolution: "minute", bars: 60 },
    Range { name: "day", resolution: "quarter_hour", bars: 96 },
    Range { name: "week", resolution: "hour", bars: 168 },
    Range { name: "quarter", resolution: "day", bars: 90 },
];

pub(super) fn range(name: &str) -> Range {
    RANGES.into_iter().find(|range| range.name == name).unwrap_or(RANGES[0])
}

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

/// A part of each bar: its name, its colour, and its value in a period.
type Layer = (&'static str, usize, fn(&Period) -> f64);

/// Each chart: its name, whether it shows times, and its layers from the bottom to the top.
const CHARTS: [(&str, bool, &[Layer]); 4] = [
    (
        "throughput",
        false,
        &[
            ("status_succeeded", 2, |p| p.succeeded),
            ("status_failed", 4, |p| p.failed),
            ("status_cancelled", 1, |p| p.cancelled),
        ],
    ),
    (
        "latency",
        true,
        &[
            ("series_p50", 0, |p| p.p50_seconds.unwrap_or(0.0)),
            ("series_p95", 1, |p| p.p95_seconds.unwrap_or(0.0) - p.p50_seconds.unwrap_or(0.0)),
        ],
    ),
    ("depth", false, &[("status_running", 0, |p| p.running), ("status_queued", 1, |p| p.queued)]),
    ("tokens", false, &[("series_input", 5, |p| p.input_tokens), ("series_output", 1, |p| p.output_tokens)]),
];

#[derive(Serialize)]
pub(super) struct Charts {
    range: &'static str,
    bars: u32,
    from: Timestamp,
    to: Timestamp,
    charts: Vec<Chart>,
    /// The API's periods, newest first: the table.
    rows: Vec<Value>,
}

#[derive(Serialize)]
struct Chart {
    name: &'static str,
    is_time: bool,
    most: f64,
    series: Vec<Series>,
}

#[derive(Serialize)]
struct Series {
    name: &'static str,
    colour: usize,
    /// The layer's parts of all bars, as a path of SVG in a box as wide as there are bars and 100 high.
    path: String,
}

impl Charts {
    /// Made of the API's answer; `None` if that has no periods.
    pub(super) fn of(range: Range, answer: &Value) -> Option<Charts> {
        let rows = answer["periods"].as_array()?;
        let periods = rows.iter().map(Period::deserialize).collect::<Result<Vec<Period>, _>>().ok()?;
        let period_seconds = answer["period_seconds"].as_u64().filter(|seconds| *seconds > 0)?;
        let to = periods.last()?.at;
        let from = to.minus(Duration::from_secs(period_seconds * u64::from(range.bars - 1)));
        let shown = periods.into_iter().filter(|period| period.at >= from);
        let bars: Vec<_> = shown.map(|period| (period.at.since(from).as_secs() / period_seconds, period)).collect();
        let charts = CHARTS.map(|(name, is_time, layers)| chart(name, is_time, layers, &bars)).into();
        Some(Charts {
            range: range.name,
            bars: range.bars,
            from,
            to,
            charts,
            rows: rows.iter().rev().cloned().collect(),
        })
    }
}

/// `bars`: the place of each period from the left, and the period.
fn chart(name: &'static str, is_time: bool, layers: &[Layer], bars: &[(u64, Period)]) -> Chart {
    let height = |layers: &[Layer], period| layers.iter().map(|(.., value)| value(period).max(0.0)).sum::<f64>();
    let most = round_up(bars.iter().map(|(_, period)| height(layers, period)).fold(0.0, f64::max));
    let path = |which: usize| {
        bars.iter().fold(String::new(), |path, (place, period)| {
            let value = height(&layers[which..=which], period);
            if value <= 0.0 {
                return path;
            }
            let top = 100.0 * (1.0 - height(&layers[..=which], period) / most);
            path + &format!("M{place} {top:.1}h{BAR}v{:.1}h-{BAR}z", 100.0 * value / most)
        })
    };
    let series =
        layers.iter().enumerate().map(|(which, &(name, colour, _))| Series { name, colour, path: path(which) });
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
        let charts = Charts::of(range(""), &told).unwrap();
        let throughput = &charts.charts[0];
        assert_eq!(throughput.most, 5.0, "what lies before does not count");
        let paths: Vec<&str> = throughput.series.iter().map(|series| &*series.path).collect();
        assert_eq!(paths, ["M57 20.0h0.8v80.0h-0.8zM59 80.0h0.8v20.0h-0.8z", "M57 0.0h0.8v20.0h-0.8z", ""]);
        assert_eq!((charts.rows.len(), &charts.rows[0]["succeeded"]), (3, &json!(1)));
        assert!(Charts::of(range("hour"), &json!({"period_seconds": 60, "periods": []})).is_none());
        assert!(Charts::of(range("hour"), &Value::Null).is_none());
    }

    #[test]
    fn the_scale_ends_at_a_round_number() {
        for (value, most) in [(0.0, 1.0), (0.3, 0.5), (1.0, 1.0), (3.0, 5.0), (12.0, 20.0), (72_576.0, 100_000.0)] {
            assert!((round_up(value) - most).abs() < 1e-9, "{value}");
        }
    }
}
