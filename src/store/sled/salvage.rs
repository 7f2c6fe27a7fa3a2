//! Reads what can be read of the jobs of a store, also of one that does not open, and writes it as an archive.
//!
//! There are two sources. sled, on a copy, because it writes even when it opens; its panics are caught. And the log
//! itself ([`super::log`]), on the original, of which no page needs to be whole but the one that is read. If sled opens the copy
//! and has every record of every job, and the log has no other job, that is the store as `serve` sees it, and all was read.
//! Otherwise each record is taken from the log, or from sled where the log lacks it.
//!
//! sled without its snapshot files is not a third source: it takes a damaged segment for an unused one, and jobs would be missing.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    fs::{self, File},
    io::{self, Write},
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
};

use rustix::fs::{FlockOperation, flock};
use serde::Serialize;
use serde_json::value::RawValue;

use super::{
    checksum::Checksum,
    codec, commit_counter, deliveries,
    disk::{self, DB},
    error::OpenError,
    keys::{self, Seq},
    log::Log,
    records,
};
use crate::{
    job::{Job, delivery::Delivery},
    store::{
        archive::{Kind, Life, Writer},
        record,
    },
};

/// Most unreadable records that the summary names; the output marks all.
const MAX_NAMED: usize = 100;

const CACHE_BYTES: u64 = 64 << 20;

/// Why nothing could be read at all.
#[derive(Debug, thiserror::Error)]
pub enum SalvageError {
    #[error("no job store in {}: DATA_DIR must be the data folder of a ceoagent", path.display())]
    Nothing { path: PathBuf },
    #[error(transparent)]
    InUse(OpenError),
    /// The file can't be read, not even as bytes.
    #[error(
        "can't read the job store {}: {source}. If the disk is failing, first copy the folder to another disk with a tool \
         that continues after errors, and set DATA_DIR to the parent of the copy",
        path.display()
    )]
    Unreadable { path: PathBuf, source: io::Error },
    #[error("can't write the jobs: {0}")]
    Output(io::Error),
}

#[derive(Debug, Default)]
pub struct Summary {
    path: PathBuf,
    jobs: usize,
    /// Why sled alone was not enough, if so.
    trouble: Option<String>,
    only_in_log: usize,
    unreadable: Vec<String>,
    /// Numbers of jobs of which no record is left, and that may have been removed as old.
    gaps: Vec<(Seq, Seq)>,
    /// Commits that were acknowledged and are not in the store.
    missing_commits: u64,
}

impl Summary {
    pub fn is_complete(&self) -> bool {
        let Summary { trouble, only_in_log, unreadable, missing_commits, .. } = self;
        trouble.is_none() && unreadable.is_empty() && *only_in_log == 0 && *missing_commits == 0
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Summary { path, jobs, trouble, only_in_log, unreadable, gaps, missing_commits } = self;
        writeln!(f, "{jobs} jobs read from {}", path.display())?;
        if self.is_complete() {
            return writeln!(f, "all records were read");
        }
        if let Some(trouble) = trouble {
            writeln!(f, "the store is damaged: {trouble}")?;
            writeln!(f, "so each record was searched for separately; some jobs may be in an older state")?;
        }
        if *only_in_log > 0 {
            writeln!(f, "{only_in_log} of the jobs were found only in the store's log")?;
        }
        if *missing_commits > 0 {
            writeln!(f, "the last {missing_commits} commits are missing")?;
        }
        writeln!(f, "{} records could not be read", unreadable.len())?;
        for record in unreadable.iter().take(MAX_NAMED) {
            writeln!(f, "  {record}")?;
        }
        if unreadable.len() > MAX_NAMED {
            writeln!(f, "  and {} more, marked in the output", unreadable.len() - MAX_NAMED)?;
        }
        for (first, last) in gaps.iter().take(MAX_NAMED) {
            writeln!(f, "  jobs number {first} to {last} not found: deleted by retention, or lost")?;
        }
        if *jobs == 0 {
            writeln!(f, "no records can be read: restore the data folder from a backup")?;
        }
        Ok(())
    }
}

/// Writes all that can be read of the store in the folder `path`. Changes nothing there.
pub fn export<W: Write>(path: &Path, out: &mut Writer<W>) -> Result<Summary, SalvageError> {
    let db = path.join(DB);
    let unreadable = |source| SalvageError::Unreadable { path: db.clone(), source };
    let file = File::open(&db).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => SalvageError::Nothing { path: path.to_owned() },
        _ => unreadable(error),
    })?;
    // Held to the end: a service that started meanwhile would write.
    let lock = file.try_clone().map_err(unreadable)?;
    // Some file systems have no locks: then there is none to respect.
    let is_locked = |result: &rustix::io::Result<()>| *result == Err(rustix::io::Errno::WOULDBLOCK);
    if is_locked(&disk::retry_while(is_locked, || flock(&lock, FlockOperation::NonBlockingLockShared))) {
        return Err(SalvageError::InUse(OpenError::InUse { path: path.to_owned() }));
    }
    let log = Log::read(file).map_err(unreadable)?;
    Records::new(log, Copy::open(path)).write(path, out)
}

/// sled, opened on a copy.
struct Copy {
    tree: Option<sled::Db>,
    keys: BTreeSet<Vec<u8>>,
    trouble: Option<String>,
    _folder: tempfile::TempDir,
}

impl Copy {
    fn open(path: &Path) -> Result<Copy, String> {
        let folder = tempfile::tempdir().map_err(|error| format!("can't find a folder for a copy: {error}"))?;
        copy_folder(path, folder.path()).map_err(|error| {
            let parent = folder.path().parent().unwrap_or(folder.path()).display();
            format!("can't copy the store to {parent}: {error}; set TMPDIR to a folder with more space")
        })?;
        let config = disk::config(folder.path(), CACHE_BYTES);
        let tree = catch(|| config.open()).map_err(|reason| format!("can't open it: {reason}"))?;
        let mut keys = BTreeSet::new();
        let read = catch(|| {
            for key in tree.iter().keys() {
                keys.insert(key?.to_vec());
            }
            Ok(())
        });
        let trouble = match read {
            Err(reason) => Some(format!("can't read it to the end: {reason}")),
            Ok(()) if !keys.contains(keys::FORMAT) => Some("its beginning is missing".to_owned()),
            Ok(()) => None,
        };
        Ok(Copy { tree: Some(tree), keys, trouble, _folder: folder })
    }

    fn get(&self, key: &[u8]) -> Option<Vec<u8>> {
        let tree = self.tree.as_ref()?;
        catch(|| tree.get(key)).ok()?.map(|value| value.to_vec())
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        let tree = self.tree.take();
        if self.trouble.is_some() {
            // A panic of sled may have left a lock of its own locked for ever.
            std::mem::forget(tree);
        } else {
            let _ = catch(|| {
                drop(tree);
                Ok(())
            });
        }
    }
}

/// What sled does, with its panics as errors.
fn catch<T>(work: impl FnOnce() -> sled::Result<T>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(_) => Err("the files are damaged".to_owned()),
    }
}

fn copy_folder(from: &Path, to: &Path) -> io::Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            fs::create_dir(&target)?;
            copy_folder(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

struct Records {
    log: Log,
    copy: Option<Copy>,
    /// Why sled is not the whole store, if so.
    trouble: Option<String>,
    keys: BTreeSet<Vec<u8>>,
}

impl Records {
    fn new(log: Log, copy: Result<Copy, String>) -> Records {
        let mut keys: BTreeSet<Vec<u8>> = log.keys().cloned().collect();
        let (copy, trouble) = match copy {
            Ok(copy) => {
                keys.extend(copy.keys.iter().cloned());
                let trouble = copy.trouble.clone();
                (Some(copy), trouble)
            }
            Err(reason) => (None, Some(reason)),
        };
        Records { log, copy, trouble, keys }
    }

    fn get(&self, key: &[u8]) -> Option<Vec<u8>> {
        let from_sled = || self.copy.as_ref().and_then(|copy| copy.get(key));
        let from_log = || self.log.get(key).ok().flatten();
        if self.trouble.is_none() { from_sled().or_else(from_log) } else { from_log().or_else(from_sled) }
    }

    /// Whether sled, if it is whole, has a record.
    fn is_known(&self, key: &[u8]) -> bool {
        self.trouble.is_some() || self.copy.as_ref().is_some_and(|copy| copy.keys.contains(key))
    }

    /// What is left of the record whose chunks' keys begin with `record`, and whether that is all of it.
    fn chunks(&self, record: &[u8]) -> Option<(Vec<u8>, bool)> {
        let end = keys::chunk(record, u16::MAX);
        let mut found = None;
        for (key, number) in self.keys.range(record.to_vec()..=end).zip(0_u16..) {
            let (bytes, is_whole) = found.get_or_insert((Vec::new(), false));
            let chunk = self.get(key).filter(|_| *key == keys::chunk(record, number));
            *is_whole = chunk.as_ref().is_some_and(|chunk| codec::is_last_chunk(chunk));
            match chunk {
                Some(chunk) => bytes.extend(chunk),
                None => break,
            }
        }
        found
    }

    fn write<W: Write>(&self, path: &Path, out: &mut Writer<W>) -> Result<Summary, SalvageError> {
        let commits = self.get(keys::CHECKSUM).and_then(|record| Checksum::decode(&record).ok());
        let commits = commits.map_or(0, |checksum| checksum.commits);
        let mut summary = Summary {
            path: path.to_owned(),
            trouble: self.trouble.clone(),
            missing_commits: commit_counter::load(path).saturating_sub(commits),
            ..Summary::default()
        };
        let mut next = 1;
        for seq in self.job_numbers() {
            if seq > next && self.trouble.is_some() {
                summary.gaps.push((next, seq - 1));
            }
            next = seq + 1;
        }
        for seq in self.jobs() {
            let line = self.line(seq);
            summary.jobs += 1;
            summary.only_in_log += usize::from(line.only_in_log);
            let name =
                line.life.as_ref().map_or_else(|| format!("job number {seq}"), |Life(job)| format!("job {}", job.id));
            summary.unreadable.extend(line.unreadable.iter().map(|record| format!("{record} of {name}")));
            let line = serde_json::to_string(&line).map_err(|error| SalvageError::Output(error.into()))?;
            out.line(Kind::Job, &line).map_err(SalvageError::Output)?;
        }
        out.end().map_err(SalvageError::Output)?;
        Ok(summary)
    }

    fn job_numbers(&self) -> BTreeSet<Seq> {
        let keys = self.keys.iter().take_while(|key| key[0] <= keys::ATTEMPT[0]);
        keys.filter_map(|key| keys::parse_seq(key)).collect()
    }

    /// The numbers of the jobs to write. A crash may have left parts of others: of an unanswered insertion, or of a prune step.
    fn jobs(&self) -> BTreeSet<Seq> {
        let pruning = self.get(keys::PRUNING).unwrap_or_default();
        let pruning: BTreeSet<Seq> = keys::parse_pruning(&pruning).collect();
        let newest = self.keys.range(keys::METADATA.to_vec()..keys::REQUEST.to_vec()).next_back();
        let newest = newest.and_then(|key| keys::parse_seq(key)).unwrap_or(0);
        let unfinished = self.unfinished_inserts();
        let mut jobs = self.job_numbers();
        jobs.retain(|seq| {
            let has_metadata = self.keys.contains(&keys::metadata(*seq)[..]);
            let is_leftover = pruning.contains(seq) || (self.trouble.is_none() && *seq > newest);
            let has_request = self.is_known(&keys::chunk(&keys::request(*seq), 0));
            !unfinished.contains(seq) && (has_metadata || (!is_leftover && has_request))
        });
        jobs
    }

    /// The jobs of inserts that a crash cut off. Only sled, if it is whole, knows them: of finished inserts the log has the
    /// record too.
    fn unfinished_inserts(&self) -> BTreeSet<Seq> {
        let records = self.keys.range(keys::INSERT_ALL.to_vec()..).filter(|_| self.trouble.is_none());
        let inserts = records.filter(|key| self.is_known(key)).filter_map(|key| {
            let first = keys::parse_seq(key)?;
            let count = u64::from_be_bytes(self.get(key)?.try_into().ok()?);
            Some(first..first.saturating_add(count))
        });
        inserts.flatten().collect()
    }

    fn line(&self, seq: Seq) -> Line {
        let only_in_log = !self.is_known(&keys::metadata(seq));
        let mut line = Line::new(seq, only_in_log);
        let job = self.get(&keys::metadata(seq)).and_then(|bytes| record::decode(&bytes).ok());
        if job.is_none() {
            line.unreadable.push("the metadata".to_owned());
        }
        line.request = line.parse("the request".to_owned(), self.chunks(&keys::request(seq)), true);
        let closed = job.as_ref().map(Job::closed_attempts);
        let mut numbers: BTreeSet<u32> =
            self.keys.range(keys::attempts(seq)).filter_map(|key| keys::parse_attempt(key)).collect();
        if let Some(closed) = closed {
            // A later one was never committed; of a damaged store it may be the metadata that is older.
            numbers.retain(|number| *number <= closed || self.trouble.is_some());
            numbers.extend(1..=closed);
        }
        // Of a damaged store the newest metadata may be lost, and then this is an older one.
        if self.trouble.is_some() && job.as_ref().is_some_and(|job| !job.state.is_final()) {
            line.unreadable.push("whatever followed this state".to_owned());
        }
        for number in numbers {
            let record = self.chunks(&keys::attempt(seq, number));
            let is_expected = closed.is_some_and(|closed| number <= closed);
            let attempt = line.parse(format!("attempt {number}"), record, is_expected);
            line.attempts.extend(attempt);
        }
        if let Some((job, webhook)) = job.as_ref().zip(self.get(&keys::of_job(keys::DELIVERY, seq))) {
            match records::parse_delivery(&webhook) {
                Ok(webhook) => line.webhook = Some(deliveries::reconcile(webhook, job)),
                Err(_) => line.unreadable.push("the webhook".to_owned()),
            }
        }
        line.life = job.map(Life);
        line
    }
}

#[derive(Serialize)]
struct Line {
    kind: Kind,
    number: Seq,
    #[serde(flatten)]
    life: Option<Life>,
    /// What was asked; null if that can't be read.
    request: Option<Box<RawValue>>,
    /// Oldest first, as stored: with the raw answer and, if it succeeded, the result.
    attempts: Vec<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    webhook: Option<Delivery>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    unreadable: Vec<String>,
    /// The text that is left of records that can't be read whole.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    fragments: BTreeMap<String, String>,
    /// The store as it opens does not know the job.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    only_in_log: bool,
}

impl Line {
    fn new(number: Seq, only_in_log: bool) -> Line {
        Line {
            kind: Kind::Job,
            number,
            life: None,
            request: None,
            attempts: Vec::new(),
            webhook: None,
            unreadable: Vec::new(),
            fragments: BTreeMap::new(),
            only_in_log,
        }
    }

    /// The record as JSON, or an entry that it can't be read. One that is not expected may be missing.
    fn parse(&mut self, name: String, found: Option<(Vec<u8>, bool)>, is_expected: bool) -> Option<Box<RawValue>> {
        if found.is_none() && !is_expected {
            return None;
        }
        let (bytes, is_whole) = found.unwrap_or_default();
        let value = serde_json::from_slice(&bytes).ok().filter(|_| is_whole);
        if value.is_none() {
            if !bytes.is_empty() {
                self.fragments.insert(name.clone(), String::from_utf8_lossy(&bytes).into_owned());
            }
            self.unreadable.push(name);
        }
        value
    }
}

#[cfg(test)]
pub(super) mod tests;
