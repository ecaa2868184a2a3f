//! Instants as the server keeps them: microseconds since 2000, in a `timestamptz`.
//!
//! Enters and leaves: milliseconds since 1970 UTC. What is before 4713 BC, where the server's calendar begins, is that.

use sqlx::{
    Decode, Encode, Postgres, Type,
    encode::IsNull,
    error::BoxDynError,
    postgres::{PgArgumentBuffer, PgHasArrayType, PgTypeInfo, PgValueFormat, PgValueRef},
};

/// Milliseconds from 1970 to 2000, UTC.
const EPOCH: i64 = 946_684_800_000;
/// 4713-11-24 BC, the first instant that the server knows.
const FIRST: i64 = -210_866_803_200_000;

/// Milliseconds since 1970 UTC, as a column or parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Millis(pub(super) i64);

impl Type<Postgres> for Millis {
    fn type_info() -> PgTypeInfo {
        PgTypeInfo::with_name("TIMESTAMPTZ")
    }
}

impl PgHasArrayType for Millis {
    fn array_type_info() -> PgTypeInfo {
        PgTypeInfo::with_name("TIMESTAMPTZ[]")
    }
}

impl Encode<'_, Postgres> for Millis {
    fn encode_by_ref(&self, buffer: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
        // Every instant of our calendar, which ends in 9999, is far within the range.
        let micros = self.0.max(FIRST).saturating_sub(EPOCH).saturating_mul(1000);
        <i64 as Encode<Postgres>>::encode(micros, buffer)
    }
}

impl Decode<'_, Postgres> for Millis {
    fn decode(value: PgValueRef<'_>) -> Result<Self, BoxDynError> {
        match value.format() {
            PgValueFormat::Binary => {
                let micros = i64::from_be_bytes(value.as_bytes()?.try_into()?);
                Ok(Self(micros.div_euclid(1000).saturating_add(EPOCH)))
            }
            PgValueFormat::Text => Err("an instant as text".into()),
        }
    }
}
