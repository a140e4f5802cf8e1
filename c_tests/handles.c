/* Handles: of a wrong kind, freed, freed twice, freed in any order. */
#include "layers.h"

/* Calls every function that takes a handle with one that is not of its kind. */
static void refused_everywhere(const void *context, const void *model, const void *layer,
                               const char *text) {
  bl_model *made = NULL;
  bl_layer *opened = NULL;
  STRUCT(bl_model_info, about);
  STRUCT(bl_model_layer_info, listed);
  STRUCT(bl_tensor_info, tensor);
  STRUCT(bl_meta_info, meta);
  STRUCT(bl_layer_info, info);
  STRUCT(bl_plan_info, plan);
  STRUCT(bl_memory_info, held);
  STRUCT(bl_device_info, device);
  size_t counted = 0;
  static float x[1024], y[1024];
  void *to = y;
  const bl_context *c = (const bl_context *)context;
  const bl_model *m = (const bl_model *)model;
  const bl_layer *l = (const bl_layer *)layer;
#define REFUSED(call) EXPECT(call, BL_ERROR_INVALID_HANDLE, text)
  if (c != NULL) {
    REFUSED(bl_load(c, golden(ALL_TYPES), NULL, &made, &error));
    REFUSED(bl_load_memory(c, "GGUF", 4, NULL, &made, &error));
    REFUSED(bl_memory(c, &held, &error));
    REFUSED(bl_profile(c, NULL, 0, &counted, 0, &error));
    REFUSED(bl_device_describe(c, 0, &device, &error));
    CHECK(made == NULL);
  }
  if (m != NULL) {
    REFUSED(bl_model_describe(m, &about, &error));
    REFUSED(bl_model_tensor(m, NULL, 0, &tensor, &error));
    REFUSED(bl_model_tensor(m, "x", 0, &tensor, &error));
    REFUSED(bl_model_layer(m, NULL, 0, &listed, &error));
    REFUSED(bl_model_meta(m, NULL, 0, &meta, &error));
    REFUSED(bl_model_meta_item(m, "x", 0, &meta, &error));
    REFUSED(bl_model_layer(m, "x", 0, &listed, &error));
    REFUSED(bl_layer_open(m, "x", NULL, &opened, &error));
    CHECK(opened == NULL);
  }
  if (l != NULL) {
    REFUSED(bl_layer_describe(l, &info, &error));
    REFUSED(bl_layer_read(l, 0, 1, y, BL_TYPE_F32, 0, &error));
    REFUSED(bl_plan(l, BL_OP_FORWARD, 1, BL_TYPE_F32, &plan, &error));
    REFUSED(bl_forward(l, 1, x, BL_TYPE_F32, 0, y, BL_TYPE_F32, 0, NULL, &error));
    REFUSED(bl_forward_many(&l, 1, 1, x, BL_TYPE_F32, 0, &to, BL_TYPE_F32, NULL, NULL, &error));
  }
}

/* The same address, one byte further. */
static const void *beside(const void *handle) { return (const char *)handle + 1; }

static void kinds(void) {
  bl_context *context = NULL;
  bl_model *model = NULL;
  bl_layer *layer;
  static const uint64_t numbers[2] = {0x3f8000003f800000, 0x3f8000003f800000}; /* floats, all 1, and aligned as handles */
  int i;
  GOOD(bl_context_create(NULL, &context, &error));
  GOOD(bl_load(context, golden(ALL_TYPES), NULL, &model, &error));
  layer = open_layer(model, "blk.0.tq2_0.weight", BL_ACTIVATION_AUTO, NULL);

  refused_everywhere(model, context, context, "is a handle, but of no ");
  refused_everywhere(layer, layer, model, "is a handle, but of no ");
  refused_everywhere(beside(context), beside(model), beside(layer), "is no ");
  refused_everywhere(numbers, numbers, numbers, "nor any other handle");
  bl_free((void *)(size_t)beside(layer)); /* lets it pass */
  CHECK(layer_info(layer).in_features == 512);

  for (i = 0; i < 3; i++) { /* the second and third free do nothing */
    bl_free(layer);
    bl_free(context);
    bl_free(model);
    refused_everywhere(context, model, layer, "was freed");
    refused_everywhere(model, layer, context, "was freed");
  }
}

/* A handle keeps alive what it needs. */
static void order(void) {
  static const int orders[6][3] = {{0, 1, 2}, {0, 2, 1}, {1, 0, 2}, {1, 2, 0}, {2, 0, 1}, {2, 1, 0}};
  float *x = floats(512), *want = floats(64), *y = floats(64);
  int i, k;
  fill(x, 512, 1);
  for (i = 0; i < 6; i++) {
    bl_context *context = NULL;
    bl_model *model = NULL;
    void *handles[3];
    bl_layer *layer;
    STRUCT(bl_model_info, about);
    GOOD(bl_context_create(NULL, &context, &error));
    GOOD(bl_load(context, golden(ALL_TYPES), NULL, &model, &error));
    layer = open_layer(model, "blk.0.q6_k.weight", BL_ACTIVATION_AUTO, NULL);
    forward(layer, 1, x, want);
    handles[0] = context, handles[1] = model, handles[2] = layer;
    for (k = 0; k < 3; k++) {
      bl_free(handles[orders[i][k]]);
      handles[orders[i][k]] = NULL;
      if (handles[1] != NULL) GOOD(bl_model_describe(model, &about, &error));
      if (handles[2] != NULL) {
        memset(y, 0, 64 * sizeof *y);
        forward(layer, 1, x, y);
        CHECK(same(y, want, 64));
      }
    }
  }
  free(x), free(want), free(y);
}

/* Two hundred handles of all kinds, each freed twice, in an order by chance. */
static void by_chance(void) {
  enum { N = 200 };
  static void *handles[2 * N];
  uint32_t seed = 7, round, i;
  for (round = 0; round < 5; round++) {
    bl_model *model = open_model(ALL_TYPES);
    for (i = 0; i < N; i++) {
      bl_context *context = NULL;
      bl_model *loaded = NULL;
      switch (i % 3) {
        case 0:
          GOOD(bl_context_create(NULL, &context, &error));
          handles[i] = context;
          break;
        case 1:
          GOOD(bl_load(NULL, golden("cortex.safetensors"), NULL, &loaded, &error));
          handles[i] = loaded;
          break;
        default:
          handles[i] = open_layer(model, "blk.0.q4_0.weight", BL_ACTIVATION_AUTO, NULL);
      }
      handles[N + i] = handles[i];
    }
    bl_free(model);
    for (i = 2 * N - 1; i > 0; i--) {
      uint32_t k = (seed = seed * 1664525u + 1013904223u, (seed >> 8) % (i + 1));
      void *swap = handles[i];
      handles[i] = handles[k], handles[k] = swap;
    }
    for (i = 0; i < 2 * N; i++) bl_free(handles[i]);
    for (i = 0; i < 2 * N; i++) refused_everywhere(handles[i], handles[i], handles[i], "was freed");
  }
}

/* A freed handle is told from live ones that were made after it. */
static void stale_beside_new(void) {
  bl_context *old = NULL, *made[100];
  int i;
  GOOD(bl_context_create(NULL, &old, &error));
  bl_free(old);
  for (i = 0; i < 100; i++) {
    GOOD(bl_context_create(NULL, &made[i], &error));
    CHECK(made[i] != old);
  }
  refused_everywhere(old, NULL, NULL, "was freed");
  bl_free(old);
  for (i = 0; i < 100; i++) {
    bl_model *model = NULL;
    GOOD(bl_load(made[i], golden("cortex.safetensors"), NULL, &model, &error));
    bl_free(model), bl_free(made[i]);
  }
}

int main(int count, char **words) {
  start(count, words);
  stale_beside_new(); /* first: later many freed handles lie before this one, whatever is held back */
  kinds();
  order();
  by_chance();
  return done();
}
