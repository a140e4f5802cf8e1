/* What /proc says of this process. */
#ifndef PROCESS_H
#define PROCESS_H

#include "check.h"

#include <dirent.h>
#include <unistd.h>

/* Entries of a folder, without "." and "..". */
static inline int entries(const char *folder) {
  DIR *list = opendir(folder);
  int n = -2;
  if (list == NULL) abort();
  while (readdir(list) != NULL) n++;
  closedir(list);
  return n;
}

static inline int threads_alive(void) { return entries("/proc/self/task"); }

/* Whether that many threads are left. The kernel wakes pthread_join a moment before it takes the thread
 * off its list, a long moment where processors are few: only a thread that stays for ten seconds is one
 * that nobody has joined. */
static inline int threads_left(int count) {
  int tries;
  for (tries = 0; threads_alive() != count && tries < 10000; tries++) usleep(1000);
  return threads_alive() == count;
}

#endif
