/* test_memory.c: regions and the heap as their users see them; test_loan.c has loans. test_heap.c has the heap under
 * load: against a model, by many processes, and over rubbish. */
#include "heap_blocks.h"

#include <fcntl.h>
#include <sys/resource.h>

#include "memory/heap.h"

#define MEGABYTE ((size_t)1 << 20)

/* --------------------------------------------------------------------- regions ---- */

static shoal_region *make_region(size_t size)
{
    shoal_region *region;
    assert_int_equal(shoal_region_create("test", size, &region), 0);
    return region;
}

static int write_at_the_end(void *region)
{
    uint8_t *base = shoal_region_base(region);
    base[shoal_region_size(region) - 1] = 77;
    return 0;
}

static void a_region_is_whole_zero_pages_that_a_child_shares(void **state)
{
    (void)state;
    shoal_region *region = make_region(5000);
    const uint8_t *base = shoal_region_base(region);
    assert_int_equal(shoal_region_size(region), 8192);
    for (size_t i = 0; i < 8192; i++)
        assert_int_equal(base[i], 0);
    child_ends_well(start_child("a child's write", write_at_the_end, region));
    assert_int_equal(base[8191], 77);
    shoal_region_close(region);
    shoal_region_close(NULL);
}

static void a_region_keeps_its_size_and_its_seals_whoever_tries_to_change_them(void **state)
{
    (void)state;
    shoal_region *region = make_region(8192);
    int fd = shoal_region_fd(region);
    assert_int_equal(ftruncate(fd, 4096), -1);
    assert_int_equal(errno, EPERM);
    assert_int_equal(ftruncate(fd, 16384), -1);
    assert_int_equal(errno, EPERM);
    assert_int_equal(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE), -1);
    assert_int_equal(errno, EPERM);
    shoal_region_close(region);
}

static void a_regions_descriptors_are_closed_by_exec(void **state)
{
    (void)state;
    shoal_region *region = make_region(1), *again;
    assert_int_equal(shoal_region_attach(shoal_region_fd(region), &again), 0);
    assert_true((fcntl(shoal_region_fd(region), F_GETFD) & FD_CLOEXEC) != 0);
    assert_true((fcntl(shoal_region_fd(again), F_GETFD) & FD_CLOEXEC) != 0);
    shoal_region_close(again);
    shoal_region_close(region);
}

static void a_region_of_no_bytes_or_of_too_many_is_refused(void **state)
{
    (void)state;
    shoal_region *region = NULL;
    assert_int_equal(shoal_region_create("test", 0, &region), -EINVAL);
    assert_int_equal(shoal_region_create("test", SIZE_MAX, &region), -EINVAL);
    assert_int_equal(shoal_region_create("test", (size_t)1 << 60, &region), -ENOMEM); /* no such address space */
    assert_null(region);
}

static void set_file_limit(size_t size)
{
    const struct rlimit limit = {.rlim_cur = size, .rlim_max = RLIM_INFINITY};
    CHECK(setrlimit(RLIMIT_FSIZE, &limit) == 0);
}

static int make_more_than_allowed(void *context)
{
    (void)context;
    shoal_region *region;
    shoal_heap *heap;
    set_file_limit(96 * MEGABYTE);
    CHECK(shoal_region_create("test", 97 * MEGABYTE, &region) == -EFBIG);
    CHECK(shoal_region_create("test", 96 * MEGABYTE, &region) == 0);
    CHECK(shoal_heap_create(200 * MEGABYTE, &heap) == -EFBIG);
    CHECK(shoal_heap_create(0, &heap) == 0); /* as large as may be */
    return 0;
}

static void the_limit_of_file_sizes_is_an_error_and_not_a_signal(void **state)
{
    (void)state;
    child_ends_well(start_child("a region over RLIMIT_FSIZE", make_more_than_allowed, NULL));
}

static void an_attached_region_is_the_same_memory_and_outlives_the_descriptor_it_came_by(void **state)
{
    (void)state;
    shoal_region *region = make_region(10000), *again;
    int fd = dup(shoal_region_fd(region));
    assert_int_equal(shoal_region_attach(fd, &again), 0);
    close(fd);
    assert_int_equal(shoal_region_size(again), shoal_region_size(region));
    ((uint8_t *)shoal_region_base(region))[9999] = 5;
    assert_int_equal(((uint8_t *)shoal_region_base(again))[9999], 5);
    shoal_region_close(region);
    assert_int_equal(((uint8_t *)shoal_region_base(again))[9999], 5);
    shoal_region_close(again);
}

static int make_file(size_t size, int seals)
{
    int fd = memfd_create("test", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    assert_true(fd >= 0);
    assert_int_equal(ftruncate(fd, (off_t)size), 0);
    assert_int_equal(fcntl(fd, F_ADD_SEALS, seals), 0);
    return fd;
}

static void expect_refused(int fd, int error)
{
    shoal_region *region = NULL;
    assert_int_equal(shoal_region_attach(fd, &region), error);
    assert_null(region);
    close(fd);
}

static void what_is_no_sealed_region_is_not_attached(void **state)
{
    (void)state;
    int pipe_ends[2];
    int before = open_descriptors();
    expect_refused(make_file(8192, 0), -EPERM);           /* could shrink under us */
    expect_refused(make_file(8192, F_SEAL_GROW), -EPERM); /* the wrong seal */
    expect_refused(make_file(0, F_SEAL_SHRINK), -EINVAL); /* nothing in it */
    expect_refused(open("/dev/null", O_RDWR), -EINVAL);
    expect_refused(open("/proc/self/exe", O_RDONLY), -EINVAL);
    assert_int_equal(pipe(pipe_ends), 0);
    expect_refused(pipe_ends[0], -EINVAL);
    close(pipe_ends[1]);
    expect_refused(9999, -EBADF);
    assert_int_equal(open_descriptors(), before);
}

/* ------------------------------------------------------------------------ heap ---- */

static void a_block_is_aligned_and_at_least_as_large_as_asked(void **state)
{
    (void)state;
    shoal_heap *heap = make_heap(256 * MEGABYTE);
    for (size_t size = 1; size < 3 * MEGABYTE; size = size < 700 ? size + 1 : size + size / 7) {
        shoal_block block = take(heap, size, 1);
        size_t usable = 0;
        uint8_t *at = shoal_heap_pointer(heap, block, &usable);
        assert_non_null(at);
        assert_true(usable >= size);
        assert_true(usable < size + size / 4 + 64 || usable < size + 4096);
        assert_int_equal((uintptr_t)at % (size >= SHOAL_VIEW_MINIMUM ? 4096 : 64), 0);
        memset(at, 0xa5, usable); /* all of it is there */
    }
    shoal_heap_release(heap);
}

static void nothing_and_nobody_are_refused(void **state)
{
    (void)state;
    shoal_heap *heap = make_heap(MEGABYTE);
    shoal_block block = 42;
    assert_int_equal(shoal_heap_allocate(heap, 0, 1, &block), -EINVAL);
    assert_int_equal(shoal_heap_allocate(heap, 10, UINT32_MAX, &block), -EINVAL);
    assert_int_equal(shoal_heap_allocate(heap, SIZE_MAX, 1, &block), -ENOMEM);
    assert_int_equal(shoal_heap_allocate(heap, SIZE_MAX - 4096, 1, &block), -ENOMEM);
    assert_int_equal(block, 42);
    shoal_heap_release(heap);
}

static void a_heap_serves_up_to_its_limit_and_again_when_blocks_are_freed(void **state)
{
    (void)state;
    const size_t sizes[] = {40, 700, 20000, 65535, 65536, 300000};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        shoal_heap *heap = make_heap(4 * MEGABYTE);
        size_t most = 0;
        shoal_block *blocks = calloc(4 * MEGABYTE / sizes[i] + 1, sizeof *blocks);
        for (int round = 0; round < 3; round++) {
            size_t held = 0;
            while (shoal_heap_allocate(heap, sizes[i], 1, &blocks[held]) == 0)
                held++;
            assert_true(held * sizes[i] <= 4 * MEGABYTE);
            assert_true(held * sizes[i] >= 2 * MEGABYTE);
            assert_true(round == 0 || held == most);
            most = held;
            assert_int_equal(shoal_heap_allocate(heap, sizes[i], 1, &blocks[held]), -ENOMEM);
            for (size_t j = 0; j < held; j++)
                assert_int_equal(shoal_heap_free(heap, blocks[(j * 7919) % held]), held % 7919 == 0 ? -EINVAL : 0);
            assert_int_equal(count(heap).used, 0);
        }
        free(blocks);
        shoal_heap_release(heap);
    }
}

static void one_block_may_be_as_large_as_the_heap(void **state)
{
    (void)state;
    shoal_heap *heap = make_heap(4 * MEGABYTE);
    shoal_block block = take(heap, 4 * MEGABYTE, 1);
    memset(shoal_heap_pointer(heap, block, NULL), 1, 4 * MEGABYTE);
    assert_int_equal(shoal_heap_allocate(heap, 1, 1, &block), -ENOMEM);
    shoal_heap_release(heap);
}

static void a_heap_that_is_empty_again_serves_blocks_of_any_size(void **state)
{
    (void)state;
    shoal_heap *heap = make_heap(4 * MEGABYTE);
    /* What is free lies behind and before the free part of the limit that was never used. */
    assert_int_equal(shoal_heap_free(heap, take(heap, 3 * MEGABYTE, 1)), 0);
    assert_int_equal(shoal_heap_free(heap, take(heap, 7 * MEGABYTE / 2, 1)), 0);
    /* A slab that holds no block is free memory too. */
    for (size_t size = 64; size < SHOAL_VIEW_MINIMUM; size *= 2)
        assert_int_equal(shoal_heap_free(heap, take(heap, size, 1)), 0);
    shoal_block block = take(heap, 4 * MEGABYTE, 1);
    assert_int_equal(shoal_heap_free(heap, block), 0);
    for (size_t size = 64; size < SHOAL_VIEW_MINIMUM; size += size / 4)
        assert_int_equal(shoal_heap_free(heap, take(heap, size, 1)), 0);
    assert_int_equal(count(heap).blocks, 0);
    shoal_heap_release(heap);
}

static void blocks_that_were_freed_lately_are_used_first(void **state)
{
    (void)state;
    for (size_t size = 100; size < 8 * MEGABYTE; size *= 3) {
        shoal_heap *heap = make_heap(64 * MEGABYTE);
        shoal_block first = take(heap, size, 1), other = take(heap, size, 1);
        memset(shoal_heap_pointer(heap, first, NULL), 1, size);
        assert_int_equal(shoal_heap_free(heap, first), 0);
        size_t before = bytes_taken(shoal_heap_fd(heap));
        for (int i = 0; i < 100; i++) {
            shoal_block again = take(heap, size, 1);
            assert_int_equal(again, first);
            memset(shoal_heap_pointer(heap, again, NULL), i, size);
            assert_int_equal(shoal_heap_free(heap, again), 0);
        }
        assert_int_equal(bytes_taken(shoal_heap_fd(heap)), before);
        assert_int_equal(shoal_heap_free(heap, other), 0);
        shoal_heap_release(heap);
    }
}

/* Every call refuses the reference, and nothing changes. */
static void a_reference_that_names_no_block_is_refused_by_every_call(void **state)
{
    (void)state;
    seed_random();
    shoal_heap *heap = make_heap(16 * MEGABYTE);
    const shoal_block small = take(heap, 200, 1), middle = take(heap, 5000, 1), large = take(heap, MEGABYTE, 1);
    const shoal_block freed_small = take(heap, 200, 1), freed_large = take(heap, 2 * MEGABYTE, 1);
    assert_int_equal(shoal_heap_free(heap, freed_small), 0);
    assert_int_equal(shoal_heap_free(heap, freed_large), 0);
    const struct shoal_heap_numbers before = count(heap);
    const shoal_block wrong[] = {
        0,
        1,
        64,
        4096,
        UINT64_MAX,
        UINT64_MAX - 63,
        (uint64_t)1 << 63,
        heap->header->data_at - 64,
        freed_small,
        freed_large,
        freed_large + 4096,
        small + 1,
        small + 8,
        small + 64,
        small + 128,
        middle + 64,
        middle + 4096,
        large + 1,
        large + 64,
        large + 4096,
        large + MEGABYTE - 64,
        large - 64,
        heap->header->data_at /* a slab's words */,
        heap->header->size,
        heap->header->size - 64,
    };
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++)
        expect_no_block(heap, wrong[i]);
    for (int i = 0; i < 20000; i++) {
        shoal_block guess = random_below(2) == 0 ? random_bits() : random_below(heap->header->size) / 64 * 64;
        if (guess != small && guess != middle && guess != large)
            expect_no_block(heap, guess);
    }
    const struct shoal_heap_numbers after = count(heap);
    assert_memory_equal(&before, &after, sizeof before);
    assert_int_equal(shoal_heap_free(heap, small), 0);
    assert_int_equal(shoal_heap_free(heap, middle), 0);
    assert_int_equal(shoal_heap_free(heap, large), 0);
    shoal_heap_release(heap);
}

static void a_block_has_one_owner_who_alone_gives_it_away(void **state)
{
    (void)state;
    shoal_heap *heap = make_heap(16 * MEGABYTE);
    const size_t sizes[] = {10, 70000};
    for (int i = 0; i < 2; i++) {
        shoal_block block = take(heap, sizes[i], 3);
        uint32_t owner = 0;
        assert_int_equal(shoal_heap_owner(heap, block, &owner), 0);
        assert_int_equal(owner, 3);
        assert_int_equal(shoal_heap_give(heap, block, 4, 5), -EPERM);
        assert_int_equal(shoal_heap_give(heap, block, 3, UINT32_MAX), -EINVAL);
        assert_int_equal(shoal_heap_give(heap, block, 3, 4), 0);
        assert_int_equal(shoal_heap_give(heap, block, 3, 4), -EPERM);
        assert_int_equal(shoal_heap_give(heap, block, 4, 0), 0);
        assert_int_equal(shoal_heap_owner(heap, block, &owner), 0);
        assert_int_equal(owner, 0);
    }
    shoal_heap_release(heap);
}

static void a_sweep_frees_all_that_one_owner_had_and_nothing_else(void **state)
{
    (void)state;
    shoal_heap *heap = make_heap(64 * MEGABYTE);
    shoal_block blocks[600];
    size_t freed = 99;
    for (uint32_t i = 0; i < 600; i++)
        blocks[i] = take(heap, 1 + (i * 7919u) % 90000, i % 3);
    for (uint32_t i = 0; i < 600; i += 6) /* a sixth goes from 0 to 2 */
        assert_int_equal(shoal_heap_give(heap, blocks[i], 0, 2), 0);
    assert_int_equal(shoal_heap_sweep(heap, 77, &freed), 0);
    assert_int_equal(freed, 0);
    assert_int_equal(shoal_heap_sweep(heap, 2, &freed), 0);
    assert_int_equal(freed, 300);
    assert_int_equal(count(heap).blocks, 300);
    for (uint32_t i = 0; i < 600; i++) {
        bool swept = i % 3 == 2 || i % 6 == 0;
        assert_int_equal(shoal_heap_pointer(heap, blocks[i], NULL) == NULL, swept);
    }
    assert_int_equal(shoal_heap_sweep(heap, 0, NULL), 0);
    assert_int_equal(shoal_heap_sweep(heap, 1, NULL), 0);
    assert_int_equal(count(heap).blocks, 0);
    assert_int_equal(count(heap).used, 0);
    shoal_heap_release(heap);
}

static void a_write_goes_where_it_should_and_never_past_the_block(void **state)
{
    (void)state;
    const size_t sizes[] = {100, 30000, 65536, MEGABYTE};
    uint8_t *data = malloc(2 * MEGABYTE);
    for (size_t i = 0; i < 2 * MEGABYTE; i++)
        data[i] = (uint8_t)(i * 31 + i / 256);
    for (int i = 0; i < 4; i++) {
        shoal_heap *heap = make_heap(32 * MEGABYTE);
        for (int round = 0; round < 2; round++) { /* the second time its pages are warm */
            shoal_block block = take(heap, sizes[i], 1), next = take(heap, sizes[i], 1);
            size_t size, next_size;
            const uint8_t *at = shoal_heap_pointer(heap, block, &size);
            uint8_t *beyond = shoal_heap_pointer(heap, next, &next_size);
            memset(beyond, 0x5a, next_size);
            assert_int_equal(shoal_heap_write(heap, block, 0, data, size), 0);
            assert_memory_equal(at, data, size);
            assert_int_equal(shoal_heap_write(heap, block, size - 3, data + 7, 3), 0);
            assert_memory_equal(at + size - 3, data + 7, 3);
            assert_memory_equal(at, data, size - 3);
            assert_int_equal(shoal_heap_write(heap, block, size, data, 0), 0);
            assert_int_equal(shoal_heap_write(heap, block, size, data, 1), -EINVAL);
            assert_int_equal(shoal_heap_write(heap, block, size - 3, data, 4), -EINVAL);
            assert_int_equal(shoal_heap_write(heap, block, 1, data, size), -EINVAL);
            assert_int_equal(shoal_heap_write(heap, block, SIZE_MAX, data, 2), -EINVAL);
            assert_int_equal(shoal_heap_write(heap, block, 2, data, SIZE_MAX), -EINVAL);
            for (size_t j = 0; j < next_size; j++)
                assert_int_equal(beyond[j], 0x5a);
            assert_int_equal(shoal_heap_free(heap, block), 0);
            assert_int_equal(shoal_heap_free(heap, next), 0);
        }
        shoal_heap_release(heap);
    }
    free(data);
}

static int write_more_than_allowed(void *context)
{
    shoal_heap *heap = context;
    shoal_block block;
    uint8_t *data = calloc(1, MEGABYTE);
    CHECK(shoal_heap_allocate(heap, MEGABYTE, 1, &block) == 0);
    set_file_limit(4096);
    CHECK(shoal_heap_write(heap, block, 0, data, MEGABYTE) == -EFBIG);
    free(data);
    return 0;
}

static void a_write_over_the_limit_of_file_sizes_is_an_error_and_not_a_signal(void **state)
{
    (void)state;
    shoal_heap *heap = make_heap(16 * MEGABYTE);
    child_ends_well(start_child("a write over RLIMIT_FSIZE", write_more_than_allowed, heap));
    shoal_heap_release(heap);
}

static void a_trim_gives_the_pages_of_free_blocks_back_and_no_others(void **state)
{
    (void)state;
    shoal_heap *heap = make_heap(64 * MEGABYTE);
    int fd = shoal_heap_fd(heap);
    shoal_block kept = take(heap, MEGABYTE, 1), small = take(heap, 100, 1);
    memset(shoal_heap_pointer(heap, kept, NULL), 0x77, MEGABYTE);
    memset(shoal_heap_pointer(heap, small, NULL), 0x77, 100);
    size_t before = bytes_taken(fd);
    for (int round = 0; round < 3; round++) { /* again and again: also what was given back and used since */
        shoal_block blocks[8];
        for (int i = 0; i < 8; i++) {
            blocks[i] = take(heap, MEGABYTE, 1);
            memset(shoal_heap_pointer(heap, blocks[i], NULL), 0x11, MEGABYTE);
        }
        assert_true(bytes_taken(fd) >= before + 8 * MEGABYTE);
        for (int i = 0; i < 8; i++)
            assert_int_equal(shoal_heap_free(heap, blocks[i]), 0);
        assert_true(count(heap).touched >= 8 * MEGABYTE);
        assert_int_equal(shoal_heap_trim(heap), 0);
        assert_true(bytes_taken(fd) <= before + 65536);
        assert_true(count(heap).touched < 2 * MEGABYTE + 65536);
        /* A little of it used again, which joins with the untouched rest when it is freed. */
        shoal_block little = take(heap, 2 * MEGABYTE, 1);
        memset(shoal_heap_pointer(heap, little, NULL), 0x22, 2 * MEGABYTE);
        assert_int_equal(shoal_heap_free(heap, little), 0);
        assert_true(count(heap).touched >= 3 * MEGABYTE);
        assert_int_equal(shoal_heap_trim(heap), 0);
        assert_true(bytes_taken(fd) <= before + 65536);
    }
    const uint8_t *at = shoal_heap_pointer(heap, kept, NULL);
    for (size_t i = 0; i < MEGABYTE; i++)
        assert_int_equal(at[i], 0x77);
    assert_int_equal(*(uint8_t *)shoal_heap_pointer(heap, small, NULL), 0x77);
    shoal_heap_release(heap);
}

static void a_trim_gives_back_what_small_blocks_took(void **state)
{
    (void)state;
    shoal_heap *heap = make_heap(64 * MEGABYTE);
    size_t before = bytes_taken(shoal_heap_fd(heap)), most = 0;
    for (size_t size = 64; size < SHOAL_VIEW_MINIMUM; size *= 2) {
        shoal_block blocks[100];
        for (int i = 0; i < 100; i++) {
            blocks[i] = take(heap, size, 1);
            memset(shoal_heap_pointer(heap, blocks[i], NULL), 1, size);
        }
        most = bytes_taken(shoal_heap_fd(heap)) > most ? bytes_taken(shoal_heap_fd(heap)) : most;
        for (int i = 0; i < 100; i++)
            assert_int_equal(shoal_heap_free(heap, blocks[i]), 0);
    }
    assert_int_equal(shoal_heap_trim(heap), 0);
    assert_true(most > before + MEGABYTE);
    assert_true(bytes_taken(shoal_heap_fd(heap)) < before + 131072); /* records stay */
    assert_int_equal(count(heap).touched, 0);
    shoal_heap_release(heap);
}

static void the_counts_tell_what_is_there(void **state)
{
    (void)state;
    shoal_heap *heap = make_heap(8 * MEGABYTE);
    struct shoal_heap_numbers numbers = count(heap);
    assert_int_equal(numbers.limit, 8 * MEGABYTE);
    assert_int_equal(numbers.used + numbers.free + numbers.touched + numbers.blocks, 0);
    shoal_block large = take(heap, 100000, 1), small = take(heap, 100, 1);
    numbers = count(heap);
    assert_int_equal(numbers.blocks, 2);
    assert_int_equal(numbers.used, 102400 + 128);
    assert_int_equal(numbers.free, 0);
    assert_int_equal(shoal_heap_free(heap, large), 0);
    numbers = count(heap);
    assert_int_equal(numbers.blocks, 1);
    assert_int_equal(numbers.used, 128);
    assert_int_equal(numbers.free, 102400);
    assert_int_equal(shoal_heap_free(heap, small), 0);
    numbers = count(heap);
    assert_int_equal(numbers.blocks, 0);
    assert_int_equal(numbers.used, 0);
    assert_true(numbers.touched >= numbers.free);
    shoal_heap_release(heap);
}

static void an_attached_heap_has_the_same_blocks(void **state)
{
    (void)state;
    shoal_heap *heap = make_heap(8 * MEGABYTE), *other;
    assert_int_equal(shoal_heap_attach(shoal_heap_fd(heap), &other), 0);
    shoal_block small = take(heap, 100, 1), large = take(other, 100000, 1);
    memcpy(shoal_heap_pointer(heap, small, NULL), "small", 6);
    memcpy(shoal_heap_pointer(other, large, NULL), "large", 6);
    assert_string_equal(shoal_heap_pointer(other, small, NULL), "small");
    assert_string_equal(shoal_heap_pointer(heap, large, NULL), "large");
    assert_int_equal(shoal_heap_free(other, small), 0);
    expect_no_block(heap, small);
    shoal_heap_release(heap);
    assert_string_equal(shoal_heap_pointer(other, large, NULL), "large");
    shoal_heap_release(other);
}

static void what_is_no_heap_is_not_attached(void **state)
{
    (void)state;
    shoal_heap *heap = make_heap(8 * MEGABYTE), *other = NULL;
    int before = open_descriptors();
    int fd = make_file(8192, F_SEAL_SHRINK);
    assert_int_equal(shoal_heap_attach(fd, &other), SHOAL_ECORRUPT); /* zeros */
    close(fd);
    fd = make_file(16, F_SEAL_SHRINK);
    assert_int_equal(shoal_heap_attach(fd, &other), SHOAL_ECORRUPT); /* too short for a header */
    close(fd);
    fd = make_file(8192, F_SEAL_SHRINK);
    assert_int_equal(pwrite(fd, heap->header, 8192, 0), 8192);
    assert_int_equal(shoal_heap_attach(fd, &other), SHOAL_ECORRUPT); /* a header that promises more than there is */
    close(fd);
    /* One wrong byte anywhere in what describes the heap. */
    for (size_t i = 0; i < offsetof(struct heap_header, lock); i++) {
        ((uint8_t *)heap->header)[i] ^= 0x40;
        assert_int_equal(shoal_heap_attach(shoal_heap_fd(heap), &other),
                         i >= offsetof(struct heap_header, unused0) ? 0 : SHOAL_ECORRUPT);
        ((uint8_t *)heap->header)[i] ^= 0x40;
        if (other != NULL)
            shoal_heap_release(other);
        other = NULL;
    }
    assert_int_equal(open_descriptors(), before);
    shoal_heap_release(heap);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(a_region_is_whole_zero_pages_that_a_child_shares, start_clock),
        cmocka_unit_test_setup(a_region_keeps_its_size_and_its_seals_whoever_tries_to_change_them, start_clock),
        cmocka_unit_test_setup(a_regions_descriptors_are_closed_by_exec, start_clock),
        cmocka_unit_test_setup(a_region_of_no_bytes_or_of_too_many_is_refused, start_clock),
        cmocka_unit_test_setup(the_limit_of_file_sizes_is_an_error_and_not_a_signal, start_clock),
        cmocka_unit_test_setup(an_attached_region_is_the_same_memory_and_outlives_the_descriptor_it_came_by,
                               start_clock),
        cmocka_unit_test_setup(what_is_no_sealed_region_is_not_attached, start_clock),
        cmocka_unit_test_setup(a_block_is_aligned_and_at_least_as_large_as_asked, start_clock),
        cmocka_unit_test_setup(nothing_and_nobody_are_refused, start_clock),
        cmocka_unit_test_setup(a_heap_serves_up_to_its_limit_and_again_when_blocks_are_freed, start_clock),
        cmocka_unit_test_setup(one_block_may_be_as_large_as_the_heap, start_clock),
        cmocka_unit_test_setup(a_heap_that_is_empty_again_serves_blocks_of_any_size, start_clock),
        cmocka_unit_test_setup(blocks_that_were_freed_lately_are_used_first, start_clock),
        cmocka_unit_test_setup(a_reference_that_names_no_block_is_refused_by_every_call, start_clock),
        cmocka_unit_test_setup(a_block_has_one_owner_who_alone_gives_it_away, start_clock),
        cmocka_unit_test_setup(a_sweep_frees_all_that_one_owner_had_and_nothing_else, start_clock),
        cmocka_unit_test_setup(a_write_goes_where_it_should_and_never_past_the_block, start_clock),
        cmocka_unit_test_setup(a_write_over_the_limit_of_file_sizes_is_an_error_and_not_a_signal, start_clock),
        cmocka_unit_test_setup(a_trim_gives_the_pages_of_free_blocks_back_and_no_others, start_clock),
        cmocka_unit_test_setup(a_trim_gives_back_what_small_blocks_took, start_clock),
        cmocka_unit_test_setup(the_counts_tell_what_is_there, start_clock),
        cmocka_unit_test_setup(an_attached_heap_has_the_same_blocks, start_clock),
        cmocka_unit_test_setup(what_is_no_heap_is_not_attached, start_clock),
    };
    return cmocka_run_group_tests_name("memory", tests, NULL, NULL);
}
