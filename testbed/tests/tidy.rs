//! What every source file of this repository keeps to and no lint checks. Each complaint names file and line.
//!
//! The list of long files is a ratchet: an entry that is no longer needed fails the test too, so it only shrinks.

use std::fs;
use std::path::{Path, PathBuf};

/// Characters of a line. Code is rustfmt's matter, and it leaves what it can't break: texts, attributes, macros.
const LINE_CHARS_MAX: usize = 120;

/// Lines of a file, tests included. More is two nouns in one file.
const FILE_LINES_MAX: usize = 600;

/// Files above [`FILE_LINES_MAX`], with the lines they may have.
const LONG_FILES: &[(&str, usize)] = &[];

/// Lines of a function, from its signature to its closing brace.
const FUNCTION_LINES_MAX: usize = 70;

/// Spelled in two halves, so that this file keeps to its own rule.
const UNFINISHED: &[&str] = &[concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X"), concat!("dbg", "!(")];

/// Where somebody's machine begins; a path below belongs into no file.
const PRIVATE_PATHS: &[&str] = &[concat!("/ho", "me/"), concat!("/ro", "ot/"), concat!("/wo", "rk/")];

#[test]
fn sources_are_tidy() {
    let mut complaints = Vec::new();
    for source in sources() {
        let text = fs::read_to_string(root().join(&source)).expect("a source file is UTF-8");
        complaints.extend(in_file(&source, &text).into_iter().map(|complaint| format!("{source}{complaint}")));
    }
    assert!(complaints.is_empty(), "{} complaints:\n{}", complaints.len(), complaints.join("\n"));
}

#[test]
fn documents_are_tidy() {
    let mut complaints = Vec::new();
    for name in ["README.md", "ARCHITECTURE.md", "CHANGELOG.md", "Makefile", "deny.toml", "dist/agent.toml"] {
        let text = fs::read_to_string(root().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        for (number, line) in numbered(&text) {
            let is_link = line.contains("://");
            if line.chars().count() > LINE_CHARS_MAX && !is_link {
                complaints.push(format!("{name}:{number}: more than {LINE_CHARS_MAX} characters"));
            }
            complaints.extend(words(line).into_iter().map(|complaint| format!("{name}:{number}: {complaint}")));
        }
    }
    assert!(complaints.is_empty(), "{} complaints:\n{}", complaints.len(), complaints.join("\n"));
}

/// The complaints about one file, each beginning with its place.
fn in_file(name: &str, text: &str) -> Vec<String> {
    let mut complaints = Vec::new();
    let is_small = name.ends_with("/tests.rs") || name.starts_with("fuzz/fuzz_targets/");
    if !text.starts_with("//!") && !is_small {
        complaints.push(":1: does not begin with what it is (//!)".to_owned());
    }
    if name.ends_with("/mod.rs") {
        complaints.push(": is named mod.rs: name it after its module".to_owned());
    }
    let lines = text.lines().count();
    match LONG_FILES.iter().find(|(long, _)| *long == name) {
        Some((_, may)) if lines > *may => complaints.push(format!(": has {lines} lines, {may} at most: split it")),
        Some(_) if lines <= FILE_LINES_MAX => complaints.push(": is no longer long: take it off the list".to_owned()),
        None if lines > FILE_LINES_MAX => {
            complaints.push(format!(": has {lines} lines, {FILE_LINES_MAX} at most: split it"));
        }
        _ => {}
    }
    for (number, line) in numbered(text) {
        let is_comment = line.trim_start().starts_with("//");
        if is_comment && line.chars().count() > LINE_CHARS_MAX && !line.contains("://") {
            complaints.push(format!(":{number}: a comment of more than {LINE_CHARS_MAX} characters"));
        }
        if line.ends_with([' ', '\t']) {
            complaints.push(format!(":{number}: ends with a space"));
        }
        complaints.extend(words(line).into_iter().map(|complaint| format!(":{number}: {complaint}")));
    }
    complaints.extend(long_functions(text));
    complaints
}

/// Words that do not belong into any file.
fn words(line: &str) -> Vec<String> {
    let unfinished = UNFINISHED.iter().filter(|word| line.contains(**word)).map(|word| format!("has {word}"));
    let private = PRIVATE_PATHS.iter().filter(|path| line.contains(**path)).map(|path| format!("names {path}"));
    unfinished.chain(private).collect()
}

/// Functions above the limit. rustfmt sees to it that one ends with a brace as far to the left as it began.
fn long_functions(text: &str) -> Vec<String> {
    let mut complaints = Vec::new();
    let mut open: Option<(usize, &str, usize)> = None;
    for (number, line) in numbered(text) {
        let indent = line.len() - line.trim_start().len();
        match open {
            Some((begin, function, depth)) if line.trim() == "}" && indent == depth => {
                complaints.extend(judge(function, begin, number + 1 - begin));
                open = None;
            }
            Some(_) => {}
            None => {
                let begins = function_name(line).filter(|_| !line.trim_end().ends_with(['}', ';']));
                open = begins.map(|function| (number, function, indent));
            }
        }
    }
    complaints
}

fn judge(function: &str, begin: usize, lines: usize) -> Option<String> {
    let is_long = lines > FUNCTION_LINES_MAX;
    is_long.then(|| format!(":{begin}: {function} has {lines} lines, {FUNCTION_LINES_MAX} at most"))
}

/// The name of the function that a line begins, if it begins one.
fn function_name(line: &str) -> Option<&str> {
    let words = line.trim_start();
    let rest = words.strip_prefix("fn ").or_else(|| words.split_once(" fn ").map(|(_, rest)| rest))?;
    let is_code = !words.starts_with("//") && !words.starts_with('"');
    let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_')?;
    (is_code && end > 0).then(|| &rest[..end])
}

fn numbered(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines().enumerate().map(|(index, line)| (index + 1, line))
}

/// All Rust files of the repository, relative to its root, in order.
fn sources() -> Vec<String> {
    let mut found = Vec::new();
    for top in ["overlay", "agent", "sim", "testbed", "fuzz"] {
        collect(&root().join(top), &mut found);
    }
    let mut names: Vec<String> =
        found.iter().map(|path| path.strip_prefix(root()).expect("below the root").display().to_string()).collect();
    names.sort_unstable();
    assert!(names.len() > 100, "only {} source files were found", names.len());
    names
}

fn collect(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).expect("the directory is there") {
        let path = entry.expect("its entries can be read").path();
        let is_built = path.file_name().is_some_and(|name| name == "target" || name == "corpus" || name == "artifacts");
        if path.is_dir() && !is_built {
            collect(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate is below the root").to_owned()
}

#[test]
fn functions_are_found_and_measured() {
    let body = "    let x = 1;\n".repeat(FUNCTION_LINES_MAX);
    let text = format!("impl X {{\n    pub(crate) async fn long(\n        a: u8,\n    ) -> u8 {{\n{body}    }}\n}}\n");
    assert_eq!(long_functions(&text), [format!(":2: long has {} lines, 70 at most", FUNCTION_LINES_MAX + 4)]);
    assert!(long_functions("fn short() {\n    loop {}\n}\nfn one() {}\n").is_empty());
    assert_eq!(function_name("    const fn len(&self) -> usize {"), Some("len"));
    assert_eq!(function_name("/// a fn name("), None);
}
