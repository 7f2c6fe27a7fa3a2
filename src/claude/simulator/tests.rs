//! What the simulator answers and what it rejects, asked with plain HTTP.

use super::*;

async fn simulator() -> Simulator {
    let _ = rustls::crypto::ring::default_provider().install_default();
    Simulator::start(SimulatorConfig::default()).await.unwrap()
}

async fn post_json(simulator: &Simulator, body: &Value) -> (u16, Value) {
    let request = reqwest::Client::new()
        .post(format!("{}/v1/messages", simulator.base_url()))
        .header("x-api-key", "any")
        .header("anthropic-version", "2026-10-21");
    let response = request.json(body).send().await.unwrap();
    (response.status().as_u16(), response.json().await.unwrap())
}

fn good() -> Value {
    json!({
        "model": "claude-haiku-5-5", "max_tokens": 8_000,
        "messages": [{"role": "user", "content": [{"type": "text", "text": "Buy or build?"}]}],
    })
}

#[tokio::test]
async fn an_unstreamed_answer_is_one_message() {
    let (status, message) = post_json(&simulator().await, &good()).await;
    assert_eq!(status, 200);
    assert_eq!((&message["type"], &message["stop_reason"]), (&json!("message"), &json!("end_turn")));
    assert!(message["content"][0]["text"].as_str().unwrap().contains("SIMULATED ANSWER"));
}

#[tokio::test]
async fn bad_requests_are_rejected_with_what_is_wrong() {
    let simulator = simulator().await;
    let cases = [
        (json!({"model": null}), "model: Field required"),
        (json!({"max_tokens": null}), "max_tokens: Field required"),
        (json!({"messages": null}), "messages: Field required"),
        (json!({"messages": []}), "at least one message"),
        (json!({"max_tokens": 0}), "greater than or equal to 1"),
        (json!({"max_tokens": 30_000}), "must stream"),
        (json!({"temperature": 0.5}), "temperature"),
        (json!({"top_k": 5}), "top_k"),
        (json!({"tool_choice": {"type": "any"}}), "tool_choice"),
        (json!({"colour": "red"}), "colour"),
        (json!({"messages": [{"role": "user"}]}), "messages[0]"),
        (json!({"messages": [{"role": "assistant", "content": "{"}]}), "prefill"),
        (json!({"output_config": {"format": {"type": "text"}}}), "json_schema"),
        (json!({"output_config": {"format": {"type": "json_schema"}}}), "schema: Field required"),
        (schema(&json!({"type": "object"})), "additionalProperties"),
        (schema(&json!({"type": "array", "minItems": 2})), "minItems"),
        (schema(&json!({"type": "array", "items": {"type": "integer", "maximum": 5}})), "maximum"),
    ];
    for (change, said) in cases {
        let mut body = good();
        for (field, value) in change.as_object().unwrap() {
            body[field] = value.clone();
        }
        let (status, answer) = post_json(&simulator, &body).await;
        assert_eq!((status, &answer["error"]["type"]), (400, &json!("invalid_request_error")), "{body}");
        assert!(answer["error"]["message"].as_str().unwrap().contains(said), "{answer}");
        assert!(answer["request_id"].is_string());
    }
}

fn schema(schema: &Value) -> Value {
    json!({"output_config": {"format": {"type": "json_schema", "schema": schema}}})
}

#[tokio::test]
async fn the_key_may_come_as_a_bearer_token() {
    let simulator = simulator().await;
    let url = format!("{}/v1/models/claude-haiku-5-5", simulator.base_url());
    let request = reqwest::Client::new().get(url).header("anthropic-version", "2026-10-21");
    assert_eq!(request.bearer_auth("any").send().await.unwrap().status(), 200);
}

#[tokio::test]
async fn unknown_routes_and_methods_get_the_apis_error_envelope() {
    let simulator = simulator().await;
    let get = async |path| {
        let response = reqwest::get(format!("{}{path}", simulator.base_url())).await.unwrap();
        (response.status().as_u16(), response.json::<Value>().await.unwrap()["error"]["type"].clone())
    };
    assert_eq!(get("/v1/nothing").await, (404, json!("not_found_error")));
    assert_eq!(get("/v1/messages").await, (405, json!("invalid_request_error")));
    assert_eq!(get("/v1/models/claude-haiku-5-5").await, (401, json!("authentication_error")));
}

#[tokio::test]
async fn the_record_keeps_the_newest_calls_and_the_counters_go_on() {
    let simulator = simulator().await;
    let call = Call {
        at: SystemTime::UNIX_EPOCH,
        request_id: String::new(),
        model: String::new(),
        prompt: String::new(),
        body: Bytes::new(),
        status: None,
        answer: None,
        usage: Usage { input_tokens: 1, ..Usage::default() },
    };
    for n in 0..MAX_RECORDED_CALLS + 5 {
        simulator.shared.record.receive(Call { prompt: n.to_string(), ..call.clone() }).land();
    }
    assert_eq!(simulator.calls().len(), MAX_RECORDED_CALLS);
    assert_eq!(simulator.calls()[0].prompt, "5");
    assert_eq!(simulator.counters().calls, MAX_RECORDED_CALLS + 5);
    assert_eq!(simulator.counters().usage.input_tokens, 1_005);
}

#[test]
fn the_median_latency_is_the_median() {
    let latency = Latency::LogNormal { median: Duration::from_secs(2), sigma: 0.5 };
    let mut times: Vec<_> = (0..10_001).map(|_| latency.sample().unwrap()).collect();
    times.sort();
    assert!((1.8..2.2).contains(&times[5_000].as_secs_f64()), "{:?}", times[5_000]);
    assert!(Latency::LogNormal { median: Duration::from_secs(2), sigma: f64::NAN }.sample().is_err());
}

#[test]
fn chinese_takes_more_tokens_than_english_of_as_many_characters() {
    assert_eq!(tokens("four"), 1);
    assert_eq!(tokens("我们应该"), 4);
}
