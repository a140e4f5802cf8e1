//! The report: docs/performance/README.md between its marks, and the charts beside it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use clap::Args;

use crate::limits::Limits;
use crate::store::{Cell, Store};
use crate::weights::{Format, formats};
use crate::{charts, targets};

#[derive(Args)]
pub struct Arguments {
    /// The JSON file that `layers` and `programs` wrote.
    #[arg(long, default_value = "target/peers.json")]
    pub from: PathBuf,
    /// The folder whose README.md has the marks; the charts and the JSON file are written beside it.
    #[arg(long)]
    pub to: PathBuf,
    /// Print the cells that are weakest instead.
    #[arg(long)]
    pub weakest: Option<usize>,
}

const BEGIN: &str = "<!-- begin: written by `make bench` -->";
const END: &str = "<!-- end: written by `make bench` -->";

/// What the tables and charts ask for.
pub struct Figures {
    pub store: Store,
    pub formats: Vec<Format>,
    /// The best of each limit, by number of threads.
    pub limits: BTreeMap<usize, Limits>,
    /// Has VNNI.
    pub vnni: bool,
}

/// Ours and the best peer's in one cell.
pub struct Pair<'a> {
    pub ours: &'a Cell,
    pub peer: Option<&'a Cell>,
}

pub fn geometric_mean(values: impl IntoIterator<Item = f64>) -> Option<f64> {
    let (mut sum, mut count) = (0.0, 0);
    for value in values {
        sum += value.ln();
        count += 1;
    }
    (count > 0).then(|| (sum / f64::from(count)).exp())
}

/// Multiply-adds a second.
pub fn rate(cell: &Cell) -> f64 {
    (cell.out_features * cell.in_features * cell.m) as f64 / cell.seconds
}

impl Figures {
    pub fn new(store: Store) -> Figures {
        let mut limits: BTreeMap<usize, Limits> = BTreeMap::new();
        for run in &store.runs {
            let l = &run.limits;
            let best = limits.entry(l.threads).or_insert_with(|| l.clone());
            best.read = best.read.max(l.read);
            best.integer = best.integer.max(l.integer);
            best.integer_16 = best.integer_16.max(l.integer_16);
            best.float = best.float.max(l.float);
            best.ping = best.ping.min(l.ping);
            best.wake = best.wake.min(l.wake);
        }
        let vnni = limits.values().any(|l| l.integer_by.starts_with("vpdpbusd"));
        let has = |f: &Format| store.cells.iter().any(|c| c.format == f.name);
        let formats = formats().into_iter().filter(has).collect();
        Figures { store, formats, limits, vnni }
    }

    /// One cell for each shape: from DRAM up to 32 rows where that was measured, else cached.
    pub fn pairs(&self, format: &str, m: usize, threads: usize, dram: bool) -> Vec<Pair<'_>> {
        self.pairs_with("", format, m, threads, dram)
    }

    /// The same with peers whose name begins with a text.
    fn pairs_with(&self, peer: &str, format: &str, m: usize, threads: usize, dram: bool) -> Vec<Pair<'_>> {
        let here = |c: &&Cell| c.format == format && c.m == m && c.threads == threads && c.dram == dram;
        let cells: Vec<&Cell> = self.store.cells.iter().filter(here).collect();
        let ours = cells.iter().filter(|c| c.contestant == "bitlinear");
        ours.map(|ours| {
            let same = |c: &&&Cell| {
                c.contestant != "bitlinear"
                    && c.contestant.starts_with(peer)
                    && (c.out_features, c.in_features) == (ours.out_features, ours.in_features)
            };
            let peer = cells.iter().filter(same).min_by(|a, b| a.seconds.total_cmp(&b.seconds)).copied();
            Pair { ours, peer }
        })
        .collect()
    }

    /// Ours over the best peer's speed.
    pub fn ratio(&self, peer: &str, format: &str, m: usize, threads: usize, dram: bool) -> Option<f64> {
        let pairs = self.pairs_with(peer, format, m, threads, dram);
        geometric_mean(pairs.iter().filter_map(|p| Some(p.peer?.seconds / p.ours.seconds)))
    }

    /// Of read bandwidth.
    pub fn of_read(&self, format: &Format, m: usize, threads: usize) -> Option<f64> {
        let limit = self.limits.get(&threads)?.read;
        let pairs = self.pairs(format.name, m, threads, true);
        geometric_mean(pairs.iter().map(|p| rate(p.ours) / m as f64 * format.bits / 8.0 / limit))
    }

    /// Of the multiply-add peak: f32 for float weights, else int8.
    pub fn of_peak(&self, format: &Format, m: usize, threads: usize) -> Option<f64> {
        let limits = self.limits.get(&threads)?;
        let limit = if is_float(format.name) { limits.float } else { limits.integer };
        let pairs = self.pairs(format.name, m, threads, m <= 32);
        geometric_mean(pairs.iter().map(|p| rate(p.ours) / limit))
    }

    pub fn rows(&self) -> Vec<usize> {
        let mut rows: Vec<usize> = self.store.cells.iter().map(|c| c.m).collect();
        rows.sort_unstable();
        rows.dedup();
        rows
    }

    pub fn contestants(&self, format: &str) -> Vec<String> {
        let mut names: Vec<String> =
            self.store.cells.iter().filter(|c| c.format == format).map(|c| c.contestant.clone()).collect();
        names.sort();
        names.dedup();
        names
    }
}

pub fn is_float(format: &str) -> bool {
    ["f16", "bf16", "f32"].contains(&format)
}

fn table(out: &mut String, head: &[String], rows: &[Vec<String>]) {
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    out.push_str(&line(head));
    out.push_str(&line(&vec!["---".to_string(); head.len()]));
    rows.iter().for_each(|row| out.push_str(&line(row)));
    out.push('\n');
}

fn words(list: &[&str]) -> Vec<String> {
    list.iter().map(|s| (*s).to_string()).collect()
}

fn shown(value: Option<f64>) -> String {
    value.map_or("-".into(), |v| format!("{v:.2}"))
}

/// "0.81 of 0.88", in bold where it is short of the target.
fn against(value: Option<f64>, target: f64) -> String {
    match value {
        None => "-".into(),
        Some(v) if target == 0.0 => format!("{v:.2}"),
        Some(v) if v < target => format!("**{v:.2}** of {target:.2}"),
        Some(v) => format!("{v:.2} of {target:.2}"),
    }
}

fn machine(f: &Figures, out: &mut String) {
    let m = &f.store.machine;
    let _ = writeln!(
        out,
        "{}; {} processors, last-level cache {} MiB, {} GiB of memory; Linux {}, huge pages {}. \
         Instruction sets of bitlinear: {}.\n",
        m.cpu,
        m.processors,
        m.last_level_cache >> 20,
        (m.memory + (1 << 29)) >> 30,
        m.system,
        m.huge_pages,
        m.instruction_sets
    );
    if let Some(run) = f.store.runs.last() {
        table(
            out,
            &words(&["library", "version"]),
            &run.versions.iter().map(|(n, v)| vec![n.clone(), v.clone()]).collect::<Vec<_>>(),
        );
    }
    let giga = |v: f64| format!("{:.1}", v / 1e9);
    let rows: Vec<Vec<String>> = f
        .limits
        .values()
        .map(|l| {
            vec![
                l.threads.to_string(),
                giga(l.read),
                format!("{} ({})", giga(l.integer), l.integer_by),
                giga(l.integer_16),
                giga(l.float),
                if l.threads > 1 { format!("{:.2} / {:.1}", l.ping * 1e6, l.wake * 1e6) } else { "-".into() },
            ]
        })
        .collect();
    let _ = writeln!(out, "Limits, the best of all runs:\n");
    let head = [
        "threads",
        "read, GB/s",
        "int8, GMAC/s",
        "with 16-bit sums, GMAC/s",
        "f32, GMAC/s",
        "a word there and back, us: spinning / asleep",
    ];
    table(out, &words(&head), &rows);
}

/// The table.
fn fractions(f: &Figures, threads: usize, out: &mut String) {
    let part = if f.vnni { 1.0 } else { targets::AVX2_PART };
    let rows: Vec<Vec<String>> = f
        .formats
        .iter()
        .map(|format| {
            let target = targets::of(format.name);
            let one = target.map_or(0.0, |t| t.one * part);
            let mut row = vec![
                format.name.to_string(),
                format!("{}", format.bits),
                against(f.of_read(format, 1, threads), one),
            ];
            for (i, m) in [8, 32, 128, 512].into_iter().enumerate() {
                let aim = if f.vnni { target.map_or(0.0, |t| t.rows[i.min(2)]) } else { 0.0 };
                row.push(against(f.of_peak(format, m, threads), aim));
            }
            row
        })
        .collect();
    let head = [
        "weights",
        "bits",
        "m = 1, of read bandwidth",
        "m = 8, of multiply-add peak",
        "m = 32",
        "m = 128",
        "m = 512",
    ];
    let _ = writeln!(out, "{}\n", plural(threads));
    table(out, &words(&head), &rows);
}

fn plural(threads: usize) -> String {
    if threads == 1 { "One thread:".into() } else { format!("{threads} threads:") }
}

/// Ours over the best peer's, of those whose name begins with `peer`.
fn ratios(f: &Figures, peer: &str, threads: usize, dram: Option<bool>, out: &mut String) {
    let rows_of_x: Vec<usize> = f.rows().into_iter().filter(|&m| dram != Some(false) || m <= 32).collect();
    let mut rows = Vec::new();
    for format in &f.formats {
        let target = targets::of(format.name);
        let mut row = vec![format.name.to_string()];
        let mut best: BTreeMap<&str, usize> = BTreeMap::new();
        for &m in &rows_of_x {
            let dram = dram.unwrap_or(m <= 32);
            let ratio = f.ratio(peer, format.name, m, threads, dram);
            row.push(match target.filter(|_| f.vnni) {
                Some(t) if m == 1 => against(ratio, t.peers[0]),
                Some(t) if m >= 128 => against(ratio, t.peers[1]),
                _ => match ratio {
                    Some(r) if r < 1.0 => format!("**{r:.2}**"),
                    r => shown(r),
                },
            });
            for pair in f.pairs_with(peer, format.name, m, threads, dram) {
                if let Some(peer) = pair.peer {
                    *best.entry(&peer.contestant).or_default() += 1;
                }
            }
        }
        let mut best: Vec<_> = best.into_iter().collect();
        best.sort_by_key(|&(_, count)| std::cmp::Reverse(count));
        row.push(best.iter().map(|&(name, _)| name).collect::<Vec<_>>().join(", "));
        if row[1..row.len() - 1].iter().any(|r| r != "-") {
            rows.push(row);
        }
    }
    let mut head = vec!["weights".to_string()];
    head.extend(rows_of_x.iter().map(|m| format!("m = {m}")));
    head.push("the fastest were".into());
    let _ = writeln!(out, "{}\n", plural(threads));
    table(out, &head, &rows);
}

/// Everybody's speed.
fn speeds(f: &Figures, threads: usize, out: &mut String) {
    let rows_of_x = f.rows();
    let mut rows = Vec::new();
    for format in &f.formats {
        for name in f.contestants(format.name) {
            let mut row = vec![format.name.to_string(), name.clone()];
            for &m in &rows_of_x {
                let here = |c: &&Cell| {
                    c.format == format.name
                        && c.contestant == name
                        && (c.m, c.threads, c.dram) == (m, threads, m <= 32)
                };
                let mean = geometric_mean(f.store.cells.iter().filter(here).map(rate));
                row.push(mean.map_or("-".into(), |v| format!("{:.1}", v / 1e9)));
            }
            rows.push(row);
        }
    }
    let mut head = words(&["weights", "library"]);
    head.extend(rows_of_x.iter().map(|m| format!("m = {m}")));
    let _ = writeln!(out, "{}\n", plural(threads));
    table(out, &head, &rows);
}

/// What a second thread gains.
fn scaling(f: &Figures, out: &mut String) {
    let Some(&all) = f.limits.keys().last().filter(|&&t| t > 1) else { return };
    let rows_of_x = f.rows();
    let mut rows = Vec::new();
    for format in &f.formats {
        let mut row = vec![format.name.to_string()];
        for &m in &rows_of_x {
            let (one, many) = (f.pairs(format.name, m, 1, m <= 32), f.pairs(format.name, m, all, m <= 32));
            let gains = one.iter().filter_map(|a| {
                let same = |b: &&Pair<'_>| {
                    (b.ours.out_features, b.ours.in_features) == (a.ours.out_features, a.ours.in_features)
                };
                Some(a.ours.seconds / many.iter().find(same)?.ours.seconds)
            });
            row.push(shown(geometric_mean(gains)));
        }
        rows.push(row);
    }
    let mut head = vec!["weights".to_string()];
    head.extend(rows_of_x.iter().map(|m| format!("m = {m}")));
    table(out, &head, &rows);
}

fn programs(f: &Figures, out: &mut String) {
    if f.store.programs.is_empty() {
        return;
    }
    let rows: Vec<Vec<String>> = f
        .store
        .programs
        .iter()
        .map(|p| {
            let inside = |v: Option<f64>| v.map_or("-".into(), |s| format!("{:.0}", s * 1e3));
            vec![
                p.name.clone(),
                p.threads.to_string(),
                format!("{:.0}", p.prompt),
                inside(p.prompt_inside),
                format!("{:.0}", p.generation),
                inside(p.generation_inside),
            ]
        })
        .collect();
    let head = [
        "program",
        "threads",
        "prompt, tokens/s",
        "of it in matrix products, ms",
        "generation, tokens/s",
        "of it in matrix products, ms",
    ];
    table(out, &words(&head), &rows);
    for p in &f.store.programs {
        if p.threads == 1 {
            let _ = writeln!(out, "* {}: `{}`", p.name, p.command);
        }
    }
    out.push('\n');
}

fn files(f: &Figures, out: &mut String) {
    let head = ["type", "MB", "mean nll in bitlinear", "in llama.cpp"];
    let rows: Vec<Vec<String>> = f
        .store
        .files
        .iter()
        .map(|file| {
            let megabytes = format!("{:.1}", file.bytes as f64 / 1e6);
            vec![file.ty.clone(), megabytes, format!("{:.4}", file.ours), format!("{:.4}", file.theirs)]
        })
        .collect();
    table(out, &words(&head), &rows);
}

/// The cells that are furthest behind the best peer.
fn weakest(f: &Figures, count: usize, out: &mut String) {
    let mut all = Vec::new();
    for format in &f.formats {
        for m in f.rows() {
            for &threads in f.limits.keys() {
                for dram in [true, false] {
                    for pair in f.pairs(format.name, m, threads, dram) {
                        if let Some(peer) = pair.peer {
                            all.push((peer.seconds / pair.ours.seconds, pair.ours, peer));
                        }
                    }
                }
            }
        }
    }
    all.sort_by(|a, b| a.0.total_cmp(&b.0));
    let rows: Vec<Vec<String>> = all
        .iter()
        .take(count)
        .map(|(ratio, ours, peer)| {
            vec![
                format!("{ratio:.2}"),
                ours.format.clone(),
                format!("{} x {}", ours.out_features, ours.in_features),
                ours.m.to_string(),
                ours.threads.to_string(),
                if ours.dram { "DRAM".into() } else { "cache".into() },
                format!("{:.1}", rate(ours) / 1e9),
                format!("{:.1}", rate(peer) / 1e9),
                peer.contestant.clone(),
                ours.kernel.clone().unwrap_or_default(),
            ]
        })
        .collect();
    let head =
        ["ratio", "weights", "out x in", "m", "threads", "from", "GMAC/s", "peer's", "peer", "our kernel"];
    table(out, &words(&head), &rows);
}

fn text(f: &Figures) -> String {
    let mut out = String::new();
    let o = &mut out;
    let shapes = {
        let mut shapes: Vec<(usize, usize)> =
            f.store.cells.iter().map(|c| (c.out_features, c.in_features)).collect();
        shapes.sort_unstable();
        shapes.dedup();
        shapes.iter().map(|(n, k)| format!("{n} x {k}")).collect::<Vec<_>>().join(", ")
    };
    let _ = writeln!(o, "## The machine\n");
    machine(f, o);
    let _ = writeln!(o, "Shapes (out x in): {shapes}. All figures below are geometric means over them.\n");
    let _ = writeln!(o, "## Fractions of the limits\n");
    let _ = writeln!(
        o,
        "m = 1 counts the bytes of the stored format; larger m the multiply-adds, of the int8 peak (float \
         weights: of the f32 peak). Weights come from DRAM up to m = 32. Bold: short of the target behind it. {}\n",
        if f.vnni {
            "Targets are issue 7's."
        } else {
            "This CPU has no VNNI: the target is 0.6 of the one for m = 1 with AVX-512 VNNI, and there is none \
             for larger m but to be no slower than ggml. Where 16-bit sums are exact (codes of few bits) more than \
             1.00 of the int8 peak is possible."
        }
    );
    f.limits.keys().for_each(|&threads| fractions(f, threads, o));
    let _ = writeln!(o, "![Roofline](roofline.svg)\n");
    let _ = writeln!(o, "## Against the best peer\n");
    let _ = writeln!(
        o,
        "How many times as fast as the fastest of all peers in the same cell, each in its best arrangement of the \
         weights. Weights from DRAM up to m = 32. Bold: a peer is faster.\n"
    );
    f.limits.keys().for_each(|&threads| ratios(f, "", threads, None, o));
    let _ = writeln!(o, "![Ratios](ratios.svg)\n");
    let _ = writeln!(o, "Against ggml alone, the faster of its two arrangements:\n");
    f.limits.keys().for_each(|&threads| ratios(f, "ggml", threads, None, o));
    if f.store.cells.iter().any(|c| !c.dram && c.m <= 32) {
        let _ = writeln!(o, "The same with the weights in the cache:\n");
        f.limits.keys().for_each(|&threads| ratios(f, "", threads, Some(false), o));
    }
    let _ = writeln!(o, "### The weakest cells\n");
    weakest(f, 20, o);
    let _ = writeln!(o, "## What more threads gain\n");
    scaling(f, o);
    if !f.store.programs.is_empty() {
        let _ = writeln!(o, "## A language model, whole\n");
        programs(f, o);
    }
    if !f.store.files.is_empty() {
        let _ = writeln!(o, "## Files, written here and read by llama.cpp\n");
        let _ = writeln!(
            o,
            "The model quantised to each type (`bitlinear quantize --again --fallback q8_0`), and how likely both \
             find the same text of {} tokens.\n",
            f.store.files[0].tokens
        );
        files(f, o);
    }
    let _ = writeln!(o, "## Everybody, GMAC/s\n");
    f.limits.keys().for_each(|&threads| speeds(f, threads, o));
    let _ = writeln!(o, "![Rows](rows.svg)\n");
    let _ = writeln!(o, "## Commands\n");
    let mut seen = Vec::new();
    for run in &f.store.runs {
        if !seen.contains(&&run.command) {
            seen.push(&run.command);
            let _ = writeln!(o, "* `peers {}`", run.command);
        }
    }
    out
}

/// Puts the text between the marks.
fn place(path: &Path, text: &str) {
    let old = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let parts = old.split_once(BEGIN).and_then(|(head, rest)| Some((head, rest.split_once(END)?.1)));
    let (head, tail) = parts.unwrap_or_else(|| panic!("{}: no marks", path.display()));
    let new = format!("{head}{BEGIN}\n\n{}\n{END}{tail}", text.trim_end().to_owned() + "\n");
    std::fs::write(path, new).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
}

pub fn run(a: &Arguments) {
    let store = Store::open(&a.from);
    assert!(!store.cells.is_empty(), "{}: nothing was measured", a.from.display());
    let figures = Figures::new(store);
    if let Some(count) = a.weakest {
        let mut out = String::new();
        weakest(&figures, count, &mut out);
        let mut tables = String::new();
        figures.limits.keys().for_each(|&threads| fractions(&figures, threads, &mut tables));
        figures.limits.keys().for_each(|&threads| ratios(&figures, "", threads, None, &mut tables));
        println!("{tables}{out}");
        return;
    }
    place(&a.to.join("README.md"), &text(&figures));
    charts::roofline(&figures, &a.to.join("roofline.svg"));
    charts::ratios(&figures, &a.to.join("ratios.svg"));
    charts::rows(&figures, &a.to.join("rows.svg"));
    std::fs::copy(&a.from, a.to.join("cells.json")).expect("cells.json");
}
