#include "report.h"

#include <stdio.h>
#include <string.h>

#include "util.h"

/* Names and how often each occurred, in the order of their first occurrence. */
#define MOST_NAMES 16
typedef struct {
  const char *names[MOST_NAMES];
  size_t counts[MOST_NAMES], used;
} tally;

static void count_name(tally *t, const char *name) {
  size_t i = 0;
  while (i < t->used && strcmp(t->names[i], name) != 0) i++;
  if (i == MOST_NAMES) return;
  if (i == t->used) t->names[t->used++] = name;
  t->counts[i]++;
}

static void print_tally(const tally *t) {
  for (size_t i = 0; i < t->used; i++)
    fprintf(stderr, "%s%zu x %s", i ? ", " : "", t->counts[i], t->names[i]);
}

static void report_weights(const model *m) {
  tally types = {0};
  uint64_t packed = 0, mapped = 0;
  for (size_t i = 0; i < model_layer_count(m); i++) {
    bl_layer_info layer = {.struct_size = sizeof layer};
    bl_type_info type = {.struct_size = sizeof type};
    if (bl_layer_describe(model_layer(m, i), &layer, NULL) != BL_OK) continue;
    packed += layer.bytes_packed;
    mapped += layer.bytes_mapped;
    if (bl_type_describe(layer.type, &type, NULL) == BL_OK) count_name(&types, type.name);
  }
  fputs("weights    ", stderr);
  print_tally(&types);
  fprintf(stderr, "; %.1f MB packed, %.1f MB used in place\n", (double)packed / 1e6,
          (double)mapped / 1e6);
}

static void report_kernels(const model *m, size_t rows) {
  tally kernels = {0};
  for (size_t i = 0; i < model_layer_count(m); i++) {
    bl_plan_info plan = {.struct_size = sizeof plan};
    if (bl_plan(model_layer(m, i), BL_OP_FORWARD, (int64_t)rows, BL_TYPE_F32, &plan, NULL) == BL_OK)
      count_name(&kernels, plan.kernel);
  }
  fprintf(stderr, "kernels    m=%zu: ", rows);
  print_tally(&kernels);
  fputc('\n', stderr);
}

static void report_speed(const char *what, size_t tokens, double seconds) {
  if (tokens > 0 && seconds > 0)
    fprintf(stderr, "%s%zu tokens, %.1f tokens/s\n", what, tokens, (double)tokens / seconds);
}

void report(const model *m, const run_figures *figures) {
  fprintf(stderr, "model      %s (%zu blocks, width %zu, vocabulary %zu)\n", m->name,
          m->block_count, m->width, m->vocabulary);
  report_weights(m);
  report_kernels(m, 1);
  if (figures->prompt_rows > 1) report_kernels(m, figures->prompt_rows);
  fprintf(stderr, "load       layers %.4f s, tokenizer %.4f s; peak memory %.1f MB\n",
          figures->open_seconds, figures->tokenizer_seconds, (double)peak_memory() / 1e6);
  report_speed("prompt     ", figures->prompt_tokens, figures->prompt_seconds);
  report_speed("generated  ", figures->generated_tokens, figures->generate_seconds);
}
