//! The disk watch: reports the free space of the store's file system to the queue, which refuses submissions while there
//! is too little of it.

use std::{io, path::PathBuf, time::Duration};

use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::{metrics::Metrics, queue::Queue};

/// Looks so often: short enough that full load can't eat a floor of usual height in between.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Free space below which submissions are refused, so that running jobs can still be written: some seconds of full load.
const FLOOR_BYTES: u64 = 256 << 20;

/// On a small disk, this part of it.
const FLOOR_PART: u64 = 8;

/// What is watched.
#[derive(Clone, Debug)]
pub struct DiskWatch {
    /// A folder of the file system.
    pub folder: PathBuf,
    /// Refuse submissions while there is too little free space.
    pub has_floor: bool,
    /// Where the free space is shown.
    pub metrics: Metrics,
}

impl DiskWatch {
    /// Looks at once, so that no submission comes before the first look.
    pub async fn look(&self, queue: &Queue) {
        let folder = self.folder.clone();
        // A look at a file system of another host may take its time.
        match tokio::task::spawn_blocking(move || space(folder)).await {
            Ok(Ok(Space { free, total })) => {
                self.metrics.disk_free_bytes.set(i64::try_from(free).unwrap_or(i64::MAX));
                queue.note_disk_space(free, if self.has_floor { FLOOR_BYTES.min(total / FLOOR_PART) } else { 0 });
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

/// Of a file system, in bytes.
struct Space {
    /// What an ordinary user may still write.
    free: u64,
    total: u64,
}

/// The space where `folder` lies.
fn space(folder: PathBuf) -> io::Result<Space> {
    let disk = rustix::fs::statvfs(folder)?;
    let bytes = |blocks: u64| blocks.saturating_mul(disk.f_frsize);
    Ok(Space { free: bytes(disk.f_bavail), total: bytes(disk.f_blocks) })
}
