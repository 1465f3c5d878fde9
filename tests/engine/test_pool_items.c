/* test_pool_items.c: the form of items on their way through a task: words in runs, and all others; and that no bytes,
 * of whatever content, lead a reader out of its memory.
 */
#include "helpers.h"

#include "pool/item.h"

#define MOST 40u /* bytes of an item */
#define ITEMS 300u

static int seed(void **state)
{
    (void)seed_random();
    return start_clock(state);
}

static uint32_t pick_below(uint32_t limit)
{
    return (uint32_t)random_below(limit);
}

struct example {
    uint8_t bytes[MOST];
    uint32_t size, kind;
};

static void make_example(struct example *example, const struct example *before)
{
    const bool as_before = before != NULL && pick_below(3) > 0;
    example->size = as_before ? before->size : pick_below(2) > 0 ? 8 : pick_below(MOST + 1);
    example->kind = as_before ? before->kind : pick_below(3) == 0 ? pick_below(SHOAL_ITEM_KINDS) : 0;
    for (uint32_t i = 0; i < example->size; i++)
        example->bytes[i] = (uint8_t)pick_below(256);
}

static void check_item(const shoal_item *item, const struct example *expected)
{
    assert_int_equal(item->size, expected->size);
    assert_int_equal(item->kind, expected->kind);
    assert_int_equal(item->block_count, 0);
    assert_memory_equal(item->data, expected->bytes, expected->size);
}

/* Give the examples to a batch, sometimes several words at once. */
static void fill(shoal_batch *batch, const struct example *examples, uint32_t count)
{
    for (uint32_t i = 0; i < count;) {
        uint64_t words[8];
        uint32_t held = 0;
        while (held < 8 && i + held < count && examples[i + held].size == 8 &&
               examples[i + held].kind == examples[i].kind) {
            memcpy(&words[held], examples[i + held].bytes, 8);
            held++;
        }
        if (held > 0 && pick_below(2) > 0) {
            held = 1 + pick_below(held);
            assert_int_equal(shoal_batch_add_words(batch, examples[i].kind, words, held), 0);
            i += held;
            continue;
        }
        const shoal_item item = {.data = examples[i].bytes, .size = examples[i].size, .kind = examples[i].kind};
        assert_int_equal(shoal_batch_add(batch, &item), 0);
        i++;
    }
    assert_int_equal(shoal_batch_count(batch), count);
}

/* The next item, by the short way for words where there is one and it is picked. */
static void take(shoal_task *task, const struct example *expected, shoal_item *item, uint64_t *word)
{
    uint32_t kind;
    if (pick_below(2) > 0 && shoal_task_next_word(task, &kind, word) == 0)
        *item = (shoal_item){.data = word, .size = sizeof *word, .kind = kind};
    else
        assert_int_equal(shoal_task_next(task, item), 0);
    check_item(item, expected);
}

static void answer(shoal_task *task, const shoal_item *item)
{
    uint64_t word;
    if (item->size != sizeof word || pick_below(2) == 0) {
        assert_int_equal(shoal_task_answer(task, item), 0);
        return;
    }
    memcpy(&word, item->data, sizeof word);
    assert_int_equal(shoal_task_answer_word(task, item->kind, word), 0);
}

/* Answer `count` items with themselves. */
static void serve(shoal_worker *worker, const struct example *examples, uint32_t from, uint32_t count)
{
    shoal_task *task;
    assert_int_equal(shoal_worker_claim(worker, 0, &task), 0);
    shoal_item item;
    uint64_t word;
    for (uint32_t i = from; i < from + count; i++) {
        take(task, &examples[i], &item, &word);
        answer(task, &item);
    }
    assert_int_equal(shoal_task_answer_word(task, 0, 0), -EINVAL); /* nothing is held */
    shoal_task_finish(task);
}

static void check_results(shoal_completion *completion, const struct example *examples)
{
    const uint32_t end = completion->finished;
    for (uint32_t i = completion->first; i < end;) {
        shoal_item item = {.size = 8};
        uint32_t count = pick_below(2) == 0 ? 0 : shoal_completion_words(completion, &item.kind, &item.data);
        for (; count > 0; count--) {
            assert_true(i < end);
            check_item(&item, &examples[i++]);
            item.data = (const uint8_t *)item.data + 8;
        }
        if (i < end && shoal_completion_next(completion, &item) == 0)
            check_item(&item, &examples[i++]);
    }
    shoal_item item;
    assert_int_equal(shoal_completion_next(completion, &item), -ENODATA);
}

static void items_of_all_sizes_and_kinds_go_through_a_task_and_back(void **state)
{
    (void)state;
    shoal_worker *worker;
    shoal_pool *pool = open_pool_with_worker(&worker);
    shoal_batch *batch;
    assert_int_equal(shoal_batch_create(&batch), 0);
    static struct example examples[ITEMS];
    for (int round = 0; round < 300; round++) {
        const uint32_t count = 1 + pick_below(pick_below(2) > 0 ? ITEMS : 12);
        for (uint32_t i = 0; i < count; i++)
            make_example(&examples[i], i > 0 ? &examples[i - 1] : NULL);
        shoal_batch_clear(batch, NULL);
        fill(batch, examples, count);
        assert_int_equal(shoal_pool_submit(pool, batch, &(shoal_task_options){.tag = 1}), 0);
        /* Given out again from somewhere in the middle, maybe of a run. */
        const uint32_t first = pick_below(count);
        serve(worker, examples, 0, first);
        shoal_completion completion;
        assert_int_equal(shoal_pool_collect(pool, &completion), 0);
        assert_int_equal(completion.finished, first);
        check_results(&completion, examples);
        const uint32_t from = first + pick_below(count - first);
        assert_int_equal(shoal_pool_resume(pool, &completion, from), 0);
        serve(worker, examples, from, count - from);
        assert_int_equal(shoal_pool_collect(pool, &completion), 0);
        assert_int_equal(completion.outcome, 0);
        assert_int_equal(completion.first, from);
        assert_int_equal(completion.finished, count);
        check_results(&completion, examples);
        shoal_pool_release(pool, &completion);
    }
    shoal_worker_close(worker);
    shoal_batch_close(batch);
    shoal_pool_close(pool);
}

static void what_no_item_can_be_is_refused(void **state)
{
    (void)state;
    shoal_batch *batch;
    const uint64_t word = 1;
    assert_int_equal(shoal_batch_create(&batch), 0);
    assert_int_equal(shoal_batch_add(batch, &(shoal_item){.data = &word, .size = (size_t)INT32_MAX + 1}), -EMSGSIZE);
    assert_int_equal(shoal_batch_add(batch, &(shoal_item){.block_count = SHOAL_ITEM_BLOCKS + 1}), -EMSGSIZE);
    assert_int_equal(shoal_batch_add(batch, &(shoal_item){.kind = SHOAL_ITEM_KINDS}), -EINVAL);
    assert_int_equal(shoal_batch_add_words(batch, SHOAL_ITEM_KINDS, &word, 1), -EINVAL);
    assert_int_equal(shoal_batch_add_words(batch, 0, &word, 0), -EINVAL);
    assert_int_equal(shoal_batch_count(batch), 0);
    assert_int_equal(shoal_batch_size(batch), 0);
    shoal_batch_close(batch);
}

static void no_bytes_lead_a_reader_out_of_its_memory(void **state)
{
    (void)state;
    for (int round = 0; round < 200000; round++) {
        /* Of its own, and of that size: a sanitizer sees the first byte past it. */
        const size_t size = pick_below(96);
        uint8_t *bytes = malloc(size > 0 ? size : 1);
        assert_non_null(bytes);
        for (size_t i = 0; i < size; i++)
            bytes[i] = pick_below(3) > 0 ? 0 : (uint8_t)pick_below(256);
        if (size >= 8 && pick_below(2) > 0) {
            const struct item_header header = {pick_below(3) > 0 ? 8 : pick_below(64), ITEM_RUN | pick_below(20)};
            memcpy(bytes, &header, sizeof header);
        }
        struct item_reader reader = {.at = bytes, .end = bytes + size};
        shoal_item item;
        for (int step = 0; step < 40; step++) {
            if (pick_below(4) == 0) {
                (void)item_skip_run(&reader, pick_below(8));
            } else if (item_next(&reader, &item) != 0) {
                break;
            } else {
                const uint8_t *data = item.data;
                assert_true(data >= bytes && item.size <= (size_t)(bytes + size - data));
                assert_true(item.block_count == 0 || (const uint8_t *)(item.blocks + item.block_count) <= bytes + size);
                assert_true(item.kind < SHOAL_ITEM_KINDS);
            }
            assert_true(reader.at >= bytes && reader.at <= reader.end);
        }
        free(bytes);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(items_of_all_sizes_and_kinds_go_through_a_task_and_back, seed),
        cmocka_unit_test_setup(what_no_item_can_be_is_refused, seed),
        cmocka_unit_test_setup(no_bytes_lead_a_reader_out_of_its_memory, seed),
    };
    return cmocka_run_group_tests_name("pool items", tests, NULL, NULL);
}
