#ifndef LLM_TOKENIZER_H
#define LLM_TOKENIZER_H
/** Byte-level byte-pair encoding (GPT-2's) with the vocabulary and merges of a GGUF file. */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "bitlinear.h"

typedef struct {
  int32_t *ids;
  size_t count, capacity;
} token_list;

typedef struct merge merge;

typedef struct {
  int32_t count;          /**< tokens of the vocabulary */
  int32_t bos, eos;       /**< -1: the file names none */
  bool add_bos;           /**< text begins with the bos token */
  bool digits_alone;      /**< see split.h */
  char *bytes;            /**< the bytes that the tokens stand for, one after the other */
  size_t *start;          /**< [count + 1]: where a token's begin */
  int32_t byte_token[256];/**< the token of a single byte, or -1 */
  int32_t *slots;         /**< hash table: bytes -> token, -1 where empty */
  size_t slot_mask;
  merge *merges;          /**< hash table: pair of tokens -> what it merges to, and when */
  size_t merge_mask;
  int32_t *special;       /**< tokens that text holds as they are (<|im_end|>), not by merging */
  size_t specials;
} tokenizer;

/** Reads tokenizer.ggml.* of the file. On failure, after a message, there is nothing to close. */
bool tokenizer_open(tokenizer *t, const bl_model *file);
void tokenizer_close(tokenizer *t);

/** Adds the tokens of text to the list. with_specials: names of special tokens in it become those
 *  tokens; without, they are text like any other. */
bool tokenizer_encode(const tokenizer *t, const char *text, size_t size, bool with_specials,
                      token_list *list);
bool token_list_add(token_list *list, int32_t id);

/** The special token of that name, or -1. */
int32_t tokenizer_special(const tokenizer *t, const char *name);
bool tokenizer_is_special(const tokenizer *t, int32_t id);
/** The bytes a token stands for; they may end inside a character. */
const char *tokenizer_bytes(const tokenizer *t, int32_t id, size_t *size);

#endif
