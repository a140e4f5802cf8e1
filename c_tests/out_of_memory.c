/* Out of memory at every allocation in turn, once and from there on: each call gives BL_OK or
 * BL_ERROR_OUT_OF_MEMORY, nothing ends the process, and what is there afterwards works. The program's own
 * malloc and mmap fail for the library. */
#include "layers.h"

#include <errno.h>
#include <malloc.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Fails the allocation after `left` good ones, and where `lasting` is set every later one. */
static volatile long left = -1, lasting, failed, live;

#ifdef __cplusplus
extern "C" {
#define THROWS noexcept
#else
#define THROWS
#endif
extern void *__libc_malloc(size_t);
extern void *__libc_calloc(size_t, size_t);
extern void *__libc_realloc(void *, size_t);
extern void *__libc_memalign(size_t, size_t);
extern void __libc_free(void *);

static int refused(void) {
  if (left < 0) return 0;
  if (left > 0) return __sync_fetch_and_add(&left, -1) <= 0;
  if (!lasting) left = -1;
  failed = 1;
  return 1;
}
static void *counted(void *memory) {
  if (memory != NULL) __sync_fetch_and_add(&live, 1);
  return memory;
}
void *malloc(size_t size) THROWS { return refused() ? NULL : counted(__libc_malloc(size)); }
void *calloc(size_t count, size_t size) THROWS { return refused() ? NULL : counted(__libc_calloc(count, size)); }
void *memalign(size_t alignment, size_t size) THROWS {
  return refused() ? NULL : counted(__libc_memalign(alignment, size));
}
void *aligned_alloc(size_t alignment, size_t size) THROWS { return memalign(alignment, size); }
int posix_memalign(void **out, size_t alignment, size_t size) THROWS {
  void *memory = memalign(alignment, size);
  if (memory == NULL) return ENOMEM;
  *out = memory;
  return 0;
}
void *realloc(void *memory, size_t size) THROWS {
  if (refused()) return NULL;
  return memory == NULL ? counted(__libc_malloc(size)) : __libc_realloc(memory, size);
}
void free(void *memory) THROWS {
  if (memory != NULL) __sync_fetch_and_add(&live, -1);
  __libc_free(memory);
}
void *mmap(void *at, size_t size, int protection, int flags, int file, off_t offset) THROWS {
  if (refused()) {
    errno = ENOMEM;
    return MAP_FAILED;
  }
  return (void *)syscall(SYS_mmap, at, size, protection, flags, file, offset);
}
#ifdef __cplusplus
}
#endif

/* FEW: a product that one thread computes. */
enum { ROWS = 64, COLUMNS = 512, BATCH = 33, FEW = 15 };
static float x[BATCH * COLUMNS], y[ROWS * COLUMNS], z[BATCH * ROWS], weights[ROWS * COLUMNS];
static float dx[BATCH * COLUMNS], dw[ROWS * COLUMNS];
static unsigned char packed[ROWS * COLUMNS];
static int refusals, works;

/* Whether a call worked; otherwise memory was out. */
static int good(bl_status status) {
  if (status == BL_OK) return 1;
  if (status != BL_ERROR_OUT_OF_MEMORY) {
    left = -1;
    fprintf(stderr, "%s: %s\n", bl_status_name(status), error.message);
  }
  CHECK(status == BL_ERROR_OUT_OF_MEMORY && error.message[0] != 0);
  refusals++;
  return 0;
}

static void everything(const char *path, const void *data, size_t size, const char *saved) {
  bl_context *context = NULL;
  bl_model *model = NULL, *memory = NULL, *again = NULL;
  bl_layer *layer = NULL, *made = NULL, *opened = NULL;
  STRUCT(bl_context_options, options);
  STRUCT(bl_layer_options, with);
  STRUCT(bl_plan_info, plan);
  STRUCT(bl_layer_gradients, gradients);
  options.threads = 2;
  with.activation = BL_ACTIVATION_UINT8_POS;
  with.bias = x;
  if (good(bl_context_create(&options, &context, &error)) &&
      good(bl_load(context, path, NULL, &model, &error)) &&
      good(bl_load_memory(context, data, size, NULL, &memory, &error)) &&
      good(bl_layer_open(model, "blk.0.q4_k.weight", &with, &layer, &error)) &&
      good(bl_layer_open(memory, "blk.0.tq2_0.weight", NULL, &opened, &error)) &&
      good(bl_layer_create(context, ROWS, COLUMNS, weights, BL_TYPE_F32, 0, NULL, &made, &error)) &&
      good(bl_layer_update(made, weights, BL_TYPE_F32, 0, &error)) &&
      good(bl_layer_read(made, 0, ROWS, y, BL_TYPE_F32, 0, &error)) &&
      good(bl_plan(layer, BL_OP_FORWARD, BATCH, BL_TYPE_F32, &plan, &error)) &&
      good(bl_forward(layer, BATCH, x, BL_TYPE_F32, 0, y, BL_TYPE_F32, 0, NULL, &error)) &&
      good(bl_convert(context, ROWS, COLUMNS, weights, BL_TYPE_F32, 0, packed, BL_TYPE_Q4_0, 0,
                      &error))) {
    const bl_layer *layers[2];
    void *ys[2];
    bl_named_layer named[1];
    layers[0] = made, layers[1] = opened;
    ys[0] = y, ys[1] = z;
    named[0].name = "made", named[0].layer = made;
    gradients.x = x, gradients.dy = y, gradients.dx = dx, gradients.dw = dw;
    if (good(bl_forward_many(layers, 2, BATCH, x, BL_TYPE_F32, 0, ys, BL_TYPE_F32, NULL, NULL, &error)) &&
        good(bl_layer_backward(made, FEW, &gradients, &error)) &&
        good(bl_save(saved, named, 1, NULL, 0, &error)) &&
        good(bl_load(context, saved, NULL, &again, &error)))
      works++;
  }
  left = -1;
  bl_free(again), bl_free(opened), bl_free(made), bl_free(layer);
  bl_free(memory), bl_free(model), bl_free(context);
}

int main(int count, char **words) {
  static char path[4096], saved[256];
  void *data;
  size_t size = 0;
  long n, before = 0;
  FILE *file;
  start(count, words);
  fill(x, BATCH * COLUMNS, 1), fill(weights, ROWS * COLUMNS, 2);
  snprintf(path, sizeof path, "%s", golden(ALL_TYPES));
  snprintf(saved, sizeof saved, "%.200s/out-of-memory.safetensors", getenv("TMPDIR"));
  data = take(1 << 22);
  file = fopen(path, "rb");
  CHECK(file != NULL);
  if (file != NULL) size = fread(data, 1, 1 << 22, file), fclose(file);
  everything(path, data, size, saved);
  CHECK(works == 1 && refusals == 0);
  for (lasting = 0; lasting < 2; lasting++)
    for (n = 0;; n++) {
      failed = 0;
      left = n;
      everything(path, data, size, saved);
      if (!failed) break; /* there were fewer */
      /* Memory is back, and so is everything that was taken. */
      if (n % 16 == 0) {
        const int worked = works;
        everything(path, data, size, saved);
        CHECK(works == worked + 1);
        /* Shells of handles rest and are used again; after so many rounds no more are made. */
        if (n == 64 && !lasting) before = live;
        if (n > 64) CHECK(live <= before);
      }
    }
  CHECK(refusals > 100);
  remove(saved);
  free(data);
  return done();
}
