//! The key layout: one tree, a one-byte prefix, numbers big-endian so that keys sort as numbers do.
//!
//! ```text
//! 0 | seq                     metadata: the commit point of its job, written last
//! 1 | seq | chunk             the request, written once
//! 2 | seq | attempt | chunk   an attempt with its result, written once, when it is settled
//! 3 | "format"                written at creation, see `making`: else a store without it has lost its beginning
//! 3 | "witness"               what the jobs add up to that the newest group of changes does not touch; the service time
//! 3 | "pruning"               the jobs of the newest prune step, for the sweep after a crash
//! 4 | key                     an idempotency key that is in force though its job was pruned
//! 5 | day | number            a part of a day's ledger, see `book`
//! 6 | seq                     what is owed to the job's callback URL; overwritten, before the metadata that it belongs to
//! 7 | id                      an entry of the audit log
//! 8 | seq                     a batch that is being written, by its first job: how many there are. Removed last
//! 9 | name                    a setting made while the service ran
//! ```
//!
//! No record of a job but its metadata, and what is owed to its callback URL, is ever overwritten once its metadata speaks of
//! it, so a crash between two writes leaves either the old job whole or the new one, and nothing torn.

use uuid::Uuid;

use crate::ledger::Day;

/// A job's number in this store: given in the order of submission, never reused. Sequential keys are half again as
/// fast to insert as random ones.
pub(super) type Seq = u64;

const METADATA: u8 = 0;
const REQUEST: u8 = 1;
const ATTEMPT: u8 = 2;
const IDEMPOTENCY: u8 = 4;
const LEDGER: u8 = 5;
const DELIVERY: u8 = 6;
const AUDIT: u8 = 7;
const BATCH: u8 = 8;
const KEPT: u8 = 9;

/// Prefix of every metadata record.
pub(super) const ALL_METADATA: [u8; 1] = [METADATA];

/// Prefix of every idempotency key that has outlived its job.
pub(super) const ALL_IDEMPOTENCY: [u8; 1] = [IDEMPOTENCY];

/// Prefix of every record of the ledger.
pub(super) const ALL_LEDGER: [u8; 1] = [LEDGER];

/// Prefix of every entry of the audit log.
pub(super) const ALL_AUDIT: [u8; 1] = [AUDIT];

/// Prefix of every setting kept.
pub(super) const ALL_KEPT: [u8; 1] = [KEPT];

/// Prefix of every batch that was not written to its end.
pub(super) const ALL_BATCHES: [u8; 1] = [BATCH];

/// Key of the store's format.
pub(super) const FORMAT: &[u8] = b"\x03format";

/// Key of the witness of the newest group of changes.
pub(super) const WITNESS: &[u8] = b"\x03witness";

/// Key of the list of jobs in the newest prune step.
pub(super) const PRUNING: &[u8] = b"\x03pruning";

/// Prefixes of the records that belong to a job beside its metadata.
pub(super) const BODY_PREFIXES: [u8; 2] = [REQUEST, ATTEMPT];

/// Key of the record of an idempotency key.
pub(super) fn idempotency(key: &[u8; 16]) -> [u8; 17] {
    let mut record = [IDEMPOTENCY; 17];
    record[1..].copy_from_slice(key);
    record
}

/// Key of one record of a day's ledger.
pub(super) fn ledger(day: Day, number: u16) -> Vec<u8> {
    let mut key = vec![LEDGER];
    key.extend(day.number().to_be_bytes());
    key.extend(number.to_be_bytes());
    key
}

/// What a key of the ledger names; none for other keys.
pub(super) fn ledger_place(key: &[u8]) -> Option<(Day, u16)> {
    let (day, number) = key.strip_prefix(&ALL_LEDGER)?.split_at_checked(4)?;
    Some((Day::from_number(u32::from_be_bytes(day.try_into().ok()?)), u16::from_be_bytes(number.try_into().ok()?)))
}

/// Key of an entry of the audit log.
pub(super) fn audit(id: Uuid) -> [u8; 17] {
    let mut record = [AUDIT; 17];
    record[1..].copy_from_slice(id.as_bytes());
    record
}

/// Key of a setting.
pub(super) fn kept(name: &str) -> Vec<u8> {
    [&ALL_KEPT[..], name.as_bytes()].concat()
}

/// Key of a job's metadata.
pub(super) fn metadata(seq: Seq) -> [u8; 9] {
    let mut key = [METADATA; 9];
    key[1..].copy_from_slice(&seq.to_be_bytes());
    key
}

/// Prefix of every delivery.
pub(super) const ALL_DELIVERIES: [u8; 1] = [DELIVERY];

/// Key of what is owed to a job's callback URL.
pub(super) fn delivery(seq: Seq) -> [u8; 9] {
    let mut key = [DELIVERY; 9];
    key[1..].copy_from_slice(&seq.to_be_bytes());
    key
}

/// Key of the record of a batch that is being written, whose first job has this number.
pub(super) fn batch(first: Seq) -> [u8; 9] {
    let mut key = [BATCH; 9];
    key[1..].copy_from_slice(&first.to_be_bytes());
    key
}

/// Key of a job's request without the chunk.
pub(super) fn request(seq: Seq) -> Vec<u8> {
    body(REQUEST, seq)
}

/// Key of an attempt without the chunk.
pub(super) fn attempt(seq: Seq, number: u32) -> Vec<u8> {
    let mut key = body(ATTEMPT, seq);
    key.extend(number.to_be_bytes());
    key
}

/// What all keys of a job under a body prefix start with.
pub(super) fn body(prefix: u8, seq: Seq) -> Vec<u8> {
    let mut key = vec![prefix];
    key.extend(seq.to_be_bytes());
    key
}

/// `record` with the number of a chunk.
pub(super) fn chunk(record: &[u8], number: u16) -> Vec<u8> {
    let mut key = record.to_vec();
    key.extend(number.to_be_bytes());
    key
}

/// The job that a key belongs to; none for a key that is not of this layout.
pub(super) fn seq_of(key: &[u8]) -> Option<Seq> {
    key.get(1..9).and_then(|bytes| bytes.try_into().ok()).map(Seq::from_be_bytes)
}

/// The range of the keys of a job's attempts.
pub(super) fn attempts(seq: Seq) -> std::ops::Range<Vec<u8>> {
    body(ATTEMPT, seq)..body(ATTEMPT, seq + 1)
}

/// The attempt that a key of an attempt's chunk belongs to; none for other keys.
pub(super) fn attempt_of(key: &[u8]) -> Option<u32> {
    let bytes = key.get(9..13)?.try_into().ok()?;
    (key[0] == ATTEMPT).then(|| u32::from_be_bytes(bytes))
}

/// Whether a key can be of this layout, by its prefix and length.
pub(super) fn is_of_the_layout(key: &[u8]) -> bool {
    match key.first() {
        None => false,
        Some(&METADATA) => key.len() == 9,
        Some(&REQUEST) => key.len() == 11,
        Some(&ATTEMPT) => key.len() == 15,
        Some(_) => true,
    }
}
