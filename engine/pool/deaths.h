/* pool/deaths.h: the word by which a worker's death shows before the kernel has taken its memory down (deaths.c). */
#ifndef SHOAL_POOL_DEATHS_H
#define SHOAL_POOL_DEATHS_H

#include <stdbool.h>
#include <stdint.h>

#include "pool/layout.h"

struct shoal_pool;
struct deaths;

/* When the table is made: nobody holds the place's life. */
void life_prepare(struct worker_record *record);
/* The worker's own thread holds it while it serves, and lets go of it in order. */
void life_hold(struct worker_record *record);
void life_release(struct worker_record *record);

/* Start the thread that waits for deaths. Without it, where it cannot be started, deaths show in the pidfds alone. */
void deaths_begin(struct shoal_pool *pool);
/* End it. Before the table is unmapped. */
void deaths_end(struct shoal_pool *pool);

/* How the process `pid` ends that is ending now or has ended; false: it is not, or that cannot be told yet. */
bool deaths_tell(int32_t pid, int pidfd, shoal_exit *how);

#endif
