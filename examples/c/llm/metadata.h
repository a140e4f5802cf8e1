#ifndef LLM_METADATA_H
#define LLM_METADATA_H
/**
 * Values of the file's metadata, checked for their kind: those of a GGUF file, or of a packed file
 * that save_packed wrote, where each is a text.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "bitlinear.h"

/** Whether bl_save wrote the file. */
bool is_packed_file(const bl_model *file);

/* Each sets *value, or leaves it as it is where the file has no such key. False, after a message,
 * where the value is of another kind. */
bool meta_integer(const bl_model *file, const char *key, int64_t *value);
bool meta_number(const bl_model *file, const char *key, double *value);
/** The string lives as long as the file's handle. */
bool meta_string(const bl_model *file, const char *key, const char **value);

/** The items of an array, one after the other. */
typedef struct {
  const bl_model *file;
  const char *key;
  int64_t count;          /**< 0 for a missing array */
  int64_t next;
  const char *text;       /**< of a packed file: the items that are left */
} meta_list;

typedef struct {
  const char *string;     /**< of strings: `size` bytes, which live as long as the file's handle */
  size_t size;
  int64_t integer;        /**< of integers and bools */
} meta_item;

/** All items are of kind `item_kind`: BL_META_STRING, or BL_META_I64 for any integers. */
bool meta_list_open(const bl_model *file, const char *key, bl_meta_kind item_kind, meta_list *list);
/** The next item; to be called `count` times. */
bool meta_list_next(meta_list *list, meta_item *item);

/** Writes layers, and all metadata of `file`, to a packed file. */
bool save_packed(const char *path, const bl_model *file, const bl_named_layer *layers,
                 size_t layer_count);

#endif
