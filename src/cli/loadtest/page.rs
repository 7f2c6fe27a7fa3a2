//! The report as one page that needs nothing else: figures, and charts as SVG within it.

use anyhow::Context;
use minijinja::{Environment, context};

use super::report::{Part, Report};

const TEMPLATE: &str = include_str!("report.html");

/// Pixels of a chart: its width and height, and the edges of the area within its axes.
const SIZE: (f64, f64) = (760.0, 300.0);
const AREA: (f64, f64, f64, f64) = (60.0, 10.0, 750.0, 260.0);

const BLUE: &str = "#1f77b4";
const ORANGE: &str = "#e67e22";
const PURPLE: &str = "#7d3c98";
const GREY: &str = "#787878";

struct Line {
    name: &'static str,
    colour: &'static str,
    points: Vec<(f64, f64)>,
}

impl Line {
    /// A point at the middle of each part for which there is a figure.
    fn new(name: &'static str, colour: &'static str, report: &Report, figure: impl Fn(&Part) -> Option<f64>) -> Line {
        let middle = report.part_seconds / 2.0;
        let point = |part: &Part| Some((part.second + middle, figure(part)?));
        Line { name, colour, points: report.over_time.iter().filter_map(point).collect() }
    }
}

pub(super) fn render(report: &Report) -> anyhow::Result<String> {
    let line = |name, colour, figure: &dyn Fn(&Part) -> Option<f64>| Line::new(name, colour, report, figure);
    let seconds = |ms: Option<f64>| ms.map(|ms| ms / 1e3);
    let per_second = |count: u64| Some(count as f64 / report.part_seconds);
    let charts = [
        (
            "Time to the memo",
            "seconds",
            vec![
                line("p50", BLUE, &|part| seconds(part.p50_ms)),
                line("p90", ORANGE, &|part| seconds(part.p90_ms)),
                line("p99", PURPLE, &|part| seconds(part.p99_ms)),
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
                line("200 with the memo", BLUE, &|part| per_second(part.met.answered)),
                line("202 with the job", ORANGE, &|part| per_second(part.met.accepted)),
                line("refused or failed", PURPLE, &|part| {
                    per_second(part.met.refused + part.met.failed + part.met.unanswered)
                }),
                line("disconnected", GREY, &|part| per_second(part.met.hung_up)),
            ],
        ),
    ];
    let end = report.over_time.len() as f64 * report.part_seconds;
    let charts = charts.map(|(title, unit, lines)| context! { title, svg => chart(unit, &lines, end.max(1.0)) });
    let mut environment = Environment::new();
    environment.add_template("report.html", TEMPLATE).context("the page's template")?;
    let template = environment.get_template("report.html")?;
    let (simulated, interrupted) = (report.setup.simulated, report.setup.interrupted);
    Ok(template.render(context! { simulated, interrupted, charts, words => report.to_string() })?)
}

/// A chart of `lines` up to the second `end`, as SVG. No text in it needs to be escaped.
fn chart(unit: &str, lines: &[Line], end: f64) -> String {
    let (left, top, right, bottom) = AREA;
    let highest = lines.iter().flat_map(|line| &line.points).map(|(_, y)| *y).fold(0.0, f64::max);
    let highest = if highest > 0.0 { highest * 1.1 } else { 1.0 };
    let x = |second: f64| left + (right - left) * second / end;
    let y = |value: f64| bottom - (bottom - top) * value / highest;
    let mut svg = format!(
        "<svg viewBox=\"0 0 {} {}\" font-family=\"sans-serif\" font-size=\"12\" fill=\"none\" stroke-width=\"2\">\n",
        SIZE.0, SIZE.1
    );
    let mut text = |x: f64, y: f64, anchor: &str, text: &str| {
        svg += &format!("<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" fill=\"#222\">{text}</text>\n");
    };
    for second in ticks(end) {
        text(x(second), bottom + 18.0, "middle", &second.to_string());
    }
    for value in ticks(highest) {
        text(left - 6.0, y(value) + 4.0, "end", &value.to_string());
    }
    text((left + right) / 2.0, SIZE.1 - 6.0, "middle", "seconds");
    text(left + 6.0, top + 12.0, "start", unit);
    for (line, place) in lines.iter().zip(1..) {
        text(left + 30.0, top + 12.0 + 16.0 * f64::from(place), "start", line.name);
    }
    let mut line = |colour: &str, points: &mut dyn Iterator<Item = (f64, f64)>| {
        let points: Vec<String> = points.map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        svg += &format!("<polyline stroke=\"{colour}\" points=\"{}\"/>\n", points.join(" "));
    };
    for value in ticks(highest) {
        line("#e4e4e4", &mut [(left, y(value)), (right, y(value))].into_iter());
    }
    line("#222", &mut [(left, top), (left, bottom), (right, bottom)].into_iter());
    for (Line { colour, points, .. }, place) in lines.iter().zip(1..) {
        line(colour, &mut points.iter().map(|point| (x(point.0), y(point.1))));
        let legend = top + 8.0 + 16.0 * f64::from(place);
        line(colour, &mut [(left + 8.0, legend), (left + 24.0, legend)].into_iter());
    }
    svg + "</svg>"
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
        let line = Line { name: "p50", colour: BLUE, points: vec![(0.0, 0.0), (60.0, 2.0)] };
        let svg = chart("seconds", &[line], 60.0);
        assert!(svg.contains(">p50</text>") && svg.contains("points=\"60.0,260.0 750.0,32.7\""), "{svg}");
    }
}
