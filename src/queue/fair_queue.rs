//! Whose turn it is: callers take turns, one job a turn, so that one caller's thousand jobs don't delay another's one.
//!
//! Each caller has a list for each [`Lane`]: jobs whose clients asked to wait, and the others, for each model that they name.
//! Every list has its own order (by age and priority on the board, by deadline among held clients). So the jobs of a model whose calls
//! are stopped are passed over at once. A caller's *turn* is a number: the caller with the lowest one goes
//! next and gets the next number. A caller that comes for the first time, or again, starts at the turn that was served last, so no caller saves
//! turns up and none waits for having been quick. It is start-time fair queueing (Goyal et al., 1996) with
//! all weights and costs equal. Priority moves a job among those of its own caller only: else a caller would take the
//! others' turns by calling all its jobs urgent.
//!
//! Every step takes O(log n) in jobs and callers, and O(n) in lanes, which are few; a place in the order O(callers).

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::{
    digest::Lane,
    job::{Job, caller::Caller},
};

/// Items of a node of a list: many callers have few jobs, and an empty list has the room of a node.
const NODE: usize = 256;

/// Whether the clients of the jobs of a list asked to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum List {
    /// They did not.
    Background,
    /// They did.
    Interactive,
}

/// Which lanes to look at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lanes {
    /// All.
    All,
    /// These.
    Only(Vec<Lane>),
}

impl Lanes {
    fn has(&self, lane: Lane) -> bool {
        match self {
            Lanes::All => true,
            Lanes::Only(lanes) => lanes.contains(&lane),
        }
    }
}

/// Which jobs to look at: of one list or of both, in some lanes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted<'a> {
    pub(super) list: Option<List>,
    pub(super) lanes: &'a Lanes,
}

impl Wanted<'_> {
    #[cfg(test)]
    pub(super) const ALL: Wanted<'static> = Wanted { list: None, lanes: &Lanes::All };

    fn has(self, (list, lane): Key) -> bool {
        self.list.is_none_or(|wanted| wanted == list) && self.lanes.has(lane)
    }
}

/// Where a job stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) caller: Caller,
    pub(super) list: List,
    pub(super) lane: Lane,
}

impl Place {
    /// The place of a job.
    pub(super) fn of(job: &Job) -> Place {
        let list = if job.waited_for { List::Interactive } else { List::Background };
        Place { caller: job.caller, list, lane: job.model }
    }

    fn key(self) -> Key {
        (self.list, self.lane)
    }
}

type Key = (List, Lane);

/// All callers with their jobs.
#[derive(Debug)]
pub(super) struct FairQueue<T: Ord> {
    callers: HashMap<Caller, Lists<T>>,
    /// For each list of a lane, the callers that have jobs in it, by their turns. None is empty.
    order: BTreeMap<Key, BTreeSet<(u64, Caller)>>,
    /// How many jobs there are, by list.
    lengths: BTreeMap<List, usize>,
    /// The turn served last.
    now: u64,
}

#[derive(Debug)]
struct Lists<T: Ord> {
    turn: u64,
    /// None is empty. Sets that also tell at once how many come before one.
    jobs: BTreeMap<Key, indexset::BTreeSet<T>>,
}

impl<T: Ord> Default for FairQueue<T> {
    fn default() -> FairQueue<T> {
        FairQueue { callers: HashMap::new(), order: BTreeMap::new(), lengths: BTreeMap::new(), now: 0 }
    }
}

impl<T: Ord + Clone> FairQueue<T> {
    /// Adds a job. One that is there already stays.
    pub(super) fn insert(&mut self, place: Place, job: T) {
        let (now, key) = (self.now, place.key());
        let lists = self.callers.entry(place.caller).or_insert_with(|| Lists { turn: now, jobs: BTreeMap::new() });
        if lists.jobs.is_empty() {
            lists.turn = lists.turn.max(now);
        }
        let jobs = lists.jobs.entry(key).or_insert_with(|| {
            self.order.entry(key).or_default().insert((lists.turn, place.caller));
            indexset::BTreeSet::with_maximum_node_size(NODE)
        });
        *self.lengths.entry(place.list).or_default() += usize::from(jobs.insert(job));
    }

    /// Removes a job. Returns whether it was there. Whose turn it is stays as it was.
    pub(super) fn remove(&mut self, place: Place, job: &T) -> bool {
        let key = place.key();
        let Some(lists) = self.callers.get_mut(&place.caller) else { return false };
        let Some(jobs) = lists.jobs.get_mut(&key) else { return false };
        let removed = jobs.remove(job);
        if jobs.is_empty() {
            lists.jobs.remove(&key);
            leave(&mut self.order, key, (lists.turn, place.caller));
        }
        *self.lengths.entry(place.list).or_default() -= usize::from(removed);
        // Its turn has to be known for as long as it would come too early without.
        if lists.turn <= self.now && lists.jobs.is_empty() {
            self.callers.remove(&place.caller);
        }
        removed
    }

    /// The next job of those wanted.
    pub(super) fn first(&self, wanted: Wanted<'_>) -> Option<&T> {
        self.next(wanted).map(|(_, job)| job)
    }

    /// Takes the next job of those wanted; its caller has had its turn.
    pub(super) fn take(&mut self, wanted: Wanted<'_>) -> Option<T> {
        let (place, job) = self.next(wanted).map(|(place, job)| (place, job.clone()))?;
        self.serve(place.caller);
        self.remove(place, &job);
        Some(job)
    }

    fn next(&self, wanted: Wanted<'_>) -> Option<(Place, &T)> {
        let orders = self.order.iter().filter(|(key, _)| wanted.has(**key));
        let (_, caller) = orders.filter_map(|(_, order)| order.first()).min()?;
        let lists = self.callers.get(caller)?.jobs.iter().filter(|(key, _)| wanted.has(**key));
        let firsts = lists.filter_map(|((list, lane), jobs)| {
            Some((Place { caller: *caller, list: *list, lane: *lane }, jobs.first()?))
        });
        firsts.min_by_key(|(_, job)| *job)
    }

    /// Gives `caller` its next turn.
    fn serve(&mut self, caller: Caller) {
        let Some(lists) = self.callers.get_mut(&caller) else { return };
        let turn = lists.turn;
        lists.turn = turn.max(self.now) + 1;
        for key in lists.jobs.keys() {
            leave(&mut self.order, *key, (turn, caller));
            self.order.entry(*key).or_default().insert((lists.turn, caller));
        }
        if turn > self.now {
            self.now = turn;
            self.callers.retain(|_, lists| lists.turn > turn || !lists.jobs.is_empty());
        }
    }

    /// How many jobs of a list, or of both, go before this one, which need not be there.
    pub(super) fn ahead_of(&self, caller: Caller, job: &T, list: Option<List>) -> usize {
        let wanted = Wanted { list, lanes: &Lanes::All };
        let of = |lists: &Lists<T>, count: &dyn Fn(&indexset::BTreeSet<T>) -> usize| -> usize {
            lists.jobs.iter().filter(|(key, _)| wanted.has(**key)).map(|(_, jobs)| count(jobs)).sum()
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

    /// The first job of each list of each caller.
    pub(super) fn heads(&self) -> impl Iterator<Item = &T> + '_ {
        self.callers.values().flat_map(|lists| lists.jobs.values().filter_map(indexset::BTreeSet::first))
    }

    /// How many jobs there are in a list, or in both.
    pub(super) fn len(&self, list: Option<List>) -> usize {
        self.lengths.iter().filter(|(one, _)| list.is_none_or(|list| list == **one)).map(|(_, length)| length).sum()
    }

    /// The lanes that have jobs.
    pub(super) fn lanes(&self) -> Vec<Lane> {
        self.order.keys().map(|(_, lane)| *lane).collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// Every job with its place, in no order.
    #[cfg(test)]
    pub(super) fn iter(&self) -> impl Iterator<Item = (Place, &T)> + '_ {
        self.callers.iter().flat_map(|(caller, lists)| {
            lists.jobs.iter().flat_map(|((list, lane), jobs)| {
                jobs.iter().map(|job| (Place { caller: *caller, list: *list, lane: *lane }, job))
            })
        })
    }

    /// Panics unless the callers' order and the lengths agree with their jobs.
    #[cfg(test)]
    pub(super) fn assert_consistent(&self) {
        let (mut order, mut lengths) = (BTreeMap::<Key, BTreeSet<_>>::new(), BTreeMap::<List, usize>::new());
        for (caller, lists) in &self.callers {
            for (key, jobs) in &lists.jobs {
                assert!(!jobs.is_empty());
                order.entry(*key).or_default().insert((lists.turn, *caller));
                *lengths.entry(key.0).or_default() += jobs.len();
            }
        }
        assert_eq!(self.order, order);
        assert!(self.lengths.iter().all(|(list, length)| lengths.get(list).copied().unwrap_or(0) == *length));
        assert_eq!(self.len(None), lengths.values().sum::<usize>());
        let mut gone = self.callers.values().filter(|lists| lists.jobs.is_empty());
        assert!(gone.all(|lists| lists.turn > self.now), "callers without jobs are forgotten in time");
    }
}

/// Takes a caller out of the order of a list.
fn leave(order: &mut BTreeMap<Key, BTreeSet<(u64, Caller)>>, key: Key, turn: (u64, Caller)) {
    if let Some(callers) = order.get_mut(&key) {
        callers.remove(&turn);
        if callers.is_empty() {
            order.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU64;

    use proptest::prelude::*;

    use super::*;
    use crate::digest::ModelKey;

    fn caller(n: u64) -> Caller {
        NonZeroU64::new(n)
    }

    fn at(caller: Caller, list: List) -> Place {
        Place { caller, list, lane: None }
    }

    fn take(turns: &mut FairQueue<u32>) -> Option<u32> {
        turns.take(Wanted::ALL)
    }

    fn all(turns: &mut FairQueue<u32>) -> Vec<u32> {
        std::iter::from_fn(|| take(turns)).collect()
    }

    #[test]
    fn a_thousand_jobs_of_one_caller_do_not_delay_anothers_one() {
        let mut turns = FairQueue::default();
        (0..1_000).for_each(|job| turns.insert(at(caller(1), List::Background), job));
        assert_eq!(take(&mut turns), Some(0));
        turns.insert(at(caller(2), List::Background), 5_000);
        assert_eq!(turns.ahead_of(caller(2), &5_000, None), 0);
        assert_eq!(turns.ahead_of(caller(1), &2, None), 2);
        assert_eq!([take(&mut turns), take(&mut turns)], [Some(5_000), Some(1)]);
    }

    #[test]
    fn who_comes_again_and_again_with_one_job_waits_for_its_turn_too() {
        let mut turns = FairQueue::default();
        (10..20).for_each(|job| turns.insert(at(caller(2), List::Background), job));
        let mut taken = Vec::new();
        for job in 0..4 {
            turns.insert(at(caller(1), List::Background), job);
            taken.extend([take(&mut turns), take(&mut turns)].into_iter().flatten());
            turns.assert_consistent();
        }
        assert_eq!(taken, [0, 10, 1, 11, 2, 12, 3, 13]);
    }

    #[test]
    fn one_list_alone_can_be_asked_for() {
        let mut turns = FairQueue::default();
        (0..3).for_each(|job| turns.insert(at(None, List::Interactive), job));
        turns.insert(at(None, List::Background), 3);
        let background = Wanted { list: Some(List::Background), lanes: &Lanes::All };
        assert_eq!((turns.first(background), turns.first(Wanted::ALL)), (Some(&3), Some(&0)));
        assert_eq!(turns.take(background), Some(3));
        assert_eq!(turns.take(background), None);
        assert_eq!(all(&mut turns), [0, 1, 2]);
    }

    #[test]
    fn the_jobs_of_some_lanes_are_passed_over_and_keep_their_places() {
        let mut turns = FairQueue::default();
        let lane = |model: &str| Some(ModelKey::of(model));
        for (n, model) in [(0, None), (1, lane("a")), (2, None), (3, lane("b")), (4, lane("a"))] {
            turns.insert(Place { caller: caller(u64::from(n % 2)), list: List::Background, lane: model }, n);
        }
        let lanes = Lanes::Only(vec![lane("a"), lane("c")]);
        let of_a = Wanted { list: None, lanes: &lanes };
        assert_eq!(turns.lanes(), {
            let mut lanes = vec![None, lane("a"), lane("b")];
            lanes.sort();
            lanes
        });
        assert_eq!([(); 3].map(|()| turns.take(of_a).is_some()), [true, true, false]);
        turns.assert_consistent();
        let mut left = all(&mut turns);
        left.sort_unstable();
        assert_eq!((left, turns.lanes()), (vec![0, 2, 3], vec![]));
        turns.assert_consistent();
    }

    proptest! {
        #[test]
        fn the_places_told_are_those_in_which_jobs_are_taken(
            jobs in proptest::collection::btree_map(0u32..500, (0u64..5, any::<bool>()), 1..60),
            before in 0usize..20,
        ) {
            let mut turns = FairQueue::default();
            for (job, (of, waited)) in &jobs {
                let list = if *waited { List::Interactive } else { List::Background };
                turns.insert(Place { lane: (job % 3 == 0).then(|| ModelKey::of("a")), ..at(caller(*of), list) }, *job);
            }
            for _ in 0..before.min(jobs.len() - 1) {
                take(&mut turns);
                turns.assert_consistent();
            }
            let mut places: Vec<(usize, u32)> =
                turns.iter().map(|(place, job)| (turns.ahead_of(place.caller, job, None), *job)).collect();
            places.sort_unstable();
            let told: Vec<u32> = places.iter().map(|(_, job)| *job).collect();
            prop_assert!(places.iter().map(|(place, _)| *place).eq(0..told.len()), "{:?}", places);
            prop_assert_eq!(all(&mut turns), told);
            turns.assert_consistent();
            prop_assert_eq!(turns.len(None), 0);
        }
    }
}
