/* test_store_shelf.c: small entries, many in one file: put, found, replaced, removed, damaged, and beside entries that
 * have files of their own. */
#include "store_place.h"

#include <dirent.h>
#include <sys/file.h>
#include <sys/syscall.h>

#include "store/folder.h"

/* Stands before the C library's: a disk that is full. What lies in a file can be written over, and nothing more. */
static bool disk_is_full;
static off_t disk_room; /* or this is what the file may take of it; 0: no such limit */
ssize_t pwrite(int fd, const void *data, size_t size, off_t offset)
{
    struct stat status;
    bool full = disk_is_full || disk_room != 0;
    if (full && fstat(fd, &status) == 0 && offset + (off_t)size > status.st_size &&
        (disk_is_full || status.st_blocks * 512 + (off_t)size > (status.st_nlink == 0 ? 128 : disk_room))) {
        errno = ENOSPC;
        return -1;
    }
    return syscall(SYS_pwrite64, fd, data, size, offset);
}

/* Stands before the C library's: a file system without locks. */
static int lock_error;
int flock(int fd, int operation)
{
    errno = lock_error;
    return lock_error != 0 ? -1 : (int)syscall(SYS_flock, fd, operation);
}

static shoal_key key_of(unsigned number)
{
    shoal_key key;
    for (size_t i = 0; i < sizeof key.bytes; i++)
        key.bytes[i] = (uint8_t)(number * 2654435761u >> (i % 4 * 8));
    memcpy(key.bytes, &number, sizeof number);
    return key;
}

static void put_all(struct place *place, unsigned count, size_t size)
{
    for (unsigned i = 0; i < count; i++) {
        shoal_key key = key_of(i);
        assert_int_equal(put_pattern(place->folder, &key, size + i), 0);
    }
}

/* How many of the keys are found, with the value that they must have. What is not found must be missing or damaged. */
static unsigned find_all(struct place *place, unsigned count, size_t size)
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

static off_t size_of(const char *path)
{
    struct stat status;
    return stat(path, &status) == 0 ? status.st_size : -1;
}

/* Whether an open file is still the one at `path`: its number cannot come back before it is closed. */
static bool is_file_at(int fd, const char *path)
{
    struct stat here, there;
    assert_int_equal(fstat(fd, &here), 0);
    assert_int_equal(stat(path, &there), 0);
    return here.st_ino == there.st_ino;
}

static int open_file(const char *path)
{
    int fd = open(path, O_RDONLY);
    assert_true(fd >= 0);
    return fd;
}

static struct seen verify(struct place *place, int remove)
{
    struct seen seen = {0};
    assert_int_equal(shoal_store_verify(place->store, remove, count_entry, &seen), 0);
    return seen;
}

/* ---- plain use ---- */

static void small_entries_share_a_file_that_goes_with_the_last(void **state)
{
    struct place *place = *state;
    enum { COUNT = 200 };
    put_all(place, COUNT, 10);
    assert_int_equal(files_below(place->path), 1);
    assert_int_equal(find_all(place, COUNT, 10), COUNT);
    put_all(place, COUNT, 30);
    assert_int_equal(find_all(place, COUNT, 30), COUNT);
    reopen_place(place, 0);
    assert_int_equal(find_all(place, COUNT, 30), COUNT);
    for (unsigned i = 0; i < COUNT; i++) {
        shoal_key key = key_of(i);
        assert_int_equal(shoal_folder_remove(place->folder, &key), 0);
        assert_int_equal(shoal_folder_remove(place->folder, &key), -ENOENT);
        assert_int_equal(find_all(place, COUNT, 30), COUNT - 1 - i);
    }
    assert_int_equal(files_below(place->path), 0);
}

static void an_entry_says_what_it_takes_on_disk(void **state)
{
    struct place *place = *state;
    shoal_entry *entry;
    shoal_entry_numbers numbers;
    assert_int_equal(put_pattern(place->folder, &place->key, SMALL), 0);
    assert_int_equal(shoal_folder_get(place->folder, &place->key, &entry), 0);
    shoal_entry_about(entry, &numbers);
    shoal_entry_close(entry);
    assert_int_equal(numbers.size, size_of(place->shelf) - (off_t)sizeof(struct shelf_head));
    assert_int_equal(numbers.cost, 42);
    assert_int_equal(numbers.parts, 2);
}

static void replacing_the_same_keys_does_not_fill_the_disk(void **state)
{
    struct place *place = *state;
    off_t most = 0;
    for (unsigned turn = 0; turn < 300; turn++) {
        put_all(place, 20, turn);
        off_t size = size_of(place->shelf);
        most = size > most ? size : most;
    }
    assert_int_equal(find_all(place, 20, 299), 20);
    assert_true(most < 3 * 65536);
    assert_int_equal(files_below(place->path), 1);
}

static void past_its_limit_entries_have_files_of_their_own(void **state)
{
    struct place *place = *state;
    enum { COUNT = 17500, SIZE = 3700 };
    static uint8_t data[SIZE];
    shoal_part part = {data, sizeof data, 1};
    for (unsigned i = 0; i < COUNT; i++) {
        shoal_key key = key_of(i);
        memcpy(data, &i, sizeof i);
        assert_int_equal(shoal_folder_put(place->folder, &key, &part, 1, NULL), 0);
    }
    assert_true(size_of(place->shelf) <= (off_t)SHELF_MOST);
    assert_true(size_of(place->shelf) > (off_t)SHELF_MOST - 8192);
    size_t files = files_below(place->path);
    assert_true(files > 100 && files < COUNT / 10);
    reopen_place(place, 0);
    for (unsigned i = 0; i < COUNT; i++) {
        shoal_entry *entry;
        shoal_key key = key_of(i);
        assert_int_equal(shoal_folder_get(place->folder, &key, &entry), 0);
        assert_int_equal(shoal_entry_part(entry, 0, &part), 0);
        assert_memory_equal(part.data, &i, sizeof i);
        shoal_entry_close(entry);
    }
    for (unsigned i = 0; i < COUNT / 2; i++) { /* then there is room again */
        shoal_key key = key_of(i);
        assert_int_equal(shoal_folder_remove(place->folder, &key), 0);
    }
    shoal_key key = key_of(COUNT);
    assert_int_equal(put_pattern(place->folder, &key, SMALL), 0);
    assert_true(size_of(place->shelf) < (off_t)SHELF_MOST);
    assert_int_equal(files_below(place->path), files);
}

static void visits_limits_and_clears_take_in_both_kinds(void **state)
{
    struct place *place = *state;
    struct seen seen = {0};
    put_all(place, 30, 10);
    for (unsigned i = 30; i < 40; i++) {
        shoal_key key = key_of(i);
        assert_int_equal(put_pattern(place->folder, &key, MIDDLE), 0);
    }
    assert_int_equal(shoal_store_visit(place->store, count_entry, &seen), 0);
    assert_int_equal(seen.entries, 40);
    assert_int_equal(seen.damaged, 0);
    shoal_store_limits limits = {.bytes = UINT64_MAX, .items = 15};
    shoal_store_reduced done;
    assert_int_equal(shoal_store_reduce(place->store, &limits, &done), 0);
    assert_int_equal(done.removed, 25);
    assert_true(done.bytes + done.removed_bytes == seen.bytes);
    seen = (struct seen){0};
    assert_int_equal(shoal_store_visit(place->store, count_entry, &seen), 0);
    assert_int_equal(seen.entries, 15);
    assert_int_equal(seen.bytes, done.bytes);
    assert_int_equal(shoal_store_remove(place->store, "function", NULL), 0);
    assert_int_equal(files_below(place->path), 0);
    assert_int_equal(access(shoal_folder_path(place->folder), F_OK), -1);
    put_all(place, 3, 10);
    assert_int_equal(shoal_store_clear(place->store), 0);
    assert_int_equal(find_all(place, 3, 10), 0);
    limits.items = 0;
    put_all(place, 3, 10);
    assert_int_equal(shoal_store_reduce(place->store, &limits, &done), 0);
    assert_int_equal(access(shoal_folder_path(place->folder), F_OK), -1);
}

static size_t count_descriptors(void)
{
    size_t count = 0;
    DIR *list = opendir("/proc/self/fd");
    assert_non_null(list);
    while (readdir(list) != NULL)
        count++;
    (void)closedir(list);
    return count;
}

static void thousands_of_functions_keep_some_hundred_descriptors(void **state)
{
    struct place *place = *state;
    enum { FUNCTIONS = 2000 };
    static shoal_folder *folders[FUNCTIONS];
    size_t before = count_descriptors();
    for (unsigned i = 0; i < FUNCTIONS; i++) {
        char name[32];
        (void)snprintf(name, sizeof name, "function%u", i);
        assert_int_equal(shoal_folder_open(place->store, name, &folders[i]), 0);
        assert_int_equal(put_pattern(folders[i], &place->key, i % 500), 0);
    }
    assert_true(count_descriptors() - before <= FOLDERS_KEPT + SHELF_KEPT);
    struct place other = *place;
    open_place(&other, 0);
    for (unsigned i = 0; i < FUNCTIONS; i++) {
        size_t size;
        shoal_key key = key_of(i);
        assert_int_equal(get_pattern(folders[i], &place->key, &size), 0);
        assert_int_equal(size, i % 500);
        assert_int_equal(get_pattern(folders[i], &key, NULL), -ENOENT);
        if (i % 10 == 0) { /* what another puts, or puts in place of all, is seen by those that are not kept, too */
            shoal_folder *same;
            assert_int_equal(shoal_folder_open(other.store, strrchr(shoal_folder_path(folders[i]), '/') + 1, &same), 0);
            if (i % 20 == 0)
                assert_int_equal(shoal_folder_clear(same), 0);
            assert_int_equal(put_pattern(same, &key, SMALL), 0);
            assert_int_equal(get_pattern(folders[i], &key, NULL), 0);
            assert_int_equal(get_pattern(folders[i], &place->key, NULL), i % 20 == 0 ? -ENOENT : 0);
            assert_int_equal(shoal_folder_remove(folders[i], &key), 0);
            assert_int_equal(get_pattern(same, &key, NULL), -ENOENT);
            shoal_folder_close(same);
        }
    }
    assert_true(count_descriptors() - before <= 2 * (FOLDERS_KEPT + SHELF_KEPT));
    shoal_folder_close(other.folder);
    shoal_store_close(other.store);
    for (unsigned i = 0; i < FUNCTIONS; i++)
        shoal_folder_close(folders[i]);
    assert_true(count_descriptors() - before <= SHELF_KEPT);
    reopen_place(place, 0);
    assert_int_equal(count_descriptors(), before);
}

static void what_a_limit_removes_is_given_back_to_the_disk(void **state)
{
    struct place *place = *state;
    shoal_store_reduced done;
    put_all(place, 500, 500);
    for (size_t items = 400; items > 0; items -= 100) {
        shoal_store_limits limits = {.bytes = UINT64_MAX, .items = items};
        assert_int_equal(shoal_store_reduce(place->store, &limits, &done), 0);
        assert_int_equal(done.items, items);
        assert_true((uint64_t)size_of(place->shelf) <= done.bytes + done.bytes / 15 + sizeof(struct shelf_head));
    }
}

static blkcnt_t blocks_of(const char *path)
{
    struct stat status;
    assert_int_equal(stat(path, &status), 0);
    return status.st_blocks;
}

static void on_a_full_disk_what_a_limit_removes_is_given_back_all_the_same(void **state)
{
    struct place *place = *state, other = *place;
    enum { COUNT = 2000, LEFT = 500, SIZE = 300 };
    put_all(place, COUNT, SIZE);
    open_place(&other, 0); /* knows of all, and of nothing that happens from here on */
    assert_int_equal(find_all(&other, COUNT, SIZE), COUNT);
    blkcnt_t before = blocks_of(place->shelf);
    int old = open_file(place->shelf);
    disk_is_full = true;
    shoal_store_limits limits = {.bytes = UINT64_MAX, .items = LEFT};
    shoal_store_reduced done;
    int error = shoal_store_reduce(place->store, &limits, &done);
    blkcnt_t after = blocks_of(place->shelf);
    shoal_key key = key_of(COUNT);
    int refused = put_pattern(place->folder, &key, SMALL);
    disk_is_full = false;
    assert_int_equal(error, 0);
    assert_int_equal(done.items, LEFT);
    assert_int_equal(refused, -ENOSPC);
    assert_true(is_file_at(old, place->shelf));
    assert_true(after < before / 2);
    for (int turn = 0; turn < 3; turn++) {
        assert_int_equal(find_all(turn == 1 ? &other : place, COUNT, SIZE), LEFT);
        assert_int_equal(verify(place, 0).damaged, 0);
        if (turn == 0)
            reopen_place(place, 0);
        if (turn == 1) { /* then with room for a new file */
            put_all(place, 10, SIZE);
            limits.items = LEFT;
            assert_int_equal(shoal_store_reduce(place->store, &limits, &done), 0);
            assert_false(is_file_at(old, place->shelf));
        }
    }
    (void)close(old);
    shoal_folder_close(other.folder);
    shoal_store_close(other.store);
}

static void a_gap_that_others_made_of_removed_entries_is_no_damage(void **state)
{
    struct place *place = *state, first = *place, second = *place;
    enum { COUNT = 300, SIZE = 300 };
    put_all(place, COUNT, SIZE);
    open_place(&first, 0);
    open_place(&second, 0);
    for (unsigned left = COUNT - 50; left > 0; left -= 50) { /* each from what it knew before the other's */
        struct place *one = left / 50 % 2 == 0 ? &first : &second, *two = one == &first ? &second : &first;
        assert_int_equal(find_all(two, COUNT, SIZE), left + 50);
        shoal_store_limits limits = {.bytes = UINT64_MAX, .items = left};
        shoal_store_reduced done;
        disk_is_full = true;
        int error = shoal_store_reduce(one->store, &limits, &done);
        disk_is_full = false;
        assert_int_equal(error, 0);
        assert_int_equal(done.items, left);
        shoal_key key = key_of(COUNT + left);
        assert_int_equal(put_pattern(two->folder, &key, SMALL), 0); /* behind the gap that may be the last */
        assert_int_equal(shoal_folder_remove(one->folder, &key), 0);
        assert_int_equal(find_all(two, COUNT, SIZE), left);
        assert_int_equal(find_all(one, COUNT, SIZE), left);
        assert_int_equal(verify(one, 0).damaged, 0);
    }
    shoal_folder_close(first.folder);
    shoal_store_close(first.store);
    shoal_folder_close(second.folder);
    shoal_store_close(second.store);
}

static void who_has_read_as_far_as_into_a_gap_finds_what_is_behind_it(void **state)
{
    struct place *place = *state, other = *place;
    enum { LAST = 60, SIZE = 300 };
    for (unsigned known = 10; known < 30; known++) { /* at one of these the gap's first whole page begins */
        put_all(place, known + 1, SIZE);
        open_place(&other, 0);
        assert_int_equal(find_all(&other, known + 1, SIZE), known + 1);
        for (unsigned i = known + 1; i <= LAST; i++) {
            shoal_key key = key_of(i);
            assert_int_equal(put_pattern(place->folder, &key, SIZE + i), 0);
        }
        int fd = open(shoal_folder_path(place->folder), O_RDONLY | O_DIRECTORY);
        assert_true(fd >= 0);
        for (unsigned i = known - 1; i < LAST; i++) {
            shoal_key key = key_of(i);
            assert_int_equal(shoal_folder_remove(place->folder, &key), 0);
        }
        blkcnt_t before = blocks_of(place->shelf);
        disk_is_full = true;
        shelf_trim(place->folder->shelf, fd, true);
        disk_is_full = false;
        assert_true(blocks_of(place->shelf) < before);
        for (unsigned i = LAST + 1; i-- > 0;) {
            shoal_key key = key_of(i);
            assert_int_equal(get_pattern(other.folder, &key, NULL), i < known - 1 || i == LAST ? 0 : -ENOENT);
        }
        struct seen seen = {0};
        assert_int_equal(shoal_store_visit(other.store, count_entry, &seen), 0);
        assert_int_equal(seen.entries, known);
        assert_int_equal(seen.damaged, 0);
        (void)close(fd);
        assert_int_equal(shoal_store_clear(place->store), 0);
        shoal_folder_close(other.folder);
        shoal_store_close(other.store);
    }
}

/* The disk has room for so many bytes in the folder, and is full beyond. */
static void a_store_with_a_limit_makes_room_on_a_full_disk_and_one_without_does_not(void **state)
{
    struct place *place = *state;
    enum { COUNT = 3000, SIZE = 300, ROOM = 400000 };
    for (int limited = 0; limited < 2; limited++) {
        char inner[128];
        shoal_store *store;
        shoal_folder *folder;
        shoal_store_options options = {.bytes_limit = limited != 0 ? 10 * (uint64_t)ROOM : 0};
        (void)snprintf(inner, sizeof inner, "%s/full%d", place->path, limited);
        assert_int_equal(shoal_store_open(inner, &options, &store), 0);
        assert_int_equal(shoal_folder_open(store, "function", &folder), 0);
        disk_room = ROOM;
        unsigned refused = 0, found = 0;
        for (unsigned i = 0; i < COUNT; i++) {
            shoal_key key = key_of(i);
            int error = put_pattern(folder, &key, SIZE);
            refused += error == -ENOSPC;
            found += error == 0 && get_pattern(folder, &key, NULL) == 0;
        }
        disk_room = 0;
        struct seen seen = {0};
        assert_int_equal(shoal_store_verify(store, 0, count_entry, &seen), 0);
        shoal_folder_close(folder);
        shoal_store_close(store);
        assert_int_equal(refused + found, COUNT);
        assert_int_equal(refused == 0, limited != 0);
        assert_int_equal(seen.damaged, 0);
        assert_true(seen.entries > 200);
    }
}

static void where_there_are_no_locks_entries_have_files_of_their_own(void **state)
{
    struct place *place = *state;
    static const int errors[] = {ENOLCK, EOPNOTSUPP, ENOSYS, EINVAL};
    for (size_t i = 0; i < sizeof errors / sizeof *errors; i++) {
        lock_error = errors[i];
        put_all(place, 10, 30);
        unsigned found = find_all(place, 10, 30);
        shoal_key key = key_of(3);
        int removed = shoal_folder_remove(place->folder, &key), cleared = shoal_store_clear(place->store);
        lock_error = 0;
        assert_int_equal(found, 10);
        assert_int_equal(removed, 0);
        assert_int_equal(cleared, 0);
        assert_int_equal(access(shoal_folder_path(place->folder), F_OK), -1);
    }
}

/* ---- beside files ---- */

static void an_old_stores_entries_are_found_and_replaced(void **state)
{
    struct place *place = *state;
    reopen_place(place, SHOAL_STORE_NAMED_FILES); /* puts small entries as every store did once */
    put_all(place, 10, SMALL);
    assert_int_equal(files_below(place->path), 10);
    reopen_place(place, 0);
    assert_int_equal(find_all(place, 10, SMALL), 10);
    put_all(place, 5, 200);
    assert_int_equal(find_all(place, 5, 200), 5);
    assert_int_equal(find_all(place, 10, SMALL), 5);
    assert_int_equal(files_below(place->path), 5 + 1);
}

static void the_last_put_counts_wherever_it_lies(void **state)
{
    struct place *place = *state;
    static const size_t sizes[] = {SMALL, MIDDLE, 200, LARGE, 300, MIDDLE, 10, 4000, 10};
    struct place other = *place;
    open_place(&other, 0);
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        size_t size;
        assert_int_equal(put_pattern(i % 2 == 0 ? place->folder : other.folder, &place->key, sizes[i]), 0);
        assert_int_equal(get_pattern(place->folder, &place->key, &size), 0);
        assert_int_equal(size, sizes[i]);
        assert_int_equal(get_pattern(other.folder, &place->key, &size), 0);
        assert_int_equal(size, sizes[i]);
        assert_int_equal(files_below(place->path), 1);
    }
    shoal_folder_close(other.folder);
    shoal_store_close(other.store);
}

static void two_handles_see_what_the_other_does_at_once(void **state)
{
    struct place *place = *state, other = *place;
    open_place(&other, 0);
    for (unsigned turn = 0; turn < 30; turn++) {
        struct place *one = turn % 2 == 0 ? place : &other, *two = turn % 2 == 0 ? &other : place;
        put_all(one, 20, turn);
        assert_int_equal(find_all(two, 20, turn), 20);
        shoal_key key = key_of(turn % 20);
        assert_int_equal(shoal_folder_remove(two->folder, &key), 0);
        assert_int_equal(get_pattern(one->folder, &key, NULL), -ENOENT);
        if (turn % 5 == 4) {
            assert_int_equal(turn % 10 == 4 ? shoal_store_clear(two->store) : shoal_folder_clear(two->folder), 0);
            assert_int_equal(find_all(one, 20, turn), 0);
        }
    }
    shoal_folder_close(other.folder);
    shoal_store_close(other.store);
}

/* ---- damage ---- */

static void a_changed_byte_costs_one_entry_at_most(void **state)
{
    struct place *place = *state;
    enum { COUNT = 5 };
    uint8_t *data;
    put_all(place, COUNT, 40);
    size_t size = load_file(place->shelf, &data);
    for (size_t at = 0; at < size; at++) {
        uint8_t was = data[at];
        data[at] ^= (uint8_t)(1u << (at % 8));
        store_file(place->shelf, data, size);
        data[at] = was;
        for (int fresh = 0; fresh < 2; fresh++) {
            unsigned found = find_all(place, COUNT, 40);
            assert_int_equal(found, at < sizeof(struct shelf_head) ? COUNT : COUNT - 1);
            if (fresh == 0)
                reopen_place(place, 0);
        }
        struct seen seen = {0};
        assert_int_equal(shoal_store_verify(place->store, 0, count_entry, &seen), 0);
        assert_int_equal(seen.entries, COUNT);
        assert_int_equal(seen.damaged, at >= sizeof(struct shelf_head));
    }
    data[sizeof(struct shelf_head) + 36] ^= 1;
    store_file(place->shelf, data, size);
    struct seen seen = {0};
    assert_int_equal(shoal_store_verify(place->store, 1, count_entry, &seen), 0);
    assert_int_equal(seen.damaged, 1);
    seen = (struct seen){0};
    assert_int_equal(shoal_store_verify(place->store, 1, count_entry, &seen), 0);
    assert_int_equal(seen.entries, COUNT - 1);
    assert_int_equal(seen.damaged, 0);
    put_all(place, COUNT, 40);
    assert_int_equal(find_all(place, COUNT, 40), COUNT);
    free(data);
}

/* What a get says of each of `count` keys, the first `whole` of which must be found with their values. */
static void expect_of_the_rest(struct place *place, unsigned count, size_t size, size_t whole, int expected)
{
    for (unsigned i = 0; i < count; i++) {
        shoal_key key = key_of(i);
        size_t got;
        int error = get_pattern(place->folder, &key, &got);
        assert_int_equal(error, i < whole ? 0 : expected);
        if (i < whole)
            assert_int_equal(got, size + i);
    }
}

static void a_shelf_that_is_cut_short_says_so_until_it_is_replaced(void **state)
{
    struct place *place = *state;
    enum { COUNT = 4 };
    uint8_t *data;
    put_all(place, COUNT, 40);
    size_t size = load_file(place->shelf, &data), each = (size - sizeof(struct shelf_head)) / COUNT;
    for (size_t length = 0; length < size; length++) {
        store_file(place->shelf, data, size);
        reopen_place(place, 0);
        assert_int_equal(find_all(place, COUNT, 40), COUNT);
        assert_int_equal(truncate(place->shelf, (off_t)length), 0);
        size_t whole = length < sizeof(struct shelf_head) ? 0 : (length - sizeof(struct shelf_head)) / each;
        expect_of_the_rest(place, COUNT, 40, whole, SHOAL_ECORRUPT);
        if (length % 2 == 0) {
            reopen_place(place, 0);
            expect_of_the_rest(place, COUNT, 40, whole, SHOAL_ECORRUPT);
        }
        struct seen seen = verify(place, 0);
        assert_int_equal(seen.entries, whole + 1);
        assert_int_equal(seen.damaged, 1);
        if (length % 3 == 0) { /* removed by the one, or replaced by the other */
            assert_int_equal(verify(place, 1).damaged, 1);
        } else {
            shoal_key key = key_of(COUNT + 1);
            size_t large = length % 3 == 1 ? MIDDLE : 10;
            assert_int_equal(put_pattern(place->folder, &key, large), 0);
            assert_int_equal(get_pattern(place->folder, &key, NULL), 0);
        }
        expect_of_the_rest(place, COUNT, 40, whole, -ENOENT);
        reopen_place(place, 0);
        expect_of_the_rest(place, COUNT, 40, whole, -ENOENT);
        assert_int_equal(verify(place, 0).damaged, 0);
        put_all(place, COUNT, 40);
        assert_int_equal(find_all(place, COUNT, 40), COUNT);
        shoal_key key = key_of(COUNT + 1);
        (void)shoal_folder_remove(place->folder, &key);
    }
    free(data);
}

static void a_cut_of_which_nobody_was_told_outlives_puts_limits_and_a_new_file(void **state)
{
    struct place *place = *state;
    enum { COUNT = 40 };
    shoal_key lost = key_of(COUNT - 1), other = key_of(COUNT);
    for (int turn = 0; turn < 3; turn++) {
        put_all(place, COUNT, 40);
        assert_int_equal(truncate(place->shelf, size_of(place->shelf) - 64), 0);
        if (turn != 0)
            reopen_place(place, 0);
        int before = open_file(place->shelf);
        assert_int_equal(put_pattern(place->folder, &other, 10), 0);
        shoal_store_limits limits = {.bytes = UINT64_MAX, .items = COUNT / 2};
        shoal_store_reduced done;
        if (turn == 2)
            assert_int_equal(shoal_store_reduce(place->store, &limits, &done), 0);
        for (unsigned i = 0; turn == 1 && i < 1000; i++)
            assert_int_equal(put_pattern(place->folder, &other, i), 0);
        assert_int_equal(is_file_at(before, place->shelf), turn == 0);
        (void)close(before);
        assert_int_equal(get_pattern(place->folder, &other, NULL), 0);
        assert_int_equal(get_pattern(place->folder, &lost, NULL), SHOAL_ECORRUPT);
        reopen_place(place, 0);
        assert_int_equal(get_pattern(place->folder, &lost, NULL), SHOAL_ECORRUPT);
        assert_int_equal(put_pattern(place->folder, &lost, 40), 0);
        reopen_place(place, 0);
        assert_int_equal(get_pattern(place->folder, &lost, NULL), 0);
        shoal_key never = key_of(COUNT + 1);
        assert_int_equal(get_pattern(place->folder, &never, NULL), -ENOENT);
        assert_int_equal(verify(place, 0).damaged, 0);
    }
}

static void another_who_repairs_a_shelf_ends_what_a_handle_says_of_it(void **state)
{
    struct place *place = *state, other = *place;
    put_all(place, 5, 40);
    open_place(&other, 0);
    assert_int_equal(truncate(place->shelf, size_of(place->shelf) - 1), 0);
    expect_of_the_rest(place, 5, 40, 4, SHOAL_ECORRUPT);
    expect_of_the_rest(&other, 5, 40, 4, SHOAL_ECORRUPT);
    shoal_key key = key_of(5);
    assert_int_equal(put_pattern(other.folder, &key, 10), 0);
    expect_of_the_rest(place, 5, 40, 4, -ENOENT);
    expect_of_the_rest(&other, 5, 40, 4, -ENOENT);
    shoal_folder_close(other.folder);
    shoal_store_close(other.store);
}

static void a_writer_killed_before_it_told_the_length_leaves_nothing_to_tell(void **state)
{
    struct place *place = *state;
    enum { COUNT = 5 };
    uint8_t *before, *after;
    for (int fresh = 0; fresh < 2; fresh++) {
        put_all(place, COUNT, 40);
        (void)load_file(place->shelf, &before);
        shoal_key last = key_of(COUNT);
        assert_int_equal(put_pattern(place->folder, &last, 40 + COUNT), 0);
        size_t size = load_file(place->shelf, &after);
        memcpy(after, before, sizeof(struct shelf_head)); /* the record is there, the head is as it was */
        store_file(place->shelf, after, size);
        free(before);
        free(after);
        if (fresh != 0)
            reopen_place(place, 0);
        assert_int_equal(find_all(place, COUNT + 1, 40), COUNT + 1);
        assert_int_equal(verify(place, 0).damaged, 0);
        shoal_key more = key_of(COUNT + 1);
        assert_int_equal(get_pattern(place->folder, &more, NULL), -ENOENT);
        assert_int_equal(put_pattern(place->folder, &more, 10), 0);
        assert_int_equal(truncate(place->shelf, (off_t)size), 0);
        assert_int_equal(get_pattern(place->folder, &more, NULL), SHOAL_ECORRUPT);
        assert_int_equal(verify(place, 1).damaged, 1);
    }
}

/* A head as another version, or a machine of another byte order, writes it: all is in order but for the one byte. */
static void another_versions_shelf_is_told_and_replaced(void **state)
{
    struct place *place = *state;
    static const uint8_t versions[] = {1, 3, SHELF_VERSION ^ 128};
    for (size_t i = 0; i < sizeof versions; i++) {
        uint8_t *data, digest[SHOAL_DIGEST_SIZE];
        put_all(place, 3, 50);
        size_t size = load_file(place->shelf, &data);
        struct shelf_head *head = (struct shelf_head *)(void *)data;
        for (int half = 0; half < 2; half++) {
            head->halves[half].version = versions[i];
            shoal_digest(&head->halves[half], offsetof(struct shelf_half, checksum), digest);
            memcpy(head->halves[half].checksum, digest, sizeof head->halves[half].checksum);
        }
        store_file(place->shelf, data, size);
        free(data);
        reopen_place(place, 0);
        expect_of_the_rest(place, 3, 50, 0, SHOAL_ECORRUPT);
        assert_int_equal(verify(place, 0).damaged, 1);
        shoal_key key = key_of(0);
        assert_int_equal(put_pattern(place->folder, &key, 50), 0);
        expect_of_the_rest(place, 3, 50, 1, -ENOENT);
    }
}

static void what_is_no_shelf_is_told_and_replaced(void **state)
{
    struct place *place = *state;
    static const char *const damages[] = {
        "truncate -s 0 $F",
        "truncate -s 60 $F",
        "truncate -s 1T $F",
        "head -c 4000 /dev/urandom > $F",
        "rm $F; mkdir $F",
        "rm $F; mkdir -p $F/a/b; touch $F/a/b/c $F/d",
        "rm $F; ln -s /etc/passwd $F",
        "cp $F $F.x; rm $F; ln -s $F.x $F",
        "rm $F; ln -s nowhere $F",
        "rm $F; mkfifo $F",
    };
    for (size_t i = 0; i < sizeof damages / sizeof *damages; i++) {
        for (int verify = 0; verify < 2; verify++) {
            char command[1300];
            put_all(place, 3, 50);
            assert_int_equal(find_all(place, 3, 50), 3);
            (void)snprintf(command, sizeof command, "F=%s; %s", place->shelf, damages[i]);
            run(command);
            shoal_key key = key_of(1);
            if (get_pattern(place->folder, &key, NULL) != SHOAL_ECORRUPT)
                fail_msg("not seen: %s", damages[i]);
            struct seen seen = {0};
            assert_int_equal(shoal_store_verify(place->store, verify, count_entry, &seen), 0);
            assert_int_equal(seen.damaged, 1);
            if (verify != 0)
                assert_int_equal(get_pattern(place->folder, &key, NULL), -ENOENT);
        }
    }
    put_all(place, 3, 50);
    assert_int_equal(find_all(place, 3, 50), 3);
}

static void what_a_value_holds_never_becomes_an_entry(void **state)
{
    struct place *place = *state;
    uint8_t *forged, *data;
    shoal_key inner = key_of(1), outer = key_of(2), after = key_of(3);
    assert_int_equal(put_pattern(place->folder, &inner, 50), 0);
    size_t size = load_file(place->shelf, &forged); /* with another shelf's mark */
    assert_int_equal(shoal_store_clear(place->store), 0);

    shoal_part part = {forged, size, 0}; /* lies at a multiple of 64 */
    assert_int_equal(shoal_folder_put(place->folder, &outer, &part, 1, NULL), 0);
    assert_int_equal(put_pattern(place->folder, &after, 50), 0);
    size_t all = load_file(place->shelf, &data);
    for (size_t at = sizeof(struct shelf_head); at < sizeof(struct shelf_head) + 256; at++) {
        data[at] ^= 0x40;
        store_file(place->shelf, data, all);
        data[at] ^= 0x40;
        reopen_place(place, 0);
        assert_int_equal(get_pattern(place->folder, &inner, NULL), -ENOENT);
        assert_int_equal(get_pattern(place->folder, &after, NULL), 0);
    }
    free(data);
    free(forged);
}

static void a_limit_on_file_size_sends_entries_to_files_of_their_own(void **state)
{
    struct place *place = *state;
    pid_t child = fork();
    if (child == 0) { /* SIGXFSZ has its default action here */
        struct rlimit limit = {2000, 2000};
        (void)setrlimit(RLIMIT_FSIZE, &limit);
        put_all(place, 20, SMALL);
        put_all(place, 20, SMALL);
        _exit(find_all(place, 20, SMALL) == 20 ? 0 : 1);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
    assert_int_equal(find_all(place, 20, SMALL), 20);
    assert_true(size_of(place->shelf) <= 2000);
    assert_true(files_below(place->path) > 10);
}

static void a_limit_on_file_size_ends_no_program_that_replaces_what_lies_behind_it(void **state)
{
    struct place *place = *state;
    put_all(place, 20, SMALL);
    assert_true(size_of(place->shelf) > 4000);
    pid_t child = fork();
    if (child == 0) {
        struct rlimit limit = {2000, 2000};
        shoal_key last = key_of(19), first = key_of(0);
        (void)setrlimit(RLIMIT_FSIZE, &limit);
        _exit(put_pattern(place->folder, &last, 300) != -EFBIG      ? 1
              : shoal_folder_remove(place->folder, &last) != -EFBIG ? 2
              : put_pattern(place->folder, &first, 300) != 0        ? 3
              : get_pattern(place->folder, &first, NULL) != 0       ? 4
                                                                    : 0);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
}

static void links_to_a_shelf_do_not_hide_that_it_was_replaced(void **state)
{
    struct place *place = *state, other = *place;
    char command[1300];
    open_place(&other, 0);
    put_all(place, 20, 10);
    assert_int_equal(find_all(&other, 20, 10), 20);
    (void)snprintf(command, sizeof command, "ln %s %s/link", place->shelf, place->path);
    run(command);
    for (unsigned turn = 0; turn < 60; turn++) /* past the point where it is made anew */
        put_all(place, 20, turn);
    shoal_key key = key_of(20);
    assert_int_equal(put_pattern(place->folder, &key, 10), 0);
    assert_int_equal(get_pattern(other.folder, &key, NULL), 0);
    assert_int_equal(find_all(&other, 20, 59), 20);
    shoal_folder_close(other.folder);
    shoal_store_close(other.store);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(small_entries_share_a_file_that_goes_with_the_last),
        TEST(an_entry_says_what_it_takes_on_disk),
        TEST(replacing_the_same_keys_does_not_fill_the_disk),
        TEST(past_its_limit_entries_have_files_of_their_own),
        TEST(visits_limits_and_clears_take_in_both_kinds),
        TEST(an_old_stores_entries_are_found_and_replaced),
        TEST(the_last_put_counts_wherever_it_lies),
        TEST(two_handles_see_what_the_other_does_at_once),
        TEST(a_changed_byte_costs_one_entry_at_most),
        TEST(a_shelf_that_is_cut_short_says_so_until_it_is_replaced),
        TEST(a_cut_of_which_nobody_was_told_outlives_puts_limits_and_a_new_file),
        TEST(another_who_repairs_a_shelf_ends_what_a_handle_says_of_it),
        TEST(a_writer_killed_before_it_told_the_length_leaves_nothing_to_tell),
        TEST(another_versions_shelf_is_told_and_replaced),
        TEST(what_is_no_shelf_is_told_and_replaced),
        TEST(what_a_value_holds_never_becomes_an_entry),
        TEST(a_limit_on_file_size_sends_entries_to_files_of_their_own),
        TEST(a_limit_on_file_size_ends_no_program_that_replaces_what_lies_behind_it),
        TEST(links_to_a_shelf_do_not_hide_that_it_was_replaced),
        TEST(thousands_of_functions_keep_some_hundred_descriptors),
        TEST(what_a_limit_removes_is_given_back_to_the_disk),
        TEST(on_a_full_disk_what_a_limit_removes_is_given_back_all_the_same),
        TEST(a_gap_that_others_made_of_removed_entries_is_no_damage),
        TEST(who_has_read_as_far_as_into_a_gap_finds_what_is_behind_it),
        TEST(a_store_with_a_limit_makes_room_on_a_full_disk_and_one_without_does_not),
        TEST(where_there_are_no_locks_entries_have_files_of_their_own),
    };
    return cmocka_run_group_tests_name("store_shelf", tests, NULL, NULL);
}
