//! Any lines under a valid CRC: no panic, and the same readings whether the lines are in their usual form, which
//! is read in one go, or not (without carriage returns none is).
#![no_main]

use libfuzzer_sys::fuzz_target;
use meterkast::p1::{LineEnds, Piece, Tail, Telegram, Writer, crc, decode};

fuzz_target!(|data: &[u8]| {
    let text: Vec<u8> = data.iter().copied().filter(|&byte| byte != b'\r').collect();
    let lines = text.split(|&byte| byte == b'\n').filter(|line| !line.is_empty());
    let sent = lines.fold(Writer::new("XYZ5 fuzz"), Writer::line).finish(false);
    let sent = sent.strip_suffix(b"\r\n").unwrap();
    let bare: Vec<u8> = sent.iter().copied().filter(|&byte| byte != b'\r').collect();
    let tail = Tail::Crc(crc::as_sent(sent));
    let telegram = Telegram::check(Piece::Telegram { offset: 0, bytes: sent, tail }).unwrap();
    let without = Telegram::check(Piece::Telegram { offset: 0, bytes: &bare, tail }).unwrap();
    // One in 65,536 has the same CRC without carriage returns.
    if without.line_ends == LineEnds::AsSent {
        return;
    }
    let (quick, slow) = (decode(&telegram, None), decode(&without, None));
    assert_eq!((quick.dialect, quick.reports.len()), (slow.dialect, slow.reports.len()));
    for (quick, slow) in quick.reports.iter().zip(&slow.reports) {
        assert_eq!((&quick.meter, quick.medium), (&slow.meter, slow.medium));
        assert_eq!((&quick.readings, &quick.events), (&slow.readings, &slow.events));
        assert_eq!((quick.measured_at, quick.unknown.len()), (slow.measured_at, slow.unknown.len()));
    }
});
