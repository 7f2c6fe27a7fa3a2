//! One model: its limits per minute, its gate, how many of its calls are under way, and what they usually need.

use std::{collections::VecDeque, num::NonZeroU32, time::Duration};

use tokio::{sync::oneshot, time::Instant};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    bucket::{Bucket, BucketMemo},
    gate::{Gate, GateMemo, Refusal},
};
use crate::{
    clock::{Moments, Timestamp},
    config::values::RateCaps,
    job::TokenUsage,
};

/// A limit per minute may be enforced per second, and calls that left one after the other may arrive together.
const REQUEST_BURST: Duration = Duration::from_millis(500);

/// Anthropic's buckets hold as many, and the need of a call is known only afterwards.
pub(super) const TOKEN_BURST: Duration = Duration::from_secs(60);

const USUAL_SECONDS: f64 = 20.0;

const LEAST_AT_ONCE: f64 = 16.0;

/// More calls at once than begin in the mean time of one: some last twice as long.
const AT_ONCE_RESERVE: f64 = 1.5;

/// Assumed for the first call: a question with the prompts and the schema, a memo.
pub(super) const USUAL_TOKENS: Tokens = Tokens { input: 6_000, output: 4_000 };

/// Most calls at once until the first answer has named the account's limits: few enough for any account.
pub(super) const FIRST_CALLS: usize = 8;

const NEWEST_WEIGHT: f64 = 0.1;

const BACKOFF: f64 = 0.5;

/// Overloads within this time count as one: they come from the same burst of calls.
pub(super) const BACKOFF_PAUSE: Duration = Duration::from_secs(1);

/// Anthropic's lowest tier, in force until the first answer has named the account's limits.
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

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tokens {
    /// Input tokens, without those read from the prompt cache.
    pub input: u32,
    /// Output tokens.
    pub output: u32,
}

impl From<TokenUsage> for Tokens {
    fn from(usage: TokenUsage) -> Tokens {
        let fits = |tokens| u32::try_from(tokens).unwrap_or(u32::MAX);
        let input = usage.input_tokens.saturating_add(usage.cache_creation_input_tokens);
        Tokens { input: fits(input), output: fits(usage.output_tokens) }
    }
}

#[derive(Debug)]
pub(super) struct Model {
    pub(super) name: String,
    pub(super) gate: Gate,
    /// Most calls at once, of all models.
    workers: usize,
    requests: Bucket,
    input_tokens: Bucket,
    output_tokens: Bucket,
    pub(super) used_at: Instant,
    pub(super) under_way: usize,
    /// Those of them whose calls wait for another to end, the next one first.
    pub(super) ahead: VecDeque<oneshot::Sender<()>>,
    backed_off: Option<f64>,
    backed_off_at: Option<Instant>,
    overloaded_by: Option<u64>,
    /// An answer came, which named the limits.
    pub(super) is_known: bool,
    /// Running means: how long a call takes, in seconds, and its tokens.
    usual_seconds: f64,
    usual_input: f64,
    usual_output: f64,
    input_per_byte: Option<f64>,
}

/// A model, as the dispatcher tells other nodes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct ModelMemo {
    name: String,
    gate: GateMemo,
    /// The limits on requests, input tokens and output tokens.
    buckets: [BucketMemo; 3],
    used_at: Timestamp,
    backed_off: Option<f64>,
    backed_off_at: Option<Timestamp>,
    is_known: bool,
    usual_seconds: f64,
    usual_input: f64,
    usual_output: f64,
    input_per_byte: Option<f64>,
}

impl Model {
    pub(super) fn memo(&mut self, moments: &Moments) -> ModelMemo {
        ModelMemo {
            name: self.name.clone(),
            gate: self.gate.memo(moments),
            buckets: [&self.requests, &self.input_tokens, &self.output_tokens].map(|bucket| bucket.memo(moments)),
            used_at: moments.timestamp(self.used_at),
            backed_off: self.backed_off,
            backed_off_at: self.backed_off_at.map(|at| moments.timestamp(at)),
            is_known: self.is_known,
            usual_seconds: self.usual_seconds,
            usual_input: self.usual_input,
            usual_output: self.usual_output,
            input_per_byte: self.input_per_byte,
        }
    }

    pub(super) fn adopt(&mut self, memo: ModelMemo, moments: &Moments) {
        self.gate.adopt(memo.gate, moments);
        for (bucket, known) in self.buckets().into_iter().zip(memo.buckets) {
            bucket.adopt(known, moments);
        }
        self.used_at = moments.instant(memo.used_at);
        self.backed_off_at = memo.backed_off_at.map(|at| moments.instant(at));
        let ModelMemo { name, backed_off, is_known, usual_seconds, usual_input, usual_output, input_per_byte, .. } =
            memo;
        (self.name, self.backed_off, self.is_known) = (name, backed_off, is_known);
        (self.usual_seconds, self.usual_input, self.usual_output) = (usual_seconds, usual_input, usual_output);
        self.input_per_byte = input_per_byte;
    }

    /// Leaves nothing of the limits per minute.
    pub(super) fn drain(&mut self) {
        self.buckets().into_iter().for_each(Bucket::drain);
    }

    fn buckets(&mut self) -> [&mut Bucket; 3] {
        [&mut self.requests, &mut self.input_tokens, &mut self.output_tokens]
    }

    pub(super) fn new(caps: RateCaps, workers: usize) -> Model {
        Model {
            name: String::new(),
            gate: Gate::default(),
            workers,
            requests: Bucket::new(caps.requests, START_TIER.requests, REQUEST_BURST),
            input_tokens: Bucket::new(caps.input_tokens, START_TIER.input_tokens, TOKEN_BURST),
            output_tokens: Bucket::new(caps.output_tokens, START_TIER.output_tokens, TOKEN_BURST),
            used_at: Instant::now(),
            under_way: 0,
            ahead: VecDeque::new(),
            backed_off: None,
            backed_off_at: None,
            overloaded_by: None,
            is_known: false,
            usual_seconds: USUAL_SECONDS,
            usual_input: f64::from(USUAL_TOKENS.input),
            usual_output: f64::from(USUAL_TOKENS.output),
            input_per_byte: None,
        }
    }

    /// Whether the gate and the calls under way allow a call; true if it is a probe. `any` is a probe of the whole account.
    pub(super) fn admit(&mut self, any: bool, now: Instant) -> Result<bool, Refusal> {
        let is_probe = self.gate.admit(now)?;
        // A probe waits for no other call. Permits given ahead come first.
        match () {
            () if is_probe || any => Ok(is_probe),
            () if !self.is_known && self.under_way >= FIRST_CALLS => Err(Refusal::UntilChanged),
            () if self.has_room() && self.ahead.is_empty() => Ok(false),
            () if self.backed_off.is_some() => Err(Refusal::UntilChanged),
            () => Err(Refusal::Busy),
        }
    }

    pub(super) fn has_room(&self) -> bool {
        self.under_way - self.ahead.len() < self.at_once()
    }

    pub(super) fn usual(&self) -> Tokens {
        Tokens { input: whole(self.usual_input), output: whole(self.usual_output) }
    }

    pub(super) fn take(&mut self, tokens: Tokens) -> Result<(), Duration> {
        self.requests.take(1)?;
        self.input_tokens.take(tokens.input).inspect_err(|_| self.requests.settle(1, 0))?;
        self.output_tokens.take(tokens.output).inspect_err(|_| {
            self.requests.settle(1, 0);
            self.input_tokens.settle(tokens.input, 0);
        })
    }

    pub(super) fn give_back(&mut self, taken: Tokens) {
        self.requests.settle(1, 0);
        self.settle(taken, Tokens::default());
    }

    pub(super) fn settle(&mut self, taken: Tokens, used: Tokens) {
        self.input_tokens.settle(taken.input, used.input);
        self.output_tokens.settle(taken.output, used.output);
    }

    pub(super) fn expect(&mut self, taken: Tokens, bytes: usize) -> Tokens {
        let Some(per_byte) = self.input_per_byte else { return taken };
        let input = whole(per_byte * bytes as f64);
        self.input_tokens.settle(taken.input, input);
        Tokens { input, ..taken }
    }

    pub(super) fn per_minute(&self) -> PerMinute {
        PerMinute {
            requests: self.requests.per_minute(),
            input_tokens: self.input_tokens.per_minute(),
            output_tokens: self.output_tokens.per_minute(),
        }
    }

    pub(super) fn set(&mut self, caps: RateCaps) {
        self.requests.set(caps.requests);
        self.input_tokens.set(caps.input_tokens);
        self.output_tokens.set(caps.output_tokens);
    }

    pub(super) fn learn(&mut self, limits: [Option<u64>; 3], called_at: Instant) {
        for (bucket, limit) in self.buckets().into_iter().zip(limits) {
            let limit = limit.map(|limit| u32::try_from(limit).unwrap_or(u32::MAX)).and_then(NonZeroU32::new);
            limit.into_iter().for_each(|limit| bucket.learn(limit, called_at));
        }
        self.is_known = true;
    }

    /// Fewer calls at once, until the model answers again. It takes two questions, as one alone may be refused.
    pub(super) fn overloaded(&mut self, question: u64, now: Instant) {
        if self.overloaded_by.replace(question).is_none_or(|before| before == question) {
            return;
        }
        if self.backed_off_at.is_none_or(|at| now - at >= BACKOFF_PAUSE) {
            self.backed_off_at = Some(now);
            let before = self.most_at_once().min(self.backed_off.unwrap_or(f64::MAX));
            self.backed_off = Some((before * BACKOFF).max(1.0));
            self.ahead.clear();
        }
    }

    /// A call was answered. Allows one more at once per round of as many answers as calls are allowed (additive increase).
    pub(super) fn answered(&mut self) {
        self.is_known = true;
        if let Some(allowed) = self.backed_off {
            let more = allowed + 1.0 / allowed;
            self.backed_off = Some(more).filter(|more| *more < self.most_at_once());
        }
    }

    pub(super) fn at_once(&self) -> usize {
        let most = self.most_at_once();
        whole(self.backed_off.map_or(most, |allowed| allowed.min(most))) as usize
    }

    /// Most calls at once without an overload: as many as the limits let begin while one call lasts, and some more.
    fn most_at_once(&self) -> f64 {
        let begun = self.rate() * self.usual_seconds * AT_ONCE_RESERVE;
        begun.ceil().max(LEAST_AT_ONCE).min(self.workers as f64)
    }

    pub(super) fn rate(&self) -> f64 {
        let per_minute = self.per_minute();
        let calls = f64::from(per_minute.requests.get());
        let by_input = f64::from(per_minute.input_tokens.get()) / self.usual_input.max(1.0);
        let by_output = f64::from(per_minute.output_tokens.get()) / self.usual_output.max(1.0);
        calls.min(by_input).min(by_output) / 60.0
    }

    pub(super) fn learn_seconds(&mut self, took: Duration) {
        self.usual_seconds += NEWEST_WEIGHT * (took.as_secs_f64().max(1.0) - self.usual_seconds);
    }

    pub(super) fn learn_tokens(&mut self, used: Tokens, bytes: Option<usize>) {
        self.usual_input += NEWEST_WEIGHT * (f64::from(used.input) - self.usual_input);
        self.usual_output += NEWEST_WEIGHT * (f64::from(used.output) - self.usual_output);
        if let Some(bytes) = bytes.filter(|_| used.input > 0) {
            let ratio = f64::from(used.input) / bytes.max(1) as f64;
            self.input_per_byte =
                Some(self.input_per_byte.map_or(ratio, |known| known + NEWEST_WEIGHT * (ratio - known)));
        }
    }

    /// When its last call was reserved, if it can be forgotten: no call is under way and its gate is open.
    pub(super) fn idle_since(&mut self, now: Instant) -> Option<Instant> {
        (self.under_way == 0 && self.gate.closed(now).is_none()).then_some(self.used_at)
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "means of u32, so within its range")]
fn whole(mean: f64) -> u32 {
    mean.max(0.0) as u32
}
