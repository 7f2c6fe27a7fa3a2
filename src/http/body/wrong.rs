//! Messages for invalid values. Serde's own messages name Rust types, which no client knows.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{self, DeserializeSeed, IntoDeserializer, MapAccess, SeqAccess, Visitor},
    forward_to_deserialize_any,
};

/// Most characters of a value repeated in a message: an error must not be much larger than the request.
const MAX_QUOTED: usize = 60;

/// One step into a body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// To the value of a field.
    Field(String),
    /// To an item of a list.
    Item(usize),
}

/// The names of the fields that `T` has at the end of this path, if they are fixed.
pub(super) fn fields<'de, T: Deserialize<'de>>(path: &[Step]) -> Option<&'static [&'static str]> {
    match T::deserialize(Probe(path)) {
        Err(Found::Fields(fields)) => Some(fields),
        Err(Found::Words(_) | Found::Else) | Ok(_) => None,
    }
}

/// The words that `T` accepts at the end of this path, if it is an enum.
pub(super) fn words<'de, T: Deserialize<'de>>(path: &[Step]) -> Option<&'static [&'static str]> {
    match T::deserialize(Probe(path)) {
        Err(Found::Words(words)) => Some(words),
        Err(Found::Fields(_) | Found::Else) | Ok(_) => None,
    }
}

/// Turns serde's message into plain words. `words` are the values of an enum.
pub(super) fn plain(message: &str, words: Option<&[&str]>) -> String {
    let said = ["invalid type: ", "invalid value: ", "invalid length "].iter().find_map(|start| {
        let (given, expected) = message.strip_prefix(start)?.rsplit_once(", expected ")?;
        Some((if start.ends_with("length ") { "sequence" } else { given }, expected))
    });
    if let Some(words) = words {
        let word = message.strip_prefix("unknown variant `").and_then(|rest| rest.rsplit_once("`, expected "));
        let given = word.map(|(word, _)| cut(&format!("{word:?}"))).or_else(|| Some(self::given(said?.0)));
        let given = given.map_or(String::new(), |given| format!(", not {given}"));
        return format!("must be one of {}{given}", words.join(", "));
    }
    let Some((given, expected)) = said else { return message.to_owned() };
    let expected = match expected {
        "a string" | "a borrowed string" => "a string",
        "a map" => "an object of strings",
        "a sequence" => "a list",
        "a boolean" => "true or false",
        "a JSON number" => "a number",
        other if other.starts_with("struct ") => "a JSON object",
        other => other,
    };
    format!("must be {expected}, not {}", self::given(given))
}

/// The given value, from serde's message.
fn given(value: &str) -> String {
    let quoted = |value: &'_ str| value.split('`').nth(1).map(str::to_owned);
    match value.split_once(' ') {
        Some(("string", text)) => format!("the string {}", cut(text)),
        Some(("integer", number)) => format!("the number {}", quoted(number).unwrap_or_default()),
        Some(("floating", number)) => format!("the number {}", quoted(number).unwrap_or_default()),
        Some(("boolean", value)) => quoted(value).unwrap_or_default(),
        _ if value == "map" => "an object".to_owned(),
        _ if value == "sequence" => "a list".to_owned(),
        _ => cut(value),
    }
}

fn cut(text: &str) -> String {
    match text.char_indices().nth(MAX_QUOTED) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// What a type expects at the end of a path. Ends the probe as an error.
#[derive(Debug)]
enum Found {
    Fields(&'static [&'static str]),
    Words(&'static [&'static str]),
    Else,
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

impl std::error::Error for Found {}

impl de::Error for Found {
    fn custom<T: fmt::Display>(_: T) -> Found {
        Found::Else
    }
}

/// A body that contains nothing but the rest of a path.
struct Probe<'a>(&'a [Step]);

impl<'de> Deserializer<'de> for Probe<'_> {
    type Error = Found;

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Found> {
        Err(Found::Else)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Found> {
        if self.0.is_empty() { Err(Found::Fields(fields)) } else { visitor.visit_map(self) }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        _: V,
    ) -> Result<V::Value, Found> {
        Err(Found::Words(variants))
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Found> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Found> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Found> {
        visitor.visit_seq(self)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Found> {
        visitor.visit_map(self)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct tuple
        tuple_struct identifier ignored_any
    }
}

impl<'de> MapAccess<'de> for Probe<'_> {
    type Error = Found;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Found> {
        match self.0 {
            [Step::Field(name), ..] => seed.deserialize(name.as_str().into_deserializer()).map(Some),
            _ => Err(Found::Else),
        }
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Found> {
        seed.deserialize(Probe(self.0.get(1..).unwrap_or_default()))
    }
}

impl<'de> SeqAccess<'de> for Probe<'_> {
    type Error = Found;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Found> {
        match self.0 {
            [Step::Item(_), rest @ ..] => seed.deserialize(Probe(rest)).map(Some),
            _ => Err(Found::Else),
        }
    }
}
