#ifndef LLM_METADATA_H
#define LLM_METADATA_H
/** Values of the file's metadata, checked for their kind. */
#include <stdbool.h>
#include <stdint.h>

#include "bitlinear.h"

/* Each sets *value, or leaves it as it is where the file has no such key. False, after a message,
 * where the value is of another kind. */
bool meta_integer(const bl_model *file, const char *key, int64_t *value);
bool meta_number(const bl_model *file, const char *key, double *value);
/** The string lives as long as the file's handle. */
bool meta_string(const bl_model *file, const char *key, const char **value);
/** How many items the array has, all of kind `item_kind`; a missing one has none. */
bool meta_array(const bl_model *file, const char *key, bl_meta_kind item_kind, int64_t *items);
bool meta_item(const bl_model *file, const char *key, int64_t item, bl_meta_info *info);

#endif
