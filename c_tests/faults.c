/* A bug inside the library: BL_ERROR_INTERNAL with its place, and everything goes on working. */
#include "layers.h"

#include "fault.h"

/* The build with bl_test_fault; its functions only, since handles belong to one build. */
static void *library;
#define FIND(name)              \
  __typeof__(name) *lib_##name; \
  *(void **)(void *)&lib_##name = dlsym(library, #name)

int main(int count, char **words) {
  static const uint32_t pools[] = {0, 2, 5};
  static float x[512], want[64], y[64];
  fault_fn *fault;
  size_t i;
  int round;
  start(count, words);
  library = dlopen(hooks_path, RTLD_NOW | RTLD_LOCAL);
  CHECK(library != NULL);
  if (library == NULL) return done();
  *(void **)(void *)&fault = dlsym(library, "bl_test_fault");
  FIND(bl_context_create);
  FIND(bl_load);
  FIND(bl_layer_open);
  FIND(bl_forward);
  FIND(bl_free);
  fill(x, 512, 14);
  for (i = 0; i < sizeof pools / sizeof *pools; i++) {
    bl_context *context = NULL;
    bl_model *model = NULL;
    bl_layer *layer = NULL;
    STRUCT(bl_context_options, options);
    options.threads = pools[i];
    GOOD(lib_bl_context_create(&options, &context, &error));
    GOOD(lib_bl_load(context, golden(ALL_TYPES), NULL, &model, &error));
    GOOD(lib_bl_layer_open(model, "blk.0.q4_0.weight", NULL, &layer, &error));
    GOOD(lib_bl_forward(layer, 1, x, BL_TYPE_F32, 0, want, BL_TYPE_F32, 0, NULL, &error));
    for (round = 0; round < 20; round++) {
      EXPECT(fault(context, 0, &error), BL_ERROR_INTERNAL, "asked for");
      CHECK(strstr(error.message, "test_hooks.rs:") != NULL); /* where */
      EXPECT(fault(context, 1, &error), BL_ERROR_INTERNAL, "\xc3\xbc\xc3\xbc\xc3\xbc");
      EXPECT(fault(context, 2, &error), BL_ERROR_INTERNAL, "test_hooks.rs:");
      EXPECT(fault(context, 3, &error), BL_ERROR_INTERNAL, "bug");
      EXPECT(fault(context, 4, &error), BL_ERROR_INTERNAL, "piece 41");
      EXPECT(fault(context, 5, &error), BL_ERROR_IO, "fault 5");
      CHECK(fault(context, 0, NULL) == BL_ERROR_INTERNAL);
      memset(y, 0, sizeof y);
      GOOD(lib_bl_forward(layer, 1, x, BL_TYPE_F32, 0, y, BL_TYPE_F32, 0, NULL, &error));
      CHECK(same(y, want, 64));
    }
    lib_bl_free(layer), lib_bl_free(model), lib_bl_free(context);
    EXPECT(fault(context, 0, &error), BL_ERROR_INVALID_HANDLE, "was freed");
  }
  return done();
}
