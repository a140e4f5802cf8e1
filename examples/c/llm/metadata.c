#include "metadata.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "util.h"

bool is_packed_file(const bl_model *file) {
  bl_model_info info = {.struct_size = sizeof info};
  return bl_model_describe(file, &info, NULL) == BL_OK && info.container == BL_CONTAINER_PACKED;
}

/* *found tells a missing key from a value. */
static bool look_up(const bl_model *file, const char *key, bl_meta_info *info, bool *found) {
  bl_error error;
  memset(info, 0, sizeof *info);
  info->struct_size = sizeof *info;
  bl_status status = bl_model_meta(file, key, 0, info, &error);
  *found = status == BL_OK;
  if (status == BL_OK || status == BL_ERROR_NOT_FOUND) return true;
  return fail("metadata '%s': %s", key, error.message);
}

static bool is_integer(bl_meta_kind kind) {
  return kind == BL_META_U64 || kind == BL_META_I64 || kind == BL_META_BOOL;
}

bool meta_integer(const bl_model *file, const char *key, int64_t *value) {
  bl_meta_info info;
  bool found;
  if (!look_up(file, key, &info, &found)) return false;
  if (found && info.kind == BL_META_STRING && is_packed_file(file)) {
    char *end;
    info.integer = strtoll(info.string, &end, 10);
    if (end != info.string && *end == '\0') info.kind = BL_META_I64;
  }
  if (found && !is_integer(info.kind)) return fail("metadata '%s' is not an integer", key);
  if (found) *value = info.integer;
  return true;
}

bool meta_number(const bl_model *file, const char *key, double *value) {
  bl_meta_info info;
  bool found;
  if (!look_up(file, key, &info, &found)) return false;
  if (found && info.kind == BL_META_STRING && is_packed_file(file)) {
    char *end;
    info.number = strtod(info.string, &end);
    if (end != info.string && *end == '\0') info.kind = BL_META_F64;
  }
  if (found && info.kind != BL_META_F64 && !is_integer(info.kind))
    return fail("metadata '%s' is not a number", key);
  if (found) *value = info.number;
  return true;
}

bool meta_string(const bl_model *file, const char *key, const char **value) {
  bl_meta_info info;
  bool found;
  if (!look_up(file, key, &info, &found)) return false;
  if (found && info.kind != BL_META_STRING) return fail("metadata '%s' is not a string", key);
  if (found) *value = info.string;
  return true;
}

/* ---- arrays -------------------------------------------------------------------------------------
 * The text of an array is `count;size:item size:item ...`: items may hold any byte but NUL. */

/* Reads a number from 0 on and the sign behind it. */
static bool take_number(const char **text, char sign, int64_t *number) {
  char *end;
  if (**text < '0' || **text > '9') return false;
  *number = strtoll(*text, &end, 10);
  if (*end != sign) return false;
  *text = end + 1;
  return true;
}

bool meta_list_open(const bl_model *file, const char *key, bl_meta_kind item_kind,
                    meta_list *list) {
  bl_meta_info info;
  bool found;
  *list = (meta_list){.file = file, .key = key};
  if (!look_up(file, key, &info, &found)) return false;
  if (!found) return true;
  if (info.kind == BL_META_STRING && is_packed_file(file)) {
    list->text = info.string;
    if (take_number(&list->text, ';', &list->count)) return true;
    return fail("metadata '%s' is not an array", key);
  }
  bool same = info.item_kind == item_kind || (is_integer(info.item_kind) && is_integer(item_kind));
  if (info.kind != BL_META_ARRAY || !same)
    return fail("metadata '%s' is not an array of the kind that belongs there", key);
  list->count = info.items;
  return true;
}

static bool next_of_text(meta_list *list, meta_item *item) {
  int64_t size;
  if (!take_number(&list->text, ':', &size) ||
      memchr(list->text, '\0', (size_t)size) != NULL || list->text[size] != ' ')
    return fail("metadata '%s' ends before item %lld", list->key, (long long)list->next);
  item->string = list->text;
  item->size = (size_t)size;
  item->integer = strtoll(list->text, NULL, 10);
  list->text += size + 1;
  list->next++;
  return true;
}

bool meta_list_next(meta_list *list, meta_item *item) {
  bl_error error;
  bl_meta_info info = {.struct_size = sizeof info};
  if (list->text) return next_of_text(list, item);
  if (bl_model_meta_item(list->file, list->key, list->next, &info, &error) != BL_OK)
    return fail("metadata '%s', item %lld: %s", list->key, (long long)list->next, error.message);
  list->next++;
  *item = (meta_item){info.string, info.string ? (size_t)info.items : 0, info.integer};
  return true;
}

/* ---- saving ------------------------------------------------------------------------------------- */

/* What the library's own keys in a packed file begin with. */
#define RESERVED "bitlinear."

typedef struct {
  char *bytes;
  size_t size, capacity;
} text;

static bool add_bytes(text *t, const char *bytes, size_t size) {
  if (!grow((void **)&t->bytes, &t->capacity, t->size + size + 1, 1)) return false;
  memcpy(t->bytes + t->size, bytes, size);
  t->size += size;
  t->bytes[t->size] = '\0';
  return true;
}

/* The text of a value that is no array; an item of one has its size in front and a space behind. */
static bool add_value(text *t, const char *key, const bl_meta_info *info, bool is_item) {
  char number[64], size_text[32];
  const char *bytes = number;
  if (info->kind == BL_META_ARRAY) return fail("metadata '%s': an array of arrays", key);
  if (info->kind == BL_META_STRING) bytes = info->string;
  else if (info->kind == BL_META_F64) snprintf(number, sizeof number, "%.17g", info->number);
  else snprintf(number, sizeof number, "%" PRId64, info->integer);
  size_t size = strlen(bytes);
  if (info->kind == BL_META_STRING && size != (size_t)info->items)
    return fail("metadata '%s' holds a NUL", key);
  if (!is_item) return add_bytes(t, bytes, size);
  int digits = snprintf(size_text, sizeof size_text, "%zu:", size);
  return add_bytes(t, size_text, (size_t)digits) && add_bytes(t, bytes, size) &&
         add_bytes(t, " ", 1);
}

static bool add_array(text *t, const bl_model *file, const char *key, int64_t items) {
  char count[32];
  bl_error error;
  int digits = snprintf(count, sizeof count, "%" PRId64 ";", items);
  if (!add_bytes(t, count, (size_t)digits)) return false;
  for (int64_t i = 0; i < items; i++) {
    bl_meta_info item = {.struct_size = sizeof item};
    if (bl_model_meta_item(file, key, i, &item, &error) != BL_OK)
      return fail("metadata '%s', item %lld: %s", key, (long long)i, error.message);
    if (!add_value(t, key, &item, true)) return false;
  }
  return true;
}

bool save_packed(const char *path, const bl_model *file, const bl_named_layer *layers,
                 size_t layer_count) {
  bl_error error;
  bl_model_info model = {.struct_size = sizeof model};
  if (bl_model_describe(file, &model, &error) != BL_OK) return fail("%s", error.message);
  size_t count = (size_t)model.metadata;
  text *values = allocate(count, sizeof *values);
  bl_named_text *texts = allocate(count, sizeof *texts);
  bool ok = values && texts;
  size_t used = 0;
  for (size_t i = 0; ok && i < count; i++) {
    bl_meta_info info = {.struct_size = sizeof info};
    if (bl_model_meta(file, NULL, (int64_t)i, &info, &error) != BL_OK)
      ok = fail("metadata %zu: %s", i, error.message);
    else if (strncmp(info.key, RESERVED, strlen(RESERVED)) == 0)
      continue;
    else if (info.kind == BL_META_ARRAY)
      ok = add_array(&values[used], file, info.key, info.items);
    else
      ok = add_value(&values[used], info.key, &info, false);
    texts[used] = (bl_named_text){info.key, values[used].bytes};
    used++;
  }
  if (ok && bl_save(path, layers, layer_count, texts, used, &error) != BL_OK)
    ok = fail("cannot save '%s': %s", path, error.message);
  for (size_t i = 0; values && i < count; i++) free(values[i].bytes);
  free(values);
  free(texts);
  return ok;
}
