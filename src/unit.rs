//! Exact values and their units.
//!
//! Enters: digits from a wire. Leaves: [`Decimal`], a whole number and a count of decimals, and
//! [`Unit`]. Values never pass through floating point; what does not fit is refused, never rounded.
//!
//! Not supported: more than 18 digits, or more than 18 decimals.

use std::{borrow::Cow, fmt};

/// A number exactly as it was written: `mantissa` x 10^-`scale`. Keeps trailing zeros, so `0.000`
/// stays three decimals. Two values are equal when both parts are; see [`Decimal::same_amount`].
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Decimal {
    mantissa: i64,
    scale: u8,
}

/// Most digits, and most decimals, of a [`Decimal`]: any such number fits an i64.
pub const MAX_DIGITS: u8 = 18;

impl Decimal {
    /// `mantissa` x 10^-`scale`. None when `scale` or the digits of `mantissa` exceed [`MAX_DIGITS`].
    pub const fn new(mantissa: i64, scale: u8) -> Option<Self> {
        if scale > MAX_DIGITS || mantissa.unsigned_abs() >= 10u64.pow(MAX_DIGITS as u32) {
            return None;
        }
        Some(Self { mantissa, scale })
    }

    /// A whole number. None beyond 18 digits.
    pub const fn whole(value: i64) -> Option<Self> {
        Self::new(value, 0)
    }

    /// `count` ten-thousandths: for factors of conversion.
    pub const fn per_ten_thousand(count: u8) -> Self {
        Self { mantissa: count as i64, scale: 4 }
    }

    /// The digits without the point.
    pub const fn mantissa(self) -> i64 {
        self.mantissa
    }

    /// How many of the digits stand behind the point.
    pub const fn scale(self) -> u8 {
        self.scale
    }

    /// Reads `[+-]digits[.digits]`: at least one digit before the point, and one behind it if there is
    /// one. Leading zeros are allowed. None for anything else, or for more than 18 significant digits.
    #[inline]
    pub fn parse(text: &[u8]) -> Option<Self> {
        let (value, rest) = Self::parse_prefix(text)?;
        rest.is_empty().then_some(value)
    }

    /// Reads such a number at the start of `text`; returns it with the rest.
    #[inline]
    pub fn parse_prefix(text: &[u8]) -> Option<(Self, &[u8])> {
        Self::parse_short(text).or_else(|| Self::parse_long(text))
    }

    /// A number as most are: without a sign, with one to seven digits before the point, and one to seven
    /// behind it if there is one; in a text that goes on behind it.
    #[inline]
    fn parse_short(text: &[u8]) -> Option<(Self, &[u8])> {
        const POWERS: [i64; 8] = [1, 10, 100, 1_000, 10_000, 100_000, 1_000_000, 10_000_000];
        let (count, whole) = eight_digits(*text.first_chunk()?);
        let behind = text.get(count..)?;
        if count % 8 == 0 {
            return None;
        }
        let [b'.', fraction @ ..] = behind else { return Some((Self { mantissa: whole, scale: 0 }, behind)) };
        let (count, part) = eight_digits(*fraction.first_chunk()?);
        if count == 0 {
            return None;
        }
        // Fourteen digits at most.
        let mantissa = whole.wrapping_mul(*POWERS.get(count)?).wrapping_add(part);
        Some((Self { mantissa, scale: count as u8 }, fraction.get(count..)?))
    }

    fn parse_long(text: &[u8]) -> Option<(Self, &[u8])> {
        let (negative, text) = match text {
            [b'-', text @ ..] => (true, text),
            [b'+', text @ ..] => (false, text),
            text => (false, text),
        };
        let (whole, rest) = digits(text, 0)?;
        let (mantissa, scale, rest) = match rest {
            [b'.', fraction @ ..] => {
                let (mantissa, rest) = digits(fraction, whole)?;
                (mantissa, fraction.len().saturating_sub(rest.len()), rest)
            }
            rest => (whole, 0, rest),
        };
        let mantissa = if negative { mantissa.wrapping_neg() } else { mantissa };
        Some((Self::new(mantissa, u8::try_from(scale).ok()?)?, rest))
    }

    /// This value x 10^`exponent`, exactly: for prefixes such as kilo (3) or milli (-3). Decimals are
    /// added or taken away, never rounded; None when the result needs more than 18 digits.
    pub fn shift(self, exponent: i8) -> Option<Self> {
        let scale = i16::from(self.scale).checked_sub(i16::from(exponent))?;
        if let Ok(scale) = u8::try_from(scale) {
            return Self::new(self.mantissa, scale);
        }
        let factor = 10i64.checked_pow(u32::from(scale.unsigned_abs()))?;
        Self::new(self.mantissa.checked_mul(factor)?, 0)
    }

    /// The exact product. None when it needs more than 18 digits.
    pub fn times(self, factor: Self) -> Option<Self> {
        Self::new(self.mantissa.checked_mul(factor.mantissa)?, self.scale.checked_add(factor.scale)?)
    }

    /// The exact difference, with the decimals of the finer of both. None when it needs more than 18 digits.
    pub fn minus(self, other: Self) -> Option<Self> {
        let scale = self.scale.max(other.scale);
        let at_scale = |value: Self| {
            let factor = 10i64.checked_pow(scale.checked_sub(value.scale)?.into())?;
            value.mantissa.checked_mul(factor)
        };
        Self::new(at_scale(self)?.checked_sub(at_scale(other)?)?, scale)
    }

    /// Whether both are the same amount, however many decimals they are written with.
    pub fn same_amount(self, other: Self) -> bool {
        let (fine, coarse) = if self.scale >= other.scale { (self, other) } else { (other, self) };
        let gap = u32::from(fine.scale.saturating_sub(coarse.scale));
        i128::from(fine.mantissa) == i128::from(coarse.mantissa).saturating_mul(10i128.saturating_pow(gap))
    }
}

/// One or more digits behind those of `value`; returns both as one number, with the rest of `text`. None
/// beyond [`MAX_DIGITS`].
fn digits(text: &[u8], mut value: i64) -> Option<(i64, &[u8])> {
    const FULL: i64 = 10i64.pow(MAX_DIGITS as u32 - 1);
    let mut rest = text;
    if let (0, Some(chunk)) = (value, text.first_chunk()) {
        let (count, number) = eight_digits(*chunk);
        (value, rest) = (number, text.get(count..)?);
    }
    while let [byte @ b'0'..=b'9', tail @ ..] = rest {
        if value >= FULL {
            return None;
        }
        value = value.wrapping_mul(10).wrapping_add(i64::from(byte.wrapping_sub(b'0')));
        rest = tail;
    }
    (rest.len() < text.len()).then_some((value, rest))
}

/// How many digits stand at the beginning of `text`, and their number: without a loop, by arithmetic on all
/// eight bytes in one word.
#[inline]
fn eight_digits(text: [u8; 8]) -> (usize, i64) {
    const ONES: u64 = u64::from_le_bytes([1; 8]);
    // A digit becomes 0 to 9; anything else sets the highest bit of its byte in `others`. Only such a byte
    // carries into the bytes behind it, which do not matter any more.
    let values = u64::from_le_bytes(text) ^ ONES.wrapping_mul(0x30);
    let others = (values.wrapping_add(ONES.wrapping_mul(0x76)) | values) & ONES.wrapping_mul(0x80);
    let bits = others.trailing_zeros() & !7;
    if bits == 0 {
        return (0, 0);
    }
    // The digits move to the upper end, where the last is the lowest in value; zeros come before them.
    let values = values.wrapping_shl(64u32.wrapping_sub(bits));
    // Pairs, then pairs of pairs, then all: each sum stands in the upper half of where its terms stood.
    let pairs = values.wrapping_mul(10).wrapping_add(values >> 8);
    const EVERY_OTHER: u64 = 0x0000_00FF_0000_00FF;
    let upper = (pairs & EVERY_OTHER).wrapping_mul(100 + (1_000_000 << 32));
    let lower = ((pairs >> 16) & EVERY_OTHER).wrapping_mul(1 + (10_000 << 32));
    ((bits / 8) as usize, (upper.wrapping_add(lower) >> 32) as i64)
}

/// Plain decimals, all of them: `-0.50`, `3432.827`, `0.000`.
impl fmt::Display for Decimal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.mantissa < 0 { "-" } else { "" };
        let digits = self.mantissa.unsigned_abs();
        if self.scale == 0 {
            return write!(f, "{sign}{digits}");
        }
        // 10^18 fits a u64, and `scale` is at most 18.
        let unit = 10u64.saturating_pow(u32::from(self.scale));
        let (whole, fraction) = (digits.div_euclid(unit), digits.rem_euclid(unit));
        write!(f, "{sign}{whole}.{fraction:0width$}", width = usize::from(self.scale))
    }
}

impl fmt::Debug for Decimal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// A unit as the field writes it (`kWh`, `m3`, `GJ`); empty for a plain count.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Unit(Cow<'static, str>);

impl Unit {
    /// A count, no unit.
    pub const NONE: Self = Self(Cow::Borrowed(""));
    /// Kilowatt-hour.
    pub const KWH: Self = Self(Cow::Borrowed("kWh"));
    /// Kilovolt-ampere-reactive-hour.
    pub const KVARH: Self = Self(Cow::Borrowed("kvarh"));
    /// Kilowatt.
    pub const KW: Self = Self(Cow::Borrowed("kW"));
    /// Volt.
    pub const V: Self = Self(Cow::Borrowed("V"));
    /// Ampere.
    pub const A: Self = Self(Cow::Borrowed("A"));
    /// Gigajoule.
    pub const GJ: Self = Self(Cow::Borrowed("GJ"));
    /// Cubic metre.
    pub const M3: Self = Self(Cow::Borrowed("m3"));
    /// Kilovolt-ampere-reactive.
    pub const KVAR: Self = Self(Cow::Borrowed("kvar"));
    /// Kilovolt-ampere.
    pub const KVA: Self = Self(Cow::Borrowed("kVA"));
    /// Hertz.
    pub const HZ: Self = Self(Cow::Borrowed("Hz"));
    /// Second.
    pub const S: Self = Self(Cow::Borrowed("s"));

    /// A unit known when this was compiled: at most 16 printable ASCII characters.
    pub const fn named(text: &'static str) -> Self {
        Self(Cow::Borrowed(text))
    }

    /// From a text of at most 16 printable ASCII characters; None for anything else.
    pub fn from_text(text: &str) -> Option<Self> {
        const KNOWN: [Unit; 12] = [
            Unit::NONE,
            Unit::KWH,
            Unit::KVARH,
            Unit::KW,
            Unit::V,
            Unit::A,
            Unit::GJ,
            Unit::M3,
            Unit::KVAR,
            Unit::KVA,
            Unit::HZ,
            Unit::S,
        ];
        if let Some(known) = KNOWN.iter().find(|unit| unit.as_str() == text) {
            return Some(known.clone());
        }
        (text.len() <= 16 && text.bytes().all(|byte| byte.is_ascii_graphic()))
            .then(|| Self(Cow::Owned(text.to_owned())))
    }

    /// The text, such as `kWh`.
    pub const fn as_str(&self) -> &str {
        match &self.0 {
            Cow::Borrowed(text) => text,
            Cow::Owned(text) => text.as_str(),
        }
    }
}

impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_keep_their_decimals() {
        for (text, shown) in [
            ("003432.827", "3432.827"),
            ("000000.000", "0.000"),
            ("00005", "5"),
            ("-063", "-63"),
            ("+1.50", "1.50"),
            ("-0.5", "-0.5"),
            ("999999999999999999", "999999999999999999"),
            ("0.000000000000000001", "0.000000000000000001"),
        ] {
            assert_eq!(Decimal::parse(text.as_bytes()).unwrap().to_string(), shown);
        }
    }

    #[test]
    fn anything_else_is_no_value() {
        for text in ["", "-", ".5", "5.", "1.2.3", "1e3", "12 ", "0x1", "9999999999999999999", "1000000000000000000"] {
            assert_eq!(Decimal::parse(text.as_bytes()), None, "{text}");
        }
    }

    /// Eight bytes at once must say what one byte after the other says, whatever stands behind the digits.
    #[test]
    fn numbers_of_every_length_and_ending_are_read() {
        let digits = "907651234098765432";
        for length in 1..=digits.len() {
            for behind in ["", "*", ".", ")\r\n", ":", "/", "\u{ff}", "*kWh)\r\n1-0:1.8.1", ";;;;;;;;;"] {
                let (number, _) = digits.split_at(length);
                let text = format!("{number}{behind}");
                let read = Decimal::parse_prefix(text.as_bytes());
                let expected = Decimal::whole(number.parse().unwrap()).unwrap();
                match behind {
                    "." => assert_eq!(read, None, "{text}"),
                    _ => assert_eq!(read, Some((expected, behind.as_bytes())), "{text}"),
                }
                let text = format!("00000000000000{number}.25{behind}");
                match length {
                    ..=16 => assert_eq!(read_back(&text, behind), format!("{number}.25"), "{text}"),
                    _ => assert_eq!(Decimal::parse_prefix(text.as_bytes()), None, "{text}"),
                }
            }
        }
    }

    fn read_back(text: &str, behind: &str) -> String {
        let (value, rest) = Decimal::parse_prefix(text.as_bytes()).unwrap();
        assert_eq!(rest, behind.as_bytes());
        value.to_string()
    }

    #[test]
    fn prefixes_are_exact() {
        let value = Decimal::parse(b"2124.86").unwrap();
        assert_eq!(value.shift(-3).unwrap().to_string(), "2.12486");
        assert_eq!(value.shift(3).unwrap().to_string(), "2124860");
        assert_eq!(value.shift(-17), None);
        let kwh_in_gj = Decimal::new(36, 4).unwrap();
        assert_eq!(Decimal::parse(b"1234.5").unwrap().times(kwh_in_gj).unwrap().to_string(), "4.44420");
    }

    #[test]
    fn amounts_compare_across_decimals() {
        let amount = |text: &str| Decimal::parse(text.as_bytes()).unwrap();
        assert!(amount("1.50").same_amount(amount("1.5")));
        for (after, before, difference) in
            [("1.50", "1.4", "0.10"), ("7", "10.001", "-3.001"), ("0.000", "0", "0.000"), ("-2", "-5", "3")]
        {
            assert_eq!(amount(after).minus(amount(before)).unwrap().to_string(), difference);
        }
        assert_eq!(amount("999999999999999999").minus(amount("-1")), None);
        assert_eq!(amount("999999999999").minus(amount("0.0000001")), None);
        assert!(!amount("1.51").same_amount(amount("1.5")));
    }
}
