//! What all lines of an archive share: kinds, counts, checksums, the header, errors.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{clock::Timestamp, digest::sha256};

/// The version of the format. Fields can be added without a new version: readers ignore what they do not know.
pub const FORMAT: u32 = 2;

/// What a line holds. Records are in this order in an archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, strum::Display)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum Kind {
    Header,
    Setting,
    ApiKey,
    Session,
    /// A minute or an hour of the figures over time.
    History,
    LedgerDay,
    AuditEntry,
    /// A key whose job was deleted. Other keys are part of their job.
    IdempotencyKey,
    Job,
    /// Stands for a job that the store of a running service can't read.
    UnreadableJob,
    End,
}

impl Kind {
    /// The kind of the runtime setting of this name.
    pub(super) fn of_setting(name: &str) -> Kind {
        let kinds = [("key/", Kind::ApiKey), ("session/", Kind::Session), ("history/", Kind::History)];
        kinds.iter().find(|(prefix, _)| name.starts_with(prefix)).map_or(Kind::Setting, |(_, kind)| *kind)
    }

    /// Whether a running service gives such records to an operator. What lets somebody in stays in the store, and with it all
    /// other settings, because one may become a secret.
    pub(super) fn is_for_operators(self) -> bool {
        match self {
            Kind::Setting | Kind::ApiKey | Kind::Session => false,
            Kind::Header
            | Kind::History
            | Kind::LedgerDay
            | Kind::AuditEntry
            | Kind::IdempotencyKey
            | Kind::Job
            | Kind::UnreadableJob
            | Kind::End => true,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    pub format: u32,
    /// The version of the program that wrote the archive.
    pub version: String,
    pub created_at: Timestamp,
    /// Differs between archives.
    pub id: Uuid,
    /// Settings, API keys and sessions are left out: the archive comes from a running or a damaged store.
    pub is_partial: bool,
}

/// How many records of a kind, and the SHA-256 of their lines: of each line together with the checksum before it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count {
    pub count: u64,
    #[serde(with = "hex::serde")]
    pub sha256: [u8; 32],
}

/// Counts and checksums of all kinds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally(pub BTreeMap<Kind, Count>);

impl Tally {
    pub fn add(&mut self, kind: Kind, line: &[u8]) {
        let Count { count, sha256: sum } = self.0.entry(kind).or_default();
        *count += 1;
        *sum = sha256(&[&*sum, line]);
    }

    pub fn count(&self, kind: Kind) -> u64 {
        self.0.get(&kind).map_or(0, |count| count.count)
    }

    /// The kinds of which `self` and `other` do not hold the same records in the same order.
    pub fn differing(&self, other: &Tally) -> Vec<Kind> {
        let kinds: BTreeSet<Kind> = self.0.keys().chain(other.0.keys()).copied().collect();
        kinds.into_iter().filter(|kind| self.0.get(kind) != other.0.get(kind)).collect()
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    #[error("format {0} is newer than the format {FORMAT} of this program: use a newer ceoagent")]
    Newer(u32),
    #[error("not a record of an archive: {}", place_in_line(.0))]
    Unreadable(#[from] serde_json::Error),
    #[error("inconsistent job: {0}")]
    Inconsistent(&'static str),
    #[error("not the header of an archive. Use the whole output of `ceoagent export`")]
    NoHeader,
    #[error("a line after the end of the archive: two archives must be imported one by one")]
    AfterEnd,
    #[error("the end of the archive is missing: it was cut off after this line")]
    Cut,
    #[error(
        "the archive was changed or damaged: its end line states {stated} records of the kind {kind}, it has {found}"
    )]
    Count { kind: Kind, stated: u64, found: u64 },
    #[error(
        "the archive was changed or damaged: the checksum of its records of the kind {0} is not that of its end line"
    )]
    Checksum(Kind),
}

/// The error, with the number of the column alone: each line is read by itself.
fn place_in_line(error: &serde_json::Error) -> String {
    error.to_string().replace(" at line 1 column ", " at column ")
}

impl ArchiveError {
    /// Whether the error is about one record, and the rest of the archive can be used.
    pub fn is_of_a_record(&self) -> bool {
        matches!(self, ArchiveError::Unreadable(_) | ArchiveError::Inconsistent(_))
    }
}
