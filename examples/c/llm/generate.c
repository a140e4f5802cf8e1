#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "modes.h"
#include "session.h"
#include "util.h"

static bool encode_prompt(const settings *set, const chat_template *chat, const tokenizer *t,
                          token_list *list) {
  if (chat->turn_begin >= 0 && !set->raw)
    return chat_encode(chat, t, set->system, set->prompt, list);
  if (set->system)
    return fail("--system needs a chat template: the file has none, or --raw is set");
  if (t->add_bos && !token_list_add(list, t->bos)) return false;
  return tokenizer_encode(t, set->prompt, strlen(set->prompt), false, list);
}

/* A token's bytes may end inside a character: the terminal waits for the rest of it. */
static bool print_token(const tokenizer *t, int32_t id) {
  size_t size;
  if (tokenizer_is_special(t, id)) return true;
  const char *bytes = tokenizer_bytes(t, id, &size);
  if (fwrite(bytes, 1, size, stdout) == size && fflush(stdout) == 0) return true;
  return fail("cannot write the answer");
}

static bool answer(const settings *set, const tokenizer *t, const chat_template *chat, session *s,
                   const token_list *prompt, run_figures *figures) {
  size_t vocabulary = s->model->vocabulary;
  sampler chance = set->sampler;
  float *logits = allocate(vocabulary, sizeof *logits);
  double begin = now();
  bool ok = logits && session_feed(s, prompt->ids, prompt->count, logits);
  figures->prompt_tokens = prompt->count;
  figures->prompt_seconds = now() - begin;
  begin = now();
  size_t length = 0;
  while (ok && length < set->length) {
    int32_t id = sample(&chance, logits, vocabulary);
    if (id == t->eos || id == chat->turn_end) break;
    ok = print_token(t, id);
    length++;
    if (!ok || length == set->length) break;
    if (s->position == s->capacity) {
      fail("the answer ends here: the model's context of %zu tokens is full", s->capacity);
      break;
    }
    ok = session_feed(s, &id, 1, logits);
  }
  if (ok) putchar('\n');
  figures->generated_tokens = length;
  figures->generate_seconds = now() - begin;
  free(logits);
  return ok;
}

bool run_generate(const settings *set, const model *m, const tokenizer *t, run_figures *figures) {
  chat_template chat;
  token_list prompt = {0};
  session s = {0};
  bool ok = chat_open(&chat, m->file, t) && encode_prompt(set, &chat, t, &prompt);
  if (ok && prompt.count == 0) ok = fail("the prompt is empty");
  if (ok && prompt.count > m->context_length)
    ok = fail("the prompt's %zu tokens are more than the model's context of %zu", prompt.count,
              m->context_length);
  if (ok) {
    size_t room = m->context_length - prompt.count;
    size_t length = set->length < room ? set->length : room;
    figures->prompt_rows = prompt.count < set->piece ? prompt.count : set->piece;
    ok = session_open(&s, m, set->pool, prompt.count + length, set->piece) &&
         answer(set, t, &chat, &s, &prompt, figures);
    if (s.model) session_close(&s);
  }
  chat_close(&chat);
  free(prompt.ids);
  return ok;
}
