/* Every buffer between two pages that may not be touched, at its end and at its beginning: a byte read
 * or written outside is the end of this program. */
#include "layers.h"

#include <sys/mman.h>
#include <unistd.h>

/* Memory of whole pages with a forbidden page on either side. */
typedef struct {
  unsigned char *all;
  size_t pages; /* bytes between the guards */
} guarded;

static size_t page;

static guarded guard(size_t size) {
  guarded g;
  g.pages = (size + page - 1) / page * page;
  if (g.pages == 0) g.pages = page;
  g.all = (unsigned char *)mmap(NULL, g.pages + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (g.all == MAP_FAILED) abort();
  if (mprotect(g.all + page, g.pages, PROT_READ | PROT_WRITE) != 0) abort();
  return g;
}
static void release(guarded g) { munmap(g.all, g.pages + 2 * page); }

/* Where `size` bytes lie: against the guard behind them, or the one before them. */
static unsigned char *place(guarded g, size_t size, int at_end) {
  return g.all + page + (at_end ? g.pages - size : 0);
}

/* A copy of `size` bytes in guarded memory. */
static unsigned char *copy(guarded *g, const void *bytes, size_t size, int at_end) {
  unsigned char *to;
  *g = guard(size);
  to = place(*g, size, at_end);
  if (size) memcpy(to, bytes, size);
  return to;
}

static size_t width(bl_type type) { return type == BL_TYPE_F32 ? 4 : 2; }

/* One layer: x, y, the workspace and dst of bl_layer_read, for a few batches and types. */
static void run(const bl_layer *layer) {
  static const bl_type types[] = {BL_TYPE_F32, BL_TYPE_F16, BL_TYPE_BF16};
  static const int64_t batches[] = {1, 2, 5, 17};
  bl_layer_info info = layer_info(layer);
  int at_end;
  size_t b, t;
  for (at_end = 0; at_end < 2; at_end++)
    for (b = 0; b < 4; b++)
      for (t = 0; t < 3; t++) {
        int64_t m = batches[b];
        size_t stride = (size_t)info.in_features * width(types[t]) + 6; /* the last row has no gap after it */
        size_t x_size = stride * (size_t)(m - 1) + (size_t)info.in_features * width(types[t]);
        size_t y_stride = (size_t)info.out_features * width(types[t]) + 2;
        size_t y_size = y_stride * (size_t)(m - 1) + (size_t)info.out_features * width(types[t]);
        size_t w_size = (size_t)plan_of(layer, m).workspace_size;
        guarded x = guard(x_size), y = guard(y_size), w = guard(w_size), d;
        STRUCT(bl_run_options, options);
        options.workspace = place(w, w_size, at_end);
        options.workspace_size = w_size;
        GOOD(bl_forward(layer, m, place(x, x_size, at_end), types[t], (int64_t)stride,
                        place(y, y_size, at_end), types[t], (int64_t)y_stride, b % 2 ? &options : NULL, &error));
        release(x), release(y), release(w);
        if (m > info.out_features) continue;
        d = guard(x_size);
        GOOD(bl_layer_read(layer, info.out_features - m, m, place(d, x_size, at_end), types[t], (int64_t)stride,
                           &error));
        release(d);
      }
}

/* A whole file, borrowed: its bytes, the name of each tensor, the options and the error too. */
static void file(const unsigned char *bytes, size_t size) {
  int at_end;
  for (at_end = 0; at_end < 2; at_end++) {
    guarded f, o, e, l;
    unsigned char *data = copy(&f, bytes, size, at_end);
    bl_error *guarded_error;
    bl_load_options *load;
    bl_model *model = NULL;
    STRUCT(bl_load_options, options);
    STRUCT(bl_model_info, about);
    int64_t i;
    options.flags = BL_LOAD_BORROW;
    load = (bl_load_options *)(void *)copy(&o, &options, sizeof options, at_end);
    e = guard(sizeof error);
    guarded_error = (bl_error *)(void *)place(e, sizeof error, at_end);
    CHECK(bl_load_memory(NULL, data, size, load, &model, guarded_error) == BL_OK);
    GOOD(bl_model_describe(model, &about, &error));
    for (i = 0; i < about.tensors; i++) {
      STRUCT(bl_tensor_info, tensor);
      STRUCT(bl_layer_options, how);
      bl_layer *layer = NULL;
      guarded n, v;
      unsigned char *name;
      GOOD(bl_model_tensor(model, NULL, i, &tensor, &error));
      name = copy(&n, tensor.name, strlen(tensor.name) + 1, at_end);
      how.activation = i % 2 ? BL_ACTIVATION_F32 : BL_ACTIVATION_AUTO;
      v = guard((size_t)tensor.shape[0] * 4);
      if (tensor.dims == 2) how.bias = (const float *)(void *)place(v, (size_t)tensor.shape[0] * 4, at_end);
      l = guard(0);
      if (bl_layer_open(model, (const char *)name,
                        (const bl_layer_options *)memcpy(place(l, sizeof how, at_end), &how, sizeof how), &layer,
                        guarded_error) == BL_OK)
        run(layer);
      bl_free(layer);
      release(n), release(v), release(l);
    }
    bl_free(model);
    release(f), release(o), release(e);
  }
}

/* Float matrices of ragged shapes, made here. */
static void ragged(void) {
  static const struct {
    const char *dtype;
    size_t element;
  } kinds[] = {{"F32", 4}, {"F16", 2}, {"BF16", 2}};
  static const int64_t shapes[][2] = {{1, 1}, {1, 3}, {3, 1}, {5, 7}, {16, 16}, {17, 31}, {65, 63}, {70, 130}};
  size_t k, s;
  for (k = 0; k < 3; k++)
    for (s = 0; s < sizeof shapes / sizeof *shapes; s++) {
      size_t size;
      unsigned char *bytes = one_tensor_file(kinds[k].dtype, shapes[s][0], shapes[s][1], kinds[k].element, &size);
      file(bytes, size);
      free(bytes);
    }
}

/* Where a matrix's rows are: the last one has no gap behind it. */
typedef struct {
  guarded memory;
  unsigned char *at;
  int64_t stride;
} matrix;
static matrix matrix_of(int64_t rows, int64_t columns, bl_type type, size_t gap, int at_end) {
  matrix m;
  size_t row = (size_t)columns * width(type), size;
  m.stride = (int64_t)(row + gap);
  size = (size_t)m.stride * (size_t)(rows - 1) + row;
  m.memory = guard(size);
  m.at = place(m.memory, size, at_end);
  return m;
}

/* Several layers on one x: the arrays of layers, y's and strides as well. */
static void many(const bl_layer *const *layers, size_t n) {
  static const bl_type types[] = {BL_TYPE_F32, BL_TYPE_F16, BL_TYPE_BF16};
  static const int64_t batches[] = {1, 2, 17};
  bl_layer_info info = layer_info(layers[0]);
  int at_end;
  size_t b, t, i;
  for (at_end = 0; at_end < 2; at_end++)
    for (b = 0; b < 3; b++)
      for (t = 0; t < 3; t++) {
        int64_t m = batches[b], strides[16];
        matrix x = matrix_of(m, info.in_features, types[t], 6, at_end), y[16];
        guarded handles, outs, steps, w, run;
        void *ys[16];
        size_t w_size = 0;
        const bl_layer **guarded_layers;
        STRUCT(bl_run_options, options);
        for (i = 0; i < n; i++) {
          y[i] = matrix_of(m, layer_info(layers[i]).out_features, types[t], 2 * (i % 2), at_end);
          ys[i] = y[i].at;
          strides[i] = y[i].stride;
          w_size += (size_t)plan_of(layers[i], m).workspace_size;
        }
        w = guard(w_size);
        if (b % 2) {
          options.workspace = place(w, w_size, at_end);
          options.workspace_size = w_size;
        }
        options.flags = t == 1 ? BL_RUN_ACCUMULATE : 0;
        guarded_layers = (const bl_layer **)(void *)copy(&handles, layers, n * sizeof *layers, at_end);
        GOOD(bl_forward_many(guarded_layers, n, m, x.at, types[t], x.stride,
                             (void *const *)(void *)copy(&outs, ys, n * sizeof *ys, at_end), types[t],
                             (const int64_t *)(void *)copy(&steps, strides, n * sizeof *strides, at_end),
                             (const bl_run_options *)(void *)copy(&run, &options, sizeof options, at_end), &error));
        for (i = 0; i < n; i++) release(y[i].memory);
        release(x.memory), release(handles), release(outs), release(steps), release(w), release(run);
      }
}

/* Joint calls of layers that share their x and of such that do not. */
static void joint(void) {
  bl_model *model = open_model(ALL_TYPES);
  bl_layer *layers[16];
  size_t n = 0, calls = 0;
  int64_t i;
  STRUCT(bl_model_info, about);
  GOOD(bl_model_describe(model, &about, &error));
  for (i = 0; i < about.tensors; i++) {
    STRUCT(bl_tensor_info, tensor);
    GOOD(bl_model_tensor(model, NULL, i, &tensor, &error));
    if (bl_layer_open(model, tensor.name, NULL, &layers[n], NULL) != BL_OK) continue;
    if (n > 0 && layer_info(layers[n]).in_features != layer_info(layers[0]).in_features) {
      bl_free(layers[n]);
      continue;
    }
    if (++n < 16) continue;
    many((const bl_layer *const *)layers, n), calls++;
    while (n > 1) bl_free(layers[--n]);
  }
  many((const bl_layer *const *)layers, n), calls++;
  CHECK(calls > 1 && n > 0);
  while (n > 0) bl_free(layers[--n]);
  bl_free(model);
}

/* Rotation in place, both ways, with and without signs. */
static void rotations(void) {
  static const bl_type types[] = {BL_TYPE_F32, BL_TYPE_F16, BL_TYPE_BF16};
  static const struct {
    int64_t columns;
    uint32_t block;
  } shapes[] = {{2, 2}, {6, 2}, {16, 16}, {96, 32}, {64, 64}, {512, 128}, {1024, 1024}, {16384, 16384}};
  int at_end;
  size_t t, s;
  int64_t rows, k;
  for (at_end = 0; at_end < 2; at_end++)
    for (t = 0; t < 3; t++)
      for (s = 0; s < sizeof shapes / sizeof *shapes; s++)
        for (rows = 1; rows < 4; rows++) {
          int64_t columns = shapes[s].columns;
          matrix x = matrix_of(rows, columns, types[t], rows == 2 ? 10 : 0, at_end);
          size_t bytes = (size_t)columns * sizeof(float);
          guarded g = guard(bytes);
          float *signs = (float *)(void *)place(g, bytes, at_end);
          for (k = 0; k < columns; k++) signs[k] = k % 3 ? 1.0f : -1.0f;
          GOOD(bl_rotate(rows, columns, x.at, types[t], x.stride, shapes[s].block, rows == 3 ? NULL : signs,
                         rows % 2 ? BL_ROTATE_INVERSE : 0, &error));
          release(x.memory), release(g);
        }
}

/* What stands around a product: its vectors are read where they are, and only there. */
static void around(void) {
  static const int64_t shapes[][3] = {{3, 2, 2}, {17, 64, 32}, {70, 128, 128}, {64, 512, 256}};
  static const bl_type made[] = {BL_TYPE_F32, BL_TYPE_INT8, BL_TYPE_TERNARY};
  int at_end;
  size_t s, t;
  int64_t k;
  for (at_end = 0; at_end < 2; at_end++)
    for (s = 0; s < sizeof shapes / sizeof *shapes; s++)
      for (t = 0; t < 3; t++) {
        int64_t rows = shapes[s][0], columns = shapes[s][1];
        size_t in = (size_t)columns * sizeof(float), out = (size_t)rows * sizeof(float);
        guarded weights = guard((size_t)rows * in), bias = guard(out), gain = guard(in), shift = guard(in);
        guarded signs = guard(in);
        float *w = (float *)(void *)place(weights, (size_t)rows * in, at_end);
        bl_layer *layer = NULL;
        STRUCT(bl_layer_options, how);
        fill(w, rows * columns, (uint32_t)s);
        how.type = made[t];
        how.bias = (const float *)(void *)place(bias, out, at_end);
        how.norm = t == 1 ? BL_NORM_RMS : BL_NORM_LAYER;
        how.norm_weight = (const float *)(void *)place(gain, in, at_end);
        how.norm_bias = (const float *)(void *)place(shift, in, at_end);
        how.rotation_block = (uint32_t)shapes[s][2];
        how.rotation_signs = (const float *)(void *)place(signs, in, at_end);
        for (k = 0; k < columns; k++) ((float *)(void *)place(signs, in, at_end))[k] = k % 2 ? 1.0f : -1.0f;
        how.epilogue = t == 0 ? BL_EPILOGUE_GELU_ERF : BL_EPILOGUE_SILU;
        GOOD(bl_layer_create(NULL, rows, columns, w, BL_TYPE_F32, 0, &how, &layer, &error));
        release(weights), release(bias), release(gain), release(shift), release(signs);
        run(layer);
        bl_free(layer);
      }
}

static void from_disk(const char *name) {
  FILE *from = fopen(golden(name), "rb");
  unsigned char *bytes = (unsigned char *)take(1 << 20);
  size_t size = from != NULL ? fread(bytes, 1, 1 << 20, from) : 0;
  CHECK(size > 0 && size < 1 << 20);
  if (from != NULL) fclose(from);
  file(bytes, size);
  free(bytes);
}

int main(int count, char **words) {
  start(count, words);
  page = (size_t)sysconf(_SC_PAGESIZE);
  ragged();
  rotations();
  around();
  joint();
  from_disk(ALL_TYPES);
  from_disk("bitnet_i2s.gguf");
  from_disk("bitnet_i2s_arm_qk64.gguf");
  from_disk("ruvllm_t158_id30.gguf");
  from_disk("cortex.safetensors");
  from_disk("int4_layouts.safetensors");
  return done();
}
