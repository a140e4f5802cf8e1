/* bl_forward: against a loop in C, and the same bits for any strides, offsets, types and workspace. */
#include "layers.h"

#include <math.h>

enum { ROWS = 64, COLUMNS = 512 };

static const char *const tensors[] = {
    "blk.0.f32.weight",  "blk.0.f16.weight",  "blk.0.bf16.weight", "blk.0.q4_0.weight",
    "blk.0.q5_1.weight", "blk.0.q8_0.weight", "blk.0.q2_k.weight", "blk.0.q4_k.weight",
    "blk.0.q6_k.weight", "blk.0.tq1_0.weight", "blk.0.tq2_0.weight", "blk.0.q1_0.weight",
};
#define TENSORS (sizeof tensors / sizeof *tensors)

/* f32 to f16 and bf16 of values that both hold exactly; and back. */
static uint16_t to_bf16(float value) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  return (uint16_t)(bits >> 16);
}
static float from_bf16(uint16_t half) {
  uint32_t bits = (uint32_t)half << 16;
  float value;
  memcpy(&value, &bits, 4);
  return value;
}
static float from_f16(uint16_t half) {
  int exponent = (half >> 10) & 31, mantissa = half & 1023;
  float value = exponent ? ldexpf((float)(1024 + mantissa), exponent - 25) : ldexpf((float)mantissa, -24);
  if (exponent == 31) value = mantissa ? NAN : INFINITY;
  return half & 0x8000 ? -value : value;
}
static uint16_t to_f16(float value) {
  uint32_t n;
  for (n = 0; n < 0x7c00; n++) /* a search: plain enough to be right */
    if (from_f16((uint16_t)n) == fabsf(value)) return (uint16_t)(n | (value < 0 ? 0x8000u : 0));
  abort();
}

/* The contract of float activations: one chain of fused multiply-adds, columns ascending. */
static void float_chain(const bl_model *model) {
  float *x = floats(COLUMNS), *y = floats(ROWS), *w = floats(ROWS * COLUMNS), *bias = floats(ROWS);
  size_t i;
  int o, k, with_bias;
  fill(x, COLUMNS, 3);
  fill(bias, ROWS, 4);
  for (i = 0; i < TENSORS; i++)
    for (with_bias = 0; with_bias < 2; with_bias++) {
      bl_layer *layer = open_layer(model, tensors[i], BL_ACTIVATION_F32, with_bias ? bias : NULL);
      GOOD(bl_layer_read(layer, 0, ROWS, w, BL_TYPE_F32, 0, &error));
      forward(layer, 1, x, y);
      for (o = 0; o < ROWS; o++) {
        float sum = 0;
        for (k = 0; k < COLUMNS; k++) sum = fmaf(x[k], w[o * COLUMNS + k], sum);
        if (with_bias) sum += bias[o];
        CHECK(y[o] == sum);
      }
      bl_free(layer);
    }
  free(x), free(y), free(w), free(bias);
}

/* Integer activations are near the same sum: they are not another product by mistake. */
static void integers_are_near(const bl_model *model) {
  float *x = floats(COLUMNS), *y = floats(ROWS), *w = floats(ROWS * COLUMNS);
  size_t i;
  int o, k;
  fill(x, COLUMNS, 5);
  for (i = 0; i < TENSORS; i++) {
    bl_layer *layer = open_layer(model, tensors[i], BL_ACTIVATION_AUTO, NULL);
    GOOD(bl_layer_read(layer, 0, ROWS, w, BL_TYPE_F32, 0, &error));
    forward(layer, 1, x, y);
    for (o = 0; o < ROWS; o++) {
      double sum = 0, size = 0;
      for (k = 0; k < COLUMNS; k++) {
        sum += (double)x[k] * (double)w[o * COLUMNS + k];
        size += fabs((double)w[o * COLUMNS + k]);
      }
      CHECK(fabs(sum - (double)y[o]) <= size * 4.0 / 127); /* |x| <= 4, codes of 1/127 */
    }
    bl_free(layer);
  }
  free(x), free(y), free(w);
}

/* Any strides, any offset of a byte, rows in any number: the bits of one plain row. */
static void places(const bl_model *model) {
  enum { M = 5, X = COLUMNS * 4 + 12, Y = ROWS * 4 + 20 };
  float *x = floats(M * COLUMNS), *want = floats(M * ROWS);
  unsigned char *xs = (unsigned char *)take(M * X + 64), *ys = (unsigned char *)take(M * Y + 64);
  size_t i, offset;
  int row, m;
  fill(x, M * COLUMNS, 6);
  for (i = 0; i < TENSORS; i++) {
    bl_layer *layer = open_layer(model, tensors[i], BL_ACTIVATION_AUTO, NULL);
    for (row = 0; row < M; row++) forward(layer, 1, x + row * COLUMNS, want + row * ROWS);
    for (offset = 0; offset < 9; offset++)
      for (m = 1; m <= M; m += 2) {
        int good = 1;
        size_t b;
        memset(ys, 0x5a, M * Y + 64);
        for (row = 0; row < M; row++) memcpy(xs + offset + (size_t)row * X, x + row * COLUMNS, COLUMNS * 4);
        GOOD(bl_forward(layer, m, xs + offset, BL_TYPE_F32, X, ys + offset, BL_TYPE_F32, Y, NULL, &error));
        for (row = 0; row < m; row++)
          good &= memcmp(ys + offset + (size_t)row * Y, want + row * ROWS, ROWS * 4) == 0;
        CHECK(good);
        for (b = 0, good = 1; b < M * Y + 64; b++) /* bytes between and round the rows are not touched */
          if (b < offset || (b - offset) / Y >= (size_t)m || (b - offset) % Y >= ROWS * 4)
            good &= ys[b] == 0x5a;
        CHECK(good);
      }
    bl_free(layer);
  }
  free(x), free(want), free(xs), free(ys);
}

/* The same values as f16 and bf16 give the same sums; y in f16 and bf16 is the rounded f32. */
static void types(const bl_model *model) {
  enum { M = 3 };
  float *x = floats(M * COLUMNS), *want = floats(M * ROWS), *y = floats(M * ROWS);
  uint16_t *h = (uint16_t *)take(M * COLUMNS * 2), *b = (uint16_t *)take(M * COLUMNS * 2);
  uint16_t *yh = (uint16_t *)take(M * ROWS * 2 + 1), *yb = (uint16_t *)take(M * ROWS * 2 + 1);
  size_t i;
  int n;
  fill(x, M * COLUMNS, 8);
  for (n = 0; n < M * COLUMNS; n++) h[n] = to_f16(x[n]), b[n] = to_bf16(x[n]);
  for (i = 0; i < TENSORS; i++) {
    bl_layer *layer = open_layer(model, tensors[i], BL_ACTIVATION_AUTO, NULL);
    forward(layer, M, x, want);
    GOOD(bl_forward(layer, M, h, BL_TYPE_F16, 0, y, BL_TYPE_F32, 0, NULL, &error));
    CHECK(same(y, want, M * ROWS));
    GOOD(bl_forward(layer, M, b, BL_TYPE_BF16, 0, y, BL_TYPE_F32, 0, NULL, &error));
    CHECK(same(y, want, M * ROWS));
    GOOD(bl_forward(layer, M, h, BL_TYPE_F16, 0, yh, BL_TYPE_F16, 0, NULL, &error));
    GOOD(bl_forward(layer, M, b, BL_TYPE_BF16, 0, yb, BL_TYPE_BF16, 0, NULL, &error));
    for (n = 0; n < M * ROWS; n++) {
      float below = from_f16((uint16_t)(yh[n] - 1)), above = from_f16((uint16_t)(yh[n] + 1));
      float is = from_f16(yh[n]);
      if ((yh[n] & 0x7fff) != 0 && (yh[n] & 0x7fff) < 0x7bff) /* no neighbour is nearer */
        CHECK(fabsf(want[n] - is) <= fabsf(want[n] - below) && fabsf(want[n] - is) <= fabsf(want[n] - above));
      CHECK(fabsf(want[n] - from_bf16(yb[n])) <= fabsf(want[n]) / 256);
    }
    bl_free(layer);
  }
  free(x), free(want), free(y), free(h), free(b), free(yh), free(yb);
}

/* A workspace of the caller: exact, larger, misaligned; too small is told with the size needed. */
static void workspaces(const bl_model *model) {
  static const int64_t batches[] = {1, 2, 7, 33};
  enum { M = 33 };
  float *x = floats(M * COLUMNS), *want = floats(M * ROWS), *y = floats(M * ROWS);
  size_t i, b;
  fill(x, M * COLUMNS, 9);
  for (i = 0; i < TENSORS; i++) {
    bl_layer *layer = open_layer(model, tensors[i], BL_ACTIVATION_AUTO, NULL);
    for (b = 0; b < sizeof batches / sizeof *batches; b++) {
      int64_t m = batches[b];
      bl_plan_info plan = plan_of(layer, m);
      size_t size = (size_t)plan.workspace_size, offset;
      unsigned char *memory = (unsigned char *)take(size + 64);
      STRUCT(bl_run_options, run);
      CHECK(plan.threads == 1 && plan.kernel != NULL && size > 0 && plan.workspace_alignment == 64);
      CHECK(plan.operations == 2u * (uint64_t)m * ROWS * COLUMNS && plan.bytes_read > 0);
      forward(layer, m, x, want);
      run.workspace_size = size;
      for (offset = 0; offset < 64; offset += 1 + offset / 3) {
        int good = 1;
        size_t k;
        memset(memory, 0xee, size + 64); /* what lies there does not matter */
        memset(y, 0, M * ROWS * sizeof *y);
        run.workspace = memory + offset;
        GOOD(bl_forward(layer, m, x, BL_TYPE_F32, 0, y, BL_TYPE_F32, 0, &run, &error));
        CHECK(same(y, want, m * ROWS));
        for (k = 0; k < size + 64; k++) good &= (k >= offset && k < offset + size) || memory[k] == 0xee;
        CHECK(good);
      }
      run.workspace = memory;
      run.workspace_size = 1;
      memset(y, 0, M * ROWS * sizeof *y);
      EXPECT(bl_forward(layer, m, x, BL_TYPE_F32, 0, y, BL_TYPE_F32, 0, &run, &error),
             BL_ERROR_BUFFER_TOO_SMALL, "workspace");
      run.workspace_size = 0; /* a place without room is too small, not absent */
      EXPECT(bl_forward(layer, m, x, BL_TYPE_F32, 0, y, BL_TYPE_F32, 0, &run, &error),
             BL_ERROR_BUFFER_TOO_SMALL, "workspace");
      CHECK(y[0] == 0.0f);
      free(memory);
    }
    bl_free(layer);
  }
  free(x), free(want), free(y);
}

/* A row with a NaN or an infinity is NaN; its neighbours keep their bits. */
static void not_finite(const bl_model *model) {
  static const float values[] = {NAN, INFINITY, -INFINITY};
  float *x = floats(3 * COLUMNS), *want = floats(3 * ROWS), *y = floats(3 * ROWS);
  bl_layer *layer = open_layer(model, "blk.0.q4_0.weight", BL_ACTIVATION_AUTO, NULL);
  size_t i;
  int o;
  fill(x, 3 * COLUMNS, 10);
  forward(layer, 3, x, want);
  for (i = 0; i < 3; i++) {
    x[COLUMNS + 77] = values[i];
    forward(layer, 3, x, y);
    CHECK(same(y, want, ROWS) && same(y + 2 * ROWS, want + 2 * ROWS, ROWS));
    for (o = 0; o < ROWS; o++) {
      uint32_t bits;
      memcpy(&bits, &y[ROWS + o], 4);
      CHECK(bits == 0x7fc00000u);
    }
  }
  bl_free(layer);
  free(x), free(want), free(y);
}

/* No rows: nothing is read or written, even where the addresses are none. */
static void no_rows(const bl_model *model) {
  bl_layer *layer = open_layer(model, "blk.0.q4_0.weight", BL_ACTIVATION_AUTO, NULL);
  void *nowhere = (void *)(size_t)64;
  GOOD(bl_forward(layer, 0, nowhere, BL_TYPE_F32, 0, nowhere, BL_TYPE_F32, 0, NULL, &error));
  bl_free(layer);
}

/* Rows of dequantised weights, in parts and in other types. */
static void reading(const bl_model *model) {
  bl_layer *layer = open_layer(model, "blk.0.q5_1.weight", BL_ACTIVATION_AUTO, NULL);
  float *all = floats(ROWS * COLUMNS);
  unsigned char part[COLUMNS * 4 + 1];
  uint16_t half[COLUMNS];
  int row, k, good = 1;
  GOOD(bl_layer_read(layer, 0, ROWS, all, BL_TYPE_F32, 0, &error));
  for (row = 0; row < ROWS; row++) {
    GOOD(bl_layer_read(layer, row, 1, part + 1, BL_TYPE_F32, COLUMNS * 4, &error));
    CHECK(memcmp(part + 1, all + row * COLUMNS, COLUMNS * 4) == 0);
  }
  GOOD(bl_layer_read(layer, 5, 1, half, BL_TYPE_BF16, 0, &error));
  for (k = 0; k < COLUMNS; k++)
    good &= fabsf(from_bf16(half[k]) - all[5 * COLUMNS + k]) <= fabsf(all[5 * COLUMNS + k]) / 256;
  CHECK(good);
  bl_free(layer);
  free(all);
}

int main(int count, char **words) {
  bl_model *model;
  start(count, words);
  model = open_model(ALL_TYPES);
  float_chain(model);
  integers_are_near(model);
  places(model);
  types(model);
  workspaces(model);
  not_finite(model);
  no_rows(model);
  reading(model);
  bl_free(model);
  return done();
}
