/* A file by its path, read, copied from memory and borrowed: the same tensors, metadata and bits. */
#include "layers.h"

static const char *const files[] = {
    ALL_TYPES,
    "bitnet_i2s.gguf",
    "bitnet_i2s_arm_qk64.gguf",
    "ruvllm_t158_id30.gguf",
    "cortex.safetensors",
    "int4_layouts.safetensors",
    "hf_bitlinear/model.safetensors",
};

static unsigned char *read_file(const char *path, size_t *size) {
  FILE *file = fopen(path, "rb");
  unsigned char *bytes;
  long length = -1;
  if (file != NULL && fseek(file, 0, SEEK_END) == 0) length = ftell(file);
  CHECK(length > 0);
  if (length < 0) abort();
  rewind(file);
  bytes = (unsigned char *)take((size_t)length);
  *size = fread(bytes, 1, (size_t)length, file);
  fclose(file);
  return bytes;
}

static void same_tensor(const bl_model *a, const bl_model *b, int64_t i, int *opened) {
  STRUCT(bl_tensor_info, s);
  STRUCT(bl_tensor_info, t);
  bl_layer *p = NULL, *q = NULL;
  bl_status status;
  GOOD(bl_model_tensor(a, NULL, i, &s, &error));
  GOOD(bl_model_tensor(b, s.name, 0, &t, &error)); /* the other by name */
  CHECK(strcmp(s.name, t.name) == 0 && s.type == t.type && s.dims == t.dims && s.bytes == t.bytes);
  CHECK(memcmp(s.shape, t.shape, sizeof s.shape) == 0);
  CHECK(memcmp(s.data, t.data, s.bytes) == 0);
  status = bl_layer_open(a, s.name, NULL, &p, &error);
  CHECK(bl_layer_open(b, s.name, NULL, &q, &error) == status);
  if (status == BL_OK) {
    bl_layer_info info = layer_info(p);
    float *x = floats(3 * info.in_features);
    float *y = floats(3 * info.out_features), *z = floats(3 * info.out_features);
    fill(x, 3 * info.in_features, (uint32_t)i);
    forward(p, 3, x, y);
    forward(q, 3, x, z);
    CHECK(same(y, z, 3 * info.out_features));
    free(x), free(y), free(z);
    ++*opened;
  }
  bl_free(p), bl_free(q);
}

static void same_meta(const bl_model *a, const bl_model *b, int64_t i) {
  STRUCT(bl_meta_info, s);
  STRUCT(bl_meta_info, t);
  GOOD(bl_model_meta(a, NULL, i, &s, &error));
  GOOD(bl_model_meta(b, s.key, 0, &t, &error));
  CHECK(s.kind == t.kind && s.integer == t.integer && s.items == t.items && s.item_kind == t.item_kind);
  CHECK(memcmp(&s.number, &t.number, sizeof s.number) == 0);
  if (s.kind == BL_META_STRING)
    CHECK(strlen(s.string) == (size_t)s.items && strcmp(s.string, t.string) == 0);
}

static int same_models(const bl_model *a, const bl_model *b) {
  STRUCT(bl_model_info, s);
  STRUCT(bl_model_info, t);
  int opened = 0;
  int64_t i;
  GOOD(bl_model_describe(a, &s, &error));
  GOOD(bl_model_describe(b, &t, &error));
  CHECK(memcmp(&s, &t, sizeof s) == 0);
  for (i = 0; i < s.tensors; i++) same_tensor(a, b, i, &opened);
  for (i = 0; i < s.metadata; i++) same_meta(a, b, i);
  return opened;
}

int main(int count, char **words) {
  size_t i;
  int opened = 0;
  start(count, words);
  for (i = 0; i < sizeof files / sizeof *files; i++) {
    bl_model *mapped = open_model(files[i]), *other = NULL;
    STRUCT(bl_load_options, options);
    size_t size = 0;
    unsigned char *bytes = read_file(golden(files[i]), &size);

    options.flags = BL_LOAD_COPY;
    GOOD(bl_load(NULL, golden(files[i]), &options, &other, &error));
    opened += same_models(mapped, other);
    bl_free(other);

    options.flags = BL_LOAD_BORROW;
    GOOD(bl_load_memory(NULL, bytes, size, &options, &other, &error));
    opened += same_models(mapped, other);
    bl_free(other);

    GOOD(bl_load_memory(NULL, bytes, size, NULL, &other, &error));
    memset(bytes, 0xff, size); /* copied, so the caller's are the caller's again */
    opened += same_models(mapped, other);
    bl_free(other);
    free(bytes);
    bl_free(mapped);
  }
  CHECK(opened >= 3 * 20);
  return done();
}
