/* pool/crew.h: what map.c and the workers of crew.c agree on. */
#ifndef SHOAL_POOL_CREW_H
#define SHOAL_POOL_CREW_H

#include "pool/pool.h"

/* The shared record of one shoal_pool_map: followed by the context's bytes. */
struct map_order {
    shoal_map_function function;
    uint64_t output_size, context_size;
};

/* A result: the function's code, then the output. */
struct map_result {
    int32_t code, unused;
    uint8_t output[];
};

/* 0, or why workers cannot be started any more. */
int crew_broken(const shoal_pool *pool);

/* Held for the length of a map: maps on one pool take turns. */
pthread_mutex_t *crew_lock(shoal_pool *pool);

#endif
