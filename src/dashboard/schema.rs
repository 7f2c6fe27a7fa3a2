//! Filters of the page `/docs`: a schema of the OpenAPI document in words, and as an example.

use minijinja::{
    HtmlEscape, Value,
    value::{ValueIter, ValueKind},
};

/// Schemas in schemas, as deep as an example shows them.
const MAX_DEPTH: usize = 6;

/// The type of a schema in a few words, as HTML, with links to the schemas that it names.
pub(super) fn kind(schema: &Value) -> Value {
    Value::from_safe_string(kind_of(schema))
}

fn kind_of(schema: &Value) -> String {
    let get = |name: &str| schema.get_attr(name).unwrap_or_default();
    if let Some(name) = reference(schema) {
        return format!("<a href=\"#{0}\">{0}</a>", HtmlEscape(&name));
    }
    for several in ["oneOf", "anyOf", "allOf"] {
        if let Some(parts) = list(&get(several)) {
            let kinds: Vec<String> = parts.map(|part| kind_of(&part)).filter(|kind| kind != "null").collect();
            return kinds.join(if several == "allOf" { " and " } else { " or " });
        }
    }
    if let Some(words) = list(&get("enum")) {
        let words: Vec<String> = words.map(|word| format!("<code>{}</code>", HtmlEscape(&word.to_string()))).collect();
        return words.join(", ");
    }
    let word = type_of(schema);
    match word.as_str() {
        "array" => format!("list of {}", kind_of(&get("items"))),
        "object" if get("additionalProperties").get_attr("type").is_ok_and(|word| !word.is_undefined()) => {
            format!("object of {}", kind_of(&get("additionalProperties")))
        }
        _ => match get("format").as_str() {
            Some(format @ ("date-time" | "date" | "uri" | "uuid")) => format!("{word} ({format})"),
            _ => word,
        },
    }
}

/// The entries of a list; an undefined value would pass for an empty one.
fn list(value: &Value) -> Option<ValueIter> {
    value.try_iter().ok().filter(|_| value.kind() == ValueKind::Seq)
}

/// The type but for `null`; anything where none is named.
fn type_of(schema: &Value) -> String {
    let word = schema.get_attr("type").unwrap_or_default();
    match word.as_str() {
        Some(word) => word.to_owned(),
        None => word
            .try_iter()
            .ok()
            .and_then(|mut words| words.find(|word| word.as_str() != Some("null")))
            .map_or_else(|| "anything".to_owned(), |word| word.to_string()),
    }
}

/// The schema that is named in place of one.
fn reference(schema: &Value) -> Option<String> {
    let path = schema.get_attr("$ref").ok()?;
    path.as_str()?.rsplit('/').next().map(str::to_owned)
}

/// The smallest body that a schema allows, as JSON. `schemas` are those that it may name.
pub(super) fn example(schema: &Value, schemas: &Value) -> String {
    serde_json::to_string_pretty(&example_of(schema, schemas, MAX_DEPTH)).unwrap_or_default()
}

fn example_of(schema: &Value, schemas: &Value, depth: usize) -> serde_json::Value {
    use serde_json::{Value as Json, json, to_value};
    let get = |name: &str| schema.get_attr(name).unwrap_or_default();
    if depth == 0 {
        return Json::Null;
    }
    if let Some(name) = reference(schema) {
        return example_of(&schemas.get_attr(&name).unwrap_or_default(), schemas, depth - 1);
    }
    if !get("example").is_undefined() {
        return to_value(get("example")).unwrap_or_default();
    }
    for several in ["oneOf", "anyOf", "enum"] {
        let Some(first) = get(several).try_iter().ok().and_then(|mut parts| parts.next()) else { continue };
        return if several == "enum" {
            to_value(first).unwrap_or_default()
        } else {
            example_of(&first, schemas, depth)
        };
    }
    match type_of(schema).as_str() {
        "object" => {
            let fields = get("required").try_iter().into_iter().flatten().filter_map(|name| {
                let name = name.as_str()?.to_owned();
                let field = get("properties").get_attr(&name).ok()?;
                Some((name, example_of(&field, schemas, depth - 1)))
            });
            Json::Object(fields.collect())
        }
        "array" => json!([example_of(&get("items"), schemas, depth - 1)]),
        "boolean" => json!(true),
        "integer" | "number" => to_value(get("minimum")).ok().filter(Json::is_number).unwrap_or(json!(0)),
        _ => json!("…"),
    }
}

/// Text with `code` in it, as HTML.
pub(super) fn prose(text: &str) -> Value {
    let parts = text.split('`').enumerate().map(|(place, part)| match place % 2 {
        0 => HtmlEscape(part).to_string(),
        _ => format!("<code>{}</code>", HtmlEscape(part)),
    });
    Value::from_safe_string(parts.collect::<String>().replace("\n\n", "<br>"))
}

#[cfg(test)]
mod tests {
    use minijinja::value::Serde;
    use serde_json::json;

    use super::*;

    #[test]
    fn a_type_is_named_in_words_and_escaped() {
        let cases = [
            (json!({"$ref": "#/components/schemas/Job"}), "<a href=\"#Job\">Job</a>"),
            (json!({"type": ["string", "null"], "format": "date-time"}), "string (date-time)"),
            (json!({"type": "array", "items": {"type": "integer", "format": "int64"}}), "list of integer"),
            (json!({"type": "object", "additionalProperties": {"type": "string"}}), "object of string"),
            (json!({"oneOf": [{"type": "null"}, {"type": "boolean"}, {"type": "number"}]}), "boolean or number"),
            (json!({"enum": ["<b>"]}), "<code>&lt;b&gt;</code>"),
            (json!({}), "anything"),
        ];
        for (schema, words) in cases {
            assert_eq!(kind_of(&Value::from(Serde(&schema))), words, "{schema}");
        }
    }

    #[test]
    fn an_example_has_what_is_required_and_nothing_else() {
        let schemas = json!({
            "Question": {"type": "object", "required": ["query"], "properties": {
                "query": {"type": "string", "example": "Why?"}, "model": {"type": "string"}}},
            "Loop": {"type": "object", "required": ["next"], "properties": {"next": {"$ref": "#/components/schemas/Loop"}}}
        });
        let of = |schema| {
            let example = example(&Value::from(Serde(schema)), &Value::from(Serde(&schemas)));
            serde_json::from_str::<serde_json::Value>(&example).unwrap()
        };
        let reference = |name| json!({"$ref": format!("#/components/schemas/{name}")});
        let batch = json!({"type": "object", "required": ["requests"],
            "properties": {"requests": {"type": "array", "items": reference("Question")}}});
        assert_eq!(of(batch), json!({"requests": [{"query": "Why?"}]}));
        assert!(of(reference("Loop")).is_object(), "it ends");
    }

    #[test]
    fn text_is_escaped_inside_and_outside_of_code() {
        assert_eq!(prose("a < b, `<c>`").as_str(), Some("a &lt; b, <code>&lt;c&gt;</code>"));
    }
}
