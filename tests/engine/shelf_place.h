/* shelf_place.h: many small entries in a store's folder, told from each other by numbers, and the file they lie in. */
#ifndef SHOAL_TESTS_SHELF_PLACE_H
#define SHOAL_TESTS_SHELF_PLACE_H

#include "store_place.h"

#include "store/folder.h"

static inline shoal_key key_of(unsigned number)
{
    shoal_key key;
    for (size_t i = 0; i < sizeof key.bytes; i++)
        key.bytes[i] = (uint8_t)(number * 2654435761u >> (i % 4 * 8));
    memcpy(key.bytes, &number, sizeof number);
    return key;
}

static inline void put_all(struct place *place, unsigned count, size_t size)
{
    for (unsigned i = 0; i < count; i++) {
        shoal_key key = key_of(i);
        assert_int_equal(put_pattern(place->folder, &key, size + i), 0);
    }
}

/* How many of the keys are found, with the value that they must have. What is not found must be missing or damaged. */
static inline unsigned find_all(struct place *place, unsigned count, size_t size)
{
    unsigned found = 0;
    for (unsigned i = 0; i < count; i++) {
        shoal_key key = key_of(i);
        size_t got;
        int error = get_pattern(place->folder, &key, &got);
        assert_true(error == 0 || error == -ENOENT || error == SHOAL_ECORRUPT);
        found += error == 0 && got == size + i;
    }
    return found;
}

static inline off_t size_of(const char *path)
{
    struct stat status;
    return stat(path, &status) == 0 ? status.st_size : -1;
}

/* Whether an open file is still the one at `path`: its number cannot come back before it is closed. */
static inline bool is_file_at(int fd, const char *path)
{
    struct stat here, there;
    assert_int_equal(fstat(fd, &here), 0);
    assert_int_equal(stat(path, &there), 0);
    return here.st_ino == there.st_ino;
}

static inline int open_file(const char *path)
{
    int fd = open(path, O_RDONLY);
    assert_true(fd >= 0);
    return fd;
}

static inline struct seen verify(struct place *place, int remove)
{
    struct seen seen = {0};
    assert_int_equal(shoal_store_verify(place->store, remove, count_entry, &seen), 0);
    return seen;
}

#endif
