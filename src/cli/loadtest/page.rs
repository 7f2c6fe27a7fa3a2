//! The report as one page that needs nothing else: figures, and charts as SVG within it.

use anyhow::Context;
use minijinja::{Environment, context};
use plotters::prelude::*;

use super::report::{Part, Report};

const TEMPLATE: &str = include_str!("report.html");

/// Pixels of a chart.
const SIZE: (u32, u32) = (760, 300);

const FONT: (&str, u32) = ("sans-serif", 13);

const BLUE: RGBColor = RGBColor(31, 119, 180);
const ORANGE: RGBColor = RGBColor(230, 126, 34);
const PURPLE: RGBColor = RGBColor(125, 60, 152);
const GREY: RGBColor = RGBColor(120, 120, 120);

/// A line of a chart.
struct Line {
    name: &'static str,
    colour: RGBColor,
    points: Vec<(f64, f64)>,
}

impl Line {
    /// What `figure` gives of each part, at its middle; parts of which it gives nothing are left out.
    fn new(name: &'static str, colour: RGBColor, report: &Report, figure: impl Fn(&Part) -> Option<f64>) -> Line {
        let middle = report.part_seconds / 2.0;
        let point = |part: &Part| Some((part.second + middle, figure(part)?));
        Line { name, colour, points: report.over_time.iter().filter_map(point).collect() }
    }
}

/// The page.
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
    let charts = charts
        .into_iter()
        .map(|(title, unit, lines)| Ok(context! { title, svg => chart(unit, &lines, end.max(1.0))? }))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let mut environment = Environment::new();
    environment.add_template("report.html", TEMPLATE).context("the page's template")?;
    let template = environment.get_template("report.html")?;
    let (simulated, interrupted) = (report.setup.simulated, report.setup.interrupted);
    Ok(template.render(context! { simulated, interrupted, charts, words => report.to_string() })?)
}

/// A chart of `lines` up to the second `end`.
fn chart(unit: &str, lines: &[Line], end: f64) -> anyhow::Result<String> {
    let highest = lines.iter().flat_map(|line| &line.points).map(|(_, y)| *y).fold(0.0, f64::max);
    let top = if highest > 0.0 { highest * 1.1 } else { 1.0 };
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        area.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&area)
            .margin(10)
            .x_label_area_size(40)
            .y_label_area_size(60)
            .build_cartesian_2d(0.0..end, 0.0..top)?;
        chart
            .configure_mesh()
            .x_desc("seconds")
            .y_desc(unit)
            .label_style(FONT)
            .axis_desc_style(FONT)
            .light_line_style(WHITE)
            .draw()?;
        for Line { name, colour, points } in lines {
            let style = colour.stroke_width(2);
            chart
                .draw_series(LineSeries::new(points.iter().copied(), style))?
                .label(*name)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], style));
        }
        chart
            .configure_series_labels()
            .label_font(FONT)
            .position(SeriesLabelPosition::UpperLeft)
            .background_style(WHITE.mix(0.8))
            .border_style(BLACK.mix(0.2))
            .draw()?;
        area.present()?;
    }
    Ok(svg)
}
