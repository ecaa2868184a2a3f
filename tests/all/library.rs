//! What a user of the library may rely on: errors of one kind, names that counters are kept by, pages that a registry shows.

use std::{collections::BTreeSet, error::Error, fs, hash::Hash};

use meterkast::{capture, mbus, moment, p1};

use crate::samples::root;

/// An error can be kept, compared, handed to another thread, and shown.
fn is_an_error<E: Error + Clone + Eq + Send + Sync + 'static>() {}

fn is_a_name<T: Copy + Eq + Hash + Send + Sync + 'static>() {}

#[test]
fn errors_are_errors() {
    is_an_error::<p1::Reason>();
    is_an_error::<p1::Rejected>();
    is_an_error::<p1::NotAKey>();
    is_an_error::<mbus::Reason>();
    is_an_error::<mbus::Rejected>();
    is_an_error::<mbus::FrameError>();
    is_an_error::<mbus::RecordError>();
    is_an_error::<mbus::Trouble>();
    is_an_error::<capture::BadLine>();
    is_an_error::<capture::Reason>();
    is_an_error::<moment::NotAMoment>();
    is_a_name::<p1::Dialect>();
    is_a_name::<meterkast::reading::Medium>();
}

/// The names that counters are kept by: if one of these changes, so do the counters of everybody.
#[test]
fn kinds_stay() {
    let p1: BTreeSet<&str> = p1::Reason::KINDS.into();
    let mbus: BTreeSet<&str> = mbus::Reason::KINDS.into();
    assert_eq!((p1.len(), mbus.len()), (p1::Reason::KINDS.len(), mbus::Reason::KINDS.len()));
    assert!(p1.contains(p1::Reason::CrcMismatch { said: 0, computed: 1 }.kind()));
    assert!(mbus.contains(mbus::Reason::Frame(mbus::FrameError::Stop(0)).kind()));
    for medium in 0..=255 {
        let medium = meterkast::reading::Medium::from_device_type(medium);
        let code = if let meterkast::reading::Medium::Other(code) = medium { code } else { 0 };
        assert_eq!(meterkast::reading::Medium::from_name(medium.name(), code), Some(medium));
    }
}

/// Reasons and errors grow: whoever matches them must expect it. The pure half has no such enum that is closed by oversight.
#[test]
fn enums_of_reasons_are_open() {
    // Closed by the standard or by the version of a format, or because whoever drives them must know every one.
    let closed = [
        "Action",
        "Came",
        "Coding",
        "Date",
        "Direction",
        "Due",
        "Entry",
        "Frame",
        "Function",
        "Heard",
        "Identity",
        "Item",
        "LineEnds",
        "Piece",
        "Tail",
        "Target",
        "Task",
        "Value",
        "Way",
        "What",
    ];
    let mut found = BTreeSet::new();
    for file in ["p1", "mbus", "reading.rs", "capture.rs", "explain"] {
        let path = root().join("src").join(file);
        let files = if path.is_dir() { crate::samples::files(&path, "rs") } else { vec![path] };
        for path in files {
            let text = fs::read_to_string(&path).unwrap();
            let lines: Vec<&str> = text.lines().collect();
            for (at, line) in lines.iter().enumerate() {
                let Some(name) = line.strip_prefix("pub enum ") else { continue };
                let name = name.split(|letter: char| !letter.is_alphanumeric()).next().unwrap();
                let before = lines[..at].iter().rev().take_while(|line| line.starts_with("#["));
                let is_open = before.into_iter().any(|line| line.contains("non_exhaustive"));
                assert!(
                    is_open || closed.contains(&name),
                    "{}: {name} is neither open nor known to be closed",
                    path.display()
                );
                found.insert(name.to_owned());
            }
        }
    }
    assert!(found.len() > 20, "only {found:?} were found");
}
