//! The filter of the queue's page: the conditions in its address, the chips that remove them, and the API's filter.

use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::clock::Timestamp;

pub(super) type Pairs = Vec<(String, String)>;

const SINGLE: [&str; 5] = ["text", "model", "caller", "created_from", "created_before"];

/// Conditions with several values. A job has one of them.
const LISTS: [&str; 4] = ["status", "priority", "code", "ids"];

const LABELS: &str = "metadata";

/// A condition of the filter, and the address of the page without it.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct Chip {
    pub(super) name: String,
    pub(super) value: String,
    address: String,
}

/// The pairs of a form or link without empty ones and repetitions, with each id by itself, and with times in UTC.
pub(super) fn given(pairs: Pairs) -> Pairs {
    let mut given = Pairs::new();
    for (name, value) in pairs {
        let values: Vec<String> = match name.as_str() {
            "ids" => value.split([',', ' ', '\n']).map(str::to_owned).collect(),
            "created_from" | "created_before" => vec![in_utc(&value)],
            _ => vec![value],
        };
        for value in values.into_iter().filter(|value| !value.trim().is_empty()) {
            let pair = (name.clone(), value.trim().to_owned());
            if !given.contains(&pair) {
                given.push(pair);
            }
        }
    }
    given
}

/// Reads the time of a date field, which is in UTC, or of the API. Other text does not change, and the API refuses it.
fn in_utc(value: &str) -> String {
    let complete = match value.len() {
        16 => format!("{value}:00Z"),
        19 => format!("{value}Z"),
        _ => value.to_owned(),
    };
    let time = serde_json::from_value::<Timestamp>(complete.into()).and_then(serde_json::to_value);
    time.ok().and_then(|time| time.as_str().map(str::to_owned)).unwrap_or_else(|| value.to_owned())
}

fn is_condition(name: &str) -> bool {
    SINGLE.contains(&name) || LISTS.contains(&name) || name == LABELS
}

pub(super) fn conditions(pairs: &Pairs) -> Pairs {
    pairs.iter().filter(|(name, _)| is_condition(name)).cloned().collect()
}

/// A chip for each condition. Its address leads to the start of the list.
pub(super) fn chips(pairs: &Pairs) -> Vec<Chip> {
    let chip = |chip: &(String, String)| {
        let others = pairs.iter().filter(|pair| *pair != chip && pair.0 != "cursor");
        let (name, value) = chip.clone();
        Chip { name, value, address: format!("/admin?{}", encode(others)) }
    };
    pairs.iter().filter(|(name, _)| is_condition(name)).map(chip).collect()
}

pub(super) fn json(pairs: &Pairs) -> Value {
    let mut filter = Map::new();
    for (name, value) in pairs {
        if LISTS.contains(&name.as_str()) {
            if let Some(list) = filter.entry(name).or_insert_with(|| json!([])).as_array_mut() {
                list.push(Value::from(value.as_str()));
            }
        } else if let (LABELS, Some((key, label))) = (name.as_str(), value.split_once('=')) {
            filter.entry(name).or_insert_with(|| json!({}))[key] = Value::from(label);
        } else {
            filter.insert(name.clone(), Value::from(value.as_str()));
        }
    }
    Value::from(filter)
}

/// The reverse of [`json`].
pub(super) fn from_json(filter: &Map<String, Value>) -> Pairs {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let pairs = filter.iter().flat_map(|(name, value)| match value {
        Value::Array(values) => values.iter().map(|value| (name.clone(), text(value))).collect(),
        Value::Object(labels) => {
            labels.iter().map(|(key, label)| (name.clone(), format!("{key}={}", text(label)))).collect()
        }
        value => vec![(name.clone(), text(value))],
    });
    pairs.collect()
}

pub(super) fn encode<'a>(pairs: impl IntoIterator<Item = &'a (String, String)>) -> String {
    form_urlencoded::Serializer::new(String::new()).extend_pairs(pairs).finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(query: &str) -> Pairs {
        given(form_urlencoded::parse(query.as_bytes()).into_owned().collect())
    }

    #[test]
    fn an_address_becomes_the_filter_that_means_the_same_and_back() {
        let query = "status=failed&status=cancelled&text=a%26b&metadata=team%3Dops&ids=x,y&order=oldest&cursor=x";
        let meant = conditions(&pairs(query));
        assert_eq!(encode(&meant), "status=failed&status=cancelled&text=a%26b&metadata=team%3Dops&ids=x&ids=y");
        let expected = json!({
            "status": ["failed", "cancelled"], "text": "a&b", "metadata": {"team": "ops"}, "ids": ["x", "y"]
        });
        assert_eq!(json(&meant), expected);
        let (mut back, mut meant) = (from_json(expected.as_object().unwrap()), meant);
        back.sort();
        meant.sort();
        assert_eq!(back, meant);
        assert_eq!(json(&Pairs::new()), json!({}), "which means all");
    }

    #[test]
    fn what_the_form_leaves_empty_is_no_condition_and_its_times_are_in_utc() {
        let query =
            "text=+&status=failed&status=failed&created_from=2026-11-23T09:30&created_before=2026-11-23T09:30:15";
        assert_eq!(
            encode(&pairs(query)),
            "status=failed&created_from=2026-11-23T09%3A30%3A00.000Z&created_before=2026-11-23T09%3A30%3A15.000Z"
        );
        let zoned = in_utc("2026-11-23T09:30:00+01:00");
        assert_eq!((zoned.as_str(), in_utc("yesterday").as_str()), ("2026-11-23T08:30:00.000Z", "yesterday"));
    }

    #[test]
    fn a_chip_leads_to_the_page_without_its_condition() {
        let chips = chips(&pairs("status=failed&status=queued&order=oldest&cursor=x"));
        let chip = |value: &str, address: &str| Chip {
            name: "status".to_owned(),
            value: value.to_owned(),
            address: address.to_owned(),
        };
        let expected =
            [chip("failed", "/admin?status=queued&order=oldest"), chip("queued", "/admin?status=failed&order=oldest")];
        assert_eq!(chips, expected);
    }
}
