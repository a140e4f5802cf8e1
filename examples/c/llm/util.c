#define _DEFAULT_SOURCE /* madvise, clock_gettime */
#include "util.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <time.h>

bool fail(const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  fflush(stdout); /* what was printed before the failure comes before it */
  fputs("llm: ", stderr);
  vfprintf(stderr, format, arguments);
  fputc('\n', stderr);
  va_end(arguments);
  return false;
}

#define LINE 64
#define HUGE_PAGE ((size_t)2 << 20)

void *allocate(size_t count, size_t size) {
  void *memory = NULL;
  if (size == 0 || count <= (SIZE_MAX - HUGE_PAGE) / size) {
    size_t bytes = count * size, unit = bytes < HUGE_PAGE ? LINE : HUGE_PAGE;
    bytes = (bytes + unit - 1) / unit * unit;
    if (bytes == 0) bytes = unit;
    memory = aligned_alloc(unit, bytes);
#if defined(MADV_HUGEPAGE)
    /* Advice: it does not matter whether it is taken. Reading is a quarter faster where it is. */
    if (memory && unit == HUGE_PAGE) (void)madvise(memory, bytes, MADV_HUGEPAGE);
#endif
    if (memory) memset(memory, 0, bytes);
  }
  if (!memory) fail("no memory for %zu items of %zu bytes", count, size);
  return memory;
}

bool grow(void **array, size_t *capacity, size_t needed, size_t item_size) {
  if (needed <= *capacity) return true;
  size_t wanted = *capacity < 32 ? 64 : *capacity * 2;
  if (wanted < needed) wanted = needed;
  void *larger = wanted <= SIZE_MAX / item_size ? realloc(*array, wanted * item_size) : NULL;
  if (!larger) return fail("no memory for %zu items of %zu bytes", wanted, item_size);
  *array = larger;
  *capacity = wanted;
  return true;
}

char *read_file(const char *path, size_t *size) {
  FILE *file = fopen(path, "rb");
  if (!file) {
    fail("cannot open '%s': %s", path, strerror(errno));
    return NULL;
  }
  void *text = NULL;
  size_t capacity = 0, used = 0;
  while (grow(&text, &capacity, used + 65537, 1)) {
    size_t got = fread((char *)text + used, 1, 65536, file);
    used += got;
    if (got > 0) continue;
    if (ferror(file)) {
      fail("cannot read '%s': %s", path, strerror(errno));
      break;
    }
    fclose(file);
    ((char *)text)[used] = '\0';
    *size = used;
    return text;
  }
  fclose(file);
  free(text);
  return NULL;
}

double now(void) {
  struct timespec t;
  if (clock_gettime(CLOCK_MONOTONIC, &t) != 0) return 0;
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

uint64_t peak_memory(void) {
  struct rusage usage;
  if (getrusage(RUSAGE_SELF, &usage) != 0) return 0;
#if defined(__APPLE__)
  return (uint64_t)usage.ru_maxrss;
#else
  return (uint64_t)usage.ru_maxrss * 1024;
#endif
}
