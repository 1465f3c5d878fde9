/* store/index.h: where the entries of a shelf are, by their keys; in memory. One thread at a time. */
#ifndef SHOAL_STORE_INDEX_H
#define SHOAL_STORE_INDEX_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "shoal.h"

struct index_place {
    shoal_key key;
    uint32_t block; /* offset / 64, in the file; 0: none */
    uint32_t span;  /* bytes on the shelf */
    uint32_t size;  /* of the entry; 0: what was here is damaged, and the key is at best its */
    bool anonymous; /* of what is damaged: other keys may have been here */
};

struct index {
    struct index_place *places; /* an open hash; NULL: nothing is in it yet */
    size_t capacity, count;     /* a power of 2; places in use */
    size_t anonymous;           /* of them */
    uint64_t bytes;             /* the sum of their spans */
    struct index_place *stale;  /* what was found, or put, to be out of date and is not removed on disk yet */
    size_t stale_count, stale_capacity;
};

/* All is forgotten. */
void index_clear(struct index *index);
struct index_place *index_find(const struct index *index, const uint8_t *key);
/* Of two under one key the later counts, the earlier goes to `stale`. 0 or -ENOMEM. */
int index_add(struct index *index, const struct index_place *place);
/* -ENOMEM: nothing changed. `stale`: it is to be removed on disk. */
int index_remove(struct index *index, struct index_place *place, bool stale);
/* Have all that is anonymous be removed on disk. -ENOMEM: some is still there. */
int index_remove_anonymous(struct index *index);
/* Pass over all: begin with 0; NULL at the end. Nothing may be added or removed meanwhile. */
const struct index_place *index_next(const struct index *index, size_t *cursor);

#endif
