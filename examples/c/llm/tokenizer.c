#include "tokenizer.h"

#include <stdlib.h>
#include <string.h>

#include "metadata.h"
#include "split.h"
#include "unicode.h"
#include "util.h"

#define TOKENS "tokenizer.ggml.tokens"
#define TYPES "tokenizer.ggml.token_type"
#define MERGES "tokenizer.ggml.merges"
enum { TYPE_CONTROL = 3, TYPE_USER_DEFINED = 4 };
enum { NONE = -1 };

struct merge {
  int32_t left, right; /* left is NONE in an empty slot */
  int32_t rank, result;
};

static size_t hash_bytes(const char *bytes, size_t size) {
  uint64_t hash = 0xcbf29ce484222325u;
  for (size_t i = 0; i < size; i++) hash = (hash ^ (unsigned char)bytes[i]) * 0x100000001b3u;
  return (size_t)(hash ^ hash >> 29);
}

static size_t hash_pair(int32_t left, int32_t right) {
  uint64_t hash = ((uint64_t)(uint32_t)left << 32 | (uint32_t)right) * 0x9e3779b97f4a7c15u;
  return (size_t)(hash >> 31);
}

/* The least power of two that leaves half of the slots empty, minus one. */
static size_t table_mask(size_t items) {
  size_t size = 16;
  while (size < 2 * items) size *= 2;
  return size - 1;
}

const char *tokenizer_bytes(const tokenizer *t, int32_t id, size_t *size) {
  *size = 0;
  if (id < 0 || id >= t->count) return "";
  *size = t->start[id + 1] - t->start[id];
  return t->bytes + t->start[id];
}

/* The slot that holds the token of these bytes, or the empty one where it belongs. */
static int32_t *find_slot(const tokenizer *t, const char *bytes, size_t size) {
  for (size_t i = hash_bytes(bytes, size);; i++) {
    int32_t *slot = &t->slots[i & t->slot_mask];
    size_t length;
    if (*slot == NONE) return slot;
    const char *held = tokenizer_bytes(t, *slot, &length);
    if (length == size && memcmp(held, bytes, size) == 0) return slot;
  }
}

static merge *find_merge(const tokenizer *t, int32_t left, int32_t right) {
  for (size_t i = hash_pair(left, right);; i++) {
    merge *m = &t->merges[i & t->merge_mask];
    if (m->left == NONE || (m->left == left && m->right == right)) return m;
  }
}

/* ---- reading the file ---------------------------------------------------------------------------
 * Vocabularies write each byte as a printable character: a printable byte of Latin-1 as itself, the
 * others in their order as the characters from U+0100 on. */

static bool prints(uint32_t byte) {
  return (byte > ' ' && byte < 0x7f) || (byte > 0xa0 && byte != 0xad && byte < 0x100);
}

/* The byte that character c stands for, or NONE. */
static int32_t byte_of(uint32_t c) {
  if (prints(c)) return (int32_t)c;
  uint32_t next = 0x100;
  for (uint32_t byte = 0; byte < 0x100; byte++)
    if (!prints(byte) && next++ == c) return (int32_t)byte;
  return NONE;
}

/* Writes the bytes that text stands for to `bytes`, never more than text has. Other characters than
 * those of the alphabet are kept. */
static size_t to_bytes(const char *text, size_t size, char *bytes) {
  size_t used = 0;
  while (size > 0) {
    uint32_t c;
    size_t length = decode_utf8(text, size, &c);
    int32_t byte = byte_of(c);
    if (byte != NONE) {
      bytes[used++] = (char)byte;
    } else {
      memmove(bytes + used, text, length);
      used += length;
    }
    text += length;
    size -= length;
  }
  return used;
}

static bool read_tokens(tokenizer *t, const bl_model *file) {
  meta_list tokens, types;
  if (!meta_list_open(file, TOKENS, BL_META_STRING, &tokens) ||
      !meta_list_open(file, TYPES, BL_META_I64, &types))
    return false;
  if (tokens.count < 1 || tokens.count > INT32_MAX)
    return fail("the file has no tokens (" TOKENS ")");
  if (types.count != 0 && types.count != tokens.count)
    return fail("%s and %s differ in length", TOKENS, TYPES);
  size_t count = (size_t)tokens.count, capacity = 0, used = 0, special_capacity = 0;
  t->count = (int32_t)tokens.count;
  t->slot_mask = table_mask(count);
  t->start = allocate(count + 1, sizeof *t->start);
  t->slots = allocate(t->slot_mask + 1, sizeof *t->slots);
  if (!t->start || !t->slots) return false;
  for (size_t i = 0; i <= t->slot_mask; i++) t->slots[i] = NONE;
  for (int32_t id = 0; id < t->count; id++) {
    meta_item token, type = {.integer = 1};
    if (!meta_list_next(&tokens, &token)) return false;
    if (types.count && !meta_list_next(&types, &type)) return false;
    size_t size = token.size;
    if (!grow((void **)&t->bytes, &capacity, used + size + 1, 1)) return false;
    bool special = type.integer == TYPE_CONTROL || type.integer == TYPE_USER_DEFINED;
    if (special) {
      memcpy(t->bytes + used, token.string, size);
      if (!grow((void **)&t->special, &special_capacity, t->specials + 1, sizeof *t->special))
        return false;
      t->special[t->specials++] = id;
    } else {
      size = to_bytes(token.string, size, t->bytes + used);
    }
    t->start[id] = used;
    t->start[id + 1] = used + size;
    if (!special) {
      int32_t *slot = find_slot(t, t->bytes + used, size);
      if (*slot == NONE) *slot = id;
    }
    used += size;
  }
  for (int i = 0; i < 256; i++) {
    char byte = (char)i;
    t->byte_token[i] = *find_slot(t, &byte, 1);
  }
  return true;
}

static bool read_merges(tokenizer *t, const bl_model *file) {
  meta_list list;
  if (!meta_list_open(file, MERGES, BL_META_STRING, &list)) return false;
  if (list.count > INT32_MAX) return fail("%lld merges are too many", (long long)list.count);
  t->merge_mask = table_mask((size_t)list.count);
  t->merges = allocate(t->merge_mask + 1, sizeof *t->merges);
  if (!t->merges) return false;
  for (size_t i = 0; i <= t->merge_mask; i++) t->merges[i].left = NONE;
  char *bytes = NULL;
  size_t capacity = 0;
  bool ok = true;
  for (int32_t rank = 0; ok && rank < list.count; rank++) {
    meta_item item;
    ok = meta_list_next(&list, &item) && grow((void **)&bytes, &capacity, item.size + 1, 1);
    if (!ok) break;
    const char *space = item.size > 1 ? memchr(item.string + 1, ' ', item.size - 1) : NULL;
    if (!space) {
      ok = fail("merge %d, '%.*s', is not two parts with a space between", (int)rank,
                (int)item.size, item.string);
      break;
    }
    size_t before = (size_t)(space - item.string);
    size_t left_size = to_bytes(item.string, before, bytes);
    size_t right_size = to_bytes(space + 1, item.size - before - 1, bytes + left_size);
    int32_t left = *find_slot(t, bytes, left_size);
    int32_t right = *find_slot(t, bytes + left_size, right_size);
    int32_t result = *find_slot(t, bytes, left_size + right_size);
    if (left == NONE || right == NONE || result == NONE) {
      ok = fail("merge %d, '%.*s', names no tokens of the vocabulary", (int)rank, (int)item.size,
                item.string);
      break;
    }
    merge *m = find_merge(t, left, right);
    if (m->left == NONE) *m = (merge){left, right, rank, result};
  }
  free(bytes);
  return ok;
}

/* A token id of the metadata: NONE where it is missing. */
static bool read_id(const tokenizer *t, const bl_model *file, const char *key, int32_t *id) {
  int64_t value = NONE;
  if (!meta_integer(file, key, &value)) return false;
  if (value < NONE || value >= t->count) return fail("%s is no token's number", key);
  *id = (int32_t)value;
  return true;
}

bool tokenizer_open(tokenizer *t, const bl_model *file) {
  const char *model = "none", *rule = "default";
  int64_t add_bos = 0;
  memset(t, 0, sizeof *t);
  bool ok = meta_string(file, "tokenizer.ggml.model", &model);
  if (ok && strcmp(model, "gpt2") != 0)
    ok = fail("the file's tokenizer is of the kind '%s'; this program knows gpt2", model);
  ok = ok && meta_string(file, "tokenizer.ggml.pre", &rule) &&
       splitter_rule(rule, &t->digits_alone) && read_tokens(t, file) && read_merges(t, file) &&
       read_id(t, file, "tokenizer.ggml.bos_token_id", &t->bos) &&
       read_id(t, file, "tokenizer.ggml.eos_token_id", &t->eos) &&
       meta_integer(file, "tokenizer.ggml.add_bos_token", &add_bos);
  t->add_bos = add_bos != 0 && t->bos != NONE;
  if (!ok) tokenizer_close(t);
  return ok;
}

void tokenizer_close(tokenizer *t) {
  free(t->bytes);
  free(t->start);
  free(t->slots);
  free(t->merges);
  free(t->special);
  memset(t, 0, sizeof *t);
}

/* ---- encoding -----------------------------------------------------------------------------------
 * A word is a linked list of tokens, at first one for each byte. The pair with the least rank, the
 * leftmost of equals, is merged until no pair can be: a heap has the pairs' ranks and places. */

typedef struct {
  int32_t id, previous, next; /* neighbours as indices; NONE past the ends */
  int32_t rank, result;       /* of merging with the next one; rank is NONE where that is no pair */
} symbol;

typedef struct {
  symbol *symbols;
  size_t symbol_capacity;
  uint64_t *heap; /* rank << 32 | index of the left symbol */
  size_t heap_count, heap_capacity;
} word_space;

static void heap_push(word_space *w, uint64_t key) {
  size_t i = w->heap_count++;
  for (; i > 0 && w->heap[(i - 1) / 2] > key; i = (i - 1) / 2) w->heap[i] = w->heap[(i - 1) / 2];
  w->heap[i] = key;
}

static uint64_t heap_pop(word_space *w) {
  uint64_t top = w->heap[0], key = w->heap[--w->heap_count];
  size_t i = 0, child;
  while ((child = 2 * i + 1) < w->heap_count) {
    if (child + 1 < w->heap_count && w->heap[child + 1] < w->heap[child]) child++;
    if (w->heap[child] >= key) break;
    w->heap[i] = w->heap[child];
    i = child;
  }
  w->heap[i] = key;
  return top;
}

/* Looks up what symbol i and its next one merge to, and puts it on the heap. */
static void note_pair(const tokenizer *t, word_space *w, int32_t i) {
  symbol *s = &w->symbols[i];
  s->rank = NONE;
  if (s->next == NONE) return;
  const merge *m = find_merge(t, s->id, w->symbols[s->next].id);
  if (m->left == NONE) return;
  s->rank = m->rank;
  s->result = m->result;
  heap_push(w, (uint64_t)(uint32_t)m->rank << 32 | (uint32_t)i);
}

static bool encode_word(const tokenizer *t, word_space *w, const char *word, size_t size,
                        token_list *list) {
  if (size > INT32_MAX / 4) return fail("a word of %zu bytes is too long", size);
  /* Each of the size - 1 merges adds at most two pairs to the first size - 1. */
  if (!grow((void **)&w->symbols, &w->symbol_capacity, size, sizeof *w->symbols) ||
      !grow((void **)&w->heap, &w->heap_capacity, 3 * size, sizeof *w->heap))
    return false;
  int32_t count = 0;
  for (size_t i = 0; i < size; i++) {
    int32_t id = t->byte_token[(unsigned char)word[i]];
    if (id == NONE) continue; /* some vocabularies lack rare bytes: such a byte is left out */
    w->symbols[count] = (symbol){.id = id, .previous = count - 1, .next = count + 1};
    count++;
  }
  if (count == 0) return true;
  w->symbols[count - 1].next = NONE;
  w->heap_count = 0;
  for (int32_t i = 0; i < count; i++) note_pair(t, w, i);
  while (w->heap_count > 0) {
    uint64_t key = heap_pop(w);
    int32_t i = (int32_t)(uint32_t)key;
    symbol *s = &w->symbols[i];
    if (s->rank != (int32_t)(key >> 32)) continue; /* one of the two has been merged since */
    symbol *next = &w->symbols[s->next];
    s->id = s->result;
    next->rank = NONE;
    s->next = next->next;
    if (s->next != NONE) w->symbols[s->next].previous = i;
    note_pair(t, w, i);
    if (s->previous != NONE) note_pair(t, w, s->previous);
  }
  for (int32_t i = 0; i != NONE; i = w->symbols[i].next)
    if (!token_list_add(list, w->symbols[i].id)) return false;
  return true;
}

bool token_list_add(token_list *list, int32_t id) {
  if (!grow((void **)&list->ids, &list->capacity, list->count + 1, sizeof *list->ids)) return false;
  list->ids[list->count++] = id;
  return true;
}

/* The longest special token's name that text begins with, or NONE. */
static int32_t special_at(const tokenizer *t, const char *text, size_t size, size_t *length) {
  int32_t best = NONE;
  *length = 0;
  for (size_t i = 0; i < t->specials; i++) {
    size_t name_size;
    const char *name = tokenizer_bytes(t, t->special[i], &name_size);
    if (name_size <= *length || name_size > size || memcmp(name, text, name_size) != 0) continue;
    best = t->special[i];
    *length = name_size;
  }
  return best;
}

bool tokenizer_encode(const tokenizer *t, const char *text, size_t size, bool with_specials,
                      token_list *list) {
  word_space space = {0};
  bool ok = true, begins[256] = {false};
  for (size_t i = 0; with_specials && i < t->specials; i++) {
    size_t name_size;
    const char *name = tokenizer_bytes(t, t->special[i], &name_size);
    if (name_size > 0) begins[(unsigned char)*name] = true;
  }
  size_t done = 0;
  while (ok && done < size) {
    size_t plain = done, special_size = 0;
    int32_t special = NONE;
    for (; plain < size; plain++)
      if (begins[(unsigned char)text[plain]] &&
          (special = special_at(t, text + plain, size - plain, &special_size)) != NONE)
        break;
    splitter words = split_text(text + done, plain - done, t->digits_alone);
    const char *word;
    size_t word_size;
    while (ok && next_word(&words, &word, &word_size))
      ok = encode_word(t, &space, word, word_size, list);
    if (ok && special != NONE) ok = token_list_add(list, special);
    done = plain + special_size;
  }
  free(space.symbols);
  free(space.heap);
  return ok;
}

int32_t tokenizer_special(const tokenizer *t, const char *name) {
  size_t length, size = strlen(name);
  int32_t id = special_at(t, name, size, &length);
  return length == size ? id : NONE;
}

bool tokenizer_is_special(const tokenizer *t, int32_t id) {
  for (size_t i = 0; i < t->specials; i++)
    if (t->special[i] == id) return true;
  return false;
}
