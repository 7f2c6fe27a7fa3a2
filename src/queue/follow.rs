//! Following a job on its way: every change of its status, the text of its running attempt as it comes, its end.
//!
//! The text of an attempt is stored once, in its [`super::draft::Draft`], however many follow it; a follower holds no more than how far
//! it has read. So nothing grows for a slow one and none waits for it: its pieces are larger. A signal says only that
//! there may be news; the store and the draft are the truth, so one that was missed costs a moment and no news.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{core::WAIT_POLL, draft::Draft, error::QueueError, handles::Queue, wait::Interest};
use crate::job::{Job, JobId, JobRecord, JobStatus};

/// Pieces of text are at least so far apart: faster than anybody reads, slower than tokens come.
const PIECE_INTERVAL: Duration = Duration::from_millis(100);

/// How much of a job's way a follower knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// The newest attempt.
    pub attempt: u32,
    /// The newest status that it got; `None` before the first.
    pub status: Option<JobStatus>,
    /// Bytes of the attempt's text.
    pub bytes: usize,
}

/// What a follower gets.
#[derive(Debug)]
pub enum News {
    /// The job is pending, with another status than before.
    Status(Job),
    /// Its attempt brought more text.
    Text {
        /// The attempt.
        attempt: u32,
        /// The text starts again: that of an earlier attempt is void.
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
    /// The text of an attempt that runs on another node. It is read as long as somebody holds it.
    copy: Option<Arc<Draft>>,
}

impl Queue {
    /// Follows a job from where somebody has `seen` it.
    ///
    /// # Errors
    /// As [`Queue::get`].
    pub async fn follow(&self, id: JobId, seen: Seen) -> Result<Follower, QueueError> {
        let interest = self.0.followers.register(id);
        self.0.find(id).await?;
        Ok(Follower { queue: self.clone(), id, interest, seen, next_piece_at: Instant::now(), copy: None })
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

    /// What has come of the text of the job's attempt, if it can be read here.
    fn draft(&mut self, job: &Job) -> Option<Arc<Draft>> {
        let own = self.queue.0.running.draft(self.id).filter(|draft| draft.attempt == job.attempt);
        let is_elsewhere = own.is_none() && job.owner.is_some_and(|owner| owner != self.queue.0.owner());
        self.copy = self.copy.take().filter(|copy| is_elsewhere && copy.attempt == job.attempt);
        if is_elsewhere && self.copy.is_none() {
            self.copy = self.queue.0.relay.as_ref().map(|relay| relay.copy(self.id, job.attempt));
        }
        own.or_else(|| self.copy.clone())
    }

    /// The next piece of news, as soon as there is one; `None` after the end, or when the service shuts down. Dropping
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
            if job.state.is_final() || queue.0.is_closing() {
                return Ok(None);
            }
            let draft = self.draft(&job);
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
                biased;
                () = changed => {}
                () = more => {}
                () = tokio::time::sleep(WAIT_POLL) => {}
                () = queue.0.closing.cancelled() => {}
            }
        }
    }
}
