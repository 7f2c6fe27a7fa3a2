//! The JSON schema of a `DecisionAnalysis`, for structured output.

use std::sync::{Arc, LazyLock};

use serde_json::{Value, value::RawValue};

/// The schema as text: the model writes its fields in their order, which a parsed copy would lose.
pub fn text() -> Arc<RawValue> {
    static TEXT: LazyLock<Arc<RawValue>> = LazyLock::new(|| {
        let text = without_white_space(include_str!("decision.schema.json"));
        Arc::from(RawValue::from_string(text).expect("the schema is part of the program, and a test reads it"))
    });
    Arc::clone(&TEXT)
}

pub(super) fn parsed() -> &'static Value {
    static SCHEMA: LazyLock<Value> = LazyLock::new(|| {
        serde_json::from_str(text().get()).expect("the schema is part of the program, and a test reads it")
    });
    &SCHEMA
}

/// JSON without the white space between its tokens. No text of the schema has a quotation mark in it.
fn without_white_space(json: &str) -> String {
    let mut is_text = false;
    json.chars()
        .filter(|c| {
            is_text ^= *c == '"';
            is_text || !c.is_whitespace()
        })
        .collect()
}
