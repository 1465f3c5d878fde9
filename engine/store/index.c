/* store/index.c: where the entries of a shelf are (index.h). Keys are digests, so a part of one is hash enough. Called
 * by shelf.c and shelf_write.c. */
#include "store/index.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define CAPACITY_LEAST 32u

void index_clear(struct index *index)
{
    free(index->places);
    free(index->stale);
    *index = (struct index){0};
}

static size_t home_of(const struct index *index, const uint8_t *key)
{
    uint64_t word;
    memcpy(&word, key + 8, sizeof word);
    return (size_t)(word ^ word >> 32) & (index->capacity - 1);
}

struct index_place *index_find(const struct index *index, const uint8_t *key)
{
    if (index->count == 0)
        return NULL;
    for (size_t i = home_of(index, key);; i = (i + 1) & (index->capacity - 1)) {
        struct index_place *place = &index->places[i];
        if (place->block == 0)
            return NULL;
        if (memcmp(place->key.bytes, key, sizeof place->key.bytes) == 0)
            return place;
    }
}

static struct index_place *free_place(const struct index *index, const uint8_t *key)
{
    size_t i = home_of(index, key);
    while (index->places[i].block != 0)
        i = (i + 1) & (index->capacity - 1);
    return &index->places[i];
}

static int grow(struct index *index)
{
    struct index larger = *index;
    larger.capacity = index->capacity != 0 ? 2 * index->capacity : CAPACITY_LEAST;
    larger.places = calloc(larger.capacity, sizeof *larger.places);
    if (larger.places == NULL)
        return -ENOMEM;
    for (size_t i = 0; i < index->capacity; i++)
        if (index->places[i].block != 0)
            *free_place(&larger, index->places[i].key.bytes) = index->places[i];
    free(index->places);
    *index = larger;
    return 0;
}

static int add_stale(struct index *index, const struct index_place *place)
{
    if (index->stale_count == index->stale_capacity) {
        size_t capacity = index->stale_capacity != 0 ? 2 * index->stale_capacity : 4;
        struct index_place *larger = realloc(index->stale, capacity * sizeof *larger);
        if (larger == NULL)
            return -ENOMEM;
        index->stale = larger;
        index->stale_capacity = capacity;
    }
    index->stale[index->stale_count++] = *place;
    return 0;
}

int index_add(struct index *index, const struct index_place *place)
{
    struct index_place *there = index_find(index, place->key.bytes);
    if (there == NULL && 4 * (index->count + 1) > 3 * index->capacity && grow(index) != 0)
        return -ENOMEM;
    if (there != NULL) {
        if (add_stale(index, there) != 0)
            return -ENOMEM;
        index->bytes -= there->span;
        index->anonymous -= there->anonymous;
    } else {
        there = free_place(index, place->key.bytes);
        index->count++;
    }
    *there = *place;
    index->bytes += place->span;
    index->anonymous += place->anonymous;
    return 0;
}

int index_remove(struct index *index, struct index_place *place, bool stale)
{
    if (stale && add_stale(index, place) != 0)
        return -ENOMEM;
    index->count--;
    index->bytes -= place->span;
    index->anonymous -= place->anonymous;
    /* What follows in a row without a gap moves up if its home is not behind the hole. */
    size_t mask = index->capacity - 1, hole = (size_t)(place - index->places);
    for (size_t i = (hole + 1) & mask; index->places[i].block != 0; i = (i + 1) & mask) {
        if (((i - home_of(index, index->places[i].key.bytes)) & mask) >= ((i - hole) & mask)) {
            index->places[hole] = index->places[i];
            hole = i;
        }
    }
    index->places[hole].block = 0;
    return 0;
}

int index_remove_anonymous(struct index *index)
{
    for (size_t i = 0; index->anonymous != 0 && i < index->capacity;) {
        if (index->places[i].block == 0 || !index->places[i].anonymous) {
            i++;
            continue;
        }
        int error = index_remove(index, &index->places[i], true);
        if (error != 0)
            return error;
        i = 0; /* others moved */
    }
    return 0;
}

const struct index_place *index_next(const struct index *index, size_t *cursor)
{
    while (*cursor < index->capacity) {
        const struct index_place *place = &index->places[(*cursor)++];
        if (place->block != 0)
            return place;
    }
    return NULL;
}
