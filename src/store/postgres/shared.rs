//! What readers and the writer share.

use std::{
    sync::{Arc, atomic::AtomicU8},
    time::Duration,
};

use parking_lot::{Mutex, RwLock};
use tokio::{
    sync::{oneshot, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::{connection::Database, formats::Formats, readers::Readers, state::State};
use crate::{
    clock::Clock,
    metrics::Metrics,
    store::traits::{Feed, StoreError},
};

pub(super) struct Shared {
    pub(super) database: Arc<Database>,
    pub(super) readers: Readers,
    pub(super) clock: Clock,
    pub(super) metrics: Metrics,
    /// What this program can read, and what it writes.
    pub(super) formats: Formats,
    pub(super) format: AtomicU8,
    pub(super) state: RwLock<State>,
    pub(super) feed: Mutex<Option<Arc<dyn Feed>>>,
    pub(super) trouble: Mutex<Option<String>>,
    /// Why nothing new is stored, and no call begins whose answer could not be: the database has no room. It can be read, and
    /// old jobs can be removed.
    pub(super) full: Mutex<Option<String>>,
    pub(super) lost: CancellationToken,
    /// Cancelled once this node asks for the seat no more, and leaves it.
    pub(super) leaving: CancellationToken,
    /// Whether this node has the seat.
    pub(super) standing: watch::Sender<Standing>,
    /// The newest row of the feed that the task of the seat saw: the writer's own connection may miss a notification.
    pub(super) newest: watch::Sender<i64>,
    pub(super) unread: Mutex<Unread>,
    /// When this node last asked for the seat, or wrote a beat, and the server answered.
    pub(super) beat_at: Mutex<Instant>,
}

/// What a node is to the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// It has not asked yet.
    Unknown,
    /// Another node has the seat, or may take it.
    Beside,
    Seated,
}

/// Without an answer for so long, another node may take the seat in a moment, or this one knows no longer what the others do.
/// It begins nothing more.
const BEAT_LIMIT: Duration = Duration::from_secs(4);

impl Shared {
    /// Why the store can't be used at the moment, if so.
    pub(super) fn trouble(&self) -> Option<String> {
        let is_silent = || self.beat_at.lock().elapsed() > BEAT_LIMIT;
        let silence = || format!("the database has not answered for {} s", BEAT_LIMIT.as_secs());
        self.trouble.lock().clone().or_else(|| is_silent().then(silence))
    }

    /// Why nothing can be read at the moment, if so. A full database can be read, also while the writer connects again.
    pub(super) fn read_trouble(&self) -> Option<String> {
        self.trouble().filter(|_| self.full.lock().is_none())
    }

    pub(super) fn set_state(&self, state: State) {
        self.metrics.feed_position.set(state.n);
        *self.state.write() = state;
    }

    /// Whether this node hears of changes by others `within` this time. Without an answer for so long, they may not have come. With
    /// a row unread for so long, they have not.
    pub(super) fn hears(&self, within: Duration) -> bool {
        let read = self.state.read().n;
        self.trouble().is_none()
            && self.beat_at.lock().elapsed() <= within
            && !self.unread.lock().is_late(read, Instant::now(), within)
    }

    /// Has the writer read the feed up to this row, if it has not.
    pub(super) fn saw(&self, n: i64) {
        let read = self.state.read().n;
        self.unread.lock().saw(n, read, Instant::now());
        self.newest.send_if_modified(|newest| std::mem::replace(newest, n.max(*newest)) < n);
    }

    pub(super) fn set_trouble(&self, trouble: Option<String>) {
        *self.trouble.lock() = trouble;
    }
}

/// A row of the feed that this node has to read, and since when. It need not be the newest one, which another may follow before
/// it is read.
#[derive(Default)]
pub(super) struct Unread(Option<(i64, Instant)>);

impl Unread {
    fn saw(&mut self, n: i64, read: i64, now: Instant) {
        if self.0.is_none_or(|(row, _)| row <= read) {
            self.0 = (n > read).then_some((n, now));
        }
    }

    fn is_late(&self, read: i64, now: Instant, within: Duration) -> bool {
        self.0.is_some_and(|(row, since)| row > read && now - since > within)
    }
}

/// Asks the writer to reset the feed.
pub(super) struct Reset {
    pub(super) feed: Arc<dyn Feed>,
    pub(super) reply: oneshot::Sender<Result<(), StoreError>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(2);

    #[test]
    fn a_node_is_late_if_it_has_not_read_a_row_for_two_seconds_and_not_if_there_is_always_a_newer_one() {
        let start = Instant::now();
        let at = |milliseconds| start + Duration::from_millis(milliseconds);
        let mut unread = Unread::default();
        unread.saw(7, 7, at(0));
        assert!(!unread.is_late(7, at(60_000), LIMIT), "it has read all");
        for n in 8..100_u64 {
            let (row, read) = (i64::try_from(n).unwrap(), i64::try_from(n - 1).unwrap());
            unread.saw(row, read, at(n * 500));
            assert!(!unread.is_late(read, at(n * 500 + 499), LIMIT), "it reads each in time");
        }
        unread.saw(100, 98, at(50_000));
        unread.saw(200, 98, at(52_000));
        assert!(!unread.is_late(98, at(51_400), LIMIT) && unread.is_late(98, at(51_600), LIMIT));
        assert!(!unread.is_late(99, at(60_000), LIMIT), "it has read the one that it had to");
        unread.saw(200, 99, at(60_000));
        assert!(!unread.is_late(99, at(62_000), LIMIT) && unread.is_late(99, at(62_001), LIMIT));
    }
}
