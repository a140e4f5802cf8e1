// Products for many rows of x: a block of 8 warps for 128 rows of W and 128 (grouped: 64) rows of x. Each warp
// walks all of k for 32 rows of W and half of the rows of x, so that the float chain of an output is its own.
//
// Weights and codes of x come through shared memory in tiles of 128 (256 where a unit is) columns, two or three of
// them under way by cp.async. A row of codes of x is a row of the tile, in pieces of 64 bytes; odd rows have
// neighbouring pieces exchanged, so that the 8 lanes of a quarter of a load of 16 bytes touch all 32 banks.
// Weights are decoded by the lane that multiplies with them: a line's 16 bytes are its fragments.
//
// gemm_row       one scale a row: integers only; 64 sums of a lane, each A fragment serves 8 mma
// gemm_grouped   groups, and several bases; or two levels: at the end of a group its sums become floats, in order.
//                What the next group's step needs (scales, sums of x, minima) is loaded a group ahead.
//
// Bounds (calculated, no card was at hand): gemm_row is bound by mma.sync, 0.6 of the int8 peak of an H100 at
// best, all of it on Ada and Ampere; per mma of 4096 multiply-adds it needs a quarter of a 16-byte shared load
// and 0.9 integer instructions for decoding 2 bits. gemm_grouped with groups of 32 is bound by what follows a group:
// 4 outputs a lane and mma, each an IMAD, an IADD, an FADD, an FMUL and an FFMA: a third of the mma rate.
#pragma once
#include "decode.cuh"
#include "numbers.cuh"

constexpr int GEMM_THREADS = 256, GEMM_STRIPS = 8;

/// A block's place and its tiles of shared memory.
template <int bits, bool table, int COLUMNS> struct Tiles {
  using C = Codes<bits, table>;
  /// Columns of k of a tile, its units, and its bytes: of x, of a strip's weights, of both.
  static constexpr int DEPTH = C::UNIT > 128 ? C::UNIT : 128, UNITS = DEPTH / C::UNIT;
  static constexpr int X = COLUMNS * DEPTH, STRIP = UNITS * C::BYTES, STAGE = X + GEMM_STRIPS * STRIP;

  const Product& p;
  const Layer& layer;
  unsigned char* shared;
  uint32_t strip0, strips, m0, per_base, count;

  BL_MEMBER Tiles(const Product& p_, const Layer& layer_, unsigned char* shared_)
      : p(p_), layer(layer_), shared(shared_), m0(0) {
    strip0 = (blockIdx.x - layer.first_block) * GEMM_STRIPS;
    strips = (layer.outputs + 15) / 16;
    per_base = (p.units + UNITS - 1) / UNITS;
    count = per_base * layer.bases;
  }

  /// Begins to copy tile `i`, or nothing past the last; one group of copies either way.
  BL_MEMBER void copy(uint32_t i) const {
    if (i < count) {
      unsigned char* stage = shared + i % p.stages * STAGE;
      const uint32_t base = i / per_base, in_base = i % per_base;
      const unsigned char* x = (const unsigned char*)p.x + (uint64_t)in_base * DEPTH;
#pragma unroll
      for (uint32_t e = threadIdx.x; e < COLUMNS * DEPTH / 16; e += GEMM_THREADS) {
        const uint32_t row = e / (DEPTH / 16), piece = e % (DEPTH / 16);
        const bool there = m0 + row < p.m;
        bl_copy_async(stage + row * DEPTH + ((piece * 16) ^ (row & 1) * 64),
                      x + (there ? m0 + row : 0) * p.x_stride + piece * 16, there);
      }
      const unsigned char* weights = (const unsigned char*)layer.weights + base * layer.base_bytes;
#pragma unroll
      for (uint32_t e = threadIdx.x; e < GEMM_STRIPS * STRIP / 16; e += GEMM_THREADS) {
        const uint32_t strip = e / (STRIP / 16), at = e % (STRIP / 16) * 16;
        const bool there = strip0 + strip < strips && in_base * UNITS + at / C::BYTES < p.units;
        bl_copy_async(stage + X + strip * STRIP + at,
                      weights + (there ? (strip0 + strip) * layer.strip_bytes + (uint64_t)in_base * STRIP + at : 0),
                      there);
      }
    }
    bl_copy_commit();
  }
  /// Has the heads of the strips' records come to the L2 cache: those between two half-steps of a row.
  BL_MEMBER void prefetch_heads(uint32_t from, uint32_t to) const {
    const uint32_t halves = p.record_padded / 16, first = from / halves, last = min(to / halves, p.records - 1);
    const uint32_t strip = threadIdx.x / (GEMM_THREADS / GEMM_STRIPS), lane = threadIdx.x % (GEMM_THREADS / GEMM_STRIPS);
    if (strip0 + strip >= strips || first >= p.records) return;
    const uint64_t heads = layer.weights + (strip0 + strip) * layer.strip_bytes + layer.heads;
    for (uint64_t at = (uint64_t)first * layer.head_bytes + lane * 128; at < (uint64_t)(last + 1) * layer.head_bytes;
         at += GEMM_THREADS / GEMM_STRIPS * 128)
      bl_prefetch((const void*)(heads + at));
  }
  /// The first tiles.
  BL_MEMBER void begin() const {
    for (uint32_t i = 0; i + 1 < p.stages; i++) copy(i);
  }
  /// Waits for tile `i`, which is the next, and begins to copy the one that takes the place of the one before it.
  BL_MEMBER const unsigned char* next(uint32_t i) const {
    if (p.stages == 3)
      bl_copy_wait<1>();
    else
      bl_copy_wait<0>();
    __syncthreads();
    copy(i + p.stages - 1);
    return shared + i % p.stages * STAGE;
  }
  /// After the last tile.
  BL_MEMBER void end() const {
    bl_copy_wait<0>();
    __syncthreads();
  }
};

/// On the way out a warp has 16 rows of x of its 32 outputs in shared memory, a few words further apart than 32,
/// so that the lanes of a fragment touch different banks.
constexpr int OUT_STRIDE = 36, OUT_WORDS = 16 * OUT_STRIDE;

/// Puts the first two fragments of a lane's outputs there, and moves the others up: registers have no index, and
/// what follows a product should not be compiled once for each of them.
template <int NT, class V> BL_DEVICE void put_and_shift(V (&c)[2][NT][4], V* out, int lane) {
#pragma unroll
  for (int s = 0; s < 2; s++) {
#pragma unroll
    for (int j = 0; j < 2; j++)
#pragma unroll
      for (int i = 0; i < 4; i++)
        out[(8 * j + lane % 4 * 2 + i % 2) * OUT_STRIDE + 16 * s + lane / 4 + i / 2 * 8] = c[s][j][i];
#pragma unroll
    for (int j = 0; j + 2 < NT; j++)
#pragma unroll
      for (int i = 0; i < 4; i++) c[s][j][i] = c[s][j + 2][i];
  }
  __syncwarp();
}

template <int bits, bool table> BL_DEVICE void gemm_row(const Product& p) {
  using C = Codes<bits, table>;
  using T = Tiles<bits, table, 128>;
  constexpr int NT = 8;
  BL_SHARED(shared);
  const Layer& layer = bl_layer(p);
  T tiles(p, layer, shared);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int strip = warp % 4 * 2, n0 = warp / 4 * NT * 8;
  const uint32_t entries[4] = {layer.table[0], layer.table[1], layer.table[2], layer.table[3]};
  for (uint32_t tile = blockIdx.y; tile < p.tiles; tile += gridDim.y) {
    tiles.m0 = tile * 128;
    tiles.begin();
    int c[2][NT][4];
#pragma unroll
    for (int s = 0; s < 2; s++)
#pragma unroll
      for (int j = 0; j < NT; j++) c[s][j][0] = c[s][j][1] = c[s][j][2] = c[s][j][3] = 0;
    for (uint32_t i = 0; i < tiles.count; i++) {
      const unsigned char* stage = tiles.next(i);
#pragma unroll
      for (int unit = 0; unit < T::UNITS; unit++) {
        C codes[2];
        codes[0].load(stage + T::X + strip * T::STRIP + unit * C::BYTES, lane);
        codes[1].load(stage + T::X + (strip + 1) * T::STRIP + unit * C::BYTES, lane);
#pragma unroll
        for (int pair = 0; pair < C::STEPS / 2; pair++) {
          uint32_t a[2][2][4]; // strip, step
#pragma unroll
          for (int s = 0; s < 2; s++) {
            codes[s].fragment(2 * pair, entries, a[s][0]);
            codes[s].fragment(2 * pair + 1, entries, a[s][1]);
          }
#pragma unroll
          for (int j = 0; j < NT; j++) {
            const int row = n0 + 8 * j + g, piece = unit * (C::UNIT / 64) + pair;
            const uint4 b = *(const uint4*)(stage + row * T::DEPTH + ((piece ^ (row & 1)) * 64) + 16 * t);
#pragma unroll
            for (int s = 0; s < 2; s++) {
              bl_mma_k32_ss(c[s][j], a[s][0], b.x, b.y);
              bl_mma_k32_ss(c[s][j], a[s][1], b.z, b.w);
            }
          }
        }
      }
    }
    tiles.end();
    // Out through shared memory: 32 outputs of a row of x at a time, which touch in y.
    const uint32_t output = (tiles.strip0 + strip) * 16 + lane, in_strip = min(output / 16, tiles.strips - 1);
    const unsigned char* weights = (const unsigned char*)layer.weights + in_strip * layer.strip_bytes;
    const float scale = __ldg((const float*)(weights + layer.heads) + lane % 16);
    const uint32_t weight_sum = layer.sums ? (uint32_t)__ldg((const int*)(weights + layer.sums) + lane % 16) : 0;
    int* out = (int*)shared + warp * OUT_WORDS;
#pragma unroll 1
    for (int pass = 0; pass < NT; pass += 2) {
      put_and_shift<NT>(c, out, lane);
#pragma unroll 1
      for (int i = 0; i < 16; i++) {
        const uint32_t m = tiles.m0 + n0 + 8 * pass + i;
        if (m >= p.m || output >= layer.outputs) continue;
        const uint32_t x_sum = (uint32_t)__ldg((const int*)p.sums + m);
        const int dot = (int)((uint32_t)out[i * OUT_STRIDE + lane] * (uint32_t)layer.factor +
                              (uint32_t)layer.correction * x_sum + weight_sum);
        const float product = __fmul_rn(scale, __ldg((const float*)p.scales + m));
        bl_finish(layer, m, output, __fmul_rn(__int2float_rn(dot), product));
      }
      __syncwarp();
    }
    __syncthreads();
  }
}

template <int bits, bool table, bool level> BL_DEVICE void gemm_grouped(const Product& p) {
  using C = Codes<bits, table>;
  using T = Tiles<bits, table, 64>;
  constexpr int NT = 4;
  BL_SHARED(shared);
  const Layer& layer = bl_layer(p);
  T tiles(p, layer, shared);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int strip = warp % 4 * 2, n0 = warp / 4 * NT * 8;
  const uint32_t entries[4] = {layer.table[0], layer.table[1], layer.table[2], layer.table[3]};
  const bool minimum = layer.scheme == BL_SCHEME_GROUP_MINIMUM || layer.scheme == BL_SCHEME_LEVEL_MINIMUM;
  const bool zero = layer.scheme == BL_SCHEME_GROUP_ZERO, bases = layer.scheme == BL_SCHEME_ROW;
  const uint32_t scale_bytes = bl_scale_bytes(layer.scale_type);
  const uint32_t group_halves = (p.record_groups == 1 ? p.record_padded : p.group) / 16;
  const bool steps = group_halves % 2 == 0 || (p.records == 1 && p.record_groups == 1);
  const uint32_t row_halves =
      (p.records - 1) * (p.record_padded / 16) + (p.columns - (p.records - 1) * p.record + 15) / 16;

  // Whether the sum of a group is below 2^22, whatever its codes: all but long groups of wide codes.
  const uint64_t reach = (uint64_t)p.group * (table ? 128 : 1 << bits) * (p.code_bias ? 255 : 127);
  const bool small = !level && reach < 1u << 22;

  // What the step at the end of a group needs; [strip][row g or g + 8].
  struct Side {
    float scale[2][2], low[2][2]; // of the record: scale, minimum (or dmin)
    int by[2][2], low_by[2][2];   // zero point, or sub-scale and sub-minimum
    int weight_sum[2][2];
    float2 x_scale[NT];
    int2 x_sum[NT];
    int len; // columns
  };

  for (uint32_t tile = blockIdx.y; tile < p.tiles; tile += gridDim.y) {
    tiles.m0 = tile * 64;
    tiles.begin();
    int c[2][NT][4], levels[2][NT][4], lows[2][NT][4];
    float f[2][NT][4];
#pragma unroll
    for (int s = 0; s < 2; s++)
#pragma unroll
      for (int j = 0; j < NT; j++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
          c[s][j][i] = levels[s][j][i] = lows[s][j][i] = 0;
          f[s][j][i] = 0.0f;
        }

    // `group` counts over the groups of all bases.
    auto load = [&](uint32_t group, Side& side) {
      const uint32_t base = group / p.groups, in_base = group % p.groups;
      if (base >= layer.bases) return;
      const uint32_t record = level ? in_base / p.record_groups : in_base;
      const uint32_t in_record = level ? in_base % p.record_groups : 0;
      side.len = (int)min(p.group, p.columns - record * p.record - in_record * p.group);
#pragma unroll
      for (int s = 0; s < 2; s++) {
        const uint32_t at = min(tiles.strip0 + strip + s, tiles.strips - 1);
        const unsigned char* weights = (const unsigned char*)layer.weights + at * layer.strip_bytes;
        const unsigned char* head = weights + layer.heads + (uint64_t)record * layer.head_bytes + (bases ? base * 64 : 0);
#pragma unroll
        for (int hi = 0; hi < 2; hi++) {
          const uint32_t row = g + 8 * hi;
          side.scale[s][hi] = bl_scale(layer.scale_type, head, row);
          if (minimum) side.low[s][hi] = bl_scale(layer.scale_type, head + 16 * scale_bytes, row);
          if (level) {
            const signed char* sub = (const signed char*)head + 16 * scale_bytes * (minimum ? 2 : 1) + 16 * in_record;
            side.by[s][hi] = __ldg(sub + row);
            if (minimum) side.low_by[s][hi] = __ldg(sub + 16 * p.record_groups + row);
          } else if (zero) {
            side.by[s][hi] = __ldg(head + 16 * scale_bytes + row);
          }
          side.weight_sum[s][hi] = layer.sums ? __ldg((const int*)(weights + layer.sums) + (uint64_t)group * 16 + row) : 0;
        }
      }
#pragma unroll
      for (int j = 0; j < NT; j++) {
        // Past the last row of x whatever stands at the last pair: those outputs are not stored.
        const uint64_t m = min((uint64_t)(tiles.m0 + n0 + 8 * j + 2 * t), p.pitch - 2);
        side.x_scale[j] = __ldg((const float2*)((const float*)p.scales + record * p.pitch + m));
        side.x_sum[j] = __ldg((const int2*)((const int*)p.sums + in_base * p.pitch + m));
      }
    };
    Side side;
    uint32_t group = 0, left = group_halves, in_record = 0;
    load(0, side);

    auto finish_group = [&](auto small_sums) {
      constexpr bool SMALL = decltype(small_sums)::value;
      const bool record_ends = !level || in_record + 1 == p.record_groups;
#pragma unroll
      for (int s = 0; s < 2; s++)
#pragma unroll
        for (int j = 0; j < NT; j++)
#pragma unroll
          for (int i = 0; i < 4; i++) {
            const int hi = i / 2;
            const int x_sum = i % 2 ? side.x_sum[j].y : side.x_sum[j].x;
            const float x_scale = i % 2 ? side.x_scale[j].y : side.x_scale[j].x;
            const int total = x_sum + p.code_bias * side.len;
            int dot = (int)((uint32_t)c[s][j][i] * (uint32_t)layer.factor + (uint32_t)layer.correction * (uint32_t)x_sum +
                            (uint32_t)side.weight_sum[s][hi]);
            c[s][j][i] = 0;
            if (level) {
              levels[s][j][i] += side.by[s][hi] * dot;
              if (minimum) lows[s][j][i] += side.low_by[s][hi] * total;
              if (!record_ends) continue;
              dot = levels[s][j][i];
              levels[s][j][i] = 0;
            } else if (zero) {
              dot -= side.by[s][hi] * total;
            }
            // On 7.5 and 8.0 an I2F has a quarter of the rate of additions, which give the same for a small sum.
            const float sum = SMALL ? __fsub_rn(__uint_as_float((uint32_t)BL_ROUND_BITS + (uint32_t)dot), BL_ROUND)
                                    : __int2float_rn(dot);
            f[s][j][i] = __fmaf_rn(sum, __fmul_rn(side.scale[s][hi], x_scale), f[s][j][i]);
            if (minimum) {
              const float low = side.low[s][hi];
              f[s][j][i] = level ? __fmaf_rn(__int2float_rn(lows[s][j][i]), -__fmul_rn(low, x_scale), f[s][j][i])
                                 : __fmaf_rn(__fmul_rn(__int2float_rn(total), x_scale), low, f[s][j][i]);
              lows[s][j][i] = 0;
            }
          }
      group++;
      in_record = record_ends ? 0 : in_record + 1;
      left = group_halves;
      load(group, side);
    };

    for (uint32_t i = 0; i < tiles.count; i++) {
      const unsigned char* stage = tiles.next(i);
      const uint32_t in_base = i % tiles.per_base, half0 = in_base * (T::DEPTH / 16);
      // Those of a tile that is under way.
      tiles.prefetch_heads(half0 + T::DEPTH / 8, half0 + T::DEPTH * 3 / 16);
#pragma unroll 1
      for (int step = 0; step < T::DEPTH / 32; step++) {
        if (half0 + 2 * step >= row_halves) break;
        uint32_t a[2][4];
        C::fragment_at(stage + T::X + strip * T::STRIP, step, lane, entries, a[0]);
        C::fragment_at(stage + T::X + (strip + 1) * T::STRIP, step, lane, entries, a[1]);
        uint2 b[NT];
#pragma unroll
        for (int j = 0; j < NT; j++) {
          const int row = n0 + 8 * j + g;
          b[j] = *(const uint2*)(stage + row * T::DEPTH + ((step / 2 ^ (row & 1)) * 64) + 16 * t + step % 2 * 8);
        }
        const int parts = steps ? 1 : 2;
#pragma unroll 1
        for (int part = 0; part < parts; part++) {
          if (half0 + 2 * step + part >= row_halves) break;
#pragma unroll
          for (int s = 0; s < 2; s++) {
            const uint32_t half[2] = {part ? a[s][2] : a[s][0], part ? a[s][3] : a[s][1]};
#pragma unroll
            for (int j = 0; j < NT; j++) {
              if (steps)
                bl_mma_k32_ss(c[s][j], a[s], b[j].x, b[j].y);
              else
                bl_mma_k16_ss(c[s][j], half, part ? b[j].y : b[j].x);
            }
          }
          const uint32_t done = half0 + 2 * step + (steps ? 2 : part + 1);
          left = left > (steps ? 2u : 1u) ? left - (steps ? 2 : 1) : 0;
          // The last group of a row may be short.
          if (left == 0 || done >= row_halves) {
            if (small)
              finish_group(Choice<true>());
            else
              finish_group(Choice<false>());
          }
        }
      }
    }
    tiles.end();
    const uint32_t output = (tiles.strip0 + strip) * 16 + lane;
    float* out = (float*)shared + warp * OUT_WORDS;
#pragma unroll 1
    for (int pass = 0; pass < NT; pass += 2) {
      put_and_shift<NT>(f, out, lane);
#pragma unroll 1
      for (int i = 0; i < 16; i++) {
        const uint32_t m = tiles.m0 + n0 + 8 * pass + i;
        if (m < p.m && output < layer.outputs) bl_finish(layer, m, output, out[i * OUT_STRIDE + lane]);
      }
      __syncwarp();
    }
    __syncthreads();
  }
}
