/* pool/item.h: items as bytes, in a batch, a task and its results: struct item_header, the data padded to 8, then the
 * blocks.
 *
 * Items of one word (8 bytes, no blocks) and of one kind that follow each other are a run, with one header for all:
 * numbers are most of what short tasks are given and give, and memory that goes from core to core is most of what they
 * cost. A reader never leaves its memory, whatever lies there. All of it is inline, as it is done for each item on
 * either side: a call would take longer than the rest. Used by the files of this room only.
 */
#ifndef SHOAL_POOL_ITEM_H
#define SHOAL_POOL_ITEM_H

#include <assert.h>
#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "shoal.h"

struct item_header {
    uint32_t size;
    uint32_t form; /* bits 0-23: blocks, or items of the run; 24-30: kind; 31: a run */
};

#define ITEM_WORD sizeof(uint64_t)
#define ITEM_RUN UINT32_C(0x80000000)
#define ITEM_COUNT UINT32_C(0x00ffffff)
#define ITEM_KIND_SHIFT 24
#define ITEM_NO_RUN SIZE_MAX
static_assert(SHOAL_ITEM_KINDS == 128 && SHOAL_ITEM_BLOCKS == ITEM_COUNT, "they fit into `form`");

#define ITEM_PAD(size) (((size_t)(size) + 7) & ~(size_t)7)

static inline size_t item_span(size_t size, uint32_t blocks)
{
    return sizeof(struct item_header) + ITEM_PAD(size) + (size_t)blocks * sizeof(shoal_block);
}

/* Whether an item can be written. 0, -EMSGSIZE, -EINVAL. */
static inline int item_check(const shoal_item *item)
{
    if (item->size > INT32_MAX || item->block_count > SHOAL_ITEM_BLOCKS)
        return -EMSGSIZE;
    return item->kind < SHOAL_ITEM_KINDS ? 0 : -EINVAL;
}

/* Where a reader of items is. */
struct item_reader {
    const uint8_t *at, *end;
    uint32_t run, kind; /* items left of the run that `at` is in, and their kind */
};

/* Step into the run whose header is at hand. A run may claim more than there is: its writer may have died between the
 * two. */
static inline int item_enter_run(struct item_reader *reader, const struct item_header *header)
{
    const size_t there = ((size_t)(reader->end - reader->at) - sizeof *header) / ITEM_WORD;
    const uint32_t count = header->form & ITEM_COUNT;
    if (header->size != ITEM_WORD || count == 0 || there == 0)
        return SHOAL_ECORRUPT;
    reader->at += sizeof *header;
    reader->run = count < there ? count : (uint32_t)there;
    reader->kind = (header->form & ~ITEM_RUN) >> ITEM_KIND_SHIFT;
    return 0;
}

/* Read the next item, never past the end. 0, -ENODATA at the end, SHOAL_ECORRUPT. */
static inline int item_next(struct item_reader *reader, shoal_item *out)
{
    if (reader->run == 0) {
        const size_t left = (size_t)(reader->end - reader->at);
        struct item_header header;
        if (left < sizeof header)
            return left == 0 ? -ENODATA : SHOAL_ECORRUPT;
        memcpy(&header, reader->at, sizeof header);
        if ((header.form & ITEM_RUN) == 0) {
            const uint32_t blocks = header.form & ITEM_COUNT;
            const size_t span = item_span(header.size, blocks);
            if (span > left)
                return SHOAL_ECORRUPT;
            const uint8_t *data = reader->at + sizeof header;
            out->data = data;
            out->size = header.size;
            out->blocks = blocks == 0 ? NULL : (const shoal_block *)(const void *)(data + ITEM_PAD(header.size));
            out->block_count = blocks;
            out->kind = header.form >> ITEM_KIND_SHIFT;
            reader->at += span;
            return 0;
        }
        if (item_enter_run(reader, &header) != 0)
            return SHOAL_ECORRUPT;
    }
    out->data = reader->at;
    out->size = ITEM_WORD;
    out->blocks = NULL;
    out->block_count = 0;
    out->kind = reader->kind;
    reader->at += ITEM_WORD;
    reader->run--;
    return 0;
}

/* Step over the next items, up to `most`, that are of one run, and so have no blocks. How many; 0: the next is of none.
 */
static inline uint32_t item_skip_run(struct item_reader *reader, uint32_t most)
{
    struct item_header header;
    if (reader->run == 0) {
        if ((size_t)(reader->end - reader->at) < sizeof header)
            return 0;
        memcpy(&header, reader->at, sizeof header);
        if ((header.form & ITEM_RUN) == 0 || item_enter_run(reader, &header) != 0)
            return 0;
    }
    const uint32_t count = reader->run < most ? reader->run : most;
    reader->at += count * ITEM_WORD;
    reader->run -= count;
    return count;
}

/* Step over `count` items. 0, or as item_next. */
static inline int item_skip(struct item_reader *reader, uint32_t count)
{
    shoal_item item;
    int error = 0;
    while (count > 0 && error == 0) {
        const uint32_t skipped = item_skip_run(reader, count);
        count -= skipped;
        if (skipped == 0) {
            error = item_next(reader, &item);
            count--;
        }
    }
    return error;
}

/* Append words, whose kind was checked, to the `size` bytes that were written; there must be room for a header and
 * them. *run: where the header of the run lies that ends there, or ITEM_NO_RUN. How many bytes are written now. What
 * counts them as written is the caller's next step: nothing here is read before. */
static inline size_t item_append_words(uint8_t *bytes, size_t size, size_t *run, uint32_t kind, const void *words,
                                       uint32_t count)
{
    struct item_header header = {.size = ITEM_WORD, .form = ITEM_RUN | kind << ITEM_KIND_SHIFT};
    if (*run != ITEM_NO_RUN)
        memcpy(&header, bytes + *run, sizeof header);
    if (*run == ITEM_NO_RUN || (header.form & ~ITEM_RUN) >> ITEM_KIND_SHIFT != kind ||
        ITEM_COUNT - (header.form & ITEM_COUNT) < count) {
        header.form = ITEM_RUN | kind << ITEM_KIND_SHIFT;
        *run = size;
        size += sizeof header;
    }
    header.form += count;
    memcpy(bytes + *run, &header, sizeof header);
    memcpy(bytes + size, words, count * ITEM_WORD);
    return size + count * ITEM_WORD;
}

/* The same for one word, whose place is there, if it goes on with the run that ends there. */
static inline bool item_continue_run(uint8_t *bytes, size_t size, size_t run, uint32_t kind, uint64_t word)
{
    if (run == ITEM_NO_RUN)
        return false;
    uint32_t form;
    uint8_t *at = bytes + run + offsetof(struct item_header, form);
    memcpy(&form, at, sizeof form);
    if ((form & ~ITEM_RUN) >> ITEM_KIND_SHIFT != kind || (form & ITEM_COUNT) == ITEM_COUNT)
        return false;
    form++;
    memcpy(bytes + size, &word, sizeof word);
    memcpy(at, &form, sizeof form);
    return true;
}

/* The same for an item, which was checked; there must be room for item_span() more. */
static inline size_t item_append(uint8_t *bytes, size_t size, size_t *run, const shoal_item *item)
{
    if (item->size == ITEM_WORD && item->block_count == 0)
        return item_append_words(bytes, size, run, item->kind, item->data, 1);
    *run = ITEM_NO_RUN;
    uint8_t *at = bytes + size;
    const struct item_header header = {(uint32_t)item->size, item->block_count | item->kind << ITEM_KIND_SHIFT};
    memcpy(at, &header, sizeof header);
    at += sizeof header;
    /* What pads an item goes to other processes: never what this memory held before. */
    const uint64_t zero = 0;
    if (item->size > 0) {
        memcpy(at + ITEM_PAD(item->size) - sizeof zero, &zero, sizeof zero);
        memcpy(at, item->data, item->size);
    }
    at += ITEM_PAD(item->size);
    if (item->block_count > 0)
        memcpy(at, item->blocks, item->block_count * sizeof(shoal_block));
    return size + item_span(item->size, item->block_count);
}

#endif
