//! Searches for jobs. Conditions on a job's life are checked in memory, conditions on its question in the records. A search
//! goes on until its page is full or [`LOOK_TIME`] is over; then the next page continues it.

use std::time::{Duration, Instant};

use tracing::error;

use super::{Shared, codec::read_chunks, disk::Disk, keys, keys::Seq};
use crate::{
    clock::Timestamp,
    job::{Cursor, Job, JobPage, JobRecord, JobRequest, JobSelection, Listing, UnfinishedSearch},
    store::StoreError,
};

/// Longest search for one page. A million jobs in memory, or some 100,000 records, are searched within it.
pub(super) const LOOK_TIME: Duration = Duration::from_millis(500);

/// A page ends after the job with which its texts exceed this size, because it is held in memory. Usual jobs have some
/// 10 KB.
const MAX_PAGE_BYTES: usize = 4 << 20;

/// Jobs that are looked at under one lock of the index: the writer must not wait for a listing.
const LOOK_STEP: usize = 4_096;

/// What was found, in the order it was looked at.
struct Found {
    jobs: Vec<(Seq, Job)>,
    /// How far that went, if there may be more.
    end: Option<Seq>,
    /// Set if the time was over before the page was full.
    unfinished: Option<UnfinishedSearch>,
}

impl Shared {
    /// A page of jobs with their records, searched for at most `look_time`. May block.
    pub(super) fn list(
        &self,
        disk: &Disk,
        listing: &Listing,
        now: Timestamp,
        look_time: Duration,
    ) -> Result<JobPage, StoreError> {
        let found = self.find(disk, listing, now, look_time)?;
        self.page(disk, listing, found)
    }

    /// A page of the jobs whose message was tried and not accepted, newest first. May block.
    pub(super) fn failing_deliveries(&self, disk: &Disk, listing: &Listing) -> Result<JobPage, StoreError> {
        let Listing { filter, limit, cursor, .. } = listing;
        let mut jobs: Vec<(Seq, Job)> = {
            let (index, deliveries) = (self.index.read(), self.deliveries.read());
            let failing = deliveries.failing(cursor.map(|cursor| cursor.from));
            let failing = failing.filter_map(|seq| Some((seq, index.get(seq)?)));
            let of_caller = failing.filter(|(_, job)| filter.caller.is_none() || job.caller == filter.caller_digest);
            of_caller.take(*limit + 1).map(|(seq, job)| (seq, job.clone())).collect()
        };
        let has_more = jobs.len() > *limit;
        jobs.truncate(*limit);
        let end = jobs.last().map(|(seq, _)| *seq).filter(|_| has_more);
        let mut page = self.page(disk, listing, Found { jobs, end, unfinished: None })?;
        // Two names can have the same digest.
        page.jobs.retain(|record| filter.takes_request(&record.request));
        Ok(JobPage { prev: None, ..page })
    }

    /// Reads the records of the jobs that were found.
    fn page(&self, disk: &Disk, listing: &Listing, found: Found) -> Result<JobPage, StoreError> {
        let Found { jobs: mut found, mut end, mut unfinished } = found;
        let (mut jobs, mut bytes, mut read) = (Vec::with_capacity(found.len()), 0, 0);
        for &(seq, ref job) in &found {
            // A statement of its own, so that the lock is not held while the disk is read.
            let open = self.deliveries.read().get(seq).cloned();
            let record = readable(self.record(disk, seq, job.clone(), open))?;
            bytes += record.as_ref().map_or(0, JobRecord::text_bytes);
            jobs.extend(record);
            read += 1;
            if bytes > MAX_PAGE_BYTES {
                break;
            }
        }
        if read < found.len() {
            found.truncate(read);
            end = found.last().map(|&(seq, _)| seq);
            unfinished = None;
        }
        let (next, prev) = neighbours(listing, &found, end);
        if listing.side() != listing.order.onward() {
            jobs.reverse();
        }
        Ok(JobPage { jobs, next, prev, unfinished })
    }

    /// The ids of a page of jobs. May block.
    pub(super) fn select(&self, disk: &Disk, listing: &Listing, now: Timestamp) -> Result<JobSelection, StoreError> {
        let Found { jobs, end, unfinished: _ } = self.find(disk, listing, now, LOOK_TIME)?;
        let (next, _) = neighbours(listing, &jobs, end);
        let mut ids: Vec<_> = jobs.into_iter().map(|(_, job)| job.id).collect();
        if listing.side() != listing.order.onward() {
            ids.reverse();
        }
        Ok(JobSelection { ids, next })
    }

    fn find(&self, disk: &Disk, listing: &Listing, now: Timestamp, look_time: Duration) -> Result<Found, StoreError> {
        let Listing { filter, limit, .. } = listing;
        let started = Instant::now();
        let mut from = listing.cursor.map(|cursor| cursor.from);
        let mut jobs = Vec::new();
        let mut has_read = false;
        // At least one record is read, or the next page would be this one again.
        let is_over = |has_read: bool| has_read && started.elapsed() > look_time;
        let stop = |jobs, end: Option<Seq>| {
            let unfinished = end.and_then(|seq| self.index.read().progress(listing.side(), seq));
            Ok(Found { jobs, end, unfinished })
        };
        loop {
            // Where nothing has to be read, no more is taken than fits.
            let room = if filter.needs_request() { LOOK_STEP } else { *limit + 1 - jobs.len() };
            let (candidates, looked_to) = self.look(listing, from, room, now);
            for (seq, job) in candidates {
                if filter.needs_request() {
                    if is_over(has_read) {
                        return stop(jobs, from);
                    }
                    has_read = true;
                    if readable(self.is_meant(disk, listing, seq, &job).map(Some))? != Some(true) {
                        from = Some(seq);
                        continue;
                    }
                }
                if jobs.len() == *limit {
                    // One more than fits tells that there is more.
                    let end = jobs.last().map(|(seq, _)| *seq).or(from);
                    return Ok(Found { jobs, end, unfinished: None });
                }
                jobs.push((seq, job));
                from = Some(seq);
            }
            match looked_to {
                None => return Ok(Found { jobs, end: None, unfinished: None }),
                Some(seq) => from = Some(seq),
            }
            if is_over(true) {
                return stop(jobs, from);
            }
        }
    }

    /// The next jobs whose life meets the filter, at most `room`, and how far was looked for them; none at the end.
    fn look(
        &self,
        listing: &Listing,
        from: Option<Seq>,
        room: usize,
        now: Timestamp,
    ) -> (Vec<(Seq, Job)>, Option<Seq>) {
        let mut found = Vec::new();
        let index = self.index.read();
        let jobs = match &listing.filter.ids {
            Some(ids) => index.walk_ids(ids, listing.side(), from),
            None => index.walk(&listing.filter.statuses, listing.side(), from),
        };
        for (looked, (seq, job)) in (1..).zip(jobs) {
            if listing.filter.takes(job, now) {
                found.push((seq, job.clone()));
            }
            if found.len() >= room || looked == LOOK_STEP {
                return (found, Some(seq));
            }
        }
        (found, None)
    }

    /// Whether what was asked in a job, or answered, meets the filter. A job pruned meanwhile does not.
    fn is_meant(&self, disk: &Disk, listing: &Listing, seq: Seq, job: &Job) -> Result<bool, StoreError> {
        let filter = &listing.filter;
        let takes = |request: &JobRequest| filter.takes_request(request).then(|| filter.takes_model(request));
        let verdict = match self.recent.request(seq) {
            Some(request) => takes(&request),
            None => {
                let failed = |error: sled::Error| StoreError::Unavailable { reason: error.to_string() };
                let corrupt = |reason: String| StoreError::Corrupt { id: job.id, reason };
                let Some(bytes) = read_chunks(disk.tree(), &keys::request(seq)).map_err(failed)? else {
                    return Ok(false);
                };
                let request = serde_json::from_slice(&bytes).map_err(|error| corrupt(error.to_string()))?;
                takes(&request)
            }
        };
        match verdict {
            None => Ok(false),
            Some(Some(is_meant)) => Ok(is_meant),
            Some(None) => {
                let record = self.bodies(disk, seq, job.clone())?;
                Ok(record.is_some_and(|record| filter.takes_answers(record.attempts.iter().map(|attempt| &**attempt))))
            }
        }
    }
}

/// Leaves out what can't be read: one damaged record must not take the others' page away.
fn readable<T>(read: Result<Option<T>, StoreError>) -> Result<Option<T>, StoreError> {
    match read {
        Err(StoreError::Corrupt { id, reason }) => {
            error!(job.id = %id, reason, "failed to read a job; it is left out of a listing");
            Ok(None)
        }
        read => read,
    }
}

fn neighbours(listing: &Listing, jobs: &[(Seq, Job)], end: Option<Seq>) -> (Option<Cursor>, Option<Cursor>) {
    let found: Vec<Seq> = jobs.iter().map(|(seq, _)| *seq).collect();
    listing.neighbours(&found, end)
}
