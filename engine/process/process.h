/* process/process.h: the inside of a process handle, for the files of this room. */
#ifndef SHOAL_PROCESS_PROCESS_H
#define SHOAL_PROCESS_PROCESS_H

#include <pthread.h>
#include <stdbool.h>

#include "shoal.h"

struct shoal_process {
    pid_t pid;
    int pidfd;
    pid_t owner;          /* the process that made this handle: in a child of it the lock may be held by nobody there */
    pthread_mutex_t lock; /* of what follows: two threads may wait for one process */
    bool ended;           /* `exit` or `unknown` is set for good */
    bool unknown;
    shoal_exit exit;
    shoal_zygote *zygote; /* NULL, or whose child it is: that tells how it ended. Held */
};

/* A handle on a process that runs, or ran until a moment ago. */
int process_handle(pid_t pid, int pidfd, shoal_process **out);

/* In a child: be killed when `parent` is gone. */
int process_die_with(pid_t parent, bool forked_by_main_thread);
/* Whether the caller is its process's main thread. */
bool process_is_main_thread(void);

/* zygote.c: how a child of the zygote ended, once its pidfd says that it did. 0, -ETIMEDOUT, -ECHILD: the zygote is
 * gone. */
int zygote_exit_of(shoal_zygote *zygote, pid_t pid, int64_t timeout, shoal_exit *out);
void zygote_release(shoal_zygote *zygote);

#endif
