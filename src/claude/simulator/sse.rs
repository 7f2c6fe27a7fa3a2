//! An answer as the bytes that go out: the events of a stream or one JSON object, whole or broken on purpose.

use std::{io, sync::Arc, time::Duration};

use axum::body::{Body, Bytes};
use futures_util::stream;
use serde_json::{Value, json};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{
    fault::{Fault, error_body},
    pace::Timing,
    record::Flight,
};
use crate::claude::message::Usage;

/// Characters of text in one event when the answer is spread over time: about what a few tokens come to.
const DELTA_CHARS: usize = 48;

/// The same for an answer that is due at once: events cost CPU in load tests.
const DELTA_CHARS_AT_ONCE: usize = 1_024;

/// Pause between two writes of an answer that is spread over time, at least.
const MIN_PAUSE: Duration = Duration::from_millis(50);

/// EventBuffer before those of the text: `message_start`, `ping`, and the four of the thinking.
const EVENTS_BEFORE_TEXT: usize = 6;

pub(super) struct Message {
    pub(super) id: String,
    pub(super) model: String,
    pub(super) text: Arc<str>,
    pub(super) has_thinking: bool,
    pub(super) stop_reason: String,
    pub(super) usage: Usage,
    pub(super) start: Option<Timing>,
    pub(super) latency: Duration,
}

pub(super) enum Step {
    Send(Bytes),
    Wait(Duration),
    /// Breaks the connection; what was not flushed before, with a wait, is lost.
    Break,
    /// Says nothing more, until the caller leaves or the simulator ends.
    Hang,
}

struct EventBuffer {
    bytes: String,
    ends: Vec<usize>,
}

impl Message {
    pub(super) fn silence(&self) -> Duration {
        self.start.map_or(Duration::ZERO, |start| start.first + start.thinking)
    }

    pub(super) fn json(&self) -> Value {
        let mut content = vec![json!({"type": "text", "text": &*self.text})];
        if self.has_thinking {
            content.insert(0, json!({"type": "thinking", "thinking": THOUGHT, "signature": "c2lt"}));
        }
        json!({
            "id": self.id, "type": "message", "role": "assistant", "model": self.model, "content": content,
            "stop_reason": self.stop_reason, "stop_sequence": null, "stop_details": self.stop_details(),
            "usage": wire(&self.usage),
        })
    }

    pub(super) fn steps(&self, writes: u32, fault: &Fault) -> Vec<Step> {
        let at_once = self.latency.is_zero() && self.start.is_none() && matches!(fault, Fault::Normal);
        let EventBuffer { bytes, ends } = self.events(if at_once { DELTA_CHARS_AT_ONCE } else { DELTA_CHARS });
        let bytes = Bytes::from(bytes);
        let upto = |events: usize| bytes.slice(..events.checked_sub(1).map_or(0, |n| ends[n.min(ends.len() - 1)]));
        let middle = ends.len() / 2;
        match fault {
            Fault::CutAfter(events) => vec![Step::Send(upto(*events))],
            Fault::CutBeforeLast => vec![Step::Send(upto(ends.len() - 1))],
            Fault::CutBeforeStop => vec![Step::Send(upto(ends.len() - 2))],
            Fault::DropAfter(events) => vec![Step::Send(upto(*events)), Step::Wait(Duration::ZERO), Step::Break],
            Fault::StallAfter(events) => vec![Step::Send(upto(*events)), Step::Hang],
            Fault::SlowBytes { bytes: size, pause } => (0..bytes.len())
                .step_by((*size).max(1))
                .flat_map(|at| [Step::Send(bytes.slice(at..bytes.len().min(at + size))), Step::Wait(*pause)])
                .collect(),
            Fault::Malformed => {
                vec![Step::Send(upto(middle)), Step::Send("event: content_block_delta\ndata: {\"type\":\n\n".into())]
            }
            Fault::ErrorEvent(error_type) => {
                let error = error_body(error_type, "simulated error in the middle of the answer", None, &self.id);
                vec![Step::Send(upto(middle)), Step::Send(format!("event: error\ndata: {error}\n\n").into())]
            }
            _ if at_once => vec![Step::Send(bytes)],
            _ => self.spread(&bytes, &ends, writes),
        }
    }

    fn events(&self, delta_chars: usize) -> EventBuffer {
        let mut events = EventBuffer { bytes: String::with_capacity(self.text.len() * 2), ends: Vec::new() };
        let usage = Usage { output_tokens: 1, ..self.usage };
        events.push(
            "message_start",
            &json!({"type": "message_start", "message": {
                "id": self.id, "type": "message", "role": "assistant", "model": self.model, "content": [],
                "stop_reason": null, "stop_sequence": null, "usage": wire(&usage),
            }}),
        );
        events.push("ping", &json!({"type": "ping"}));
        let text_index = usize::from(self.has_thinking);
        if self.has_thinking {
            events.block(0, &json!({"type": "thinking", "thinking": "", "signature": ""}), |events| {
                events.delta(0, "thinking_delta", "thinking", THOUGHT);
                events.delta(0, "signature_delta", "signature", "c2lt");
            });
        }
        if !self.text.is_empty() {
            events.block(text_index, &json!({"type": "text", "text": ""}), |events| {
                let mut rest = &*self.text;
                while !rest.is_empty() {
                    let end = rest.char_indices().nth(delta_chars).map_or(rest.len(), |(at, _)| at);
                    let (piece, after) = rest.split_at(end);
                    events.delta(text_index, "text_delta", "text", piece);
                    rest = after;
                }
            });
        }
        events.push(
            "message_delta",
            &json!({
                "type": "message_delta", "usage": wire(&self.usage),
                "delta": {"stop_reason": self.stop_reason, "stop_sequence": null, "stop_details": self.stop_details()},
            }),
        );
        events.push("message_stop", &json!({"type": "message_stop"}));
        events
    }

    fn spread(&self, bytes: &Bytes, ends: &[usize], writes: u32) -> Vec<Step> {
        let mut steps = Vec::new();
        let mut first = 1;
        if let Some(Timing { first: until, thinking, .. }) = self.start {
            // The head comes halfway to the first token; thinking is silent.
            first = EVENTS_BEFORE_TEXT;
            let begun = ends[1];
            steps.extend([Step::Wait(until / 2), Step::Send(bytes.slice(..begun)), Step::Wait(until / 2 + thinking)]);
            steps.push(Step::Send(bytes.slice(begun..ends[first - 1])));
        } else {
            steps.push(Step::Send(bytes.slice(..ends[0])));
        }
        let rest = ends.len() - first;
        let fitting = self.latency.as_nanos() / MIN_PAUSE.as_nanos();
        let writes = usize::try_from(fitting).unwrap_or(usize::MAX).min(writes as usize).clamp(1, rest.max(1));
        let pause = self.latency.div_f64(writes as f64);
        let mut sent = ends[first - 1];
        for write in 1..=writes {
            let end = ends[first - 1 + rest * write / writes];
            steps.extend([Step::Wait(pause), Step::Send(bytes.slice(sent..end))]);
            sent = end;
        }
        steps
    }

    fn stop_details(&self) -> Option<Value> {
        (self.stop_reason == "refusal")
            .then(|| json!({"type": "refusal", "category": "general_harms", "explanation": "A simulated refusal."}))
    }
}

fn wire(usage: &Usage) -> Value {
    let written_1h = usage.cache_creation_1h_input_tokens;
    json!({
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "cache_creation_input_tokens": usage.cache_creation_input_tokens,
        "cache_read_input_tokens": usage.cache_read_input_tokens,
        "cache_creation": {
            "ephemeral_5m_input_tokens": usage.cache_creation_input_tokens - written_1h,
            "ephemeral_1h_input_tokens": written_1h,
        },
        "inference_geo": if usage.is_us { "us" } else { "global" },
    })
}

const THOUGHT: &str = "A simulated thought, which is no part of the answer.";

impl EventBuffer {
    fn push(&mut self, name: &str, data: &Value) {
        self.raw(name, |bytes| bytes.push_str(&data.to_string()));
    }

    /// By hand, as nearly all events are of this kind.
    fn delta(&mut self, index: usize, kind: &str, field: &str, text: &str) {
        self.raw("content_block_delta", |bytes| {
            bytes.push_str(r#"{"type":"content_block_delta","index":"#);
            bytes.push_str(if index == 0 { "0" } else { "1" });
            bytes.extend([r#","delta":{"type":""#, kind, r#"",""#, field, r#"":"#]);
            bytes.push_str(&Value::from(text).to_string());
            bytes.push_str("}}");
        });
    }

    fn block(&mut self, index: usize, block: &Value, deltas: impl FnOnce(&mut EventBuffer)) {
        let start = json!({"type": "content_block_start", "index": index, "content_block": block});
        self.push("content_block_start", &start);
        deltas(self);
        self.push("content_block_stop", &json!({"type": "content_block_stop", "index": index}));
    }

    fn raw(&mut self, name: &str, data: impl FnOnce(&mut String)) {
        self.bytes.extend(["event: ", name, "\ndata: "]);
        data(&mut self.bytes);
        self.bytes.push_str("\n\n");
        self.ends.push(self.bytes.len());
    }
}

/// A body that goes out step by step, its pauses counted from now. `flight` lands with the last step.
pub(super) fn body(mut steps: Vec<Step>, mut flight: Flight, end: CancellationToken) -> Body {
    if let [Step::Send(bytes)] = steps.as_mut_slice() {
        flight.land();
        return Body::from(std::mem::take(bytes));
    }
    let state = (steps.into_iter(), Instant::now(), flight, end);
    Body::from_stream(stream::unfold(state, |(mut steps, mut due, mut flight, end)| async move {
        loop {
            let Some(step) = steps.next() else {
                flight.land();
                return None;
            };
            match step {
                Step::Send(bytes) => {
                    // A caller who has all may leave without asking for more.
                    if steps.len() == 0 {
                        flight.land();
                    }
                    return Some((Ok(bytes), (steps, due, flight, end)));
                }
                // Lets the server flush what it has.
                Step::Wait(Duration::ZERO) => tokio::task::yield_now().await,
                // Until a moment: otherwise the delays of many pauses would add up.
                Step::Wait(time) => {
                    due += time;
                    tokio::time::sleep_until(due).await;
                }
                Step::Hang => {
                    end.cancelled().await;
                    return None;
                }
                Step::Break => {
                    flight.land();
                    return Some((Err(io::Error::other("broken on purpose")), (steps, due, flight, end)));
                }
            }
        }
    }))
}
