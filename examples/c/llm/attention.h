#ifndef LLM_ATTENTION_H
#define LLM_ATTENTION_H
/** Grouped-query attention over a cache of keys and values, and rotary positions. */
#include <stddef.h>

#include "pool.h"

typedef struct {
  size_t heads, kv_heads; /**< heads is a multiple of kv_heads: heads that share keys and values */
  size_t key_dim, value_dim;
} attention_shape;

/** Keys and values of one block of the model, for `capacity` positions. */
typedef struct {
  float *keys;   /**< [kv_head][position / 16][key_dim][16]: 16 positions side by side */
  float *values; /**< [kv_head][position / 64][value_dim / 16, rounded up][64][16] */
  size_t capacity;
} kv_cache;

/** Floats of memory that a cache needs. */
size_t kv_cache_size(const attention_shape *shape, size_t capacity);
/** A cache in such memory, which is all zero and on a 64-byte boundary. */
kv_cache kv_cache_in(float *memory, const attention_shape *shape, size_t capacity);
/** Puts in keys and values of positions from `first` on: count rows each, heads side by side. */
void kv_cache_store(kv_cache *cache, const attention_shape *shape, size_t first, size_t count,
                    const float *keys, const float *values);

/** Floats of scratch memory that each thread of `attend` needs when the last position is `last`. */
size_t attention_scratch(const attention_shape *shape, size_t last);
/** out[count][heads][value_dim]: each query sees the positions up to its own, first + its row.
 *  `scratch` is as many times the above, for this last position, as the pool has threads. */
void attend(const kv_cache *cache, const attention_shape *shape, size_t first, size_t count,
            const float *queries, float *scratch, float *out, pool *threads);

/** Turns the pairs (2i, 2i + 1), i < pairs, of each head of a row by the angles of its position. */
void rotate(size_t heads, size_t head_dim, size_t pairs, const float *cosines, const float *sines,
            float *row);

#endif
