//! A copy ahead of a move: the jobs of a running service that have ended, from its archive. The move then has little to do.

use super::{error::TransferError, open::Open, place::Place};
use crate::{
    clock::Clock,
    job::JobRecord,
    store::archive::{self, Batch, Checker, Merged, Record},
};

/// Bytes of lines that are written together, or one larger job.
const BATCH_BYTES: usize = 4 << 20;

pub struct Ahead {
    target: Open,
    places: archive::Places,
    checker: Checker,
    /// Lines so far.
    lines: usize,
    batch: Batch,
    bytes: usize,
    merged: Merged,
    report: AheadReport,
}

/// What a copy ahead did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AheadReport {
    /// Jobs that were new in the target or had changed.
    pub copied: usize,
    /// Jobs that were there.
    pub known: usize,
    /// Jobs left to the move, because they have not ended or can't be read.
    pub left: usize,
}

impl Ahead {
    /// # Errors
    /// [`TransferError`].
    pub async fn begin(service: &str, to: &Place) -> Result<Ahead, TransferError> {
        let target = Open::target(to, &Clock::system()).await?;
        if !target.begin(&format!("the service at {service}")).await? {
            return Err(TransferError::NotEmpty(to.clone()));
        }
        let places = archive::Places::of(&*target.store).await.map_err(|error| target.failed(error))?;
        Ok(Ahead {
            target,
            places,
            checker: Checker::default(),
            lines: 0,
            batch: Batch::default(),
            bytes: 0,
            merged: Merged::default(),
            report: AheadReport::default(),
        })
    }

    /// Takes the next line of the archive.
    ///
    /// # Errors
    /// [`TransferError`].
    pub async fn take(&mut self, line: &[u8]) -> Result<(), TransferError> {
        self.lines += 1;
        let record = self.checker.take(line);
        match record.map_err(|source| TransferError::Service { line: self.lines, source })? {
            Some(Record::Job(record)) if record.job.state.is_final() => self.add(record, line.len()),
            Some(Record::Job(JobRecord { job, .. })) => self.leave(job.id),
            Some(Record::UnreadableJob(id, _)) => self.leave(id),
            Some(Record::Key(_) | Record::Setting(..) | Record::Audit(..) | Record::Day(_)) | None => {}
        }
        if self.batch.is_full() || self.bytes >= BATCH_BYTES { self.write().await } else { Ok(()) }
    }

    /// Jobs that have ended, so far.
    pub fn count(&self) -> u64 {
        (self.report.copied + self.report.known) as u64
    }

    /// Checks that the archive was whole, and what the target has of it. The target stays marked.
    ///
    /// # Errors
    /// [`TransferError`].
    pub async fn end(mut self) -> Result<AheadReport, TransferError> {
        self.checker.finish().map_err(|source| TransferError::Service { line: self.lines, source })?;
        self.write().await?;
        let again = self.target.again(&mut self.merged).await?;
        again.store.close().await;
        Ok(self.report)
    }

    fn add(&mut self, record: JobRecord, bytes: usize) {
        let digest = archive::head_digest(record.job.clone(), record.delivery.as_ref());
        let archive::Place::New { number, instead_of } = self.places.next(record.job.id, Some(digest)) else {
            self.report.known += 1;
            return;
        };
        self.batch.leave(instead_of);
        let record = Record::Job(record);
        self.merged.add(&record);
        if let Record::Job(record) = record {
            self.batch.add(number, record);
        }
        self.bytes += bytes;
        self.report.copied += 1;
    }

    /// A job that only gets a number.
    fn leave(&mut self, id: crate::job::JobId) {
        if let archive::Place::New { instead_of, .. } = self.places.next(id, None) {
            self.batch.leave(instead_of);
        }
        self.report.left += 1;
    }

    async fn write(&mut self) -> Result<(), TransferError> {
        self.bytes = 0;
        let (batch, now) = (std::mem::take(&mut self.batch), self.target.clock.now());
        batch.write(&*self.target.store, now).await.map_err(|error| self.target.failed(error))
    }
}
