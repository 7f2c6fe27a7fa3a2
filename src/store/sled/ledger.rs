//! The ledger on disk: sums by day and model, exact whatever a crash cuts off.
//!
//! Only its own metadata commits a job, so after a crash sums that are merely overwritten would be ahead of the jobs or behind.
//! Therefore a record holds the sums *without* its newest batch, and the entries of that batch with their attempts: at the next
//! start an entry is added if its attempt is closed, and the record is written so, before any job changes. The entries of a
//! batch are spread over as many records of the day as it takes to keep each small.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{
    error::Fault,
    index::Index,
    keys::{self, Seq},
};
use crate::{
    job::Attempt,
    ledger::{ByModel, DAYS_KEPT, Day, DaySums, OTHER_MODELS, Spent, Sums, UNKNOWN_MODEL, total},
    store::change,
};

/// Most entries in a record: with [`MAX_MODELS`] it stays below what sled keeps in its one file.
const MAX_ENTRIES: usize = 100;

/// Most models with sums of their own in a record, and the longest name of one. Clients name models.
const MAX_MODELS: usize = 48;
const MAX_MODEL_BYTES: usize = 64;

/// Stands for a job in the entry of a call that belongs to none. No job has this number, so the entry always counts.
const NO_JOB: Seq = Seq::MAX;

/// What one attempt adds to a day.
#[derive(Clone, Debug)]
pub(super) struct LedgerEntry {
    pub(super) day: Day,
    pub(super) seq: Seq,
    pub(super) attempt: u32,
    pub(super) model: String,
    pub(super) sums: Sums,
}

/// The ledger as readers see it: durable sums alone.
#[derive(Debug, Default, PartialEq)]
pub(super) struct LedgerDays {
    days: BTreeMap<Day, Vec<ByModel>>,
}

/// A record as a batch leaves it.
pub(super) struct LedgerRecord {
    day: Day,
    number: u16,
    before: ByModel,
    newest: Vec<LedgerEntry>,
}

#[derive(Serialize, Deserialize)]
enum Stored {
    V1 { before: Vec<(String, Sums)>, newest: Vec<StoredEntry> },
}

#[derive(Serialize, Deserialize)]
struct StoredEntry {
    seq: Seq,
    attempt: u32,
    /// Its place in `before`, where every model has one.
    model: u16,
    sums: Sums,
}

impl LedgerEntry {
    pub(super) fn from_attempt(seq: Seq, attempt: &Attempt) -> Option<LedgerEntry> {
        let (day, model, sums) = change::cost_of(attempt)?;
        Some(LedgerEntry { day, seq, attempt: attempt.number, model, sums })
    }

    pub(super) fn without_job(day: Day, model: String, sums: Sums) -> LedgerEntry {
        LedgerEntry { day, seq: NO_JOB, attempt: 0, model, sums }
    }

    /// Whether its batch came to the metadata of its job. A missing job has been pruned since: it was there when its attempt
    /// was claimed.
    fn is_committed(&self, index: &Index) -> bool {
        index.get(self.seq).is_none_or(|job| job.closed_attempts() >= self.attempt)
    }
}

impl LedgerDays {
    pub(super) fn load(tree: &sled::Tree, index: &Index) -> Result<LedgerDays, Fault> {
        let mut ledger = LedgerDays::default();
        let mut changed = Vec::new();
        for record in tree.scan_prefix(keys::LEDGER) {
            let (key, value) = record?;
            let (day, number) =
                keys::parse_ledger(&key).ok_or_else(|| Fault(format!("{key:?} is not a key of this store")))?;
            let mut record = LedgerRecord::decode(day, number, &value)?;
            if !record.newest.is_empty() {
                record.newest.retain(|entry| entry.is_committed(index));
                changed.push((day, number));
            }
            ledger.apply(record);
        }
        for (day, number) in changed {
            let record = LedgerRecord { day, number, before: ledger.sums(day, number), newest: Vec::new() };
            tree.insert(record.key(), record.encode()?)?;
        }
        Ok(ledger)
    }

    fn sums(&self, day: Day, number: u16) -> ByModel {
        self.days.get(&day).and_then(|records| records.get(usize::from(number))).cloned().unwrap_or_default()
    }

    pub(super) fn records(&self, entries: &[LedgerEntry]) -> Vec<LedgerRecord> {
        let mut days = BTreeMap::<Day, Vec<&LedgerEntry>>::new();
        entries.iter().for_each(|entry| days.entry(entry.day).or_default().push(entry));
        let mut records = Vec::new();
        for (day, entries) in days {
            for (number, entries) in (0..=u16::MAX).zip(entries.chunks(MAX_ENTRIES)) {
                let mut record = LedgerRecord { day, number, before: self.sums(day, number), newest: Vec::new() };
                entries.iter().for_each(|entry| record.push((*entry).clone()));
                records.push(record);
            }
        }
        records
    }

    pub(super) fn apply(&mut self, record: LedgerRecord) {
        let records = self.days.entry(record.day).or_default();
        let number = usize::from(record.number);
        if records.len() <= number {
            records.resize_with(number + 1, ByModel::default);
        }
        records[number] = record.before;
        for entry in record.newest {
            records[number].entry(entry.model).or_default().add(&entry.sums);
        }
    }

    /// The keys of the records of the oldest days beyond [`DAYS_KEPT`], for the next batch to remove.
    pub(super) fn surplus(&self) -> Vec<Vec<u8>> {
        let days = self.days.iter().take(self.days.len().saturating_sub(DAYS_KEPT));
        let keys =
            days.flat_map(|(day, records)| (0..=u16::MAX).take(records.len()).map(|number| keys::ledger(*day, number)));
        keys.collect()
    }

    pub(super) fn forget_surplus(&mut self) {
        while self.days.len() > DAYS_KEPT {
            self.days.pop_first();
        }
    }

    pub(super) fn spent(&self) -> Spent {
        let newest = self.days.last_key_value().map(|(day, records)| Spent { day: *day, sums: sum(records) });
        newest.unwrap_or_default()
    }

    pub(super) fn newest(&self, days: usize) -> Vec<DaySums> {
        let newest = self.days.iter().rev().take(days);
        newest.map(|(day, records)| DaySums { day: *day, models: merge(records) }).collect()
    }
}

impl LedgerRecord {
    fn push(&mut self, mut entry: LedgerEntry) {
        if !self.before.contains_key(&entry.model) {
            if self.before.len() >= MAX_MODELS - 1 || entry.model.len() > MAX_MODEL_BYTES {
                OTHER_MODELS.clone_into(&mut entry.model);
            }
            self.before.entry(entry.model.clone()).or_default();
        }
        self.newest.push(entry);
    }

    pub(super) fn key(&self) -> Vec<u8> {
        keys::ledger(self.day, self.number)
    }

    pub(super) fn encode(&self) -> Result<Vec<u8>, Fault> {
        let models: BTreeMap<&str, u16> = self.before.keys().map(String::as_str).zip(0..).collect();
        let newest = self.newest.iter().map(|entry| StoredEntry {
            seq: entry.seq,
            attempt: entry.attempt,
            model: models.get(entry.model.as_str()).copied().unwrap_or(u16::MAX),
            sums: entry.sums,
        });
        let before = self.before.iter().map(|(model, sums)| (model.clone(), *sums)).collect();
        Ok(postcard::to_stdvec(&Stored::V1 { before, newest: newest.collect() })?)
    }

    fn decode(day: Day, number: u16, bytes: &[u8]) -> Result<LedgerRecord, Fault> {
        let stored = postcard::from_bytes(bytes).map_err(|error| Fault(format!("the ledger of {day}: {error}")))?;
        let Stored::V1 { before, newest } = stored;
        let newest = newest.into_iter().map(|StoredEntry { seq, attempt, model, sums }| {
            let model = before.get(usize::from(model)).map_or(UNKNOWN_MODEL, |(model, _)| model).to_owned();
            LedgerEntry { day, seq, attempt, model, sums }
        });
        Ok(LedgerRecord { day, number, newest: newest.collect(), before: before.into_iter().collect() })
    }
}

fn sum(records: &[ByModel]) -> Sums {
    total(records.iter().flat_map(BTreeMap::values))
}

fn merge(records: &[ByModel]) -> ByModel {
    let mut merged = ByModel::new();
    for (model, sums) in records.iter().flatten() {
        merged.entry(model.clone()).or_default().add(sums);
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        job::{Job, JobEvent, Owner, TokenUsage},
        ledger::Risk,
        store::contract::{at, job, success},
    };

    impl LedgerDays {
        pub(crate) fn day(&self, day: Day) -> Sums {
            sum(self.days.get(&day).map_or(&[], Vec::as_slice))
        }
    }

    fn entry(seq: Seq, day: u32, model: &str) -> LedgerEntry {
        let sums = Sums { calls: 1, nanodollars: 100, ..Sums::default() };
        LedgerEntry { day: Day::from_number(day), seq, attempt: 1, model: model.to_owned(), sums }
    }

    fn tree() -> (tempfile::TempDir, sled::Db) {
        let folder = tempfile::tempdir().unwrap();
        let tree = sled::open(folder.path()).unwrap();
        (folder, tree)
    }

    /// Writes a batch's records, without saying that it is durable.
    fn write(ledger: &LedgerDays, tree: &sled::Tree, entries: &[LedgerEntry]) -> Vec<LedgerRecord> {
        let records = ledger.records(entries);
        for record in &records {
            tree.insert(record.key(), record.encode().unwrap()).unwrap();
        }
        records
    }

    fn running(n: u32) -> Job {
        job(n).apply(&JobEvent::Claim { owner: Owner::ANY, asks: None }, at(9)).unwrap()
    }

    fn settled(n: u32) -> Job {
        running(n).apply(&success(1, 1), at(10)).unwrap()
    }

    fn index(jobs: &[(Seq, Job)]) -> Index {
        Index::from_jobs(jobs.to_vec(), false, at(10), std::time::Duration::ZERO)
    }

    #[test]
    fn an_entry_counts_if_and_only_if_its_attempt_was_closed() {
        let (_folder, tree) = tree();
        let mut ledger = LedgerDays::default();
        for record in write(&ledger, &tree, &[entry(1, 7, "a")]) {
            ledger.apply(record);
        }
        // The next batch is cut off after the metadata of job 2.
        write(&ledger, &tree, &[entry(2, 7, "a"), entry(3, 7, "b")]);
        let cut = index(&[(1, settled(1)), (2, settled(2)), (3, running(3))]);
        let found = LedgerDays::load(&tree, &cut).unwrap();
        assert_eq!(found.day(Day::from_number(7)).calls, 2);
        // Job 3 ends after all, another day; the entry of old must not be believed then.
        let later = index(&[(1, settled(1)), (2, settled(2)), (3, settled(3))]);
        assert_eq!(LedgerDays::load(&tree, &later).unwrap().day(Day::from_number(7)).calls, 2);
        assert_eq!(LedgerDays::load(&tree, &later).unwrap(), found);
    }

    #[test]
    fn an_entry_of_a_job_that_was_pruned_since_counts_and_its_number_may_be_used_again() {
        let (_folder, tree) = tree();
        write(&LedgerDays::default(), &tree, &[entry(1, 7, "a")]);
        assert_eq!(LedgerDays::load(&tree, &index(&[])).unwrap().day(Day::from_number(7)).calls, 1);
        assert_eq!(LedgerDays::load(&tree, &index(&[(1, running(1))])).unwrap().day(Day::from_number(7)).calls, 1);
    }

    #[test]
    fn a_large_batch_is_spread_over_records_and_days_are_summed_over_them() {
        let (_folder, tree) = tree();
        let mut ledger = LedgerDays::default();
        let entries: Vec<LedgerEntry> = (0..1_024).map(|seq| entry(seq, 7 + u32::from(seq >= 1_000), "a")).collect();
        let records = write(&ledger, &tree, &entries);
        assert_eq!(records.len(), 11);
        records.into_iter().for_each(|record| ledger.apply(record));
        for record in write(&ledger, &tree, &[entry(2_000, 7, "b")]) {
            ledger.apply(record);
        }
        let newest = ledger.newest(9);
        assert_eq!((newest.len(), newest[0].day, newest[1].models.len()), (2, Day::from_number(8), 2));
        assert_eq!((ledger.day(Day::from_number(7)).calls, ledger.day(Day::from_number(8)).calls), (1_001, 24));
        assert_eq!(LedgerDays::load(&tree, &index(&[])).unwrap(), ledger, "and so it comes back");
    }

    #[test]
    fn the_largest_record_stays_within_sleds_one_file() {
        let most = u64::MAX;
        let tokens = TokenUsage {
            input_tokens: most,
            output_tokens: most,
            cache_creation_input_tokens: most,
            cache_read_input_tokens: most,
        };
        let at_risk =
            Risk { calls: most, input_tokens: most, output_tokens: most, nanodollars: most, unpriced_calls: most };
        let sums = Sums { calls: most, tokens, nanodollars: most, unpriced_calls: most, at_risk };
        let entry = |n: usize| LedgerEntry {
            day: Day::from_number(u32::MAX),
            seq: most,
            attempt: u32::MAX,
            model: format!("{n:0>width$}", width = MAX_MODEL_BYTES + usize::from(n + 1 == MAX_ENTRIES)),
            sums,
        };
        let mut ledger = LedgerDays::default();
        for _ in 0..2 {
            let mut records = ledger.records(&(0..MAX_ENTRIES).map(entry).collect::<Vec<_>>());
            let record = records.remove(0);
            assert!(records.is_empty() && record.before.len() == MAX_MODELS);
            let bytes = record.encode().unwrap().len();
            assert!(bytes < 24 << 10, "{bytes}");
            ledger.apply(record);
        }
        assert!(ledger.newest(1)[0].models.contains_key(OTHER_MODELS), "no more models than there is room for");
    }

    #[test]
    fn the_oldest_days_are_forgotten_by_number_and_not_by_date() {
        let (_folder, tree) = tree();
        let mut ledger = LedgerDays::default();
        let kept = u32::try_from(DAYS_KEPT).unwrap();
        for day in 0..=kept {
            write(&ledger, &tree, &[entry(1, day * 3, "a")]).into_iter().for_each(|record| ledger.apply(record));
        }
        assert_eq!(ledger.newest(usize::MAX).len(), DAYS_KEPT + 1);
        let surplus = ledger.surplus();
        assert_eq!(surplus, [keys::ledger(Day::from_number(0), 0)]);
        surplus.iter().for_each(|key| drop(tree.remove(key).unwrap()));
        ledger.forget_surplus();
        assert_eq!((ledger.newest(usize::MAX).len(), ledger.day(Day::from_number(0)).calls), (DAYS_KEPT, 0));
        assert_eq!(LedgerDays::load(&tree, &index(&[])).unwrap(), ledger);
    }
}
