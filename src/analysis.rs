//! The decision memo: the model's analysis, how an answer is read into it, and what the service makes of it.
//!
//! Reading: `answer` finds the JSON in an answer, `lenient` and `fit` recover slips, `consistency` refuses what can't be
//! shown, `decision` is the analysis in the shape of `decision.schema.json`.
//! Showing: `memo` adds what the service computes (`ranking`, `flags`, `names`), `document` has the order of reading.
//!
//! Only the analysis is stored. This module knows nothing of jobs, prompts or the API.

use serde_json::{Map, Value, value::RawValue};

pub mod answer;
mod consistency;
pub mod decision;
pub mod document;
mod fit;
pub mod flags;
pub mod labels;
mod language;
mod lenient;
pub mod markdown;
pub mod memo;
mod names;
pub mod ranking;
pub mod schema;
pub mod text;

use self::{answer::ParseError, decision::DecisionAnalysis};

/// Reads an answer: the memo's JSON, alone or inside prose or a code fence.
///
/// Beyond its shape these hold for every analysis of a decision: ids of options, criteria and musts are unique and not
/// blank, every reference names one, and every action but `wait` has an option. A `complete` one has a scored option,
/// `needs_information` has gaps. Anything else that is odd becomes a flag of the memo.
pub fn parse(text: &str) -> Result<DecisionAnalysis, ParseError> {
    find(text).map(|found| found.analysis)
}

fn find(text: &str) -> Result<answer::Found, ParseError> {
    let found = answer::read(text)?;
    match consistency::violations(&found.analysis) {
        violations if violations.is_empty() => Ok(found),
        violations => Err(ParseError::Inconsistent(violations)),
    }
}

#[derive(Debug)]
pub struct ReadMemo {
    /// The analysis as JSON, to be stored.
    pub json: Box<RawValue>,
    /// Slips of the answer that were recovered, such as `trailing_comma`.
    pub repaired: Vec<&'static str>,
}

/// The analysis in an answer, or what the model did wrong.
pub fn read_memo(text: &str) -> Result<ReadMemo, String> {
    let found = find(text).map_err(|error| error.to_string())?;
    let json = serde_json::value::to_raw_value(&found.analysis).map_err(|error| error.to_string())?;
    Ok(ReadMemo { json, repaired: found.repairs.into_iter().map(Into::into).collect() })
}

/// An answer that can be used once a few of its fields are written again.
#[derive(Clone, Debug)]
pub struct RepairRequest {
    analysis: DecisionAnalysis,
    parts: Vec<&'static str>,
}

impl RepairRequest {
    /// `None` if the whole answer has to be written again.
    pub fn of(answer: &str) -> Option<RepairRequest> {
        let analysis = answer::read(answer).ok()?.analysis;
        let violations = consistency::violations(&analysis);
        let mut parts = violations.iter().map(|violation| violation.part).collect::<Option<Vec<_>>>()?;
        parts.sort_unstable();
        parts.dedup();
        (!parts.is_empty()).then_some(RepairRequest { analysis, parts })
    }

    pub fn parts(&self) -> &[&'static str] {
        &self.parts
    }

    /// The whole answer with the fields in `repair` in the place of the broken ones. `repair` may also be a whole memo.
    pub fn apply(&self, repair: &str) -> String {
        let repaired = || {
            let fields = self.fields_in(repair)?;
            let Value::Object(mut whole) = serde_json::to_value(&self.analysis).ok()? else { return None };
            whole.extend(fields);
            Some(Value::Object(whole).to_string())
        };
        let is_whole = parse(repair).is_ok();
        if is_whole { None } else { repaired() }.unwrap_or_else(|| repair.to_owned())
    }

    /// The first JSON object in `text` that has one of the fields, without other fields.
    fn fields_in(&self, text: &str) -> Option<Map<String, Value>> {
        text.match_indices('{').find_map(|(start, _)| {
            let mut stream = serde_json::Deserializer::from_str(&text[start..]).into_iter::<Map<String, Value>>();
            let lenient = || serde_json::from_str(&lenient::rewrite(&text[start..])?.json).ok();
            let mut fields: Map<String, Value> = stream.next()?.ok().or_else(lenient)?;
            fields.retain(|name, _| self.parts.contains(&name.as_str()));
            (!fields.is_empty()).then_some(fields)
        })
    }
}

#[cfg(test)]
mod tests;
