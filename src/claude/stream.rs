//! Reads the event stream of one answer: bytes to events to text, usage and a stop reason.
//!
//! The order of the events does not matter. Sizes and silences are bounded here; the client bounds the time of the call.

use std::{fmt::Display, pin::pin, time::Duration};

use futures_util::{Stream, StreamExt};
use serde::de::DeserializeOwned;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

use super::error::{CallError, ErrorKind, MAX_ERROR_BODY_BYTES, cause};
use super::events::{Event, Events, Item, MAX_EVENT_BYTES};
use super::intake::{Endless, Intake};
use super::message::{OnProgress, Progress, StopReason, Usage};
use super::wire::{
    BlockEvent, Counts, ErrorObject, Joiner, Message, MessageDelta, MessageStart, Part, Piece, Wtf8, event_type,
    from_json, pieces,
};

/// Longest answer, in bytes of text. The 128,000 tokens that a model can give are about 512 KiB.
pub(super) const MAX_ANSWER_BYTES: usize = 1 << 20;

/// How long to wait for the end of the body after `message_stop`: a new connection is cheaper than a late answer.
const DRAIN_TIMEOUT: Duration = Duration::from_millis(20);

/// How long to wait for `message_stop` once the stop reason, and so the whole answer, is there.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// The part of an answer that has been read. It outlives a failed read.
#[derive(Default)]
pub(super) struct Answer {
    pub(super) text: String,
    pub(super) model: String,
    /// `None` until the API reported any.
    counts: Option<Counts>,
    /// The output count is that of the whole answer, not of `message_start`.
    has_final_output: bool,
    pub(super) stop: Option<StopReason>,
    pub(super) is_complete: bool,
    /// Any content came, thinking included: then a refusal is billed.
    pub(super) has_content: bool,
    thinking_tokens: u64,
    texts: Joiner,
    thoughts: Joiner,
    /// The input of tools, as JSON texts, one a line.
    tools: String,
    inputs: Joiner,
}

/// What a body holds, by its first bytes: the types of gateways and firewalls can't be trusted.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Events,
    Whole,
    /// Nothing that the API sends.
    Page,
}

impl Form {
    const FIELDS: [&[u8]; 5] = [b"data", b"event", b"id", b"retry", b":"];

    /// `None` if more bytes are needed. `is_stream`: by its type it is a stream.
    fn of(start: &[u8], is_stream: bool, is_end: bool) -> Option<Form> {
        let start = start.strip_prefix(b"\xef\xbb\xbf").unwrap_or(start).trim_ascii_start();
        let longest = Form::FIELDS.iter().map(|field| field.len()).max();
        match start.first() {
            Some(b'{') => Some(Form::Whole),
            Some(b'<') => Some(Form::Page),
            Some(_) if is_stream || Form::FIELDS.iter().any(|field| start.starts_with(field)) => Some(Form::Events),
            Some(_) if is_end || Some(start.len()) >= longest => Some(Form::Page),
            None if is_end => Some(Form::Events),
            Some(_) | None => None,
        }
    }
}

/// Reads `body` into `answer` until it is complete. `is_stream`: by its type it is a stream.
pub(super) async fn read<B: AsRef<[u8]>>(
    body: impl Stream<Item = Result<B, reqwest::Error>>,
    is_stream: bool,
    idle: Duration,
    answer: &mut Answer,
    on_progress: OnProgress<'_>,
) -> Result<(), CallError> {
    let (mut body, mut events) = (pin!(body), Events::default());
    // What came before the form was known, or the whole body of another form than events.
    let (mut held, mut form) = (Vec::new(), None);
    // Only a whole event or comment is a sign of life, so bytes that make neither are silence.
    let mut alive = Instant::now();
    let (mut intake, mut stopped) = (Intake::new(), None);
    loop {
        // Once the stop reason is known, pings are no reason to wait on.
        let since = if answer.stop.is_some() { *stopped.get_or_insert_with(Instant::now) } else { alive };
        let idle = if answer.stop.is_some() { idle.min(STOP_TIMEOUT) } else { idle };
        let Some(chunk) = timeout_at(since + idle, body.next()).await.map_err(|_| silent(idle))? else { break };
        let chunk = chunk.map_err(|error| lost(&error))?;
        let mut bytes = chunk.as_ref();
        let pause = intake.add(bytes).map_err(|Endless| malformed("more events than an answer can have"))?;
        if form != Some(Form::Events) {
            held.extend_from_slice(bytes);
            form = Form::of(&held, is_stream, false);
            match form {
                Some(Form::Events) => {}
                Some(Form::Page) if held.len() >= MAX_ERROR_BODY_BYTES => break,
                _ if held.len() > MAX_ANSWER_BYTES => return Err(too_large()),
                Some(Form::Whole | Form::Page) => {
                    alive = Instant::now();
                    continue;
                }
                None => continue,
            }
        }
        let start = std::mem::take(&mut held);
        if !start.is_empty() {
            bytes = &start;
        }
        let too_long = |_| malformed(format!("an event of more than {MAX_EVENT_BYTES} bytes"));
        while let Some(item) = events.next(&mut bytes).map_err(too_long)? {
            alive = Instant::now();
            let Item::Event(event) = item else { continue };
            answer.take(&event, on_progress)?;
            if answer.is_complete {
                // The body's end, which is due now: a connection is used again only if it was read to there.
                let _ = timeout(DRAIN_TIMEOUT, body.next()).await;
                return Ok(());
            }
        }
        if let Some(until) = pause {
            if answer.stop.is_some() {
                return Err(silent(idle));
            }
            sleep_until(until).await;
        }
    }
    match form.or_else(|| Form::of(&held, is_stream, true)) {
        Some(Form::Whole) => answer.take_whole(&held, on_progress),
        Some(Form::Page) => Err(CallError::new(
            ErrorKind::Page,
            format!(
                "a web page or other text came instead of Claude's answer (check the base URL and what is between here \
                 and Claude): {}",
                String::from_utf8_lossy(&held)
            ),
        )),
        Some(Form::Events) | None => answer.take_end(events, on_progress),
    }
}

impl Answer {
    /// Whether the answer is whole although its stream failed: only the end was missing.
    pub(super) fn has_ended(&self, error: &CallError) -> bool {
        use ErrorKind::{ConnectionLost, Malformed, Silent, StreamCut, TotalTimeout};
        self.stop.is_some() && matches!(error.kind, StreamCut | ConnectionLost | Silent | TotalTimeout | Malformed)
    }

    /// The events ended without `message_stop`, but perhaps within an event.
    fn take_end(&mut self, events: Events, on_progress: OnProgress<'_>) -> Result<(), CallError> {
        if let Some(event) = events.finish() {
            self.take(&event, on_progress)?;
        }
        if self.is_complete {
            return Ok(());
        }
        let message =
            "Claude's stream ended without message_stop and without a stop reason, so the answer is incomplete";
        Err(CallError::new(ErrorKind::StreamCut, message))
    }

    fn take(&mut self, event: &Event, on_progress: OnProgress<'_>) -> Result<(), CallError> {
        let error = || ErrorObject::within(&event.data).as_ref().map(CallError::from_event);
        match event.name.as_str() {
            "message_start" => {
                let started = parse::<MessageStart>(event)?.message;
                self.model = started.model;
                self.counts.get_or_insert_default().update(&started.usage);
            }
            "content_block_start" | "content_block_delta" => {
                self.take_piece(parse::<BlockEvent>(event)?.content_block, on_progress)?;
            }
            "message_delta" => {
                let message = parse::<MessageDelta>(event)?;
                self.counts.get_or_insert_default().update(&message.usage);
                self.has_final_output |= message.usage.output.is_some();
                self.stop = message.delta.into_stop_reason().or(self.stop.take());
            }
            "message_stop" => self.is_complete = true,
            "error" => {
                return Err(error().unwrap_or_else(|| {
                    CallError::new(ErrorKind::StreamError, format!("Claude broke off its answer: {}", event.data))
                }));
            }
            "ping" | "content_block_stop" => {}
            // Gateways drop the names of events; the data has them too.
            name => match event_type(&event.data) {
                Some(kind) if kind != name => {
                    return self.take(&Event { name: kind, data: event.data.clone() }, on_progress);
                }
                None if event.data.starts_with('{') => {
                    return Err(error().unwrap_or_else(|| malformed("an event without a type")));
                }
                _ => {}
            },
        }
        Ok(())
    }

    pub(super) fn take_whole(&mut self, body: &[u8], on_progress: OnProgress<'_>) -> Result<(), CallError> {
        let text = String::from_utf8_lossy(body);
        let text = text.trim_start_matches('\u{feff}');
        if let Some(object) = ErrorObject::within(text) {
            return Err(CallError::from_event(&object));
        }
        let unreadable = |error: serde_json::Error| malformed(format!("a message can't be read: {error}"));
        let message: Message = from_json(text).map_err(unreadable)?;
        self.model = message.model;
        self.counts.get_or_insert_default().update(&message.usage);
        self.has_final_output = message.usage.output.is_some();
        let content = message.content.map_or(Ok(Vec::new()), |content| pieces(&content).map_err(unreadable))?;
        for block in content {
            self.take_piece(Some(block), on_progress)?;
        }
        self.stop = message.ending.into_stop_reason();
        self.is_complete = true;
        Ok(())
    }

    fn take_piece(&mut self, piece: Option<Piece>, on_progress: OnProgress<'_>) -> Result<(), CallError> {
        let Some(part) = piece.map(Piece::into_part) else { return Ok(()) };
        // A text may be empty; `append` looks.
        self.has_content |= !matches!(part, Some(Part::Text(_)));
        match part {
            Some(Part::Text(text)) => {
                let text = self.texts.join(text);
                self.append(&text, on_progress)?;
            }
            Some(Part::Thinking(thinking)) => self.thinking_tokens += tokens(&self.thoughts.join(thinking)),
            Some(Part::Input(input)) => self.append_input(input)?,
            Some(Part::Tool(input)) => {
                self.tools.push('\n');
                self.append_input(input.unwrap_or_default())?;
            }
            None => {}
        }
        Ok(())
    }

    /// Call it at the end, also after an error. Gateways emulate structured output by a tool, whose input is the answer.
    pub(super) fn finish(&mut self, on_progress: OnProgress<'_>, most_input: u64, most_output: u64) {
        let tools = std::mem::take(&mut self.tools);
        let tools = if self.text.is_empty() { tools.trim_start() } else { &tools };
        if !tools.trim().is_empty() {
            // What is too long to be added is too long to be a memo.
            let _ = self.append(tools, on_progress);
        }
        if let Some(counts) = &mut self.counts {
            counts.drop_impossible(most_input, most_output);
        }
    }

    pub(super) fn has_whole_usage(&self) -> bool {
        self.has_final_output && self.counts.is_some_and(|counts| counts.input.is_some() && counts.output.is_some())
    }

    /// The API counts output only at the end. If that did not come, it is estimated from the text and thinking that did.
    pub(super) fn usage(&self) -> Option<Usage> {
        let seen = tokens(&self.text) + self.thinking_tokens;
        let known = self.counts.map(|counts| counts.usage());
        if self.has_whole_usage() {
            return known;
        }
        let known = known.or_else(|| (seen > 0).then(Usage::default))?;
        Some(Usage { output_tokens: known.output_tokens.max(seen), ..known })
    }

    fn append_input(&mut self, input: Wtf8) -> Result<(), CallError> {
        self.tools.push_str(&self.inputs.join(input));
        if self.tools.len() > MAX_ANSWER_BYTES { Err(too_large()) } else { Ok(()) }
    }

    fn append(&mut self, text: &str, on_progress: OnProgress<'_>) -> Result<(), CallError> {
        if text.is_empty() {
            return Ok(());
        }
        if self.text.len() + text.len() > MAX_ANSWER_BYTES {
            return Err(too_large());
        }
        self.has_content = true;
        self.text.push_str(text);
        on_progress(Progress::Text(text));
        Ok(())
    }
}

/// About how many tokens `text` is: four ASCII characters are one, any other character is one.
pub(super) fn tokens(text: &str) -> u64 {
    let ascii = text.bytes().filter(u8::is_ascii).count();
    let others = text.bytes().filter(|byte| *byte >= 0xc0).count();
    (ascii.div_ceil(4) + others) as u64
}

pub(super) fn silent(idle: Duration) -> CallError {
    CallError::new(
        ErrorKind::Silent,
        format!("Claude sent neither an event nor a ping for {idle:?} (the idle timeout)"),
    )
}

pub(super) fn malformed(what: impl Display) -> CallError {
    CallError::new(ErrorKind::Malformed, format!("Claude's answer does not follow the API: {what}"))
}

fn parse<T: DeserializeOwned>(event: &Event) -> Result<T, CallError> {
    from_json(&event.data).map_err(|error| malformed(format!("event {}: {error}", event.name)))
}

fn too_large() -> CallError {
    malformed(format!("an answer of more than {MAX_ANSWER_BYTES} bytes"))
}

fn lost(error: &reqwest::Error) -> CallError {
    let message = format!("the connection to Claude broke in the middle of the answer: {}", cause(error));
    CallError::new(ErrorKind::ConnectionLost, message)
}
