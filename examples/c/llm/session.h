#ifndef LLM_SESSION_H
#define LLM_SESSION_H
/** A text that grows: the state of the model's forward pass. */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "model.h"
#include "pool.h"

typedef struct {
  const model *model;
  size_t position;         /**< tokens fed so far */
  size_t capacity;         /**< tokens it has room for */
  size_t batch;            /**< the most tokens worked on at a time */
  pool *threads;
  double library_seconds;  /**< spent inside bl_forward, bl_forward_many and bl_layer_read */

  kv_cache *caches;        /**< one for each block, all in cache_memory */
  float *cache_memory;
  float *cosines, *sines;  /**< [capacity][rope_pairs] */
  /* One row for each token of the batch: */
  float *x, *query, *key, *value, *mixed, *gate, *up;
  float *scratch;          /**< of attention, for each thread */
  void *workspace;         /**< of the library's calls, so that they need not allocate */
  size_t workspace_size;
  size_t planned_rows, planned_output_rows; /**< what the workspace is known to be enough for */
} session;

/** Works on the pool's threads. On failure, after a message, there is nothing to close. */
bool session_open(session *s, const model *m, pool *threads, size_t capacity, size_t batch);
void session_close(session *s);
/** Forgets the text. */
void session_reset(session *s);

/** Feeds tokens, and writes the logits that follow the last one. */
bool session_feed(session *s, const int32_t *ids, size_t count, float *logits);

/** Called with the logits of each position in turn; false ends the feeding. */
typedef bool (*logits_visitor)(void *user, size_t position, const float *logits);
/** Feeds tokens, and shows the visitor the logits that follow each of them. */
bool session_feed_all(session *s, const int32_t *ids, size_t count, logits_visitor visit,
                      void *user);

#endif
