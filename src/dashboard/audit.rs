//! The details of an entry of the audit log, for the page `/admin/audit`.

use serde::Serialize;
use serde_json::{Deserializer, Map, Value};
use uuid::Uuid;

use super::filter::{Pairs, from_json};

#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Target {
    Job(Uuid),
    /// The jobs that match these conditions, or the settings with these values.
    Pairs(Pairs),
    Text(String),
}

/// Reads an entry's details: objects of JSON, ids of jobs and names, separated by commas.
pub(super) fn targets(detail: &str) -> Vec<Target> {
    let (mut targets, mut rest) = (Vec::new(), detail);
    while !rest.is_empty() {
        let mut objects = Deserializer::from_str(rest).into_iter::<Map<String, Value>>();
        let (target, length) = match objects.next() {
            Some(Ok(object)) => (Target::Pairs(from_json(&object)), objects.byte_offset()),
            _ => {
                let length = rest.find(", ").unwrap_or(rest.len());
                let text = &rest[..length];
                (text.parse().map_or_else(|_| Target::Text(text.to_owned()), Target::Job), length)
            }
        };
        targets.push(target);
        rest = rest[length..].trim_start_matches([',', ' ']);
    }
    targets
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn details_are_read_as_jobs_conditions_and_names() {
        let id = "019aaf2e-5c3d-7a10-8f3b-2d9e4c6b1a70";
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let detail =
            format!(r#"{id}, {{"status":["failed"],"text":"a, b"}}, {{}}, {{"requests_per_minute":7}}, ci (read), …"#);
        let expected = [
            Target::Job(id.parse().unwrap()),
            Target::Pairs(vec![pair("status", "failed"), pair("text", "a, b")]),
            Target::Pairs(Vec::new()),
            Target::Pairs(vec![pair("requests_per_minute", "7")]),
            Target::Text("ci (read)".to_owned()),
            Target::Text("…".to_owned()),
        ];
        assert_eq!(targets(&detail), expected);
        assert_eq!(targets(""), []);
        assert_eq!(targets(r#"{"cut":"#), [Target::Text(r#"{"cut":"#.to_owned())]);
    }
}
