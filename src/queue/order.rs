//! Which job is claimed next, while clients wait for answers.
//!
//! A job whose client is held for its answer is *interactive*: it has a deadline, the moment at which the client must be
//! answered. This lives in memory only: a restart ends every hold anyway. The order of claiming:
//!
//! 1. Interactive jobs that can still make it, by what is learnt of their model and depth: almost surely where more of
//!    them wait than workers are free, else with an even chance. Callers take turns; among one caller's the earliest
//!    deadline goes first.
//! 2. All other jobs, in the store's order: callers take turns, each its own by effective time.
//!
//! One that can't make it any more turns ordinary: its client is answered `202` at once, and the job lives on. So it is
//! where the client hangs up. First in, first out would answer nobody in time under overload, as everybody's wait
//! would be the whole queue's; this order keeps the number answered in time at what the account allows.
//!
//! So that nothing starves while clients always wait, a share of the claims goes to the rest: one in five to
//! jobs that nobody asked to wait for, and one in [`TURNED_SHARE`] times that to the first of all, which lets those
//! pass that have turned ordinary. Their clients have been told so and what to expect; a larger share for them would be
//! taken from those who can still be answered in time.
//!
//! Long polls and event streams follow a job and don't move it: whoever has had a `202` must not overtake by asking
//! again those who still wait for their first answer.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{sync::Notify, time::Instant};

use super::service_time::Kind;
use crate::{
    clock::Timestamp,
    job::{Job, JobId, JobState},
    store::{
        Pick,
        turns::{Caller, List, Turns},
    },
};

/// How many times rarer than those that nobody asked to wait for, jobs that have turned ordinary get a share.
pub(super) const TURNED_SHARE: u32 = 10;

/// How far back it is looked whether more clients come than can be answered: long enough to tell a rush from a few that
/// come together, short enough to see it before the first must be turned away.
const LOOK_BACK: Duration = Duration::from_secs(10);

/// How much of the claims clients take before it is a rush.
const RUSH: f64 = 0.8;

/// The longest that a client is held.
const LONGEST_HOLD: Duration = Duration::from_secs(30);

/// Places of interactive jobs: by deadline, then by the client's number.
type Place = (Instant, u64);

/// The clients that are held for an answer, and the order of their jobs.
#[derive(Debug, Default)]
pub(super) struct Order(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    clients: HashMap<u64, Client>,
    /// The clients of each job.
    by_job: HashMap<JobId, Vec<u64>>,
    /// Clients whose job can be claimed.
    ready: Turns<Place>,
    /// Clients whose job can be claimed at a later moment.
    later: BTreeSet<(Timestamp, u64)>,
    next_number: u64,
    /// Claims while clients waited.
    contested: u32,
    /// How many clients came of late, and how many claims there were of any job while some waited.
    came: Recent,
    claims: Recent,
}

/// A count that forgets: what is [`LOOK_BACK`] old counts for 1/e of what is new.
#[derive(Debug, Default)]
struct Recent {
    count: f64,
    at: Option<Instant>,
}

impl Recent {
    fn add(&mut self) {
        self.count = self.count() + 1.0;
        self.at = Some(Instant::now());
    }

    fn count(&self) -> f64 {
        let age = self.at.map_or(0.0, |at| at.elapsed().div_duration_f64(LOOK_BACK));
        self.count * (-age).exp()
    }
}

#[derive(Debug)]
struct Client {
    job: JobId,
    caller: Caller,
    kind: Kind,
    until: Instant,
    /// Where `later` has it.
    at: Option<Timestamp>,
    standing: Arc<Standing>,
}

/// How a client's job stands, for the client to see.
#[derive(Debug, Default)]
struct Standing {
    /// It has turned ordinary.
    has_turned: AtomicBool,
    /// Signalled when it does.
    signal: Notify,
    /// It was picked, and its claim is on its way to the disk.
    is_picked: AtomicBool,
}

/// A client's place in the order; given up when dropped, which turns its job ordinary.
#[derive(Debug)]
pub struct Waiting {
    order: Arc<Order>,
    number: u64,
    standing: Arc<Standing>,
    job: JobId,
    until: Instant,
    pub(super) kind: Kind,
}

impl Waiting {
    /// The job that is waited for.
    pub fn job(&self) -> JobId {
        self.job
    }

    /// Until when.
    pub fn until(&self) -> Instant {
        self.until
    }

    pub(super) fn has_turned(&self) -> bool {
        self.standing.has_turned.load(Ordering::SeqCst)
    }

    /// Whether its claim is under way: then it is as good as running.
    pub(super) fn is_picked(&self) -> bool {
        self.standing.is_picked.load(Ordering::SeqCst)
    }

    /// Signalled when the job turns ordinary.
    pub(super) fn signal(&self) -> &Notify {
        &self.standing.signal
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.order.0.lock().leave(self.number);
    }
}

impl Order {
    /// Registers a client that is held until `until`. Do so before the job can be claimed, or [`Order::note`] it after.
    pub(super) fn enter(self: &Arc<Self>, job: JobId, caller: Caller, kind: Kind, until: Instant) -> Waiting {
        let mut state = self.0.lock();
        let number = state.next_number;
        state.next_number += 1;
        state.came.add();
        let standing = Arc::<Standing>::default();
        let client = Client { job, caller, kind: kind.clone(), until, at: None, standing: Arc::clone(&standing) };
        state.clients.insert(number, client);
        state.by_job.entry(job).or_default().push(number);
        drop(state);
        Waiting { order: Arc::clone(self), number, standing, job, until, kind }
    }

    /// Takes note of jobs as they are now: of one that waits for its next claim, or doesn't any more. What is held back
    /// can't be claimed though it is due.
    pub(super) fn note(&self, jobs: &[Job], now: Timestamp, is_held_back: impl Fn(&Job) -> bool) {
        let mut state = self.0.lock();
        if state.clients.is_empty() {
            return;
        }
        for job in jobs {
            for number in state.by_job.get(&job.id).cloned().unwrap_or_default() {
                if is_held_back(job) {
                    state.displace(number);
                } else {
                    state.place(number, job, now);
                }
            }
        }
    }

    /// What the next claim is to take. `free` workers look for a job; `is_met` says whether an answer of a kind can still
    /// come within a time, and has to be surer of it where others want the worker. `share` is one in how many contested
    /// claims goes to jobs that nobody asked to wait for, of which `unwaited` says whether there are any.
    pub(super) fn pick(
        &self,
        now: Timestamp,
        share: u32,
        free: usize,
        is_met: impl Fn(&Kind, Duration, bool) -> bool,
        unwaited: impl FnOnce() -> bool,
    ) -> Pick {
        let mut state = self.0.lock();
        state.promote(now);
        let at = Instant::now();
        loop {
            let Some(&(_, number)) = state.ready.first(None) else { return Pick::First };
            let Some(client) = state.clients.get(&number) else { return Pick::First };
            let is_contested = state.ready.len(None) > free.max(1);
            if is_met(&client.kind, client.until.saturating_duration_since(at), is_contested) {
                break;
            }
            state.turn(number);
        }
        state.contested = state.contested.wrapping_add(1);
        state.claims.add();
        if state.contested.is_multiple_of(share.saturating_mul(TURNED_SHARE)) {
            return Pick::First;
        }
        if state.contested.is_multiple_of(share) && unwaited() {
            return Pick::Unwaited;
        }
        let taken = state.ready.take(None).and_then(|(_, number)| state.clients.get(&number));
        taken.map_or(Pick::First, |client| {
            client.standing.is_picked.store(true, Ordering::SeqCst);
            Pick::Job(client.job)
        })
    }

    /// How many jobs of waiting clients would go before that of a client of `caller` that is held until `until`.
    pub(super) fn ahead_of(&self, caller: Caller, until: Instant) -> usize {
        self.0.lock().ready.ahead_of(caller, &(until, u64::MAX), None)
    }

    /// How many interactive jobs go before this one, if it is one and can be claimed.
    pub(super) fn ahead_of_job(&self, id: JobId) -> Option<usize> {
        let state = self.0.lock();
        let numbers = state.by_job.get(&id)?;
        let places = numbers.iter().filter_map(|number| {
            let client = state.clients.get(number)?;
            let has_turned = client.standing.has_turned.load(Ordering::SeqCst);
            (!has_turned).then(|| state.ready.ahead_of(client.caller, &(client.until, *number), None))
        });
        places.min()
    }

    /// How many jobs of waiting clients can be claimed.
    pub(super) fn ready(&self) -> usize {
        self.0.lock().ready.len(None)
    }

    /// How many jobs of waiting clients go before a job of `caller` that was submitted at `since` and has turned
    /// ordinary, for as long as clients come in such numbers that none else is claimed but by its share; none if they
    /// don't. Fewer than would keep all workers busy are no rush.
    pub(super) fn rush_before(&self, caller: Caller, since: Instant, workers: usize) -> Option<usize> {
        let state = self.0.lock();
        let is_rush = state.ready.len(None) >= workers.max(1) && state.came.count() > RUSH * state.claims.count();
        is_rush.then(|| state.ready.ahead_of(caller, &(since + LONGEST_HOLD, u64::MAX), None))
    }

    /// Takes note of a client that would have waited if its answer could have come in time.
    pub(super) fn note_declined(&self) {
        self.0.lock().came.add();
    }

    /// Turns a client's job ordinary.
    pub(super) fn turn(&self, waiting: &Waiting) {
        self.0.lock().turn(waiting.number);
    }
}

impl State {
    /// Gives a client the place that its job's state calls for.
    fn place(&mut self, number: u64, job: &Job, now: Timestamp) {
        self.displace(number);
        let Some(client) = self.clients.get_mut(&number) else { return };
        client.standing.is_picked.store(false, Ordering::SeqCst);
        if client.standing.has_turned.load(Ordering::SeqCst) {
            return;
        }
        match job.state {
            JobState::Queued { run_at } if run_at <= now => {
                self.ready.insert(client.caller, List::Waited, (client.until, number));
            }
            JobState::Queued { run_at } => {
                client.at = Some(run_at);
                self.later.insert((run_at, number));
            }
            JobState::Running { .. } | JobState::Succeeded | JobState::Failed { .. } | JobState::Cancelled => {}
        }
    }

    fn displace(&mut self, number: u64) {
        let Some(client) = self.clients.get_mut(&number) else { return };
        self.ready.remove(client.caller, List::Waited, &(client.until, number));
        if let Some(at) = client.at.take() {
            self.later.remove(&(at, number));
        }
    }

    fn promote(&mut self, now: Timestamp) {
        while let Some(&(at, number)) = self.later.first().filter(|(at, _)| *at <= now) {
            self.later.remove(&(at, number));
            if let Some(client) = self.clients.get_mut(&number) {
                client.at = None;
                self.ready.insert(client.caller, List::Waited, (client.until, number));
            }
        }
    }

    fn turn(&mut self, number: u64) {
        self.displace(number);
        if let Some(client) = self.clients.get(&number) {
            client.standing.has_turned.store(true, Ordering::SeqCst);
            client.standing.signal.notify_one();
        }
    }

    fn leave(&mut self, number: u64) {
        self.displace(number);
        let Some(client) = self.clients.remove(&number) else { return };
        if let Some(numbers) = self.by_job.get_mut(&client.job) {
            numbers.retain(|other| *other != number);
            if numbers.is_empty() {
                self.by_job.remove(&client.job);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU64;

    use super::*;
    use crate::job::{Depth, Priority};

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_millis(1_800_000_000_000 + seconds * 1000)
    }

    fn job(n: u128) -> Job {
        Job::new(JobId::from_u128(n), Priority::Normal, at(0))
    }

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn kind(model: Option<&str>) -> Kind {
        Kind { model: model.map(str::to_owned), depth: Depth::Brief, is_waited_for: true }
    }

    /// Clients of the jobs 1, 2, …, of one caller, each held for so many seconds.
    fn clients(order: &Arc<Order>, caller: u64, first: u128, holds: &[u64]) -> Vec<Waiting> {
        let enter = |(n, hold): (u128, &u64)| {
            let waiting =
                order.enter(JobId::from_u128(n), NonZeroU64::new(caller), kind(None), Instant::now() + seconds(*hold));
            order.note(&[job(n)], at(0), |_| false);
            waiting
        };
        (first..).zip(holds).map(enter).collect()
    }

    /// So many picks, by the number of the job; 0 for the first of all, a thousand for one that nobody waits for.
    fn picks(order: &Order, count: usize, needs: u64, unwaited: bool) -> Vec<u128> {
        let pick = |_| match order.pick(at(0), 5, 1, |_, left, _| seconds(needs) <= left, || unwaited) {
            Pick::Job(id) => id.as_u128(),
            Pick::First => 0,
            Pick::Unwaited => 1_000,
        };
        (0..count).map(pick).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn the_earliest_deadline_goes_first_and_nobody_twice() {
        let order = Arc::default();
        let _clients = clients(&order, 0, 1, &[20, 10, 15]);
        assert_eq!(order.ahead_of(None, Instant::now() + seconds(15)), 2);
        assert_eq!(order.ahead_of_job(JobId::from_u128(1)), Some(2));
        assert_eq!(picks(&order, 4, 5, false), [2, 3, 1, 0]);
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_can_not_make_it_turns_ordinary_and_its_client_hears_of_it() {
        let order = Arc::default();
        let clients = clients(&order, 0, 1, &[4, 6]);
        let heard = clients[0].signal().notified();
        assert_eq!(picks(&order, 2, 5, false), [2, 0]);
        heard.await;
        assert!(clients[0].has_turned() && !clients[1].has_turned());
        order.note(&[job(1)], at(0), |_| false);
        assert_eq!(picks(&order, 1, 1, false), [0], "it stays so");
    }

    #[tokio::test(start_paused = true)]
    async fn one_whose_claim_is_under_way_is_not_turned_away_until_it_is_to_be_tried_again() {
        let order = Arc::default();
        let clients = clients(&order, 0, 1, &[20]);
        assert!(!clients[0].is_picked());
        assert_eq!(picks(&order, 1, 5, false), [1]);
        assert!(clients[0].is_picked());
        order.note(&[job(1)], at(0), |_| false);
        assert!(!clients[0].is_picked());
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_a_rush_while_more_clients_come_than_are_claimed() {
        let order: Arc<Order> = Arc::default();
        let rush = |workers| order.rush_before(None, Instant::now() + seconds(99), workers);
        assert_eq!(rush(1), None, "nobody waits");
        let _clients = clients(&order, 0, 1, &[99; 10]);
        assert_eq!((rush(10), rush(11)), (Some(10), None));
        tokio::time::advance(4 * LOOK_BACK).await;
        assert_eq!(picks(&order, 9, 1, false), [1, 2, 3, 4, 5, 6, 7, 8, 9]);
        assert_eq!(rush(1), None, "of late more were claimed than came");
        (0..9).for_each(|_| order.note_declined());
        assert_eq!(rush(1), Some(1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_hangs_up_leaves_its_place_and_nothing_else() {
        let order = Arc::default();
        let mut clients = clients(&order, 0, 1, &[10, 20]);
        drop(clients.remove(0));
        assert_eq!(picks(&order, 2, 5, false), [2, 0]);
        drop(clients);
        let state = order.0.lock();
        assert!(state.clients.is_empty() && state.by_job.is_empty() && state.later.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_job_to_be_tried_again_has_its_place_from_then_on() {
        let order = Arc::default();
        let _clients = clients(&order, 0, 1, &[20]);
        let retried = Job { state: JobState::Queued { run_at: at(3) }, ..job(1) };
        order.note(&[retried], at(1), |_| false);
        assert_eq!(picks(&order, 1, 5, false), [0]);
        let pick = order.pick(at(3), 5, 1, |_, left, _| seconds(5) <= left, || false);
        assert_eq!(pick, Pick::Job(JobId::from_u128(1)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_job_that_is_held_back_has_no_place_until_it_is_let_go() {
        let order = Arc::default();
        let clients = clients(&order, 0, 1, &[10, 20]);
        order.note(&[job(1)], at(0), |_| true);
        assert_eq!((order.ready(), picks(&order, 2, 5, false)), (1, vec![2, 0]));
        order.note(&[job(1)], at(0), |_| false);
        assert_eq!(picks(&order, 2, 5, false), [1, 0]);
        assert!(!clients[0].has_turned());
    }

    #[tokio::test(start_paused = true)]
    async fn callers_take_turns() {
        let order = Arc::default();
        let _many = clients(&order, 1, 1, &[10, 10, 10, 10]);
        let _one = clients(&order, 2, 9, &[29]);
        let picked = picks(&order, 3, 5, false);
        assert!(picked[..2].contains(&9), "{picked:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn jobs_that_nobody_waits_for_get_their_share_and_those_that_turned_ordinary_a_smaller_one() {
        let order = Arc::default();
        let _clients = clients(&order, 0, 1, &[20; 100]);
        let picked = picks(&order, 50, 5, true);
        let of = |which| picked.iter().filter(|pick| **pick == which).count();
        assert_eq!((of(1_000), of(0)), (9, 1));
        let picked = picks(&order, 50, 5, false);
        assert_eq!(picked.iter().filter(|pick| **pick == 0).count(), 1, "what nobody wants is not given: {picked:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn the_time_needed_is_that_of_the_kind_and_a_chance_is_enough_where_nobody_else_wants_the_worker() {
        let order: Arc<Order> = Arc::default();
        let until = Instant::now() + seconds(10);
        let _slow = order.enter(JobId::from_u128(1), None, kind(Some("slow")), until);
        let _quick = order.enter(JobId::from_u128(2), None, kind(None), until);
        order.note(&[job(1), job(2)], at(0), |_| false);
        let is_met = |kind: &Kind, _, is_contested: bool| kind.model.is_none() || !is_contested;
        assert_eq!(order.pick(at(0), 5, 1, is_met, || false), Pick::Job(JobId::from_u128(2)), "it is the surer one");
        let _slow = order.enter(JobId::from_u128(3), None, kind(Some("slow")), until);
        order.note(&[job(3)], at(0), |_| false);
        assert_eq!(order.pick(at(0), 5, 1, is_met, || false), Pick::Job(JobId::from_u128(3)), "it is the only one");
        let _both = [4, 5].map(|n| order.enter(JobId::from_u128(n), None, kind(Some("slow")), until));
        order.note(&[job(4), job(5)], at(0), |_| false);
        assert_eq!(order.pick(at(0), 5, 2, is_met, || false), Pick::Job(JobId::from_u128(4)), "there is one for each");
    }
}
