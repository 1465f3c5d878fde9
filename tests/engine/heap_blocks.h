/* tests/engine/heap_blocks.h: a heap and its blocks, as the tests of memory and of loans make and look at them. */
#ifndef SHOAL_TESTS_HEAP_BLOCKS_H
#define SHOAL_TESTS_HEAP_BLOCKS_H

#include "helpers.h"

#include "memory/heap.h"

static inline shoal_heap *make_heap(size_t limit)
{
    shoal_heap *heap;
    assert_int_equal(shoal_heap_create(limit, &heap), 0);
    return heap;
}

static inline shoal_block take(shoal_heap *heap, size_t size, uint32_t owner)
{
    shoal_block block = 0;
    assert_int_equal(shoal_heap_allocate(heap, size, owner, &block), 0);
    assert_true(block != 0);
    return block;
}

static inline struct shoal_heap_numbers count(shoal_heap *heap)
{
    struct shoal_heap_numbers numbers;
    assert_int_equal(shoal_heap_count(heap, &numbers), 0);
    return numbers;
}

static inline void expect_no_block(shoal_heap *heap, shoal_block block)
{
    uint32_t owner = 1234;
    size_t size = 1234;
    shoal_loan *loan = NULL;
    uint8_t byte = 0;
    assert_null(shoal_heap_pointer(heap, block, &size));
    assert_int_equal(size, 1234);
    assert_int_equal(shoal_heap_owner(heap, block, &owner), -EINVAL);
    assert_int_equal(owner, 1234);
    assert_int_equal(shoal_heap_give(heap, block, 1, 2), -EINVAL);
    assert_int_equal(shoal_heap_write(heap, block, 0, &byte, 1), -EINVAL);
    assert_int_equal(shoal_heap_lend(heap, block, &loan), -EINVAL);
    assert_int_equal(shoal_heap_free(heap, block), -EINVAL);
}

#endif
