/* Many threads use one layer and one model at a time, each with its own x, y and workspace. */
#include "layers.h"

#include <pthread.h>

enum { THREADS = 8, ROUNDS = 60, M = 4, ROWS = 64, COLUMNS = 512 };

static bl_model *model;
static bl_layer *layer;
static float x[THREADS][M * COLUMNS], want[THREADS][M * ROWS];
static int wrong[THREADS];

static void *work(void *argument) {
  size_t me = (size_t)argument;
  float y[M * ROWS];
  bl_error mine;
  int round;
  for (round = 0; round < ROUNDS; round++) {
    bl_run_options run;
    bl_plan_info plan;
    bl_layer *own = NULL;
    memset(&run, 0, sizeof run), memset(&plan, 0, sizeof plan);
    run.struct_size = sizeof run, plan.struct_size = sizeof plan;
    wrong[me] += bl_plan(layer, BL_OP_FORWARD, M, BL_TYPE_F32, &plan, &mine) != BL_OK;
    if (round % 2) {
      run.workspace_size = (size_t)plan.workspace_size;
      run.workspace = take(run.workspace_size);
    }
    memset(y, 0, sizeof y);
    wrong[me] += bl_forward(layer, M, x[me], BL_TYPE_F32, 0, y, BL_TYPE_F32, 0, &run, &mine) != BL_OK;
    wrong[me] += !same(y, want[me], M * ROWS);
    free(run.workspace);
    if (round % 8 == 0) { /* handles come and go meanwhile */
      wrong[me] += bl_layer_open(model, "blk.0.q4_0.weight", NULL, &own, &mine) != BL_OK;
      memset(y, 0, sizeof y);
      wrong[me] += bl_forward(own, M, x[me], BL_TYPE_F32, 0, y, BL_TYPE_F32, 0, NULL, &mine) != BL_OK;
      wrong[me] += !same(y, want[me], M * ROWS);
      bl_free(own);
      wrong[me] += bl_plan(own, BL_OP_FORWARD, M, BL_TYPE_F32, &plan, &mine) != BL_ERROR_INVALID_HANDLE;
    }
    /* Another thread's failure does not end up in this one's error. */
    wrong[me] += bl_forward(layer, -1 - (int64_t)me, x[me], BL_TYPE_F32, 0, y, BL_TYPE_F32, 0, NULL, &mine) !=
                 BL_ERROR_INVALID_ARGUMENT;
    {
      char text[32];
      snprintf(text, sizeof text, "m = -%d ", (int)me + 1);
      wrong[me] += strstr(mine.message, text) == NULL;
    }
  }
  return NULL;
}

static bl_context *profiled;
static bl_layer *counted;
static volatile int running = 1;

/* Counts, and zeroes what was counted, so that entries come and go. */
static void *count_and_reset(void *argument) {
  bl_profile_entry entries[64];
  float y[ROWS];
  size_t count;
  (void)argument;
  while (running) {
    bl_forward(counted, 1, x[0], BL_TYPE_F32, 0, y, BL_TYPE_F32, 0, NULL, NULL);
    bl_profile(profiled, entries, 64, &count, 1, NULL);
  }
  return NULL;
}

/* Every entry that is counted is written, and is one of something, whoever zeroes counters meanwhile. */
static void profiles(void) {
  STRUCT(bl_context_options, options);
  bl_profile_entry entries[64];
  bl_model *own = NULL;
  pthread_t thread;
  size_t count, k;
  int i, unwritten = 0, empty = 0;
  options.flags = BL_CONTEXT_PROFILE;
  GOOD(bl_context_create(&options, &profiled, &error));
  GOOD(bl_load(profiled, golden(ALL_TYPES), NULL, &own, &error));
  counted = open_layer(own, "blk.0.q4_0.weight", BL_ACTIVATION_AUTO, NULL);
  CHECK(pthread_create(&thread, NULL, count_and_reset, NULL) == 0);
  for (i = 0; i < 20000; i++) {
    memset(entries, 0, sizeof entries);
    if (bl_profile(profiled, entries, 64, &count, 0, NULL) != BL_OK) count = 0;
    for (k = 0; k < count; k++) unwritten += entries[k].kernel == NULL, empty += entries[k].calls == 0;
  }
  running = 0;
  CHECK(pthread_join(thread, NULL) == 0);
  CHECK(unwritten == 0);
  CHECK(empty == 0);
  bl_free(counted), bl_free(own), bl_free(profiled);
}

int main(int count, char **words) {
  pthread_t threads[THREADS];
  size_t i;
  start(count, words);
  model = open_model(ALL_TYPES);
  layer = open_layer(model, "blk.0.q4_0.weight", BL_ACTIVATION_AUTO, NULL);
  for (i = 0; i < THREADS; i++) {
    fill(x[i], M * COLUMNS, (uint32_t)i);
    forward(layer, M, x[i], want[i]);
  }
  for (i = 0; i < THREADS; i++) CHECK(pthread_create(&threads[i], NULL, work, (void *)i) == 0);
  for (i = 0; i < THREADS; i++) CHECK(pthread_join(threads[i], NULL) == 0);
  for (i = 0; i < THREADS; i++) CHECK(wrong[i] == 0);
  bl_free(model), bl_free(layer);
  profiles();
  return done();
}
