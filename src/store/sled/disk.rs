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
    codec,
    deliveries::{self, Deliveries},
    idempotency,
    index::Index,
    keys::{self, Seq},
    log::{self, Log},
    making,
    mark::{self, Mark},
    witness::Witness,
};
use crate::{
    clock::SavedTime,
    job::{IdempotencyKey, Job, JobId, caller::Caller, delivery::Delivery},
};

/// Persisted at creation, never to be changed: at the default of 512 KiB, values of 10 KB already went to blob files,
/// which sled never syncs.
pub(super) const SEGMENT_BYTES: usize = 2 << 20;

/// How often sled writes on its own what no commit has forced out, in milliseconds.
const BACKGROUND_FLUSH_MS: u64 = 500;

/// sled's one file within the store's folder.
const DB: &str = "db";

/// A file that is there for a moment, to find out whether the disk works.
const PROBE: &str = "probe";

/// The version of the key layout, in the record [`keys::FORMAT`].
const FORMAT_VERSION: u8 = 1;

/// How long a lock is waited for: the process that held it may be ending right now, and sled's own threads give it up a
/// moment after the database is closed.
pub(super) const LOCK_PATIENCE: Duration = Duration::from_millis(500);

/// Pause between two looks at the lock.
pub(super) const LOCK_POLL: Duration = Duration::from_millis(5);

/// Why the store could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it.
    #[error(
        "the data folder {} is in use by another ceoagent: stop that one, or set another DATA_DIR",
        path.display()
    )]
    InUse {
        /// The folder.
        path: PathBuf,
    },
    /// The folder can't be made or written.
    #[error("can't use the data folder {}: {source}; DATA_DIR must be a folder that this user can write to", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The files are there but can't be read.
    #[error(
        "can't read the job store {}: {reason}. Restore the folder from a backup. Or save the readable jobs with \
         `ceoagent export --salvage > jobs.jsonl`, move the folder away, start the service, and import the jobs",
        path.display()
    )]
    Unreadable {
        /// The folder.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The disk does not work: what is in the store is not in doubt.
    #[error(
        "the disk that holds the job store {} fails: {source}. Nothing in the store is lost. Free disk space or repair \
         the disk, then start again",
        path.display()
    )]
    Disk {
        /// The folder.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A newer program wrote it.
    #[error(
        "the job store {} has format {found}, which is newer than the format {FORMAT_VERSION} of this program: start the \
         newer ceoagent again, or restore an older backup of the folder",
        path.display()
    )]
    Newer {
        /// The folder.
        path: PathBuf,
        /// The format's version.
        found: u8,
    },
}

impl OpenError {
    /// The same error, or that of the disk if it takes no write: then the store's files may be sound.
    pub(super) fn or_disk_fault(self) -> OpenError {
        match self {
            OpenError::Unreadable { path, reason } => match probe(&path) {
                Ok(()) => OpenError::Unreadable { path, reason },
                Err(source) => OpenError::Disk { path, source },
            },
            error => error,
        }
    }
}

/// Writes and syncs a file as large as what sled takes at a time, and removes it.
fn probe(folder: &Path) -> io::Result<()> {
    let path = folder.join(PROBE);
    let written = fs::write(&path, vec![1; SEGMENT_BYTES]).and_then(|()| File::open(&path)?.sync_all());
    let removed = fs::remove_file(&path);
    written.and(removed)
}

/// An open database.
#[derive(Debug)]
pub(super) struct Disk {
    tree: sled::Db,
    /// Our own handle of sled's one file: sled's flush writes, but does not sync.
    file: File,
    mark: Mark,
    /// Groups of changes committed. Only the writer counts.
    groups: AtomicU64,
    path: PathBuf,
    /// As it was found, if it can be held to.
    witness: Option<Witness>,
    /// The service time of the newest group of changes, as it was found.
    time: Option<SavedTime>,
}

/// Why a store that can be opened must not be used.
fn lost(path: &Path, what: &str) -> String {
    format!(
        "its file {} is damaged: {what}. If the folder is a copy that was made while the service ran, remove {} to start \
         without the missing jobs",
        path.join(DB).display(),
        mark::path(path).display()
    )
}

/// How a store in `path` is opened.
pub(super) fn config(path: &Path, cache_bytes: u64) -> sled::Config {
    sled::Config::new()
        .path(path)
        .segment_size(SEGMENT_BYTES)
        .cache_capacity(cache_bytes)
        .flush_every_ms(Some(BACKGROUND_FLUSH_MS))
        .mode(sled::Mode::LowSpace)
}

/// Whether nothing was ever written to sled's file but what each store begins with. Look before sled opens it, see
/// [`log::damaged_segment`].
fn has_no_records(db: &Path) -> io::Result<bool> {
    Ok(Log::read(File::open(db)?)?.keys().all(|key| key == keys::FORMAT))
}

/// Has sled open the store in `path`, or create it there.
fn open_sled(path: &Path, cache_bytes: u64, is_new: bool) -> Result<sled::Db, OpenError> {
    let unreadable = |reason| OpenError::Unreadable { path: path.to_owned(), reason };
    let config = config(path, cache_bytes);
    // A cut file can make sled panic instead of failing.
    let open = || catch_unwind(AssertUnwindSafe(|| config.open()));
    let locked = |result: &thread::Result<sled::Result<sled::Db>>| matches!(result, Ok(Err(sled::Error::Io(error))) if error.to_string().contains("could not acquire lock"));
    let mut result = open();
    let started = Instant::now();
    while locked(&result) && started.elapsed() < LOCK_PATIENCE {
        thread::sleep(LOCK_POLL);
        result = open();
    }
    match result {
        Ok(Ok(tree)) => Ok(tree),
        result if locked(&result) => Err(OpenError::InUse { path: path.to_owned() }),
        Ok(Err(sled::Error::Io(source))) if is_new => Err(OpenError::Folder { path: path.to_owned(), source }),
        Ok(Err(error)) => Err(unreadable(error.to_string())),
        Err(_) => Err(unreadable("the files are damaged".to_owned())),
    }
}

impl Disk {
    /// Opens the store in `path`, or creates it there.
    pub(super) fn open(path: &Path, cache_bytes: u64) -> Result<Disk, OpenError> {
        let folder = |source| OpenError::Folder { path: path.to_owned(), source };
        let unreadable = |reason| OpenError::Unreadable { path: path.to_owned(), reason };
        fs::create_dir_all(path).map_err(folder)?;
        let db = path.join(DB);
        let acknowledged = mark::read(path);
        let has_db = db.exists();
        if !has_db && acknowledged > 0 {
            return Err(unreadable(format!("the file {} is missing", db.display())));
        }
        let is_under_way = making::is_under_way(path);
        let is_new = !has_db || (is_under_way && acknowledged == 0 && has_no_records(&db).map_err(folder)?);
        if is_new {
            making::begin(path).map_err(folder)?;
        } else if let Some(place) = File::open(&db).and_then(|file| log::damaged_segment(&file)).map_err(folder)? {
            return Err(unreadable(format!("the file {} is damaged at byte {place}", db.display())));
        }
        let tree = open_sled(path, cache_bytes, is_new)?;
        let file = File::options().read(true).write(true).open(&db).map_err(folder)?;
        let get = |key| tree.get(key).map_err(|error| unreadable(error.to_string()));
        // Before anything else is read, which a newer format may write otherwise.
        let format = get(keys::FORMAT)?.map(|record| record.first().copied().unwrap_or(0));
        if let Some(found) = format.filter(|found| *found > FORMAT_VERSION) {
            return Err(OpenError::Newer { path: path.to_owned(), found });
        }
        let witness = get(keys::WITNESS)?.map(|record| Witness::decode(&record)).transpose().map_err(unreadable)?;
        let groups = witness.as_ref().map_or(0, |witness| witness.groups);
        if groups < acknowledged {
            let detail = format!("the last {} commits are missing", acknowledged - groups);
            return Err(unreadable(lost(path, &detail)));
        }
        let is_half_made = is_new && tree.is_empty();
        if format.is_none() && !is_half_made {
            // sled takes a segment whose head is damaged for an unused one.
            return Err(unreadable("the start of the file is damaged".to_owned()));
        }
        let mark = Mark::open(path).map_err(folder)?;
        let time = witness.as_ref().map(|witness| witness.time.clone());
        // Without a mark there is nobody to say that it was not so before.
        let witness = witness.filter(|_| acknowledged > 0);
        let disk = Disk { tree, file, mark, groups: AtomicU64::new(groups), path: path.to_owned(), witness, time };
        if is_half_made {
            disk.tree.insert(keys::FORMAT, &[FORMAT_VERSION]).map_err(|error| unreadable(error.to_string()))?;
        }
        if is_new || is_under_way {
            disk.sync().map_err(|error| unreadable(error.to_string()))?;
            making::end(path).map_err(folder)?;
        }
        Ok(disk)
    }

    /// Has the kernel forget what it caches of the closed store in `path`, so that the next read is from the disk.
    ///
    /// # Errors
    /// If what is still to be written can't be.
    pub(super) fn drop_cache(path: &Path) -> io::Result<()> {
        let file = match File::options().read(true).write(true).open(path.join(DB)) {
            Ok(file) => file,
            // `Disk::open` judges that.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        file.sync_all()?;
        #[cfg(target_os = "linux")]
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
        Ok(())
    }

    pub(super) fn tree(&self) -> &sled::Tree {
        &self.tree
    }

    /// Checks that the jobs read are those that were there.
    ///
    /// # Errors
    /// Says what was lost and what to do.
    pub(super) fn check(&self, index: &Index) -> Result<(), String> {
        if self.witness.as_ref().is_none_or(|witness| witness.confirms(index)) {
            return Ok(());
        }
        Err(lost(&self.path, "jobs are missing or out of date"))
    }

    /// The service time when the store was last written, if it ever was.
    pub(super) fn time(&self) -> Option<&SavedTime> {
        self.time.as_ref()
    }

    /// Begins a group's metadata: what stands after this may be lost by a crash until [`Disk::commit`].
    pub(super) fn begin(&self, touched: Vec<Seq>, index: &Index, time: SavedTime) -> Result<(), String> {
        let witness = Witness::new(self.groups.load(Ordering::Relaxed) + 1, touched, index, time).encode()?;
        self.tree.insert(keys::WITNESS, witness).map(drop).map_err(|error| error.to_string())
    }

    /// Makes the group of changes that was begun durable, and notes that it may be acknowledged.
    pub(super) fn commit(&self) -> Result<(), sled::Error> {
        self.sync()?;
        let groups = self.groups.fetch_add(1, Ordering::Relaxed) + 1;
        Ok(self.mark.set(groups)?)
    }

    /// Makes everything written so far durable: sled writes its buffers, then the kernel its cache.
    pub(super) fn sync(&self) -> Result<(), sled::Error> {
        self.tree.flush()?;
        Ok(self.file.sync_data()?)
    }

    /// Every job there is, by the metadata records alone.
    pub(super) fn jobs(&self) -> impl Iterator<Item = Result<(Seq, Job), String>> + '_ {
        self.tree.scan_prefix(keys::ALL_METADATA).map(|entry| {
            let (key, value) = entry.map_err(|error| error.to_string())?;
            let seq = keys::seq_of(&key).ok_or_else(|| format!("{key:?} is not a key of this store"))?;
            let job = codec::decode(&value).map_err(|error| format!("the metadata of job number {seq}: {error}"))?;
            Ok((seq, job))
        })
    }

    /// The idempotency keys that have outlived their jobs.
    pub(super) fn orphaned_keys(&self) -> impl Iterator<Item = Result<(IdempotencyKey, JobId, Caller), String>> + '_ {
        self.tree.scan_prefix(keys::ALL_IDEMPOTENCY).map(|entry| {
            let (record, value) = entry.map_err(|error| error.to_string())?;
            let key = record[1..].try_into().map_err(|_| format!("{record:?} is not a key of this store"))?;
            idempotency::decode(key, &value).map_err(|error| format!("an idempotency key: {error}"))
        })
    }

    /// What is owed to a job's callback URL, if it has one.
    pub(super) fn delivery(&self, seq: Seq) -> Result<Option<Delivery>, String> {
        let record = self.tree.get(keys::delivery(seq)).map_err(|error| error.to_string())?;
        record.map(|record| deliveries::decode(&record)).transpose()
    }

    pub(super) fn write_delivery(&self, seq: Seq, delivery: &Delivery) -> Result<(), String> {
        let record = deliveries::encode(delivery)?;
        self.tree.insert(keys::delivery(seq), record).map(drop).map_err(|error| error.to_string())
    }

    /// Everything that is owed to the callback URLs of the jobs in the index; what belongs to no job is removed.
    pub(super) fn deliveries(&self, index: &Index) -> Result<Deliveries, String> {
        let mut deliveries = Deliveries::default();
        for entry in self.tree.scan_prefix(keys::ALL_DELIVERIES) {
            let (key, record) = entry.map_err(|error| error.to_string())?;
            let seq = keys::seq_of(&key).ok_or_else(|| format!("{key:?} is not a key of this store"))?;
            match deliveries::reconciled(deliveries::decode(&record)?, seq, index) {
                Some(delivery) => {
                    let caller = index.get(seq).and_then(|job| job.caller);
                    deliveries.replace(seq, Some((caller, delivery)));
                }
                None => drop(self.tree.remove(key).map_err(|error| error.to_string())?),
            }
        }
        Ok(deliveries)
    }

    /// Notes that the `count` jobs from number `first` on belong together: as long as this stands, none of them is there.
    /// Before the first of their metadata.
    pub(super) fn begin_batch(&self, first: Seq, count: usize) -> Result<(), sled::Error> {
        self.tree.insert(keys::batch(first), &(count as u64).to_be_bytes()).map(drop)
    }

    /// The commit point of a batch: after the last of their metadata.
    pub(super) fn end_batch(&self, first: Seq) -> Result<(), sled::Error> {
        self.tree.remove(keys::batch(first)).map(drop)
    }

    /// Removes what a crash left of batches that never came to their commit point. Before the jobs are read.
    pub(super) fn sweep_batches(&self) -> Result<(), sled::Error> {
        for entry in self.tree.scan_prefix(keys::ALL_BATCHES) {
            let (key, count) = entry?;
            let count = count.as_ref().try_into().map_or(0, u64::from_be_bytes);
            if let Some(first) = keys::seq_of(&key) {
                for seq in first..first.saturating_add(count) {
                    self.tree.remove(keys::metadata(seq))?;
                    self.remove_bodies(seq)?;
                }
            }
            // Last: a crash in this moment leaves the batch to the next start.
            self.tree.remove(key)?;
        }
        Ok(())
    }

    /// The first number that no record uses.
    pub(super) fn next_seq(&self) -> Result<Seq, sled::Error> {
        let mut next = 1;
        for prefix in [&keys::ALL_METADATA[..], &keys::BODY_PREFIXES[..1], &keys::BODY_PREFIXES[1..]] {
            if let Some(last) = self.tree.scan_prefix(prefix).next_back() {
                next = next.max(keys::seq_of(&last?.0).unwrap_or(0) + 1);
            }
        }
        Ok(next)
    }

    /// The numbers of a job's attempts that have a record. By what is there: a job of another store may count billions.
    pub(super) fn attempts(&self, seq: Seq) -> Result<Vec<u32>, sled::Error> {
        let mut numbers = Vec::new();
        for key in self.tree.range(keys::attempts(seq)).keys() {
            numbers.extend(keys::attempt_of(&key?));
        }
        numbers.dedup();
        Ok(numbers)
    }

    /// Removes one attempt of a job.
    pub(super) fn remove_attempt(&self, seq: Seq, number: u32) -> Result<(), sled::Error> {
        for key in self.tree.scan_prefix(keys::attempt(seq, number)).keys() {
            self.tree.remove(key?)?;
        }
        Ok(())
    }

    /// Removes what belongs to a job besides its metadata.
    pub(super) fn remove_bodies(&self, seq: Seq) -> Result<(), sled::Error> {
        for prefix in keys::BODY_PREFIXES {
            for key in self.tree.scan_prefix(keys::body(prefix, seq)).keys() {
                self.tree.remove(key?)?;
            }
        }
        self.tree.remove(keys::delivery(seq)).map(drop)
    }

    /// Removes the bodies of jobs whose metadata never came, or is gone: what a crash left of insertions after the last
    /// committed one (`newest`), and of the prune step that it interrupted.
    pub(super) fn sweep_orphans(&self, newest: Seq) -> Result<(), sled::Error> {
        let mut orphans: Vec<Seq> = Vec::new();
        for prefix in keys::BODY_PREFIXES {
            for key in self.tree.range(keys::body(prefix, newest + 1)..vec![prefix + 1]).keys() {
                orphans.extend(keys::seq_of(&key?));
            }
        }
        if let Some(pruned) = self.tree.get(keys::PRUNING)? {
            orphans.extend(pruned.chunks_exact(8).filter_map(|seq| seq.try_into().ok()).map(Seq::from_be_bytes));
        }
        orphans.dedup();
        for seq in orphans {
            if self.tree.get(keys::metadata(seq))?.is_none() {
                self.remove_bodies(seq)?;
            }
        }
        Ok(())
    }
}
