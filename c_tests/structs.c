/* struct_size: forgotten, too small, of an older header, of a newer one. */
#include "layers.h"

/* Room for a struct of a header with more fields, and what follows it. */
typedef struct {
  union {
    uint32_t struct_size;
    unsigned char bytes[512];
    double align;
  } u;
} wide;

/* Each struct that begins with struct_size, and a call that takes it. */
static bl_context *context;
static bl_model *model;
static bl_layer *layer;

static bl_status context_options(void *s) {
  bl_context *made = NULL;
  bl_status status = bl_context_create((const bl_context_options *)s, &made, &error);
  bl_free(made);
  return status;
}
static bl_status load_options(void *s) {
  bl_model *made = NULL;
  bl_status status = bl_load(context, golden("cortex.safetensors"), (const bl_load_options *)s, &made, &error);
  bl_free(made);
  return status;
}
static bl_status load_memory_options(void *s) {
  bl_model *made = NULL;
  bl_status status =
      bl_load_memory(context, "\2\0\0\0\0\0\0\0{}", 10, (const bl_load_options *)s, &made, &error);
  bl_free(made);
  return status;
}
static bl_status layer_options(void *s) {
  bl_layer *made = NULL;
  bl_status status = bl_layer_open(model, "blk.0.q4_0.weight", (const bl_layer_options *)s, &made, &error);
  bl_free(made);
  return status;
}
static bl_status run_options(void *s) {
  static float x[512], y[64];
  return bl_forward(layer, 1, x, BL_TYPE_F32, 0, y, BL_TYPE_F32, 0, (const bl_run_options *)s, &error);
}
static bl_status type_info(void *s) { return bl_type_describe(BL_TYPE_Q4_K, (bl_type_info *)s, &error); }
static bl_status model_info(void *s) { return bl_model_describe(model, (bl_model_info *)s, &error); }
static bl_status tensor_info(void *s) { return bl_model_tensor(model, NULL, 1, (bl_tensor_info *)s, &error); }
static bl_status layer_listed(void *s) {
  return bl_model_layer(model, NULL, 1, (bl_model_layer_info *)s, &error);
}
static bl_status meta_info(void *s) { return bl_model_meta(model, NULL, 1, (bl_meta_info *)s, &error); }
static bl_status meta_item(void *s) {
  return bl_model_meta_item(model, "t.arr_i32", 1, (bl_meta_info *)s, &error);
}
static bl_status about_layer(void *s) { return bl_layer_describe(layer, (bl_layer_info *)s, &error); }
static bl_status memory_info(void *s) { return bl_memory(context, (bl_memory_info *)s, &error); }
static bl_status device_info(void *s) {
  bl_status status = bl_device_describe(context, 0, (bl_device_info *)s, &error);
  uint32_t size;
  memcpy(&size, s, 4);
  if (status == BL_OK && size > 16) memset((char *)s + 16, 0, size < 24 ? size - 16 : 8); /* memory_free changes */
  return status;
}
static bl_status plan_info(void *s) {
  return bl_plan(layer, BL_OP_FORWARD, 1, BL_TYPE_F32, (bl_plan_info *)s, &error);
}

typedef struct {
  const char *name;
  size_t size;
  bl_status (*call)(void *);
} case_of;

static const case_of options[] = {
    {"bl_context_options", sizeof(bl_context_options), context_options},
    {"bl_load_options", sizeof(bl_load_options), load_options},
    {"bl_load_options", sizeof(bl_load_options), load_memory_options},
    {"bl_layer_options", sizeof(bl_layer_options), layer_options},
    {"bl_run_options", sizeof(bl_run_options), run_options},
};
static const case_of infos[] = {
    {"bl_type_info", sizeof(bl_type_info), type_info},
    {"bl_model_info", sizeof(bl_model_info), model_info},
    {"bl_tensor_info", sizeof(bl_tensor_info), tensor_info},
    {"bl_model_layer_info", sizeof(bl_model_layer_info), layer_listed},
    {"bl_meta_info", sizeof(bl_meta_info), meta_info},
    {"bl_meta_info", sizeof(bl_meta_info), meta_item},
    {"bl_layer_info", sizeof(bl_layer_info), about_layer},
    {"bl_memory_info", sizeof(bl_memory_info), memory_info},
    {"bl_device_info", sizeof(bl_device_info), device_info},
    {"bl_plan_info", sizeof(bl_plan_info), plan_info},
};

/* Sizes that are none: nothing is read or written beyond the first four bytes. */
static void wrong_sizes(const case_of *c) {
  static const uint32_t wrong[] = {0, 1, 3, 4, 7, 4097, 65536, 0x80000000u, 0xffffffffu};
  size_t i, k;
  wide w;
  for (i = 0; i < sizeof wrong / sizeof *wrong; i++) {
    char text[64];
    memset(&w, 0xa5, sizeof w);
    w.u.struct_size = wrong[i];
    snprintf(text, sizeof text, "%s.struct_size is %lu", c->name, (unsigned long)wrong[i]);
    EXPECT(c->call(&w), BL_ERROR_INVALID_ARGUMENT, text);
    for (k = 4; k < sizeof w; k++) CHECK(w.u.bytes[k] == 0xa5);
  }
}

static void options_of_other_headers(const case_of *c) {
  char text[64];
  size_t i;
  wide w;
  wrong_sizes(c);
  for (i = 8; i <= c->size; i += 4) { /* older: the rest is default, whatever lies there */
    memset(&w, 0, c->size);
    memset(w.u.bytes + i, 0xa5, sizeof w - i);
    w.u.struct_size = (uint32_t)i;
    GOOD(c->call(&w));
  }
  memset(&w, 0, sizeof w); /* newer, its own fields unused */
  w.u.struct_size = sizeof w;
  GOOD(c->call(&w));
  for (i = c->size; i < sizeof w; i += 37) { /* newer, one of its fields used */
    memset(&w, 0, sizeof w);
    w.u.struct_size = sizeof w;
    w.u.bytes[i] = 1;
    snprintf(text, sizeof text, "byte %lu of %s", (unsigned long)i, c->name);
    EXPECT(c->call(&w), BL_ERROR_INVALID_ARGUMENT, text);
  }
}

static void infos_of_other_headers(const case_of *c) {
  wide whole, w;
  size_t i, k;
  wrong_sizes(c);
  memset(&whole, 0, sizeof whole);
  whole.u.struct_size = (uint32_t)c->size;
  GOOD(c->call(&whole));
  for (i = 8; i <= c->size; i += 4) { /* older: as much as it knows */
    memset(&w, 0xa5, sizeof w);
    w.u.struct_size = (uint32_t)i;
    GOOD(c->call(&w));
    CHECK(w.u.struct_size == i && memcmp(w.u.bytes + 4, whole.u.bytes + 4, i - 4) == 0);
    for (k = i; k < sizeof w; k++) CHECK(w.u.bytes[k] == 0xa5);
  }
  memset(&w, 0xa5, sizeof w); /* newer: the rest is zero */
  w.u.struct_size = 300;
  GOOD(c->call(&w));
  CHECK(w.u.struct_size == 300 && memcmp(w.u.bytes + 4, whole.u.bytes + 4, c->size - 4) == 0);
  for (k = c->size; k < 300; k++) CHECK(w.u.bytes[k] == 0);
  for (; k < sizeof w; k++) CHECK(w.u.bytes[k] == 0xa5);
}

/* A struct of four-byte alignment or none: read as bytes. */
static void misaligned(void) {
  unsigned char bytes[64 + 1];
  STRUCT(bl_load_options, load);
  bl_model *made = NULL;
  load.flags = BL_LOAD_COPY;
  memcpy(bytes + 1, &load, sizeof load);
  GOOD(bl_load(context, golden("cortex.safetensors"), (const bl_load_options *)(void *)(bytes + 1), &made,
               &error));
  bl_free(made);
}

int main(int count, char **words) {
  size_t i;
  start(count, words);
  GOOD(bl_context_create(NULL, &context, &error));
  GOOD(bl_load(context, golden(ALL_TYPES), NULL, &model, &error));
  layer = open_layer(model, "blk.0.q4_0.weight", BL_ACTIVATION_AUTO, NULL);
  for (i = 0; i < sizeof options / sizeof *options; i++) options_of_other_headers(&options[i]);
  for (i = 0; i < sizeof infos / sizeof *infos; i++) infos_of_other_headers(&infos[i]);
  misaligned();
  CHECK(sizeof(bl_error) == 256);
  bl_free(layer), bl_free(model), bl_free(context);
  return done();
}
