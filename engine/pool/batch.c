/* pool/batch.c: items on their way into a task, in the submitter's own memory, in the form in which they will lie in
 * the table. Called by users of the pool and by pool.c; knows the form of an item (layout.h) and nothing of tables.
 */
#include "pool/batch.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define KEPT_CAPACITY ((size_t)4 << 20) /* an emptied batch keeps no more than this */

int shoal_batch_create(shoal_batch **out)
{
    shoal_batch *batch = calloc(1, sizeof *batch);
    if (batch == NULL)
        return -ENOMEM;
    batch->run = ITEM_NO_RUN;
    *out = batch;
    return 0;
}

void shoal_batch_close(shoal_batch *batch)
{
    if (batch == NULL)
        return;
    free(batch->bytes);
    free(batch);
}

static int make_room(shoal_batch *batch, size_t more)
{
    if (batch->capacity - batch->size >= more)
        return 0;
    size_t capacity = batch->capacity < 4096 ? 4096 : batch->capacity * 2;
    if (capacity < batch->size + more)
        capacity = batch->size + more;
    uint8_t *bytes = realloc(batch->bytes, capacity);
    if (bytes == NULL)
        return -ENOMEM;
    batch->bytes = bytes;
    batch->capacity = capacity;
    return 0;
}

int shoal_batch_add(shoal_batch *batch, const shoal_item *item)
{
    int error = item_check(item);
    if (error == 0)
        error = make_room(batch, item_span(item->size, item->block_count));
    if (error != 0)
        return error;
    batch->size = item_append(batch->bytes, batch->size, &batch->run, item);
    batch->count++;
    return 0;
}

int shoal_batch_add_words(shoal_batch *batch, uint32_t kind, const void *words, uint32_t count)
{
    if (kind >= SHOAL_ITEM_KINDS || count == 0)
        return -EINVAL;
    if (count > ITEM_COUNT)
        return -EMSGSIZE;
    int error = make_room(batch, item_span((size_t)count * ITEM_WORD, 0));
    if (error != 0)
        return error;
    batch->size = item_append_words(batch->bytes, batch->size, &batch->run, kind, words, count);
    batch->count += count;
    return 0;
}

uint32_t shoal_batch_count(const shoal_batch *batch)
{
    return batch->count;
}

size_t shoal_batch_size(const shoal_batch *batch)
{
    return batch->size;
}

void shoal_batch_clear(shoal_batch *batch, shoal_heap *heap)
{
    struct item_reader reader = {.at = batch->bytes, .end = batch->bytes + batch->size};
    shoal_item item;
    while (heap != NULL && batch->size > 0 && item_next(&reader, &item) == 0) {
        for (uint32_t i = 0; i < item.block_count; i++)
            (void)shoal_heap_free(heap, item.blocks[i]);
    }
    if (batch->capacity > KEPT_CAPACITY) {
        free(batch->bytes);
        batch->bytes = NULL;
        batch->capacity = 0;
    }
    batch->size = 0;
    batch->count = 0;
    batch->run = ITEM_NO_RUN;
}
