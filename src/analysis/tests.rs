use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

const ENGLISH: &str = include_str!("samples/english.json");
const CHINESE: &str = include_str!("samples/chinese.json");

/// The English sample with the value at `pointer` replaced.
fn altered(pointer: &str, value: Value) -> Value {
    let mut memo: Value = serde_json::from_str(ENGLISH).unwrap();
    *memo.pointer_mut(pointer).unwrap() = value;
    memo
}

fn violations(memo: &Value) -> Vec<String> {
    match parse(&memo.to_string()) {
        Err(ParseError::Inconsistent(violations)) => violations,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_bare_memo_is_read_in_any_language() {
    assert_eq!(parse(ENGLISH).unwrap().recommendation.verdict, Verdict::PilotFirst);
    assert_eq!(parse(CHINESE).unwrap().options[2].name, "自建雅加达团队");
}

#[test]
fn a_memo_inside_a_fence_or_prose_or_a_wrapping_object_is_read() {
    let expected = parse(ENGLISH).unwrap();
    for text in [
        format!("Here is the memo:\n```json\n{ENGLISH}\n```\nGood luck {{friend}}!"),
        format!("Using the format {{\"status\": …}} and {{x}}, my answer is {ENGLISH} as asked."),
        format!("{{\"thinking\": {{\"steps\": 2}}, \"analysis\": {ENGLISH}}}"),
        format!("\u{feff}{ENGLISH}"),
    ] {
        assert_eq!(parse(&text).unwrap(), expected);
    }
}

#[test]
fn enum_values_are_read_whatever_their_case() {
    let mut memo = altered("/reversibility", json!("TWO_WAY_DOOR"));
    memo["recommendation"]["confidence"] = json!("High");
    let analysis = parse(&memo.to_string()).unwrap();
    assert_eq!((analysis.reversibility, analysis.recommendation.confidence), (Reversibility::TwoWayDoor, Level::High));
}

#[test]
fn unknown_fields_are_ignored() {
    let mut memo = altered("/status", json!("complete"));
    memo["mood"] = json!("good");
    memo["options"][0]["colour"] = json!("blue");
    assert_eq!(parse(&memo.to_string()), parse(ENGLISH));
}

#[test]
fn each_kind_of_failure_has_its_code_and_tells_what_to_mend() {
    let truncated = &ENGLISH[..ENGLISH.len() / 2];
    let broken = ENGLISH.replacen("\"reversibility\":", "\"reversibility\"", 1);
    let wrong_type = altered("/options/1/pros", json!("many")).to_string();
    let wrong_word = altered("/recommendation/confidence", json!("certain")).to_string();
    let missing = ENGLISH.replacen("\"next_steps\"", "\"steps\"", 1);
    for (text, code, told) in [
        ("No {memo} today.", "no_json", "no JSON object"),
        (truncated, "truncated", "EOF"),
        (broken.as_str(), "invalid_json", "expected `:` at line 5"),
        (wrong_type.as_str(), "wrong_shape", "expected a sequence (at `options[1].pros`)"),
        (
            wrong_word.as_str(),
            "wrong_shape",
            "expected one of `low`, `medium`, `high` (at `recommendation.confidence`)",
        ),
        (missing.as_str(), "wrong_shape", "missing field `next_steps`"),
        (&altered("/summary", json!(" ")).to_string(), "inconsistent", "summary: is blank"),
    ] {
        let error = parse(text).unwrap_err();
        assert_eq!(error.code(), code, "{error}");
        assert!(error.to_string().contains(told), "{error}");
    }
}

#[test]
fn all_violations_are_told_at_once() {
    let mut memo = altered("/options/1/id", json!("o1"));
    memo["criteria"][0]["weight"] = json!(6);
    memo["evaluations"][0]["score"] = json!(0);
    memo["evaluations"][1]["criterion_id"] = json!("c9");
    memo["risks"][0]["option_id"] = json!("o7");
    memo["assumptions"][2]["id"] = json!("");
    memo["recommendation"]["option_id"] = json!("o8");
    memo["recommendation"]["confidence_percent"] = json!(101);
    memo["options"][2]["is_status_quo"] = json!(true);
    let told = violations(&memo).join("\n");
    for expected in [
        "options[1].id: \"o1\" is taken already",
        "assumptions[2].id: is blank",
        "evaluations[1].criterion_id: \"c9\" is the id of no criterion",
        "risks[0].option_id: \"o7\" is the id of no option",
        "recommendation.option_id: \"o8\" is the id of no option",
        "criteria[0].weight: 6 is not within 1 to 5",
        "evaluations[0].score: 0 is not within 1 to 5",
        "recommendation.confidence_percent: 101 is not within 0 to 100",
        "options: 2 have is_status_quo true, not exactly one",
        "evaluations: option \"o1\" has no score on criterion \"c2\"",
    ] {
        assert!(told.contains(expected), "{expected} is missing from\n{told}");
    }
}

#[test]
fn a_complete_memo_scores_every_pair_exactly_once() {
    let mut memo = altered("/evaluations/0/criterion_id", json!("c2"));
    assert_eq!(
        violations(&memo),
        [
            "evaluations: option \"o1\" has no score on criterion \"c1\"",
            "evaluations: option \"o1\" has 2 scores on criterion \"c2\", not one",
        ]
    );
    memo["evaluations"] = json!([]);
    assert_eq!(violations(&memo).len(), 12);
}

#[test]
fn a_complete_memo_has_two_to_four_options_with_a_status_quo() {
    assert_eq!(violations(&altered("/options/0/is_status_quo", json!(false))).len(), 1);
    let mut memo = altered("/risks", json!([]));
    let options = memo["options"].as_array().unwrap().clone();
    memo["options"] = json!([options[1]]);
    assert!(violations(&memo).iter().any(|told| told == "options: there are 1, not 2 to 4"));
    memo["options"] = json!([options.clone(), options].concat());
    assert!(violations(&memo).iter().any(|told| told == "options: there are 6, not 2 to 4"));
}

#[test]
fn an_unfinished_memo_may_lack_options_and_scores_but_must_say_what_is_missing() {
    let mut memo = altered("/status", json!("needs_information"));
    for list in ["options", "criteria", "evaluations", "risks"] {
        memo[list] = json!([]);
    }
    memo["recommendation"]["option_id"] = json!("");
    parse(&memo.to_string()).unwrap();
    memo["missing_information"] = json!([]);
    assert_eq!(violations(&memo), ["missing_information: is empty, though status is needs_information"]);
    memo["status"] = json!("not_a_decision");
    parse(&memo.to_string()).unwrap();
}

#[test]
fn a_nonsensical_memo_makes_a_bounded_error() {
    let mut memo = altered("/evaluations", json!([]));
    let option = memo["options"][0].clone();
    memo["options"] = json!(vec![option; 400]);
    assert_eq!(violations(&memo).len(), 50);
}

#[test]
fn weighted_totals_are_rounded_and_ranked_best_first() {
    let totals = weighted_totals(&parse(ENGLISH).unwrap());
    let told: Vec<_> = totals.iter().map(|t| (t.option_id.as_str(), t.total, t.rank)).collect();
    // o2: (5·4 + 3·3 + 4·4 + 2·5) / 14; o1: (5·4 + 3·4 + 4·1 + 2·2) / 14; o3: (5·1 + 3·3 + 4·5 + 2·1) / 14
    assert_eq!(told, [("o2", 3.93, 1), ("o1", 2.86, 2), ("o3", 2.57, 3)]);
}

#[test]
fn equal_totals_share_a_rank_and_the_next_one_is_skipped() {
    let mut analysis = parse(ENGLISH).unwrap();
    for evaluation in &mut analysis.evaluations {
        evaluation.score = if evaluation.option_id == "o2" { 2 } else { 3 };
    }
    let ranks: Vec<_> = weighted_totals(&analysis).into_iter().map(|t| (t.option_id, t.rank)).collect();
    assert_eq!(ranks, [("o1".to_owned(), 1), ("o3".to_owned(), 1), ("o2".to_owned(), 3)]);
}

#[test]
fn an_option_without_all_scores_has_no_total() {
    let totals = weighted_totals(&parse(CHINESE).unwrap());
    assert!(totals.iter().map(|total| total.option_id.as_str()).eq(["o2", "o1"]));
    assert!(weighted_totals(&DecisionAnalysis { criteria: vec![], ..parse(ENGLISH).unwrap() }).is_empty());
}

#[test]
fn a_memo_is_stored_flat_and_read_back_the_same() {
    let memo = Memo::from(parse(ENGLISH).unwrap());
    let stored = serde_json::to_value(&memo).unwrap();
    assert_eq!(stored["recommendation"]["option_id"], "o2");
    assert_eq!(stored["weighted_totals"][0], json!({"option_id": "o2", "total": 3.93, "rank": 1}));
    assert_eq!(serde_json::from_value::<Memo>(stored).unwrap(), memo);
}

#[test]
fn hostile_nesting_is_refused_rather_than_read_for_ever() {
    for level in ["{\"a\":[", "{\"a\":{\"b\":[0,0,", "[{\"x\":[{\"y\":0},"] {
        assert_eq!(parse(&level.repeat(5_000)).unwrap_err().code(), "invalid_json");
    }
}

#[test]
fn the_error_is_that_of_the_memo_not_of_an_example_beside_it_or_a_part_of_it() {
    let memo = altered("/reversibility", json!("sometimes"));
    let text = format!("As {{\"status\": …}} and {{\"a\": 1}} ask: {memo} and {{\"options\": []}}");
    let told = parse(&text).unwrap_err().to_string();
    assert!(
        told.ends_with("expected one of `one_way_door`, `two_way_door`, `partly_reversible` (at `reversibility`)"),
        "{told}"
    );
}

/// Asserts that `value` has exactly the fields of `schema`, and that the type knows each word of its enums.
fn assert_agrees(schema: &Value, value: &Value, path: &str) {
    let schema = match schema["$ref"].as_str() {
        Some(reference) => super::schema().pointer(reference.trim_start_matches('#')).unwrap(),
        None => schema,
    };
    if let Some(properties) = schema["properties"].as_object() {
        let mut required: Vec<_> = schema["required"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
        required.sort_unstable();
        assert!(value.as_object().unwrap().keys().eq(&required), "{path}: {value} has not the fields {required:?}");
        assert!(properties.keys().eq(&required), "{path}");
        properties.iter().for_each(|(name, schema)| assert_agrees(schema, &value[name], &format!("{path}/{name}")));
    }
    if let Some(items) = schema.get("items") {
        assert_agrees(items, &value[0], &format!("{path}/0"));
    }
    for word in schema["enum"].as_array().into_iter().flatten() {
        let memo = altered(path, word.clone());
        let read = serde_json::from_value::<DecisionAnalysis>(memo).unwrap();
        assert_eq!(serde_json::to_value(read).unwrap().pointer(path), Some(word));
    }
}

#[test]
fn the_types_agree_with_the_schema_field_by_field_and_word_by_word() {
    let written = serde_json::to_value(parse(ENGLISH).unwrap()).unwrap();
    assert_agrees(schema(), &written, "");
    assert!(schema().get("$schema").is_none());
}

#[test]
fn the_api_description_of_a_memo_has_its_words_and_bounds() {
    use utoipa::PartialSchema;
    let described = |schema: &utoipa::openapi::RefOr<utoipa::openapi::Schema>| serde_json::to_value(schema).unwrap();
    assert_eq!(
        described(&Verdict::schema())["enum"],
        schema()["$defs"]["recommendation"]["properties"]["verdict"]["enum"]
    );
    let score = &described(&Evaluation::schema())["properties"]["score"];
    assert_eq!((&score["minimum"], &score["maximum"]), (&json!(1), &json!(5)));
    let memo = described(&Memo::schema()).to_string();
    assert!(memo.contains("DecisionAnalysis") && memo.contains("weighted_totals"), "{memo}");
}

/// Replaces every free text in `value` by the next of `texts`.
fn scramble(value: &mut Value, texts: &mut impl Iterator<Item = String>) {
    const KEPT: [&str; 10] = [
        "status",
        "reversibility",
        "source",
        "likelihood",
        "impact",
        "verdict",
        "confidence",
        "id",
        "option_id",
        "criterion_id",
    ];
    match value {
        Value::String(text) => *text = texts.next().unwrap(),
        Value::Array(items) => items.iter_mut().for_each(|item| scramble(item, texts)),
        Value::Object(fields) => {
            fields.iter_mut().filter(|(key, _)| !KEPT.contains(&key.as_str())).for_each(|(_, v)| scramble(v, texts));
        }
        _ => {}
    }
}

proptest! {
    #[test]
    fn no_text_makes_parse_panic(text in any::<String>(), json_like in r#"[{}\[\]":,\\a1 \n`é]{0,200}"#) {
        let _ = (parse(&text), parse(&json_like));
    }

    #[test]
    fn no_cut_of_a_memo_is_read_as_one(cut in 0..ENGLISH.trim_end().len()) {
        let cut = (0..=cut).rev().find(|at| ENGLISH.is_char_boundary(*at)).unwrap();
        prop_assert!(parse(&ENGLISH[..cut]).is_err());
    }

    #[test]
    fn a_memo_wrapped_in_anything_is_read_as_itself(
        texts in proptest::collection::vec(r#"[\PC"\\{}`\n]{0,12}"#, 8),
        before in any::<String>(),
        after in any::<String>(),
        fence in prop_oneof![Just(("", "")), Just(("```json\n", "\n```")), Just(("```\n", "\n```"))],
        pretty in any::<bool>(),
    ) {
        let mut memo: Value = serde_json::from_str(ENGLISH).unwrap();
        scramble(&mut memo, &mut texts.into_iter().cycle());
        memo["summary"] = json!("Do it.");
        let memo: DecisionAnalysis = serde_json::from_value(memo).unwrap();
        let json = if pretty { serde_json::to_string_pretty(&memo) } else { serde_json::to_string(&memo) }.unwrap();
        let text = format!("{before}{}{json}{}{after}", fence.0, fence.1);
        prop_assert_eq!(parse(&text).unwrap(), memo);
    }
}
