/* store/shelf_compact.c: a new file for what lives on a shelf (shelf.h), or holes in the old one where there is no
 * room for that.
 *
 * The file is written without a name, linked in under one of its own and renamed over the old shelf. The lock on that
 * is held from beginning to end, so nothing is put or removed meanwhile; a process that is killed leaves the old shelf
 * as it was, and at worst the new one under the other name, which the next to come here removes. Called by
 * shelf_write.c.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "store/file.h"
#include "store/shelf.h"

#define BLOCK ((size_t)256 << 10) /* bytes that are written at once */
#define HOLE UINT64_C(4096)       /* a hole in a file begins and ends at a multiple of this */

static int compare_places(const void *one, const void *other)
{
    const struct index_place *a = one, *b = other;
    return a->block < b->block ? -1 : a->block > b->block;
}

/* What lives, in the order of the file; `damaged`: and what does so perhaps. NULL: no memory. */
static struct index_place *list_places(const struct index *index, bool damaged, size_t *count)
{
    struct index_place *places = malloc((index->count + 1) * sizeof *places);
    size_t cursor = 0;
    *count = 0;
    if (places == NULL)
        return NULL;
    for (const struct index_place *place; (place = index_next(index, &cursor)) != NULL;)
        if (place->size != 0 || damaged)
            places[(*count)++] = *place;
    qsort(places, *count, sizeof *places, compare_places);
    return places;
}

/* Records whose entry is damaged are copied as they are: whoever looks for it is to be told. Where the record itself is
 * damaged nothing can be copied; then the new head says that something is missing. */
static int copy(const struct shelf *shelf, const struct shelf_lock *lock, const struct index_place *places,
                size_t count, int fd)
{
    uint8_t mark[RECORD_MARK];
    uint64_t written = 0;
    size_t used = sizeof(struct shelf_head);
    uint8_t *block = malloc(BLOCK);
    int error = block == NULL ? -ENOMEM : getrandom(mark, sizeof mark, 0) != sizeof mark ? -errno : 0;
    if (error == 0)
        memset(block, 0, sizeof(struct shelf_head)); /* written last, when the length is known */
    for (size_t i = 0; error == 0 && i < count; i++) {
        const struct index_place *place = &places[i];
        if (BLOCK - used < place->span) {
            error = shelf_write_all(fd, block, used, written);
            written += used;
            used = 0;
        }
        struct record_header *header = (struct record_header *)(void *)(block + used);
        if (error == 0)
            error = file_read_at(lock->fd, header, place->span, (off_t)place->block * RECORD_ALIGNMENT);
        if (error != 0 || !record_is_good(header, shelf->mark) || header->size != place->size)
            continue; /* another removed it, or it is lost */
        record_make(header, mark, place->key.bytes, place->span, place->size);
        used += place->span;
    }
    if (error == 0)
        error = shelf_write_all(fd, block, used, written);
    if (error == 0) {
        struct shelf_head head;
        uint64_t size = written + used, length = shelf_length(shelf, size);
        record_make_head(&head, mark, count != shelf->index.count ? size + RECORD_ALIGNMENT : length);
        error = shelf_write_all(fd, (const uint8_t *)&head, sizeof head, 0);
    }
    free(block);
    return error;
}

/* Give the new file the shelf's name. */
static int take_over(int fd, int folder, const struct shelf_lock *lock)
{
    bool unsupported;
    struct stat here, there;
    int error = file_link_unnamed(fd, folder, SHELF_NEW, &unsupported);
    if (error == -EEXIST) { /* whoever made that is dead: we have the lock */
        error = file_remove(folder, SHELF_NEW);
        if (error == 0 || error == -ENOENT)
            error = file_link_unnamed(fd, folder, SHELF_NEW, &unsupported);
    }
    if (error != 0)
        return error;
    /* Somebody who does not heed the lock may have put another in the locked one's place. */
    if (fstat(lock->fd, &here) != 0 || fstatat(folder, SHELF_NAME, &there, AT_SYMLINK_NOFOLLOW) != 0 ||
        here.st_ino != there.st_ino || here.st_dev != there.st_dev)
        error = -ESTALE;
    if (error == 0 && renameat(folder, SHELF_NEW, folder, SHELF_NAME) != 0)
        error = -errno;
    if (error != 0)
        (void)unlinkat(folder, SHELF_NEW, 0);
    return error;
}

int shelf_compact(struct shelf *shelf, int folder, const struct shelf_lock *lock)
{
    size_t count;
    bool unsupported;
    int fd = -1;
    if (!file_size_allowed(sizeof(struct shelf_head) + shelf->index.bytes))
        return -EFBIG;
    struct index_place *places = list_places(&shelf->index, false, &count);
    int error = places == NULL ? -ENOMEM : file_open_unnamed(folder, &unsupported, &fd);
    if (error != 0) {
        free(places);
        return error;
    }
    error = copy(shelf, lock, places, count, fd);
    if (error == 0)
        error = take_over(fd, folder, lock);
    (void)close(fd);
    free(places);
    if (error == 0)
        shelf_forget(shelf); /* it is read again when it is looked at */
    return error;
}

/* Make the removed records from `from` to `to` one, and give back the pages behind its header. False: not possible. */
static bool free_gap(const struct shelf *shelf, const struct shelf_lock *lock, uint64_t from, uint64_t to)
{
    static const shoal_key none;
    struct record_header header;
    uint64_t first = (from + sizeof header + HOLE - 1) / HOLE * HOLE, last = to / HOLE * HOLE;
    if (last <= first)
        return true;
    record_make(&header, shelf->mark, none.bytes, (uint32_t)(to - from), 0);
    return shelf_write_all(lock->fd, (const uint8_t *)&header, sizeof header, from) == 0 &&
           fallocate(lock->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)first, (off_t)(last - first)) == 0;
}

/* The header is written first: who reads the file record by record passes over the gap. Who was within it finds a hole,
 * which looks like damage as far as the next good header; when he looks at the entry that he takes this for he finds
 * that it is not there, begins anew (read_entry), and passes over. */
void shelf_free_gaps(struct shelf *shelf, int folder, const struct shelf_lock *lock)
{
    size_t count;
    shelf_forget(shelf); /* others' removals are not in it: what they made a gap of is not to be taken for an entry */
    if (shelf_attach(shelf, folder, false) != 0 || shelf_remove_stale(shelf, lock) != 0)
        return;
    struct index_place *places = file_size_allowed(shelf->scanned) ? list_places(&shelf->index, true, &count) : NULL;
    if (places == NULL)
        return;
    uint64_t from = sizeof(struct shelf_head);
    bool possible = true;
    for (size_t i = 0; possible && i < count; i++) {
        uint64_t to = (uint64_t)places[i].block * RECORD_ALIGNMENT;
        possible = free_gap(shelf, lock, from, to);
        from = to + places[i].span;
    }
    if (possible)
        (void)free_gap(shelf, lock, from, shelf->scanned);
    free(places);
    shelf_forget(shelf); /* the last record may be another now */
    (void)shelf_attach(shelf, folder, false);
}
