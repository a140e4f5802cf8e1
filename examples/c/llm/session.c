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
      {&s->query, a->heads * a->key_dim},
      {&s->key, a->kv_heads * a->key_dim},
      {&s->value, a->kv_heads * a->value_dim},
      {&s->mixed, a->heads * a->value_dim},
      {&s->gate, m->ffn_width},
      {&s->up, m->ffn_width},
  };
  for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
    if (!(*rows[i].buffer = allocate(s->batch, rows[i].width * sizeof(float)))) return false;
  s->scratch = allocate(pool_threads(s->threads),
                        attention_scratch(a, s->capacity - 1) * sizeof(float));
  size_t cache_size = kv_cache_size(a, s->capacity);
  s->caches = allocate(m->block_count, sizeof *s->caches);
  s->cache_memory = allocate(m->block_count, cache_size * sizeof(float));
  if (!s->scratch || !s->caches || !s->cache_memory) return false;
  for (size_t i = 0; i < m->block_count; i++)
    s->caches[i] = kv_cache_in(s->cache_memory + i * cache_size, a, s->capacity);
  return true;
}

bool session_open(session *s, const model *m, pool *threads, size_t capacity, size_t batch) {
  memset(s, 0, sizeof *s);
  if (capacity > m->context_length)
    return fail("%zu tokens are more than the model's context of %zu", capacity, m->context_length);
  s->model = m;
  s->threads = threads;
  s->capacity = capacity ? capacity : 1;
  s->batch = batch < s->capacity ? batch : s->capacity;
  if (fill_rotations(s) && allocate_buffers(s)) return true;
  session_close(s);
  return false;
}

void session_close(session *s) {
  float *buffers[] = {s->cosines, s->sines, s->x,  s->query,   s->key,         s->value,
                      s->mixed,   s->gate,  s->up, s->scratch, s->cache_memory};
  for (size_t i = 0; i < sizeof buffers / sizeof *buffers; i++) free(buffers[i]);
  free(s->caches);
  free(s->workspace);
  memset(s, 0, sizeof *s);
}

void session_reset(session *s) {
  s->position = 0;
  s->library_seconds = 0;
}

/* Makes the workspace enough for the layers from `first` up to `end` on that many rows: for any of
 * them in one call, so that it is the sum of what each needs. */
static bool plan(session *s, size_t first, size_t end, size_t rows, size_t *size) {
  bl_error error;
  size_t sum = 0;
  for (size_t i = first; i < end; i++) {
    bl_plan_info info = {.struct_size = sizeof info};
    if (bl_plan(model_layer(s->model, i), BL_OP_FORWARD, (int64_t)rows, BL_TYPE_F32, &info,
                &error) != BL_OK)
      return fail("planning layer %zu for %zu rows: %s", i, rows, error.message);
    sum += (size_t)info.workspace_size;
  }
  if (sum > *size) *size = sum;
  return true;
}

static bool make_workspace(session *s, size_t size) {
  if (size <= s->workspace_size) return true;
  free(s->workspace);
  s->workspace_size = 0;
  if (!(s->workspace = allocate(size, 1))) return false;
  s->workspace_size = size;
  return true;
}

/* Q, K and V are one call, and gate and up: no call has more layers than a block. */
static bool plan_blocks(session *s, size_t rows) {
  size_t size = 0;
  if (s->planned_rows == rows) return true;
  for (size_t i = 0; i < s->model->block_count; i++)
    if (!plan(s, i * LINEARS, (i + 1) * LINEARS, rows, &size)) return false;
  if (!make_workspace(s, size)) return false;
  s->planned_rows = rows;
  return true;
}

static bool plan_output(session *s, size_t rows) {
  size_t size = 0, output = model_layer_count(s->model) - 1;
  if (s->planned_output_rows == rows) return true;
  if (!plan(s, output, output + 1, rows, &size) || !make_workspace(s, size)) return false;
  s->planned_output_rows = rows;
  return true;
}

static bl_run_options run_options(const session *s, uint32_t flags) {
  bl_run_options options = {.struct_size = sizeof options, .flags = flags};
  options.workspace = s->workspace;
  options.workspace_size = s->workspace_size;
  return options;
}

/* y = layer(x), or y += layer(x) with BL_RUN_ACCUMULATE, for rows that have been planned. */
static bool forward(session *s, const bl_layer *layer, size_t rows, const float *x, float *y,
                    uint32_t flags) {
  bl_error error;
  bl_run_options options = run_options(s, flags);
  double begin = now();
  bl_status status =
      bl_forward(layer, (int64_t)rows, x, BL_TYPE_F32, 0, y, BL_TYPE_F32, 0, &options, &error);
  s->library_seconds += now() - begin;
  return status == BL_OK || fail("bl_forward: %s", error.message);
}

/* ys[i] = layers[i](x): x is normed and rounded once. */
static bool forward_many(session *s, bl_layer *const *layers, size_t count, size_t rows,
                         const float *x, float *const *ys) {
  bl_error error;
  bl_run_options options = run_options(s, 0);
  const bl_layer *many[LINEARS];
  void *outs[LINEARS];
  for (size_t i = 0; i < count; i++) {
    many[i] = layers[i];
    outs[i] = ys[i];
  }
  double begin = now();
  bl_status status = bl_forward_many(many, count, (int64_t)rows, x, BL_TYPE_F32, 0, outs,
                                     BL_TYPE_F32, NULL, &options, &error);
  s->library_seconds += now() - begin;
  return status == BL_OK || fail("bl_forward_many: %s", error.message);
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

/* Work on the rows of the batch, in as many parts as there are threads, if there are as many rows. */
typedef struct {
  session *s;
  size_t index; /* of the block */
  size_t count, parts;
} row_work;

static row_work rows_of(session *s, size_t index, size_t count) {
  size_t threads = pool_threads(s->threads);
  return (row_work){s, index, count, count < threads ? 1 : threads};
}

/* The first row of a part. */
static size_t first_row(const row_work *work, size_t part) {
  return work->count * part / work->parts;
}

static void place_rows(void *user, size_t part) {
  const row_work *work = user;
  session *s = work->s;
  const model *m = s->model;
  const attention_shape *a = &m->attention;
  size_t keys = a->kv_heads * a->key_dim, values = a->kv_heads * a->value_dim;
  for (size_t i = first_row(work, part); i < first_row(work, part + 1); i++) {
    const float *cosines = s->cosines + (s->position + i) * m->rope_pairs;
    const float *sines = s->sines + (s->position + i) * m->rope_pairs;
    rotate(a->heads, a->key_dim, m->rope_pairs, cosines, sines,
           s->query + i * a->heads * a->key_dim);
    rotate(a->kv_heads, a->key_dim, m->rope_pairs, cosines, sines, s->key + i * keys);
    kv_cache_store(&s->caches[work->index], a, s->position + i, 1, s->key + i * keys,
                   s->value + i * values);
  }
}

static bool run_attention(session *s, size_t index, size_t count) {
  const model *m = s->model;
  bl_layer *const *linear = m->blocks[index].linear;
  row_work work = rows_of(s, index, count);
  if (!forward_many(s, &linear[QUERY], 3, count, s->x, (float *[]){s->query, s->key, s->value}))
    return false;
  pool_run(s->threads, work.parts, place_rows, &work);
  attend(&s->caches[index], &m->attention, s->position, count, s->query, s->scratch, s->mixed,
         s->threads);
  return forward(s, linear[ATTENTION_OUTPUT], count, s->mixed, s->x, BL_RUN_ACCUMULATE);
}

static void gate_rows(void *user, size_t part) {
  const row_work *work = user;
  session *s = work->s;
  size_t width = s->model->ffn_width, first = first_row(work, part);
  multiply((first_row(work, part + 1) - first) * width, s->gate + first * width,
           s->up + first * width);
}

static bool run_ffn(session *s, size_t index, size_t count) {
  bl_layer *const *linear = s->model->blocks[index].linear;
  row_work work = rows_of(s, index, count);
  if (!forward_many(s, &linear[GATE], 2, count, s->x, (float *[]){s->gate, s->up})) return false;
  pool_run(s->threads, work.parts, gate_rows, &work);
  return forward(s, linear[DOWN], count, s->gate, s->x, BL_RUN_ACCUMULATE);
}

/* One batch through all blocks; leaves the rows for the output layer in `x`. */
static bool run_batch(session *s, const int32_t *ids, size_t count) {
  const model *m = s->model;
  if (count > s->capacity - s->position)
    return fail("the text is longer than the %zu tokens there is room for", s->capacity);
  if (!plan_blocks(s, count) || !embed(s, ids, count)) return false;
  for (size_t i = 0; i < m->block_count; i++)
    if (!run_attention(s, i, count) || !run_ffn(s, i, count)) return false;
  s->position += count;
  return true;
}

/* The logits that follow some rows of the batch that ran last. */
static bool run_output(session *s, size_t first, size_t rows, float *logits) {
  return plan_output(s, rows) &&
         forward(s, s->model->output, rows, s->x + first * s->model->width, logits, 0);
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
