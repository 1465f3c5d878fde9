/* test_store_limits.c: a store's limits, compressed entries, verifying all of it, and who makes a missing entry.
 * Each test works in a folder of its own; names are the sentences they prove. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "shoal.h"

#define EACH ((size_t)100000) /* bytes of the entries that limits are tried with */

struct place {
    char path[64], inner[96];
    shoal_store *store;
    shoal_folder *folder;
};

static void open_place(struct place *place, const shoal_store_options *options)
{
    shoal_folder_close(place->folder);
    shoal_store_close(place->store);
    assert_int_equal(shoal_store_open(place->inner, options, &place->store), 0);
    assert_int_equal(shoal_folder_open(place->store, "function", &place->folder), 0);
}

static int set_up(void **state)
{
    struct place *place = calloc(1, sizeof *place);
    (void)alarm(100);
    (void)strcpy(place->path, "/tmp/shoal-test-limits-XXXXXX");
    assert_non_null(mkdtemp(place->path));
    (void)snprintf(place->inner, sizeof place->inner, "%s/store", place->path);
    open_place(place, NULL);
    *state = place;
    return 0;
}

static int tear_down(void **state)
{
    struct place *place = *state;
    char command[100];
    shoal_folder_close(place->folder);
    shoal_store_close(place->store);
    (void)snprintf(command, sizeof command, "rm -rf %s", place->path);
    assert_int_equal(system(command), 0);
    free(place);
    (void)alarm(0);
    return 0;
}

static shoal_key key_of(uint8_t number)
{
    shoal_key key = {{0}};
    memset(key.bytes, number + 1, sizeof key.bytes);
    return key;
}

static void put(struct place *place, uint8_t number, size_t size)
{
    shoal_key key = key_of(number);
    uint8_t *data = malloc(size + 1);
    for (size_t i = 0; i < size; i++)
        data[i] = (uint8_t)(number + i % 7);
    shoal_part parts[3] = {{&number, 1, 5}, {data, size, 6}, {NULL, 0, 7}};
    assert_int_equal(shoal_folder_put(place->folder, &key, parts, 3, NULL), 0);
    free(data);
}

/* 0 and a right value, or why there is none. */
static int get(struct place *place, uint8_t number, size_t size)
{
    shoal_key key = key_of(number);
    shoal_entry *entry;
    shoal_part part;
    int error = shoal_folder_get(place->folder, &key, &entry);
    if (error != 0)
        return error;
    assert_int_equal(shoal_entry_part(entry, 1, &part), 0);
    assert_int_equal(part.size, size);
    assert_int_equal(part.kind, 6);
    assert_int_equal((uintptr_t)part.data % 64, 0);
    for (size_t i = 0; i < size; i++)
        if (((const uint8_t *)part.data)[i] != (uint8_t)(number + i % 7))
            fail_msg("byte %zu of entry %u is wrong", i, number);
    assert_int_equal(shoal_entry_part(entry, 2, &part), 0);
    assert_int_equal(part.size, 0);
    shoal_entry_close(entry);
    return 0;
}

struct sums {
    uint64_t entries, bytes, damaged, hits;
};

static int sum(const char *folder, const shoal_key *key, const shoal_entry_numbers *numbers, int error, void *context)
{
    struct sums *sums = context;
    (void)folder;
    (void)key;
    sums->entries++;
    sums->bytes += numbers->size;
    sums->damaged += error == SHOAL_ECORRUPT;
    sums->hits += numbers->hits;
    return 0;
}

static void reducing_removes_what_was_used_longest_ago_and_readers_keep_what_they_have(void **state)
{
    struct place *place = *state;
    shoal_store_reduced done;
    for (uint8_t i = 0; i < 5; i++)
        put(place, i, EACH);
    (void)sleep(2); /* uses are known to the second */
    assert_int_equal(get(place, 1, EACH), 0);
    assert_int_equal(get(place, 3, EACH), 0);
    shoal_key key = key_of(0);
    shoal_entry *held;
    shoal_part part;
    assert_int_equal(shoal_folder_look(place->folder, &key, &held), 0); /* is no use */

    shoal_store_limits limits = {.bytes = UINT64_MAX, .items = 2};
    assert_int_equal(shoal_store_reduce(place->store, &limits, &done), 0);
    assert_int_equal(done.removed, 3);
    assert_int_equal(done.items, 2);
    assert_true(done.removed_bytes > 3 * EACH && done.bytes > 2 * EACH && done.bytes < 3 * EACH);
    for (uint8_t i = 0; i < 5; i++)
        assert_int_equal(get(place, i, EACH), i == 1 || i == 3 ? 0 : -ENOENT);
    assert_int_equal(shoal_entry_part(held, 1, &part), 0);
    assert_int_equal(((const uint8_t *)part.data)[EACH - 1], (EACH - 1) % 7);
    shoal_entry_close(held);

    limits = (shoal_store_limits){.bytes = EACH + EACH / 2, .items = UINT64_MAX};
    assert_int_equal(shoal_store_reduce(place->store, &limits, &done), 0);
    assert_int_equal(done.removed, 1);
    limits = (shoal_store_limits){.bytes = UINT64_MAX, .items = UINT64_MAX, .age = 3600 * SHOAL_SECOND};
    assert_int_equal(shoal_store_reduce(place->store, &limits, NULL), 0);
    struct sums sums = {0};
    assert_int_equal(shoal_store_visit(place->store, sum, &sums), 0);
    assert_int_equal(sums.entries, 1);
    limits.age = 1;
    assert_int_equal(shoal_store_reduce(place->store, &limits, &done), 0);
    assert_int_equal(done.items, 0);
}

static void a_limit_is_kept_in_the_background(void **state)
{
    struct place *place = *state;
    shoal_store_options options = {.bytes_limit = 10 * EACH};
    open_place(place, &options);
    for (uint8_t i = 0; i < 100; i++)
        put(place, i, EACH);
    struct sums sums = {.bytes = UINT64_MAX};
    for (int turn = 0; turn < 500 && sums.bytes > 12 * EACH; turn++) {
        struct timespec rest = {.tv_nsec = 20000000};
        (void)nanosleep(&rest, NULL);
        put(place, (uint8_t)(turn % 100), EACH);
        sums = (struct sums){0};
        assert_int_equal(shoal_store_visit(place->store, sum, &sums), 0);
    }
    assert_true(sums.bytes <= 12 * EACH);
    assert_true(sums.entries >= 5);
}

static void uses_are_counted_for_all_who_use_the_store(void **state)
{
    struct place *place = *state;
    put(place, 0, 10);
    for (int i = 0; i < 3; i++)
        assert_int_equal(get(place, 0, 10), 0);
    pid_t child = fork();
    if (child == 0)
        _exit(get(place, 0, 10) != 0);
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
    open_place(place, NULL);
    assert_int_equal(get(place, 0, 10), 0);
    struct sums sums = {0};
    assert_int_equal(shoal_store_visit(place->store, sum, &sums), 0);
    assert_int_equal(sums.hits, 5);
    put(place, 0, 10);
    sums = (struct sums){0};
    assert_int_equal(shoal_store_visit(place->store, sum, &sums), 0);
    assert_int_equal(sums.hits, 0);
}

static void compressed_entries_are_small_and_come_back_whole(void **state)
{
    struct place *place = *state;
    static const size_t sizes[] = {0, 1, 511, 512, 5000, EACH, (size_t)9 << 20};
    for (uint32_t method = SHOAL_COMPRESS_ZSTD; method <= SHOAL_COMPRESS_LZ4; method++) {
        shoal_store_options options = {.compression = method};
        open_place(place, &options);
        for (uint8_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
            put(place, i, sizes[i]);
            assert_int_equal(get(place, i, sizes[i]), 0);
            assert_int_equal(get(place, i, sizes[i]), 0);
        }
        struct sums sums = {0};
        assert_int_equal(shoal_store_verify(place->store, 0, sum, &sums), 0);
        assert_int_equal(sums.damaged, 0);
        assert_true(sums.bytes < 200000);
        open_place(place, NULL); /* what is read may be any */
        for (uint8_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
            assert_int_equal(get(place, i, sizes[i]), 0);
    }
    shoal_store_options wrong = {.compression = 3};
    shoal_store *store;
    assert_int_equal(shoal_store_open(place->inner, &wrong, &store), -EINVAL);
}

static void what_does_not_become_smaller_is_kept_as_it_is(void **state)
{
    struct place *place = *state;
    shoal_store_options options = {.compression = SHOAL_COMPRESS_ZSTD};
    open_place(place, &options);
    uint8_t data[4000];
    uint64_t random = 1;
    for (size_t i = 0; i < sizeof data; i++)
        data[i] = (uint8_t)((random = random * 6364136223846793005u + 1442695040888963407u) >> 56);
    shoal_key key = key_of(0);
    shoal_part part = {data, sizeof data, 0};
    assert_int_equal(shoal_folder_put(place->folder, &key, &part, 1, NULL), 0);
    shoal_entry *entry;
    assert_int_equal(shoal_folder_get(place->folder, &key, &entry), 0);
    assert_int_equal(shoal_entry_part(entry, 0, &part), 0);
    assert_int_equal(part.size, sizeof data);
    assert_memory_equal(part.data, data, sizeof data);
    shoal_entry_numbers numbers;
    shoal_entry_about(entry, &numbers);
    assert_int_equal(numbers.size, 192 + sizeof data);
    shoal_entry_close(entry);
}

static void compression_works_by_itself_and_in_pieces(void **state)
{
    (void)state;
    size_t size = 300000, made;
    uint8_t *data = malloc(size), *back = malloc(size);
    for (size_t i = 0; i < size; i++)
        data[i] = (uint8_t)(i / 100);
    for (uint32_t method = SHOAL_COMPRESS_ZSTD; method <= SHOAL_COMPRESS_LZ4; method++) {
        size_t capacity = shoal_compress_bound(method, size);
        uint8_t *packed = malloc(capacity);
        assert_int_equal(shoal_compress(method, 0, data, size, packed, capacity, &made), 0);
        assert_true(made < size / 10);
        shoal_expander *expander;
        assert_int_equal(shoal_expander_create(method, &expander), 0);
        size_t from = 0, to = 0;
        int ended = 0;
        while (!ended) {
            size_t used, got, give = made - from < 13 ? made - from : 13, room = size - to < 999 ? size - to : 999;
            assert_int_equal(shoal_expander_run(expander, packed + from, give, &used, back + to, room, &got, &ended),
                             0);
            from += used;
            to += got;
            assert_true(ended || used != 0 || got != 0);
        }
        assert_int_equal(from, made);
        assert_int_equal(to, size);
        assert_memory_equal(data, back, size);
        size_t used, got;
        assert_int_equal(shoal_expander_run(expander, "no such frame", 13, &used, back, size, &got, &ended),
                         SHOAL_ECORRUPT);
        shoal_expander_close(expander);
        free(packed);
    }
    assert_int_equal(shoal_compress_bound(7, 1), 0);
    assert_int_equal(shoal_compress(7, 0, data, 1, back, size, &made), -EINVAL);
    free(data);
    free(back);
}

static void verifying_finds_what_was_damaged_behind_a_files_times(void **state)
{
    struct place *place = *state;
    char path[300];
    for (uint8_t i = 0; i < 4; i++) {
        put(place, i, EACH);
        assert_int_equal(get(place, i, EACH), 0);
    }
    (void)snprintf(path, sizeof path, "%s/01010101010101010101010101010101", shoal_folder_path(place->folder));
    int fd = open(path, O_RDWR);
    struct stat status;
    assert_int_equal(fstat(fd, &status), 0);
    assert_int_equal(pwrite(fd, "\xff", 1, 70000), 1);
    struct timespec times[2] = {status.st_atim, status.st_mtim};
    assert_int_equal(futimens(fd, times), 0);
    (void)close(fd);
    for (int remove = 0; remove < 2; remove++) {
        struct sums sums = {0};
        assert_int_equal(shoal_store_verify(place->store, remove, sum, &sums), 0);
        assert_int_equal(sums.entries, 4);
        assert_int_equal(sums.damaged, 1);
    }
    struct sums sums = {0};
    assert_int_equal(shoal_store_verify(place->store, 0, sum, &sums), 0);
    assert_int_equal(sums.entries, 3);
}

static void entries_and_folders_are_removed_by_their_names_on_disk(void **state)
{
    struct place *place = *state;
    shoal_key key = key_of(0);
    put(place, 0, 10);
    put(place, 1, 10);
    assert_int_equal(shoal_store_remove(place->store, "function", &key), 0);
    assert_int_equal(shoal_store_remove(place->store, "function", &key), -ENOENT);
    assert_int_equal(shoal_store_remove(place->store, "function", NULL), 0);
    assert_int_equal(access(shoal_folder_path(place->folder), F_OK), -1);
    assert_int_equal(shoal_store_remove(place->store, "../store", NULL), -EINVAL);
    assert_int_equal(shoal_store_remove(place->store, ".uses", NULL), -EINVAL);
    assert_int_equal(shoal_store_remove(place->store, "", NULL), -EINVAL);
}

/* ---- claims ---- */

static void one_at_a_time_has_a_claim(void **state)
{
    struct place *place = *state;
    shoal_key key = key_of(0), other = key_of(1);
    shoal_claim *first, *second;
    assert_int_equal(shoal_folder_claim(place->folder, &key, 0, &first), 0);
    assert_int_equal(shoal_folder_claim(place->folder, &key, 0, &second), -ETIMEDOUT);
    assert_int_equal(shoal_folder_claim(place->folder, &key, SHOAL_SECOND / 20, &second), -ETIMEDOUT);
    assert_int_equal(shoal_folder_claim(place->folder, &other, 0, &second), 0);
    shoal_claim_release(second);
    shoal_claim_release(first);
    assert_int_equal(shoal_folder_claim(place->folder, &key, 0, &first), 0);
    shoal_claim_release(first);
    shoal_claim_release(NULL);
}

static void a_dead_claimers_claim_goes_to_who_waits(void **state)
{
    struct place *place = *state;
    shoal_key key = key_of(0);
    int ready[2];
    assert_int_equal(pipe(ready), 0);
    pid_t child = fork();
    if (child == 0) {
        shoal_claim *claim;
        if (shoal_folder_claim(place->folder, &key, 0, &claim) == 0 && write(ready[1], "x", 1) == 1)
            for (;;)
                (void)pause();
        _exit(1);
    }
    char byte;
    assert_int_equal(read(ready[0], &byte, 1), 1);
    shoal_claim *claim;
    assert_int_equal(shoal_folder_claim(place->folder, &key, SHOAL_SECOND / 10, &claim), -ETIMEDOUT);
    assert_int_equal(kill(child, SIGKILL), 0);
    assert_int_equal(shoal_folder_claim(place->folder, &key, 10 * SHOAL_SECOND, &claim), 0);
    shoal_claim_release(claim);
    assert_int_equal(waitpid(child, NULL, 0), child);
    (void)close(ready[0]);
    (void)close(ready[1]);
}

static void a_child_of_fork_has_none_of_its_parents_claims(void **state)
{
    struct place *place = *state;
    shoal_key key = key_of(0);
    shoal_claim *claim;
    assert_int_equal(shoal_folder_claim(place->folder, &key, 0, &claim), 0);
    int ready[2];
    assert_int_equal(pipe(ready), 0);
    pid_t child = fork();
    if (child == 0) {
        (void)write(ready[1], "x", 1);
        for (;;)
            (void)pause();
    }
    char byte;
    assert_int_equal(read(ready[0], &byte, 1), 1);
    shoal_claim_release(claim);
    assert_int_equal(shoal_folder_claim(place->folder, &key, 0, &claim), 0);
    shoal_claim_release(claim);
    (void)kill(child, SIGKILL);
    assert_int_equal(waitpid(child, NULL, 0), child);
    (void)close(ready[0]);
    (void)close(ready[1]);
}

struct calls {
    struct place *place;
    _Atomic int count, wrong;
};

static int slow_square(const void *input, size_t input_size, void *output, size_t output_size, void *context)
{
    struct calls *calls = context;
    struct timespec rest = {.tv_nsec = 200000000};
    assert_int_equal(input_size, output_size);
    (void)atomic_fetch_add(&calls->count, 1);
    (void)nanosleep(&rest, NULL);
    *(int *)output = *(const int *)input * *(const int *)input;
    return 0;
}

static void *call_slow_square(void *context)
{
    struct calls *calls = context;
    int input = 7, output = 0;
    if (shoal_memo_call(calls->place->store, "square", slow_square, calls, &input, sizeof input, &output, sizeof output,
                        NULL) != 0 ||
        output != 49)
        (void)atomic_fetch_add(&calls->wrong, 1);
    return NULL;
}

static void of_several_threads_that_miss_the_same_memo_one_computes(void **state)
{
    struct calls calls = {.place = *state};
    pthread_t threads[5];
    for (size_t i = 0; i < 5; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, call_slow_square, &calls), 0);
    for (size_t i = 0; i < 5; i++)
        (void)pthread_join(threads[i], NULL);
    assert_int_equal(atomic_load(&calls.count), 1);
    assert_int_equal(atomic_load(&calls.wrong), 0);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(reducing_removes_what_was_used_longest_ago_and_readers_keep_what_they_have),
        TEST(a_limit_is_kept_in_the_background),
        TEST(uses_are_counted_for_all_who_use_the_store),
        TEST(compressed_entries_are_small_and_come_back_whole),
        TEST(what_does_not_become_smaller_is_kept_as_it_is),
        TEST(compression_works_by_itself_and_in_pieces),
        TEST(verifying_finds_what_was_damaged_behind_a_files_times),
        TEST(entries_and_folders_are_removed_by_their_names_on_disk),
        TEST(one_at_a_time_has_a_claim),
        TEST(a_dead_claimers_claim_goes_to_who_waits),
        TEST(a_child_of_fork_has_none_of_its_parents_claims),
        TEST(of_several_threads_that_miss_the_same_memo_one_computes),
    };
    return cmocka_run_group_tests_name("store limits", tests, NULL, NULL);
}
