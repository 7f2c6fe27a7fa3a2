//! The record of a job's life: a byte with the version, then the job by postcard, as in the store on sled.

use crate::job::Job;

const VERSION: u8 = 0;

pub(super) fn encode(job: &Job) -> Result<Vec<u8>, String> {
    postcard::to_extend(job, vec![VERSION]).map_err(|error| error.to_string())
}

pub(super) fn decode(bytes: &[u8]) -> Result<Job, String> {
    match bytes.split_first() {
        Some((&VERSION, job)) => postcard::from_bytes(job).map_err(|error| error.to_string()),
        Some((version, _)) => Err(format!("version {version} of a job's record is not known to this program")),
        None => Err("the record is empty".to_owned()),
    }
}
