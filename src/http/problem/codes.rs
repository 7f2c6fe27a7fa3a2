//! The list of all codes. docs/errors.md describes each: that page is part of the OpenAPI document, of `/docs` and, through
//! the `type` of a problem, of each error.

use std::borrow::Cow;

use serde_json::Value;
use strum::VariantNames;
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{ObjectBuilder, RefOr, Schema, extensions::Extensions, schema::Type},
};

use super::kinds::KINDS;
use crate::job::FailureCode;

const ERRORS: &str = include_str!("../../../docs/errors.md");

/// Where docs/errors.md turns from problems of requests to failures of jobs.
const FAILURES: &str = "\n## A failed job\n";

/// The code of a problem: of a request, or of the failed job that its client waited for.
pub(in crate::http) struct ProblemCode;

impl ToSchema for ProblemCode {
    fn name() -> Cow<'static, str> {
        "ProblemCode".into()
    }
}

impl PartialSchema for ProblemCode {
    fn schema() -> RefOr<Schema> {
        let kinds = KINDS.iter().map(|kind| kind.code());
        let failures =
            FailureCode::VARIANTS.iter().copied().filter(|code| KINDS.iter().all(|kind| kind.code() != *code));
        ObjectBuilder::new()
            .schema_type(Type::String)
            .enum_values(Some(kinds.chain(failures)))
            .description(Some(
                "Stable code of a problem: of a request or, with `job`, of the failed job (`FailureCode`)",
            ))
            .extensions(Some(descriptions(problems())))
            .build()
            .into()
    }
}

struct Row<'a> {
    status: &'a str,
    code: &'a str,
    cause: &'a str,
    remedy: &'a str,
}

fn rows(section: &str) -> impl Iterator<Item = Row<'_>> {
    section.lines().filter_map(|line| {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let [_, status, code, cause, remedy, _] = cells[..] else { return None };
        let code = code.strip_prefix('`')?.strip_suffix('`')?;
        status.parse::<u16>().is_ok().then_some(Row { status, code, cause, remedy })
    })
}

fn problems() -> impl Iterator<Item = Row<'static>> {
    rows(ERRORS.split_once(FAILURES).map_or("", |(problems, _)| problems))
}

fn failures() -> impl Iterator<Item = Row<'static>> {
    rows(ERRORS.split_once(FAILURES).map_or("", |(_, failures)| failures))
}

pub(in crate::http) fn failure_descriptions() -> Extensions {
    descriptions(failures())
}

/// Descriptions of an enum's values, as documentation tools read them.
fn descriptions<'a>(rows: impl Iterator<Item = Row<'a>>) -> Extensions {
    let described =
        rows.map(|row| (row.code.to_owned(), format!("{}. {} {}", row.status, row.cause, row.remedy).into()));
    Extensions::from_iter([("x-enumDescriptions", Value::Object(described.collect()))])
}

#[cfg(test)]
mod tests {
    use strum::IntoEnumIterator;

    use super::{super::kind_of, *};

    fn documented(rows: impl Iterator<Item = Row<'static>>) -> Vec<(String, String)> {
        let mut all: Vec<(String, String)> = rows
            .map(|row| {
                assert!(row.cause.ends_with('.') && row.remedy.ends_with('.'), "{} lacks cause or remedy", row.code);
                (row.code.to_owned(), row.status.to_owned())
            })
            .collect();
        all.sort();
        all
    }

    #[test]
    fn the_page_of_errors_has_each_code_once_with_its_status_its_cause_and_what_to_do() {
        let mut kinds: Vec<_> =
            KINDS.iter().map(|kind| (kind.code().to_owned(), kind.status().as_str().to_owned())).collect();
        kinds.sort();
        assert_eq!(documented(problems()), kinds);
        let of = |code: FailureCode| (code.to_string(), kind_of(code).status().as_str().to_owned());
        let mut codes: Vec<_> = FailureCode::iter().map(of).collect();
        codes.sort();
        assert_eq!(documented(failures()), codes);
    }
}
