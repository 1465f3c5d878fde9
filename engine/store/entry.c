/* store/entry.c: laying out and checking the bytes of one entry (entry.h has the format).
 *
 * Invariant: nothing that entry_parse accepted makes entry_part_at return a range outside the entry. Called by read.c
 * and write.c.
 */
#include "store/entry.h"

#include <errno.h>
#include <string.h>

#include "store/hash.h"

static const uint8_t zeroes[ENTRY_PAGE];

size_t entry_head_size(uint32_t count)
{
    return sizeof(struct entry_header) + (size_t)count * sizeof(struct entry_part);
}

static uint64_t align_for(uint64_t offset, uint64_t size)
{
    uint64_t alignment = size >= ENTRY_PAGE_PART ? ENTRY_PAGE : ENTRY_ALIGNMENT;
    return (offset + alignment - 1) & ~(alignment - 1);
}

int entry_lay_out(const shoal_part *parts, uint32_t count, const uint8_t key[16], const shoal_entry_numbers *numbers,
                  struct entry_header *head, uint64_t *file_size)
{
    if (count > ENTRY_PARTS)
        return -EINVAL;
    struct entry_part *table = (struct entry_part *)(head + 1);
    uint64_t end = entry_head_size(count);
    for (uint32_t i = 0; i < count; i++) {
        uint64_t offset = align_for(end, parts[i].size);
        if (parts[i].size > (uint64_t)INT64_MAX - offset)
            return -EINVAL;
        table[i] = (struct entry_part){
            .offset = offset, .stored = parts[i].size, .size = parts[i].size, .kind = parts[i].kind};
        end = offset + parts[i].size;
    }
    *head = (struct entry_header){
        .version = ENTRY_VERSION,
        .byte_order = ENTRY_BYTE_ORDER,
        .header_size = sizeof *head,
        .file_size = end,
        .created = numbers->created,
        .cost = numbers->cost,
        .part_count = count,
    };
    memcpy(head->magic, ENTRY_MAGIC, sizeof head->magic);
    memcpy(head->key, key, sizeof head->key);
    memcpy(head->tag, numbers->tag, sizeof head->tag);
    *file_size = end;
    return 0;
}

void entry_set_encoding(struct entry_header *head, uint32_t index, uint32_t encoding, uint64_t size)
{
    struct entry_part *part = (struct entry_part *)(head + 1) + index;
    part->encoding = encoding;
    part->size = size;
    head->version = ENTRY_VERSION_ENCODED;
}

size_t entry_pieces(const struct entry_header *head, const shoal_part *parts, struct iovec *pieces)
{
    const struct entry_part *table = (const struct entry_part *)(head + 1);
    size_t count = 0, end = entry_head_size(head->part_count);
    pieces[count++] = (struct iovec){(void *)(uintptr_t)head, end};
    for (uint32_t i = 0; i < head->part_count; i++) {
        if (table[i].offset != end)
            pieces[count++] = (struct iovec){(void *)(uintptr_t)zeroes, (size_t)table[i].offset - end};
        if (parts[i].size != 0)
            pieces[count++] = (struct iovec){(void *)(uintptr_t)parts[i].data, parts[i].size};
        end = (size_t)table[i].offset + parts[i].size;
    }
    return count;
}

int entry_part_at(const void *data, size_t size, uint32_t index, struct entry_part *out)
{
    struct entry_part part;
    if (size < entry_head_size(index + 1))
        return -EINVAL;
    memcpy(&part, (const char *)data + entry_head_size(index), sizeof part);
    if (part.encoding > SHOAL_COMPRESS_LZ4 || (part.encoding == 0 && part.stored != part.size) ||
        part.size > INT64_MAX || part.offset % ENTRY_ALIGNMENT != 0 || part.offset < entry_head_size(index + 1) ||
        part.offset > size || part.stored > size - part.offset)
        return SHOAL_ECORRUPT;
    *out = part;
    return 0;
}

int entry_parse(const void *data, size_t size, const uint8_t *key, bool verify)
{
    struct entry_header header;
    if (size < sizeof header)
        return SHOAL_ECORRUPT;
    memcpy(&header, data, sizeof header);
    if (memcmp(header.magic, ENTRY_MAGIC, sizeof header.magic) != 0 || !entry_is_known_version(header.version) ||
        header.byte_order != ENTRY_BYTE_ORDER || header.header_size != sizeof header || header.file_size != size ||
        header.flags != 0)
        return SHOAL_ECORRUPT;
    if (key != NULL && memcmp(header.key, key, sizeof header.key) != 0)
        return SHOAL_ECORRUPT;
    if (header.part_count > ENTRY_PARTS || entry_head_size(header.part_count) > size)
        return SHOAL_ECORRUPT;

    uint64_t end = entry_head_size(header.part_count);
    bool encoded = false;
    for (uint32_t i = 0; i < header.part_count; i++) {
        struct entry_part part;
        if (entry_part_at(data, size, i, &part) != 0 || part.offset < end)
            return SHOAL_ECORRUPT;
        encoded = encoded || part.encoding != 0;
        end = part.offset + part.stored;
    }
    /* The version lies before the checksum: it must say what the table says. */
    if (end != size || encoded != (header.version == ENTRY_VERSION_ENCODED))
        return SHOAL_ECORRUPT;

    if (verify) {
        size_t start = offsetof(struct entry_header, file_size);
        struct iovec covered = {(char *)(uintptr_t)data + start, size - start};
        uint8_t checksum[HASH_DIGEST];
        hash_pieces(&covered, 1, checksum);
        if (memcmp(checksum, header.checksum, sizeof checksum) != 0)
            return SHOAL_ECORRUPT;
    }
    return 0;
}
