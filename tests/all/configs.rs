//! Every configuration that the project shows is one that it accepts, and every key is shown.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use meterkast::config::Config;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|found| found == extension))
        .collect();
    files.sort();
    files
}

#[test]
fn every_shipped_configuration_is_accepted() {
    let shipped = files(&root().join("config"), "toml");
    assert!(shipped.len() >= 4, "{shipped:?}");
    for file in shipped {
        if let Err(error) = Config::read(&file) {
            panic!("{error}");
        }
    }
}

/// The blocks of code in a document: between fences, or indented by four and more. What stands between
/// two of them leaves blank ones.
fn code_blocks(markdown: &str) -> Vec<String> {
    let mut blocks = vec![String::new()];
    let mut fenced = false;
    for line in markdown.lines() {
        let fence = line.trim_start().starts_with("```");
        match line.strip_prefix("    ") {
            _ if fence => fenced = !fenced,
            _ if fenced => {
                *blocks.last_mut().unwrap() += &format!("{line}\n");
                continue;
            }
            Some(code) => {
                *blocks.last_mut().unwrap() += &format!("{code}\n");
                continue;
            }
            // A blank line is part of an indented block.
            None if line.trim().is_empty() => {
                blocks.last_mut().unwrap().push('\n');
                continue;
            }
            None => {}
        }
        blocks.push(String::new());
    }
    blocks
}

/// Whether a block is a configuration: its first line that says anything is the head of a section.
fn is_configuration(block: &str) -> bool {
    let mut lines = block.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.next().is_some_and(|line| line.starts_with('[') && line.ends_with(']') && !line.contains([' ', '(', '"']))
}

#[test]
fn every_configuration_in_the_documents_is_accepted() {
    assert!(is_configuration("# x\n[[p1]]\nport = \"-\"\n") && !is_configuration("[x](y)\n") && !is_configuration(""));
    let blocks = code_blocks("a\n```toml\n[x]\n```\nb\n\n    [y]\n\n    z\n");
    assert!(blocks.iter().filter(|block| !block.is_empty()).eq(["[x]\n", "\n[y]\n\nz\n"]), "{blocks:?}");
    let deploy = root().join("deploy");
    let documents = [files(root(), "md"), files(&deploy, "md"), files(&deploy.join("mosquitto"), "md")].concat();
    for document in documents {
        let text = fs::read_to_string(&document).unwrap();
        for block in code_blocks(&text).iter().filter(|block| is_configuration(block)) {
            // A document may show a part: what it lacks to be whole is added.
            let whole = ["[[p1]]", "[store]"].iter().any(|head| block.contains(head));
            let block = if whole { block.clone() } else { format!("{block}[[p1]]\nport = \"-\"\n") };
            if let Err(error) = Config::parse(&block, &document.display().to_string()) {
                panic!("{error} (the line is that of the block)\n{block}");
            }
        }
    }
}

/// The keys that a section knows, by its own words.
fn known(head: &str) -> BTreeSet<String> {
    let error = Config::parse(&format!("{head}\nno-such-key-at-all = 1\n"), "x").unwrap_err().to_string();
    let (_, known) = error.split_once("Known here: ").unwrap_or_else(|| panic!("{error}"));
    known.split(", ").map(str::to_owned).collect()
}

#[test]
fn the_large_configuration_shows_every_key() {
    let text = fs::read_to_string(root().join("config/meterkast.toml")).unwrap();
    let mut sections: Vec<(String, String)> = known("").into_iter().map(|name| (name, String::new())).collect();
    sections.push(("mbus.meter".to_owned(), "[[mbus]]\nport = \"/dev/x\"\n".to_owned()));
    for (section, before) in sections {
        let heads = [format!("[{section}]"), format!("[[{section}]]")];
        // With its mark when the whole section is commented out.
        let is_head = |line: &str| heads.iter().any(|head| line.trim_start_matches(['#', ' ']) == head);
        let head = text.lines().find(|line| is_head(line)).unwrap_or_else(|| panic!("[{section}] is not shown"));
        let lines = text.lines().skip_while(|line| !is_head(line)).skip(1);
        let lines: Vec<&str> = lines.take_while(|line| !line.trim_start_matches(['#', ' ']).starts_with('[')).collect();
        for key in known(&(before + head.trim_start_matches(['#', ' ']))) {
            let shown = lines.iter().any(|line| {
                let line = line.trim_start_matches(['#', ' ']);
                line.split_once('=').is_some_and(|(name, _)| name.trim() == key)
            });
            // A section of its own, which is among those above.
            let is_section = (&*section, &*key) == ("mbus", "meter");
            assert!(shown || is_section, "config/meterkast.toml does not show `{key}` in [{section}]");
        }
    }
}

/// What is commented out in the large configuration is accepted as well.
#[test]
fn every_key_is_shown_with_a_value_that_is_accepted() {
    let text = fs::read_to_string(root().join("config/meterkast.toml")).unwrap();
    let shown: String = text
        .lines()
        .map(|line| {
            line.strip_prefix("# ")
                .filter(|rest| {
                    rest.starts_with("[[") || rest.split_once(" = ").is_some_and(|(key, _)| !key.contains(' '))
                })
                .unwrap_or(line)
        })
        .map(|line| format!("{line}\n"))
        .collect();
    assert!(shown.contains("\npassword-file = "), "{shown}");
    if let Err(error) = Config::parse(&shown, "config/meterkast.toml") {
        panic!("{error}");
    }
}
