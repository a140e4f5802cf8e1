/* Two builds of the library, and a second copy of one, in one process: each has its own state. */
#include "layers.h"

#include <unistd.h>

typedef struct {
  void *library;
  __typeof__(bl_version) *version;
  __typeof__(bl_context_create) *context_create;
  __typeof__(bl_load) *load;
  __typeof__(bl_layer_open) *layer_open;
  __typeof__(bl_forward) *forward;
  __typeof__(bl_free) *free;
  bl_context *context;
  bl_model *model;
  bl_layer *layer;
} build;

static void *find(build *b, const char *name) {
  void *found = dlsym(b->library, name);
  CHECK(found != NULL);
  return found;
}

static void open_build(build *b, void *library) {
  STRUCT(bl_context_options, options);
  memset(b, 0, sizeof *b);
  b->library = library;
  if (library == NULL) {
    fprintf(stderr, "%s\n", dlerror());
    abort();
  }
  *(void **)(void *)&b->version = find(b, "bl_version");
  *(void **)(void *)&b->context_create = find(b, "bl_context_create");
  *(void **)(void *)&b->load = find(b, "bl_load");
  *(void **)(void *)&b->layer_open = find(b, "bl_layer_open");
  *(void **)(void *)&b->forward = find(b, "bl_forward");
  *(void **)(void *)&b->free = find(b, "bl_free");
  CHECK(b->version() == BL_VERSION);
  options.threads = 2;
  GOOD(b->context_create(&options, &b->context, &error));
  GOOD(b->load(b->context, golden(ALL_TYPES), NULL, &b->model, &error));
  GOOD(b->layer_open(b->model, "blk.0.q4_k.weight", NULL, &b->layer, &error));
}

/* The same file under another name: another library to the loader. */
static const char *copied(const char *path) {
  static char name[4096];
  const char *folder = getenv("TMPDIR");
  FILE *from = fopen(path, "rb"), *to;
  char *bytes = (char *)take(1 << 16);
  size_t n;
  snprintf(name, sizeof name, "%s/renamed.so", folder != NULL ? folder : "/tmp");
  to = fopen(name, "wb");
  if (from == NULL || to == NULL) abort();
  while ((n = fread(bytes, 1, 1 << 16, from)) > 0)
    if (fwrite(bytes, 1, n, to) != n) abort();
  fclose(from), fclose(to);
  free(bytes);
  return name;
}

int main(int count, char **words) {
  enum { BUILDS = 4, M = 2 };
  static float x[M * 512], want[M * 64], y[M * 64];
  build builds[BUILDS];
  int i, round;
  start(count, words);
  fill(x, M * 512, 13);
  open_build(&builds[0], dlopen(library_path, RTLD_NOW | RTLD_LOCAL));
  open_build(&builds[1], dlopen(hooks_path, RTLD_NOW | RTLD_GLOBAL));
  open_build(&builds[2], dlopen(copied(library_path), RTLD_NOW | RTLD_LOCAL));
  open_build(&builds[3], dlmopen(LM_ID_NEWLM, library_path, RTLD_NOW | RTLD_LOCAL));
  for (i = 0; i < BUILDS; i++)
    for (round = 0; round < i; round++) CHECK(builds[i].free != builds[round].free);
  GOOD(builds[0].forward(builds[0].layer, M, x, BL_TYPE_F32, 0, want, BL_TYPE_F32, 0, NULL, &error));
  for (round = 0; round < 3; round++)
    for (i = 0; i < BUILDS; i++) {
      memset(y, 0, sizeof y);
      GOOD(builds[i].forward(builds[i].layer, M, x, BL_TYPE_F32, 0, y, BL_TYPE_F32, 0, NULL, &error));
      CHECK(same(y, want, M * 64)); /* the bits do not depend on the build */
    }
  for (i = BUILDS - 1; i >= 0; i--) {
    builds[i].free(builds[i].context), builds[i].free(builds[i].model), builds[i].free(builds[i].layer);
    if (i != 3) CHECK(dlclose(builds[i].library) == 0); /* a namespace of its own stays: glibc frees none */
    if (i > 0) {
      GOOD(builds[0].forward(builds[0].layer, M, x, BL_TYPE_F32, 0, y, BL_TYPE_F32, 0, NULL, &error));
      CHECK(same(y, want, M * 64));
    }
  }
  return done();
}
