/* bl_error: always filled, always ended, always UTF-8, however long the names in it are. */
#include "layers.h"

/* Whether a text is UTF-8 to its end. */
static int is_utf8(const char *text) {
  const unsigned char *at = (const unsigned char *)text;
  while (*at) {
    int more = *at < 0x80 ? 0 : *at >= 0xc2 && *at < 0xe0 ? 1 : *at >= 0xe0 && *at < 0xf0 ? 2
             : *at >= 0xf0 && *at < 0xf5 ? 3 : -1;
    if (more < 0) return 0;
    for (at++; more > 0; more--, at++)
      if ((*at & 0xc0) != 0x80) return 0;
  }
  return 1;
}

static void checked(void) {
  const char *end = (const char *)memchr(error.message, 0, sizeof error.message);
  CHECK(end != NULL && end != error.message);
  CHECK(end != NULL && is_utf8(error.message));
}

/* Names that fill the message to any length, of characters of one to four bytes, and of none. */
static void long_names(void) {
  static const char *const characters[] = {"a", "\xc3\xbc", "\xe2\x82\xac", "\xf0\x9f\x98\x80", "\xff", "\n"};
  bl_model *model = open_model(ALL_TYPES), *made = NULL;
  bl_layer *layer = NULL;
  STRUCT(bl_tensor_info, tensor);
  STRUCT(bl_meta_info, meta);
  char name[4096];
  size_t i, before, count;
  for (i = 0; i < sizeof characters / sizeof *characters; i++)
    for (before = 0; before < 4; before++)
      for (count = 40; count < 900; count += count < 270 ? 1 : 97) {
        size_t k, size = strlen(characters[i]);
        memset(name, '-', before);
        for (k = 0; k < count; k++) memcpy(name + before + k * size, characters[i], size);
        name[before + count * size] = 0;
        EXPECT(bl_load(NULL, name, NULL, &made, &error), BL_ERROR_IO, "");
        checked();
        EXPECT(bl_layer_open(model, name, NULL, &layer, &error), BL_ERROR_NOT_FOUND, "");
        checked();
        EXPECT(bl_model_tensor(model, name, 0, &tensor, &error), BL_ERROR_NOT_FOUND, "");
        checked();
        EXPECT(bl_model_meta(model, name, 0, &meta, &error), BL_ERROR_NOT_FOUND, "");
        checked();
      }
  bl_free(model);
}

/* Success clears what an earlier failure left; nothing but the bl_error is written. */
static void cleared(void) {
  struct {
    char before[16];
    bl_error error;
    char after[16];
  } s;
  bl_context *context = NULL;
  size_t i;
  memset(&s, 'x', sizeof s);
  CHECK(bl_context_create(NULL, NULL, &s.error) == BL_ERROR_INVALID_ARGUMENT);
  CHECK(s.error.status == BL_ERROR_INVALID_ARGUMENT && s.error.message[0]);
  CHECK(bl_context_create(NULL, &context, &s.error) == BL_OK);
  CHECK(s.error.status == BL_OK && s.error.message[0] == 0);
  bl_free(context);
  for (i = 0; i < 16; i++) CHECK(s.before[i] == 'x' && s.after[i] == 'x');
}

int main(int count, char **words) {
  start(count, words);
  long_names();
  cleared();
  return done();
}
