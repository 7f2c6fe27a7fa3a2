//! Reads sled's log without sled, for a store that sled does not open: page by page, so that a damaged place costs what
//! lay there and nothing else.
//!
//! sled 0.34 appends messages to segments of a fixed size. Each has a checksum and tells its page and its segment's
//! place in the log, so it needs nothing around it to be believed and put in order. A page is its newest *node*, its
//! content as a whole, and the *links* after it, single changes. What sled has overtaken stays in the file until its
//! place is used again: hence a page whose newest state is damaged comes back in an older one, and a job may be seen
//! as it was some time before.
//!
//! Reads only; keeps where values are, not the values, so a store larger than memory can be read.

use std::{
    collections::{BTreeMap, HashMap},
    fs::File,
    io,
    os::unix::fs::FileExt,
};

use super::{disk::SEGMENT_BYTES, keys};

/// A segment begins with its own header, which this reader does without.
const SEGMENT_HEADER_BYTES: usize = 20;

/// A place in the log: grows with every message, whatever segment of the file that is written to.
type Lsn = u64;

/// The records that the log tells of.
pub(super) struct Log {
    file: File,
    values: BTreeMap<Vec<u8>, Value>,
}

/// Where a record's value is.
#[derive(Clone, Copy)]
struct Value {
    lsn: Lsn,
    offset: u64,
    length: usize,
}

/// A message about a page, by where its body is.
#[derive(Clone, Copy)]
struct Message {
    lsn: Lsn,
    kind: u8,
    offset: u64,
    length: usize,
}

/// Kinds of messages that matter here; the others are sled's own affairs.
const FREE: u8 = 4;
const NODE: u8 = 8;
const BLOB_NODE: u8 = 9;
const LINK: u8 = 10;
const BLOB_LINK: u8 = 11;

/// Any kind above is none.
const LAST_KIND: u8 = BLOB_LINK;

/// The newest that is known of a page.
#[derive(Default)]
struct Page {
    /// The newest node, or word that the page is free.
    base: Option<Message>,
    /// What came after it, in any order.
    links: Vec<Message>,
}

impl Page {
    fn note(&mut self, message: Message) {
        if self.base.is_some_and(|base| base.lsn > message.lsn) {
            return;
        }
        if matches!(message.kind, FREE | NODE | BLOB_NODE) {
            self.links.retain(|link| link.lsn > message.lsn);
            self.base = Some(message);
        } else {
            self.links.push(message);
        }
    }
}

impl Log {
    /// Reads all of the file once.
    pub(super) fn read(file: File) -> io::Result<Log> {
        let mut pages = HashMap::<u64, Page>::new();
        let mut segment = vec![0; SEGMENT_BYTES];
        let mut offset = 0;
        loop {
            let length = read_up_to(&file, &mut segment, offset)?;
            if length == 0 {
                break;
            }
            for (page, mut message) in messages(&segment[..length]) {
                message.offset += offset;
                pages.entry(page).or_default().note(message);
            }
            offset += SEGMENT_BYTES as u64;
        }
        let mut log = Log { file, values: BTreeMap::new() };
        for page in pages.into_values() {
            log.take_over(page)?;
        }
        Ok(log)
    }

    /// The keys of all records, in order.
    pub(super) fn keys(&self) -> impl Iterator<Item = &Vec<u8>> {
        self.values.keys()
    }

    /// A record's value.
    pub(super) fn get(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        let Some(value) = self.values.get(key) else { return Ok(None) };
        let mut bytes = vec![0; value.length];
        self.file.read_exact_at(&mut bytes, value.offset)?;
        Ok(Some(bytes))
    }

    /// Adds the records of a page. Where pages overlap, because one is older than it should be, the newer word counts.
    fn take_over(&mut self, mut page: Page) -> io::Result<()> {
        let base = match page.base {
            Some(base) if base.kind == NODE => self.body(base)?,
            // Free, or its node is lost or in a file of its own: then its changes have no place.
            _ => return Ok(()),
        };
        let Some(node) = page.base.and_then(|message| Node::parse(&base, message)) else { return Ok(()) };
        let Node { prefix, low, high, mut values } = node;
        page.links.sort_unstable_by_key(|link| link.lsn);
        for link in page.links {
            if link.kind != LINK {
                continue;
            }
            let body = self.body(link)?;
            let Some((key, value)) = parse_link(&body, link) else { continue };
            let key = [&prefix, key].concat();
            // Else it was meant for a newer node than the one that is left.
            if low <= key && (high.is_empty() || key < high) && keys::is_of_the_layout(&key) {
                match value {
                    Some(value) => values.insert(key, value),
                    None => values.remove(&key),
                };
            }
        }
        for (key, value) in values {
            let known = self.values.entry(key).or_insert(value);
            if known.lsn < value.lsn {
                *known = value;
            }
        }
        Ok(())
    }

    fn body(&self, message: Message) -> io::Result<Vec<u8>> {
        let mut body = vec![0; message.length];
        self.file.read_exact_at(&mut body, message.offset)?;
        Ok(body)
    }
}

/// Where the first segment begins whose head is damaged, if there is one. Look before sled opens the file: it takes such
/// a segment for an unused one, and then overwrites it or cuts it off, and with it what could still be read.
pub(super) fn damaged_segment(file: &File) -> io::Result<Option<u64>> {
    let mut head = [0; SEGMENT_HEADER_BYTES];
    let mut offset = 0;
    while read_up_to(file, &mut head, offset)? == head.len() {
        let (checksum, rest) = head.split_at(4);
        // sled itself leaves zeros, where it took a segment but has not written to it.
        let is_unused = head.iter().all(|byte| *byte == 0);
        if !is_unused && checksum != (crc32fast::hash(rest) ^ u32::MAX).to_le_bytes() {
            return Ok(Some(offset));
        }
        offset += SEGMENT_BYTES as u64;
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

/// Every whole message about a page in a segment, with the page's number. After anything else the next one is looked
/// for byte by byte.
fn messages(segment: &[u8]) -> Vec<(u64, Message)> {
    let mut found = Vec::new();
    let mut at = SEGMENT_HEADER_BYTES;
    while at < segment.len() {
        match parse_message(segment, at) {
            Some((page, message)) => {
                at = message.end_in_segment();
                if matches!(message.kind, FREE | NODE | BLOB_NODE | LINK | BLOB_LINK) {
                    found.push((page, message));
                }
            }
            None => at += 1,
        }
    }
    found
}

impl Message {
    /// Where the next message begins, while `offset` still counts from the segment's beginning.
    fn end_in_segment(&self) -> usize {
        usize::try_from(self.offset).unwrap_or(usize::MAX).saturating_add(self.length)
    }
}

/// The message at `at`, if there is one and its checksum is right, with its page's number.
fn parse_message(segment: &[u8], at: usize) -> Option<(u64, Message)> {
    let start = &segment[at..];
    let kind = *start.get(4)?;
    if !(1..=LAST_KIND).contains(&kind) {
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
    Some((page, Message { lsn, kind, offset: (at + header.len()) as u64, length }))
}

/// A leaf as it is on disk: keys lack the prefix that they share.
struct Node {
    prefix: Vec<u8>,
    low: Vec<u8>,
    /// Empty for no bound.
    high: Vec<u8>,
    values: BTreeMap<Vec<u8>, Value>,
}

impl Node {
    /// None for an inner page, or one that makes no sense.
    fn parse(body: &[u8], message: Message) -> Option<Node> {
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
        let mut values = BTreeMap::new();
        for key in keys? {
            let length = bytes(&mut rest)?.len();
            let offset = message.offset + (body.len() - rest.len() - length) as u64;
            values.insert([&prefix, key].concat(), Value { lsn: message.lsn, offset, length });
        }
        Some(Node { prefix, low, high, values })
    }
}

/// The key, without the page's prefix, that a link sets or, without a value, deletes; none for other links.
fn parse_link(body: &[u8], message: Message) -> Option<(&[u8], Option<Value>)> {
    const SET: u8 = 0;
    const DELETE: u8 = 1;
    let mut rest = body;
    match byte(&mut rest)? {
        SET => {
            let key = bytes(&mut rest)?;
            let length = bytes(&mut rest)?.len();
            let offset = message.offset + (body.len() - rest.len() - length) as u64;
            Some((key, Some(Value { lsn: message.lsn, offset, length })))
        }
        DELETE => Some((bytes(&mut rest)?, None)),
        _ => None,
    }
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
