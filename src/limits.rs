//! How fast Claude may be called: the account's limits per minute by `governor`, how many calls may be under way while
//! Claude is overloaded, and the gate that closes for everyone at once.
//!
//! - `bucket`: one limit per minute
//! - `budget`: what may be spent a day
//! - `reach`: whether Claude can be reached
//! - `gate`: stops all calls while every one of them would fail alike
//!
//! A [`Permit`] is good for one call. A job waits for one in the queue, not in a worker: a worker asks for the permit
//! first and claims afterwards. A permit first takes as many tokens as a call usually needs, then, once it is known
//! which call it is, as many as its text is likely to need, and at the end is settled with what it did need. The limits
//! that the upstream tells in its answers count where they are lower than the settings.
//!
//! Where a claim takes long compared with a call, a few permits more are given while as many calls are under way as may
//! be ([`Limits::claim_ahead`]). Their jobs are claimed meanwhile, and their calls wait until one of the others ends
//! ([`Permit::turn`]).

mod bucket;
pub mod budget;
pub mod gate;
pub mod reach;

use std::{
    collections::{HashMap, VecDeque, hash_map::Entry},
    num::NonZeroU32,
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::{
    sync::{Notify, oneshot},
    time::Instant,
};
use utoipa::ToSchema;

use self::{
    bucket::Bucket,
    budget::{Budget, Need, PutOff, Reservation, Status},
    gate::{Admission, Block, Closed, Gates, Ruling},
    reach::{Reach, Unreachable},
};
use crate::config::values::RateCaps;

/// How long a job waits for the probe of another to end.
const PROBE_POLL: Duration = Duration::from_secs(1);

/// How often a budget that is used up is looked at: the wall clock can be set, and a suspended machine wakes on another
/// day.
const BUDGET_POLL: Duration = Duration::from_secs(1);

/// As many requests may come at once as half a second allows: a limit per minute may be enforced per second, and calls
/// that left one after the other may arrive together.
const REQUEST_BURST: Duration = Duration::from_millis(500);

/// As many tokens may be taken at once as a minute allows: how many a call needs is known only afterwards, and
/// Anthropic's buckets hold as many.
const TOKEN_BURST: Duration = Duration::from_secs(60);

/// How long a call is taken to last before any has been seen.
const USUAL_SECONDS: f64 = 20.0;

/// Calls at once that any account allows.
const LEAST_AT_ONCE: f64 = 16.0;

/// More calls at once than begin in the mean time of one: some last twice as long.
const AT_ONCE_RESERVE: f64 = 1.5;

/// Most calls at once where nothing else is set: the most that the connections and the memory are made for.
pub const MAX_CALLS_AT_ONCE: usize = 512;

/// What a call is taken to need before any has been seen: a question with the prompts and the schema, a memo.
const USUAL_TOKENS: Tokens = Tokens { input: 6_000, output: 4_000 };

/// Most calls at once until the first answer has told the account's limits: few enough for any account, while
/// sixty-four could be what one allows in three seconds.
const FIRST_CALLS: usize = 8;

/// The weight of the newest call in the running mean of tokens.
const NEWEST_WEIGHT: f64 = 0.1;

/// Most models whose ratio of tokens to bytes is learnt; clients can name any. The others count as usual calls.
const MAX_MODELS: usize = 64;

/// What is left of the calls under way after an overload: half, as congestion control has it.
const BACKOFF: f64 = 0.5;

/// Overloads that follow one within this time tell of the same rush of calls, so they count as one with it.
const BACKOFF_PAUSE: Duration = Duration::from_secs(1);

/// The limits of Anthropic's lowest tier, which hold until the first answer has told the account's.
const START_TIER: PerMinute =
    PerMinute { requests: not_zero(1_000), input_tokens: not_zero(2_000_000), output_tokens: not_zero(400_000) };

const fn not_zero(number: u32) -> NonZeroU32 {
    NonZeroU32::new(number).expect("not zero")
}

/// Limits per minute.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PerMinute {
    /// Calls.
    #[schema(value_type = u32, minimum = 1)]
    #[serde(rename = "requests_per_minute")]
    pub requests: NonZeroU32,
    /// Input tokens; those read from the prompt cache do not count.
    #[schema(value_type = u32, minimum = 1)]
    #[serde(rename = "input_tokens_per_minute")]
    pub input_tokens: NonZeroU32,
    /// Output tokens.
    #[schema(value_type = u32, minimum = 1)]
    #[serde(rename = "output_tokens_per_minute")]
    pub output_tokens: NonZeroU32,
}

/// Tokens of one call that count against the limits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tokens {
    /// Input tokens, without those read from the prompt cache.
    pub input: u32,
    /// Output tokens.
    pub output: u32,
}

/// The limits on calls. Clones are handles to the same ones.
#[derive(Clone, Debug)]
pub struct Limits(Arc<Inner>);

/// The limits of one model.
#[derive(Debug)]
struct Buckets {
    requests: Bucket,
    input_tokens: Bucket,
    output_tokens: Bucket,
}

#[derive(Debug)]
struct Inner {
    /// Of the service's own model, and of any other whose limits are not known yet.
    usual: Arc<Buckets>,
    /// The service's own model.
    usual_model: String,
    /// Of other models, once the upstream has named their limits.
    others: Mutex<HashMap<String, Arc<Buckets>>>,
    budget: Option<Arc<Budget>>,
    state: Mutex<State>,
    reach: Mutex<Reach>,
    /// Signalled when somebody who waits should look again.
    changed: Notify,
}

#[derive(Debug)]
struct State {
    gates: Gates,
    /// Permits given and not yet dropped.
    under_way: usize,
    /// Those of them whose calls wait for another to end, in the order in which they may begin.
    ahead: VecDeque<oneshot::Sender<()>>,
    /// How many of these there may be.
    most_ahead: usize,
    /// Most calls under way while Claude is overloaded, else none.
    backed_off: Option<f64>,
    /// Most calls under way, whatever the limits allow.
    workers: usize,
    /// How long a call takes: a running mean, in seconds.
    usual_seconds: f64,
    backed_off_at: Option<Instant>,
    /// The question that met the last overload.
    overloaded_by: Option<u64>,
    /// An answer came, so the account's limits are known as far as they are told.
    told: bool,
    /// Running means of the tokens of a call.
    usual_input: f64,
    usual_output: f64,
    /// Running means of a model's input tokens by the byte.
    input_per_byte: HashMap<String, f64>,
    /// How many callers a limit keeps waiting for a permit.
    waiting: usize,
}

/// Permission to make one call. Settle it with what the call needed; one that is dropped unsettled counts as not used.
#[derive(Debug)]
pub struct Permit {
    limits: Limits,
    /// What it is taken from.
    buckets: Arc<Buckets>,
    taken: Tokens,
    /// Tells when the call may be made, if not yet.
    turn: Option<oneshot::Receiver<()>>,
    /// None: not used.
    used: Option<Tokens>,
    /// The call's model and its input in bytes, once they are known.
    input: Option<(String, usize)>,
    /// The call finds out whether the closed gate can be opened.
    is_probe: bool,
    /// It does so for the gate of this model.
    probes_model: Option<String>,
    kept: Option<Kept>,
}

/// A call's part of the daily budget. To be dropped once the ledger has what the call cost, and not before.
#[derive(Debug)]
pub struct Kept {
    limits: Limits,
    // Dropped before whoever waits is told.
    reservation: Option<Reservation>,
}

/// Whether the daily budget has room for a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// It has, and so much is kept for it.
    Yes,
    /// Not now, and the next permit will be for a call of this size.
    NotNow,
    /// Not for a call of this size: smaller ones may fit.
    TooLarge,
    /// Nobody can tell: money is bounded, and the model has no price.
    NoPrice,
}

/// Why there is no permit, and so what to wait for.
enum Refusal {
    /// A limit, for so long.
    For(Duration),
    /// A limit that only a change can lift.
    UntilChanged,
    /// As many calls are under way, and as many jobs claimed ahead, as may be.
    AllBusy,
}

/// Somebody whom a limit keeps waiting for a permit; counted until this is dropped.
struct Waiting<'a>(&'a Inner);

impl Limits {
    /// At most so much a minute, most of it by `usual_model`; never more than `workers` calls at once, and no more a day
    /// than the budget has.
    pub fn new(caps: RateCaps, workers: usize, budget: Option<Budget>, usual_model: &str) -> Limits {
        Limits(Arc::new(Inner {
            budget: budget.map(Arc::new),
            usual: Arc::new(Buckets::new(caps)),
            usual_model: usual_model.to_owned(),
            others: Mutex::default(),
            state: Mutex::new(State {
                gates: Gates::default(),
                under_way: 0,
                ahead: VecDeque::new(),
                most_ahead: 0,
                backed_off: None,
                workers,
                usual_seconds: USUAL_SECONDS,
                backed_off_at: None,
                overloaded_by: None,
                told: false,
                usual_input: f64::from(USUAL_TOKENS.input),
                usual_output: f64::from(USUAL_TOKENS.output),
                input_per_byte: HashMap::new(),
                waiting: 0,
            }),
            reach: Mutex::default(),
            changed: Notify::new(),
        }))
    }

    /// A call of this question found no connection. Returns whether Claude counts as unreachable from now on.
    pub fn connection_failed(&self, question: u64, reason: &'static str, detail: &str) -> bool {
        self.0.reach.lock().failed(question, reason, detail, Instant::now())
    }

    /// A call was answered, if only by an error. Returns whether Claude counted as unreachable until now.
    pub fn connected(&self) -> bool {
        self.0.reach.lock().answered(Instant::now())
    }

    /// The calls that found no connection, if Claude counts as unreachable.
    pub fn unreachable(&self) -> Option<Unreachable> {
        self.0.reach.lock().unreachable(Instant::now()).cloned()
    }

    /// Waits until one call may be made.
    pub async fn permit(&self) -> Permit {
        let mut waiting = None;
        loop {
            let changed = self.0.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let wait = match self.take() {
                Ok(permit) => return permit,
                Err(Refusal::For(wait)) => Some(wait),
                Err(Refusal::UntilChanged) => None,
                Err(Refusal::AllBusy) => {
                    waiting = None;
                    changed.await;
                    continue;
                }
            };
            waiting.get_or_insert_with(|| Waiting::new(&self.0));
            tokio::select! {
                () = async {
                    match wait {
                        Some(wait) => tokio::time::sleep(wait).await,
                        None => std::future::pending().await,
                    }
                } => {}
                () = changed => {}
            }
        }
    }

    /// A permit for one call, if one can be had at this moment.
    pub fn try_permit(&self) -> Option<Permit> {
        self.take().ok()
    }

    /// A permit, or why there is none.
    fn take(&self) -> Result<Permit, Refusal> {
        let inner = &self.0;
        let mut state = inner.state.lock();
        let is_probe = match state.gates.service.admit(Instant::now()) {
            Admission::Open => false,
            Admission::Probe => true,
            Admission::Wait(wait) => return Err(Refusal::For(wait)),
            Admission::Probing => return Err(Refusal::UntilChanged),
        };
        // Those that wait for their turn come first. A probe waits for no call to end: nobody can say when one will.
        let allowed = self.allowed(&state);
        let is_ahead = !is_probe && (!state.has_turn(allowed) || !state.ahead.is_empty());
        if is_ahead {
            if state.backed_off.is_some() {
                return Err(Refusal::UntilChanged);
            }
            if state.ahead.len() >= state.most_ahead {
                return Err(Refusal::AllBusy);
            }
        }
        if !is_probe && !state.told && state.under_way >= FIRST_CALLS {
            return Err(Refusal::UntilChanged);
        }
        let kept = match &inner.budget {
            None => None,
            Some(budget) => Some(budget.reserve().ok_or(Refusal::For(BUDGET_POLL))?),
        };
        let taken = Tokens { input: whole(state.usual_input), output: whole(state.usual_output) };
        let buckets = Arc::clone(&inner.usual);
        buckets.take(taken).map_err(Refusal::For)?;
        state.under_way += 1;
        if is_probe {
            state.gates.service.begin_probe();
        }
        let turn = is_ahead.then(|| {
            let (give, turn) = oneshot::channel();
            state.ahead.push_back(give);
            turn
        });
        drop(state);
        let kept = kept.map(|reservation| Kept { limits: self.clone(), reservation: Some(reservation) });
        Ok(Permit {
            limits: self.clone(),
            buckets,
            taken,
            turn,
            used: None,
            input: None,
            is_probe,
            probes_model: None,
            kept,
        })
    }

    /// Has up to `most` permits more given while as many calls are under way as may be; none while Claude is overloaded
    /// or the gate is closed.
    pub fn claim_ahead(&self, most: usize) {
        let mut state = self.0.state.lock();
        let is_more = most > state.most_ahead;
        state.most_ahead = most;
        drop(state);
        if is_more {
            self.0.changed.notify_waiters();
        }
    }

    /// The limits that count: what the upstream told, or the operator's cap where that is less.
    pub fn per_minute(&self) -> PerMinute {
        PerMinute {
            requests: self.0.usual.requests.per_minute(),
            input_tokens: self.0.usual.input_tokens.per_minute(),
            output_tokens: self.0.usual.output_tokens.per_minute(),
        }
    }

    /// The operator's caps.
    pub fn caps(&self) -> RateCaps {
        RateCaps {
            requests: self.0.usual.requests.cap(),
            input_tokens: self.0.usual.input_tokens.cap(),
            output_tokens: self.0.usual.output_tokens.cap(),
        }
    }

    /// Changes the operator's caps.
    pub fn set_caps(&self, caps: RateCaps) {
        self.0.usual.set(caps);
        self.0.others.lock().values().for_each(|buckets| buckets.set(caps));
        self.0.changed.notify_waiters();
    }

    /// Records the limits of a model that the head of an answer named. Its call began at `called_at`: answers overtake
    /// each other, and what the later call heard counts.
    pub fn learn(
        &self,
        model: &str,
        requests: Option<u64>,
        input_tokens: Option<u64>,
        output_tokens: Option<u64>,
        called_at: Instant,
    ) {
        if requests.or(input_tokens).or(output_tokens).is_none() {
            return;
        }
        let buckets = if model == self.0.usual_model { Some(Arc::clone(&self.0.usual)) } else { self.others_of(model) };
        if let Some(buckets) = buckets {
            buckets.learn([requests, input_tokens, output_tokens], called_at);
        }
        self.first_answer(&mut self.0.state.lock());
    }

    /// The buckets of a model other than the usual, made if there is room for them.
    fn others_of(&self, model: &str) -> Option<Arc<Buckets>> {
        let mut others = self.0.others.lock();
        let has_room = others.len() < MAX_MODELS;
        match others.entry(model.to_owned()) {
            Entry::Occupied(known) => Some(Arc::clone(known.get())),
            Entry::Vacant(place) if has_room => Some(Arc::clone(place.insert(Arc::new(Buckets::new(self.caps()))))),
            Entry::Vacant(_) => None,
        }
    }

    /// Claude is overloaded: fewer calls at once, until it answers again. The same question twice in a row counts once: it
    /// may be the only one.
    pub fn overloaded(&self, question: u64) {
        let mut state = self.0.state.lock();
        if state.overloaded_by.replace(question) == Some(question) {
            return;
        }
        let now = Instant::now();
        if state.backed_off_at.is_none_or(|at| now - at >= BACKOFF_PAUSE) {
            state.backed_off_at = Some(now);
            state.backed_off =
                Some((self.most_at_once(&state).min(state.backed_off.unwrap_or(f64::MAX)) * BACKOFF).max(1.0));
            state.ahead.clear();
        }
    }

    /// A call was answered. Allows one more at once per round of as many answers as calls are allowed (additive
    /// increase).
    pub fn answered(&self) {
        let mut state = self.0.state.lock();
        self.first_answer(&mut state);
        if let Some(allowed) = state.backed_off {
            let more = allowed + 1.0 / allowed;
            state.backed_off = Some(more).filter(|more| *more < self.most_at_once(&state));
            let most = self.allowed(&state);
            state.give_turns(most);
            drop(state);
            self.0.changed.notify_one();
        }
    }

    fn first_answer(&self, state: &mut State) {
        if !state.told {
            state.told = true;
            self.0.changed.notify_waiters();
        }
    }

    /// Most calls at once at the moment.
    pub fn calls_at_once(&self) -> usize {
        let state = self.0.state.lock();
        usize::try_from(whole(self.allowed(&state))).unwrap_or(state.workers)
    }

    /// Most calls at once at the moment.
    fn allowed(&self, state: &State) -> f64 {
        let most = self.most_at_once(state);
        state.backed_off.map_or(most, |allowed| allowed.min(most)).floor()
    }

    /// Most calls at once while Claude is not overloaded: as many as the limits let begin while one call lasts, and some
    /// more, as calls differ in length.
    fn most_at_once(&self, state: &State) -> f64 {
        let begun = self.rate(state) * state.usual_seconds * AT_ONCE_RESERVE;
        begun.ceil().max(LEAST_AT_ONCE).min(state.workers as f64)
    }

    /// Calls allowed a second, over time, by whichever limit is the narrowest.
    pub fn calls_per_second(&self) -> f64 {
        self.rate(&self.0.state.lock())
    }

    fn rate(&self, state: &State) -> f64 {
        let per_minute = self.per_minute();
        let calls = f64::from(per_minute.requests.get());
        let by_input = f64::from(per_minute.input_tokens.get()) / state.usual_input.max(1.0);
        let by_output = f64::from(per_minute.output_tokens.get()) / state.usual_output.max(1.0);
        calls.min(by_input).min(by_output) / 60.0
    }

    /// True while a limit keeps somebody waiting who wants to call.
    pub fn is_exhausted(&self) -> bool {
        self.0.state.lock().waiting > 0
    }

    /// A call met a failure that may concern others: closes the gate if enough different questions met it. `named` is the
    /// model if the caller named it and the failure concerns that alone.
    pub fn block(&self, named: Option<&str>, block: &Block<'_>) -> Ruling {
        let mut state = self.0.state.lock();
        let ruling = state.gates.block(named, block, Instant::now(), rand::random());
        if ruling != Ruling::Alone && named.is_none() {
            state.ahead.clear();
            drop(state);
            self.0.changed.notify_waiters();
        }
        ruling
    }

    /// A call that began at `begun` is being answered; `named` is its model if the caller named it. Returns whether that
    /// opened the gate.
    pub fn reached(&self, named: Option<&str>, question: u64, begun: Instant) -> bool {
        let has_opened = self.0.state.lock().gates.answered(named, question, begun);
        if has_opened {
            self.0.changed.notify_waiters();
        }
        has_opened
    }

    /// The daily budget, if there is one.
    pub fn budget(&self) -> Option<Status> {
        self.0.budget.as_ref().map(|budget| budget.status())
    }

    /// The gate, if it is closed.
    pub fn gate(&self) -> Option<Closed> {
        self.0.state.lock().gates.service.closed(Instant::now()).cloned()
    }
}

impl Buckets {
    fn new(caps: RateCaps) -> Buckets {
        Buckets {
            requests: Bucket::new(caps.requests, START_TIER.requests, REQUEST_BURST),
            input_tokens: Bucket::new(caps.input_tokens, START_TIER.input_tokens, TOKEN_BURST),
            output_tokens: Bucket::new(caps.output_tokens, START_TIER.output_tokens, TOKEN_BURST),
        }
    }

    /// Takes what a call needs, all of it or nothing.
    fn take(&self, tokens: Tokens) -> Result<(), Duration> {
        self.requests.take(1)?;
        self.input_tokens.take(tokens.input).inspect_err(|_| self.requests.settle(1, 0))?;
        self.output_tokens.take(tokens.output).inspect_err(|_| {
            self.requests.settle(1, 0);
            self.input_tokens.settle(tokens.input, 0);
        })
    }

    /// Gives back what was taken for a call that is not made.
    fn give_back(&self, taken: Tokens) {
        self.requests.settle(1, 0);
        self.settle(taken, Tokens::default());
    }

    fn settle(&self, taken: Tokens, used: Tokens) {
        self.input_tokens.settle(taken.input, used.input);
        self.output_tokens.settle(taken.output, used.output);
    }

    fn set(&self, caps: RateCaps) {
        self.requests.set(caps.requests);
        self.input_tokens.set(caps.input_tokens);
        self.output_tokens.set(caps.output_tokens);
    }

    /// Records the limits of requests, input and output tokens, each if it is known.
    fn learn(&self, limits: [Option<u64>; 3], called_at: Instant) {
        for (bucket, limit) in [&self.requests, &self.input_tokens, &self.output_tokens].into_iter().zip(limits) {
            let limit = limit.map(|limit| u32::try_from(limit).unwrap_or(u32::MAX)).and_then(NonZeroU32::new);
            limit.into_iter().for_each(|limit| bucket.learn(limit, called_at));
        }
    }
}

impl State {
    fn learn_seconds(&mut self, took: Duration) {
        self.usual_seconds += NEWEST_WEIGHT * (took.as_secs_f64().max(1.0) - self.usual_seconds);
    }

    /// Whether one more call may be under way.
    fn has_turn(&self, allowed: f64) -> bool {
        ((self.under_way - self.ahead.len()) as f64) < allowed
    }

    /// Lets the permits given ahead make their calls, as far as more calls may be under way.
    fn give_turns(&mut self, allowed: f64) {
        // Whoever has given up has dropped, or is about to drop, its permit.
        self.ahead.retain(|turn| !turn.is_closed());
        while !self.ahead.is_empty() && self.has_turn(allowed) {
            self.ahead.pop_front().map(|turn| turn.send(()));
        }
    }
}

impl Permit {
    /// Waits until the call may be made. False if it must not be, as Claude has turned others away meanwhile.
    pub async fn turn(&mut self) -> bool {
        match self.turn.take() {
            Some(turn) => turn.await.is_ok(),
            None => true,
        }
    }

    /// Whether the call finds out if the closed gate can be opened.
    pub fn is_probe(&self) -> bool {
        self.is_probe || self.probes_model.is_some()
    }

    /// Asks for the call of a model that its caller named. Gives how long to wait if its gate is closed.
    pub fn admit_named(&mut self, model: &str) -> Option<Duration> {
        match self.limits.0.state.lock().gates.admit_named(model, Instant::now()) {
            Admission::Open => None,
            Admission::Probe => {
                self.probes_model = Some(model.to_owned());
                None
            }
            Admission::Wait(wait) => Some(wait),
            Admission::Probing => Some(PROBE_POLL),
        }
    }

    /// Keeps the call's part of the daily budget, now that it is known which call it is; `need` is what it needs at most.
    pub fn make_room(&mut self, need: impl FnOnce() -> Need) -> Room {
        let Some(reservation) = self.kept.as_mut().and_then(|kept| kept.reservation.as_mut()) else { return Room::Yes };
        let need = need();
        if need.nanodollars.is_none() && reservation.needs_price() {
            return Room::NoPrice;
        }
        match reservation.adjust(need) {
            Ok(()) => Room::Yes,
            Err(PutOff::Queue) => Room::NotNow,
            Err(PutOff::Call) => Room::TooLarge,
        }
    }

    /// The call's part of the daily budget, to be kept for longer than the permit; none without a budget.
    pub fn keep(&mut self) -> Option<Kept> {
        self.kept.take()
    }

    /// Now that the call is known, takes what its input is likely to need instead of what is usual: as many tokens as the
    /// model has needed for so many bytes. If that is too little, later calls make up for it, so the limit holds over
    /// time.
    ///
    /// # Errors
    /// How long to wait, where the model has limits of its own and they allow no call now.
    pub fn expect(&mut self, model: &str, bytes: usize) -> Result<(), Duration> {
        let own = self.limits.0.others.lock().get(model).map(Arc::clone);
        if let Some(own) = own.filter(|own| !Arc::ptr_eq(own, &self.buckets)) {
            own.take(self.taken)?;
            self.buckets.give_back(self.taken);
            self.buckets = own;
        }
        let per_byte = self.limits.0.state.lock().input_per_byte.get(model).copied();
        if let Some(expected) = per_byte.map(|per_byte| whole(per_byte * bytes as f64)) {
            self.buckets.input_tokens.settle(self.taken.input, expected);
            self.taken.input = expected;
        }
        self.input = Some((model.to_owned(), bytes));
        Ok(())
    }

    /// The call failed and needed so many tokens; if that is not known, it counts with what was taken for it. A failure
    /// says nothing of what calls usually need.
    pub fn settle_failed(mut self, tokens: Option<Tokens>) {
        self.used = Some(tokens.unwrap_or(self.taken));
    }

    /// The call took so long and needed so many tokens; if these are not known, it counts with what was taken for it.
    pub fn settle(mut self, took: Duration, tokens: Option<Tokens>) {
        self.used = Some(tokens.unwrap_or(self.taken));
        self.limits.0.state.lock().learn_seconds(took);
        let Some(tokens) = tokens.filter(|tokens| *tokens != Tokens::default()) else { return };
        let mut state = self.limits.0.state.lock();
        state.usual_input += NEWEST_WEIGHT * (f64::from(tokens.input) - state.usual_input);
        state.usual_output += NEWEST_WEIGHT * (f64::from(tokens.output) - state.usual_output);
        if let Some((model, bytes)) = self.input.clone().filter(|_| tokens.input > 0) {
            let ratio = f64::from(tokens.input) / bytes.max(1) as f64;
            let has_room = state.input_per_byte.len() < MAX_MODELS;
            match state.input_per_byte.entry(model) {
                Entry::Occupied(mut mean) => *mean.get_mut() += NEWEST_WEIGHT * (ratio - *mean.get()),
                Entry::Vacant(place) if has_room => drop(place.insert(ratio)),
                Entry::Vacant(_) => {}
            }
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let inner = &self.limits.0;
        drop(self.turn.take());
        match self.used {
            None => self.buckets.give_back(self.taken),
            Some(used) => self.buckets.settle(self.taken, used),
        }
        let mut state = inner.state.lock();
        state.under_way -= 1;
        if let Some(model) = &self.probes_model {
            state.gates.end_probe_named(model, Instant::now());
        }
        if self.is_probe {
            state.gates.service.end_probe(self.input.is_some() || self.used.is_some(), Instant::now());
        }
        let allowed = self.limits.allowed(&state);
        state.give_turns(allowed);
        drop(state);
        // Whoever waits for a probe to end has to look at the clock again.
        if self.is_probe { inner.changed.notify_waiters() } else { inner.changed.notify_one() }
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.reservation = None;
        self.limits.0.changed.notify_one();
    }
}

impl<'a> Waiting<'a> {
    fn new(inner: &'a Inner) -> Waiting<'a> {
        inner.state.lock().waiting += 1;
        Waiting(inner)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.state.lock().waiting -= 1;
    }
}

/// A mean of counts as a count.
fn whole(mean: f64) -> u32 {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "means of u32, so within its range")]
    {
        mean.max(0.0) as u32
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures_util::poll;

    use super::*;

    fn limits(requests: u32, workers: usize) -> Limits {
        limits_with(requests, 1_000_000_000, workers)
    }

    fn limits_with(requests: u32, input_tokens: u32, workers: usize) -> Limits {
        let limits = limits_unasked(requests, input_tokens, workers);
        limits.answered();
        limits
    }

    /// Before the first answer.
    fn limits_unasked(requests: u32, input_tokens: u32, workers: usize) -> Limits {
        let [requests, input_tokens, output_tokens] = [requests, input_tokens, 1_000_000_000].map(NonZeroU32::new);
        Limits::new(RateCaps { requests, input_tokens, output_tokens }, workers, None, "a")
    }

    /// As many permits as there are right now, held.
    fn take_all(limits: &Limits) -> Vec<Permit> {
        std::iter::from_fn(|| limits.try_permit()).take(1_000).collect()
    }

    fn block(question: u64, opens_after: Option<Duration>) -> Block<'static> {
        let (reason, detail) =
            if opens_after.is_some() { ("rate_limited", "slow down") } else { ("billing_failed", "no") };
        Block { reason, detail, signature: 1, question, witnesses: 1, is_account: true, opens_after }
    }

    #[tokio::test(start_paused = true)]
    async fn a_gate_that_two_questions_closed_for_a_time_lets_nobody_through_before() {
        let limits = limits(60_000, 8);
        for question in [1, 2] {
            limits.block(None, &block(question, Some(Duration::from_secs(20))));
        }
        assert!(limits.try_permit().is_none());
        let start = Instant::now();
        limits.permit().await;
        let waited = start.elapsed();
        assert!(waited >= Duration::from_secs(20) && waited <= Duration::from_secs(23), "{waited:?}");
        assert!(limits.gate().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_held_gate_lets_one_call_at_a_time_find_out_until_one_is_answered() {
        let limits = limits(1_000_000, 8);
        let calls = [limits.try_permit().unwrap(), limits.try_permit().unwrap()];
        for question in [1, 2] {
            limits.block(None, &block(question, None));
        }
        let start = Instant::now();
        let mut probe = limits.permit().await;
        assert!(start.elapsed() >= gate::HOLD);
        assert!(limits.try_permit().is_none(), "one at a time, whatever else is under way");
        probe.expect("a", 1).unwrap();
        probe.settle_failed(None);
        assert!(limits.try_permit().is_none(), "closed again after a vain probe");
        let unused = limits.permit().await;
        drop(unused);
        let _probe = limits.try_permit().expect("the last one made no call");
        assert!(limits.reached(None, 3, Instant::now()) && !limits.reached(None, 3, Instant::now()));
        assert!(limits.gate().is_none());
        drop(calls);
        assert_eq!(take_all(&limits).len(), 7);
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_waits_for_a_permit_gets_one_when_the_gate_opens_early() {
        let limits = limits(60_000, 8);
        limits.block(None, &block(1, Some(Duration::from_hours(1))));
        let start = Instant::now();
        let probe = limits.permit().await;
        assert!(start.elapsed() < Duration::from_secs(2), "one question alone met it");
        let mut waiting = pin!(limits.permit());
        assert!(poll!(&mut waiting).is_pending());
        limits.reached(None, 2, Instant::now());
        waiting.await;
        assert!(start.elapsed() < Duration::from_secs(2));
        drop(probe);
    }

    #[tokio::test]
    async fn what_a_call_needs_is_told_from_its_length_by_what_its_model_needed_before() {
        let limits = limits_with(60_000, 1_000_000, 8);
        let call = |model: &str, bytes, needed| {
            let mut permit = limits.try_permit().unwrap();
            permit.expect(model, bytes).unwrap();
            let taken = permit.taken.input;
            permit.settle(Duration::from_secs(20), Some(Tokens { input: needed, output: 1 }));
            taken
        };
        assert_eq!(call("a", 1_000, 500), USUAL_TOKENS.input, "nothing is known yet");
        assert_eq!(call("a", 4_000, 2_000), 2_000, "half a token by the byte");
        assert_eq!(call("b", 4_000, 800), 5_105, "each model has its own; the mean of all moved");
        assert_eq!(call("b", 4_000, 0), 800);
        assert_eq!(call("b", 4_000, 800), 800, "a call turned away taught nothing");
        for n in 0..2 * MAX_MODELS {
            call(&n.to_string(), 1, 1);
        }
        assert_eq!(limits.0.state.lock().input_per_byte.len(), MAX_MODELS);
    }

    #[tokio::test]
    async fn the_rate_is_spread_evenly_with_a_burst_of_half_a_second() {
        let limits = limits(240, 1_000);
        let held = take_all(&limits);
        assert!((2..=3).contains(&held.len()), "{} calls at once at 240 a minute", held.len());
        assert!(!limits.is_exhausted());
        let waiting = tokio::spawn({
            let limits = limits.clone();
            async move { limits.permit().await }
        });
        while !limits.is_exhausted() {
            tokio::task::yield_now().await;
        }
        held.into_iter().for_each(|permit| permit.settle(Duration::from_secs(20), None));
        waiting.await.unwrap().settle(Duration::from_secs(20), None);
        assert!(!limits.is_exhausted());
    }

    #[tokio::test]
    async fn a_permit_that_was_not_used_is_given_back() {
        let limits = limits(60, 8);
        let unused = limits.try_permit().unwrap();
        assert!(limits.try_permit().is_none());
        drop(unused);
        limits.try_permit().unwrap().settle(Duration::from_secs(20), None);
        assert!(limits.try_permit().is_none(), "this one was");
    }

    #[tokio::test]
    async fn tokens_are_taken_by_what_is_usual_and_settled_with_what_was_used() {
        let limits = limits_with(60_000, USUAL_TOKENS.input * 10, 1_000);
        let held = take_all(&limits);
        assert_eq!(held.len(), 10, "a minute's worth");
        assert!(limits.try_permit().is_none());
        held.into_iter()
            .for_each(|permit| permit.settle(Duration::from_secs(20), Some(Tokens { input: 600, output: 1 })));
        let more = take_all(&limits).len();
        assert!(more > 10, "a tenth was used, so calls are cheaper now and most was given back: {more}");
    }

    #[tokio::test]
    async fn an_overload_halves_the_calls_at_once_and_answers_bring_them_back() {
        let limits = limits(1_000_000, 8);
        limits.overloaded(1);
        limits.overloaded(2);
        assert_eq!(limits.calls_at_once(), 4, "two at the same moment are one");
        let held = take_all(&limits);
        assert_eq!(held.len(), 4);
        (0..4).for_each(|_| limits.answered());
        assert_eq!(limits.calls_at_once(), 4);
        limits.answered();
        assert_eq!(limits.calls_at_once(), 5, "one more for a whole round");
        (0..100).for_each(|_| limits.answered());
        assert_eq!(limits.calls_at_once(), 8);
    }

    #[tokio::test(start_paused = true)]
    async fn an_overload_that_one_question_meets_again_and_again_counts_once() {
        let limits = limits(1_000_000, 8);
        for _ in 0..5 {
            limits.overloaded(1);
            tokio::time::advance(BACKOFF_PAUSE).await;
        }
        assert_eq!(limits.calls_at_once(), 4);
        limits.overloaded(2);
        assert_eq!(limits.calls_at_once(), 2);
    }

    #[tokio::test]
    async fn a_freed_place_lets_the_next_one_in() {
        let limits = limits(1_000_000, 1);
        let held = limits.permit().await;
        let mut next = pin!(limits.permit());
        assert!(poll!(&mut next).is_pending());
        assert!(!limits.is_exhausted(), "no limit keeps it, only a worker");
        held.settle(Duration::from_secs(20), None);
        next.await;
    }

    #[tokio::test]
    async fn a_call_that_was_claimed_ahead_is_made_when_another_ends_and_before_any_later_one() {
        let limits = limits(1_000_000, 2);
        let mut calls = take_all(&limits);
        limits.claim_ahead(2);
        let mut ahead = take_all(&limits);
        assert_eq!((calls.len(), ahead.len()), (2, 2));
        let mut second = ahead.pop().unwrap();
        let mut first = ahead.pop().unwrap();
        assert!(poll!(pin!(calls[0].turn())).is_ready(), "a call that may be made waits for nothing");
        let mut turn = Box::pin(first.turn());
        assert!(poll!(&mut turn).is_pending());
        calls.pop().unwrap().settle(Duration::from_secs(20), None);
        assert!(turn.await);
        let late = limits.try_permit().expect("there is a place ahead again");
        drop(first);
        assert!(second.turn().await, "and not the one that came later");
        drop((second, calls));
        assert!(limits.try_permit().is_some_and(|permit| permit.turn.is_none()));
        drop(late);
        assert_eq!(limits.0.state.lock().under_way, 0);
    }

    #[tokio::test]
    async fn who_gives_up_a_place_ahead_keeps_nobody_from_a_turn() {
        let limits = limits(1_000_000, 1);
        let call = limits.try_permit().unwrap();
        limits.claim_ahead(2);
        let (mut gone, mut next) = (limits.try_permit().unwrap(), limits.try_permit().unwrap());
        assert!(poll!(pin!(gone.turn())).is_pending());
        drop(gone);
        call.settle(Duration::from_secs(20), None);
        assert!(next.turn().await);
    }

    #[tokio::test]
    async fn nothing_is_claimed_ahead_of_a_closed_gate_or_an_overload_and_what_was_is_given_back() {
        let limits = limits(1_000_000, 2);
        limits.claim_ahead(1);
        let mut calls = take_all(&limits);
        let mut ahead = calls.pop().unwrap();
        limits.block(None, &block(1, Some(Duration::from_secs(20))));
        assert!(!ahead.turn().await);
        let limits = limits_with(1_000_000, 1_000_000_000, 2);
        limits.claim_ahead(1);
        let mut calls = take_all(&limits);
        let mut ahead = calls.pop().unwrap();
        limits.overloaded(1);
        assert!(!ahead.turn().await);
        drop((ahead, calls));
        assert_eq!(take_all(&limits).len(), 1);
    }

    #[tokio::test]
    async fn few_calls_are_made_at_once_before_the_first_answer_has_told_the_limits() {
        let limits = limits_unasked(1_000_000, 1_000_000_000, 64);
        let held = take_all(&limits);
        assert_eq!(held.len(), FIRST_CALLS);
        limits.learn("a", Some(1_000_000), None, None, Instant::now());
        assert_eq!(take_all(&limits).len(), 64 - FIRST_CALLS);
        let silent = limits_unasked(1_000_000, 1_000_000_000, 64);
        silent.answered();
        assert_eq!(take_all(&silent).len(), 64, "an upstream may tell no limits");
    }

    #[tokio::test]
    async fn failures_teach_nothing_of_what_a_call_needs() {
        let limits = limits_with(60_000, 1_000_000, 1_000);
        let (rate, at_once) = (limits.calls_per_second(), limits.calls_at_once());
        for tokens in [Some(Tokens::default()), None, Some(Tokens { input: 9, output: 1 })] {
            for _ in 0..30 {
                limits.try_permit().unwrap().settle_failed(tokens);
            }
        }
        limits.try_permit().unwrap().settle(Duration::from_secs(20), Some(Tokens::default()));
        assert_eq!((limits.calls_per_second(), limits.calls_at_once()), (rate, at_once), "nor of the time it takes");
        let permit = limits.try_permit().unwrap();
        assert_eq!(permit.taken, USUAL_TOKENS);
    }

    #[tokio::test]
    async fn each_model_has_the_limits_that_the_upstream_named_for_it() {
        let limits = limits_with(60_000, 1_000_000_000, 1_000);
        let ask = |model: &str| limits.try_permit().unwrap().expect(model, 1_000).map(drop);
        assert!(ask("b").is_ok(), "nothing is known of it yet");
        limits.learn("b", Some(60), None, None, Instant::now());
        assert_eq!(limits.per_minute().requests.get(), 60_000, "the others keep theirs");
        let waits: Vec<_> = (0..3)
            .filter_map(|_| {
                let mut permit = limits.try_permit().unwrap();
                let wait = permit.expect("b", 1_000).err();
                if wait.is_none() {
                    permit.settle_failed(None);
                }
                wait
            })
            .collect();
        assert!(waits.len() >= 2 && waits.iter().all(|wait| *wait <= Duration::from_secs(2)), "{waits:?}");
        assert!(ask("a").is_ok());
    }

    #[tokio::test]
    async fn as_many_calls_run_at_once_as_the_limits_and_their_length_need() {
        let limits = limits(600, MAX_CALLS_AT_ONCE);
        assert_eq!(limits.calls_at_once(), 300, "ten a second, 20 s each, and half as many more");
        (0..100).for_each(|_| limits.0.state.lock().learn_seconds(Duration::from_secs(10)));
        assert_eq!(limits.calls_at_once(), 151);
        limits.learn("a", Some(60), None, None, Instant::now());
        assert_eq!(limits.calls_at_once(), 16, "as few as any account allows");
        assert_eq!(limits_unasked(600, 1_000_000_000, 8).calls_at_once(), 8, "never more than are set");
    }

    #[test]
    fn the_narrowest_limit_tells_the_rate() {
        let limits = limits(600, 8);
        assert_eq!(limits.calls_per_second(), 10.0);
        limits.learn("a", Some(300), None, Some(u64::from(USUAL_TOKENS.output) * 60), Instant::now());
        assert_eq!(limits.calls_per_second(), 1.0);
        assert_eq!(limits.per_minute().requests.get(), 300);
        assert_eq!(limits.caps().requests.map_or(0, u32::from), 600);
    }
}
