// What the kernels are told. The same bytes as src/kernel/cuda/params.rs, where every field is explained; a
// Rust test compares the offsets asserted below. Addresses are 64-bit on both sides.
#pragma once
#include "platform.cuh"

enum { BL_FLOAT_F32 = 0, BL_FLOAT_F16 = 1, BL_FLOAT_BF16 = 2 };
enum {
  BL_SCHEME_ROW = 0,
  BL_SCHEME_GROUP = 1,
  BL_SCHEME_GROUP_MINIMUM = 2,
  BL_SCHEME_GROUP_ZERO = 3,
  BL_SCHEME_LEVEL = 4,
  BL_SCHEME_LEVEL_MINIMUM = 5
};
enum { BL_SCALE_F32 = 0, BL_SCALE_F16 = 1, BL_SCALE_BF16 = 2, BL_SCALE_E8M0 = 3 };
enum { BL_LAYERS_MAX = 16 };

struct Prepare {
  uint64_t x, x_stride, head_stride, norm_weight, norm_bias, signs, permutation, scales_in, stage, floats, codes,
      code_stride, scales, sums, pitch;
  uint32_t columns, x_type, norm;
  float epsilon;
  uint32_t rotation;
  float rotation_scale, limit;
  int32_t code_bias;
  uint32_t mean_range, by_row, fixed;
  float fixed_scale;
  uint32_t record, record_padded, records, group, record_groups, two_level, heads, features, run, rows, image_rows, pad;
};

struct Layer {
  uint64_t weights, strip_bytes, base_bytes, heads, sums, bias, y, y_stride;
  uint32_t outputs, first_block, head_bytes, scheme, scale_type, bits, values;
  int32_t factor, correction;
  uint32_t bases, scaled;
  float product_scale;
  uint32_t epilogue;
  float threshold;
  uint32_t y_type, accumulate;
  uint32_t table[4];
};

struct Product {
  uint64_t x, x_stride, scales, sums, pitch;
  uint32_t m, columns, record, record_padded, records, group, record_groups, groups, units;
  int32_t code_bias;
  uint32_t chunk, stages, count, tiles;
  Layer layers[BL_LAYERS_MAX];
};

#define BL_SIZE(type, size) static_assert(sizeof(type) == (size), #type)
#if defined(BL_EMU)
#define BL_AT(type, field, at) static_assert(__builtin_offsetof(type, field) == (at), #type "." #field)
#else // NVRTC knows no offsetof; it lays such structs out as every compiler does
#define BL_AT(type, field, at) static_assert(true, "")
#endif

BL_SIZE(Prepare, 216);
BL_AT(Prepare, x, 0);
BL_AT(Prepare, x_stride, 8);
BL_AT(Prepare, head_stride, 16);
BL_AT(Prepare, norm_weight, 24);
BL_AT(Prepare, norm_bias, 32);
BL_AT(Prepare, signs, 40);
BL_AT(Prepare, permutation, 48);
BL_AT(Prepare, scales_in, 56);
BL_AT(Prepare, stage, 64);
BL_AT(Prepare, floats, 72);
BL_AT(Prepare, codes, 80);
BL_AT(Prepare, code_stride, 88);
BL_AT(Prepare, scales, 96);
BL_AT(Prepare, sums, 104);
BL_AT(Prepare, pitch, 112);
BL_AT(Prepare, columns, 120);
BL_AT(Prepare, x_type, 124);
BL_AT(Prepare, norm, 128);
BL_AT(Prepare, epsilon, 132);
BL_AT(Prepare, rotation, 136);
BL_AT(Prepare, rotation_scale, 140);
BL_AT(Prepare, limit, 144);
BL_AT(Prepare, code_bias, 148);
BL_AT(Prepare, mean_range, 152);
BL_AT(Prepare, by_row, 156);
BL_AT(Prepare, fixed, 160);
BL_AT(Prepare, fixed_scale, 164);
BL_AT(Prepare, record, 168);
BL_AT(Prepare, record_padded, 172);
BL_AT(Prepare, records, 176);
BL_AT(Prepare, group, 180);
BL_AT(Prepare, record_groups, 184);
BL_AT(Prepare, two_level, 188);
BL_AT(Prepare, heads, 192);
BL_AT(Prepare, features, 196);
BL_AT(Prepare, run, 200);
BL_AT(Prepare, rows, 204);
BL_AT(Prepare, image_rows, 208);
BL_AT(Prepare, pad, 212);

BL_SIZE(Layer, 144);
BL_AT(Layer, weights, 0);
BL_AT(Layer, strip_bytes, 8);
BL_AT(Layer, base_bytes, 16);
BL_AT(Layer, heads, 24);
BL_AT(Layer, sums, 32);
BL_AT(Layer, bias, 40);
BL_AT(Layer, y, 48);
BL_AT(Layer, y_stride, 56);
BL_AT(Layer, outputs, 64);
BL_AT(Layer, first_block, 68);
BL_AT(Layer, head_bytes, 72);
BL_AT(Layer, scheme, 76);
BL_AT(Layer, scale_type, 80);
BL_AT(Layer, bits, 84);
BL_AT(Layer, values, 88);
BL_AT(Layer, factor, 92);
BL_AT(Layer, correction, 96);
BL_AT(Layer, bases, 100);
BL_AT(Layer, scaled, 104);
BL_AT(Layer, product_scale, 108);
BL_AT(Layer, epilogue, 112);
BL_AT(Layer, threshold, 116);
BL_AT(Layer, y_type, 120);
BL_AT(Layer, accumulate, 124);
BL_AT(Layer, table, 128);

BL_SIZE(Product, 2400);
BL_AT(Product, x, 0);
BL_AT(Product, x_stride, 8);
BL_AT(Product, scales, 16);
BL_AT(Product, sums, 24);
BL_AT(Product, pitch, 32);
BL_AT(Product, m, 40);
BL_AT(Product, columns, 44);
BL_AT(Product, record, 48);
BL_AT(Product, record_padded, 52);
BL_AT(Product, records, 56);
BL_AT(Product, group, 60);
BL_AT(Product, record_groups, 64);
BL_AT(Product, groups, 68);
BL_AT(Product, units, 72);
BL_AT(Product, code_bias, 76);
BL_AT(Product, chunk, 80);
BL_AT(Product, stages, 84);
BL_AT(Product, count, 88);
BL_AT(Product, tiles, 92);
BL_AT(Product, layers, 96);
