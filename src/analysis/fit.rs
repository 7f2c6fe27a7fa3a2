//! Values in another form than the schema wants, such as `"4"` for `4`: brought into its form, and the slip is named.
//!
//! This follows the schema, so it holds for every field. `4.5` for an integer and `null` for anything stay wrong.

use std::collections::BTreeSet;

use serde_json::{Number, Value};

use super::lenient::{self, Repair};

/// Brings `value` into the form of the whole `schema`, which does not refer to itself.
pub(super) fn fit(value: &mut Value, schema: &Value, repairs: &mut BTreeSet<Repair>) {
    fit_part(value, schema, schema, repairs);
}

fn fit_part(value: &mut Value, part: &Value, root: &Value, repairs: &mut BTreeSet<Repair>) {
    if let Some(path) = part["$ref"].as_str() {
        let target = root.pointer(path.trim_start_matches('#')).unwrap_or(&Value::Null);
        return fit_part(value, target, root, repairs);
    }
    let fitting = match (part["type"].as_str(), &mut *value) {
        (Some("object"), Value::Object(members)) => {
            for (name, part) in part["properties"].as_object().into_iter().flatten() {
                if let Some(member) = members.get_mut(name) {
                    fit_part(member, part, root, repairs);
                }
            }
            None
        }
        (Some("array"), Value::Array(items)) => {
            items.iter_mut().for_each(|item| fit_part(item, &part["items"], root, repairs));
            None
        }
        (Some("integer"), Value::Number(number)) if number.is_f64() => {
            whole(&number.to_string()).map(|number| (number, Some(Repair::WholeNumber)))
        }
        (Some("integer"), Value::String(text)) => whole(text).map(|number| (number, Some(Repair::NumberAsText))),
        (Some("boolean"), Value::String(text)) => {
            let truth = text.trim().to_lowercase().parse().ok().map(Value::Bool);
            truth.map(|truth| (truth, Some(Repair::BooleanAsText)))
        }
        (Some("string"), Value::String(text)) => word(text, &part["enum"]),
        _ => None,
    };
    if let Some((fitting, repair)) = fitting {
        repairs.extend(repair);
        *value = fitting;
    }
}

fn whole(text: &str) -> Option<Value> {
    let number: String = text.trim().chars().map(lenient::ascii).collect();
    let number: f64 = number.trim_end_matches('%').trim_end().parse().ok()?;
    // As text, a float has no exponent, and a fraction only if it is not whole.
    number.to_string().parse::<i64>().ok().map(|number| Value::Number(Number::from(number)))
}

/// The word of an enum that has the same letters. Structured output does not guarantee the case, so another case is not a slip.
fn word(text: &str, words: &Value) -> Option<(Value, Option<Repair>)> {
    let letters = |word: &str| word.chars().filter(|c| c.is_alphanumeric()).collect::<String>().to_lowercase();
    let meant = letters(text);
    let mut words = words.as_array()?.iter().filter_map(Value::as_str);
    let word = words.find(|word| letters(word) == meant).filter(|word| *word != text)?;
    let repair = (!word.eq_ignore_ascii_case(text)).then_some(Repair::EnumWord);
    Some((Value::from(word), repair))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn fitted(mut value: Value, schema: &Value) -> (Value, Vec<&'static str>) {
        let mut repairs = BTreeSet::new();
        fit(&mut value, schema, &mut repairs);
        (value, repairs.into_iter().map(Into::into).collect())
    }

    #[test]
    fn values_are_brought_into_the_form_of_the_schema() {
        let whole = json!({"type": "integer"});
        let scale = json!({"type": "string", "enum": ["one_way_door", "two_way_door"]});
        for (schema, value, expected, repairs) in [
            (&whole, json!(4.0), json!(4), vec!["whole_number"]),
            (&whole, json!("4"), json!(4), vec!["number_as_text"]),
            (&whole, json!(" 60.0"), json!(60), vec!["number_as_text"]),
            (&whole, json!(4.5), json!(4.5), vec![]),
            (&whole, json!("６０"), json!(60), vec!["number_as_text"]),
            (&whole, json!("60 %"), json!(60), vec!["number_as_text"]),
            (&whole, json!("NaN"), json!("NaN"), vec![]),
            (&whole, json!("inf"), json!("inf"), vec![]),
            (&whole, json!("four"), json!("four"), vec![]),
            (&whole, json!(null), json!(null), vec![]),
            (&whole, json!(1e300), json!(1e300), vec![]),
            (&json!({"type": "boolean"}), json!("True"), json!(true), vec!["boolean_as_text"]),
            (&scale, json!("Two-way door"), json!("two_way_door"), vec!["enum_word"]),
            (&scale, json!("TWO_WAY_DOOR"), json!("two_way_door"), vec![]),
            (&scale, json!("中"), json!("中"), vec![]),
        ] {
            assert_eq!(fitted(value, schema), (expected, repairs), "{schema}");
        }
    }

    #[test]
    fn a_schema_is_followed_into_its_parts() {
        let schema = json!({
            "type": "object", "$defs": {"n": {"type": "integer"}},
            "properties": {"list": {"type": "array", "items": {"$ref": "#/$defs/n"}}},
        });
        let value = json!({"list": [1.0, "2", 3], "other": 4.0});
        let expected = json!({"list": [1, 2, 3], "other": 4.0});
        assert_eq!(fitted(value, &schema), (expected, vec!["whole_number", "number_as_text"]));
    }
}
