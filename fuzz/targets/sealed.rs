//! Any bytes as a sealed block, as the contents behind a checksum that fits, and as its columns: no panic, and what was read
//! is sealed and read back the same.
#![no_main]

use crc::{CRC_32_ISCSI, Crc};
use libfuzzer_sys::fuzz_target;
use meterkast::sealed::{Block, Damaged};
use miniz_oxide::deflate::compress_to_vec;

const CASTAGNOLI: Crc<u32> = Crc::<u32>::new(&CRC_32_ISCSI);

fn hold(bytes: &[u8]) -> Result<(), Damaged> {
    let block = Block::unseal(bytes)?;
    assert_eq!(Block::unseal(&block.seal()).as_ref(), Ok(&block));
    let mut again = Block::default();
    for row in block.rows() {
        assert_eq!(again.push(row), Ok(()));
    }
    assert!(again.rows().eq(block.rows()));
    Ok(())
}

fuzz_target!(|data: &[u8]| {
    let checked = |contents: &[u8]| [&[1][..], &CASTAGNOLI.checksum(contents).to_le_bytes(), contents].concat();
    let _ = hold(data);
    let refused = |held| assert!(matches!(held, Ok(()) | Err(Damaged::Contents)), "{held:?}");
    refused(hold(&checked(data)));
    if let Some((counts, columns)) = data.split_at_checked(2) {
        refused(hold(&checked(&[counts, &compress_to_vec(columns, 1)].concat())));
    }
});
