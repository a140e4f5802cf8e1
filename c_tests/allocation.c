/* bl_forward with the planned workspace takes no memory, and every call gives back what it took. The
 * program's own malloc, free and mmap count what the library does. */
#include "layers.h"

#include <malloc.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

static volatile long calls, live;

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

static void *counted(void *memory) {
  __sync_fetch_and_add(&calls, 1);
  if (memory != NULL) __sync_fetch_and_add(&live, 1);
  return memory;
}
void *malloc(size_t size) THROWS { return counted(__libc_malloc(size)); }
void *calloc(size_t count, size_t size) THROWS { return counted(__libc_calloc(count, size)); }
void *memalign(size_t alignment, size_t size) THROWS { return counted(__libc_memalign(alignment, size)); }
void *aligned_alloc(size_t alignment, size_t size) THROWS { return memalign(alignment, size); }
int posix_memalign(void **out, size_t alignment, size_t size) THROWS {
  *out = memalign(alignment, size);
  return *out == NULL ? 12 : 0;
}
void *realloc(void *memory, size_t size) THROWS {
  __sync_fetch_and_add(&calls, 1);
  if (memory == NULL) __sync_fetch_and_add(&live, 1);
  return __libc_realloc(memory, size);
}
void free(void *memory) THROWS {
  if (memory != NULL) __sync_fetch_and_add(&live, -1);
  __libc_free(memory);
}
void *mmap(void *at, size_t size, int protection, int flags, int file, off_t offset) THROWS {
  __sync_fetch_and_add(&calls, 1);
  return (void *)syscall(SYS_mmap, at, size, protection, flags, file, offset);
}
#ifdef __cplusplus
}
#endif

/* The counters do see the library. */
static void counted_at_all(void) {
  long before = calls;
  bl_model *model = open_model(ALL_TYPES);
  CHECK(calls > before + 10);
  bl_free(model);
}

static void forward_takes_none(const bl_model *model) {
  static const char *const tensors[] = {"blk.0.f32.weight", "blk.0.f16.weight", "blk.0.q4_0.weight",
                                        "blk.0.q4_k.weight", "blk.0.tq2_0.weight", "blk.0.q1_0.weight"};
  static const int64_t batches[] = {1, 2, 16, 65, 600};
  static const bl_type types[] = {BL_TYPE_F32, BL_TYPE_F16, BL_TYPE_BF16};
  static float x[600 * 512], y[600 * 64];
  size_t i, b, t, activation;
  for (i = 0; i < sizeof tensors / sizeof *tensors; i++)
    for (activation = 0; activation < 2; activation++) {
      bl_layer *layer = open_layer(model, tensors[i], activation ? BL_ACTIVATION_F32 : BL_ACTIVATION_AUTO, NULL);
      for (b = 0; b < sizeof batches / sizeof *batches; b++)
        for (t = 0; t < 3; t++) {
          STRUCT(bl_plan_info, plan);
          STRUCT(bl_run_options, run);
          long before;
          bl_status status;
          GOOD(bl_plan(layer, BL_OP_FORWARD, batches[b], types[t], &plan, &error));
          run.workspace_size = (size_t)plan.workspace_size;
          run.workspace = take(run.workspace_size);
          before = calls;
          status = bl_forward(layer, batches[b], x, types[t], 0, y, types[t], 0, &run, &error);
          CHECK(calls == before);
          CHECK(status == BL_OK);
          free(run.workspace);
        }
      bl_free(layer);
    }
}

/* Calls that need no memory for what they do. */
static void queries_take_none(const bl_model *model) {
  bl_layer *layer = open_layer(model, "blk.0.q4_0.weight", BL_ACTIVATION_AUTO, NULL);
  STRUCT(bl_model_info, about);
  STRUCT(bl_tensor_info, tensor);
  STRUCT(bl_meta_info, meta);
  STRUCT(bl_layer_info, info);
  STRUCT(bl_plan_info, plan);
  STRUCT(bl_type_info, type);
  long before = calls;
  bl_model_describe(model, &about, &error);
  bl_model_tensor(model, "blk.0.q4_0.weight", 0, &tensor, &error);
  bl_model_tensor(model, NULL, 3, &tensor, &error);
  bl_model_meta(model, "general.architecture", 0, &meta, &error);
  bl_model_meta(model, NULL, 3, &meta, &error);
  bl_model_meta_item(model, "t.arr_str", 1, &meta, &error);
  bl_layer_describe(layer, &info, &error);
  bl_plan(layer, BL_OP_FORWARD, 4, BL_TYPE_F32, &plan, &error);
  bl_type_describe(BL_TYPE_Q4_K, &type, &error);
  CHECK(calls == before);
  CHECK(plan.kernel != NULL && meta.string != NULL && type.name != NULL);
  bl_free(layer);
}

/* Rounds of everything, failures included: what is taken is given back. Handles' shells stay, but
 * after the first rounds no more are made. */
static void nothing_is_kept(void) {
  static float x[512], y[64];
  long after[12];
  int round;
  for (round = 0; round < 12; round++) {
    int i;
    for (i = 0; i < 60; i++) {
      bl_context *context = NULL;
      bl_model *model = NULL;
      bl_layer *layer = NULL;
      GOOD(bl_context_create(NULL, &context, &error));
      GOOD(bl_load(context, golden(ALL_TYPES), NULL, &model, &error));
      layer = open_layer(model, "blk.0.q4_k.weight", BL_ACTIVATION_AUTO, NULL);
      forward(layer, 1, x, y);
      EXPECT(bl_forward(layer, -1, x, BL_TYPE_F32, 0, y, BL_TYPE_F32, 0, NULL, &error),
             BL_ERROR_INVALID_ARGUMENT, "m = ");
      bl_free(layer), bl_free(model), bl_free(context);
      EXPECT(bl_load(NULL, golden("bad/overlap.safetensors"), NULL, &model, &error), BL_ERROR_BAD_FILE, "");
      EXPECT(bl_load(NULL, golden("bad/dup_name.gguf"), NULL, &model, &error), BL_ERROR_BAD_FILE, "");
    }
    after[round] = live;
  }
  CHECK(after[11] == after[8] && after[11] == after[9]);
}

int main(int count, char **words) {
  bl_model *model;
  start(count, words);
  counted_at_all();
  model = open_model(ALL_TYPES);
  forward_takes_none(model);
  queries_take_none(model);
  bl_free(model);
  nothing_is_kept();
  return done();
}
