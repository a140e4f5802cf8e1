/* Hosts run with subnormals flushed, another rounding mode or floating-point traps: the bits are the
 * same, no trap is sprung, and the mode is theirs again after the call. */
#include "layers.h"

#include <fenv.h>
#if defined(__x86_64__)
#include <xmmintrin.h>
static uint32_t mode(void) { return _mm_getcsr() & 0xffc0u; } /* without the sticky flags */
static void set_mode(uint32_t bits) { _mm_setcsr(bits); }
static const uint32_t modes[] = {
    0x1f80,                            /* the default */
    0x1f80 | 0x8040,                   /* flush to zero, subnormals are zero */
    0x1f80 | 0x2000, 0x1f80 | 0x4000,  /* down, up */
    0x1f80 | 0x6000 | 0x8040,          /* towards zero, flushed */
    0x0000 | 0x1000,                   /* traps, but for inexact results */
    0x0000,                            /* all traps */
};
#else
static uint32_t mode(void) { return (uint32_t)fegetround(); }
static void set_mode(uint32_t bits) { fesetround((int)bits); }
static const uint32_t modes[] = {FE_TONEAREST, FE_DOWNWARD, FE_UPWARD, FE_TOWARDZERO};
#endif

enum { M = 3, ROWS = 64, COLUMNS = 512 };

/* Normal values, subnormal ones, and (last) a row that is not finite. */
static void inputs(float *x) {
  int k;
  fill(x, M * COLUMNS, 11);
  for (k = 0; k < COLUMNS; k++) x[COLUMNS + k] *= 1e-39f;
  for (k = 0; k < COLUMNS; k += 2) x[k] *= 1e-38f;
  x[2 * COLUMNS + 3] = 1e38f * (x[2 * COLUMNS + 1] + 10) * 1e20f;
}

int main(int count, char **words) {
  static const char *const tensors[] = {"blk.0.f32.weight", "blk.0.f16.weight", "blk.0.q4_0.weight",
                                        "blk.0.q4_k.weight", "blk.0.tq2_0.weight", "blk.0.q5_1.weight"};
  float *x = floats(M * COLUMNS), *want = floats(M * ROWS), *y = floats(M * ROWS);
  float *weights = floats(ROWS * COLUMNS), *again = floats(ROWS * COLUMNS);
  size_t i, k, activation;
  bl_model *model;
  start(count, words);
  model = open_model(ALL_TYPES);
  inputs(x);
  for (i = 0; i < sizeof tensors / sizeof *tensors; i++)
    for (activation = 0; activation < 2; activation++) {
      bl_activation how = activation ? BL_ACTIVATION_F32 : BL_ACTIVATION_AUTO;
      bl_layer *layer = open_layer(model, tensors[i], how, NULL);
      forward(layer, M, x, want);
      GOOD(bl_layer_read(layer, 0, ROWS, weights, BL_TYPE_F32, 0, &error));
      for (k = 0; k < sizeof modes / sizeof *modes; k++) {
        bl_layer *packed = NULL;
        STRUCT(bl_layer_options, options);
        bl_status run, read, opened;
        uint32_t before, after;
        options.activation = how;
        memset(y, 0, M * ROWS * sizeof *y);
        set_mode(modes[k]);
        before = mode();
        opened = bl_layer_open(model, tensors[i], &options, &packed, NULL); /* packing rounds too */
        run = bl_forward(packed, M, x, BL_TYPE_F32, 0, y, BL_TYPE_F32, 0, NULL, NULL);
        read = bl_layer_read(packed, 0, ROWS, again, BL_TYPE_F32, 0, NULL);
        bl_plan(packed, BL_OP_FORWARD, 1, BL_TYPE_I8, NULL, NULL); /* fails */
        bl_free(packed);
        after = mode();
        set_mode(modes[0]);
        CHECK(before == after);
        CHECK(opened == BL_OK && run == BL_OK && read == BL_OK);
        CHECK(same(y, want, M * ROWS) && same(again, weights, ROWS * COLUMNS));
      }
      bl_free(layer);
    }
  bl_free(model);
  free(x), free(want), free(y), free(weights), free(again);
  return done();
}
