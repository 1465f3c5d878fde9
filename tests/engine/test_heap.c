/* test_heap.c: the heap under load: against a model, by many threads and processes at once, and over rubbish. */
#include "heap_walk.h"

#include <pthread.h>

#define MEGABYTE ((size_t)1 << 20)

static shoal_heap *make_heap(size_t limit)
{
    shoal_heap *heap;
    assert_int_equal(shoal_heap_create(limit, &heap), 0);
    return heap;
}

static struct shoal_heap_numbers count(shoal_heap *heap)
{
    struct shoal_heap_numbers numbers;
    CHECK(shoal_heap_count(heap, &numbers) == 0);
    return numbers;
}

/* Mostly small blocks, some of pages, a few large. */
static size_t random_size(size_t most)
{
    switch (random_below(10)) {
    case 0:
        return 1 + random_below(most);
    case 1:
    case 2:
        return 1 + random_below(most < 100000 ? most : 100000);
    case 3:
    case 4:
        return 1 + random_below(8192);
    default:
        return 1 + random_below(300);
    }
}

/* Each block's bytes tell which it is: the first and the last eight, and eight in each kilobyte between. */
static void fill(uint8_t *at, size_t size, uint64_t name)
{
    for (size_t i = 0; i + 8 <= size; i += i + 1032 <= size ? 1024 : 8)
        memcpy(at + i, &name, 8);
    memset(at + size / 8 * 8, (int)(name & 0xff), size % 8);
}

static bool is_filled(const uint8_t *at, size_t size, uint64_t name)
{
    for (size_t i = 0; i + 8 <= size; i += i + 1032 <= size ? 1024 : 8) {
        if (memcmp(at + i, &name, 8) != 0)
            return false;
    }
    for (size_t i = size / 8 * 8; i < size; i++) {
        if (at[i] != (uint8_t)name)
            return false;
    }
    return true;
}

/* ----------------------------------------------------------------------- model ---- */

#define MODEL_BLOCKS 1500
#define MODEL_OWNERS 5

struct model_block {
    shoal_block block;
    size_t size, usable;
    uint32_t owner;
    uint64_t name;
};

struct model {
    shoal_heap *heap;
    struct model_block blocks[MODEL_BLOCKS];
    size_t held, refused;
    uint64_t names;
    size_t used; /* usable bytes of all blocks */
};

static void model_forget(struct model *model, size_t index)
{
    model->used -= model->blocks[index].usable;
    model->blocks[index] = model->blocks[--model->held];
}

static void model_check(const struct model *model, const struct model_block *block)
{
    size_t usable = 0;
    uint32_t owner = UINT32_MAX;
    const uint8_t *at = shoal_heap_pointer(model->heap, block->block, &usable);
    assert_non_null(at);
    assert_int_equal(usable, block->usable);
    assert_int_equal(shoal_heap_owner(model->heap, block->block, &owner), 0);
    assert_int_equal(owner, block->owner);
    assert_true(is_filled(at, block->size, block->name));
}

static void model_allocate(struct model *model)
{
    struct model_block block = {
        .size = random_size(2 * MEGABYTE), .owner = (uint32_t)random_below(MODEL_OWNERS), .name = ++model->names};
    int error = shoal_heap_allocate(model->heap, block.size, block.owner, &block.block);
    if (error != 0) {
        assert_int_equal(error, -ENOMEM);
        /* Only where the memory is not there in one piece (a slab takes more than its block). */
        size_t needed = block.size < SHOAL_VIEW_MINIMUM ? 130 : (block.size + HEAP_PAGE - 1) / HEAP_PAGE;
        assert_true(walk_heap(model->heap).largest < needed);
        model->refused++;
        return;
    }
    uint8_t *at = shoal_heap_pointer(model->heap, block.block, &block.usable);
    assert_non_null(at);
    assert_true(block.usable >= block.size);
    fill(at, block.size, block.name);
    model->used += block.usable;
    model->blocks[model->held++] = block;
}

static void model_free(struct model *model)
{
    size_t index = random_below(model->held);
    shoal_block block = model->blocks[index].block;
    model_check(model, &model->blocks[index]);
    assert_int_equal(shoal_heap_free(model->heap, block), 0);
    assert_int_equal(shoal_heap_free(model->heap, block), -EINVAL);
    model_forget(model, index);
}

static void model_give(struct model *model)
{
    struct model_block *block = &model->blocks[random_below(model->held)];
    uint32_t from = (uint32_t)random_below(MODEL_OWNERS), to = (uint32_t)random_below(MODEL_OWNERS);
    assert_int_equal(shoal_heap_give(model->heap, block->block, from, to), from == block->owner ? 0 : -EPERM);
    if (from == block->owner)
        block->owner = to;
}

static void model_sweep(struct model *model)
{
    uint32_t owner = (uint32_t)random_below(MODEL_OWNERS);
    size_t expected = 0, freed = 0;
    for (size_t i = model->held; i-- > 0;) {
        if (model->blocks[i].owner == owner) {
            model_check(model, &model->blocks[i]);
            model_forget(model, i);
            expected++;
        }
    }
    assert_int_equal(shoal_heap_sweep(model->heap, owner, &freed), 0);
    assert_int_equal(freed, expected);
}

static int by_place(const void *a, const void *b)
{
    shoal_block left = ((const struct model_block *)a)->block, right = ((const struct model_block *)b)->block;
    return left < right ? -1 : left > right;
}

static void model_check_all(struct model *model)
{
    for (size_t i = 0; i < model->held; i++)
        model_check(model, &model->blocks[i]);
    qsort(model->blocks, model->held, sizeof model->blocks[0], by_place);
    for (size_t i = 0; i + 1 < model->held; i++)
        assert_true(model->blocks[i].block + model->blocks[i].usable <= model->blocks[i + 1].block);
    struct shoal_heap_numbers numbers = count(model->heap);
    assert_int_equal(numbers.blocks, model->held);
    assert_int_equal(numbers.used, model->used);
    assert_true(numbers.used + numbers.free <= numbers.limit);
    (void)walk_heap(model->heap);
}

static void the_heap_does_what_a_model_of_it_does(void **state)
{
    (void)state;
    seed_random();
    struct model *model = calloc(1, sizeof *model);
    model->heap = make_heap(20 * MEGABYTE);
    for (int step = 0; step < 60000; step++) {
        uint64_t choice = random_below(1000);
        /* Now it fills up, now it empties. */
        bool growing = step / 2000 % 2 == 0;
        if (choice < (growing ? 650u : 350u) && model->held < MODEL_BLOCKS)
            model_allocate(model);
        else if (choice < 900 && model->held > 0)
            model_free(model);
        else if (choice < 990 && model->held > 0)
            model_give(model);
        else if (choice < 992)
            model_sweep(model);
        else if (choice < 994)
            assert_int_equal(shoal_heap_trim(model->heap), 0);
        if (step % 500 == 0)
            model_check_all(model);
    }
    printf("             %llu blocks, %zu refused, %zu held at the end\n", (unsigned long long)model->names,
           model->refused, model->held);
    while (model->held > 0)
        model_free(model);
    model_check_all(model);
    shoal_block all;
    assert_int_equal(shoal_heap_allocate(model->heap, 20 * MEGABYTE, 1, &all), 0);
    shoal_heap_release(model->heap);
    free(model);
}

/* ---------------------------------------------------------- many at the same time ---- */

#define CROWD 4
#define CROWD_BLOCKS 200

struct crowd_member {
    shoal_heap *heap;
    uint32_t owner;
    uint64_t seed;
    int steps;
    int left;                  /* out: blocks it still holds at the end */
    _Atomic uint64_t *parcels; /* blocks on their way from one to another, CROWD places; NULL: nobody hands any */
};

/* Take the block that lies in a place, whoever put it there, and leave another. */
static shoal_block swap_parcel(struct crowd_member *member, shoal_block block)
{
    if (block != 0)
        CHECK(shoal_heap_give(member->heap, block, member->owner, 0) == 0);
    /* acq_rel: the block's contents go with it, and come with the other */
    shoal_block other = atomic_exchange_explicit(&member->parcels[random_below(CROWD)], block, memory_order_acq_rel);
    if (other != 0)
        CHECK(shoal_heap_give(member->heap, other, 0, member->owner) == 0);
    return other;
}

/* A block's first eight bytes are its name, the next eight its size: so whoever gets it can check all of it. */
static void check_named(shoal_heap *heap, shoal_block block)
{
    uint64_t head[2];
    size_t usable;
    const uint8_t *at = shoal_heap_pointer(heap, block, &usable);
    CHECK(at != NULL);
    memcpy(head, at, 16);
    CHECK(head[1] >= 16 && head[1] <= usable);
    CHECK(is_filled(at + 16, head[1] - 16, head[0]));
}

static int work_in_crowd(void *context)
{
    struct crowd_member *member = context;
    uint64_t names = (uint64_t)member->owner << 32;
    shoal_block held[CROWD_BLOCKS] = {0};
    seed_with(member->seed);
    for (int i = 0; i < member->steps; i++) {
        size_t at = random_below(CROWD_BLOCKS);
        if (held[at] == 0) {
            size_t size = 16 + random_size(300000);
            CHECK(shoal_heap_allocate(member->heap, size, member->owner, &held[at]) == 0);
            uint64_t head[2] = {++names, size};
            uint8_t *bytes = shoal_heap_pointer(member->heap, held[at], NULL);
            CHECK(bytes != NULL);
            memcpy(bytes, head, 16);
            fill(bytes + 16, size - 16, head[0]);
        } else if (member->parcels != NULL && random_below(4) == 0) {
            held[at] = swap_parcel(member, held[at]);
        } else {
            check_named(member->heap, held[at]);
            CHECK(shoal_heap_free(member->heap, held[at]) == 0);
            held[at] = 0;
        }
    }
    member->left = 0;
    for (int i = 0; i < CROWD_BLOCKS; i++) {
        if (held[i] != 0) {
            uint32_t owner;
            check_named(member->heap, held[i]);
            CHECK(shoal_heap_owner(member->heap, held[i], &owner) == 0 && owner == member->owner);
            member->left++;
        }
    }
    return 0;
}

static void expect_only_what_is_left(shoal_heap *heap, const struct crowd_member *members, _Atomic uint64_t *parcels)
{
    size_t held = 0, freed;
    for (int i = 0; i < CROWD; i++)
        held += (size_t)members[i].left + (parcels != NULL && parcels[i] != 0);
    assert_int_equal(count(heap).blocks, held);
    for (int i = 0; i < CROWD; i++) {
        assert_int_equal(shoal_heap_sweep(heap, members[i].owner, &freed), 0);
        assert_int_equal(freed, members[i].left);
    }
    assert_int_equal(shoal_heap_sweep(heap, 0, NULL), 0);
    assert_int_equal(count(heap).blocks, 0);
    assert_int_equal(count(heap).used, 0);
}

static void processes_allocate_hand_over_and_free_at_once(void **state)
{
    (void)state;
    uint64_t seed = seed_random();
    shoal_heap *heap = make_heap(512 * MEGABYTE);
    struct crowd_member *members = shared_memory(4096);
    _Atomic uint64_t *parcels = shared_memory(4096);
    pid_t pids[CROWD];
    for (int i = 0; i < CROWD; i++) {
        members[i] = (struct crowd_member){
            .heap = heap, .owner = (uint32_t)i + 1, .seed = seed + (uint64_t)i, .steps = 30000, .parcels = parcels};
        pids[i] = fork_child("a process of the crowd");
        if (pids[i] == 0) {
            /* Half of them with a mapping of their own. */
            if (i % 2 == 1)
                CHECK(shoal_heap_attach(shoal_heap_fd(heap), &members[i].heap) == 0);
            _exit(work_in_crowd(&members[i]));
        }
    }
    for (int i = 0; i < CROWD; i++)
        child_ends_well(pids[i]);
    expect_only_what_is_left(heap, members, parcels);
    shoal_heap_release(heap);
}

static void *work_in_thread(void *context)
{
    struct crowd_member member = *(struct crowd_member *)context;
    seed_with(member.seed);
    for (int i = 0; i < member.steps; i++) {
        size_t size = 16 + random_size(300000);
        shoal_block block;
        CHECK(shoal_heap_allocate(member.heap, size, member.owner, &block) == 0);
        uint64_t head[2] = {(uint64_t)member.owner << 32 | (uint64_t)i, size};
        uint8_t *bytes = shoal_heap_pointer(member.heap, block, NULL);
        CHECK(bytes != NULL);
        memcpy(bytes, head, 16);
        fill(bytes + 16, size - 16, head[0]);
        CHECK(shoal_heap_give(member.heap, block, member.owner, 0) == 0);
        /* acq_rel: the block's contents go with it, and come with the other */
        shoal_block other = atomic_exchange_explicit(&member.parcels[i % CROWD], block, memory_order_acq_rel);
        if (other != 0) {
            CHECK(shoal_heap_give(member.heap, other, 0, member.owner) == 0);
            check_named(member.heap, other);
            CHECK(shoal_heap_free(member.heap, other) == 0);
        }
    }
    return NULL;
}

static void threads_allocate_hand_over_and_free_at_once(void **state)
{
    (void)state;
    uint64_t seed = seed_random();
    shoal_heap *heap = make_heap(256 * MEGABYTE);
    struct crowd_member members[CROWD] = {0};
    _Atomic uint64_t parcels[CROWD] = {0};
    pthread_t threads[CROWD];
    for (int i = 0; i < CROWD; i++) {
        members[i] = (struct crowd_member){
            .heap = heap, .owner = (uint32_t)i + 1, .seed = seed + (uint64_t)i, .steps = 10000, .parcels = parcels};
        assert_int_equal(pthread_create(&threads[i], NULL, work_in_thread, &members[i]), 0);
    }
    for (int i = 0; i < CROWD; i++)
        pthread_join(threads[i], NULL);
    expect_only_what_is_left(heap, members, parcels);
    shoal_heap_release(heap);
}

/* --------------------------------------------------------------------- rubbish ---- */

/* A child that uses a heap whose data was overwritten: it may be told anything, but must come to an end. */
static int use_rubbish(void *context)
{
    shoal_heap *heap = context;
    shoal_block held[64] = {0};
    for (int i = 0; i < 20000; i++) {
        shoal_block guess = random_below(3) == 0 ? held[random_below(64)]
                                                 : heap->header->data_at + random_below(4 * MEGABYTE) / 64 * 64;
        uint32_t owner;
        size_t size = 0;
        uint8_t *at = shoal_heap_pointer(heap, guess, &size);
        if (at != NULL) {
            CHECK(at >= heap->data && at + size <= heap->data + (size_t)heap->pages * HEAP_PAGE);
            at[size - 1]++;
        }
        (void)shoal_heap_owner(heap, guess, &owner);
        switch (random_below(20)) {
        case 0:
            (void)shoal_heap_free(heap, guess);
            break;
        case 1:
            (void)shoal_heap_give(heap, guess, (uint32_t)random_below(5), (uint32_t)random_below(5));
            break;
        case 2:
            (void)shoal_heap_allocate(heap, random_size(200000), 1, &held[random_below(64)]);
            break;
        case 3:
            if (random_below(50) == 0)
                (void)shoal_heap_sweep(heap, (uint32_t)random_below(5), NULL);
            break;
        case 4: /* and more rubbish */
            heap->data[random_below(4 * MEGABYTE)] = (uint8_t)random_bits();
            break;
        default:
            break;
        }
    }
    (void)shoal_heap_trim(heap);
    (void)count(heap);
    return 0;
}

static void data_that_was_overwritten_neither_crashes_nor_hangs_the_heap(void **state)
{
    (void)state;
    seed_random();
    for (int round = 0; round < 30; round++) {
        shoal_heap *heap = make_heap(8 * MEGABYTE);
        for (int i = 0; i < 300; i++) {
            shoal_block block;
            assert_int_equal(shoal_heap_allocate(heap, 1 + random_below(9000), (uint32_t)i % 4, &block), 0);
            if (random_below(2) == 0)
                assert_int_equal(shoal_heap_free(heap, block), 0);
        }
        for (size_t i = 0; i < 4 * MEGABYTE; i += 8) {
            uint64_t rubbish = round % 3 == 0 ? UINT64_MAX : round % 3 == 1 ? random_bits() : SMALL_USED | i / 8 % 5;
            if (round % 3 != 1 || random_below(2) == 0)
                memcpy(heap->data + i, &rubbish, 8);
        }
        (void)random_bits();
        child_ends_well(start_child("the use of an overwritten heap", use_rubbish, heap));
        shoal_heap_release(heap);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(the_heap_does_what_a_model_of_it_does, start_clock),
        cmocka_unit_test_setup(processes_allocate_hand_over_and_free_at_once, start_clock),
        cmocka_unit_test_setup(threads_allocate_hand_over_and_free_at_once, start_clock),
        cmocka_unit_test_setup(data_that_was_overwritten_neither_crashes_nor_hangs_the_heap, start_clock),
    };
    return cmocka_run_group_tests_name("heap", tests, NULL, NULL);
}
