#ifndef LLM_CHAT_H
#define LLM_CHAT_H
/** The ChatML template, for files whose `tokenizer.chat_template` is of that kind. */
#include <stdbool.h>

#include "bitlinear.h"
#include "tokenizer.h"

typedef struct {
  int32_t turn_begin, turn_end; /**< <|im_start|> and <|im_end|>; -1: no such template */
  char *system;                 /**< the system turn of a conversation that brings none, or NULL */
} chat_template;

bool chat_open(chat_template *chat, const bl_model *file, const tokenizer *t);
void chat_close(chat_template *chat);
/** The tokens of a system turn (NULL: the template's own, if any), the prompt as the user's turn,
 *  and the beginning of the answer. Nothing in the two texts is taken for a special token. */
bool chat_encode(const chat_template *chat, const tokenizer *t, const char *system,
                 const char *prompt, token_list *list);

#endif
