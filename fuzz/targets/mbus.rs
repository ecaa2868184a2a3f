//! Any bytes from a bus, and the same as the body of a frame whose checksum fits: no panic, and frames and records
//! are emitted as they were read.
#![no_main]

use libfuzzer_sys::fuzz_target;
use meterkast::mbus::{self, Frame, Item, Records};

/// What is left when every record that can be read is taken off the front of `data`.
fn hold_records(data: &[u8]) {
    let mut rest = data;
    for item in Records::new(data) {
        while let [0x2F, behind @ ..] = rest {
            rest = behind;
        }
        let mut emitted = Vec::new();
        match item {
            Ok(Item::Record(record)) => record.emit(&mut emitted),
            Ok(Item::Manufacturer { more_follow, data }) => {
                emitted.push(if more_follow { 0x1F } else { 0x0F });
                emitted.extend_from_slice(data);
            }
            Ok(Item::Reserved(data)) => emitted.extend_from_slice(data),
            Err(_) => return,
        }
        rest = rest.strip_prefix(&emitted[..]).expect("the bytes of the record");
    }
    assert!(rest.iter().all(|byte| *byte == 0x2F));
}

fn hold(bytes: &[u8]) -> bool {
    let Ok((frame, length)) = Frame::parse(bytes) else { return false };
    assert_eq!(frame.emit(), bytes[..length]);
    if let Frame::Long { data, .. } = frame {
        // Behind each header that there may be.
        for header in [0, 4, 12] {
            hold_records(data.get(header..).unwrap_or_default());
        }
    }
    let once = mbus::decode(&[frame], 1).map(|decoded| decoded.report.readings.len());
    let twice = mbus::decode(&[frame, frame], 1).map(|decoded| decoded.report.readings.len());
    assert_eq!(twice, once.map(|readings| 2 * readings));
    true
}

fuzz_target!(|data: &[u8]| {
    hold(data);
    // What looks like a frame is repaired, anything else is a body as it is.
    let body = data.strip_prefix(&[0x68]).and_then(|_| data.get(4..data.len().saturating_sub(2))).unwrap_or(data);
    let body = &body[..body.len().min(255)];
    let (length, sum) = (body.len() as u8, body.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)));
    let sealed = [&[0x68, length, length, 0x68], body, &[sum, 0x16]].concat();
    assert_eq!(hold(&sealed), length >= 3);
});
