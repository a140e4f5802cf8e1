/* The library writes nothing to the host's output, whatever happens in it: both streams go to a file
 * while good calls, failures of all kinds and a caught panic run. */
#include "layers.h"

#include <fcntl.h>
#include <unistd.h>

#include "fault.h"

static const char *const bad[] = {"bad/magic.gguf", "bad/overlap.safetensors", "bad/huge_n_kv.gguf",
                                  "bad/truncated_data.gguf", "missing.gguf"};

static void calls(void) {
  static float x[512], y[64];
  bl_context *context = NULL;
  bl_model *model = NULL, *none = NULL;
  bl_layer *layer = NULL, *nothing = NULL;
  STRUCT(bl_context_options, options);
  STRUCT(bl_device_info, device);
  size_t i;
  options.threads = 2;
  GOOD(bl_context_create(&options, &context, &error));
  GOOD(bl_load(context, golden(ALL_TYPES), NULL, &model, &error));
  layer = open_layer(model, "blk.0.q4_0.weight", BL_ACTIVATION_AUTO, NULL);
  forward(layer, 1, x, y);
  for (i = 0; i < sizeof bad / sizeof *bad; i++) CHECK(bl_load(NULL, golden(bad[i]), NULL, &none, NULL) != BL_OK);
  CHECK(bl_forward(layer, -1, x, BL_TYPE_F32, 0, y, BL_TYPE_F32, 0, NULL, NULL) != BL_OK);
  CHECK(bl_layer_open(model, "none", NULL, &nothing, NULL) != BL_OK);
  CHECK(bl_device_describe(context, 1, &device, NULL) == BL_OK || device.name == NULL);
  CHECK(bl_layer_copy(layer, 1000, NULL, NULL, &nothing, NULL) != BL_OK); /* no such GPU, or no driver */
  bl_free(context), bl_free(context), bl_free(model), bl_free(layer);
}

static void faults(void) {
  void *library = dlopen(hooks_path, RTLD_NOW | RTLD_LOCAL);
  fault_fn *fault = NULL;
  uint32_t way;
  CHECK(library != NULL);
  if (library != NULL) *(void **)(void *)&fault = dlsym(library, "bl_test_fault");
  CHECK(fault != NULL);
  for (way = 0; fault != NULL && way < 6; way++) CHECK(fault(NULL, way, NULL) != BL_OK);
}

int main(int count, char **words) {
  char name[] = "/tmp/bitlinear-silence-XXXXXX", text[256];
  int file = mkstemp(name), out = dup(1), err = dup(2);
  ssize_t size;
  CHECK(file >= 0 && out >= 0 && err >= 0);
  unlink(name);
  fflush(NULL);
  CHECK(dup2(file, 1) == 1 && dup2(file, 2) == 2);
  start(count, words);
  calls();
  faults();
  fflush(NULL);
  CHECK(dup2(out, 1) == 1 && dup2(err, 2) == 2);
  size = pread(file, text, sizeof text - 1, 0);
  CHECK(size == 0);
  if (size > 0) fprintf(stderr, "%.*s\n", (int)size, text);
  return done();
}
