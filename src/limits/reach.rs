//! Whether Claude can be reached. Calls without a connection do not close the gate, because each job is retried by itself.
//! Readiness and an alarm report them.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::{
    clock::{Moments, Timestamp},
    job::FailureCode,
};

/// So many calls in a row without a connection ...
const FAILURES: u32 = 3;

/// ... of more than one question, or for so long, are more than a passing fault.
const LASTING: Duration = Duration::from_secs(30);

/// After so long without a call nothing is known. Jobs pause between their attempts for less.
const FORGET_AFTER: Duration = Duration::from_mins(10);

#[derive(Clone, Debug)]
pub struct Unreachable {
    pub code: FailureCode,
    pub detail: String,
    pub failures: u32,
    question: u64,
    is_of_several: bool,
    since: Instant,
    last: Instant,
}

impl Unreachable {
    fn counts(&self, now: Instant) -> bool {
        let is_lasting = self.last - self.since >= LASTING;
        self.failures >= FAILURES && (self.is_of_several || is_lasting) && now - self.last < FORGET_AFTER
    }
}

/// The calls since the last that was answered, whatever the answer.
#[derive(Debug, Default)]
pub(super) struct Reach(Option<Unreachable>);

/// The same, as the dispatcher tells other nodes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct ReachMemo {
    code: FailureCode,
    detail: String,
    failures: u32,
    question: u64,
    is_of_several: bool,
    since: Timestamp,
    last: Timestamp,
}

impl Reach {
    pub(super) fn memo(&self, moments: &Moments) -> Option<ReachMemo> {
        self.0.clone().map(|calls| ReachMemo {
            code: calls.code,
            detail: calls.detail,
            failures: calls.failures,
            question: calls.question,
            is_of_several: calls.is_of_several,
            since: moments.timestamp(calls.since),
            last: moments.timestamp(calls.last),
        })
    }

    pub(super) fn adopt(&mut self, memo: Option<ReachMemo>, moments: &Moments) {
        self.0 = memo.map(|calls| Unreachable {
            code: calls.code,
            detail: calls.detail,
            failures: calls.failures,
            question: calls.question,
            is_of_several: calls.is_of_several,
            since: moments.instant(calls.since),
            last: moments.instant(calls.last),
        });
    }

    /// A call found no connection. Returns whether Claude counts as unreachable from now on.
    pub(super) fn failed(&mut self, question: u64, code: FailureCode, detail: &str, now: Instant) -> bool {
        let before = self.0.take().filter(|before| now - before.last < FORGET_AFTER);
        let was_unreachable = before.as_ref().is_some_and(|before| before.counts(now));
        let before = before.as_ref();
        let failing = Unreachable {
            code,
            detail: detail.to_owned(),
            failures: before.map_or(0, |before| before.failures).saturating_add(1),
            question,
            is_of_several: before.is_some_and(|before| before.is_of_several || before.question != question),
            since: before.map_or(now, |before| before.since),
            last: now,
        };
        let counts = failing.counts(now);
        self.0 = Some(failing);
        counts && !was_unreachable
    }

    /// A call was answered. Returns whether Claude counted as unreachable until now.
    pub(super) fn answered(&mut self, now: Instant) -> bool {
        self.0.take().is_some_and(|failing| failing.counts(now))
    }

    pub(super) fn unreachable(&self, now: Instant) -> Option<&Unreachable> {
        self.0.as_ref().filter(|failing| failing.counts(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Calls of these questions that find no connection, a second apart. Returns which of them made Claude unreachable.
    fn fail(reach: &mut Reach, start: Instant, questions: &[u64]) -> Vec<bool> {
        let moments = (0..).map(|second| start + second * SECOND);
        questions
            .iter()
            .zip(moments)
            .map(|(question, now)| reach.failed(*question, FailureCode::ConnectFailed, "x", now))
            .collect()
    }

    #[test]
    fn three_calls_of_two_questions_without_a_connection_count_and_an_answer_ends_it() {
        let (mut reach, now) = (Reach::default(), Instant::now());
        assert_eq!(fail(&mut reach, now, &[1, 2, 3, 4]), [false, false, true, false], "told once");
        assert_eq!(reach.unreachable(now).unwrap().failures, 4);
        assert!(reach.answered(now) && reach.unreachable(now).is_none());
        assert_eq!(fail(&mut reach, now, &[1, 2]), [false, false], "counted from the start again");
        assert!(!reach.answered(now));
    }

    #[test]
    fn one_question_counts_only_if_it_goes_on_for_half_a_minute() {
        let (mut reach, now) = (Reach::default(), Instant::now());
        assert!(!fail(&mut reach, now, &[1; 30]).contains(&true));
        assert!(reach.failed(1, FailureCode::ConnectFailed, "x", now + LASTING));
    }

    #[test]
    fn without_a_call_for_ten_minutes_nothing_is_known() {
        let (mut reach, now) = (Reach::default(), Instant::now());
        fail(&mut reach, now, &[1, 2, 3]);
        let last = now + 2 * SECOND;
        assert!(reach.unreachable(last + FORGET_AFTER - SECOND).is_some());
        assert!(reach.unreachable(last + FORGET_AFTER).is_none());
        assert!(!reach.failed(4, FailureCode::ConnectFailed, "x", last + FORGET_AFTER), "the first of a new row");
    }
}
