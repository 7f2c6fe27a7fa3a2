//! The repair prompt: says what was wrong with a rejected answer.

use crate::{
    analysis::RepairRequest,
    claude::message::Rejected,
    job::{Attempt, FailureCode},
};

/// Longest answer that is sent back, in bytes: a whole memo is a tenth of it.
const MAX_ANSWER_BYTES: usize = 64 << 10;

/// Longest complaint about an answer, in characters: enough for a dozen inconsistencies.
const MAX_COMPLAINT_CHARS: usize = 2_000;

/// Returns the answer with the complaint if that helps to repair it; else adds advice to the question. With a
/// [`RepairRequest`] only parts of the answer are to be written again.
pub(super) fn repair_prompt(
    question: &mut String,
    rejected: &Attempt,
    max_tokens: u32,
) -> (Option<Rejected>, Option<RepairRequest>) {
    let report = &rejected.report;
    let Some(error) = &report.error else { return (None, None) };
    if error.code == FailureCode::AnswerTruncated {
        // Sent back, a truncated answer would cost its length again.
        question.push_str(&format!(
            "\n\nYour last answer to this was cut off at the limit of {max_tokens} tokens before its JSON was complete, \
             so it could not be used. Write the memo again and much shorter: fewer and shorter texts in every field, \
             no option but the asker's and the status quo, at most 3 criteria and 3 risks. The one JSON object must be complete."
        ));
        return (None, None);
    }
    let wrong: String = error.message.chars().take(MAX_COMPLAINT_CHARS).collect();
    let sent_back = report.raw_answer.as_deref().map(str::trim);
    let sent_back = sent_back.filter(|answer| (1..=MAX_ANSWER_BYTES).contains(&answer.len()));
    let repair = sent_back.and_then(RepairRequest::of);
    let request = match &repair {
        Some(repair) => format!(
            "Write only `{}` again, with this put right; the rest of the memo stays as you wrote it. Answer with one JSON \
             object that has this and no other field of the memo",
            repair.parts().join("`, `")
        ),
        None => "Write the whole memo again with this put right. Answer with one JSON object only".to_owned(),
    };
    let complaint = format!("That answer can't be used: {wrong}. {request}, in the language of the question.");
    match sent_back {
        Some(answer) => (Some(Rejected { answer: answer.to_owned(), complaint }), repair),
        None => {
            question.push_str(&format!("\n\nYou were asked this before. {complaint}"));
            (None, None)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        clock::Timestamp,
        job::{AttemptError, AttemptOutcome, AttemptReport},
    };

    fn asked_again(
        code: FailureCode,
        message: &str,
        answer: Option<&str>,
    ) -> (String, Option<Rejected>, Option<RepairRequest>) {
        let report = AttemptReport {
            error: Some(AttemptError { code, message: message.to_owned() }),
            raw_answer: answer.map(str::to_owned),
            ..AttemptReport::default()
        };
        let at = Timestamp::from_millis(0);
        let (started_at, finished_at) = (at, at);
        let outcome = AttemptOutcome::Failed;
        let rejected = Attempt { number: 1, started_at, finished_at, outcome, folded: 0, report: Arc::new(report) };
        let mut question = "Buy?".to_owned();
        let (again, repair) = repair_prompt(&mut question, &rejected, 800);
        (question, again, repair)
    }

    #[test]
    fn an_unreadable_answer_is_sent_back_with_what_was_wrong() {
        let (question, again, repair) =
            asked_again(FailureCode::InvalidOutput, "there is no `status`", Some(" {\"a\": 1}\n"));
        assert!(repair.is_none());
        let again = again.unwrap();
        assert_eq!((question.as_str(), again.answer.as_str()), ("Buy?", "{\"a\": 1}"));
        assert!(again.complaint.contains("there is no `status`"), "{}", again.complaint);
    }

    #[test]
    fn an_answer_that_was_cut_is_not_sent_back_but_a_shorter_one_asked_for() {
        let (question, again, _) = asked_again(FailureCode::AnswerTruncated, "cut", Some("{\"status\": \"com"));
        assert!(question.starts_with("Buy?\n\n") && question.contains("limit of 800 tokens"), "{question}");
        assert_eq!(again, None);
    }

    #[test]
    fn a_blank_answer_and_an_endless_one_are_described_without_being_sent() {
        for answer in [None, Some(""), Some(" \n"), Some(&*"x".repeat(MAX_ANSWER_BYTES + 1))] {
            let (question, again, _) = asked_again(FailureCode::InvalidOutput, "the answer has no JSON object", answer);
            assert!(question.contains("can't be used: the answer has no JSON object"), "{question}");
            assert!(question.contains("Answer with one JSON object only"), "{question}");
            assert_eq!(again, None, "the API takes no blank message");
        }
    }

    #[test]
    fn an_endless_complaint_is_cut() {
        let (_, again, _) = asked_again(FailureCode::InvalidOutput, &"é".repeat(10_000), Some("{}"));
        assert_eq!(again.unwrap().complaint.matches('é').count(), MAX_COMPLAINT_CHARS);
    }

    #[test]
    fn of_an_answer_with_one_broken_part_only_that_is_asked_for() {
        let sample: serde_json::Value = serde_json::from_str(include_str!("../analysis/samples/v3noopt.json")).unwrap();
        let answer = sample["answer"].to_string();
        let (_, again, repair) =
            asked_again(FailureCode::InvalidOutput, "recommendation.option_id: is empty", Some(&answer));
        let (repair, complaint) = (repair.unwrap(), again.unwrap().complaint);
        assert_eq!(repair.parts(), ["recommendation"]);
        assert!(complaint.contains("Write only `recommendation` again"), "{complaint}");
    }
}
