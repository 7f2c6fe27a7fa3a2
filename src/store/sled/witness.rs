//! The witness: a record that tells, of all jobs but those that the newest group of changes touches, what their metadata
//! adds up to.
//!
//! sled survives damage in the middle of its file by going on without the pages that it can't read, and tells nobody.
//! The witness is written first in each group, so it holds whether or not a crash cut the group's end off: whatever the
//! group touched may be old or new, everything else must be as it was.

use serde::{Deserialize, Serialize};

use super::{
    codec::{self, fingerprint},
    index::Index,
    keys::Seq,
};
use crate::clock::SavedTime;

/// What is written first in a group.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Witness {
    /// Groups so far, this one included.
    pub(super) groups: u64,
    /// The version of the metadata records that were added up.
    version: u8,
    /// The jobs that the group touches.
    touched: Vec<Seq>,
    /// The sum of the fingerprints of all others.
    others: u64,
    /// The service time, for the next run to go on from.
    pub(super) time: SavedTime,
}

impl Witness {
    /// The witness of group number `groups`, which touches these jobs of the index.
    pub(super) fn new(groups: u64, touched: Vec<Seq>, index: &Index, time: SavedTime) -> Witness {
        let others = others(index, &touched);
        Witness { groups, version: codec::NEWEST, touched, others, time }
    }

    pub(super) fn encode(&self) -> Result<Vec<u8>, String> {
        postcard::to_stdvec(self).map_err(|error| error.to_string())
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Witness, String> {
        postcard::from_bytes(bytes).map_err(|error| format!("the checksum of the last change: {error}"))
    }

    /// Whether the jobs in the index are those that were there.
    pub(super) fn confirms(&self, index: &Index) -> bool {
        // Another version's sums are of other bytes; the next change writes a witness of this one's.
        self.version != codec::NEWEST || self.others == others(index, &self.touched)
    }
}

fn others(index: &Index, touched: &[Seq]) -> u64 {
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
    fn it_speaks_of_all_jobs_but_those_that_its_group_touches() {
        let mut index = Index::default();
        (1..5).for_each(|seq| index.replace(u64::from(seq), Some(job(seq).into()), at(9)));
        let witness = Witness::new(7, vec![2, 9], &index, SavedTime::default());
        assert_eq!(Witness::decode(&witness.encode().unwrap()).unwrap(), witness);
        let claimed =
            |n| -> Job { job(n).apply(&JobEvent::Claim { owner: Owner::ANY, lease_until: at(60) }, at(9)).unwrap() };
        index.replace(2, Some(claimed(2).into()), at(9));
        index.replace(9, Some(job(8).into()), at(9));
        assert!(witness.confirms(&index), "the group is there");
        index.replace(2, None, at(9));
        assert!(witness.confirms(&index), "it may touch a job in any way");
        index.replace(3, Some(claimed(3).into()), at(9));
        assert!(!witness.confirms(&index), "another job is not as it was");
        index.replace(3, Some(job(3).into()), at(9));
        assert!(witness.confirms(&index));
        index.replace(4, None, at(9));
        assert!(!witness.confirms(&index), "another job is gone");
    }
}
