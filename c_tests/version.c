/* Version, build line and names. */
#include "check.h"

static void versions(void) {
  char text[32];
  CHECK(bl_version() == BL_VERSION);
  CHECK(BL_VERSION == BL_VERSION_MAJOR * 1000000 + BL_VERSION_MINOR * 1000 + BL_VERSION_PATCH);
  snprintf(text, sizeof text, "bitlinear %d.%d.%d ", BL_VERSION_MAJOR, BL_VERSION_MINOR, BL_VERSION_PATCH);
  CHECK(strncmp(bl_build_info(), text, strlen(text)) == 0);
  CHECK(strchr(bl_build_info(), '\n') == NULL);
  CHECK(bl_build_info() == bl_build_info()); /* static */
}

static void status_names(void) {
  static const struct {
    bl_status status;
    const char *name;
  } all[] = {
#define NAME(status) {status, #status}
      NAME(BL_OK),
      NAME(BL_ERROR_INVALID_ARGUMENT),
      NAME(BL_ERROR_INVALID_HANDLE),
      NAME(BL_ERROR_UNSUPPORTED),
      NAME(BL_ERROR_OUT_OF_MEMORY),
      NAME(BL_ERROR_BUFFER_TOO_SMALL),
      NAME(BL_ERROR_NOT_FOUND),
      NAME(BL_ERROR_IO),
      NAME(BL_ERROR_BAD_FILE),
      NAME(BL_ERROR_DEVICE),
      NAME(BL_ERROR_FORKED),
      NAME(BL_ERROR_CANCELLED),
      NAME(BL_ERROR_INTERNAL),
  };
  size_t i;
  uint32_t n;
  for (i = 0; i < sizeof all / sizeof *all; i++) {
    CHECK(strcmp(bl_status_name(all[i].status), all[i].name) == 0);
    CHECK(bl_status_name(all[i].status) == bl_status_name(all[i].status));
  }
  for (n = 0; n < 2000; n++) CHECK(strncmp(bl_status_name(ANY(bl_status, n)), "BL_", 3) == 0);
  CHECK(strcmp(bl_status_name(ANY(bl_status, 98)), "BL_UNKNOWN") == 0);
  CHECK(strcmp(bl_status_name(ANY(bl_status, 0xffffffffu)), "BL_UNKNOWN") == 0);
}

static void type_names(void) {
  STRUCT(bl_type_info, info);
  int known = 0;
  uint32_t n;
  GOOD(bl_type_describe(BL_TYPE_F32, &info, &error));
  CHECK(strcmp(info.name, "f32") == 0 && info.block == 1 && info.block_bytes == 4 && !info.is_packed);
  GOOD(bl_type_describe(BL_TYPE_Q4_K, &info, &error));
  CHECK(strcmp(info.name, "q4_k") == 0 && info.block == 256 && info.block_bytes == 144 && info.is_packed);
  GOOD(bl_type_describe(BL_TYPE_TQ2_0, &info, &error));
  CHECK(info.block == 256 && info.block_bytes == 66);
  for (n = 0; n < 1000; n++) {
    if (bl_type_describe(ANY(bl_type, n), &info, &error) == BL_OK) {
      known++;
      CHECK(info.name != NULL && *info.name && info.struct_size == sizeof info && info.is_packed <= 1);
    } else {
      CHECK(error.status == BL_ERROR_UNSUPPORTED && info.name == NULL && info.block == 0);
    }
  }
  CHECK(known >= 60);
}

int main(int count, char **words) {
  start(count, words);
  versions();
  status_names();
  type_names();
  return done();
}
