#ifndef LLM_UTIL_H
#define LLM_UTIL_H
/* What every file of the program needs: saying what went wrong, memory, files, the clock. */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define PRINTF_LIKE(text, first) __attribute__((format(printf, text, first)))
#else
#define PRINTF_LIKE(text, first)
#endif

/** Says on stderr what failed. Returns false, so that a function can end with it. */
bool fail(const char *format, ...) PRINTF_LIKE(1, 2);

/** count * size zeroed bytes on a 64-byte boundary, to be given to free(); NULL after a message. */
void *allocate(size_t count, size_t size);

/** Makes *array, of *capacity items, hold at least `needed`; what is in it stays. */
bool grow(void **array, size_t *capacity, size_t needed, size_t item_size);

/** The whole file, with a NUL behind its last byte; NULL after a message. Free it with free(). */
char *read_file(const char *path, size_t *size);

/** Seconds since some fixed moment. */
double now(void);

/** The most memory this process has held, in bytes; 0 where the system does not say. */
uint64_t peak_memory(void);

#endif
