/* pool/batch.h: the inside of shoal_batch, for pool.c, which copies it into a task in one piece. */
#ifndef SHOAL_POOL_BATCH_H
#define SHOAL_POOL_BATCH_H

#include "pool/item.h"

struct shoal_batch {
    uint8_t *bytes;
    size_t size, capacity;
    uint32_t count;
    size_t run; /* item_append's */
};

#endif
