/* Every argument of every function wrong in turn: the documented status, and a text that names it.
 * NULL is the subject of null_pointers.c, handles that of handles.c, struct_size that of structs.c. */
#include <math.h>
#include "layers.h"

#define WEIGHT "blk.0.q4_0.weight"

static bl_model *model;
static bl_layer *layer;

static void *no_memory(void *user, size_t size, size_t alignment) {
  (void)user, (void)size, (void)alignment;
  return NULL;
}
static void no_free(void *user, void *pointer, size_t size, size_t alignment) {
  (void)user, (void)pointer, (void)size, (void)alignment;
}

static void types(void) {
  static const uint32_t none[] = {33, 99, 100, 101, 104, 137, 200, 12345, 0x80000000u, 0xffffffffu};
  STRUCT(bl_type_info, info);
  size_t i;
  for (i = 0; i < sizeof none / sizeof *none; i++) {
    char text[64];
    snprintf(text, sizeof text, "type %lu is unknown", (unsigned long)none[i]);
    EXPECT(bl_type_describe(ANY(bl_type, none[i]), &info, &error), BL_ERROR_UNSUPPORTED, text);
  }
  EXPECT(bl_type_describe(BL_TYPE_AUTO, &info, &error), BL_ERROR_UNSUPPORTED, "BL_TYPE_AUTO");
}

static void contexts(void) {
  bl_context *made = NULL;
  STRUCT(bl_context_options, options);
  uint32_t bit;
  for (bit = 2; bit != 0; bit <<= 1) { /* 1 is BL_CONTEXT_PROFILE */
    options.flags = bit;
    EXPECT(bl_context_create(&options, &made, &error), BL_ERROR_INVALID_ARGUMENT, "flags");
  }
  options.flags = 0;
  options.threads = 0xfffffffeu;
  EXPECT(bl_context_create(&options, &made, &error), BL_ERROR_INVALID_ARGUMENT, "threads = 4294967294");
  options.threads = 0;
  options.log_level = ANY(bl_log_level, 12345);
  EXPECT(bl_context_create(&options, &made, &error), BL_ERROR_UNSUPPORTED, "log level 12345");
  options.log_level = ANY(bl_log_level, 0);
  options.alloc = no_memory;
  EXPECT(bl_context_create(&options, &made, &error), BL_ERROR_INVALID_ARGUMENT, "both or neither");
  options.alloc = NULL;
  options.dealloc = no_free;
  EXPECT(bl_context_create(&options, &made, &error), BL_ERROR_INVALID_ARGUMENT, "both or neither");
  CHECK(made == NULL);
  /* An allocator that never has any: a status, with what it was for. */
  options.alloc = no_memory;
  GOOD(bl_context_create(&options, &made, &error));
  {
    bl_model *loaded = NULL;
    bl_layer *opened = NULL;
    GOOD(bl_load(made, golden(ALL_TYPES), NULL, &loaded, &error));
    EXPECT(bl_layer_open(loaded, WEIGHT, NULL, &opened, &error), BL_ERROR_OUT_OF_MEMORY, "bytes");
    CHECK(opened == NULL);
    bl_free(loaded);
  }
  bl_free(made);
}

static void diagnostics(void) {
  bl_context *profiled = NULL;
  bl_profile_entry entry;
  STRUCT(bl_context_options, options);
  STRUCT(bl_device_info, device);
  size_t counted = 9;
  uint32_t index;
  for (index = 64; index != 0; index <<= 1) /* 1 may be a GPU */
    EXPECT(bl_device_describe(NULL, index, &device, &error), BL_ERROR_NOT_FOUND, "device");
  CHECK(device.name == NULL);
  EXPECT(bl_profile(NULL, &entry, 1, &counted, 0, &error), BL_ERROR_INVALID_ARGUMENT, "BL_CONTEXT_PROFILE");
  CHECK(counted == 0);
  options.flags = BL_CONTEXT_PROFILE;
  GOOD(bl_context_create(&options, &profiled, &error));
  GOOD(bl_profile(profiled, NULL, 0, &counted, 0, &error));
  CHECK(counted == 0); /* no call yet */
  bl_free(profiled);
}

static void loading(void) {
  bl_model *made = NULL;
  STRUCT(bl_load_options, options);
  uint32_t flags;
  EXPECT(bl_load(NULL, "", NULL, &made, &error), BL_ERROR_IO, "the path is empty");
  EXPECT(bl_load(NULL, golden("missing.gguf"), NULL, &made, &error), BL_ERROR_IO, "missing.gguf");
  EXPECT(bl_load(NULL, golden("bad/magic.gguf"), NULL, &made, &error), BL_ERROR_BAD_FILE, "magic.gguf");
  EXPECT(bl_load(NULL, "/dev/null", NULL, &made, &error), BL_ERROR_IO, "/dev/null");
  EXPECT(bl_load(NULL, "no\xff\xfeutf-8", NULL, &made, &error), BL_ERROR_IO, "utf-8");
  for (flags = 2; flags != 0; flags <<= 1) { /* BL_LOAD_BORROW is for memory */
    if (flags == BL_LOAD_VERIFY) continue;   /* files without sums have nothing to compare */
    options.flags = flags;
    EXPECT(bl_load(NULL, golden(ALL_TYPES), &options, &made, &error), BL_ERROR_INVALID_ARGUMENT, "flags");
    if (flags == BL_LOAD_BORROW) continue;
    EXPECT(bl_load_memory(NULL, "{}", 2, &options, &made, &error), BL_ERROR_INVALID_ARGUMENT, "flags");
  }
  options.flags = BL_LOAD_COPY | BL_LOAD_BORROW;
  EXPECT(bl_load_memory(NULL, "{}", 2, &options, &made, &error), BL_ERROR_INVALID_ARGUMENT, "flags 0x3");
  EXPECT(bl_load_memory(NULL, "{}", (size_t)-1, NULL, &made, &error), BL_ERROR_INVALID_ARGUMENT, "bytes");
  EXPECT(bl_load_memory(NULL, "{}", (size_t)-1 / 2 + 1, NULL, &made, &error), BL_ERROR_INVALID_ARGUMENT,
         "bytes");
  EXPECT(bl_load_memory(NULL, "GGUF", 4, NULL, &made, &error), BL_ERROR_BAD_FILE, "");
  CHECK(made == NULL);
}

static void models(void) {
  static const int64_t none[] = {-1, INT64_MIN, INT64_MAX, 1 << 20};
  STRUCT(bl_model_info, about);
  STRUCT(bl_tensor_info, tensor);
  STRUCT(bl_meta_info, meta);
  STRUCT(bl_model_layer_info, listed);
  size_t i;
  GOOD(bl_model_describe(model, &about, &error));
  CHECK(about.container == 2 && about.tensors > 10 && about.metadata > 10 && about.bytes > 1000);
  for (i = 0; i < sizeof none / sizeof *none; i++) {
    EXPECT(bl_model_tensor(model, NULL, none[i], &tensor, &error), BL_ERROR_NOT_FOUND, "tensor");
    CHECK(tensor.name == NULL && tensor.data == NULL && tensor.bytes == 0);
    EXPECT(bl_model_meta(model, NULL, none[i], &meta, &error), BL_ERROR_NOT_FOUND, "metadata");
    EXPECT(bl_model_layer(model, NULL, none[i], &listed, &error), BL_ERROR_NOT_FOUND, "layer");
    CHECK(listed.name == NULL && listed.weight == NULL);
    CHECK(meta.key == NULL && meta.string == NULL);
    EXPECT(bl_model_meta_item(model, "t.arr_i32", none[i], &meta, &error), BL_ERROR_NOT_FOUND, "t.arr_i32");
  }
  EXPECT(bl_model_tensor(model, NULL, about.tensors, &tensor, &error), BL_ERROR_NOT_FOUND, "tensor");
  EXPECT(bl_model_meta(model, NULL, about.metadata, &meta, &error), BL_ERROR_NOT_FOUND, "metadata");
  EXPECT(bl_model_layer(model, NULL, about.layers, &listed, &error), BL_ERROR_NOT_FOUND, "layer");
  EXPECT(bl_model_layer(model, "nothing", 0, &listed, &error), BL_ERROR_NOT_FOUND, "\"nothing\"");
  EXPECT(bl_model_tensor(model, "", 0, &tensor, &error), BL_ERROR_NOT_FOUND, "\"\"");
  EXPECT(bl_model_tensor(model, "blk.0", 0, &tensor, &error), BL_ERROR_NOT_FOUND, "\"blk.0\"");
  EXPECT(bl_model_meta(model, "nothing", 0, &meta, &error), BL_ERROR_NOT_FOUND, "\"nothing\"");
  EXPECT(bl_model_meta_item(model, "nothing", 0, &meta, &error), BL_ERROR_NOT_FOUND, "\"nothing\"");
  EXPECT(bl_model_meta_item(model, "general.architecture", 0, &meta, &error), BL_ERROR_INVALID_ARGUMENT,
         "no array");
  EXPECT(bl_model_meta_item(model, "t.arr_nested", 0, &meta, &error), BL_ERROR_UNSUPPORTED, "of arrays");
  GOOD(bl_model_meta_item(model, "t.arr_str", 0, &meta, &error));
  CHECK(meta.kind == BL_META_STRING && meta.key == NULL && meta.string != NULL);
}

static void layers(void) {
  STRUCT(bl_model_info, about);
  STRUCT(bl_model_layer_info, listed);
  bl_layer *made = NULL;
  int64_t i;
  GOOD(bl_model_describe(model, &about, &error));
  CHECK(about.layers > 10);
  for (i = 0; i < about.layers; i++) {
    char name[64];
    GOOD(bl_model_layer(model, NULL, i, &listed, &error));
    CHECK(listed.status == BL_OK && listed.in_features == 512 && listed.out_features == 64);
    CHECK(listed.name != NULL && listed.weight != NULL && listed.bias == NULL);
    snprintf(name, sizeof name, "%s", listed.name);
    GOOD(bl_model_layer(model, name, -1, &listed, &error));
    GOOD(bl_layer_open(model, name, NULL, &made, &error));
    bl_free(made);
  }
  EXPECT(bl_model_layer(model, NULL, about.layers, &listed, &error), BL_ERROR_NOT_FOUND, "layer");
  CHECK(listed.name == NULL && listed.in_features == 0);
  EXPECT(bl_model_layer(model, NULL, -1, &listed, &error), BL_ERROR_NOT_FOUND, "layer -1");
  EXPECT(bl_model_layer(model, NULL, INT64_MIN, &listed, &error), BL_ERROR_NOT_FOUND, "layer");
  EXPECT(bl_model_layer(model, "", 0, &listed, &error), BL_ERROR_NOT_FOUND, "\"\"");
  EXPECT(bl_model_layer(model, "blk.0.bias", 0, &listed, &error), BL_ERROR_NOT_FOUND, "\"blk.0.bias\"");
}

/* A size that is negative, or larger than any. */
static void wrong_size(bl_layer_options *options, int64_t *field, const char *name) {
  static const int64_t sizes[] = {-1, INT64_MIN, INT64_MAX};
  bl_layer *made = NULL;
  size_t i;
  for (i = 0; i < sizeof sizes / sizeof *sizes; i++) {
    *field = sizes[i];
    EXPECT(bl_layer_open(model, WEIGHT, options, &made, &error), BL_ERROR_INVALID_ARGUMENT, name);
  }
  *field = 0;
  CHECK(made == NULL);
}

static void opening(void) {
  bl_layer *made = NULL;
  bl_model *other;
  STRUCT(bl_layer_options, options);
  uint32_t bit;
  EXPECT(bl_layer_open(model, "", NULL, &made, &error), BL_ERROR_NOT_FOUND, "\"\"");
  EXPECT(bl_layer_open(model, "no\xffsuch", NULL, &made, &error), BL_ERROR_NOT_FOUND, "such");
  other = open_model("cortex.safetensors");
  EXPECT(bl_layer_open(other, "a.weight_packed", NULL, &made, &error), BL_ERROR_UNSUPPORTED,
         "tensor \"a.weight_packed\": u8 elements are no weights by themselves; it is a part of layer \"a\"");
  bl_free(other);
  for (bit = BL_LAYER_TRANSPOSED << 1; bit != 0; bit <<= 1) {
    options.flags = bit;
    EXPECT(bl_layer_open(model, WEIGHT, &options, &made, &error), BL_ERROR_INVALID_ARGUMENT, "flags");
  }
  options.flags = BL_LAYER_SCALE_MULTIPLIES | BL_LAYER_SCALE_DIVIDES;
  EXPECT(bl_layer_open(model, WEIGHT, &options, &made, &error), BL_ERROR_INVALID_ARGUMENT, "multiplies");
  options.flags = BL_LAYER_GPTQ_V1 | BL_LAYER_GPTQ_V2;
  EXPECT(bl_layer_open(model, WEIGHT, &options, &made, &error), BL_ERROR_INVALID_ARGUMENT, "GPTQ");
  options.flags = BL_LAYER_ALL_SLICES;
  options.slice = 1;
  EXPECT(bl_layer_open(model, WEIGHT, &options, &made, &error), BL_ERROR_INVALID_ARGUMENT, "slice");
  options.flags = 0;
  EXPECT(bl_layer_open(model, WEIGHT, &options, &made, &error), BL_ERROR_INVALID_ARGUMENT, "slice");
  options.slice = 0;
  wrong_size(&options, &options.slice, "slice");
  wrong_size(&options, &options.group_size, "group_size");
  wrong_size(&options, &options.in_features, "in_features");
  wrong_size(&options, &options.out_features, "out_features");
  wrong_size(&options, &options.scale_count, "scale");
  options.type = BL_TYPE_Q4_0; /* what is stored */
  GOOD(bl_layer_open(model, WEIGHT, &options, &made, &error));
  bl_free(made);
  options.type = ANY(bl_type, 12345);
  EXPECT(bl_layer_open(model, WEIGHT, &options, &made, &error), BL_ERROR_UNSUPPORTED, "type 12345");
  options.type = ANY(bl_type, 0xffffffffu);
  EXPECT(bl_layer_open(model, WEIGHT, &options, &made, &error), BL_ERROR_UNSUPPORTED, "unknown");
  options.type = BL_TYPE_AUTO;
  options.activation = ANY(bl_activation, 12345);
  EXPECT(bl_layer_open(model, WEIGHT, &options, &made, &error), BL_ERROR_UNSUPPORTED, "activation 12345");
  options.activation = ANY(bl_activation, 0xffffffffu);
  EXPECT(bl_layer_open(model, WEIGHT, &options, &made, &error), BL_ERROR_UNSUPPORTED, "activation");
  options.activation = BL_ACTIVATION_INT8_ROW;
  EXPECT(bl_layer_open(model, "blk.0.f32.weight", &options, &made, &error), BL_ERROR_UNSUPPORTED, "floats");
  CHECK(made == NULL);
}

static void reading(void) {
  static const int64_t rows[][2] = {{-1, 1}, {0, -1}, {0, 65}, {64, 1}, {65, 0}, {1, 64},
                                    {INT64_MAX, 1}, {1, INT64_MAX}, {INT64_MIN, INT64_MIN}};
  static const bl_type types[] = {BL_TYPE_AUTO, BL_TYPE_I8, BL_TYPE_F64, BL_TYPE_Q4_0, BL_TYPE_OTHER};
  static const int64_t strides[] = {1, 4, 2047, -1, -2048, INT64_MIN};
  static float dst[2 * 512];
  size_t i;
  for (i = 0; i < sizeof rows / sizeof *rows; i++)
    EXPECT(bl_layer_read(layer, rows[i][0], rows[i][1], dst, BL_TYPE_F32, 0, &error),
           BL_ERROR_INVALID_ARGUMENT, "of a layer of 64");
  for (i = 0; i < sizeof types / sizeof *types; i++)
    EXPECT(bl_layer_read(layer, 0, 1, dst, types[i], 0, &error), BL_ERROR_UNSUPPORTED, "");
  EXPECT(bl_layer_read(layer, 0, 1, dst, ANY(bl_type, 777), 0, &error), BL_ERROR_UNSUPPORTED, "type 777");
  for (i = 0; i < sizeof strides / sizeof *strides; i++)
    EXPECT(bl_layer_read(layer, 0, 1, dst, BL_TYPE_F32, strides[i], &error), BL_ERROR_INVALID_ARGUMENT,
           "row stride of dst");
  /* Addresses of the rows that no address space has. */
  EXPECT(bl_layer_read(layer, 0, 2, dst, BL_TYPE_F32, INT64_MAX, &error), BL_ERROR_INVALID_ARGUMENT,
         "address space");
  GOOD(bl_layer_read(layer, 64, 0, dst, BL_TYPE_F32, 0, &error));
}

static void planning(void) {
  static const int64_t batches[] = {-1, INT64_MIN, INT64_MAX, ((int64_t)1 << 31) + 1};
  STRUCT(bl_plan_info, plan);
  size_t i;
  for (i = 0; i < sizeof batches / sizeof *batches; i++) {
    EXPECT(bl_plan(layer, BL_OP_FORWARD, batches[i], BL_TYPE_F32, &plan, &error), BL_ERROR_INVALID_ARGUMENT,
           "m = ");
    CHECK(plan.kernel == NULL && plan.workspace_size == 0);
  }
  EXPECT(bl_plan(layer, ANY(bl_op, 12345), 1, BL_TYPE_F32, &plan, &error), BL_ERROR_UNSUPPORTED, "op 12345");
  EXPECT(bl_plan(layer, BL_OP_FORWARD, 1, BL_TYPE_I32, &plan, &error), BL_ERROR_UNSUPPORTED, "i32");
  EXPECT(bl_plan(layer, BL_OP_FORWARD, 1, BL_TYPE_AUTO, &plan, &error), BL_ERROR_UNSUPPORTED, "");
  EXPECT(bl_plan(layer, BL_OP_FORWARD, 1, ANY(bl_type, 99), &plan, &error), BL_ERROR_UNSUPPORTED, "type 99");
  GOOD(bl_plan(layer, BL_OP_FORWARD, 0, BL_TYPE_F16, &plan, &error));
  GOOD(bl_plan(layer, BL_OP_FORWARD, (int64_t)1 << 31, BL_TYPE_BF16, &plan, &error));
}

static void running(void) {
  static const int64_t batches[] = {-1, INT64_MIN, INT64_MAX, ((int64_t)1 << 31) + 1};
  static const bl_type types[] = {BL_TYPE_AUTO, BL_TYPE_I8, BL_TYPE_F64, BL_TYPE_TQ2_0, BL_TYPE_OTHER};
  static float x[2 * 512], y[2 * 64];
  STRUCT(bl_run_options, options);
  size_t i;
  uint32_t bit;
#define RUN(m, xt, xs, yt, ys) bl_forward(layer, m, x, xt, xs, y, yt, ys, NULL, &error)
  for (i = 0; i < 2 * 64; i++) y[i] = 7;
  for (i = 0; i < sizeof batches / sizeof *batches; i++)
    EXPECT(RUN(batches[i], BL_TYPE_F32, 0, BL_TYPE_F32, 0), BL_ERROR_INVALID_ARGUMENT, "m = ");
  for (i = 0; i < sizeof types / sizeof *types; i++) {
    EXPECT(RUN(1, types[i], 0, BL_TYPE_F32, 0), BL_ERROR_UNSUPPORTED, "");
    EXPECT(RUN(1, BL_TYPE_F32, 0, types[i], 0), BL_ERROR_UNSUPPORTED, "");
  }
  EXPECT(RUN(1, BL_TYPE_I32, 0, BL_TYPE_F32, 0), BL_ERROR_UNSUPPORTED, "x of type i32");
  EXPECT(RUN(1, BL_TYPE_F32, 0, BL_TYPE_I32, 0), BL_ERROR_UNSUPPORTED, "y of type i32");
  EXPECT(RUN(1, ANY(bl_type, 777), 0, BL_TYPE_F32, 0), BL_ERROR_UNSUPPORTED, "type 777");
  EXPECT(RUN(1, BL_TYPE_F32, 0, ANY(bl_type, 777), 0), BL_ERROR_UNSUPPORTED, "type 777");
  EXPECT(RUN(1, BL_TYPE_F32, 2047, BL_TYPE_F32, 0), BL_ERROR_INVALID_ARGUMENT, "row stride of x");
  EXPECT(RUN(1, BL_TYPE_F32, -2048, BL_TYPE_F32, 0), BL_ERROR_INVALID_ARGUMENT, "row stride of x");
  EXPECT(RUN(1, BL_TYPE_F16, 1023, BL_TYPE_F32, 0), BL_ERROR_INVALID_ARGUMENT, "row stride of x");
  EXPECT(RUN(1, BL_TYPE_F32, 0, BL_TYPE_F32, 255), BL_ERROR_INVALID_ARGUMENT, "row stride of y");
  EXPECT(RUN(1, BL_TYPE_F32, 0, BL_TYPE_F32, INT64_MIN), BL_ERROR_INVALID_ARGUMENT, "row stride of y");
  EXPECT(RUN(2, BL_TYPE_F32, INT64_MAX, BL_TYPE_F32, 0), BL_ERROR_INVALID_ARGUMENT, "address space");
  EXPECT(RUN(2, BL_TYPE_F32, 0, BL_TYPE_F32, INT64_MAX), BL_ERROR_INVALID_ARGUMENT, "address space");
  for (bit = BL_RUN_ACCUMULATE << 1; bit != 0; bit <<= 1) {
    options.flags = bit;
    EXPECT(bl_forward(layer, 1, x, BL_TYPE_F32, 0, y, BL_TYPE_F32, 0, &options, &error),
           BL_ERROR_INVALID_ARGUMENT, "flags");
  }
  for (i = 0; i < 2 * 64; i++) CHECK(y[i] == 7.0f); /* nothing was written */
  GOOD(RUN(1, BL_TYPE_F32, 2048, BL_TYPE_F32, 256));
  CHECK(y[0] == 0.0f && y[64] == 7.0f);
}

/* Calls on a GPU with what is wrong whether or not there is one. */
static void on_devices(void) {
  static float x[512], y[64];
  const bl_layer *layers[1];
  bl_layer *copy = NULL;
  void *ys[1];
  int64_t strides[1] = {255};
  STRUCT(bl_run_options, options);
  STRUCT(bl_layer_options, more);
  uint32_t bit;
  layers[0] = layer, ys[0] = y;
  CHECK(bl_layer_copy(layer, 1000, NULL, NULL, &copy, &error) != BL_OK && error.message[0] != 0 && copy == NULL);
  more.device = 1000;
  CHECK(bl_layer_open(model, WEIGHT, &more, &copy, &error) != BL_OK && error.message[0] != 0 && copy == NULL);
  more.device = 0;
  more.device_flags = 1;
  EXPECT(bl_layer_open(model, WEIGHT, &more, &copy, &error), BL_ERROR_INVALID_ARGUMENT, "device_flags");
#define ENQUEUE(count, m, xt, xs, yt, ystrides) \
  bl_forward_device(layers, count, m, x, xt, xs, ys, yt, ystrides, NULL, NULL, &error)
  EXPECT(ENQUEUE(0, 1, BL_TYPE_F32, 0, BL_TYPE_F32, NULL), BL_ERROR_INVALID_ARGUMENT, "0 layers");
  EXPECT(ENQUEUE(17, 1, BL_TYPE_F32, 0, BL_TYPE_F32, NULL), BL_ERROR_INVALID_ARGUMENT, "17 layers");
  EXPECT(ENQUEUE(1, -1, BL_TYPE_F32, 0, BL_TYPE_F32, NULL), BL_ERROR_INVALID_ARGUMENT, "m = ");
  EXPECT(ENQUEUE(1, 1, BL_TYPE_I32, 0, BL_TYPE_F32, NULL), BL_ERROR_UNSUPPORTED, "x of type i32");
  EXPECT(ENQUEUE(1, 1, BL_TYPE_F32, 0, BL_TYPE_I32, NULL), BL_ERROR_UNSUPPORTED, "y of type i32");
  EXPECT(ENQUEUE(1, 1, BL_TYPE_F32, 2047, BL_TYPE_F32, NULL), BL_ERROR_INVALID_ARGUMENT, "row stride of x");
  EXPECT(ENQUEUE(1, 1, BL_TYPE_F32, 0, BL_TYPE_F32, strides), BL_ERROR_INVALID_ARGUMENT, "CPU");
  EXPECT(ENQUEUE(1, 2, BL_TYPE_F32, INT64_MAX - 3, BL_TYPE_F32, NULL), BL_ERROR_INVALID_ARGUMENT, "address space");
  for (bit = BL_RUN_CHECK << 1; bit != 0; bit <<= 1) {
    options.flags = bit;
    EXPECT(bl_forward_device(layers, 1, 1, x, BL_TYPE_F32, 0, ys, BL_TYPE_F32, NULL, &options, NULL, &error),
           BL_ERROR_INVALID_ARGUMENT, "flags");
  }
}

static void running_many(void) {
  static const uint64_t counts[] = {0, 1u << 20, (uint64_t)-1};
  static float x[2 * 512], y[2][2 * 64];
  const bl_layer *layers[2];
  bl_layer *other;
  bl_context *context = NULL;
  bl_model *loaded = NULL;
  void *ys[2];
  int64_t strides[2] = {0, 255};
  STRUCT(bl_run_options, options);
  size_t i;
  uint32_t bit;
  layers[0] = layers[1] = layer;
  ys[0] = y[0], ys[1] = y[1];
#define MANY(m, xt, xs, yt, strides) \
  bl_forward_many(layers, 2, m, x, xt, xs, ys, yt, strides, NULL, &error)
  for (i = 0; i < 2 * 64; i++) y[0][i] = y[1][i] = 7;
  for (i = 0; i < sizeof counts / sizeof *counts; i++)
    EXPECT(bl_forward_many(layers, (size_t)counts[i], 1, x, BL_TYPE_F32, 0, ys, BL_TYPE_F32, NULL, NULL, &error),
           BL_ERROR_INVALID_ARGUMENT, "layers");
  EXPECT(MANY(-1, BL_TYPE_F32, 0, BL_TYPE_F32, NULL), BL_ERROR_INVALID_ARGUMENT, "m = ");
  EXPECT(MANY(INT64_MAX, BL_TYPE_F32, 0, BL_TYPE_F32, NULL), BL_ERROR_INVALID_ARGUMENT, "m = ");
  EXPECT(MANY(1, BL_TYPE_I32, 0, BL_TYPE_F32, NULL), BL_ERROR_UNSUPPORTED, "x of type i32");
  EXPECT(MANY(1, BL_TYPE_F32, 0, BL_TYPE_I32, NULL), BL_ERROR_UNSUPPORTED, "y of type i32");
  EXPECT(MANY(1, ANY(bl_type, 777), 0, BL_TYPE_F32, NULL), BL_ERROR_UNSUPPORTED, "type 777");
  EXPECT(MANY(1, BL_TYPE_F32, 0, ANY(bl_type, 777), NULL), BL_ERROR_UNSUPPORTED, "type 777");
  EXPECT(MANY(1, BL_TYPE_F32, 2047, BL_TYPE_F32, NULL), BL_ERROR_INVALID_ARGUMENT, "row stride of x");
  EXPECT(MANY(1, BL_TYPE_F32, 0, BL_TYPE_F32, strides), BL_ERROR_INVALID_ARGUMENT, "row stride of y");
  EXPECT(MANY(2, BL_TYPE_F32, INT64_MAX, BL_TYPE_F32, NULL), BL_ERROR_INVALID_ARGUMENT, "address space");
  strides[1] = INT64_MAX;
  EXPECT(MANY(2, BL_TYPE_F32, 0, BL_TYPE_F32, strides), BL_ERROR_INVALID_ARGUMENT, "address space");
  for (bit = BL_RUN_ACCUMULATE << 1; bit != 0; bit <<= 1) {
    options.flags = bit;
    EXPECT(bl_forward_many(layers, 2, 1, x, BL_TYPE_F32, 0, ys, BL_TYPE_F32, NULL, &options, &error),
           BL_ERROR_INVALID_ARGUMENT, "flags");
  }
  options.flags = 0;
  options.workspace = x;
  options.workspace_size = 1;
  EXPECT(bl_forward_many(layers, 2, 1, x, BL_TYPE_F32, 0, ys, BL_TYPE_F32, NULL, &options, &error),
         BL_ERROR_BUFFER_TOO_SMALL, "workspace");
  options.workspace_size = SIZE_MAX;
  EXPECT(bl_forward_many(layers, 2, 1, x, BL_TYPE_F32, 0, ys, BL_TYPE_F32, NULL, &options, &error),
         BL_ERROR_INVALID_ARGUMENT, "workspace_size");

  other = open_layer(model, "blk.0.f32.weight", BL_ACTIVATION_AUTO, NULL); /* floats beside int8: fine */
  layers[1] = other;
  GOOD(bl_forward_many(layers, 2, 0, x, BL_TYPE_F32, 0, ys, BL_TYPE_F32, NULL, NULL, &error));
  bl_free(other);
  other = large_layer(NULL, 64, 256);
  layers[1] = other;
  EXPECT(MANY(1, BL_TYPE_F32, 0, BL_TYPE_F32, NULL), BL_ERROR_INVALID_ARGUMENT, "layer 1 takes 256");
  bl_free(other);
  GOOD(bl_context_create(NULL, &context, &error));
  GOOD(bl_load(context, golden(ALL_TYPES), NULL, &loaded, &error));
  layers[1] = other = open_layer(loaded, WEIGHT, BL_ACTIVATION_AUTO, NULL);
  EXPECT(MANY(1, BL_TYPE_F32, 0, BL_TYPE_F32, NULL), BL_ERROR_INVALID_ARGUMENT, "another context");
  bl_free(other), bl_free(loaded), bl_free(context);
  for (i = 0; i < 2 * 64; i++) CHECK(y[0][i] == 7.0f && y[1][i] == 7.0f); /* nothing was written */
}

static void making(void) {
  static const float w[2 * 64] = {1.0f, -1.0f};
  static const float bad[2 * 64] = {HUGE_VALF};
  STRUCT(bl_layer_options, options);
  bl_layer *made = NULL;
#define CREATE(rows, columns, w, type, stride) \
  bl_layer_create(NULL, rows, columns, w, type, stride, &options, &made, &error)
  EXPECT(CREATE(0, 64, w, BL_TYPE_F32, 0), BL_ERROR_INVALID_ARGUMENT, "");
  EXPECT(CREATE(-1, 64, w, BL_TYPE_F32, 0), BL_ERROR_INVALID_ARGUMENT, "");
  EXPECT(CREATE(2, INT64_MIN, w, BL_TYPE_F32, 0), BL_ERROR_INVALID_ARGUMENT, "");
  EXPECT(CREATE(2, 64, w, ANY(bl_type, 777), 0), BL_ERROR_UNSUPPORTED, "777");
  EXPECT(CREATE(2, 64, w, BL_TYPE_F32, 255), BL_ERROR_INVALID_ARGUMENT, "stride");
  EXPECT(CREATE(2, 64, bad, BL_TYPE_F32, 0), BL_ERROR_INVALID_ARGUMENT, "0");
  CHECK(made == NULL);
  GOOD(CREATE(2, 64, w, BL_TYPE_F32, 0));
  EXPECT(bl_layer_update(made, w, ANY(bl_type, 777), 0, &error), BL_ERROR_UNSUPPORTED, "777");
  EXPECT(bl_layer_update(made, w, BL_TYPE_F32, 255, &error), BL_ERROR_INVALID_ARGUMENT, "stride");
  EXPECT(bl_layer_update(made, bad, BL_TYPE_F32, 0, &error), BL_ERROR_INVALID_ARGUMENT, "0");
  GOOD(bl_layer_update(made, w, BL_TYPE_F32, 0, &error));
  bl_free(made);
  made = NULL;
  { /* Codes that are none are the caller's: there is no file. */
    static const unsigned char codes[2 * 16] = {0x55, 0xff};
    static const float scale[1] = {1.0f};
    options.scales = scale, options.scale_count = 1;
    EXPECT(CREATE(2, 64, codes, BL_TYPE_TERNARY2, 0), BL_ERROR_INVALID_ARGUMENT, "ternary code 3");
    CHECK(made == NULL);
  }
}

static void saving(void) {
  EXPECT(bl_save("no/such/folder/file.bl", NULL, 0, NULL, 0, &error), BL_ERROR_IO, "no/such/folder");
}

static void converting(void) {
  static const float from[2 * 32] = {1.0f};
  static unsigned char to[128];
#define CONVERT(rows, columns, from_type, from_stride, to_type, to_stride) \
  bl_convert(NULL, rows, columns, from, from_type, from_stride, to, to_type, to_stride, &error)
  EXPECT(CONVERT(-1, 32, BL_TYPE_F32, 0, BL_TYPE_Q8_0, 0), BL_ERROR_INVALID_ARGUMENT, "0 to 2147483648");
  EXPECT(CONVERT(1, 32, BL_TYPE_AUTO, 0, BL_TYPE_Q8_0, 0), BL_ERROR_UNSUPPORTED, "BL_TYPE_AUTO");
  GOOD(CONVERT(0, 32, BL_TYPE_F32, 0, BL_TYPE_Q8_0, 0));
  EXPECT(CONVERT(1, -1, BL_TYPE_F32, 0, BL_TYPE_Q8_0, 0), BL_ERROR_INVALID_ARGUMENT, "");
  EXPECT(CONVERT(1, 32, ANY(bl_type, 777), 0, BL_TYPE_Q8_0, 0), BL_ERROR_UNSUPPORTED, "777");
  EXPECT(CONVERT(1, 32, BL_TYPE_F32, 0, ANY(bl_type, 777), 0), BL_ERROR_UNSUPPORTED, "777");
  EXPECT(CONVERT(2, 32, BL_TYPE_F32, 127, BL_TYPE_Q8_0, 0), BL_ERROR_INVALID_ARGUMENT, "stride");
  EXPECT(CONVERT(2, 32, BL_TYPE_F32, 0, BL_TYPE_Q8_0, 33), BL_ERROR_INVALID_ARGUMENT, "stride");
  GOOD(CONVERT(2, 32, BL_TYPE_F32, 0, BL_TYPE_Q8_0, 0));
}

static void rotating(void) {
  static float x[2 * 512];
  static const uint32_t blocks[] = {0, 1, 3, 48, 1024, 32768, 0x80000000u};
  size_t i;
#define ROTATE(rows, columns, type, stride, block, flags) \
  bl_rotate(rows, columns, x, type, stride, block, NULL, flags, &error)
  for (i = 0; i < sizeof blocks / sizeof *blocks; i++)
    EXPECT(ROTATE(1, 512, BL_TYPE_F32, 0, blocks[i], 0), BL_ERROR_INVALID_ARGUMENT, "");
  EXPECT(ROTATE(-1, 512, BL_TYPE_F32, 0, 64, 0), BL_ERROR_INVALID_ARGUMENT, "rows");
  EXPECT(ROTATE(1, -1, BL_TYPE_F32, 0, 64, 0), BL_ERROR_INVALID_ARGUMENT, "columns");
  EXPECT(ROTATE(1, INT64_MAX, BL_TYPE_F32, 0, 64, 0), BL_ERROR_INVALID_ARGUMENT, "columns");
  EXPECT(ROTATE(1, 512, BL_TYPE_I32, 0, 64, 0), BL_ERROR_UNSUPPORTED, "x of type i32");
  EXPECT(ROTATE(1, 512, ANY(bl_type, 777), 0, 64, 0), BL_ERROR_UNSUPPORTED, "type 777");
  EXPECT(ROTATE(1, 512, BL_TYPE_F32, 2047, 64, 0), BL_ERROR_INVALID_ARGUMENT, "row stride of x");
  EXPECT(ROTATE(2, 512, BL_TYPE_F32, INT64_MAX, 64, 0), BL_ERROR_INVALID_ARGUMENT, "address space");
  EXPECT(ROTATE(1, 512, BL_TYPE_F32, 0, 64, 2), BL_ERROR_INVALID_ARGUMENT, "flags 0x2");
  GOOD(ROTATE(2, 512, BL_TYPE_F32, 0, 64, BL_ROTATE_INVERSE));
}

static int stops(void *user, const bl_quantize_progress *progress) {
  return ++*(int *)user == 2 && progress->name != NULL;
}

static void quantizing(void) {
  static const char *const patterns[] = {"blk.0.f32"};
  static const float x[2 * 512] = {1.0f};
  bl_quantize_target target = {"f32", BL_TYPE_Q8_0, BL_RULE_USUAL, 0, 0, 0};
  STRUCT(bl_calibration_options, gather);
  STRUCT(bl_calibration_info, known);
  STRUCT(bl_model_difference_info, loss);
  STRUCT(bl_quantize_report, report);
  bl_calibration *calibration = NULL;
  bl_quantize_options wrong;
  int calls = 0;
#define QUANTIZE bl_model_quantize(model, "unwritten", &wrong, &report, &error)
#define WRONG(set, status, part) \
  memset(&wrong, 0, sizeof wrong), wrong.struct_size = sizeof wrong, wrong.type = BL_TYPE_Q8_0, \
      wrong.layers = BL_LAYERS_PATTERNS, wrong.patterns = patterns, wrong.pattern_count = 1; \
  set; \
  EXPECT(QUANTIZE, status, part)
  WRONG(wrong.struct_size = 4, BL_ERROR_INVALID_ARGUMENT, "struct_size");
  WRONG(wrong.container = 5, BL_ERROR_UNSUPPORTED, "kind 5");
  WRONG(wrong.type = ANY(bl_type, 777), BL_ERROR_UNSUPPORTED, "777");
  WRONG(wrong.type = BL_TYPE_IQ1_S, BL_ERROR_UNSUPPORTED, "iq1_s");
  WRONG(wrong.fallback = ANY(bl_type, 777), BL_ERROR_UNSUPPORTED, "777");
  WRONG(wrong.rest = BL_TYPE_Q8_0, BL_ERROR_INVALID_ARGUMENT, "rest");
  WRONG(wrong.layers = ANY(bl_layers, 9), BL_ERROR_UNSUPPORTED, "layers 9");
  WRONG(wrong.layers = BL_LAYERS_ALL, BL_ERROR_INVALID_ARGUMENT, "patterns");
  WRONG(wrong.pattern_count = 0, BL_ERROR_INVALID_ARGUMENT, "no pattern");
  WRONG(wrong.patterns = NULL, BL_ERROR_INVALID_ARGUMENT, "NULL");
  WRONG(wrong.rule = ANY(bl_rule, 9), BL_ERROR_UNSUPPORTED, "rule 9");
  WRONG(wrong.rule = BL_RULE_ABSMAX, BL_ERROR_INVALID_ARGUMENT, "search");
  WRONG((wrong.rule = BL_RULE_ABSMAX, wrong.flags = BL_QUANTIZE_FIXED), BL_ERROR_INVALID_ARGUMENT, "rule");
  WRONG(wrong.flags = 8, BL_ERROR_INVALID_ARGUMENT, "flags 0x8");
  WRONG(wrong.flags = BL_QUANTIZE_COMPENSATE, BL_ERROR_INVALID_ARGUMENT, "calibration");
  WRONG(wrong.group_size = -1, BL_ERROR_INVALID_ARGUMENT, "group_size");
  WRONG(wrong.group_size = 32, BL_ERROR_INVALID_ARGUMENT, "group_size 32");
  WRONG(wrong.bases = 2, BL_ERROR_INVALID_ARGUMENT, "2 bases");
  WRONG(wrong.rotation_block = 48, BL_ERROR_INVALID_ARGUMENT, "rotation block 48");
  WRONG(wrong.rotation_seed = 1, BL_ERROR_INVALID_ARGUMENT, "rotation_block");
  WRONG((wrong.targets = &target, wrong.target_count = 1, target.reserved = 1), BL_ERROR_INVALID_ARGUMENT, "reserved");
  target.reserved = 0;
  WRONG(wrong.target_count = 1, BL_ERROR_INVALID_ARGUMENT, "NULL");
  WRONG(wrong.text_count = 1, BL_ERROR_INVALID_ARGUMENT, "NULL");
  WRONG(wrong.calibration = (const bl_calibration *)(const void *)model, BL_ERROR_INVALID_HANDLE, "calibration");
  WRONG(wrong.damping = 1.0f, BL_ERROR_INVALID_ARGUMENT, "damping");
  WRONG(wrong.reserved = 1, BL_ERROR_INVALID_ARGUMENT, "reserved");
  WRONG(wrong.memory = 1, BL_ERROR_OUT_OF_MEMORY, "allowed");
  WRONG((wrong.progress = stops, wrong.progress_user = &calls), BL_ERROR_CANCELLED, "stopped before");
  CHECK(calls == 2);
  EXPECT(bl_model_quantize(model, "no/such/folder/file", &wrong, NULL, &error), BL_ERROR_IO, "no/such/folder");

  gather.struct_size = 4;
  EXPECT(bl_calibration_create(NULL, &gather, &calibration, &error), BL_ERROR_INVALID_ARGUMENT, "struct_size");
  gather.struct_size = sizeof gather, gather.memory = 100000, gather.samples = 1;
  GOOD(bl_calibration_create(NULL, &gather, &calibration, &error));
#define CALIBRATE(name, rows, columns, type, stride) \
  bl_calibrate(calibration, name, rows, columns, x, type, stride, &error)
  EXPECT(CALIBRATE("", 1, 64, BL_TYPE_F32, 0), BL_ERROR_INVALID_ARGUMENT, "name");
  EXPECT(CALIBRATE("a", -1, 64, BL_TYPE_F32, 0), BL_ERROR_INVALID_ARGUMENT, "rows");
  EXPECT(CALIBRATE("a", 1, 0, BL_TYPE_F32, 0), BL_ERROR_INVALID_ARGUMENT, "columns");
  EXPECT(CALIBRATE("a", 1, 64, BL_TYPE_I32, 0), BL_ERROR_UNSUPPORTED, "i32");
  EXPECT(CALIBRATE("a", 1, 64, BL_TYPE_F32, 255), BL_ERROR_INVALID_ARGUMENT, "stride");
  EXPECT(CALIBRATE("a", 1, 512, BL_TYPE_F32, 0), BL_ERROR_OUT_OF_MEMORY, "allowed");
  GOOD(CALIBRATE("a", 2, 64, BL_TYPE_F32, 0));
  EXPECT(CALIBRATE("a.weight", 1, 32, BL_TYPE_F32, 0), BL_ERROR_INVALID_ARGUMENT, "after rows of 64");
  GOOD(bl_calibration_describe(calibration, "a.weight", &known, &error));
  CHECK(known.samples == 1 && known.in_features == 64 && known.layers == 1);
  EXPECT(bl_calibration_describe(calibration, "b", &known, &error), BL_ERROR_NOT_FOUND, "\"b\"");
  EXPECT(bl_calibration_save(calibration, "no/such/folder/file", &error), BL_ERROR_IO, "no/such/folder");
  bl_free(calibration);
  EXPECT(bl_calibration_open(NULL, "no/such/folder/file", &calibration, &error), BL_ERROR_IO, "no/such/folder");
  CHECK(calibration == NULL);

  EXPECT(bl_model_compare(model, model, "no such layer", &loss, &error), BL_ERROR_NOT_FOUND, "no such layer");
  GOOD(bl_model_compare(model, model, "blk.0.q4_0", &loss, &error));
  CHECK(loss.weights == 64 * 512 && loss.max_error == 0.0 && loss.cosine > 0.999999 && loss.compression == 1.0);
}

int main(int count, char **words) {
  start(count, words);
  model = open_model(ALL_TYPES);
  layer = open_layer(model, WEIGHT, BL_ACTIVATION_AUTO, NULL);
  types();
  contexts();
  diagnostics();
  loading();
  models();
  layers();
  opening();
  reading();
  planning();
  running();
  running_many();
  on_devices();
  making();
  saving();
  converting();
  rotating();
  quantizing();
  bl_free(model), bl_free(layer);
  return done();
}
