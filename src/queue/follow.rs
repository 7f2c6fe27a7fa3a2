//! Following a job on its way: every change of its status, the text of its running attempt as it comes, its end.
//!
//! The text of an attempt is kept once, in its [`Draft`], however many follow it; a follower holds no more than how far
//! it has read. So nothing grows for a slow one and nobody waits for it: its pieces are larger. A signal says only that
//! there may be news; the store and the draft are the truth, so one that was missed costs a moment and no news.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::{sync::Notify, time::Instant};

use super::{Queue, QueueError, WAIT_POLL, service_time::Progress, wait::Interest};
use crate::job::{Job, JobId, JobRecord, JobStatus};

/// Most bytes of an attempt's text that are kept for followers: four times the longest usual memo. What comes after
/// them is in the result only.
const MAX_DRAFT_BYTES: usize = 256 << 10;

/// Pieces of text are at least so far apart: faster than anybody reads, slower than tokens come.
const PIECE_INTERVAL: Duration = Duration::from_millis(100);

/// What has come of an attempt's answer. Lives as long as the attempt, in memory only.
#[derive(Debug)]
pub struct Draft {
    attempt: u32,
    /// When the attempt was claimed.
    begun_at: Instant,
    text: Mutex<String>,
    times: Mutex<Option<Times>>,
    grown: Notify,
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
            begun_at: Instant::now(),
            text: Mutex::default(),
            times: Mutex::default(),
            grown: Notify::new(),
        }
    }

    /// How far the attempt has come.
    pub(super) fn progress(&self) -> Progress {
        let text = self.times.lock().map(|times| (times.first.elapsed(), times.bytes));
        Progress { elapsed: self.begun_at.elapsed(), text }
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

    /// What follows the first `seen` bytes, if anything does. A place that never was counts as the start.
    fn after(&self, seen: usize) -> Option<(usize, String)> {
        let text = self.text.lock();
        let (start, rest) = text.get(seen..).map_or((0, text.as_str()), |rest| (seen, rest));
        (!rest.is_empty()).then(|| (start, rest.to_owned()))
    }
}

/// How much of a job's way a follower knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// The newest attempt.
    pub attempt: u32,
    /// The status that it was told; none before the first.
    pub status: Option<JobStatus>,
    /// Bytes of the attempt's text.
    pub bytes: usize,
}

/// What a follower is told.
#[derive(Debug)]
pub enum News {
    /// The job is pending, in another way than was told before.
    Status(Job),
    /// Its attempt brought more text.
    Text {
        /// The attempt.
        attempt: u32,
        /// It begins anew: text of an attempt before is void.
        from_start: bool,
        /// What came.
        text: String,
    },
    /// It has reached an end. Nothing follows.
    Ended(JobRecord),
}

/// Somebody who follows a job.
pub struct Follower {
    queue: Queue,
    id: JobId,
    interest: Interest,
    seen: Seen,
    next_piece_at: Instant,
}

impl Queue {
    /// Follows a job from where somebody has `seen` it.
    ///
    /// # Errors
    /// As [`Queue::get`].
    pub async fn follow(&self, id: JobId, seen: Seen) -> Result<Follower, QueueError> {
        let interest = self.0.followers.register(id);
        self.0.find(id).await?;
        Ok(Follower { queue: self.clone(), id, interest, seen, next_piece_at: Instant::now() })
    }
}

impl Follower {
    /// How far it has come.
    pub fn seen(&self) -> Seen {
        self.seen
    }

    /// True if the job has ended and the follower knows.
    pub async fn is_over(&self) -> bool {
        let job = self.queue.find(self.id).await;
        job.is_ok_and(|job| job.state.is_final() && self.knows(&job))
    }

    fn knows(&self, job: &Job) -> bool {
        (self.seen.attempt, self.seen.status) == (job.attempt, Some(job.status(self.queue.now())))
    }

    fn note(&mut self, job: &Job) {
        let bytes = if job.attempt == self.seen.attempt { self.seen.bytes } else { 0 };
        self.seen = Seen { attempt: job.attempt, status: Some(job.status(self.queue.now())), bytes };
    }

    /// The next piece of news, as soon as there is one; none once the end was told or the service shuts down. Dropping
    /// the future loses none.
    ///
    /// # Errors
    /// As [`Queue::get`].
    pub async fn next(&mut self) -> Result<Option<News>, QueueError> {
        let (queue, signal) = (self.queue.clone(), Arc::clone(self.interest.signal()));
        loop {
            let changed = signal.notified();
            let job = queue.find(self.id).await?;
            if !self.knows(&job) {
                if !job.state.is_final() {
                    self.note(&job);
                    return Ok(Some(News::Status(job)));
                }
                let record = queue.get(self.id).await?;
                if record.job.state.is_final() {
                    self.note(&record.job);
                    return Ok(Some(News::Ended(record)));
                }
                // Queued again in between.
                continue;
            }
            if job.state.is_final() || queue.is_closing() {
                return Ok(None);
            }
            let draft = queue.0.running.draft(self.id).filter(|draft| draft.attempt == job.attempt);
            let grown = draft.as_ref().map(|draft| draft.grown.notified());
            let is_time = Instant::now() >= self.next_piece_at;
            if is_time && let Some((start, text)) = draft.as_ref().and_then(|draft| draft.after(self.seen.bytes)) {
                self.seen.bytes = start + text.len();
                self.next_piece_at = Instant::now() + PIECE_INTERVAL;
                return Ok(Some(News::Text { attempt: job.attempt, from_start: start == 0, text }));
            }
            let more = async {
                match grown {
                    Some(grown) if is_time => grown.await,
                    Some(_) => tokio::time::sleep_until(self.next_piece_at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = changed => {}
                () = more => {}
                () = tokio::time::sleep(WAIT_POLL) => {}
                () = queue.0.closing.cancelled() => {}
            }
        }
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
