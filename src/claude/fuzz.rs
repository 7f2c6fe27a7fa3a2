//! Whatever Claude, or something that stands before it, sends: broken, endless, cut anywhere, in any pieces. It is an
//! answer or an error within bounds, never a panic. `PROPTEST_CASES` sets how much of it is tried.

use std::{sync::Mutex, time::Duration};

use proptest::{collection::vec, prelude::*, sample::Index};
use reqwest::header::{HeaderMap, HeaderValue};
use serde_json::json;

use super::{
    error::{CallError, MAX_RETRY_AFTER},
    events::MAX_EVENT_BYTES,
    message::{Progress, StopReason},
    stream::{self, Answer, MAX_ANSWER_BYTES},
};

/// An event as the API sends it, or one of the same name with something else in it.
fn event() -> impl Strategy<Value = String> {
    let frame = |name: &str, data: serde_json::Value| format!("event: {name}\ndata: {data}\n\n");
    let known = prop_oneof![
        Just("message_start"),
        Just("content_block_start"),
        Just("content_block_delta"),
        Just("message_delta"),
        Just("message_stop"),
        Just("error"),
        Just("ping"),
    ];
    prop_oneof![
        Just(frame("message_start", json!({"message": {"model": "m", "usage": {"input_tokens": 3}}}))),
        any::<String>()
            .prop_map(move |text| frame("content_block_delta", json!({"delta": {"type": "text_delta", "text": text}}))),
        any::<u64>().prop_map(move |tokens| frame(
            "message_delta",
            json!({"delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": tokens}})
        )),
        any::<String>()
            .prop_map(move |text| frame("error", json!({"error": {"type": "overloaded_error", "message": text}}))),
        Just("data: {\"type\":\"content_block_delta\",\"delta\":{\"type\":\"text_delta\",\"text\":\"\\ud83d\"}}\n\n".to_owned()),
        Just("data: {\"type\":\"content_block_delta\",\"delta\":{\"type\":\"input_json_delta\",\"partial_json\":\"\\ude00\"}}\n\n".to_owned()),
        Just("event: ping\ndata: {}\n\n".to_owned()),
        Just("event: message_stop\ndata: {}\n\n".to_owned()),
        (known, "\\PC{0,60}").prop_map(|(name, data)| format!("event: {name}\ndata: {data}\n\n")),
        // A line that does not end, up to more than is taken.
        (1..MAX_EVENT_BYTES * 2).prop_map(|length| format!("data: {}", "x".repeat(length))),
    ]
}

/// What is sent, with bytes of it changed, left out or put in between.
fn broken() -> impl Strategy<Value = Vec<u8>> {
    let start = prop_oneof![3 => Just(""), 1 => Just("\u{feff}"), 1 => Just(": heartbeat\n\n")];
    let ending = prop_oneof![3 => Just("\n"), 1 => Just("\r\n"), 1 => Just("\r")];
    let changes = vec((any::<Index>(), any::<u8>(), 0..3_u8), 0..6);
    (start, ending, vec(event(), 0..12), changes).prop_map(|(start, ending, events, changes)| {
        let mut bytes = (start.to_owned() + &events.concat().replace('\n', ending)).into_bytes();
        for (place, byte, how) in changes {
            if bytes.is_empty() {
                break;
            }
            let place = place.index(bytes.len());
            match how {
                0 => bytes[place] = byte,
                1 => drop(bytes.remove(place)),
                _ => bytes.insert(place, byte),
            }
        }
        bytes
    })
}

/// What a body that comes in pieces of this size is read as, with all the text that was given on the way.
fn read(body: &[u8], piece: usize) -> (Answer, Result<(), CallError>, String) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let pieces: Vec<Result<Vec<u8>, reqwest::Error>> = body.chunks(piece).map(|piece| Ok(piece.to_vec())).collect();
    let (mut answer, told) = (Answer::default(), Mutex::new(String::new()));
    let on_progress = |progress: Progress<'_>| {
        if let Progress::Text(text) = progress {
            told.lock().unwrap().push_str(text);
        }
    };
    let idle = Duration::from_secs(5);
    let result =
        runtime.block_on(stream::read(futures_util::stream::iter(pieces), true, idle, &mut answer, &on_progress));
    answer.finish(&on_progress, u64::MAX, u64::MAX);
    (answer, result, told.into_inner().unwrap())
}

proptest! {
    #[test]
    fn a_broken_stream_is_an_answer_or_an_error_within_bounds(body in broken(), piece in 1..5_000_usize) {
        let (answer, result, told) = read(&body, piece);
        prop_assert!(answer.text.len() <= MAX_ANSWER_BYTES);
        prop_assert_eq!(&told, &answer.text, "what followers saw is what is kept");
        let (again, as_one, _) = read(&body, body.len().max(1));
        prop_assert_eq!((&again.text, as_one.is_ok()), (&answer.text, result.is_ok()), "pieces make no difference");
    }

    #[test]
    fn an_event_is_too_long_or_not_however_it_is_cut(
        length in MAX_EVENT_BYTES - 3_000..MAX_EVENT_BYTES + 3_000, piece in 1..70_000_usize,
    ) {
        let body = format!("event: ping\ndata: {}\n\n", "x".repeat(length));
        let (_, result, _) = read(body.as_bytes(), piece);
        let is_too_long = result.is_err_and(|error| error.message.contains("an event of more than"));
        prop_assert_eq!(is_too_long, "pingdata: ".len() + length > MAX_EVENT_BYTES);
    }

    #[test]
    fn a_whole_stream_is_its_text_however_it_is_cut(texts in vec(any::<String>(), 0..20), piece in 1..200_usize) {
        // Every text is cut into deltas by UTF-16 units, so that some cuts halve a surrogate pair.
        let escaped = |unit: u16| format!("\\u{unit:04x}");
        let delta = |text: &String| -> String {
            let units: Vec<u16> = text.encode_utf16().collect();
            let deltas = units.chunks(3).map(|units| {
                let text: String = units.iter().copied().map(escaped).collect();
                format!(
                    "event: content_block_delta\ndata: {{\"delta\":{{\"type\":\"text_delta\",\"text\":\"{text}\"}}}}\n\n"
                )
            });
            deltas.collect()
        };
        let start = json!({"message": {"model": "m", "usage": {"input_tokens": 3, "output_tokens": 1}}});
        let end = json!({"delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 9}});
        let body = format!(
            "event: message_start\ndata: {start}\n\n{}event: message_delta\ndata: {end}\n\nevent: message_stop\ndata: {{}}\n\n",
            texts.iter().map(delta).collect::<String>()
        );
        let (answer, result, _) = read(body.as_bytes(), piece);
        prop_assert!(result.is_ok(), "{:?}", result);
        prop_assert_eq!(answer.text, texts.concat());
        prop_assert!(matches!(answer.stop, Some(StopReason::EndTurn)), "{:?}", answer.stop);
    }

    #[test]
    fn a_whole_message_that_is_broken_is_an_error(body in vec(any::<u8>(), 0..400)) {
        let mut answer = Answer::default();
        let _ = answer.take_whole(&body, &|_| {});
        prop_assert!(answer.text.len() <= MAX_ANSWER_BYTES);
    }

    #[test]
    fn a_retry_after_is_none_or_within_its_bound(
        seconds in retry_after(), ms in retry_after(), status in 100..1000_u16, body in vec(any::<u8>(), 0..200),
    ) {
        let mut headers = HeaderMap::new();
        for (name, value) in [("retry-after", seconds), ("retry-after-ms", ms)] {
            if let Some(value) = value.and_then(|value| HeaderValue::from_bytes(&value).ok()) {
                headers.insert(name, value);
            }
        }
        let error = CallError::from_answer(status, &headers, &body, std::time::SystemTime::now());
        if let Some(wait) = error.retry_after {
            prop_assert!(!wait.is_zero() && wait <= MAX_RETRY_AFTER, "{wait:?}");
        }
    }
}

fn retry_after() -> impl Strategy<Value = Option<Vec<u8>>> {
    let number =
        prop_oneof![any::<f64>().prop_map(|number| number.to_string()), any::<i64>().prop_map(|n| n.to_string())];
    let date = any::<u32>()
        .prop_map(|seconds| httpdate::fmt_http_date(std::time::UNIX_EPOCH + Duration::from_secs(u64::from(seconds))));
    let word =
        "inf|NaN|-inf|1e999|-0|0x10|[A-Z][a-z]{2}, [0-9]{1,3} [A-Z][a-z]{2} [0-9]{1,5} [0-9]{2}:[0-9]{2}:[0-9]{2} GMT";
    prop_oneof![
        Just(None),
        prop_oneof![number, date, word].prop_map(|text| Some(text.into_bytes())),
        vec(any::<u8>(), 0..40).prop_map(Some),
    ]
}
