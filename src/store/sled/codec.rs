//! How records are written in chunks, and the checksum of a job's metadata.

use super::keys::{self, Seq};
use crate::{job::Job, store::record};

/// sled puts a page over a quarter of a segment into a blob file, which it never syncs. About 17 values share a page.
const CHUNK_BYTES: usize = 24 << 10;

/// The checksum of a job's metadata under its number; the store adds up those of all jobs.
pub(super) fn fingerprint(seq: Seq, job: &Job) -> u64 {
    let mut checksum = crc32fast::Hasher::new();
    checksum.update(&seq.to_be_bytes());
    checksum.update(&record::encode(job).unwrap_or_default());
    u64::from(checksum.finalize())
}

/// Writes `bytes` in chunks under `record`. The last chunk is shorter than the others, empty if need be, so that a reader
/// knows the end.
pub(super) fn write_chunks(tree: &sled::Tree, record: &[u8], bytes: &[u8]) -> sled::Result<()> {
    for number in 0..=bytes.len() / CHUNK_BYTES {
        let start = number * CHUNK_BYTES;
        let chunk = &bytes[start..bytes.len().min(start + CHUNK_BYTES)];
        let number = u16::try_from(number).map_err(|_| sled::Error::Unsupported("a record over 1.5 GB".to_owned()))?;
        tree.insert(keys::chunk(record, number), chunk)?;
    }
    Ok(())
}

/// What [`write_chunks`] wrote; none if any of it is missing.
pub(super) fn read_chunks(tree: &sled::Tree, record: &[u8]) -> sled::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    for number in 0..=u16::MAX {
        let Some(chunk) = tree.get(keys::chunk(record, number))? else { return Ok(None) };
        bytes.extend_from_slice(&chunk);
        if is_last_chunk(&chunk) {
            break;
        }
    }
    Ok(Some(bytes))
}

pub(super) fn is_last_chunk(chunk: &[u8]) -> bool {
    chunk.len() < CHUNK_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_around_the_chunk_size_come_back_as_they_were() {
        let folder = tempfile::tempdir().unwrap();
        let tree = sled::open(folder.path()).unwrap();
        for length in [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES] {
            let bytes: Vec<u8> = (0..length).map(|place| u8::try_from(place % 251).unwrap()).collect();
            let record = keys::request(length as u64);
            write_chunks(&tree, &record, &bytes).unwrap();
            assert_eq!(read_chunks(&tree, &record).unwrap().unwrap(), bytes, "{length} bytes");
        }
        assert_eq!(read_chunks(&tree, &keys::request(7)).unwrap(), None);
    }
}
