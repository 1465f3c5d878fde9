/* process/zygote.h: what the two sides of a zygote's socket say to each other: one struct a message, in the machine's
 * own order. A request is followed by its bytes and carries its descriptors. Both sides check magic and lengths: the
 * socket is private, but a descriptor may leak to anybody.
 */
#ifndef SHOAL_PROCESS_ZYGOTE_H
#define SHOAL_PROCESS_ZYGOTE_H

#include <assert.h>

#include "process/process.h"

#define ZYGOTE_MAGIC UINT64_C(0x3145544f4759487a)

struct zygote_request {
    uint64_t magic;
    uint64_t number; /* comes back in the reply */
    uint32_t size, fds;
    uint32_t flags; /* SHOAL_ZYGOTE_… */
    uint32_t unused;
};
static_assert(sizeof(struct zygote_request) == 32, "the same on both sides");

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
