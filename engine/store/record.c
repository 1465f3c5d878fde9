/* store/record.c: making and finding the records of a shelf (record.h has the format). Called by shelf.c, index.c and
 * shelf_write.c. */
#include "store/record.h"

#include <string.h>

#include "store/entry.h"

static void checksum_of(const void *data, size_t size, uint8_t out[8])
{
    uint8_t digest[SHOAL_DIGEST_SIZE];
    shoal_digest(data, size, digest);
    memcpy(out, digest, 8);
}

static void length_checksum(const uint8_t mark[RECORD_MARK], uint64_t length, uint8_t out[8])
{
    uint8_t data[RECORD_MARK + sizeof length];
    memcpy(data, mark, RECORD_MARK);
    memcpy(data + RECORD_MARK, &length, sizeof length);
    checksum_of(data, sizeof data, out);
}

void record_make_lengths(struct shelf_length lengths[2], const uint8_t mark[RECORD_MARK], uint64_t length)
{
    lengths[0].length = length;
    length_checksum(mark, length, lengths[0].checksum);
    lengths[1] = lengths[0];
}

uint64_t record_read_length(const struct shelf_head *head, const uint8_t mark[RECORD_MARK])
{
    uint64_t length = 0;
    bool found = false;
    for (int i = 0; i < 2; i++) {
        const struct shelf_length *one = &head->lengths[i];
        uint8_t checksum[8];
        length_checksum(mark, one->length, checksum);
        if (memcmp(one->checksum, checksum, sizeof checksum) == 0) {
            length = one->length > length ? one->length : length;
            found = true;
        }
    }
    return found ? length : UINT64_MAX;
}

void record_make_head(struct shelf_head *head, const uint8_t mark[RECORD_MARK], uint64_t length)
{
    struct shelf_half half = {.version = SHELF_VERSION};
    memcpy(half.magic, SHELF_MAGIC, sizeof half.magic);
    memcpy(half.mark, mark, sizeof half.mark);
    checksum_of(&half, offsetof(struct shelf_half, checksum), half.checksum);
    *head = (struct shelf_head){.halves = {half, half}};
    record_make_lengths(head->lengths, mark, length);
}

int record_read_head(const struct shelf_head *head, uint8_t mark[RECORD_MARK])
{
    for (int i = 0; i < 2; i++) {
        const struct shelf_half *half = &head->halves[i];
        uint8_t checksum[8];
        checksum_of(half, offsetof(struct shelf_half, checksum), checksum);
        if (memcmp(half->magic, SHELF_MAGIC, sizeof half->magic) == 0 && half->version == SHELF_VERSION &&
            memcmp(half->checksum, checksum, sizeof checksum) == 0) {
            memcpy(mark, half->mark, RECORD_MARK);
            return 0;
        }
    }
    return SHOAL_ECORRUPT;
}

void record_make(struct record_header *header, const uint8_t mark[RECORD_MARK], const uint8_t *key, uint32_t span,
                 uint32_t size)
{
    *header = (struct record_header){.span = span, .size = size};
    memcpy(header->mark, mark, sizeof header->mark);
    memcpy(header->key, key, sizeof header->key);
    checksum_of(header, offsetof(struct record_header, checksum), header->checksum);
}

bool record_is_good(const struct record_header *header, const uint8_t mark[RECORD_MARK])
{
    uint8_t checksum[8];
    if (memcmp(header->mark, mark, sizeof header->mark) != 0) /* most of what is looked at while searching */
        return false;
    checksum_of(header, offsetof(struct record_header, checksum), checksum);
    return memcmp(header->checksum, checksum, sizeof checksum) == 0 && header->span != 0 &&
           header->span % RECORD_ALIGNMENT == 0 &&
           (header->size == 0 || (header->size <= RECORD_ENTRY_MOST && header->span == record_span(header->size)));
}

/* Of the two places where a record has its key, the entry's is taken where there is an entry's beginning: if one byte
 * is wrong, it is in the record's own header, else we were not here. More may be damaged than that: only if the entry
 * ends where the next header is found is nobody else's record among it. */
static void guess_key(const uint8_t *data, size_t size, struct record *out)
{
    struct entry_header entry;
    memcpy(out->key, data + offsetof(struct record_header, key), SHOAL_DIGEST_SIZE);
    out->anonymous = true;
    if (size < sizeof(struct record_header) + sizeof entry)
        return;
    memcpy(&entry, data + sizeof(struct record_header), sizeof entry);
    if (memcmp(entry.magic, ENTRY_MAGIC, sizeof entry.magic) != 0)
        return;
    memcpy(out->key, entry.key, SHOAL_DIGEST_SIZE);
    out->anonymous = entry.file_size > RECORD_ENTRY_MOST || record_span((size_t)entry.file_size) != out->span;
}

enum record_kind record_at(const uint8_t *data, size_t size, size_t at, uint64_t left, const uint8_t mark[RECORD_MARK],
                           struct record *out)
{
    struct record_header header;
    if (at > size || size - at < sizeof header)
        return RECORD_NONE;
    memcpy(&header, data + at, sizeof header);
    if (record_is_good(&header, mark)) {
        if (header.span > left)
            return RECORD_NONE;
        memcpy(out->key, header.key, sizeof out->key);
        out->span = header.span;
        out->size = header.size;
        out->anonymous = false;
        return header.size != 0 ? RECORD_ENTRY : RECORD_REMOVED;
    }

    size_t next = at + sizeof header;
    for (; size - next >= sizeof header; next += RECORD_ALIGNMENT) {
        memcpy(&header, data + next, sizeof header);
        if (record_is_good(&header, mark))
            break;
    }
    out->span = (uint32_t)(next - at);
    out->size = 0;
    guess_key(data + at, size - at, out);
    return RECORD_DAMAGED;
}
