//! The one writer: an OS thread that commits the waiting commands in batches.
//!
//! If a batch fails, each of its commands gets the error, and so does all that waits. The database is closed, because sled stays
//! in error after a full disk. The thread tries to open it again, and meanwhile replies `unavailable`.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError},
    },
    time::{Duration, Instant},
};

use tracing::{error, info, warn};

use super::{
    batch::{Batch, Staged},
    command_queue::{CommandQueue, Request},
    error::Fault,
    keys::Seq,
    shared::{CLOSED, Shared},
};
use crate::store::traits::StoreError;

/// First and longest pause between two tries to open the database again.
const REOPEN_PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// Panics without a commit between them after which the writer gives up: then a fresh process is worth more.
const MAX_PANICS: u32 = 8;

pub(super) struct Writer {
    shared: Arc<Shared>,
    requests: Receiver<Request>,
    queue: CommandQueue,
    next_seq: Seq,
}

impl Writer {
    pub(super) fn new(shared: Arc<Shared>, requests: Receiver<Request>, next_seq: Seq) -> Writer {
        Writer { shared, requests, queue: CommandQueue::default(), next_seq }
    }

    /// Works until the sender is gone and all that was sent is done.
    ///
    /// A panic anywhere in it, also in sled's drop, which unwraps a failed sync, closes the store and opens it again. After
    /// [`MAX_PANICS`] the writer gives up, and `Shared::lost` is cancelled.
    pub(super) fn run(mut self) {
        let mut panics = 0;
        while catch_unwind(AssertUnwindSafe(|| self.work(&mut panics))).is_err() {
            panics += 1;
            let reason = "the job store panicked; the log has the details";
            error!(panics, "the job store's writer panicked");
            self.queue.fail(&Fault(reason.to_owned()).into());
            // Its drop may be what panicked, or panic too.
            let _ = catch_unwind(AssertUnwindSafe(|| self.shared.close(reason)));
            if panics == MAX_PANICS {
                error!("the job store can't be recovered: the service has to be restarted");
                self.shared.lost.cancel();
                return;
            }
        }
        self.shared.close(CLOSED);
    }

    fn work(&mut self, panics: &mut u32) {
        if *panics > 0 {
            self.reopen();
        }
        loop {
            if self.queue.is_empty() {
                let Ok(first) = self.requests.recv() else { return };
                self.queue.push(first);
            }
            self.requests.try_iter().for_each(|request| self.queue.push(request));
            if self.commit() {
                *panics = 0;
            }
        }
    }

    /// Commits a batch; true if it is durable.
    fn commit(&mut self) -> bool {
        let started = Instant::now();
        let mut requests = self.queue.pop_batch().into_iter();
        let Some(disk) = self.shared.disk() else {
            requests.for_each(|request| request.fail(self.unavailable()));
            return false;
        };
        let (next_seq, staged) = (&mut self.next_seq, Staged::default());
        let mut batch = Batch { shared: &self.shared, disk: &disk, next_seq, staged };
        // A panic inside sled must cost a batch, not the service.
        let written = catch_unwind(AssertUnwindSafe(|| {
            requests.by_ref().try_for_each(|request| request.stage(&mut batch))?;
            batch.write()
        }));
        let Err(fault) = written.unwrap_or_else(|_| Err(Fault("sled panicked".to_owned()).into())) else {
            batch.publish(started);
            return true;
        };
        let reason = match &fault {
            StoreError::Unavailable { reason } => reason.clone(),
            other => other.to_string(),
        };
        error!(%reason, "the job store failed; it is closed and will be reopened");
        // Before the replies, so that the next reader gets the same reason.
        self.shared.close(&reason);
        requests.for_each(|request| request.fail(fault.clone()));
        batch.fail(&fault);
        self.queue.fail(&fault);
        // sled syncs once more in its drop, and panics if that fails too.
        if catch_unwind(AssertUnwindSafe(|| drop(disk))).is_err() {
            warn!("sled could not sync the closed job store");
        }
        self.reopen();
        false
    }

    /// Opens the database again, however long it takes; meanwhile replies `unavailable`.
    fn reopen(&mut self) {
        let mut pause = REOPEN_PAUSE.0;
        let mut next_try = Instant::now() + pause;
        loop {
            // Commands that keep coming must not put the next try off.
            let left = next_try.saturating_duration_since(Instant::now());
            if !left.is_zero() {
                match self.requests.recv_timeout(left) {
                    Ok(request) => {
                        request.fail(self.unavailable());
                        continue;
                    }
                    Err(RecvTimeoutError::Disconnected) => return,
                    Err(RecvTimeoutError::Timeout) => {}
                }
            }
            match self.shared.reopen() {
                Ok(next_seq) => {
                    self.next_seq = next_seq.max(self.next_seq);
                    info!("the job store works again");
                    return;
                }
                Err(error) => {
                    warn!(%error, "failed to reopen the job store; trying again");
                    pause = (pause * 2).min(REOPEN_PAUSE.1);
                    next_try = Instant::now() + pause;
                }
            }
        }
    }

    fn unavailable(&self) -> StoreError {
        StoreError::Unavailable { reason: self.shared.trouble().unwrap_or_default() }
    }
}
