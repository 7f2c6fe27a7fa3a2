//! The disk watch: looks at the free space of the store's file system and tells the queue, which refuses submissions
//! while there is too little of it.

use std::{io, path::PathBuf, time::Duration};

use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::{metrics::Metrics, queue::Queue};

/// Looks so often: short enough that full load can't eat a floor of usual height in between.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// What is watched.
#[derive(Clone, Debug)]
pub struct DiskWatch {
    /// A folder of the file system.
    pub folder: PathBuf,
    /// What should be free; zero for no floor.
    pub floor_bytes: u64,
    /// Where the free space is shown.
    pub metrics: Metrics,
}

impl DiskWatch {
    /// Looks at once, so that no submission comes before the first look.
    pub async fn look(&self, queue: &Queue) {
        let folder = self.folder.clone();
        // A look at a file system of another host may take its time.
        match tokio::task::spawn_blocking(move || free_bytes(folder)).await {
            Ok(Ok(free)) => {
                self.metrics.disk_free_bytes.set(i64::try_from(free).unwrap_or(i64::MAX));
                queue.note_disk_space(free, self.floor_bytes);
            }
            // Not knowing is no reason to refuse: the store itself finds out.
            Ok(Err(error)) => warn!(%error, folder = %self.folder.display(), "failed to read the free disk space"),
            Err(error) => warn!(%error, "failed to read the free disk space"),
        }
    }

    /// Looks every [`LOOK_INTERVAL`] until `closing` is cancelled.
    pub async fn run(self, queue: Queue, closing: CancellationToken) {
        let looks = async {
            loop {
                tokio::time::sleep(LOOK_INTERVAL).await;
                self.look(&queue).await;
            }
        };
        closing.run_until_cancelled(looks).await;
    }
}

/// What an ordinary user may still write where `folder` lies.
fn free_bytes(folder: PathBuf) -> io::Result<u64> {
    let disk = rustix::fs::statvfs(folder)?;
    Ok(disk.f_bavail.saturating_mul(disk.f_frsize))
}
