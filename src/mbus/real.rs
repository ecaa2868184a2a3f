//! Real numbers of 32 bits as decimals.
//!
//! The only place where a value is a float, and no arithmetic is done with it: the bits become the shortest
//! decimal that reads back as the same bits, as the standard library prints it.

use super::value::Value;
use crate::unit::Decimal;

/// From four bytes, lowest first (IEEE 754 binary32, type H of EN 13757-3).
pub(super) fn shortest(bytes: [u8; 4]) -> Value {
    let real = f32::from_le_bytes(bytes);
    if !real.is_finite() {
        return Value::NotANumber;
    }
    Decimal::parse(real.to_string().as_bytes()).map_or(Value::TooLong, Value::Number)
}
