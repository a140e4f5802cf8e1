#include "numeric.h"

#include <math.h>

FOR_EACH_CPU
void multiply(size_t n, float *restrict x, const float *restrict y) {
  for (size_t i = 0; i < n; i++) x[i] *= y[i];
}

FOR_EACH_CPU
static float largest_of(size_t n, const float *x) {
  float largest[PARTIALS];
  size_t i = 0;
  for (size_t j = 0; j < PARTIALS; j++) largest[j] = x[0];
  for (; i + PARTIALS <= n; i += PARTIALS)
    for (size_t j = 0; j < PARTIALS; j++)
      largest[j] = x[i + j] > largest[j] ? x[i + j] : largest[j];
  for (; i < n; i++) largest[0] = x[i] > largest[0] ? x[i] : largest[0];
  for (size_t j = 1; j < PARTIALS; j++)
    largest[0] = largest[j] > largest[0] ? largest[j] : largest[0];
  return largest[0];
}

size_t index_of_largest(size_t n, const float *x) {
  float largest = largest_of(n, x);
  size_t i = 0;
  while (i < n && x[i] != largest) i++;
  return i < n ? i : 0;
}

double log_sum_exp(size_t n, const float *x) {
  double largest = (double)largest_of(n, x), sum = 0;
  for (size_t i = 0; i < n; i++) sum += exp((double)x[i] - largest);
  return largest + log(sum);
}
