//! A model with some of its layers quantised.

use std::path::PathBuf;

use bitlinear::container::Kind;
use bitlinear::cpu::Isa;
use bitlinear::error::Status;
use bitlinear::exec::Executor;
use bitlinear::export::{Layers as Which, Options, Progress, Target, export};
use bitlinear::model::Layers;
use bitlinear::quantize::{Calibration, DAMPING, Kind as Rule};
use bitlinear::types::Type;
use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use super::stop::Stop;
use super::{Answer, Common, Failure, Threads, show};

const LAYERS: &str = "Which layers";
const ROUNDING: &str = "How weights are rounded";

const EXAMPLES: &str = "\
The kind of the new file follows from its name: .gguf, .safetensors, .json (burn_dragon's
artifact of decoder_x, decoder_y and encoder), anything else is bitlinear's packed file.
Routers, embeddings, the head and norms stay as they are, unless --only or --set name them.

4 bits that llama.cpp reads; the output projections better than the rest:
  bitlinear quantize model.gguf small.gguf --type q4_k --fallback q4_1 --set attn_output=q6_k

The bytes that the format's own tool would write:
  bitlinear quantize model.gguf small.gguf --type q8_0 --fixed

4 bits and ternary that make up for their errors, from inputs that your program wrote (see
`calibrate`):
  bitlinear calibrate inputs.safetensors -o known.cal
  bitlinear quantize big.gguf small.bl --type int4 --group 32 --calibration known.cal --compensate
  bitlinear quantize big.gguf tiny.bl --type ternary --group 64 --calibration known.cal --compensate";

#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// The model to read.
    source: PathBuf,
    /// The file to write.
    target: PathBuf,
    /// What layers become: q8_0, q4_k, int4, ternary, ... (GGUF takes ggml's types; safetensors ternary,
    /// int4, bitnet-hf, f16, bf16; a packed file all).
    #[arg(long = "type", value_name = "TYPE", value_parser = show::type_named)]
    ty: Type,
    /// What they become where rows do not fit the type's blocks (q4_k needs multiples of 256).
    #[arg(long, value_name = "TYPE", value_parser = show::type_named)]
    fallback: Option<Type>,
    /// Columns of a group, for int4 (0: 128) and ternary (0: one scale for the tensor).
    #[arg(long, value_name = "COLUMNS", default_value_t = 0)]
    group: usize,
    /// Ternary: how many code matrices are added up.
    #[arg(long, value_name = "N", default_value_t = 1)]
    bases: usize,
    /// Which layers.
    #[arg(long, value_enum, default_value_t = Chosen::All, help_heading = LAYERS)]
    layers: Chosen,
    /// Only layers whose name holds this text (may be given again); nothing is protected.
    #[arg(long, value_name = "TEXT", help_heading = LAYERS)]
    only: Vec<String>,
    /// Another type for layers whose name holds a text: `attn_v=q6_k` (may be given again; the first counts).
    #[arg(long = "set", value_name = "TEXT=TYPE", value_parser = pair, help_heading = LAYERS)]
    types: Vec<(String, Type)>,
    /// What other floats of two dimensions and more become: f32, f16 or bf16.
    #[arg(long, value_name = "TYPE", value_parser = show::type_named, help_heading = LAYERS)]
    rest: Option<Type>,
    /// Scales by the type's fixed rule, byte for byte as its own tool, instead of a search for least error.
    #[arg(long, help_heading = ROUNDING)]
    fixed: bool,
    /// Which fixed rule.
    #[arg(long, value_enum, default_value_t = RuleName::Usual, requires = "fixed", help_heading = ROUNDING)]
    rule: RuleName,
    /// What `bitlinear calibrate` wrote.
    #[arg(long, value_name = "FILE", help_heading = ROUNDING)]
    calibration: Option<PathBuf>,
    /// Make up for each column's error in the columns after it (GPTQ).
    #[arg(long, requires = "calibration", help_heading = ROUNDING)]
    compensate: bool,
    /// Part of the inputs' mean square that is added to each column's.
    #[arg(long, value_name = "PART", default_value_t = DAMPING, help_heading = ROUNDING)]
    damping: f32,
    /// Fold layers with a Walsh-Hadamard rotation of so many columns.
    #[arg(long, value_name = "BLOCK", help_heading = ROUNDING)]
    rotate: Option<usize>,
    /// Seed of the rotation's signs; 0: none.
    #[arg(long, value_name = "N", default_value_t = 0, requires = "rotate", help_heading = ROUNDING)]
    seed: u64,
    /// Quantise layers that are packed already once more.
    #[arg(long)]
    again: bool,
    /// A text for the metadata: `general.name=Small` (may be given again).
    #[arg(long, value_name = "KEY=VALUE", value_parser = text)]
    meta: Vec<(String, String)>,
    /// Most MiB beside the mapped source; 0: twice its largest tensor and 64.
    #[arg(long, value_name = "MIB", default_value_t = 0)]
    memory: u64,
    #[command(flatten)]
    threads: Threads,
}

#[derive(Clone, Copy, ValueEnum)]
enum Chosen {
    /// All but what is protected.
    All,
    /// Feed-forward layers, shared or of experts.
    Experts,
}

#[derive(Clone, Copy, ValueEnum)]
enum RuleName {
    /// The type's own.
    Usual,
    /// Ternary by the largest magnitude (cortex).
    Absmax,
    /// Ternary, zero below the mean magnitude (burn_dragon).
    Threshold,
    /// Int8 over twice the mean magnitude (burn_dragon).
    MeanRange,
    /// Signs with one scale for the tensor (burn_dragon).
    Tensor,
}

fn pair(text: &str) -> Result<(String, Type), String> {
    let (name, ty) = text.split_once('=').ok_or("TEXT=TYPE expected")?;
    Ok((name.to_string(), show::type_named(ty)?))
}

fn text(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("KEY=VALUE expected")?;
    if key.is_empty() {
        return Err("KEY=VALUE expected, and the key is empty".to_string());
    }
    Ok((key.to_string(), value.to_string()))
}

pub(crate) fn run(a: &Arguments, common: &Common) -> Answer {
    let files = show::open(&a.source)?;
    let layers = Layers::of(&files)?;
    let ends = |text: &str| a.target.extension().is_some_and(|e| e.eq_ignore_ascii_case(text));
    let kind = match () {
        () if ends("gguf") => Kind::Gguf,
        () if ends("safetensors") => Kind::Safetensors,
        () if ends("json") => Kind::Artifact,
        () => Kind::Packed,
    };
    let rule = match a.rule {
        RuleName::Usual => Rule::Usual,
        RuleName::Absmax => Rule::Absmax,
        RuleName::Threshold => Rule::Threshold,
        RuleName::MeanRange => Rule::MeanRange,
        RuleName::Tensor => Rule::Tensor,
    };
    if let Some(rest) = a.rest.filter(|ty| !matches!(ty, Type::F32 | Type::F16 | Type::Bf16)) {
        return Err(Failure::Error(format!("--rest is f32, f16 or bf16, not {}", rest.name())));
    }
    if let Some((key, _)) =
        a.meta.iter().enumerate().find_map(|(n, m)| a.meta[..n].iter().find(|b| b.0 == m.0))
    {
        return Err(Failure::Error(format!("--meta {key}: given twice, and a file has one value for a key")));
    }
    let texts = a.only.iter().map(|t| ("--only", t)).chain(a.types.iter().map(|(t, _)| ("--set", t)));
    for (option, text) in texts {
        let named = |name: &[u8]| show::name(name).contains(text.as_str());
        // The arrays of an artifact need not be layers of the source.
        let tensors = files.directory.tensors.iter().filter(|_| kind == Kind::Artifact);
        if !layers.list().iter().any(|l| named(layers.name(l)))
            && !tensors.map(|t| files.directory.name(t)).any(named)
        {
            return Err(Failure::Error(format!("{option}: there is no layer with `{text}` in its name")));
        }
    }
    let calibration = match &a.calibration {
        Some(path) => Some(Calibration::open(path)?),
        None => None,
    };
    let patterns: Vec<&str> = a.only.iter().map(String::as_str).collect();
    let single = |ty| Target { ty, group: 0, bases: 1, rule: Rule::Usual };
    let types: Vec<(&str, Target)> = a.types.iter().map(|(name, ty)| (name.as_str(), single(*ty))).collect();
    let texts: Vec<(&str, &str)> = a.meta.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    let options = Options {
        kind,
        target: Target { ty: a.ty, group: a.group, bases: a.bases, rule },
        fallback: a.fallback,
        layers: match (patterns.is_empty(), a.layers) {
            (false, _) => Which::Patterns,
            (true, Chosen::All) => Which::All,
            (true, Chosen::Experts) => Which::Experts,
        },
        patterns: &patterns,
        types: &types,
        rest: a.rest,
        search: !a.fixed,
        calibration: calibration.as_ref(),
        compensate: a.compensate,
        damping: a.damping,
        rotation: a.rotate.map(|block| (block, a.seed)),
        requantize: a.again,
        texts: &texts,
        memory: a.memory.saturating_mul(1 << 20),
    };
    let executor = Executor::with_threads(a.threads.count())?;
    let stop = Stop::listen()?;
    let bar = if common.json { ProgressBar::hidden() } else { ProgressBar::new(1) };
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {percent:>3} %  {elapsed}  {wide_msg}") {
        bar.set_style(style);
    }
    let mut progress = |now: &Progress<'_>| {
        bar.set_length(now.weights_total.max(1));
        bar.set_position(now.weights_done);
        bar.set_message(show::shown(now.name));
        stop.asked().is_none()
    };
    let isa = Isa::from_environment()?;
    let report = export(&files, &layers, &a.target, &options, isa, &executor, &mut progress);
    bar.finish_and_clear();
    let report = match (report, stop.asked()) {
        (Err(e), Some(stopped)) if e.status() == Status::Cancelled => return Err(stopped),
        (report, _) => report?,
    };
    if common.json {
        return show::json(&json!({"file": a.target.display().to_string(), "quantized": report.quantized,
            "fallback": report.fallback, "calibrated": report.calibrated, "kept": report.kept,
            "weights": report.weights, "bytes_read": report.bytes_read, "bytes_written": report.bytes_written}));
    }
    show::line(format_args!(
        "{}: {} layers to {} ({} to the fallback, {} calibrated), {} tensors kept; {} -> {}",
        a.target.display(),
        report.quantized,
        a.ty.name(),
        report.fallback,
        report.calibrated,
        report.kept,
        show::bytes(report.bytes_read),
        show::bytes(report.bytes_written)
    ))
}
