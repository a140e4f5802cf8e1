/* A child of fork() uses what is serial, and is told about the rest; the parent goes on. */
#include "layers.h"

#include <pthread.h>
#include <sys/wait.h>
#include <unistd.h>

enum { ROWS = 64, COLUMNS = 512 };
#define WEIGHT "blk.0.q4_0.weight"

static float x[COLUMNS], want[ROWS];

static void runs(const bl_layer *layer) {
  float y[ROWS];
  memset(y, 0, sizeof y);
  forward(layer, 1, x, y);
  CHECK(same(y, want, ROWS));
}

static bl_layer *layer_in(const bl_context *context) {
  bl_model *model = NULL;
  bl_layer *layer;
  GOOD(bl_load(context, golden(ALL_TYPES), NULL, &model, &error));
  layer = open_layer(model, WEIGHT, BL_ACTIVATION_AUTO, NULL);
  bl_free(model);
  return layer;
}

/* Runs `child` in a child; the child's failures count here. */
static void in_child(void (*child)(const bl_layer *, bl_context *), const bl_layer *layer, bl_context *context) {
  int status = 0;
  pid_t pid;
  fflush(NULL);
  pid = fork();
  CHECK(pid >= 0);
  if (pid == 0) {
    alarm(60); /* a child that hangs is a failure, not a wait for ever */
    check_failures = 0;
    child(layer, context);
    _exit(check_failures != 0);
  }
  CHECK(waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

/* Everything serial works: the parent's layer, new handles, the default context. */
static void serial_child(const bl_layer *layer, bl_context *context) {
  bl_context *own = NULL;
  bl_layer *other;
  runs(layer);
  other = layer_in(context);
  runs(other);
  bl_free(other);
  other = layer_in(NULL);
  runs(other);
  bl_free(other);
  GOOD(bl_context_create(NULL, &own, &error));
  other = layer_in(own);
  runs(other);
  bl_free(other), bl_free(own), bl_free(context), bl_free((void *)(size_t)layer);
  EXPECT(bl_load(context, golden(ALL_TYPES), NULL, NULL, &error), BL_ERROR_INVALID_ARGUMENT, "`out`");
}

enum { MANY = 4096 };
static bl_layer *large;

/* The threads of a pool are not in the child: a status, not a wait. What one thread does alone may
 * work. A new pool works. */
static void pooled_child(const bl_layer *layer, bl_context *context) {
  static float y[MANY];
  bl_status status;
  bl_context *own = NULL;
  bl_layer *other;
  STRUCT(bl_context_options, options);
  EXPECT(bl_forward(large, 1, x, BL_TYPE_F32, 0, y, BL_TYPE_F32, 0, NULL, &error), BL_ERROR_FORKED, "fork");
  status = bl_forward(layer, 1, x, BL_TYPE_F32, 0, y, BL_TYPE_F32, 0, NULL, &error);
  CHECK(status == BL_ERROR_FORKED || (status == BL_OK && same(y, want, ROWS)));
  options.threads = 3;
  GOOD(bl_context_create(&options, &own, &error));
  other = layer_in(own);
  runs(other);
  bl_free(other), bl_free(own);
  other = layer_in(NULL);
  runs(other);
  bl_free(other);
  bl_free(context), bl_free((void *)(size_t)layer); /* nobody is waited for */
}

static volatile int churning;

static void *makes_and_frees(void *unused) {
  (void)unused;
  while (churning) {
    bl_context *context = NULL;
    if (bl_context_create(NULL, &context, NULL) != BL_OK) abort();
    bl_free(context);
  }
  return NULL;
}

static void makes_one(const bl_layer *layer, bl_context *context) {
  bl_context *own = NULL;
  (void)layer, (void)context;
  GOOD(bl_context_create(NULL, &own, &error));
  bl_free(own);
}

/* Whatever other threads are in the middle of when a process forks, the child is not in it. */
static void forks_among_threads(void) {
  pthread_t threads[3];
  int i;
  churning = 1;
  for (i = 0; i < 3; i++) CHECK(pthread_create(&threads[i], NULL, makes_and_frees, NULL) == 0);
  for (i = 0; i < 100 && check_failures == 0; i++) in_child(makes_one, NULL, NULL);
  churning = 0;
  for (i = 0; i < 3; i++) CHECK(pthread_join(threads[i], NULL) == 0);
}

int main(int count, char **words) {
  bl_context *serial = NULL, *pooled = NULL;
  bl_layer *layer;
  STRUCT(bl_context_options, options);
  start(count, words);
  fill(x, COLUMNS, 12);
  GOOD(bl_context_create(NULL, &serial, &error));
  layer = layer_in(serial);
  forward(layer, 1, x, want);
  in_child(serial_child, layer, serial);
  runs(layer);
  bl_free(layer), bl_free(serial);

  layer = layer_in(NULL); /* the default context */
  in_child(serial_child, layer, NULL);
  runs(layer);
  bl_free(layer);

  options.threads = 3;
  GOOD(bl_context_create(&options, &pooled, &error));
  layer = layer_in(pooled);
  runs(layer);
  {
    static float before[MANY], after[MANY];
    large = large_layer(pooled, MANY, COLUMNS);
    forward(large, 1, x, before);
    in_child(pooled_child, layer, pooled);
    forward(large, 1, x, after); /* the parent's pool is as it was */
    CHECK(same(before, after, MANY));
  }
  runs(layer);
  bl_free(large), bl_free(layer), bl_free(pooled);
  forks_among_threads();
  return done();
}
