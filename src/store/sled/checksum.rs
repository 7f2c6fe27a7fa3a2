//! A checksum of all jobs but those that the newest batch of changes touches.
//!
//! If the middle of its file is damaged, sled goes on without the pages that it can't read, and reports nothing. This record
//! is the first of a batch. So it holds whether or not a crash cut the batch off: a job that the batch touches may be old or
//! new, every other job must be as it was.

use serde::{Deserialize, Serialize};

use super::{codec::fingerprint, error::Fault, index::Index, keys::Seq};
use crate::{clock::SavedTime, store::record};

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Checksum {
    /// Commits so far, with this one.
    pub(super) commits: u64,
    /// Version of the metadata records that are added up.
    version: u8,
    touched: Vec<Seq>,
    others: u64,
    /// The service time, from which the next start goes on.
    pub(super) time: SavedTime,
}

impl Checksum {
    /// Of commit number `commits`, which touches these jobs of the index.
    pub(super) fn new(commits: u64, touched: Vec<Seq>, index: &Index, time: SavedTime) -> Checksum {
        let others = sum_of_others(index, &touched);
        Checksum { commits, version: record::VERSION, touched, others, time }
    }

    pub(super) fn encode(&self) -> Result<Vec<u8>, Fault> {
        Ok(postcard::to_stdvec(self)?)
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Checksum, Fault> {
        postcard::from_bytes(bytes).map_err(|error| Fault(format!("the checksum of the last change: {error}")))
    }

    /// Whether the index has the jobs that were added up.
    pub(super) fn confirms(&self, index: &Index) -> bool {
        // Another version's sums are of other bytes; the next commit writes this one's.
        self.version != record::VERSION || self.others == sum_of_others(index, &self.touched)
    }
}

fn sum_of_others(index: &Index, touched: &[Seq]) -> u64 {
    let touched = touched.iter().filter_map(|seq| index.get(*seq).map(|job| fingerprint(*seq, job)));
    touched.fold(index.fingerprint(), u64::wrapping_sub)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        job::{Job, JobEvent, Owner},
        store::contract::{at, job},
    };

    #[test]
    fn it_covers_all_jobs_but_those_that_its_batch_touches() {
        let mut index = Index::default();
        (1..5).for_each(|seq| index.replace(u64::from(seq), Some(job(seq).into()), at(9)));
        let checksum = Checksum::new(7, vec![2, 9], &index, SavedTime::default());
        assert_eq!(Checksum::decode(&checksum.encode().unwrap()).unwrap(), checksum);
        let claimed = |n| -> Job { job(n).apply(&JobEvent::Claim { owner: Owner::ANY, asks: None }, at(9)).unwrap() };
        index.replace(2, Some(claimed(2).into()), at(9));
        index.replace(9, Some(job(8).into()), at(9));
        assert!(checksum.confirms(&index), "the batch is there");
        index.replace(2, None, at(9));
        assert!(checksum.confirms(&index), "it may touch a job in any way");
        index.replace(3, Some(claimed(3).into()), at(9));
        assert!(!checksum.confirms(&index), "another job is not as it was");
        index.replace(3, Some(job(3).into()), at(9));
        assert!(checksum.confirms(&index));
        index.replace(4, None, at(9));
        assert!(!checksum.confirms(&index), "another job is gone");
    }
}
