//! Reads sled's log without sled, for a store that sled does not open: page by page, so that damage costs only what lay
//! there.
//!
//! sled 0.34 appends messages to segments of a fixed size. Each message has a checksum, the number of its page and the place
//! of its segment in the log, so it can be checked and put in order by itself. The content of a page is its newest *node* and
//! the *links* after that, single changes. sled leaves older messages in the file until it uses their place again: so if the
//! newest state of a page is damaged, an older one is found, and a job may be as it was some time before.
//!
//! Keeps where values are and not the values, so a store larger than memory can be read.

use std::{
    collections::{BTreeMap, HashMap},
    fs::File,
    io,
    os::unix::fs::FileExt,
};

use super::keys;

/// Persisted at creation, never to be changed. At sled's default of 512 KiB, values of 10 KB already go to blob files, which
/// sled never syncs.
pub(super) const SEGMENT_BYTES: usize = 2 << 20;

const SEGMENT_HEADER_BYTES: usize = 20;

pub(super) struct Log {
    file: File,
    values: BTreeMap<Vec<u8>, Span>,
}

#[derive(Clone, Copy)]
struct Span {
    /// The place in the log: grows with every message, whatever segment of the file that is written to.
    lsn: u64,
    offset: u64,
    length: usize,
}

#[derive(Clone, Copy)]
struct Message {
    kind: u8,
    body: Span,
}

/// Kinds of messages about pages; the others are sled's own.
const FREE: u8 = 4;
const NODE: u8 = 8;
const BLOB_NODE: u8 = 9;
const LINK: u8 = 10;
const BLOB_LINK: u8 = 11;

#[derive(Default)]
struct Page {
    /// The newest node, or the message that the page is free.
    base: Option<Message>,
    /// What came after it, in any order.
    links: Vec<Message>,
}

impl Page {
    fn add(&mut self, message: Message) {
        if self.base.is_some_and(|base| base.body.lsn > message.body.lsn) {
            return;
        }
        if matches!(message.kind, FREE | NODE | BLOB_NODE) {
            self.links.retain(|link| link.body.lsn > message.body.lsn);
            self.base = Some(message);
        } else {
            self.links.push(message);
        }
    }
}

impl Log {
    pub(super) fn read(file: File) -> io::Result<Log> {
        let mut pages = HashMap::<u64, Page>::new();
        let mut segment = vec![0; SEGMENT_BYTES];
        for offset in (0..).step_by(SEGMENT_BYTES) {
            let length = read_up_to(&file, &mut segment, offset)?;
            if length == 0 {
                break;
            }
            for (page, mut message) in messages(&segment[..length]) {
                message.body.offset += offset;
                pages.entry(page).or_default().add(message);
            }
        }
        let mut log = Log { file, values: BTreeMap::new() };
        for page in pages.into_values() {
            log.add_records(page)?;
        }
        Ok(log)
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = &Vec<u8>> {
        self.values.keys()
    }

    pub(super) fn get(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        self.values.get(key).map(|value| self.bytes(*value)).transpose()
    }

    /// Adds the records of a page. Pages overlap if one of them is older than it should be: then the newer record counts.
    fn add_records(&mut self, mut page: Page) -> io::Result<()> {
        // Without its node a page's changes have no place: it is free, or its node is lost or in a file of its own.
        let Some(base) = page.base.filter(|base| base.kind == NODE) else { return Ok(()) };
        let Some(mut node) = Node::parse(&self.bytes(base.body)?, base.body) else { return Ok(()) };
        page.links.sort_unstable_by_key(|link| link.body.lsn);
        for link in page.links.iter().filter(|link| link.kind == LINK) {
            let body = self.bytes(link.body)?;
            if let Some((key, value)) = parse_link(&body, link.body) {
                node.change(key, value);
            }
        }
        for (key, value) in node.values {
            let known = self.values.entry(key).or_insert(value);
            if known.lsn < value.lsn {
                *known = value;
            }
        }
        Ok(())
    }

    fn bytes(&self, span: Span) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; span.length];
        self.file.read_exact_at(&mut bytes, span.offset)?;
        Ok(bytes)
    }
}

/// Where the first segment with a damaged head begins. Look before sled opens the file: sled takes such a segment for an
/// unused one, and overwrites it or cuts it off.
pub(super) fn damaged_segment(file: &File) -> io::Result<Option<u64>> {
    let mut head = [0; SEGMENT_HEADER_BYTES];
    for offset in (0..).step_by(SEGMENT_BYTES) {
        if read_up_to(file, &mut head, offset)? < head.len() {
            break;
        }
        let (checksum, rest) = head.split_at(4);
        // sled itself leaves zeros, where it took a segment but has not written to it.
        let is_unused = head.iter().all(|byte| *byte == 0);
        if !is_unused && checksum != (crc32fast::hash(rest) ^ u32::MAX).to_le_bytes() {
            return Ok(Some(offset));
        }
    }
    Ok(None)
}

/// Fills `buffer` from `offset` on as far as the file goes.
fn read_up_to(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut length = 0;
    while length < buffer.len() {
        match file.read_at(&mut buffer[length..], offset + length as u64)? {
            0 => break,
            read => length += read,
        }
    }
    Ok(length)
}

/// Every whole message about a page in a segment, with the page's number. After anything else the next message is searched
/// for byte by byte.
fn messages(segment: &[u8]) -> Vec<(u64, Message)> {
    let mut found = Vec::new();
    let mut at = SEGMENT_HEADER_BYTES;
    while at < segment.len() {
        let Some((page, message, end)) = parse_message(segment, at) else {
            at += 1;
            continue;
        };
        at = end;
        if matches!(message.kind, FREE | NODE | BLOB_NODE | LINK | BLOB_LINK) {
            found.push((page, message));
        }
    }
    found
}

/// The message at `at`, if its checksum is right, with the number of its page and where it ends. Its offset is the place in
/// the segment.
fn parse_message(segment: &[u8], at: usize) -> Option<(u64, Message, usize)> {
    let start = &segment[at..];
    let kind = *start.get(4)?;
    if !(1..=BLOB_LINK).contains(&kind) {
        return None;
    }
    let mut rest = start.get(5..)?;
    let length = usize::try_from(varint(&mut rest)?).ok()?;
    let segment_number = varint(&mut rest)?;
    let page = varint(&mut rest)?;
    let body = rest.get(..length)?;
    let header = &start[..start.len() - rest.len()];
    let mut checksum = crc32fast::Hasher::new();
    checksum.update(body);
    checksum.update(&header[4..]);
    if header[..4] != (checksum.finalize() ^ u32::MAX).to_le_bytes() {
        return None;
    }
    let lsn = segment_number.checked_mul(SEGMENT_BYTES as u64)?.checked_add(at as u64)?;
    let offset = at + header.len();
    Some((page, Message { kind, body: Span { lsn, offset: offset as u64, length } }, offset + length))
}

/// A leaf as it is on disk.
struct Node {
    /// What all keys begin with; the record on disk leaves it out.
    prefix: Vec<u8>,
    low: Vec<u8>,
    /// Empty for no bound.
    high: Vec<u8>,
    values: BTreeMap<Vec<u8>, Span>,
}

impl Node {
    /// None for an inner page, or one that makes no sense.
    fn parse(body: &[u8], span: Span) -> Option<Node> {
        let mut rest = body;
        let _next = varint(&mut rest)?;
        let _merging_child = varint(&mut rest)?;
        let _merging = byte(&mut rest)?;
        let prefix_length = usize::from(byte(&mut rest)?);
        let low = bytes(&mut rest)?.to_vec();
        let high = bytes(&mut rest)?.to_vec();
        let is_leaf = byte(&mut rest)? == 0;
        let count = varint(&mut rest)?;
        if !is_leaf {
            return None;
        }
        let prefix = low.get(..prefix_length)?.to_vec();
        let keys: Option<Vec<&[u8]>> = (0..count).map(|_| bytes(&mut rest)).collect();
        let values = keys?.into_iter().map(|key| Some(([&prefix, key].concat(), value(body, span, &mut rest)?)));
        Some(Node { values: values.collect::<Option<_>>()?, prefix, low, high })
    }

    /// Sets or removes a value, unless the change was made to a newer node than this.
    fn change(&mut self, key: &[u8], value: Option<Span>) {
        let key = [&self.prefix, key].concat();
        if self.low <= key && (self.high.is_empty() || key < self.high) && keys::is_valid(&key) {
            match value {
                Some(value) => self.values.insert(key, value),
                None => self.values.remove(&key),
            };
        }
    }
}

/// The key, without the page's prefix, that a link sets or, without a value, removes; none for other links.
fn parse_link(body: &[u8], span: Span) -> Option<(&[u8], Option<Span>)> {
    const SET: u8 = 0;
    const DELETE: u8 = 1;
    let mut rest = body;
    match byte(&mut rest)? {
        SET => Some((bytes(&mut rest)?, Some(value(body, span, &mut rest)?))),
        DELETE => Some((bytes(&mut rest)?, None)),
        _ => None,
    }
}

/// Where the value is with which `rest`, a part of `body`, begins.
fn value(body: &[u8], span: Span, rest: &mut &[u8]) -> Option<Span> {
    let length = bytes(rest)?.len();
    Some(Span { offset: span.offset + (body.len() - rest.len() - length) as u64, length, ..span })
}

fn byte(rest: &mut &[u8]) -> Option<u8> {
    let (first, after) = rest.split_first()?;
    *rest = after;
    Some(*first)
}

fn bytes<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = usize::try_from(varint(rest)?).ok()?;
    let (found, after) = rest.split_at_checked(length)?;
    *rest = after;
    Some(found)
}

/// sled's numbers of variable length, those of SQLite 4 but little-endian.
fn varint(rest: &mut &[u8]) -> Option<u64> {
    let first = byte(rest)?;
    Some(match first {
        0..=240 => u64::from(first),
        241..=248 => 240 + 256 * u64::from(first - 241) + u64::from(byte(rest)?),
        249 => 2288 + 256 * u64::from(byte(rest)?) + u64::from(byte(rest)?),
        250..=255 => {
            let mut number = [0; 8];
            for place in number.iter_mut().take(usize::from(first - 247)) {
                *place = byte(rest)?;
            }
            u64::from_le_bytes(number)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(bytes: &[u8]) -> Option<u64> {
        varint(&mut &*bytes)
    }

    #[test]
    fn numbers_are_read_as_sled_writes_them() {
        for (bytes, expected) in [
            (&[0][..], 0),
            (&[240], 240),
            (&[241, 0], 240),
            (&[248, 255], 2287),
            (&[249, 0, 0], 2288),
            (&[249, 255, 255], 67823),
            (&[250, 0xF0, 0x08, 0x01], 67824),
            (&[255, 1, 2, 3, 4, 5, 6, 7, 8], 0x0807_0605_0403_0201),
        ] {
            assert_eq!(number(bytes), Some(expected), "{bytes:?}");
            assert_eq!(number(&bytes[..bytes.len() - 1]), None, "{bytes:?}, cut");
        }
    }
}
