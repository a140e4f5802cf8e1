//! The JSON file: what was measured, on what, with what.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::limits::Limits;

/// The whole file.
#[derive(Serialize, Deserialize, Default)]
pub struct Store {
    pub machine: Machine,
    /// One for each invocation that added cells.
    pub runs: Vec<Run>,
    pub cells: Vec<Cell>,
    #[serde(default)]
    pub programs: Vec<Program>,
    #[serde(default)]
    pub files: Vec<File>,
}

/// What everything ran on.
#[derive(Serialize, Deserialize, Default, Clone, PartialEq)]
pub struct Machine {
    pub cpu: String,
    pub processors: usize,
    /// Bytes.
    pub last_level_cache: u64,
    pub memory: u64,
    pub system: String,
    /// bitlinear's names, best first, as BITLINEAR_ISA narrows them.
    pub instruction_sets: String,
    pub huge_pages: String,
}

/// One invocation.
#[derive(Serialize, Deserialize, Clone)]
pub struct Run {
    pub at: String,
    pub command: String,
    pub versions: Vec<(String, String)>,
    pub limits: Limits,
}

/// One contestant in one cell.
#[derive(Serialize, Deserialize, Clone)]
pub struct Cell {
    pub format: String,
    pub out_features: usize,
    pub in_features: usize,
    pub m: usize,
    pub threads: usize,
    /// Weights from DRAM (a ring), or the same matrix again and again.
    pub dram: bool,
    pub contestant: String,
    /// The shortest, and the middle one, of all calls.
    pub seconds: f64,
    pub median: f64,
    pub calls: usize,
    /// Root mean square of the errors over that of y, against an f64 product of the dequantised weights.
    pub error: f64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<String>,
    /// Which of `runs`.
    pub run: usize,
}

/// A whole program: the language model.
#[derive(Serialize, Deserialize, Clone)]
pub struct Program {
    pub name: String,
    pub threads: usize,
    /// Tokens a second.
    pub prompt: f64,
    pub generation: f64,
    /// Seconds inside the library, where it says so.
    pub prompt_inside: Option<f64>,
    pub generation_inside: Option<f64>,
    pub command: String,
}

/// A quantised model and how likely a text is to it.
#[derive(Serialize, Deserialize, Clone)]
pub struct File {
    #[serde(rename = "type")]
    pub ty: String,
    pub bytes: u64,
    /// Tokens foretold.
    pub tokens: usize,
    /// Mean negative log-likelihood, in bitlinear and in llama.cpp.
    pub ours: f64,
    pub theirs: f64,
}

impl Store {
    /// Reads it, or begins a new one.
    pub fn open(path: &Path) -> Store {
        match std::fs::read(path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .unwrap_or_else(|e| panic!("{}: {e}; move it away to begin anew", path.display())),
            Err(_) => Store::default(),
        }
    }

    /// Writes it, whole or not at all.
    pub fn save(&self, path: &Path) {
        let text = serde_json::to_string(self).expect("JSON");
        // A cell on a line, for those who compare two files.
        let text = text.replace("},{", "},\n{");
        let new = path.with_extension("new");
        std::fs::write(&new, text + "\n")
            .and_then(|()| std::fs::rename(&new, path))
            .unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    }
}

/// What this is.
pub fn machine() -> Machine {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpuinfo = read("/proc/cpuinfo");
    let field = |name: &str| {
        let line = cpuinfo.lines().find(|l| l.starts_with(name));
        line.and_then(|l| l.split_once(':')).map_or(String::new(), |(_, v)| v.trim().to_string())
    };
    let cpu = format!("{}, family {} model {}", field("model name"), field("cpu family"), field("model"));
    let memory = read("/proc/meminfo");
    let memory = memory.split_whitespace().nth(1).and_then(|n| n.parse::<u64>().ok()).unwrap_or(0) << 10;
    let mut last_level_cache = 0;
    for index in 0..8 {
        let size = read(&format!("/sys/devices/system/cpu/cpu0/cache/index{index}/size"));
        let size = size.trim().strip_suffix('K').and_then(|n| n.parse::<u64>().ok()).unwrap_or(0) << 10;
        last_level_cache = last_level_cache.max(size);
    }
    Machine {
        cpu,
        processors: processors(),
        last_level_cache,
        memory,
        system: read("/proc/sys/kernel/osrelease").split('-').next().unwrap_or_default().trim().to_string(),
        instruction_sets: crate::ours::instruction_sets(),
        huge_pages: read("/sys/kernel/mm/transparent_hugepage/enabled").trim().to_string(),
    }
}

/// Processors of this process.
pub fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// Seconds since 1970 as "2026-01-31T12:00:00Z".
pub fn now() -> String {
    let seconds =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Years of 365.2425 days, counted from a March: the usual calendar arithmetic.
    let z = days + 719_468;
    let era = z / 146_097;
    let day_of_era = z % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", rest / 3600, rest / 60 % 60, rest % 60)
}
