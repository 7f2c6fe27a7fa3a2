//! How records are written: metadata with postcard and a version, requests and attempts as JSON in chunks.
//!
//! To change what metadata has: raise [`VERSION`], keep a struct of the older fields, and convert older records in
//! [`decode`]. Each becomes a new one when its job changes.

use super::{
    error::Fault,
    keys::{self, Seq},
};
use crate::job::Job;

/// sled puts a page over a quarter of a segment into a blob file, which it never syncs. About 17 values share a page.
const CHUNK_BYTES: usize = 24 << 10;

pub(super) const VERSION: u8 = 0;

/// Most metadata records are smaller. Reserved at once, because every change, and every job at start, encodes one.
const METADATA_BYTES: usize = 128;

pub(super) fn encode(job: &Job) -> Result<Vec<u8>, Fault> {
    let mut record = Vec::with_capacity(METADATA_BYTES);
    record.push(VERSION);
    Ok(postcard::to_extend(job, record)?)
}

pub(super) fn decode(bytes: &[u8]) -> Result<Job, Fault> {
    match bytes.split_first() {
        None => Err(Fault("the record is empty".to_owned())),
        Some((version, _)) if *version > VERSION => Err(Fault(format!(
            "format {} is newer than this program's {}: start the newer ceoagent again",
            u32::from(*version) + 1,
            u32::from(VERSION) + 1
        ))),
        Some((_, job)) => Ok(postcard::from_bytes(job)?),
    }
}

/// The checksum of a job's metadata under its number; the store adds up those of all jobs.
pub(super) fn fingerprint(seq: Seq, job: &Job) -> u64 {
    let mut checksum = crc32fast::Hasher::new();
    checksum.update(&seq.to_be_bytes());
    checksum.update(&encode(job).unwrap_or_default());
    u64::from(checksum.finalize())
}

/// Writes `bytes` in chunks under `record`. The last chunk is shorter than the others, empty if need be, so that a reader
/// knows the end.
pub(super) fn write_chunks(tree: &sled::Tree, record: &[u8], bytes: &[u8]) -> sled::Result<()> {
    for number in 0..=bytes.len() / CHUNK_BYTES {
        let start = number * CHUNK_BYTES;
        let chunk = &bytes[start..bytes.len().min(start + CHUNK_BYTES)];
        let number = u16::try_from(number).map_err(|_| sled::Error::Unsupported("a record over 1.5 GB".to_owned()))?;
        tree.insert(keys::chunk(record, number), chunk)?;
    }
    Ok(())
}

/// What [`write_chunks`] wrote; none if any of it is missing.
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

pub(super) fn is_last_chunk(chunk: &[u8]) -> bool {
    chunk.len() < CHUNK_BYTES
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU64;

    use super::*;
    use crate::{
        clock::Timestamp,
        job::{FailureClass, FailureCode, Failures, JobState, Priority},
    };

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

    /// The example of docs/store-format.md.
    fn golden() -> Vec<u8> {
        let page = include_str!("../../../docs/store-format.md");
        let example = page.split("```text").nth(1).unwrap().split("```").next().unwrap();
        let bytes = |line: &str| hex::decode(line.split("  ").next().unwrap().replace(' ', "")).unwrap();
        example.lines().flat_map(bytes).collect()
    }

    #[test]
    fn a_record_is_written_and_read_as_its_version_says() {
        let job = Job { waited_for: true, caller: NonZeroU64::new(300), question: NonZeroU64::new(7), ..job() };
        assert_eq!(encode(&job).unwrap(), golden());
        assert_eq!(decode(&golden()).unwrap(), job);
    }

    #[test]
    fn a_record_from_the_future_is_an_error_that_says_so() {
        let mut bytes = golden();
        bytes[0] = VERSION + 1;
        let Fault(error) = decode(&bytes).unwrap_err();
        assert!(error.contains("format 2 is newer"), "{error}");
    }

    #[test]
    fn a_cut_record_is_an_error_and_never_a_panic() {
        let golden = golden();
        for end in 0..golden.len() {
            decode(&golden[..end]).unwrap_err();
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
