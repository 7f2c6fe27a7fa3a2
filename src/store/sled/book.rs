//! The ledger on disk: sums by day and model, exact whatever a crash cuts off.
//!
//! Within a group of changes only each job's own metadata commits it, so a record that is merely overwritten with new
//! sums would be ahead of the jobs after a crash, or behind. Therefore a record holds the sums *without* its newest group,
//! and that group's entries one by one, each with the attempt that it comes from: at the next start an entry counts if its
//! attempt is closed. A group's entries are spread over as many records of the day as it takes to keep each small.
//!
//! At a start the entries are taken into the sums and the record is written so, before any job changes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{
    index::Index,
    keys::{self, Seq},
};
use crate::ledger::{ByModel, DAYS_KEPT, Day, DaySums, Spent, Sums, UNKNOWN_MODEL, total};

/// Most entries in a record: with [`MAX_MODELS`] it stays below what sled keeps in its one file.
const MAX_ENTRIES: usize = 100;

/// Most models that have sums of their own in a record. Clients name models, so their number must be bounded.
const MAX_MODELS: usize = 48;

/// Longest name of a model, in bytes.
const MAX_MODEL_BYTES: usize = 64;

/// Where the sums of models beyond the bounds go.
const OTHER_MODELS: &str = "other";

/// What one attempt adds to a day.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) day: Day,
    pub(super) seq: Seq,
    pub(super) attempt: u32,
    pub(super) model: String,
    pub(super) sums: Sums,
}

/// The ledger as readers see it: all of it is durable.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Book {
    /// Each day's records.
    days: BTreeMap<Day, Vec<ByModel>>,
}

/// A record as a group leaves it.
pub(super) struct Page {
    day: Day,
    number: u16,
    before: ByModel,
    newest: Vec<Entry>,
}

/// A record. Encoded by position: never reorder, never remove.
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

impl Book {
    /// The book of a database whose jobs are those of the index.
    pub(super) fn load(tree: &sled::Tree, index: &Index) -> Result<Book, String> {
        let mut book = Book::default();
        let mut unsettled = Vec::new();
        for record in tree.scan_prefix(keys::ALL_LEDGER) {
            let (key, value) = record.map_err(|error| error.to_string())?;
            let (day, number) =
                keys::ledger_place(&key).ok_or_else(|| format!("{key:?} is not a key of this store"))?;
            let mut page =
                Page::decode(day, number, &value).map_err(|error| format!("the ledger of {day}: {error}"))?;
            if !page.newest.is_empty() {
                page.newest.retain(|entry| is_closed(index, entry));
                unsettled.push((day, number));
            }
            book.settle(page);
        }
        for (day, number) in unsettled {
            let before = book.days[&day][usize::from(number)].clone();
            let value = Page { day, number, before, newest: Vec::new() }.encode()?;
            tree.insert(keys::ledger(day, number), value).map_err(|error| error.to_string())?;
        }
        Ok(book)
    }

    /// The records that a group with these entries writes.
    pub(super) fn pages(&self, entries: &[Entry]) -> Vec<Page> {
        let mut days = BTreeMap::<Day, Vec<&Entry>>::new();
        entries.iter().for_each(|entry| days.entry(entry.day).or_default().push(entry));
        let mut pages = Vec::new();
        for (day, entries) in days {
            for (number, entries) in (0..=u16::MAX).zip(entries.chunks(MAX_ENTRIES)) {
                let before = self.days.get(&day).and_then(|pages| pages.get(usize::from(number)));
                let mut page = Page { day, number, before: before.cloned().unwrap_or_default(), newest: Vec::new() };
                entries.iter().for_each(|entry| page.note(entry));
                pages.push(page);
            }
        }
        pages
    }

    /// Takes over records that are durable.
    pub(super) fn settle(&mut self, page: Page) {
        let records = self.days.entry(page.day).or_default();
        let number = usize::from(page.number);
        if records.len() <= number {
            records.resize_with(number + 1, ByModel::default);
        }
        let mut sums = page.before;
        for entry in page.newest {
            sums.entry(entry.model).or_default().add(&entry.sums);
        }
        records[number] = sums;
    }

    /// The keys of the oldest days' records, as far as there are more days than are kept: for the next group to remove.
    pub(super) fn surplus(&self) -> Vec<Vec<u8>> {
        let surplus = self.days.len().saturating_sub(DAYS_KEPT);
        let records = self
            .days
            .iter()
            .take(surplus)
            .flat_map(|(day, records)| (0..=u16::MAX).take(records.len()).map(|number| keys::ledger(*day, number)));
        records.collect()
    }

    /// Forgets the oldest days, as far as there are more than are kept.
    pub(super) fn forget_surplus(&mut self) {
        while self.days.len() > DAYS_KEPT {
            self.days.pop_first();
        }
    }

    /// The sums of a day.
    #[cfg(test)]
    pub(super) fn day(&self, day: Day) -> Sums {
        total(self.days.get(&day).into_iter().flatten().flat_map(BTreeMap::values))
    }

    /// What the newest day cost.
    pub(super) fn spent(&self) -> Spent {
        let newest = self.days.last_key_value();
        let spent =
            newest.map(|(day, records)| Spent { day: *day, sums: total(records.iter().flat_map(BTreeMap::values)) });
        spent.unwrap_or_default()
    }

    /// The newest days that have any sums, newest first.
    pub(super) fn newest(&self, days: usize) -> Vec<DaySums> {
        let newest = self.days.iter().rev().take(days);
        newest.map(|(day, records)| DaySums { day: *day, models: merged(records) }).collect()
    }
}

impl Page {
    /// Adds an entry of the group.
    fn note(&mut self, entry: &Entry) {
        let mut entry = entry.clone();
        if !self.before.contains_key(&entry.model) {
            let is_bounded = self.before.len() < MAX_MODELS - 1 && entry.model.len() <= MAX_MODEL_BYTES;
            if !is_bounded {
                OTHER_MODELS.clone_into(&mut entry.model);
            }
            self.before.entry(entry.model.clone()).or_default();
        }
        self.newest.push(entry);
    }

    pub(super) fn key(&self) -> Vec<u8> {
        keys::ledger(self.day, self.number)
    }

    pub(super) fn encode(&self) -> Result<Vec<u8>, String> {
        let models: BTreeMap<&str, u16> = self.before.keys().map(String::as_str).zip(0..).collect();
        let newest = self.newest.iter().map(|entry| StoredEntry {
            seq: entry.seq,
            attempt: entry.attempt,
            model: models.get(entry.model.as_str()).copied().unwrap_or(u16::MAX),
            sums: entry.sums,
        });
        let before = self.before.iter().map(|(model, sums)| (model.clone(), *sums)).collect();
        postcard::to_stdvec(&Stored::V1 { before, newest: newest.collect() }).map_err(|error| error.to_string())
    }

    fn decode(day: Day, number: u16, bytes: &[u8]) -> Result<Page, String> {
        let Stored::V1 { before, newest } = postcard::from_bytes(bytes).map_err(|error| error.to_string())?;
        let newest = newest.into_iter().map(|StoredEntry { seq, attempt, model, sums }| {
            let model = before.get(usize::from(model)).map_or(UNKNOWN_MODEL, |(model, _)| model).to_owned();
            Entry { day, seq, attempt, model, sums }
        });
        Ok(Page { day, number, newest: newest.collect(), before: before.into_iter().collect() })
    }
}

/// Whether the group that wrote the entry came to the metadata of its job. A job that is not there has been pruned
/// since: it was there when its attempt was claimed.
fn is_closed(index: &Index, entry: &Entry) -> bool {
    let job = index.get(entry.seq);
    job.is_none_or(|job| job.closed_attempts() >= entry.attempt)
}

fn merged(records: &[ByModel]) -> ByModel {
    records.iter().flatten().fold(ByModel::new(), |mut merged, (model, sums)| {
        merged.entry(model.clone()).or_default().add(sums);
        merged
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        job::{Job, JobEvent, Owner, TokenUsage},
        ledger::Risk,
        store::contract::{at, job, success},
    };

    fn entry(seq: Seq, day: u32, model: &str) -> Entry {
        let sums = Sums { calls: 1, nanodollars: 100, ..Sums::default() };
        Entry { day: Day::from_number(day), seq, attempt: 1, model: model.to_owned(), sums }
    }

    fn tree() -> (tempfile::TempDir, sled::Db) {
        let folder = tempfile::tempdir().unwrap();
        let tree = sled::open(folder.path()).unwrap();
        (folder, tree)
    }

    /// Writes a group's records, without saying that it is durable.
    fn write(book: &Book, tree: &sled::Tree, entries: &[Entry]) -> Vec<Page> {
        let pages = book.pages(entries);
        for page in &pages {
            tree.insert(page.key(), page.encode().unwrap()).unwrap();
        }
        pages
    }

    fn running(n: u32) -> Job {
        job(n).apply(&JobEvent::Claim { owner: Owner::ANY, lease_until: at(60) }, at(9)).unwrap()
    }

    fn settled(n: u32) -> Job {
        running(n).apply(&success(1, 1), at(10)).unwrap()
    }

    fn index(jobs: &[(Seq, Job)]) -> Index {
        Index::of(jobs.to_vec(), false, at(10), std::time::Duration::ZERO)
    }

    #[test]
    fn an_entry_counts_if_and_only_if_its_attempt_was_closed() {
        let (_folder, tree) = tree();
        let mut book = Book::default();
        for page in write(&book, &tree, &[entry(1, 7, "a")]) {
            book.settle(page);
        }
        // The next group is cut off after the metadata of job 2.
        write(&book, &tree, &[entry(2, 7, "a"), entry(3, 7, "b")]);
        let cut = index(&[(1, settled(1)), (2, settled(2)), (3, running(3))]);
        let found = Book::load(&tree, &cut).unwrap();
        assert_eq!(found.day(Day::from_number(7)).calls, 2);
        // Job 3 ends after all, another day; the entry of old must not be believed then.
        let later = index(&[(1, settled(1)), (2, settled(2)), (3, settled(3))]);
        assert_eq!(Book::load(&tree, &later).unwrap().day(Day::from_number(7)).calls, 2);
        assert_eq!(Book::load(&tree, &later).unwrap(), found);
    }

    #[test]
    fn an_entry_of_a_job_that_was_pruned_since_counts_and_its_number_may_be_used_again() {
        let (_folder, tree) = tree();
        write(&Book::default(), &tree, &[entry(1, 7, "a")]);
        assert_eq!(Book::load(&tree, &index(&[])).unwrap().day(Day::from_number(7)).calls, 1);
        assert_eq!(Book::load(&tree, &index(&[(1, running(1))])).unwrap().day(Day::from_number(7)).calls, 1);
    }

    #[test]
    fn a_large_group_is_spread_over_records_and_days_are_summed_over_them() {
        let (_folder, tree) = tree();
        let mut book = Book::default();
        let entries: Vec<Entry> = (0..1_024).map(|seq| entry(seq, 7 + u32::from(seq >= 1_000), "a")).collect();
        let pages = write(&book, &tree, &entries);
        assert_eq!(pages.len(), 11);
        pages.into_iter().for_each(|page| book.settle(page));
        for page in write(&book, &tree, &[entry(2_000, 7, "b")]) {
            book.settle(page);
        }
        let newest = book.newest(9);
        assert_eq!((newest.len(), newest[0].day, newest[1].models.len()), (2, Day::from_number(8), 2));
        assert_eq!((book.day(Day::from_number(7)).calls, book.day(Day::from_number(8)).calls), (1_001, 24));
        assert_eq!(Book::load(&tree, &index(&[])).unwrap(), book, "and so it comes back");
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
        let entry = |n: usize| Entry {
            day: Day::from_number(u32::MAX),
            seq: most,
            attempt: u32::MAX,
            model: format!("{n:0>width$}", width = MAX_MODEL_BYTES + usize::from(n + 1 == MAX_ENTRIES)),
            sums,
        };
        let mut book = Book::default();
        for _ in 0..2 {
            let mut pages = book.pages(&(0..MAX_ENTRIES).map(entry).collect::<Vec<_>>());
            let page = pages.remove(0);
            assert!(pages.is_empty() && page.before.len() == MAX_MODELS);
            let bytes = page.encode().unwrap().len();
            assert!(bytes < 24 << 10, "{bytes}");
            book.settle(page);
        }
        assert!(book.newest(1)[0].models.contains_key(OTHER_MODELS), "no more models than there is room for");
    }

    #[test]
    fn the_oldest_days_are_forgotten_by_number_and_not_by_date() {
        let (_folder, tree) = tree();
        let mut book = Book::default();
        let kept = u32::try_from(DAYS_KEPT).unwrap();
        for day in 0..=kept {
            write(&book, &tree, &[entry(1, day * 3, "a")]).into_iter().for_each(|page| book.settle(page));
        }
        assert_eq!(book.newest(usize::MAX).len(), DAYS_KEPT + 1);
        let surplus = book.surplus();
        assert_eq!(surplus, [keys::ledger(Day::from_number(0), 0)]);
        surplus.iter().for_each(|key| drop(tree.remove(key).unwrap()));
        book.forget_surplus();
        assert_eq!((book.newest(usize::MAX).len(), book.day(Day::from_number(0)).calls), (DAYS_KEPT, 0));
        assert_eq!(Book::load(&tree, &index(&[])).unwrap(), book);
    }
}
