/* Contexts: own pools, the host's threads, log, allocator, counters. Whoever runs the pieces, the bits
 * are those of one thread. */
#include "layers.h"
#include "process.h"

#include <pthread.h>
#include <stdint.h>

enum { M = 9, ROWS = 64, COLUMNS = 512, LARGE = 2048 };

static float x[M * LARGE], want[M * LARGE], y[M * LARGE];

/* A host's parallel-for, in ways that hosts get it right and wrong. */
static void in_order(void *user, size_t count, bl_task_fn run, void *task) {
  size_t i;
  ++*(size_t *)user;
  for (i = 0; i < count; i++) run(task, i);
}
static void reversed(void *user, size_t count, bl_task_fn run, void *task) {
  ++*(size_t *)user;
  while (count-- > 0) run(task, count);
}
static void none(void *user, size_t count, bl_task_fn run, void *task) {
  (void)count, (void)run, (void)task;
  ++*(size_t *)user;
}
static void first_only(void *user, size_t count, bl_task_fn run, void *task) {
  (void)count;
  ++*(size_t *)user;
  run(task, 0);
}
static void twice(void *user, size_t count, bl_task_fn run, void *task) {
  size_t i;
  ++*(size_t *)user;
  for (i = 0; i < 2 * count; i++) run(task, i / 2);
}
static void too_many(void *user, size_t count, bl_task_fn run, void *task) {
  size_t i;
  ++*(size_t *)user;
  for (i = 0; i < 3 * count + 5; i++) run(task, i);
}
typedef struct {
  bl_task_fn run;
  void *task;
  size_t index;
} piece;
static void *one(void *argument) {
  const piece *p = (const piece *)argument;
  p->run(p->task, p->index);
  return NULL;
}
static void on_threads(void *user, size_t count, bl_task_fn run, void *task) {
  pthread_t threads[64];
  piece pieces[64];
  size_t i, n = count < 64 ? count : 64;
  ++*(size_t *)user;
  for (i = 0; i < n; i++) {
    pieces[i].run = run, pieces[i].task = task, pieces[i].index = i;
    if (pthread_create(&threads[i], NULL, one, &pieces[i]) != 0) abort();
  }
  for (i = 0; i < n; i++) pthread_join(threads[i], NULL);
}

/* The bits of a context: layers with all that may stand around a product, in one call and in several. */
static void same_bits_around(const bl_context *context, int first) {
  static const bl_type types[] = {BL_TYPE_TERNARY, BL_TYPE_Q4_0, BL_TYPE_F32};
  static const int64_t batches[] = {1, M};
  static float kept[2][2][3][M * LARGE], weights[640 * 1024];
  bl_layer *layers[3] = {NULL, NULL, NULL};
  void *ys[3];
  size_t t, b;
  uint32_t adding;
  fill(weights, 640 * 1024, 3);
  for (t = 0; t < 3; t++) {
    STRUCT(bl_layer_options, options);
    options.type = types[t];
    options.norm = BL_NORM_LAYER;
    options.rotation_block = 256;
    options.epilogue = t == 0 ? BL_EPILOGUE_SILU : BL_EPILOGUE_GELU_TANH;
    GOOD(bl_layer_create(context, 640, 1024, weights, BL_TYPE_F32, 0, &options, &layers[t], &error));
    ys[t] = take(M * LARGE * sizeof(float));
  }
  for (b = 0; b < 2; b++)
    for (adding = 0; adding < 2; adding++) {
      int64_t n = batches[b] * 640;
      STRUCT(bl_run_options, run);
      run.flags = adding ? BL_RUN_ACCUMULATE : 0;
      GOOD(bl_forward_many((const bl_layer *const *)layers, 3, batches[b], x, BL_TYPE_F32, 0, ys, BL_TYPE_F32, NULL,
                           &run, &error));
      for (t = 0; t < 3; t++) {
        if (first) memcpy(kept[b][adding][t], ys[t], (size_t)n * sizeof(float));
        CHECK(same((float *)ys[t], kept[b][adding][t], n));
        if (adding) continue;
        memset(y, 0, sizeof y);
        forward(layers[t], batches[b], x, y);
        CHECK(same(y, kept[b][adding][t], n)); /* alone as together */
      }
    }
  for (t = 0; t < 3; t++) free(ys[t]), bl_free(layers[t]);
}

/* The bits of a context: small and large layers, one row and several. */
static void same_bits(const bl_context *context, int first) {
  static const char *const tensors[] = {"blk.0.q4_0.weight", "blk.0.q4_k.weight", "blk.0.tq2_0.weight"};
  static const int64_t batches[] = {1, M};
  static float kept[8][M * LARGE];
  bl_model *model = NULL;
  size_t t, b, n = 0;
  GOOD(bl_load(context, golden(ALL_TYPES), NULL, &model, &error));
  for (t = 0; t < 4; t++) {
    bl_layer *layer = t < 3 ? open_layer(model, tensors[t], BL_ACTIVATION_AUTO, NULL)
                            : large_layer(context, LARGE, LARGE);
    int64_t out = layer_info(layer).out_features;
    for (b = 0; b < 2; b++, n++) {
      memset(y, 0, sizeof y);
      forward(layer, batches[b], x, y);
      if (first) memcpy(kept[n], y, sizeof y);
      CHECK(same(y, kept[n], batches[b] * out));
    }
    bl_free(layer);
  }
  bl_free(model);
  same_bits_around(context, first);
}

static void pools(void) {
  static const uint32_t threads[] = {0, 1, 2, 5, BL_THREADS_ALL, 16};
  int before = threads_alive(), round;
  size_t i;
  same_bits(NULL, 1);
  for (i = 0; i < sizeof threads / sizeof *threads; i++)
    for (round = 0; round < 3; round++) {
      bl_context *context = NULL;
      STRUCT(bl_context_options, options);
      options.threads = threads[i];
      GOOD(bl_context_create(&options, &context, &error));
      CHECK(threads[i] > 16 || threads_alive() - before == (int)(threads[i] > 1 ? threads[i] - 1 : 0));
      same_bits(context, 0);
      bl_free(context);
      CHECK(threads_left(before)); /* joined */
    }
}

static void hosts(void) {
  static const struct {
    bl_parallel_for_fn run;
    const char *name;
  } kinds[] = {{in_order, "in order"}, {reversed, "reversed"}, {none, "none"},      {first_only, "first only"},
               {twice, "twice"},       {too_many, "too many"}, {on_threads, "on threads"}};
  int before = threads_alive();
  size_t i;
  for (i = 0; i < sizeof kinds / sizeof *kinds; i++) {
    bl_context *context = NULL;
    bl_layer *layer;
    size_t asked = 0;
    STRUCT(bl_context_options, options);
    options.parallel_for = kinds[i].run;
    options.parallel_for_user = &asked;
    options.threads = 4;
    GOOD(bl_context_create(&options, &context, &error));
    same_bits(context, 0);
    CHECK(asked > 0);
    layer = large_layer(context, 64, 64);
    CHECK(plan_of(layer, 1).threads == 4);
    bl_free(layer);
    CHECK(threads_left(before));
    bl_free(context);
  }
}

/* Two threads of the host, each with forwards on the same context of two threads. */
static bl_layer *shared;
static void *many_forwards(void *argument) {
  float *mine = floats(LARGE);
  int i, *wrong = (int *)argument;
  for (i = 0; i < 40; i++) {
    *wrong += bl_forward(shared, 1, x, BL_TYPE_F32, 0, mine, BL_TYPE_F32, 0, NULL, NULL) != BL_OK;
    *wrong += !same(mine, want, LARGE);
  }
  free(mine);
  return NULL;
}
static void shared_pool(void) {
  pthread_t threads[4];
  int wrong[4] = {0, 0, 0, 0}, i;
  bl_context *context = NULL;
  STRUCT(bl_context_options, options);
  options.threads = 2;
  GOOD(bl_context_create(&options, &context, &error));
  shared = large_layer(context, LARGE, LARGE);
  forward(shared, 1, x, want);
  for (i = 0; i < 4; i++) CHECK(pthread_create(&threads[i], NULL, many_forwards, &wrong[i]) == 0);
  bl_free(context); /* the layer keeps it */
  for (i = 0; i < 4; i++) CHECK(pthread_join(threads[i], NULL) == 0 && wrong[i] == 0);
  bl_free(shared);
}

/* Two threads of the host, each with its own context of two threads. */
static bl_status own_layer(const bl_context *context, bl_layer **layer) {
  float *weights = floats((int64_t)LARGE * LARGE);
  bl_status status;
  STRUCT(bl_layer_options, options);
  options.type = BL_TYPE_Q8_0;
  fill(weights, (int64_t)LARGE * LARGE, 9);
  status = bl_layer_create(context, LARGE, LARGE, weights, BL_TYPE_F32, 0, &options, layer, NULL);
  free(weights);
  return status;
}
static void *own_context(void *argument) {
  float *mine = floats(M * LARGE);
  int i, *wrong = (int *)argument;
  bl_context *context = NULL;
  bl_layer *layer = NULL;
  STRUCT(bl_context_options, options);
  options.threads = 2;
  *wrong += bl_context_create(&options, &context, NULL) != BL_OK;
  *wrong += own_layer(context, &layer) != BL_OK;
  for (i = 0; i < 100; i++) {
    int64_t m = i % 4 ? 1 : M;
    memset(mine, 0, M * LARGE * sizeof *mine);
    *wrong += bl_forward(layer, m, x, BL_TYPE_F32, 0, mine, BL_TYPE_F32, 0, NULL, NULL) != BL_OK;
    *wrong += !same(mine, want, m * LARGE);
  }
  bl_free(context), bl_free(layer);
  free(mine);
  return NULL;
}
static void own_pools(void) {
  pthread_t threads[2];
  int wrong[2] = {0, 0}, i;
  bl_layer *layer = NULL;
  CHECK(own_layer(NULL, &layer) == BL_OK);
  forward(layer, M, x, want);
  bl_free(layer);
  for (i = 0; i < 2; i++) CHECK(pthread_create(&threads[i], NULL, own_context, &wrong[i]) == 0);
  for (i = 0; i < 2; i++) CHECK(pthread_join(threads[i], NULL) == 0 && wrong[i] == 0);
}

/* What the log says is for the host alone, and only what it asked for. */
static int lines[8];
static void log_line(void *user, bl_log_level level, const char *message) {
  CHECK(user == (void *)lines && message != NULL && message[0]);
  lines[(uint32_t)level % 8]++;
}
static void logs(void) {
  uint32_t level;
  for (level = 0; level <= 4; level++) {
    bl_context *context = NULL;
    bl_layer *layer;
    STRUCT(bl_context_options, options);
    uint32_t above;
    memset(lines, 0, sizeof lines);
    options.log = log_line;
    options.log_user = lines;
    options.log_level = ANY(bl_log_level, level);
    GOOD(bl_context_create(&options, &context, &error));
    layer = large_layer(context, 64, 64);
    bl_free(layer), bl_free(context);
    for (above = level ? level + 1 : 3; above < 8; above++) CHECK(lines[above] == 0);
    if (level >= BL_LOG_INFO) CHECK(lines[BL_LOG_INFO] > 0);
  }
}

/* The host's allocator gets back all that it gave, with the same size and alignment. */
typedef struct {
  size_t bytes, blocks, most;
} heap;
static void *give(void *user, size_t size, size_t alignment) {
  heap *h = (heap *)user;
  void *memory = NULL;
  CHECK(size > 0 && alignment >= sizeof(void *) && (alignment & (alignment - 1)) == 0);
  if (posix_memalign(&memory, alignment, size) != 0) return NULL;
  memset(memory, 0xdd, size);
  h->bytes += size * alignment, h->blocks++;
  if (h->bytes > h->most) h->most = h->bytes;
  return memory;
}
static void take_back(void *user, void *memory, size_t size, size_t alignment) {
  heap *h = (heap *)user;
  h->bytes -= size * alignment, h->blocks--;
  free(memory);
}
static void allocators(void) {
  heap h = {0, 0, 0};
  bl_context *context = NULL;
  STRUCT(bl_context_options, options);
  options.alloc = give, options.dealloc = take_back, options.alloc_user = &h;
  GOOD(bl_context_create(&options, &context, &error));
  same_bits(context, 0);
  CHECK(h.most > (size_t)LARGE * LARGE * 4);
  bl_free(context);
  CHECK(h.bytes == 0 && h.blocks == 0);
}

/* The entry of a name, or one of zeros. */
static bl_profile_entry entry_of(const bl_profile_entry *entries, size_t count, const char *name) {
  bl_profile_entry none;
  size_t i;
  for (i = 0; i < count; i++)
    if (strcmp(entries[i].kernel, name) == 0) return entries[i];
  memset(&none, 0, sizeof none);
  return none;
}

static void counters(void) {
  bl_context *context = NULL;
  bl_layer *layer;
  bl_profile_entry entries[8], call;
  size_t count = 0, room;
  STRUCT(bl_context_options, options);
  STRUCT(bl_memory_info, held);
  options.flags = BL_CONTEXT_PROFILE;
  GOOD(bl_context_create(&options, &context, &error));
  GOOD(bl_memory(context, &held, &error));
  CHECK(held.handles == 0 && held.packed == 0 && held.mapped == 0 && held.workspace == 0);
  layer = large_layer(context, LARGE, LARGE);
  GOOD(bl_memory(context, &held, &error));
  CHECK(held.handles == 1 && held.packed >= (uint64_t)LARGE * LARGE * 4);
  CHECK(plan_of(layer, 0).bytes_read == 0 && plan_of(layer, 0).operations == 0);
  forward(layer, 1, x, y);
  forward(layer, 1, x, y);
  GOOD(bl_profile(context, NULL, 0, &count, 1, &error)); /* nothing is copied, and nothing zeroed */
  CHECK(count == 4); /* the kernel, x, y, calls */
  room = count;
  EXPECT(bl_profile(context, entries, 0, &count, 0, &error), BL_ERROR_BUFFER_TOO_SMALL, "");
  CHECK(count == room);
  GOOD(bl_profile(context, entries, 8, &count, 1, &error));
  CHECK(count == 4 && entries[0].calls == 2 && entries[0].kernel == plan_of(layer, 1).kernel);
  CHECK(entries[0].bytes == 2 * plan_of(layer, 1).bytes_read);
  CHECK(entries[0].operations == 2 * plan_of(layer, 1).operations);
  CHECK(entry_of(entries, count, "quantize").bytes == 2 * LARGE * 4);
  CHECK(entry_of(entries, count, "epilogue").bytes == 2 * LARGE * 4);
  call = entry_of(entries, count, "call");
  CHECK(call.calls == 2 && call.bytes == entries[0].bytes && call.operations == entries[0].operations);
  CHECK(entries[0].nanoseconds > 0 && entries[0].nanoseconds <= call.nanoseconds);
  GOOD(bl_profile(context, entries, 8, &count, 0, &error));
  CHECK(count == 0); /* was reset */
  bl_free(layer);
  GOOD(bl_memory(context, &held, &error));
  CHECK(held.handles == 0 && held.packed == 0 && held.workspace == 0);
  bl_free(context);
}

/* Scales of x: found by the layer, or fixed by a calibration. */
static void scales(void) {
  bl_context *context = NULL;
  bl_layer *layer = NULL;
  bl_profile_entry entries[8];
  float *weights = floats(LARGE * 64);
  size_t count = 0;
  STRUCT(bl_context_options, options);
  STRUCT(bl_layer_options, how);
  options.flags = BL_CONTEXT_PROFILE;
  GOOD(bl_context_create(&options, &context, &error));
  fill(weights, LARGE * 64, 4);
  how.type = BL_TYPE_INT8;
  how.activation = BL_ACTIVATION_INT8_ROW;
  GOOD(bl_layer_create(context, LARGE, 64, weights, BL_TYPE_F32, 0, &how, &layer, &error));
  forward(layer, 1, x, y);
  GOOD(bl_layer_calibrate(layer, 1, x, BL_TYPE_F32, 0, &error));
  forward(layer, 1, x, y);
  forward(layer, 1, x, y);
  GOOD(bl_profile(context, entries, 8, &count, 1, &error));
  CHECK(entry_of(entries, count, "scale_misses").calls == 1);
  CHECK(entry_of(entries, count, "scale_hits").calls == 2);
  GOOD(bl_layer_calibrate(layer, 0, NULL, BL_TYPE_F32, 0, &error));
  forward(layer, 1, x, y);
  GOOD(bl_profile(context, entries, 8, &count, 0, &error));
  CHECK(entry_of(entries, count, "scale_misses").calls == 1);
  CHECK(entry_of(entries, count, "scale_hits").calls == 0);
  bl_free(layer);
  bl_free(context);
  free(weights);
}

/* Every stage, of a joint call: what layers share is done once. */
static void stages(void) {
  static const char *const names[] = {"norm", "rotation", "quantize", "epilogue", "call"};
  bl_context *context = NULL;
  bl_layer *layers[2] = {NULL, NULL};
  bl_profile_entry entries[8];
  void *ys[2];
  float *weights = floats(LARGE * 64);
  size_t count = 0, i;
  int round, whole = 0;
  STRUCT(bl_context_options, options);
  STRUCT(bl_layer_options, how);
  options.flags = BL_CONTEXT_PROFILE;
  GOOD(bl_context_create(&options, &context, &error));
  fill(weights, LARGE * 64, 4);
  how.norm = BL_NORM_RMS;
  how.rotation_block = 64;
  for (i = 0; i < 2; i++) {
    how.type = i ? BL_TYPE_Q4_0 : BL_TYPE_Q8_0; /* groups of 32 both: they share their x */
    how.epilogue = i ? BL_EPILOGUE_SILU : BL_EPILOGUE_NONE;
    GOOD(bl_layer_create(context, LARGE, 64, weights, BL_TYPE_F32, 0, &how, &layers[i], &error));
    ys[i] = take(M * LARGE * sizeof(float));
  }
  GOOD(bl_forward_many((const bl_layer *const *)layers, 2, M, x, BL_TYPE_F32, 0, ys, BL_TYPE_F32, NULL, NULL, &error));
  GOOD(bl_profile(context, entries, 8, &count, 0, &error));
  CHECK(count == 8); /* two kernels, those above, and the scales that both found */
  CHECK(entry_of(entries, count, "scale_misses").calls == 2);
  for (i = 0; i < 5; i++) {
    bl_profile_entry e = entry_of(entries, count, names[i]);
    CHECK(e.calls == 1 && e.nanoseconds > 0);
    if (i < 3) CHECK(e.bytes == M * 64 * 4 && e.operations == 0);
  }
  CHECK(entry_of(entries, count, "epilogue").bytes == 2 * M * LARGE * 4);
  CHECK(strcmp(entries[count - 1].kernel, "call") == 0);
  /* On one thread the parts make up the whole, unless the thread is held up between them. */
  for (round = 0; round < 50 && !whole; round++) {
    uint64_t parts = 0;
    GOOD(bl_profile(context, entries, 8, &count, 1, &error));
    GOOD(
        bl_forward_many((const bl_layer *const *)layers, 2, M, x, BL_TYPE_F32, 0, ys, BL_TYPE_F32, NULL, NULL, &error));
    GOOD(bl_profile(context, entries, 8, &count, 0, &error));
    for (i = 0; i + 1 < count; i++) parts += entries[i].nanoseconds;
    CHECK(parts <= entries[count - 1].nanoseconds);
    whole = parts > entries[count - 1].nanoseconds / 2;
  }
  CHECK(whole);
  for (i = 0; i < 2; i++) free(ys[i]), bl_free(layers[i]);
  bl_free(context);
  free(weights);
}

int main(int count, char **words) {
  start(count, words);
  fill(x, M * LARGE, 16);
  pools();
  hosts();
  shared_pool();
  own_pools();
  logs();
  allocators();
  counters();
  stages();
  scales();
  return done();
}
