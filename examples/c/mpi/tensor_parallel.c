/**
 * tensor_parallel: the feed-forward blocks of a llama GGUF file, split over the ranks of an MPI run.
 *
 *   mpicc -Iinclude examples/c/mpi/tensor_parallel.c -Ltarget/release -lbitlinear -lm
 *   mpirun -n 2 ./a.out model.gguf
 *
 * Gate and up are split by rows of W (BL_SHARD_ROWS): every rank has all of x and gets a part of the
 * inner values, bit for bit those of the whole layer. Down is split by columns (BL_SHARD_COLUMNS), on
 * just those inner values; its partial sums are added up by one allreduce for each block. Rank 0 also
 * runs the whole layers and compares.
 */
#include <bitlinear.h>
#include <float.h>
#include <math.h>
#include <mpi.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ROWS = 4 /* of x */ };

static int rank, ranks;

static bool fail(const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  fprintf(stderr, "tensor_parallel: rank %d: ", rank);
  vfprintf(stderr, format, arguments);
  fputc('\n', stderr);
  va_end(arguments);
  return false;
}

static float *floats(int64_t count) {
  float *memory = calloc((size_t)count, sizeof *memory);
  if (!memory) fail("no memory for %lld numbers", (long long)count);
  return memory;
}

/* ---- one block ---------------------------------------------------------------------------------- */

typedef struct {
  bl_layer *gate, *up, *down;
  bl_layer_info up_info, down_info;
} feed_forward;

static bool open_layer(const bl_model *file, size_t block, const char *part,
                       bl_layer_options options, bl_layer **layer, bl_layer_info *info) {
  bl_error error;
  char name[64];
  snprintf(name, sizeof name, "blk.%zu.%s", block, part);
  *info = (bl_layer_info){.struct_size = sizeof *info};
  if (bl_layer_open(file, name, &options, layer, &error) == BL_OK &&
      bl_layer_describe(*layer, info, &error) == BL_OK)
    return true;
  return fail("%s: %s", name, error.message);
}

/* `rank` of `ranks`; all of it where there is one. */
static bool open_block(const bl_model *file, size_t block, int part, int parts, feed_forward *f) {
  bl_error error;
  bl_layer_options options = {.struct_size = sizeof options}, gate;
  bl_tensor_info gain = {.struct_size = sizeof gain};
  char name[64];
  memset(f, 0, sizeof *f);
  snprintf(name, sizeof name, "blk.%zu.ffn_norm.weight", block);
  if (bl_model_tensor(file, name, 0, &gain, &error) != BL_OK) return fail("%s", error.message);
  bl_model_layer_info about = {.struct_size = sizeof about};
  char up[64];
  snprintf(up, sizeof up, "blk.%zu.ffn_up", block);
  if (bl_model_layer(file, up, 0, &about, &error) != BL_OK) return fail("%s", error.message);
  if (gain.type != BL_TYPE_F32 || gain.bytes != (uint64_t)about.in_features * sizeof(float))
    return fail("%s is not %lld f32 numbers", name, (long long)about.in_features);
  if (parts > 1) {
    options.shard_rank = (uint32_t)part;
    options.shard_count = (uint32_t)parts;
  }
  bl_layer_options down = options;
  options.norm = BL_NORM_RMS;
  options.norm_weight = gain.data;
  if (parts > 1) options.shard = BL_SHARD_ROWS, down.shard = BL_SHARD_COLUMNS;
  gate = options;
  gate.epilogue = BL_EPILOGUE_SILU;
  bl_layer_info gate_info;
  if (!open_layer(file, block, "ffn_gate", gate, &f->gate, &gate_info) ||
      !open_layer(file, block, "ffn_up", options, &f->up, &f->up_info) ||
      !open_layer(file, block, "ffn_down", down, &f->down, &f->down_info))
    return false;
  /* Parts of rows end where they like, parts of columns at whole groups: both have to agree. */
  if (gate_info.out_features != f->up_info.out_features ||
      f->up_info.out_features != f->down_info.in_features ||
      f->up_info.first_row != f->down_info.first_column)
    return fail("block %zu: rows %lld+%lld of gate and up, columns %lld+%lld of down", block,
                (long long)f->up_info.first_row, (long long)f->up_info.out_features,
                (long long)f->down_info.first_column, (long long)f->down_info.in_features);
  return true;
}

static void close_block(feed_forward *f) {
  bl_free(f->gate), bl_free(f->up), bl_free(f->down);
}

/* y = down(silu(gate(x)) * up(x)), of this part; inner gets the product. */
static bool run_block(const feed_forward *f, const float *x, float *inner, float *up, float *y) {
  bl_error error;
  const bl_layer *layers[] = {f->gate, f->up};
  void *ys[] = {inner, up};
  if (bl_forward_many(layers, 2, ROWS, x, BL_TYPE_F32, 0, ys, BL_TYPE_F32, NULL, NULL, &error) !=
      BL_OK)
    return fail("bl_forward_many: %s", error.message);
  for (int64_t i = 0; i < ROWS * f->up_info.out_features; i++) inner[i] *= up[i];
  if (bl_forward(f->down, ROWS, inner, BL_TYPE_F32, 0, y, BL_TYPE_F32, 0, NULL, &error) != BL_OK)
    return fail("bl_forward: %s", error.message);
  return true;
}

/* ---- all blocks --------------------------------------------------------------------------------- */

typedef struct {
  double worst;      /* largest difference, as a part of sum |x w| */
  int64_t different; /* outputs that are not the same bits */
  int64_t outputs;
} comparison;

/* Holds y against the whole layers' result: only the order of a sum of floats may tell them apart. */
static bool compare(const bl_model *file, size_t block, const float *x, const float *y,
                    comparison *c) {
  bl_error error;
  feed_forward whole;
  bool ok = open_block(file, block, 0, 1, &whole);
  int64_t in = whole.down_info.in_features, out = whole.down_info.out_features;
  float *inner = ok ? floats(ROWS * in) : NULL, *up = ok ? floats(ROWS * in) : NULL;
  float *want = ok ? floats(ROWS * out) : NULL, *row = ok ? floats(in) : NULL;
  ok = inner && up && want && row && run_block(&whole, x, inner, up, want);
  for (int64_t n = 0; ok && n < out; n++) {
    if (bl_layer_read(whole.down, n, 1, row, BL_TYPE_F32, 0, &error) != BL_OK)
      ok = fail("bl_layer_read: %s", error.message);
    for (int64_t m = 0; ok && m < ROWS; m++) {
      double sum = 0, difference = fabs((double)y[m * out + n] - (double)want[m * out + n]);
      for (int64_t k = 0; k < in; k++) sum += fabs((double)inner[m * in + k] * (double)row[k]);
      if (!(difference <= 1e-6 * sum)) /* not-a-numbers, too */
        ok = fail("block %zu, y[%lld][%lld] is %g, not %g", block, (long long)m, (long long)n,
                  (double)y[m * out + n], (double)want[m * out + n]);
      if (sum > 0) c->worst = fmax(c->worst, difference / sum);
      c->different += y[m * out + n] != want[m * out + n];
      c->outputs++;
    }
  }
  free(inner), free(up), free(want), free(row);
  close_block(&whole);
  return ok;
}

static bool work_on(const bl_model *file, size_t block, comparison *c) {
  feed_forward mine;
  if (!open_block(file, block, rank, ranks, &mine)) return false;
  int64_t width = mine.up_info.in_features, part = mine.up_info.out_features;
  int64_t out = mine.down_info.out_features;
  float *x = floats(ROWS * width), *inner = floats(ROWS * part), *up = floats(ROWS * part);
  float *y = floats(ROWS * out);
  bool ok = x && inner && up && y;
  for (int64_t i = 0; ok && i < ROWS * width; i++)
    x[i] = (float)sin((double)(i + 1) * (double)(block + 1)); /* the same on every rank */
  ok = ok && run_block(&mine, x, inner, up, y);
  /* Each rank has the sum over its columns; together they are the whole sum. */
  if (ok && MPI_Allreduce(MPI_IN_PLACE, y, (int)(ROWS * out), MPI_FLOAT, MPI_SUM,
                          MPI_COMM_WORLD) != MPI_SUCCESS)
    ok = fail("MPI_Allreduce");
  close_block(&mine);
  if (ok && rank == 0) ok = compare(file, block, x, y, c);
  free(x), free(inner), free(up), free(y);
  return ok;
}

static bool work(const char *path) {
  bl_error error;
  bl_model *file = NULL;
  bl_meta_info blocks = {.struct_size = sizeof blocks};
  comparison c = {0};
  bool ok = bl_load(NULL, path, NULL, &file, &error) == BL_OK &&
            bl_model_meta(file, "llama.block_count", 0, &blocks, &error) == BL_OK;
  if (!ok) fail("%s", error.message);
  for (size_t i = 0; ok && i < (size_t)blocks.integer; i++) ok = work_on(file, i, &c);
  bl_free(file);
  if (ok && rank == 0)
    printf("%lld blocks on %d ranks: %lld of %lld outputs differ, by at most %.1e of sum |x w|\n",
           (long long)blocks.integer, ranks, (long long)c.different, (long long)c.outputs, c.worst);
  return ok;
}

int main(int count, char **words) {
  if (MPI_Init(&count, &words) != MPI_SUCCESS) return 1;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &ranks);
  bool ok = count == 2 || fail("usage: mpirun -n RANKS tensor_parallel MODEL.gguf");
  ok = ok && work(words[1]);
  /* One rank that gives up would leave the others waiting for it. */
  if (!ok) MPI_Abort(MPI_COMM_WORLD, 1);
  return MPI_Finalize() == MPI_SUCCESS ? 0 : 1;
}
