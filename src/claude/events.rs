//! Server-sent events: bytes in, events out, by the WHATWG grammar, bounded in size.
//!
//! <https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream>. The one difference: an
//! event without the blank line at the end of the stream counts ([`Events::finish`]).

/// Longest single event, in bytes. Those of the API have a few hundred.
pub(super) const MAX_EVENT_BYTES: usize = 128 << 10;

const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Item {
    Event(Event),
    Comment,
}

#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Event {
    pub(super) name: String,
    pub(super) data: String,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct TooLong;

#[derive(Default)]
pub(super) struct Events {
    line: Vec<u8>,
    event: Event,
    /// Whether `event` has a `data` line, which may be blank.
    has_data: bool,
    /// The last line ended in CR: an LF that follows belongs to it.
    after_cr: bool,
    /// The byte order mark can only come before the first line.
    is_started: bool,
}

impl Events {
    /// Takes bytes off the front of `bytes` until an item is complete. `None`: all are taken, and more are needed.
    pub(super) fn next(&mut self, bytes: &mut &[u8]) -> Result<Option<Item>, TooLong> {
        while let Some(&first) = bytes.first() {
            if std::mem::take(&mut self.after_cr) && first == b'\n' {
                *bytes = &bytes[1..];
                continue;
            }
            let end = bytes.iter().position(|byte| matches!(byte, b'\n' | b'\r'));
            let (line, rest) = bytes.split_at(end.unwrap_or(bytes.len()));
            self.line.extend_from_slice(line);
            if self.line.len() + self.event.name.len() + self.event.data.len() > MAX_EVENT_BYTES {
                return Err(TooLong);
            }
            *bytes = rest.get(1..).unwrap_or_default();
            if let Some(ending) = rest.first() {
                self.after_cr = *ending == b'\r';
                if let Some(item) = self.end_line() {
                    return Ok(Some(item));
                }
            }
        }
        Ok(None)
    }

    pub(super) fn finish(mut self) -> Option<Event> {
        if !self.line.is_empty() {
            self.end_line();
        }
        self.dispatch()
    }

    fn end_line(&mut self) -> Option<Item> {
        let mut line = std::mem::take(&mut self.line);
        if !std::mem::replace(&mut self.is_started, true) && line.starts_with(BYTE_ORDER_MARK) {
            line.drain(..BYTE_ORDER_MARK.len());
        }
        // As the grammar has it, bytes that are not UTF-8 become U+FFFD: one character is no reason to lose an answer.
        let line = String::from_utf8_lossy(&line);
        if line.is_empty() {
            return self.dispatch().map(Item::Event);
        }
        let (field, value) = line.split_once(':').unwrap_or((&line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "" => return Some(Item::Comment),
            "event" => value.clone_into(&mut self.event.name),
            "data" => {
                if std::mem::replace(&mut self.has_data, true) {
                    self.event.data.push('\n');
                }
                self.event.data.push_str(value);
            }
            _ => {}
        }
        None
    }

    fn dispatch(&mut self) -> Option<Event> {
        let event = std::mem::take(&mut self.event);
        std::mem::take(&mut self.has_data).then_some(event)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The items of `stream`, cut into pieces of `piece` bytes, and what it ends in.
    fn items(stream: &[u8], piece: usize) -> (Vec<Item>, Option<Event>) {
        let (mut events, mut items) = (Events::default(), Vec::new());
        for mut bytes in stream.chunks(piece) {
            while let Some(item) = events.next(&mut bytes).unwrap() {
                items.push(item);
            }
        }
        (items, events.finish())
    }

    fn event(name: &str, data: &str) -> Event {
        Event { name: name.to_owned(), data: data.to_owned() }
    }

    #[test]
    fn lines_end_in_lf_crlf_or_cr_however_the_stream_is_cut() {
        for ending in ["\n", "\r\n", "\r"] {
            let lines = ["event: a", "data: 1", "data:2", "data", "", ": alive", "", "id: 7", "", "data:  ü", "", ""];
            let stream = lines.join(ending);
            let expected = [Item::Event(event("a", "1\n2\n")), Item::Comment, Item::Event(event("", " ü"))];
            for piece in 1..=stream.len() {
                assert_eq!(items(stream.as_bytes(), piece).0, expected, "{ending:?} {piece}");
            }
        }
    }

    #[test]
    fn a_byte_order_mark_is_left_out_at_the_start_only() {
        let (found, _) = items("\u{feff}data: \u{feff}x\n\n\u{feff}data: y\n\ndata: z\n\n".as_bytes(), 1);
        assert_eq!(found, [Item::Event(event("", "\u{feff}x")), Item::Event(event("", "z"))]);
    }

    #[test]
    fn an_event_that_the_stream_ends_in_counts() {
        for end in ["", "\n", "\r"] {
            assert_eq!(items(format!("event: a\ndata: 1{end}").as_bytes(), 5).1, Some(event("a", "1")));
        }
        assert_eq!(items(b"data: 1\n\nevent: a\n", 5).1, None);
    }

    #[test]
    fn bytes_that_are_not_utf8_become_replacement_characters() {
        assert_eq!(items(b"data: a\xffb\n\n", 3).0, [Item::Event(event("", "a\u{fffd}b"))]);
    }

    #[test]
    fn an_event_may_have_so_many_bytes_and_no_more() {
        for (length, fits) in [(MAX_EVENT_BYTES, true), (MAX_EVENT_BYTES + 1, false)] {
            let stream = format!("data: {}\n\n", "x".repeat(length - 6));
            let mut events = Events::default();
            let found = stream.as_bytes().chunks(1_000).try_for_each(|mut bytes| {
                while events.next(&mut bytes)?.is_some() {}
                Ok(())
            });
            assert_eq!(found, if fits { Ok(()) } else { Err(TooLong) });
        }
    }
}
