//! New jobs.

use std::{collections::HashSet, sync::Arc};

use super::super::{
    batch::Batch, cache::Bodies, codec::write_chunks, command_queue::Size, error::Result, idempotency::Known, keys,
};
use crate::{
    job::{Job, JobId, JobRecord, JobRequest, delivery::Delivery},
    store::traits::{Insertion, StoreError},
};

/// A job to be added, with its records encoded, so that the writer need not do it.
pub(crate) struct NewJob {
    job: Job,
    request: Arc<JobRequest>,
    request_bytes: Vec<u8>,
    /// The attempts that it had before, by their number.
    attempts: Vec<(u32, Vec<u8>)>,
}

impl NewJob {
    pub(crate) fn from_records(records: Vec<JobRecord>) -> Result<Vec<NewJob>> {
        records.into_iter().map(NewJob::from_record).collect()
    }

    fn from_record(record: JobRecord) -> Result<NewJob> {
        let JobRecord { job, request, attempts, delivery: _ } = record;
        let corrupt = |error: serde_json::Error| StoreError::Corrupt { id: job.id, reason: error.to_string() };
        let attempts = attempts.iter().map(|attempt| Ok((attempt.number, serde_json::to_vec(attempt)?)));
        let attempts = attempts.collect::<Result<_, _>>().map_err(corrupt)?;
        let request_bytes = serde_json::to_vec(&*request).map_err(corrupt)?;
        Ok(NewJob { job, request, request_bytes, attempts })
    }

    pub(crate) fn size(all: &[NewJob]) -> Size {
        let attempts = |new: &NewJob| new.attempts.iter().map(|(_, bytes)| bytes.len()).sum::<usize>();
        let bytes = all.iter().map(|new| new.request_bytes.len() + attempts(new)).sum();
        Size { is_insert: true, jobs: all.len().max(1), bytes }
    }
}

impl Batch<'_> {
    pub(crate) fn insert_all(&mut self, all: Vec<NewJob>) -> Result<Vec<Insertion>> {
        let known: Vec<Option<Known>> = all.iter().map(|new| self.known(&new.job)).collect();
        if known.iter().any(Option::is_some) {
            // One may be a job of this very batch: the reply is sent only once that is durable.
            let existing = known.into_iter().map(|known| match known {
                Some(Known::Job(id)) => Ok(Insertion::Existing(id)),
                Some(Known::OtherRequest) | None => Err(StoreError::KeyReused),
            });
            return existing.collect();
        }
        // The commit point of a single job is its metadata.
        if all.len() > 1 {
            self.disk.begin_insert_all(*self.next_seq, all.len())?;
            self.staged.unfinished_inserts.push(*self.next_seq);
        }
        let insertions = vec![Insertion::Accepted; all.len()];
        all.into_iter().try_for_each(|new| self.insert(new, false))?;
        Ok(insertions)
    }

    pub(crate) fn import(&mut self, all: Vec<NewJob>) -> Result<Vec<Insertion>> {
        // If an id comes twice, in two imports or in one, the first counts.
        let mut ids: HashSet<JobId> = self.staged_ids().collect();
        let mut insertions = Vec::with_capacity(all.len());
        for new in all {
            let id = new.job.id;
            if self.shared.view.read().index.seq(id).is_some() || !ids.insert(id) {
                insertions.push(Insertion::Existing(id));
            } else {
                self.insert(new, true)?;
                insertions.push(Insertion::Accepted);
            }
        }
        Ok(insertions)
    }

    /// What the job's idempotency key, if it has one, stands for.
    fn known(&self, job: &Job) -> Option<Known> {
        let (key, now) = (job.idempotency.as_ref()?, self.shared.key_time(job.created_at));
        self.staged.keys.find(key, now).or_else(|| self.shared.view.read().keys.find(key, now))
    }

    fn insert(&mut self, new: NewJob, is_import: bool) -> Result<()> {
        let NewJob { job, request, request_bytes, attempts } = new;
        let seq = *self.next_seq;
        *self.next_seq += 1;
        self.staged.keys.record(&job);
        write_chunks(self.disk.tree(), &keys::request(seq), &request_bytes)?;
        for (number, attempt) in &attempts {
            write_chunks(self.disk.tree(), &keys::attempt(seq, *number), attempt)?;
        }
        let is_final = job.state.is_final();
        // What ended elsewhere is not announced again.
        if let Some(url) = request.callback_url.as_deref().filter(|_| !(is_import && is_final)) {
            let delivery = Delivery::to(url);
            self.set_delivery(seq, if is_final { delivery.due(job.created_at) } else { delivery })?;
        }
        // A job with a history is not lately used.
        if attempts.is_empty() {
            let bodies = Bodies { request, attempts: Vec::new(), bytes: request_bytes.len() };
            self.show(move |_, cache| cache.insert(seq, bodies));
        }
        let created_at = job.created_at;
        self.stage(seq, Some(job), created_at);
        Ok(())
    }
}
