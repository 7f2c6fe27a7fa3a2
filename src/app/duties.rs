//! What one node does for all nodes of a database: it hands out the calls, sends the webhooks, and lets time pass. A service on
//! its own disk does it from its start on, a node of a database once it has the seat.

use std::{sync::Arc, time::Duration};

use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use super::{error::StartError, memo::Memo, upkeep::Upkeep};
use crate::{
    dispatch::Dispatcher,
    queue::{QueueError, WorkQueue},
    registry::Live,
    store::postgres::Seat,
    sweeper,
    webhook::Webhooks,
    worker::Worker,
};

/// Pause after a take-over that failed.
const RETRY: Duration = Duration::from_secs(1);

pub(super) struct Duties {
    pub(super) worker: Worker,
    /// At most so many calls at once.
    pub(super) calls: usize,
    pub(super) webhooks: Webhooks,
    pub(super) upkeep: Arc<Upkeep>,
    /// `None` without a database.
    pub(super) memo: Option<Arc<Memo>>,
    pub(super) tracker: TaskTracker,
    /// Follows claims until they are stored.
    pub(super) claims: TaskTracker,
}

impl Duties {
    /// Takes them over now, or once this node has the seat.
    ///
    /// # Errors
    /// [`StartError`], of a take-over now.
    pub(super) async fn begin(self, mut seat: Option<Seat>) -> Result<(), StartError> {
        let is_now = match &mut seat {
            Some(seat) => seat.is_free().await,
            None => true,
        };
        let (Some(mut seat), false) = (seat, is_now) else {
            self.prepare().await?;
            self.take_over();
            return Ok(());
        };
        info!("another node hands out the calls; this one takes over when that one ends");
        let (tracker, closing) = (self.tracker.clone(), self.worker.closing.clone());
        tracker.spawn(async move {
            let taking_over = async {
                seat.taken().await;
                // The database may have trouble just then.
                while let Err(error) = self.prepare().await {
                    warn!(%error, "this node can't hand out calls yet; trying again");
                    tokio::time::sleep(RETRY).await;
                }
                info!("this node hands out the calls from now on");
                self.take_over();
            };
            closing.run_until_cancelled(taking_over).await;
        });
        Ok(())
    }

    /// What comes before the first call. It can be repeated.
    async fn prepare(&self) -> Result<(), StartError> {
        self.upkeep.reload(self.upkeep.prefix()).await?;
        if let Some(memo) = &self.memo {
            memo.take_over().await?;
        }
        recover(&self.worker.queue).await.map_err(StartError::Recovery)
    }

    fn take_over(self) {
        let Duties { worker, calls, webhooks, upkeep, memo, tracker, claims } = self;
        let Worker { queue, closing, metrics, .. } = &worker;
        metrics.dispatcher.set(1);
        tracker.spawn(sweeper::run(queue.clone(), closing.clone()));
        tracker.spawn(webhooks.run(closing.clone()));
        if let Some(memo) = memo {
            let closing = closing.clone();
            // Not tracked: it ends after the attempts.
            tokio::spawn(async move { memo.run(closing).await });
        }
        Dispatcher::start(worker, calls, &tracker, &claims);
        tracker.spawn(async move { upkeep.run().await });
    }
}

/// Ends the attempts of processes that have ended, and overdue jobs.
pub(super) async fn recover(queue: &WorkQueue) -> Result<(), QueueError> {
    let attempts = queue.end_lost().await?;
    if attempts > 0 {
        warn!(attempts, "attempts ended with an unknown outcome: their processes have ended");
    }
    while queue.end_overdue().await? > 0 {}
    Ok(())
}
