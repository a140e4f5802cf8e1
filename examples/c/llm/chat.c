#include "chat.h"

#include <stdlib.h>
#include <string.h>

#include "metadata.h"
#include "util.h"

#define BEGIN "<|im_start|>"
#define END "<|im_end|>"

/* The template is a Jinja program. The default system turn stands in it as one string literal,
 * its line ends as such or as \n; a turn that is put together from variables is not taken. */
static bool find_system(chat_template *chat, const char *source) {
  const char *text = strstr(source, BEGIN "system");
  if (!text) return true;
  text += strlen(BEGIN "system");
  if (*text == '\n') text += 1;
  else if (strncmp(text, "\\n", 2) == 0) text += 2;
  else return true;
  const char *end = strstr(text, END);
  size_t size = end ? (size_t)(end - text) : 0;
  if (size == 0 || strcspn(text, "'\"{\\") < size) return true;
  chat->system = allocate(size + 1, 1);
  if (chat->system) memcpy(chat->system, text, size);
  return chat->system != NULL;
}

bool chat_open(chat_template *chat, const bl_model *file, const tokenizer *t) {
  const char *source = "";
  memset(chat, 0, sizeof *chat);
  chat->turn_begin = chat->turn_end = -1;
  if (!meta_string(file, "tokenizer.chat_template", &source)) return false;
  if (!strstr(source, BEGIN)) return true;
  chat->turn_begin = tokenizer_special(t, BEGIN);
  chat->turn_end = tokenizer_special(t, END);
  if (chat->turn_begin < 0 || chat->turn_end < 0)
    return fail("the chat template uses " BEGIN " and " END ", which the vocabulary lacks");
  return find_system(chat, source);
}

void chat_close(chat_template *chat) {
  free(chat->system);
  memset(chat, 0, sizeof *chat);
}

/* A turn's role and text are one run of text for the tokenizer: the word that begins after the line
 * end does not depend on the role. */
static bool open_turn(const chat_template *chat, const tokenizer *t, const char *role,
                      const char *text, token_list *list) {
  size_t role_size = strlen(role), text_size = strlen(text);
  char *turn = allocate(role_size + 1 + text_size, 1);
  if (!turn) return false;
  memcpy(turn, role, role_size);
  turn[role_size] = '\n';
  memcpy(turn + role_size + 1, text, text_size);
  bool ok = token_list_add(list, chat->turn_begin) &&
            tokenizer_encode(t, turn, role_size + 1 + text_size, false, list);
  free(turn);
  return ok;
}

static bool close_turn(const chat_template *chat, const tokenizer *t, token_list *list) {
  return token_list_add(list, chat->turn_end) && tokenizer_encode(t, "\n", 1, false, list);
}

bool chat_encode(const chat_template *chat, const tokenizer *t, const char *system,
                 const char *prompt, token_list *list) {
  if (!system) system = chat->system;
  if (system && !(open_turn(chat, t, "system", system, list) && close_turn(chat, t, list)))
    return false;
  return open_turn(chat, t, "user", prompt, list) && close_turn(chat, t, list) &&
         open_turn(chat, t, "assistant", "", list);
}
