//! Rows become what the commands ask for, whichever database they were in.
//!
//! Enters: the columns of a row. Leaves: a report, a meter, a register's values, as they entered; or an error, where this program did
//! not write the row.

use super::{CLOCKS, Counts, Meter, Quarter, Series, Stored, unreadable};
use crate::{
    layout::Layout,
    moment::Moment,
    reading::{Medium, Register, Report},
    unit::{Decimal, Unit},
};

/// A row of `message`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) at: i64,
    pub(super) n: i64,
    pub(super) utc_offset: i64,
    pub(super) clock: i64,
    pub(super) received_at: i64,
    pub(super) layout: i64,
    pub(super) remark: Option<i64>,
    pub(super) values: Vec<i64>,
}

/// A row of `meter`: id, name, medium, code of the medium, protocol, gateway, predecessor, first and last seen (ms).
pub(super) type MeterColumns = (i64, String, String, i64, String, String, Option<String>, i64, i64);

impl Message {
    /// The message, with the layout and the remark that its row names.
    pub(super) fn stored(&self, meter: &Meter, layout: &Layout, remark: Option<&str>) -> Result<Stored, sqlx::Error> {
        let clock = usize::try_from(self.clock).ok().and_then(|code| CLOCKS.get(code));
        let offset = i32::try_from(self.utc_offset).ok();
        let at = offset.and_then(|offset| Moment::from_millis(self.at, offset));
        let (Some(clock), Some(at), Some(received_at)) = (clock, at, Moment::from_millis(self.received_at, 0)) else {
            return Err(unreadable(format!("a message of {} is out of range", meter.name)));
        };
        let mut report = Report {
            meter: meter.name.clone(),
            medium: meter.medium,
            protocol: meter.protocol.clone().into(),
            measured_at: Some(at),
            clock: *clock,
            readings: Vec::new(),
            info: Vec::new(),
            events: Vec::new(),
            unknown: Vec::new(),
        };
        layout.join(&self.values, remark, &mut report).map_err(unreadable)?;
        Ok(Stored { key: (self.at, self.n), report, received_at })
    }
}

/// A meter from its columns.
pub(super) fn meter(columns: MeterColumns) -> Result<Meter, sqlx::Error> {
    let (id, name, medium, code, protocol, gateway, predecessor, first_seen, last_seen) = columns;
    let medium = u8::try_from(code).ok().and_then(|code| Medium::from_name(&medium, code));
    let medium = medium.ok_or_else(|| unreadable(format!("the medium of {name} is unknown")))?;
    Ok(Meter { id, name, medium, protocol, gateway, predecessor, first_seen, last_seen })
}

/// A series of a meter from its columns: id, register, unit, scale.
pub(super) fn series(meter: i64, columns: (i64, String, String, i64)) -> Result<Series, sqlx::Error> {
    let (id, register, unit, scale) = columns;
    let wrong = || unreadable(format!("series {id} is unknown: {register} in {unit}, {scale} decimals"));
    Ok(Series {
        id,
        meter,
        register: Register::from_text(&register).ok_or_else(wrong)?,
        unit: Unit::from_text(&unit).ok_or_else(wrong)?,
        scale: u8::try_from(scale).map_err(|_| wrong())?,
    })
}

/// How much a database holds from its columns: meters, messages, refused messages.
pub(super) fn counts((meters, messages, refused): (i64, i64, i64)) -> Counts {
    let [meters, messages, refused] = [meters, messages, refused].map(i64::unsigned_abs);
    Counts { meters, messages, refused }
}

/// A quarter-hour of a series from its columns: its number, milliseconds behind its beginning, value.
pub(super) fn quarter(series: &Series, columns: (i64, i64, i64)) -> Result<Quarter, sqlx::Error> {
    let (quarter, late, value) = columns;
    let value = Decimal::new(value, series.scale);
    let value = value.ok_or_else(|| unreadable(format!("series {} is out of range", series.id)))?;
    Ok(Quarter { quarter, at: quarter.saturating_mul(900_000).saturating_add(late), value })
}
