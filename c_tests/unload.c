/* A thousand times dlopen, use, dlclose: no memory, thread, file or signal handler stays behind. */
#include "layers.h"
#include "process.h"

#include <signal.h>

static long resident_pages(void) {
  FILE *file = fopen("/proc/self/statm", "r");
  long total = 0, resident = 0;
  if (file == NULL || fscanf(file, "%ld %ld", &total, &resident) != 2) abort();
  fclose(file);
  return resident;
}

static void handlers(struct sigaction *all) {
  int signal;
  for (signal = 1; signal < 65; signal++)
    if (sigaction(signal, NULL, &all[signal]) != 0) memset(&all[signal], 0, sizeof *all);
}

/* The functions, found anew each time. */
#define FIND(name)                         \
  __typeof__(name) *lib_##name;            \
  *(void **)(void *)&lib_##name = dlsym(library, #name); \
  CHECK(lib_##name != NULL)

static void use(const char *path, uint32_t threads) {
  static float x[512], y[64];
  void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  bl_context *context = NULL;
  bl_model *model = NULL;
  bl_layer *layer = NULL;
  STRUCT(bl_context_options, options);
  options.threads = threads;
  CHECK(library != NULL);
  if (library == NULL) abort();
  FIND(bl_context_create);
  FIND(bl_load);
  FIND(bl_layer_open);
  FIND(bl_forward);
  FIND(bl_free);
  GOOD(lib_bl_context_create(&options, &context, &error));
  GOOD(lib_bl_load(context, golden(ALL_TYPES), NULL, &model, &error));
  GOOD(lib_bl_layer_open(model, "blk.0.q4_0.weight", NULL, &layer, &error));
  GOOD(lib_bl_forward(layer, 1, x, BL_TYPE_F32, 0, y, BL_TYPE_F32, 0, NULL, &error));
  lib_bl_free(layer), lib_bl_free(model), lib_bl_free(context);
  CHECK(dlclose(library) == 0);
}

int main(int count, char **words) {
  struct sigaction before[65], after[65];
  long pages = 0;
  int i, files = 0;
  start(count, words);
  handlers(before);
  for (i = 0; i < 1000; i++) {
    use(library_path, i % 10 == 0 ? 3 : 0);
    if (i == 200) pages = resident_pages(), files = entries("/proc/self/fd");
  }
  CHECK(entries("/proc/self/fd") == files);
  CHECK(threads_left(1));
  CHECK(resident_pages() - pages < 256);
  handlers(after);
  for (i = 1; i < 65; i++) CHECK(before[i].sa_handler == after[i].sa_handler);
  return done();
}
