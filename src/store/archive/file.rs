//! Whole archives: writing one line by line, and checking one that is read line by line.

use std::{
    borrow::Cow,
    io::{self, Write},
};

use uuid::Uuid;

use super::{
    format::{ArchiveError, FORMAT, Header, Kind, Tally},
    record::{self, Line, Record},
};
use crate::clock::Timestamp;

/// Writes an archive.
pub struct Writer<W> {
    out: W,
    /// Until it is written, with the first line: an export that fails at once writes nothing.
    header: Option<Header>,
    /// Escapes what must not reach a terminal. The checksums are those of the escaped lines.
    escape: fn(&str) -> Cow<'_, str>,
    tally: Tally,
}

impl<W: Write> Writer<W> {
    pub fn new(out: W, escape: fn(&str) -> Cow<'_, str>, created_at: Timestamp, is_partial: bool) -> Writer<W> {
        let version = env!("CARGO_PKG_VERSION").to_owned();
        let header = Header { format: FORMAT, version, created_at, id: Uuid::now_v7(), is_partial };
        Writer { out, header: Some(header), escape, tally: Tally::default() }
    }

    /// # Errors
    /// Those of `out`.
    pub fn record(&mut self, record: &Record) -> io::Result<()> {
        self.line(record.kind(), &record.line()?)
    }

    /// Writes the line of a record.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn line(&mut self, kind: Kind, line: &str) -> io::Result<()> {
        let line = (self.escape)(line);
        self.tally.add(kind, line.as_bytes());
        self.write(&line)
    }

    /// Writes the end line. Returns what it states.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn end(&mut self) -> io::Result<Tally> {
        let end = record::end(&self.tally)?;
        self.write(&end)?;
        self.out.flush()?;
        Ok(self.tally.clone())
    }

    pub fn out(&mut self) -> &mut W {
        &mut self.out
    }

    fn write(&mut self, line: &str) -> io::Result<()> {
        if let Some(header) = self.header.take() {
            self.write(&record::header(&header)?)?;
        }
        self.out.write_all(line.as_bytes())?;
        self.out.write_all(b"\n")
    }
}

/// Checks an archive while it is read.
#[derive(Debug, Default)]
pub struct Checker {
    header: Option<Header>,
    end: Option<Tally>,
    tally: Tally,
}

impl Checker {
    /// The record of the next line; `None` for a header, an end, and a blank line.
    ///
    /// # Errors
    /// [`ArchiveError`]; after one of a record, the next line can be read.
    pub fn take(&mut self, line: &[u8]) -> Result<Option<Record>, ArchiveError> {
        let line = line.trim_ascii_end();
        if line.is_empty() {
            return Ok(None);
        }
        if self.end.is_some() {
            return Err(ArchiveError::AfterEnd);
        }
        match Line::read(line) {
            Ok(Line::Header(header)) if self.header.is_none() => self.header = Some(header),
            Err(error @ ArchiveError::Newer(_)) => return Err(error),
            Ok(Line::Header(_)) => return Err(ArchiveError::AfterEnd),
            _ if self.header.is_none() => return Err(ArchiveError::NoHeader),
            Ok(Line::End(end)) => self.end = Some(end),
            Ok(Line::Record(record)) => {
                self.tally.add(record.kind(), line);
                return Ok(Some(*record));
            }
            Err(error) => return Err(error),
        }
        Ok(None)
    }

    pub fn header(&self) -> Option<&Header> {
        self.header.as_ref()
    }

    /// What was read.
    pub fn tally(&self) -> &Tally {
        &self.tally
    }

    /// Whether all of the archive was read, and as it was written.
    ///
    /// # Errors
    /// [`ArchiveError`].
    pub fn finish(&self) -> Result<(), ArchiveError> {
        let missing = if self.header.is_none() { ArchiveError::NoHeader } else { ArchiveError::Cut };
        let end = self.end.as_ref().ok_or(missing)?;
        let Some(kind) = self.tally.differing(end).first().copied() else { return Ok(()) };
        let (stated, found) = (end.count(kind), self.tally.count(kind));
        Err(if stated == found { ArchiveError::Checksum(kind) } else { ArchiveError::Count { kind, stated, found } })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive() -> Vec<String> {
        let now = Timestamp::from_millis(1_800_000_000_000);
        let mut writer = Writer::new(Vec::new(), |line| line.replace('ü', "\\u00fc").into(), now, false);
        for name in ["a", "bü", "c"] {
            writer.record(&Record::Setting(name.to_owned(), "1".to_owned())).unwrap();
        }
        writer.end().unwrap();
        String::from_utf8(std::mem::take(writer.out())).unwrap().lines().map(str::to_owned).collect()
    }

    /// The number of records, or the first error.
    fn read(lines: &[String]) -> Result<usize, String> {
        let mut checker = Checker::default();
        let mut records = 0;
        for line in lines {
            records += usize::from(checker.take(line.as_bytes()).map_err(|error| error.to_string())?.is_some());
        }
        checker.finish().map_err(|error| error.to_string()).map(|()| records)
    }

    #[test]
    fn a_whole_archive_is_accepted_also_with_blank_lines() {
        let mut lines = archive();
        assert_eq!((lines.len(), read(&lines)), (5, Ok(3)));
        lines.insert(2, " \r".to_owned());
        lines[1].push('\r');
        assert_eq!(read(&lines), Ok(3));
    }

    #[test]
    fn an_archive_that_was_cut_joined_or_changed_is_refused_with_the_reason() {
        type Change = fn(&mut Vec<String>);
        let cases: [(Change, &str); 7] = [
            (|lines| lines.truncate(3), "the end of the archive is missing"),
            (|lines| lines.clear(), "not the header of an archive"),
            (|lines| drop(lines.remove(0)), "not the header of an archive"),
            (|lines| drop(lines.remove(2)), "its end line states 3 records of the kind setting, it has 2"),
            (|lines| lines.swap(1, 2), "the checksum of its records of the kind setting"),
            (|lines| lines[2] = lines[2].replace("\"1\"", "\"2\""), "the checksum of its records of the kind setting"),
            (|lines| lines.extend_from_within(..), "a line after the end of the archive"),
        ];
        for (change, words) in cases {
            let mut lines = archive();
            change(&mut lines);
            let error = read(&lines).unwrap_err();
            assert!(error.contains(words), "{words}: {error}");
        }
    }
}
