#ifndef LLM_UNICODE_H
#define LLM_UNICODE_H
/** The little of Unicode that splitting text for a tokenizer needs. */
#include <stddef.h>
#include <stdint.h>

typedef enum { CHAR_OTHER, CHAR_LETTER, CHAR_NUMBER, CHAR_SPACE } char_class;

/** What the patterns of tokenizers call \p{L}, \p{N} and \s. */
char_class class_of(uint32_t c);

/** The first character of text, which is not empty, and how many bytes it takes. A byte that is no
 *  UTF-8 counts as a character of its own, U+FFFD. */
size_t decode_utf8(const char *text, size_t size, uint32_t *c);

#endif
