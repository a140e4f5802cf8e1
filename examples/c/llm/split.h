#ifndef LLM_SPLIT_H
#define LLM_SPLIT_H
/** Cuts text into the words that byte-pair encoding works in. */
#include <stdbool.h>
#include <stddef.h>

typedef struct {
  const char *text, *end;
  const char *piece_end;  /**< digits_alone: where the text before the next digit ends */
  bool digits_alone;
} splitter;

/** The file's `tokenizer.ggml.pre` names the rule: smollm (each digit is a word of its own), gpt-2
 *  and default are known. False, after a message, for any other name. */
bool splitter_rule(const char *name, bool *digits_alone);
splitter split_text(const char *text, size_t size, bool digits_alone);
/** The next word; false at the end of the text. */
bool next_word(splitter *s, const char **word, size_t *size);

#endif
