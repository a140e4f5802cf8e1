/* The low-bit runtime: every pointer NULL and every argument wrong in turn. Handles of a wrong kind are
 * among them; struct_size is the subject of structs.c. */
#include <math.h>
#include "layers.h"

ANY_OF(bl_state_format)
ANY_OF(bl_low_bit)
ANY_OF(bl_protocol)
ANY_OF(bl_saved_mode)

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

int main(int count, char **words) {
  start(count, words);
  GOOD(bl_context_create(NULL, &context, &error));
  creating_states();
  using_states();
  runtime();
  bl_free(context);
  return done();
}
