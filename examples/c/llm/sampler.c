#include "sampler.h"

#include <math.h>
#include <stdlib.h>

#include "numeric.h"
#include "util.h"

/* SplitMix64 (Steele, Lea, Flood 2014): a counter and a mixing function. */
uint64_t next_random(uint64_t *state) {
  uint64_t z = *state += 0x9e3779b97f4a7c15u;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
  z = (z ^ z >> 27) * 0x94d049bb133111ebu;
  return z ^ z >> 31;
}

void largest_logits(const float *logits, size_t count, size_t k, int32_t *ids) {
  size_t found = 0;
  for (size_t id = 0; id < count; id++) {
    if (found == k && !(logits[id] > logits[ids[k - 1]])) continue;
    size_t place = found < k ? found++ : k - 1;
    for (; place > 0 && logits[id] > logits[ids[place - 1]]; place--) ids[place] = ids[place - 1];
    ids[place] = (int32_t)id;
  }
}

int32_t sample(sampler *s, const float *logits, size_t count) {
  size_t likeliest = index_of_largest(count, logits);
  size_t choices = s->top_k > 0 && s->top_k < count ? s->top_k : count;
  if (!(s->temperature > 0) || choices == 1) return (int32_t)likeliest;
  int32_t *ids = allocate(choices, sizeof *ids);
  double *sums = allocate(choices, sizeof *sums), sum = 0;
  int32_t chosen = (int32_t)likeliest; /* also where memory is short: said, and not fatal */
  if (ids && sums) {
    if (choices < count) largest_logits(logits, count, choices, ids);
    for (size_t i = 0; i < choices; i++) {
      if (choices == count) ids[i] = (int32_t)i;
      sum += exp(((double)logits[ids[i]] - (double)logits[likeliest]) / s->temperature);
      sums[i] = sum;
    }
    double mark = (double)(next_random(&s->state) >> 11) * 0x1p-53 * sum;
    size_t i = 0;
    while (i + 1 < choices && !(mark < sums[i])) i++;
    chosen = ids[i];
  }
  free(ids);
  free(sums);
  return chosen;
}
