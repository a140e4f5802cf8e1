// Products for many rows of x on compute capability 9.0, weights with one scale a row: a block of two warpgroups for
// 128 rows of W and 256, 128 or 64 rows of x (whatever fills the card).
//
// Thread 0 fills a ring of stages of 128 columns (256 for 1 bit) by bulk copies: codes of x as `prepare` laid
// them out for this (the image of the tile, with the swizzle of wgmma), 32 KB in one piece, and the units of the
// strips. A warp's 16 rows of the matrix A are a strip: a lane decodes its own bytes into the fragments of all steps
// of a stage while the products of the stage before it run. A stage is given back warp by warp; thread 0 copies anew
// into the one before that whose products run. (A warp of its own for that would cost registers: ptxas counts it as
// a warpgroup, and 384 threads have 168 registers each, 256 have 255.)
//
// Bound (calculated, no card was at hand): a stage is 4 wgmma of 128 cycles for each of two warpgroups, which share
// the tensor cores: 1024 cycles for 36 KB of copies (35 bytes a cycle and multiprocessor, from L2) and, at 2 bits,
// 28 integer instructions a warp, which the other warpgroup's products cover. 128 sums and 32 words of A a lane.
#pragma once
#include "decode.cuh"
#include "numbers.cuh"

#if BL_HOPPER

constexpr int WGMMA_THREADS = 256, WGMMA_STRIPS = 8;
/// On the way out, for 64 rows of x: words from one to the next, of 16 outputs.
constexpr int WGMMA_OUT_STRIDE = 20, WGMMA_OUT_WORDS = 64 * WGMMA_OUT_STRIDE;

template <int bits, bool table, int COLUMNS> BL_DEVICE void wgmma_row(const Product& p) {
  using C = Codes<bits, table>;
  constexpr int DEPTH = C::UNIT > 128 ? C::UNIT : 128, UNITS = DEPTH / C::UNIT, STEPS = DEPTH / 32;
  constexpr int X = COLUMNS * DEPTH, STRIP = UNITS * C::BYTES, STAGE = X + WGMMA_STRIPS * STRIP;
  constexpr int STAGES_MAX = 4;
  BL_SHARED(unaligned);
  BL_SHARED_ARRAY(uint64_t, full, STAGES_MAX);
  BL_SHARED_ARRAY(uint64_t, empty, STAGES_MAX);
  unsigned char* shared = unaligned + (1024 - bl_shared_place(unaligned) % 1024) % 1024;
  const Layer& layer = bl_layer(p);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const uint32_t strip0 = (blockIdx.x - layer.first_block) * WGMMA_STRIPS, strips = (layer.outputs + 15) / 16;
  const uint32_t m0 = blockIdx.y * COLUMNS, count = (p.units + UNITS - 1) / UNITS;
  if (threadIdx.x == 0) {
    for (uint32_t i = 0; i < p.stages; i++) {
      bl_barrier_init(full + i, 1);
      bl_barrier_init(empty + i, 8);
    }
    bl_barrier_init_done();
  }
  __syncthreads();

  const uint32_t there = min((uint32_t)WGMMA_STRIPS, strips - strip0);
  auto copy = [&](uint32_t i) {
    const uint32_t s = i % p.stages;
    unsigned char* stage = shared + s * STAGE;
    // Of a strip no more than it has: behind its last unit are its heads.
    const uint32_t bytes = min((uint32_t)UNITS, p.units - i * UNITS) * C::BYTES;
    bl_barrier_arrive_expect(full + s, X + there * bytes);
    for (int k = 0; k < DEPTH / 128; k++) {
      const uint64_t from = p.x + (uint64_t)(i * (DEPTH / 128) + k) * p.x_stride + (uint64_t)m0 * 128;
      bl_copy_bulk(stage + k * (COLUMNS * 128), (const void*)from, COLUMNS * 128, full + s);
    }
    for (uint32_t j = 0; j < there; j++) {
      const uint64_t from = layer.weights + (strip0 + j) * layer.strip_bytes + (uint64_t)i * STRIP;
      bl_copy_bulk(stage + X + j * STRIP, (const void*)from, bytes, full + s);
    }
  };
  if (threadIdx.x == 0)
    for (uint32_t i = 0; i < min(count, p.stages); i++) copy(i);

  int c[COLUMNS / 2];
#pragma unroll
  for (int i = 0; i < COLUMNS / 2; i++) c[i] = 0;
  const uint32_t entries[4] = {layer.table[0], layer.table[1], layer.table[2], layer.table[3]};
  uint32_t a[STEPS][4], next[STEPS][4];
  auto decode = [&](uint32_t i, uint32_t (&to)[STEPS][4]) {
    bl_barrier_wait(full + i % p.stages, i / p.stages & 1);
    const unsigned char* units = shared + i % p.stages * STAGE + X + warp * STRIP;
#pragma unroll
    for (int u = 0; u < UNITS; u++) {
      C codes;
      codes.load(units + u * C::BYTES, lane);
#pragma unroll
      for (int step = 0; step < C::STEPS; step++) codes.fragment(step, entries, to[u * C::STEPS + step]);
    }
  };
  decode(0, next);
  for (uint32_t i = 0; i < count; i++) {
#pragma unroll
    for (int step = 0; step < STEPS; step++)
#pragma unroll
      for (int j = 0; j < 4; j++) a[step][j] = next[step][j];
    const unsigned char* stage = shared + i % p.stages * STAGE;
    bl_wgmma_fence();
#pragma unroll
    for (int step = 0; step < STEPS; step++)
      bl_wgmma(c, a[step], stage + step / 4 * (COLUMNS * 128), step % 4);
    bl_wgmma_commit();
    if (threadIdx.x == 0 && i > 0 && i - 1 + p.stages < count) {
      bl_barrier_wait(empty + (i - 1) % p.stages, (i - 1) / p.stages & 1);
      copy(i - 1 + p.stages);
    }
    if (i + 1 < count) decode(i + 1, next);
    bl_wgmma_wait<0>(c, a);
    __syncwarp();
    if (lane == 0) bl_barrier_arrive(empty + i % p.stages);
  }
  __syncthreads();

  // Out through shared memory, 64 rows of x at a time: 16 outputs touch in y.
  const uint32_t strip = min(strip0 + warp, strips - 1), row = lane % 16, output = (strip0 + warp) * 16 + row;
  const unsigned char* weights = (const unsigned char*)layer.weights + strip * layer.strip_bytes;
  const float scale = __ldg((const float*)(weights + layer.heads) + row);
  const uint32_t weight_sum = layer.sums ? (uint32_t)__ldg((const int*)(weights + layer.sums) + row) : 0;
  int* out = (int*)shared + warp * WGMMA_OUT_WORDS;
#pragma unroll 1
  for (int pass = 0; pass < COLUMNS / 64; pass++) {
#pragma unroll
    for (int j = 0; j < 8; j++)
#pragma unroll
      for (int i = 0; i < 4; i++) out[(8 * j + 2 * t + i % 2) * WGMMA_OUT_STRIDE + g + i / 2 * 8] = c[4 * j + i];
#pragma unroll
    for (int i = 0; i + 32 < COLUMNS / 2; i++) c[i] = c[i + 32];
    __syncwarp();
#pragma unroll 1
    for (int i = lane / 16; i < 64; i += 2) {
      const uint32_t m = m0 + 64 * pass + i;
      if (m >= p.m || output >= layer.outputs) continue;
      const uint32_t x_sum = (uint32_t)__ldg((const int*)p.sums + m);
      const int dot = (int)((uint32_t)out[i * WGMMA_OUT_STRIDE + row] * (uint32_t)layer.factor +
                            (uint32_t)layer.correction * x_sum + weight_sum);
      const float product = __fmul_rn(scale, __ldg((const float*)p.scales + m));
      bl_finish(layer, m, output, __fmul_rn(__int2float_rn(dot), product));
    }
    __syncwarp();
  }
}

#endif
