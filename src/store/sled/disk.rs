//! The sled database as this store uses it: how it is opened, and what makes a change durable.

use std::{
    fs::{self, File},
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use super::{
    checksum::Checksum,
    commit_counter::{self, CommitCounter},
    error::{FORMAT_VERSION, Fault, OpenError},
    index::Index,
    init,
    keys::{self, Seq},
    log::{self, Log, SEGMENT_BYTES},
};
use crate::clock::SavedTime;

const BACKGROUND_FLUSH_MS: u64 = 500;

pub(super) const DB: &str = "db";

/// Exists for a moment, to find out whether the disk works.
const PROBE: &str = "probe";

/// How long to wait for a lock: its process may be ending right now, and sled's threads release it after the database is closed.
const LOCK_PATIENCE: Duration = Duration::from_millis(500);
const LOCK_POLL: Duration = Duration::from_millis(5);

#[derive(Debug)]
pub(super) struct Disk {
    tree: sled::Db,
    /// Our own handle of sled's file: sled's flush writes, but does not sync.
    file: File,
    counter: CommitCounter,
    /// Only the writer counts.
    commits: AtomicU64,
    path: PathBuf,
    /// As found at the start, unless the commit counter was lost: then an older state may be right.
    checksum: Option<Checksum>,
    /// The service time of the newest commit, as found at the start.
    time: Option<SavedTime>,
}

impl Disk {
    pub(super) fn open(path: &Path, cache_bytes: u64) -> Result<Disk, OpenError> {
        let folder = |source| OpenError::Folder { path: path.to_owned(), source };
        let unreadable = |Fault(reason)| OpenError::Unreadable { path: path.to_owned(), reason };
        let damaged = |reason: &str| unreadable(Fault(reason.to_owned()));
        fs::create_dir_all(path).map_err(folder)?;
        let db = path.join(DB);
        let acknowledged = commit_counter::load(path);
        let has_db = db.exists();
        if !has_db && acknowledged > 0 {
            return Err(damaged(&format!("the file {} is missing", db.display())));
        }
        let is_unfinished = init::is_unfinished(path);
        let is_new = !has_db || (is_unfinished && acknowledged == 0 && has_no_records(&db).map_err(folder)?);
        if is_new {
            init::begin(path).map_err(folder)?;
        } else if let Some(place) = File::open(&db).and_then(|file| log::damaged_segment(&file)).map_err(folder)? {
            return Err(damaged(&format!("the file {} is damaged at byte {place}", db.display())));
        }
        let tree = open_sled(path, cache_bytes, is_new)?;
        let file = File::options().read(true).write(true).open(&db).map_err(folder)?;
        let get = |key| tree.get(key).map_err(|error| unreadable(error.into()));
        // Before anything else is read, because a newer format may write that in another way.
        let format = get(keys::FORMAT)?.map(|record| record.first().copied().unwrap_or(0));
        if let Some(found) = format.filter(|found| *found > FORMAT_VERSION) {
            return Err(OpenError::Newer { path: path.to_owned(), found });
        }
        let checksum = get(keys::CHECKSUM)?.map(|record| Checksum::decode(&record)).transpose().map_err(unreadable)?;
        let commits = checksum.as_ref().map_or(0, |checksum| checksum.commits);
        if commits < acknowledged {
            return Err(damaged(&lost(path, &format!("the last {} commits are missing", acknowledged - commits))));
        }
        let is_half_made = is_new && tree.is_empty();
        if format.is_none() && !is_half_made {
            // sled takes a segment whose head is damaged for an unused one.
            return Err(damaged("the start of the file is damaged"));
        }
        let counter = CommitCounter::open(path).map_err(folder)?;
        let time = checksum.as_ref().map(|checksum| checksum.time.clone());
        let checksum = checksum.filter(|_| acknowledged > 0);
        let disk = Disk { tree, file, counter, commits: commits.into(), path: path.to_owned(), checksum, time };
        if is_half_made {
            disk.tree.insert(keys::FORMAT, &[FORMAT_VERSION]).map_err(|error| unreadable(error.into()))?;
        }
        if is_new || is_unfinished {
            disk.sync().map_err(|error| unreadable(error.into()))?;
            init::finish(path).map_err(folder)?;
        }
        Ok(disk)
    }

    /// Makes the kernel forget what it caches of the closed store in `path`, so that the next read is from the disk.
    pub(super) fn drop_cache(path: &Path) -> io::Result<()> {
        let db = path.join(DB);
        // `Disk::open` judges that.
        if !db.exists() {
            return Ok(());
        }
        let file = File::options().read(true).write(true).open(db)?;
        file.sync_all()?;
        #[cfg(target_os = "linux")]
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
        Ok(())
    }

    pub(super) fn tree(&self) -> &sled::Tree {
        &self.tree
    }

    pub(super) fn check(&self, index: &Index) -> Result<(), Fault> {
        match &self.checksum {
            Some(checksum) if !checksum.confirms(index) => {
                Err(Fault(lost(&self.path, "jobs are missing or out of date")))
            }
            _ => Ok(()),
        }
    }

    pub(super) fn time(&self) -> Option<&SavedTime> {
        self.time.as_ref()
    }

    /// Begins the metadata of a batch: a crash may lose what is written from here to [`Disk::commit`].
    pub(super) fn begin(&self, touched: Vec<Seq>, index: &Index, time: SavedTime) -> Result<(), Fault> {
        let checksum = Checksum::new(self.commits.load(Ordering::Relaxed) + 1, touched, index, time);
        self.tree.insert(keys::CHECKSUM, checksum.encode()?)?;
        Ok(())
    }

    /// Makes the batch that was begun durable, and counts it as acknowledged.
    pub(super) fn commit(&self) -> sled::Result<()> {
        self.sync()?;
        let commits = self.commits.fetch_add(1, Ordering::Relaxed) + 1;
        Ok(self.counter.save(commits)?)
    }

    /// Makes everything written so far durable: sled writes its buffers, then the kernel its cache.
    pub(super) fn sync(&self) -> sled::Result<()> {
        self.tree.flush()?;
        Ok(self.file.sync_data()?)
    }
}

pub(super) fn config(path: &Path, cache_bytes: u64) -> sled::Config {
    sled::Config::new()
        .path(path)
        .segment_size(SEGMENT_BYTES)
        .cache_capacity(cache_bytes)
        .flush_every_ms(Some(BACKGROUND_FLUSH_MS))
        .mode(sled::Mode::LowSpace)
}

fn open_sled(path: &Path, cache_bytes: u64, is_new: bool) -> Result<sled::Db, OpenError> {
    let unreadable = |reason| OpenError::Unreadable { path: path.to_owned(), reason };
    let config = config(path, cache_bytes);
    let is_locked = |result: &thread::Result<sled::Result<sled::Db>>| matches!(result, Ok(Err(sled::Error::Io(error))) if error.to_string().contains("could not acquire lock"));
    // A cut file can make sled panic instead of failing.
    let open = || retry_while(is_locked, || catch_unwind(AssertUnwindSafe(|| config.open())));
    let mut result = open();
    if matches!(result, Ok(Err(sled::Error::Corruption { .. }))) && remove_torn_snapshots(path) {
        result = open();
    }
    match result {
        Ok(Ok(tree)) => Ok(tree),
        result if is_locked(&result) => Err(OpenError::InUse { path: path.to_owned() }),
        Ok(Err(sled::Error::Io(source))) if is_new => Err(OpenError::Folder { path: path.to_owned(), source }),
        Ok(Err(error)) => Err(unreadable(error.to_string())),
        Err(_) => Err(unreadable("the files are damaged".to_owned())),
    }
}

/// Removes snapshots that sled began to write and a full disk cut off; true if there were any. sled takes such a file for its
/// newest snapshot and fails. Without it sled reads the one before, and what came later from the log.
fn remove_torn_snapshots(folder: &Path) -> bool {
    let paths = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let torn = paths.filter(|path| path.extension().is_some_and(|extension| extension == "generating"));
    torn.filter(|path| fs::remove_file(path).is_ok()).count() > 0
}

pub(super) fn retry_while<T>(is_locked: impl Fn(&T) -> bool, mut attempt: impl FnMut() -> T) -> T {
    let started = Instant::now();
    loop {
        let result = attempt();
        if !is_locked(&result) || started.elapsed() >= LOCK_PATIENCE {
            return result;
        }
        thread::sleep(LOCK_POLL);
    }
}

/// Whether sled's file has nothing but the first record of each store. Before sled opens it, see [`log::damaged_segment`].
fn has_no_records(db: &Path) -> io::Result<bool> {
    Ok(Log::read(File::open(db)?)?.keys().all(|key| key == keys::FORMAT))
}

fn lost(path: &Path, what: &str) -> String {
    format!(
        "its file {} is damaged: {what}. If the folder is a copy that was made while the service ran, remove {} to start \
         without the missing jobs",
        path.join(DB).display(),
        commit_counter::path(path).display()
    )
}

/// The same error, or that of the disk if it takes no write: then the store's files may be sound.
pub(super) fn or_disk_fault(error: OpenError) -> OpenError {
    match error {
        OpenError::Unreadable { path, reason } => match probe(&path) {
            Ok(()) => OpenError::Unreadable { path, reason },
            Err(source) => OpenError::Disk { path, source },
        },
        error => error,
    }
}

/// Writes and syncs a file as large as what sled takes at a time, and removes it.
fn probe(folder: &Path) -> io::Result<()> {
    let path = folder.join(PROBE);
    let written = fs::write(&path, vec![1; SEGMENT_BYTES]).and_then(|()| File::open(&path)?.sync_all());
    let removed = fs::remove_file(&path);
    written.and(removed)
}
