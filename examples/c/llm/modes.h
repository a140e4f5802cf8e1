#ifndef LLM_MODES_H
#define LLM_MODES_H
/** What the program can do with a model, one function for each way to call it. */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "chat.h"
#include "model.h"
#include "pool.h"
#include "report.h"
#include "sampler.h"
#include "tokenizer.h"

typedef struct {
  const char *model_path;
  const char *prompt, *system;
  const char *perplexity_path, *dump_path, *tokenize_path, *packed_path;
  size_t length;            /**< tokens to generate at most */
  size_t threads;
  pool *pool;               /**< of so many */
  bl_activation activation;
  sampler sampler;
  bool raw;                 /**< no chat template */
  bool hash, bench, help;
  size_t hash_tokens;       /**< 0: of the prompt */
  size_t bench_prompt, bench_length;
  size_t piece;             /**< tokens fed at a time */
} settings;

/** The prompt's answer, token by token, on stdout. */
bool run_generate(const settings *set, const model *m, const tokenizer *t, run_figures *figures);
/** How well the model foretells a text, on stdout. */
bool run_perplexity(const settings *set, const model *m, const tokenizer *t, run_figures *figures);
/** The prompt's ten largest logits at each position, to a file. */
bool run_dump(const settings *set, const model *m, const tokenizer *t, run_figures *figures);
/** A hash over the bits of all logits, on stdout. */
bool run_hash(const settings *set, const model *m, const tokenizer *t, run_figures *figures);
/** Speed on made-up tokens, on stdout. */
bool run_bench(const settings *set, const model *m, const tokenizer *t, run_figures *figures);
/** The tokens of a file's text, on stdout, one on a line. */
bool run_tokenize(const settings *set, const tokenizer *t);

#endif
