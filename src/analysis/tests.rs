use proptest::prelude::*;
use serde_json::{Value, json};

use super::{
    decision::{Action, Asked, Kind, Reversibility},
    flags::FlagCode,
    labels::Labels,
    memo::Memo,
    ranking::{RobustnessLabel, Table},
    *,
};

const ENGLISH: &str = include_str!("samples/english.json");
const CHINESE: &str = include_str!("samples/chinese.json");

/// A question and its answer.
struct Sample {
    query: String,
    options: Vec<String>,
    answer: Value,
}

/// The sample of this name, of those that have a question.
fn sample(name: &str) -> Sample {
    let path = format!("{}/src/analysis/samples/{name}.json", env!("CARGO_MANIFEST_DIR"));
    let all: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let options = serde_json::from_value(all["request"]["options"].clone()).unwrap_or_default();
    let query = all["request"]["query"].as_str().unwrap().to_owned();
    Sample { query, options, answer: all["answer"].clone() }
}

impl Sample {
    fn memo(&self) -> Memo {
        let analysis = parse(&self.answer.to_string()).unwrap();
        Memo::new(analysis, &Asked { query: &self.query, options: &self.options, is_brief: false })
    }
}

/// The memo of a sample.
pub(super) fn memo_of(name: &str) -> Memo {
    sample(name).memo()
}

fn codes(memo: &Memo) -> Vec<FlagCode> {
    memo.flags.iter().map(|flag| flag.code).collect()
}

/// The English sample with the value at `pointer` replaced.
fn altered(pointer: &str, value: Value) -> Value {
    let mut memo: Value = serde_json::from_str(ENGLISH).unwrap();
    *memo.pointer_mut(pointer).unwrap() = value;
    memo
}

fn violations(memo: &Value) -> Vec<String> {
    match parse(&memo.to_string()) {
        Err(ParseError::Inconsistent(violations)) => violations.into_iter().map(|it| it.message).collect(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_bare_memo_is_read_in_any_language() {
    assert_eq!(parse(ENGLISH).unwrap().recommendation.action, Action::Pilot);
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
    let mut memo = altered("/options/0/reversibility", json!("TWO_WAY_DOOR"));
    memo["recommendation"]["action"] = json!("Do_If");
    let analysis = parse(&memo.to_string()).unwrap();
    assert_eq!(analysis.options[0].reversibility, Reversibility::TwoWayDoor);
    assert_eq!(analysis.recommendation.action, Action::DoIf);
}

#[test]
fn unknown_fields_are_ignored() {
    let mut memo = altered("/status", json!("complete"));
    memo["mood"] = json!("good");
    memo["options"][0]["colour"] = json!("blue");
    assert_eq!(parse(&memo.to_string()), parse(ENGLISH));
}

#[test]
fn each_kind_of_failure_has_its_code_and_says_what_to_repair() {
    let truncated = &ENGLISH[..ENGLISH.len() / 2];
    let broken = ENGLISH.replacen("\"kind\":", "\"kind\"", 1);
    let wrong_type = altered("/options/1/pros", json!("many")).to_string();
    let wrong_word = altered("/recommendation/action", json!("maybe")).to_string();
    let missing = ENGLISH.replacen("\"next_steps\"", "\"steps\"", 1);
    for (text, code, message) in [
        ("No {memo} today.", "no_json", "no JSON object"),
        (truncated, "truncated", "EOF"),
        (broken.as_str(), "invalid_json", "expected `:` at line 3"),
        (wrong_type.as_str(), "wrong_shape", "expected a sequence (at `options[1].pros`)"),
        (
            wrong_word.as_str(),
            "wrong_shape",
            "expected one of `do`, `do_if`, `pilot`, `wait` (at `recommendation.action`)",
        ),
        (missing.as_str(), "wrong_shape", "missing field `next_steps`"),
        (
            &altered("/scores", json!([])).to_string(),
            "inconsistent",
            "scores: no option has a score on every criterion",
        ),
    ] {
        let error = parse(text).unwrap_err();
        assert_eq!(error.code(), code, "{error}");
        assert!(error.to_string().contains(message), "{error}");
    }
}

#[test]
fn all_that_cannot_be_shown_is_found_at_once() {
    let mut memo = altered("/options/1/id", json!("o1"));
    memo["criteria"][0]["id"] = json!(" ");
    memo["scores"][0]["cells"][1]["criterion_id"] = json!("c9");
    memo["scores"][0]["failed_musts"] = json!(["m1"]);
    memo["scores"][1]["option_id"] = json!("o9");
    memo["risks"][0]["option_id"] = json!("o7");
    memo["gaps"][0]["flips_to"] = json!("o6");
    memo["assumptions"][2]["flips_to"] = json!("o5");
    memo["recommendation"]["option_id"] = json!("o8");
    let found = violations(&memo).join("\n");
    for expected in [
        "options[1].id: \"o1\" is used twice",
        "criteria[0].id: is blank",
        "scores[0].cells[1].criterion_id: \"c9\" is not the id of a criterion",
        "scores[0].failed_musts[0]: \"m1\" is not the id of a must",
        "scores[1].option_id: \"o9\" is not the id of an option",
        "risks[0].option_id: \"o7\" is not the id of an option",
        "gaps[0].flips_to: \"o6\" is not the id of an option",
        "assumptions[2].flips_to: \"o5\" is not the id of an option",
        "recommendation.option_id: \"o8\" is not the id of an option",
    ] {
        assert!(found.contains(expected), "{expected} is missing from\n{found}");
    }
}

#[test]
fn a_nonsensical_answer_makes_a_bounded_error() {
    let mut memo = altered("/risks", json!([]));
    let option = memo["options"][0].clone();
    memo["options"] = json!(vec![option; 300]);
    assert_eq!(violations(&memo).len(), 50);
}

#[test]
fn an_unfinished_memo_may_lack_options_and_scores_but_must_say_what_is_missing() {
    let mut memo = altered("/status", json!("needs_information"));
    for list in ["options", "criteria", "scores", "risks"] {
        memo[list] = json!([]);
    }
    memo["recommendation"]["option_id"] = json!("");
    memo["recommendation"]["action"] = json!("wait");
    for gap in memo["gaps"].as_array_mut().unwrap() {
        gap["flips_to"] = json!("");
    }
    parse(&memo.to_string()).unwrap();
    memo["gaps"] = json!([]);
    assert_eq!(violations(&memo), ["gaps: is empty, though status is needs_information"]);
}

#[test]
fn where_there_is_no_decision_only_an_empty_answer_is_refused() {
    let sample = sample("weather");
    let memo = sample.memo();
    assert_eq!((memo.analysis.kind, memo.headline.as_str()), (Kind::NotADecision, "Not a decision yet"));
    assert_eq!((memo.robustness, memo.flags), (None, vec![]));
    let mut empty = sample.answer;
    empty["summary"] = json!("");
    empty["suggested_question"] = json!(" ");
    assert_eq!(violations(&empty).len(), 1);
}

#[test]
fn of_a_wrong_answer_only_the_broken_part_is_asked_for_and_put_in() {
    let answer = sample("v3noopt").answer;
    assert_eq!(violations(&answer), ["recommendation.option_id: is empty, though the action is not wait"]);
    let repair = RepairRequest::of(&answer.to_string()).unwrap();
    assert_eq!(repair.parts(), ["recommendation"]);
    let mut recommendation = answer["recommendation"].clone();
    recommendation["option_id"] = json!("o2");
    let part = json!({"recommendation": recommendation, "summary": "Not asked for."});
    let repaired = parse(&repair.apply(&format!("Here it is:\n```json\n{part}\n```"))).unwrap();
    assert_eq!(repaired.recommendation.option_id, "o2");
    assert_eq!(repaired.summary, answer["summary"].as_str().unwrap());
    let whole = repair.apply(ENGLISH);
    assert_eq!(parse(&whole), parse(ENGLISH), "a whole memo is taken as a whole");
    assert_eq!(parse(&repair.apply("I can't.")).unwrap_err().code(), "no_json");
}

#[test]
fn an_answer_whose_ids_are_wrong_or_that_is_no_memo_is_asked_for_as_a_whole() {
    assert!(RepairRequest::of(&altered("/options/1/id", json!("o1")).to_string()).is_none());
    assert!(RepairRequest::of(&ENGLISH[..300]).is_none() && RepairRequest::of("").is_none());
    assert!(RepairRequest::of(ENGLISH).is_none(), "nothing is wrong with it");
}

#[test]
fn an_odd_answer_is_flagged_and_not_refused() {
    assert!(codes(&memo_of("v1six")).is_empty());
    assert_eq!(memo_of("v1six").weighted_totals.len(), 6);
    let blank = memo_of("v6blank");
    let fields: Vec<&str> = blank.flags.iter().map(|flag| flag.field.as_str()).collect();
    assert_eq!(fields, ["case_against", "recommendation", "scores"]);
    assert!(codes(&blank).contains(&FlagCode::NoCaseAgainst) && codes(&blank).contains(&FlagCode::BlankReason));
    let ids = memo_of("v7ids");
    assert_eq!(codes(&ids), [FlagCode::IdsInProse]);
    assert!(
        ids.analysis.recommendation.rationale.starts_with("One-quarter pilot beats Fully remote on Team effectiveness"),
        "{}",
        ids.analysis.recommendation.rationale
    );
    assert_eq!(codes(&memo_of("v12false")), [FlagCode::RankContradicts]);
    assert_eq!(codes(&memo_of("zh")), [FlagCode::RankContradicts]);
    assert_eq!(codes(&memo_of("six")), [FlagCode::OptionDropped; 2]);
}

#[test]
fn good_answers_have_no_flags() {
    for name in ["ceo", "de", "hidden", "info", "inject", "legal", "thin"] {
        assert_eq!(memo_of(name).flags, [], "{name}");
    }
}

#[test]
fn what_else_a_reader_should_know_is_flagged() {
    let flagged = |query: &str, options: &[&str], change: &dyn Fn(&mut Value)| {
        let mut answer = sample("thin").answer;
        change(&mut answer);
        let options: Vec<String> = options.iter().map(|option| (*option).to_owned()).collect();
        codes(&Memo::new(parse(&answer.to_string()).unwrap(), &Asked { query, options: &options, is_brief: false }))
    };
    let english = "Should we go fully remote?";
    assert_eq!(flagged(english, &[], &|_| {}), []);
    assert_eq!(flagged("我们应该完全远程办公吗？", &[], &|_| {}), [FlagCode::LanguageDiffers]);
    let german = "Sollen wir vollständig auf die Arbeit von zu Hause umstellen, und ist das gut für uns?";
    assert_eq!(flagged(german, &[], &|_| {}), [FlagCode::LanguageDiffers]);
    assert_eq!(flagged(english, &["Remote for all", "Keep the rules"], &|_| {}), []);
    let asked = ["Fully remote", "Three days", "Four days"];
    assert_eq!(flagged(english, &asked, &|_| {}), [FlagCode::OptionDropped]);
    assert_eq!(
        flagged(english, &[], &|memo| {
            memo["base_rate"]["adjustment"] = json!("");
            memo["recommendation"]["success_percent"] = json!(90);
        }),
        [FlagCode::PercentOutsideBaseRate]
    );
    assert_eq!(
        flagged(english, &[], &|memo| {
            memo["musts"] = json!([{"id": "m1", "name": "Lawful"}]);
            memo["scores"][1]["failed_musts"] = json!(["m1"]);
        }),
        [FlagCode::RecommendedRuledOut]
    );
    assert_eq!(
        flagged(english, &[], &|memo| {
            memo["scores"][2]["cells"] = json!([]);
            memo["options"][2]["origin"] = json!("added");
            memo["criteria"][0]["weight"] = json!(9);
        }),
        [FlagCode::NotComparable, FlagCode::StatusQuoUnclear, FlagCode::OutOfRange]
    );
}

#[test]
fn a_brief_memo_needs_no_reasons_for_single_scores() {
    let mut answer = sample("thin").answer;
    for scores in answer["scores"].as_array_mut().unwrap() {
        for cell in scores["cells"].as_array_mut().unwrap() {
            cell.as_object_mut().unwrap().remove("why");
        }
    }
    let analysis = parse(&answer.to_string()).unwrap();
    let flags = |is_brief| codes(&Memo::new(analysis.clone(), &Asked { query: "", options: &[], is_brief }));
    assert_eq!(flags(true), []);
    assert_eq!(flags(false), [FlagCode::BlankReason]);
}

#[test]
fn totals_and_robustness_are_those_computed_by_hand() {
    use RobustnessLabel::{Fragile, Robust, Sensitive};
    // Margin, share of the weightings, single scores, smallest score that ties, nearest critical weight, label.
    for (name, margin, share, single, change, critical, label) in [
        ("hidden", 1.5, (81, 81), (0, 25), None, None, Robust),
        ("thin", 0.87, (81, 81), (0, 21), Some(2.6), Some(("c4", 4, 0.5)), Robust),
        ("inject", 0.62, (81, 81), (0, 27), Some(2.0), None, Robust),
        ("de", 0.38, (243, 243), (0, 34), Some(1.6), None, Robust),
        ("ceo", 0.2, (243, 243), (3, 32), Some(0.8), Some(("c1", 5, 9.0)), Sensitive),
        ("six", 0.21, (6, 243), (2, 33), Some(0.8), Some(("c1", 5, 7.0)), Fragile),
        ("zh", 0.05, (87, 243), (10, 33), Some(0.2), Some(("c1", 5, 6.0)), Fragile),
    ] {
        let robustness = memo_of(name).robustness.unwrap();
        assert!((robustness.margin - margin).abs() < 0.011, "{name}: {robustness:?}");
        assert_eq!((robustness.weightings.count, robustness.weightings.of), share, "{name}");
        assert_eq!((robustness.single_scores.count, robustness.single_scores.of), single, "{name}");
        assert_eq!(robustness.smallest_score_change.map(|change| change.change), change, "{name}");
        let nearest = robustness.critical_weights.first();
        assert_eq!(nearest.map(|it| (it.criterion_id.as_str(), it.weight, it.level_at)), critical, "{name}");
        assert_eq!(robustness.label, label, "{name}");
    }
}

#[test]
fn one_sentence_says_what_would_change_the_winner() {
    for (name, sentence) in [
        ("hidden", "“Mend availability and queues first” leads under all 81 weightings tried"),
        (
            "ceo",
            "Close call: if “Build in two stages” scored 0.8 lower on “Financial resilience”, “Stay with inbound sales”",
        ),
        ("six", "“HubSpot Enterprise” has the highest total; “Microsoft Dynamics 365” has it in 6 of 243 weightings"),
        ("zh", "总分最高的是“委托越南代工”"),
    ] {
        let text = memo_of(name).robustness_text.unwrap();
        assert!(text.starts_with(sentence), "{text}");
    }
}

#[test]
fn an_option_that_fails_a_must_is_not_ranked() {
    let memo = memo_of("legal");
    assert!(memo.weighted_totals.iter().map(|total| total.option_id.as_str()).eq(["o2", "o3"]));
    assert_eq!(memo.robustness.unwrap().runner_up, "o3");
}

#[test]
fn equal_totals_share_a_rank_and_an_option_without_all_scores_has_none() {
    let mut analysis = parse(ENGLISH).unwrap();
    analysis.scores[2].cells = analysis.scores[1].cells.clone();
    let memo = Memo::new(analysis, &Asked { query: "", options: &[], is_brief: false });
    let ranks: Vec<_> = memo.weighted_totals.iter().map(|total| (total.option_id.as_str(), total.rank)).collect();
    assert_eq!(ranks, [("o2", 1), ("o3", 1), ("o1", 3)]);
    let memo = Memo::new(parse(CHINESE).unwrap(), &Asked { query: "", options: &[], is_brief: false });
    assert!(memo.weighted_totals.iter().map(|total| total.option_id.as_str()).eq(["o2", "o1"]));
}

#[test]
fn a_memo_has_the_fields_of_its_analysis_beside_those_of_the_service_and_is_read_back_the_same() {
    let memo = memo_of("ceo");
    let written = serde_json::to_value(&memo).unwrap();
    assert_eq!(written["headline"], "Do, on conditions: Build in two stages");
    assert_eq!(written["recommendation"]["option_id"], "o2");
    assert_eq!(written["weighted_totals"][0], json!({"option_id": "o2", "total": 3.65, "rank": 1}));
    assert_eq!(written["robustness"]["label"], "sensitive");
    assert_eq!(serde_json::from_value::<Memo>(written).unwrap(), memo);
}

#[test]
fn hostile_nesting_is_refused_rather_than_read_for_ever() {
    for level in ["{\"a\":[", "{\"a\":{\"b\":[0,0,", "[{\"x\":[{\"y\":0},"] {
        assert_eq!(parse(&level.repeat(5_000)).unwrap_err().code(), "invalid_json");
    }
}

#[test]
fn the_error_is_that_of_the_memo_not_of_an_example_beside_it_or_a_part_of_it() {
    let memo = altered("/options/0/reversibility", json!("sometimes"));
    let text = format!("As {{\"status\": …}} and {{\"a\": 1}} ask: {memo} and {{\"options\": []}}");
    let error = parse(&text).unwrap_err().to_string();
    let end = "expected one of `one_way_door`, `two_way_door`, `partly_reversible` (at `options[0].reversibility`)";
    assert!(error.ends_with(end), "{error}");
}

/// Asserts that `value` has exactly the fields of `schema`, and that the type knows each word of its enums.
fn assert_agrees(schema: &Value, value: &Value, path: &str) {
    let schema = match schema["$ref"].as_str() {
        Some(reference) => schema::parsed().pointer(reference.trim_start_matches('#')).unwrap().clone(),
        None => schema.clone(),
    };
    if let Some(properties) = schema["properties"].as_object() {
        let mut known: Vec<_> = schema["required"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
        known.extend((path == "/scores/0/cells/0").then_some("why"));
        known.sort_unstable();
        assert!(value.as_object().unwrap().keys().eq(&known), "{path}: {value} has not the fields {known:?}");
        assert!(properties.keys().eq(&known), "{path}");
        assert_eq!(schema["additionalProperties"], json!(false), "{path}");
        properties.iter().for_each(|(name, schema)| assert_agrees(schema, &value[name], &format!("{path}/{name}")));
    }
    if let Some(items) = schema.get("items") {
        assert_agrees(items, &value[0], &format!("{path}/0"));
    }
    for word in schema["enum"].as_array().into_iter().flatten() {
        let mut memo = whole();
        *memo.pointer_mut(path).unwrap() = word.clone();
        let read = serde_json::from_value::<DecisionAnalysis>(memo).unwrap();
        assert_eq!(serde_json::to_value(read).unwrap().pointer(path), Some(word));
    }
}

/// A memo with at least one entry in each list.
fn whole() -> Value {
    let mut memo = sample("ceo").answer;
    memo["musts"] = json!([{"id": "m1", "name": "Lawful"}]);
    memo["scores"][0]["failed_musts"] = json!(["m1"]);
    memo
}

#[test]
fn the_types_agree_with_the_schema_field_by_field_and_word_by_word() {
    let read: DecisionAnalysis = serde_json::from_value(whole()).unwrap();
    assert_agrees(schema::parsed(), &serde_json::to_value(read).unwrap(), "");
}

#[test]
fn the_schema_lists_the_fields_in_the_order_of_thinking_and_keeps_to_the_apis_limits() {
    let text = schema::text();
    let memo = serde_json::to_string(&parse(ENGLISH).unwrap()).unwrap();
    let fields: Vec<String> = serde_json::from_value(schema::parsed()["required"].clone()).unwrap();
    assert_eq!((fields[0].as_str(), fields.last().unwrap().as_str()), ("language", "status"));
    for written in [text.get().split_once("\"properties\"").unwrap().1, memo.as_str()] {
        let mut rest = written;
        for field in &fields {
            rest = rest.split_once(&format!("\"{field}\":")).unwrap_or_else(|| panic!("{field} is out of order")).1;
        }
    }
    for unknown in ["minimum", "maximum", "minLength", "maxLength", "minItems", "anyOf", "oneOf", "$schema"] {
        assert!(!text.get().contains(unknown), "{unknown}");
    }
}

#[test]
fn the_api_description_of_a_memo_has_its_words_and_bounds() {
    use utoipa::PartialSchema;
    let described = |schema: &utoipa::openapi::RefOr<utoipa::openapi::Schema>| serde_json::to_value(schema).unwrap();
    let words = &schema::parsed()["properties"]["recommendation"]["properties"]["action"]["enum"];
    assert_eq!(described(&Action::schema())["enum"], *words);
    let score = &described(&decision::Cell::schema())["properties"]["score"];
    assert_eq!((&score["minimum"], &score["maximum"]), (&json!(1), &json!(5)));
    let memo = described(&Memo::schema()).to_string();
    assert!(memo.contains("DecisionAnalysis") && memo.contains("robustness"), "{memo}");
}

#[test]
fn every_label_says_something_in_both_languages_with_the_same_blanks() {
    use strum::IntoEnumIterator;
    let [english, chinese] = ["en", "zh-Hant"].map(|language| Labels::of(language).all());
    assert!(english.keys().eq(chinese.keys()) && !std::ptr::eq(english, chinese));
    let blanks = |text: &str| {
        let mut found: Vec<String> =
            text.split('{').skip(1).filter_map(|rest| Some(rest.split_once('}')?.0.to_owned())).collect();
        found.sort();
        found
    };
    for (key, text) in english {
        assert!(!text.is_empty() && !chinese[key].is_empty(), "{key}");
        assert_eq!(blanks(text), blanks(&chinese[key]), "{key}");
    }
    let flags = FlagCode::iter().map(|code| format!("flag_{}", <&str>::from(code)));
    let of_schema = [
        ("action", "/properties/recommendation/properties/action"),
        ("source", "/properties/assumptions/items/properties/source"),
        ("reversibility", "/properties/options/items/properties/reversibility"),
        ("material", "/properties/material/items/properties/kind"),
        ("level", "/$defs/level"),
    ];
    let of_schema = of_schema.into_iter().flat_map(|(family, path)| {
        let words = schema::parsed().pointer(path).unwrap()["enum"].as_array().unwrap();
        words.iter().map(move |word| format!("{family}_{}", word.as_str().unwrap()))
    });
    for key in flags.chain(of_schema) {
        assert!(english.contains_key(&key), "{key} has no text");
    }
}

/// Any criteria and scores, as an analysis with the option of the highest total recommended.
fn any_scores() -> impl Strategy<Value = DecisionAnalysis> {
    (2..6_usize, 2..5_usize).prop_flat_map(|(criteria, options)| {
        let weights = proptest::collection::vec(1..=5_u8, criteria);
        let scores = proptest::collection::vec(proptest::collection::vec(1..=5_u8, criteria), options);
        (weights, scores).prop_map(|(weights, scores)| {
            let mut analysis = parse(ENGLISH).unwrap();
            let id = |letter: char, number: usize| format!("{letter}{number}");
            let (criterion, option) = (analysis.criteria[0].clone(), analysis.options[0].clone());
            let criteria = weights.iter().enumerate();
            analysis.criteria = criteria
                .map(|(i, weight)| decision::Criterion { id: id('c', i), weight: *weight, ..criterion.clone() })
                .collect();
            let options = 0..scores.len();
            analysis.options = options.map(|i| decision::DecisionOption { id: id('o', i), ..option.clone() }).collect();
            let cell = |(i, score): (usize, &u8)| decision::Cell { criterion_id: id('c', i), score: *score, why: None };
            let rows = scores.iter().enumerate().map(|(i, row)| decision::OptionScores {
                option_id: id('o', i),
                failed_musts: vec![],
                cells: row.iter().enumerate().map(cell).collect(),
            });
            analysis.scores = rows.collect();
            analysis.recommendation.option_id = String::new();
            analysis
        })
    })
}

/// How far the first option is ahead of the second if one criterion has another weight.
fn lead(analysis: &DecisionAnalysis, one: &str, other: &str, criterion: &str, weight: f64) -> f64 {
    let sum = |option: &str| -> f64 {
        let weighted = analysis.criteria.iter().map(|it| {
            let weight = if it.id == criterion { weight } else { f64::from(it.weight) };
            weight * f64::from(analysis.cell(option, &it.id).unwrap().score)
        });
        weighted.sum()
    };
    sum(one) - sum(other)
}

proptest! {
    #[test]
    fn at_a_critical_weight_the_winner_changes_and_before_it_stays(analysis in any_scores()) {
        let robustness = Table::new(&analysis).robustness(None).unwrap();
        let winner = robustness.winner.as_str();
        for critical in &robustness.critical_weights {
            let weight = f64::from(critical.weight);
            let gap = critical.level_at - weight;
            prop_assume!(gap.abs() > 0.05);
            let step = 0.02 * gap.signum();
            let lead = |rival: &str, at: f64| lead(&analysis, winner, rival, &critical.criterion_id, at);
            for rival in &robustness_rivals(&analysis, winner) {
                prop_assert!(lead(rival, critical.level_at - step) > -1e-9, "{rival} leads before {critical:?}");
            }
            prop_assert!(lead(&critical.option_id, critical.level_at + step) < 0.0, "still behind after {critical:?}");
        }
        for criterion in &analysis.criteria {
            if robustness.margin == 0.0 || robustness.critical_weights.iter().any(|it| it.criterion_id == criterion.id) {
                continue;
            }
            for rival in &robustness_rivals(&analysis, winner) {
                let stays = [0.0, 10.0].map(|at| lead(&analysis, winner, rival, &criterion.id, at) >= 0.0);
                prop_assert_eq!(stays, [true, true]);
            }
        }
    }

    #[test]
    fn the_smallest_score_change_makes_a_tie(analysis in any_scores()) {
        let robustness = Table::new(&analysis).robustness(None).unwrap();
        if let Some(change) = &robustness.smallest_score_change {
            let weight = analysis.criteria.iter().find(|it| it.id == change.criterion_id).unwrap().weight;
            let lead = lead(&analysis, &change.option_id, &change.level_with, "", 0.0).abs();
            // The change is rounded to two places.
            prop_assert!((lead - change.change * f64::from(weight)).abs() < 0.03, "{change:?}: {lead}");
        }
    }

    #[test]
    fn no_text_makes_parse_panic(text in any::<String>(), json_like in r#"[{}\[\]":,\\a1 \n`é]{0,200}"#) {
        let _ = (parse(&text), parse(&json_like), RepairRequest::of(&text));
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
        let mut memo = parse(ENGLISH).unwrap();
        let mut texts = texts.into_iter().cycle();
        memo.texts_mut().for_each(|(_, text)| *text = texts.next().unwrap());
        let json = if pretty { serde_json::to_string_pretty(&memo) } else { serde_json::to_string(&memo) }.unwrap();
        let text = format!("{before}{}{json}{}{after}", fence.0, fence.1);
        prop_assert_eq!(parse(&text).unwrap(), memo);
    }
}

fn robustness_rivals(analysis: &DecisionAnalysis, winner: &str) -> Vec<String> {
    analysis.options.iter().map(|option| option.id.clone()).filter(|id| id != winner).collect()
}
