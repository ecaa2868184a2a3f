//! Rows as comma-separated values (RFC 4180, lines end in LF), which spreadsheets and data frames read without being told how.
//!
//! Texts came from meters and are hostile here, too: they are escaped as for terminals, and one that a spreadsheet would take for a
//! formula begins with an apostrophe. Numbers stay numbers, also negative ones. Times are UTC, to the millisecond. What is not known
//! is empty.

use std::{fmt::Display, io};

use jiff::Timestamp;

use crate::reading::escape;

/// One value of a row.
pub(super) enum Cell<'c> {
    /// What a meter or somebody else said.
    Text(&'c str),
    /// A number, or a name that is ours: written as it is.
    Plain(&'c dyn Display),
    /// An instant.
    Time(Timestamp),
    /// Nothing is known.
    Empty,
}

impl<'c> Cell<'c> {
    /// A number or a name of ours, where there is one.
    pub(super) fn of<T: Display>(value: Option<&'c T>) -> Self {
        value.map_or(Self::Empty, |value| Self::Plain(value))
    }

    /// An instant, where there is one.
    pub(super) fn time(at: Option<impl Into<Timestamp>>) -> Self {
        at.map_or(Self::Empty, |at| Self::Time(at.into()))
    }
}

/// Writes rows.
pub(super) struct Rows<W: io::Write> {
    to: csv::Writer<W>,
    text: String,
}

impl<W: io::Write> Rows<W> {
    /// Begins with the names of the columns.
    pub(super) fn new(to: W, heads: &[&str]) -> io::Result<Self> {
        let mut to = csv::Writer::from_writer(to);
        to.write_record(heads).map_err(io_error)?;
        Ok(Self { to, text: String::new() })
    }

    /// One row: as many cells as there are columns.
    pub(super) fn row(&mut self, cells: &[Cell<'_>]) -> io::Result<()> {
        use std::fmt::Write as _;
        for cell in cells {
            self.text.clear();
            // Writing to a String cannot fail.
            let _ = match cell {
                Cell::Text(text) => {
                    self.text.push_str(&harmless(text));
                    Ok(())
                }
                Cell::Plain(plain) => write!(self.text, "{plain}"),
                Cell::Time(at) => write!(self.text, "{at:.3}"),
                Cell::Empty => Ok(()),
            };
            self.to.write_field(&self.text).map_err(io_error)?;
        }
        self.to.write_record(None::<&[u8]>).map_err(io_error)
    }

    /// Writes what is still in memory.
    pub(super) fn finish(mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// A text that neither a terminal nor a spreadsheet takes for more than a text. Those that a meter ought to have stay as they are.
pub(super) fn harmless(text: &str) -> String {
    let text = escape(text.as_bytes());
    // TAB and CR, with which a formula may begin as well, are escaped.
    if text.starts_with(['=', '+', '-', '@']) { format!("'{text}") } else { text }
}

fn io_error(error: csv::Error) -> io::Error {
    match error.into_kind() {
        csv::ErrorKind::Io(error) => error,
        other => io::Error::other(format!("{other:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::unit::Decimal;

    #[test]
    fn rows_are_read_back_and_texts_are_no_formulas() {
        let (number, at) = (Decimal::parse(b"-0.50").unwrap(), Timestamp::from_millisecond(1_795_287_600_000).unwrap());
        let mut written = Vec::new();
        let mut rows = Rows::new(&mut written, &["text", "number", "at", "none"]).unwrap();
        let texts = ["E0043", "=1+1", "+1", "-1", "@x", "\t=1", "\r=1", "a,b", "a\"b", "a\nb\x1b[2J", "'", ""];
        for text in texts {
            rows.row(&[Cell::Text(text), Cell::of(Some(&number)), Cell::time(Some(at)), Cell::of(None::<&Decimal>)])
                .unwrap();
        }
        rows.finish().unwrap();
        let expected =
            ["E0043", "'=1+1", "'+1", "'-1", "'@x", "\\x09=1", "\\x0d=1", "a,b", "a\"b", "a\\x0ab\\x1b[2J", "'", ""];
        let mut read = csv::Reader::from_reader(&written[..]);
        let read: Vec<Vec<String>> =
            read.records().map(|record| record.unwrap().iter().map(str::to_owned).collect()).collect();
        assert_eq!(read.len(), expected.len());
        for (row, text) in read.iter().zip(expected) {
            assert_eq!(*row, [text, "-0.50", "2026-11-21T19:00:00.000Z", ""]);
        }
    }

    #[test]
    fn a_row_of_another_length_is_refused() {
        let mut rows = Rows::new(Vec::new(), &["one", "two"]).unwrap();
        assert!(rows.row(&[Cell::Empty]).is_err());
    }
}
