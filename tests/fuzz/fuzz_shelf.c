/* fuzz_shelf.c: throws bytes at the search for a shelf's records, and what is found at the index (libFuzzer;
 * run_fuzz.sh builds and runs it).
 *
 * However the bytes are, each step goes on by a multiple of 64 and says of nothing that it is an entry but what a good
 * header stands before, and reads nothing beyond the bytes (the address sanitiser watches their end). Random bytes
 * never make a good header, so the bytes also say where some are set in, with any sizes. A header with a changed bit
 * must not be found again.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "store/entry.h"
#include "store/index.h"
#include "store/record.h"

static void require(int condition)
{
    if (!condition)
        abort();
}

/* Goes through all of it; the index gets what is found. `left`: bytes that the file has beyond these. */
static size_t walk(const uint8_t *data, size_t size, uint64_t left, const uint8_t *mark, struct index *index)
{
    size_t entries = 0;
    struct record record;
    for (size_t at = sizeof(struct shelf_head);;) {
        enum record_kind kind = record_at(data, size, at, left + (at < size ? size - at : 0), mark, &record);
        if (kind == RECORD_NONE)
            break;
        struct record_header header;
        require(at % RECORD_ALIGNMENT == 0 && size - at >= sizeof header);
        require(record.span != 0 && record.span % RECORD_ALIGNMENT == 0 && record.span <= size - at + left);
        memcpy(&header, data + at, sizeof header);
        require(record_is_good(&header, mark) == (kind != RECORD_DAMAGED));
        require((record.size != 0) == (kind == RECORD_ENTRY));
        require(!record.anonymous || kind == RECORD_DAMAGED);
        if (kind == RECORD_DAMAGED)
            require(record.span <= size - at);
        if (kind == RECORD_ENTRY) {
            entries++;
            require(record.size <= RECORD_ENTRY_MOST && record.span == record_span(record.size));
            if (record.span <= size - at) {
                uint8_t *copy = aligned_alloc(64, record.span);
                require(copy != NULL);
                memcpy(copy, data + at, record.span);
                (void)entry_parse(copy + sizeof header, record.size, record.key, true);
                free(copy);
            }
        }
        if (kind != RECORD_REMOVED) {
            struct index_place place = {.block = (uint32_t)(at / RECORD_ALIGNMENT),
                                        .span = record.span,
                                        .size = record.size,
                                        .anonymous = record.anonymous};
            memcpy(place.key.bytes, record.key, sizeof place.key.bytes);
            require(index_add(index, &place) == 0);
            const struct index_place *found = index_find(index, record.key);
            require(found != NULL && found->block == place.block && found->span == place.span);
        }
        if (record.span > SIZE_MAX - at)
            break;
        at += record.span;
    }
    return entries;
}

/* Every other place stays to be found while they are removed one by one, and the sums come out at nothing. */
static void empty(struct index *index)
{
    size_t all = index->count;
    while (index->count != 0) {
        size_t cursor = 0, seen = 0;
        const struct index_place *last = NULL;
        for (const struct index_place *place; (place = index_next(index, &cursor)) != NULL; seen++) {
            require(index_find(index, place->key.bytes) == place);
            if (last == NULL || (place->block ^ all) % 7 < 3)
                last = place;
        }
        require(seen == index->count && last != NULL);
        require(index_remove(index, index_find(index, last->key.bytes), false) == 0);
    }
    require(index->bytes == 0);
    index_clear(index);
}

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *input, size_t size)
{
    struct shelf_head head;
    struct index index = {0};
    uint8_t mark[RECORD_MARK];
    if (size < sizeof head)
        return 0;
    uint8_t *data = malloc(size);
    require(data != NULL);
    memcpy(data, input, size);
    memcpy(&head, data, sizeof head);
    if (record_read_head(&head, mark) != 0)
        memcpy(mark, head.halves[0].mark, sizeof mark);
    (void)record_read_length(&head, mark);
    record_make_head(&head, mark, size);
    ((uint8_t *)&head)[input[9] % sizeof head] ^= (uint8_t)(1u << (input[10] % 8));
    uint8_t again[RECORD_MARK];
    require(record_read_head(&head, again) == 0 && memcmp(mark, again, sizeof mark) == 0);
    require(record_read_length(&head, mark) == size);
    (void)walk(data, size, 0, mark, &index);
    empty(&index);

    size_t last = 0;
    for (size_t at = sizeof head; size - at >= sizeof(struct record_header); at += RECORD_ALIGNMENT) {
        uint32_t word;
        struct record_header header;
        memcpy(&word, data + at, sizeof word);
        if (word % 4 == 0)
            continue;
        uint32_t entry_size = word % 4 == 1 ? 0 : (word >> 2) % 5000;
        uint32_t span = word % 4 == 2 || (word >> 20) % 2 == 0 ? record_span(entry_size) : word;
        record_make(&header, mark, data + at + 8, span, entry_size);
        memcpy(data + at, &header, sizeof header);
        last = at;
    }
    (void)walk(data, size, input[8], mark, &index);
    empty(&index);
    if (last != 0) {
        struct record record;
        data[last + input[9] % sizeof(struct record_header)] ^= (uint8_t)(1u << (input[10] % 8));
        require(record_at(data, size, last, size - last, mark, &record) == RECORD_DAMAGED);
        (void)walk(data, size, 0, mark, &index);
        empty(&index);
    }
    free(data);
    return 0;
}
