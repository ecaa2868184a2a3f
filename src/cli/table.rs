//! Registers for people and for programs.
//!
//! Text that came from a meter is escaped: a terminal must not be told anything by it.

use std::fmt::Write as _;

use crate::{
    payload,
    reading::{Qualifiers, Reading, Report, escape},
};

/// Rows in aligned columns.
#[derive(Default)]
pub(super) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(super) fn new(heads: &[&str]) -> Self {
        Self { rows: vec![heads.iter().map(|head| (*head).to_owned()).collect()] }
    }

    pub(super) fn row(&mut self, row: Vec<String>) {
        self.rows.push(row);
    }

    /// Lines without trailing blanks. Column `right` is aligned to the right.
    pub(super) fn lines(&self, right: usize) -> Vec<String> {
        self.lines_aligned(&[right])
    }

    /// Lines without trailing blanks. The columns `right` are aligned to the right.
    pub(super) fn lines_aligned(&self, right: &[usize]) -> Vec<String> {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width =
            |column: usize| self.rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
        let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
        let line = |row: &Vec<String>| {
            let mut line = String::new();
            for (index, (cell, width)) in row.iter().zip(&widths).enumerate() {
                let _ = if right.contains(&index) {
                    write!(line, "{cell:>width$}  ")
                } else {
                    write!(line, "{cell:<width$}  ")
                };
            }
            line.trim_end().to_owned()
        };
        self.rows.iter().map(line).collect()
    }
}

/// Registers as [`Table`] rows.
pub(super) fn registers() -> Table {
    Table::new(&["METER", "MEDIUM", "REGISTER", "VALUE", "UNIT", "AT", "CLOCK", ""])
}

/// The columns of [`registers`]: the value is aligned to the right.
pub(super) const VALUE: usize = 3;

pub(super) fn register_row(report: &Report<String>, reading: &Reading) -> Vec<String> {
    vec![
        escape(report.meter.as_bytes()),
        report.medium.name().to_owned(),
        reading.register.to_string(),
        reading.value.to_string(),
        reading.unit.to_string(),
        reading.at.or(report.measured_at).map_or_else(String::new, |at| at.to_string()),
        report.clock.name().to_owned(),
        remarks(reading).into_iter().map(|(name, value)| format!("{name} {value}")).collect::<Vec<_>>().join(", "),
    ]
}

/// A register as a line of JSON.
pub(super) fn register_json(report: &Report<String>, reading: &Reading) -> String {
    let mut json = String::from("{\"meter\":");
    payload::string(&mut json, &report.meter);
    let (medium, register, value) = (report.medium.name(), &reading.register, reading.value);
    let _ = write!(json, ",\"medium\":\"{medium}\",\"register\":\"{register}\",\"value\":{value},\"unit\":");
    payload::string(&mut json, reading.unit.as_str());
    match reading.at.or(report.measured_at) {
        Some(at) => drop(write!(json, ",\"at\":\"{at}\"").is_ok()),
        None => json.push_str(",\"at\":null"),
    }
    let _ = write!(json, ",\"clock\":\"{}\",\"qualifiers\":{{", report.clock.name());
    for (index, (name, value)) in remarks(reading).into_iter().enumerate() {
        json.push_str(if index > 0 { ",\"" } else { "\"" });
        json.push_str(name);
        json.push_str("\":");
        if value.bytes().all(|byte| byte.is_ascii_digit()) {
            json.push_str(&value);
        } else {
            payload::string(&mut json, &value);
        }
    }
    json.push_str("}}");
    json
}

/// What makes a reading another than the value of now.
pub(super) fn remarks(reading: &Reading) -> Vec<(&'static str, String)> {
    let Qualifiers { storage, tariff, subunit, function } = reading.qualifiers;
    let numbers = [("storage", storage), ("tariff", u64::from(tariff)), ("subunit", u64::from(subunit))];
    let mut remarks: Vec<_> = numbers
        .into_iter()
        .filter(|(_, number)| *number != 0)
        .map(|(name, number)| (name, number.to_string()))
        .collect();
    remarks.extend(function.name().map(|function| ("function", function.to_owned())));
    remarks.extend(reading.suspect.map(|suspect| ("suspect", suspect.name().to_owned())));
    remarks
}
