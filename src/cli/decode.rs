//! `decode`: prints what telegrams say.

use std::{
    fs::File,
    io::{self, Read},
    path::PathBuf,
};

use super::{Failure, Format, Outcome, Output, table};
use crate::{
    p1::{Dialect, Form, Key, LineEnds, Reader, Transcript},
    payload, port,
    reading::{Clock, Identity, Report, escape},
};

/// What a meter that does not name itself is called: there is no gateway here.
const GATEWAY: &str = "decode";
/// Likewise for the port.
const PORT: &str = "p1";

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Captures of P1 telegrams, raw, as hex digits, hex dump, base64 or a log; `-` or none: standard input
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
    /// How to print them
    #[arg(long, value_enum, default_value_t = Format::Json)]
    format: Format,
    /// Whose telegrams they are, where that is not found right: netherlands, belgium, luxembourg, ...
    #[arg(long, value_name = "COUNTRY", value_parser = dialect)]
    dialect: Option<Dialect>,
    /// The key of encrypted telegrams: 32 hexadecimal digits, on a second line the authentication key if any
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
}

fn dialect(text: &str) -> Result<Dialect, String> {
    let named = Dialect::NAMES.iter().find(|(name, _)| *name == text).map(|(_, dialect)| *dialect);
    named.ok_or_else(|| format!("known are {}", Dialect::NAMES.map(|(name, _)| name).join(", ")))
}

pub(super) fn decode(arguments: &Arguments) -> Result<Outcome, Failure> {
    let key = arguments.key_file.as_deref().map(port::read_key).transpose().map_err(Failure::usage)?;
    let mut output = Output::new();
    let mut outcome = Outcome::Well;
    let stdin = [PathBuf::from("-")];
    let files = if arguments.files.is_empty() { &stdin[..] } else { &arguments.files };
    for file in files {
        let input: Box<dyn Read> = if file.as_os_str() == "-" {
            Box::new(io::stdin().lock())
        } else {
            match File::open(file) {
                Ok(input) => Box::new(input),
                Err(error) => {
                    eprintln!("{}: {error}", file.display());
                    outcome = Outcome::Partly;
                    continue;
                }
            }
        };
        let name = file.display().to_string();
        if decode_file(&name, input, arguments, key.clone(), &mut output)? == Outcome::Partly {
            outcome = Outcome::Partly;
        }
    }
    output.finish()?;
    Ok(outcome)
}

fn decode_file(
    name: &str,
    mut input: Box<dyn Read>,
    arguments: &Arguments,
    key: Option<Key>,
    output: &mut Output,
) -> Result<Outcome, Failure> {
    let mut reader = Reader::new(arguments.dialect, key);
    let mut buffer = vec![0u8; 64 * 1024];
    let mut transcript = Transcript::new();
    let (mut telegrams, mut rejected, mut restored, mut bytes) = (0u64, 0u64, 0u64, 0u64);
    loop {
        let count = match input.read(&mut buffer) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => {
                eprintln!("{name}: {error}");
                return Ok(Outcome::Partly);
            }
        };
        let read = buffer.get(..count).unwrap_or_default();
        bytes = bytes.saturating_add(count as u64);
        if count == 0 {
            reader.push(&transcript.end());
            reader.end();
        } else {
            reader.push(&transcript.push(read));
        }
        while let Some(piece) = reader.poll() {
            match piece {
                Ok(telegram) => {
                    telegrams = telegrams.saturating_add(1);
                    restored = restored.saturating_add(u64::from(telegram.line_ends == LineEnds::Restored));
                    for report in telegram.decoded.reports {
                        print(
                            &report.rename(|identity: Identity| identity.name(GATEWAY, PORT)),
                            arguments.format,
                            output,
                        )?;
                    }
                }
                Err(piece) => {
                    rejected = rejected.saturating_add(1);
                    eprintln!("{name}:{}: {piece}", piece.offset);
                }
            }
        }
        if count == 0 {
            break;
        }
    }
    if let Some(form) = transcript.form().filter(|form| *form != Form::Raw) {
        eprintln!("{name}: read as {}{}", form.name(), left_out(transcript.left_out()));
    }
    if restored > 0 {
        eprintln!("{name}: {}", other_line_ends(restored));
    }
    if telegrams == 0 && rejected == 0 {
        let what = if bytes == 0 { "is empty" } else { "holds no P1 telegram" };
        eprintln!("{name}: {what}");
    }
    Ok(if telegrams > 0 && rejected == 0 { Outcome::Well } else { Outcome::Partly })
}

/// That line ends had to be restored.
pub(super) fn other_line_ends(telegrams: u64) -> String {
    match telegrams {
        1 => {
            "1 telegram came with other line ends than its meter sent; its CRC fits once these are restored".to_owned()
        }
        _ => format!(
            "{telegrams} telegrams came with other line ends than their meter sent; their CRC fits once these are restored"
        ),
    }
}

/// What a log held besides.
pub(super) fn left_out(lines: u64) -> String {
    match lines {
        0 => String::new(),
        1 => "; 1 line is no part of a telegram".to_owned(),
        _ => format!("; {lines} lines are no part of a telegram"),
    }
}

pub(super) fn print(report: &Report<String>, format: Format, output: &mut Output) -> Result<(), Failure> {
    if format == Format::Json {
        return output.line(&payload::decoded(report));
    }
    let at = match (report.measured_at, report.clock) {
        (Some(at), Clock::Telegram) => format!("at {at} by the clock of the telegram"),
        (Some(at), _) => format!("at {at}"),
        (None, _) => "without a time of its own".to_owned(),
    };
    let medium = report.medium.name().replace('_', " ");
    output.line(&format!("{medium} meter {}, {at}", escape(report.meter.as_bytes())))?;
    let mut readings = table::Table::default();
    for reading in &report.readings {
        let mut remarks: Vec<_> =
            table::remarks(reading).into_iter().map(|(name, value)| format!("{name} {value}")).collect();
        remarks.extend(reading.at.map(|at| format!("at {at}")));
        remarks.extend(reading.raw.as_ref().map(|raw| format!("as sent: {} {}", raw.0, raw.1)));
        let (value, unit) = (reading.value.to_string(), reading.unit.to_string());
        readings.row(vec![format!("  {}", reading.register), value, unit, remarks.join(", ")]);
    }
    for line in readings.lines(1) {
        output.line(&line)?;
    }
    let mut texts = table::Table::default();
    for (name, text) in &report.info {
        let text = match &**text {
            "" => "-".to_owned(),
            // As it is, with single backslashes: the decoder leaves nothing else.
            text if text.bytes().all(|byte| matches!(byte, b' '..=b'~')) => text.to_owned(),
            text => escape(text.as_bytes()),
        };
        texts.row(vec![format!("  {name}"), text]);
    }
    for event in &report.events {
        let end = event.end.map_or_else(|| "an unknown time".to_owned(), |end| end.to_string());
        let lasted = event.duration_s.map_or(String::new(), |seconds| format!(", lasted {seconds} s"));
        texts.row(vec![format!("  {}", event.event), format!("until {end}{lasted}")]);
    }
    for unknown in &report.unknown {
        texts.row(vec!["  unknown".to_owned(), format!("{}{}", unknown.code, unknown.text)]);
    }
    // No column of numbers.
    for line in texts.lines(usize::MAX) {
        output.line(&line)?;
    }
    output.line("")
}
