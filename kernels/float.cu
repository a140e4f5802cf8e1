// Products of x as floats, for every layout: acc = fma(x_k, w_k, acc), k ascending, one thread for each output.
//
// A block decodes its rows of W, a tile of columns at a time, into f32 in shared memory; each value is then
// used for all rows of x of the block. Weights of the next tile are decoded before the chain of this one is
// walked, so that their loads are under way meanwhile.
//
// bl_float_few    16 rows of W, 8 rows of x: bound by the chain, columns x 4 cycles (10 us for 4096), whatever
//                 the weights
// bl_float_many   64 x 64, 4 x 4 outputs a thread: 8 shared loads for 16 fma, half of the fma rate at best
#include "numbers.cuh"

/// One layer's weights as the float steps need them, for any width: slow and plain.
struct Weights {
  const Product& p;
  const Layer& layer;
  uint32_t low, high, unit, low_columns;

  BL_MEMBER Weights(const Product& p_, const Layer& layer_) : p(p_), layer(layer_) {
    const uint32_t bits = layer.bits;
    low = bits == 3 ? 2 : bits == 5 || bits == 6 ? 4 : bits;
    high = bits - low;
    unit = low == 8 ? 64 : bits ? 256 / (high ? high : low) : 1;
    low_columns = bits ? 256 / low : 1;
  }

  /// The integer of row `row` (of 16) and packed column `column`, but for its group's zero point.
  BL_MEMBER int value(const unsigned char* plane, uint32_t row, uint32_t column) const {
    const unsigned char* bytes = plane + (uint64_t)(column / unit) * (unit * layer.bits * 2);
    const uint32_t at = (row % 8 * 4 + column / 4 % 4) * 16 + (column / 16 % 2 * 2 + row / 8) * 4 + column % 4;
    const uint32_t in_unit = column % unit;
    int code = __ldg(bytes + in_unit / low_columns * 512 + at) >> (in_unit % low_columns / 32 * low) & ((1 << low) - 1);
    if (high) {
      const int upper = __ldg(bytes + unit / low_columns * 512 + at) >> (in_unit / 32 * high) & ((1 << high) - 1);
      code |= upper << low;
    }
    if (layer.bits == 8) code = (signed char)code;
    if (layer.values) code = (signed char)(layer.table[code / 4] >> (code % 4 * 8));
    return code * layer.factor + layer.correction;
  }

  /// The weight of row `row` of a strip and column `k`.
  BL_MEMBER float weight(const unsigned char* strip, uint32_t row, uint32_t k) const {
    if (layer.bits == 0) return bl_load(layer.values, strip + (uint64_t)k * (layer.values == BL_FLOAT_F32 ? 64 : 32), row);
    const uint32_t record = k / p.record, in_record = k - record * p.record;
    const uint32_t column = record * p.record_padded + in_record;
    const unsigned char* head = strip + layer.heads + (uint64_t)record * layer.head_bytes;
    const uint32_t scale_bytes = bl_scale_bytes(layer.scale_type);
    float scale = bl_scale(layer.scale_type, head, row);
    const int v = value(strip, row, column);
    switch (layer.scheme) {
      case BL_SCHEME_ROW: {
        float w = __fmul_rn(__int2float_rn(v), scale);
        for (uint32_t base = 1; base < layer.bases; base++) {
          const float next = __int2float_rn(value(strip + base * layer.base_bytes, row, column));
          w = __fadd_rn(w, __fmul_rn(next, bl_scale(layer.scale_type, head + base * 64, row)));
        }
        return w;
      }
      case BL_SCHEME_GROUP: return __fmul_rn(scale, __int2float_rn(v));
      case BL_SCHEME_GROUP_MINIMUM:
        return __fadd_rn(__fmul_rn(scale, __int2float_rn(v)), bl_scale(layer.scale_type, head + 16 * scale_bytes, row));
      case BL_SCHEME_GROUP_ZERO:
        return __fmul_rn(scale, __int2float_rn(v - (int)__ldg(head + 16 * scale_bytes + row)));
      default: {
        const bool minimum = layer.scheme == BL_SCHEME_LEVEL_MINIMUM;
        const uint32_t j = in_record / p.group;
        const signed char* sub = (const signed char*)head + 16 * scale_bytes * (minimum ? 2 : 1) + 16 * j + row;
        const float w = __fmul_rn(__fmul_rn(scale, __int2float_rn(__ldg(sub))), __int2float_rn(v));
        if (!minimum) return w;
        const float low_scale = bl_scale(layer.scale_type, head + 16 * scale_bytes, row);
        return __fsub_rn(w, __fmul_rn(low_scale, __int2float_rn(__ldg(sub + 16 * p.record_groups))));
      }
    }
  }
};

/// ROWS rows of W by COLUMNS rows of x a block, R by C outputs a thread, DEPTH columns a tile.
template <int ROWS, int COLUMNS, int R, int C, int DEPTH> BL_DEVICE void floats(const Product& p) {
  constexpr int ACROSS = ROWS / R, THREADS = ACROSS * (COLUMNS / C);
  constexpr int OWN_W = ROWS * DEPTH / THREADS, OWN_X = COLUMNS * DEPTH / THREADS;
  BL_SHARED(shared);
  float *w_tile = (float*)shared, *x_tile = w_tile + DEPTH * ROWS; // [column][row]; those of x a row further apart
  const Layer& layer = bl_layer(p);
  const Weights weights(p, layer);
  const uint32_t row0 = (blockIdx.x - layer.first_block) * ROWS, thread = threadIdx.x;
  const uint32_t strips = (layer.outputs + 15) / 16;
  const uint32_t w0 = thread % ACROSS, x0 = thread / ACROSS; // outputs w0 + ACROSS i, x0 + (COLUMNS / C) j

  for (uint32_t tile = blockIdx.y; tile < p.tiles; tile += gridDim.y) {
    const uint32_t m0 = tile * COLUMNS;
    float acc[R * C], w_next[OWN_W], x_next[OWN_X];
#pragma unroll
    for (int i = 0; i < R * C; i++) acc[i] = 0.0f;
    // Turn `k0` fetches the tile from k0 on and walks the one before it.
    for (uint32_t k0 = 0; k0 < p.columns + DEPTH; k0 += DEPTH) {
#pragma unroll
      for (int i = 0; i < OWN_W; i++) {
        const uint32_t e = thread + i * THREADS, row = row0 + e % ROWS, k = k0 + e / ROWS;
        const unsigned char* strip = (const unsigned char*)layer.weights + row / 16 * layer.strip_bytes;
        w_next[i] = row / 16 < strips && k < p.columns ? weights.weight(strip, row % 16, k) : 0.0f;
      }
#pragma unroll
      for (int i = 0; i < OWN_X; i++) {
        const uint32_t e = thread + i * THREADS, m = m0 + e / DEPTH, k = k0 + e % DEPTH;
        x_next[i] = m < p.m && k < p.columns ? __ldg((const float*)(p.x + m * p.x_stride) + k) : 0.0f;
      }
      // Pads never enter a chain: fma(0, w, acc) could turn -0 into 0.
      const uint32_t depth = k0 ? min((uint32_t)DEPTH, p.columns + DEPTH - k0) : 0;
#pragma unroll 8
      for (uint32_t k = 0; k < depth; k++) {
        float w[R], x[C];
#pragma unroll
        for (int i = 0; i < R; i++) w[i] = w_tile[k * ROWS + w0 + ACROSS * i];
#pragma unroll
        for (int j = 0; j < C; j++) x[j] = x_tile[k * (COLUMNS + 1) + x0 + COLUMNS / C * j];
#pragma unroll
        for (int i = 0; i < R; i++)
#pragma unroll
          for (int j = 0; j < C; j++) acc[i * C + j] = __fmaf_rn(x[j], w[i], acc[i * C + j]);
      }
      __syncthreads();
#pragma unroll
      for (int i = 0; i < OWN_W; i++) w_tile[thread + i * THREADS] = w_next[i];
#pragma unroll
      for (int i = 0; i < OWN_X; i++) {
        const uint32_t e = thread + i * THREADS;
        x_tile[e % DEPTH * (COLUMNS + 1) + e / DEPTH] = x_next[i];
      }
      __syncthreads();
    }
    // One output after the other moves to the front, so that what follows a product is compiled once.
#pragma unroll 1
    for (int i = 0; i < R * C; i++) {
      const uint32_t output = row0 + w0 + ACROSS * (i / C), m = m0 + x0 + COLUMNS / C * (i % C);
      if (output < layer.outputs && m < p.m) bl_finish(layer, m, output, acc[0]);
#pragma unroll
      for (int j = 0; j + 1 < R * C; j++) acc[j] = acc[j + 1];
    }
  }
}

BL_KERNEL(bl_float_few, 128, 4, const __grid_constant__ Product p) { floats<16, 8, 1, 1, 64>(p); }
BL_KERNEL(bl_float_many, 256, 2, const __grid_constant__ Product p) { floats<64, 64, 4, 4, 32>(p); }
