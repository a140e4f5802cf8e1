#include "split.h"

#include <string.h>

#include "unicode.h"
#include "util.h"

bool splitter_rule(const char *name, bool *digits_alone) {
  *digits_alone = strcmp(name, "smollm") == 0;
  if (*digits_alone || strcmp(name, "gpt-2") == 0 || strcmp(name, "default") == 0) return true;
  return fail("the file's tokenizer cuts text by the rule '%s'; this program knows smollm, gpt-2 "
              "and default",
              name);
}

splitter split_text(const char *text, size_t size, bool digits_alone) {
  splitter s = {.text = text, .end = text + size, .digits_alone = digits_alone};
  s.piece_end = digits_alone ? text : s.end;
  return s;
}

/* The class of the character at p, and its length; CHAR_OTHER and 0 at the end. */
static char_class look(const char *p, const char *end, size_t *length) {
  uint32_t c;
  *length = 0;
  if (p == end) return CHAR_OTHER;
  *length = decode_utf8(p, (size_t)(end - p), &c);
  return class_of(c);
}

static const char *skip_class(const char *p, const char *end, char_class wanted) {
  size_t length;
  while (p < end && look(p, end, &length) == wanted) p += length;
  return p;
}

/* 's 't 're 've 'm 'll 'd */
static size_t contraction(const char *p, const char *end) {
  static const char *const endings[] = {"s", "t", "re", "ve", "m", "ll", "d"};
  if (*p != '\'') return 0;
  for (size_t i = 0; i < sizeof endings / sizeof *endings; i++) {
    size_t size = strlen(endings[i]);
    if ((size_t)(end - p) > size && memcmp(p + 1, endings[i], size) == 0) return size + 1;
  }
  return 0;
}

/* GPT-2's pattern, its alternatives in their order: a contraction; letters, numbers or other
 * characters with one space before them; white space, which leaves its last character to the word
 * that follows. */
static const char *gpt2_word(const char *p, const char *end) {
  size_t length, space = contraction(p, end);
  if (space) return p + space;
  space = *p == ' ' ? 1 : 0;
  char_class first = look(p + space, end, &length);
  if (length > 0 && first != CHAR_SPACE) return skip_class(p + space, end, first);
  const char *last = p, *next = p;
  while (next < end && look(next, end, &length) == CHAR_SPACE) {
    last = next;
    next += length;
  }
  return next == end || last == p ? next : last;
}

bool next_word(splitter *s, const char **word, size_t *size) {
  if (s->text == s->end) return false;
  const char *p = s->text;
  if (s->digits_alone && p == s->piece_end) {
    size_t length;
    while (s->piece_end < s->end && look(s->piece_end, s->end, &length) != CHAR_NUMBER)
      s->piece_end += length;
    if (s->piece_end == p) { /* a digit */
      look(p, s->end, &length);
      s->piece_end += length;
    }
  }
  s->text = gpt2_word(p, s->piece_end);
  *word = p;
  *size = (size_t)(s->text - p);
  return true;
}
