//! Files that bitlinear writes, in llama.cpp: a model is quantised to one type after another, and both foretell the
//! same text from the same file. That a file opens proves little; that both find it as likely proves that they read
//! the same weights.

use std::ffi::CString;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::Args;
use llama_cpp_sys_2 as sys;

use crate::programs::{Common, Llama, Room, figure, said};
use crate::store::{File, Store};

#[derive(Args)]
pub struct Arguments {
    #[command(flatten)]
    pub common: Common,
    /// The tool `bitlinear` (make tool).
    #[arg(long)]
    pub tool: PathBuf,
    /// A text.
    #[arg(long)]
    pub text: PathBuf,
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "q8_0,q6_k,q5_k,q5_1,q5_0,q4_k,q4_1,q4_0,q3_k,q2_k,tq2_0,tq1_0"
    )]
    pub types: Vec<String>,
}

/// How far the mean negative log-likelihoods may be apart, as a part of them: both round x to 8 bits, each in its own
/// way.
const APART: f64 = 0.005;

/// From so many times the value of the model as it is on, its type has ruined it (ternary: a perplexity of 1e9) and it
/// magnifies what rounding x does: the two may then be as far apart as ours are with and without rounding.
const RUINED: f64 = 2.0;

/// Tokens foretold, and the mean of -ln p, by examples/c/llm with activations of that kind.
fn ours(a: &Arguments, file: &Path, activation: &str) -> (usize, f64) {
    let common = &a.common;
    let text = said(
        Command::new(&common.llm)
            .arg("--model")
            .arg(file)
            .arg("--perplexity")
            .arg(&a.text)
            .args(["--activation", activation]),
    );
    let last = text.lines().last().unwrap_or_default();
    (figure(last, "tokens") as usize, figure(last, "mean_nll"))
}

/// The same by llama.cpp.
fn theirs(file: &Path, text: &str) -> (usize, f64) {
    let llama = Llama::open(file, Room { tokens: text.len() + 8, batch: text.len() + 8 }, 1);
    let bytes = CString::new(text).expect("a text without NUL");
    let mut tokens = vec![0i32; text.len() + 8];
    // SAFETY: live handles; the lengths are those of the arrays.
    let count = unsafe {
        let vocabulary = sys::llama_model_get_vocab(llama.model);
        let (length, room) = (text.len() as i32, tokens.len() as i32);
        sys::llama_tokenize(vocabulary, bytes.as_ptr(), length, tokens.as_mut_ptr(), room, false, false)
    };
    assert!(count > 1, "llama.cpp: {count} tokens");
    tokens.truncate(count as usize);
    // SAFETY: a batch of `count` tokens of one sequence, all with logits, and freed.
    unsafe {
        let mut batch = sys::llama_batch_init(count, 0, 1);
        batch.n_tokens = count;
        for (i, token) in tokens.iter().enumerate() {
            *batch.token.add(i) = *token;
            *batch.pos.add(i) = i as i32;
            *batch.n_seq_id.add(i) = 1;
            *(*batch.seq_id.add(i)) = 0;
            *batch.logits.add(i) = 1;
        }
        assert_eq!(sys::llama_decode(llama.context, batch), 0, "llama.cpp: decode");
        sys::llama_batch_free(batch);
    }
    let mut sum = 0.0;
    for (i, next) in tokens.iter().skip(1).enumerate() {
        // SAFETY: each token of the batch has logits.
        let logits = unsafe {
            std::slice::from_raw_parts(sys::llama_get_logits_ith(llama.context, i as i32), llama.vocabulary)
        };
        let most = logits.iter().copied().fold(f32::MIN, f32::max) as f64;
        let total: f64 = logits.iter().map(|v| (*v as f64 - most).exp()).sum();
        sum += most + total.ln() - logits[*next as usize] as f64;
    }
    (tokens.len() - 1, sum / (tokens.len() - 1) as f64)
}

pub fn run(a: &Arguments) {
    let mut store = Store::open(&a.common.out);
    store.files.clear();
    let text = std::fs::read_to_string(&a.text).unwrap_or_else(|e| panic!("{}: {e}", a.text.display()));
    let file = std::env::temp_dir().join(format!("bitlinear-peers-{}.gguf", std::process::id()));
    let (_, whole) = ours(a, &a.common.model, "int8");
    for ty in &a.types {
        let mut quantize = Command::new(&a.tool);
        quantize.arg("quantize").arg(&a.common.model).arg(&file);
        // Rows of this model are 576 columns: blocks of 256 do not fit most of them.
        said(quantize.args(["--again", "--type", ty, "--fallback", "q8_0"]));
        let bytes = std::fs::metadata(&file).map_or(0, |m| m.len());
        let ((tokens, rounded), (theirs_tokens, theirs)) = (ours(a, &file, "int8"), theirs(&file, &text));
        let allowed = if rounded > RUINED * whole {
            (rounded - ours(a, &file, "f32").1).abs()
        } else {
            APART * rounded
        };
        let _ = std::fs::remove_file(&file);
        println!("{ty}: {tokens} tokens; mean nll in bitlinear {rounded:.4}, in llama.cpp {theirs:.4}");
        assert_eq!(tokens, theirs_tokens, "{ty}: tokens");
        assert!((rounded - theirs).abs() < allowed, "{ty}: bitlinear and llama.cpp read other weights");
        store.files.push(File { ty: ty.clone(), bytes, tokens, ours: rounded, theirs });
    }
    store.save(&a.common.out);
}
