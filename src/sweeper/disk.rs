//! The disk watch: reports to the queue how much space the store's file system has, and whether the store's file is still
//! where its path says. The queue refuses submissions while there is too little space, or the file is gone or replaced.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::{
    metrics::{Metrics, kind},
    queue::WorkQueue,
};

/// Short enough that full load can't eat a floor of usual height in between.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Free space below which submissions are refused, so that running jobs can still be written: some seconds of full load.
const FLOOR_BYTES: u64 = 256 << 20;

/// On a small disk, this part of it.
const FLOOR_PART: u64 = 8;

#[derive(Clone, Debug)]
pub struct DiskWatch {
    folder: PathBuf,
    /// The store's file.
    path: PathBuf,
    /// That file, as it was at the start.
    file: Option<FileId>,
    /// Refuse submissions while there is too little free space.
    has_floor: bool,
    metrics: Metrics,
}

/// A file's device and number.
type FileId = (u64, u64);

fn file_id(path: &Path) -> Option<FileId> {
    fs::metadata(path).ok().map(|file| (file.dev(), file.ino()))
}

impl DiskWatch {
    /// Watches the store in `folder`, which is open, with its file `name`.
    pub fn new(folder: PathBuf, name: &str, has_floor: bool, metrics: Metrics) -> DiskWatch {
        let path = folder.join(name);
        DiskWatch { file: file_id(&path), path, folder, has_floor, metrics }
    }

    pub async fn look(&self, queue: &WorkQueue) {
        let (folder, path) = (self.folder.clone(), self.path.clone());
        // A look at a file system of another host may take its time.
        match tokio::task::spawn_blocking(move || (file_id(&path), space(folder))).await {
            Ok((file, _)) if file != self.file => queue.record_folder(true),
            Ok((_, Ok((free, total)))) => {
                queue.record_folder(false);
                let gauge = self.metrics.disk_free_bytes.get_or_create(&kind("data_dir"));
                gauge.set(i64::try_from(free).unwrap_or(i64::MAX));
                queue.record_disk_space(free, if self.has_floor { FLOOR_BYTES.min(total / FLOOR_PART) } else { 0 });
            }
            // Not knowing is no reason to refuse: the store itself finds out.
            Ok((_, Err(error))) => warn!(%error, folder = %self.folder.display(), "failed to read the free disk space"),
            Err(error) => warn!(%error, "failed to read the free disk space"),
        }
    }

    /// Looks until `closing` is cancelled.
    pub async fn run(self, queue: WorkQueue, closing: CancellationToken) {
        let looks = async {
            loop {
                tokio::time::sleep(LOOK_INTERVAL).await;
                self.look(&queue).await;
            }
        };
        closing.run_until_cancelled(looks).await;
    }
}

/// The bytes of a file system: those that an ordinary user may still write, and all.
fn space(folder: PathBuf) -> io::Result<(u64, u64)> {
    let disk = rustix::fs::statvfs(folder)?;
    let bytes = |blocks: u64| blocks.saturating_mul(disk.f_frsize);
    Ok((bytes(disk.f_bavail), bytes(disk.f_blocks)))
}
