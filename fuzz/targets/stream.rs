//! Any bytes from a port, with a key: no panic, and the same result however they are split.
#![no_main]

use libfuzzer_sys::fuzz_target;
use meterkast::p1::{Accepted, Key, Reader, Rejected};

fn read(chunks: impl Iterator<Item = impl AsRef<[u8]>>) -> Vec<Result<Accepted, Rejected>> {
    let key = Key::from_text("000102030405060708090A0B0C0D0E0F").unwrap();
    let mut reader = Reader::new(None, Some(key));
    let mut results = Vec::new();
    for chunk in chunks {
        reader.push(chunk.as_ref());
        results.extend(std::iter::from_fn(|| reader.poll()));
    }
    reader.end();
    results.extend(std::iter::from_fn(|| reader.poll()));
    results
}

fuzz_target!(|data: &[u8]| {
    let Some((&size, bytes)) = data.split_first() else { return };
    let whole = read([bytes].into_iter());
    assert_eq!(whole, read(bytes.chunks(usize::from(size).max(1))));
    assert_eq!(whole, read(bytes.chunks(1)));
});
