//! Offline exports, imports and moves of all that a store holds, and copies ahead of a move. No service may use the stores. No
//! call to Claude is made, and no webhook is sent.
//!
//! A target is empty at the beginning. It is marked until it has all records, checked against their source, so that an
//! interrupted transfer can be repeated and no service starts with a part of the jobs.
//!
//! - `place`: where a store is
//! - `open`: a store that no service uses
//! - `ahead`: what a running service has, ahead of a move

mod ahead;
mod error;
mod open;
mod place;

#[cfg(test)]
mod tests;

use std::io::{BufRead, Write};

use self::open::Open;
pub use self::{
    ahead::{Ahead, AheadReport},
    error::TransferError,
    open::Transferred,
    place::Place,
};
use crate::{
    clock::{Clock, Timestamp},
    store::archive::{self, Checker, Merged, Record, Tally, Writer},
};

/// Bytes of lines that are restored together, or one larger record, and most records.
const BATCH_BYTES: usize = 4 << 20;
const BATCH_RECORDS: usize = 500;

/// Makes one place equal to another one: an empty one, or one with a part of the jobs. `progress` gets the number of jobs
/// copied so far.
///
/// # Errors
/// [`TransferError`]. The source is as it was; the target is not used by any service before a repeated call has ended.
pub async fn move_all(
    from: &Place,
    to: &Place,
    progress: &mut (dyn FnMut(u64) + Send),
) -> Result<Transferred, TransferError> {
    if from.is_same(to) {
        return Err(TransferError::SamePlace(from.clone()));
    }
    let clock = Clock::system();
    let source = Open::source(from, &clock).await?;
    let target = Open::target(to, &clock).await?;
    let keys_from = source.keys_from();
    let is_new = target.begin(&from.origin()).await?;
    let merged = if is_new {
        let merged = archive::merge(&source.store, &target.store, keys_from, clock.now(), progress).await;
        merged.map_err(|error| TransferError::of_merge(error, from, to))?
    } else {
        Merged { source: source.outline(keys_from).await?, ..Merged::default() }
    };
    source.check_alone(1).await?;
    source.store.close().await;
    target.end(merged, !is_new, keys_from).await
}

/// Writes all that a place holds.
///
/// # Errors
/// [`TransferError`]; then the archive has no end line.
pub async fn export<W: Write>(from: &Place, writer: &mut Writer<W>) -> Result<Tally, TransferError> {
    let source = Open::source(from, &Clock::system()).await?;
    let mut reader = source.reader();
    while let Some(records) = reader.next().await.map_err(|error| source.failed(error))? {
        for record in records {
            if let Record::UnreadableJob(id, reason) = record {
                return Err(TransferError::UnreadableJob { place: from.clone(), id, reason });
            }
            writer.record(&record).map_err(TransferError::Output)?;
        }
    }
    source.check_alone(1).await?;
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
    progress: &mut (dyn FnMut(u64) + Send),
) -> Result<Transferred, TransferError> {
    let clock = Clock::system();
    let (mut checker, mut merged) = (Checker::default(), Merged::default());
    let (mut target, mut is_new) = (None::<Open>, true);
    let (mut batch, mut bytes, mut number, mut restored) = (Vec::new(), 0, 0, 0);
    let mut line = Vec::new();
    loop {
        line.clear();
        number += 1;
        let is_end = lines.read_until(b'\n', &mut line).map_err(TransferError::Input)? == 0;
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
            is_new = open.begin(&Open::archive(id)).await?;
            target = Some(open);
        }
        batch.iter().for_each(|record| merged.add(record));
        progress(merged.copied.len() as u64);
        if let Some(target) = target.as_ref().filter(|_| is_new) {
            restored += batch.len() as u64;
            let failed = |error| target.failed(error);
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
    // An archive has keys that have expired since.
    let transferred = target.end(merged, !is_new, Timestamp::from_millis(0)).await?;
    Ok(Transferred { is_partial, ..transferred })
}
