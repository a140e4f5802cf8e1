#include "modes.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "numeric.h"
#include "session.h"
#include "util.h"

#define TOP 10
/* A long text is measured in windows of at most this many tokens, each on its own. */
#define WINDOW 2048

static bool encode_text(const tokenizer *t, const char *text, size_t size, token_list *list) {
  if (t->add_bos && !token_list_add(list, t->bos)) return false;
  if (!tokenizer_encode(t, text, size, false, list)) return false;
  return list->count > 0 || fail("the text is empty");
}

/* Tokens that anyone can make up again: `count` ordinary ones, the same for the same vocabulary. */
static bool made_up_tokens(const tokenizer *t, size_t count, token_list *list) {
  uint64_t state = 1;
  while (list->count < count) {
    int32_t id = (int32_t)(next_random(&state) % (uint64_t)t->count);
    if (t->specials < (size_t)t->count && tokenizer_is_special(t, id)) continue;
    if (!token_list_add(list, id)) return false;
  }
  return true;
}

/* ---- perplexity and the dump of logits ----------------------------------------------------------
 * Position i of a window foretells token i + 1. */

typedef struct {
  const token_list *text;
  size_t vocabulary, window_start, window_end;
  double nll_sum;
  size_t nll_count;
  double *log_sums;   /* one for each token of the text: of the dump only */
  int32_t *top_ids;   /* [tokens][TOP] */
  float *top_logits;
} measurement;

static bool measure(void *user, size_t position, const float *logits) {
  measurement *all = user;
  size_t at = all->window_start + position;
  double log_sum = log_sum_exp(all->vocabulary, logits);
  if (at + 1 < all->window_end) {
    all->nll_sum += log_sum - (double)logits[all->text->ids[at + 1]];
    all->nll_count++;
  }
  if (!all->log_sums) return true;
  size_t top = all->vocabulary < TOP ? all->vocabulary : TOP;
  all->log_sums[at] = log_sum;
  largest_logits(logits, all->vocabulary, top, all->top_ids + at * TOP);
  for (size_t i = 0; i < top; i++)
    all->top_logits[at * TOP + i] = logits[all->top_ids[at * TOP + i]];
  return true;
}

static bool measure_text(const settings *set, const model *m, measurement *all,
                         run_figures *figures) {
  size_t window = m->context_length < WINDOW ? m->context_length : WINDOW, count = all->text->count;
  session s;
  all->vocabulary = m->vocabulary;
  if (!session_open(&s, m, set->pool, count < window ? count : window, set->piece)) return false;
  figures->prompt_rows = s.batch;
  figures->prompt_tokens = count;
  double begin = now();
  bool ok = true;
  for (size_t start = 0; ok && start < count; start += window) {
    size_t size = count - start < window ? count - start : window;
    all->window_start = start;
    all->window_end = start + size;
    session_reset(&s);
    ok = session_feed_all(&s, all->text->ids + start, size, measure, all);
  }
  figures->prompt_seconds = now() - begin;
  session_close(&s);
  return ok;
}

/* JSON has no infinities: what is not finite is written as null. */
static void write_number(FILE *file, double value) {
  if (isfinite(value)) fprintf(file, "%.9g", value);
  else fputs("null", file);
}

static bool write_dump(const char *path, const measurement *all) {
  size_t count = all->text->count, top = all->vocabulary < TOP ? all->vocabulary : TOP;
  FILE *file = fopen(path, "w");
  if (!file) return fail("cannot write '%s': %s", path, strerror(errno));
  fputs("{\"ids\": [", file);
  for (size_t i = 0; i < count; i++)
    fprintf(file, "%s%" PRId32, i ? ", " : "", all->text->ids[i]);
  fputs("],\n\"logsumexp\": [", file);
  for (size_t i = 0; i < count; i++) {
    if (i) fputs(", ", file);
    write_number(file, all->log_sums[i]);
  }
  fputs("],\n\"top10\": [", file);
  for (size_t i = 0; i < count; i++) {
    fputs(i ? ",\n[" : "\n[", file);
    for (size_t j = 0; j < top; j++) {
      fprintf(file, "%s[%" PRId32 ", ", j ? ", " : "", all->top_ids[i * TOP + j]);
      write_number(file, (double)all->top_logits[i * TOP + j]);
      fputc(']', file);
    }
    fputc(']', file);
  }
  fputs("]}\n", file);
  bool ok = !ferror(file);
  ok = fclose(file) == 0 && ok;
  return ok || fail("cannot write '%s': %s", path, strerror(errno));
}

/* Measures a text, and writes the dump where one is wanted. */
static bool measure_and_dump(const settings *set, const model *m, measurement *all,
                             run_figures *figures) {
  bool ok = true;
  size_t count = all->text->count;
  if (set->dump_path) {
    all->log_sums = allocate(count, sizeof *all->log_sums);
    all->top_ids = allocate(count, TOP * sizeof *all->top_ids);
    all->top_logits = allocate(count, TOP * sizeof *all->top_logits);
    ok = all->log_sums && all->top_ids && all->top_logits;
  }
  ok = ok && measure_text(set, m, all, figures);
  if (ok && set->dump_path) ok = write_dump(set->dump_path, all);
  free(all->log_sums);
  free(all->top_ids);
  free(all->top_logits);
  return ok;
}

bool run_perplexity(const settings *set, const model *m, const tokenizer *t, run_figures *figures) {
  token_list text = {0};
  measurement all = {.text = &text};
  size_t size;
  char *bytes = read_file(set->perplexity_path, &size);
  bool ok = bytes && encode_text(t, bytes, size, &text);
  free(bytes);
  if (ok && text.count < 2) ok = fail("a text of one token foretells nothing");
  if (ok && (ok = measure_and_dump(set, m, &all, figures))) {
    double mean = all.nll_sum / (double)all.nll_count;
    printf("tokens %zu mean_nll %.6f perplexity %.4f\n", all.nll_count, mean, exp(mean));
  }
  free(text.ids);
  return ok;
}

bool run_dump(const settings *set, const model *m, const tokenizer *t, run_figures *figures) {
  token_list text = {0};
  measurement all = {.text = &text};
  bool ok = encode_text(t, set->prompt, strlen(set->prompt), &text) &&
            measure_and_dump(set, m, &all, figures);
  free(text.ids);
  return ok;
}

/* ---- the hash of all logits ---------------------------------------------------------------- */

typedef struct {
  uint64_t hash;
  size_t vocabulary;
} logits_hash;

static bool hash_logits(void *user, size_t position, const float *logits) {
  logits_hash *h = user;
  (void)position;
  for (size_t i = 0; i < h->vocabulary; i++) {
    uint32_t bits;
    memcpy(&bits, &logits[i], sizeof bits);
    for (int byte = 0; byte < 4; byte++, bits >>= 8)
      h->hash = (h->hash ^ (bits & 0xff)) * 0x100000001b3u;
  }
  return true;
}

bool run_hash(const settings *set, const model *m, const tokenizer *t, run_figures *figures) {
  token_list text = {0};
  logits_hash h = {.hash = 0xcbf29ce484222325u, .vocabulary = m->vocabulary};
  session s;
  bool ok = set->hash_tokens ? made_up_tokens(t, set->hash_tokens, &text)
                             : encode_text(t, set->prompt, strlen(set->prompt), &text);
  if (ok && (ok = session_open(&s, m, set->pool, text.count, set->piece))) {
    figures->prompt_rows = s.batch;
    figures->prompt_tokens = text.count;
    double begin = now();
    ok = session_feed_all(&s, text.ids, text.count, hash_logits, &h);
    figures->prompt_seconds = now() - begin;
    session_close(&s);
  }
  if (ok) printf("hash %016" PRIx64 " tokens %zu\n", h.hash, text.count);
  free(text.ids);
  return ok;
}

/* ---- speed --------------------------------------------------------------------------------- */

/* The prompt is run twice and the second time counts: by then memory has been touched once. */
static bool bench_prompt(session *s, const token_list *text, float *logits, run_figures *figures) {
  if (!session_feed(s, text->ids, text->count, logits)) return false;
  session_reset(s);
  double begin = now();
  if (!session_feed(s, text->ids, text->count, logits)) return false;
  figures->prompt_seconds = now() - begin;
  return true;
}

static bool bench_generate(session *s, size_t length, float *logits, run_figures *figures) {
  double begin = now();
  for (size_t i = 0; i < length; i++) {
    int32_t id = (int32_t)index_of_largest(s->model->vocabulary, logits);
    if (!session_feed(s, &id, 1, logits)) return false;
  }
  figures->generate_seconds = now() - begin;
  return true;
}

bool run_bench(const settings *set, const model *m, const tokenizer *t, run_figures *figures) {
  token_list text = {0};
  session s = {0};
  float *logits = allocate(m->vocabulary, sizeof *logits);
  figures->prompt_tokens = set->bench_prompt;
  figures->generated_tokens = set->bench_length;
  bool ok = logits && made_up_tokens(t, set->bench_prompt, &text) &&
            session_open(&s, m, set->pool, set->bench_prompt + set->bench_length, set->piece) &&
            bench_prompt(&s, &text, logits, figures);
  double prompt_library = s.library_seconds;
  ok = ok && bench_generate(&s, set->bench_length, logits, figures);
  if (ok) {
    double generate_library = s.library_seconds - prompt_library;
    figures->prompt_rows = text.count < s.batch ? text.count : s.batch;
    printf("prompt_tps %.2f generate_tps %.2f ", (double)text.count / figures->prompt_seconds,
           (double)set->bench_length / figures->generate_seconds);
    printf("library_share_prompt %.4f library_share_generate %.4f\n",
           prompt_library / figures->prompt_seconds, generate_library / figures->generate_seconds);
  }
  if (s.model) session_close(&s);
  free(logits);
  free(text.ids);
  return ok;
}

bool run_tokenize(const settings *set, const tokenizer *t) {
  token_list list = {0};
  size_t size;
  char *text = read_file(set->tokenize_path, &size);
  bool ok = text && tokenizer_encode(t, text, size, !set->raw, &list);
  for (size_t i = 0; ok && i < list.count; i++) printf("%" PRId32 "\n", list.ids[i]);
  free(text);
  free(list.ids);
  return ok;
}
