//! Any bytes of a P1 port or of a bus: no panic, each byte told once on every level, and the same however they are split.
#![no_main]

use libfuzzer_sys::fuzz_target;
use meterkast::{
    explain::{Part, Piece, mbus, p1},
    p1::Key,
};

macro_rules! explained {
    ($explainer:expr, $chunks:expr) => {{
        let (mut explainer, mut pieces) = ($explainer, Vec::new());
        for chunk in $chunks {
            explainer.push(chunk);
            pieces.extend(std::iter::from_fn(|| explainer.poll()));
        }
        explainer.end();
        pieces.extend(std::iter::from_fn(|| explainer.poll()));
        pieces
    }};
}

fn check(parts: &[Part], from: usize, to: usize) {
    let end = parts.iter().fold(from, |at, part| {
        assert!(part.from == at && part.from < part.to, "{part:?}");
        if !part.parts.is_empty() {
            check(&part.parts, part.from, part.to);
        }
        part.to
    });
    assert_eq!(end, to);
}

fn check_all(bytes: &[u8], pieces: &[Piece]) {
    let all: Vec<u8> = pieces.iter().flat_map(|piece| piece.bytes.clone()).collect();
    assert_eq!(all, bytes);
    for piece in pieces {
        check(&piece.parts, 0, piece.bytes.len());
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((&size, bytes)) = data.split_first() else { return };
    let size = usize::from(size).max(1);
    let key = Key::from_text("000102030405060708090A0B0C0D0E0F").unwrap();
    let p1 = || p1::Explainer::new(None, Some(key.clone()));
    let pieces = explained!(p1(), [bytes]);
    check_all(bytes, &pieces);
    assert_eq!(pieces, explained!(p1(), bytes.chunks(size)));
    let mbus = || mbus::Explainer::new(1);
    let pieces = explained!(mbus(), [bytes]);
    check_all(bytes, &pieces);
    assert_eq!(pieces, explained!(mbus(), bytes.chunks(size)));
});
