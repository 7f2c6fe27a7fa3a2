//! The text of an attempt as it comes. It is stored once, however many follow it.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::{sync::Notify, time::Instant};

use super::service_time::Progress;

/// Most bytes of an attempt's text that are stored for followers: four times the longest usual memo. What comes after
/// them is in the result only.
const MAX_DRAFT_BYTES: usize = 256 << 10;

/// What has come of an attempt's answer. Lives as long as the attempt, in memory only.
#[derive(Debug)]
pub struct Draft {
    pub(super) attempt: u32,
    /// The attempt runs on another node. The text may be behind what a follower has read there.
    is_copy: bool,
    /// When the attempt was claimed.
    begun_at: Instant,
    text: Mutex<String>,
    times: Mutex<Option<Times>>,
    pub(super) grown: Notify,
}

/// When the text of an attempt came, and how much.
#[derive(Clone, Copy, Debug)]
struct Times {
    first: Instant,
    last: Instant,
    bytes: usize,
}

impl Draft {
    pub(super) fn new(attempt: u32) -> Draft {
        Draft {
            attempt,
            is_copy: false,
            begun_at: Instant::now(),
            text: Mutex::default(),
            times: Mutex::default(),
            grown: Notify::new(),
        }
    }

    /// The text of an attempt on another node.
    pub(super) fn copy(attempt: u32) -> Draft {
        Draft { is_copy: true, ..Draft::new(attempt) }
    }

    /// How far the attempt has come.
    pub(super) fn progress(&self) -> Progress {
        Progress::of(self.moments())
    }

    /// When the attempt was claimed, when the first piece of its text came, and how many bytes came.
    pub(super) fn moments(&self) -> (Instant, Option<(Instant, usize)>) {
        (self.begun_at, self.times.lock().map(|times| (times.first, times.bytes)))
    }

    /// From the first piece of the text to the last, and its bytes.
    pub(super) fn written(&self) -> (Duration, usize) {
        self.times.lock().map_or((Duration::ZERO, 0), |times| (times.last - times.first, times.bytes))
    }

    /// Adds the next piece. Costs its copy when nobody follows.
    pub fn push(&self, piece: &str) {
        let now = Instant::now();
        let mut times = self.times.lock();
        let Times { first, bytes, .. } = times.unwrap_or(Times { first: now, last: now, bytes: 0 });
        *times = Some(Times { first, last: now, bytes: bytes + piece.len() });
        drop(times);
        let mut text = self.text.lock();
        let room = MAX_DRAFT_BYTES - text.len();
        text.push_str(&piece[..piece.floor_char_boundary(room)]);
        drop(text);
        self.grown.notify_waiters();
    }

    /// What follows the first `seen` bytes, if anything does. A place that can't be in the text counts as the start.
    pub(super) fn after(&self, seen: usize) -> Option<(usize, String)> {
        let text = self.text.lock();
        if self.is_copy && (text.len()..=MAX_DRAFT_BYTES).contains(&seen) {
            return None;
        }
        let (start, rest) = text.get(seen..).map_or((0, text.as_str()), |rest| (seen, rest));
        (!rest.is_empty()).then(|| (start, rest.to_owned()))
    }

    /// The text after the first `from` bytes, at most `most` bytes. It ends between two characters.
    pub(super) fn piece(&self, from: usize, most: usize) -> Option<String> {
        let text = self.text.lock();
        let rest = text.get(from..)?;
        let piece = &rest[..rest.floor_char_boundary(most)];
        (!piece.is_empty()).then(|| piece.to_owned())
    }

    pub(super) fn len(&self) -> usize {
        self.text.lock().len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_draft_gives_what_was_not_seen_and_all_of_it_to_whoever_saw_something_else() {
        let draft = Draft::new(1);
        assert_eq!(draft.after(0), None);
        draft.push("数a");
        assert_eq!(draft.after(0), Some((0, "数a".to_owned())));
        assert_eq!(draft.after(3), Some((3, "a".to_owned())));
        assert_eq!(draft.after(4), None);
        assert_eq!(draft.after(1), Some((0, "数a".to_owned())), "within a character");
        assert_eq!(draft.after(99), Some((0, "数a".to_owned())), "of another life");
    }

    #[test]
    fn a_copy_that_is_behind_a_follower_gives_nothing_until_it_has_caught_up() {
        let draft = Draft::copy(1);
        draft.push("数");
        assert_eq!(draft.after(4), None);
        draft.push("ab");
        assert_eq!(draft.after(4), Some((4, "b".to_owned())));
        assert_eq!(draft.after(MAX_DRAFT_BYTES + 1), Some((0, "数ab".to_owned())), "no text has so many bytes");
    }

    #[test]
    fn a_piece_ends_with_a_whole_character() {
        let draft = Draft::new(1);
        draft.push("a数b");
        assert_eq!(draft.piece(0, 3), Some("a".to_owned()));
        assert_eq!(draft.piece(1, 3), Some("数".to_owned()));
        assert_eq!((draft.piece(5, 3), draft.piece(2, 3)), (None, None));
    }

    #[test]
    fn a_draft_has_its_bound_however_it_is_reached() {
        let draft = Draft::new(1);
        draft.push(&"x".repeat(MAX_DRAFT_BYTES - 1));
        draft.push("数");
        draft.push(&"y".repeat(MAX_DRAFT_BYTES));
        let (_, text) = draft.after(0).unwrap();
        assert_eq!(text.len(), MAX_DRAFT_BYTES);
        assert!(text.ends_with("xy"), "a piece that no longer fits is left out as a whole character");
    }
}
