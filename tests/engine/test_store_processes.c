/* test_store_processes.c: the store with other processes at work on it, also with such as are killed. */
#include "store_place.h"

/* ---- other processes ---- */

static void kill_writers(struct place *place, uint32_t flags, int turns)
{
    struct timespec pause;
    unsigned seed = (unsigned)time(NULL);
    print_message("seed %u\n", seed);
    srand(seed);
    reopen_place(place, flags);
    for (int turn = 0; turn < turns; turn++) {
        size_t size = turn % 3 == 0 ? 100 : turn % 3 == 1 ? 50000 : LARGE * 10;
        pid_t child = fork();
        if (child == 0) {
            for (uint8_t i = 0;; i++) {
                shoal_key key = place->key;
                key.bytes[0] = i % 4;
                (void)put_pattern(place->folder, &key, size + i);
            }
        }
        pause = (struct timespec){0, rand() % 4000000};
        (void)nanosleep(&pause, NULL);
        (void)kill(child, SIGKILL);
        assert_int_equal(waitpid(child, NULL, 0), child);
        for (uint8_t i = 0; i < 4; i++) {
            shoal_key key = place->key;
            key.bytes[0] = i;
            int error = get_pattern(place->folder, &key, NULL);
            assert_true(error == 0 || error == -ENOENT);
        }
    }
}

static void killed_writers_leave_whole_entries_and_nothing_else(void **state)
{
    struct place *place = *state;
    kill_writers(place, 0, 300);
    reopen_place(place, 0);
    assert_int_equal(put_pattern(place->folder, &place->key, SMALL), 0); /* sweeps what a killed one left */
    assert_true(files_below(place->path) <= 5);                          /* the shelf is the fifth */
}

static void what_killed_writers_leave_under_temporary_names_is_swept(void **state)
{
    struct place *place = *state;
    kill_writers(place, SHOAL_STORE_NAMED_FILES, 100);
    reopen_place(place, SHOAL_STORE_NAMED_FILES);
    assert_int_equal(put_pattern(place->folder, &place->key, 10), 0);
    assert_true(files_below(place->path) <= 5);
    assert_int_equal(shoal_store_clear(place->store), 0);
    assert_int_equal(files_below(place->path), 0);
}

static void crowd(struct place *place, uint32_t flags)
{
    enum { PROCESSES = 8 };
    pid_t children[PROCESSES];
    unsigned seed = (unsigned)time(NULL);
    print_message("seed %u\n", seed);
    for (unsigned p = 0; p < PROCESSES; p++) {
        children[p] = fork();
        if (children[p] != 0)
            continue;
        reopen_place(place, flags);
        srand(seed + p);
        int64_t end = (int64_t)time(NULL) + 3;
        for (int turn = 0; (int64_t)time(NULL) < end; turn++) {
            shoal_key key = place->key;
            key.bytes[0] = (uint8_t)(rand() % 5);
            int what = rand() % 100, error;
            if (what < 55) {
                error = get_pattern(place->folder, &key, NULL);
                if (error != 0 && error != -ENOENT)
                    _exit(10);
            } else if (what < 90) {
                error = put_pattern(place->folder, &key, rand() % 4 == 0 ? LARGE : (size_t)rand() % 2000);
                if (error != 0)
                    _exit(11);
            } else if (what < 98) {
                error = shoal_folder_remove(place->folder, &key);
                if (error != 0 && error != -ENOENT)
                    _exit(12);
            } else if (what < 99) {
                if (shoal_folder_clear(place->folder) != 0)
                    _exit(13);
            } else if (shoal_store_clear(place->store) != 0) {
                _exit(14);
            }
        }
        _exit(0);
    }
    for (unsigned p = 0; p < PROCESSES; p++) {
        int status;
        assert_int_equal(waitpid(children[p], &status, 0), children[p]);
        assert_int_equal(status, 0);
    }
    assert_true(files_below(place->path) <= 6); /* the shelf is the sixth */
}

static void eight_processes_read_write_remove_and_clear_the_same_keys(void **state)
{
    crowd(*state, 0);
}

static void eight_processes_do_so_on_a_file_system_without_unnamed_files(void **state)
{
    crowd(*state, SHOAL_STORE_NAMED_FILES);
}

static void a_process_that_closed_all_its_descriptors_goes_on(void **state)
{
    struct place *place = *state;
    assert_int_equal(put_pattern(place->folder, &place->key, 100), 0);
    pid_t child = fork();
    if (child == 0) {
        for (int fd = 3; fd < 64; fd++)
            (void)close(fd);
        int others = open("/tmp", O_RDONLY | O_DIRECTORY); /* takes the number of the folder's descriptor */
        for (int i = 0; i < 20; i++)
            (void)dup(others);
        int error = get_pattern(place->folder, &place->key, NULL);
        if (error == 0)
            error = put_pattern(place->folder, &place->key, 200);
        struct stat tmp, number;
        if (stat("/tmp", &tmp) != 0 || fstat(others, &number) != 0 || tmp.st_ino != number.st_ino)
            _exit(1);
        _exit(error == 0 ? 0 : 2);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
    assert_int_equal(get_pattern(place->folder, &place->key, NULL), 0);
}

static void a_folder_that_was_removed_and_made_again_is_found(void **state)
{
    struct place *place = *state;
    char command[300];
    for (int turn = 0; turn < 3; turn++) {
        assert_int_equal(put_pattern(place->folder, &place->key, 100), 0);
        (void)snprintf(command, sizeof command, "cd %s && mv store away%d", place->path, turn);
        run(command);
        assert_int_equal(put_pattern(place->folder, &place->key, 7), 0);
        size_t size;
        assert_int_equal(get_pattern(place->folder, &place->key, &size), 0);
        assert_int_equal(size, 7);
        (void)snprintf(command, sizeof command, "rm -r %s/store && cp -rp %s/away%d %s/store", place->path, place->path,
                       turn, place->path);
        run(command);
        struct place second = *place;
        open_place(&second, 0);
        assert_int_equal(get_pattern(second.folder, &place->key, &size), 0);
        assert_int_equal(size, 100);
        shoal_folder_close(second.folder);
        shoal_store_close(second.store);
    }
    assert_true(open("/dev/null", O_RDONLY) < 16); /* no descriptor was lost on the way */
}

static void a_durable_store_keeps_what_is_put(void **state)
{
    struct place *place = *state;
    reopen_place(place, SHOAL_STORE_DURABLE);
    static const size_t sizes[] = {LARGE, SMALL};
    for (size_t i = 0; i < 2; i++) {
        size_t size;
        assert_int_equal(put_pattern(place->folder, &place->key, sizes[i]), 0);
        assert_int_equal(get_pattern(place->folder, &place->key, &size), 0);
        assert_int_equal(size, sizes[i]);
        assert_int_equal(access(place->file, F_OK), 0); /* what is on a shelf is not synced */
    }
}

static void a_durable_put_takes_the_place_of_one_that_is_not(void **state)
{
    struct place *place = *state;
    size_t size;
    assert_int_equal(put_pattern(place->folder, &place->key, SMALL), 0);
    reopen_place(place, SHOAL_STORE_DURABLE);
    assert_int_equal(put_pattern(place->folder, &place->key, 200), 0);
    assert_int_equal(get_pattern(place->folder, &place->key, &size), 0);
    assert_int_equal(size, 200);
    assert_int_equal(access(place->shelf, F_OK), -1);
}

static void no_put_fails_for_what_others_remove(void **state)
{
    enum { PROCESSES = 5, PUTTERS = 3 };
    struct place *place = *state;
    pid_t children[PROCESSES];
    for (int p = 0; p < PROCESSES; p++) {
        children[p] = fork();
        if (children[p] != 0)
            continue;
        reopen_place(place, 0);
        const int64_t end = shoal_clock_now() + 3 * SHOAL_SECOND;
        int error = 0;
        while (error == 0 && shoal_clock_now() < end) {
            if (p < PUTTERS)
                error = put_pattern(place->folder, &place->key, MIDDLE);
            else if (p == PUTTERS)
                (void)shoal_folder_remove(place->folder, &place->key);
            else
                (void)shoal_folder_clear(place->folder);
        }
        _exit(-error);
    }
    for (int p = 0; p < PROCESSES; p++) {
        int status;
        assert_int_equal(waitpid(children[p], &status, 0), children[p]);
        assert_int_equal(status, 0);
    }
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(killed_writers_leave_whole_entries_and_nothing_else),
        TEST(what_killed_writers_leave_under_temporary_names_is_swept),
        TEST(eight_processes_read_write_remove_and_clear_the_same_keys),
        TEST(eight_processes_do_so_on_a_file_system_without_unnamed_files),
        TEST(a_process_that_closed_all_its_descriptors_goes_on),
        TEST(a_folder_that_was_removed_and_made_again_is_found),
        TEST(a_durable_store_keeps_what_is_put),
        TEST(a_durable_put_takes_the_place_of_one_that_is_not),
        TEST(no_put_fails_for_what_others_remove),
    };
    return cmocka_run_group_tests_name("store_processes", tests, NULL, NULL);
}
