//! New jobs.

use std::collections::HashSet;

use super::super::{
    batch::Batch,
    cache::Bodies,
    codec::write_chunks,
    command_queue::Size,
    error::Result,
    idempotency::Known,
    keys::{self, Seq},
};
use crate::{
    job::{Job, JobId, JobRecord},
    store::{
        new_job::NewJob,
        traits::{Insertion, StoreError},
    },
};

pub(crate) fn size_of(all: &[NewJob]) -> Size {
    Size { is_insert: true, jobs: all.len().max(1), bytes: all.iter().map(NewJob::bytes).sum() }
}

impl Batch<'_> {
    pub(crate) fn insert_all(&mut self, all: Vec<NewJob>) -> Result<Vec<Insertion>> {
        let known: Vec<Option<Known>> = all.iter().map(|new| self.known(&new.record.job)).collect();
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
        all.into_iter().try_for_each(|new| self.insert(new, None))?;
        Ok(insertions)
    }

    pub(crate) fn import(&mut self, all: Vec<NewJob>, places: Option<Vec<Seq>>) -> Result<Vec<Insertion>> {
        // If an id comes twice, in two imports or in one, the first counts.
        let mut ids: HashSet<JobId> = self.staged_ids().collect();
        let mut insertions = Vec::with_capacity(all.len());
        let mut places = places.into_iter().flatten();
        for new in all {
            let place = places.next();
            let id = new.record.job.id;
            if self.shared.view.read().index.seq(id).is_some() || !ids.insert(id) {
                insertions.push(Insertion::Existing(id));
            } else {
                self.insert(new, place)?;
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

    fn insert(&mut self, new: NewJob, place: Option<Seq>) -> Result<()> {
        let NewJob { record: JobRecord { job, request, delivery, .. }, request: bytes, attempts } = new;
        let seq = place.unwrap_or(*self.next_seq);
        if seq < *self.next_seq {
            // What a crash may have left of another job.
            self.disk.remove_bodies(seq)?;
        }
        *self.next_seq = (*self.next_seq).max(seq + 1);
        self.staged.keys.record(&job);
        write_chunks(self.disk.tree(), &keys::request(seq), &bytes)?;
        for (number, attempt) in &attempts {
            write_chunks(self.disk.tree(), &keys::attempt(seq, *number), attempt)?;
        }
        if let Some(delivery) = delivery {
            self.set_delivery(seq, delivery)?;
        }
        // A job with a history is not lately used.
        if attempts.is_empty() {
            let bodies = Bodies { request, attempts: Vec::new(), bytes: bytes.len() };
            self.show(move |_, cache| cache.insert(seq, bodies));
        }
        let created_at = job.created_at;
        self.stage(seq, Some(job), created_at);
        Ok(())
    }
}
