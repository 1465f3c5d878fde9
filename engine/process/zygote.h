/* process/zygote.h: what the two sides of a zygote's socket say to each other: one struct a message, in the machine's
 * own order. A request is followed by its bytes and carries its descriptors, the read end of the go-ahead pipe first.
 * Both sides check magic and lengths: the socket is private, but a descriptor may leak to anybody.
 *
 * Invariant: a request runs only once its asker holds the handle of what runs it. The process that is forked for it
 * waits for one byte from the asker, ZYGOTE_GO, sent after the reply with the pidfd was taken. Anything else, or the
 * pipe's end, and it exits with ZYGOTE_NOT_RUN: a request that failed for the asker may be made again elsewhere.
 */
#ifndef SHOAL_PROCESS_ZYGOTE_H
#define SHOAL_PROCESS_ZYGOTE_H

#include <assert.h>

#include "process/process.h"

#define ZYGOTE_MAGIC UINT64_C(0x3245544f4759487a)

struct zygote_request {
    uint64_t magic;
    uint64_t number; /* comes back in the reply */
    uint32_t size;
    uint32_t fds;   /* the user's: one less than it carries */
    uint32_t flags; /* SHOAL_ZYGOTE_… */
    uint32_t unused;
};
static_assert(sizeof(struct zygote_request) == 32, "the same on both sides");

/* What the asker writes to the go-ahead pipe. A fork of it may hold the pipe open, so it says no as well. */
enum zygote_answer { ZYGOTE_GO = 'g', ZYGOTE_DO_NOT = 'n' };
#define ZYGOTE_NOT_RUN 125 /* exit status of a process that was not let run */

enum zygote_reply_kind { ZYGOTE_STARTED = 1, ZYGOTE_EXITED = 2 };

struct zygote_reply {
    uint64_t magic;
    uint64_t key; /* the request's number; the pid that exited */
    uint32_t kind;
    int32_t pid;  /* started; 0: it could not be */
    int32_t code; /* exit status; or why it could not be started */
    int32_t signal;
};
static_assert(sizeof(struct zygote_reply) == 32, "the same on both sides");

#endif
