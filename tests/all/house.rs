//! The rules of the house, held by reading the sources: a module uses only those that stand before it in
//! `src/lib.rs`, the pure half is pure, and what belongs in one place stands in no other.

use std::{fs, path::Path};

use proc_macro2::{Delimiter, TokenStream, TokenTree};

use crate::samples::{files, root};

/// How no path in the pure half begins or ends: IO, clocks, async, logging, randomness.
const IMPURE: &[&[&str]] = &[
    &["std", "env"],
    &["std", "fs"],
    &["std", "io"],
    &["std", "net"],
    &["std", "process"],
    &["std", "thread"],
    &["Instant", "now"],
    &["SystemTime", "now"],
    &["Timestamp", "now"],
    &["Zoned", "now"],
    &["getrandom"],
    &["tokio"],
    &["tracing"],
];

/// What may be named only below one folder.
const AT_HOME: &[(&str, &str)] = &[("sqlx", "store"), ("rumqttc", "mqtt"), ("rumqttd", "mqtt")];

/// Where values pass: never through floating point.
const EXACT: &[&str] = &["unit", "reading", "p1", "mbus", "payload", "sealed", "consumption", "store"];

/// But for this: real numbers come over the wire, and leave as decimals.
const REAL: &str = "mbus/real.rs";

/// The modules of `src/lib.rs` in their order.
struct House {
    modules: Vec<String>,
    /// How many of them are pure.
    pure: usize,
}

/// A path with the braces of its `use` unfolded, and its line.
struct Written {
    segments: Vec<String>,
    line: usize,
}

impl House {
    fn read(lib: &str) -> Self {
        let (rooms, edges) = lib.split_once("// --- edges ---").expect("lib.rs says where the edges begin");
        let (_, pure) = rooms.split_once("// --- pure ---").expect("lib.rs says where the pure half begins");
        let names = |text: &str| -> Vec<String> {
            let name = |line: &str| {
                let line = line.strip_prefix("pub ").or_else(|| line.strip_prefix("pub(crate) "))?;
                Some(line.strip_prefix("mod ")?.strip_suffix(';')?.to_owned())
            };
            text.lines().filter_map(name).collect()
        };
        let (pure, edges) = (names(pure), names(edges));
        Self { pure: pure.len(), modules: [pure, edges].concat() }
    }

    fn place(&self, module: &str) -> Option<usize> {
        self.modules.iter().position(|name| name == module)
    }

    /// What is wrong in a file, `path` being its path below `src`.
    fn complaints(&self, path: &Path, text: &str) -> Vec<String> {
        let mut way: Vec<&str> = path.iter().map(|part| part.to_str().unwrap().trim_end_matches(".rs")).collect();
        way.pop_if(|last| ["mod", "lib", "main"].contains(last));
        let module = way.first().copied().unwrap_or("lib");
        let place = self.place(module);
        let mut complaints = Vec::new();
        let mut paths = Vec::new();
        collect(text.parse().unwrap(), &[], way.len(), &mut paths);
        for Written { segments, line } in &paths {
            let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
            let mut complain = |what: &str| {
                complaints.push(format!("src/{}:{line}: `{}`: {what}", path.display(), segments.join("::")));
            };
            if let (Some(place), ["crate", used, ..]) = (place, &segments[..]) {
                if *used == "*" {
                    complain("name the module");
                } else if self.place(used).is_some_and(|used| used > place) {
                    complain(&format!("stands after `{module}` in lib.rs"));
                }
            }
            let impure = IMPURE.iter().any(|rule| segments.starts_with(rule) || segments.ends_with(rule));
            if impure && place.is_some_and(|place| place < self.pure) {
                complain(&format!("`{module}` is pure"));
            }
            for (name, home) in AT_HOME {
                if module != *home && segments.contains(name) {
                    complain(&format!("belongs in src/{home}"));
                }
            }
            if EXACT.contains(&module)
                && path != Path::new(REAL)
                && ["f32", "f64"].iter().any(|float| segments.contains(float))
            {
                complain("values are exact here");
            }
        }
        complaints
    }
}

/// Collects every path in the tokens of a file, so not in comments or texts. `prefix` is what stands
/// before the braces of a `use`; `depth` is how deep in the crate the tokens are, so that a path that climbs
/// out with `super` is found as one of `crate`.
fn collect(tokens: TokenStream, prefix: &[String], depth: usize, found: &mut Vec<Written>) {
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    let mut at = 0;
    while let Some(token) = tokens.get(at) {
        at += 1;
        match token {
            // The new name is not a path; a type behind `as` is one, and has no prefix.
            TokenTree::Ident(word) if word == "as" && !prefix.is_empty() => at += 1,
            TokenTree::Ident(first) => {
                let mut segments = [prefix, &[first.to_string()]].concat();
                let line = first.span().start().line;
                while let Some([TokenTree::Punct(a), TokenTree::Punct(b), next]) = tokens.get(at..at + 3) {
                    match next {
                        _ if (a.as_char(), b.as_char()) != (':', ':') => break,
                        TokenTree::Ident(name) => segments.push(name.to_string()),
                        TokenTree::Punct(star) if star.as_char() == '*' => segments.push("*".to_owned()),
                        TokenTree::Group(names) if names.delimiter() == Delimiter::Brace => {
                            collect(names.stream(), &segments, depth, found);
                            segments.clear();
                        }
                        _ => break,
                    }
                    at += 3;
                }
                let climbed = segments.iter().take_while(|segment| *segment == "super").count();
                if climbed > 0 && climbed >= depth {
                    segments.splice(..climbed, ["crate".to_owned()]);
                }
                // A path that goes on in braces is found by its ends.
                if !segments.is_empty() {
                    found.push(Written { segments, line });
                }
            }
            TokenTree::Group(group) => {
                let module = at > 2 && matches!(&tokens[at - 3], TokenTree::Ident(word) if word == "mod");
                collect(group.stream(), &[], depth + usize::from(module), found);
            }
            TokenTree::Literal(literal) => {
                let suffix = ["f32", "f64"].into_iter().find(|suffix| literal.to_string().ends_with(suffix));
                let line = literal.span().start().line;
                found.extend(suffix.map(|suffix| Written { segments: vec![suffix.to_owned()], line }));
            }
            TokenTree::Punct(_) => {}
        }
    }
}

#[test]
fn every_source_keeps_the_rules() {
    let house = House::read(&fs::read_to_string(root().join("src/lib.rs")).unwrap());
    assert!(house.pure >= 6, "lib.rs was not understood: {} pure modules", house.pure);
    let sources = root().join("src");
    let complaints: Vec<String> = files(&sources, "rs")
        .iter()
        .flat_map(|path| house.complaints(path.strip_prefix(&sources).unwrap(), &fs::read_to_string(path).unwrap()))
        .collect();
    assert!(complaints.is_empty(), "\n{}", complaints.join("\n"));
}

#[test]
fn a_broken_rule_is_seen() {
    let house = House::read(
        "//! A map.\n// --- pure ---\npub mod unit;\npub mod p1;\n//WIP pub mod later;\n// --- edges ---\n\
         pub mod port;\npub mod mqtt;\npub mod store;\n",
    );
    assert_eq!((house.modules.join(" ").as_str(), house.pure), ("unit p1 port mqtt store", 2));
    let broken = |path: &str, text: &str| -> Vec<String> {
        let shown = |complaint: String| complaint.strip_prefix(&format!("src/{path}:")).unwrap().to_owned();
        house.complaints(Path::new(path), text).into_iter().map(shown).collect()
    };
    for (path, text, complaint) in [
        ("unit.rs", "\nuse crate::p1::Line;", "2: `crate::p1::Line`: stands after `unit` in lib.rs"),
        (
            "port.rs",
            "use crate::{unit, mqtt::{self as wire}};",
            "1: `crate::mqtt::self`: stands after `port` in lib.rs",
        ),
        ("p1/frame.rs", "fn f() { super::super::store::g() }", "1: `crate::store::g`: stands after `p1` in lib.rs"),
        ("port.rs", "mod tests { use super::super::store; }", "1: `crate::store`: stands after `port` in lib.rs"),
        ("p1/mod.rs", "use super::*;", "1: `crate::*`: name the module"),
        ("p1/text.rs", "use std::{fmt, io::Write};", "1: `std::io::Write`: `p1` is pure"),
        ("p1/text.rs", "fn f() {\n    jiff::Timestamp::now();\n}", "2: `jiff::Timestamp::now`: `p1` is pure"),
        ("p1/text.rs", "#[tokio::test]\nfn f() {}", "1: `tokio::test`: `p1` is pure"),
        ("mqtt/mod.rs", "use sqlx::Row;", "1: `sqlx::Row`: belongs in src/store"),
        ("main.rs", "fn f() { ::rumqttd::start() }", "1: `rumqttd::start`: belongs in src/mqtt"),
        ("store/mod.rs", "fn f(x: i64) -> f64 {}", "1: `f64`: values are exact here"),
        ("unit.rs", "const X: i32 = 1.5f32 as i32;", "1: `f32`: values are exact here"),
    ] {
        assert_eq!(broken(path, text), [complaint], "{path}: {text}");
    }
    for (path, text) in [
        ("p1/frame.rs", "use super::{Line, super::unit}; use std::{fmt, time::Duration};"),
        ("port.rs", "use crate::{p1, unit::{Unit}}; use tokio::fs; mod tests { use super::*; }"),
        ("p1/frame.rs", "/// Like [`std::io::Read`], f64.\nconst SQL: &str = \"sqlx\"; // crate::store\n"),
        ("later.rs", "use crate::store;"),
        ("mqtt/mod.rs", "use rumqttc::Client; const LOAD: f64 = 0.5;"),
        ("main.rs", "use meterkast::store;"),
    ] {
        assert_eq!(broken(path, text), Vec::<String>::new(), "{path}: {text}");
    }
}
