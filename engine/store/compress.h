/* store/compress.h: parts of an entry made smaller, for write.c and read.c. The rest is in shoal.h. */
#ifndef SHOAL_STORE_COMPRESS_H
#define SHOAL_STORE_COMPRESS_H

#include "shoal.h"

/* Expand exactly `stored` bytes to exactly `size`: 0, SHOAL_ECORRUPT or -ENOMEM. */
int compress_expand(uint32_t method, const void *data, size_t stored, void *out, size_t size);

#endif
