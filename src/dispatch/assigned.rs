//! Makes the attempts that the dispatcher on another node has claimed for this one. Its claim is the permission to call.

use tokio_util::task::TaskTracker;

use crate::{agent::Analyst, process, worker::Worker};

/// Makes them until it is dropped. `tracker` follows them to their end. Once the service stops, they are released.
pub async fn run<A: Analyst>(worker: Worker<A>, tracker: TaskTracker) {
    let mut assigned = worker.queue.assigned();
    while let Some(job) = assigned.recv().await {
        let worker = worker.clone();
        tracker.spawn(process::task(async move {
            if let Some(claim) = worker.queue.begin(&job).await {
                worker.assigned(&claim).await;
            }
        }));
    }
}
