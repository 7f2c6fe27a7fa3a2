//! What the derive macros can't say about schemas.

use utoipa::openapi::{
    Components, ObjectBuilder, RefOr, Schema,
    schema::{AdditionalProperties, AnyOfBuilder, ArrayItems, Type},
};

use crate::http::problem::codes;

/// Enums that can get new values within a version of the API (docs/api-policy.md).
const OPEN: [&str; 6] = ["AttemptOutcome", "CallbackEvent", "FailureCode", "FlagCode", "ProblemCode", "WaitingFor"];

/// Opens the enums in all answers, and describes the codes of failures.
pub(super) fn complete(components: &mut Components) {
    for schema in components.schemas.values_mut().filter(|schema| !is_request(schema)) {
        open(schema);
    }
    if let Some(RefOr::T(Schema::Object(codes))) = components.schemas.get_mut("FailureCode") {
        codes.extensions = Some(codes::failure_descriptions());
    }
}

/// Only bodies of requests refuse unknown fields.
fn is_request(schema: &RefOr<Schema>) -> bool {
    let RefOr::T(Schema::Object(object)) = schema else { return false };
    matches!(object.additional_properties.as_deref(), Some(AdditionalProperties::FreeForm(false)))
}

/// Allows any other text in place of a reference to an open enum. Generated clients then give a value that they know as a
/// member of the enum, and one that they do not know as a string. The enum itself stays closed, for conditions of requests.
fn open(schema: &mut RefOr<Schema>) {
    match schema {
        RefOr::Ref(known) => {
            if OPEN.iter().any(|name| known.ref_location.ends_with(&format!("/{name}"))) {
                let description = Some(std::mem::take(&mut known.description)).filter(|text| !text.is_empty());
                let other = ObjectBuilder::new().schema_type(Type::String);
                let any = AnyOfBuilder::new().item(known.clone()).item(other).description(description);
                *schema = RefOr::T(Schema::AnyOf(any.build()));
            }
        }
        RefOr::T(Schema::Object(object)) => object.properties.values_mut().for_each(open),
        RefOr::T(Schema::Array(array)) => {
            if let ArrayItems::RefOrSchema(items) = &mut array.items {
                open(items);
            }
        }
        RefOr::T(Schema::OneOf(one)) => one.items.iter_mut().for_each(open),
        RefOr::T(Schema::AllOf(all)) => all.items.iter_mut().for_each(open),
        RefOr::T(Schema::AnyOf(any)) => any.items.iter_mut().for_each(open),
        RefOr::T(_) => {}
    }
}
