//! What could have been answered: a schedule made afterwards, by one who knows how long each answer takes.

use std::{cmp::Reverse, collections::BinaryHeap, time::Duration};

/// How finely it is looked when a worker was free.
const STEP: Duration = Duration::from_millis(100);

/// A question of a client that waits. Times count from the begin of the load.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked {
    pub(super) at: Duration,
    /// How long its answer takes.
    pub(super) takes: Duration,
    /// When its client must be answered.
    pub(super) until: Duration,
}

/// Which of the questions that can still be answered in time goes first.
#[derive(Clone, Copy, Debug)]
pub(super) enum First {
    /// The one whose client must be answered first.
    Deadline,
    /// The one whose answer takes the least.
    Shortest,
}

/// How many of the questions could be answered in time, and before `end`, by so many calls at once. No call is begun whose
/// answer would be late.
pub(super) fn answerable(asked: &[Asked], workers: usize, end: Duration, first: First) -> u64 {
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
        let best = (0..ready.len()).min_by_key(|place| match first {
            First::Deadline => ready[*place].until,
            First::Shortest => ready[*place].takes,
        });
        let Some(best) = best.map(|place| ready.swap_remove(place)) else {
            free.push(Reverse(now));
            continue;
        };
        answered += u64::from(now + best.takes <= end);
        free.push(Reverse(now + best.takes));
    }
    answered
}

/// How many of the clients that were declined could indeed not have been answered besides the calls that were made:
/// at no time was a worker free for long enough.
pub(super) fn rightly_declined(declined: &[Asked], calls: &[(Duration, Duration)], workers: usize) -> u64 {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "some thousands")]
    let place = |time: Duration| time.div_duration_f64(STEP) as usize;
    let last = calls.iter().map(|(_, end)| place(*end)).max().unwrap_or(0);
    let mut busy = vec![0_usize; last + 2];
    for (begin, end) in calls {
        busy[place(*begin)..place(*end)].iter_mut().for_each(|calls| *calls += 1);
    }
    let was_free = |asked: &&Asked| {
        let (mut run, needed) = (Duration::ZERO, asked.takes);
        (place(asked.at)..place(asked.until)).any(|place| {
            let is_free = busy.get(place).is_none_or(|calls| *calls < workers);
            run = if is_free { run + STEP } else { Duration::ZERO };
            run >= needed
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
    fn what_can_be_answered_in_time_is_and_the_shortest_first_are_more() {
        let questions = [asked(0, 10, 29), asked(0, 10, 29), asked(0, 10, 29), asked(1, 9, 30), asked(1, 9, 30)];
        let end = Duration::from_secs(100);
        let with = |workers, end, first| answerable(&questions, workers, end, first);
        assert_eq!(with(1, end, First::Deadline), 3, "two of ten seconds, and one of nine in time");
        assert_eq!(with(1, end, First::Shortest), 3);
        assert_eq!(with(5, end, First::Deadline), 5);
        assert_eq!(with(1, Duration::from_secs(19), First::Deadline), 1, "the others come after the load");
        let uneven = [asked(0, 20, 28), asked(0, 5, 29), asked(0, 5, 29), asked(0, 5, 29)];
        assert_eq!(answerable(&uneven, 1, end, First::Deadline), 2);
        assert_eq!(answerable(&uneven, 1, end, First::Shortest), 3);
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
