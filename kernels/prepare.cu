// Rows of x on their way into codes, scales and sums, or into floats: one block a row.
//
//     x --> f32 --> norm --> rotation --> columns in packed order --> codes + scales + sums | f32
//
// The text of src/activation.rs, src/norm.rs and src/rotation.rs. What bounds it: reading x and the latency of
// one block. The 16 partial sums of a norm are chains of columns / 16 additions (0.6 us for 4096 columns at
// 4 cycles each), which the contract fixes; everything else is spread over the block.
#include "numbers.cuh"

constexpr int THREADS = 256;
/// Records up to so many columns have a few lanes each; longer ones the block.
constexpr uint32_t NARROW = 512;

/// What the threads of a block tell one another.
struct Box {
  uint32_t words[32];
  float mean, scale, inverse;
};

/// The largest of a value over the block; all threads call and get it.
BL_DEVICE uint32_t block_max(Box& box, uint32_t v) {
  for (int o = 16; o; o >>= 1) v = max(v, __shfl_xor_sync(0xffffffffu, v, o));
  if (threadIdx.x % 32 == 0) box.words[threadIdx.x / 32] = v;
  __syncthreads();
  for (int i = 0; i < THREADS / 32; i++) v = max(v, box.words[i]);
  __syncthreads();
  return v;
}

BL_MEMBER int block_sum(Box& box, int v) {
  for (int o = 16; o; o >>= 1) v += __shfl_xor_sync(0xffffffffu, v, o);
  if (threadIdx.x % 32 == 0) box.words[threadIdx.x / 32] = (uint32_t)v;
  __syncthreads();
  v = 0;
  for (int i = 0; i < THREADS / 32; i++) v += (int)box.words[i];
  __syncthreads();
  return v;
}

/// One row of x as it is now, in the order in which it is quantised.
struct Row {
  float* values;
  const uint32_t* permutation;
  BL_MEMBER float operator[](uint32_t k) const { return values[permutation ? __ldg(permutation + k) : k]; }
};

/// `sum` of src/math.rs: 16 partial sums, then a tree. Warp 0 calls; lane 0 has it.
template <class Add> BL_DEVICE float partial_sums(const Row& row, uint32_t columns, Add add) {
  const uint32_t lane = threadIdx.x;
  float p = 0.0f;
  if (lane < 16) {
#pragma unroll 4
    for (uint32_t k = lane; k < columns; k += 16) p = add(p, row[k]);
  }
  for (int width = 8; width; width >>= 1) p = __fadd_rn(p, __shfl_down_sync(0xffffffffu, p, width));
  return p;
}

BL_MEMBER void norm(const Prepare& p, const Row& row, Box& box) {
  const float n = __uint2float_rn(p.columns);
  if (p.norm == 1) {
    if (threadIdx.x < 32) {
      const float sum = partial_sums(row, p.columns, [](float a, float v) { return __fadd_rn(a, v); });
      if (threadIdx.x == 0) box.mean = __fdiv_rn(sum, n);
    }
    __syncthreads();
    for (uint32_t k = threadIdx.x; k < p.columns; k += THREADS) row.values[k] = __fsub_rn(row.values[k], box.mean);
    __syncthreads();
  }
  if (threadIdx.x < 32) {
    const float squares = partial_sums(row, p.columns, [](float a, float v) { return __fmaf_rn(v, v, a); });
    if (threadIdx.x == 0)
      box.scale = __fdiv_rn(1.0f, __fsqrt_rn(__fadd_rn(__fdiv_rn(squares, n), p.epsilon)));
  }
  __syncthreads();
  const float *weight = (const float*)p.norm_weight, *bias = (const float*)p.norm_bias;
  for (uint32_t k = threadIdx.x; k < p.columns; k += THREADS) {
    float v = __fmul_rn(row.values[k], box.scale);
    if (weight && bias)
      v = __fmaf_rn(v, __ldg(weight + k), __ldg(bias + k));
    else if (weight)
      v = __fmul_rn(v, __ldg(weight + k));
    else if (bias)
      v = __fadd_rn(v, __ldg(bias + k));
    row.values[k] = v;
  }
  __syncthreads();
}

BL_MEMBER void rotate(const Prepare& p, float* values) {
  const uint32_t* signs = (const uint32_t*)p.signs;
  if (signs) {
    for (uint32_t k = threadIdx.x; k < p.columns; k += THREADS)
      values[k] = __uint_as_float(__float_as_uint(values[k]) ^ __ldg(signs + k));
    __syncthreads();
  }
  for (uint32_t s = 1; s < p.rotation; s *= 2) {
    for (uint32_t q = threadIdx.x; q < p.columns / 2; q += THREADS) {
      const uint32_t i = (q & (s - 1)) + ((q & ~(s - 1)) << 1);
      const float a = values[i], b = values[i + s];
      values[i] = __fadd_rn(a, b);
      values[i + s] = __fsub_rn(a, b);
    }
    __syncthreads();
  }
  for (uint32_t k = threadIdx.x; k < p.columns; k += THREADS) values[k] = __fmul_rn(values[k], p.rotation_scale);
  __syncthreads();
}

struct Step {
  float scale, inverse;
};

/// The scale of a segment whose largest magnitude (or largest value above 0) has these bits.
BL_DEVICE Step largest_step(const Prepare& p, uint32_t bits) {
  const float a = __uint_as_float(bits);
  if (a < __uint_as_float((127u - 100u) << 23)) return {0.0f, 0.0f};
  return {__fdiv_rn(a, p.limit), __fdiv_rn(p.limit, a)};
}

/// Bits by which a segment's range is found.
BL_DEVICE uint32_t range_bits(const Prepare& p, float v) {
  const uint32_t bits = __float_as_uint(v);
  if (p.code_bias) return (int)bits > 0 ? bits : 0; // unsigned codes: what is above 0
  return bits & 0x7fffffffu;
}

/// A code as it is stored.
BL_DEVICE int code_of(const Prepare& p, const Step& step, float v) {
  const float low = p.code_bias ? 0.0f : -p.limit, high = p.limit;
  float t = p.mean_range ? __fdiv_rn(v, step.scale) : __fmul_rn(v, step.inverse);
  t = t > low ? t : low;
  t = t < high ? t : high;
  if (p.mean_range) return (int)__fadd_rn(t, bl_copysign(__uint_as_float(0x3effffffu), t)) - p.code_bias;
  return (int)__float_as_uint(__fadd_rn(t, BL_ROUND)) - (BL_ROUND_BITS + p.code_bias);
}

/// Puts four codes, of packed columns `column` ..: see src/kernel/cuda/params.rs.
BL_DEVICE void put_quad(const Prepare& p, uint32_t row, uint32_t column, uint32_t codes) {
  uint64_t at;
  if (p.image_rows)
    at = ((uint64_t)(column / 128) * p.image_rows + row) * 128 + ((column / 16 % 8 ^ row % 8) * 16) + column % 16;
  else
    at = row * p.code_stride + (column & ~63u) + (column >> 2 & 3) * 16 + (column >> 5 & 1) * 8 + (column >> 4 & 1) * 4;
  *(uint32_t*)(p.codes + at) = codes;
}

/// Codes of the quad `q` of a record of `len` columns that begins at column `first`: four bytes, pads 0. Adds
/// them to `sum`.
BL_DEVICE uint32_t quad_codes(const Prepare& p, const Step& step, const Row& row, uint32_t first, uint32_t len,
                              uint32_t q, int& sum) {
  uint32_t word = 0;
#pragma unroll
  for (int b = 0; b < 4; b++) {
    const uint32_t k = 4 * q + b;
    const int code = k < len ? code_of(p, step, row[first + k]) : 0;
    sum += code;
    word |= ((uint32_t)code & 0xffu) << (8 * b);
  }
  return word;
}

BL_MEMBER void quantize(const Prepare& p, const Row& row, uint32_t index, Box& box) {
  float* scales = (float*)p.scales + index;
  int* sums = (int*)p.sums + index;
  const uint32_t thread = threadIdx.x;
  uint32_t magnitude = 0, range = 0;
  for (uint32_t k = thread; k < p.columns; k += THREADS) {
    magnitude = max(magnitude, __float_as_uint(row[k]) & 0x7fffffffu);
    range = max(range, range_bits(p, row[k]));
  }
  magnitude = block_max(box, magnitude);
  const uint32_t last = p.columns - (p.records - 1) * p.record;
  const uint32_t groups = (p.records - 1) * p.record_groups + (last + p.group - 1) / p.group;
  if (magnitude >= 0x7f800000u) {
    // A NaN or an infinity: scales of NaN make every output a NaN.
    for (uint32_t k = 4 * thread; k < p.code_stride; k += 4 * THREADS) put_quad(p, index, k, 0);
    for (uint32_t r = thread; r < p.records; r += THREADS) scales[r * p.pitch] = bl_nan();
    for (uint32_t g = thread; g < groups; g += THREADS) sums[g * p.pitch] = 0;
    return;
  }
  Step step = {0.0f, 0.0f};
  const bool own = p.fixed == 0 && !p.by_row; // each record finds its scale
  if (p.fixed) {
    const float* in = (const float*)p.scales_in;
    float s = p.fixed == 1 ? p.fixed_scale : in[p.fixed == 2 ? 0 : index];
    if (p.fixed != 1 && s == 0.0f) s = 1.0f;
    step = {s, __fdiv_rn(1.0f, s)};
  } else if (p.mean_range) {
    if (thread < 32) {
      const bool positive = p.code_bias != 0;
      const float sum = partial_sums(row, p.columns, [=](float a, float v) {
        return __fadd_rn(a, positive ? (v > 0.0f ? v : 0.0f) : bl_abs(v));
      });
      if (thread == 0) {
        float r = __fmul_rn(2.0f, __fdiv_rn(sum, __uint2float_rn(p.columns)));
        r = __fdiv_rn(r > 1e-8f ? r : 1e-8f, p.limit);
        box.scale = r > 1e-8f ? r : 1e-8f;
      }
    }
    __syncthreads();
    step.scale = box.scale;
  } else if (p.by_row) {
    step = largest_step(p, block_max(box, range));
  }
  if (p.record_padded > NARROW && !p.two_level) {
    // Long records: the block takes one after another, and its groups.
    for (uint32_t r = 0; r < p.records; r++) {
      const uint32_t first = r * p.record, len = min(p.record, p.columns - first);
      if (own) {
        range = 0;
        for (uint32_t k = thread; k < len; k += THREADS) range = max(range, range_bits(p, row[first + k]));
        step = largest_step(p, block_max(box, range));
      }
      for (uint32_t j = 0; j * p.group < len; j++) {
        // With the pads behind the last group, which tables do not multiply by 0.
        const uint32_t end = (j + 1) * p.group < len ? (j + 1) * p.group : (len + 15) / 16 * 16;
        int sum = 0;
        for (uint32_t q = j * (p.group / 4) + thread; 4 * q < end; q += THREADS) {
          const uint32_t word = quad_codes(p, step, row, first, len, q, sum);
          put_quad(p, index, r * p.record_padded + 4 * q, word);
        }
        sum = block_sum(box, sum);
        if (thread == 0) sums[(r * p.record_groups + j) * p.pitch] = sum;
      }
      if (thread == 0) scales[r * p.pitch] = step.scale;
    }
  } else {
    // Short records: a team of lanes for each, as many as it has quads.
    const uint32_t quads = p.record_padded / 4;
    uint32_t team = 4;
    while (team < 32 && team < quads) team *= 2;
    const uint32_t lane = thread & (team - 1), teams = THREADS / team, in_warp = 32 / team;
    // The lanes of a warp walk together, because they exchange.
    for (uint32_t at = thread / 32 * in_warp; at < p.records; at += teams) {
      const uint32_t r = at + (thread & 31) / team;
      const bool there = r < p.records;
      const uint32_t first = r * p.record, len = there ? min(p.record, p.columns - first) : 0;
      if (own) {
        range = 0;
        for (uint32_t k = lane; k < len; k += team) range = max(range, range_bits(p, row[first + k]));
        for (uint32_t o = team / 2; o; o >>= 1) range = max(range, __shfl_xor_sync(0xffffffffu, range, o));
        step = largest_step(p, range);
      }
      int sum = 0;
      for (uint32_t q = lane; q < quads; q += team) {
        if (4 * q < (len + 15) / 16 * 16) {
          const uint32_t word = quad_codes(p, step, row, first, len, q, sum);
          put_quad(p, index, r * p.record_padded + 4 * q, word);
        }
        if (p.two_level) {
          // A record is 64 quads of one warp; a group 4 or 8 lanes of it.
          for (uint32_t o = p.group / 8; o; o >>= 1) sum += __shfl_xor_sync(0xffffffffu, sum, o);
          if (4 * q % p.group == 0 && there) sums[(r * p.record_groups + 4 * q / p.group) * p.pitch] = sum;
          sum = 0;
        }
      }
      if (!p.two_level) {
        for (uint32_t o = team / 2; o; o >>= 1) sum += __shfl_xor_sync(0xffffffffu, sum, o);
        if (lane == 0 && there) sums[r * p.record_groups * p.pitch] = sum;
      }
      if (lane == 0 && there) scales[r * p.pitch] = step.scale;
    }
  }
  const uint32_t end = (p.records - 1) * p.record_padded + (last + 15) / 16 * 16;
  for (uint32_t k = end + 4 * thread; k < p.code_stride; k += 4 * THREADS) put_quad(p, index, k, 0);
}

BL_KERNEL(bl_prepare, THREADS, 2, const __grid_constant__ Prepare p) {
  BL_SHARED(shared);
  BL_SHARED_ARRAY(Box, boxes, 1);
  Box& box = boxes[0];
  float* values = p.stage ? (float*)(p.stage + blockIdx.x * (((uint64_t)p.columns * 4 + 15) / 16 * 16)) : (float*)shared;
  const Row row = {values, nullptr}, packed = {values, (const uint32_t*)p.permutation};
  for (uint32_t index = blockIdx.x; index < p.rows; index += gridDim.x) {
    const unsigned char* x = (const unsigned char*)(p.x + index * p.x_stride);
    for (uint32_t k = threadIdx.x; k < p.columns; k += THREADS) {
      if (p.heads) {
        // Runs of every head in turn; what a head lacks is 0.
        const uint32_t in_turn = k % (p.run * p.heads), head = in_turn / p.run;
        const uint32_t feature = k / (p.run * p.heads) * p.run + in_turn % p.run;
        values[k] = feature < p.features ? ((const float*)(x + head * p.head_stride))[feature] : 0.0f;
      } else {
        values[k] = bl_load(p.x_type, x, k);
      }
    }
    __syncthreads();
    if (p.norm) norm(p, row, box);
    if (p.rotation) rotate(p, values);
    if (p.floats) {
      float* out = (float*)(p.floats + index * p.code_stride);
      for (uint32_t k = threadIdx.x; k < p.columns; k += THREADS) out[k] = packed[k];
    } else {
      quantize(p, packed, index, box);
    }
    __syncthreads();
  }
}
