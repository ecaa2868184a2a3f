//! Every composed frame, and every real one where the corpus is there, damaged in every way that a bus knows.
//! Whatever comes in: no panic, no frame whose checksum does not fit, and what is read is emitted byte for byte.

use meterkast::{
    mbus::{self, Coding, Frame, FrameError, Item, Record, Records, control, value::Value},
    reading::{Function, Qualifiers},
    unit::Decimal,
};
use proptest::{collection::vec, option, prelude::*, sample::select};

use crate::samples::mbus_frames;

/// Answers that together have every coding, each kind of VIF, and each way to end.
fn composed() -> Vec<Vec<u8>> {
    let now = Qualifiers::default();
    let long_ago = Qualifiers { storage: 40, tariff: 2, subunit: 1, function: Function::Minimum };
    let readings = [
        Record::new(now, Coding::Bcd(4), &[0x78], &[0x78, 0x56, 0x34, 0x12]),
        Record::new(now, Coding::Binary(4), &[0x06], &[0x39, 0x30, 0, 0]),
        Record::new(long_ago, Coding::Binary(6), &[0x86, 0x3B], &[1, 2, 3, 4, 5, 6]),
        Record::new(long_ago, Coding::Binary(2), &[0x6C], &[0xBF, 0x1C]),
        Record::new(now, Coding::Real, &[0x3E], &[0xCD, 0xCC, 0xCC, 0x3D]),
        Record::new(now, Coding::Binary(4), &[0x6D], &[0x17, 0x2E, 0xCC, 0x13]),
        Record::new(now, Coding::Binary(6), &[0x6D], &[0x1E, 0x3B, 0x77, 0x9E, 0x1C, 0x34]),
        Record::new(now, Coding::Binary(2), &[0xFC, 3, b'H', b'R', b'%', 0x74], &[0x44, 0x0D]),
        Record::new(now, Coding::Variable, &[0xFD, 0x0C], &[4, b'2', b'0', b'6', b'K']),
        Record::new(now, Coding::Variable, &[0x13], &[0xD2, 0x34, 0x12]),
        Record::new(now, Coding::Binary(8), &[0xFD, 0xC9, 0xFC, 0x02], &[0xFF; 8]),
        Record::new(now, Coding::Nothing, &[0xFD, 0x17], &[]),
        Record::new(now, Coding::Selection, &[0x7E], &[]),
    ];
    let mut records = Vec::new();
    readings.iter().for_each(|record| record.emit(&mut records));
    let long = |ci, header: &[u8], end: &[u8]| {
        let data = [header, &records, end].concat();
        Frame::Long { control: control::RSP_UD, address: 5, ci, data: &data }.emit()
    };
    let header = [0x78, 0x56, 0x34, 0x12, 0x2D, 0x2C, 0x1B, 0x04, 0x01, 0x00, 0x00, 0x00];
    let encrypted = [0x78, 0x56, 0x34, 0x12, 0x2D, 0x2C, 0x1B, 0x04, 0x01, 0x00, 0x10, 0x05];
    let fixed = [0x78, 0x56, 0x34, 0x12, 0x0A, 0x00, 0xE9, 0x7E, 0x01, 0x00, 0x00, 0x00, 0x35, 0x01, 0x00, 0x00];
    vec![
        Frame::Ack.emit(),
        Frame::Short { control: control::REQ_UD2, address: 5 }.emit(),
        long(0x72, &header, &[0x1F, 1, 2, 3]),
        long(0x72, &encrypted, &[0x2F, 0x2F]),
        long(0x76, &header, &[0x0F]),
        long(0x78, &[], &[0x3F, 1]),
        long(0x7A, &[1, 0, 0, 0], &[]),
        long(0x70, &[8], &[]),
        Frame::Long { control: control::RSP_UD, address: 5, ci: 0x73, data: &fixed }.emit(),
        Frame::Long { control: control::SND_UD, address: 254, ci: 0x50, data: &[] }.emit(),
    ]
}

/// The composed frames and the real ones that are some.
fn every() -> Vec<(String, Vec<u8>)> {
    let composed = composed().into_iter().enumerate().map(|(at, frame)| (format!("composed {at}"), frame));
    let real = mbus_frames().into_iter().filter_map(|sample| {
        let (_, length) = Frame::parse(&sample.bytes).ok()?;
        Some((sample.name, sample.bytes[..length].to_vec()))
    });
    composed.chain(real).collect()
}

/// A long frame of this body, whatever is in it, with lengths and checksum that fit.
fn sealed(body: &[u8]) -> Vec<u8> {
    let length = u8::try_from(body.len()).unwrap();
    let sum = body.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    [&[0x68, length, length, 0x68], body, &[sum, 0x16]].concat()
}

/// What lies between the start and the checksum; None but for long frames.
fn body(frame: &[u8]) -> Option<&[u8]> {
    frame.strip_prefix(&[0x68]).map(|_| &frame[4..frame.len() - 2])
}

/// What must be true of any bytes.
fn hold(bytes: &[u8]) -> Result<(), FrameError> {
    let (frame, length) = Frame::parse(bytes)?;
    assert_eq!(frame.emit(), bytes[..length], "{bytes:02X?}");
    let _ = mbus::decode(&[frame], 1);
    if let Frame::Long { data, .. } = frame {
        hold_records(data);
    }
    Ok(())
}

/// Records, fillers and what is behind them are all of the data.
fn hold_records(data: &[u8]) {
    let mut rest = data;
    for item in Records::new(data) {
        rest = &rest[rest.iter().take_while(|byte| **byte == 0x2F).count()..];
        let mut emitted = Vec::new();
        match &item {
            Ok(Item::Record(record)) => record.emit(&mut emitted),
            Ok(Item::Manufacturer { more_follow, data }) => {
                emitted.push(if *more_follow { 0x1F } else { 0x0F });
                emitted.extend_from_slice(data);
            }
            Ok(Item::Reserved(data)) => emitted.extend_from_slice(data),
            Err(_) => return,
        }
        rest = rest.strip_prefix(&emitted[..]).unwrap_or_else(|| panic!("{data:02X?}: {item:?}"));
    }
    assert!(rest.iter().all(|byte| *byte == 0x2F), "{data:02X?}: {rest:02X?} is left");
}

#[test]
fn a_damaged_frame_is_none() {
    for (name, frame) in every() {
        assert_eq!(hold(&frame), Ok(()), "{name}");
        for length in 0..frame.len() {
            assert!(matches!(hold(&frame[..length]), Err(FrameError::Incomplete(_))), "{name} cut at {length}");
        }
        for bit in 0..frame.len() * 8 {
            let mut frame = frame.clone();
            frame[bit / 8] ^= 1 << (bit % 8);
            assert!(hold(&frame).is_err(), "{name} with bit {bit} flipped");
        }
        for junk in [&[0x00][..], &[0xFF], &[0x16], &[0x68], &[0x68, 0x68, 0x68], &[0x10], &[0x68, 3, 3, 0x68]] {
            let behind = [junk, &frame].concat();
            assert!(hold(&behind).is_err(), "{name} behind {junk:02X?}");
        }
    }
}

/// One damaged frame in 256 passes its checksum, and a slave may send nonsense: the decoder must bear both.
#[test]
fn a_damaged_body_under_a_valid_checksum() {
    let mut tried = 0;
    for (name, frame) in every() {
        let Some(body) = body(&frame) else { continue };
        let mut hold_sealed = |body: &[u8]| {
            tried += 1;
            assert_eq!(hold(&sealed(body)), Ok(()), "{name}: {body:02X?}");
        };
        for length in 3..body.len() {
            hold_sealed(&body[..length]);
        }
        for bit in 0..body.len() * 8 {
            let mut body = body.to_vec();
            body[bit / 8] ^= 1 << (bit % 8);
            hold_sealed(&body);
        }
        for at in 3..body.len() {
            for junk in [0x00, 0x0F, 0x1F, 0x2F, 0x7C, 0x7F, 0x84, 0xFD, 0xFF] {
                let mut body = body.to_vec();
                body.insert(at, junk);
                body.truncate(255);
                hold_sealed(&body);
            }
        }
    }
    println!("{tried} damaged frames were held");
}

/// A coding and data of its length.
fn coded() -> impl Strategy<Value = (Coding, Vec<u8>)> {
    let of_length = |coding, length| vec(any::<u8>(), length).prop_map(move |data| (coding, data));
    let binary =
        select(vec![1, 2, 3, 4, 6, 8]).prop_flat_map(move |bytes| of_length(Coding::Binary(bytes), bytes.into()));
    let bcd = select(vec![1, 2, 3, 4, 6]).prop_flat_map(move |bytes| of_length(Coding::Bcd(bytes), bytes.into()));
    let lengths: Vec<(u8, usize)> = (0..=0xBF)
        .map(|first| (first, first.into()))
        .chain([(0xC0, 0), (0xC9, 9), (0xD3, 3), (0xE1, 1), (0xE8, 8), (0xEF, 15), (0xF0, 16), (0xF4, 32), (0xF6, 64)])
        .collect();
    let variable = select(lengths).prop_flat_map(|(first, length)| {
        vec(any::<u8>(), length).prop_map(move |data| (Coding::Variable, [&[first], &data[..]].concat()))
    });
    let none = select(vec![Coding::Nothing, Coding::Selection]).prop_map(|coding| (coding, Vec::new()));
    prop_oneof![3 => binary, 3 => bcd, 3 => variable, 1 => of_length(Coding::Real, 4), 1 => none]
}

/// VIF, the text of a plain-text unit, VIFE without bit 7.
fn value_information() -> impl Strategy<Value = (u8, Option<Vec<u8>>, Vec<u8>)> {
    let vif = any::<u8>().prop_filter("a plain-text unit", |vif| vif & 0x7F != 0x7C);
    let extensions = vec(0..=0x7Fu8, 0..=10);
    (vif, option::weighted(0.1, vec(any::<u8>(), 0..=20)), extensions)
}

fn qualifiers() -> impl Strategy<Value = Qualifiers> {
    let function = select(vec![Function::Instantaneous, Function::Maximum, Function::Minimum, Function::Error]);
    let storage = prop_oneof![0..4u64, 0..1u64 << 41];
    let tariff = prop_oneof![0..4u32, 0..1u32 << 20];
    (storage, tariff, 0..1024u16, function).prop_map(|(storage, tariff, subunit, function)| Qualifiers {
        storage,
        tariff,
        subunit,
        function,
    })
}

proptest! {
    #[test]
    fn records_read_back_the_same(
        qualifiers in qualifiers(),
        (coding, data) in coded(),
        (vif, text, extensions) in value_information(),
        fillers in 0..3usize,
    ) {
        let vif = if text.is_some() { 0x7C } else { vif & 0x7F } | if extensions.is_empty() { 0 } else { 0x80 };
        let last = extensions.len().saturating_sub(1);
        let extensions: Vec<u8> =
            extensions.iter().enumerate().map(|(at, vife)| if at == last { *vife } else { vife | 0x80 }).collect();
        let words = text.as_ref().map(|text| [&[text.len() as u8], &text[..]].concat()).unwrap_or_default();
        let vib = [&[vif], &words[..], &extensions].concat();
        let mut bytes = vec![0x2F; fillers];
        let composed = Record::new(qualifiers, coding, &vib, &data);
        composed.emit(&mut bytes);
        bytes.extend([0x2F, 0x0F]);
        let items: Vec<Item<'_>> = Records::new(&bytes).map(Result::unwrap).collect();
        let [Item::Record(record), Item::Manufacturer { more_follow: false, data: [] }] = &items[..] else {
            panic!("{items:?}")
        };
        prop_assert_eq!((record.qualifiers, record.coding, &*record.data), (qualifiers, coding, &data[..]));
        prop_assert_eq!((record.vib.vif, record.vib.text), (vif, text.as_deref()));
        prop_assert_eq!(record.vib.extensions, &extensions[..]);
        prop_assert_eq!(&record.head, &composed.head);
        hold_records(&bytes);
        let body = [&[control::RSP_UD, 5, 0x78], &bytes[..]].concat();
        if body.len() <= 255 {
            prop_assert_eq!(hold(&sealed(&body)), Ok(()));
        }
    }

    #[test]
    fn numbers_read_back_the_same(number in -999_999_999_999_999_999..=999_999_999_999_999_999i64, bytes in 1..=8u8) {
        // What fits in so many bytes, and in one digit less than so many bytes of two, as the sign takes one.
        let number = number >> (64 - 8 * u32::from(bytes));
        let data = &number.to_le_bytes()[..bytes.into()];
        let read = |coding, data: &[u8], signed| Record::new(Qualifiers::default(), coding, &[], data).value(signed);
        let whole = |number| Value::Number(Decimal::whole(number).unwrap());
        prop_assert_eq!(read(Coding::Binary(bytes), data, true), whole(number));
        let variable = [&[0xE0 | bytes], data].concat();
        prop_assert_eq!(read(Coding::Variable, &variable, true), whole(number));
        let digits = number % 10i64.pow(2 * u32::from(bytes) - 1);
        let mut rest = digits.unsigned_abs();
        let mut data: Vec<u8> = Vec::new();
        for _ in 0..bytes {
            data.push((rest % 100 / 10 * 16 + rest % 10) as u8);
            rest /= 100;
        }
        let variable = [&[if digits < 0 { 0xD0 } else { 0xC0 } | bytes], &data[..]].concat();
        prop_assert_eq!(read(Coding::Variable, &variable, true), whole(digits));
        if digits < 0 {
            *data.last_mut().unwrap() |= 0xF0;
        }
        prop_assert_eq!(read(Coding::Bcd(bytes), &data, true), whole(digits));
    }
}
