#ifndef LLM_POOL_H
#define LLM_POOL_H
/** The program's threads: the library runs on them too, through its context's parallel_for. */
#include <stdbool.h>
#include <stddef.h>

typedef struct pool pool;

/** A pool of so many threads, the caller counted; NULL after a message. */
pool *pool_open(size_t threads);
void pool_close(pool *p);
/** Threads, the caller counted. */
size_t pool_threads(const pool *p);

/**
 * Calls run(task, i) once for each i in 0..count, and comes back after the last has returned. A
 * bl_parallel_for_fn, where `user` is a pool. One call at a time, and none from inside a task.
 */
void pool_run(void *user, size_t count, void (*run)(void *task, size_t index), void *task);

#endif
