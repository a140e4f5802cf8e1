/* What every test program shares. C99, and C++ as well: each program is also compiled as C++.
 *
 * A program is called with the folder of the golden files, the path of the shared library and, where it
 * asks for it, that of a second build with bl_test_fault. It prints nothing but its failures and, last,
 * its counts. */
#ifndef CHECK_H
#define CHECK_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <bitlinear.h>
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int check_count, check_failures;

static inline void check(int good, const char *what, const char *file, int line) {
  check_count++;
  if (good) return;
  check_failures++;
  fprintf(stderr, "%s:%d: %s\n", file, line, what);
}
#define CHECK(what) check(!!(what), #what, __FILE__, __LINE__)

#ifdef TEST_DLOPEN
#include "dl_table.h"
#endif

/* The error argument of EXPECT's calls. */
static bl_error error;

/* A status, and a text that the message holds. Success has an empty message. */
static inline void expect(bl_status got, bl_status want, const char *text, const char *call,
                          const char *file, int line) {
  const char *end = (const char *)memchr(error.message, 0, sizeof error.message);
  int good = got == want && error.status == got && end != NULL;
  if (good) good = got == BL_OK ? end == error.message : strstr(error.message, text) != NULL;
  check_count++;
  if (good) return;
  check_failures++;
  fprintf(stderr, "%s:%d: %s\n  is %d `%.252s`, not %d `%s`\n", file, line, call, (int)got,
          error.message, (int)want, text);
}
#define EXPECT(call, want, text) \
  (memset(&error, 'x', sizeof error), expect(call, want, text, #call, __FILE__, __LINE__))
#define GOOD(call) EXPECT(call, BL_OK, "")

/* A struct that begins with struct_size, all defaults. */
#define STRUCT(type, name) \
  type name;               \
  memset(&name, 0, sizeof name); \
  name.struct_size = (uint32_t)sizeof name

/* An enum of any value, as a program built with another header has it. */
#define ANY(type, number) any_##type(number)
#define ANY_OF(type)                             \
  static inline type any_##type(uint32_t bits) { \
    type value;                                  \
    memcpy(&value, &bits, sizeof value);         \
    return value;                                \
  }
ANY_OF(bl_status)
ANY_OF(bl_type)
ANY_OF(bl_activation)
ANY_OF(bl_op)
ANY_OF(bl_log_level)
ANY_OF(bl_layers)
ANY_OF(bl_rule)

static const char *golden_folder = "", *library_path = "", *hooks_path = "";

/* The path of a golden file, in a buffer that the next call overwrites. */
static inline const char *golden(const char *name) {
  static char path[4096];
  snprintf(path, sizeof path, "%s/%s", golden_folder, name);
  return path;
}

static inline void start(int count, char **words) {
  if (count > 1) golden_folder = words[1];
  if (count > 2) library_path = words[2];
  if (count > 3) hooks_path = words[3];
#ifdef TEST_DLOPEN
  {
    void *library = dlopen(library_path, RTLD_NOW | RTLD_LOCAL);
    CHECK(library != NULL);
    dl_fill(library);
  }
#endif
}

static inline int done(void) {
  printf("%d checks, %d failed\n", check_count, check_failures);
  return check_failures != 0;
}

#endif
