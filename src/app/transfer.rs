//! Offline exports, imports and moves of all that a store holds. No service may use the stores. No call to Claude is made, and
//! no webhook is sent.
//!
//! A target is empty at the beginning. It is marked until it has all records, checked against their source, so that an
//! interrupted transfer can be repeated and no service starts with a part of the jobs.

use std::{
    fmt,
    io::{self, BufRead, Write},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use secrecy::{ExposeSecret, SecretString};
use tokio::{
    task::{self, JoinError},
    time::sleep,
};

use super::{parts, secrets};
use crate::{
    clock::Clock,
    metrics::Metrics,
    store::{
        Store, StoreError,
        archive::{self, ArchiveError, Checker, Kind, Reader, Record, Scope, Tally, Writer},
        postgres::{self, Member, PostgresStore},
        sled::{self, SledStore},
    },
};

const SCHEMES: [&str; 2] = ["postgres", "postgresql"];

/// Bytes of lines that are restored together, or one larger record, and most records.
const BATCH_BYTES: usize = 4 << 20;
const BATCH_RECORDS: usize = 500;

/// How often to look for other nodes of a database: the server needs a moment to notice that one has ended.
const NODE_TRIES: u32 = 10;
const NODE_PAUSE: Duration = Duration::from_millis(200);

/// Where a store is.
#[derive(Clone, Debug)]
pub enum Place {
    /// The data folder of a service.
    Folder(PathBuf),
    Database(SecretString),
}

#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    #[error("there is no job store in {}: name the data folder of a ceoagent, which has a folder `queue`", path.display())]
    NoStore { path: PathBuf },
    #[error("{0} is empty: there is nothing to move or to export")]
    Nothing(Place),
    #[error("{0} is the source and the target: name two different places")]
    SamePlace(Place),
    #[error(transparent)]
    Folder(#[from] sled::OpenError),
    #[error("{0}: {1}")]
    Database(Place, postgres::OpenError),
    #[error("can't use {0}: {1}")]
    Unreachable(Place, String),
    #[error("{0} is in use: nodes of a service are connected to it. Stop all nodes, then repeat the command")]
    InUse(Place),
    #[error(
        "{0} has only a part of {1}, because a move or an import into it did not end. Repeat that one first, or empty this \
         place: see docs/export.md"
    )]
    Half(Place, String),
    #[error(
        "{0} has records already. Name an empty place: a new folder, or a database without the schema `ceoagent`. To add jobs \
         to a running service, use `ceoagent import` without --to"
    )]
    NotEmpty(Place),
    #[error(
        "{place} has {count} jobs, but only {read} can be read. Save what is left with `ceoagent export --salvage`: see \
         docs/export.md"
    )]
    UnreadableJobs { place: Place, count: u64, read: u64 },
    #[error(
        "line {line}: {source}. {restored} records before it are in {target}, and no service starts with them: empty it, and \
         import a whole archive"
    )]
    Line { line: usize, source: ArchiveError, restored: u64, target: Place },
    #[error("line {line}: {source}. Nothing was imported")]
    FirstLines { line: usize, source: ArchiveError },
    #[error("{0}: {1}")]
    Store(Place, StoreError),
    #[error("can't write the archive: {0}")]
    Output(io::Error),
    #[error("can't read the archive: {0}")]
    Input(io::Error),
    #[error("the store could not be opened: {0}")]
    Panicked(#[from] JoinError),
}

/// What was transferred: what the source had, and what the target has.
#[derive(Debug)]
pub struct Transferred {
    pub source: Tally,
    pub target: Tally,
    /// The target had all of it before.
    pub was_done: bool,
    /// The archive has no settings, API keys and sessions.
    pub is_partial: bool,
}

impl Place {
    /// A URL of PostgreSQL, or a folder; `None` for another URL.
    pub fn parse(text: &str) -> Option<Place> {
        match text.split_once("://") {
            Some((scheme, _)) if SCHEMES.contains(&scheme) => Some(Place::Database(text.into())),
            Some(_) => None,
            None => Some(Place::Folder(text.into())),
        }
    }

    /// The same text for the same place, without secrets.
    fn origin(&self) -> String {
        match self {
            Place::Folder(path) => {
                let path = std::path::absolute(path).unwrap_or_else(|_| path.clone());
                format!("the data folder {}", path.canonicalize().unwrap_or(path).display())
            }
            Place::Database(_) => self.to_string(),
        }
    }
}

/// Without secrets.
impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Folder(path) => write!(f, "the data folder {}", path.display()),
            Place::Database(url) => {
                let url = url.expose_secret();
                let rest = url.split_once("://").map_or("", |(_, rest)| rest);
                let rest = rest.split('?').next().unwrap_or_default();
                write!(f, "the database {}", rest.rsplit_once('@').map_or(rest, |(_, address)| address))
            }
        }
    }
}

/// Copies all that one place holds to another one. `progress` gets the number of jobs so far.
///
/// # Errors
/// [`TransferError`]. The source is as it was; the target is not used by any service before a repeated call has ended.
pub async fn move_all(from: &Place, to: &Place, progress: &mut dyn FnMut(u64)) -> Result<Transferred, TransferError> {
    if from.origin() == to.origin() {
        return Err(TransferError::SamePlace(from.clone()));
    }
    let clock = Clock::system();
    let source = Open::source(from, &clock).await?;
    let target = Open::target(to, &clock).await?;
    let is_new = target.begin(&from.origin()).await?;
    let mut counting = Counting { tally: Tally::default(), progress };
    if is_new {
        let mut reader = source.reader();
        let unread = |error| TransferError::Store(from.clone(), error);
        let mut records = reader.next().await.map_err(unread)?;
        while let Some(some) = records {
            counting.add(&some)?;
            // The next are read while these are written.
            let (restored, next) = tokio::join!(archive::restore(&*target.store, some), reader.next());
            restored.map_err(|error| TransferError::Store(to.clone(), error))?;
            records = next.map_err(unread)?;
        }
        source.check_count(&counting.tally).await?;
    } else {
        counting.tally = source.tally().await?;
    }
    source.store.close().await;
    target.end(to, &clock, counting.tally, !is_new, false).await
}

/// Writes all that a place holds.
///
/// # Errors
/// [`TransferError`].
pub async fn export<W: Write>(from: &Place, writer: &mut Writer<W>) -> Result<Tally, TransferError> {
    let source = Open::source(from, &Clock::system()).await?;
    let mut reader = source.reader();
    let mut tally = Tally::default();
    while let Some(records) = reader.next().await.map_err(|error| TransferError::Store(from.clone(), error))? {
        for record in records {
            writer.record(&record).map_err(TransferError::Output)?;
            tally.add(record.kind(), "");
        }
    }
    // Without it the archive has no end line.
    source.check_count(&tally).await?;
    source.store.close().await;
    writer.end().map_err(TransferError::Output)
}

/// Restores an archive in an empty place.
///
/// # Errors
/// [`TransferError`]; no service starts with a part of an archive.
pub async fn import(
    mut lines: impl BufRead,
    to: &Place,
    progress: &mut dyn FnMut(u64),
) -> Result<Transferred, TransferError> {
    let clock = Clock::system();
    let mut checker = Checker::default();
    let mut counting = Counting { tally: Tally::default(), progress };
    let (mut target, mut is_new) = (None::<Open>, true);
    let (mut batch, mut bytes, mut number, mut restored) = (Vec::new(), 0, 0, 0);
    let mut line = String::new();
    loop {
        line.clear();
        number += 1;
        let is_end = lines.read_line(&mut line).map_err(TransferError::Input)? == 0;
        let wrong = |line, source| match restored {
            0 => TransferError::FirstLines { line, source },
            restored => TransferError::Line { line, source, restored, target: to.clone() },
        };
        if is_end {
            checker.finish().map_err(|error| wrong(number - 1, error))?;
        }
        let record = checker.take(&line).map_err(|error| wrong(number, error))?;
        bytes += line.len();
        batch.extend(record);
        if batch.len() < BATCH_RECORDS && bytes < BATCH_BYTES && !is_end {
            continue;
        }
        // Only an archive that begins well makes a target.
        if target.is_none() {
            let open = Open::target(to, &clock).await?;
            let id = checker.header().map(|header| header.id).unwrap_or_default();
            is_new = open.begin(&format!("the archive {id}")).await?;
            target = Some(open);
        }
        counting.add(&batch)?;
        if let Some(target) = target.as_ref().filter(|_| is_new) {
            restored += batch.len() as u64;
            let failed = |error| TransferError::Store(to.clone(), error);
            archive::restore(&*target.store, std::mem::take(&mut batch)).await.map_err(failed)?;
        }
        batch.clear();
        bytes = 0;
        if is_end {
            break;
        }
    }
    let Some(target) = target else { return Err(TransferError::Nothing(to.clone())) };
    let is_partial = checker.header().is_some_and(|header| header.is_partial);
    target.end(to, &clock, counting.tally, !is_new, is_partial).await
}

/// Counts what is transferred.
struct Counting<'a> {
    tally: Tally,
    progress: &'a mut dyn FnMut(u64),
}

impl Counting<'_> {
    fn add(&mut self, records: &[Record]) -> Result<(), TransferError> {
        for record in records {
            let line = record.line().map_err(|error| TransferError::Output(error.into()))?;
            self.tally.add(record.kind(), &line);
        }
        (self.progress)(self.tally.count(Kind::Job));
        Ok(())
    }
}

/// A store that no service uses.
struct Open {
    place: Place,
    store: Arc<dyn Store>,
    clock: Clock,
    /// The same store, if it is a database.
    database: Option<Arc<PostgresStore>>,
}

impl Open {
    async fn source(place: &Place, clock: &Clock) -> Result<Open, TransferError> {
        if let Place::Folder(path) = place
            && !parts::has_store(path)
        {
            return Err(TransferError::NoStore { path: path.clone() });
        }
        let open = Open::open(place, clock).await?;
        if let Some(origin) = open.mark().await? {
            return Err(TransferError::Half(place.clone(), origin));
        }
        if open.is_empty().await? {
            return Err(TransferError::Nothing(place.clone()));
        }
        Ok(open)
    }

    async fn target(place: &Place, clock: &Clock) -> Result<Open, TransferError> {
        if let Place::Folder(path) = place {
            secrets::guard_folder(path);
        }
        Open::open(place, clock).await
    }

    async fn open(place: &Place, clock: &Clock) -> Result<Open, TransferError> {
        let store: Arc<dyn Store> = match place {
            Place::Folder(path) => {
                let (config, clock) = (parts::store(path, false), clock.clone());
                Arc::new(task::spawn_blocking(move || SledStore::open(config, clock, Metrics::new())).await??)
            }
            Place::Database(url) => {
                let failed = |error| match error {
                    postgres::OpenError::Connect(reason) => TransferError::Unreachable(place.clone(), reason),
                    error => TransferError::Database(place.clone(), error),
                };
                let store =
                    PostgresStore::open(url, &Member::COMMAND, clock.clone(), Metrics::new()).await.map_err(failed)?;
                let store = Arc::new(store);
                let open =
                    Open { place: place.clone(), store: store.clone(), clock: clock.clone(), database: Some(store) };
                open.check_alone(NODE_TRIES).await?;
                return Ok(open);
            }
        };
        Ok(Open { place: place.clone(), store, clock: clock.clone(), database: None })
    }

    /// Another process has no folder at the same time, but it may have started to use a database.
    async fn check_alone(&self, tries: u32) -> Result<(), TransferError> {
        let Some(database) = &self.database else { return Ok(()) };
        for left in (0..tries).rev() {
            if database.is_alone().await.map_err(|error| self.failed(error))? {
                return Ok(());
            }
            if left > 0 {
                sleep(NODE_PAUSE).await;
            }
        }
        Err(TransferError::InUse(self.place.clone()))
    }

    fn failed(&self, error: StoreError) -> TransferError {
        TransferError::Store(self.place.clone(), error)
    }

    fn reader(&self) -> Reader {
        Reader::new(Arc::clone(&self.store), Scope::Everything, self.clock.now())
    }

    async fn mark(&self) -> Result<Option<String>, TransferError> {
        archive::marked(&*self.store).await.map_err(|error| self.failed(error))
    }

    async fn is_empty(&self) -> Result<bool, TransferError> {
        let mut reader = self.reader();
        while let Some(records) = reader.next().await.map_err(|error| self.failed(error))? {
            if !records.is_empty() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Marks a target. False if it has records and no mark: then nothing may be written.
    async fn begin(&self, origin: &str) -> Result<bool, TransferError> {
        match self.mark().await? {
            Some(known) if known == origin => Ok(true),
            Some(known) => Err(TransferError::Half(self.place.clone(), known)),
            None if self.is_empty().await? => {
                archive::mark(&*self.store, origin).await.map_err(|error| self.failed(error))?;
                Ok(true)
            }
            None => Ok(false),
        }
    }

    async fn tally(&self) -> Result<Tally, TransferError> {
        let mut counting = Counting { tally: Tally::default(), progress: &mut |_| {} };
        let mut reader = self.reader();
        while let Some(records) = reader.next().await.map_err(|error| self.failed(error))? {
            counting.add(&records)?;
        }
        Ok(counting.tally)
    }

    /// A listing leaves out what it can't read. All of it must be there.
    async fn check_count(&self, tally: &Tally) -> Result<(), TransferError> {
        let count = archive::job_count(&*self.store).await.map_err(|error| self.failed(error))?;
        let read = tally.count(Kind::Job);
        if count == read {
            self.check_alone(1).await
        } else {
            Err(TransferError::UnreadableJobs { place: self.place.clone(), count, read })
        }
    }

    /// Reads what a target has durably, compares it with the source and, if both are equal, removes the mark.
    async fn end(
        self,
        place: &Place,
        clock: &Clock,
        source: Tally,
        was_done: bool,
        is_partial: bool,
    ) -> Result<Transferred, TransferError> {
        self.store.close().await;
        drop(self);
        let again = Open::open(place, clock).await?;
        let target = again.tally().await?;
        again.check_alone(1).await?;
        let is_equal = source.differing(&target).is_empty();
        if was_done && !is_equal {
            return Err(TransferError::NotEmpty(place.clone()));
        }
        if is_equal && !was_done {
            archive::unmark(&*again.store).await.map_err(|error| again.failed(error))?;
        }
        again.store.close().await;
        Ok(Transferred { source, target, was_done, is_partial })
    }
}
