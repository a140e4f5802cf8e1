// Products for few rows of x: a block for each strip of 16 rows of W, its columns shared out among its warps.
//
//   1  warps   each takes every eighth unit of the strip: 16 bytes a lane and line come through a ring of
//              cp.async in shared memory (4 KB of a warp under way), x from the L1 cache; mma.sync sums a group in
//              int32, and at its end the sums are added to the group's in shared memory. Exact, so any order is
//              right.
//   2  threads each takes records and outputs: zero points, sub-scales and minima, as integers; then the two
//              factors of the float step
//   3  threads each has one output (at 32 rows two) and walks its chain of fma over the records, ascending
//
// Records whose sums do not fit shared memory together come in chunks; the ring reads on meanwhile.
//
// One mma of m16n8k32 serves 1 to 8 rows of x at the same price, so that 8 rows cost what 1 does. Bound: memory.
// For 2 bits a line of 512 bytes is 4 mma and 28 integer instructions of a warp: 8 and 14 cycles of a
// multiprocessor of an H100, where its share of 3.35 TB/s brings a line in 34 (calculated, not measured).
#pragma once
#include "decode.cuh"
#include "numbers.cuh"

constexpr int FEW_THREADS = 256, FEW_WARPS = FEW_THREADS / 32;

/// The units that a warp reads, in order: of every base, of every chunk of records.
template <int unit> struct Walk {
  uint32_t base, record, at, end; ///< units
  uint32_t first_half, end_half;  ///< half-steps of the chunk

  BL_MEMBER void enter(const Product& p, int warp) {
    const uint32_t halves = p.record_padded / 16;
    const uint32_t last = (p.columns - (p.records - 1) * p.record + 15) / 16;
    first_half = record * halves;
    end_half = record + p.chunk < p.records ? (record + p.chunk) * halves : (p.records - 1) * halves + last;
    at = first_half * 16 / unit + warp;
    end = (end_half * 16 + unit - 1) / unit;
  }
  BL_MEMBER Walk(const Product& p, int warp) : base(0), record(0) { enter(p, warp); }
  /// To the next unit of this chunk; false: there is none.
  BL_MEMBER bool inside() const { return at < end; }
  BL_MEMBER void next() { at += FEW_WARPS; }
  /// To the first unit of the next chunk; false: there is none.
  BL_MEMBER bool next_chunk(const Product& p, uint32_t bases, int warp) {
    record += p.chunk;
    if (record >= p.records) {
      record = 0;
      base++;
    }
    enter(p, warp);
    return base < bases;
  }
};

/// Where the sum of a group for an output lies: outputs of a row of x touch; every other pair of rows of x is
/// turned by 8, which spreads the lanes of an mma over the banks.
BL_DEVICE uint32_t few_place(uint32_t n, uint32_t row) { return n * 16 + (row ^ (n & 2) << 2); }

/// For record `r` and one output: in `sums` (one for each group, `stride` apart) its exact sum becomes a float; what
/// that is multiplied with goes to `factor`, and the factors of a minimum to `low`.
/// `unroll` groups of a super-block are under way.
template <bool level, int unroll>
BL_DEVICE void few_factors(const Product& p, const Layer& layer, const unsigned char* weights, uint32_t base, uint32_t r,
                           uint32_t m, uint32_t row, int* sums, uint32_t stride, float* factor, float2* low) {
  const bool minimum = layer.scheme == BL_SCHEME_GROUP_MINIMUM || layer.scheme == BL_SCHEME_LEVEL_MINIMUM;
  const unsigned char* head = weights + layer.heads + (uint64_t)r * layer.head_bytes;
  const uint32_t scale_bytes = bl_scale_bytes(layer.scale_type);
  const float x_scale = __ldg((const float*)p.scales + r * p.pitch + m);
  const int* x_sums = (const int*)p.sums + m;
  const int* weight_sums = (const int*)(weights + layer.sums) + (uint64_t)base * p.groups * 16 + row;
  const uint32_t len = min(p.record, p.columns - r * p.record); // columns, without padding
  const float scale = bl_scale(layer.scale_type, head + (layer.scheme == BL_SCHEME_ROW ? base * 64 : 0), row);
  const float low_scale = minimum ? bl_scale(layer.scale_type, head + 16 * scale_bytes, row) : 0.0f;
  // The sum of values times codes of group j of the record, and in `total` the sum of the codes.
  auto dot_of = [&](uint32_t j, int& total) {
    const uint32_t group = r * p.record_groups + j;
    const int x_sum = __ldg(x_sums + group * p.pitch);
    uint32_t v = (uint32_t)sums[j * stride] * (uint32_t)layer.factor + (uint32_t)layer.correction * (uint32_t)x_sum;
    if (layer.sums) v += (uint32_t)__ldg(weight_sums + (uint64_t)group * 16);
    total = x_sum + p.code_bias * (int)min(p.group, len - j * p.group);
    return (int)v;
  };
  float product;
  if (level) {
    // [d] [dmin] [sub-scales] [sub-minima]
    const signed char* sub = (const signed char*)head + 16 * scale_bytes * (minimum ? 2 : 1) + row;
    int dot = 0, low_dot = 0;
#pragma unroll(unroll)
    for (uint32_t j = 0; j < p.record_groups; j++) {
      int total;
      const int v = dot_of(j, total);
      dot += __ldg(sub + 16 * j) * v;
      if (minimum) low_dot += __ldg(sub + 16 * (p.record_groups + j)) * total;
    }
    product = __int2float_rn(dot);
    if (minimum) *low = make_float2(__int2float_rn(low_dot), -__fmul_rn(low_scale, x_scale));
  } else {
    int total;
    int64_t dot = dot_of(0, total), sum = total;
    for (uint32_t j = 1; j < p.record_groups && j * p.group < len; j++) {
      dot += dot_of(j, total);
      sum += total;
    }
    if (layer.scheme == BL_SCHEME_GROUP_ZERO) dot -= (int64_t)__ldg(head + 16 * scale_bytes + row) * sum;
    product = __ll2float_rn(dot);
    if (minimum) *low = make_float2(__fmul_rn(__ll2float_rn(sum), x_scale), low_scale);
  }
  *sums = __float_as_int(product);
  *factor = __fmul_rn(scale, x_scale);
}

template <int bits, bool table, int NT> BL_DEVICE void few(const Product& p) {
  using C = Codes<bits, table>;
  constexpr int RING = 4096 / C::BYTES > 2 ? 4096 / C::BYTES : 2;
  constexpr int OWN = NT * 128 > FEW_THREADS ? NT * 128 / FEW_THREADS : 1; // outputs of a thread
  BL_SHARED(shared);
  const Layer& layer = bl_layer(p);
  const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32, g = lane / 4, t = lane % 4;
  const uint32_t strip = blockIdx.x - layer.first_block;
  const unsigned char* weights = (const unsigned char*)(layer.weights + strip * layer.strip_bytes);
  unsigned char* ring = shared + warp * (RING * C::BYTES);
  const bool minimum = layer.scheme == BL_SCHEME_GROUP_MINIMUM || layer.scheme == BL_SCHEME_LEVEL_MINIMUM;
  const uint32_t entries[4] = {layer.table[0], layer.table[1], layer.table[2], layer.table[3]};
  const uint32_t record_halves = p.record_padded / 16;
  const uint32_t group_halves = p.record_groups == 1 ? record_halves : p.group / 16;
  // Whole steps are of one group; or else each half-step for itself.
  const bool steps = (group_halves % 2 == 0 || p.record_groups == 1) && (record_halves % 2 == 0 || p.records == 1);
  // Groups of whole units, in records of whole units; or one group for the row.
  const bool whole = (p.records == 1 && p.record_groups == 1) ||
                     (group_halves % (C::UNIT / 16) == 0 && (record_halves % (C::UNIT / 16) == 0 || p.records == 1));

  for (uint32_t tile = blockIdx.y; tile < p.tiles; tile += gridDim.y) {
    const uint32_t m0 = tile * (8 * NT), rows = min(p.m - m0, 8u * NT);
    uint32_t shift = 4; // log2 of the outputs that a group has room for
    while ((1u << shift) < 16 * rows) shift++;
    const uint32_t outputs = 1u << shift;
    int* sums = (int*)(shared + FEW_WARPS * RING * C::BYTES);
    float* factors = (float*)(sums + p.chunk * p.record_groups * outputs);
    float2* minima = (float2*)(factors + p.chunk * outputs);
    auto clear = [&]() {
      for (uint32_t i = thread; i < p.chunk * p.record_groups * outputs; i += FEW_THREADS) sums[i] = 0;
      __syncthreads();
    };

    Walk<C::UNIT> ahead(p, warp), walk(p, warp);
    bool more = true; // whether there are units ahead
    uint32_t issued = 0, used = 0;
    auto copy_next = [&]() {
      while (more && !ahead.inside()) more = ahead.next_chunk(p, layer.bases, warp);
      if (more) {
        const unsigned char* from = weights + ahead.base * layer.base_bytes + (uint64_t)ahead.at * C::BYTES;
        unsigned char* to = ring + issued % RING * C::BYTES;
#pragma unroll
        for (int i = 0; i < C::LINES; i++)
          bl_copy_async(to + i * 512 + lane * 16, from + i * 512 + lane * 16, true);
        ahead.next();
      }
      bl_copy_commit();
      issued++;
    };
    for (int i = 0; i < RING - 1; i++) copy_next();
    // Heads are wanted after the sums: on the way meanwhile.
    for (uint32_t at = thread; at < (uint64_t)p.records * layer.head_bytes / 128; at += FEW_THREADS)
      bl_prefetch(weights + layer.heads + at * 128ull);
    clear();

    float acc[OWN];
#pragma unroll
    for (int i = 0; i < OWN; i++) acc[i] = 0.0f;

    bool more_chunks;
    do {
      // 1: sums of groups
      int c[NT][4];
#pragma unroll
      for (int j = 0; j < NT; j++) c[j][0] = c[j][1] = c[j][2] = c[j][3] = 0;
      bool pending = false; // whether c holds sums
      auto flush = [&](uint32_t slot) {
        int* to = sums + slot * outputs;
        // With 32 rows of x the places of all outputs, kept from one flush to the next, would not fit registers.
        const uint32_t own = NT < 4 ? lane : bl_opaque(lane), t = own % 4, g = own / 4;
#pragma unroll
        for (int j = 0; j < NT; j++)
#pragma unroll
          for (int i = 0; i < 4; i++) {
            const uint32_t n = 8 * j + 2 * t + i % 2;
            if (n < rows) atomicAdd(to + few_place(n, g + i / 2 * 8), c[j][i]);
            c[j][i] = 0;
          }
        pending = false;
      };
      for (; walk.inside(); walk.next()) {
        copy_next();
        bl_copy_wait<RING - 1>();
        const unsigned char* unit = ring + used % RING * C::BYTES;
        used++;
        const uint32_t half0 = walk.at * (C::UNIT / 16);
        // The group that the unit begins in (or the chunk, where that is later), and what is left of it.
        uint32_t half = max(half0, walk.first_half);
        const uint32_t record = half / record_halves, in_record = half - record * record_halves;
        const uint32_t group = p.record_groups == 1 ? 0 : in_record / group_halves;
        uint32_t slot = (record - walk.record) * p.record_groups + group;
        uint32_t left = min((group + 1) * group_halves, record_halves) - in_record;
        uint32_t in_group = group;
        const unsigned char* x = (const unsigned char*)p.x + (uint64_t)walk.at * C::UNIT + 16 * t;
        if (whole) {
          // No group ends inside the unit. Unrolled, so that loads are under way, as far as registers go.
          C codes;
          if (NT < 4) codes.load(unit, lane);
#pragma unroll(NT < 4 ? C::STEPS / 2 : 1)
          for (int pair = 0; pair < C::STEPS / 2; pair++) {
            uint32_t a[2][4];
#pragma unroll
            for (int i = 0; i < 2; i++) {
              if (NT < 4)
                codes.fragment(2 * pair + i, entries, a[i]);
              else
                C::fragment_at(unit, 2 * pair + i, lane, entries, a[i]);
            }
#pragma unroll
            for (int j = 0; j < NT; j++) {
              const uint32_t n = 8 * j + g;
              const uint4 b = n < rows ? __ldg((const uint4*)(x + (m0 + n) * p.x_stride + 64 * pair)) : make_uint4(0, 0, 0, 0);
              bl_mma_k32_ss(c[j], a[0], b.x, b.y);
              bl_mma_k32_ss(c[j], a[1], b.z, b.w);
            }
          }
          pending = true;
        } else {
#pragma unroll 1
          for (int step = 0; step < C::STEPS; step++) {
            uint32_t a[4];
            C::fragment_at(unit, step, lane, entries, a);
            uint2 b[NT];
#pragma unroll
            for (int j = 0; j < NT; j++) {
              const uint32_t n = 8 * j + g;
              b[j] = n < rows ? __ldg((const uint2*)(x + (m0 + n) * p.x_stride + step / 2 * 64 + step % 2 * 8)) : make_uint2(0, 0);
            }
            const uint32_t parts = steps ? 1 : 2, taken = steps ? 2 : 1;
#pragma unroll 1
            for (uint32_t part = 0; part < parts; part++) {
              const uint32_t at = half0 + 2 * step + part;
              if (at < walk.first_half || at >= walk.end_half) continue;
              const uint32_t a_half[2] = {part ? a[2] : a[0], part ? a[3] : a[1]};
#pragma unroll
              for (int j = 0; j < NT; j++) {
                if (steps)
                  bl_mma_k32_ss(c[j], a, b[j].x, b[j].y);
                else
                  bl_mma_k16_ss(c[j], a_half, part ? b[j].y : b[j].x);
              }
              pending = true;
              left = left > taken ? left - taken : 0;
              if (left != 0) continue;
              // The group ends: its sums go to it, and the next begins.
              flush(slot);
              slot++;
              in_group = in_group + 1 == p.record_groups ? 0 : in_group + 1;
              left = in_group + 1 == p.record_groups ? record_halves - in_group * group_halves : group_halves;
            }
          }
        }
        // A row of one group is summed to its end; else this warp's next unit is of another group.
        const bool goes_on = p.records == 1 && p.record_groups == 1 && walk.at + FEW_WARPS < walk.end;
        if (pending && !goes_on) flush(slot);
      }
      __syncthreads();

      // 2: what each record and output multiplies
      const uint32_t records = min(p.chunk, p.records - walk.record);
      auto factors_of = [&](uint32_t item, auto level) {
        const uint32_t in_chunk = item >> shift, n = (item & (outputs - 1)) >> 4, row = item & 15;
        if (n >= rows) return;
        const uint32_t place = few_place(n, row), at = in_chunk * outputs + place;
        few_factors<decltype(level)::value, NT < 4 ? 4 : 1>(p, layer, weights, walk.base, walk.record + in_chunk, m0 + n, row,
                                            sums + in_chunk * p.record_groups * outputs + place, outputs, factors + at,
                                            minima + at);
      };
      const uint32_t items = records << shift;
      if (layer.scheme >= BL_SCHEME_LEVEL) {
#pragma unroll 1
        for (uint32_t item = thread; item < items; item += FEW_THREADS) factors_of(item, Choice<true>());
      } else {
        // Unrolled, so that the loads of several records are under way.
#pragma unroll(NT < 4 && !table ? 2 : 1)
        for (uint32_t item = thread; item < items; item += FEW_THREADS) factors_of(item, Choice<false>());
      }
      __syncthreads();

      // 3: the chain of each output
      const bool product_only = layer.scheme == BL_SCHEME_ROW && layer.bases == 1;
#pragma unroll
      for (int i = 0; i < OWN; i++) {
        const uint32_t output = thread + i * FEW_THREADS, n = output >> 4, row = output & 15;
        if (n >= rows) continue;
        const uint32_t place = few_place(n, row);
        float v = acc[i];
#pragma unroll(NT < 4 ? 4 : 1)
        for (uint32_t r = 0; r < records; r++) {
          const float product = __int_as_float(sums[r * p.record_groups * outputs + place]);
          const float factor = factors[r * outputs + place];
          v = product_only ? __fmul_rn(product, factor) : __fmaf_rn(product, factor, v);
          if (minimum) {
            const float2 low = minima[r * outputs + place];
            v = __fmaf_rn(low.x, low.y, v);
          }
        }
        acc[i] = v;
      }
      __syncthreads();
      more_chunks = walk.next_chunk(p, layer.bases, warp);
      if (more_chunks) clear();
    } while (more_chunks);

#pragma unroll
    for (int i = 0; i < OWN; i++) {
      const uint32_t output = thread + i * FEW_THREADS, n = output >> 4, w_row = strip * 16 + (output & 15);
      if (n < rows && w_row < layer.outputs) bl_finish(layer, m0 + n, w_row, acc[i]);
    }
    bl_copy_wait<0>();
  }
}
