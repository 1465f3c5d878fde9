/* store_place.h: a store in a folder of its own for each test, and values that tell their key and size. */
#ifndef SHOAL_TESTS_STORE_PLACE_H
#define SHOAL_TESTS_STORE_PLACE_H

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "shoal.h"
#include "store/entry.h"
#include "store/hash.h"

#define SMALL ((size_t)100)    /* bytes: an entry of this size lies on the shelf */
#define MIDDLE ((size_t)5000)  /* bytes: one of this size has a file of its own, which is read */
#define LARGE ((size_t)300000) /* bytes: one of this size is mapped */

struct place {
    char path[64];
    shoal_store *store;
    shoal_folder *folder;
    shoal_key key;
    char file[512];  /* where the entry of `key` lies if it is not small */
    char shelf[512]; /* where it lies if it is */
};

static inline void run(const char *command)
{
    int status = system(command);
    assert_int_equal(status, 0);
}

static inline void open_place(struct place *place, uint32_t flags)
{
    shoal_store_options options = {.flags = flags};
    char inner[128];
    (void)snprintf(inner, sizeof inner, "%s/store", place->path);
    assert_int_equal(shoal_store_open(inner, &options, &place->store), 0);
    assert_int_equal(shoal_folder_open(place->store, "function", &place->folder), 0);
}

static inline int set_up(void **state)
{
    struct place *place = calloc(1, sizeof *place);
    (void)alarm(100);
    (void)strcpy(place->path, "/tmp/shoal-test-store-XXXXXX");
    assert_non_null(mkdtemp(place->path));
    open_place(place, 0);
    for (size_t i = 0; i < sizeof place->key.bytes; i++)
        place->key.bytes[i] = (uint8_t)(i * 17 + 3);
    int used = snprintf(place->file, sizeof place->file, "%s/", shoal_folder_path(place->folder));
    for (size_t i = 0; i < sizeof place->key.bytes; i++)
        used += snprintf(place->file + used, sizeof place->file - (size_t)used, "%02x", place->key.bytes[i]);
    (void)snprintf(place->shelf, sizeof place->shelf, "%s/shelf", shoal_folder_path(place->folder));
    *state = place;
    return 0;
}

static inline void reopen_place(struct place *place, uint32_t flags)
{
    shoal_folder_close(place->folder);
    shoal_store_close(place->store);
    open_place(place, flags);
}

static inline int tear_down(void **state)
{
    struct place *place = *state;
    char command[300];
    shoal_folder_close(place->folder);
    shoal_store_close(place->store);
    (void)snprintf(command, sizeof command, "chmod -R u+rwX %s; rm -rf %s", place->path, place->path);
    run(command);
    free(place);
    (void)alarm(0);
    return 0;
}

/* A value that tells its key and size: `size` bytes, each made from both. */
static inline uint8_t pattern(const shoal_key *key, size_t size, size_t at)
{
    return (uint8_t)(key->bytes[at % 16] + at * 31 + (at >> 8) * 7 + size * 13);
}

static inline int put_pattern(shoal_folder *folder, const shoal_key *key, size_t size)
{
    uint8_t *data = malloc(size + 1);
    for (size_t i = 0; i < size; i++)
        data[i] = pattern(key, size, i);
    shoal_part parts[2] = {{&size, sizeof size, 1}, {data, size, 2}};
    shoal_entry_numbers numbers = {.cost = 42, .tag = {9, 8, 7}};
    int error = shoal_folder_put(folder, key, parts, 2, &numbers);
    free(data);
    return error;
}

/* What get says; a value that it returns must be one that put_pattern put. */
static inline int get_pattern(shoal_folder *folder, const shoal_key *key, size_t *size_out)
{
    shoal_entry *entry;
    int error = shoal_folder_get(folder, key, &entry);
    if (error != 0)
        return error;
    shoal_part part;
    size_t size;
    assert_int_equal(shoal_entry_part(entry, 0, &part), 0);
    assert_int_equal(part.size, sizeof size);
    assert_int_equal(part.kind, 1);
    memcpy(&size, part.data, sizeof size);
    assert_int_equal(shoal_entry_part(entry, 1, &part), 0);
    assert_int_equal(part.size, size);
    assert_int_equal(part.kind, 2);
    assert_int_equal((uintptr_t)part.data % 64, 0);
    for (size_t i = 0; i < size; i++)
        if (((const uint8_t *)part.data)[i] != pattern(key, size, i))
            fail_msg("byte %zu of %zu is wrong", i, size);
    assert_int_equal(shoal_entry_part(entry, 2, &part), -EINVAL);
    shoal_entry_close(entry);
    if (size_out != NULL)
        *size_out = size;
    return 0;
}

/* What a visit saw. */
struct seen {
    size_t entries, damaged;
    uint64_t bytes;
};

static inline int count_entry(const char *folder, const shoal_key *key, const shoal_entry_numbers *numbers, int error,
                              void *context)
{
    struct seen *seen = context;
    (void)key;
    assert_string_equal(folder, "function");
    seen->entries++;
    seen->damaged += error != 0;
    seen->bytes += numbers->size;
    return 0;
}

static inline size_t files_below(const char *path)
{
    char command[400];
    size_t count = 0;
    (void)snprintf(command, sizeof command, "find %s ! -type d ! -name .uses ! -name .claims | wc -l", path);
    FILE *pipe = popen(command, "r");
    assert_int_equal(fscanf(pipe, "%zu", &count), 1);
    (void)pclose(pipe);
    return count;
}

static inline size_t load_file(const char *path, uint8_t **out)
{
    int fd = open(path, O_RDONLY);
    struct stat status;
    assert_int_equal(fstat(fd, &status), 0);
    *out = malloc((size_t)status.st_size);
    assert_int_equal(read(fd, *out, (size_t)status.st_size), status.st_size);
    (void)close(fd);
    return (size_t)status.st_size;
}

static inline void store_file(const char *path, const uint8_t *data, size_t size)
{
    int fd = open(path, O_WRONLY | O_TRUNC);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, data, size), (ssize_t)size);
    (void)close(fd);
}

static inline void assert_only_entry_is_kept_private(const char *path, mode_t type, mode_t mode)
{
    struct stat status;
    assert_int_equal(lstat(path, &status), 0);
    assert_int_equal(status.st_mode & S_IFMT, type);
    assert_int_equal(status.st_mode & 07777, mode);
}

#endif
