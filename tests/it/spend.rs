//! Money: the ledger against what the simulated Claude billed, over faults and kills; the daily budget; prices.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use ceoagent::{
    app::App,
    claude::{
        message::Usage,
        simulator::{Call, ErrorAnswer, Fault, Latency, Simulator, SimulatorConfig},
    },
    clock::{Clock, Timestamp},
};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde_json::{Value, json};

use crate::{
    harness::{ADMIN_TOKEN, Service, Setup, client, settings, simulator},
    load::{Ledger, Load},
};

/// Kills in the run with kills.
const KILLS: usize = 8;

/// The kinds of tokens, as the ledger names them.
const KINDS: [&str; 4] = ["input_tokens", "output_tokens", "cache_creation_input_tokens", "cache_read_input_tokens"];

/// Tokens by kind.
type Bill = [u64; 4];

fn billed(call: &Call) -> Bill {
    let usage = call.usage;
    [usage.input_tokens, usage.output_tokens, usage.cache_creation_input_tokens, usage.cache_read_input_tokens]
}

fn told(usage: &Value) -> Bill {
    KINDS.map(|kind| usage[kind].as_u64().unwrap_or(0))
}

fn sum(bills: impl IntoIterator<Item = Bill>) -> Bill {
    bills.into_iter().fold(Bill::default(), |sum, bill| std::array::from_fn(|kind| sum[kind] + bill[kind]))
}

/// What so many tokens cost of the default model, in US dollars.
fn cost([input, output, write, read]: Bill) -> f64 {
    (input as f64 * 2.0 + output as f64 * 10.0 + write as f64 * 2.5 + read as f64 * 0.1) / 1e6
}

#[track_caller]
fn assert_about(left: f64, right: f64) {
    assert!((left - right).abs() < 1e-6, "{left} {right}");
}

async fn usage(service: &Service) -> Value {
    let answer = service.admin_get("/api/v1/admin/usage").await;
    assert_eq!(answer.status, 200, "{answer:#?}");
    answer.body
}

/// The sum over all days: a test may run at midnight.
async fn ledger(service: &Service) -> Bill {
    let usage = usage(service).await;
    sum(usage["days"].as_array().unwrap().iter().map(|day| told(&day["total"])))
}

/// Every attempt of every job.
async fn attempts(service: &Service) -> Vec<Value> {
    let mut attempts = Vec::new();
    let mut cursor = String::new();
    loop {
        let page = service.admin_get(&format!("/api/v1/admin/jobs?limit=200{cursor}")).await.body;
        for job in page["jobs"].as_array().unwrap() {
            attempts.extend(job["attempts"].as_array().unwrap().iter().cloned());
        }
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return attempts,
        }
    }
}

async fn metric(service: &Service, name: &str) -> f64 {
    let metrics = service.get("/metrics").await;
    let line = metrics.body.as_str().unwrap().lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no metric {name}")).parse().unwrap()
}

/// Asks `count` questions and gives their ids.
async fn ask(service: &Service, count: usize) -> Vec<String> {
    let mut ids = Vec::new();
    for n in 0..count {
        ids.push(service.submit(&format!("Should we start project {n}?")).await.id());
    }
    ids
}

/// A job that is held for the budget, once there is one.
async fn held(service: &Service) -> Value {
    loop {
        let page = service.admin_get("/api/v1/admin/jobs?status=queued&limit=1").await.body;
        if page["jobs"][0]["queue"]["waiting_for"] == "budget" && page["total"]["running"] == 0 {
            return page["jobs"][0].clone();
        }
    }
}

#[tokio::test]
async fn the_ledger_is_what_was_billed_whatever_the_answers_were_worth() {
    let claude = simulator().await;
    claude.script([
        Fault::Normal,
        ErrorAnswer::status(500).into(),
        Fault::Answer("no json".to_owned()),
        ErrorAnswer::status(529).into(),
        Fault::Refusal,
        Fault::MaxTokens,
        Fault::ThinkingFirst,
        ErrorAnswer::status(429).header("retry-after-ms", "1").into(),
    ]);
    let setup = Setup::new(&claude.base_url()).with("WORKERS", "2");
    let service = setup.start();
    let ids = ask(&service, 40).await;
    for id in &ids {
        service.ended(id).await;
    }
    let bill = sum(claude.calls().iter().map(billed));
    assert_eq!(ledger(&service).await, bill, "to the token");
    let today = usage(&service).await;
    let day = &today["days"][0];
    assert_about(day["total"]["cost_usd"].as_f64().unwrap(), cost(told(&day["total"])));
    assert_eq!(
        (&day["models"][0]["model"], &day["total"]["at_risk"]["calls"]),
        (&json!("claude-sonnet-5-5"), &json!(0))
    );
    assert_eq!(today["budget"], Value::Null);
    assert_eq!(metric(&service, r#"ceoagent_tokens_today{kind="output"}"#).await, bill[1] as f64);
    assert_about(metric(&service, r#"ceoagent_cost_today_dollars{kind="billed"}"#).await, cost(bill));

    let mut of_jobs = Vec::new();
    for id in &ids {
        let job = service.get(&format!("/api/v1/jobs/{id}")).await.body;
        if job["usage"].is_object() {
            assert_about(job["cost_usd"].as_f64().unwrap(), cost(told(&job["usage"])));
        }
        of_jobs.push(told(&job["usage"]));
    }
    assert_eq!(sum(of_jobs), bill, "and by job");
    service.kill();
    assert_eq!(usage(&setup.start()).await["days"], today["days"], "a restart keeps it");
}

/// What a call costs by the price list, in US dollars.
fn list_price(call: &Call) -> f64 {
    let (input, output, read) = match call.model.as_str() {
        "claude-opus-5-5" => (4.0, 20.0, 0.05),
        "claude-haiku-5-5" if call.usage.total_input() > 100_000 => (0.5, 2.5, 0.1),
        "claude-haiku-5-5" => (0.1, 0.5, 0.1),
        _ => (2.0, 10.0, 0.05),
    };
    let usage = call.usage;
    let written_1h = usage.cache_creation_1h_input_tokens;
    let written_5m = usage.cache_creation_input_tokens - written_1h;
    let prompt = usage.input_tokens as f64 + written_5m as f64 * 1.25 + written_1h as f64 * 2.0;
    let sum = (prompt + usage.cache_read_input_tokens as f64 * read) * input + usage.output_tokens as f64 * output;
    sum * if usage.is_us { 1.1 } else { 1.0 } / 1e6
}

#[tokio::test]
async fn over_all_kinds_of_prices_the_ledger_is_what_was_billed() {
    let claude = simulator().await;
    let usage_of = |n: u64| Usage {
        input_tokens: 1_000 + n,
        output_tokens: 500 * n + 1,
        cache_creation_input_tokens: if n.is_multiple_of(2) { 1_000 } else { 0 },
        cache_creation_1h_input_tokens: if n.is_multiple_of(4) { 600 } else { 0 },
        cache_read_input_tokens: if n.is_multiple_of(3) { 2_000 } else { 0 },
        is_us: n.is_multiple_of(5),
    };
    let long = Usage { input_tokens: 100_500, output_tokens: 900, ..Usage::default() };
    claude.script((0..12).map(|n| Fault::Usage(usage_of(n))).chain([Fault::Usage(long), Fault::Refusal]));
    let service = Setup::new(&claude.base_url()).with("MAX_QUERY_LENGTH", "100000").with("WORKERS", "1").start();
    let ask = async |query: &str, model: &str| {
        let answer = service.post("/api/v1/analyze", &json!({ "query": query, "model": model })).await;
        service.ended(&answer.id()).await
    };
    for n in 0..12 {
        let model = ["claude-sonnet-5-5", "claude-opus-5-5", "claude-haiku-5-5"][n % 3];
        ask(&format!("Should we start project {n}?"), model).await;
    }
    ask(&"x".repeat(99_000), "claude-haiku-5-5").await;
    ask("And this, which is refused?", "claude-opus-5-5").await;
    let bill: f64 = claude.calls().iter().map(list_price).sum();
    let ledger = usage(&service).await["days"][0]["total"]["cost_usd"].as_f64().unwrap();
    assert!((ledger - bill).abs() < bill * 0.000_1, "{ledger} {bill}");
    assert_eq!(claude.calls().len(), 14);
}

#[tokio::test(flavor = "multi_thread")]
async fn over_kills_and_faults_the_ledger_is_what_was_billed_but_for_calls_of_unknown_end() {
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let latency = Latency::LogNormal { median: Duration::from_millis(8), sigma: 0.5 };
    let claude = Simulator::start(SimulatorConfig { latency, ..SimulatorConfig::default() }).await.unwrap();
    let setup = Setup::new(&claude.base_url()).with("WORKERS", "8").with("MAX_RETRIES", "20");
    let mut accepted = Ledger::default();
    for life in 0..KILLS {
        claude.script((0..12).map(|_| match random.random_range(0..8) {
            0 => ErrorAnswer::status(500).into(),
            1 => Fault::DropAfter(random.random_range(1..8)),
            2 => Fault::CutAfter(random.random_range(1..8)),
            3 => Fault::CloseBeforeAnswer,
            4 => Fault::ErrorEvent("overloaded_error".to_owned()),
            _ => Fault::Normal,
        }));
        let service = setup.start();
        let mut load = Load::start(&service, life);
        load.accepted(random.random_range(5..40), &mut accepted).await;
        service.kill();
        load.end(&mut accepted).await;
    }
    let service = setup.start();
    for id in accepted.accepted.keys() {
        service.ended(id).await;
    }
    // Jobs whose 202 was lost are there too.
    while service.admin_get("/api/v1/admin/jobs?limit=1").await.body["total"]["succeeded"].as_u64().unwrap()
        < jobs(&service).await
    {}
    let attempts = attempts(&service).await;
    let unknown: Vec<&Value> = attempts.iter().filter(|attempt| attempt["may_have_been_billed"] == true).collect();
    let mut known: BTreeMap<&str, &Value> = attempts
        .iter()
        .filter(|attempt| attempt["may_have_been_billed"] == false)
        .filter_map(|attempt| Some((attempt["request_id"].as_str()?, attempt)))
        .collect();
    let calls = claude.calls();
    assert_eq!(calls.len(), claude.counters().calls, "all are on record");
    let mut open = Vec::new();
    for call in &calls {
        match known.remove(call.request_id.as_str()) {
            Some(attempt) => assert_eq!(told(&attempt["usage"]), billed(call), "{attempt:#}"),
            // Closed at once, for being idle as it seemed: not billed, and made again within its attempt.
            None if billed(call) == Bill::default() => {}
            None => open.push(billed(call)),
        }
    }
    assert!(known.is_empty(), "every call that is known was made: {known:#?}");

    let usage = usage(&service).await;
    let days = usage["days"].as_array().unwrap();
    let ledger = sum(days.iter().map(|day| told(&day["total"])));
    let of_attempts = sum(attempts.iter().map(|attempt| told(&attempt["usage"])));
    assert_eq!(ledger, of_attempts, "the ledger is the sum of all attempts");
    let at_risk = |kind: &str| days.iter().map(|day| day["total"]["at_risk"][kind].as_u64().unwrap()).sum::<u64>();
    println!(
        "{} calls billed {:?}; ledger {ledger:?}; {} calls of unknown end",
        calls.len(),
        sum(calls.iter().map(billed)),
        unknown.len()
    );
    assert_eq!(at_risk("calls"), unknown.len() as u64, "each is listed with its job");
    assert!(open.len() <= unknown.len(), "{} calls are not accounted for, {} are listed", open.len(), unknown.len());
    // What was billed lies between the ledger and the ledger with all that is at risk.
    let [input, output, write, read] = sum(calls.iter().map(billed));
    let inputs = ledger[0] + ledger[2] + ledger[3];
    assert!(inputs <= input + write + read && ledger[1] <= output, "the ledger tells no more than was billed");
    assert!(input + write + read <= inputs + at_risk("input_tokens"), "the rest is bounded");
    assert!(output <= ledger[1] + at_risk("output_tokens"), "the rest is bounded");
}

/// How many jobs there are.
async fn jobs(service: &Service) -> u64 {
    let total = service.admin_get("/api/v1/admin/jobs?limit=1").await.body["total"].clone();
    total.as_object().unwrap().values().map(|count| count.as_u64().unwrap()).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn many_workers_do_not_overrun_a_budget_and_a_higher_one_lets_the_queue_go_on() {
    const BUDGET: u64 = 200_000;
    let latency = Latency::Fixed(Duration::from_millis(5));
    let claude = Simulator::start(SimulatorConfig { latency, ..SimulatorConfig::default() }).await.unwrap();
    let mut setup = Setup::new(&claude.base_url())
        .with("WORKERS", "32")
        .with("DAILY_BUDGET", &format!("{BUDGET} tokens"))
        .with("SHUTDOWN_GRACE", "5");
    let service = setup.start();
    let ids = ask(&service, 120).await;
    let job = held(&service).await;
    assert!(job["queue"]["eta_seconds"].as_u64().unwrap() <= 24 * 3_600 + 600, "{job:#}");
    assert_eq!(job["attempts"], json!([]), "nothing was spent on it");
    let bill: u64 = sum(claude.calls().iter().map(billed)).iter().sum();
    assert!(bill <= BUDGET, "{bill}");
    assert!(bill > BUDGET / 2, "{bill}: and not held too early either");

    let ready = service.get("/health/ready").await;
    assert_eq!((ready.status, &ready.body["status"]), (200, &json!("degraded")), "questions are still accepted");
    assert_eq!(ready.body["reasons"][0]["code"], "budget_reached");
    let usage = usage(&service).await;
    let tokens = &usage["budget"]["tokens"];
    assert_eq!((tokens["limit"].as_u64(), tokens["spent"].as_u64()), (Some(BUDGET), Some(bill)));
    assert_eq!((tokens["reserved"].as_u64(), tokens["left"].as_u64()), (Some(0), Some(BUDGET - bill)));
    assert_eq!((&usage["budget"]["is_reached"], &usage["budget"]["is_nearly_used"]), (&json!(true), &json!(true)));
    assert_eq!(metric(&service, r#"ceoagent_queue_held{kind="budget_reached"}"#).await, 1.0);
    assert_eq!(metric(&service, "ceoagent_budget_warning").await, 1.0);
    assert!(metric(&service, "ceoagent_budget_used_ratios").await > 0.5);
    let (_, log) = service.terminate();
    assert_eq!(log.matches("the daily budget is used up").count(), 1, "{log}");
    assert_eq!(log.matches("80 % of the daily budget").count(), 1, "{log}");

    let service = setup.start();
    held(&service).await;
    assert_eq!(sum(claude.calls().iter().map(billed)).iter().sum::<u64>(), bill, "a restart does not forget it");
    drop(service);
    setup.set("DAILY_BUDGET", "10000000 tokens");
    let service = setup.start();
    for id in ids {
        assert_eq!(service.ended(&id).await.body["status"], "succeeded");
    }
}

#[tokio::test]
async fn a_call_too_large_for_what_is_left_of_the_budget_waits_alone_and_unspent() {
    let claude = simulator().await;
    let mut setup = Setup::new(&claude.base_url())
        .with("DAILY_BUDGET", "40000 tokens")
        .with("MAX_QUERY_LENGTH", "100000")
        .with("MAX_RETRIES", "0");
    let service = setup.start();
    service.ended(&service.submit("A small one first?").await.id()).await;
    let large =
        service.submit(&format!("Should we keep this plan? {}", "It was a good one. ".repeat(3_200))).await.id();
    let job = loop {
        let job = service.get(&format!("/api/v1/jobs/{large}")).await.body;
        if job["status"] == "scheduled" && job["attempts"].as_array().unwrap().len() == 1 {
            break job;
        }
    };
    let small = service.ended(&service.submit("And another small one?").await.id()).await;
    assert_eq!(small.body["status"], "succeeded", "the large one holds nobody else back");
    let attempt = &job["attempts"][0];
    assert_eq!((&attempt["outcome"], &attempt["error"]["code"]), (&json!("released"), &json!("budget_reached")));
    assert_eq!(claude.counters().calls, 2, "no call was made for it");
    drop(service);
    setup.set("DAILY_BUDGET", "1000000 tokens");
    assert_eq!(setup.start().ended(&large).await.body["status"], "succeeded", "and no attempt was spent");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reached_budget_opens_when_the_day_turns() {
    let claude = simulator().await;
    let folder = tempfile::tempdir().unwrap();
    let settings = settings(&claude.base_url(), folder.path(), &["--daily-budget=0.40 USD"]);
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    let clock = Clock::manual(Timestamp::from_millis(i64::try_from(now.as_millis()).unwrap()));
    let app = App::start(&settings, clock.clone()).await.unwrap();
    let base = format!("http://{}", app.address());
    let client = client();
    let get = async |path: &str| -> Value {
        client.get(format!("{base}{path}")).bearer_auth(ADMIN_TOKEN).send().await.unwrap().json().await.unwrap()
    };
    for n in 0..30 {
        let body = json!({ "query": format!("Should we hire engineer {n}?") });
        let answer = client.post(format!("{base}/api/v1/analyze")).json(&body).send().await.unwrap();
        assert_eq!(answer.status(), 202);
    }
    let mut days = Vec::new();
    loop {
        let page = get("/api/v1/admin/jobs?limit=1").await;
        if page["total"]["succeeded"] == 30 {
            break;
        }
        let usage = get("/api/v1/admin/usage").await;
        let calm = page["total"]["running"] == 0 && usage["budget"]["is_reached"] == true;
        if calm && days.last() != Some(&usage["today"]) {
            assert!(usage["spent_today"]["cost_usd"].as_f64().unwrap() <= 0.40, "{usage:#}");
            days.push(usage["today"].clone());
            clock.advance(Duration::from_hours(24));
        }
    }
    assert!(days.len() > 1, "held on several days: {days:?}");
    let usage = get("/api/v1/admin/usage").await;
    assert!(usage["days"].as_array().unwrap().len() > days.len() - 1, "{usage:#}");
    app.stop().await;
}

#[tokio::test]
async fn prices_are_set_and_a_model_without_one_is_not_free() {
    let claude = simulator().await;
    let setup = Setup::new(&claude.base_url())
        .with("MODEL_PRICES", "claude-sonnet-5-5=4/20")
        .with("ALLOWED_MODELS", "claude-sonnet-4-5");
    let service = setup.start();
    let job = service.ended(&service.submit("At which price?").await.id()).await.body;
    assert_about(job["cost_usd"].as_f64().unwrap(), 2.0 * cost(told(&job["usage"])));
    let body = json!({ "query": "And this one?", "model": "claude-sonnet-4-5", "wait": true });
    let job = service.post("/api/v1/analyze", &body).await.body;
    assert_eq!((&job["status"], job.get("cost_usd")), (&json!("succeeded"), None), "{job:#}");
    let day = &usage(&service).await["days"][0];
    let model = day["models"].as_array().unwrap().iter().find(|model| model["model"] == "claude-sonnet-4-5").unwrap();
    assert_eq!((&model["unpriced_calls"], &model["cost_usd"]), (&json!(1), &json!(0.0)));
}

#[tokio::test]
async fn a_budget_of_money_makes_no_call_whose_price_nobody_knows() {
    let claude = simulator().await;
    let service = Setup::new(&claude.base_url())
        .with("DAILY_BUDGET", "100 USD")
        .with("ALLOWED_MODELS", "claude-sonnet-4-5")
        .start();
    let body = json!({ "query": "What will it cost?", "model": "claude-sonnet-4-5", "wait": true });
    let answer = service.post("/api/v1/analyze", &body).await;
    answer.assert_problem(422, "model_unpriced");
    assert!(answer.body["detail"].as_str().unwrap().contains("MODEL_PRICES"));
    assert_eq!(claude.counters().calls, 0);
    assert_eq!(service.ended(&service.submit("And ours?").await.id()).await.body["status"], "succeeded");
}

#[test]
fn a_budget_that_can_not_be_kept_to_stops_the_start() {
    for (settings, words) in [
        (
            [("DAILY_BUDGET", "5 USD"), ("MODEL_NAME", "my-model")],
            ["the price of my-model, which is not known", "MODEL_PRICES"],
        ),
        (
            [("DAILY_BUDGET", "5 USD"), ("MODEL_NAME", "claude-sonnet-5-5,my-model")],
            ["the price of my-model, which is not known", "MODEL_PRICES"],
        ),
        (
            [("DAILY_BUDGET", "10000 tokens"), ("MAX_TOKENS", "16000")],
            ["DAILY_BUDGET: 10000 tokens", "lower MAX_TOKENS"],
        ),
        ([("DAILY_BUDGET", "0.02 USD"), ("MAX_TOKENS", "16000")], ["DAILY_BUDGET: 0.02 USD", "MAX_TOKENS"]),
    ] {
        let mut setup = Setup::new("http://127.0.0.1:9");
        settings.iter().for_each(|(name, value)| setup.set(name, value));
        let (status, said) = setup.run(&["serve"]);
        assert!(!status.success(), "{said}");
        words.iter().for_each(|word| assert!(said.contains(word), "{word:?} is not in {said}"));
    }
}

#[tokio::test]
async fn the_route_tells_what_is_wrong_with_its_parameters_and_is_the_operators() {
    let service = Setup::new("http://127.0.0.1:9").start();
    let empty = usage(&service).await;
    assert_eq!((&empty["days"], &empty["spent_today"]["calls"]), (&json!([]), &json!(0)));
    for wrong in ["days=0", "days=401", "days=x", "day=1"] {
        let answer = service.admin_get(&format!("/api/v1/admin/usage?{wrong}")).await;
        answer.assert_problem(400, "invalid_parameter");
    }
    service.get("/api/v1/admin/usage").await.assert_problem(401, "unauthorized");
}
