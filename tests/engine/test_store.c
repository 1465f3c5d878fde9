/* test_store.c: hashing, the store and the memo as their users see them, while nothing goes wrong. */
#include "store_place.h"

/* ---- hashing ---- */

static void a_digest_does_not_depend_on_how_the_bytes_are_cut(void **state)
{
    (void)state;
    size_t size = (size_t)40 << 20; /* several threads, and a last chunk that is not full */
    size -= 12345;
    uint8_t *data = malloc(size), whole[16], pieces[16];
    for (size_t i = 0; i < size; i++)
        data[i] = (uint8_t)(i * 2654435761u >> 13);
    shoal_digest(data, size, whole);
    unsigned seed = (unsigned)time(NULL);
    print_message("seed %u\n", seed);
    srand(seed);
    for (int turn = 0; turn < 3; turn++) {
        struct iovec cut[200];
        size_t count = 0, at = 0;
        while (at < size) {
            size_t here = count == 199 ? size - at : (size_t)rand() % 500000;
            here = here < size - at ? here : size - at;
            cut[count++] = (struct iovec){data + at, here};
            at += here;
        }
        hash_pieces(cut, count, pieces);
        assert_memory_equal(whole, pieces, 16);
    }
    data[size / 2] ^= 1;
    shoal_digest(data, size, pieces);
    assert_memory_not_equal(whole, pieces, 16);
    free(data);
}

static void a_stream_and_a_digest_of_few_bytes_agree_and_equal_the_published_value(void **state)
{
    (void)state;
    /* XXH3-128 of no bytes, canonical, as xxh128sum prints it */
    static const uint8_t nothing[16] = {0x99, 0xaa, 0x06, 0xd3, 0x01, 0x47, 0x98, 0xd8,
                                        0x60, 0x01, 0xc3, 0x24, 0x46, 0x8d, 0x49, 0x7f};
    uint8_t one[16], two[16];
    shoal_digest(NULL, 0, one);
    assert_memory_equal(one, nothing, 16);
    shoal_hash *hash;
    assert_int_equal(shoal_hash_create(&hash), 0);
    shoal_hash_digest(hash, one);
    assert_memory_equal(one, nothing, 16);
    shoal_hash_update(hash, "one fish", 8);
    shoal_hash_update(hash, " two fish", 9);
    shoal_hash_digest(hash, one);
    shoal_digest("one fish two fish", 17, two);
    assert_memory_equal(one, two, 16);
    shoal_hash_reset(hash);
    shoal_hash_digest(hash, one);
    assert_memory_equal(one, nothing, 16);
    shoal_hash_close(hash);
}

/* A digest may be made with wider vectors than a stream's. */
static void a_stream_and_a_digest_agree_on_any_size_and_alignment(void **state)
{
    (void)state;
    uint8_t *data = malloc(HASH_CHUNK + 64), one[16], two[16];
    for (size_t i = 0; i < HASH_CHUNK + 64; i++)
        data[i] = (uint8_t)(i * 2654435761u >> 11);
    shoal_hash *hash;
    assert_int_equal(shoal_hash_create(&hash), 0);
    for (size_t size = 0; size <= HASH_CHUNK; size = size < 2100 ? size + 1 : size * 17 / 13) {
        const uint8_t *start = data + size % 64;
        shoal_digest(start, size, one);
        shoal_hash_reset(hash);
        shoal_hash_update(hash, start, size);
        shoal_hash_digest(hash, two);
        assert_memory_equal(one, two, 16);
    }
    shoal_hash_close(hash);
    free(data);
}

/* ---- plain use ---- */

static void what_is_put_is_what_is_got(void **state)
{
    struct place *place = *state;
    static const size_t sizes[] = {0, 1, 63, 64, 65, 3000, 65000, 65300, 65536, 70000, LARGE, 5000001, 0};
    assert_int_equal(get_pattern(place->folder, &place->key, NULL), -ENOENT);
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        size_t size;
        assert_int_equal(put_pattern(place->folder, &place->key, sizes[i]), 0);
        assert_int_equal(get_pattern(place->folder, &place->key, &size), 0);
        assert_int_equal(size, sizes[i]);
    }
    assert_int_equal(files_below(place->path), 1);
    assert_int_equal(shoal_folder_remove(place->folder, &place->key), 0);
    assert_int_equal(shoal_folder_remove(place->folder, &place->key), -ENOENT);
    assert_int_equal(get_pattern(place->folder, &place->key, NULL), -ENOENT);
}

static void an_entry_says_when_it_was_made_and_at_what_cost(void **state)
{
    struct place *place = *state;
    shoal_entry *entry;
    shoal_entry_numbers numbers;
    assert_int_equal(put_pattern(place->folder, &place->key, 10), 0);
    assert_int_equal(shoal_folder_get(place->folder, &place->key, &entry), 0);
    shoal_entry_about(entry, &numbers);
    shoal_entry_close(entry);
    assert_int_equal(numbers.cost, 42);
    assert_int_equal(numbers.parts, 2);
    assert_int_equal(numbers.tag[2], 7);
    int64_t age = (int64_t)time(NULL) - numbers.created / SHOAL_SECOND;
    assert_in_range((uint64_t)(age + 2), 0, 60);
}

static void many_parts_come_back_in_order_small_ones_aligned_and_large_ones_on_pages(void **state)
{
    struct place *place = *state;
    enum { PARTS = 500 };
    shoal_part parts[PARTS], part;
    static uint8_t data[200000];
    for (uint32_t i = 0; i < PARTS; i++)
        parts[i] = (shoal_part){data, i % 97 == 0 ? 100000 : i % 5, i};
    assert_int_equal(shoal_folder_put(place->folder, &place->key, parts, PARTS, NULL), 0);
    shoal_entry *entry;
    assert_int_equal(shoal_folder_get(place->folder, &place->key, &entry), 0);
    for (uint32_t i = 0; i < PARTS; i++) {
        assert_int_equal(shoal_entry_part(entry, i, &part), 0);
        assert_int_equal(part.kind, i);
        assert_int_equal(part.size, parts[i].size);
        assert_int_equal((uintptr_t)part.data % (part.size >= 65536 ? 4096 : 64), 0);
    }
    shoal_entry_close(entry);
}

static void writing_to_what_was_got_changes_nothing_on_disk(void **state)
{
    struct place *place = *state;
    static const size_t sizes[] = {100, LARGE};
    for (size_t i = 0; i < 2; i++) {
        shoal_entry *entry;
        shoal_part part;
        assert_int_equal(put_pattern(place->folder, &place->key, sizes[i]), 0);
        assert_int_equal(shoal_folder_get(place->folder, &place->key, &entry), 0);
        assert_int_equal(shoal_entry_part(entry, 1, &part), 0);
        memset((void *)(uintptr_t)part.data, 0xee, part.size);
        assert_int_equal(get_pattern(place->folder, &place->key, NULL), 0);
        shoal_entry_close(entry);
        assert_int_equal(get_pattern(place->folder, &place->key, NULL), 0);
    }
}

static void a_value_that_was_got_outlives_its_file_and_its_store(void **state)
{
    struct place *place = *state;
    shoal_entry *entry;
    shoal_part part;
    assert_int_equal(put_pattern(place->folder, &place->key, LARGE), 0);
    assert_int_equal(shoal_folder_get(place->folder, &place->key, &entry), 0);
    assert_int_equal(shoal_store_clear(place->store), 0);
    assert_int_equal(files_below(place->path), 0);
    shoal_folder_close(place->folder);
    shoal_store_close(place->store);
    assert_int_equal(shoal_entry_part(entry, 1, &part), 0);
    for (size_t i = 0; i < part.size; i++)
        assert_int_equal(((const uint8_t *)part.data)[i], pattern(&place->key, LARGE, i));
    shoal_entry_close(entry);
    open_place(place, 0);
}

static void any_name_has_a_folder_of_its_own(void **state)
{
    struct place *place = *state;
    char longest[700], longer[701];
    memset(longest, 'x', sizeof longest);
    longest[699] = '\0';
    memcpy(longer, longest, 699);
    (void)strcpy(longer + 699, "y");
    const char *names[] = {"a.b",   "a/b",         "../../escape", ".",    "..",       ".hidden",
                           "a%2Fb", "caf\xc3\xa9", longest,        longer, "tab\there"};
    size_t count = sizeof names / sizeof *names;
    for (size_t i = 0; i < count; i++) {
        shoal_folder *folder;
        assert_int_equal(shoal_folder_open(place->store, names[i], &folder), 0);
        assert_int_equal(get_pattern(folder, &place->key, NULL), -ENOENT);
        assert_int_equal(put_pattern(folder, &place->key, i), 0);
        shoal_folder_close(folder);
    }
    for (size_t i = 0; i < count; i++) {
        shoal_folder *folder;
        size_t size;
        assert_int_equal(shoal_folder_open(place->store, names[i], &folder), 0);
        assert_int_equal(get_pattern(folder, &place->key, &size), 0);
        assert_int_equal(size, i);
        shoal_folder_close(folder);
    }
    char inner[128];
    (void)snprintf(inner, sizeof inner, "%s/store", place->path);
    assert_int_equal(files_below(inner), count);
    assert_int_equal(shoal_folder_open(place->store, "", &place->folder), -EINVAL);
}

static int count_known_entry(const char *folder, const shoal_key *key, const shoal_entry_numbers *numbers, int error,
                             void *context)
{
    assert_true(key->bytes[0] < 20);
    return count_entry(folder, key, numbers, error, context);
}

static void a_visit_sees_each_entry_and_a_clear_leaves_what_is_not_ours(void **state)
{
    struct place *place = *state;
    char command[600];
    struct seen seen = {0};
    for (uint8_t i = 0; i < 20; i++) {
        place->key.bytes[0] = i;
        assert_int_equal(put_pattern(place->folder, &place->key, i % 2 == 0 ? SMALL : MIDDLE), 0);
    }
    (void)snprintf(command, sizeof command,
                   "cd %s && touch notes.txt ../readme && mkdir ../other && touch ../other/file && truncate -s 50 07*",
                   shoal_folder_path(place->folder));
    run(command);
    assert_int_equal(shoal_store_visit(place->store, count_known_entry, &seen), 0);
    assert_int_equal(seen.entries, 20);
    assert_int_equal(seen.damaged, 1);
    assert_true(seen.bytes > (uint64_t)19 * 200);
    assert_int_equal(shoal_store_clear(place->store), 0);
    assert_int_equal(files_below(place->path), 3);
    seen = (struct seen){0};
    assert_int_equal(shoal_store_visit(place->store, count_known_entry, &seen), 0);
    assert_int_equal(seen.entries, 0);
    assert_int_equal(put_pattern(place->folder, &place->key, 100), 0);
    assert_int_equal(shoal_folder_clear(place->folder), 0);
    assert_int_equal(get_pattern(place->folder, &place->key, NULL), -ENOENT);
}

/* ---- memo ---- */

struct calls {
    int count, code;
};

static int add(const void *input, size_t input_size, void *output, size_t output_size, void *context)
{
    struct calls *calls = context;
    calls->count++;
    const double *numbers = input;
    double sum = 0;
    for (size_t i = 0; i < input_size / sizeof *numbers; i++)
        sum += numbers[i];
    assert_int_equal(output_size, sizeof sum);
    memcpy(output, &sum, sizeof sum);
    return calls->code;
}

static void a_memo_computes_once_for_each_name_and_input(void **state)
{
    struct place *place = *state;
    struct calls calls = {0, 0};
    double input[3] = {1, 2, 3.5}, output = 0;
    int hit = -1;
    for (int i = 0; i < 3; i++) {
        output = 0;
        assert_int_equal(
            shoal_memo_call(place->store, "add-1", add, &calls, input, sizeof input, &output, sizeof output, &hit), 0);
        assert_true(output == 6.5);
        assert_int_equal(hit, i != 0);
        assert_int_equal(calls.count, 1);
    }
    assert_int_equal(shoal_memo_call(place->store, "add-1", add, &calls, NULL, 8, &output, sizeof output, NULL),
                     -EINVAL);
    assert_int_equal(shoal_memo_call(place->store, "add-1", add, &calls, input, 8, NULL, 8, NULL), -EINVAL);
    assert_int_equal(
        shoal_memo_call(place->store, "add-2", add, &calls, input, sizeof input, &output, sizeof output, NULL), 0);
    assert_int_equal(calls.count, 2);
    input[1] = -2;
    assert_int_equal(
        shoal_memo_call(place->store, "add-1", add, &calls, input, sizeof input, &output, sizeof output, &hit), 0);
    assert_int_equal(hit, 0);
    assert_true(output == 2.5);
}

static void a_memo_does_not_keep_what_failed(void **state)
{
    struct place *place = *state;
    struct calls calls = {0, -EDOM};
    double input = 1, output;
    for (int i = 1; i < 3; i++) {
        assert_int_equal(
            shoal_memo_call(place->store, "add", add, &calls, &input, sizeof input, &output, sizeof output, NULL),
            -EDOM);
        assert_int_equal(calls.count, i);
    }
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(a_digest_does_not_depend_on_how_the_bytes_are_cut),
        TEST(a_stream_and_a_digest_of_few_bytes_agree_and_equal_the_published_value),
        TEST(a_stream_and_a_digest_agree_on_any_size_and_alignment),
        TEST(what_is_put_is_what_is_got),
        TEST(an_entry_says_when_it_was_made_and_at_what_cost),
        TEST(many_parts_come_back_in_order_small_ones_aligned_and_large_ones_on_pages),
        TEST(writing_to_what_was_got_changes_nothing_on_disk),
        TEST(a_value_that_was_got_outlives_its_file_and_its_store),
        TEST(any_name_has_a_folder_of_its_own),
        TEST(a_visit_sees_each_entry_and_a_clear_leaves_what_is_not_ours),
        TEST(a_memo_computes_once_for_each_name_and_input),
        TEST(a_memo_does_not_keep_what_failed),
    };
    return cmocka_run_group_tests_name("store", tests, NULL, NULL);
}
