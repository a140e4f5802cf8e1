/**
 * embed: sentence embeddings of all-MiniLM-L6-v2 (any BERT encoder with mean pooling), every linear
 * layer in libbitlinear.
 *
 * In: lines of token ids on stdin, [CLS] and [SEP] counted. Out: one line of numbers for each, of
 * length 1. A BERT block normalises *behind* its residuals, and what is normalised is the next
 * residual as well: so the norms stay here, where they are done once, and the layers take bias,
 * GELU and the addition to the residual.
 */
#define _POSIX_C_SOURCE 200809L
#include <bitlinear.h>
#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static const char help[] =
    "usage: embed --model FILE [options] < IDS\n"
    "\n"
    "  --model FILE       model.safetensors of a BERT encoder\n"
    "  --heads N          of its attention (12); the file does not say\n"
    "  --weights TYPE     what the layers' weights are rounded to, by the library's name: int8, q4_0,\n"
    "                     q8_0, ternary ... (as they are stored)\n"
    "  --group N          weights that share a scale, where the type leaves it open\n"
    "  --activation KIND  f32, int8_row, int8_group or auto (auto)\n"
    "  --threads N        1 or more (1)\n"
    "  --help\n"
    "\n"
    "Lines of token ids on stdin become lines of numbers on stdout.\n";

static bool fail(const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  fputs("embed: ", stderr);
  vfprintf(stderr, format, arguments);
  fputc('\n', stderr);
  va_end(arguments);
  return false;
}

static double now(void) {
  struct timespec t;
  return clock_gettime(CLOCK_MONOTONIC, &t) ? 0 : (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* ---- the model ---------------------------------------------------------------------------------- */

enum { QUERY, KEY, VALUE, ATTENTION_OUTPUT, UP, DOWN, LINEARS };

typedef struct {
  float *weight, *bias;
} norm;

typedef struct {
  bl_layer *linear[LINEARS];
  norm attention, output;
} block;

#define MOST_BLOCKS 64

/* Rows of floats in the mapped file, of any alignment. */
typedef struct {
  const char *bytes;
  size_t rows;
} table;

typedef struct {
  bl_model *file;
  size_t width, inner, heads, block_count;
  float epsilon;
  table words, places, kinds;
  norm embedding;
  block blocks[MOST_BLOCKS];
} model;

static void *allocate(size_t count, size_t size) {
  void *memory = calloc(count ? count : 1, size);
  if (!memory) fail("no memory for %zu items of %zu bytes", count, size);
  return memory;
}

static bool read_table(const model *m, const char *name, table *t) {
  bl_error error;
  bl_tensor_info info = {.struct_size = sizeof info};
  if (bl_model_tensor(m->file, name, 0, &info, &error) != BL_OK) return fail("%s", error.message);
  if (info.type != BL_TYPE_F32 || info.dims < 1 || info.dims > 2 ||
      (size_t)info.shape[info.dims - 1] != m->width)
    return fail("tensor '%s' is not of f32 rows of %zu", name, m->width);
  t->bytes = info.data;
  t->rows = info.dims == 2 ? (size_t)info.shape[0] : 1;
  if (t->rows == 0) return fail("tensor '%s' is empty", name); /* every table's row 0 is read */
  return true;
}

/* Adds row `index` of the table to `row`. */
static void add_row(const table *t, size_t index, size_t width, float *row) {
  for (size_t i = 0; i < width; i++) {
    float value;
    memcpy(&value, t->bytes + (index * width + i) * sizeof value, sizeof value);
    row[i] += value;
  }
}

static bool read_vector(const model *m, const char *name, const char *part, float **values) {
  char full[128];
  table t;
  snprintf(full, sizeof full, "%s.LayerNorm.%s", name, part);
  if (!read_table(m, full, &t)) return false;
  if (!(*values = allocate(m->width, sizeof **values))) return false;
  add_row(&t, 0, m->width, *values);
  return true;
}

static bool read_norm(const model *m, const char *name, norm *n) {
  return read_vector(m, name, "weight", &n->weight) && read_vector(m, name, "bias", &n->bias);
}

static bool read_block(model *m, size_t index, bl_layer_options options) {
  static const char *const names[LINEARS] = {
      [QUERY] = "attention.self.query", [KEY] = "attention.self.key",
      [VALUE] = "attention.self.value", [ATTENTION_OUTPUT] = "attention.output.dense",
      [UP] = "intermediate.dense",      [DOWN] = "output.dense",
  };
  bl_error error;
  char name[128];
  block *b = &m->blocks[index];
  for (int i = 0; i < LINEARS; i++) {
    bl_layer_info info = {.struct_size = sizeof info};
    options.epilogue = i == UP ? BL_EPILOGUE_GELU_ERF : BL_EPILOGUE_NONE;
    snprintf(name, sizeof name, "encoder.layer.%zu.%s", index, names[i]);
    /* By the layer's name: with the bias beside it. */
    if (bl_layer_open(m->file, name, &options, &b->linear[i], &error) != BL_OK ||
        bl_layer_describe(b->linear[i], &info, &error) != BL_OK)
      return fail("layer '%s': %s", name, error.message);
    if (index == 0 && i == UP) m->inner = (size_t)info.out_features;
    size_t in = i == DOWN ? m->inner : m->width, out = i == UP ? m->inner : m->width;
    if ((size_t)info.in_features != in || (size_t)info.out_features != out)
      return fail("layer '%s' is not %zu x %zu", name, out, in);
  }
  snprintf(name, sizeof name, "encoder.layer.%zu.attention.output", index);
  if (!read_norm(m, name, &b->attention)) return false;
  snprintf(name, sizeof name, "encoder.layer.%zu.output", index);
  return read_norm(m, name, &b->output);
}

static bool model_open(model *m, const bl_context *context, const char *path, size_t heads,
                       const bl_layer_options *options) {
  bl_error error;
  bl_tensor_info info = {.struct_size = sizeof info};
  if (bl_load(context, path, NULL, &m->file, &error) != BL_OK)
    return fail("cannot load '%s': %s", path, error.message);
  if (bl_model_tensor(m->file, "embeddings.LayerNorm.weight", 0, &info, &error) != BL_OK)
    return fail("%s", error.message);
  m->width = info.dims == 1 ? (size_t)info.shape[0] : 0;
  m->heads = heads;
  m->epsilon = 1e-12f;
  if (m->width == 0 || heads == 0 || m->width % heads != 0)
    return fail("a width of %zu does not go into %zu heads", m->width, heads);
  if (!read_table(m, "embeddings.word_embeddings.weight", &m->words) ||
      !read_table(m, "embeddings.position_embeddings.weight", &m->places) ||
      !read_table(m, "embeddings.token_type_embeddings.weight", &m->kinds) ||
      !read_norm(m, "embeddings", &m->embedding))
    return false;
  for (; m->block_count < MOST_BLOCKS; m->block_count++) {
    char name[128];
    snprintf(name, sizeof name, "encoder.layer.%zu.output.dense.weight", m->block_count);
    if (bl_model_tensor(m->file, name, 0, &info, NULL) != BL_OK) break;
    if (!read_block(m, m->block_count, *options)) return false;
  }
  return m->block_count > 0 || fail("the file has no blocks (encoder.layer.0 ...)");
}

static void close_norm(const norm *n) {
  free(n->weight);
  free(n->bias);
}

static void model_close(model *m) {
  for (size_t i = 0; i < MOST_BLOCKS; i++) {
    for (int j = 0; j < LINEARS; j++) bl_free(m->blocks[i].linear[j]);
    close_norm(&m->blocks[i].attention);
    close_norm(&m->blocks[i].output);
  }
  close_norm(&m->embedding);
  bl_free(m->file);
}

/* ---- the forward pass --------------------------------------------------------------------------- */

typedef struct {
  float *x, *query, *key, *value, *mixed, *inner; /* a row for each token */
  float *scores;
  size_t rows;
  double library_seconds;
} buffers;

static void buffers_close(buffers *b) {
  float *all[] = {b->x, b->query, b->key, b->value, b->mixed, b->inner, b->scores};
  for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]);
  memset(b, 0, sizeof *b);
}

static bool buffers_fit(buffers *b, const model *m, size_t rows) {
  double seconds = b->library_seconds;
  if (rows <= b->rows) return true;
  buffers_close(b);
  b->library_seconds = seconds;
  float **all[] = {&b->x, &b->query, &b->key, &b->value, &b->mixed};
  for (size_t i = 0; i < sizeof all / sizeof *all; i++)
    if (!(*all[i] = allocate(rows * m->width, sizeof(float)))) return false;
  b->inner = allocate(rows * m->inner, sizeof(float));
  b->scores = allocate(rows, sizeof(float));
  if (!b->inner || !b->scores) return false;
  b->rows = rows;
  return true;
}

static void normalise(const model *m, const norm *n, size_t rows, float *x) {
  for (float *row = x; row < x + rows * m->width; row += m->width) {
    double mean = 0, square = 0;
    for (size_t i = 0; i < m->width; i++) mean += (double)row[i];
    mean /= (double)m->width;
    for (size_t i = 0; i < m->width; i++) square += pow((double)row[i] - mean, 2);
    double scale = 1 / sqrt(square / (double)m->width + (double)m->epsilon);
    for (size_t i = 0; i < m->width; i++)
      row[i] = (float)(((double)row[i] - mean) * scale) * n->weight[i] + n->bias[i];
  }
}

/* Every token sees all of them. */
static void attend(const model *m, buffers *b, size_t rows) {
  size_t width = m->width, dim = width / m->heads;
  float scale = 1 / sqrtf((float)dim);
  for (size_t head = 0; head < m->heads; head++)
    for (size_t i = 0; i < rows; i++) {
      const float *query = b->query + i * width + head * dim;
      float *out = b->mixed + i * width + head * dim, largest = -INFINITY, sum = 0;
      for (size_t j = 0; j < rows; j++) {
        const float *key = b->key + j * width + head * dim;
        float dot = 0;
        for (size_t d = 0; d < dim; d++) dot += query[d] * key[d];
        b->scores[j] = dot * scale;
        largest = fmaxf(largest, b->scores[j]);
      }
      memset(out, 0, dim * sizeof *out);
      for (size_t j = 0; j < rows; j++) {
        const float *value = b->value + j * width + head * dim;
        float share = expf(b->scores[j] - largest);
        for (size_t d = 0; d < dim; d++) out[d] += share * value[d];
        sum += share;
      }
      for (size_t d = 0; d < dim; d++) out[d] /= sum;
    }
}

/* y = layer(x), or y += layer(x) with BL_RUN_ACCUMULATE. */
static bool forward(buffers *b, const bl_layer *layer, size_t rows, const float *x, float *y,
                    uint32_t flags) {
  bl_error error;
  bl_run_options options = {.struct_size = sizeof options, .flags = flags};
  double begin = now();
  bl_status status =
      bl_forward(layer, (int64_t)rows, x, BL_TYPE_F32, 0, y, BL_TYPE_F32, 0, &options, &error);
  b->library_seconds += now() - begin;
  return status == BL_OK || fail("bl_forward: %s", error.message);
}

static bool run_block(const model *m, const block *k, buffers *b, size_t rows) {
  bl_error error;
  const bl_layer *layers[] = {k->linear[QUERY], k->linear[KEY], k->linear[VALUE]};
  void *ys[] = {b->query, b->key, b->value};
  double begin = now();
  if (bl_forward_many(layers, 3, (int64_t)rows, b->x, BL_TYPE_F32, 0, ys, BL_TYPE_F32, NULL, NULL,
                      &error) != BL_OK)
    return fail("bl_forward_many: %s", error.message);
  b->library_seconds += now() - begin;
  attend(m, b, rows);
  if (!forward(b, k->linear[ATTENTION_OUTPUT], rows, b->mixed, b->x, BL_RUN_ACCUMULATE))
    return false;
  normalise(m, &k->attention, rows, b->x);
  if (!forward(b, k->linear[UP], rows, b->x, b->inner, 0) ||
      !forward(b, k->linear[DOWN], rows, b->inner, b->x, BL_RUN_ACCUMULATE))
    return false;
  normalise(m, &k->output, rows, b->x);
  return true;
}

/* The mean of the last block's rows, at length 1, into `out`. */
static bool embed(const model *m, buffers *b, const size_t *ids, size_t count, double *out) {
  if (count > m->places.rows)
    return fail("%zu tokens; the model has %zu positions", count, m->places.rows);
  if (!buffers_fit(b, m, count)) return false;
  memset(b->x, 0, count * m->width * sizeof *b->x);
  for (size_t i = 0; i < count; i++) {
    if (ids[i] >= m->words.rows) return fail("token %zu of %zu", ids[i], m->words.rows);
    add_row(&m->words, ids[i], m->width, b->x + i * m->width);
    add_row(&m->places, i, m->width, b->x + i * m->width);
    add_row(&m->kinds, 0, m->width, b->x + i * m->width);
  }
  normalise(m, &m->embedding, count, b->x);
  for (size_t i = 0; i < m->block_count; i++)
    if (!run_block(m, &m->blocks[i], b, count)) return false;
  double square = 0;
  for (size_t d = 0; d < m->width; d++) {
    out[d] = 0;
    for (size_t i = 0; i < count; i++) out[d] += (double)b->x[i * m->width + d];
    square += out[d] * out[d];
  }
  for (size_t d = 0; d < m->width; d++) out[d] /= sqrt(square);
  return true;
}

/* ---- the program -------------------------------------------------------------------------------- */

typedef struct {
  const char *model, *weights, *activation;
  size_t heads, group, threads;
  bool help;
} settings;

#define MOST_TOKENS 512

/* The ids of a line; false after a message. */
static bool read_ids(char *line, size_t *ids, size_t *count) {
  *count = 0;
  for (char *end, *at = line;; at = end) {
    at += strspn(at, " \t\r\n");
    if (!*at) return true;
    errno = 0;
    unsigned long long id = strtoull(at, &end, 10);
    if (*at < '0' || *at > '9' || errno || id > SIZE_MAX) return fail("no token id: '%.20s'", at);
    if (*count == MOST_TOKENS) return fail("a line of more than %d ids", MOST_TOKENS);
    ids[(*count)++] = (size_t)id;
  }
}

static bool embed_lines(const model *m) {
  char line[16 * MOST_TOKENS];
  size_t ids[MOST_TOKENS], count, lines = 0, tokens = 0;
  buffers b = {0};
  double *out = allocate(m->width, sizeof *out), begin = now();
  bool ok = out != NULL;
  while (ok && fgets(line, sizeof line, stdin)) {
    if (!strchr(line, '\n') && !feof(stdin)) ok = fail("a line is too long");
    ok = ok && read_ids(line, ids, &count);
    if (!ok || count == 0) continue;
    ok = embed(m, &b, ids, count, out);
    for (size_t d = 0; ok && d < m->width; d++) printf("%s%.9g", d ? " " : "", out[d]);
    if (ok) putchar('\n');
    tokens += count;
    lines++;
  }
  if (ok && (ferror(stdin) || fflush(stdout) != 0)) ok = fail("cannot read ids or write numbers");
  fprintf(stderr, "%zu sentences of %zu tokens in %.3f s, %.3f s of it in the library\n", lines,
          tokens, now() - begin, b.library_seconds);
  buffers_close(&b);
  free(out);
  return ok;
}

/* What the layers are, on stderr. */
static bool report(const model *m) {
  uint64_t bytes = 0;
  bl_error error;
  bl_layer_info layer = {.struct_size = sizeof layer};
  bl_type_info type = {.struct_size = sizeof type};
  bl_plan_info plan = {.struct_size = sizeof plan};
  for (size_t i = 0; i < m->block_count; i++)
    for (int j = 0; j < LINEARS; j++) {
      if (bl_layer_describe(m->blocks[i].linear[j], &layer, &error) != BL_OK)
        return fail("%s", error.message);
      bytes += layer.bytes_packed;
    }
  if (bl_type_describe(layer.type, &type, &error) != BL_OK ||
      bl_plan(m->blocks[0].linear[UP], BL_OP_FORWARD, 16, BL_TYPE_F32, &plan, &error) != BL_OK)
    return fail("%s", error.message);
  fprintf(stderr, "%zu blocks of width %zu, weights %s, %.1f MB packed, kernel %s\n",
          m->block_count, m->width, type.name, (double)bytes / 1e6, plan.kernel);
  return true;
}

/* A type by the library's own name of it. */
static bool find_type(const char *name, bl_type *type) {
  for (int number = 0; number < 256; number++) {
    bl_type_info info = {.struct_size = sizeof info};
    *type = (bl_type)number;
    if (bl_type_describe(*type, &info, NULL) == BL_OK && strcmp(info.name, name) == 0) return true;
  }
  return fail("--weights: '%s' is no type's name", name);
}

static bool find_activation(const char *name, bl_activation *activation) {
  static const char *const names[] = {
      [BL_ACTIVATION_AUTO] = "auto",
      [BL_ACTIVATION_F32] = "f32",
      [BL_ACTIVATION_INT8_ROW] = "int8_row",
      [BL_ACTIVATION_INT8_GROUP] = "int8_group",
  };
  for (size_t i = 0; i < sizeof names / sizeof *names; i++)
    if (strcmp(names[i], name) == 0) return *activation = (bl_activation)i, true;
  return fail("--activation: '%s' is none of auto, f32, int8_row, int8_group", name);
}

static bool run(const settings *set) {
  bl_error error;
  bl_context *context;
  bl_context_options options = {.struct_size = sizeof options, .threads = (uint32_t)set->threads};
  bl_layer_options layer = {.struct_size = sizeof layer, .group_size = (int64_t)set->group};
  if ((set->weights && !find_type(set->weights, &layer.type)) ||
      !find_activation(set->activation, &layer.activation))
    return false;
  if (bl_context_create(&options, &context, &error) != BL_OK)
    return fail("bl_context_create: %s", error.message);
  model m = {0};
  bool ok = model_open(&m, context, set->model, set->heads, &layer) && report(&m) &&
            embed_lines(&m);
  model_close(&m);
  bl_free(context);
  return ok;
}

static bool parse(int count, char **words, settings *set) {
  const struct {
    const char *name;
    const char **text;
    size_t *number;
  } all[] = {
      {"--model", &set->model, NULL},           {"--weights", &set->weights, NULL},
      {"--activation", &set->activation, NULL}, {"--heads", NULL, &set->heads},
      {"--group", NULL, &set->group},           {"--threads", NULL, &set->threads},
  };
  for (int i = 1; i < count; i += 2) {
    size_t found = 0, options = sizeof all / sizeof *all;
    if (strcmp(words[i], "--help") == 0) return set->help = true;
    while (found < options && strcmp(words[i], all[found].name) != 0) found++;
    if (found == options) return fail("unknown option '%s' (--help lists them)", words[i]);
    if (i + 1 == count) return fail("%s needs a value", words[i]);
    if (all[found].text) {
      *all[found].text = words[i + 1];
      continue;
    }
    char *end;
    unsigned long number = strtoul(words[i + 1], &end, 10);
    if (*words[i + 1] < '0' || *words[i + 1] > '9' || *end || number > 1000000)
      return fail("%s needs a whole number, not '%s'", words[i], words[i + 1]);
    *all[found].number = (size_t)number;
  }
  if (set->threads < 1) return fail("--threads needs 1 or more");
  return set->model != NULL || fail("no model: give --model FILE (--help says more)");
}

int main(int count, char **words) {
  settings set = {.activation = "auto", .heads = 12, .threads = 1};
  if (!parse(count, words, &set)) return 2;
  if (set.help) return fputs(help, stdout) < 0 || fflush(stdout) != 0 ? !fail("cannot write the output") : 0;
  return run(&set) ? 0 : 1;
}
