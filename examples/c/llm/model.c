#define _POSIX_C_SOURCE 200809L /* isatty, fileno */
#include "model.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "metadata.h"
#include "util.h"

/* The file is not trusted: no product of two of these overflows a size_t. */
#define LARGEST_DIMENSION (1 << 24)
#define ROPE_DIVISORS "rope_freqs.weight"

/* llama.<key>, which lies in 1..LARGEST_DIMENSION; `otherwise` where it is missing. */
static bool dimension(const model *m, const char *key, size_t otherwise, size_t *value) {
  char name[64];
  int64_t number = (int64_t)otherwise;
  snprintf(name, sizeof name, "llama.%s", key);
  if (!meta_integer(m->file, name, &number)) return false;
  if (number < 1 || number > LARGEST_DIMENSION)
    return fail("metadata '%s' is %s", name, number ? "out of range" : "zero or missing");
  *value = (size_t)number;
  return true;
}

/* A vector of a packed file is a layer of one row, so that it can be saved. */
static bool read_packed_vector(const model *m, const char *name, size_t length, float **values) {
  bl_error error;
  bl_layer *layer;
  bl_layer_info info = {.struct_size = sizeof info};
  bl_status status = bl_layer_open(m->file, name, NULL, &layer, &error);
  if (status == BL_ERROR_NOT_FOUND) return true;
  bool ok = status == BL_OK && bl_layer_describe(layer, &info, &error) == BL_OK;
  if (!ok) fail("vector '%s': %s", name, error.message);
  else if (info.out_features != 1 || info.in_features != (int64_t)length)
    ok = fail("vector '%s' is not %zu numbers", name, length);
  if (ok) ok = (*values = allocate(length, sizeof(float))) != NULL;
  if (ok && bl_layer_read(layer, 0, 1, *values, BL_TYPE_F32, 0, &error) != BL_OK)
    ok = fail("vector '%s': %s", name, error.message);
  bl_free(layer);
  return ok;
}

/* Adds what the file has of a 1-dimensional f32 tensor: *values stays NULL where it has none. */
static bool read_vector(const model *m, const char *name, size_t length, float **values) {
  bl_error error;
  bl_tensor_info info = {.struct_size = sizeof info};
  if (is_packed_file(m->file)) return read_packed_vector(m, name, length, values);
  bl_status status = bl_model_tensor(m->file, name, 0, &info, &error);
  if (status == BL_ERROR_NOT_FOUND) return true;
  if (status != BL_OK) return fail("tensor '%s': %s", name, error.message);
  if (info.type != BL_TYPE_F32 || info.bytes != length * sizeof(float))
    return fail("tensor '%s' is not %zu f32 numbers", name, length);
  *values = allocate(length, sizeof(float));
  if (!*values) return false;
  memcpy(*values, info.data, length * sizeof(float));
  return true;
}

static bool has_layer(const model *m, const char *name) {
  bl_model_layer_info info = {.struct_size = sizeof info};
  return bl_model_layer(m->file, name, 0, &info, NULL) == BL_OK;
}

/* A linear layer and what stands around it. */
typedef struct {
  const char *name;      /* as bl_model_layer tells it: weights with their scale and bias, where the file has them */
  size_t in, out;        /* out is 0 where any number will do */
  const char *norm;      /* the tensor of the RMS norm's gain, or NULL */
  bl_epilogue epilogue;
} layer_plan;

/* The gain of the norm before a layer; that of a packed file is in it. */
static bool read_gain(const model *m, const layer_plan *plan, float **gain) {
  if (is_packed_file(m->file) || !plan->norm) return true;
  if (!read_vector(m, plan->norm, plan->in, gain)) return false;
  return *gain != NULL || fail("the file has no tensor '%s'", plan->norm);
}

/* *out is set where the plan leaves it open. */
static bool open_layer(const model *m, const layer_plan *plan, bl_activation activation,
                       size_t *out, bl_layer **layer) {
  bl_error error;
  float *gain = NULL;
  bl_layer_options options = {.struct_size = sizeof options};
  options.activation = activation;
  bool ok = read_gain(m, plan, &gain);
  if (ok && !is_packed_file(m->file)) {
    options.norm = plan->norm ? BL_NORM_RMS : BL_NORM_NONE;
    options.norm_weight = gain;
    options.norm_epsilon = plan->norm ? m->epsilon : 0;
    options.epilogue = plan->epilogue;
  }
  bl_layer_info info = {.struct_size = sizeof info};
  if (ok && (bl_layer_open(m->file, plan->name, &options, layer, &error) != BL_OK ||
             bl_layer_describe(*layer, &info, &error) != BL_OK))
    ok = fail("layer '%s': %s", plan->name, error.message);
  free(gain);
  if (!ok) return false;
  if (info.norm != (plan->norm ? BL_NORM_RMS : BL_NORM_NONE) || info.epilogue != plan->epilogue)
    return fail("layer '%s' has another norm or epilogue than this program needs", plan->name);
  int64_t wanted = plan->out ? (int64_t)plan->out : info.out_features;
  if (info.in_features != (int64_t)plan->in || info.out_features != wanted ||
      info.out_features > LARGEST_DIMENSION)
    return fail("layer '%s' is %lld x %lld; the metadata asks for %zu x %zu", plan->name,
                (long long)info.out_features, (long long)info.in_features, plan->out, plan->in);
  if (out) *out = (size_t)info.out_features;
  return true;
}

/* Angles fall geometrically over the pairs; files for long texts scale or divide them. */
static bool read_rope(model *m) {
  size_t rope_dim = 0;
  double base = 10000, factor = 1;
  const char *scaling = "none";
  if (!dimension(m, "rope.dimension_count", m->attention.key_dim, &rope_dim) ||
      !meta_number(m->file, "llama.rope.freq_base", &base) ||
      !meta_string(m->file, "llama.rope.scaling.type", &scaling) ||
      !meta_number(m->file, "llama.rope.scaling.factor", &factor))
    return false;
  if (strcmp(scaling, "none") == 0) factor = 1;
  else if (strcmp(scaling, "linear") != 0)
    return fail("the file scales rotary positions by '%s'; this program knows linear", scaling);
  if (rope_dim % 2 != 0 || rope_dim > m->attention.key_dim || !(base > 0) || !(factor > 0))
    return fail("the file's rotary positions make no sense");
  m->rope_pairs = rope_dim / 2;
  m->rope_frequency = allocate(m->rope_pairs, sizeof *m->rope_frequency);
  if (!m->rope_frequency || !read_vector(m, ROPE_DIVISORS, m->rope_pairs, &m->rope_divisors))
    return false;
  for (size_t i = 0; i < m->rope_pairs; i++) {
    double exponent = -2.0 * (double)i / (double)rope_dim;
    double divisor = m->rope_divisors ? (double)m->rope_divisors[i] : 1;
    m->rope_frequency[i] = pow(base, exponent) / (factor * divisor);
  }
  return true;
}

static bool read_hyper_parameters(model *m) {
  const char *architecture = "(none)";
  int64_t experts = 0;
  double epsilon = 0;
  attention_shape *a = &m->attention;
  m->name = "(no name)";
  if (!meta_string(m->file, "general.architecture", &architecture) ||
      !meta_string(m->file, "general.name", &m->name) ||
      !meta_integer(m->file, "llama.expert_count", &experts))
    return false;
  if (strcmp(architecture, "llama") != 0)
    return fail("the file's architecture is '%s'; this program runs llama", architecture);
  if (experts > 0) return fail("the file is a mixture of experts; this program runs dense models");
  if (!dimension(m, "block_count", 0, &m->block_count) ||
      !dimension(m, "embedding_length", 0, &m->width) ||
      !dimension(m, "feed_forward_length", 0, &m->ffn_width) ||
      !dimension(m, "context_length", 0, &m->context_length) ||
      !dimension(m, "attention.head_count", 0, &a->heads) ||
      !dimension(m, "attention.head_count_kv", a->heads, &a->kv_heads) ||
      !dimension(m, "attention.key_length", m->width / a->heads, &a->key_dim) ||
      !dimension(m, "attention.value_length", m->width / a->heads, &a->value_dim) ||
      !meta_number(m->file, "llama.attention.layer_norm_rms_epsilon", &epsilon))
    return false;
  if (a->heads % a->kv_heads != 0)
    return fail("%zu heads cannot share %zu key/value heads evenly", a->heads, a->kv_heads);
  if (!(epsilon > 0 && epsilon < 1))
    return fail("metadata 'llama.attention.layer_norm_rms_epsilon' is missing or makes no sense");
  m->epsilon = (float)epsilon;
  return read_rope(m);
}

static const char *const linear_names[LINEARS] = {
    [QUERY] = "attn_q",  [KEY] = "attn_k",
    [VALUE] = "attn_v",  [ATTENTION_OUTPUT] = "attn_output",
    [GATE] = "ffn_gate", [UP] = "ffn_up",
    [DOWN] = "ffn_down",
};

static bool read_block(model *m, size_t index, bl_activation activation) {
  const attention_shape *a = &m->attention;
  size_t width = m->width, ffn = m->ffn_width;
  size_t key = a->kv_heads * a->key_dim, value = a->kv_heads * a->value_dim;
  size_t query = a->heads * a->key_dim, mixed = a->heads * a->value_dim;
  const char *first = "attn_norm", *second = "ffn_norm";
  const layer_plan plans[LINEARS] = {
      [QUERY] = {NULL, width, query, first, BL_EPILOGUE_NONE},
      [KEY] = {NULL, width, key, first, BL_EPILOGUE_NONE},
      [VALUE] = {NULL, width, value, first, BL_EPILOGUE_NONE},
      [ATTENTION_OUTPUT] = {NULL, mixed, width, NULL, BL_EPILOGUE_NONE},
      [GATE] = {NULL, width, ffn, second, BL_EPILOGUE_SILU},
      [UP] = {NULL, width, ffn, second, BL_EPILOGUE_NONE},
      [DOWN] = {NULL, ffn, width, NULL, BL_EPILOGUE_NONE},
  };
  for (int i = 0; i < LINEARS; i++) {
    char name[64], norm[64];
    layer_plan plan = plans[i];
    snprintf(name, sizeof name, "blk.%zu.%s", index, linear_names[i]);
    plan.name = name;
    if (plan.norm) {
      snprintf(norm, sizeof norm, "blk.%zu.%s.weight", index, plan.norm);
      plan.norm = norm;
    }
    if (!open_layer(m, &plan, activation, NULL, &m->blocks[index].linear[i])) return false;
  }
  return true;
}

/* The rows of the embedding are the vocabulary; a file without an output layer uses it as one. A norm
 * in front of it does not change its rows. */
static bool read_ends(model *m, bl_activation activation) {
  bool tied = !has_layer(m, "output");
  const char *norm = "output_norm.weight";
  layer_plan plan = {"token_embd", m->width, 0, tied ? norm : NULL, BL_EPILOGUE_NONE};
  if (!open_layer(m, &plan, tied ? activation : BL_ACTIVATION_AUTO, &m->vocabulary, &m->embedding))
    return false;
  m->output = m->embedding;
  plan = (layer_plan){"output", m->width, m->vocabulary, norm, BL_EPILOGUE_NONE};
  return tied || open_layer(m, &plan, activation, NULL, &m->output);
}

bool model_open(model *m, const bl_context *context, const char *path, bl_activation activation) {
  bl_error error;
  bool watched = isatty(fileno(stderr)) == 1;
  memset(m, 0, sizeof *m);
  if (bl_load(context, path, NULL, &m->file, &error) != BL_OK)
    return fail("cannot load '%s': %s", path, error.message);
  bool ok = read_hyper_parameters(m) && read_ends(m, activation);
  if (ok) ok = (m->blocks = allocate(m->block_count, sizeof *m->blocks)) != NULL;
  for (size_t i = 0; ok && i < m->block_count; i++) {
    if (watched) fprintf(stderr, "\rloading block %zu of %zu", i + 1, m->block_count);
    ok = read_block(m, i, activation);
  }
  if (watched) fputs("\r\033[K", stderr);
  if (!ok) model_close(m);
  return ok;
}

void model_close(model *m) {
  for (size_t i = 0; m->blocks && i < m->block_count; i++)
    for (int j = 0; j < LINEARS; j++) bl_free(m->blocks[i].linear[j]);
  free(m->blocks);
  free(m->rope_frequency);
  free(m->rope_divisors);
  if (m->output != m->embedding) bl_free(m->output);
  bl_free(m->embedding);
  bl_free(m->file);
  memset(m, 0, sizeof *m);
}

bool model_save(const model *m, const char *path) {
  bl_error error;
  bl_layer *divisors = NULL;
  size_t count = 0, linears = m->block_count * LINEARS;
  char(*names)[64] = allocate(linears, sizeof *names);
  bl_named_layer *layers = allocate(linears + 3, sizeof *layers);
  bool ok = names && layers;
  for (; ok && count < linears; count++) {
    snprintf(names[count], sizeof *names, "blk.%zu.%s", count / LINEARS,
             linear_names[count % LINEARS]);
    layers[count] = (bl_named_layer){names[count], model_layer(m, count)};
  }
  if (ok) layers[count++] = (bl_named_layer){"token_embd", m->embedding};
  if (ok && m->output != m->embedding)
    layers[count++] = (bl_named_layer){"output", m->output};
  if (ok && m->rope_divisors) {
    bl_layer_options options = {.struct_size = sizeof options, .type = BL_TYPE_F32};
    ok = bl_layer_create(NULL, 1, (int64_t)m->rope_pairs, m->rope_divisors, BL_TYPE_F32, 0,
                         &options, &divisors, &error) == BL_OK;
    if (!ok) fail("%s: %s", ROPE_DIVISORS, error.message);
    layers[count++] = (bl_named_layer){ROPE_DIVISORS, divisors};
  }
  ok = ok && save_packed(path, m->file, layers, count);
  bl_free(divisors);
  free(layers);
  free(names);
  return ok;
}

size_t model_layer_count(const model *m) { return m->block_count * LINEARS + 1; }

const bl_layer *model_layer(const model *m, size_t index) {
  if (index == m->block_count * LINEARS) return m->output;
  return m->blocks[index / LINEARS].linear[index % LINEARS];
}
