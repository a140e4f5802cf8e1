#include "numeric.h"

#include <math.h>

FOR_EACH_CPU
void rms_norm(size_t n, const float *restrict x, const float *restrict gain, float epsilon,
              float *restrict y) {
  float partial[PARTIALS] = {0};
  size_t i = 0;
  for (; i + PARTIALS <= n; i += PARTIALS)
    for (size_t j = 0; j < PARTIALS; j++) partial[j] += x[i + j] * x[i + j];
  for (size_t j = 0; i + j < n; j++) partial[j] += x[i + j] * x[i + j];
  float scale = 1.0f / sqrtf(sum_of_partials(partial) / (float)n + epsilon);
  for (i = 0; i < n; i++) y[i] = x[i] * scale * gain[i];
}

FOR_EACH_CPU
void add(size_t n, float *restrict x, const float *restrict y) {
  for (size_t i = 0; i < n; i++) x[i] += y[i];
}

FOR_EACH_CPU
void swiglu(size_t n, float *restrict gate, const float *restrict up) {
  float power[256];
  const size_t most = sizeof power / sizeof *power;
  for (size_t done = 0; done < n; done += most) {
    float *restrict g = gate + done;
    size_t some = n - done < most ? n - done : most;
    for (size_t i = 0; i < some; i++) power[i] = clamp_for_exp(-g[i]);
    for (size_t i = 0; i < some; i++) g[i] = g[i] / (1.0f + exp_of(power[i])) * up[done + i];
  }
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
