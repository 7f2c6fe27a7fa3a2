//! The record of a job's life, as every store on disk writes it: a byte with the version, then the job by postcard.
//!
//! To change what a [`Job`] has: raise [`VERSION`], keep a struct of the older fields, and convert older records in
//! [`decode`]. Each becomes a new one when its job changes.

use crate::job::Job;

pub(super) const VERSION: u8 = 0;

/// Most records are smaller. Reserved at once, because every change, and every job at start, encodes one.
const USUAL_BYTES: usize = 128;

pub(super) fn encode(job: &Job) -> Result<Vec<u8>, String> {
    let mut record = Vec::with_capacity(USUAL_BYTES);
    record.push(VERSION);
    postcard::to_extend(job, record).map_err(|error| error.to_string())
}

pub(super) fn decode(bytes: &[u8]) -> Result<Job, String> {
    match bytes.split_first() {
        None => Err("the record is empty".to_owned()),
        Some((version, _)) if *version > VERSION => Err(format!(
            "format {} is newer than this program's {}: start the newer ceoagent again",
            u32::from(*version) + 1,
            u32::from(VERSION) + 1
        )),
        Some((_, job)) => postcard::from_bytes(job).map_err(|error| error.to_string()),
    }
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
        let page = include_str!("../../docs/store-format.md");
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
        let error = decode(&bytes).unwrap_err();
        assert!(error.contains("format 2 is newer"), "{error}");
    }

    #[test]
    fn a_cut_record_is_an_error_and_never_a_panic() {
        let golden = golden();
        for end in 0..golden.len() {
            decode(&golden[..end]).unwrap_err();
        }
    }
}
