//! `bitlinear`: looks into model files, quantises them, and says what that lost.

mod bench;
mod calibrate;
mod compare;
mod inspect;
mod quantize;
mod show;
mod stop;
mod verify;

use std::process::ExitCode;

use bitlinear::error::Error;
use bitlinear::limits::THREADS_MAX;
use clap::{Parser, Subcommand};

/// Low-bit linear layers: look into model files, quantise them, and see what it cost.
///
/// Reads GGUF, safetensors (one file, shards, or a folder of Hugging Face's), burn_dragon artifacts and
/// bitlinear's own packed files. Every command prints a table, or JSON with --json.
///
/// Exit codes, as grep and diff have them: 0 all is well; 1 the answer is no (`verify`: the file is bad;
/// `compare --at-most`: it lost more); 2 the command could not do its work, and stderr says why; 130 and 143
/// it was stopped by Ctrl-C or SIGTERM, and wrote no file.
#[derive(Parser)]
#[command(version, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// JSON on stdout instead of a table.
    #[arg(long, global = true)]
    json: bool,
}

const EXAMPLES: &str = "\
A first look, a smaller file, what it lost, and how fast its layers are here:
  bitlinear inspect model.gguf
  bitlinear quantize model.gguf small.gguf --type q4_k --fallback q4_1
  bitlinear compare model.gguf small.gguf
  bitlinear bench small.gguf --rows 1,32 --threads 1

`bitlinear quantize --help` says which options go together.

Which type? 8 bits (q8_0) are as good as floats; 4 bits with groups (q4_k, int4) lose little;
ternary needs calibration, or weights that were trained for it. docs/quantize.md has figures.";

#[derive(Subcommand)]
enum Command {
    /// What a file holds: tensors, layers, types, bytes.
    Inspect(inspect::Arguments),
    /// Write a model with some of its layers quantised.
    Quantize(quantize::Arguments),
    /// Gather what --compensate needs from the inputs of layers.
    Calibrate(calibrate::Arguments),
    /// Read every weight of every layer; compare sums where a file has them.
    Verify(verify::Arguments),
    /// What the layers of one file lose against those of another.
    Compare(compare::Arguments),
    /// How fast the layers of a file are here.
    Bench(bench::Arguments),
}

/// Why a command does not end with 0.
pub(crate) enum Failure {
    /// Something went wrong: exit code 2.
    Error(String),
    /// Nothing did, but the answer is no: it was printed. Exit code 1.
    No,
    /// A signal of that number asked for the end. Exit code 128 and the number, as shells have it.
    Stopped(u8),
}

impl From<Error> for Failure {
    fn from(e: Error) -> Failure {
        Failure::Error(e.text().to_string())
    }
}

pub(crate) type Answer = Result<(), Failure>;

/// What all commands are told.
pub(crate) struct Common {
    pub(crate) json: bool,
}

/// What those are told that compute on several threads.
#[derive(clap::Args)]
pub(crate) struct Threads {
    /// Threads; 0: all that this process may use.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u32).range(..=THREADS_MAX as i64))]
    threads: u32,
}

impl Threads {
    /// How many.
    pub(crate) fn count(&self) -> usize {
        if self.threads == 0 { bitlinear::exec::available() } else { self.threads as usize }
    }
}

fn main() -> ExitCode {
    // Rust ignores SIGPIPE and would go on where `| head` stops reading. A file that grows past the limit of
    // `ulimit -f` is an error of the write, which is told and cleaned up after, if the signal is ignored.
    #[cfg(unix)]
    // SAFETY: nothing runs yet that could depend on the signals.
    unsafe {
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => return told(&e),
    };
    let common = Common { json: cli.json };
    let answer = match cli.command {
        Command::Inspect(a) => inspect::run(&a, &common),
        Command::Quantize(a) => quantize::run(&a, &common),
        Command::Calibrate(a) => calibrate::run(&a, &common),
        Command::Verify(a) => verify::run(&a, &common),
        Command::Compare(a) => compare::run(&a, &common),
        Command::Bench(a) => bench::run(&a, &common),
    };
    match answer {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::No) => ExitCode::FAILURE,
        Err(Failure::Error(text)) => {
            show::note(text);
            ExitCode::from(2)
        }
        Err(Failure::Stopped(signal)) => {
            show::note("stopped; no file was written");
            ExitCode::from(128 + signal)
        }
    }
}

/// Prints help, the version, or what is wrong with the arguments.
fn told(e: &clap::Error) -> ExitCode {
    use std::io::Write as _;
    match e.print().and_then(|()| std::io::stdout().flush()) {
        // 0 for help and the version, 2 for the rest; neither is more than a byte.
        Ok(()) => ExitCode::from(e.exit_code() as u8),
        Err(failure) => {
            show::note(format_args!("this could not be written: {failure}"));
            ExitCode::from(2)
        }
    }
}
