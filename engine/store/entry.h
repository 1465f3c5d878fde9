/* store/entry.h: what one file of the store holds.
 *
 *     header | part table | padding | part 0 | padding | part 1 | ...
 *
 * Everything after the checksum field is covered by the checksum, padding included; what comes before it must equal
 * constants; the file's size must be the one in the header. So there is no byte whose change goes unseen. Parts begin
 * at multiples of 64, those of ENTRY_PAGE_PART bytes or more on a page, so that a mapped entry shows them as arrays.
 *
 * This file knows memory only, no files: entry_parse is what the fuzzer feeds.
 */
#ifndef SHOAL_STORE_ENTRY_H
#define SHOAL_STORE_ENTRY_H

#include <assert.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "shoal.h"

#define ENTRY_MAGIC "\x89Shoal\r\n" /* eight bytes; a file that went through text conversion does not match */
#define ENTRY_VERSION 1u
#define ENTRY_VERSION_ENCODED 2u /* some of its parts are compressed */
#define ENTRY_BYTE_ORDER 0x0102u
#define ENTRY_ALIGNMENT 64u
#define ENTRY_PAGE 4096u
#define ENTRY_PAGE_PART 65536u
#define ENTRY_PARTS (1u << 20) /* the most parts an entry may have */

struct entry_header {
    uint8_t magic[8];
    uint16_t version;
    uint16_t byte_order;
    uint32_t header_size; /* sizeof(struct entry_header); the part table follows */
    uint8_t checksum[16]; /* hash_pieces over everything from `file_size` to the end of the file */
    uint64_t file_size;
    uint8_t key[16]; /* the key the file is named by: an entry that was renamed is not taken for another */
    uint8_t tag[16]; /* the caller's: what made the value, for telling why an entry does not fit any more */
    int64_t created; /* nanoseconds since 1970 */
    int64_t cost;    /* nanoseconds that making the value took */
    uint32_t part_count;
    uint32_t flags; /* 0 */
    uint8_t reserved[32];
};
static_assert(sizeof(struct entry_header) == 128 && offsetof(struct entry_header, file_size) == 32, "format version 1");

struct entry_part {
    uint64_t offset;   /* from the start of the file */
    uint64_t stored;   /* bytes in the file */
    uint64_t size;     /* bytes of the value; equals `stored` unless encoded */
    uint32_t encoding; /* 0: as it is; SHOAL_COMPRESS_…, in version 2 alone */
    uint32_t kind;     /* the caller's */
};
static_assert(sizeof(struct entry_part) == 32, "format version 1");

static inline bool entry_is_known_version(uint16_t version)
{
    return version == ENTRY_VERSION || version == ENTRY_VERSION_ENCODED;
}

/* Lays out an entry: writes header (but for the checksum) and table to `head`, which has room for
 * entry_head_size(count) bytes, and says how large the file will be. -EINVAL: too many parts or more bytes than a file
 * can have. */
size_t entry_head_size(uint32_t count);
int entry_lay_out(const shoal_part *parts, uint32_t count, const uint8_t key[16], const shoal_entry_numbers *numbers,
                  struct entry_header *head, uint64_t *file_size);

/* Say in the head that part `index`, as it was laid out, is the compressed form of `size` bytes. */
void entry_set_encoding(struct entry_header *head, uint32_t index, uint32_t encoding, uint64_t size);

/* The pieces of the file, in order: head, padding, parts. `pieces` has room for 1 + 2 * count. Returns how many. */
size_t entry_pieces(const struct entry_header *head, const shoal_part *parts, struct iovec *pieces);

/* Checks an entry of `size` bytes at `data`, which is aligned to 64. `key`: the key it must have, or NULL.
 * Returns 0 or SHOAL_ECORRUPT. Reads nothing outside [data, data + size). */
int entry_parse(const void *data, size_t size, const uint8_t *key, bool verify);

/* Part `index` of a parsed entry. The table is checked again, as a file can be changed under its mapping.
 * 0, -EINVAL (no such part) or SHOAL_ECORRUPT. */
int entry_part_at(const void *data, size_t size, uint32_t index, struct entry_part *out);

#endif
