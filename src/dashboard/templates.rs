//! The templates and their filters. Templates escape what they show; filters that write HTML escape their own.

use minijinja::{
    Environment, Error, HtmlEscape, State, UndefinedBehavior, Value,
    syntax::SyntaxConfig,
    value::{Kwargs, Serde},
};

use serde_json::Value as Json;

use super::{audit, schema};
use crate::{analysis::labels::Labels, clock::Timestamp};

/// The templates by name. minijinja escapes values in templates that end in `.html`.
pub(super) const TEMPLATES: [(&str, &str); 15] = [
    ("base.html", include_str!("templates/base.html")),
    ("parts.html", include_str!("templates/parts.html")),
    ("ask.html", include_str!("templates/ask.html")),
    ("job.html", include_str!("templates/job.html")),
    ("memo.html", include_str!("templates/memo.html")),
    ("login.html", include_str!("templates/login.html")),
    ("queue.html", include_str!("templates/queue.html")),
    ("bulk.html", include_str!("templates/bulk.html")),
    ("limits.html", include_str!("templates/limits.html")),
    ("audit.html", include_str!("templates/audit.html")),
    ("history.html", include_str!("templates/history.html")),
    ("keys.html", include_str!("templates/keys.html")),
    ("webhooks.html", include_str!("templates/webhooks.html")),
    ("docs.html", include_str!("templates/docs.html")),
    ("message.html", include_str!("templates/message.html")),
];

/// Shown for a value that the API leaves out.
const ABSENT: &str = "–";

pub(super) struct Templates(Environment<'static>);

impl Templates {
    pub(super) fn new() -> Templates {
        let mut environment = Environment::new();
        // A field that the API leaves out is shown as nothing.
        environment.set_undefined_behavior(UndefinedBehavior::Chainable);
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.expect("the default delimiters are valid"));
        environment.add_filter("start", start);
        environment.add_filter("fill", fill);
        environment.add_filter("num", num);
        environment.add_filter("usd", usd);
        environment.add_filter("seconds", seconds);
        environment.add_filter("time", time);
        environment.add_filter("between", between);
        environment.add_filter("targets", |detail: Option<&str>| {
            Value::from(Serde(audit::targets(detail.unwrap_or_default())))
        });
        environment.add_filter("kind", |schema: Serde<Json>| Value::from_safe_string(schema::kind(&schema.0)));
        environment.add_filter("example", |schema: Serde<Json>, schemas: Value| schema::example(&schema.0, &schemas));
        environment.add_filter("prose", |text: String| schema::prose(&text));
        for (name, source) in TEMPLATES {
            environment.add_template(name, source).expect("a test reads the templates");
        }
        Templates(environment)
    }

    pub(super) fn fill(&self, name: &str, shown: Value) -> Result<String, Error> {
        self.0.get_template(name)?.render(shown)
    }
}

pub(super) fn memo_labels(labels: Labels) -> Value {
    Value::from(Serde(labels.all()))
}

fn start(text: String, length: usize) -> String {
    match text.char_indices().nth(length) {
        Some((end, _)) => format!("{}…", text[..end].trim_end()),
        None => text,
    }
}

/// Fills the blanks of a text: `{{ t.position_of|fill(n=3) }}`.
#[expect(clippy::needless_pass_by_value, reason = "filters get their arguments so")]
fn fill(text: String, values: Kwargs) -> Result<String, Error> {
    let mut filled = text;
    for name in values.args() {
        let value = values.get::<Value>(name)?;
        let text = match f64::try_from(value.clone()) {
            Ok(number) if value.is_number() => grouped(number, 0),
            _ => value.to_string(),
        };
        filled = filled.replace(&format!("{{{name}}}"), &text);
    }
    values.assert_all_used()?;
    Ok(filled)
}

/// A number with grouped thousands. The script formats it for the reader's locale.
fn num(number: Option<f64>, places: Option<usize>) -> Value {
    let Some(number) = number else { return Value::from(ABSENT) };
    let grouped = grouped(number, places.unwrap_or(0));
    Value::from_safe_string(format!("<data value=\"{number}\">{grouped}</data>"))
}

fn grouped(number: f64, places: usize) -> String {
    let text = format!("{number:.places$}");
    let (whole, fraction) = text.split_at(text.find('.').unwrap_or(text.len()));
    let (sign, digits) = whole.split_at(whole.len() - whole.trim_start_matches('-').len());
    let groups: Vec<_> = digits.as_bytes().rchunks(3).rev().map(String::from_utf8_lossy).collect();
    format!("{sign}{}{fraction}", groups.join(","))
}

/// US dollars; small amounts with fractions of a cent.
fn usd(dollars: Option<f64>) -> String {
    let Some(dollars) = dollars else { return ABSENT.to_owned() };
    let places = if dollars != 0.0 && dollars.abs() < 0.1 { 4 } else { 2 };
    format!("${}", grouped(dollars, places))
}

/// A duration in its largest fitting unit.
fn seconds(state: &State<'_, '_>, seconds: Option<f64>) -> Result<String, Error> {
    let Some(seconds) = seconds else { return Ok(ABSENT.to_owned()) };
    let (unit, number) = match seconds {
        ..0.001 => ("unit_s", 0.0),
        ..1.0 => ("unit_ms", seconds * 1e3),
        ..100.0 => ("unit_s", seconds),
        ..6_000.0 => ("unit_min", seconds / 60.0),
        ..172_800.0 => ("unit_h", seconds / 3_600.0),
        _ => ("unit_d", seconds / 86_400.0),
    };
    let places = usize::from(unit == "unit_s" && number < 10.0 && number.fract() != 0.0);
    let text = state.lookup("t").unwrap_or_default().get_attr(unit)?;
    Ok(text.to_string().replace("{n}", &grouped(number, places)))
}

fn between(from: Option<Serde<Timestamp>>, to: Option<Serde<Timestamp>>) -> Option<f64> {
    Some(to?.0.since(from?.0).as_secs_f64())
}

/// A time. The script shows how long ago it was, and the exact time on hover.
fn time(text: Option<&str>) -> Value {
    let Some(text) = text else { return Value::from(ABSENT) };
    let shown = match (text.get(..10), text.get(11..16)) {
        (Some(day), Some(time)) => format!("{day} {time} UTC"),
        _ => text.to_owned(),
    };
    Value::from_safe_string(format!("<time datetime=\"{0}\">{1}</time>", HtmlEscape(text), HtmlEscape(&shown)))
}

#[cfg(test)]
mod tests {
    use minijinja::context;

    use super::*;
    use crate::dashboard::strings::Lang;

    fn filled(source: &'static str, shown: Value) -> String {
        let mut templates = Templates::new();
        templates.0.add_template("it.html", source).unwrap();
        templates.fill("it.html", shown).unwrap()
    }

    #[test]
    fn numbers_are_grouped_and_dollars_keep_what_counts() {
        assert_eq!(grouped(1_234_567.0, 0), "1,234,567");
        assert_eq!(grouped(-1234.5, 1), "-1,234.5");
        assert_eq!((grouped(7.0, 0), grouped(123.0, 2)), ("7".to_owned(), "123.00".to_owned()));
        assert_eq!(
            (usd(Some(0.0123)), usd(Some(12.3)), usd(Some(0.0))),
            ("$0.0123".to_owned(), "$12.30".to_owned(), "$0.00".to_owned())
        );
    }

    #[test]
    fn spans_are_told_in_the_unit_that_fits() {
        for (seconds, told) in [
            (0.0, "0 s"),
            (0.25, "250 ms"),
            (4.25, "4.2 s"),
            (42.0, "42 s"),
            (300.0, "5 min"),
            (9_000.0, "2 h"),
            (1e6, "12 d"),
        ] {
            let shown = context! { t => Lang::En.texts(), seconds };
            assert_eq!(filled("{{ seconds|seconds }}", shown), told);
        }
    }

    #[test]
    fn moments_are_shown_escaped_and_spans_counted_between_them() {
        let shown = context! { from => "2026-11-23T17:15:00.000Z", to => "2026-11-23T17:15:02.500Z", bad => "<b>" };
        assert_eq!(
            filled("{{ from|time }}|{{ from|between(to) }}|{{ gone|between(to) is none }}|{{ bad|time }}", shown),
            "<time datetime=\"2026-11-23T17:15:00.000Z\">2026-11-23 17:15 UTC</time>|2.5|True|\
             <time datetime=\"&lt;b&gt;\">&lt;b&gt;</time>"
        );
    }

    #[test]
    fn what_the_api_does_not_tell_is_a_dash_and_no_fault() {
        let shown = context! { t => Lang::En.texts() };
        assert_eq!(filled("{{ a.b|seconds }}{{ a.b|num }}{{ a.b|usd }}{{ a.b|time }}", shown), "––––");
    }

    #[test]
    fn blanks_are_filled_and_what_fills_them_is_escaped() {
        let shown = context! { text => "{n} of <{m}>", evil => "<script>" };
        assert_eq!(filled("{{ text|fill(n=1, m=evil) }}", shown), "1 of &lt;&lt;script&gt;&gt;");
    }

    #[test]
    fn the_queue_says_that_questions_are_analysed_only_where_they_are() {
        let told = |is_reached: bool, no_dispatcher_since: Option<&str>| {
            let stats = serde_json::json!({
                "jobs": {"queued": 1}, "limits": {"calls_per_second": 1}, "no_dispatcher_since": no_dispatcher_since,
            });
            let usage = serde_json::json!({
                "spent_today": {"input_tokens": 0, "output_tokens": 0, "cache_creation_input_tokens": 0,
                    "cache_read_input_tokens": 0, "cost_usd": 0},
                "budget": {"is_reached": is_reached, "resets_at": "2026-11-24T00:00:00.000Z"},
            });
            let (stats, usage) = (Serde(stats), Serde(usage));
            Templates::new().fill("queue.html", context! { t => Lang::En.texts(), stats, usage }).unwrap()
        };
        let [open, held] = [told(false, None), told(true, None)];
        assert!(open.contains("accepted and run.") && !open.contains("budget is too small for a call"), "{open}");
        assert!(held.contains("budget is too small for a call") && held.contains("2026-11-24 00:00 UTC"), "{held}");
        assert!(!held.contains("accepted and run.") && !held.contains("no node"), "{held}");
        let idle = told(false, Some("2026-11-24T09:30:00.000Z"));
        let (_, why) =
            idle.split_once("Jobs are accepted but not run: no node has handed out calls to Claude since").unwrap();
        assert!(why.split_once("</p>").unwrap().0.contains("2026-11-24 09:30 UTC"), "{idle}");
        assert!(!idle.contains("accepted and run."), "{idle}");
    }
}
