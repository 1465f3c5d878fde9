/* store/source.c: compressing, laying out and building what is put (source.h). Memory only. Called by folder.c and
 * write.c. */
#include "store/source.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "store/hash.h"

#define SMALL 65536u        /* entries up to this size are put together in one block: one write, one pass */
#define COMPRESS_LEAST 512u /* bytes under which a part is not worth it */
#define COMPRESS_GAIN 16u   /* what it must save, as a part of the whole */

void source_seal(struct entry_header *header, struct iovec *pieces, size_t count)
{
    struct iovec whole = pieces[0];
    size_t start = offsetof(struct entry_header, file_size);
    pieces[0] = (struct iovec){(char *)whole.iov_base + start, whole.iov_len - start};
    hash_pieces(pieces, count, header->checksum);
    pieces[0] = whole;
}

/* Compress what becomes smaller by it. 0, or why it could not be: then the value goes as it is. */
static int pack_part(const struct source *source, const shoal_part *part, shoal_part *out)
{
    size_t capacity = shoal_compress_bound(source->compression, part->size), made;
    void *block = capacity != 0 ? malloc(capacity) : NULL;
    if (block == NULL)
        return -ENOMEM;
    int error = shoal_compress(source->compression, source->level, part->data, part->size, block, capacity, &made);
    if (error != 0 || made >= part->size - part->size / COMPRESS_GAIN) {
        free(block);
        return error != 0 ? error : -ENODATA;
    }
    out->data = block; /* source_unpack frees it. Pages beyond `made` were never touched */
    out->size = made;
    out->kind = part->kind;
    /* cppcheck-suppress memleak */
    return 0;
}

int source_pack(struct source *source)
{
    if (source->compression == SHOAL_COMPRESS_NONE || source->count == 0 || source->count > ENTRY_PARTS)
        return 0;
    source->packed = malloc(source->count * sizeof *source->packed);
    source->sizes = calloc(source->count, sizeof *source->sizes);
    if (source->packed == NULL || source->sizes == NULL)
        return -ENOMEM;
    for (uint32_t i = 0; i < source->count; i++) {
        source->packed[i] = source->parts[i];
        if (source->parts[i].size >= COMPRESS_LEAST && pack_part(source, &source->parts[i], &source->packed[i]) == 0)
            source->sizes[i] = source->parts[i].size;
    }
    source->parts = source->packed;
    return 0;
}

void source_unpack(struct source *source)
{
    for (uint32_t i = 0; source->sizes != NULL && i < source->count; i++)
        if (source->sizes[i] != 0)
            free((void *)(uintptr_t)source->packed[i].data);
    free(source->packed);
    free(source->sizes);
}

size_t source_most(const struct source *source)
{
    size_t most = entry_head_size(source->count);
    for (uint32_t i = 0; i < source->count && most <= SMALL; i++)
        most = source->parts[i].size < SMALL ? most + source->parts[i].size + ENTRY_ALIGNMENT : SMALL + 1;
    return most <= SMALL ? most : SIZE_MAX;
}

int source_lay_out(const struct source *source, struct entry_header *head, uint64_t *size)
{
    int error = entry_lay_out(source->parts, source->count, source->key->bytes, source->numbers, head, size);
    if (error != 0)
        return error;
    for (uint32_t i = 0; source->sizes != NULL && i < source->count; i++)
        if (source->sizes[i] != 0)
            entry_set_encoding(head, i, source->compression, source->sizes[i]);
    return 0;
}

int source_build(const struct source *source, uint8_t *block, uint64_t *size)
{
    struct entry_header *head = (struct entry_header *)(void *)block;
    int error = source_lay_out(source, head, size);
    if (error != 0)
        return error;
    size_t head_size = entry_head_size(source->count);
    const struct entry_part *table = (const struct entry_part *)(head + 1);
    memset(block + head_size, 0, (size_t)*size - head_size);
    for (uint32_t i = 0; i < source->count; i++)
        if (source->parts[i].size != 0)
            memcpy(block + table[i].offset, source->parts[i].data, source->parts[i].size);
    struct iovec piece = {block, (size_t)*size};
    source_seal(head, &piece, 1);
    return 0;
}
