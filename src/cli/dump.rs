//! Pieces of telegrams for people and for programs: what `decode --explain` prints.

use std::io;

use anstream::{AutoStream, ColorChoice};
use anstyle::{AnsiColor, Style};

use super::{Failure, Format, Output, decode::Place};
use crate::{
    explain::{Mark, Part, Piece},
    payload,
    reading::escape,
};

/// So many characters of the bytes of a part are shown; JSON has all of them.
const SHOWN: usize = 30;

/// Prints pieces.
pub(super) struct Dump {
    format: Format,
    /// A terminal that wants it: standard output, NO_COLOR, CLICOLOR and CLICOLOR_FORCE say so.
    colour: bool,
}

impl Dump {
    pub(super) fn new(format: Format) -> Self {
        Self { format, colour: AutoStream::choice(&io::stdout()) != ColorChoice::Never }
    }

    pub(super) fn print(&self, place: &Place<'_>, piece: &Piece, output: &mut Output) -> Result<(), Failure> {
        if self.format == Format::Json {
            return output.line(&in_json(place, piece));
        }
        let mut at = piece.offset.to_string();
        if let Some((port, line)) = place.port {
            at = format!("port {}, line {line}, byte {at}", escape(port.as_bytes()));
        }
        self.piece(&at, piece, 0, output)
    }

    fn piece(&self, at: &str, piece: &Piece, depth: usize, output: &mut Output) -> Result<(), Failure> {
        let indent = "  ".repeat(depth);
        let bytes = if piece.bytes.len() == 1 { "byte" } else { "bytes" };
        let what = self.paint(BOLD, &format!("{}, {} {bytes}", piece.what, piece.bytes.len()));
        let meaning = self.marked(piece.mark, &piece.meaning);
        output.line(&format!("{indent}{at}: {what}{}{meaning}", gap(&piece.meaning)))?;
        self.parts(piece, &piece.parts, depth, 1, output)?;
        for inside in &piece.inside {
            let at = format!("inside, byte {}", inside.offset);
            self.piece(&at, inside, depth.saturating_add(1), output)?;
        }
        if depth == 0 { output.line("") } else { Ok(()) }
    }

    fn parts(
        &self,
        piece: &Piece,
        parts: &[Part],
        indent: usize,
        depth: usize,
        output: &mut Output,
    ) -> Result<(), Failure> {
        for part in parts {
            let bytes = piece.of(part);
            // The one above shows it.
            if depth > 1 && bytes == b"\r\n" {
                continue;
            }
            let margin = "  ".repeat(indent);
            let range = self.paint(DIM, &format!("{:>5}..{:<5}", part.from, part.to));
            let shown = self.paint(CYAN, &format!("{:<SHOWN$}", shortened(bytes, piece.is_binary)));
            let name = if depth == 1 { self.paint(BOLD, &part.what) } else { part.what.to_string() };
            let meaning = self.marked(part.mark, &part.meaning);
            let inner = "  ".repeat(depth);
            let line = format!("{margin}{range}  {shown}{inner}{name}{}{meaning}", gap(&part.meaning));
            output.line(line.trim_end())?;
            self.parts(piece, &part.parts, indent, depth.saturating_add(1), output)?;
        }
        Ok(())
    }

    fn marked(&self, mark: Mark, text: &str) -> String {
        match mark {
            Mark::Right => self.paint(GREEN, text),
            Mark::Unknown => self.paint(YELLOW, text),
            Mark::Wrong => self.paint(RED, text),
            _ => text.to_owned(),
        }
    }

    fn paint(&self, style: Style, text: &str) -> String {
        if self.colour && !text.is_empty() { format!("{style}{text}{style:#}") } else { text.to_owned() }
    }
}

const BOLD: Style = Style::new().bold();
const DIM: Style = Style::new().dimmed();
const CYAN: Style = AnsiColor::Cyan.on_default();
const GREEN: Style = AnsiColor::Green.on_default();
const YELLOW: Style = AnsiColor::Yellow.on_default();
const RED: Style = AnsiColor::Red.on_default().bold();

fn gap(meaning: &str) -> &'static str {
    if meaning.is_empty() { "" } else { ": " }
}

/// Bytes as they fit into their column.
fn shortened(bytes: &[u8], is_binary: bool) -> String {
    let mut text = String::new();
    for &byte in bytes {
        let next = match byte {
            _ if is_binary => format!("{}{byte:02X}", if text.is_empty() { "" } else { " " }),
            b'\r' => r"\r".to_owned(),
            b'\n' => r"\n".to_owned(),
            // As it is: nobody reads this back.
            b'\\' => r"\".to_owned(),
            _ => escape(&[byte]),
        };
        if text.len().saturating_add(next.len()) > SHOWN.saturating_sub(4) {
            text.push_str("...");
            break;
        }
        text.push_str(&next);
    }
    text
}

/// With `port` and `line` in front where the piece is from a capture.
fn in_json(place: &Place<'_>, piece: &Piece) -> String {
    let json = piece.to_json();
    let Some((port, line)) = place.port else { return json };
    let mut text = String::from("{\"port\":");
    payload::string(&mut text, port);
    text.push_str(&format!(",\"line\":{line},"));
    text.push_str(json.strip_prefix('{').unwrap_or(&json));
    text
}
