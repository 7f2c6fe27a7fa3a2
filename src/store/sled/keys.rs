//! The key layout: one tree, a first byte for the kind of record, numbers big-endian so that keys sort as numbers do.
//!
//! ```text
//! 0 | seq                     metadata: the commit point of its job, written last
//! 1 | seq | chunk             the request, written once
//! 2 | seq | attempt | chunk   an attempt with its result, written once, when it ends
//! 3 | "format"                written at creation, see `init`: a later store without it has lost its beginning
//! 3 | "witness"               checksum of the jobs that the newest batch of changes does not touch; the service time
//! 3 | "pruning"               the jobs of the newest prune step, for the sweep after a crash
//! 4 | key                     an idempotency key that has outlived its job
//! 5 | day | number            a part of a day's ledger, see `ledger`
//! 6 | seq                     the job's webhook; overwritten, before the metadata that it belongs to
//! 7 | id                      an entry of the audit log
//! 8 | seq                     jobs inserted together that are being written, by the first: their count. Removed last
//! 9 | name                    a runtime setting
//! ```
//!
//! Of a job only its metadata and its webhook are ever overwritten once its metadata is there. So a crash between two writes
//! leaves the old job whole or the new one.

use uuid::Uuid;

use crate::ledger::Day;

/// A job's number in this store: given in the order of submission, never reused. Sequential keys are half again as
/// fast to insert as random ones.
pub(super) type Seq = u64;

/// The first byte of a key: the prefix of all records of its kind.
type Kind = [u8; 1];

pub(super) const METADATA: Kind = [0];
pub(super) const REQUEST: Kind = [1];
pub(super) const ATTEMPT: Kind = [2];
pub(super) const IDEMPOTENCY: Kind = [4];
pub(super) const LEDGER: Kind = [5];
pub(super) const DELIVERY: Kind = [6];
pub(super) const AUDIT: Kind = [7];
pub(super) const INSERT_ALL: Kind = [8];
pub(super) const SETTING: Kind = [9];

pub(super) const FORMAT: &[u8] = b"\x03format";
pub(super) const CHECKSUM: &[u8] = b"\x03witness";
pub(super) const PRUNING: &[u8] = b"\x03pruning";

/// The records of a job that are read only when somebody asks for the job itself.
pub(super) const BODIES: [Kind; 2] = [REQUEST, ATTEMPT];

/// Key of a record of a job; of a body, what the keys of its chunks begin with.
pub(super) fn of_job([kind]: Kind, seq: Seq) -> [u8; 9] {
    let mut key = [kind; 9];
    key[1..].copy_from_slice(&seq.to_be_bytes());
    key
}

pub(super) fn metadata(seq: Seq) -> [u8; 9] {
    of_job(METADATA, seq)
}

pub(super) fn request(seq: Seq) -> [u8; 9] {
    of_job(REQUEST, seq)
}

pub(super) fn attempt(seq: Seq, number: u32) -> Vec<u8> {
    [&of_job(ATTEMPT, seq)[..], &number.to_be_bytes()].concat()
}

pub(super) fn attempts(seq: Seq) -> std::ops::Range<Vec<u8>> {
    of_job(ATTEMPT, seq).to_vec()..of_job(ATTEMPT, seq + 1).to_vec()
}

pub(super) fn chunk(record: &[u8], number: u16) -> Vec<u8> {
    [record, &number.to_be_bytes()].concat()
}

pub(super) fn idempotency(key: &[u8; 16]) -> Vec<u8> {
    [&IDEMPOTENCY[..], key].concat()
}

pub(super) fn ledger(day: Day, number: u16) -> Vec<u8> {
    [&LEDGER[..], &day.number().to_be_bytes(), &number.to_be_bytes()].concat()
}

pub(super) fn audit(id: Uuid) -> Vec<u8> {
    [&AUDIT[..], id.as_bytes()].concat()
}

pub(super) fn setting(name: &str) -> Vec<u8> {
    [&SETTING[..], name.as_bytes()].concat()
}

/// The job that a key belongs to; none for a key of another layout.
pub(super) fn parse_seq(key: &[u8]) -> Option<Seq> {
    key.get(1..9).and_then(|bytes| bytes.try_into().ok()).map(Seq::from_be_bytes)
}

/// The attempt that a key of an attempt's chunk belongs to; none for other keys.
pub(super) fn parse_attempt(key: &[u8]) -> Option<u32> {
    let bytes = key.get(9..13)?.try_into().ok()?;
    key.starts_with(&ATTEMPT).then(|| u32::from_be_bytes(bytes))
}

pub(super) fn parse_ledger(key: &[u8]) -> Option<(Day, u16)> {
    let (day, number) = key.strip_prefix(&LEDGER)?.split_at_checked(4)?;
    Some((Day::from_number(u32::from_be_bytes(day.try_into().ok()?)), u16::from_be_bytes(number.try_into().ok()?)))
}

pub(super) fn parse_pruning(record: &[u8]) -> impl Iterator<Item = Seq> {
    record.chunks_exact(8).filter_map(|seq| seq.try_into().ok()).map(Seq::from_be_bytes)
}

/// Whether kind and length of a key are of this layout.
pub(super) fn is_valid(key: &[u8]) -> bool {
    match key.first() {
        None => false,
        Some(0) => key.len() == 9,
        Some(1) => key.len() == 11,
        Some(2) => key.len() == 15,
        Some(_) => true,
    }
}
