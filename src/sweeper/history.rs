//! Stores the history, once a minute.

use std::{sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::{history::History, queue::Queue};

const MINUTE_MS: u64 = 60_000;

/// Notes each minute as it ends, until `closing` is cancelled. What is left then is for the end of the service to note.
pub async fn run(history: Arc<History>, queue: Queue, closing: CancellationToken) {
    closing
        .run_until_cancelled(async {
            loop {
                let minute = queue.now();
                let into_it = u64::try_from(minute.as_millis()).unwrap_or(0) % MINUTE_MS;
                tokio::time::sleep(Duration::from_millis(MINUTE_MS - into_it)).await;
                if let Err(error) = history.record(minute, queue.counts()).await {
                    warn!(%error, "failed to store a minute of the history");
                }
            }
        })
        .await;
}
