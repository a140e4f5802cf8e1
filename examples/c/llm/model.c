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

/* Adds what the file has of a 1-dimensional f32 tensor: *values stays NULL where it has none. */
static bool read_vector(const model *m, const char *name, size_t length, float **values) {
  bl_error error;
  bl_tensor_info info = {.struct_size = sizeof info};
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

static bool read_norm(const model *m, const char *name, float **gain) {
  if (!read_vector(m, name, m->width, gain)) return false;
  return *gain ? true : fail("the file has no tensor '%s'", name);
}

static bool has_tensor(const model *m, const char *name) {
  bl_tensor_info info = {.struct_size = sizeof info};
  return bl_model_tensor(m->file, name, 0, &info, NULL) == BL_OK;
}

/* Opens "<name>.weight", with "<name>.bias" where the file has one, and checks its shape. *out is 0
 * where any number of outputs will do, and is then set. */
static bool open_layer(const model *m, const char *name, size_t in, size_t *out,
                       bl_activation activation, bl_layer **layer) {
  char tensor[80];
  bl_error error;
  float *bias = NULL;
  snprintf(tensor, sizeof tensor, "%s.bias", name);
  if (*out > 0 && !read_vector(m, tensor, *out, &bias)) return false;
  snprintf(tensor, sizeof tensor, "%s.weight", name);
  bl_layer_options options = {.struct_size = sizeof options};
  options.activation = activation;
  options.bias = bias;
  bl_status status = bl_layer_open(m->file, tensor, &options, layer, &error);
  free(bias);
  if (status != BL_OK) return fail("layer '%s': %s", tensor, error.message);
  bl_layer_info info = {.struct_size = sizeof info};
  if (bl_layer_describe(*layer, &info, &error) != BL_OK)
    return fail("layer '%s': %s", tensor, error.message);
  if (*out == 0 && info.out_features <= LARGEST_DIMENSION) *out = (size_t)info.out_features;
  if (info.in_features == (int64_t)in && info.out_features == (int64_t)*out) return true;
  return fail("layer '%s' is %lld x %lld; the metadata asks for %zu x %zu", tensor,
              (long long)info.out_features, (long long)info.in_features, *out, in);
}

/* Angles fall geometrically over the pairs; files for long texts scale or divide them. */
static bool read_rope(model *m) {
  size_t rope_dim = 0;
  double base = 10000, factor = 1;
  const char *scaling = "none";
  float *divisors = NULL;
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
  if (!m->rope_frequency || !read_vector(m, "rope_freqs.weight", m->rope_pairs, &divisors))
    return false;
  for (size_t i = 0; i < m->rope_pairs; i++) {
    double exponent = -2.0 * (double)i / (double)rope_dim;
    m->rope_frequency[i] = pow(base, exponent) / (factor * (divisors ? (double)divisors[i] : 1));
  }
  free(divisors);
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

static bool read_block(model *m, size_t index, bl_activation activation) {
  const attention_shape *a = &m->attention;
  size_t width = m->width, ffn = m->ffn_width;
  size_t key = a->kv_heads * a->key_dim, value = a->kv_heads * a->value_dim;
  size_t query = a->heads * a->key_dim, mixed = a->heads * a->value_dim;
  struct {
    const char *name;
    size_t in, out;
  } shapes[LINEARS] = {
      [QUERY] = {"attn_q", width, query},
      [KEY] = {"attn_k", width, key},
      [VALUE] = {"attn_v", width, value},
      [ATTENTION_OUTPUT] = {"attn_output", mixed, width},
      [GATE] = {"ffn_gate", width, ffn},
      [UP] = {"ffn_up", width, ffn},
      [DOWN] = {"ffn_down", ffn, width},
  };
  block *b = &m->blocks[index];
  char name[64];
  for (int i = 0; i < LINEARS; i++) {
    snprintf(name, sizeof name, "blk.%zu.%s", index, shapes[i].name);
    if (!open_layer(m, name, shapes[i].in, &shapes[i].out, activation, &b->linear[i])) return false;
  }
  snprintf(name, sizeof name, "blk.%zu.attn_norm.weight", index);
  if (!read_norm(m, name, &b->attention_norm)) return false;
  snprintf(name, sizeof name, "blk.%zu.ffn_norm.weight", index);
  return read_norm(m, name, &b->ffn_norm);
}

/* The rows of the embedding are the vocabulary; a file without an output layer uses it as one. */
static bool read_ends(model *m, bl_activation activation) {
  bool tied = !has_tensor(m, "output.weight");
  if (!open_layer(m, "token_embd", m->width, &m->vocabulary, tied ? activation : BL_ACTIVATION_AUTO,
                  &m->embedding) ||
      !read_norm(m, "output_norm.weight", &m->output_norm))
    return false;
  m->output = m->embedding;
  return tied || open_layer(m, "output", m->width, &m->vocabulary, activation, &m->output);
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
  for (size_t i = 0; m->blocks && i < m->block_count; i++) {
    for (int j = 0; j < LINEARS; j++) bl_free(m->blocks[i].linear[j]);
    free(m->blocks[i].attention_norm);
    free(m->blocks[i].ffn_norm);
  }
  free(m->blocks);
  free(m->rope_frequency);
  free(m->output_norm);
  if (m->output != m->embedding) bl_free(m->output);
  bl_free(m->embedding);
  bl_free(m->file);
  memset(m, 0, sizeof *m);
}

size_t model_layer_count(const model *m) { return m->block_count * LINEARS + 1; }

const bl_layer *model_layer(const model *m, size_t index) {
  if (index == m->block_count * LINEARS) return m->output;
  return m->blocks[index / LINEARS].linear[index % LINEARS];
}
