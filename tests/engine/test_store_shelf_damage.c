/* test_store_shelf_damage.c: what is done to a shelf's file by others: changed bytes, cuts, other things in its place.
 */
#include "shelf_place.h"

#include <sys/syscall.h>

/* Stands before the C library's: while a reader is about to look at a shelf's head another appends an entry, so fast
 * that no look comes first. */
static struct place *appender;
static unsigned appended;
ssize_t pread(int fd, void *data, size_t size, off_t offset)
{
    struct place *place = appender;
    if (place != NULL && offset == 0 && size == sizeof(struct shelf_head)) {
        shoal_key key = key_of(1000 + appended);
        appender = NULL;
        assert_int_equal(put_pattern(place->folder, &key, SMALL), 0);
        appended++;
        appender = place;
    }
    return syscall(SYS_pread64, fd, data, size, offset);
}

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

static void a_cut_of_which_nobody_was_told_outlives_the_last_entry(void **state)
{
    struct place *place = *state;
    enum { COUNT = 20 };
    shoal_key lost = key_of(COUNT - 1), other = key_of(COUNT);
    for (int turn = 0; turn < 4; turn++) {
        put_all(place, COUNT, 40);
        assert_int_equal(truncate(place->shelf, size_of(place->shelf) - 64), 0);
        if (turn % 2 == 0)
            reopen_place(place, 0);
        shoal_store_limits limits = {.bytes = UINT64_MAX, .items = 0};
        shoal_store_reduced done;
        if (turn < 2)
            assert_int_equal(shoal_store_reduce(place->store, &limits, &done), 0);
        for (unsigned i = 0; turn >= 2 && i < COUNT - 1; i++) {
            shoal_key key = key_of(i);
            assert_int_equal(shoal_folder_remove(place->folder, &key), 0);
        }
        reopen_place(place, 0);
        assert_int_equal(get_pattern(place->folder, &lost, NULL), SHOAL_ECORRUPT);
        assert_int_equal(put_pattern(place->folder, &lost, 40), 0);
        assert_int_equal(get_pattern(place->folder, &other, NULL), -ENOENT);
        assert_int_equal(verify(place, 0).damaged, 0);
        assert_int_equal(shoal_folder_remove(place->folder, &lost), 0);
        assert_int_equal(size_of(place->shelf), -1); /* and then it goes */
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
static void appending_is_not_taken_for_a_cut_however_fast_it_is(void **state)
{
    struct place *place = *state, other = *place;
    enum { COUNT = 3 };
    shoal_key missing = key_of(COUNT);
    put_all(place, COUNT, 40);
    open_place(&other, 0);
    reopen_place(place, 0);
    appended = 0;
    appender = &other;
    int error = get_pattern(place->folder, &missing, NULL);
    appender = NULL;
    assert_int_not_equal(appended, 0);
    assert_int_equal(error, -ENOENT);
    assert_int_equal(verify(place, 0).damaged, 0);
    assert_int_equal(truncate(place->shelf, size_of(place->shelf) - 64), 0);
    assert_int_equal(get_pattern(place->folder, &missing, NULL), SHOAL_ECORRUPT);
    shoal_folder_close(other.folder);
    shoal_store_close(other.store);
}

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

/* A block of the disk that holds something else: several records are gone, keys and all. */
static void what_was_overwritten_says_so_until_it_is_replaced(void **state)
{
    struct place *place = *state;
    enum { COUNT = 12 };
    uint8_t *data;
    put_all(place, COUNT, 40);
    size_t size = load_file(place->shelf, &data), each = (size - sizeof(struct shelf_head)) / COUNT;
    for (size_t length = 64; length <= 4 * each; length += 64) {
        for (size_t from = sizeof(struct shelf_head); from + length <= size; from += 64) {
            size_t first = (from - sizeof(struct shelf_head)) / each;
            size_t end = (from + length - sizeof(struct shelf_head) + each - 1) / each;
            store_file(place->shelf, data, size);
            reopen_place(place, 0);
            assert_int_equal(find_all(place, COUNT, 40), COUNT);
            uint8_t *changed = malloc(size);
            assert_non_null(changed);
            memcpy(changed, data, size);
            memset(changed + from, from % 128 == 0 ? 0xff : 0xe5, length);
            store_file(place->shelf, changed, size);
            free(changed);
            if (from % 192 == 0)
                reopen_place(place, 0);
            for (unsigned i = 0; i < COUNT; i++) {
                shoal_key key = key_of(i);
                assert_int_equal(get_pattern(place->folder, &key, NULL), i < first || i >= end ? 0 : SHOAL_ECORRUPT);
            }
            assert_true(verify(place, 0).damaged >= 1);
            shoal_key key = key_of((unsigned)first), absent = key_of(COUNT);
            (void)get_pattern(place->folder, &key, NULL);
            if (from % 3 == 0)
                assert_true(verify(place, 1).damaged >= 1);
            else
                assert_int_equal(put_pattern(place->folder, &key, from % 3 == 1 ? 10 : MIDDLE), 0);
            for (unsigned i = (unsigned)first + 1; i < end; i++) { /* that alone may have its key still */
                key = key_of(i);
                int error = get_pattern(place->folder, &key, NULL);
                assert_true(error == -ENOENT || (error == SHOAL_ECORRUPT && from % 3 != 0));
                assert_int_equal(put_pattern(place->folder, &key, 40), 0);
            }
            reopen_place(place, 0);
            assert_int_equal(get_pattern(place->folder, &absent, NULL), -ENOENT);
            assert_int_equal(verify(place, 0).damaged, 0);
            key = key_of((unsigned)first);
            (void)shoal_folder_remove(place->folder, &key);
        }
    }
    free(data);
}

static void damage_of_which_nobody_was_told_outlives_puts_and_a_new_file(void **state)
{
    struct place *place = *state;
    enum { COUNT = 40 };
    static const struct {
        size_t from, length;
    } damages[] = {{0, 64}, {0, 1024}, {32, 1}};
    shoal_key lost = key_of(0), other = key_of(COUNT);
    for (size_t turn = 0; turn < sizeof damages / sizeof *damages; turn++) {
        uint8_t *data;
        put_all(place, COUNT, 40);
        size_t size = load_file(place->shelf, &data), at = sizeof(struct shelf_head);
        const uint8_t *first = data + at; /* the first that is whole: key_of(0) was put last, or first */
        while (memcmp(((const struct record_header *)(const void *)first)->key, lost.bytes, sizeof lost.bytes) != 0 ||
               ((const struct record_header *)(const void *)first)->size == 0)
            first += ((const struct record_header *)(const void *)first)->span;
        at = (size_t)(first - data);
        size_t from = at + damages[turn].from, length = damages[turn].length;
        memset(data + from, 0x5e, from + length < size ? length : size - from);
        store_file(place->shelf, data, size);
        free(data);
        reopen_place(place, 0);
        int before = open_file(place->shelf);
        for (unsigned i = 0; i < 1000; i++)
            assert_int_equal(put_pattern(place->folder, &other, i), 0);
        assert_false(is_file_at(before, place->shelf));
        (void)close(before);
        assert_int_equal(get_pattern(place->folder, &other, NULL), 0);
        assert_int_equal(get_pattern(place->folder, &lost, NULL), SHOAL_ECORRUPT);
        assert_int_equal(put_pattern(place->folder, &lost, 40), 0);
        reopen_place(place, 0);
        shoal_key never = key_of(COUNT + 1);
        assert_int_equal(get_pattern(place->folder, &never, NULL), -ENOENT);
        assert_int_equal(verify(place, 0).damaged, 0);
    }
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

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(a_changed_byte_costs_one_entry_at_most),
        TEST(a_shelf_that_is_cut_short_says_so_until_it_is_replaced),
        TEST(a_cut_of_which_nobody_was_told_outlives_puts_limits_and_a_new_file),
        TEST(a_cut_of_which_nobody_was_told_outlives_the_last_entry),
        TEST(another_who_repairs_a_shelf_ends_what_a_handle_says_of_it),
        TEST(a_writer_killed_before_it_told_the_length_leaves_nothing_to_tell),
        TEST(appending_is_not_taken_for_a_cut_however_fast_it_is),
        TEST(another_versions_shelf_is_told_and_replaced),
        TEST(what_is_no_shelf_is_told_and_replaced),
        TEST(what_was_overwritten_says_so_until_it_is_replaced),
        TEST(damage_of_which_nobody_was_told_outlives_puts_and_a_new_file),
        TEST(what_a_value_holds_never_becomes_an_entry),
    };
    return cmocka_run_group_tests_name("store_shelf_damage", tests, NULL, NULL);
}
