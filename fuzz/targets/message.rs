//! Any payload from a broker: no panic, and what was understood is written and read back the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use meterkast::payload::{self, Message};

fuzz_target!(|data: &[u8]| {
    let Ok(message) = Message::from_json(data) else { return };
    let body = payload::body(&message.report, message.received_at);
    let json = payload::message(&message.envelope, &body);
    assert_eq!(Message::from_json(json.as_bytes()).as_ref(), Ok(&message));
});
