//! The records of an archive and their lines.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{
    format::{ArchiveError, FORMAT, Header, Kind, Tally},
    job,
};
use crate::{
    clock::Timestamp,
    job::{IdempotencyKey, JobId, JobRecord, caller::Caller},
    ledger::{Day, DaySums, Sums},
    store::traits::OrphanedKey,
};

/// Something that a store holds.
#[derive(Clone, Debug)]
pub enum Record {
    /// With its request, its attempts and the state of its webhook.
    Job(JobRecord),
    /// A job that can't be read, and why.
    UnreadableJob(JobId, String),
    /// An idempotency key whose job was deleted.
    Key(OrphanedKey),
    /// A runtime setting by its name: also API keys, sessions and the history.
    Setting(String, String),
    /// An entry of the audit log.
    Audit(Uuid, String),
    /// What calls cost on a day.
    Day(DaySums),
}

/// A line of an archive.
#[derive(Debug)]
pub enum Line {
    Header(Header),
    Record(Box<Record>),
    End(Tally),
}

/// A line that serde reads and writes by itself.
#[derive(Serialize, Deserialize)]
struct Tagged<T> {
    kind: Kind,
    #[serde(flatten)]
    rest: T,
}

#[derive(Deserialize)]
struct Tag {
    kind: Kind,
}

/// The version is read before the rest of a header, which another version may have changed.
#[derive(Deserialize)]
struct Version {
    format: u32,
}

#[derive(Serialize, Deserialize)]
struct Setting {
    name: String,
    value: String,
}

#[derive(Serialize, Deserialize)]
struct Audit {
    id: Uuid,
    entry: String,
}

#[derive(Serialize, Deserialize)]
struct Key {
    job: JobId,
    #[serde(default, skip_serializing_if = "Option::is_none", with = "job::as_text")]
    caller: Caller,
    #[serde(flatten)]
    key: IdempotencyKey,
}

#[derive(Serialize, Deserialize)]
struct UnreadableJob {
    id: JobId,
    reason: String,
}

#[derive(Serialize, Deserialize)]
struct LedgerDay {
    /// Midnight in UTC.
    day: Timestamp,
    models: BTreeMap<String, Sums>,
}

#[derive(Serialize, Deserialize)]
struct End {
    records: Tally,
}

impl Record {
    pub fn kind(&self) -> Kind {
        match self {
            Record::Job(_) => Kind::Job,
            Record::UnreadableJob(..) => Kind::UnreadableJob,
            Record::Key(_) => Kind::IdempotencyKey,
            Record::Setting(name, _) => Kind::of_setting(name),
            Record::Audit(..) => Kind::AuditEntry,
            Record::Day(_) => Kind::LedgerDay,
        }
    }

    /// The line, without a line break.
    pub fn line(&self) -> serde_json::Result<String> {
        let kind = self.kind();
        match self {
            Record::Job(record) => job::write(record),
            Record::UnreadableJob(id, reason) => tagged(kind, UnreadableJob { id: *id, reason: reason.clone() }),
            Record::Key((key, job, caller)) => tagged(kind, Key { job: *job, caller: *caller, key: *key }),
            Record::Setting(name, value) => tagged(kind, Setting { name: name.clone(), value: value.clone() }),
            Record::Audit(id, entry) => tagged(kind, Audit { id: *id, entry: entry.clone() }),
            Record::Day(DaySums { day, models }) => {
                tagged(kind, LedgerDay { day: day.start(), models: models.clone() })
            }
        }
    }
}

impl Line {
    /// # Errors
    /// [`ArchiveError`].
    pub fn read(text: &[u8]) -> Result<Line, ArchiveError> {
        let Tag { kind } = serde_json::from_slice(text)?;
        let record = match kind {
            Kind::Header => {
                let Version { format } = serde_json::from_slice(text)?;
                if format > FORMAT {
                    return Err(ArchiveError::Newer(format));
                }
                return Ok(Line::Header(serde_json::from_slice(text)?));
            }
            Kind::End => {
                let End { records } = serde_json::from_slice(text)?;
                return Ok(Line::End(records));
            }
            Kind::Job => Record::Job(job::read(text)?),
            Kind::IdempotencyKey => {
                let Key { job, caller, key } = serde_json::from_slice(text)?;
                Record::Key((key, job, caller))
            }
            Kind::UnreadableJob => {
                let UnreadableJob { id, reason } = serde_json::from_slice(text)?;
                Record::UnreadableJob(id, reason)
            }
            Kind::Setting | Kind::ApiKey | Kind::Session | Kind::History => {
                let Setting { name, value } = serde_json::from_slice(text)?;
                Record::Setting(name, value)
            }
            Kind::AuditEntry => {
                let Audit { id, entry } = serde_json::from_slice(text)?;
                Record::Audit(id, entry)
            }
            Kind::LedgerDay => {
                let LedgerDay { day, models } = serde_json::from_slice(text)?;
                Record::Day(DaySums { day: Day::of(day), models })
            }
        };
        Ok(Line::Record(Box::new(record)))
    }
}

pub(super) fn header(header: &Header) -> serde_json::Result<String> {
    tagged(Kind::Header, header)
}

pub(super) fn end(tally: &Tally) -> serde_json::Result<String> {
    tagged(Kind::End, End { records: tally.clone() })
}

fn tagged(kind: Kind, rest: impl Serialize) -> serde_json::Result<String> {
    serde_json::to_string(&Tagged { kind, rest })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::{TokenUsage, caller};

    fn records() -> Vec<Record> {
        let tokens = TokenUsage { input_tokens: u64::MAX, ..TokenUsage::default() };
        let models = BTreeMap::from([("a".to_owned(), Sums { calls: 2, tokens, ..Sums::default() })]);
        let expires_at = Timestamp::from_millis(1_800_000_000_000);
        vec![
            Record::Setting("key/alice".to_owned(), "{\"a\": 1}".to_owned()),
            Record::Audit(Uuid::from_u128(7), "two\nlines".to_owned()),
            Record::Day(DaySums { day: Day::from_number(20_784), models }),
            Record::Key((
                IdempotencyKey { key: [1; 16], body: [2; 16], expires_at },
                JobId::from_u128(3),
                caller::named("alice"),
            )),
            Record::UnreadableJob(JobId::from_u128(4), "its request is missing".to_owned()),
        ]
    }

    #[test]
    fn each_kind_of_record_is_one_line_and_is_read_back_unchanged() {
        for record in records() {
            let line = record.line().unwrap();
            assert!(!line.contains('\n'), "{line}");
            let Line::Record(back) = Line::read(line.as_bytes()).unwrap() else { panic!("{line}") };
            assert_eq!((format!("{back:?}"), back.line().unwrap()), (format!("{record:?}"), line));
        }
        let kinds: Vec<String> = records().iter().map(|record| record.kind().to_string()).collect();
        assert_eq!(kinds, ["api_key", "audit_entry", "ledger_day", "idempotency_key", "unreadable_job"]);
    }

    #[test]
    fn a_line_of_another_kind_or_a_newer_format_is_refused_with_the_reason() {
        for (line, words) in [
            ("{\"kind\":\"memo\"}", "unknown variant `memo`"),
            ("{\"format\":1,\"id\":7}", "missing field `kind`"),
            ("{\"kind\":\"header\",\"format\":3,\"new\":1}", "format 3 is newer than the format 2"),
            ("{\"kind\":\"setting\",\"name\":\"paused\"}", "missing field `value`"),
        ] {
            let error = Line::read(line.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }
}
