//! The commands that wait for the writer.

use std::collections::VecDeque;

use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::{batch::Batch, error::Result};
use crate::store::traits::StoreError;

/// Most jobs that a batch changes: bounds how long its first change waits for the last.
const MAX_CHANGES: usize = 1_024;

/// From so many new jobs on, a batch takes no further command that inserts any. So a change waits for two large inserts at
/// most, however many come in.
const MAX_NEW: usize = 128;

/// Most bytes of each kind in a batch, for the same reason. One command is taken however large it is.
pub(super) const MAX_BYTES: usize = 4 << 20;

#[derive(Clone, Copy)]
pub(super) struct Size {
    /// Whether it inserts new jobs; all others change jobs that are there, or records beside the jobs.
    pub(super) is_insert: bool,
    pub(super) jobs: usize,
    /// About how much it writes.
    pub(super) bytes: usize,
}

impl Size {
    pub(super) const ONE: Size = Size { is_insert: false, jobs: 1, bytes: 0 };

    pub(super) fn change(jobs: usize, bytes: usize) -> Size {
        Size { is_insert: false, jobs: jobs.max(1), bytes }
    }
}

pub(super) type Reply<T> = oneshot::Receiver<Result<T>>;

/// Stages the command in a batch, or replies with the error. Fails if the batch must fail.
type Run = dyn FnOnce(Result<&mut Batch<'_>>) -> Result<()> + Send;

/// A command with its permit for the bounded queue.
pub(super) struct Request {
    size: Size,
    run: Box<Run>,
    _permit: OwnedSemaphorePermit,
}

impl Request {
    /// The reply is sent once the batch is durable. A refusal too: it may rest on another change of the batch.
    pub(super) fn new<T: Send + 'static>(
        size: Size,
        permit: OwnedSemaphorePermit,
        command: impl FnOnce(&mut Batch<'_>) -> Result<T> + Send + 'static,
    ) -> (Request, Reply<T>) {
        let (sender, reply) = oneshot::channel();
        // Nobody may be listening any more.
        let send = |result| drop(sender.send(result));
        let run = move |batch: Result<&mut Batch<'_>>| {
            let batch = match batch {
                Ok(batch) => batch,
                Err(fault) => {
                    send(Err(fault));
                    return Ok(());
                }
            };
            let result = command(batch);
            let fault = result.as_ref().err().filter(|error| matches!(error, StoreError::Unavailable { .. })).cloned();
            batch.reply(move |fault| send(fault.map_or(result, Err)));
            fault.map_or(Ok(()), Err)
        };
        (Request { size, run: Box::new(run), _permit: permit }, reply)
    }

    pub(super) fn stage(self, batch: &mut Batch<'_>) -> Result<()> {
        (self.run)(Ok(batch))
    }

    /// Replies that nothing is known to have happened.
    pub(super) fn fail(self, fault: StoreError) {
        let _ = (self.run)(Err(fault));
    }
}

/// The commands that wait for a batch, changes and inserts each in the order in which they came. Changes go first: nobody
/// knows a new job before it is written, so no change that overtakes it can be about it.
#[derive(Default)]
pub(super) struct CommandQueue {
    changes: VecDeque<Request>,
    inserts: VecDeque<Request>,
}

impl CommandQueue {
    pub(super) fn push(&mut self, request: Request) {
        let lane = if request.size.is_insert { &mut self.inserts } else { &mut self.changes };
        lane.push_back(request);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.changes.is_empty() && self.inserts.is_empty()
    }

    pub(super) fn pop_batch(&mut self) -> Vec<Request> {
        let mut batch = Vec::new();
        for (lane, most) in [(&mut self.changes, MAX_CHANGES), (&mut self.inserts, MAX_NEW)] {
            let (mut jobs, mut bytes) = (0, 0);
            while jobs < most && bytes < MAX_BYTES {
                let Some(next) = lane.pop_front() else { break };
                jobs += next.size.jobs;
                bytes += next.size.bytes;
                batch.push(next);
            }
        }
        batch
    }

    pub(super) fn fail(&mut self, fault: &StoreError) {
        self.changes.drain(..).chain(self.inserts.drain(..)).for_each(|request| request.fail(fault.clone()));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn request(is_insert: bool, bytes: usize) -> Request {
        let permits = Arc::new(tokio::sync::Semaphore::new(1));
        let size = Size { is_insert, jobs: 1, bytes };
        Request::new(size, permits.try_acquire_owned().unwrap(), |_| Ok(())).0
    }

    #[test]
    fn changes_go_before_new_jobs_of_which_a_batch_has_only_so_many_and_in_their_order() {
        let mut queue = CommandQueue::default();
        // The sizes tell the inserts apart.
        (0..=MAX_NEW).for_each(|n| queue.push(request(true, n)));
        (0..3).for_each(|_| queue.push(request(false, 0)));
        let inserts = |batch: &[Request]| -> Vec<usize> { batch.iter().map(|request| request.size.bytes).collect() };
        let batch = queue.pop_batch();
        assert!(batch[..3].iter().all(|request| !request.size.is_insert));
        assert!(batch[3..].iter().all(|request| request.size.is_insert));
        assert_eq!(inserts(&batch[3..]), (0..MAX_NEW).collect::<Vec<_>>());
        assert_eq!((inserts(&queue.pop_batch()), queue.is_empty()), (vec![MAX_NEW], true));
    }
}
