//! Rules of the source tree that no compiler knows: who may import whom, where C begins, what is never
//! written. See docs/architecture.md.

mod native;

use std::collections::BTreeSet;
use std::path::PathBuf;

use native::{files_below, root};

struct File {
    path: PathBuf,
    text: String,
}

/// The Rust files below a folder of the repository.
fn sources(folder: &str) -> Vec<File> {
    let files: Vec<File> = files_below(&root().join(folder), "rs")
        .into_iter()
        .map(|path| File { text: std::fs::read_to_string(&path).unwrap(), path })
        .collect();
    assert!(!files.is_empty(), "{folder} has no Rust files: has it moved?");
    files
}

/// A line without the text of its strings and comments, roughly: what is left of it is code.
fn code(line: &str) -> String {
    let (mut out, mut in_string, mut escaped) = (String::new(), false, false);
    let mut characters = line.chars().peekable();
    while let Some(c) = characters.next() {
        match c {
            '\\' if in_string => escaped = !escaped,
            '"' if !escaped => in_string = !in_string,
            '/' if !in_string && characters.peek() == Some(&'/') => break,
            _ if in_string => escaped = false,
            _ => out.push(c),
        }
    }
    out
}

/// Every line of code of a folder, tests aside, that `wrong` says something about.
fn none_of(folder: &str, wrong: impl Fn(&str) -> bool) {
    let mut found = Vec::new();
    for file in sources(folder).iter().filter(|f| !f.path.ends_with("tests.rs")) {
        // A module of tests is the end of its file.
        let product = file.text.lines().take_while(|l| *l != "#[cfg(test)]" && *l != "#![cfg(test)]");
        for (i, line) in product.enumerate() {
            if wrong(&code(line)) {
                found.push(format!("{}:{}: {}", file.path.display(), i + 1, line.trim()));
            }
        }
    }
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

/// Whether a line names a module of this crate, in a path or in the braces of a `use crate::{...}`.
fn names(line: &str, module: &str) -> bool {
    let word =
        |text: &str, w: &str| text.split(|c: char| !c.is_alphanumeric() && c != '_').any(|part| part == w);
    line.contains(&format!("crate::{module}::"))
        || line.contains(&format!("crate::{module};"))
        || line.contains(&format!("crate::{module} "))
        || line.trim_start().starts_with("use crate::{") && word(line, module)
}

/// A file format never sees an instruction set.
#[test]
fn codecs_and_containers_know_no_kernel() {
    for folder in ["src/codec", "src/container"] {
        none_of(folder, |line| ["kernel", "cpu", "exec", "capi"].iter().any(|m| names(line, m)));
    }
}

/// A kernel never sees a file format.
#[test]
fn kernels_know_no_codec_and_no_container() {
    none_of("src/kernel", |line| ["codec", "container", "model", "capi"].iter().any(|m| names(line, m)));
}

/// State is values, plans are numbers: neither sees a file.
#[test]
fn state_and_plans_know_no_files() {
    for folder in ["src/state", "src/plan"] {
        none_of(folder, |line| ["codec", "container", "model", "capi"].iter().any(|m| names(line, m)));
    }
    none_of("src/heads", |line| ["container", "model", "capi"].iter().any(|m| names(line, m)));
}

/// The table of docs/architecture.md has every module of the library, and names nothing that is not there.
#[test]
fn the_architecture_names_every_module() {
    let text = std::fs::read_to_string(root().join("docs/architecture.md")).unwrap();
    // The first cell of the rows of a table, after its head.
    let places = |head: &str| -> BTreeSet<String> {
        let rows = text.split_once(head).unwrap().1.lines().skip(2).take_while(|l| l.starts_with('|'));
        let cells = rows.filter_map(|row| row.split('|').nth(1));
        cells
            .flat_map(|cell| cell.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>())
            .collect()
    };
    let mut modules = BTreeSet::new();
    for entry in std::fs::read_dir(root().join("src")).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        modules.insert(if entry.path().is_dir() { format!("{name}/") } else { name });
    }
    modules.remove("lib.rs");
    assert_eq!(places("| place | knows | does not know |"), modules);
    let beside = places("| beside `src/` | what it is |");
    assert!(beside.len() > 8 && beside.iter().all(|name| root().join(name).is_dir()), "{beside:?}");
}

/// The mission table names tests that are there.
#[test]
fn the_mission_names_real_tests() {
    let table = std::fs::read_to_string(root().join("docs/mission.md")).unwrap();
    let (mut named, mut missing) = (0, Vec::new());
    for text in table.split('`').skip(1).step_by(2) {
        let Some((file, test)) = text.split_once(": ").filter(|(file, _)| file.starts_with("tests/")) else {
            continue;
        };
        named += 1;
        let source = std::fs::read_to_string(root().join(file)).unwrap_or_default();
        if !source.contains(&format!("#[test]\nfn {test}()")) {
            missing.push(text);
        }
    }
    assert!(named > 50 && missing.is_empty(), "{named} named; missing: {missing:#?}");
}

/// C programs reach in through src/capi alone. (Functions that are handed to C as callbacks, by
/// `pthread_atfork` or a host's parallel-for, are C functions too, but nobody can link to them.)
#[test]
fn only_capi_exports_c() {
    let mut exports = 0;
    for file in sources("src") {
        let capi = file.path.starts_with(root().join("src/capi"));
        for (i, line) in file.text.lines().enumerate() {
            let line = code(line);
            if line.contains("no_mangle") || line.contains("export_name") {
                assert!(capi, "{}:{}: {line}", file.path.display(), i + 1);
                exports += 1;
            }
        }
    }
    assert!(exports >= native::functions().len());
}

/// ... and what C calls back stands in three more files, for the reasons in docs/architecture.md.
#[test]
fn c_functions_stand_where_the_architecture_says() {
    let (mut found, mut allowed) = (BTreeSet::new(), BTreeSet::new());
    for file in ["src/exec/mod.rs", "src/exec/thread.rs", "src/memory.rs"] {
        allowed.insert(root().join(file));
    }
    for file in sources("src") {
        let c = file.text.lines().any(|line| line.contains("extern \"C\"") && code(line).contains("extern "));
        if c && !file.path.starts_with(root().join("src/capi")) {
            found.insert(file.path);
        }
    }
    assert_eq!(found, allowed);
}

/// ... and what they export goes through the panic guard, but for what cannot fail.
#[test]
fn every_export_is_guarded() {
    let cannot_fail = ["bl_version", "bl_build_info", "bl_status_name", "bl_low_bit_name"];
    for file in sources("src/capi") {
        for export in file.text.split("#[unsafe(no_mangle)]").skip(1) {
            let (head, body) = export.split_once('{').unwrap();
            let name = head.split("fn ").nth(1).unwrap().split('(').next().unwrap();
            let first = body
                .lines()
                .map(str::trim)
                .find(|l| !l.is_empty() && !l.starts_with("//") && *l != "unsafe {");
            let guarded = first.is_some_and(|l| l.contains("guard("));
            assert!(guarded || cannot_fail.contains(&name), "{name} does not begin with guard()");
        }
    }
}

#[test]
fn nothing_is_left_to_do_and_nothing_is_printed() {
    let never = ["todo!", "unimplemented!", "println!", "eprintln!", "print!(", "eprint!(", "dbg!("];
    none_of("src", |line| never.iter().any(|word| line.contains(word)));
}

/// Every `unsafe` block says why it is right, just above it.
#[test]
fn unsafe_blocks_say_why() {
    let mut found = Vec::new();
    for file in sources("src") {
        let lines: Vec<&str> = file.text.lines().collect();
        for (i, line) in lines.iter().enumerate() {
            if code(line).contains("unsafe {") && !explained(&lines, i) {
                found.push(format!("{}:{}: {}", file.path.display(), i + 1, line.trim()));
            }
        }
    }
    assert!(found.is_empty(), "no SAFETY line above:\n{}", found.join("\n"));
}

/// Up from a line through its own statement and the comment before it.
fn explained(lines: &[&str], at: usize) -> bool {
    let mut in_comment = false;
    for line in lines[..at].iter().rev().chain([&lines[at]]).map(|l| l.trim()) {
        if line.contains("SAFETY:") {
            return true;
        }
        let comment = line.starts_with("//");
        if in_comment && !comment {
            return false;
        }
        in_comment |= comment;
        // The statement begins after the one before it.
        if !comment && (line.ends_with(';') || line.is_empty()) {
            return false;
        }
    }
    false
}
