//! A language model, whole: the C program of examples/c/llm on bitlinear, and llama.cpp, with the same file.
//!
//! Both take a prompt of made-up tokens in pieces of at most 512 rows (the second time counts), then generate the
//! likeliest tokens one by one. They run in turn, round by round; the best round counts.

use std::ffi::CString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use clap::Args;
use llama_cpp_sys_2 as sys;

use crate::store::{Program, Store, processors};

/// What is run on which model, and where figures go.
#[derive(Args)]
pub struct Common {
    /// The JSON file, which gets the figures.
    #[arg(long, default_value = "target/peers.json")]
    pub out: PathBuf,
    /// The model: a GGUF file of the llama architecture.
    #[arg(long)]
    pub model: PathBuf,
    /// The C program of examples/c/llm.
    #[arg(long)]
    pub llm: PathBuf,
}

#[derive(Args)]
pub struct Arguments {
    #[command(flatten)]
    pub common: Common,
    #[arg(long, default_value_t = 512)]
    pub prompt: usize,
    #[arg(long, default_value_t = 128)]
    pub length: usize,
    #[arg(long, default_value_t = 3)]
    pub rounds: usize,
    #[arg(long, value_delimiter = ',')]
    pub threads: Vec<usize>,
}

/// Seconds for the prompt and for the generated tokens, and of each the part inside bitlinear.
struct Round {
    prompt: f64,
    generation: f64,
    inside: Option<(f64, f64)>,
}

/// What a program prints; it must succeed.
pub fn said(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The number after a word.
pub fn figure(text: &str, name: &str) -> f64 {
    let value =
        text.split_whitespace().skip_while(|word| *word != name).nth(1).and_then(|word| word.parse().ok());
    value.unwrap_or_else(|| panic!("no {name}: {text}"))
}

/// examples/c/llm --bench.
fn ours(a: &Arguments, threads: usize) -> (Round, String) {
    let mut command = Command::new(&a.common.llm);
    command.arg("--model").arg(&a.common.model).args(["--piece", &a.prompt.to_string()]);
    command.args(["--bench", &a.prompt.to_string(), &a.length.to_string()]);
    command.args(["--threads", &threads.to_string()]);
    let text = said(&mut command);
    let figure = |name| figure(&text, name);
    let prompt = a.prompt as f64 / figure("prompt_tps");
    let generation = a.length as f64 / figure("generate_tps");
    let inside = (prompt * figure("library_share_prompt"), generation * figure("library_share_generate"));
    let shown = format!(
        "llm --model {} --piece {} --bench {} {} --threads N",
        a.common.model.file_name().unwrap_or_default().to_string_lossy(),
        a.prompt,
        a.prompt,
        a.length
    );
    (Round { prompt, generation, inside: Some(inside) }, shown)
}

/// llama.cpp with its own defaults, but for the numbers of threads.
pub struct Llama {
    pub model: *mut sys::llama_model,
    pub context: *mut sys::llama_context,
    pub vocabulary: usize,
}

/// Tokens of a context, and of one call at most.
pub struct Room {
    pub tokens: usize,
    pub batch: usize,
}

unsafe extern "C" fn silent(_: sys::ggml_log_level, _: *const std::ffi::c_char, _: *mut std::ffi::c_void) {}

impl Llama {
    pub fn open(path: &Path, room: Room, threads: usize) -> Llama {
        let c_path = CString::new(path.to_str().expect("UTF-8")).expect("a path");
        // SAFETY: llama.cpp's own defaults and live handles.
        unsafe {
            sys::llama_log_set(Some(silent), std::ptr::null_mut());
            sys::llama_backend_init();
            let model = sys::llama_model_load_from_file(c_path.as_ptr(), sys::llama_model_default_params());
            assert!(!model.is_null(), "llama.cpp: {} does not open", path.display());
            let mut parameters = sys::llama_context_default_params();
            parameters.n_ctx = room.tokens as u32;
            parameters.n_batch = room.batch as u32;
            parameters.n_ubatch = room.batch as u32;
            parameters.n_threads = threads as i32;
            parameters.n_threads_batch = threads as i32;
            let context = sys::llama_init_from_model(model, parameters);
            assert!(!context.is_null(), "llama.cpp: no context");
            let vocabulary = sys::llama_vocab_n_tokens(sys::llama_model_get_vocab(model)) as usize;
            Llama { model, context, vocabulary }
        }
    }

    fn feed(&mut self, tokens: &mut [i32]) -> i32 {
        // SAFETY: as many tokens as are said; logits of the last one.
        unsafe {
            let batch = sys::llama_batch_get_one(tokens.as_mut_ptr(), tokens.len() as i32);
            assert_eq!(sys::llama_decode(self.context, batch), 0, "llama.cpp: decode");
            let logits =
                std::slice::from_raw_parts(sys::llama_get_logits_ith(self.context, -1), self.vocabulary);
            let best = logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
            best.map_or(0, |(i, _)| i as i32)
        }
    }

    fn round(&mut self, a: &Arguments) -> Round {
        let mut tokens: Vec<i32> =
            (0..a.prompt).map(|i| ((i * 7919 + 17) % (self.vocabulary - 100)) as i32).collect();
        let mut prompt = 0.0;
        let mut next = 0;
        for _ in 0..2 {
            // SAFETY: a live context.
            unsafe { sys::llama_memory_clear(sys::llama_get_memory(self.context), true) };
            let begin = Instant::now();
            next = self.feed(&mut tokens);
            prompt = begin.elapsed().as_secs_f64();
        }
        let begin = Instant::now();
        for _ in 0..a.length {
            next = self.feed(&mut [next]);
        }
        Round { prompt, generation: begin.elapsed().as_secs_f64(), inside: None }
    }
}

impl Drop for Llama {
    fn drop(&mut self) {
        // SAFETY: live, freed once.
        unsafe {
            sys::llama_free(self.context);
            sys::llama_model_free(self.model);
        }
    }
}

/// The best of the rounds, part by part.
fn best(a: &Arguments, name: &str, threads: usize, rounds: &[Round], command: String) -> Program {
    let least = |f: fn(&Round) -> f64| rounds.iter().map(f).fold(f64::MAX, f64::min);
    let inside = rounds.iter().all(|r| r.inside.is_some());
    let part = |f: fn(&Round) -> f64| inside.then(|| least(f));
    Program {
        name: name.into(),
        threads,
        prompt: a.prompt as f64 / least(|r| r.prompt),
        generation: a.length as f64 / least(|r| r.generation),
        prompt_inside: part(|r| r.inside.map_or(0.0, |i| i.0)),
        generation_inside: part(|r| r.inside.map_or(0.0, |i| i.1)),
        command,
    }
}

pub fn run(a: &Arguments) {
    let mut store = Store::open(&a.common.out);
    let all = processors();
    let threads = match (a.threads.is_empty(), all) {
        (false, _) => a.threads.clone(),
        (true, 1) => vec![1],
        (true, _) => vec![1, all],
    };
    store.programs.clear();
    for threads in threads {
        let room = Room { tokens: a.prompt + a.length + 8, batch: a.prompt };
        let mut llama = Llama::open(&a.common.model, room, threads);
        let (mut ours_rounds, mut llama_rounds, mut shown) = (Vec::new(), Vec::new(), String::new());
        for _ in 0..a.rounds {
            let (round, command) = ours(a, threads);
            ours_rounds.push(round);
            shown = command;
            llama_rounds.push(llama.round(a));
        }
        let file = a.common.model.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let programs = [
            best(a, &format!("bitlinear, examples/c/llm, {file}"), threads, &ours_rounds, shown),
            best(
                a,
                &format!("llama.cpp, {file}"),
                threads,
                &llama_rounds,
                format!("peers programs --prompt {} --length {}", a.prompt, a.length),
            ),
        ];
        for p in programs {
            println!(
                "{} threads {}: prompt {:.1} tokens/s, generation {:.1} tokens/s",
                p.name, p.threads, p.prompt, p.generation
            );
            store.programs.push(p);
        }
    }
    store.save(&a.common.out);
}
