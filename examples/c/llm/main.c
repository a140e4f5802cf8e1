/**
 * llm: runs a GGUF model of the llama architecture on top of libbitlinear.
 *
 * The library does the linear layers (session.c, `forward`), which is where nearly all of the time
 * goes. The rest of a language model is here: model.c opens the layers, session.c is the forward
 * pass, attention.c and numeric.c are what lies between the layers, pool.c has the threads, which
 * the library runs on as well, metadata.c reads and packs files, tokenizer.c and split.c turn text
 * into tokens, sampler.c chooses the next one, chat.c writes the conversation; generate.c and
 * modes.c are what the program does with all that.
 */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "modes.h"
#include "util.h"

static const char help[] =
    "usage: llm --model FILE --prompt TEXT [options]\n"
    "       llm --model FILE --perplexity FILE | --hash | --bench P N | --tokenize FILE\n"
    "       llm --model FILE --save-packed FILE\n"
    "\n"
    "  --model FILE          a GGUF file of the llama architecture, or a packed one\n"
    "  --prompt TEXT         what to answer, or with --raw to go on with\n"
    "  --system TEXT         the system turn of the conversation\n"
    "  --raw                 no chat template\n"
    "  --length N            tokens to generate at most (128)\n"
    "  --temperature T       0: always the likeliest token (0)\n"
    "  --top-k K             choose among the K likeliest tokens; 0: all (40)\n"
    "  --seed N              of the choice (1)\n"
    "  --activation f32|int8 inputs of the linear layers; int8 leaves dense layers in f32 (int8)\n"
    "  --threads N           threads that work, at most 256 (1)\n"
    "  --piece N             tokens of a prompt worked on at a time (256)\n"
    "\n"
    "  --perplexity FILE     how well the model foretells the file's text; the last line is\n"
    "                        'tokens N mean_nll X perplexity Y', N tokens foretold\n"
    "  --dump-logits FILE    writes the ten largest logits and the log-sum-exp at each position\n"
    "                        of the perplexity text or the raw prompt, as JSON\n"
    "  --hash                a hash over the bits of all logits of the raw prompt ...\n"
    "  --tokens N            ... or of N made-up tokens\n"
    "  --bench P N           speed of a prompt of P made-up tokens and of N generated ones;\n"
    "                        shares are the library's part of the time\n"
    "  --tokenize FILE       the tokens of the file's text; --raw: special ones are plain text\n"
    "  --save-packed FILE    writes the model as it lies in memory: a file that opens at once\n"
    "  --help\n";

/* ---- options ------------------------------------------------------------------------------- */

typedef enum { FLAG, TEXT, COUNT, REAL, NUMBER } option_kind;

typedef struct {
  const char *name;
  option_kind kind;
  void *value; /* bool, const char *, size_t, double or uint64_t */
} option;

static bool parse_whole(const char *name, const char *text, uint64_t most, uint64_t *value) {
  char *end;
  errno = 0;
  unsigned long long number = strtoull(text, &end, 10);
  if (*text < '0' || *text > '9' || *end || errno || number > most)
    return fail("%s needs a whole number of at most %llu, not '%s'", name, (unsigned long long)most,
                text);
  *value = number;
  return true;
}

static bool parse_value(const option *o, const char *text) {
  uint64_t number = 0;
  char *end;
  switch (o->kind) {
    case FLAG: *(bool *)o->value = true; return true;
    case TEXT: *(const char **)o->value = text; return true;
    case NUMBER: return parse_whole(o->name, text, UINT64_MAX, o->value);
    case COUNT:
      if (!parse_whole(o->name, text, 1000000000, &number)) return false;
      *(size_t *)o->value = (size_t)number;
      return true;
    case REAL: *(double *)o->value = strtod(text, &end); break;
  }
  double real = *(const double *)o->value;
  if (end != text && !*end && isfinite(real) && real >= 0) return true;
  return fail("%s needs a number of at least 0, not '%s'", o->name, text);
}

#define MOST_THREADS 256

/* Options that must not be zero, and those that do not go together. */
static bool check(const settings *set, const char *activation) {
  bool perplexity = set->perplexity_path != NULL, tokenize = set->tokenize_path != NULL;
  bool save = set->packed_path != NULL;
  int modes = perplexity + set->hash + set->bench + tokenize + save;
  bool needs_prompt = modes == 0 || (set->hash && !set->hash_tokens);
  if (!set->model_path) return fail("no model: give --model FILE (--help says more)");
  if (modes > 1)
    return fail("--perplexity, --hash, --bench, --tokenize and --save-packed are one or the other");
  if (needs_prompt && !set->prompt)
    return fail("nothing to do: give --prompt TEXT (--help says more)");
  if (!needs_prompt && set->prompt) return fail("--prompt does not go with what else is asked for");
  if (set->hash_tokens && !set->hash) return fail("--tokens goes with --hash");
  if (set->dump_path && modes > 0 && !perplexity)
    return fail("--dump-logits goes with --perplexity or --prompt");
  if (set->bench && (!set->bench_prompt || !set->bench_length))
    return fail("--bench needs two numbers of at least 1");
  if (!set->piece) return fail("--piece needs at least 1");
  if (!set->length) return fail("--length needs at least 1");
  if (set->sampler.top_k > 1000) return fail("--top-k is at most 1000; 0 means all");
  if (strcmp(activation, "f32") != 0 && strcmp(activation, "int8") != 0)
    return fail("--activation is f32 or int8, not '%s'", activation);
  if (save && strcmp(activation, "int8") != 0)
    return fail("--activation goes with the runs of a packed file, not with --save-packed");
  if (set->threads < 1 || set->threads > MOST_THREADS)
    return fail("--threads needs 1 to %d, not %zu", MOST_THREADS, set->threads);
  return true;
}

static bool parse(int count, char **words, settings *set) {
  const char *activation = "int8";
  const option options[] = {
      {"--model", TEXT, &set->model_path},
      {"--prompt", TEXT, &set->prompt},
      {"--system", TEXT, &set->system},
      {"--raw", FLAG, &set->raw},
      {"--length", COUNT, &set->length},
      {"--temperature", REAL, &set->sampler.temperature},
      {"--top-k", COUNT, &set->sampler.top_k},
      {"--seed", NUMBER, &set->sampler.state},
      {"--activation", TEXT, &activation},
      {"--threads", COUNT, &set->threads},
      {"--piece", COUNT, &set->piece},
      {"--perplexity", TEXT, &set->perplexity_path},
      {"--dump-logits", TEXT, &set->dump_path},
      {"--hash", FLAG, &set->hash},
      {"--tokens", COUNT, &set->hash_tokens},
      {"--bench", COUNT, &set->bench_prompt}, /* and a second number */
      {"--tokenize", TEXT, &set->tokenize_path},
      {"--save-packed", TEXT, &set->packed_path},
      {"--help", FLAG, &set->help},
  };
  for (int i = 1; i < count; i++) {
    const option *o = NULL;
    for (size_t j = 0; j < sizeof options / sizeof *options; j++)
      if (strcmp(words[i], options[j].name) == 0) o = &options[j];
    if (!o) return fail("unknown option '%s' (--help lists them)", words[i]);
    set->bench = set->bench || o->value == &set->bench_prompt;
    int values = o->kind == FLAG ? 0 : o->value == &set->bench_prompt ? 2 : 1;
    if (values > count - 1 - i)
      return fail("%s needs %s", o->name, values == 2 ? "two numbers" : "a value");
    if (!parse_value(o, values ? words[i + 1] : NULL)) return false;
    if (values == 2) {
      const option second = {o->name, COUNT, &set->bench_length};
      if (!parse_value(&second, words[i + 2])) return false;
    }
    i += values;
  }
  set->activation = strcmp(activation, "f32") == 0 ? BL_ACTIVATION_F32 : BL_ACTIVATION_AUTO;
  return set->help || check(set, activation);
}

/* ---- running ------------------------------------------------------------------------------- */

static bool run_model(const settings *set, const bl_context *context) {
  model m;
  tokenizer t;
  run_figures figures = {0};
  double begin = now();
  if (!model_open(&m, context, set->model_path, set->activation)) return false;
  figures.open_seconds = now() - begin;
  begin = now();
  bool has_tokenizer = tokenizer_open(&t, m.file), ok = has_tokenizer;
  figures.tokenizer_seconds = now() - begin;
  if (ok && (size_t)t.count > m.vocabulary)
    ok = fail("the tokenizer has %d tokens, the model only %zu", (int)t.count, m.vocabulary);
  if (ok) {
    ok = set->perplexity_path ? run_perplexity(set, &m, &t, &figures)
         : set->hash          ? run_hash(set, &m, &t, &figures)
         : set->bench         ? run_bench(set, &m, &t, &figures)
         : set->dump_path     ? run_dump(set, &m, &t, &figures)
         : set->packed_path   ? model_save(&m, set->packed_path)
                              : run_generate(set, &m, &t, &figures);
  }
  if (ok && fflush(stdout) != 0) ok = fail("cannot write the output");
  if (ok) report(&m, &figures);
  if (has_tokenizer) tokenizer_close(&t);
  model_close(&m);
  return ok;
}

/* Needs the file, but none of its layers. */
static bool run_tokenizer(const settings *set, const bl_context *context) {
  bl_error error;
  bl_model *file;
  tokenizer t;
  if (bl_load(context, set->model_path, NULL, &file, &error) != BL_OK)
    return fail("cannot load '%s': %s", set->model_path, error.message);
  bool ok = tokenizer_open(&t, file);
  if (ok) {
    ok = run_tokenize(set, &t);
    tokenizer_close(&t);
  }
  bl_free(file);
  return ok;
}

int main(int count, char **words) {
  settings set = {.length = 128, .threads = 1, .piece = 256, .sampler = {.top_k = 40, .state = 1}};
  if (!parse(count, words, &set)) return 2;
  if (set.help) return fputs(help, stdout) < 0 || fflush(stdout) != 0 ? !fail("cannot write the output") : 0;
  set.pool = pool_open(set.threads);
  if (!set.pool) return 1;
  bl_error error;
  bl_context *context;
  bl_context_options options = {.struct_size = sizeof options, .threads = (uint32_t)set.threads};
  /* The library's parallel work runs on this program's threads. */
  if (set.threads > 1) {
    options.parallel_for = pool_run;
    options.parallel_for_user = set.pool;
  }
  bool ok = bl_context_create(&options, &context, &error) == BL_OK;
  if (!ok) fail("bl_context_create: %s", error.message);
  else ok = set.tokenize_path ? run_tokenizer(&set, context) : run_model(&set, context);
  bl_free(context);
  pool_close(set.pool);
  return ok ? 0 : 1;
}
