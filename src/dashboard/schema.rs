//! Filters of the page `/docs`: a schema of the OpenAPI document in words, and as an example.

use minijinja::{HtmlEscape, Value};
use serde::Deserialize;
use serde_json::{Value as Json, json};

/// Schemas in schemas, as deep as an example shows them.
const MAX_DEPTH: usize = 6;

/// The type of a schema in a few words, as HTML, with links to the schemas that it names.
pub(super) fn kind(schema: &Json) -> String {
    if let Some(name) = reference(schema) {
        return format!("<a href=\"#{0}\">{0}</a>", HtmlEscape(name));
    }
    for (several, conjunction) in [("oneOf", " or "), ("anyOf", " or "), ("allOf", " and ")] {
        if let Some(parts) = schema[several].as_array() {
            return parts.iter().map(kind).filter(|kind| kind != "null").collect::<Vec<_>>().join(conjunction);
        }
    }
    if let Some(words) = schema["enum"].as_array() {
        let words = words.iter().filter_map(Json::as_str).map(|word| format!("<code>{}</code>", HtmlEscape(word)));
        return words.collect::<Vec<_>>().join(", ");
    }
    match (type_of(schema), schema["format"].as_str()) {
        ("array", _) => format!("list of {}", kind(&schema["items"])),
        ("object", _) if !schema["additionalProperties"]["type"].is_null() => {
            format!("object of {}", kind(&schema["additionalProperties"]))
        }
        (word, Some(format @ ("date-time" | "date" | "uri" | "uuid"))) => format!("{word} ({format})"),
        (word, _) => word.to_owned(),
    }
}

fn type_of(schema: &Json) -> &str {
    let word = &schema["type"];
    let other = || word.as_array()?.iter().filter_map(Json::as_str).find(|word| *word != "null");
    word.as_str().or_else(other).unwrap_or("anything")
}

fn reference(schema: &Json) -> Option<&str> {
    schema["$ref"].as_str()?.rsplit('/').next()
}

/// The smallest body that a schema allows, as JSON. It may refer to `schemas`.
pub(super) fn example(schema: &Json, schemas: &Value) -> String {
    format!("{:#}", example_of(schema, schemas, MAX_DEPTH))
}

fn example_of(schema: &Json, schemas: &Value, depth: usize) -> Json {
    if depth == 0 {
        return Json::Null;
    }
    if let Some(name) = reference(schema) {
        let named = schemas.get_attr(name).ok().and_then(|named| Json::deserialize(named).ok());
        return example_of(&named.unwrap_or_default(), schemas, depth - 1);
    }
    if let Some(example) = schema.get("example").or(schema["enum"].get(0)) {
        return example.clone();
    }
    if let Some(first) = schema["oneOf"].get(0).or(schema["anyOf"].get(0)) {
        return example_of(first, schemas, depth);
    }
    match type_of(schema) {
        "object" => {
            let required = schema["required"].as_array().into_iter().flatten().filter_map(Json::as_str);
            let fields = required.map(|name| (name, example_of(&schema["properties"][name], schemas, depth - 1)));
            fields.collect()
        }
        "array" => json!([example_of(&schema["items"], schemas, depth - 1)]),
        "boolean" => json!(true),
        "integer" | "number" => schema.get("minimum").cloned().unwrap_or(json!(0)),
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
            assert_eq!(kind(&schema), words, "{schema}");
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
            let example = example(&schema, &Value::from(Serde(&schemas)));
            serde_json::from_str::<Json>(&example).unwrap()
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
