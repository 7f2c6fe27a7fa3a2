//! The text of running attempts, for followers on other nodes. Each node sends what has come of its own attempts and reads
//! what is followed here and runs elsewhere, both a few times a second and many attempts at a time.
//!
//! A [`TextRelay`] may lose everything at any moment, be slow or be away: that costs followers on other nodes text, and nothing
//! else. An attempt's text never changes, it only grows, and every piece has its place in bytes. So a piece that comes twice
//! changes nothing, one that was lost is sent again, and what stands behind a gap is not taken.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Weak},
    time::Duration,
};

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::{draft::Draft, running::Running};
use crate::job::JobId;

/// As often as a follower on the attempt's own node gets text.
const INTERVAL: Duration = Duration::from_millis(100);

/// Most bytes of one attempt that are sent or read at once ...
const MAX_PIECE_BYTES: usize = 16 << 10;

/// ... and most attempts: together a mebibyte, which a usual network carries in a hundredth of a second.
const MAX_PIECES: usize = 64;

/// Most texts that are removed at once. If so many can't be removed, they are forgotten: nobody reads them.
const MAX_REMOVED: usize = 1_000;

/// Carries the text of running attempts between nodes. All calls return soon, even if the server does not answer.
#[async_trait]
pub trait TextRelay: Send + Sync {
    /// Adds pieces to the texts that are there. A piece from the start replaces the text, one behind a gap is not added. Gives
    /// how many bytes of each text are there afterwards, or `None` if the pieces can't be sent now.
    async fn send(&self, pieces: &[TextPiece]) -> Option<Vec<usize>>;

    /// At most `most` bytes of each text from a place on, none for one that is not there; `None` if they can't be read now.
    async fn read(&self, places: &[TextPlace], most: usize) -> Option<Vec<Vec<u8>>>;

    /// Removes texts; `None` if they can't be removed now.
    async fn remove(&self, attempts: &[(JobId, u32)]) -> Option<()>;
}

/// A place in the text of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TextPlace {
    pub id: JobId,
    pub attempt: u32,
    /// Bytes before it.
    pub at: usize,
}

impl TextPlace {
    fn attempt(&self) -> (JobId, u32) {
        (self.id, self.attempt)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TextPiece {
    pub place: TextPlace,
    pub text: String,
}

pub(super) struct Relay {
    texts: Arc<dyn TextRelay>,
    /// Texts of attempts on other nodes, as long as somebody here follows them.
    copies: Mutex<HashMap<(JobId, u32), Weak<Draft>>>,
}

impl Relay {
    pub(super) fn new(texts: Arc<dyn TextRelay>) -> Relay {
        Relay { texts, copies: Mutex::default() }
    }

    /// The text of an attempt on another node. It grows from now on, as long as it is held.
    pub(super) fn copy(&self, id: JobId, attempt: u32) -> Arc<Draft> {
        let mut copies = self.copies.lock();
        copies.get(&(id, attempt)).and_then(Weak::upgrade).unwrap_or_else(|| {
            let copy = Arc::new(Draft::copy(attempt));
            copies.insert((id, attempt), Arc::downgrade(&copy));
            copy
        })
    }

    /// Sends what came since the last time. `sent` has how much of each text is there.
    async fn send(&self, running: &Running, sent: &mut HashMap<(JobId, u32), usize>) {
        let drafts = running.drafts();
        let current: HashSet<(JobId, u32)> = drafts.iter().map(|(id, draft)| (*id, draft.attempt)).collect();
        let over = sent.keys().filter(|attempt| !current.contains(*attempt));
        let over: Vec<(JobId, u32)> = over.take(MAX_REMOVED).copied().collect();
        if !over.is_empty() && (self.texts.remove(&over).await.is_some() || over.len() == MAX_REMOVED) {
            sent.retain(|attempt, _| !over.contains(attempt));
        }
        let new = drafts.iter().filter_map(|(id, draft)| {
            let at = sent.get(&(*id, draft.attempt)).copied().unwrap_or_default();
            let place = TextPlace { id: *id, attempt: draft.attempt, at };
            Some((TextPiece { place, text: draft.piece(at, MAX_PIECE_BYTES)? }, draft))
        });
        let (pieces, drafts): (Vec<TextPiece>, Vec<&Arc<Draft>>) = new.unzip();
        for (pieces, drafts) in pieces.chunks(MAX_PIECES).zip(drafts.chunks(MAX_PIECES)) {
            // What fails may have been written all the same, and has to be removed.
            for piece in pieces {
                sent.entry(piece.place.attempt()).or_default();
            }
            let Some(there) = self.texts.send(pieces).await else { return };
            for ((piece, draft), there) in pieces.iter().zip(drafts).zip(there) {
                // A longer text is not this one.
                let there = if there <= draft.len() { there } else { 0 };
                sent.insert(piece.place.attempt(), there);
            }
        }
    }

    /// Reads what came since the last time of the texts that are followed here.
    async fn read(&self) {
        let followed: Vec<(JobId, Arc<Draft>)> = {
            let mut copies = self.copies.lock();
            copies.retain(|_, copy| copy.strong_count() > 0);
            copies.iter().filter_map(|((id, _), copy)| Some((*id, copy.upgrade()?))).collect()
        };
        for copies in followed.chunks(MAX_PIECES) {
            let place = |(id, copy): &(JobId, Arc<Draft>)| TextPlace { id: *id, attempt: copy.attempt, at: copy.len() };
            let places: Vec<TextPlace> = copies.iter().map(place).collect();
            let Some(pieces) = self.texts.read(&places, MAX_PIECE_BYTES).await else { return };
            for ((_, copy), piece) in copies.iter().zip(pieces) {
                let piece = whole_characters(&piece);
                if !piece.is_empty() {
                    copy.push(piece);
                }
            }
        }
    }

    /// Exchanges the text of running attempts with the other nodes, until `closing` and no attempt is left.
    pub(super) async fn run(&self, running: &Running, closing: &CancellationToken) {
        let mut sent = HashMap::new();
        let mut tick = tokio::time::interval(INTERVAL);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            let is_over = closing.is_cancelled() && running.own() == 0;
            self.send(running, &mut sent).await;
            if is_over {
                return;
            }
            self.read().await;
        }
    }
}

/// The bytes up to the first that is no part of a whole character.
fn whole_characters(bytes: &[u8]) -> &str {
    let valid = match std::str::from_utf8(bytes) {
        Ok(_) => bytes.len(),
        Err(error) => error.valid_up_to(),
    };
    std::str::from_utf8(&bytes[..valid]).unwrap_or_default()
}
