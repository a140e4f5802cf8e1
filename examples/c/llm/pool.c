#include "pool.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "util.h"

/* How long a thread looks out for work before it sleeps: longer than the gap between two layers. */
#define SPIN_SECONDS 50e-6

/* A call publishes its tasks, helps with them, withdraws them and waits for those who are still
 * inside. A thread counts itself in before it looks whether there are tasks, and the caller withdraws
 * them before it looks at the count: either the thread sees none, or the caller sees the thread. */
struct pool {
  void (*run)(void *task, size_t index);
  void *task;
  size_t count;
  atomic_size_t next;   /* the first task that nobody has taken */
  atomic_bool open;     /* there are tasks */
  atomic_size_t round;  /* changes with every call, so that a thread enters each once */
  atomic_size_t inside; /* threads that take tasks */
  atomic_size_t asleep; /* threads that sleep, or are about to */
  atomic_bool stop;
  pthread_mutex_t lock;
  pthread_cond_t wake, left;
  size_t threads, started;
  pthread_t thread[];
};

static void relax(void) {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ __volatile__("yield");
#endif
}

static void take_tasks(pool *p) {
  for (size_t i; (i = atomic_fetch_add(&p->next, 1)) < p->count;) p->run(p->task, i);
}

static void sleep_through(pool *p, size_t round) {
  atomic_fetch_add(&p->asleep, 1);
  pthread_mutex_lock(&p->lock);
  while (atomic_load(&p->round) == round) pthread_cond_wait(&p->wake, &p->lock);
  pthread_mutex_unlock(&p->lock);
  atomic_fetch_sub(&p->asleep, 1);
}

/* Waits for another round than `seen`, first awake and then asleep; false when the pool closes. */
static bool next_round(pool *p, size_t *seen) {
  double end = now() + SPIN_SECONDS;
  for (int i = 1; atomic_load(&p->round) == *seen; i++) {
    if (i % 64 == 0 && now() > end) sleep_through(p, *seen);
    else relax();
  }
  *seen = atomic_load(&p->round);
  return !atomic_load(&p->stop);
}

static void *serve(void *user) {
  pool *p = user;
  for (size_t seen = 0; next_round(p, &seen);) {
    atomic_fetch_add(&p->inside, 1);
    if (atomic_load(&p->open)) take_tasks(p);
    if (atomic_fetch_sub(&p->inside, 1) == 1) {
      pthread_mutex_lock(&p->lock);
      pthread_cond_signal(&p->left);
      pthread_mutex_unlock(&p->lock);
    }
  }
  return NULL;
}

static void begin_round(pool *p) {
  atomic_fetch_add(&p->round, 1);
  if (atomic_load(&p->asleep) == 0) return;
  pthread_mutex_lock(&p->lock); /* who is about to sleep has seen the round, or hears this */
  pthread_cond_broadcast(&p->wake);
  pthread_mutex_unlock(&p->lock);
}

void pool_run(void *user, size_t count, void (*run)(void *task, size_t index), void *task) {
  pool *p = user;
  if (p->threads == 1 || count < 2) {
    for (size_t i = 0; i < count; i++) run(task, i);
    return;
  }
  p->run = run;
  p->task = task;
  p->count = count;
  atomic_store(&p->next, 0);
  atomic_store(&p->open, true);
  begin_round(p);
  take_tasks(p);
  atomic_store(&p->open, false);
  for (double begin = now(); atomic_load(&p->inside) > 0; relax()) {
    if (now() - begin < SPIN_SECONDS) continue;
    pthread_mutex_lock(&p->lock); /* a thread has lost its processor: let it have this one */
    while (atomic_load(&p->inside) > 0) pthread_cond_wait(&p->left, &p->lock);
    pthread_mutex_unlock(&p->lock);
  }
}

pool *pool_open(size_t threads) {
  pool *p = allocate(1, sizeof *p + threads * sizeof *p->thread);
  if (!p) return NULL;
  p->threads = threads;
  if (pthread_mutex_init(&p->lock, NULL) != 0 || pthread_cond_init(&p->wake, NULL) != 0 ||
      pthread_cond_init(&p->left, NULL) != 0) {
    fail("no mutex can be made");
    free(p);
    return NULL;
  }
  while (p->started + 1 < threads) {
    int error = pthread_create(&p->thread[p->started], NULL, serve, p);
    if (error != 0) {
      fail("thread %zu of %zu: %s", p->started + 2, threads, strerror(error));
      pool_close(p);
      return NULL;
    }
    p->started++;
  }
  return p;
}

void pool_close(pool *p) {
  if (!p) return;
  atomic_store(&p->stop, true);
  begin_round(p);
  for (size_t i = 0; i < p->started; i++) pthread_join(p->thread[i], NULL);
  pthread_cond_destroy(&p->left);
  pthread_cond_destroy(&p->wake);
  pthread_mutex_destroy(&p->lock);
  free(p);
}

size_t pool_threads(const pool *p) { return p->threads; }
