//! What one node does for all nodes of a database: it makes the calls, sends the webhooks, and lets time pass. A service on
//! its own disk does it from its start on, a node of a database once it has the seat.

use std::sync::Arc;

use tokio::sync::mpsc;
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

pub(super) struct Duties {
    pub(super) worker: Worker,
    /// At most so many calls at once.
    pub(super) calls: usize,
    pub(super) webhooks: Webhooks,
    pub(super) upkeep: Arc<Upkeep>,
    /// `None` without a database.
    pub(super) memo: Option<Arc<Memo>>,
    pub(super) tracker: TaskTracker,
}

impl Duties {
    /// Takes them over now, or once this node has the seat. A failure in the latter case goes to `faults`.
    ///
    /// # Errors
    /// [`StartError`].
    pub(super) async fn begin(self, seat: Option<Seat>, faults: mpsc::Sender<StartError>) -> Result<(), StartError> {
        let Some(mut seat) = seat else { return self.take_over().await };
        if seat.is_free().await {
            return self.take_over().await;
        }
        info!("another node makes the calls; this one takes over when that one ends");
        let (tracker, closing) = (self.tracker.clone(), self.worker.closing.clone());
        tracker.spawn(async move {
            let taking_over = async {
                seat.taken().await;
                info!("this node makes the calls from now on");
                self.take_over().await
            };
            if let Some(Err(error)) = closing.run_until_cancelled(taking_over).await {
                let _ = faults.send(error).await;
            }
        });
        Ok(())
    }

    async fn take_over(self) -> Result<(), StartError> {
        let Duties { worker, calls, webhooks, upkeep, memo, tracker } = self;
        let Worker { queue, closing, metrics, .. } = &worker;
        upkeep.reload(upkeep.prefix()).await?;
        if let Some(memo) = &memo {
            memo.take_over().await?;
        }
        recover(queue).await.map_err(StartError::Recovery)?;
        metrics.dispatcher.set(1);
        tracker.spawn(sweeper::run(queue.clone(), closing.clone()));
        tracker.spawn(webhooks.run(closing.clone()));
        if let Some(memo) = memo {
            let closing = closing.clone();
            tracker.spawn(async move { memo.run(closing).await });
        }
        Dispatcher::start(worker, calls, &tracker);
        tracker.spawn(async move { upkeep.run().await });
        Ok(())
    }
}

/// Ends the attempts and the overdue jobs of the last run.
async fn recover(queue: &WorkQueue) -> Result<(), QueueError> {
    let orphans = queue.recover().await?;
    if orphans > 0 {
        warn!(orphans, "attempts of the last run ended with an unknown outcome");
    }
    while queue.end_overdue().await? > 0 {}
    Ok(())
}
