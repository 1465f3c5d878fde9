/* store/reduce.c: removing what was used longest ago, until a store is within its limits.
 *
 * Entries are listed, put in the order of their last use, and removed one by one. A reader that has one open or mapped
 * keeps it. One that was put again since it was listed may go too: a miss, nothing worse. What the removed ones took on
 * a shelf is given back once, at the end.
 *
 * On a full disk a put into a store with a limit removes some itself, and tries again, once. A store without a limit
 * stays as it is: nobody said that it may be made smaller. Where that did not help (the disk is filled by others, or
 * the quota is another's), it is not tried again before a put succeeds.
 *
 * The automatic limit: whoever puts counts the bytes that it puts, and each time they come to a sixteenth of the limit
 * (and at the first put) a thread looks at the whole store. So a store is at most a sixteenth for each process that
 * writes to it over its limit, and the cost of looking is spread over many puts. The thread lives for one look, with
 * all signals blocked and a handle of its own, so that a fork or the end of the store's handle finds nothing of it half
 * way. No lock keeps several from looking at once: they remove the same entries, and a child of fork could keep a lock.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/thread.h"
#include "store/folder.h"

#define ROOM_LEAST UINT64_C(65536) /* bytes: what is made free on a full disk beside the value's own */
#define LOOK_EVERY 16u             /* the part of the limit that may be put between two looks */

struct listed {
    int64_t used; /* nanoseconds since 1970 */
    uint64_t size;
    shoal_key key;
    size_t folder; /* into folders */
};

struct listed_folder {
    char *name;
    struct shelf *shelf; /* held, so that what is known of it is not read anew with each removal; NULL: it is not */
    bool reduced;
};

struct listing {
    struct listed *entries;
    size_t count, capacity;
    struct listed_folder *folders;
    size_t folder_count, folder_capacity;
    uint64_t bytes;
};

static int add_entry(const char *folder, const shoal_key *key, const shoal_entry_numbers *numbers, int error,
                     void *context)
{
    struct listing *listing = context;
    (void)error; /* what is damaged has no time of its own and goes first */
    if (listing->folder_count == 0 || strcmp(listing->folders[listing->folder_count - 1].name, folder) != 0) {
        if (listing->folder_count == listing->folder_capacity) {
            size_t capacity = listing->folder_capacity != 0 ? 2 * listing->folder_capacity : 16;
            struct listed_folder *larger = realloc(listing->folders, capacity * sizeof *larger);
            if (larger == NULL)
                return -ENOMEM;
            listing->folders = larger;
            listing->folder_capacity = capacity;
        }
        char *name = strdup(folder);
        if (name == NULL)
            return -ENOMEM;
        listing->folders[listing->folder_count++] = (struct listed_folder){.name = name};
    }
    if (listing->count == listing->capacity) {
        size_t capacity = listing->capacity != 0 ? 2 * listing->capacity : 256;
        struct listed *larger = realloc(listing->entries, capacity * sizeof *larger);
        if (larger == NULL)
            return -ENOMEM;
        listing->entries = larger;
        listing->capacity = capacity;
    }
    listing->entries[listing->count++] =
        (struct listed){.used = numbers->used, .size = numbers->size, .key = *key, .folder = listing->folder_count - 1};
    listing->bytes += numbers->size;
    return 0;
}

static int compare_uses(const void *one, const void *other)
{
    const struct listed *a = one, *b = other;
    return a->used < b->used ? -1 : a->used > b->used;
}

/* Give back what the removed entries take on the folder's shelf. `full`: the disk is. */
static void trim(const shoal_store *store, const struct listed_folder *folder, bool full)
{
    int root, fd;
    if (store_open_root(store, false, &root) != 0)
        return;
    if (folder_open_own(root, folder->name, false, &fd) == 0) {
        shelf_trim(folder->shelf, fd, full);
        (void)close(fd);
    }
    (void)close(root);
}

static void hold_folders(shoal_store *store, struct listing *listing)
{
    for (size_t i = 0; i < listing->folder_count; i++) {
        struct listed_folder *folder = &listing->folders[i];
        folder->shelf = shelf_of(&store->shelves, folder->name);
        if (folder->shelf != NULL)
            shelf_hold(folder->shelf);
    }
}

static void free_listing(const shoal_store *store, struct listing *listing, bool full)
{
    for (size_t i = 0; i < listing->folder_count; i++) {
        struct listed_folder *folder = &listing->folders[i];
        if (folder->shelf != NULL && folder->reduced)
            trim(store, folder, full);
        if (folder->shelf != NULL)
            shelf_rest(folder->shelf, true);
        free(folder->name);
    }
    free(listing->folders);
    free(listing->entries);
}

/* `room`: bytes by which it is to be smaller afterwards, whatever the limits. */
static int reduce(shoal_store *store, const shoal_store_limits *limits, uint64_t room, shoal_store_reduced *out)
{
    struct listing listing = {0};
    shoal_store_reduced done = {0};
    int error = store_list(store, add_entry, &listing);
    uint64_t most = listing.bytes > room ? listing.bytes - room : 0;
    most = limits->bytes < most ? limits->bytes : most;
    hold_folders(store, &listing);
    struct timespec now;
    (void)clock_gettime(CLOCK_REALTIME, &now);
    int64_t deadline = limits->age > 0 ? (int64_t)now.tv_sec * SHOAL_SECOND + now.tv_nsec - limits->age : INT64_MIN;
    if (listing.count != 0)
        qsort(listing.entries, listing.count, sizeof *listing.entries, compare_uses);
    done.items = listing.count;
    done.bytes = listing.bytes;
    for (size_t i = 0; error == 0 && i < listing.count; i++) {
        const struct listed *entry = &listing.entries[i];
        if (done.bytes <= most && done.items <= limits->items && entry->used > deadline)
            break;
        struct listed_folder *folder = &listing.folders[entry->folder];
        int failed = shoal_store_remove(store, folder->name, &entry->key);
        if (failed != 0 && failed != -ENOENT) {
            error = failed;
            break;
        }
        done.items--;
        done.bytes -= entry->size;
        if (failed == 0) {
            folder->reduced = true;
            done.removed++;
            done.removed_bytes += entry->size;
        }
    }
    free_listing(store, &listing, room != 0);
    if (out != NULL)
        *out = done;
    return error;
}

int shoal_store_reduce(shoal_store *store, const shoal_store_limits *limits, shoal_store_reduced *out)
{
    return reduce(store, limits, 0, out);
}

bool reduce_for_room(shoal_store *store, uint64_t size)
{
    const shoal_store_limits limits = {.bytes = UINT64_MAX, .items = UINT64_MAX};
    shoal_store_reduced done = {0};
    if (store->bytes_limit == 0 || size > store->bytes_limit / 2 ||
        atomic_load_explicit(&store->futile, memory_order_relaxed)) /* relaxed: a hint */
        return false;
    uint64_t room = 2 * size + ROOM_LEAST, step = store->bytes_limit / LOOK_EVERY;
    (void)reduce(store, &limits, room > step ? room : step, &done);
    return done.removed != 0;
}

/* What the thread works from: nothing of the store's handle. */
struct look {
    char *path;
    uint64_t limit;
};

static void *look_around(void *context)
{
    struct look *look = context;
    shoal_store_limits limits = {.bytes = look->limit, .items = UINT64_MAX};
    shoal_store *store = calloc(1, sizeof *store);
    if (store != NULL) { /* not opened: a store that was removed meanwhile must not be made again */
        store->path = look->path;
        store->passive = true;
        (void)shoal_store_reduce(store, &limits, NULL);
        shoal_store_close(store);
    } else {
        free(look->path);
    }
    free(look);
    return NULL;
}

void reduce_after_put(shoal_store *store, uint64_t size)
{
    if (store->bytes_limit == 0)
        return;
    uint64_t step = store->bytes_limit / LOOK_EVERY;
    /* relaxed: counts only. It begins at the whole limit, so that the first put has a look. */
    uint64_t put = atomic_fetch_add_explicit(&store->unlooked, size, memory_order_relaxed) + size;
    if (put <= step ||
        !atomic_compare_exchange_strong_explicit(&store->unlooked, &put, 0, memory_order_relaxed, memory_order_relaxed))
        return;
    struct look *look = malloc(sizeof *look);
    if (look == NULL)
        return;
    look->limit = store->bytes_limit;
    look->path = strdup(store->path);
    if (look->path == NULL) {
        free(look);
        return;
    }
    if (thread_start(NULL, look_around, look, 0) != 0)
        (void)look_around(look);
}
