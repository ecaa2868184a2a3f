//! Rows as Apache Parquet: each column with its own type.
//!
//! Values are DECIMAL(38, 18), which holds every value exactly; `decimals` is how many of them the meter wrote. Times are
//! TIMESTAMP(ms, UTC). Texts are as the meter said them: nothing here is shown or taken for a formula.

use std::{io, io::Write, sync::Arc};

use jiff::Timestamp;
use parquet::{
    basic::Compression,
    data_type::{ByteArray, ByteArrayType, DataType, FixedLenByteArray, FixedLenByteArrayType, Int32Type, Int64Type},
    errors::ParquetError,
    file::{
        properties::WriterProperties,
        writer::{SerializedFileWriter, SerializedRowGroupWriter},
    },
    schema::parser::parse_message_type,
};

use super::Row;
use crate::unit::MAX_DIGITS;

/// Rows that are written together, and held in memory until then.
const GROUP: usize = 100_000;

/// In the order in which [`Columns::write`] writes.
const SCHEMA: &str = "message readings {
    required binary meter (string);
    required binary medium (string);
    required binary register (string);
    required int64 measured_at (timestamp(millis, true));
    optional binary clock (string);
    required fixed_len_byte_array(16) value (decimal(38, 18));
    required int32 decimals;
    required binary unit (string);
    required int64 storage;
    required int64 tariff;
    required int32 subunit;
    optional binary function (string);
    optional int64 at (timestamp(millis, true));
    optional binary suspect (string);
    optional int64 received_at (timestamp(millis, true));
}";

pub(super) struct Rows<W: Write + Send> {
    to: SerializedFileWriter<W>,
    columns: Columns,
}

/// A column of which some values may be missing.
struct Optional<T> {
    values: Vec<T>,
    /// 1 for each row that has a value.
    there: Vec<i16>,
}

impl<T> Default for Optional<T> {
    fn default() -> Self {
        Self { values: Vec::new(), there: Vec::new() }
    }
}

impl<T> Optional<T> {
    fn push(&mut self, value: Option<T>) {
        self.there.push(i16::from(value.is_some()));
        self.values.extend(value);
    }
}

#[derive(Default)]
struct Columns {
    meter: Vec<ByteArray>,
    medium: Vec<ByteArray>,
    register: Vec<ByteArray>,
    measured_at: Vec<i64>,
    clock: Optional<ByteArray>,
    value: Vec<FixedLenByteArray>,
    decimals: Vec<i32>,
    unit: Vec<ByteArray>,
    storage: Vec<i64>,
    tariff: Vec<i64>,
    subunit: Vec<i32>,
    function: Optional<ByteArray>,
    at: Optional<i64>,
    suspect: Optional<ByteArray>,
    received_at: Optional<i64>,
}

impl<W: Write + Send> Rows<W> {
    pub(super) fn new(to: W) -> io::Result<Self> {
        let schema = parse_message_type(SCHEMA).map_err(io_error)?;
        let properties = WriterProperties::builder().set_compression(Compression::SNAPPY).build();
        let to = SerializedFileWriter::new(to, Arc::new(schema), Arc::new(properties)).map_err(io_error)?;
        Ok(Self { to, columns: Columns::default() })
    }

    pub(super) fn row(&mut self, row: &Row<'_>) -> io::Result<()> {
        self.columns.push(row);
        if self.columns.meter.len() < GROUP { Ok(()) } else { self.write() }
    }

    fn write(&mut self) -> io::Result<()> {
        let mut group = self.to.next_row_group().map_err(io_error)?;
        std::mem::take(&mut self.columns).write(&mut group).map_err(io_error)?;
        group.close().map(drop).map_err(io_error)
    }

    pub(super) fn finish(mut self) -> io::Result<()> {
        if !self.columns.meter.is_empty() {
            self.write()?;
        }
        let mut to = self.to.into_inner().map_err(io_error)?;
        to.flush()
    }
}

impl Columns {
    fn push(&mut self, row: &Row<'_>) {
        let text = |text: &str| ByteArray::from(text.as_bytes().to_vec());
        let millis = |at: Timestamp| at.as_millisecond();
        let value = row.value;
        // At most 36 digits, which an i128 has room for.
        let missing = MAX_DIGITS.saturating_sub(value.scale());
        let amount = i128::from(value.mantissa()).saturating_mul(10i128.saturating_pow(missing.into()));
        self.meter.push(text(row.meter));
        self.medium.push(text(row.medium));
        self.register.push(text(row.register.as_str()));
        self.measured_at.push(millis(row.measured_at));
        self.clock.push(row.clock.map(text));
        self.value.push(ByteArray::from(amount.to_be_bytes().to_vec()).into());
        self.decimals.push(value.scale().into());
        self.unit.push(text(row.unit));
        self.storage.push(i64::try_from(row.qualifiers.storage).unwrap_or(i64::MAX));
        self.tariff.push(row.qualifiers.tariff.into());
        self.subunit.push(row.qualifiers.subunit.into());
        self.function.push(row.qualifiers.function.name().map(text));
        self.at.push(row.at.map(millis));
        self.suspect.push(row.suspect.map(text));
        self.received_at.push(row.received_at.map(millis));
    }

    fn write<W: Write + Send>(self, to: &mut SerializedRowGroupWriter<'_, W>) -> Result<(), ParquetError> {
        column::<ByteArrayType, _>(to, &self.meter, None)?;
        column::<ByteArrayType, _>(to, &self.medium, None)?;
        column::<ByteArrayType, _>(to, &self.register, None)?;
        column::<Int64Type, _>(to, &self.measured_at, None)?;
        column::<ByteArrayType, _>(to, &self.clock.values, Some(&self.clock.there))?;
        column::<FixedLenByteArrayType, _>(to, &self.value, None)?;
        column::<Int32Type, _>(to, &self.decimals, None)?;
        column::<ByteArrayType, _>(to, &self.unit, None)?;
        column::<Int64Type, _>(to, &self.storage, None)?;
        column::<Int64Type, _>(to, &self.tariff, None)?;
        column::<Int32Type, _>(to, &self.subunit, None)?;
        column::<ByteArrayType, _>(to, &self.function.values, Some(&self.function.there))?;
        column::<Int64Type, _>(to, &self.at.values, Some(&self.at.there))?;
        column::<ByteArrayType, _>(to, &self.suspect.values, Some(&self.suspect.there))?;
        column::<Int64Type, _>(to, &self.received_at.values, Some(&self.received_at.there))
    }
}

fn column<T: DataType, W: Write + Send>(
    to: &mut SerializedRowGroupWriter<'_, W>,
    values: &[T::T],
    there: Option<&[i16]>,
) -> Result<(), ParquetError> {
    let Some(mut column) = to.next_column()? else { return Err(ParquetError::EOF("a column too many".into())) };
    column.typed::<T>().write_batch(values, there, None)?;
    column.close()
}

fn io_error(error: ParquetError) -> io::Error {
    match error {
        ParquetError::External(error) => match error.downcast::<io::Error>() {
            Ok(error) => *error,
            Err(error) => io::Error::other(error),
        },
        error => io::Error::other(error),
    }
}
