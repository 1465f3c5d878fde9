/* test_loan.c: blocks that are lent as private memory, through forks and deaths. */
#include "heap_blocks.h"

#include <fcntl.h>

#include "memory/heap.h"

#define MEGABYTE ((size_t)1 << 20)

static bool all_bytes_are(const uint8_t *at, size_t size, uint8_t value)
{
    for (size_t i = 0; i < size; i++) {
        if (at[i] != value)
            return false;
    }
    return true;
}

static void a_loan_shows_the_block_and_frees_it_when_it_is_returned(void **state)
{
    (void)state;
    shoal_heap *heap = make_heap(16 * MEGABYTE);
    shoal_block block = take(heap, MEGABYTE, 1), small = take(heap, 60000, 1);
    shoal_loan *loan, *none = NULL;
    assert_int_equal(shoal_heap_lend(heap, small, &none), -EINVAL);
    assert_null(none);
    assert_int_equal(shoal_heap_lend(heap, block, &loan), 0);
    assert_ptr_equal(shoal_loan_pointer(loan), shoal_heap_pointer(heap, block, NULL));
    shoal_loan_return(loan);
    expect_no_block(heap, block);
    assert_int_equal(count(heap).blocks, 1);
    shoal_loan_return(NULL);
    shoal_heap_release(heap);
}

static void a_loan_keeps_the_heap_mapped(void **state)
{
    (void)state;
    shoal_heap *heap = make_heap(16 * MEGABYTE);
    shoal_loan *loan;
    assert_int_equal(shoal_heap_lend(heap, take(heap, MEGABYTE, 1), &loan), 0);
    shoal_heap_release(heap);
    memset(shoal_loan_pointer(loan), 1, MEGABYTE);
    shoal_loan_return(loan);
}

struct lent {
    shoal_heap *heap;
    shoal_block block;
    shoal_loan *loan;
    _Atomic int *step; /* whose turn it is */
};

static void await_step(_Atomic int *step, int value)
{
    while (atomic_load(step) != value)
        sleep_for(SHOAL_MILLISECOND);
}

static int keep_own_contents(void *context)
{
    struct lent *lent = context;
    uint8_t *at = shoal_loan_pointer(lent->loan);
    CHECK(all_bytes_are(at, MEGABYTE, 0x11)); /* as they were at the fork */
    memset(at, 0x22, MEGABYTE / 2);
    atomic_store(lent->step, 1);
    await_step(lent->step, 2); /* the parent wrote meanwhile */
    CHECK(all_bytes_are(at, MEGABYTE / 2, 0x22));
    CHECK(all_bytes_are(at + MEGABYTE / 2, MEGABYTE / 2, 0x11));
    shoal_loan_return(lent->loan); /* does nothing here */
    CHECK(all_bytes_are(at, MEGABYTE / 2, 0x22));
    return 0;
}

static void a_fork_gives_parent_and_child_a_lent_block_each(void **state)
{
    (void)state;
    struct lent lent = {.heap = make_heap(16 * MEGABYTE), .step = shared_memory(4096)};
    shoal_heap *elsewhere; /* another mapping, as another process has one */
    assert_int_equal(shoal_heap_attach(shoal_heap_fd(lent.heap), &elsewhere), 0);
    lent.block = take(lent.heap, MEGABYTE, 1);
    assert_int_equal(shoal_heap_lend(lent.heap, lent.block, &lent.loan), 0);
    uint8_t *at = shoal_loan_pointer(lent.loan);
    memset(at, 0x11, MEGABYTE);
    pid_t child = start_child("a child with a lent block", keep_own_contents, &lent);
    await_step(lent.step, 1);
    assert_true(all_bytes_are(at, MEGABYTE, 0x11)); /* the child wrote to its own */
    memset(at + MEGABYTE / 2, 0x33, MEGABYTE / 2);
    atomic_store(lent.step, 2);
    child_ends_well(child);
    assert_true(all_bytes_are(at, MEGABYTE / 2, 0x11));
    assert_true(all_bytes_are(at + MEGABYTE / 2, MEGABYTE / 2, 0x33));

    shoal_heap_release(elsewhere);
    shoal_loan_return(lent.loan);
    shoal_heap_release(lent.heap);
}

static int look_late(void *context)
{
    struct lent *lent = context;
    /* Descends from the fork, and closes what it does not know, as daemons do. */
    pid_t grandchild = fork();
    if (grandchild != 0)
        return grandchild < 0;
    (void)close_range(3, ~0u, 0);
    atomic_store(lent->step, 1);
    await_step(lent->step, 2);
    bool as_it_was = all_bytes_are(shoal_loan_pointer(lent->loan), MEGABYTE, 0x11);
    atomic_store(lent->step, as_it_was ? 3 : -1);
    _exit(0);
}

/* Blocks are returned to a heap at the next turn of a loan. */
static void turn_a_loan(shoal_heap *heap)
{
    shoal_loan *loan;
    assert_int_equal(shoal_heap_lend(heap, take(heap, SHOAL_VIEW_MINIMUM, 7), &loan), 0);
    shoal_loan_return(loan);
}

static void a_returned_blocks_memory_is_used_again_once_all_that_were_forked_meanwhile_are_gone(void **state)
{
    (void)state;
    struct lent lent = {.heap = make_heap(16 * MEGABYTE), .step = shared_memory(4096)};
    shoal_heap *elsewhere;
    assert_int_equal(shoal_heap_attach(shoal_heap_fd(lent.heap), &elsewhere), 0);
    lent.block = take(lent.heap, MEGABYTE, 1);
    assert_int_equal(shoal_heap_lend(lent.heap, lent.block, &lent.loan), 0);
    memset(shoal_loan_pointer(lent.loan), 0x11, MEGABYTE);
    child_ends_well(start_child("a child that forks and ends", look_late, &lent));
    await_step(lent.step, 1);
    memset(shoal_loan_pointer(lent.loan), 0x55, MEGABYTE); /* the parent's own */
    assert_int_equal(count(lent.heap).blocks, 0);
    assert_int_equal(shoal_heap_free(lent.heap, lent.block), -EINVAL);
    shoal_loan_return(lent.loan);
    assert_int_equal(shoal_heap_sweep(lent.heap, 1, NULL), 0);
    assert_int_equal(shoal_heap_trim(lent.heap), 0);
    turn_a_loan(lent.heap);
    shoal_block others[14];
    for (int i = 0; i < 14; i++) {
        others[i] = take(elsewhere, MEGABYTE, 2);
        assert_true(others[i] >= lent.block + MEGABYTE || others[i] + MEGABYTE <= lent.block);
        memset(shoal_heap_pointer(elsewhere, others[i], NULL), 0x44, MEGABYTE);
    }
    atomic_store(lent.step, 2);
    while (atomic_load(lent.step) == 2)
        sleep_for(SHOAL_MILLISECOND);
    assert_int_equal(atomic_load(lent.step), 3);

    /* Its block is the only room for another one; it takes a moment to end. */
    (void)take(lent.heap, MEGABYTE / 2, 1);
    shoal_block again = 0;
    int error = -ENOMEM;
    for (int i = 0; i < 5000 && error == -ENOMEM; i++) {
        sleep_for(SHOAL_MILLISECOND);
        turn_a_loan(lent.heap);
        error = shoal_heap_allocate(lent.heap, MEGABYTE, 1, &again);
    }
    assert_int_equal(error, 0);
    assert_int_equal(again, lent.block);
    /* Shared again: what is written here is seen in the other mapping. */
    memset((uint8_t *)lent.heap->header + again, 0x66, MEGABYTE);
    assert_true(all_bytes_are(shoal_heap_pointer(elsewhere, again, NULL), MEGABYTE, 0x66));
    shoal_heap_release(elsewhere);
    shoal_heap_release(lent.heap);
}

static int do_nothing(void *context)
{
    (void)context;
    return 0;
}

static void held_blocks_and_forks_without_end_need_no_more_memory(void **state)
{
    (void)state;
    enum { HELD = 4 };
    shoal_heap *heap = make_heap(16 * MEGABYTE);
    shoal_loan *held[HELD] = {NULL};
    const int descriptors = open_descriptors();
    for (int i = 0; i < 100; i++) {
        shoal_loan_return(held[i % HELD]);
        assert_int_equal(shoal_heap_lend(heap, take(heap, MEGABYTE, 1), &held[i % HELD]), 0);
        memset(shoal_loan_pointer(held[i % HELD]), i, MEGABYTE);
        child_ends_well(start_child("a child", do_nothing, NULL));
        for (int j = 0; j <= i && j < HELD; j++)
            assert_true(all_bytes_are(shoal_loan_pointer(held[(i - j) % HELD]), MEGABYTE, (uint8_t)(i - j)));
    }
    for (int i = 0; i < HELD; i++)
        shoal_loan_return(held[i]);
    turn_a_loan(heap);
    assert_int_equal(count(heap).blocks, 0);
    assert_true(count(heap).touched <= (HELD + 2) * MEGABYTE);
    assert_int_equal(count(heap).free, count(heap).touched);
    assert_int_equal(open_descriptors(), descriptors);
    shoal_heap_release(heap);
}

static int fork_again(void *context)
{
    struct lent *lent = context;
    uint8_t *at = shoal_loan_pointer(lent->loan);
    memset(at, 0x22, MEGABYTE);
    pid_t grandchild = fork_child("a grandchild");
    if (grandchild == 0) {
        CHECK(all_bytes_are(at, MEGABYTE, 0x22));
        memset(at, 0x33, MEGABYTE);
        _exit(0);
    }
    int status = 0;
    CHECK(waitpid(grandchild, &status, 0) == grandchild && status == 0);
    CHECK(all_bytes_are(at, MEGABYTE, 0x22));
    return 0;
}

static void each_further_fork_copies_what_its_own_parent_had(void **state)
{
    (void)state;
    struct lent lent = {.heap = make_heap(16 * MEGABYTE)};
    lent.block = take(lent.heap, MEGABYTE, 1);
    assert_int_equal(shoal_heap_lend(lent.heap, lent.block, &lent.loan), 0);
    uint8_t *at = shoal_loan_pointer(lent.loan);
    memset(at, 0x11, MEGABYTE);
    for (int i = 0; i < 3; i++) {
        child_ends_well(start_child("a child that forks", fork_again, &lent));
        assert_true(all_bytes_are(at, MEGABYTE, (uint8_t)(0x11 + i)));
        memset(at, 0x12 + i, MEGABYTE);
    }
    shoal_loan_return(lent.loan);
    assert_int_equal(count(lent.heap).blocks, 0);
    shoal_heap_release(lent.heap);
}

static int return_inherited(void *context)
{
    struct lent *lent = context;
    shoal_loan_return(lent->loan);
    return 0;
}

static void a_loan_made_after_the_fork_is_still_shared_and_freed(void **state)
{
    (void)state;
    struct lent lent = {.heap = make_heap(16 * MEGABYTE)};
    shoal_loan *early, *late;
    shoal_block first = take(lent.heap, MEGABYTE, 1);
    assert_int_equal(shoal_heap_lend(lent.heap, first, &early), 0);
    lent.loan = early;
    child_ends_well(start_child("a child that returns its parent's loan", return_inherited, &lent));
    shoal_block block = take(lent.heap, MEGABYTE, 1);
    assert_int_equal(shoal_heap_lend(lent.heap, block, &late), 0);
    shoal_loan_return(late);
    assert_int_equal(take(lent.heap, MEGABYTE, 1), block);
    shoal_loan_return(early);
    assert_int_equal(take(lent.heap, MEGABYTE, 1), first);
    shoal_heap_release(lent.heap);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(a_loan_shows_the_block_and_frees_it_when_it_is_returned, start_clock),
        cmocka_unit_test_setup(a_loan_keeps_the_heap_mapped, start_clock),
        cmocka_unit_test_setup(a_fork_gives_parent_and_child_a_lent_block_each, start_clock),
        cmocka_unit_test_setup(a_returned_blocks_memory_is_used_again_once_all_that_were_forked_meanwhile_are_gone,
                               start_clock),
        cmocka_unit_test_setup(held_blocks_and_forks_without_end_need_no_more_memory, start_clock),
        cmocka_unit_test_setup(each_further_fork_copies_what_its_own_parent_had, start_clock),
        cmocka_unit_test_setup(a_loan_made_after_the_fork_is_still_shared_and_freed, start_clock),
    };
    return cmocka_run_group_tests_name("loan", tests, NULL, NULL);
}
