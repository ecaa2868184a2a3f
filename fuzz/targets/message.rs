//! Any payload from a broker: no panic, and what was understood is written and read back the same, as JSON and as journal and store
//! keep it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use meterkast::{
    layout::{self, Layout},
    payload::{self, Message},
    reading::Report,
};

/// Taken apart and put together again.
fn kept(report: &Report<String>) -> Report<String> {
    let (layout, values) = Layout::split(report);
    let layout = Layout::from_text(&layout.to_text()).unwrap();
    let mut read = Report { readings: vec![], info: vec![], events: vec![], unknown: vec![], ..report.clone() };
    layout.join(&values, layout::remark(report).as_deref(), &mut read).unwrap();
    read
}

fuzz_target!(|data: &[u8]| {
    let Ok(message) = Message::from_json(data) else { return };
    let body = payload::body(&message.report, message.received_at);
    let json = payload::message(&message.envelope, &body);
    assert_eq!(Message::from_json(json.as_bytes()).as_ref(), Ok(&message));

    let read = kept(&message.report);
    assert_eq!(kept(&read), read);
    // Instants of readings are cut to a millisecond; all else is as it was.
    let Report { info, events, unknown, .. } = message.report;
    assert_eq!((read.info, read.events, read.unknown), (info, events, unknown));
});
