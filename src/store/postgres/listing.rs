//! Searches for jobs. The server checks the coarse conditions, the filter itself the rest. A search goes on until its page
//! is full or [`LOOK_TIME`] is over; then the next page continues it.

use std::{
    collections::HashMap,
    num::NonZeroU64,
    time::{Duration, Instant},
};

use tokio_postgres::{Row, types::ToSql};
use tracing::error;

use super::{
    columns::{digest, status},
    error::OpenError,
    shared::Shared,
};
use crate::{
    clock::Timestamp,
    job::{
        Attempt, IdempotencyKey, Job, JobFilter, JobId, JobPage, JobRecord, JobRequest, JobSelection, JobState,
        JobStatus, Listing, Side, UnfinishedSearch, delivery::Delivery,
    },
    store::{
        record,
        traits::{JobHead, OrphanedKey, StoreError},
    },
};

/// Longest search for one page.
const LOOK_TIME: Duration = Duration::from_millis(500);

/// Numbers of jobs that one statement looks through, and most rows that it returns: both bound its time.
const LOOK_NUMBERS: i64 = 1 << 16;
const LOOK_ROWS: i64 = 512;

/// A page ends after the job with which its texts exceed this size, because it is held in memory.
const MAX_PAGE_BYTES: usize = 4 << 20;

/// Records that one statement reads for a page.
const PAGE_STEP: usize = 16;

const LOOK_OLDER: &str = include_str!("look.sql");

/// What was found, in the order it was looked at.
struct Found {
    jobs: Vec<(i64, JobId)>,
    /// How far that went, if there may be more.
    end: Option<i64>,
    /// Set if the time was over before the page was full.
    unfinished: Option<UnfinishedSearch>,
}

impl Shared {
    pub(super) async fn search(&self, listing: &Listing, now: Timestamp) -> Result<JobPage, StoreError> {
        let found = self.look(listing, now).await?;
        self.page(listing, found, |record| listing.filter.takes(&record.job, now)).await
    }

    pub(super) async fn search_ids(&self, listing: &Listing, now: Timestamp) -> Result<JobSelection, StoreError> {
        let Found { jobs, end, unfinished: _ } = self.look(listing, now).await?;
        let (next, _) = neighbours(listing, &jobs, end);
        let mut ids: Vec<JobId> = jobs.into_iter().map(|(_, id)| id).collect();
        if listing.side() != listing.order.onward() {
            ids.reverse();
        }
        Ok(JobSelection { ids, next })
    }

    /// A page of the jobs whose message was tried and not accepted, newest first.
    pub(super) async fn search_failing(&self, listing: &Listing) -> Result<JobPage, StoreError> {
        let Listing { filter, limit, cursor, .. } = listing;
        let from = cursor.map_or(i64::MAX, |cursor| cursor.from.cast_signed());
        let most = i64::try_from(*limit + 1).unwrap_or(i64::MAX);
        let caller = digest(filter.caller_digest);
        let rows = self.readers.search(include_str!("failing.sql"), &[&from, &caller, &most]).await;
        let rows = rows.map_err(unavailable)?;
        let jobs = rows.iter().map(|row| Ok((row.try_get(1)?, row.try_get(0)?)));
        let mut jobs = jobs.collect::<Result<Vec<(i64, JobId)>, tokio_postgres::Error>>().map_err(broken)?;
        let has_more = jobs.len() > *limit;
        jobs.truncate(*limit);
        let end = jobs.last().map(|(seq, _)| *seq).filter(|_| has_more);
        let found = Found { jobs, end, unfinished: None };
        // Two names can have the same digest.
        let page = self.page(listing, found, |record| filter.takes_request(&record.request)).await?;
        Ok(JobPage { prev: None, ..page })
    }

    /// Reads the records of the jobs that were found, and leaves out those that changed so that they are not wanted.
    async fn page(
        &self,
        listing: &Listing,
        found: Found,
        is_wanted: impl Fn(&JobRecord) -> bool,
    ) -> Result<JobPage, StoreError> {
        let Found { jobs: mut places, mut end, mut unfinished } = found;
        let (mut jobs, mut bytes, mut read) = (Vec::with_capacity(places.len()), 0, 0);
        'page: for step in places.chunks(PAGE_STEP) {
            let ids: Vec<JobId> = step.iter().map(|(_, id)| *id).collect();
            let mut records = HashMap::new();
            for row in self.readers.search(RECORDS, &[&ids]).await.map_err(unavailable)? {
                let record = readable(record(&row))?;
                records.extend(record.map(|record| (record.job.id, record)));
            }
            for id in &ids {
                let record = records.remove(id).filter(&is_wanted);
                bytes += record.as_ref().map_or(0, JobRecord::text_bytes);
                jobs.extend(record);
                read += 1;
                if bytes > MAX_PAGE_BYTES {
                    break 'page;
                }
            }
        }
        if read < places.len() {
            places.truncate(read);
            end = places.last().map(|(seq, _)| *seq);
            unfinished = None;
        }
        let (next, prev) = neighbours(listing, &places, end);
        if listing.side() != listing.order.onward() {
            jobs.reverse();
        }
        Ok(JobPage { jobs, next, prev, unfinished })
    }

    async fn look(&self, listing: &Listing, now: Timestamp) -> Result<Found, StoreError> {
        let Listing { filter, limit, .. } = listing;
        let started = Instant::now();
        let bounds = self.readers.search(include_str!("bounds.sql"), &[]).await.map_err(unavailable)?;
        let bound = |column| bounds.first().and_then(|row| row.try_get::<_, Option<i64>>(column).ok().flatten());
        let mut jobs: Vec<(i64, JobId)> = Vec::new();
        let (Some(first), Some(last)) = (bound(0), bound(1)) else {
            return Ok(Found { jobs, end: None, unfinished: None });
        };
        let side = listing.side();
        let cursor = listing.cursor.map(|cursor| cursor.from.cast_signed());
        let mut from = match side {
            Side::Older => cursor.map_or(last + 1, |from| from.min(last + 1)),
            Side::Newer => cursor.map_or(first - 1, |from| from.max(first - 1)),
        };
        let numbers = if filter.ids.is_some() { i64::MAX / 2 } else { LOOK_NUMBERS };
        loop {
            let (floor, ceiling) = match side {
                Side::Older => (from.saturating_sub(numbers + 1), from),
                Side::Newer => (from, from.saturating_add(numbers + 1)),
            };
            let rows = self.candidates(filter, side, (floor, ceiling)).await?;
            for row in &rows {
                let (id, seq): (JobId, i64) = (row.try_get(0).map_err(broken)?, row.try_get(1).map_err(broken)?);
                if readable(is_meant(filter, id, row, now).map(Some))? == Some(true) {
                    if jobs.len() == *limit {
                        // One more than fits tells that there is more.
                        let end = jobs.last().map_or(from, |(seq, _)| *seq);
                        return Ok(Found { jobs, end: Some(end), unfinished: None });
                    }
                    jobs.push((seq, id));
                }
                from = seq;
            }
            if i64::try_from(rows.len()).unwrap_or(i64::MAX) < LOOK_ROWS {
                let is_end;
                (from, is_end) = match side {
                    Side::Older => (floor + 1, floor < first),
                    Side::Newer => (ceiling - 1, ceiling > last),
                };
                if is_end {
                    return Ok(Found { jobs, end: None, unfinished: None });
                }
            }
            if started.elapsed() > LOOK_TIME {
                let unfinished = self.progress(side, from, (first, last)).await?;
                return Ok(Found { jobs, end: Some(from), unfinished });
            }
        }
    }

    /// The next jobs that meet what the server can check, the nearest first.
    async fn candidates(
        &self,
        filter: &JobFilter,
        side: Side,
        (floor, ceiling): (i64, i64),
    ) -> Result<Vec<Row>, StoreError> {
        let statuses: Vec<i16> = filter.statuses.iter().map(|status| number(*status)).collect();
        let statuses = Some(statuses).filter(|statuses| !statuses.is_empty());
        let ids: Option<Vec<JobId>> = filter.ids.as_ref().map(|ids| ids.iter().copied().collect());
        let caller = digest(filter.caller_digest);
        let created_from = filter.created_from.map(Timestamp::as_millis);
        let created_before = filter.created_before.map(Timestamp::as_millis);
        let (with_request, with_attempts) = (filter.needs_request(), filter.model.is_some());
        let sql = match side {
            Side::Older => LOOK_OLDER,
            Side::Newer => look_newer(),
        };
        let values: [&(dyn ToSql + Sync); 10] = [
            &floor,
            &ceiling,
            &statuses,
            &caller,
            &ids,
            &created_from,
            &created_before,
            &with_request,
            &with_attempts,
            &LOOK_ROWS,
        ];
        self.readers.search(sql, &values).await.map_err(unavailable)
    }

    /// How far a search to this side has come at `from`.
    async fn progress(
        &self,
        side: Side,
        from: i64,
        (first, last): (i64, i64),
    ) -> Result<Option<UnfinishedSearch>, StoreError> {
        let rows = self.readers.search(include_str!("first_from.sql"), &[&from]).await.map_err(unavailable)?;
        let Some(row) = rows.first() else { return Ok(None) };
        let job = decode(JobId::nil(), row, 0)?;
        let passed = match side {
            Side::Older => last - from,
            Side::Newer => from - first,
        };
        let percent = u8::try_from(passed * 100 / (last - first).max(1)).unwrap_or(100).min(99);
        Ok(Some(UnfinishedSearch { searched_to: job.created_at, percent }))
    }
}

/// The same search in the other direction.
fn look_newer() -> &'static str {
    static NEWER: std::sync::LazyLock<String> = std::sync::LazyLock::new(|| LOOK_OLDER.replace(" desc", " asc"));
    &NEWER
}

/// The records of jobs by their ids.
const RECORDS: &str = include_str!("records.sql");

/// A row of [`RECORDS`] or of `record.sql`.
pub(super) fn record(row: &Row) -> Result<Option<JobRecord>, StoreError> {
    let id: JobId = row.try_get(0).map_err(broken)?;
    let corrupt = |error: serde_json::Error| StoreError::Corrupt { id, reason: error.to_string() };
    let request: Option<&[u8]> = row.try_get(2).map_err(broken)?;
    let missing = || StoreError::Corrupt { id, reason: "its request is missing".to_owned() };
    let delivery: Option<&[u8]> = row.try_get(3).map_err(broken)?;
    let delivery: Option<Delivery> = delivery.map(serde_json::from_slice).transpose().map_err(corrupt)?;
    let attempts = attempts(id, row, 4)?.into_iter().map(Into::into).collect();
    let request = serde_json::from_slice(request.ok_or_else(missing)?).map_err(corrupt)?;
    Ok(Some(JobRecord { job: decode(id, row, 1)?, request, attempts, delivery }))
}

/// A row of `orphaned_keys.sql`. `None` if its job is there.
pub(super) fn orphan(row: &Row) -> Result<Option<OrphanedKey>, tokio_postgres::Error> {
    if !row.try_get(5)? {
        return Ok(None);
    }
    // Of another length only if somebody else wrote it. Then it stands for no request.
    let bytes = |column| {
        Ok::<_, tokio_postgres::Error>(<[u8; 16]>::try_from(row.try_get::<_, &[u8]>(column)?).unwrap_or_default())
    };
    let expires_at = Timestamp::from_millis(row.try_get(3)?);
    let caller = row.try_get::<_, Option<i64>>(4)?.and_then(|caller| NonZeroU64::new(caller.cast_unsigned()));
    Ok(Some((IdempotencyKey { key: bytes(0)?, body: bytes(1)?, expires_at }, row.try_get(2)?, caller)))
}

/// A row of `heads.sql`.
pub(super) fn head(row: &Row) -> Result<JobHead, tokio_postgres::Error> {
    let (number, delivery) = (row.try_get::<_, i64>(0)?, row.try_get::<_, Option<&[u8]>>(3)?);
    let delivery = delivery.map(serde_json::from_slice).transpose().map_err(|error| error.to_string());
    let job = record::decode(row.try_get(2)?);
    let life = job.and_then(|job| Ok((job, delivery?)));
    Ok(JobHead { number: number.cast_unsigned(), id: row.try_get(1)?, life })
}

/// The job in a column.
pub(super) fn decode(id: JobId, row: &Row, column: usize) -> Result<Job, StoreError> {
    record::decode(row.try_get(column).map_err(broken)?).map_err(|reason| StoreError::Corrupt { id, reason })
}

fn attempts(id: JobId, row: &Row, column: usize) -> Result<Vec<Attempt>, StoreError> {
    let bodies: Vec<&[u8]> = row.try_get(column).map_err(broken)?;
    let corrupt = |error: serde_json::Error| StoreError::Corrupt { id, reason: error.to_string() };
    bodies.into_iter().map(|body| serde_json::from_slice(body).map_err(corrupt)).collect()
}

/// Whether a job meets the filter.
fn is_meant(filter: &JobFilter, id: JobId, row: &Row, now: Timestamp) -> Result<bool, StoreError> {
    if !filter.takes(&decode(id, row, 2)?, now) {
        return Ok(false);
    }
    if !filter.needs_request() {
        return Ok(true);
    }
    let Some(request) = row.try_get::<_, Option<&[u8]>>(3).map_err(broken)? else { return Ok(false) };
    let request: JobRequest =
        serde_json::from_slice(request).map_err(|error| StoreError::Corrupt { id, reason: error.to_string() })?;
    if !filter.takes_request(&request) {
        return Ok(false);
    }
    match filter.takes_model(&request) {
        Some(takes) => Ok(takes),
        None => Ok(filter.takes_answers(&attempts(id, row, 4)?)),
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

/// The number of a status in the database, where a scheduled job is a queued one.
fn number(of: JobStatus) -> i16 {
    let moment = Timestamp::from_millis(0);
    match of {
        JobStatus::Queued | JobStatus::Scheduled => status(JobState::Queued { run_at: moment }),
        JobStatus::Running => status(JobState::Running),
        JobStatus::Succeeded => status(JobState::Succeeded),
        JobStatus::Failed => status(JobState::Failed { code: crate::job::FailureCode::Internal }),
        JobStatus::Cancelled => status(JobState::Cancelled),
    }
}

fn neighbours(
    listing: &Listing,
    jobs: &[(i64, JobId)],
    end: Option<i64>,
) -> (Option<crate::job::Cursor>, Option<crate::job::Cursor>) {
    let found: Vec<u64> = jobs.iter().map(|(seq, _)| seq.cast_unsigned()).collect();
    listing.neighbours(&found, end.map(i64::cast_unsigned))
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
pub(super) fn unavailable(error: OpenError) -> StoreError {
    StoreError::Unavailable { reason: error.to_string() }
}

/// A row that has not the columns that this program expects.
pub(super) fn broken(error: tokio_postgres::Error) -> StoreError {
    unavailable(error.into())
}
