//! Which messages may be sent now: slots for each host and each caller, and a breaker for hosts that do not answer. So a
//! receiver that never answers delays nobody else's messages. Pure: no I/O, no clock.

use std::{collections::HashMap, sync::Arc, time::Duration};

use tokio::time::Instant;

use crate::{
    job::{JobId, caller::Caller},
    store::Due,
};

/// Most messages under way at one time: a receiver may hold one for as long as it may take to answer.
const MAX_AT_ONCE: usize = 512;

/// Of these, so many of one caller, ...
const MAX_PER_CALLER: usize = 64;

/// ... and so many to one host, ...
pub(super) const MAX_PER_HOST: usize = 16;

/// ... or to a host that has not answered yet.
const MAX_PER_NEW_HOST: usize = 4;

/// After so many messages in a row without an answer, a host gets one message at a time, and a pause after each.
const BREAK_AFTER: u32 = 4;

/// The first of these pauses, doubled with each, and the longest.
const BREAK: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(60));

/// Above this number of remembered hosts, those are forgotten to which nothing is under way.
const MAX_REMEMBERED: usize = 10_000;

#[derive(Default)]
pub(super) struct Slots {
    under_way: HashMap<JobId, Due>,
    callers: HashMap<Caller, usize>,
    hosts: HashMap<Arc<str>, Host>,
}

#[derive(Default)]
struct Host {
    under_way: usize,
    has_answered: bool,
    unanswered: u32,
    not_before: Option<Instant>,
}

impl Host {
    fn has_slot(&self, now: Instant) -> bool {
        let most = match self {
            Host { unanswered: BREAK_AFTER.., .. } => 1,
            Host { has_answered: false, .. } => MAX_PER_NEW_HOST,
            Host { .. } => MAX_PER_HOST,
        };
        self.under_way < most && self.not_before.is_none_or(|at| at <= now)
    }
}

impl Slots {
    /// Gives slots to as many of these messages as there are. Callers with fewer messages under way go first.
    pub(super) fn take(&mut self, due: Vec<Due>, now: Instant) -> Vec<Due> {
        let mut ranks = self.callers.clone();
        let mut candidates: Vec<(usize, Due)> = Vec::new();
        for due in due {
            if !self.under_way.contains_key(&due.job) && self.hosts.get(&due.host).is_none_or(|host| host.has_slot(now))
            {
                let rank = ranks.entry(due.caller).or_default();
                *rank += 1;
                candidates.push((*rank, due));
            }
        }
        candidates.sort_by_key(|(rank, _)| *rank);
        let taken = candidates.into_iter().filter_map(|(_, due)| self.take_one(&due, now).then_some(due));
        taken.collect()
    }

    fn take_one(&mut self, due: &Due, now: Instant) -> bool {
        let of_caller = self.callers.get(&due.caller).copied().unwrap_or(0);
        let host = self.hosts.entry(Arc::clone(&due.host)).or_default();
        if self.under_way.len() >= MAX_AT_ONCE || of_caller >= MAX_PER_CALLER || !host.has_slot(now) {
            return false;
        }
        host.under_way += 1;
        self.callers.insert(due.caller, of_caller + 1);
        self.under_way.insert(due.job, due.clone());
        true
    }

    /// Takes a message's slot back. `is_answered`: its receiver answered, whatever it was.
    pub(super) fn give_back(&mut self, job: JobId, is_answered: bool, now: Instant) {
        let Some(Due { caller, host: name, .. }) = self.under_way.remove(&job) else { return };
        if let Some(count) = self.callers.get_mut(&caller) {
            *count -= 1;
            if *count == 0 {
                self.callers.remove(&caller);
            }
        }
        let host = self.hosts.entry(name).or_default();
        host.under_way -= 1;
        if is_answered {
            *host = Host { under_way: host.under_way, has_answered: true, ..Host::default() };
        } else {
            host.unanswered = host.unanswered.saturating_add(1);
            let pauses = host.unanswered.checked_sub(BREAK_AFTER);
            host.not_before = pauses.map(|pauses| now + BREAK.0.saturating_mul(1 << pauses.min(8)).min(BREAK.1));
        }
        if self.hosts.len() > MAX_REMEMBERED {
            self.hosts.retain(|_, host| host.under_way > 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::caller;

    /// The messages of a caller to a host, with numbers from `first` on.
    fn due(who: &str, host: &str, first: u128, count: u128) -> Vec<Due> {
        let one = |n| Due { job: JobId::from_u128(n), caller: caller::named(who), host: host.into() };
        (first..first + count).map(one).collect()
    }

    #[test]
    fn a_host_that_has_not_answered_yet_gets_few_slots_and_one_that_has_gets_more() {
        let (mut slots, now) = (Slots::default(), Instant::now());
        let taken = slots.take(due("a", "new", 0, 100), now);
        assert_eq!(taken.len(), MAX_PER_NEW_HOST);
        assert!(slots.take(due("a", "new", 0, 100), now).is_empty());
        slots.give_back(taken[0].job, true, now);
        assert_eq!(slots.take(due("a", "new", 10, 100), now).len(), MAX_PER_HOST - 3);
    }

    #[test]
    fn a_host_that_never_answers_gets_one_message_at_a_time_with_longer_and_longer_pauses() {
        let (mut slots, mut now) = (Slots::default(), Instant::now());
        for message in slots.take(due("a", "dead", 0, 100), now) {
            slots.give_back(message.job, false, now);
        }
        for pause in [5, 10, 20, 40, 60, 60] {
            assert!(slots.take(due("a", "dead", 0, 100), now + Duration::from_secs(pause - 1)).is_empty());
            now += Duration::from_secs(pause);
            let probes = slots.take(due("a", "dead", 0, 100), now);
            assert_eq!(probes.len(), 1);
            slots.give_back(probes[0].job, false, now);
        }
        now += Duration::from_secs(60);
        let probes = slots.take(due("a", "dead", 0, 100), now);
        slots.give_back(probes[0].job, true, now);
        assert_eq!(slots.take(due("a", "dead", 0, 100), now).len(), MAX_PER_HOST);
    }

    #[test]
    fn one_caller_with_many_dead_hosts_leaves_slots_to_others() {
        let (mut slots, now) = (Slots::default(), Instant::now());
        let many = (0..1_000).flat_map(|n| due("a", &format!("host{n}"), n * 10, 4)).collect();
        assert_eq!(slots.take(many, now).len(), MAX_PER_CALLER);
        assert_eq!(slots.take(due("b", "host", 100_000, 1), now).len(), 1);
    }

    #[test]
    fn the_last_slots_go_to_callers_with_fewer_messages_under_way() {
        let (mut slots, now) = (Slots::default(), Instant::now());
        for who in 0..7 {
            let many = (0..16).flat_map(|n| due(&format!("c{who}"), &format!("{who}-{n}"), who * 1_000 + n * 10, 4));
            assert_eq!(slots.take(many.collect(), now).len(), MAX_PER_CALLER);
        }
        let greedy = (0..20).flat_map(|n| due("greedy", &format!("g{n}"), 50_000 + n * 10, 4));
        let mut both: Vec<Due> = greedy.collect();
        both.extend(due("modest", "m", 90_000, 1));
        let taken = slots.take(both, now);
        assert_eq!(taken.len(), MAX_PER_CALLER);
        assert!(taken.iter().any(|due| due.caller == caller::named("modest")));
    }
}
