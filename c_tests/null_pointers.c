/* Every function with NULL for each of its pointers: a status and a text, or nothing. */
#include "layers.h"

static bl_context *context;
static bl_model *model;
static bl_layer *layer;

static void contexts(void) {
  bl_context *made = NULL;
  GOOD(bl_context_create(NULL, &made, &error));
  bl_free(made);
  CHECK(bl_context_create(NULL, &made, NULL) == BL_OK);
  bl_free(made);
  EXPECT(bl_context_create(NULL, NULL, &error), BL_ERROR_INVALID_ARGUMENT, "`out`");
  CHECK(bl_context_create(NULL, NULL, NULL) == BL_ERROR_INVALID_ARGUMENT);
  bl_free(NULL);
}

static void diagnostics(void) {
  STRUCT(bl_memory_info, held);
  STRUCT(bl_device_info, device);
  bl_profile_entry entry;
  size_t counted = 7;
  GOOD(bl_memory(NULL, &held, &error)); /* the default context */
  EXPECT(bl_memory(context, NULL, &error), BL_ERROR_INVALID_ARGUMENT, "bl_memory_info");
  CHECK(bl_memory(NULL, NULL, NULL) == BL_ERROR_INVALID_ARGUMENT);

  GOOD(bl_device_describe(NULL, 0, &device, &error));
  CHECK(device.name != NULL && device.features != NULL && device.compute_units > 0);
  EXPECT(bl_device_describe(context, 0, NULL, &error), BL_ERROR_INVALID_ARGUMENT, "bl_device_info");
  CHECK(bl_device_describe(NULL, 0, NULL, NULL) == BL_ERROR_INVALID_ARGUMENT);

  EXPECT(bl_profile(context, &entry, 1, NULL, 0, &error), BL_ERROR_INVALID_ARGUMENT, "count");
  EXPECT(bl_profile(context, NULL, 1, &counted, 0, &error), BL_ERROR_INVALID_ARGUMENT, "");
  CHECK(counted == 0); /* zeroed first */
  CHECK(bl_profile(NULL, NULL, 0, NULL, 0, NULL) == BL_ERROR_INVALID_ARGUMENT);
}

static void types(void) {
  EXPECT(bl_type_describe(BL_TYPE_F32, NULL, &error), BL_ERROR_INVALID_ARGUMENT, "bl_type_info");
  CHECK(bl_type_describe(BL_TYPE_F32, NULL, NULL) == BL_ERROR_INVALID_ARGUMENT);
}

static void loading(void) {
  static const unsigned char byte[1] = {0};
  bl_model *made;
  GOOD(bl_load(NULL, golden(ALL_TYPES), NULL, &made, &error));
  bl_free(made);
  CHECK(bl_load(context, golden(ALL_TYPES), NULL, &made, NULL) == BL_OK);
  bl_free(made);
  made = (bl_model *)(void *)&made;
  EXPECT(bl_load(context, NULL, NULL, &made, &error), BL_ERROR_INVALID_ARGUMENT, "path");
  CHECK(made == NULL);
  EXPECT(bl_load(context, golden(ALL_TYPES), NULL, NULL, &error), BL_ERROR_INVALID_ARGUMENT, "`out`");
  CHECK(bl_load(NULL, NULL, NULL, NULL, NULL) == BL_ERROR_INVALID_ARGUMENT);

  made = (bl_model *)(void *)&made;
  EXPECT(bl_load_memory(context, NULL, 8, NULL, &made, &error), BL_ERROR_INVALID_ARGUMENT, "NULL");
  CHECK(made == NULL);
  EXPECT(bl_load_memory(context, NULL, 0, NULL, &made, &error), BL_ERROR_BAD_FILE, "empty");
  EXPECT(bl_load_memory(context, byte, 1, NULL, NULL, &error), BL_ERROR_INVALID_ARGUMENT, "`out`");
  CHECK(bl_load_memory(NULL, NULL, 0, NULL, NULL, NULL) == BL_ERROR_INVALID_ARGUMENT);
}

static void models(void) {
  STRUCT(bl_model_info, info);
  STRUCT(bl_tensor_info, tensor);
  STRUCT(bl_model_layer_info, listed);
  STRUCT(bl_meta_info, meta);
  EXPECT(bl_model_describe(NULL, &info, &error), BL_ERROR_INVALID_HANDLE, "NULL");
  EXPECT(bl_model_describe(model, NULL, &error), BL_ERROR_INVALID_ARGUMENT, "bl_model_info");
  CHECK(bl_model_describe(NULL, NULL, NULL) != BL_OK);
  CHECK(bl_model_describe(model, &info, NULL) == BL_OK);

  GOOD(bl_model_tensor(model, NULL, 0, &tensor, &error)); /* by index */
  EXPECT(bl_model_tensor(NULL, "x", 0, &tensor, &error), BL_ERROR_INVALID_HANDLE, "NULL");
  CHECK(tensor.name == NULL && tensor.data == NULL);
  EXPECT(bl_model_tensor(model, "x", 0, NULL, &error), BL_ERROR_INVALID_ARGUMENT, "bl_tensor_info");
  CHECK(bl_model_tensor(NULL, NULL, 0, NULL, NULL) != BL_OK);

  GOOD(bl_model_layer(model, NULL, 0, &listed, &error)); /* by index */
  EXPECT(bl_model_layer(NULL, "x", 0, &listed, &error), BL_ERROR_INVALID_HANDLE, "NULL");
  CHECK(listed.name == NULL && listed.weight == NULL);
  EXPECT(bl_model_layer(model, "x", 0, NULL, &error), BL_ERROR_INVALID_ARGUMENT, "bl_model_layer_info");
  CHECK(bl_model_layer(NULL, NULL, 0, NULL, NULL) != BL_OK);

  GOOD(bl_model_meta(model, NULL, 0, &meta, &error));
  EXPECT(bl_model_meta(NULL, "x", 0, &meta, &error), BL_ERROR_INVALID_HANDLE, "NULL");
  EXPECT(bl_model_meta(model, "x", 0, NULL, &error), BL_ERROR_INVALID_ARGUMENT, "bl_meta_info");
  CHECK(bl_model_meta(NULL, NULL, 0, NULL, NULL) != BL_OK);

  GOOD(bl_model_layer(model, NULL, 0, &listed, &error));
  EXPECT(bl_model_layer(NULL, "x", 0, &listed, &error), BL_ERROR_INVALID_HANDLE, "NULL");
  CHECK(listed.name == NULL && listed.weight == NULL);
  EXPECT(bl_model_layer(model, "x", 0, NULL, &error), BL_ERROR_INVALID_ARGUMENT, "bl_model_layer_info");
  CHECK(bl_model_layer(NULL, NULL, 0, NULL, NULL) != BL_OK);

  EXPECT(bl_model_meta_item(NULL, "x", 0, &meta, &error), BL_ERROR_INVALID_HANDLE, "NULL");
  EXPECT(bl_model_meta_item(model, NULL, 0, &meta, &error), BL_ERROR_INVALID_ARGUMENT, "key");
  EXPECT(bl_model_meta_item(model, "x", 0, NULL, &error), BL_ERROR_INVALID_ARGUMENT, "bl_meta_info");
  CHECK(bl_model_meta_item(NULL, NULL, 0, NULL, NULL) != BL_OK);
}

static void layers(void) {
  bl_layer *made = (bl_layer *)(void *)&made;
  STRUCT(bl_layer_info, info);
  float row[512];
  EXPECT(bl_layer_open(NULL, "x", NULL, &made, &error), BL_ERROR_INVALID_HANDLE, "NULL");
  CHECK(made == NULL);
  EXPECT(bl_layer_open(model, NULL, NULL, &made, &error), BL_ERROR_INVALID_ARGUMENT, "name");
  EXPECT(bl_layer_open(model, "blk.0.q4_0.weight", NULL, NULL, &error), BL_ERROR_INVALID_ARGUMENT, "`out`");
  CHECK(bl_layer_open(NULL, NULL, NULL, NULL, NULL) != BL_OK);
  CHECK(bl_layer_open(model, "blk.0.q4_0.weight", NULL, &made, NULL) == BL_OK);
  bl_free(made);

  EXPECT(bl_layer_describe(NULL, &info, &error), BL_ERROR_INVALID_HANDLE, "NULL");
  EXPECT(bl_layer_describe(layer, NULL, &error), BL_ERROR_INVALID_ARGUMENT, "bl_layer_info");
  CHECK(bl_layer_describe(NULL, NULL, NULL) != BL_OK);

  EXPECT(bl_layer_read(NULL, 0, 1, row, BL_TYPE_F32, 0, &error), BL_ERROR_INVALID_HANDLE, "NULL");
  EXPECT(bl_layer_read(layer, 0, 1, NULL, BL_TYPE_F32, 0, &error), BL_ERROR_INVALID_ARGUMENT, "dst");
  GOOD(bl_layer_read(layer, 0, 0, NULL, BL_TYPE_F32, 0, &error)); /* nothing to write */
  CHECK(bl_layer_read(layer, 0, 1, row, BL_TYPE_F32, 0, NULL) == BL_OK);
  CHECK(bl_layer_read(NULL, 0, 1, NULL, BL_TYPE_F32, 0, NULL) != BL_OK);
}

static void running(void) {
  STRUCT(bl_plan_info, plan);
  STRUCT(bl_run_options, options);
  static float x[512], y[64];
  EXPECT(bl_plan(NULL, BL_OP_FORWARD, 1, BL_TYPE_F32, &plan, &error), BL_ERROR_INVALID_HANDLE, "NULL");
  EXPECT(bl_plan(layer, BL_OP_FORWARD, 1, BL_TYPE_F32, NULL, &error), BL_ERROR_INVALID_ARGUMENT,
         "bl_plan_info");
  CHECK(bl_plan(NULL, BL_OP_FORWARD, 1, BL_TYPE_F32, NULL, NULL) != BL_OK);

#define FORWARD(layer, m, x, y, options, error) \
  bl_forward(layer, m, x, BL_TYPE_F32, 0, y, BL_TYPE_F32, 0, options, error)
  EXPECT(FORWARD(NULL, 1, x, y, NULL, &error), BL_ERROR_INVALID_HANDLE, "NULL");
  EXPECT(FORWARD(layer, 1, NULL, y, NULL, &error), BL_ERROR_INVALID_ARGUMENT, "x is NULL");
  EXPECT(FORWARD(layer, 1, x, NULL, NULL, &error), BL_ERROR_INVALID_ARGUMENT, "y is NULL");
  CHECK(FORWARD(layer, 1, x, y, NULL, NULL) == BL_OK);
  CHECK(FORWARD(layer, 0, NULL, NULL, NULL, NULL) == BL_OK); /* no rows */
  GOOD(FORWARD(layer, 1, x, y, &options, &error));           /* workspace NULL, size 0 */
  options.workspace_size = 64;
  EXPECT(FORWARD(layer, 1, x, y, &options, &error), BL_ERROR_INVALID_ARGUMENT, "workspace is NULL");
  CHECK(FORWARD(NULL, 1, NULL, NULL, NULL, NULL) == BL_ERROR_INVALID_HANDLE);
}

static void running_many(void) {
  static float x[512], y[2][64];
  const bl_layer *layers[2], *holes[2];
  void *ys[2], *no_ys[2];
  int64_t strides[2] = {0, 0};
  STRUCT(bl_run_options, options);
  layers[0] = layers[1] = layer;
  holes[0] = layer, holes[1] = NULL;
  ys[0] = y[0], ys[1] = y[1];
  no_ys[0] = y[0], no_ys[1] = NULL;
#define MANY(layers, m, x, ys, strides, options, error) \
  bl_forward_many(layers, 2, m, x, BL_TYPE_F32, 0, ys, BL_TYPE_F32, strides, options, error)
  GOOD(MANY(layers, 1, x, ys, NULL, NULL, &error));
  GOOD(MANY(layers, 1, x, ys, strides, &options, &error));
  CHECK(MANY(layers, 1, x, ys, NULL, NULL, NULL) == BL_OK);
  CHECK(MANY(layers, 0, NULL, no_ys, NULL, NULL, NULL) == BL_OK); /* no rows */
  EXPECT(MANY(NULL, 1, x, ys, NULL, NULL, &error), BL_ERROR_INVALID_ARGUMENT, "layers is NULL");
  EXPECT(MANY(holes, 1, x, ys, NULL, NULL, &error), BL_ERROR_INVALID_HANDLE, "NULL");
  EXPECT(MANY(layers, 1, NULL, ys, NULL, NULL, &error), BL_ERROR_INVALID_ARGUMENT, "x is NULL");
  EXPECT(MANY(layers, 1, x, NULL, NULL, NULL, &error), BL_ERROR_INVALID_ARGUMENT, "ys is NULL");
  EXPECT(MANY(layers, 1, x, no_ys, NULL, NULL, &error), BL_ERROR_INVALID_ARGUMENT, "y is NULL");
  options.workspace_size = 64;
  EXPECT(MANY(layers, 1, x, ys, NULL, &options, &error), BL_ERROR_INVALID_ARGUMENT, "workspace is NULL");
  CHECK(MANY(NULL, 1, NULL, NULL, NULL, NULL, NULL) == BL_ERROR_INVALID_ARGUMENT);
}

/* On a device: what is NULL is found before a device is looked for. */
static void on_devices(void) {
  static float x[512], y[64];
  const bl_layer *layers[1], *hole[1];
  void *ys[1];
  size_t size = 0;
  bl_layer *copy = NULL;
  layers[0] = layer, hole[0] = NULL, ys[0] = y;
  EXPECT(bl_layer_copy(NULL, 0, NULL, NULL, &copy, &error), BL_ERROR_INVALID_HANDLE, "NULL");
  EXPECT(bl_layer_copy(layer, 0, NULL, NULL, NULL, &error), BL_ERROR_INVALID_ARGUMENT, "`out`");
  EXPECT(bl_layer_copy(layer, 0, y, NULL, &copy, &error), BL_ERROR_INVALID_ARGUMENT, "memory");
  EXPECT(bl_layer_copy(layer, 0, NULL, &size, &copy, &error), BL_ERROR_INVALID_ARGUMENT, "memory");
  EXPECT(bl_layer_copy(layer, 1, y, NULL, &copy, &error), BL_ERROR_INVALID_ARGUMENT, "memory_size is NULL");
  CHECK(bl_layer_copy(NULL, 0, NULL, NULL, NULL, NULL) != BL_OK && copy == NULL);
  GOOD(bl_layer_copy(layer, 0, NULL, NULL, &copy, &error)); /* the CPU is always there */
  bl_free(copy);
#define ENQUEUE(layers, m, x, ys, error) \
  bl_forward_device(layers, 1, m, x, BL_TYPE_F32, 0, ys, BL_TYPE_F32, NULL, NULL, NULL, error)
  EXPECT(ENQUEUE(NULL, 1, x, ys, &error), BL_ERROR_INVALID_ARGUMENT, "layers is NULL");
  EXPECT(ENQUEUE(hole, 1, x, ys, &error), BL_ERROR_INVALID_HANDLE, "NULL");
  EXPECT(ENQUEUE(layers, 1, x, NULL, &error), BL_ERROR_INVALID_ARGUMENT, "ys is NULL");
  EXPECT(ENQUEUE(layers, 1, NULL, ys, &error), BL_ERROR_INVALID_ARGUMENT, "CPU");
  EXPECT(ENQUEUE(layers, 1, x, ys, &error), BL_ERROR_INVALID_ARGUMENT, "CPU");
  CHECK(ENQUEUE(NULL, 1, NULL, NULL, NULL) == BL_ERROR_INVALID_ARGUMENT);
}

static void making(void) {
  static const float w[2 * 64] = {1.0f, -1.0f};
  bl_layer *made = NULL;
#define CREATE(w, options, out, error) \
  bl_layer_create(NULL, 2, 64, w, BL_TYPE_F32, 0, options, out, error)
  GOOD(CREATE(w, NULL, &made, &error)); /* the default options */
  GOOD(bl_layer_update(made, w, BL_TYPE_F32, 0, &error));
  EXPECT(bl_layer_update(made, NULL, BL_TYPE_F32, 0, &error), BL_ERROR_INVALID_ARGUMENT, "NULL");
  EXPECT(bl_layer_update(NULL, w, BL_TYPE_F32, 0, &error), BL_ERROR_INVALID_HANDLE, "NULL");
  CHECK(bl_layer_update(NULL, NULL, BL_TYPE_F32, 0, NULL) == BL_ERROR_INVALID_HANDLE);
  bl_free(made);
  EXPECT(CREATE(NULL, NULL, &made, &error), BL_ERROR_INVALID_ARGUMENT, "NULL");
  CHECK(made == NULL);
  EXPECT(CREATE(w, NULL, NULL, &error), BL_ERROR_INVALID_ARGUMENT, "NULL");
  CHECK(CREATE(NULL, NULL, NULL, NULL) == BL_ERROR_INVALID_ARGUMENT);
}

static void saving(void) {
  bl_named_layer named;
  named.name = "a", named.layer = NULL;
  EXPECT(bl_save(NULL, NULL, 0, NULL, 0, &error), BL_ERROR_INVALID_ARGUMENT, "path is NULL");
  EXPECT(bl_save("unwritten.bl", NULL, 1, NULL, 0, &error), BL_ERROR_INVALID_ARGUMENT, "NULL");
  EXPECT(bl_save("unwritten.bl", &named, 1, NULL, 0, &error), BL_ERROR_INVALID_HANDLE, "NULL");
  CHECK(bl_save(NULL, NULL, 0, NULL, 0, NULL) == BL_ERROR_INVALID_ARGUMENT);
}

static void converting(void) {
  static const float from[32] = {1.0f};
  static unsigned char to[64];
#define CONVERT(src, dst, error) \
  bl_convert(NULL, 1, 32, src, BL_TYPE_F32, 0, dst, BL_TYPE_Q8_0, 0, error)
  GOOD(CONVERT(from, to, &error));
  EXPECT(CONVERT(NULL, to, &error), BL_ERROR_INVALID_ARGUMENT, "NULL");
  EXPECT(CONVERT(from, NULL, &error), BL_ERROR_INVALID_ARGUMENT, "NULL");
  CHECK(CONVERT(NULL, NULL, NULL) == BL_ERROR_INVALID_ARGUMENT);
}

static void rotating(void) {
  static float x[64], signs[64];
  GOOD(bl_rotate(1, 64, x, BL_TYPE_F32, 0, 64, NULL, 0, &error)); /* all signs are + */
  EXPECT(bl_rotate(1, 64, NULL, BL_TYPE_F32, 0, 64, NULL, 0, &error), BL_ERROR_INVALID_ARGUMENT, "x is NULL");
  EXPECT(bl_rotate(1, 64, x, BL_TYPE_F32, 0, 64, signs, 0, &error), BL_ERROR_INVALID_ARGUMENT, "sign");
  CHECK(bl_rotate(0, 64, NULL, BL_TYPE_F32, 0, 64, NULL, 0, NULL) == BL_OK);
  CHECK(bl_rotate(1, 64, NULL, BL_TYPE_F32, 0, 64, NULL, 0, NULL) == BL_ERROR_INVALID_ARGUMENT);
}

static void quantizing(void) {
  bl_calibration *made = (bl_calibration *)(void *)&made, *known = NULL;
  STRUCT(bl_calibration_info, info);
  STRUCT(bl_model_difference_info, loss);
  static const float x[4] = {1.0f};
  EXPECT(bl_calibration_create(NULL, NULL, NULL, &error), BL_ERROR_INVALID_ARGUMENT, "`out`");
  CHECK(bl_calibration_create(NULL, NULL, NULL, NULL) == BL_ERROR_INVALID_ARGUMENT);
  GOOD(bl_calibration_create(NULL, NULL, &known, &error));
  EXPECT(bl_calibration_open(NULL, NULL, &made, &error), BL_ERROR_INVALID_ARGUMENT, "path");
  CHECK(made == NULL);
  EXPECT(bl_calibration_open(NULL, "nowhere", NULL, &error), BL_ERROR_INVALID_ARGUMENT, "`out`");
  CHECK(bl_calibration_open(NULL, NULL, NULL, NULL) == BL_ERROR_INVALID_ARGUMENT);
  EXPECT(bl_calibration_save(NULL, "unwritten", &error), BL_ERROR_INVALID_HANDLE, "NULL");
  EXPECT(bl_calibration_save(known, NULL, &error), BL_ERROR_INVALID_ARGUMENT, "path");
  CHECK(bl_calibration_save(NULL, NULL, NULL) == BL_ERROR_INVALID_HANDLE);

  EXPECT(bl_calibrate(NULL, "a", 1, 4, x, BL_TYPE_F32, 0, &error), BL_ERROR_INVALID_HANDLE, "NULL");
  EXPECT(bl_calibrate(known, NULL, 1, 4, x, BL_TYPE_F32, 0, &error), BL_ERROR_INVALID_ARGUMENT, "name");
  EXPECT(bl_calibrate(known, "a", 1, 4, NULL, BL_TYPE_F32, 0, &error), BL_ERROR_INVALID_ARGUMENT, "x is NULL");
  GOOD(bl_calibrate(known, "a", 0, 4, NULL, BL_TYPE_F32, 0, &error)); /* nothing to read */
  CHECK(bl_calibrate(known, "a", 1, 4, x, BL_TYPE_F32, 0, NULL) == BL_OK);
  CHECK(bl_calibrate(NULL, NULL, 1, 4, NULL, BL_TYPE_F32, 0, NULL) == BL_ERROR_INVALID_HANDLE);

  GOOD(bl_calibration_describe(known, NULL, &info, &error)); /* how many layers */
  CHECK(info.layers == 1);
  EXPECT(bl_calibration_describe(NULL, "a", &info, &error), BL_ERROR_INVALID_HANDLE, "NULL");
  EXPECT(bl_calibration_describe(known, "a", NULL, &error), BL_ERROR_INVALID_ARGUMENT, "bl_calibration_info");
  CHECK(bl_calibration_describe(NULL, NULL, NULL, NULL) != BL_OK);

  EXPECT(bl_model_quantize(NULL, "unwritten", NULL, NULL, &error), BL_ERROR_INVALID_HANDLE, "NULL");
  EXPECT(bl_model_quantize(model, NULL, NULL, NULL, &error), BL_ERROR_INVALID_ARGUMENT, "path");
  CHECK(bl_model_quantize(NULL, NULL, NULL, NULL, NULL) != BL_OK);

  EXPECT(bl_model_compare(NULL, model, "x", &loss, &error), BL_ERROR_INVALID_HANDLE, "NULL");
  EXPECT(bl_model_compare(model, NULL, "x", &loss, &error), BL_ERROR_INVALID_HANDLE, "NULL");
  EXPECT(bl_model_compare(model, model, NULL, &loss, &error), BL_ERROR_INVALID_ARGUMENT, "name");
  EXPECT(bl_model_compare(model, model, "x", NULL, &error), BL_ERROR_INVALID_ARGUMENT, "bl_model_difference_info");
  CHECK(bl_model_compare(NULL, NULL, NULL, NULL, NULL) != BL_OK);
  bl_free(known);
}

int main(int count, char **words) {
  start(count, words);
  CHECK(bl_version() != 0 && bl_build_info() != NULL && bl_status_name(BL_OK) != NULL);
  GOOD(bl_context_create(NULL, &context, &error));
  GOOD(bl_load(context, golden(ALL_TYPES), NULL, &model, &error));
  layer = open_layer(model, "blk.0.q4_0.weight", BL_ACTIVATION_AUTO, NULL);
  contexts();
  diagnostics();
  types();
  loading();
  models();
  layers();
  running();
  running_many();
  on_devices();
  making();
  saving();
  converting();
  rotating();
  quantizing();
  bl_free(context);
  bl_free(model);
  bl_free(layer);
  return done();
}
