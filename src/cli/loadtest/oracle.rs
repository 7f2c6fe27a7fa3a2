//! What could have been answered in time: a schedule made afterwards by an oracle, which knows how long each answer takes.
//!
//! Knowing the lengths has two advantages. No call is made in vain and no worker is idle: a good service comes close to
//! this. And under overload the short answers can be picked: a service can't, as it learns a length only from the answer.
//! [`First::Deadline`] has only the first advantage: the measure of a load test. [`First::Shortest`] has both.

use std::{cmp::Reverse, collections::BinaryHeap, time::Duration};

/// Resolution of the times at which a worker was free.
const STEP: Duration = Duration::from_millis(100);

/// A question of a client that waits. Times count from the begin of the load.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked {
    pub(super) at: Duration,
    pub(super) takes: Duration,
    /// Its client must be answered then.
    pub(super) until: Duration,
}

/// Which of the questions that can still be answered in time goes first.
#[derive(Clone, Copy, Debug)]
pub(super) enum First {
    /// The one whose client must be answered first. Questions that only a short answer still fits come last.
    Deadline,
    /// The one whose answer takes the least time.
    Shortest,
}

/// How many of the questions could be answered in time by so many calls at once. No call is begun whose answer would be
/// late.
pub(super) fn answerable(asked: &[Asked], workers: usize, first: First) -> u64 {
    let longest = asked.iter().map(|asked| asked.takes).max().unwrap_or_default();
    let mut coming: Vec<Asked> = asked.to_vec();
    coming.sort_unstable_by_key(|asked| Reverse(asked.at));
    let mut free: BinaryHeap<Reverse<Duration>> = (0..workers).map(|_| Reverse(Duration::ZERO)).collect();
    let (mut ready, mut answered): (Vec<Asked>, u64) = (Vec::new(), 0);
    while let Some(Reverse(mut now)) = free.pop() {
        if ready.is_empty() {
            let Some(next) = coming.last() else { break };
            now = now.max(next.at);
        }
        while let Some(next) = coming.pop_if(|next| next.at <= now) {
            ready.push(next);
        }
        ready.retain(|asked| now + asked.takes <= asked.until);
        let best = (0..ready.len()).min_by_key(|place| {
            let Asked { takes, until, .. } = ready[*place];
            match first {
                First::Deadline => (now + longest > until, until),
                First::Shortest => (false, takes),
            }
        });
        let Some(best) = best.map(|place| ready.swap_remove(place)) else {
            free.push(Reverse(now));
            continue;
        };
        answered += 1;
        free.push(Reverse(now + best.takes));
    }
    answered
}

/// How many of the declined clients could indeed not have been answered besides the calls that were made, because at no
/// time was a worker free for long enough.
pub(super) fn rightly_declined(declined: &[Asked], calls: &[(Duration, Duration)], workers: usize) -> u64 {
    let place = |time: Duration| usize::try_from(time.as_nanos() / STEP.as_nanos()).unwrap_or(usize::MAX);
    let last = calls.iter().map(|(_, end)| place(*end)).max().unwrap_or(0);
    let mut busy = vec![0_usize; last + 2];
    for (begin, end) in calls {
        busy[place(*begin)..place(*end)].iter_mut().for_each(|calls| *calls += 1);
    }
    let was_free = |asked: &&Asked| {
        let mut free_for = Duration::ZERO;
        (place(asked.at)..place(asked.until)).any(|place| {
            let is_free = busy.get(place).is_none_or(|calls| *calls < workers);
            free_for = if is_free { free_for + STEP } else { Duration::ZERO };
            free_for >= asked.takes
        })
    };
    (declined.len() - declined.iter().filter(was_free).count()) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(at: u64, takes: u64, until: u64) -> Asked {
        let [at, takes, until] = [at, takes, until].map(Duration::from_secs);
        Asked { at, takes, until }
    }

    #[test]
    fn the_oracle_answers_what_can_be_in_time_and_more_if_it_picks_the_shortest() {
        let questions = [asked(0, 10, 29), asked(0, 10, 29), asked(0, 10, 29), asked(1, 9, 30), asked(1, 9, 30)];
        let with = |workers, first| answerable(&questions, workers, first);
        assert_eq!(with(1, First::Deadline), 3, "two of ten seconds, and one of nine in time");
        assert_eq!(with(1, First::Shortest), 3);
        assert_eq!(with(5, First::Deadline), 5);
        let uneven = [asked(0, 20, 28), asked(0, 5, 29), asked(0, 5, 29), asked(0, 5, 29)];
        assert_eq!(answerable(&uneven, 1, First::Deadline), 2);
        assert_eq!(answerable(&uneven, 1, First::Shortest), 3);
    }

    #[test]
    fn in_the_order_of_deadlines_no_question_goes_first_because_its_answer_is_short() {
        let questions = [asked(0, 4, 9), asked(0, 4, 9), asked(0, 10, 13), asked(0, 10, 23)];
        assert_eq!(
            answerable(&questions, 1, First::Deadline),
            2,
            "an answer of ten seconds would not fit the first two"
        );
        assert_eq!(answerable(&questions, 1, First::Shortest), 3);
        assert_eq!(answerable(&questions, 3, First::Deadline), 4, "a worker that is free takes them too");
    }

    #[test]
    fn a_client_was_declined_rightly_if_no_worker_was_free_for_long_enough() {
        let calls = [(Duration::ZERO, Duration::from_secs(25)), (Duration::from_secs(5), Duration::from_secs(40))];
        let declined = [asked(0, 10, 29), asked(0, 4, 29), asked(20, 10, 49)];
        assert_eq!(rightly_declined(&declined[..1], &calls, 2), 1);
        assert_eq!(
            rightly_declined(&declined, &calls, 2),
            1,
            "there were four seconds at the begin, and the end was free"
        );
    }
}
