// The float steps of docs/numerics.md that are not sums of products: exp, tanh and erf of src/math.rs, the
// epilogues of src/epilogue.rs, scales as they are stored, and elements of x and y. Every line is one rounding
// and stands in the order of its Rust twin, so that both give the same bits.
#pragma once
#include "params.cuh"

/// 1.5 * 2^23: adding it rounds to an integer, half to even, and leaves it in the low bits.
constexpr float BL_ROUND = 12582912.0f;
constexpr int BL_ROUND_BITS = 0x4b400000;

BL_DEVICE float bl_nan() { return __uint_as_float(0x7fc00000u); }
BL_DEVICE float bl_copysign(float magnitude, float sign) {
  return __uint_as_float((__float_as_uint(magnitude) & 0x7fffffffu) | (__float_as_uint(sign) & 0x80000000u));
}
BL_DEVICE float bl_abs(float v) { return __uint_as_float(__float_as_uint(v) & 0x7fffffffu); }

/// 2^n, -126 <= n <= 127; some number for any other n.
BL_DEVICE float bl_power_of_two(int n) { return __uint_as_float(((uint32_t)n + 127u) << 23); }

BL_DEVICE float bl_exp(float x) {
  x = x > 89.0f ? 89.0f : x;
  x = x < -104.0f ? -104.0f : x;
  const float rounded = __fmaf_rn(x, 1.44269504088896340736f, BL_ROUND);
  const float n = __fsub_rn(rounded, BL_ROUND);
  const float r = __fmaf_rn(n, 1.9046543e-9f, __fmaf_rn(n, -0.693147180559945309417f, x));
  float q = 0.0013819826f;
  q = __fmaf_rn(q, r, 0.008368687f);
  q = __fmaf_rn(q, r, 0.041668277f);
  q = __fmaf_rn(q, r, 0.16666521f);
  q = __fmaf_rn(q, r, 0.49999994f);
  const float p = __fadd_rn(__fmaf_rn(__fmul_rn(r, r), q, r), 1.0f);
  const int k = (int)(__float_as_uint(rounded) - (uint32_t)BL_ROUND_BITS), half = k >> 1;
  return __fmul_rn(__fmul_rn(p, bl_power_of_two(half)), bl_power_of_two((int)((uint32_t)k - (uint32_t)half)));
}

BL_DEVICE float bl_tanh(float x) {
  const float a = bl_abs(x), z = __fmul_rn(x, x);
  float q = -0.005692296f;
  q = __fmaf_rn(q, z, 0.020628167f);
  q = __fmaf_rn(q, z, -0.053736515f);
  q = __fmaf_rn(q, z, 0.13331406f);
  q = __fmaf_rn(q, z, -0.3333328f);
  const float small = __fmaf_rn(__fmul_rn(x, z), q, x);
  const float large = __fsub_rn(1.0f, __fdiv_rn(2.0f, __fadd_rn(1.0f, bl_exp(__fadd_rn(a, a)))));
  return bl_copysign(a < 0.625f ? small : large, x);
}

BL_DEVICE float bl_erf(float x) {
  const float a = bl_abs(x), z = __fmul_rn(x, x);
  float e = 0.00007806903f;
  e = __fmaf_rn(e, z, -0.0007997853f);
  e = __fmaf_rn(e, z, 0.005187162f);
  e = __fmaf_rn(e, z, -0.026853347f);
  e = __fmaf_rn(e, z, 0.11283579f);
  e = __fmaf_rn(e, z, -0.37612626f);
  e = __fmaf_rn(e, z, 0.12837917f);
  const float small = __fmaf_rn(x, e, x);
  const float cut = a > 4.0f ? 4.0f : a;
  float p = -0.00019359922f;
  p = __fmaf_rn(p, cut, 0.0030202009f);
  p = __fmaf_rn(p, cut, -0.022134790f);
  p = __fmaf_rn(p, cut, 0.103739575f);
  p = __fmaf_rn(p, cut, 0.6374022f);
  p = __fmaf_rn(p, cut, 1.1275443f);
  p = __fmaf_rn(p, cut, 0.00022765665f);
  const float large = __fsub_rn(1.0f, bl_exp(-p));
  return bl_copysign(a < 1.0f ? small : large, x);
}

/// 0 for what is not above it; a NaN stays.
BL_DEVICE float bl_positive(float v) { return v <= 0.0f ? 0.0f : v; }

BL_DEVICE float bl_epilogue(uint32_t epilogue, float threshold, float y) {
  switch (epilogue) {
    case 1: return bl_positive(__fsub_rn(y, threshold));
    case 2: {
      const float v = bl_positive(y);
      return __fmul_rn(v, v);
    }
    case 3: return __fdiv_rn(y, __fadd_rn(1.0f, bl_exp(-y)));
    case 4: return __fmul_rn(__fmul_rn(0.5f, y), __fadd_rn(1.0f, bl_erf(__fmul_rn(y, 0.707106781186547524401f))));
    case 5: {
      const float inner = __fmul_rn(0.7978846f, __fmaf_rn(__fmul_rn(0.044715f, __fmul_rn(y, y)), y, y));
      return __fmul_rn(__fmul_rn(0.5f, y), __fadd_rn(1.0f, bl_tanh(inner)));
    }
    default: return y;
  }
}

/// Element k of a row of floats.
BL_DEVICE float bl_load(uint32_t type, const unsigned char* row, uint32_t k) {
  if (type == BL_FLOAT_F32) return ((const float*)row)[k];
  const uint16_t bits = ((const uint16_t*)row)[k];
  return type == BL_FLOAT_F16 ? bl_f16_to_f32(bits) : bl_bf16_to_f32(bits);
}

/// Writes element k of a row of y, or adds to it: the way of `MatrixMut::write`.
BL_DEVICE void bl_store(uint32_t type, bool accumulate, unsigned char* row, uint32_t k, float v) {
  if (accumulate) v = __fadd_rn(bl_load(type, row, k), v);
  if (type == BL_FLOAT_F32)
    ((float*)row)[k] = v == v ? v : bl_nan();
  else
    ((uint16_t*)row)[k] = type == BL_FLOAT_F16 ? bl_f32_to_f16(v) : bl_f32_to_bf16(v);
}

/// Scale number i of an array of stored scales.
BL_DEVICE float bl_scale(uint32_t type, const unsigned char* scales, uint32_t i) {
  switch (type) {
    case BL_SCALE_F32: return __ldg((const float*)scales + i);
    case BL_SCALE_F16: return bl_f16_to_f32(__ldg((const uint16_t*)scales + i));
    case BL_SCALE_BF16: return bl_bf16_to_f32(__ldg((const uint16_t*)scales + i));
    default: {
      const uint32_t e = __ldg(scales + i);
      return __uint_as_float(e < 2 ? 0x00200000u << e : (e - 1) << 23);
    }
  }
}
BL_DEVICE uint32_t bl_scale_bytes(uint32_t type) { return type == BL_SCALE_F32 ? 4 : type == BL_SCALE_E8M0 ? 1 : 2; }

/// What happens to output `output` of row `row` of x after the product, and its way into y.
BL_DEVICE void bl_finish(const Layer& layer, uint32_t row, uint32_t output, float v) {
  if (layer.scaled) v = __fmul_rn(v, layer.product_scale);
  if (layer.bias) v = __fadd_rn(v, __ldg((const float*)layer.bias + output));
  if (layer.epilogue) v = bl_epilogue(layer.epilogue, layer.threshold, v);
  bl_store(layer.y_type, layer.accumulate != 0, (unsigned char*)(layer.y + row * layer.y_stride), output, v);
}

/// A choice that is compiled both ways.
template <bool yes> struct Choice {
  static constexpr bool value = yes;
};

/// The layer that this block works for.
BL_DEVICE const Layer& bl_layer(const Product& p) {
  uint32_t i = p.count - 1;
  while (blockIdx.x < p.layers[i].first_block) i--;
  return p.layers[i];
}
