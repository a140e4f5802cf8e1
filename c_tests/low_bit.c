/* The low-bit runtime: every pointer NULL and every argument wrong in turn. Handles of a wrong kind are
 * among them; struct_size is the subject of structs.c. */
#include <math.h>
#include "layers.h"

ANY_OF(bl_state_format)
ANY_OF(bl_low_bit)
ANY_OF(bl_protocol)
ANY_OF(bl_saved_mode)
ANY_OF(bl_range)
ANY_OF(bl_heads_kind)

static bl_context *context;

static bl_state *new_state(bl_state_format format, uint32_t flags) {
  bl_state *made = NULL;
  STRUCT(bl_state_options, options);
  options.format = format;
  options.flags = flags;
  options.shape[0] = options.shape[1] = 1, options.shape[2] = 3, options.shape[3] = 20;
  GOOD(bl_state_create(context, &options, &made, &error));
  return made;
}

static void creating_states(void) {
  static const int64_t wrong[] = {0, -1, INT64_MIN, INT64_MAX};
  bl_state *made = (bl_state *)(void *)&made;
  STRUCT(bl_state_options, options);
  size_t i, k;
  EXPECT(bl_state_create(NULL, NULL, &made, &error), BL_ERROR_INVALID_ARGUMENT, "shape"); /* all zero */
  CHECK(made == NULL);
  options.shape[0] = options.shape[1] = options.shape[2] = options.shape[3] = 2;
  EXPECT(bl_state_create(NULL, &options, NULL, &error), BL_ERROR_INVALID_ARGUMENT, "`out`");
  for (k = 0; k < 4; k++)
    for (i = 0; i < sizeof wrong / sizeof *wrong; i++) {
      options.shape[k] = wrong[i];
      EXPECT(bl_state_create(NULL, &options, &made, &error), BL_ERROR_INVALID_ARGUMENT, "shape");
      options.shape[k] = 2;
    }
  options.format = ANY(bl_state_format, 3);
  EXPECT(bl_state_create(NULL, &options, &made, &error), BL_ERROR_UNSUPPORTED, "state format 3");
  options.format = BL_STATE_BINARY;
  options.flags = 2;
  EXPECT(bl_state_create(NULL, &options, &made, &error), BL_ERROR_INVALID_ARGUMENT, "flags 0x2");
  options.flags = 0;
  options.reserved = 1;
  EXPECT(bl_state_create(NULL, &options, &made, &error), BL_ERROR_INVALID_ARGUMENT, "");
  options.reserved = 0;
  CHECK(made == NULL && bl_state_create(NULL, NULL, NULL, NULL) == BL_ERROR_INVALID_ARGUMENT);
  CHECK(bl_state_create(NULL, &options, &made, NULL) == BL_OK);
  bl_free(made);
}

static void using_states(void) {
  static const float w[64] = {1.0f, -1.0f};
  static float values[60], out[60], scales[2], bad[60];
  static uint8_t codes[60];
  bl_state *state = new_state(BL_STATE_INT8, BL_STATE_MEASURED);
  bl_state *ternary = new_state(BL_STATE_TERNARY, 0);
  bl_layer *layer = NULL;
  STRUCT(bl_state_info, info);
  STRUCT(bl_gate_options, gate);
  uint32_t passes = 9;
  const bl_state *wrong;
  void *misaligned = (char *)out + 1;
  int i;
  fill(values, 60, 3);
  GOOD(bl_state_update(state, 0, values, 60, &error));
  GOOD(bl_layer_create(NULL, 1, 64, w, BL_TYPE_F32, 0, NULL, &layer, &error));

  /* Handles: none, another kind's. */
  wrong = (const bl_state *)(const void *)layer;
  for (i = 0; i < 2; i++) {
    const bl_state *handle = i == 0 ? NULL : wrong;
    EXPECT(bl_state_update(handle, 0, values, 60, &error), BL_ERROR_INVALID_HANDLE, "state");
    EXPECT(bl_state_unpack(handle, out, 60, &error), BL_ERROR_INVALID_HANDLE, "state");
    EXPECT(bl_state_read(handle, codes, 60, scales, 2, &error), BL_ERROR_INVALID_HANDLE, "state");
    EXPECT(bl_state_write(handle, codes, 60, scales, 2, &error), BL_ERROR_INVALID_HANDLE, "state");
    EXPECT(bl_state_describe(handle, &info, 0, &error), BL_ERROR_INVALID_HANDLE, "state");
    EXPECT(bl_state_gate(handle, &gate, &passes, &error), BL_ERROR_INVALID_HANDLE, "state");
    CHECK(passes == 0 && bl_state_update(handle, 0, NULL, 0, NULL) == BL_ERROR_INVALID_HANDLE);
  }

  /* Pointers and sizes. */
  EXPECT(bl_state_update(state, 0, NULL, 60, &error), BL_ERROR_INVALID_ARGUMENT, "NULL");
  EXPECT(bl_state_update(state, 0, (const float *)misaligned, 60, &error), BL_ERROR_INVALID_ARGUMENT, "aligned");
  EXPECT(bl_state_update(state, 0, values, 59, &error), BL_ERROR_INVALID_ARGUMENT, "59 values");
  EXPECT(bl_state_update(state, 0, values, -1, &error), BL_ERROR_INVALID_ARGUMENT, "");
  EXPECT(bl_state_update(state, 0, values, INT64_MAX, &error), BL_ERROR_INVALID_ARGUMENT, "");
  EXPECT(bl_state_update(state, HUGE_VALF, values, 60, &error), BL_ERROR_INVALID_ARGUMENT, "factor");
  EXPECT(bl_state_update(state, 3e38f, values, 60, &error), BL_ERROR_INVALID_ARGUMENT, "range");
  bad[59] = HUGE_VALF;
  EXPECT(bl_state_update(state, 0, bad, 60, &error), BL_ERROR_INVALID_ARGUMENT, "value 59");
  EXPECT(bl_state_unpack(state, NULL, 60, &error), BL_ERROR_INVALID_ARGUMENT, "NULL");
  EXPECT(bl_state_unpack(state, (float *)misaligned, 60, &error), BL_ERROR_INVALID_ARGUMENT, "aligned");
  EXPECT(bl_state_unpack(state, out, 61, &error), BL_ERROR_INVALID_ARGUMENT, "61 values");
  EXPECT(bl_state_unpack(state, out, INT64_MIN, &error), BL_ERROR_INVALID_ARGUMENT, "");
  EXPECT(bl_state_read(state, NULL, 60, scales, 2, &error), BL_ERROR_INVALID_ARGUMENT, "NULL");
  EXPECT(bl_state_read(state, codes, 60, NULL, 2, &error), BL_ERROR_INVALID_ARGUMENT, "NULL");
  EXPECT(bl_state_read(state, codes, 59, scales, 2, &error), BL_ERROR_INVALID_ARGUMENT, "59 bytes");
  EXPECT(bl_state_read(state, codes, 60, scales, 3, &error), BL_ERROR_INVALID_ARGUMENT, "3 scales");
  EXPECT(bl_state_read(state, codes, (size_t)-1, scales, 2, &error), BL_ERROR_INVALID_ARGUMENT, "");
  EXPECT(bl_state_write(state, NULL, 60, scales, 2, &error), BL_ERROR_INVALID_ARGUMENT, "NULL");
  EXPECT(bl_state_write(state, codes, 60, NULL, 2, &error), BL_ERROR_INVALID_ARGUMENT, "NULL");
  EXPECT(bl_state_write(state, codes, 61, scales, 2, &error), BL_ERROR_INVALID_ARGUMENT, "61 bytes");
  EXPECT(bl_state_write(state, codes, 60, scales, 1, &error), BL_ERROR_INVALID_ARGUMENT, "1 scales");
  scales[1] = HUGE_VALF;
  EXPECT(bl_state_write(state, codes, 60, scales, 2, &error), BL_ERROR_INVALID_ARGUMENT, "scale 1");
  scales[1] = 0;
  codes[14] = 0x30;
  EXPECT(bl_state_write(ternary, codes, 15, scales, 2, &error), BL_ERROR_INVALID_ARGUMENT, "byte 14");
  codes[14] = 0;
  GOOD(bl_state_write(ternary, codes, 15, scales, 2, &error));
  EXPECT(bl_state_describe(state, NULL, 0, &error), BL_ERROR_INVALID_ARGUMENT, "bl_state_info");
  EXPECT(bl_state_gate(state, &gate, NULL, &error), BL_ERROR_INVALID_ARGUMENT, "passes");
  gate.max_error = -1;
  EXPECT(bl_state_gate(state, &gate, &passes, &error), BL_ERROR_INVALID_ARGUMENT, "bounds");
  gate.max_error = 0;
  gate.reserved = 1;
  EXPECT(bl_state_gate(state, &gate, &passes, &error), BL_ERROR_INVALID_ARGUMENT, "bounds");
  GOOD(bl_state_gate(state, NULL, &passes, &error));

  /* Nothing of all that changed the state. */
  GOOD(bl_state_describe(state, &info, 1, &error));
  CHECK(info.calls == 1 && info.count == 60 && info.code_bytes == 60 && info.scale_count == 2);
  GOOD(bl_state_unpack(state, out, 60, &error));
  for (i = 0; i < 60; i++) CHECK(fabsf(out[i] - values[i]) < 0.02f);
  GOOD(bl_state_describe(state, &info, 0, &error));
  CHECK(info.calls == 0);
  bl_free(layer);
  bl_free(state);
  EXPECT(bl_state_describe(state, &info, 0, &error), BL_ERROR_INVALID_HANDLE, "freed");
  bl_free(ternary);
}

static void runtime(void) {
  STRUCT(bl_runtime_config, config);
  STRUCT(bl_runtime_shape, shape);
  STRUCT(bl_runtime_info, info);
  STRUCT(bl_runtime_memory_info, memory);
  bl_saved_tensor tensors[3];
  size_t count = 9;
  config.flags = BL_CONFIG_ENABLE;
  config.protocol = BL_PROTOCOL_BITNET_B158;
  config.targets = BL_ROLE_X | BL_ROLE_Y;
  config.training_mode = BL_TRAINING_KERNEL;
  config.saved_mode = BL_SAVED_CACHE;
  shape.batch = shape.time = shape.layers = shape.heads = 2, shape.embd = 8, shape.latent = 32;

  GOOD(bl_runtime_check(NULL, &error)); /* nothing is quantised */
  GOOD(bl_runtime_check(&config, &error));
  GOOD(bl_runtime_plan(NULL, NULL, 0, 0, &info, &error));
  CHECK(info.fallback == BL_FALLBACK_QUANT_DISABLED && strcmp(info.fallback_name, "quant_disabled") == 0);
  EXPECT(bl_runtime_plan(NULL, &config, 0, 0, NULL, &error), BL_ERROR_INVALID_ARGUMENT, "bl_runtime_info");
  EXPECT(bl_runtime_plan(NULL, &config, 8, 0, &info, &error), BL_ERROR_INVALID_ARGUMENT, "artifacts 0x8");
  EXPECT(bl_runtime_plan(NULL, &config, 0, 2, &info, &error), BL_ERROR_INVALID_ARGUMENT, "flags 0x2");
  CHECK(info.runtime_name == NULL);
  EXPECT(bl_runtime_memory(&config, NULL, &memory, &error), BL_ERROR_INVALID_ARGUMENT, "shape is NULL");
  EXPECT(bl_runtime_memory(&config, &shape, NULL, &error), BL_ERROR_INVALID_ARGUMENT, "bl_runtime_memory_info");
  GOOD(bl_runtime_memory(NULL, &shape, &memory, &error));
  CHECK(memory.total == 0);
  GOOD(bl_runtime_memory(&config, &shape, &memory, &error));
  CHECK(memory.total > 0);
  shape.reserved = 1;
  EXPECT(bl_runtime_memory(&config, &shape, &memory, &error), BL_ERROR_INVALID_ARGUMENT, "reserved");
  EXPECT(bl_runtime_saved(&config, &shape, tensors, 3, &count, &error), BL_ERROR_INVALID_ARGUMENT, "reserved");
  CHECK(memory.total == 0 && count == 0);
  shape.reserved = 0;
  EXPECT(bl_runtime_saved(&config, NULL, tensors, 3, &count, &error), BL_ERROR_INVALID_ARGUMENT, "shape is NULL");
  EXPECT(bl_runtime_saved(&config, &shape, tensors, 3, NULL, &error), BL_ERROR_INVALID_ARGUMENT, "count");
  EXPECT(bl_runtime_saved(&config, &shape, NULL, 3, &count, &error), BL_ERROR_INVALID_ARGUMENT, "tensors");
  EXPECT(bl_runtime_saved(&config, &shape, tensors, 1, &count, &error), BL_ERROR_BUFFER_TOO_SMALL, "2 needed");
  CHECK(count == 2);
  GOOD(bl_runtime_saved(NULL, &shape, NULL, 0, &count, &error));
  CHECK(count == 0);
  GOOD(bl_runtime_saved(&config, &shape, tensors, 3, &count, &error));
  CHECK(count == 2 && strcmp(tensors[1].name, "y_projection_input") == 0);

#define WRONG(field, value, status, text)                                               \
  do {                                                                                  \
    bl_runtime_config changed = config;                                                 \
    changed.field = value;                                                              \
    EXPECT(bl_runtime_check(&changed, &error), status, text);                           \
    EXPECT(bl_runtime_plan(NULL, &changed, 0, 0, &info, &error), status, text);         \
    EXPECT(bl_runtime_memory(&changed, &shape, &memory, &error), status, text);         \
    EXPECT(bl_runtime_saved(&changed, &shape, NULL, 0, &count, &error), status, text);  \
  } while (0)
  WRONG(flags, 4, BL_ERROR_INVALID_ARGUMENT, "flags 0x4");
  WRONG(reserved, 1, BL_ERROR_INVALID_ARGUMENT, "");
  WRONG(targets, 8, BL_ERROR_INVALID_ARGUMENT, "target_modules");
  WRONG(protocol, ANY(bl_protocol, 5), BL_ERROR_UNSUPPORTED, "protocol 5");
  WRONG(protocol, BL_PROTOCOL_NONE, BL_ERROR_INVALID_ARGUMENT, "model.quant.protocol");
  WRONG(weight_format, ANY(bl_low_bit, 8), BL_ERROR_UNSUPPORTED, "format 8");
  WRONG(activation_format, ANY(bl_low_bit, 99), BL_ERROR_UNSUPPORTED, "format 99");
  WRONG(saved_mode, ANY(bl_saved_mode, 3), BL_ERROR_UNSUPPORTED, "mode 3");
  WRONG(training_mode, BL_TRAINING_QAT_STE, BL_ERROR_INVALID_ARGUMENT, "training_mode");
  WRONG(rho_interval, BL_RHO_STEP, BL_OK, ""); /* nothing is compressed */
  CHECK(strcmp(bl_low_bit_name(BL_LOW_BIT_PACKED2), "packed2") == 0);
  CHECK(strcmp(bl_low_bit_name(ANY(bl_low_bit, 8)), "unknown") == 0);
}

static void codes(void) {
  static float x[4 * 10], y[4 * 10], scales[4];
  static int8_t bytes[4 * 10];
  static const int64_t wrong[][2] = {{-1, 10}, {4, 0}, {4, -1}, {INT64_MAX, 10}, {4, INT64_MAX}};
  STRUCT(bl_codes, of);
  size_t i;
  fill(x, 40, 5);
  of.format = BL_LOW_BIT_INT8;
  of.codes = bytes;
  of.scales = scales;
  of.scale_count = 4;
#define QUANTIZE(rows, columns, x, type, stride, codes) \
  bl_quantize(NULL, rows, columns, x, type, stride, codes, &error)
#define DEQUANTIZE(rows, columns, codes, y, type, stride) \
  bl_dequantize(NULL, rows, columns, codes, y, type, stride, &error)
  memset(bytes, 77, sizeof bytes);
  for (i = 0; i < sizeof wrong / sizeof *wrong; i++) {
    EXPECT(QUANTIZE(wrong[i][0], wrong[i][1], x, BL_TYPE_F32, 0, &of), BL_ERROR_INVALID_ARGUMENT, "rows");
    EXPECT(DEQUANTIZE(wrong[i][0], wrong[i][1], &of, y, BL_TYPE_F32, 0), BL_ERROR_INVALID_ARGUMENT, "rows");
  }
  EXPECT(QUANTIZE(4, 10, NULL, BL_TYPE_F32, 0, &of), BL_ERROR_INVALID_ARGUMENT, "x is NULL");
  EXPECT(QUANTIZE(4, 10, x, BL_TYPE_I8, 0, &of), BL_ERROR_UNSUPPORTED, "i8");
  EXPECT(QUANTIZE(4, 10, x, BL_TYPE_F32, 39, &of), BL_ERROR_INVALID_ARGUMENT, "row stride of x");
  EXPECT(QUANTIZE(4, 10, x, BL_TYPE_F32, 0, NULL), BL_ERROR_INVALID_ARGUMENT, "NULL");
  EXPECT(DEQUANTIZE(4, 10, NULL, y, BL_TYPE_F32, 0), BL_ERROR_INVALID_ARGUMENT, "NULL");
  EXPECT(DEQUANTIZE(4, 10, &of, NULL, BL_TYPE_F32, 0), BL_ERROR_INVALID_ARGUMENT, "y is NULL");
  EXPECT(DEQUANTIZE(4, 10, &of, y, ANY(bl_type, 777), 0), BL_ERROR_UNSUPPORTED, "777");
  EXPECT(DEQUANTIZE(4, 10, &of, y, BL_TYPE_F32, 41 * 4 + INT64_MIN), BL_ERROR_INVALID_ARGUMENT, "row stride");
#define WRONG_CODES(field, value, status, text)                              \
  do {                                                                       \
    bl_codes changed = of;                                                   \
    changed.field = value;                                                   \
    EXPECT(QUANTIZE(4, 10, x, BL_TYPE_F32, 0, &changed), status, text);      \
    EXPECT(DEQUANTIZE(4, 10, &changed, y, BL_TYPE_F32, 0), status, text);    \
  } while (0)
  WRONG_CODES(format, BL_LOW_BIT_SIGN1, BL_ERROR_INVALID_ARGUMENT, "sign1");
  WRONG_CODES(format, ANY(bl_low_bit, 9), BL_ERROR_UNSUPPORTED, "format 9");
  WRONG_CODES(range, ANY(bl_range, 2), BL_ERROR_UNSUPPORTED, "range 2");
  WRONG_CODES(flags, 4, BL_ERROR_INVALID_ARGUMENT, "flags 0x4");
  WRONG_CODES(flags, BL_CODES_PER_TENSOR, BL_ERROR_INVALID_ARGUMENT, "4 scales of codes, 1 expected");
  WRONG_CODES(codes, NULL, BL_ERROR_INVALID_ARGUMENT, "NULL");
  WRONG_CODES(scales, NULL, BL_ERROR_INVALID_ARGUMENT, "NULL");
  WRONG_CODES(scale_count, 3, BL_ERROR_INVALID_ARGUMENT, "3 scales");
  WRONG_CODES(stride, 9, BL_ERROR_INVALID_ARGUMENT, "row stride of codes");
  WRONG_CODES(stride, INT64_MAX, BL_ERROR_INVALID_ARGUMENT, "address space");
  x[39] = HUGE_VALF;
  EXPECT(QUANTIZE(4, 10, x, BL_TYPE_F32, 0, &of), BL_ERROR_INVALID_ARGUMENT, "value 39");
  x[39] = 1;
  of.flags = BL_CODES_FIXED_SCALES;
  scales[2] = -1;
  EXPECT(QUANTIZE(4, 10, x, BL_TYPE_F32, 0, &of), BL_ERROR_INVALID_ARGUMENT, "scale 2");
  scales[2] = 0;
  of.flags = 0;
  for (i = 0; i < sizeof bytes; i++) CHECK(bytes[i] == 77); /* nothing was written */
  GOOD(QUANTIZE(4, 10, x, BL_TYPE_F32, 0, &of));
  GOOD(DEQUANTIZE(4, 10, &of, y, BL_TYPE_F32, 0));
  for (i = 0; i < 40; i++) CHECK(fabsf(x[i] - y[i]) < 0.02f);
}

static void rounding(void) {
  static float x[40], y[40], scale;
  static uint8_t packed[40];
  STRUCT(bl_difference_info, info);
  fill(x, 40, 5);
#define FAKE(format, range, flags, count, columns, x, y) \
  bl_fake_quantize(NULL, format, range, flags, count, columns, x, y, &error)
  EXPECT(FAKE(BL_LOW_BIT_INT8, BL_RANGE_MEAN, 2, 40, 10, x, y), BL_ERROR_INVALID_ARGUMENT, "flags 0x2");
  EXPECT(FAKE(BL_LOW_BIT_INT8, ANY(bl_range, 7), 0, 40, 10, x, y), BL_ERROR_UNSUPPORTED, "range 7");
  EXPECT(FAKE(ANY(bl_low_bit, 12), BL_RANGE_MEAN, 0, 40, 10, x, y), BL_ERROR_UNSUPPORTED, "format 12");
  EXPECT(FAKE(BL_LOW_BIT_SIGN1, BL_RANGE_LARGEST, 0, 40, 10, x, y), BL_ERROR_INVALID_ARGUMENT, "BL_RANGE_MEAN");
  EXPECT(FAKE(BL_LOW_BIT_INT8, BL_RANGE_MEAN, 0, 40, 11, x, y), BL_ERROR_INVALID_ARGUMENT, "rows of 11");
  EXPECT(FAKE(BL_LOW_BIT_INT8, BL_RANGE_MEAN, 0, 40, 0, x, y), BL_ERROR_INVALID_ARGUMENT, "rows of 0");
  EXPECT(FAKE(BL_LOW_BIT_INT8, BL_RANGE_MEAN, 0, -1, 10, x, y), BL_ERROR_INVALID_ARGUMENT, "x: -1 floats");
  EXPECT(FAKE(BL_LOW_BIT_INT8, BL_RANGE_MEAN, 0, 40, 10, NULL, y), BL_ERROR_INVALID_ARGUMENT, "NULL");
  EXPECT(FAKE(BL_LOW_BIT_INT8, BL_RANGE_MEAN, 0, 40, 10, x, NULL), BL_ERROR_INVALID_ARGUMENT, "NULL");
  GOOD(FAKE(BL_LOW_BIT_TERNARY158, BL_RANGE_MEAN, 0, 40, 10, x, y));
  EXPECT(bl_fake_quantize_backward(-1, x, y, &error), BL_ERROR_INVALID_ARGUMENT, "dy");
  EXPECT(bl_fake_quantize_backward(40, NULL, y, &error), BL_ERROR_INVALID_ARGUMENT, "dy");
  EXPECT(bl_fake_quantize_backward(40, x, NULL, &error), BL_ERROR_INVALID_ARGUMENT, "dx");

#define PACK(type, flags, count, w, to, bytes, scale) \
  bl_pack_weights(type, flags, count, w, to, bytes, scale, &error)
  EXPECT(PACK(BL_TYPE_INT4, 0, 40, x, packed, 40, &scale), BL_ERROR_UNSUPPORTED, "int4");
  EXPECT(PACK(ANY(bl_type, 777), 0, 40, x, packed, 40, &scale), BL_ERROR_UNSUPPORTED, "777");
  EXPECT(PACK(BL_TYPE_INT8, 2, 40, x, packed, 40, &scale), BL_ERROR_INVALID_ARGUMENT, "flags 0x2");
  EXPECT(PACK(BL_TYPE_INT8, 0, -4, x, packed, 40, &scale), BL_ERROR_INVALID_ARGUMENT, "weights");
  EXPECT(PACK(BL_TYPE_INT8, 0, 40, NULL, packed, 40, &scale), BL_ERROR_INVALID_ARGUMENT, "weights");
  EXPECT(PACK(BL_TYPE_INT8, 0, 40, x, NULL, 40, &scale), BL_ERROR_INVALID_ARGUMENT, "packed");
  EXPECT(PACK(BL_TYPE_TERNARY2, 0, 40, x, packed, 11, &scale), BL_ERROR_INVALID_ARGUMENT, "10 expected");
  EXPECT(PACK(BL_TYPE_BINARY, 0, 40, x, packed, 5, NULL), BL_ERROR_INVALID_ARGUMENT, "scale is NULL");
  x[3] = HUGE_VALF;
  EXPECT(PACK(BL_TYPE_BINARY, 0, 40, x, packed, 5, &scale), BL_ERROR_INVALID_ARGUMENT, "value 3");
  x[3] = 0;
  GOOD(PACK(BL_TYPE_BINARY, BL_PACK_DEQUANTIZED, 40, x, packed, 5, &scale));
#define UNPACK(type, from, bytes, scale, count, w) bl_unpack_weights(type, from, bytes, scale, count, w, &error)
  EXPECT(UNPACK(BL_TYPE_Q4_0, packed, 5, 1, 40, y), BL_ERROR_UNSUPPORTED, "q4_0");
  EXPECT(UNPACK(BL_TYPE_BINARY, NULL, 5, 1, 40, y), BL_ERROR_INVALID_ARGUMENT, "packed");
  EXPECT(UNPACK(BL_TYPE_BINARY, packed, 6, 1, 40, y), BL_ERROR_INVALID_ARGUMENT, "5 expected");
  EXPECT(UNPACK(BL_TYPE_BINARY, packed, 5, HUGE_VALF, 40, y), BL_ERROR_INVALID_ARGUMENT, "scale");
  EXPECT(UNPACK(BL_TYPE_BINARY, packed, 5, 1, 40, NULL), BL_ERROR_INVALID_ARGUMENT, "weights");
  EXPECT(UNPACK(BL_TYPE_BINARY, packed, 5, 1, -1, y), BL_ERROR_INVALID_ARGUMENT, "weights");
  GOOD(UNPACK(BL_TYPE_BINARY, packed, 5, scale, 40, y));
  GOOD(UNPACK(BL_TYPE_BINARY, packed, 5, 1e-9f, 40, y)); /* the scale as it is given, however small */
  CHECK(y[0] == 1e-9f || y[0] == -1e-9f);
  GOOD(UNPACK(BL_TYPE_BINARY, NULL, 0, 1, 0, NULL));
  GOOD(PACK(BL_TYPE_BINARY, 0, 0, NULL, NULL, 0, &scale));

  EXPECT(bl_compare(40, NULL, y, &info, &error), BL_ERROR_INVALID_ARGUMENT, "a:");
  EXPECT(bl_compare(40, x, NULL, &info, &error), BL_ERROR_INVALID_ARGUMENT, "b:");
  EXPECT(bl_compare(-1, x, y, &info, &error), BL_ERROR_INVALID_ARGUMENT, "-1 floats");
  EXPECT(bl_compare(40, (const float *)(const void *)((const char *)x + 1), y, &info, &error),
         BL_ERROR_INVALID_ARGUMENT, "aligned");
  GOOD(bl_compare(0, NULL, NULL, &info, &error));
  EXPECT(bl_compare(40, x, y, NULL, &error), BL_ERROR_INVALID_ARGUMENT, "bl_difference_info");
  CHECK(info.mean_error == 0);
}

static void heads(void) {
  static float w[2 * 6 * 5], x[6 * 6], y[2 * 6 * 5], dx[6 * 6], dw[2 * 6 * 5], scales[8];
  static uint8_t codes[64];
  bl_heads *made = NULL, *none = (bl_heads *)(void *)&none;
  const bl_heads *handle;
  STRUCT(bl_heads_options, options);
  STRUCT(bl_heads_run, run);
  STRUCT(bl_heads_gradients, g);
  STRUCT(bl_heads_info, info);
  int64_t bytes = 0, count = 0;
  int i;
  fill(w, 60, 1), fill(x, 36, 2);
  options.heads = 2, options.latent = 5, options.features = 6;
  options.weight_format = BL_LOW_BIT_TERNARY158;
  options.input_format = BL_LOW_BIT_INT8;
#define CREATE(options, w, bytes) bl_heads_create(NULL, options, w, bytes, &none, &error)
  EXPECT(CREATE(NULL, w, 240), BL_ERROR_INVALID_ARGUMENT, "heads");
  EXPECT(CREATE(&options, NULL, 240), BL_ERROR_INVALID_ARGUMENT, "weights");
  EXPECT(CREATE(&options, w, 241), BL_ERROR_INVALID_ARGUMENT, "241 bytes");
  EXPECT(CREATE(&options, w, 236), BL_ERROR_INVALID_ARGUMENT, "59 weights");
  EXPECT(bl_heads_create(NULL, &options, w, 240, NULL, &error), BL_ERROR_INVALID_ARGUMENT, "`out`");
#define WRONG_HEADS(field, value, status, text)             \
  do {                                                      \
    bl_heads_options changed = options;                     \
    changed.field = value;                                  \
    EXPECT(CREATE(&changed, w, 240), status, text);         \
  } while (0)
  WRONG_HEADS(kind, ANY(bl_heads_kind, 2), BL_ERROR_UNSUPPORTED, "kind of heads 2");
  WRONG_HEADS(heads, 0, BL_ERROR_INVALID_ARGUMENT, "0 heads");
  WRONG_HEADS(heads, -1, BL_ERROR_INVALID_ARGUMENT, "heads is -1");
  WRONG_HEADS(latent, INT64_MAX, BL_ERROR_INVALID_ARGUMENT, "latent");
  WRONG_HEADS(features, INT64_MIN, BL_ERROR_INVALID_ARGUMENT, "features");
  WRONG_HEADS(weight_format, BL_LOW_BIT_FP16, BL_ERROR_INVALID_ARGUMENT, "fp16");
  WRONG_HEADS(input_format, BL_LOW_BIT_SIGN1, BL_ERROR_INVALID_ARGUMENT, "sign1");
  WRONG_HEADS(input_range, ANY(bl_range, 3), BL_ERROR_UNSUPPORTED, "range 3");
  WRONG_HEADS(flags, 4, BL_ERROR_INVALID_ARGUMENT, "flags 0x4");
  WRONG_HEADS(scale, 1, BL_ERROR_INVALID_ARGUMENT, "scale of 1");
  WRONG_HEADS(reserved, 1, BL_ERROR_INVALID_ARGUMENT, "");
  WRONG_HEADS(flags, BL_HEADS_PACKED, BL_ERROR_INVALID_ARGUMENT, "15 expected");
  CHECK(none == NULL && bl_heads_create(NULL, NULL, NULL, 0, NULL, NULL) == BL_ERROR_INVALID_ARGUMENT);
  GOOD(bl_heads_create(NULL, &options, w, 240, &made, &error));

  run.batch = run.input_heads = 1, run.time = 6;
  g.x = x, g.x_count = 36, g.dy = y, g.dy_count = 60, g.dx = dx, g.dx_count = 36, g.dw = dw, g.dw_count = 60;
#define FORWARD(run, x, x_count, y, y_count) bl_heads_forward(made, run, x, x_count, y, y_count, &error)
#define SAVE(run, x, x_count) bl_heads_save(made, run, x, x_count, codes, &bytes, scales, &count, &error)
  for (i = 0; i < 2; i++) { /* none, and another kind's */
    bl_state *state = new_state(BL_STATE_INT8, 0);
    handle = i == 0 ? NULL : (const bl_heads *)(const void *)state;
    EXPECT(bl_heads_forward(handle, &run, x, 36, y, 60, &error), BL_ERROR_INVALID_HANDLE, "heads");
    EXPECT(bl_heads_save(handle, &run, x, 36, NULL, &bytes, NULL, &count, &error), BL_ERROR_INVALID_HANDLE, "heads");
    EXPECT(bl_heads_backward(handle, &run, &g, &error), BL_ERROR_INVALID_HANDLE, "heads");
    EXPECT(bl_heads_calibrate(handle, x, 36, &error), BL_ERROR_INVALID_HANDLE, "heads");
    EXPECT(bl_heads_describe(handle, &info, 0, &error), BL_ERROR_INVALID_HANDLE, "heads");
    EXPECT(bl_heads_update(i == 0 ? NULL : (bl_heads *)(void *)state, w, 60, &error), BL_ERROR_INVALID_HANDLE, "heads");
    bl_free(state);
  }
  EXPECT(bl_heads_update(made, NULL, 60, &error), BL_ERROR_INVALID_ARGUMENT, "weights");
  EXPECT(bl_heads_update(made, w, 61, &error), BL_ERROR_INVALID_ARGUMENT, "61 weights");
  EXPECT(bl_heads_update(made, w, -1, &error), BL_ERROR_INVALID_ARGUMENT, "-1 floats");
  EXPECT(bl_heads_describe(made, NULL, 0, &error), BL_ERROR_INVALID_ARGUMENT, "bl_heads_info");
  EXPECT(bl_heads_calibrate(made, x, -1, &error), BL_ERROR_INVALID_ARGUMENT, "x");
  EXPECT(bl_heads_calibrate(made, x, 0, &error), BL_ERROR_INVALID_ARGUMENT, "no value");
  for (i = 0; i < 60; i++) y[i] = 7;
  EXPECT(FORWARD(NULL, x, 36, y, 60), BL_ERROR_INVALID_ARGUMENT, "run is NULL");
  EXPECT(FORWARD(&run, NULL, 36, y, 60), BL_ERROR_INVALID_ARGUMENT, "x");
  EXPECT(FORWARD(&run, x, 36, NULL, 60), BL_ERROR_INVALID_ARGUMENT, "y");
  EXPECT(FORWARD(&run, x, 35, y, 60), BL_ERROR_INVALID_ARGUMENT, "35 values of x");
  EXPECT(FORWARD(&run, x, 36, y, 61), BL_ERROR_INVALID_ARGUMENT, "61 of y");
  EXPECT(SAVE(NULL, x, 36), BL_ERROR_INVALID_ARGUMENT, "run is NULL");
  EXPECT(bl_heads_save(made, &run, x, 36, codes, NULL, scales, &count, &error), BL_ERROR_INVALID_ARGUMENT, "NULL");
  EXPECT(bl_heads_save(made, &run, x, 36, codes, &bytes, scales, NULL, &error), BL_ERROR_INVALID_ARGUMENT, "NULL");
  bytes = 35, count = 6;
  EXPECT(SAVE(&run, x, 36), BL_ERROR_BUFFER_TOO_SMALL, "36 and 6 needed");
  CHECK(bytes == 36 && count == 6);
  EXPECT(SAVE(&run, x, 35), BL_ERROR_INVALID_ARGUMENT, "35 values of x");
  EXPECT(SAVE(&run, NULL, 36), BL_ERROR_INVALID_ARGUMENT, "x");
  EXPECT(bl_heads_save(made, &run, x, 36, NULL, &bytes, scales, &count, &error), BL_ERROR_INVALID_ARGUMENT, "codes");
  EXPECT(bl_heads_save(made, &run, x, 36, codes, &bytes, NULL, &count, &error), BL_ERROR_INVALID_ARGUMENT, "scales");
  GOOD(SAVE(&run, x, 36));
#define WRONG_RUN(field, value, text)                                                        \
  do {                                                                                       \
    bl_heads_run changed = run;                                                              \
    changed.field = value;                                                                   \
    EXPECT(FORWARD(&changed, x, 36, y, 60), BL_ERROR_INVALID_ARGUMENT, text);                \
    EXPECT(bl_heads_backward(made, &changed, &g, &error), BL_ERROR_INVALID_ARGUMENT, text);  \
  } while (0)
  WRONG_RUN(flags, 4, "flags 0x4");
  WRONG_RUN(batch, -1, "batch is -1");
  WRONG_RUN(batch, 2, "expected");
  WRONG_RUN(input_heads, 3, "3 heads");
  WRONG_RUN(time, INT64_MAX, "");
  WRONG_RUN(latent, 6, "6 latent");
  WRONG_RUN(latent, -2, "latent is -2");
  WRONG_RUN(threshold, 1, "BL_HEADS_RELU");
  WRONG_RUN(reserved, 1, "");
  run.flags = BL_HEADS_RELU;
  WRONG_RUN(threshold, HUGE_VALF, "threshold");
  run.flags = 0;
#define WRONG_GRADIENTS(field, value, text)                                                  \
  do {                                                                                       \
    bl_heads_gradients changed = g;                                                          \
    changed.field = value;                                                                   \
    EXPECT(bl_heads_backward(made, &run, &changed, &error), BL_ERROR_INVALID_ARGUMENT, text); \
  } while (0)
  EXPECT(bl_heads_backward(made, NULL, &g, &error), BL_ERROR_INVALID_ARGUMENT, "run is NULL");
  EXPECT(bl_heads_backward(made, &run, NULL, &error), BL_ERROR_INVALID_ARGUMENT, "gradients is NULL");
  WRONG_GRADIENTS(reserved, 1, "reserved");
  WRONG_GRADIENTS(x, NULL, "x or codes");
  WRONG_GRADIENTS(codes, codes, "x or codes");
  WRONG_GRADIENTS(x_count, 35, "35 values of x");
  WRONG_GRADIENTS(dy, NULL, "dy");
  WRONG_GRADIENTS(dy_count, 59, "59 values of dy");
  WRONG_GRADIENTS(dx_count, 37, "37 values of dx");
  WRONG_GRADIENTS(dw_count, 1, "1 values of dw");
  g.y = y;
  WRONG_GRADIENTS(y_count, 1, "1 values of y");
  g.y = NULL, g.x = NULL, g.codes = codes, g.code_bytes = 36, g.scales = scales, g.scale_count = 6;
  WRONG_GRADIENTS(code_bytes, 35, "35 bytes of codes");
  WRONG_GRADIENTS(code_bytes, -1, "code_bytes is -1");
  WRONG_GRADIENTS(scales, NULL, "scales");
  WRONG_GRADIENTS(scale_count, 5, "5 scales");
  for (i = 0; i < 60; i++) CHECK(y[i] == 7.0f && dw[i] == 0.0f); /* nothing was written */
  GOOD(bl_heads_backward(made, &run, &g, &error));
  GOOD(FORWARD(&run, x, 36, y, 60));
  GOOD(bl_heads_update(made, w, 60, &error));
  GOOD(bl_heads_calibrate(made, x, 36, &error));
  GOOD(bl_heads_calibrate(made, NULL, 0, &error));
  GOOD(bl_heads_describe(made, &info, 1, &error));
  CHECK(info.calls == 1 && info.heads == 2 && info.total_time == 0 && info.bytes_packed > 0);
  bl_free(made);
}

static void layers(void) {
  static float w[3 * 8], x[2 * 8], dy[2 * 3], dx[2 * 8], dw[3 * 8], db[3], scales[2];
  static int8_t bytes[2 * 8];
  bl_layer *layer = NULL, *floats_in = NULL;
  STRUCT(bl_layer_options, options);
  STRUCT(bl_layer_gradients, g);
  STRUCT(bl_codes, codes);
  int i;
  fill(w, 24, 1), fill(x, 16, 2), fill(dy, 6, 3);
  GOOD(bl_layer_create(NULL, 3, 8, w, BL_TYPE_F32, 0, NULL, &layer, &error));
  options.activation = BL_ACTIVATION_F32;
  GOOD(bl_layer_create(NULL, 3, 8, w, BL_TYPE_F32, 0, &options, &floats_in, &error));
  g.x = x, g.dy = dy, g.dx = dx, g.dw = dw, g.db = db;
  EXPECT(bl_layer_backward(NULL, 2, &g, &error), BL_ERROR_INVALID_HANDLE, "NULL");
  EXPECT(bl_layer_backward(layer, 2, NULL, &error), BL_ERROR_INVALID_ARGUMENT, "gradients");
  EXPECT(bl_layer_backward(layer, -1, &g, &error), BL_ERROR_INVALID_ARGUMENT, "m = -1");
  EXPECT(bl_layer_backward(layer, INT64_MAX, &g, &error), BL_ERROR_INVALID_ARGUMENT, "m = ");
#define WRONG_LAYER(field, value, text)                                                     \
  do {                                                                                      \
    bl_layer_gradients changed = g;                                                         \
    changed.field = value;                                                                  \
    EXPECT(bl_layer_backward(layer, 2, &changed, &error), BL_ERROR_INVALID_ARGUMENT, text); \
  } while (0)
  WRONG_LAYER(reserved, 1, "reserved");
  WRONG_LAYER(x, NULL, "x or codes");
  WRONG_LAYER(codes, &codes, "x or codes");
  WRONG_LAYER(x_stride, 31, "row stride of x");
  WRONG_LAYER(dy, NULL, "dy is NULL");
  WRONG_LAYER(dy_stride, 11, "row stride of dy");
  WRONG_LAYER(dx_stride, 31, "row stride of dx");
  WRONG_LAYER(dw_stride, INT64_MIN, "row stride of dw");
  WRONG_LAYER(db, (float *)(void *)((char *)db + 1), "db");
  g.y = dy;
  WRONG_LAYER(y_stride, 1, "row stride of y");
  g.y = NULL;
  dy[5] = HUGE_VALF;
  EXPECT(bl_layer_backward(layer, 2, &g, &error), BL_ERROR_INVALID_ARGUMENT, "value 5 of dy");
  dy[5] = 1;
  codes.format = BL_LOW_BIT_INT4;
  codes.codes = bytes, codes.scales = scales, codes.scale_count = 2;
  g.x = NULL, g.codes = &codes;
  EXPECT(bl_layer_backward(layer, 2, &g, &error), BL_ERROR_INVALID_ARGUMENT, "another format");
  codes.format = BL_LOW_BIT_INT8;
  codes.range = BL_RANGE_MEAN;
  EXPECT(bl_layer_backward(layer, 2, &g, &error), BL_ERROR_INVALID_ARGUMENT, "another format");
  EXPECT(bl_layer_backward(floats_in, 2, &g, &error), BL_ERROR_INVALID_ARGUMENT, "another format");
  codes.range = BL_RANGE_LARGEST;
  codes.scale_count = 1;
  EXPECT(bl_layer_backward(layer, 2, &g, &error), BL_ERROR_INVALID_ARGUMENT, "1 scales");
  codes.scale_count = 2;
  for (i = 0; i < 24; i++) CHECK(dw[i] == 0.0f); /* nothing was written */
  GOOD(bl_layer_backward(layer, 2, &g, &error));
  g.x = x, g.codes = NULL, g.dx = g.dw = g.db = NULL;
  GOOD(bl_layer_backward(layer, 2, &g, &error)); /* nothing is wanted */

#define CALIBRATE(layer, m, x, type, stride) bl_layer_calibrate(layer, m, x, type, stride, &error)
  EXPECT(CALIBRATE(NULL, 2, x, BL_TYPE_F32, 0), BL_ERROR_INVALID_HANDLE, "NULL");
  EXPECT(CALIBRATE(floats_in, 2, x, BL_TYPE_F32, 0), BL_ERROR_UNSUPPORTED, "floats");
  EXPECT(CALIBRATE(layer, -1, x, BL_TYPE_F32, 0), BL_ERROR_INVALID_ARGUMENT, "m = -1");
  EXPECT(CALIBRATE(layer, 0, x, BL_TYPE_F32, 0), BL_ERROR_INVALID_ARGUMENT, "no value");
  EXPECT(CALIBRATE(layer, 2, x, BL_TYPE_U8, 0), BL_ERROR_UNSUPPORTED, "u8");
  EXPECT(CALIBRATE(layer, 2, x, BL_TYPE_F32, 31), BL_ERROR_INVALID_ARGUMENT, "row stride of x");
  x[15] = HUGE_VALF;
  EXPECT(CALIBRATE(layer, 2, x, BL_TYPE_F32, 0), BL_ERROR_INVALID_ARGUMENT, "value 15");
  x[15] = 0;
  GOOD(CALIBRATE(layer, 2, x, BL_TYPE_F32, 0));
  GOOD(CALIBRATE(layer, 0, NULL, BL_TYPE_F32, 0));
  bl_free(layer), bl_free(floats_in);
}

int main(int count, char **words) {
  start(count, words);
  GOOD(bl_context_create(NULL, &context, &error));
  creating_states();
  using_states();
  runtime();
  codes();
  rounding();
  heads();
  layers();
  bl_free(context);
  return done();
}
