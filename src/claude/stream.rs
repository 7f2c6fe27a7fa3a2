//! Reading the event stream of one answer: bytes to events to text, usage and a stop reason.
//!
//! Expects no order of the events, but for the end: a stream is complete when `message_stop` came. Sizes and silences
//! are bounded here; the whole call's time is bounded by the client.

use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use eventsource_stream::{Event, EventStreamError, Eventsource};
use futures_util::{Stream, StreamExt, stream};
use serde::Deserialize;

use super::error::{CallError, ErrorKind};
use super::wire::{BlockDelta, BlockStart, ErrorObject, MessageDelta, MessageStart, Piece, Usage, WholeMessage};
use super::{OnProgress, Progress, StopReason, cause};

/// Longest answer taken, in bytes of text. The 64,000 tokens a model can give come to some 256 KiB; only a runaway
/// stream is four times that.
pub(super) const MAX_ANSWER_BYTES: usize = 1 << 20;

/// Longest single event taken, in bytes. The API's are a few hundred.
pub(super) const MAX_EVENT_BYTES: usize = 128 << 10;

/// The decoder moves its whole buffer for every line it takes off, so it is fed in small pieces.
const PIECE_BYTES: usize = 2 << 10;

/// How long to wait for the end of the body after `message_stop`. It usually comes in the same packet; where it does
/// not, a new connection is cheaper than a late answer.
const DRAIN_TIMEOUT: Duration = Duration::from_millis(20);

/// What has been read of an answer so far. It outlives a failed read, so the error can tell how far it came.
#[derive(Default)]
pub(super) struct Answer {
    pub(super) text: String,
    pub(super) model: String,
    pub(super) usage: Option<Usage>,
    pub(super) stop: Option<StopReason>,
    /// Tokens that the thinking seen so far comes to.
    thinking_tokens: u64,
}

enum ReadError {
    EventTooLong,
    Lost(reqwest::Error),
}

/// Reads `body` into `answer` until `message_stop`, giving each piece of it to `on_progress` as it comes.
pub(super) async fn read<B: AsRef<[u8]>>(
    body: impl Stream<Item = Result<B, reqwest::Error>>,
    idle: Duration,
    answer: &mut Answer,
    on_progress: OnProgress<'_>,
) -> Result<(), CallError> {
    // Bytes fed to the decoder since it last gave an event: what it may be holding.
    let held = AtomicUsize::new(0);
    let pieces = body.flat_map(|chunk| {
        stream::iter(match chunk {
            // Cut at the ends of lines, so that an event ends with a piece and the next one is counted from its beginning.
            Ok(bytes) => {
                let lines = bytes.as_ref().split_inclusive(|byte| matches!(byte, b'\n' | b'\r'));
                lines.flat_map(|line| line.chunks(PIECE_BYTES)).map(|piece| Ok(piece.to_vec())).collect()
            }
            Err(error) => vec![Err(ReadError::Lost(error))],
        })
    });
    let bounded = pieces.map(|piece| match piece {
        Ok(bytes) if held.fetch_add(bytes.len(), Relaxed) + bytes.len() > MAX_EVENT_BYTES => {
            Err(ReadError::EventTooLong)
        }
        piece => piece,
    });
    let mut events = pin!(bounded.eventsource());
    loop {
        let next = tokio::time::timeout(idle, events.next()).await.map_err(|_| silent(idle))?;
        held.store(0, Relaxed);
        let event = match next {
            None => {
                return Err(CallError::new(
                    ErrorKind::StreamCut,
                    "Claude's stream ended without message_stop, so the answer is incomplete",
                ));
            }
            Some(Err(error)) => return Err(broken(&error)),
            Some(Ok(event)) => event,
        };
        if answer.take(&event, on_progress)? {
            // The body's end, which is due now: a connection is used again only if it was read to there.
            let _ = tokio::time::timeout(DRAIN_TIMEOUT, events.next()).await;
            return Ok(());
        }
    }
}

impl Answer {
    /// Takes one event in; true when it was the last.
    fn take(&mut self, event: &Event, on_progress: OnProgress<'_>) -> Result<bool, CallError> {
        match event.event.as_str() {
            "message_start" => {
                let started = parse::<MessageStart>(event)?.message;
                self.model = started.model;
                self.usage.get_or_insert_default().update(&started.usage);
            }
            "content_block_start" => self.take_piece(&parse::<BlockStart>(event)?.content_block, on_progress)?,
            "content_block_delta" => self.take_piece(&parse::<BlockDelta>(event)?.delta, on_progress)?,
            "message_delta" => {
                let message = parse::<MessageDelta>(event)?;
                self.usage.get_or_insert_default().update(&message.usage);
                self.stop = message.delta.into_stop_reason().or(self.stop.take());
            }
            "message_stop" => return Ok(true),
            "error" => return Err(CallError::of_event(&parse::<ErrorObject>(event)?)),
            _ => {}
        }
        Ok(false)
    }

    /// Takes in a body that is no stream but a whole message.
    pub(super) fn take_whole(&mut self, body: &[u8], on_progress: OnProgress<'_>) -> Result<(), CallError> {
        let message: WholeMessage = serde_json::from_slice(body).map_err(|error| match ErrorObject::parse(body) {
            Some(object) => CallError::of_event(&object),
            None => malformed(&format!("a message came that can't be read: {error}")),
        })?;
        self.model = message.model;
        self.usage.get_or_insert_default().update(&message.usage);
        for block in &message.content {
            self.take_piece(block, on_progress)?;
        }
        self.stop = message.ending.into_stop_reason();
        Ok(())
    }

    fn take_piece(&mut self, piece: &Piece, on_progress: OnProgress<'_>) -> Result<(), CallError> {
        if let Some(thinking) = piece.thinking().filter(|thinking| !thinking.is_empty()) {
            self.thinking_tokens += tokens(thinking);
            on_progress(Progress::Thinking(thinking));
        }
        let Some(text) = piece.text().filter(|text| !text.is_empty()) else { return Ok(()) };
        if self.text.len() + text.len() > MAX_ANSWER_BYTES {
            return Err(malformed(&format!("an answer of more than {MAX_ANSWER_BYTES} bytes")));
        }
        self.text.push_str(text);
        on_progress(Progress::Text(text));
        Ok(())
    }

    /// The tokens of an answer that broke off. The API counts its output only at the end, so it is estimated from what
    /// came, thinking included.
    pub(super) fn usage_of_a_part(&self) -> Option<Usage> {
        let seen = tokens(&self.text) + self.thinking_tokens;
        let known = self.usage.or_else(|| (seen > 0).then(Usage::default))?;
        Some(Usage { output_tokens: known.output_tokens.max(seen), ..known })
    }
}

/// About how many tokens `text` is: four ASCII characters are one, any other character is one.
pub(super) fn tokens(text: &str) -> u64 {
    let ascii = text.bytes().filter(u8::is_ascii).count();
    let others = text.bytes().filter(|byte| *byte >= 0xc0).count();
    (ascii.div_ceil(4) + others) as u64
}

/// The error for no sign of life within `idle`.
pub(super) fn silent(idle: Duration) -> CallError {
    CallError::new(
        ErrorKind::Silent,
        format!("Claude sent neither an event nor a ping for {idle:?} (the idle timeout)"),
    )
}

/// The error for something the API would not send.
pub(super) fn malformed(what: &str) -> CallError {
    CallError::new(ErrorKind::Malformed, format!("Claude's answer is not what the API promises: {what}"))
}

fn parse<'a, T: Deserialize<'a>>(event: &'a Event) -> Result<T, CallError> {
    serde_json::from_str(&event.data).map_err(|error| malformed(&format!("event {}: {error}", event.event)))
}

fn broken(error: &EventStreamError<ReadError>) -> CallError {
    match error {
        EventStreamError::Utf8(_) => malformed("the stream is not UTF-8"),
        EventStreamError::Parser(_) => malformed("the stream is not server-sent events"),
        EventStreamError::Transport(ReadError::EventTooLong) => {
            malformed(&format!("an event of more than {MAX_EVENT_BYTES} bytes"))
        }
        EventStreamError::Transport(ReadError::Lost(error)) => CallError::new(
            ErrorKind::ConnectionLost,
            format!("the connection to Claude broke in the middle of the answer: {}", cause(error)),
        ),
    }
}
