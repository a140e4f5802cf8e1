/* Layers and matrices for the programs that compute. */
#ifndef LAYERS_H
#define LAYERS_H

#include "check.h"

#define ALL_TYPES "ggml_all_64x512.gguf" /* one 64 x 512 tensor of each ggml type that is read */

static inline bl_model *open_model(const char *name) {
  bl_model *model = NULL;
  GOOD(bl_load(NULL, golden(name), NULL, &model, &error));
  return model;
}

static inline bl_layer *open_layer(const bl_model *model, const char *tensor, bl_activation activation,
                                   const float *bias) {
  bl_layer *layer = NULL;
  STRUCT(bl_layer_options, options);
  options.activation = activation;
  options.bias = bias;
  GOOD(bl_layer_open(model, tensor, &options, &layer, &error));
  return layer;
}

/* A layer of a golden file, alone. */
static inline bl_layer *only_layer(const char *file, const char *tensor) {
  bl_model *model = open_model(file);
  bl_layer *layer = open_layer(model, tensor, BL_ACTIVATION_AUTO, NULL);
  bl_free(model);
  return layer;
}

static inline bl_layer_info layer_info(const bl_layer *layer) {
  STRUCT(bl_layer_info, info);
  GOOD(bl_layer_describe(layer, &info, &error));
  return info;
}

static inline bl_plan_info plan_of(const bl_layer *layer, int64_t m) {
  STRUCT(bl_plan_info, plan);
  GOOD(bl_plan(layer, BL_OP_FORWARD, m, BL_TYPE_F32, &plan, &error));
  return plan;
}

static inline void *take(size_t size) {
  void *memory = calloc(1, size ? size : 1);
  if (memory == NULL) abort();
  return memory;
}

static inline float *floats(int64_t count) { return (float *)take((size_t)count * sizeof(float)); }

/* Values that are exact in f32, f16 and bf16, of both signs, some of them 0. */
static inline void fill(float *x, int64_t count, uint32_t seed) {
  int64_t i;
  for (i = 0; i < count; i++) {
    seed = seed * 1664525u + 1013904223u;
    x[i] = (float)((int32_t)(seed >> 24) - 128) / 32.0f;
  }
}

/* x as f32 in, y as f32 out, rows that touch. */
static inline void forward(const bl_layer *layer, int64_t m, const float *x, float *y) {
  GOOD(bl_forward(layer, m, x, BL_TYPE_F32, 0, y, BL_TYPE_F32, 0, NULL, &error));
}

static inline int same(const float *a, const float *b, int64_t count) {
  return memcmp(a, b, (size_t)count * sizeof *a) == 0;
}

/* A safetensors file of one tensor, "w", of zeros and ones in a pattern. The caller frees it. */
static inline unsigned char *one_tensor_file(const char *dtype, int64_t rows, int64_t columns,
                                             size_t element, size_t *size) {
  char text[256];
  size_t i, bytes = (size_t)(rows * columns) * element, header;
  unsigned char *file;
  header = (size_t)snprintf(text, sizeof text,
                            "{\"w\":{\"dtype\":\"%s\",\"shape\":[%ld,%ld],\"data_offsets\":[0,%lu]}}", dtype,
                            (long)rows, (long)columns, (unsigned long)bytes);
  *size = 8 + header + bytes;
  file = (unsigned char *)take(*size);
  file[0] = (unsigned char)header;
  memcpy(file + 8, text, header);
  for (i = 0; i < (size_t)(rows * columns); i++) {
    unsigned char *at = file + 8 + header + i * element;
    if (i % 3 == 0) continue;
    at[element - 1] = element == 2 && dtype[0] == 'F' ? 0x3c : 0x3f; /* 1.0 */
    if (!(element == 2 && dtype[0] == 'F')) at[element - 2] = 0x80;
  }
  return file;
}

/* A float layer that is large enough to be worth several threads, and the model that holds it. */
static inline bl_layer *large_layer(const bl_context *context, int64_t rows, int64_t columns) {
  bl_model *model = NULL;
  bl_layer *layer;
  size_t size;
  unsigned char *bytes = one_tensor_file("F32", rows, columns, 4, &size);
  GOOD(bl_load_memory(context, bytes, size, NULL, &model, &error));
  free(bytes);
  layer = open_layer(model, "w", BL_ACTIVATION_AUTO, NULL);
  bl_free(model);
  return layer;
}

#endif
