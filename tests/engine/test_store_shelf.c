/* test_store_shelf.c: small entries, many in one file: put, found, replaced, removed, and beside entries that have
 * files of their own. */
#include "shelf_place.h"

#include <dirent.h>
#include <sys/file.h>
#include <sys/syscall.h>

/* Stands before the C library's: a file system without locks. */
static int lock_error;
int flock(int fd, int operation)
{
    errno = lock_error;
    return lock_error != 0 ? -1 : (int)syscall(SYS_flock, fd, operation);
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
        TEST(links_to_a_shelf_do_not_hide_that_it_was_replaced),
        TEST(thousands_of_functions_keep_some_hundred_descriptors),
        TEST(what_a_limit_removes_is_given_back_to_the_disk),
        TEST(where_there_are_no_locks_entries_have_files_of_their_own),
    };
    return cmocka_run_group_tests_name("store_shelf", tests, NULL, NULL);
}
