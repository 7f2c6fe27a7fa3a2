//! What the passing of time changes: retries and scheduled jobs become ready, leases and deadlines end, old jobs are
//! removed. One task sleeps until the next of these is due. Beside it, [`disk`] watches the free space and [`history`]
//! stores each minute.

pub mod disk;
pub mod history;

use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::queue::WorkQueue;

/// Longest pause between two sweeps. A sweep that finds nothing is cheap; the disk must have room for what retention has to
/// remove between two, and a missed signal costs no more than this.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// Shortest pause between two sweeps, so that a stream of retries can't keep it busy.
const SWEEP_PAUSE: Duration = Duration::from_millis(5);

/// Sweeps until `closing` is cancelled.
pub async fn run(queue: WorkQueue, closing: CancellationToken) {
    closing
        .run_until_cancelled(async {
            loop {
                match queue.sweep().await {
                    Ok(true) => {}
                    Ok(false) => queue.until_due(SWEEP_INTERVAL).await,
                    Err(error) => {
                        warn!(%error, "failed to sweep; trying again");
                        tokio::time::sleep(SWEEP_INTERVAL).await;
                    }
                }
                tokio::time::sleep(SWEEP_PAUSE).await;
            }
        })
        .await;
}
