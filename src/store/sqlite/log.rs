//! Whether a write-ahead log has lost commits.
//!
//! Enters: the file that SQLite keeps beside a database. Leaves: whether something damaged it after it was
//! written. SQLite itself takes a log up to its first bad frame and drops the rest in silence, which is right
//! for what a power cut leaves: the last transaction, half-written. But a bad frame before the last
//! transaction means that commits are gone which were acknowledged, and that must not pass unnoticed.
//!
//! Not supported: telling damage in the last two transactions from a power cut.

use std::{
    fs::File,
    io::{self, BufReader, ErrorKind, Read},
    path::Path,
};

const HEADER: usize = 32;
const FRAME_HEADER: usize = 24;

/// The sum that every frame carries on: two words over pairs of words, from that of the frame before.
type Sum = (u32, u32);

/// Whether commits are gone from the log at `path`; a log that is not there has lost nothing.
pub(super) fn is_damaged(path: &Path) -> io::Result<bool> {
    let mut file = match File::open(path) {
        Ok(file) => BufReader::new(file),
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    // The header is synced before anything follows it: alone it may be torn.
    if file.get_ref().metadata()?.len() <= HEADER as u64 {
        return Ok(false);
    }
    let mut header = [0; HEADER];
    file.read_exact(&mut header)?;
    let [magic, _, size, _, salt_1, salt_2, sum_1, sum_2] = words(&header);
    let little = magic == 0x377f_0682;
    let known = little || magic == 0x377f_0683;
    if !known || !(512..=65_536).contains(&size) || sum(little, (0, 0), header.get(..24)) != (sum_1, sum_2) {
        return Ok(true);
    }
    let mut before = (sum_1, sum_2);
    let (mut broken, mut commits) = (false, 0);
    let mut frame = vec![0; FRAME_HEADER.saturating_add(usize::try_from(size).unwrap_or(0))];
    while let Ok(()) = file.read_exact(&mut frame) {
        let [_, commit, frame_salt_1, frame_salt_2, sum_1, sum_2] = words(&frame);
        let begun = sum(little, before, frame.get(..8));
        let follows = sum(little, begun, frame.get(FRAME_HEADER..)) == (sum_1, sum_2);
        before = (sum_1, sum_2);
        // What an earlier round of the log left has other salts. A transaction whose sync failed is written anew over
        // itself: what sticks out behind follows nothing, and holds one commit.
        if !follows || (frame_salt_1, frame_salt_2) != (salt_1, salt_2) {
            (broken, commits) = (true, 0);
        } else if broken && commit != 0 {
            commits += 1;
            if commits == 2 {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// The first big-endian words of some bytes.
fn words<const N: usize>(bytes: &[u8]) -> [u32; N] {
    let mut words = bytes.as_chunks().0.iter().map(|word| u32::from_be_bytes(*word));
    [(); N].map(|()| words.next().unwrap_or_default())
}

fn sum(little: bool, before: Sum, bytes: Option<&[u8]>) -> Sum {
    let read = if little { u32::from_le_bytes } else { u32::from_be_bytes };
    let pairs = bytes.unwrap_or_default().as_chunks::<8>().0.iter();
    pairs.fold(before, |(mut one, mut two), &[a, b, c, d, e, f, g, h]| {
        one = one.wrapping_add(read([a, b, c, d])).wrapping_add(two);
        two = two.wrapping_add(read([e, f, g, h])).wrapping_add(one);
        (one, two)
    })
}
