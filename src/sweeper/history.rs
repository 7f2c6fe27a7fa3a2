//! Stores the history, once a minute.

use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::queue::Operations;

const MINUTE_MS: u64 = 60_000;

/// Notes each minute as it ends, until `closing` is cancelled. What is left then is for the end of the service to note.
pub async fn run(operations: Operations, closing: CancellationToken) {
    closing
        .run_until_cancelled(async {
            loop {
                let minute = operations.now();
                let into_it = u64::try_from(minute.as_millis()).unwrap_or(0) % MINUTE_MS;
                tokio::time::sleep(Duration::from_millis(MINUTE_MS - into_it)).await;
                if let Err(error) = operations.history().record(minute, operations.counts()).await {
                    warn!(%error, "failed to store a minute of the history");
                }
            }
        })
        .await;
}
