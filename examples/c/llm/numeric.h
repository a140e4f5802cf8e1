#ifndef LLM_NUMERIC_H
#define LLM_NUMERIC_H
/**
 * Arithmetic on rows of floats outside the linear layers.
 *
 * The same input gives the same bits, however many rows are worked on at a time and whatever vector
 * width the compiler chose: each sum has one written order (PARTIALS interleaved partial sums, then
 * a fixed tree), and no product and sum are fused (compile with -ffp-contract=off).
 */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/** Interleaved partial sums of a long sum: enough for any vector width in use. */
#define PARTIALS 16

/* One function, compiled for several instruction sets and chosen at load time, where the compiler
 * and the C library can do that. None of the sets has fused multiply-add on purpose. */
#if defined(__x86_64__) && defined(__gnu_linux__) && defined(__has_attribute)
#if __has_attribute(target_clones)
#define FOR_EACH_CPU __attribute__((target_clones("avx2", "default")))
#endif
#endif
#ifndef FOR_EACH_CPU
#define FOR_EACH_CPU
#endif

#if defined(__GNUC__)
#define ALWAYS_INLINE static inline __attribute__((always_inline))
#else
#define ALWAYS_INLINE static inline
#endif

/** Holds x to what exp_of takes. Clamp in a loop of its own: a compiler that sees both at once
 *  works out what follows for the bounds too, and what follows from e^88 may be subnormal, which is
 *  slow. */
ALWAYS_INLINE float clamp_for_exp(float x) {
  x = x < -87.0f ? -87.0f : x;
  return x > 88.0f ? 88.0f : x;
}

/** e^x to about 1e-7 of its value, for x in -87..88. Loops over it become vector code. */
ALWAYS_INLINE float exp_of(float x) {
  /* Adding 1.5 * 2^23 rounds to an integer n, and leaves n in the low bits. */
  const float shift = 12582912.0f;
  float shifted = x * 1.44269504f + shift;
  float n = shifted - shift;
  /* x = n ln 2 + r; the first part of ln 2 has few bits, so that n times it is exact. */
  float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.3905020e-3f;
  p = p * r + 8.3662785e-3f;
  p = p * r + 4.16668632e-2f;
  p = p * r + 1.66665452e-1f;
  p = p * r + 4.99999991e-1f;
  float y = (p * r) * r + r + 1.0f;
  uint32_t bits, exponent;
  memcpy(&bits, &y, sizeof bits);
  memcpy(&exponent, &shifted, sizeof exponent);
  bits += exponent << 23; /* y * 2^n */
  memcpy(&y, &bits, sizeof y);
  return y;
}

/** The sum of the partial sums, which are used up. */
ALWAYS_INLINE float sum_of_partials(float partial[PARTIALS]) {
  for (size_t width = PARTIALS / 2; width > 0; width /= 2)
    for (size_t i = 0; i < width; i++) partial[i] += partial[i + width];
  return partial[0];
}

/** x *= y */
void multiply(size_t n, float *x, const float *y);
/** The index of the first largest value. */
size_t index_of_largest(size_t n, const float *x);
/** log(sum(exp(x))), in double. */
double log_sum_exp(size_t n, const float *x);

#endif
