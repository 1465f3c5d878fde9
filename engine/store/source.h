/* store/source.h: what is put: parts and numbers, on their way to becoming the bytes of an entry. */
#ifndef SHOAL_STORE_SOURCE_H
#define SHOAL_STORE_SOURCE_H

#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "shoal.h"
#include "store/entry.h"

struct source {
    const shoal_key *key;
    const shoal_part *parts; /* the caller's; after source_pack what is written of them */
    uint32_t count;
    const shoal_entry_numbers *numbers;
    uint32_t flags;       /* SHOAL_STORE_… */
    uint32_t compression; /* SHOAL_COMPRESS_… */
    int level;
    shoal_part *packed; /* source_pack's own; NULL: nothing was compressed */
    uint64_t *sizes;    /* of a part that was compressed: of what it stands for; else 0 */
};

/* Compress the parts that become smaller by it, if the source says so. 0 or -ENOMEM; source_unpack in any case. */
int source_pack(struct source *source);
void source_unpack(struct source *source);

/* The most bytes that the entry may have; SIZE_MAX: more than 64 KiB. */
size_t source_most(const struct source *source);

/* Header, but for its checksum, and table; as entry_lay_out. */
int source_lay_out(const struct source *source, struct entry_header *head, uint64_t *size);

/* The whole entry, in `block`, aligned to 8, of source_most(source) bytes. -EINVAL as entry_lay_out. */
int source_build(const struct source *source, uint8_t *block, uint64_t *size);

/* Set the checksum of an entry that is in pieces, the first of which begins with its header. */
void source_seal(struct entry_header *header, struct iovec *pieces, size_t count);

#endif
