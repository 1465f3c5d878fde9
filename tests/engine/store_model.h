/* store_model.h: which values each key of a store may have while one process, which is led, is in the middle of a call
 * and another, this one, goes on using it at random (test_store_steps.c). A value is told by its size.
 */
#ifndef SHOAL_TESTS_STORE_MODEL_H
#define SHOAL_TESTS_STORE_MODEL_H

#include "helpers.h"
#include "store_place.h"

#include <ftw.h>
#include <sched.h>
#include <time.h>

#include "store/file.h"
#include "store/shelf.h"

enum { WORKED_ON, SMALL_ONE, SMALL_TWO, MIDDLE_ONE, LARGE_ONE, SPARE, NEVER_PUT, KEYS };

enum { ACTS = 4, WASTE_SIZE = 3500, WASTE_PUTS = 17 }; /* one more such put makes the shelf be written anew */

#define MISSING ((size_t)0)
#define DAMAGED SIZE_MAX

/* Sizes, which stand for values. */
struct values {
    unsigned count;
    size_t sizes[64];
};

struct stage;

struct scenario {
    const char *name;
    uint32_t flags;                    /* the store's */
    size_t before, after;              /* the value of the key that is worked on */
    size_t damaged;                    /* what that was before it became so */
    bool alone, few;                   /* there are no others; or two, both small */
    void (*prepare)(struct stage *);   /* what else is to be so before; or NULL */
    int (*operate)(struct stage *);    /* what the one does */
    enum { NONE, PERHAPS, ALL } takes; /* which of the others it removes */
};

struct stage {
    const struct scenario *scenario;
    char root[64], path[96], folder_path[128];
    shoal_store *store;
    shoal_folder *folder;
    struct values may[KEYS];  /* what it may be now */
    struct values ever[KEYS]; /* was, since the one began */
    struct values late[KEYS]; /* what puts that failed may have left for it, when the one has gone on */
    bool touched[KEYS];       /* by this program, since then */
    size_t serial;            /* so that no two values are the same */
    struct outcome {
        int result;
        int64_t seen;
    } * outcome; /* of the one; in memory of both */
};

/* ---- no wait is one ---- */

static unsigned naps;
static bool sleeps;

int nanosleep(const struct timespec *requested, struct timespec *left);
/* In place of the C library's: the engine's waits, which are counted by what they were to be, take no time. */
int nanosleep(const struct timespec *requested, struct timespec *left)
{
    naps++;
    return sleeps ? clock_nanosleep(CLOCK_MONOTONIC, 0, requested, left) : sched_yield();
}

/* ---- values ---- */

static bool has(const struct values *values, size_t size)
{
    for (unsigned i = 0; i < values->count; i++)
        if (values->sizes[i] == size)
            return true;
    return false;
}

static void add(struct values *values, size_t size)
{
    if (has(values, size))
        return;
    CHECK(values->count < sizeof values->sizes / sizeof values->sizes[0]);
    values->sizes[values->count++] = size;
}

static void add_all(struct values *values, const struct values *more)
{
    for (unsigned i = 0; i < more->count; i++)
        add(values, more->sizes[i]);
}

static void set(struct values *values, size_t size)
{
    *values = (struct values){.count = 1, .sizes = {size}};
}

static shoal_key key_of(unsigned number)
{
    shoal_key key;
    for (size_t i = 0; i < sizeof key.bytes; i++)
        key.bytes[i] = (uint8_t)((number + 1) * 2654435761u >> (i % 4 * 8));
    key.bytes[0] = (uint8_t)number;
    return key;
}

static size_t new_size(struct stage *stage)
{
    static const size_t classes[3] = {SMALL, MIDDLE, LARGE};
    return classes[random_below(8) * 3 / 8] + 40 + stage->serial++; /* those that were there before are less */
}

static int put(const struct stage *stage, unsigned number, size_t size)
{
    const shoal_key key = key_of(number);
    return put_pattern(stage->folder, &key, size);
}

/* The size of the value that is there, all of which must be right; or an error. */
static int64_t look(const struct stage *stage, unsigned number)
{
    const shoal_key key = key_of(number);
    shoal_entry *entry;
    shoal_part part;
    size_t size;
    const int error = shoal_folder_get(stage->folder, &key, &entry);
    if (error != 0)
        return error == -ENOENT ? (int64_t)MISSING : error == SHOAL_ECORRUPT ? (int64_t)DAMAGED : INT32_MIN + error;
    CHECK(shoal_entry_part(entry, 0, &part) == 0 && part.size == sizeof size);
    memcpy(&size, part.data, sizeof size);
    CHECK(shoal_entry_part(entry, 1, &part) == 0 && part.size == size);
    const uint8_t *data = part.data;
    for (size_t i = 0; i < size; i += i < SMALL || size - i <= 64 ? 1 : 61)
        CHECK(data[i] == pattern(&key, size, i));
    shoal_entry_close(entry);
    return (int64_t)size;
}

static void complain(const struct stage *stage, unsigned number, int64_t seen, const struct values *may)
{
    fprintf(stderr, "key %u is %lld, and not one of:", number, (long long)seen);
    for (unsigned i = 0; i < may->count; i++)
        fprintf(stderr, " %lld", (long long)may->sizes[i]);
    fprintf(stderr, " (0: missing, -1: damaged), in: %s\n", stage->scenario->name);
}

static void expect(struct stage *stage, unsigned number)
{
    struct values *may = &stage->may[number];
    const int64_t seen = look(stage, number);
    if (!has(may, (size_t)seen)) {
        complain(stage, number, seen, may);
        CHECK(!"the value is one of these");
    }
    set(may, (size_t)seen);
}

static void expect_all(struct stage *stage)
{
    for (unsigned i = 0; i < KEYS; i++)
        expect(stage, i);
}

/* What this program did has changed a key, to this value alone, or perhaps. */
static void changed(struct stage *stage, unsigned number, size_t size, bool surely)
{
    if (surely)
        set(&stage->may[number], size);
    else
        add(&stage->may[number], size);
    add(&stage->ever[number], size);
    stage->touched[number] = true;
}

/* ---- what this program does meanwhile ---- */

static void open_store(struct stage *stage)
{
    shoal_store_options options = {.flags = stage->scenario->flags};
    CHECK(shoal_store_open(stage->path, &options, &stage->store) == 0);
    CHECK(shoal_folder_open(stage->store, "function", &stage->folder) == 0);
}

static void close_store(struct stage *stage)
{
    shoal_folder_close(stage->folder);
    shoal_store_close(stage->store);
    stage->folder = NULL;
    stage->store = NULL;
}

static void put_one(struct stage *stage, unsigned number, size_t size)
{
    const int error = put(stage, number, size);
    CHECK(error == 0 || error == -ETIMEDOUT);
    if (error == 0)
        changed(stage, number, size, true);
    else
        add(&stage->late[number], size);
    if (error != 0 && has(&stage->ever[number], DAMAGED)) /* which could not be removed, and hides no other */
        changed(stage, number, size, false);
}

static void remove_one(struct stage *stage, unsigned number)
{
    const shoal_key key = key_of(number);
    const int error = shoal_folder_remove(stage->folder, &key);
    CHECK(error == 0 || error == -ENOENT || error == -ETIMEDOUT);
    if (error == -ENOENT)
        CHECK(has(&stage->may[number], MISSING));
    if (error == 0)
        CHECK(!has(&stage->may[number], MISSING) || stage->may[number].count > 1);
    if (error != -ETIMEDOUT)
        changed(stage, number, MISSING, true);
}

static void all_changed(struct stage *stage, bool surely)
{
    for (unsigned i = 0; i < KEYS; i++)
        changed(stage, i, MISSING, surely);
}

static void clear(struct stage *stage)
{
    const int error = random_below(2) == 0 ? shoal_store_clear(stage->store) : shoal_folder_clear(stage->folder);
    CHECK(error == 0 || error == -ETIMEDOUT);
    all_changed(stage, error == 0);
    for (unsigned i = 0; error != 0 && i < KEYS; i++) { /* a file is gone that was to take another's place, or hid it */
        add(&stage->late[i], MISSING);
        if (has(&stage->ever[i], DAMAGED))
            add(&stage->may[i], DAMAGED);
    }
}

static void reduce(struct stage *stage)
{
    const shoal_store_limits limits = {
        .bytes = random_below(2) == 0 ? UINT64_MAX : random_below(LARGE + MIDDLE),
        .items = random_below(2) == 0 ? UINT64_MAX : random_below(KEYS),
    };
    const int error = shoal_store_reduce(stage->store, &limits, NULL);
    CHECK(error == 0 || error == -ETIMEDOUT);
    all_changed(stage, error == 0 && limits.items == 0);
}

static int count_damaged(const char *folder, const shoal_key *key, const shoal_entry_numbers *numbers, int error,
                         void *context)
{
    (void)key;
    (void)numbers;
    CHECK(strcmp(folder, "function") == 0);
    CHECK(error == 0 || error == SHOAL_ECORRUPT);
    *(unsigned *)context += error != 0;
    return 0;
}

static unsigned verify(const struct stage *stage, int removing)
{
    unsigned damaged = 0;
    CHECK(shoal_store_verify(stage->store, removing, count_damaged, &damaged) == 0);
    return damaged;
}

static void verify_and_remove(struct stage *stage)
{
    const bool may_be = has(&stage->ever[WORKED_ON], DAMAGED); /* also behind what is there now */
    const unsigned damaged = verify(stage, 1);
    CHECK(damaged <= may_be);
    if (may_be)
        changed(stage, WORKED_ON, MISSING, false);
}

static void compact(struct stage *stage)
{
    for (unsigned i = 0; i < 2 * WASTE_PUTS; i++)
        put_one(stage, SPARE, WASTE_SIZE - i % 32);
}

static void act(struct stage *stage)
{
    const unsigned number = (unsigned)random_below(NEVER_PUT);
    switch (random_below(12)) {
    case 0:
    case 1:
    case 2:
        put_one(stage, WORKED_ON, new_size(stage));
        break;
    case 3:
        put_one(stage, number, new_size(stage));
        break;
    case 4:
    case 11:
        remove_one(stage, WORKED_ON);
        break;
    case 5:
        remove_one(stage, number);
        break;
    case 6:
        clear(stage);
        break;
    case 7:
        reduce(stage);
        break;
    case 8:
        compact(stage);
        break;
    case 9:
        verify_and_remove(stage);
        break;
    case 10:
        close_store(stage);
        open_store(stage);
        break;
    default:
        expect_all(stage);
    }
    expect(stage, WORKED_ON);
    expect(stage, number);
}

/* ---- what is left on disk ---- */

static int remove_path(const char *path, const struct stat *status, int type, struct FTW *place)
{
    (void)status;
    (void)type;
    (void)place;
    return remove(path);
}

static void remove_tree(const char *path)
{
    (void)nftw(path, remove_path, 8, FTW_DEPTH | FTW_PHYS);
}

/* How many files are in a folder, of which none may be but the shelf and those of keys that are there. Small ones may
 * have files, too: those that were put while another had the shelf. */
static unsigned count_files(const struct stage *stage, const char *path)
{
    unsigned count = 0;
    DIR *folder = opendir(path);
    if (folder == NULL)
        return 0;
    for (struct dirent *item; (item = readdir(folder)) != NULL;) {
        shoal_key key;
        if (item->d_name[0] == '.')
            continue;
        count++;
        if (strcmp(item->d_name, SHELF_NAME) == 0)
            continue;
        bool known = file_is_entry_name(item->d_name, &key) && key.bytes[0] < KEYS;
        if (known) {
            const unsigned number = key.bytes[0];
            const size_t size = stage->may[number].sizes[0];
            known = size != MISSING || stage->late[number].count != 0;
            if (stage->scenario->flags == 0 && (number == WORKED_ON || number == SPARE))
                known = false; /* it is small, and was put when nobody had the shelf */
        }
        if (!known)
            fprintf(stderr, "%s stays, in: %s\n", item->d_name, stage->scenario->name);
        CHECK(known);
    }
    (void)closedir(folder);
    return count;
}

/* Who puts, and then verifies or reduces, removes what nobody needs. */
static void sweep(struct stage *stage)
{
    const shoal_store_limits none = {.bytes = UINT64_MAX, .items = UINT64_MAX};
    char temporary[128];
    put_one(stage, WORKED_ON, SMALL + stage->serial);
    put_one(stage, SPARE, SMALL + stage->serial);
    CHECK(verify(stage, 0) == 0);
    CHECK(random_below(2) == 0 ? verify(stage, 1) == 0 : shoal_store_reduce(stage->store, &none, NULL) == 0);
    expect_all(stage);
    (void)snprintf(temporary, sizeof temporary, "%s/.temporary", stage->path);
    CHECK(count_files(stage, stage->folder_path) != 0);
    CHECK(rmdir(temporary) == 0 || errno == ENOENT);
}

/* One who opens the store finds no damage, and when he has cleared it nothing is left. */
static void settle(struct stage *stage)
{
    close_store(stage);
    open_store(stage);
    CHECK(verify(stage, 0) <= has(&stage->ever[WORKED_ON], DAMAGED));
    expect_all(stage);
    if (random_below(3) != 0)
        sweep(stage);
    CHECK(shoal_store_clear(stage->store) == 0);
    CHECK(access(stage->folder_path, F_OK) != 0);
    all_changed(stage, true);
    expect_all(stage);
}

#endif
