//! Which job is claimed next, while clients wait for answers.
//!
//! A job whose client is held for its answer is *interactive*. It has a deadline, the moment at which the client must be
//! answered. It is in memory only, because a restart ends every hold. The order of claims:
//!
//! 1. Interactive jobs that can still be answered in time, by what was learnt of their model and depth: almost surely where
//!    more of them wait than workers are free, else with an even chance. Callers take turns. Among the jobs of one caller
//!    the earliest deadline goes first.
//! 2. All other jobs, in the store's order: callers take turns, and each caller's jobs go by effective time.
//!
//! An interactive job that can't be answered in time any more turns ordinary: its client gets a `202` at once, and the job
//! stays queued. The same happens when its client hangs up. First in, first out would answer nobody in time under
//! overload, because everybody would wait for the whole queue.
//!
//! Other jobs do not starve while clients always wait. One claim in five goes to background jobs. One
//! in [`DEMOTED_SHARE`] times that goes to the first job in the store's order, so that jobs that have turned ordinary pass
//! too. A larger share for them would be taken from clients that can still be answered in time.
//!
//! Clients of other nodes take part by hints (`hint`). One that is late is turned ordinary like any other, and its node hears
//! of it.
//!
//! Long polls and event streams do not move a job. A client that got a `202` must not overtake, by asking again, clients
//! that still wait for their first answer.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use parking_lot::{Mutex, MutexGuard};
use tokio::{
    sync::{Notify, broadcast},
    time::Instant,
};

use super::{
    board::Pick,
    fair_queue::{FairQueue, Lanes, List, Place, Wanted},
    hint::{Hint, Hints},
    service_time::Kind,
};
use crate::{
    clock::{Moments, Timestamp},
    digest::{Lane, ModelKey},
    job::{Job, JobId, JobState, caller::Caller},
};

/// How many times rarer than background jobs, demoted jobs get a share.
pub(super) const DEMOTED_SHARE: u32 = 10;

/// A rush is over once every client was answered in time for as long as a client is held at most.
const RUSH_ENDS_AFTER: Duration = Duration::from_secs(30);

/// The order of interactive jobs: by deadline, then by the client's number.
type Rank = (Instant, u64);

/// The clients that are held for an answer, and the order of their jobs.
#[derive(Debug, Default)]
pub(super) struct Order(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    clients: HashMap<u64, Client>,
    /// The clients of each job.
    by_job: HashMap<JobId, Vec<u64>>,
    /// Clients whose job can be claimed.
    ready: FairQueue<Rank>,
    /// Clients whose job can be claimed at a later moment.
    later: BTreeSet<(Timestamp, u64)>,
    next_number: u64,
    /// Claims while clients waited.
    contested: u32,
    rush: Option<Rush>,
    /// The clients of other nodes: by their node and its number for them, and by when they have to be answered.
    others: HashMap<(String, u64), u64>,
    ends: BTreeSet<(Instant, u64)>,
    hints: Hints,
}

/// More clients come than can be answered in time.
#[derive(Clone, Copy, Debug)]
struct Rush {
    since: Instant,
    /// When the last client was declined or its job was demoted.
    last: Instant,
}

#[derive(Debug)]
struct Client {
    job: JobId,
    caller: Caller,
    lane: Lane,
    kind: Kind,
    until: Instant,
    /// Where `later` has it.
    at: Option<Timestamp>,
    standing: Arc<Standing>,
    /// The node that holds it, and its number there; `None` for a client of this node.
    other: Option<(String, u64)>,
}

impl Client {
    fn hint(&self, number: u64) -> Hint {
        let left = self.until.saturating_duration_since(Instant::now());
        Hint::Waits {
            client: number,
            job: self.job,
            caller: self.caller,
            kind: self.kind.clone(),
            left_ms: u64::try_from(left.as_millis()).unwrap_or(u64::MAX),
        }
    }

    fn place(&self) -> Place {
        Place { caller: self.caller, list: List::Interactive, lane: self.lane }
    }
}

/// How a client's job stands, for the client to see.
#[derive(Debug, Default)]
struct Standing {
    /// It has turned ordinary.
    is_demoted: AtomicBool,
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

    pub(super) fn is_demoted(&self) -> bool {
        self.standing.is_demoted.load(Ordering::SeqCst)
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
        self.order.lock().leave(self.number);
    }
}

impl Order {
    /// Registers a client that is held until `until`. Do so before the job can be claimed, or [`Order::update`] it after.
    pub(super) fn enter(self: &Arc<Self>, job: JobId, caller: Caller, kind: Kind, until: Instant) -> Waiting {
        let (number, standing) = self.lock().enter(job, caller, kind.clone(), until, None);
        Waiting { order: Arc::clone(self), number, standing, job, until, kind }
    }

    /// Registers a client of another node. False if it is known.
    pub(super) fn enter_other(
        &self,
        node: &str,
        client: u64,
        job: JobId,
        caller: Caller,
        kind: Kind,
        until: Instant,
    ) -> bool {
        let (mut state, other) = (self.lock(), (node.to_owned(), client));
        let is_new = !state.others.contains_key(&other);
        if is_new {
            state.enter(job, caller, kind, until, Some(other));
        }
        is_new
    }

    /// A client of another node waits no longer.
    pub(super) fn leave_other(&self, node: &str, client: u64) {
        let mut state = self.lock();
        if let Some(number) = state.others.get(&(node.to_owned(), client)).copied() {
            state.leave(number);
        }
    }

    /// The dispatcher can't have a client of this node answered in time.
    pub(super) fn demote_own(&self, client: u64) {
        let mut state = self.lock();
        if state.clients.get(&client).is_some_and(|client| client.other.is_none()) {
            state.demote(client);
        }
    }

    pub(super) fn hints(&self) -> broadcast::Receiver<Hint> {
        self.lock().hints.subscribe()
    }

    pub(super) fn send_hint(&self, hint: Hint) {
        self.lock().hints.send(hint);
    }

    pub(super) fn repeat_hints(&self) {
        let state = self.lock();
        let is_own = |client: &Client| client.other.is_none() && !client.standing.is_demoted.load(Ordering::SeqCst);
        for (number, client) in state.clients.iter().filter(|(_, client)| is_own(client)) {
            state.hints.send(client.hint(*number));
        }
    }

    /// The state, without the clients of other nodes whose time is over.
    fn lock(&self) -> MutexGuard<'_, State> {
        let mut state = self.0.lock();
        if let Some(&(first, _)) = state.ends.first() {
            let now = Instant::now();
            if first <= now {
                let over: Vec<u64> = state.ends.iter().take_while(|(at, _)| *at <= now).map(|(_, n)| *n).collect();
                over.into_iter().for_each(|number| state.leave(number));
            }
        }
        state
    }

    /// Takes note of jobs as they are now: of one that waits for its next claim, or doesn't any more. What is blocked
    /// can't be claimed though it is due. The service time is `lead` ahead of the wall clock.
    pub(super) fn update<'a>(
        &self,
        jobs: impl IntoIterator<Item = &'a Job>,
        (now, lead): (Timestamp, Duration),
        is_blocked: impl Fn(&Job) -> bool,
    ) {
        let mut state = self.lock();
        if state.clients.is_empty() {
            return;
        }
        for job in jobs {
            for number in state.by_job.get(&job.id).cloned().unwrap_or_default() {
                if is_blocked(job) {
                    state.displace(number);
                } else {
                    state.place(number, job, (now, lead));
                }
            }
        }
    }

    /// What the next claim of a job of these lanes is to take. `free` workers look for a job; `is_met` says whether an answer of a kind can still
    /// come within a time, and has to be surer of it where others want the worker. `share` is one in how many contested
    /// claims goes to background jobs; `background` says whether there are any.
    pub(super) fn pick(
        &self,
        now: Timestamp,
        share: u32,
        free: usize,
        lanes: &Lanes,
        is_met: impl Fn(&Kind, Duration, bool) -> bool,
        background: impl FnOnce() -> bool,
    ) -> Pick {
        let mut state = self.lock();
        state.promote(now);
        let (at, wanted) = (Instant::now(), Wanted { list: None, lanes });
        loop {
            let Some(&(_, number)) = state.ready.first(wanted) else { return Pick::First };
            let Some(client) = state.clients.get(&number) else { return Pick::First };
            let is_contested = state.ready.len(None) > free.max(1);
            if is_met(&client.kind, client.until.saturating_duration_since(at), is_contested) {
                break;
            }
            state.demote(number);
            state.record_rush();
        }
        state.contested = state.contested.wrapping_add(1);
        if state.contested.is_multiple_of(share.saturating_mul(DEMOTED_SHARE)) {
            return Pick::First;
        }
        if state.contested.is_multiple_of(share) && background() {
            return Pick::Background;
        }
        let taken = state.ready.take(wanted).and_then(|(_, number)| state.clients.get(&number));
        taken.map_or(Pick::First, |client| {
            client.standing.is_picked.store(true, Ordering::SeqCst);
            Pick::Job(client.job)
        })
    }

    /// How many jobs of waiting clients would go before that of a client of `caller` that is held until `until`.
    pub(super) fn ahead_of(&self, caller: Caller, until: Instant) -> usize {
        self.lock().ready.ahead_of(caller, &(until, u64::MAX), None)
    }

    /// How many interactive jobs go before this one, if it is one and can be claimed.
    pub(super) fn ahead_of_job(&self, id: JobId) -> Option<usize> {
        let state = self.lock();
        let numbers = state.by_job.get(&id)?;
        let places = numbers.iter().filter_map(|number| {
            let client = state.clients.get(number)?;
            let is_demoted = client.standing.is_demoted.load(Ordering::SeqCst);
            (!is_demoted).then(|| state.ready.ahead_of(client.caller, &(client.until, *number), None))
        });
        places.min()
    }

    /// How many jobs of waiting clients can be claimed.
    pub(super) fn ready(&self) -> usize {
        self.lock().ready.len(None)
    }

    /// How long the rush has lasted, if there is one.
    pub(super) fn rush(&self) -> Option<Duration> {
        let rush = self.lock().rush.filter(|rush| rush.last.elapsed() < RUSH_ENDS_AFTER);
        rush.map(|rush| rush.since.elapsed())
    }

    /// Since when the rush lasts, and when it last showed.
    pub(super) fn rush_memo(&self, moments: &Moments) -> Option<(Timestamp, Timestamp)> {
        self.lock().rush.map(|rush| (moments.timestamp(rush.since), moments.timestamp(rush.last)))
    }

    /// Takes over what another node knows of the rush, if that is newer.
    pub(super) fn adopt_rush(&self, rush: Option<(Timestamp, Timestamp)>, moments: &Moments) {
        let newest = rush.map(|(since, last)| Rush { since: moments.instant(since), last: moments.instant(last) });
        let mut state = self.lock();
        if let Some(newest) = newest.filter(|newest| state.rush.is_none_or(|own| own.last < newest.last)) {
            state.rush = Some(newest);
        }
    }

    /// Records a client that would have waited if its answer could have come in time.
    pub(super) fn record_declined(&self) {
        self.lock().record_rush();
    }

    /// Turns a client's job ordinary.
    pub(super) fn demote(&self, waiting: &Waiting) {
        self.lock().demote(waiting.number);
    }
}

impl State {
    /// Gives a client the place that its job's state calls for.
    fn place(&mut self, number: u64, job: &Job, (now, lead): (Timestamp, Duration)) {
        self.displace(number);
        let Some(client) = self.clients.get_mut(&number) else { return };
        client.standing.is_picked.store(false, Ordering::SeqCst);
        if client.standing.is_demoted.load(Ordering::SeqCst) {
            return;
        }
        match job.state {
            JobState::Queued { run_at } => {
                let run_at = if job.is_timed { run_at.plus(lead) } else { run_at };
                if run_at <= now {
                    self.ready.insert(client.place(), (client.until, number));
                } else {
                    client.at = Some(run_at);
                    self.later.insert((run_at, number));
                }
            }
            JobState::Running | JobState::Succeeded | JobState::Failed { .. } | JobState::Cancelled => {}
        }
    }

    fn displace(&mut self, number: u64) {
        let Some(client) = self.clients.get_mut(&number) else { return };
        self.ready.remove(client.place(), &(client.until, number));
        if let Some(at) = client.at.take() {
            self.later.remove(&(at, number));
        }
    }

    fn promote(&mut self, now: Timestamp) {
        while let Some(&(at, number)) = self.later.first().filter(|(at, _)| *at <= now) {
            self.later.remove(&(at, number));
            if let Some(client) = self.clients.get_mut(&number) {
                client.at = None;
                self.ready.insert(client.place(), (client.until, number));
            }
        }
    }

    /// A client can't be answered in time.
    fn record_rush(&mut self) {
        let now = Instant::now();
        let since = self.rush.filter(|rush| now - rush.last < RUSH_ENDS_AFTER).map_or(now, |rush| rush.since);
        self.rush = Some(Rush { since, last: now });
    }

    fn enter(
        &mut self,
        job: JobId,
        caller: Caller,
        kind: Kind,
        until: Instant,
        other: Option<(String, u64)>,
    ) -> (u64, Arc<Standing>) {
        let (number, standing) = (self.next_number, Arc::<Standing>::default());
        self.next_number += 1;
        let lane = kind.model.as_deref().map(ModelKey::of);
        let client = Client { job, caller, lane, kind, until, at: None, standing: Arc::clone(&standing), other };
        match &client.other {
            Some(other) => {
                self.others.insert(other.clone(), number);
                self.ends.insert((until, number));
            }
            None => self.hints.send(client.hint(number)),
        }
        self.clients.insert(number, client);
        self.by_job.entry(job).or_default().push(number);
        (number, standing)
    }

    fn demote(&mut self, number: u64) {
        self.displace(number);
        let Some(client) = self.clients.get(&number) else { return };
        if !client.standing.is_demoted.swap(true, Ordering::SeqCst) {
            client.standing.signal.notify_one();
            self.hints.send(match client.other.clone() {
                Some((node, client)) => Hint::Demoted { node, client },
                None => Hint::Left { client: number },
            });
        }
    }

    fn leave(&mut self, number: u64) {
        self.displace(number);
        let Some(client) = self.clients.remove(&number) else { return };
        match client.other {
            Some(other) => {
                self.others.remove(&other);
                self.ends.remove(&(client.until, number));
            }
            None if client.standing.is_demoted.load(Ordering::SeqCst) => {}
            None => self.hints.send(Hint::Left { client: number }),
        }
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
            order.update(&[job(n)], (at(0), Duration::ZERO), |_| false);
            waiting
        };
        (first..).zip(holds).map(enter).collect()
    }

    /// So many picks, by the number of the job; 0 for the first of all, a thousand for one that nobody waits for.
    fn picks(order: &Order, count: usize, needs: u64, background: bool) -> Vec<u128> {
        let pick = |_| match order.pick(at(0), 5, 1, &Lanes::All, |_, left, _| seconds(needs) <= left, || background) {
            Pick::Job(id) => id.as_u128(),
            Pick::First => 0,
            Pick::Background => 1_000,
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
        assert!(clients[0].is_demoted() && !clients[1].is_demoted());
        order.update(&[job(1)], (at(0), Duration::ZERO), |_| false);
        assert_eq!(picks(&order, 1, 1, false), [0], "it stays so");
    }

    #[tokio::test(start_paused = true)]
    async fn one_whose_claim_is_under_way_is_not_turned_away_until_it_is_to_be_tried_again() {
        let order = Arc::default();
        let clients = clients(&order, 0, 1, &[20]);
        assert!(!clients[0].is_picked());
        assert_eq!(picks(&order, 1, 5, false), [1]);
        assert!(clients[0].is_picked());
        order.update(&[job(1)], (at(0), Duration::ZERO), |_| false);
        assert!(!clients[0].is_picked());
    }

    #[tokio::test(start_paused = true)]
    async fn a_rush_lasts_from_the_first_client_that_can_not_be_answered_until_all_are_for_half_a_minute() {
        let order: Arc<Order> = Arc::default();
        let _clients = clients(&order, 0, 1, &[40, 20]);
        assert_eq!(order.rush(), None);
        order.record_declined();
        tokio::time::advance(seconds(18)).await;
        assert_eq!((order.rush(), picks(&order, 1, 5, false)), (Some(seconds(18)), vec![1]), "the other has 2 s left");
        tokio::time::advance(seconds(29)).await;
        assert_eq!(order.rush(), Some(seconds(47)));
        tokio::time::advance(seconds(1)).await;
        assert_eq!(order.rush(), None);
        order.record_declined();
        assert_eq!(order.rush(), Some(Duration::ZERO), "the next rush");
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
        order.update(&[retried], (at(1), Duration::ZERO), |_| false);
        assert_eq!(picks(&order, 1, 5, false), [0]);
        let pick = order.pick(at(3), 5, 1, &Lanes::All, |_, left, _| seconds(5) <= left, || false);
        assert_eq!(pick, Pick::Job(JobId::from_u128(1)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_job_that_is_held_back_has_no_place_until_it_is_let_go() {
        let order = Arc::default();
        let clients = clients(&order, 0, 1, &[10, 20]);
        order.update(&[job(1)], (at(0), Duration::ZERO), |_| true);
        assert_eq!((order.ready(), picks(&order, 2, 5, false)), (1, vec![2, 0]));
        order.update(&[job(1)], (at(0), Duration::ZERO), |_| false);
        assert_eq!(picks(&order, 2, 5, false), [1, 0]);
        assert!(!clients[0].is_demoted());
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
        order.update(&[job(1), job(2)], (at(0), Duration::ZERO), |_| false);
        let is_met = |kind: &Kind, _, is_contested: bool| kind.model.is_none() || !is_contested;
        assert_eq!(
            order.pick(at(0), 5, 1, &Lanes::All, is_met, || false),
            Pick::Job(JobId::from_u128(2)),
            "it is the surer one"
        );
        let _slow = order.enter(JobId::from_u128(3), None, kind(Some("slow")), until);
        order.update(&[job(3)], (at(0), Duration::ZERO), |_| false);
        assert_eq!(
            order.pick(at(0), 5, 1, &Lanes::All, is_met, || false),
            Pick::Job(JobId::from_u128(3)),
            "it is the only one"
        );
        let _both = [4, 5].map(|n| order.enter(JobId::from_u128(n), None, kind(Some("slow")), until));
        order.update(&[job(4), job(5)], (at(0), Duration::ZERO), |_| false);
        assert_eq!(
            order.pick(at(0), 5, 2, &Lanes::All, is_met, || false),
            Pick::Job(JobId::from_u128(4)),
            "there is one for each"
        );
    }
}
