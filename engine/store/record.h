/* store/record.h: the bytes of a shelf, a file that holds many small entries (shelf.h).
 *
 *     head | record | record | ...        record:  record header | entry, as entry.h has it | zeros up to 64
 *
 * Everything begins at a multiple of 64. A record header says how far the record goes, and is good only with the
 * shelf's own mark, 16 random bytes, and a checksum over all of it. So where bytes were damaged the next record can be
 * found at the next good header, and nothing that is a cached value's contents can pose as one: who made the value did
 * not know the mark. A record is written once; the one change to it is that its header is written over by one without
 * an entry, which is how it is removed. The head holds the mark twice, each with a checksum: one may be damaged.
 *
 * So does it with the length: how many bytes the file has at least. Who appends a record writes the length after it,
 * so a writer that is killed leaves a file that is longer, at worst; one that is shorter was cut.
 *
 * This file knows memory only, no files: record_at is what the fuzzer feeds.
 */
#ifndef SHOAL_STORE_RECORD_H
#define SHOAL_STORE_RECORD_H

#include <assert.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "shoal.h"

#define RECORD_ALIGNMENT 64u
#define RECORD_ENTRY_MOST 4096u /* bytes of an entry on a shelf */
#define RECORD_MARK 16u
#define SHELF_MAGIC "\x89Shlf\r\n" /* and the format's version, as the eighth byte */
#define SHELF_LITTLE 2u            /* the version of a little-endian machine; version 1 had no length */
#define SHELF_BIG 130u             /* of a big-endian one: what the one wrote is nothing to the other */
#define SHELF_VERSION (__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__ ? SHELF_LITTLE : SHELF_BIG)

struct shelf_half {
    uint8_t magic[7];
    uint8_t version;
    uint8_t mark[RECORD_MARK];
    uint8_t checksum[8]; /* of what stands before it */
};

struct shelf_length {
    uint64_t length;     /* in the machine's byte order */
    uint8_t checksum[8]; /* of the mark and the length */
};

struct shelf_head {
    struct shelf_half halves[2];    /* the same twice; never changes */
    struct shelf_length lengths[2]; /* the same twice; for who has the shelf's lock */
    uint8_t reserved[32];
};
static_assert(sizeof(struct shelf_head) == 2 * RECORD_ALIGNMENT, "format version 2");
static_assert(offsetof(struct shelf_head, lengths) == RECORD_ALIGNMENT, "format version 2");

struct record_header {
    uint8_t mark[RECORD_MARK];
    uint8_t key[SHOAL_DIGEST_SIZE];
    uint32_t span; /* from this header to the next; in the machine's byte order, as the entry's header is */
    uint32_t size; /* of the entry; 0: removed */
    uint8_t reserved[16];
    uint8_t checksum[8]; /* of what stands before it */
};
static_assert(sizeof(struct record_header) == RECORD_ALIGNMENT, "format version 2");

static inline uint32_t record_span(size_t entry_size)
{
    return (uint32_t)((sizeof(struct record_header) + entry_size + RECORD_ALIGNMENT - 1) & ~(size_t)63);
}

/* The head of a shelf that has `length` bytes. */
void record_make_head(struct shelf_head *head, const uint8_t mark[RECORD_MARK], uint64_t length);
void record_make_lengths(struct shelf_length lengths[2], const uint8_t mark[RECORD_MARK], uint64_t length);
/* The mark of a shelf that begins with `head`: 0 or SHOAL_ECORRUPT. */
int record_read_head(const struct shelf_head *head, uint8_t mark[RECORD_MARK]);
/* The length that it says; of two, one of which is being written, the later. UINT64_MAX: both are damaged. */
uint64_t record_read_length(const struct shelf_head *head, const uint8_t mark[RECORD_MARK]);

/* `size` 0: one that is removed, and reaches over `span` bytes, of whatever is there. */
void record_make(struct record_header *header, const uint8_t mark[RECORD_MARK], const uint8_t *key, uint32_t span,
                 uint32_t size);
bool record_is_good(const struct record_header *header, const uint8_t mark[RECORD_MARK]);

enum record_kind {
    RECORD_NONE,    /* nothing more, or the beginning of a record that is not there to its end */
    RECORD_ENTRY,   /* whose own bytes are not looked at */
    RECORD_REMOVED, /* nothing to see */
    RECORD_DAMAGED, /* no header is here; `key` is what looks most like the key of what was here */
};

struct record {
    uint8_t key[SHOAL_DIGEST_SIZE];
    uint32_t span;  /* never 0, a multiple of 64 */
    uint32_t size;  /* of the entry, where there is one */
    bool anonymous; /* of what is damaged: it is not one record whose entry still has its key */
};

/* What is at `at`, a multiple of 64, of `size` bytes of a shelf, which has `left` bytes from there on: at least as
 * many. Reads nothing outside of the `size` bytes, where a record need not end; damage is followed to their end at
 * most. */
enum record_kind record_at(const uint8_t *data, size_t size, size_t at, uint64_t left, const uint8_t mark[RECORD_MARK],
                           struct record *out);

#endif
