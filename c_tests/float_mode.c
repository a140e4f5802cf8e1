/* Hosts run with subnormals flushed, another rounding mode or floating-point traps: the bits are the
 * same, no trap is sprung, and the mode is theirs again after the call. */
#include "layers.h"

#include <fenv.h>
#include <pthread.h>
#if defined(__x86_64__)
#include <xmmintrin.h>
static uint32_t mode(void) { return _mm_getcsr() & 0xffc0u; } /* without the sticky flags */
static void set_mode(uint32_t bits) { _mm_setcsr(bits); }
static const uint32_t modes[] = {
    0x1f80,                            /* the default */
    0x1f80 | 0x8040,                   /* flush to zero, subnormals are zero */
    0x1f80 | 0x2000, 0x1f80 | 0x4000,  /* down, up */
    0x1f80 | 0x6000 | 0x8040,          /* towards zero, flushed */
    0x0000 | 0x1000,                   /* traps, but for inexact results */
    0x0000,                            /* all traps */
};
#else
static uint32_t mode(void) { return (uint32_t)fegetround(); }
static void set_mode(uint32_t bits) { fesetround((int)bits); }
static const uint32_t modes[] = {FE_TONEAREST, FE_DOWNWARD, FE_UPWARD, FE_TOWARDZERO};
#endif

enum { M = 3, ROWS = 64, COLUMNS = 512 };

/* Normal values, subnormal ones, and (last) a row that is not finite. */
static void inputs(float *x) {
  int k;
  fill(x, M * COLUMNS, 11);
  for (k = 0; k < COLUMNS; k++) x[COLUMNS + k] *= 1e-39f;
  for (k = 0; k < COLUMNS; k += 2) x[k] *= 1e-38f;
  x[2 * COLUMNS + 3] = 1e38f * (x[2 * COLUMNS + 1] + 10) * 1e20f;
}

static bl_model *model;
static float *x, *want, *y, *weights, *again;

/* Opening, one forward and one reading in each mode, on the calling thread. */
static void in_each_mode(const char *tensor, bl_activation how) {
  bl_layer *layer = open_layer(model, tensor, how, NULL);
  size_t k;
  forward(layer, M, x, want);
  GOOD(bl_layer_read(layer, 0, ROWS, weights, BL_TYPE_F32, 0, &error));
  for (k = 0; k < sizeof modes / sizeof *modes; k++) {
    bl_layer *packed = NULL;
    STRUCT(bl_layer_options, options);
    bl_status run, read, opened;
    uint32_t before, after;
    options.activation = how;
    memset(y, 0, M * ROWS * sizeof *y);
    set_mode(modes[k]);
    before = mode();
    opened = bl_layer_open(model, tensor, &options, &packed, NULL); /* packing rounds too */
    run = bl_forward(packed, M, x, BL_TYPE_F32, 0, y, BL_TYPE_F32, 0, NULL, NULL);
    read = bl_layer_read(packed, 0, ROWS, again, BL_TYPE_F32, 0, NULL);
    bl_plan(packed, BL_OP_FORWARD, 1, BL_TYPE_I8, NULL, NULL); /* fails */
    bl_free(packed);
    after = mode();
    set_mode(modes[0]);
    CHECK(before == after);
    CHECK(opened == BL_OK && run == BL_OK && read == BL_OK);
    CHECK(same(y, want, M * ROWS) && same(again, weights, ROWS * COLUMNS));
  }
  bl_free(layer);
}

/* ---- threads: started under the host's mode, or the host's own ------------------------------------- */

enum { WIDE = 1536, TASKS = 3, ROUNDS = 12 };

static uint32_t host_mode;
typedef struct {
  bl_task_fn run;
  void *task;
  size_t index;
  int kept; /* whether the task left the thread's mode as it was */
} piece;
static void *one(void *argument) {
  piece *p = (piece *)argument;
  set_mode(host_mode);
  p->run(p->task, p->index);
  p->kept = mode() == (host_mode & 0xffffffc0u);
  return NULL;
}
static void on_threads(void *user, size_t count, bl_task_fn run, void *task) {
  pthread_t threads[TASKS];
  piece pieces[TASKS];
  size_t i;
  if (count > TASKS) abort();
  for (i = 0; i < count; i++) {
    pieces[i].run = run, pieces[i].task = task, pieces[i].index = i, pieces[i].kept = 0;
    if (pthread_create(&threads[i], NULL, one, &pieces[i]) != 0) abort();
  }
  for (i = 0; i < count; i++) {
    pthread_join(threads[i], NULL);
    *(int *)user += pieces[i].kept ? 1 : 1000000;
  }
}

/* Norm, rotation, product and epilogue, whose sums and products meet subnormals on the way; large
 * enough to be shared out. Packed in the context of the call, y of M rows and of one row. */
static bl_status through(const bl_context *context, const float *w, const float *wide, bl_type type, float *out) {
  bl_layer *layer = NULL;
  bl_status status;
  const bl_layer *twice[2];
  void *ys[2];
  int round;
  STRUCT(bl_layer_options, options);
  options.type = type;
  options.norm = BL_NORM_RMS;
  options.norm_epsilon = 1e-30f;
  options.rotation_block = 512;
  options.epilogue = BL_EPILOGUE_GELU_ERF;
  status = bl_layer_create(context, WIDE, WIDE, w, BL_TYPE_F32, 0, &options, &layer, NULL);
  for (round = 0; round < ROUNDS && status == BL_OK; round++) /* by then all threads are there */
    status = bl_forward(layer, M, wide, BL_TYPE_F32, 0, out, BL_TYPE_F32, 0, NULL, NULL);
  twice[0] = twice[1] = layer;
  ys[0] = out + M * WIDE, ys[1] = out + (M + 1) * WIDE;
  if (status == BL_OK)
    status = bl_forward_many(twice, 2, 1, wide + WIDE, BL_TYPE_F32, 0, ys, BL_TYPE_F32, NULL, NULL, NULL);
  bl_free(layer);
  return status;
}

static void on_pools(void) {
  static const bl_type types[] = {BL_TYPE_F32, BL_TYPE_Q8_0, BL_TYPE_TERNARY};
  static const uint32_t threads[] = {1, 2, 5, 0}; /* 0: the host's */
  const int64_t total = (M + 2) * WIDE;
  float *w = floats(WIDE * WIDE), *wide = floats(M * WIDE), *plain = floats(total), *out = floats(total);
  size_t t, n, k;
  int64_t i, subnormal = 0;
  fill(w, WIDE * WIDE, 5);
  fill(wide, M * WIDE, 6);
  /* Outputs of the second row are subnormal. */
  for (i = 0; i < WIDE * WIDE; i++) w[i] *= 1e-20f;
  for (i = 0; i < WIDE; i++) wide[WIDE + i] *= 1e-36f;
  for (t = 0; t < 3; t++) {
    CHECK(through(NULL, w, wide, types[t], plain) == BL_OK);
    for (i = 0; i < total; i++) subnormal += plain[i] != 0 && plain[i] < 1e-38f && plain[i] > -1e-38f;
    for (n = 0; n < 4; n++)
      for (k = 0; k < sizeof modes / sizeof *modes; k++) {
        bl_context *context = NULL;
        bl_status made, ran;
        uint32_t after;
        int tasks = 0;
        STRUCT(bl_context_options, options);
        options.threads = threads[n];
        host_mode = modes[k];
        if (threads[n] == 0) {
          options.threads = TASKS;
          options.parallel_for = on_threads;
          options.parallel_for_user = &tasks;
        }
        memset(out, 0, (size_t)total * sizeof *out);
        set_mode(modes[k]);
        made = bl_context_create(&options, &context, NULL); /* starts its threads under this mode */
        ran = through(context, w, wide, types[t], out);
        bl_free(context);
        after = mode();
        set_mode(modes[0]);
        CHECK(made == BL_OK && ran == BL_OK && after == (modes[k] & 0xffffffc0u));
        CHECK(same(out, plain, total));
        CHECK(threads[n] != 0 || (tasks > 0 && tasks < 1000000));
      }
  }
  CHECK(subnormal > 1000); /* or the modes would not matter */
  free(w), free(wide), free(plain), free(out);
}

int main(int count, char **words) {
  static const char *const tensors[] = {"blk.0.f32.weight", "blk.0.f16.weight", "blk.0.q4_0.weight",
                                        "blk.0.q4_k.weight", "blk.0.tq2_0.weight", "blk.0.q5_1.weight"};
  size_t i;
  start(count, words);
  x = floats(M * COLUMNS), want = floats(M * ROWS), y = floats(M * ROWS);
  weights = floats(ROWS * COLUMNS), again = floats(ROWS * COLUMNS);
  model = open_model(ALL_TYPES);
  inputs(x);
  for (i = 0; i < sizeof tensors / sizeof *tensors; i++) {
    in_each_mode(tensors[i], BL_ACTIVATION_AUTO);
    in_each_mode(tensors[i], BL_ACTIVATION_F32);
  }
  bl_free(model);
  free(x), free(want), free(y), free(weights), free(again);
  on_pools();
  return done();
}
