/* Files that are cut or corrupt: a status that blames the file, no handle, and nothing leaked. */
#include "layers.h"

#include <dirent.h>

static const char *const refused[] = {".gguf", ".safetensors"};

static unsigned char *read_file(const char *path, size_t *size) {
  FILE *file = fopen(path, "rb");
  unsigned char *bytes;
  long length = -1;
  if (file != NULL && fseek(file, 0, SEEK_END) == 0) length = ftell(file);
  if (length < 0) abort();
  rewind(file);
  bytes = (unsigned char *)take((size_t)length);
  *size = fread(bytes, 1, (size_t)length, file);
  fclose(file);
  return bytes;
}

static int blames_the_file(bl_status status) {
  return status == BL_ERROR_BAD_FILE || status == BL_ERROR_UNSUPPORTED;
}

/* Loads bytes; where they load, every tensor is opened and run. */
static bl_status use(const unsigned char *bytes, size_t size) {
  bl_model *model = NULL;
  STRUCT(bl_load_options, options);
  STRUCT(bl_model_info, about);
  bl_status status;
  int64_t i;
  options.flags = BL_LOAD_BORROW;
  status = bl_load_memory(NULL, bytes, size, &options, &model, &error);
  CHECK(error.status == status && memchr(error.message, 0, sizeof error.message) != NULL);
  CHECK((model != NULL) == (status == BL_OK));
  if (status != BL_OK) {
    CHECK(blames_the_file(status) && error.message[0]);
    return status;
  }
  GOOD(bl_model_describe(model, &about, &error));
  for (i = 0; i < about.tensors; i++) {
    STRUCT(bl_tensor_info, tensor);
    bl_layer *layer = NULL;
    GOOD(bl_model_tensor(model, NULL, i, &tensor, &error));
    if (bl_layer_open(model, tensor.name, NULL, &layer, &error) == BL_OK) {
      bl_layer_info info = layer_info(layer);
      float *x = floats(info.in_features), *y = floats(info.out_features);
      forward(layer, 1, x, y);
      free(x), free(y);
    } else {
      CHECK(blames_the_file(error.status));
    }
    bl_free(layer);
  }
  bl_free(model);
  return status;
}

/* The golden files that are wrong, each by path and from memory. */
static void golden_bad(void) {
  char folder[4096];
  struct dirent *entry;
  DIR *files;
  int found = 0;
  snprintf(folder, sizeof folder, "%s", golden("bad"));
  files = opendir(folder);
  CHECK(files != NULL);
  while (files != NULL && (entry = readdir(files)) != NULL) {
    char path[8192];
    const char *ending = strrchr(entry->d_name, '.');
    bl_model *model = NULL;
    bl_status mapped, memory;
    unsigned char *bytes;
    size_t size;
    if (ending == NULL || (strcmp(ending, refused[0]) != 0 && strcmp(ending, refused[1]) != 0)) continue;
    found++;
    snprintf(path, sizeof path, "%s/%s", folder, entry->d_name);
    bytes = read_file(path, &size);
    memory = use(bytes, size);
    free(bytes);
    mapped = bl_load(NULL, path, NULL, &model, &error);
    CHECK(mapped == memory);
    if (mapped != BL_OK) CHECK(model == NULL && strstr(error.message, entry->d_name) != NULL);
    bl_free(model);
  }
  if (files != NULL) closedir(files);
  CHECK(found >= 20);
}

/* A good file cut at many lengths, and with bytes of its first pages changed. */
static void damaged(const char *name) {
  size_t size, cut, i;
  unsigned char *bytes = read_file(golden(name), &size);
  int loaded = 0;
  for (cut = 0; cut < size; cut += cut < 600 ? 1 : 1 + size / 97) {
    /* A block of its own, so that a sanitizer sees a byte read past its end. */
    unsigned char *part = (unsigned char *)take(cut);
    memcpy(part, bytes, cut);
    CHECK(use(part, cut) != BL_OK);
    free(part);
  }
  for (i = 0; i < size && i < 2500; i++) {
    unsigned char before = bytes[i];
    bytes[i] = (unsigned char)(before ^ (1u << (i % 8)));
    loaded += use(bytes, size) == BL_OK;
    bytes[i] = i % 2 ? 0xff : 0;
    loaded += use(bytes, size) == BL_OK;
    bytes[i] = before;
  }
  CHECK(loaded > 0); /* some bytes matter to nobody: the checks above ran on layers too */
  CHECK(use(bytes, size) == BL_OK);
  free(bytes);
}

int main(int count, char **words) {
  start(count, words);
  golden_bad();
  damaged("ruvllm_t158_id30.gguf");
  damaged("cortex.safetensors");
  damaged("int4_layouts.safetensors");
  return done();
}
