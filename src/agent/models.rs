//! Which model is asked, whether it is out at the moment, and which parameters it takes.
//!
//! A model or gateway that answers 400 to a parameter is asked without it until the service restarts.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use utoipa::ToSchema;

use super::gaps::Gaps;
use crate::{
    claude::{
        error::Parameter,
        message::{CacheTtl, LEAST_MAX_TOKENS, MessageRequest, SCHEMA_COMPILED_FOR},
    },
    clock::{Moments, Timestamp},
};

/// How long a model that was overloaded is passed over: an overload is over in seconds to minutes.
pub(super) const OVERLOADED_FOR: Duration = Duration::from_secs(30);

/// How long a model that is not there is passed over. Retired ones don't come back, but a gateway may be repaired.
pub const GONE_FOR: Duration = Duration::from_hours(1);

/// Clients can name any model.
const MAX_LEARNT: usize = 64;

/// A schema counts as compiled for so much less than the API keeps it: clocks differ, and a wrong guess fails a call.
const COMPILED_MARGIN: Duration = Duration::from_hours(1);

#[derive(Clone, Debug)]
pub struct Models(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    own: Vec<String>,
    allowed: BTreeSet<String>,
    learnt: Mutex<HashMap<String, Shape>>,
}

#[derive(Clone, Debug, Default)]
struct Shape {
    out_until: Option<Instant>,
    left_out: BTreeSet<&'static str>,
    max_tokens: Option<u32>,
    gaps: Gaps,
    schema_used_at: Option<Timestamp>,
}

/// What the service knows about a model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = ModelInfo)]
pub struct Known {
    /// Its id.
    pub model: String,
    /// Parameters that the model refused. Calls no longer send them.
    pub left_out: Vec<&'static str>,
    /// Most output tokens that the model accepts; null if unknown.
    pub max_tokens: Option<u32>,
    /// How long its system prompt is cached, by the gaps between its calls: `5m`, `1h` or `none`.
    pub cache_ttl: &'static str,
    /// When it last used the schema of a memo, which the API then keeps compiled for 24 hours; null if that is not known.
    pub schema_used_at: Option<Timestamp>,
    /// The model is overloaded or retired, and another model is used where possible.
    pub is_passed_over: bool,
}

/// What the dispatcher knows of a model, for other nodes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelMemo {
    model: String,
    out_until: Option<Timestamp>,
    left_out: Vec<String>,
    max_tokens: Option<u32>,
    schema_used_at: Option<Timestamp>,
}

impl Models {
    pub fn memo(&self, moments: &Moments) -> Vec<ModelMemo> {
        let learnt = self.0.learnt.lock();
        let memo = |(model, shape): (&String, &Shape)| ModelMemo {
            model: model.clone(),
            out_until: shape.out_until.map(|until| moments.timestamp(until)),
            left_out: shape.left_out.iter().map(|name| (*name).to_owned()).collect(),
            max_tokens: shape.max_tokens,
            schema_used_at: shape.schema_used_at,
        };
        let mut memo: Vec<ModelMemo> = learnt.iter().map(memo).collect();
        memo.sort_unstable_by(|one, other| one.model.cmp(&other.model));
        memo
    }

    /// Takes over what the dispatcher knows.
    pub fn adopt(&self, memo: Vec<ModelMemo>, moments: &Moments) {
        for known in memo {
            let left_out = known.left_out.iter().filter_map(|name| name.parse::<Parameter>().ok()).map(<&str>::from);
            self.learn(&known.model, |shape| {
                shape.out_until = known.out_until.map(|until| moments.instant(until));
                shape.left_out = left_out.collect();
                shape.max_tokens = known.max_tokens;
                shape.schema_used_at = shape.schema_used_at.max(known.schema_used_at);
            });
        }
    }

    /// Adds what another node has learnt by its calls.
    pub fn merge(&self, memo: &ModelMemo, moments: &Moments) {
        let left_out = memo.left_out.iter().filter_map(|name| name.parse::<Parameter>().ok()).map(<&str>::from);
        // The other node's clock may be ahead.
        let latest = Instant::now() + GONE_FOR;
        let out_until = memo.out_until.map(|until| moments.instant(until).min(latest));
        self.learn(&memo.model, |shape| {
            shape.out_until = shape.out_until.max(out_until);
            shape.left_out.extend(left_out);
            shape.max_tokens = [shape.max_tokens, memo.max_tokens].into_iter().flatten().min();
            shape.schema_used_at = shape.schema_used_at.max(memo.schema_used_at);
        });
    }

    /// `first`, and what stands in for it. A job may also name one of `allowed`.
    pub fn new(first: String, others: Vec<String>, allowed: Vec<String>) -> Models {
        let own: Vec<String> = std::iter::once(first).chain(others).collect();
        let allowed = allowed.into_iter().chain(own.iter().cloned()).collect();
        Models(Arc::new(Inner { own, allowed, learnt: Mutex::default() }))
    }

    /// Whether a job may name this model. The error is for its client.
    pub fn check(&self, id: &str) -> Result<(), String> {
        if self.0.allowed.contains(id) {
            return Ok(());
        }
        let allowed: Vec<&str> = self.0.allowed.iter().map(String::as_str).collect();
        Err(format!("{id:?} is not one of the models that ALLOWED_MODELS lists: {}", allowed.join(", ")))
    }

    /// The model to ask now, except those in `refused_by`. If all are out, it is the preferred one, so that its failure shows.
    pub fn pick(&self, refused_by: &[String]) -> &str {
        let learnt = self.0.learnt.lock();
        let asked = |id: &&String| !refused_by.contains(id);
        let usable = self.0.own.iter().filter(asked).find(|id| !is_out(&learnt, id));
        usable.or_else(|| self.0.own.iter().find(asked)).unwrap_or(&self.0.own[0])
    }

    pub(super) fn have_all_refused(&self, refused_by: &[String]) -> bool {
        self.0.own.iter().all(|id| refused_by.contains(id))
    }

    /// Passes `id` over for a while. Returns whether another model can be asked meanwhile.
    pub fn pass_over(&self, id: &str, time: Duration) -> bool {
        self.learn(id, |shape| shape.out_until = Some(Instant::now() + time));
        let learnt = self.0.learnt.lock();
        self.0.own.iter().any(|id| !is_out(&learnt, id))
    }

    pub fn ids(&self) -> impl Iterator<Item = &str> {
        self.0.own.iter().map(String::as_str)
    }

    pub(super) fn has(&self, id: &str) -> bool {
        self.ids().any(|own| own == id)
    }

    pub(super) fn is_fallback(&self, id: &str) -> bool {
        self.0.own[0] != id && self.has(id)
    }

    pub(super) fn max_tokens(&self, id: &str, wanted: u32) -> u32 {
        self.0.learnt.lock().get(id).and_then(|shape| shape.max_tokens).map_or(wanted, |most| most.min(wanted))
    }

    pub(super) fn fit(&self, call: &mut MessageRequest) {
        call.max_tokens = self.max_tokens(&call.model, call.max_tokens);
        let learnt = self.0.learnt.lock();
        let Some(shape) = learnt.get(&call.model) else { return };
        let has = |parameter: Parameter| shape.left_out.contains(<&str>::from(parameter));
        let config = has(Parameter::OutputConfig);
        if config || has(Parameter::Effort) {
            call.effort = None;
        }
        if config || has(Parameter::Format) {
            call.schema = None;
        }
        if has(Parameter::Thinking) {
            call.thinking = None;
        }
        call.cache = if has(Parameter::CacheControl) { CacheTtl::Off } else { shape.gaps.ttl() };
    }

    /// Learns from a refused parameter. Returns what changes; `None` if the call had no such parameter.
    pub(super) fn refused(&self, call: &MessageRequest, parameter: Parameter, named: Option<u32>) -> Option<String> {
        let was_sent = match parameter {
            Parameter::Effort => call.effort.is_some(),
            Parameter::Format => call.schema.is_some(),
            Parameter::OutputConfig => call.effort.is_some() || call.schema.is_some(),
            Parameter::Thinking => call.thinking.is_some(),
            Parameter::CacheControl => call.cache != CacheTtl::Off,
            Parameter::MaxTokens => call.max_tokens > LEAST_MAX_TOKENS,
        };
        if !was_sent {
            return None;
        }
        if parameter == Parameter::MaxTokens {
            let most = named.unwrap_or(call.max_tokens / 2);
            self.limit_output(&call.model, most);
            return Some(format!("its max_tokens is {most} now"));
        }
        let name = <&str>::from(parameter);
        self.learn(&call.model, |shape| {
            shape.left_out.insert(name);
        });
        Some(format!("{name} is no longer sent"))
    }

    pub(super) fn call_begins(&self, id: &str) {
        self.learn(id, |shape| shape.gaps.add(Instant::now()));
    }

    pub fn schema_used(&self, id: &str, at: Timestamp) {
        self.learn(id, |shape| shape.schema_used_at = shape.schema_used_at.max(Some(at)));
    }

    pub(super) fn is_schema_compiled(&self, id: &str, now: Timestamp) -> bool {
        let used_at = self.0.learnt.lock().get(id).and_then(|shape| shape.schema_used_at);
        used_at.is_some_and(|at| now.since(at) < SCHEMA_COMPILED_FOR - COMPILED_MARGIN)
    }

    pub fn limit_output(&self, id: &str, most: u32) {
        let most = most.max(LEAST_MAX_TOKENS);
        self.learn(id, |shape| shape.max_tokens = Some(shape.max_tokens.map_or(most, |known| known.min(most))));
    }

    fn learn(&self, id: &str, change: impl FnOnce(&mut Shape)) {
        let mut learnt = self.0.learnt.lock();
        if learnt.len() < MAX_LEARNT || learnt.contains_key(id) || self.has(id) {
            change(learnt.entry(id.to_owned()).or_default());
        }
    }

    pub fn known(&self) -> Vec<Known> {
        let learnt = self.0.learnt.lock();
        let mut others: Vec<&str> = learnt.keys().map(String::as_str).filter(|id| !self.has(id)).collect();
        others.sort_unstable();
        let known = |id: &str| {
            let shape = learnt.get(id).cloned().unwrap_or_default();
            let is_cached = !shape.left_out.contains(<&str>::from(Parameter::CacheControl));
            let cache_ttl = if is_cached { shape.gaps.ttl() } else { CacheTtl::Off }.into();
            Known {
                model: id.to_owned(),
                left_out: shape.left_out.into_iter().collect(),
                max_tokens: shape.max_tokens,
                cache_ttl,
                schema_used_at: shape.schema_used_at,
                is_passed_over: is_out(&learnt, id),
            }
        };
        self.ids().chain(others).map(known).collect()
    }
}

fn is_out(learnt: &HashMap<String, Shape>, id: &str) -> bool {
    learnt.get(id).and_then(|shape| shape.out_until).is_some_and(|until| until > Instant::now())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;

    fn models() -> Models {
        Models::new("a".to_owned(), vec!["b".to_owned()], vec!["c".to_owned()])
    }

    #[test]
    fn a_job_may_name_the_allowed_models_and_the_services_own() {
        let models = models();
        assert!(["a", "b", "c"].iter().all(|id| models.check(id).is_ok()));
        let message = models.check("d").unwrap_err();
        assert!(message.starts_with("\"d\" is not one of") && message.ends_with(": a, b, c"), "{message}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_model_that_is_out_is_passed_over_for_a_while() {
        let models = models();
        assert_eq!(models.pick(&[]), "a");
        assert!(models.pass_over("a", OVERLOADED_FOR));
        assert_eq!(models.pick(&[]), "b");
        assert!(!models.pass_over("b", GONE_FOR));
        assert_eq!(models.pick(&[]), "a", "if all are out, the first is asked");
        tokio::time::advance(OVERLOADED_FOR).await;
        assert_eq!(models.pick(&[]), "a");
        assert!(!models.pass_over("a", GONE_FOR + OVERLOADED_FOR), "the other is still out");
        tokio::time::advance(GONE_FOR).await;
        assert_eq!(models.pick(&[]), "b");
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_whose_clock_is_a_day_ahead_has_a_model_passed_over_for_an_hour_at_most() {
        let (node, dispatcher) = (models(), models());
        let now = Timestamp::from_millis(1_800_000_000_000);
        let [ahead, right] = [now.plus(Duration::from_hours(24)), now].map(|at| Moments::now(&Clock::manual(at)));
        node.pass_over("a", OVERLOADED_FOR);
        dispatcher.merge(&node.memo(&ahead)[0], &right);
        assert_eq!(dispatcher.pick(&[]), "b");
        tokio::time::advance(GONE_FOR).await;
        assert_eq!(dispatcher.pick(&[]), "a");
    }

    #[test]
    fn a_model_that_refused_is_not_asked_again_while_there_is_another() {
        let models = models();
        let [a, b] = ["a", "b"].map(str::to_owned);
        assert_eq!(models.pick(std::slice::from_ref(&a)), "b");
        assert!(!models.have_all_refused(std::slice::from_ref(&a)));
        assert!(models.have_all_refused(&[a, b]));
    }

    #[test]
    fn a_parameter_that_a_model_refused_is_left_out_of_its_calls_alone() {
        let models = models();
        let call = |model: &str| {
            let schema = serde_json::value::to_raw_value("schema").map(Arc::from).ok();
            let model = model.to_owned();
            let mut call = MessageRequest { model, effort: Some("high"), schema, ..MessageRequest::default() };
            models.fit(&mut call);
            call
        };
        let parts = |call: MessageRequest| (call.effort.is_some(), call.schema.is_some(), call.cache != CacheTtl::Off);
        for (parameter, model, left) in [
            (Parameter::Effort, "a", (false, true, true)),
            (Parameter::Format, "b", (true, false, true)),
            (Parameter::OutputConfig, "c", (false, false, true)),
            (Parameter::CacheControl, "d", (true, true, false)),
        ] {
            assert!(models.refused(&call(model), parameter, None).is_some(), "{parameter}");
            assert_eq!(models.refused(&call(model), parameter, None), None, "{parameter}: it was not sent");
            assert_eq!(parts(call(model)), left, "{parameter}");
        }
        let known: Vec<String> = models.known().into_iter().map(|known| known.model).collect();
        assert_eq!(known, ["a", "b", "c", "d"]);
        assert_eq!(models.known()[0].left_out, ["effort"]);
    }

    #[test]
    fn max_tokens_is_what_the_model_named_or_half_and_never_more_again() {
        let models = models();
        let sent = |max_tokens| MessageRequest { model: "a".to_owned(), max_tokens, ..MessageRequest::default() };
        models.refused(&sent(16_000), Parameter::MaxTokens, Some(8_192));
        assert_eq!(models.max_tokens("a", 16_000), 8_192);
        models.refused(&sent(8_192), Parameter::MaxTokens, None);
        assert_eq!((models.max_tokens("a", 16_000), models.max_tokens("b", 16_000)), (4_096, 16_000));
        models.limit_output("a", 64_000);
        assert_eq!(models.max_tokens("a", 16_000), 4_096);
        assert_eq!(models.refused(&sent(1_024), Parameter::MaxTokens, None), None, "nothing is left to lower");
    }

    #[test]
    fn only_so_much_is_learnt_of_models_that_clients_name() {
        let models = models();
        (0..2 * MAX_LEARNT).for_each(|n| models.limit_output(&n.to_string(), 2_000));
        models.limit_output("b", 2_000);
        assert!(models.known().len() <= MAX_LEARNT + 2 && models.max_tokens("b", 9_000) == 2_000);
    }
}
