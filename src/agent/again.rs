//! What the model is told when its answer was of no use: what was wrong, so that it does not do the same again.

use crate::{
    claude::Again,
    job::{Attempt, FailureCode},
};

/// Longest answer that is sent back, in bytes: a whole memo is a tenth of it.
const MAX_ANSWER_BYTES: usize = 64 << 10;

/// Longest complaint about an answer, in characters: enough for a dozen inconsistencies.
const MAX_COMPLAINT_CHARS: usize = 2_000;

/// The question as it is asked once more after the attempt `useless`: with the answer and what was wrong with it where
/// that helps to mend it, else with advice alone.
pub(super) fn again(mut question: String, useless: &Attempt, max_tokens: u32) -> (String, Option<Again>) {
    let report = &useless.report;
    let Some(error) = &report.error else { return (question, None) };
    if error.code == FailureCode::AnswerTruncated {
        // What was cut for its length would cost its length again, and teach nothing.
        question.push_str(&format!(
            "\n\nYour last answer to this was cut off at the limit of {max_tokens} tokens before its JSON was complete, \
             so none of it could be used. Write the memo anew and much shorter: fewer and shorter texts in every field, \
             at most 3 options, 3 criteria and 3 risks. The one JSON object must be complete."
        ));
        return (question, None);
    }
    let wrong: String = error.message.chars().take(MAX_COMPLAINT_CHARS).collect();
    let complaint = format!(
        "That answer can't be used: {wrong}. Write the whole memo again with this put right. Answer with one JSON object \
         only, in the language of the question."
    );
    match report.raw_answer.as_deref().map(str::trim) {
        Some(answer) if (1..=MAX_ANSWER_BYTES).contains(&answer.len()) => {
            (question, Some(Again { answer: answer.to_owned(), complaint }))
        }
        _ => {
            question.push_str(&format!("\n\nYou were asked this before. {complaint}"));
            (question, None)
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

    fn asked_again(code: FailureCode, message: &str, answer: Option<&str>) -> (String, Option<Again>) {
        let report = AttemptReport {
            error: Some(AttemptError { code, message: message.to_owned() }),
            raw_answer: answer.map(str::to_owned),
            ..AttemptReport::default()
        };
        let at = Timestamp::from_millis(0);
        let (started_at, finished_at) = (at, at);
        let outcome = AttemptOutcome::Failed;
        again(
            "Buy?".to_owned(),
            &Attempt { number: 1, started_at, finished_at, outcome, report: Arc::new(report) },
            800,
        )
    }

    #[test]
    fn an_unreadable_answer_is_sent_back_with_what_was_wrong() {
        let (question, again) = asked_again(FailureCode::InvalidOutput, "there is no `status`", Some(" {\"a\": 1}\n"));
        let again = again.unwrap();
        assert_eq!((question.as_str(), again.answer.as_str()), ("Buy?", "{\"a\": 1}"));
        assert!(again.complaint.contains("there is no `status`"), "{}", again.complaint);
    }

    #[test]
    fn an_answer_that_was_cut_is_not_sent_back_but_a_shorter_one_asked_for() {
        let (question, again) = asked_again(FailureCode::AnswerTruncated, "cut", Some("{\"status\": \"com"));
        assert!(question.starts_with("Buy?\n\n") && question.contains("limit of 800 tokens"), "{question}");
        assert_eq!(again, None);
    }

    #[test]
    fn a_blank_answer_and_an_endless_one_are_told_of_without_being_sent() {
        for answer in [None, Some(""), Some(" \n"), Some(&*"x".repeat(MAX_ANSWER_BYTES + 1))] {
            let (question, again) = asked_again(FailureCode::InvalidOutput, "the answer holds no JSON object", answer);
            assert!(question.contains("can't be used: the answer holds no JSON object"), "{question}");
            assert!(question.contains("Answer with one JSON object only"), "{question}");
            assert_eq!(again, None, "the API takes no blank message");
        }
    }

    #[test]
    fn an_endless_complaint_is_cut() {
        let (_, again) = asked_again(FailureCode::InvalidOutput, &"é".repeat(10_000), Some("{}"));
        assert_eq!(again.unwrap().complaint.matches('é').count(), MAX_COMPLAINT_CHARS);
    }
}
