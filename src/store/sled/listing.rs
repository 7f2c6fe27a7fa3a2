//! Searches for jobs. Conditions on a job's life are checked in memory, conditions on its question in the records. A search
//! goes on until its page is full or [`LOOK_TIME`] is over; then the next page continues it.

use std::time::{Duration, Instant};

use tracing::error;

use super::{
    disk::Disk,
    error::{Fault, Result},
    keys::Seq,
    shared::Shared,
};
use crate::{
    clock::Timestamp,
    job::{
        Cursor, Job, JobFilter, JobPage, JobRecord, JobSelection, Listing, Side, UnfinishedSearch, delivery::Delivery,
    },
    store::traits::{JobHead, StoreError},
};

/// Longest search for one page. A million jobs in memory, or some 100,000 records, are searched within it.
pub(super) const LOOK_TIME: Duration = Duration::from_millis(500);

/// A page ends after the job with which its texts exceed this size, because it is held in memory. Usual jobs have some
/// 10 KB.
const MAX_PAGE_BYTES: usize = 4 << 20;

/// Jobs looked at under one lock of the index: the writer must not wait for a listing.
const LOOK_STEP: usize = 4_096;

struct Found {
    jobs: Vec<(Seq, Job)>,
    /// How far the search went, if there may be more.
    end: Option<Seq>,
    /// Set if the time was over before the page was full.
    unfinished: Option<UnfinishedSearch>,
}

/// The functions that take a [`Disk`] may block.
impl Shared {
    /// A page of jobs with their records, searched for at most `look_time`.
    pub(super) fn list(&self, disk: &Disk, listing: &Listing, now: Timestamp, look_time: Duration) -> Result<JobPage> {
        self.page(disk, listing, self.find(disk, listing, now, look_time)?)
    }

    pub(super) fn select(&self, disk: &Disk, listing: &Listing, now: Timestamp) -> Result<JobSelection> {
        let found = self.find(disk, listing, now, LOOK_TIME)?;
        let (next, _) = neighbours(listing, &found);
        let ids = found.jobs.into_iter().map(|(_, job)| job.id).collect();
        Ok(JobSelection { ids: in_order(listing, ids), next })
    }

    /// A page of the jobs whose message was tried and not accepted, newest first.
    pub(super) fn failing_deliveries(&self, disk: &Disk, listing: &Listing) -> Result<JobPage> {
        let Listing { filter, limit, cursor, .. } = listing;
        let mut jobs: Vec<(Seq, Job)> = {
            let view = self.view.read();
            let failing = view.deliveries.failing(cursor.map(|cursor| cursor.from));
            let failing = failing.filter_map(|seq| Some((seq, view.index.get(seq)?)));
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

    pub(super) fn heads(&self, disk: &Disk, after: Seq, most: usize) -> Vec<JobHead> {
        let jobs: Vec<(Seq, Job, Option<Delivery>)> = {
            let view = self.view.read();
            let jobs = view.index.walk(&JobFilter::default(), Side::Newer, Some(after)).take(most);
            jobs.map(|(seq, job)| (seq, job.clone(), view.deliveries.get(seq).cloned())).collect()
        };
        let head = |(seq, job, open): (Seq, Job, Option<Delivery>)| {
            let id = job.id;
            let delivery = open.map_or_else(|| disk.settled_delivery(seq), |open| Ok(Some(open)));
            JobHead { number: seq, id, life: delivery.map(|delivery| (job, delivery)).map_err(|Fault(reason)| reason) }
        };
        jobs.into_iter().map(head).collect()
    }

    fn page(&self, disk: &Disk, listing: &Listing, mut found: Found) -> Result<JobPage> {
        let (mut jobs, mut bytes, mut read) = (Vec::with_capacity(found.jobs.len()), 0, 0);
        for &(seq, ref job) in &found.jobs {
            // A statement of its own, so that the lock is not held while the disk is read.
            let open = self.view.read().deliveries.get(seq).cloned();
            let record = readable(self.record(disk, seq, job.clone(), open))?;
            bytes += record.as_ref().map_or(0, JobRecord::text_bytes);
            jobs.extend(record);
            read += 1;
            if bytes > MAX_PAGE_BYTES {
                break;
            }
        }
        if read < found.jobs.len() {
            found.jobs.truncate(read);
            found.end = found.jobs.last().map(|&(seq, _)| seq);
            found.unfinished = None;
        }
        let (next, prev) = neighbours(listing, &found);
        Ok(JobPage { jobs: in_order(listing, jobs), next, prev, unfinished: found.unfinished })
    }

    fn find(&self, disk: &Disk, listing: &Listing, now: Timestamp, look_time: Duration) -> Result<Found> {
        let Listing { filter, limit, .. } = listing;
        let started = Instant::now();
        let mut from = listing.cursor.map(|cursor| cursor.from);
        let mut jobs = Vec::new();
        let mut has_read = false;
        // At least one record is read, or the next page would be this one again.
        let is_over = |has_read: bool| has_read && started.elapsed() > look_time;
        let stop = |jobs, end: Option<Seq>| {
            let unfinished = end.and_then(|seq| self.view.read().index.progress(listing.side(), seq));
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
                    if readable(self.is_meant(disk, filter, seq, &job).map(Some))? != Some(true) {
                        from = Some(seq);
                        continue;
                    }
                }
                if jobs.len() == *limit {
                    // One more than fits shows that there is more.
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
        let index = &self.view.read().index;
        for (looked, (seq, job)) in (1..).zip(index.walk(&listing.filter, listing.side(), from)) {
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
    fn is_meant(&self, disk: &Disk, filter: &JobFilter, seq: Seq, job: &Job) -> Result<bool> {
        let Some(request) = self.request(disk, seq, job.id)? else { return Ok(false) };
        if !filter.takes_request(&request) {
            return Ok(false);
        }
        if let Some(is_meant) = filter.takes_model(&request) {
            return Ok(is_meant);
        }
        let record = self.bodies(disk, seq, job.clone())?;
        Ok(record.is_some_and(|record| filter.takes_answers(record.attempts.iter().map(|attempt| &**attempt))))
    }
}

/// Leaves out what can't be read: one damaged record must not take the others' page away.
fn readable<T>(read: Result<Option<T>>) -> Result<Option<T>> {
    match read {
        Err(StoreError::Corrupt { id, reason }) => {
            error!(job.id = %id, reason, "failed to read a job; it is left out of a listing");
            Ok(None)
        }
        read => read,
    }
}

/// What a search found, in the order of the listing.
fn in_order<T>(listing: &Listing, mut found: Vec<T>) -> Vec<T> {
    if listing.side() != listing.order.onward() {
        found.reverse();
    }
    found
}

fn neighbours(listing: &Listing, found: &Found) -> (Option<Cursor>, Option<Cursor>) {
    let seqs: Vec<Seq> = found.jobs.iter().map(|(seq, _)| *seq).collect();
    listing.neighbours(&seqs, found.end)
}
