/* test_store_shelf_room.c: a shelf where no more can be written: on a full disk, and with a limit on the size of files.
 */
#include "shelf_place.h"

#include <sys/syscall.h>

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

static void a_small_part_that_is_removed_is_given_back_on_a_full_disk(void **state)
{
    struct place *place = *state;
    enum { COUNT = 2000, LEFT = 1950, SIZE = 300 };
    put_all(place, COUNT, SIZE);
    blkcnt_t before = blocks_of(place->shelf);
    shoal_store_limits limits = {.bytes = UINT64_MAX, .items = LEFT};
    shoal_store_reduced done;
    disk_is_full = true;
    int error = shoal_store_reduce(place->store, &limits, &done);
    disk_is_full = false;
    assert_int_equal(error, 0);
    assert_int_equal(done.removed, COUNT - LEFT);
    blkcnt_t freed = before - blocks_of(place->shelf);
    assert_true(freed * 512 > (COUNT - LEFT) * SIZE / 2);
    assert_int_equal(find_all(place, COUNT, SIZE), LEFT);
    reopen_place(place, 0);
    assert_int_equal(find_all(place, COUNT, SIZE), LEFT);
    assert_int_equal(verify(place, 0).damaged, 0);
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

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(a_limit_on_file_size_sends_entries_to_files_of_their_own),
        TEST(a_limit_on_file_size_ends_no_program_that_replaces_what_lies_behind_it),
        TEST(on_a_full_disk_what_a_limit_removes_is_given_back_all_the_same),
        TEST(a_small_part_that_is_removed_is_given_back_on_a_full_disk),
        TEST(a_gap_that_others_made_of_removed_entries_is_no_damage),
        TEST(who_has_read_as_far_as_into_a_gap_finds_what_is_behind_it),
        TEST(a_store_with_a_limit_makes_room_on_a_full_disk_and_one_without_does_not),
    };
    return cmocka_run_group_tests_name("store_shelf_room", tests, NULL, NULL);
}
