#include "session.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "numeric.h"
#include "util.h"

/* Rows of logits computed at a time: a row is as long as the vocabulary. */
#define LOGITS_ROWS 32

static bool fill_rotations(session *s) {
  size_t pairs = s->model->rope_pairs;
  s->cosines = allocate(s->capacity * pairs, sizeof(float));
  s->sines = allocate(s->capacity * pairs, sizeof(float));
  if (!s->cosines || !s->sines) return false;
  for (size_t i = 0; i < s->capacity * pairs; i++) {
    double angle = (double)(i / pairs) * s->model->rope_frequency[i % pairs];
    s->cosines[i] = (float)cos(angle);
    s->sines[i] = (float)sin(angle);
  }
  return true;
}

static bool allocate_buffers(session *s) {
  const model *m = s->model;
  const attention_shape *a = &m->attention;
  const struct {
    float **buffer;
    size_t width;
  } rows[] = {
      {&s->x, m->width},
      {&s->normed, m->width},
      {&s->query, a->heads * a->key_dim},
      {&s->key, a->kv_heads * a->key_dim},
      {&s->value, a->kv_heads * a->value_dim},
      {&s->mixed, a->heads * a->value_dim},
      {&s->gate, m->ffn_width},
      {&s->up, m->ffn_width},
  };
  for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
    if (!(*rows[i].buffer = allocate(s->batch, rows[i].width * sizeof(float)))) return false;
  s->scratch = allocate(attention_scratch(a, s->capacity - 1), sizeof(float));
  size_t cache_size = kv_cache_size(a, s->capacity);
  s->caches = allocate(m->block_count, sizeof *s->caches);
  s->cache_memory = allocate(m->block_count, cache_size * sizeof(float));
  if (!s->scratch || !s->caches || !s->cache_memory) return false;
  for (size_t i = 0; i < m->block_count; i++)
    s->caches[i] = kv_cache_in(s->cache_memory + i * cache_size, a, s->capacity);
  return true;
}

bool session_open(session *s, const model *m, size_t capacity, size_t batch) {
  memset(s, 0, sizeof *s);
  if (capacity > m->context_length)
    return fail("%zu tokens are more than the model's context of %zu", capacity, m->context_length);
  s->model = m;
  s->capacity = capacity ? capacity : 1;
  s->batch = batch < s->capacity ? batch : s->capacity;
  if (fill_rotations(s) && allocate_buffers(s)) return true;
  session_close(s);
  return false;
}

void session_close(session *s) {
  float *buffers[] = {s->cosines, s->sines, s->x,    s->normed, s->query,   s->key,
                      s->value,   s->mixed, s->gate, s->up,     s->scratch, s->cache_memory};
  for (size_t i = 0; i < sizeof buffers / sizeof *buffers; i++) free(buffers[i]);
  free(s->caches);
  free(s->workspace);
  memset(s, 0, sizeof *s);
}

void session_reset(session *s) {
  s->position = 0;
  s->library_seconds = 0;
}

/* Makes the workspace enough for some of the model's layers on that many rows. */
static bool plan(session *s, size_t first, size_t end, size_t rows, size_t *planned) {
  bl_error error;
  if (*planned == rows) return true;
  size_t size = s->workspace_size;
  for (size_t i = first; i < end; i++) {
    bl_plan_info info = {.struct_size = sizeof info};
    if (bl_plan(model_layer(s->model, i), BL_OP_FORWARD, (int64_t)rows, BL_TYPE_F32, &info,
                &error) != BL_OK)
      return fail("planning layer %zu for %zu rows: %s", i, rows, error.message);
    if (info.workspace_size > size) size = (size_t)info.workspace_size;
  }
  if (size > s->workspace_size) {
    free(s->workspace);
    s->workspace_size = 0;
    if (!(s->workspace = allocate(size, 1))) return false;
    s->workspace_size = size;
  }
  *planned = rows;
  return true;
}

/* y = layer(x), for rows that `plan` has been asked for. */
static bool forward(session *s, const bl_layer *layer, size_t rows, const float *x, float *y) {
  bl_error error;
  bl_run_options options = {.struct_size = sizeof options};
  options.workspace = s->workspace;
  options.workspace_size = s->workspace_size;
  double begin = now();
  bl_status status =
      bl_forward(layer, (int64_t)rows, x, BL_TYPE_F32, 0, y, BL_TYPE_F32, 0, &options, &error);
  s->library_seconds += now() - begin;
  return status == BL_OK || fail("bl_forward: %s", error.message);
}

static bool embed(session *s, const int32_t *ids, size_t count) {
  bl_error error;
  double begin = now();
  for (size_t i = 0; i < count; i++)
    if (bl_layer_read(s->model->embedding, ids[i], 1, s->x + i * s->model->width, BL_TYPE_F32, 0,
                      &error) != BL_OK)
      return fail("the embedding of token %d: %s", (int)ids[i], error.message);
  s->library_seconds += now() - begin;
  return true;
}

static void normalise(const session *s, size_t count, const float *gain) {
  size_t width = s->model->width;
  for (size_t i = 0; i < count; i++)
    rms_norm(width, s->x + i * width, gain, s->model->epsilon, s->normed + i * width);
}

static bool run_attention(session *s, size_t index, size_t count) {
  const model *m = s->model;
  const block *b = &m->blocks[index];
  const attention_shape *a = &m->attention;
  kv_cache *cache = &s->caches[index];
  normalise(s, count, b->attention_norm);
  if (!forward(s, b->linear[QUERY], count, s->normed, s->query) ||
      !forward(s, b->linear[KEY], count, s->normed, s->key) ||
      !forward(s, b->linear[VALUE], count, s->normed, s->value))
    return false;
  for (size_t i = 0; i < count; i++) {
    const float *cosines = s->cosines + (s->position + i) * m->rope_pairs;
    const float *sines = s->sines + (s->position + i) * m->rope_pairs;
    rotate(a->heads, a->key_dim, m->rope_pairs, cosines, sines,
           s->query + i * a->heads * a->key_dim);
    rotate(a->kv_heads, a->key_dim, m->rope_pairs, cosines, sines,
           s->key + i * a->kv_heads * a->key_dim);
  }
  kv_cache_store(cache, a, s->position, count, s->key, s->value);
  attend(cache, a, s->position, count, s->query, s->scratch, s->mixed);
  if (!forward(s, b->linear[ATTENTION_OUTPUT], count, s->mixed, s->normed)) return false;
  add(count * m->width, s->x, s->normed);
  return true;
}

static bool run_ffn(session *s, size_t index, size_t count) {
  const model *m = s->model;
  const block *b = &m->blocks[index];
  normalise(s, count, b->ffn_norm);
  if (!forward(s, b->linear[GATE], count, s->normed, s->gate) ||
      !forward(s, b->linear[UP], count, s->normed, s->up))
    return false;
  swiglu(count * m->ffn_width, s->gate, s->up);
  if (!forward(s, b->linear[DOWN], count, s->gate, s->normed)) return false;
  add(count * m->width, s->x, s->normed);
  return true;
}

/* One batch through all blocks; leaves the rows for the output layer in `normed`. */
static bool run_batch(session *s, const int32_t *ids, size_t count) {
  const model *m = s->model;
  if (count > s->capacity - s->position)
    return fail("the text is longer than the %zu tokens there is room for", s->capacity);
  if (!plan(s, 0, model_layer_count(m) - 1, count, &s->planned_rows) || !embed(s, ids, count))
    return false;
  for (size_t i = 0; i < m->block_count; i++)
    if (!run_attention(s, i, count) || !run_ffn(s, i, count)) return false;
  normalise(s, count, m->output_norm);
  s->position += count;
  return true;
}

/* The logits that follow some rows of the batch that ran last. */
static bool run_output(session *s, size_t first, size_t rows, float *logits) {
  size_t output = model_layer_count(s->model) - 1;
  return plan(s, output, output + 1, rows, &s->planned_output_rows) &&
         forward(s, s->model->output, rows, s->normed + first * s->model->width, logits);
}

bool session_feed(session *s, const int32_t *ids, size_t count, float *logits) {
  size_t rows = 0;
  for (size_t i = 0; i < count; i += rows) {
    rows = count - i < s->batch ? count - i : s->batch;
    if (!run_batch(s, ids + i, rows)) return false;
  }
  return rows == 0 ? fail("no tokens to feed") : run_output(s, rows - 1, 1, logits);
}

bool session_feed_all(session *s, const int32_t *ids, size_t count, logits_visitor visit,
                      void *user) {
  size_t vocabulary = s->model->vocabulary;
  float *logits = allocate(LOGITS_ROWS, vocabulary * sizeof(float));
  bool ok = logits != NULL;
  for (size_t done = 0; ok && done < count; done += s->batch) {
    size_t rows = count - done < s->batch ? count - done : s->batch;
    ok = run_batch(s, ids + done, rows);
    for (size_t i = 0; ok && i < rows; i += LOGITS_ROWS) {
      size_t some = rows - i < LOGITS_ROWS ? rows - i : LOGITS_ROWS;
      ok = run_output(s, i, some, logits);
      for (size_t j = 0; ok && j < some; j++)
        ok = visit(user, done + i + j, logits + j * vocabulary);
    }
  }
  free(logits);
  return ok;
}
