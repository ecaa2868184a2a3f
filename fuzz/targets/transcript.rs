//! Any file: no panic, the same bytes however it is split, and what is raw stays as it is.
#![no_main]

use libfuzzer_sys::fuzz_target;
use meterkast::p1::{Form, Transcript};

fn read(chunks: impl Iterator<Item = impl AsRef<[u8]>>) -> (Option<Form>, u64, Vec<u8>) {
    let mut transcript = Transcript::new();
    let mut bytes = Vec::new();
    for chunk in chunks {
        bytes.extend(transcript.push(chunk.as_ref()));
    }
    bytes.extend(transcript.end());
    (transcript.form(), transcript.left_out(), bytes)
}

fuzz_target!(|data: &[u8]| {
    let Some((&size, file)) = data.split_first() else { return };
    let (form, _, bytes) = read([file].into_iter());
    if form == Some(Form::Raw) {
        assert_eq!(bytes, file);
    }
    // An asterisk in a hex dump may stand for a telegram's length of bytes, and needs a line behind it.
    assert!(bytes.len() <= 1024 * (file.len() + 1));
    let _ = read(file.chunks(usize::from(size).max(1)));
});
