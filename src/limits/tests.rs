//! The limits on real buckets and in paused time.
use std::{num::NonZeroU32, pin::pin};

use futures_util::poll;

use super::{
    model::{BACKOFF_PAUSE, FIRST_CALLS, USUAL_TOKENS},
    state::MAX_MODELS,
    *,
};

fn limits(requests: u32, workers: usize) -> Limits {
    limits_with(requests, 1_000_000_000, workers)
}

fn limits_with(requests: u32, input_tokens: u32, workers: usize) -> Limits {
    let limits = limits_unasked(requests, input_tokens, workers);
    limits.answered("a");
    limits
}

/// Before the first answer.
fn limits_unasked(requests: u32, input_tokens: u32, workers: usize) -> Limits {
    let [requests, input_tokens, output_tokens] = [requests, input_tokens, 1_000_000_000].map(NonZeroU32::new);
    Limits::new(RateCaps { requests, input_tokens, output_tokens }, workers, None, Arc::new(|| ModelKey::of("a")))
}

/// As many permits as there are right now, held.
fn take_all(limits: &Limits) -> Vec<Permit> {
    std::iter::from_fn(|| limits.try_permit(None)).take(1_000).collect()
}

/// A call of the model "a" meets a failure of this scope.
fn block(limits: &Limits, scope: Scope, question: u64, opens_after: Option<Duration>) {
    let code = if opens_after.is_some() { FailureCode::RateLimited } else { FailureCode::BillingFailed };
    limits.block("a", &SharedFailure { code, scope, signature: 1, witnesses: 1, opens_after }, question, "no");
}

#[tokio::test(start_paused = true)]
async fn a_gate_that_two_questions_closed_for_a_time_lets_no_call_through_before() {
    let limits = limits(60_000, 8);
    for question in [1, 2] {
        block(&limits, Scope::Account, question, Some(Duration::from_secs(20)));
    }
    assert!(limits.try_permit(None).is_none());
    let start = Instant::now();
    next(&limits).await;
    let waited = start.elapsed();
    assert!(waited >= Duration::from_secs(20) && waited <= Duration::from_secs(23), "{waited:?}");
    assert!(limits.gate(None).is_none());
}

#[tokio::test(start_paused = true)]
async fn a_held_gate_lets_one_call_at_a_time_find_out_until_one_is_answered() {
    let limits = limits(1_000_000, 8);
    let calls = [limits.try_permit(None).unwrap(), limits.try_permit(None).unwrap()];
    for question in [1, 2] {
        block(&limits, Scope::Account, question, None);
    }
    let start = Instant::now();
    let mut probe = next(&limits).await;
    assert!(start.elapsed() >= gate::BLOCK_PAUSE);
    assert!(limits.try_permit(None).is_none(), "one at a time, whatever else is under way");
    probe.expect("a", 1).unwrap();
    probe.settle_failed(None);
    assert!(limits.try_permit(None).is_none(), "closed again after a vain probe");
    let unused = next(&limits).await;
    drop(unused);
    let _probe = limits.try_permit(None).expect("the last one made no call");
    assert!(limits.reached("a", 3, Instant::now()) && !limits.reached("a", 3, Instant::now()));
    assert!(limits.gate(None).is_none());
    drop(calls);
    assert_eq!(take_all(&limits).len(), 7);
}

#[tokio::test(start_paused = true)]
async fn a_waiting_caller_gets_a_permit_when_the_gate_opens_early() {
    let limits = limits(60_000, 8);
    block(&limits, Scope::Account, 1, Some(Duration::from_hours(1)));
    let start = Instant::now();
    let probe = next(&limits).await;
    assert!(start.elapsed() < Duration::from_secs(2), "one question alone met it");
    let mut waiting = pin!(next(&limits));
    assert!(poll!(&mut waiting).is_pending());
    limits.reached("a", 2, Instant::now());
    waiting.await;
    assert!(start.elapsed() < Duration::from_secs(2));
    drop(probe);
}

#[tokio::test]
async fn the_need_of_a_call_is_estimated_from_its_length_by_what_its_model_needed_before() {
    let limits = limits_with(60_000, 1_000_000, 8);
    let call = |model: &str, bytes, needed| {
        let mut permit = limits.try_permit(None).unwrap();
        permit.expect(model, bytes).unwrap();
        let taken = permit.taken().input;
        permit.settle(Duration::from_secs(20), Some(Tokens { input: needed, output: 1 }));
        taken
    };
    assert_eq!(call("a", 1_000, 500), USUAL_TOKENS.input, "nothing is known yet");
    assert_eq!(call("a", 4_000, 2_000), 2_000, "half a token by the byte");
    assert_eq!(call("b", 4_000, 800), USUAL_TOKENS.input, "each model has its own");
    assert_eq!(call("b", 4_000, 0), 800);
    assert_eq!(call("b", 4_000, 800), 800, "a call turned away taught nothing");
    for n in 0..2 * MAX_MODELS {
        call(&n.to_string(), 1, 1);
    }
    assert!(limits.0.state.lock().models.len() <= MAX_MODELS);
}

#[tokio::test]
async fn the_rate_is_spread_evenly_with_a_burst_of_half_a_second() {
    let limits = limits(240, 1_000);
    let held = take_all(&limits);
    assert!((2..=3).contains(&held.len()), "{} calls at once at 240 a minute", held.len());
    assert!(!limits.is_exhausted());
    let waiting = tokio::spawn({
        let limits = limits.clone();
        async move { next(&limits).await }
    });
    while !limits.is_exhausted() {
        tokio::task::yield_now().await;
    }
    held.into_iter().for_each(|permit| permit.settle(Duration::from_secs(20), None));
    waiting.await.unwrap().settle(Duration::from_secs(20), None);
    assert!(!limits.is_exhausted());
}

#[tokio::test]
async fn an_unused_permit_returns_what_it_reserved() {
    let limits = limits(60, 8);
    let unused = limits.try_permit(None).unwrap();
    assert!(limits.try_permit(None).is_none());
    drop(unused);
    limits.try_permit(None).unwrap().settle(Duration::from_secs(20), None);
    assert!(limits.try_permit(None).is_none(), "this one was");
}

#[tokio::test]
async fn tokens_are_taken_by_what_is_usual_and_settled_with_what_was_used() {
    let limits = limits_with(60_000, USUAL_TOKENS.input * 10, 1_000);
    let held = take_all(&limits);
    assert_eq!(held.len(), 10, "a minute's worth");
    assert!(limits.try_permit(None).is_none());
    held.into_iter().for_each(|permit| permit.settle(Duration::from_secs(20), Some(Tokens { input: 600, output: 1 })));
    let more = take_all(&limits).len();
    assert!(more > 10, "a tenth was used, so calls are cheaper now and most was given back: {more}");
}

#[tokio::test]
async fn an_overload_halves_the_calls_at_once_and_answers_bring_them_back() {
    let limits = limits(1_000_000, 8);
    limits.overloaded("a", 1);
    limits.overloaded("a", 2);
    assert_eq!(limits.calls_at_once(None), 4, "two at the same moment are one");
    let held = take_all(&limits);
    assert_eq!(held.len(), 4);
    (0..4).for_each(|_| limits.answered("a"));
    assert_eq!(limits.calls_at_once(None), 4);
    limits.answered("a");
    assert_eq!(limits.calls_at_once(None), 5, "one more for a whole round");
    (0..100).for_each(|_| limits.answered("a"));
    assert_eq!(limits.calls_at_once(None), 8);
}

#[tokio::test(start_paused = true)]
async fn an_overload_that_one_question_meets_again_and_again_counts_from_the_second_question_on() {
    let limits = limits(1_000_000, 8);
    for _ in 0..5 {
        limits.overloaded("a", 1);
        tokio::time::advance(BACKOFF_PAUSE).await;
    }
    assert_eq!(limits.calls_at_once(None), 8);
    limits.overloaded("a", 2);
    assert_eq!(limits.calls_at_once(None), 4);
}

#[tokio::test]
async fn a_freed_place_lets_the_next_one_in() {
    let limits = limits(1_000_000, 1);
    let held = next(&limits).await;
    let mut next = pin!(next(&limits));
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
    assert!(poll!(pin!(calls[0].ready())).is_ready(), "a call that may be made waits for nothing");
    let mut turn = Box::pin(first.ready());
    assert!(poll!(&mut turn).is_pending());
    calls.pop().unwrap().settle(Duration::from_secs(20), None);
    assert!(turn.await);
    let late = limits.try_permit(None).expect("there is a place ahead again");
    drop(first);
    assert!(second.ready().await, "and not the one that came later");
    drop((second, calls));
    assert!(limits.try_permit(None).is_some_and(|permit| !permit.is_ahead()));
    drop(late);
    assert_eq!(limits.0.state.lock().permits, 0);
}

#[tokio::test]
async fn a_permit_ahead_that_is_dropped_keeps_no_other_call_waiting() {
    let limits = limits(1_000_000, 1);
    let call = limits.try_permit(None).unwrap();
    limits.claim_ahead(2);
    let (mut gone, mut next) = (limits.try_permit(None).unwrap(), limits.try_permit(None).unwrap());
    assert!(poll!(pin!(gone.ready())).is_pending());
    drop(gone);
    call.settle(Duration::from_secs(20), None);
    assert!(next.ready().await);
}

#[tokio::test]
async fn nothing_is_claimed_ahead_of_a_closed_gate_or_an_overload_and_permits_ahead_are_refused() {
    let limits = limits(1_000_000, 2);
    limits.claim_ahead(1);
    let mut calls = take_all(&limits);
    let mut ahead = calls.pop().unwrap();
    block(&limits, Scope::Account, 1, Some(Duration::from_secs(20)));
    assert!(!ahead.ready().await);
    let limits = limits_with(1_000_000, 1_000_000_000, 2);
    limits.claim_ahead(1);
    let mut calls = take_all(&limits);
    let mut ahead = calls.pop().unwrap();
    limits.overloaded("a", 1);
    limits.overloaded("a", 2);
    assert!(!ahead.ready().await);
    drop((ahead, calls));
    assert_eq!(take_all(&limits).len(), 1);
}

#[tokio::test]
async fn few_calls_are_made_at_once_before_the_first_answer_names_the_limits() {
    let limits = limits_unasked(1_000_000, 1_000_000_000, 64);
    let held = take_all(&limits);
    assert_eq!(held.len(), FIRST_CALLS);
    limits.learn("a", [Some(1_000_000), None, None], Instant::now());
    assert_eq!(take_all(&limits).len(), 64 - FIRST_CALLS);
    let silent = limits_unasked(1_000_000, 1_000_000_000, 64);
    silent.answered("a");
    assert_eq!(take_all(&silent).len(), 64, "an upstream may tell no limits");
}

#[tokio::test]
async fn failures_teach_nothing_of_what_a_call_needs() {
    let limits = limits_with(60_000, 1_000_000, 1_000);
    let (rate, at_once) = (limits.calls_per_second(None), limits.calls_at_once(None));
    for tokens in [Some(Tokens::default()), None, Some(Tokens { input: 9, output: 1 })] {
        for _ in 0..30 {
            limits.try_permit(None).unwrap().settle_failed(tokens);
        }
    }
    limits.try_permit(None).unwrap().settle(Duration::from_secs(20), Some(Tokens::default()));
    assert_eq!(
        (limits.calls_per_second(None), limits.calls_at_once(None)),
        (rate, at_once),
        "nor of the time it takes"
    );
    let permit = limits.try_permit(None).unwrap();
    assert_eq!(permit.taken(), USUAL_TOKENS);
}

#[tokio::test]
async fn each_model_has_the_limits_that_the_upstream_named_for_it() {
    let limits = limits_with(60_000, 1_000_000_000, 1_000);
    let ask = |model: &str| limits.try_permit(None).unwrap().expect(model, 1_000).map(drop);
    assert!(ask("b").is_ok(), "nothing is known of it yet");
    limits.learn("b", [Some(60), None, None], Instant::now());
    assert_eq!(limits.per_minute(None).requests.get(), 60_000, "the others keep theirs");
    let waits: Vec<_> = (0..3)
        .filter_map(|_| {
            let mut permit = limits.try_permit(None).unwrap();
            let wait = permit.expect("b", 1_000).err();
            if wait.is_none() {
                permit.settle_failed(None);
            }
            wait
        })
        .collect();
    assert!(waits.len() >= 2 && waits.iter().all(|wait| wait.after <= Duration::from_secs(2)), "{waits:?}");
    assert!(ask("a").is_ok());
}

#[tokio::test]
async fn as_many_calls_run_at_once_as_the_limits_and_their_length_need() {
    let limits = limits(600, MAX_CALLS_AT_ONCE);
    assert_eq!(limits.calls_at_once(None), 300, "ten a second, 20 s each, and half as many more");
    (0..100).for_each(|_| limits.0.state.lock().named("a").learn_seconds(Duration::from_secs(10)));
    assert_eq!(limits.calls_at_once(None), 151);
    limits.learn("a", [Some(60), None, None], Instant::now());
    assert_eq!(limits.calls_at_once(None), 16, "as few as any account allows");
    assert_eq!(limits_unasked(600, 1_000_000_000, 8).calls_at_once(None), 8, "never more than are set");
}

#[test]
fn the_narrowest_limit_sets_the_rate() {
    let limits = limits(600, 8);
    assert_eq!(limits.calls_per_second(None), 10.0);
    limits.learn("a", [Some(300), None, Some(u64::from(USUAL_TOKENS.output) * 60)], Instant::now());
    assert_eq!(limits.calls_per_second(None), 1.0);
    assert_eq!(limits.per_minute(None).requests.get(), 300);
    assert_eq!(limits.caps().requests.map_or(0, u32::from), 600);
}

/// A permit for a job of the service's own model.
async fn next(limits: &Limits) -> Permit {
    limits.permit(|| vec![None], &Notify::new()).await
}

fn lane(model: &str) -> Lane {
    Some(ModelKey::of(model))
}

#[tokio::test(start_paused = true)]
async fn a_closed_gate_of_a_model_passes_its_jobs_over_and_no_others() {
    let limits = limits(1_000_000, 1);
    for question in [1, 2] {
        block(&limits, Scope::Model, question, None);
    }
    assert!(limits.try_permit(None).is_none() && limits.try_permit(lane("a")).is_none());
    let permit = limits.permit(|| vec![None, lane("a"), lane("b")], &Notify::new()).await;
    assert_eq!(permit.lanes(), [lane("b")]);
    assert!(limits.gate(None).is_some() && limits.gate(lane("b")).is_none());
    drop(permit);
    block(&limits, Scope::Account, 3, None);
    block(&limits, Scope::Account, 4, None);
    assert!(limits.try_permit(lane("b")).is_none(), "the account's gate stops all");
    assert_eq!(limits.gate(lane("b")).map(|closed| closed.code), Some(FailureCode::BillingFailed));
}

#[tokio::test(start_paused = true)]
async fn a_job_of_another_model_that_becomes_ready_is_let_through_a_closed_gate() {
    let (limits, more) = (limits(1_000_000, 1), Notify::new());
    for question in [1, 2] {
        block(&limits, Scope::Model, question, None);
    }
    let ready = Mutex::new(vec![None]);
    let mut waiting = pin!(limits.permit(|| ready.lock().clone(), &more));
    assert!(poll!(&mut waiting).is_pending());
    ready.lock().push(lane("b"));
    more.notify_one();
    let start = Instant::now();
    assert_eq!(waiting.await.lanes(), [lane("b")]);
    assert_eq!(start.elapsed(), Duration::ZERO);
}

#[tokio::test]
async fn a_permit_reserves_a_call_of_each_model_and_gives_back_what_the_job_does_not_need() {
    let limits = limits(60, 8);
    let both = || limits.take(&[None, lane("b")]);
    let mut permit = both().unwrap();
    assert_eq!(permit.lanes(), [None, lane("b")]);
    assert!(limits.try_permit(None).is_none() && limits.try_permit(lane("b")).is_none(), "one a second, of each");
    permit.expect("b", 1).unwrap();
    let other = both().unwrap();
    assert_eq!(other.lanes(), [None], "that of a was given back");
    drop(other);
    permit.settle(Duration::from_secs(1), None);
    assert_eq!(both().unwrap().lanes(), [None], "that of b was used");
}

#[tokio::test]
async fn an_overload_of_a_model_leaves_the_calls_of_others_and_workers_are_shared() {
    let limits = limits(1_000_000, 8);
    limits.overloaded("b", 1);
    limits.overloaded("b", 2);
    assert_eq!((limits.calls_at_once(lane("b")), limits.calls_at_once(None)), (4, 8));
    let of_b: Vec<Permit> = std::iter::from_fn(|| limits.try_permit(lane("b"))).collect();
    let of_a: Vec<Permit> = std::iter::from_fn(|| limits.try_permit(None)).collect();
    assert_eq!((of_b.len(), of_a.len()), (4, 4));
}
