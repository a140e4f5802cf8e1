#ifndef LLM_SAMPLER_H
#define LLM_SAMPLER_H
/** Choosing the next token, and other uses of chance. */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct {
  double temperature; /**< 0: always the likeliest token */
  size_t top_k;       /**< choose among that many; 0: among all */
  uint64_t state;     /**< the seed at first */
} sampler;

/** An evenly distributed number of 64 bits; moves the state on. */
uint64_t next_random(uint64_t *state);
int32_t sample(sampler *s, const float *logits, size_t count);
/** The ids of the k largest logits, largest first, equal ones by id; k is at most count. */
void largest_logits(const float *logits, size_t count, size_t k, int32_t *ids);

#endif
