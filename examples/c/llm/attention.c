#include "attention.h"

#include <math.h>
#include <stdatomic.h>
#include <string.h>

#include "numeric.h"

#if !defined(__GNUC__)
#error "attention.c uses the vector types of GCC and Clang"
#endif

/* TILE positions are worked on side by side: a key tile holds them as the columns of a matrix, so
 * that a score is a plain running sum over the head's dimensions, and no sum crosses lanes. */
#define TILE 16
/* Queries of one key/value head that are worked on together: each key and value that is loaded
 * serves all of them. */
#define ROWS 6
/* Weighted values are summed in runs of RUN positions, and the runs then added: shorter sums. */
#define RUN 64
/* Both caches lie in the order in which they are read: one token's attention is bound by memory. */

static size_t round_up(size_t n, size_t unit) { return (n + unit - 1) / unit * unit; }

static size_t values_size(const attention_shape *shape, size_t capacity) {
  return shape->kv_heads * capacity * round_up(shape->value_dim, TILE);
}

size_t kv_cache_size(const attention_shape *shape, size_t capacity) {
  capacity = round_up(capacity, RUN);
  return shape->kv_heads * capacity * shape->key_dim + values_size(shape, capacity);
}

kv_cache kv_cache_in(float *memory, const attention_shape *shape, size_t capacity) {
  capacity = round_up(capacity, RUN);
  return (kv_cache){memory + values_size(shape, capacity), memory, capacity};
}

void kv_cache_store(kv_cache *cache, const attention_shape *shape, size_t first, size_t count,
                    const float *restrict keys, const float *restrict values) {
  size_t key_dim = shape->key_dim, value_dim = shape->value_dim;
  size_t value_step = round_up(value_dim, TILE);
  for (size_t row = 0; row < count; row++) {
    size_t position = first + row;
    for (size_t head = 0; head < shape->kv_heads; head++) {
      size_t start = head * cache->capacity;
      float *tile = cache->keys + (start + position / TILE * TILE) * key_dim + position % TILE;
      float *run = cache->values + (start + position / RUN * RUN) * value_step;
      for (size_t d = 0; d < key_dim; d++) tile[d * TILE] = keys[d];
      for (size_t d = 0; d < value_dim; d++)
        run[d / TILE * TILE * RUN + position % RUN * TILE + d % TILE] = values[d];
      keys += key_dim;
      values += value_dim;
    }
  }
}

/* Some queries of one key/value head. Query row r sees seen[r] positions; seen does not fall. */
typedef struct {
  const float *keys, *values;
  const float *queries; /* [key_dim][rows] */
  size_t rows, seen[ROWS];
  size_t key_dim, value_step;
  float *scores; /* [rows][positions seen, rounded up to TILE] */
  float *out;    /* [rows][value_step] */
} query_block;

#define LANES 4
#define FOR_CPU
#include "attention_block.h"

#if defined(__x86_64__)
#define LANES 8
#define FOR_CPU __attribute__((target("avx2")))
#include "attention_block.h"
#endif

static void attend_block(const query_block *block) {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2")) {
    attend_block_8(block);
    return;
  }
#endif
  attend_block_4(block);
}

size_t attention_scratch(const attention_shape *shape, size_t last) {
  return ROWS * (round_up(last + 1, TILE) + round_up(shape->key_dim, TILE) +
                 round_up(shape->value_dim, TILE));
}

/* What a call of `attend` does, cut into blocks of queries of one key/value head. */
typedef struct {
  const kv_cache *cache;
  const attention_shape *shape;
  size_t first;
  const float *queries;
  float *scratch, *out;
  size_t rows;            /* of one key/value head: query q is row q / group, head q % group */
  size_t blocks;          /* of one key/value head */
  atomic_size_t next;     /* the first block that no thread has taken */
} attention_work;

static void attend_some(const attention_work *work, size_t kv_head, size_t q, float *scratch) {
  const attention_shape *shape = work->shape;
  size_t key_dim = shape->key_dim, value_dim = shape->value_dim, step = round_up(value_dim, TILE);
  size_t group = shape->heads / shape->kv_heads, start = kv_head * work->cache->capacity;
  float scale = 1.0f / sqrtf((float)key_dim);
  float *columns = scratch;
  query_block block = {.queries = columns, .key_dim = key_dim, .value_step = step};
  block.keys = work->cache->keys + start * key_dim;
  block.values = work->cache->values + start * step;
  block.out = columns + ROWS * round_up(key_dim, TILE);
  block.scores = block.out + ROWS * step;
  block.rows = work->rows - q < ROWS ? work->rows - q : ROWS;
  for (size_t r = 0; r < block.rows; r++) {
    size_t row = (q + r) / group, head = kv_head * group + (q + r) % group;
    const float *query = work->queries + (row * shape->heads + head) * key_dim;
    for (size_t d = 0; d < key_dim; d++) columns[d * block.rows + r] = query[d] * scale;
    block.seen[r] = work->first + row + 1;
  }
  attend_block(&block);
  for (size_t r = 0; r < block.rows; r++) {
    size_t row = (q + r) / group, head = kv_head * group + (q + r) % group;
    memcpy(work->out + (row * shape->heads + head) * value_dim, block.out + r * step,
           value_dim * sizeof(float));
  }
}

/* One thread's part: blocks as long as there are any, the latest queries, which see most, first. */
static void attend_as_thread(void *user, size_t thread) {
  attention_work *work = user;
  size_t last = work->first + work->rows / (work->shape->heads / work->shape->kv_heads) - 1;
  float *scratch = work->scratch + thread * attention_scratch(work->shape, last);
  size_t blocks = work->blocks * work->shape->kv_heads;
  for (size_t i; (i = atomic_fetch_add(&work->next, 1)) < blocks;) {
    size_t block = blocks - 1 - i;
    attend_some(work, block % work->shape->kv_heads, block / work->shape->kv_heads * ROWS, scratch);
  }
}

void attend(const kv_cache *cache, const attention_shape *shape, size_t first, size_t count,
            const float *queries, float *scratch, float *out, pool *threads) {
  attention_work work = {cache, shape, first, queries, scratch, out, 0, 0, 0};
  work.rows = count * (shape->heads / shape->kv_heads);
  work.blocks = (work.rows + ROWS - 1) / ROWS;
  pool_run(threads, pool_threads(threads), attend_as_thread, &work);
}

FOR_EACH_CPU
void rotate(size_t heads, size_t head_dim, size_t pairs, const float *restrict cosines,
            const float *restrict sines, float *restrict row) {
  for (size_t head = 0; head < heads; head++, row += head_dim)
    for (size_t i = 0; i < pairs; i++) {
      float even = row[2 * i], odd = row[2 * i + 1];
      row[2 * i] = even * cosines[i] - odd * sines[i];
      row[2 * i + 1] = even * sines[i] + odd * cosines[i];
    }
}
