//! What is known of one model: its limits per minute, how many of its calls are under way, what they usually need, and whether
//! they are stopped.

use std::{collections::VecDeque, num::NonZeroU32, time::Duration};

use tokio::{sync::oneshot, time::Instant};

use super::{
    PerMinute, Tokens,
    bucket::Bucket,
    gate::{Admission, Gate},
};
use crate::config::values::RateCaps;

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

/// What a call is taken to need before any has been seen: a question with the prompts and the schema, a memo.
pub(super) const USUAL_TOKENS: Tokens = Tokens { input: 6_000, output: 4_000 };

/// Most calls at once until the first answer has told the account's limits: few enough for any account, while
/// sixty-four could be what one allows in three seconds.
pub(super) const FIRST_CALLS: usize = 8;

/// The weight of the newest call in a running mean.
const NEWEST_WEIGHT: f64 = 0.1;

/// What is left of the calls under way after an overload: half, as congestion control has it.
const BACKOFF: f64 = 0.5;

/// Overloads that follow one within this time tell of the same rush of calls, so they count as one with it.
pub(super) const BACKOFF_PAUSE: Duration = Duration::from_secs(1);

/// The limits of Anthropic's lowest tier, which hold until the first answer has told the account's.
const START_TIER: PerMinute =
    PerMinute { requests: not_zero(1_000), input_tokens: not_zero(2_000_000), output_tokens: not_zero(400_000) };

const fn not_zero(number: u32) -> NonZeroU32 {
    NonZeroU32::new(number).expect("not zero")
}

/// A model.
#[derive(Debug)]
pub(super) struct Model {
    /// Empty until a call has named it.
    pub(super) name: String,
    pub(super) gate: Gate,
    requests: Bucket,
    input_tokens: Bucket,
    output_tokens: Bucket,
    pub(super) used_at: Instant,
    /// Permits that reserve a call and are not yet dropped.
    pub(super) under_way: usize,
    /// Those of them whose calls wait for another to end, in the order in which they may begin.
    pub(super) ahead: VecDeque<oneshot::Sender<()>>,
    /// Most calls under way while the model is overloaded.
    backed_off: Option<f64>,
    backed_off_at: Option<Instant>,
    /// The question that met the last overload.
    overloaded_by: Option<u64>,
    /// An answer came, so the limits are known as far as they are told.
    told: bool,
    /// Running means: how long a call takes, in seconds, and its tokens.
    usual_seconds: f64,
    usual_input: f64,
    usual_output: f64,
    /// Running mean of input tokens by the byte.
    input_per_byte: Option<f64>,
}

/// Why no call of a model may begin.
#[derive(Clone, Copy, Debug)]
pub(super) enum Refusal {
    /// A limit or the gate, for so long.
    For(Duration),
    /// A limit or the gate, until something changes.
    UntilChanged,
    /// As many calls are under way as may be.
    Busy,
}

impl Model {
    pub(super) fn new(caps: RateCaps) -> Model {
        Model {
            name: String::new(),
            gate: Gate::default(),
            requests: Bucket::new(caps.requests, START_TIER.requests, REQUEST_BURST),
            input_tokens: Bucket::new(caps.input_tokens, START_TIER.input_tokens, TOKEN_BURST),
            output_tokens: Bucket::new(caps.output_tokens, START_TIER.output_tokens, TOKEN_BURST),
            used_at: Instant::now(),
            under_way: 0,
            ahead: VecDeque::new(),
            backed_off: None,
            backed_off_at: None,
            overloaded_by: None,
            told: false,
            usual_seconds: USUAL_SECONDS,
            usual_input: f64::from(USUAL_TOKENS.input),
            usual_output: f64::from(USUAL_TOKENS.output),
            input_per_byte: None,
        }
    }

    /// Whether a call may begin, as far as the gate and the calls under way allow it; true if it is a probe. `any` is a
    /// probe of the whole account.
    pub(super) fn admit(&mut self, any: bool, workers: usize, now: Instant) -> Result<bool, Refusal> {
        let is_probe = match self.gate.admit(now) {
            Admission::Open => false,
            Admission::Probe => true,
            Admission::Wait(wait) => return Err(Refusal::For(wait)),
            Admission::Probing => return Err(Refusal::UntilChanged),
        };
        // A probe waits for no call to end: nobody can say when one will. Those that wait for their turn come first.
        match () {
            () if is_probe || any => Ok(is_probe),
            () if !self.told && self.under_way >= FIRST_CALLS => Err(Refusal::UntilChanged),
            () if self.has_turn(workers) && self.ahead.is_empty() => Ok(false),
            () if self.backed_off.is_some() => Err(Refusal::UntilChanged),
            () => Err(Refusal::Busy),
        }
    }

    /// Whether one more call may be under way.
    pub(super) fn has_turn(&self, workers: usize) -> bool {
        ((self.under_way - self.ahead.len()) as f64) < self.at_once(workers)
    }

    /// What a call usually needs.
    pub(super) fn usual(&self) -> Tokens {
        Tokens { input: whole(self.usual_input), output: whole(self.usual_output) }
    }

    /// Takes what a call needs, all of it or nothing.
    pub(super) fn take(&self, tokens: Tokens) -> Result<(), Duration> {
        self.requests.take(1)?;
        self.input_tokens.take(tokens.input).inspect_err(|_| self.requests.settle(1, 0))?;
        self.output_tokens.take(tokens.output).inspect_err(|_| {
            self.requests.settle(1, 0);
            self.input_tokens.settle(tokens.input, 0);
        })
    }

    /// Gives back what was taken for a call that is not made.
    pub(super) fn give_back(&self, taken: Tokens) {
        self.requests.settle(1, 0);
        self.settle(taken, Tokens::default());
    }

    /// Corrects what was taken to what was used.
    pub(super) fn settle(&self, taken: Tokens, used: Tokens) {
        self.input_tokens.settle(taken.input, used.input);
        self.output_tokens.settle(taken.output, used.output);
    }

    /// Corrects the input that was taken to what so many bytes are likely to need, and gives that.
    pub(super) fn expect(&self, taken: Tokens, bytes: usize) -> Tokens {
        let Some(per_byte) = self.input_per_byte else { return taken };
        let input = whole(per_byte * bytes as f64);
        self.input_tokens.settle(taken.input, input);
        Tokens { input, ..taken }
    }

    /// The limits that count: what the upstream told, or the operator's cap where that is less.
    pub(super) fn per_minute(&self) -> PerMinute {
        PerMinute {
            requests: self.requests.per_minute(),
            input_tokens: self.input_tokens.per_minute(),
            output_tokens: self.output_tokens.per_minute(),
        }
    }

    pub(super) fn set(&self, caps: RateCaps) {
        self.requests.set(caps.requests);
        self.input_tokens.set(caps.input_tokens);
        self.output_tokens.set(caps.output_tokens);
    }

    /// Records the limits of requests, input and output tokens, each if it is known.
    pub(super) fn learn(&mut self, limits: [Option<u64>; 3], called_at: Instant) {
        for (bucket, limit) in [&self.requests, &self.input_tokens, &self.output_tokens].into_iter().zip(limits) {
            let limit = limit.map(|limit| u32::try_from(limit).unwrap_or(u32::MAX)).and_then(NonZeroU32::new);
            limit.into_iter().for_each(|limit| bucket.learn(limit, called_at));
        }
        self.told = true;
    }

    /// The model is overloaded: fewer calls at once, until it answers again. It takes two questions, as one may be the only one
    /// that is turned away.
    pub(super) fn overloaded(&mut self, question: u64, workers: usize, now: Instant) {
        if self.overloaded_by.replace(question).is_none_or(|before| before == question) {
            return;
        }
        if self.backed_off_at.is_none_or(|at| now - at >= BACKOFF_PAUSE) {
            self.backed_off_at = Some(now);
            let before = self.most_at_once(workers).min(self.backed_off.unwrap_or(f64::MAX));
            self.backed_off = Some((before * BACKOFF).max(1.0));
            self.ahead.clear();
        }
    }

    /// A call was answered. Allows one more at once per round of as many answers as calls are allowed (additive increase).
    pub(super) fn answered(&mut self, workers: usize) {
        self.told = true;
        if let Some(allowed) = self.backed_off {
            let more = allowed + 1.0 / allowed;
            self.backed_off = Some(more).filter(|more| *more < self.most_at_once(workers));
        }
    }

    /// Most calls at once at the moment.
    pub(super) fn at_once(&self, workers: usize) -> f64 {
        let most = self.most_at_once(workers);
        self.backed_off.map_or(most, |allowed| allowed.min(most)).floor()
    }

    /// Most calls at once while the model is not overloaded: as many as the limits let begin while one call lasts, and some
    /// more, as calls differ in length.
    fn most_at_once(&self, workers: usize) -> f64 {
        let begun = self.rate() * self.usual_seconds * AT_ONCE_RESERVE;
        begun.ceil().max(LEAST_AT_ONCE).min(workers as f64)
    }

    /// Calls allowed a second, over time, by whichever limit is the narrowest.
    pub(super) fn rate(&self) -> f64 {
        let per_minute = self.per_minute();
        let calls = f64::from(per_minute.requests.get());
        let by_input = f64::from(per_minute.input_tokens.get()) / self.usual_input.max(1.0);
        let by_output = f64::from(per_minute.output_tokens.get()) / self.usual_output.max(1.0);
        calls.min(by_input).min(by_output) / 60.0
    }

    /// A call took so long.
    pub(super) fn learn_seconds(&mut self, took: Duration) {
        self.usual_seconds += NEWEST_WEIGHT * (took.as_secs_f64().max(1.0) - self.usual_seconds);
    }

    /// A call with so many bytes needed so many tokens.
    pub(super) fn learn_tokens(&mut self, used: Tokens, bytes: Option<usize>) {
        self.usual_input += NEWEST_WEIGHT * (f64::from(used.input) - self.usual_input);
        self.usual_output += NEWEST_WEIGHT * (f64::from(used.output) - self.usual_output);
        if let Some(bytes) = bytes.filter(|_| used.input > 0) {
            let ratio = f64::from(used.input) / bytes.max(1) as f64;
            self.input_per_byte =
                Some(self.input_per_byte.map_or(ratio, |known| known + NEWEST_WEIGHT * (ratio - known)));
        }
    }

    /// Whether an answer has told the limits.
    pub(super) fn is_told(&self) -> bool {
        self.told
    }

    /// When its last call was reserved, if none is under way and its gate is open: then only what was learnt is lost with it.
    pub(super) fn idle_since(&mut self, now: Instant) -> Option<Instant> {
        (self.under_way == 0 && self.gate.closed(now).is_none()).then_some(self.used_at)
    }
}

/// A mean of counts as a count.
pub(super) fn whole(mean: f64) -> u32 {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "means of u32, so within its range")]
    {
        mean.max(0.0) as u32
    }
}
