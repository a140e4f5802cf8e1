#include "metadata.h"

#include <string.h>

#include "util.h"

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
  if (found && !is_integer(info.kind)) return fail("metadata '%s' is not an integer", key);
  if (found) *value = info.integer;
  return true;
}

bool meta_number(const bl_model *file, const char *key, double *value) {
  bl_meta_info info;
  bool found;
  if (!look_up(file, key, &info, &found)) return false;
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

bool meta_array(const bl_model *file, const char *key, bl_meta_kind item_kind, int64_t *items) {
  bl_meta_info info;
  bool found;
  *items = 0;
  if (!look_up(file, key, &info, &found)) return false;
  if (!found) return true;
  bool same = info.item_kind == item_kind || (is_integer(info.item_kind) && is_integer(item_kind));
  if (info.kind != BL_META_ARRAY || !same)
    return fail("metadata '%s' is not an array of the kind that belongs there", key);
  *items = info.items;
  return true;
}

bool meta_item(const bl_model *file, const char *key, int64_t item, bl_meta_info *info) {
  bl_error error;
  memset(info, 0, sizeof *info);
  info->struct_size = sizeof *info;
  if (bl_model_meta_item(file, key, item, info, &error) == BL_OK) return true;
  return fail("metadata '%s', item %lld: %s", key, (long long)item, error.message);
}
