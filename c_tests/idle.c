/* A pool that has nothing to do costs nothing: its threads sleep. */
#include "layers.h"

#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

enum { SIZE = 2048 };

/* Seconds of processors that this process has used. */
static double used(void) {
  struct rusage u;
  if (getrusage(RUSAGE_SELF, &u) != 0) abort();
  return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) +
         1e-6 * (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec);
}

static double clock_now(void) {
  struct timespec t;
  if (clock_gettime(CLOCK_MONOTONIC, &t) != 0) abort();
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void idle(uint32_t threads) {
  float *x = floats(SIZE), *y = floats(SIZE);
  double work, rest, begin;
  int i;
  bl_context *context = NULL;
  bl_layer *layer;
  STRUCT(bl_context_options, options);
  options.threads = threads;
  GOOD(bl_context_create(&options, &context, &error));
  layer = large_layer(context, SIZE, SIZE);
  work = used();
  for (i = 0; i < 20; i++) forward(layer, 1, x, y); /* all are awake */
  CHECK(used() > work);
  usleep(20000);
  work = used();
  begin = clock_now();
  usleep(1000000);
  rest = used() - work;
  if (rest >= 0.01 * (clock_now() - begin))
    fprintf(stderr, "%u threads used %.4f s of a second of rest\n", threads, rest);
  CHECK(rest < 0.01 * (clock_now() - begin));
  bl_free(layer), bl_free(context);
  free(x), free(y);
}

int main(int count, char **words) {
  start(count, words);
  idle(BL_THREADS_ALL);
  idle(16);
  return done();
}
