//! How records are written: metadata compact and versioned, everything else as JSON in chunks.
//!
//! **Upgrading the format.** [`StoredMetadata`] is an enum whose variant number is the format's version and the first
//! byte of the record. To change what is stored: add the next variant with its own struct and raise [`NEWEST`], convert
//! the older ones in [`decode`], let [`encode`] write the new one. Old records are read for ever and become new ones as
//! their jobs move on. A number from the future is an error that says so, never a guess.

use std::num::NonZeroU64;

use serde::{Deserialize, Serialize};

use super::keys::{self, Seq};
use crate::{
    clock::Timestamp,
    digest::ModelKey,
    job::{Failures, IdempotencyKey, Job, JobState, Priority},
};

/// A larger value would make sled put its page into a blob file, which is never synced: it does so for pages over a
/// quarter of a segment, and about 17 values share a page.
const CHUNK_BYTES: usize = 24 << 10;

#[derive(Serialize, Deserialize)]
enum StoredMetadata {
    V1(MetadataV1),
}

/// The newest variant's number.
pub(super) const NEWEST: u8 = 0;

/// Fields and the variants of their enums are encoded by position. Once this is released: never reorder, never remove.
#[derive(Serialize, Deserialize)]
struct MetadataV1 {
    id: [u8; 16],
    priority: Priority,
    waited_for: bool,
    caller: Option<NonZeroU64>,
    question: Option<NonZeroU64>,
    model: Option<ModelKey>,
    state: JobState,
    attempt: u32,
    failures: Failures,
    releases: u32,
    idempotency: Option<IdempotencyKey>,
    created_at: Timestamp,
    due_at: Timestamp,
    is_timed: bool,
    deadline_at: Option<Timestamp>,
    started_at: Option<Timestamp>,
    finished_at: Option<Timestamp>,
}

/// What a metadata record takes at most, or nearly so.
const METADATA_BYTES: usize = 128;

/// The metadata record of a job, 50 to 70 bytes and more with an idempotency key.
pub(super) fn encode(job: &Job) -> Result<Vec<u8>, String> {
    let metadata = MetadataV1 {
        id: *job.id.as_bytes(),
        priority: job.priority,
        waited_for: job.waited_for,
        caller: job.caller,
        question: job.question,
        model: job.model,
        state: job.state,
        attempt: job.attempt,
        failures: job.failures,
        releases: job.releases,
        idempotency: job.idempotency.as_deref().copied(),
        created_at: job.created_at,
        due_at: job.due_at,
        is_timed: job.is_timed,
        deadline_at: job.deadline_at,
        started_at: job.started_at,
        finished_at: job.finished_at,
    };
    // Room for all of it at once: this is done for every change, and for every job at start.
    let record = Vec::with_capacity(METADATA_BYTES);
    postcard::to_extend(&StoredMetadata::V1(metadata), record).map_err(|error| error.to_string())
}

/// A checksum of a job under its number, as its newest record has it. Sums of them tell whether jobs are as they were.
pub(super) fn fingerprint(seq: Seq, job: &Job) -> u64 {
    let mut checksum = crc32fast::Hasher::new();
    checksum.update(&seq.to_be_bytes());
    checksum.update(&encode(job).unwrap_or_default());
    u64::from(checksum.finalize())
}

/// The job of a metadata record, of whatever version.
pub(super) fn decode(bytes: &[u8]) -> Result<Job, String> {
    match bytes.first() {
        None => return Err("the record is empty".to_owned()),
        Some(version) if *version > NEWEST => {
            return Err(format!(
                "format {} is newer than this program's {}: start the newer ceoagent again",
                u32::from(*version) + 1,
                u32::from(NEWEST) + 1
            ));
        }
        Some(_) => {}
    }
    let StoredMetadata::V1(metadata) = postcard::from_bytes(bytes).map_err(|error| error.to_string())?;
    Ok(Job {
        id: uuid::Uuid::from_bytes(metadata.id),
        priority: metadata.priority,
        waited_for: metadata.waited_for,
        caller: metadata.caller,
        question: metadata.question,
        model: metadata.model,
        state: metadata.state,
        attempt: metadata.attempt,
        failures: metadata.failures,
        releases: metadata.releases,
        idempotency: metadata.idempotency.map(Box::new),
        created_at: metadata.created_at,
        due_at: metadata.due_at,
        is_timed: metadata.is_timed,
        deadline_at: metadata.deadline_at,
        started_at: metadata.started_at,
        finished_at: metadata.finished_at,
    })
}

/// Writes `bytes` under `record` in chunks. The last chunk is always shorter than the others, empty if need be, so
/// that a reader knows the end.
pub(super) fn write_chunks(tree: &sled::Tree, record: &[u8], bytes: &[u8]) -> sled::Result<()> {
    for number in 0..=bytes.len() / CHUNK_BYTES {
        let start = number * CHUNK_BYTES;
        let chunk = &bytes[start..bytes.len().min(start + CHUNK_BYTES)];
        let number = u16::try_from(number).map_err(|_| sled::Error::Unsupported("a record over 1.5 GB".to_owned()))?;
        tree.insert(keys::chunk(record, number), chunk)?;
    }
    Ok(())
}

/// Reads what [`write_chunks`] wrote; none if there is nothing, or its end is missing.
pub(super) fn read_chunks(tree: &sled::Tree, record: &[u8]) -> sled::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    for number in 0..=u16::MAX {
        let Some(chunk) = tree.get(keys::chunk(record, number))? else { return Ok(None) };
        bytes.extend_from_slice(&chunk);
        if is_last_chunk(&chunk) {
            break;
        }
    }
    Ok(Some(bytes))
}

/// Whether a record ends with this chunk.
pub(super) fn is_last_chunk(chunk: &[u8]) -> bool {
    chunk.len() < CHUNK_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::{FailureClass, FailureCode};

    fn job() -> Job {
        let mut job = Job::new(
            "019aafe1-0000-7000-8000-000000000001".parse().unwrap(),
            Priority::High,
            Timestamp::from_millis(1_795_428_600_000),
        );
        job.state = JobState::Failed { code: FailureCode::Refused };
        job.attempt = 3;
        job.failures = Failures::of(FailureClass::Other, 2);
        job.finished_at = Some(Timestamp::from_millis(1_795_428_601_000));
        job
    }

    /// Bytes as version 1 writes them. Once this is released they lie on users' disks, and the test never changes.
    const GOLDEN_V1: &[u8] = &[
        0, 1, 154, 175, 225, 0, 0, 112, 0, 128, 0, 0, 0, 0, 0, 0, 1, 0, 1, 1, 172, 2, 1, 7, 0, 3, 3, 3, 0, 0, 0, 0, 0,
        2, 0, 0, 0, 128, 163, 146, 254, 192, 104, 128, 163, 146, 254, 192, 104, 0, 0, 0, 1, 208, 178, 146, 254, 192,
        104,
    ];

    #[test]
    fn a_record_is_written_and_read_as_its_version_says() {
        let job = Job { waited_for: true, caller: NonZeroU64::new(300), question: NonZeroU64::new(7), ..job() };
        assert_eq!(encode(&job).unwrap(), GOLDEN_V1);
        assert_eq!(decode(GOLDEN_V1).unwrap(), job);
    }

    #[test]
    fn a_record_from_the_future_is_an_error_that_says_so() {
        let mut bytes = GOLDEN_V1.to_vec();
        bytes[0] = NEWEST + 1;
        let error = decode(&bytes).unwrap_err();
        assert!(error.contains("format 2 is newer"), "{error}");
    }

    #[test]
    fn a_cut_record_is_an_error_and_never_a_panic() {
        for end in 0..GOLDEN_V1.len() {
            decode(&GOLDEN_V1[..end]).unwrap_err();
        }
    }

    #[test]
    fn values_around_the_chunk_size_come_back_as_they_were() {
        let folder = tempfile::tempdir().unwrap();
        let tree = sled::open(folder.path()).unwrap();
        for length in [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES] {
            let bytes: Vec<u8> = (0..length).map(|place| u8::try_from(place % 251).unwrap()).collect();
            let record = keys::request(length as u64);
            write_chunks(&tree, &record, &bytes).unwrap();
            assert_eq!(read_chunks(&tree, &record).unwrap().unwrap(), bytes, "{length} bytes");
        }
        assert_eq!(read_chunks(&tree, &keys::request(7)).unwrap(), None);
    }
}
