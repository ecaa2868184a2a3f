//! What the other tests read: the fixtures, the corpus of real telegrams, and the whole way from bytes
//! to reports in one call.

use std::{
    fs,
    path::{Path, PathBuf},
};

use meterkast::p1::{self, Decoded, Framer, Rejected, Telegram};

/// A file of bytes that a P1 port could have sent.
pub(crate) struct Sample {
    /// Its path below the folder it is from.
    pub(crate) name: String,
    pub(crate) bytes: Vec<u8>,
}

/// The folder of `Cargo.toml`.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Our own telegrams.
pub(crate) fn fixtures() -> Vec<Sample> {
    samples(&root().join("fixtures/p1"), "txt")
}

/// Our own M-Bus frames, as hex digits.
pub(crate) fn mbus_fixtures() -> Vec<Sample> {
    samples(&root().join("fixtures/mbus"), "hex")
}

/// Where the real telegrams are, which name real households and so are not in the repository. None
/// where they are not, unless `METERKAST_REQUIRE_CORPUS=1` demands them.
pub(crate) fn corpus_folder() -> Option<PathBuf> {
    let folder = root().join("../shared/corpus/p1");
    if folder.is_dir() {
        return Some(folder);
    }
    let required = std::env::var_os("METERKAST_REQUIRE_CORPUS").is_some_and(|value| value == "1");
    assert!(!required, "the corpus is required, and {} is missing", folder.display());
    println!("the corpus is not here ({}): its telegrams are not tested", folder.display());
    None
}

/// Real telegrams from public projects, one or a few to a file; none where the corpus is missing.
pub(crate) fn corpus() -> Vec<Sample> {
    let mut found = corpus_folder().map(|folder| samples(&folder, "txt")).unwrap_or_default();
    found.retain(|sample| !sample.name.starts_with("streams/"));
    found
}

/// Ten minutes of one meter. None where the corpus is missing.
pub(crate) fn stream() -> Option<Sample> {
    let mut found = samples(&corpus_folder()?.join("streams"), "txt");
    assert_eq!(found.len(), 1, "the corpus has one stream");
    found.pop()
}

/// Real M-Bus frames, their hex digits as bytes; none where the corpus is missing.
pub(crate) fn mbus_frames() -> Vec<Sample> {
    let Some(folder) = corpus_folder().map(|folder| folder.with_file_name("mbus")) else { return Vec::new() };
    let mut found = samples(&folder, "hex");
    for Sample { bytes, .. } in &mut found {
        bytes.retain(u8::is_ascii_hexdigit);
        let pair = |pair: &[u8]| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap();
        *bytes = bytes.chunks(2).map(pair).collect();
    }
    found
}

/// Every file in and below `folder` whose name ends in `.extension`, in the order of the names; every file where that is empty.
pub(crate) fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path, extension));
        } else if extension.is_empty() || path.extension().is_some_and(|found| found == extension) {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn samples(folder: &Path, extension: &str) -> Vec<Sample> {
    let read = |path: PathBuf| Sample {
        name: path.strip_prefix(folder).unwrap().to_str().unwrap().to_owned(),
        bytes: fs::read(path).unwrap(),
    };
    let found: Vec<Sample> = files(folder, extension).into_iter().map(read).collect();
    assert!(!found.is_empty(), "no .{extension} in {}", folder.display());
    found
}

/// Cuts the chunks into telegrams, checks and decodes them, and shows each outcome to `visit` in order.
pub(crate) fn read<'a>(
    chunks: impl IntoIterator<Item = &'a [u8]>,
    mut visit: impl FnMut(Result<(Telegram<'_>, Decoded), Rejected>),
) {
    let mut framer = Framer::new();
    let mut drain = |framer: &mut Framer| {
        while let Some(piece) = framer.poll() {
            visit(Telegram::check(piece).map(|telegram| (telegram, p1::decode(&telegram, None))));
        }
    };
    for chunk in chunks {
        framer.push(chunk);
        drain(&mut framer);
    }
    framer.end();
    drain(&mut framer);
}
