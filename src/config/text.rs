//! Text files as editors write them: UTF-8, or UTF-16 with a byte order mark, as Windows PowerShell's `>` does.

use std::{fs, io, path::Path};

pub fn read(path: impl AsRef<Path>) -> io::Result<String> {
    decode(fs::read(path)?)
}

pub fn decode(mut bytes: Vec<u8>) -> io::Result<String> {
    let unreadable =
        || io::Error::new(io::ErrorKind::InvalidData, "it is neither UTF-8 nor UTF-16 with a byte order mark");
    let utf16 = |unit: fn([u8; 2]) -> u16| {
        let (pairs, rest) = bytes[2..].as_chunks::<2>();
        let units: Vec<u16> = pairs.iter().copied().map(unit).collect();
        String::from_utf16(&units).ok().filter(|_| rest.is_empty()).ok_or_else(unreadable)
    };
    match bytes.as_slice() {
        [0xff, 0xfe, ..] => utf16(u16::from_le_bytes),
        [0xfe, 0xff, ..] => utf16(u16::from_be_bytes),
        [0xef, 0xbb, 0xbf, ..] => {
            bytes.drain(..3);
            String::from_utf8(bytes).map_err(|_| unreadable())
        }
        _ => String::from_utf8(bytes).map_err(|_| unreadable()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_byte_order_mark_names_the_encoding_and_is_left_out() {
        const TEXT: &str = "Öffnen 我们 🚀?\r\n";
        let utf16 =
            |bytes: fn(u16) -> [u8; 2]| format!("\u{feff}{TEXT}").encode_utf16().flat_map(bytes).collect::<Vec<u8>>();
        for bytes in [
            TEXT.as_bytes().to_vec(),
            format!("\u{feff}{TEXT}").into_bytes(),
            utf16(u16::to_le_bytes),
            utf16(u16::to_be_bytes),
        ] {
            assert_eq!(decode(bytes).unwrap(), TEXT);
        }
        assert_eq!(decode(Vec::new()).unwrap(), "");
        for wrong in [&b"\xff\xfea"[..], b"\xff\xfe\x00\xd8", b"caf\xe9"] {
            assert_eq!(decode(wrong.to_vec()).unwrap_err().kind(), io::ErrorKind::InvalidData, "{wrong:?}");
        }
    }
}
