//! Whose turn it is: callers take turns, one job a turn, so that one caller's thousand jobs don't delay another's one.
//!
//! Each caller has two lists, of jobs whose clients asked to wait and of the others, each in its own order (by age and
//! priority in the index, by deadline in the queue). A caller's *turn* is a number: the caller with the lowest one goes
//! next and gets the next number. Who comes anew, or again, starts at the turn that was served last, so nobody saves
//! turns up and nobody is made to wait for having been quick. It is start-time fair queueing (Goyal et al., 1996) with
//! all weights and costs equal. Priority moves a job among those of its own caller only: else a caller would take the
//! others' turns by calling all its jobs urgent.
//!
//! Every step takes O(log n) in jobs and callers; a place in the order O(callers).

use std::{
    collections::{BTreeSet, HashMap},
    num::NonZeroU64,
};

/// A caller, by the digest that jobs carry.
pub(crate) type Caller = Option<NonZeroU64>;

/// Items of a node of a list: many callers have few jobs, and an empty list has the room of a node.
const NODE: usize = 256;

/// The two lists of a caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum List {
    /// Jobs whose clients did not ask to wait.
    Unwaited,
    /// Jobs whose clients did.
    Waited,
}

const LISTS: [List; 2] = [List::Unwaited, List::Waited];

impl List {
    /// The list of a job.
    pub(crate) fn of(waited_for: bool) -> List {
        if waited_for { List::Waited } else { List::Unwaited }
    }

    fn number(self) -> usize {
        match self {
            List::Unwaited => 0,
            List::Waited => 1,
        }
    }
}

/// All callers with their jobs.
#[derive(Debug)]
pub(crate) struct Turns<T: Ord> {
    callers: HashMap<Caller, Lists<T>>,
    /// For each list, the callers that have jobs in it, by their turns.
    order: [BTreeSet<(u64, Caller)>; 2],
    lengths: [usize; 2],
    /// The turn served last.
    now: u64,
}

#[derive(Debug)]
struct Lists<T: Ord> {
    turn: u64,
    /// None rather than empty. Sets that also tell at once how many come before one.
    jobs: [Option<indexset::BTreeSet<T>>; 2],
}

impl<T: Ord> Default for Turns<T> {
    fn default() -> Turns<T> {
        Turns { callers: HashMap::new(), order: Default::default(), lengths: [0; 2], now: 0 }
    }
}

impl<T: Ord + Clone> Turns<T> {
    /// Adds a job. One that is there already stays.
    pub(crate) fn insert(&mut self, caller: Caller, list: List, job: T) {
        let now = self.now;
        let lists = self.callers.entry(caller).or_insert_with(|| Lists { turn: now, jobs: [None, None] });
        if lists.jobs.iter().all(Option::is_none) {
            lists.turn = lists.turn.max(now);
        }
        let number = list.number();
        let jobs = lists.jobs[number].get_or_insert_with(|| {
            self.order[number].insert((lists.turn, caller));
            indexset::BTreeSet::with_maximum_node_size(NODE)
        });
        self.lengths[number] += usize::from(jobs.insert(job));
    }

    /// Removes a job; tells whether it was there. Whose turn it is stays as it was.
    pub(crate) fn remove(&mut self, caller: Caller, list: List, job: &T) -> bool {
        let number = list.number();
        let Some(lists) = self.callers.get_mut(&caller) else { return false };
        let Some(jobs) = &mut lists.jobs[number] else { return false };
        let removed = jobs.remove(job);
        if jobs.is_empty() {
            lists.jobs[number] = None;
            self.order[number].remove(&(lists.turn, caller));
        }
        self.lengths[number] -= usize::from(removed);
        // Its turn has to be known for as long as it would come too early without.
        if lists.turn <= self.now && lists.jobs.iter().all(Option::is_none) {
            self.callers.remove(&caller);
        }
        removed
    }

    /// The next job, of one list or of both.
    pub(crate) fn first(&self, list: Option<List>) -> Option<&T> {
        self.next(list).map(|(_, _, job)| job)
    }

    /// Takes the next job, of one list or of both; its caller has had its turn.
    pub(crate) fn take(&mut self, list: Option<List>) -> Option<T> {
        let (caller, list, job) = self.next(list).map(|(caller, list, job)| (caller, list, job.clone()))?;
        self.serve(caller);
        self.remove(caller, list, &job);
        Some(job)
    }

    fn next(&self, list: Option<List>) -> Option<(Caller, List, &T)> {
        let callers = LISTS.iter().filter(|one| list.is_none_or(|list| list == **one));
        let (_, caller) = callers.filter_map(|list| self.order[list.number()].first()).min()?;
        let jobs = &self.callers.get(caller)?.jobs;
        let firsts = LISTS.iter().filter(|one| list.is_none_or(|list| list == **one));
        let (job, list) = firsts
            .filter_map(|list| Some((jobs[list.number()].as_ref()?.first()?, *list)))
            .min_by_key(|(job, _)| *job)?;
        Some((*caller, list, job))
    }

    /// Gives `caller` its next turn.
    fn serve(&mut self, caller: Caller) {
        let Some(lists) = self.callers.get_mut(&caller) else { return };
        let turn = lists.turn;
        lists.turn = turn.max(self.now) + 1;
        for (order, jobs) in self.order.iter_mut().zip(&lists.jobs) {
            if jobs.is_some() {
                order.remove(&(turn, caller));
                order.insert((lists.turn, caller));
            }
        }
        if turn > self.now {
            self.now = turn;
            self.callers.retain(|_, lists| lists.turn > turn || lists.jobs.iter().any(Option::is_some));
        }
    }

    /// How many jobs of a list, or of both, go before this one, which need not be there.
    pub(crate) fn ahead_of(&self, caller: Caller, job: &T, list: Option<List>) -> usize {
        let of = |lists: &Lists<T>, count: &dyn Fn(&indexset::BTreeSet<T>) -> usize| -> usize {
            let wanted = LISTS.iter().filter(|one| list.is_none_or(|list| list == **one));
            wanted.filter_map(|list| lists.jobs[list.number()].as_ref()).map(count).sum()
        };
        let own = self.callers.get(&caller);
        let before = own.map_or(0, |lists| of(lists, &|jobs| jobs.rank(job)));
        let turn = own.map_or(self.now, |lists| lists.turn) + before as u64;
        let others = self.callers.iter().filter(|(other, _)| **other != caller).map(|(other, lists)| {
            // It is served at its turn and at each after that, until ours comes.
            let served = (turn + u64::from(*other < caller)).saturating_sub(lists.turn);
            of(lists, &indexset::BTreeSet::len).min(usize::try_from(served).unwrap_or(usize::MAX))
        });
        before + others.sum::<usize>()
    }

    /// How many jobs there are in a list, or in both.
    pub(crate) fn len(&self, list: Option<List>) -> usize {
        list.map_or(self.lengths[0] + self.lengths[1], |list| self.lengths[list.number()])
    }

    /// Every job with its place, in no order.
    #[cfg(test)]
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Caller, List, &T)> + '_ {
        self.callers.iter().flat_map(|(caller, lists)| {
            LISTS.iter().flat_map(|list| {
                lists.jobs[list.number()].iter().flat_map(|jobs| jobs.iter().map(|job| (*caller, *list, job)))
            })
        })
    }

    /// Panics unless the callers' order and the lengths agree with their jobs.
    #[cfg(test)]
    pub(crate) fn assert_consistent(&self) {
        for list in LISTS {
            let number = list.number();
            let have = self.callers.iter().filter(|(_, lists)| lists.jobs[number].is_some());
            let order: BTreeSet<_> = have.clone().map(|(caller, lists)| (lists.turn, *caller)).collect();
            assert_eq!(self.order[number], order);
            assert!(have.clone().all(|(_, lists)| lists.jobs[number].as_ref().is_some_and(|jobs| !jobs.is_empty())));
            let length: usize =
                have.map(|(_, lists)| lists.jobs[number].as_ref().map_or(0, indexset::BTreeSet::len)).sum();
            assert_eq!(self.lengths[number], length);
        }
        let gone = self.callers.values().filter(|lists| lists.jobs.iter().all(Option::is_none));
        assert!(gone.clone().all(|lists| lists.turn > self.now), "callers without jobs are forgotten in time");
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn caller(n: u64) -> Caller {
        NonZeroU64::new(n)
    }

    fn all(turns: &mut Turns<u32>) -> Vec<u32> {
        std::iter::from_fn(|| turns.take(None)).collect()
    }

    #[test]
    fn a_thousand_jobs_of_one_caller_do_not_delay_anothers_one() {
        let mut turns = Turns::default();
        (0..1_000).for_each(|job| turns.insert(caller(1), List::Unwaited, job));
        assert_eq!(turns.take(None), Some(0));
        turns.insert(caller(2), List::Unwaited, 5_000);
        assert_eq!(turns.ahead_of(caller(2), &5_000, None), 0);
        assert_eq!(turns.ahead_of(caller(1), &2, None), 2);
        assert_eq!([turns.take(None), turns.take(None)], [Some(5_000), Some(1)]);
    }

    #[test]
    fn who_comes_again_and_again_with_one_job_waits_for_its_turn_too() {
        let mut turns = Turns::default();
        (10..20).for_each(|job| turns.insert(caller(2), List::Unwaited, job));
        let mut taken = Vec::new();
        for job in 0..4 {
            turns.insert(caller(1), List::Unwaited, job);
            taken.extend([turns.take(None), turns.take(None)].into_iter().flatten());
            turns.assert_consistent();
        }
        assert_eq!(taken, [0, 10, 1, 11, 2, 12, 3, 13]);
    }

    #[test]
    fn one_list_alone_can_be_asked_for() {
        let mut turns = Turns::default();
        (0..3).for_each(|job| turns.insert(None, List::Waited, job));
        turns.insert(None, List::Unwaited, 3);
        assert_eq!((turns.first(Some(List::Unwaited)), turns.first(None)), (Some(&3), Some(&0)));
        assert_eq!(turns.take(Some(List::Unwaited)), Some(3));
        assert_eq!(turns.take(Some(List::Unwaited)), None);
        assert_eq!(all(&mut turns), [0, 1, 2]);
    }

    proptest! {
        #[test]
        fn the_places_told_are_those_in_which_jobs_are_taken(
            jobs in proptest::collection::btree_map(0u32..500, (0u64..5, any::<bool>()), 1..60),
            before in 0usize..20,
        ) {
            let mut turns = Turns::default();
            for (job, (of, waited)) in &jobs {
                turns.insert(caller(*of), List::of(*waited), *job);
            }
            for _ in 0..before.min(jobs.len() - 1) {
                turns.take(None);
                turns.assert_consistent();
            }
            let mut places: Vec<(usize, u32)> =
                turns.iter().map(|(caller, _, job)| (turns.ahead_of(caller, job, None), *job)).collect();
            places.sort_unstable();
            let told: Vec<u32> = places.iter().map(|(_, job)| *job).collect();
            prop_assert!(places.iter().map(|(place, _)| *place).eq(0..told.len()), "{:?}", places);
            prop_assert_eq!(all(&mut turns), told);
            turns.assert_consistent();
            prop_assert_eq!(turns.len(None), 0);
        }
    }
}
