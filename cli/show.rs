//! Tables, JSON, and opened files.

use std::fmt::Display;
use std::io::{ErrorKind, Write as _};
use std::path::Path;

use bitlinear::container::{Access, Files};
use bitlinear::error::Result;
use bitlinear::types::{TYPES, Type};
use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use serde_json::Value;

use super::{Answer, Failure};

/// A line on stdout. `println!` would panic where a disk is full.
pub(crate) fn line(text: impl Display) -> Answer {
    let mut out = std::io::stdout().lock();
    match writeln!(out, "{text}").and_then(|()| out.flush()) {
        // The reader has what it wanted; where there are signals, SIGPIPE ends the process before this.
        Err(e) if e.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => written.map_err(unwritten),
    }
}

/// What a failure to write to stdout is.
pub(crate) fn unwritten(e: std::io::Error) -> Failure {
    Failure::Error(format!("what should be printed could not be written: {e}"))
}

/// A line on stderr. Where that cannot be written either, nobody is left to be told.
pub(crate) fn note(text: impl Display) {
    let _ = writeln!(std::io::stderr(), "bitlinear: {text}");
}

/// A table whose first column is text and whose others are numbers, unless said otherwise.
pub(crate) fn table(head: &[&str], rows: &[Vec<String>], texts: usize) -> Answer {
    let mut table = Table::new();
    table.load_preset(presets::UTF8_BORDERS_ONLY).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(head);
    for row in rows {
        table.add_row(row.iter().map(|cell| shown(cell)));
    }
    for (n, column) in table.column_iter_mut().enumerate() {
        if n >= texts {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    line(table)
}

/// JSON, indented.
pub(crate) fn json(value: &Value) -> Answer {
    line(format_args!("{value:#}"))
}

/// `1.5 GiB`.
pub(crate) fn bytes(n: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut size = n as f64;
    let mut unit = 0;
    while size >= 1024.0 && unit + 1 < units.len() {
        size /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{n} B") } else { format!("{size:.1} {}", units[unit]) }
}

/// A text of a file without what a terminal would obey: control characters, and those that turn the direction of
/// writing. JSON and look-ups have the text as it is.
pub(crate) fn shown(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        let turns = matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        match c.is_control() || turns {
            true => shown.extend(c.escape_default()),
            false => shown.push(c),
        }
    }
    shown
}

/// A file's bytes as text.
pub(crate) fn name(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

pub(crate) fn open(path: &Path) -> Result<Files> {
    Files::open(path, Access::Map)
}

/// The type of that name, as `inspect` prints it.
pub(crate) fn type_named(name: &str) -> std::result::Result<Type, String> {
    let wanted = name.to_ascii_lowercase();
    TYPES.iter().find(|t| t.name() == wanted).map(|t| t.ty).ok_or_else(|| {
        let names: Vec<&str> = TYPES.iter().map(|t| t.name()).collect();
        format!("no type is named `{name}`; there are {}", names.join(", "))
    })
}
