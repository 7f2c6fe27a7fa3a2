//! The report as one page without references: figures, and charts as SVG.

use anyhow::Context;
use minijinja::{Environment, Value, context};

use super::report::{Part, Percentiles, Report};

const TEMPLATE: &str = include_str!("report.html");

/// The edges of the area within the axes of a chart: left, top, right, bottom. The template has the size of the chart.
const AREA: (f64, f64, f64, f64) = (60.0, 10.0, 750.0, 260.0);

const BLUE: &str = "#1f77b4";
const ORANGE: &str = "#e67e22";
const PURPLE: &str = "#7d3c98";
const GREY: &str = "#787878";

/// A name, a colour, and points.
type Line = (&'static str, &'static str, Vec<(f64, f64)>);

pub(super) fn render(report: &Report) -> anyhow::Result<String> {
    let line = |name, colour, figure: &dyn Fn(&Part) -> Option<f64>| -> Line {
        let middle = report.part_seconds / 2.0;
        let point = |part: &Part| Some((part.second + middle, figure(part)?));
        (name, colour, report.over_time.iter().filter_map(point).collect())
    };
    let latency = |name, colour, percentile: fn(&Percentiles) -> f64| {
        line(name, colour, &|part| Some(percentile(part.latency.as_ref()?) / 1e3))
    };
    let rate = |name, colour, count: fn(&Part) -> u64| {
        line(name, colour, &|part| Some(count(part) as f64 / report.part_seconds))
    };
    let charts = [
        (
            "Time to the memo",
            "seconds",
            vec![
                latency("p50", BLUE, |latency| latency.p50_ms),
                latency("p90", ORANGE, |latency| latency.p90_ms),
                latency("p99", PURPLE, |latency| latency.p99_ms),
            ],
        ),
        (
            "Waiting clients answered within 30 s, by time of the question",
            "%",
            vec![line("in time", BLUE, &|part| part.in_time_share.map(|share| share * 100.0))],
        ),
        ("Queued jobs", "jobs", vec![line("queued", BLUE, &|part| part.queued.map(|queued| queued as f64))]),
        (
            "Answers a second",
            "answers/s",
            vec![
                rate("200 with the memo", BLUE, |part| part.met.answered),
                rate("202 with the job", ORANGE, |part| part.met.accepted),
                rate("refused or failed", PURPLE, |part| part.met.refused + part.met.failed + part.met.unanswered),
                rate("disconnected", GREY, |part| part.met.hung_up),
            ],
        ),
    ];
    let end = (report.over_time.len() as f64 * report.part_seconds).max(1.0);
    let charts = charts.map(|(title, unit, lines)| chart(title, unit, &lines, end));
    let mut environment = Environment::new();
    environment.add_template("report.html", TEMPLATE).context("the page's template")?;
    let template = environment.get_template("report.html")?;
    let (simulated, interrupted) = (report.setup.simulated, report.setup.interrupted);
    Ok(template.render(context! { simulated, interrupted, charts, area => AREA, words => report.to_string() })?)
}

fn chart(title: &str, unit: &str, lines: &[Line], end: f64) -> Value {
    let (left, top, right, bottom) = AREA;
    let highest = lines.iter().flat_map(|(.., points)| points).map(|(_, y)| *y).fold(0.0, f64::max);
    let highest = if highest > 0.0 { highest * 1.1 } else { 1.0 };
    let x = |second: f64| left + (right - left) * second / end;
    let y = |value: f64| bottom - (bottom - top) * value / highest;
    let point = |(second, value): &(f64, f64)| format!("{:.1},{:.1}", x(*second), y(*value));
    let line = |(name, colour, points): &Line| {
        context! { name => *name, colour => *colour, points => points.iter().map(point).collect::<Vec<_>>().join(" ") }
    };
    context! {
        title,
        unit,
        seconds => ticks(end).map(|second| (x(second), second.to_string())).collect::<Vec<_>>(),
        values => ticks(highest).map(|value| (y(value), value.to_string())).collect::<Vec<_>>(),
        lines => lines.iter().map(line).collect::<Vec<_>>(),
    }
}

/// At most ten round numbers from 0 to `end`.
fn ticks(end: f64) -> impl Iterator<Item = f64> {
    let power = 10_f64.powf((end / 10.0).log10().ceil());
    let step = [0.2, 0.5, 1.0].map(|part| part * power).into_iter().find(|step| end / step <= 10.0).unwrap_or(power);
    (0..=10).map(move |number| (f64::from(number) * step * 1e6).round() / 1e6).take_while(move |tick| *tick <= end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_axis_has_a_few_round_numbers() {
        let all = |end| ticks(end).collect::<Vec<_>>();
        assert_eq!(all(10.0), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0]);
        assert_eq!(all(110.0), [0.0, 20.0, 40.0, 60.0, 80.0, 100.0]);
        assert_eq!(all(0.33), [0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3]);
        for end in [0.001, 1.0, 7.7, 1_234.5, 1e7] {
            assert!((3..=11).contains(&ticks(end).count()), "{end}");
        }
    }

    #[test]
    fn a_chart_draws_each_line_within_its_area() {
        let chart = chart("Time", "seconds", &[("p50", BLUE, vec![(0.0, 0.0), (60.0, 2.0)])], 60.0);
        let template = format!("{TEMPLATE}{{{{ svg(chart) }}}}");
        let page = Environment::new().render_str(&template, context! { chart, area => AREA }).unwrap();
        assert!(page.contains(">p50</text>") && page.contains("points=\"60.0,260.0 750.0,32.7\""), "{page}");
        assert!(page.contains("<text x=\"54.0\" y=\"264.0\" text-anchor=\"end\" fill=\"#222\">0</text>"), "{page}");
    }
}
