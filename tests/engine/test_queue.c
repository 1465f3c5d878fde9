/* test_queue.c: the queue as its users see it: order, sizes, waiting, blocks. test_queue_deaths.c has what it makes of
 * processes that die, of rubbish, and of crowds. */
#include "helpers.h"

#include <fcntl.h>
#include <poll.h>

#include "queue/queue.h"

#define MEGABYTE ((size_t)1 << 20)

static shoal_queue *make_queue(uint64_t capacity)
{
    const shoal_queue_options options = {.capacity = capacity, .heap_limit = 256 * MEGABYTE};
    shoal_queue *queue;
    assert_int_equal(shoal_queue_create(&options, &queue), 0);
    return queue;
}

static void put_number(shoal_queue *queue, uint64_t number)
{
    CHECK(shoal_queue_put(queue, &number, sizeof number, SHOAL_FOREVER) == 0);
}

static uint64_t get_number(shoal_queue *queue)
{
    uint64_t number = 0;
    size_t size = 0;
    CHECK(shoal_queue_get(queue, &number, sizeof number, 20 * SHOAL_SECOND, &size) == 0);
    CHECK(size == sizeof number);
    return number;
}

static struct shoal_heap_numbers count_blocks(shoal_queue *queue)
{
    struct shoal_heap_numbers numbers;
    assert_int_equal(shoal_heap_count(shoal_queue_heap(queue), &numbers), 0);
    return numbers;
}

/* ----------------------------------------------------------------- construction ---- */

static int answer_over_attached(void *context)
{
    shoal_queue *attached;
    int fds[SHOAL_QUEUE_FDS];
    shoal_queue_fds(context, fds);
    CHECK(shoal_queue_attach(fds, &attached) == 0);
    CHECK(get_number(attached) == 41);
    put_number(attached, 42);
    shoal_queue_close(attached);
    return 0;
}

static void an_attached_queue_is_the_same_queue(void **state)
{
    (void)state;
    shoal_queue *queue = make_queue(5);
    put_number(queue, 41);
    child_ends_well(start_child("the use of an attached queue", answer_over_attached, queue));
    assert_int_equal(get_number(queue), 42);
    assert_int_equal(shoal_queue_capacity(queue), 5);
    shoal_queue_close(queue);
    shoal_queue_close(NULL);
}

static int make_file(const void *contents, size_t size)
{
    int fd = memfd_create("test", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    assert_true(fd >= 0);
    assert_int_equal(pwrite(fd, contents, size, 0), size);
    assert_int_equal(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK), 0);
    return fd;
}

static void what_is_no_queue_is_not_attached(void **state)
{
    (void)state;
    shoal_queue *queue = make_queue(0), *other = NULL;
    int right[SHOAL_QUEUE_FDS];
    shoal_queue_fds(queue, right);
    int before = open_descriptors();
    static const uint8_t zeros[8192];
    const int zeroed = make_file(zeros, sizeof zeros), tiny = make_file(zeros, 8), cut = make_file(queue->header, 8192);
    assert_int_equal(shoal_queue_attach((int[]){zeroed, right[1], right[2]}, &other), SHOAL_ECORRUPT);
    assert_int_equal(shoal_queue_attach((int[]){tiny, right[1], right[2]}, &other), SHOAL_ECORRUPT);
    assert_int_equal(shoal_queue_attach((int[]){cut, right[1], right[2]}, &other), SHOAL_ECORRUPT);
    assert_int_equal(shoal_queue_attach((int[]){right[0], zeroed, right[2]}, &other), SHOAL_ECORRUPT);
    assert_int_equal(shoal_queue_attach((int[]){right[1], right[0], right[2]}, &other), SHOAL_ECORRUPT);
    assert_int_equal(shoal_queue_attach((int[]){-1, right[1], right[2]}, &other), -EBADF);
    assert_int_equal(shoal_queue_attach((int[]){right[0], right[1], -1}, &other), -EBADF);
    for (size_t i = 0; i < offsetof(struct queue_header, unused0); i++) {
        if (i >= offsetof(struct queue_header, capacity) && i < offsetof(struct queue_header, size))
            continue; /* any capacity is one */
        ((uint8_t *)queue->header)[i] ^= 0x20;
        assert_int_equal(shoal_queue_attach(right, &other), SHOAL_ECORRUPT);
        ((uint8_t *)queue->header)[i] ^= 0x20;
    }
    assert_null(other);
    close(zeroed);
    close(tiny);
    close(cut);
    assert_int_equal(open_descriptors(), before);
    shoal_queue_close(queue);
}

/* ---------------------------------------------------------------------- order ---- */

static void items_come_out_in_the_order_in_which_they_were_put(void **state)
{
    (void)state;
    shoal_queue *queue = make_queue(0);
    for (uint64_t i = 0; i < 5000; i++)
        put_number(queue, i);
    assert_int_equal(shoal_queue_count(queue), 5000);
    for (uint64_t i = 0; i < 5000; i++)
        assert_int_equal(get_number(queue), i);
    assert_int_equal(shoal_queue_count(queue), 0);
    shoal_queue_close(queue);
}

static void nothing_changes_where_one_segment_ends_and_the_next_begins(void **state)
{
    (void)state;
    /* The consumer follows the producer at every distance around a segment's size. */
    shoal_queue *queue = make_queue(0);
    uint64_t put = 0, got = 0;
    for (uint64_t lag = 0; lag < 3 * SEGMENT_SLOTS; lag = lag < 4 ? lag + 1 : lag * 2 - lag / 8) {
        for (int i = 0; i < 3000; i++) {
            while (put - got <= lag)
                put_number(queue, put++);
            assert_int_equal(shoal_queue_count(queue), put - got);
            assert_int_equal(get_number(queue), got++);
        }
    }
    while (got < put)
        assert_int_equal(get_number(queue), got++);
    assert_true(put / SEGMENT_SLOTS > 100);
    assert_true(atomic_load(&queue->header->fresh_segments) < 10); /* segments were used again */
    shoal_queue_close(queue);
}

/* ---------------------------------------------------------------------- sizes ---- */

static void items_of_any_size_come_out_as_they_were_put(void **state)
{
    (void)state;
    shoal_queue *queue = make_queue(0);
    const size_t sizes[] = {0,
                            1,
                            7,
                            8,
                            9,
                            96,
                            103,
                            104,
                            105,
                            1000,
                            65527,
                            65536,
                            65537,
                            300000,
                            MEGABYTE - 1,
                            5 * MEGABYTE,
                            7 * MEGABYTE + 3};
    const size_t many = sizeof sizes / sizeof sizes[0];
    uint8_t *data = malloc(8 * MEGABYTE), *buffer = malloc(8 * MEGABYTE);
    for (size_t i = 0; i < 8 * MEGABYTE; i++)
        data[i] = (uint8_t)(i * 13 + i / 4096);
    for (int round = 0; round < 3; round++) {
        for (size_t i = 0; i < many; i++)
            assert_int_equal(shoal_queue_put(queue, data + i, sizes[i], SHOAL_FOREVER), 0);
        for (size_t i = 0; i < many; i++) {
            size_t size = 12345;
            if (round % 2 == 0) {
                memset(buffer, 0, sizes[i] + 1);
                assert_int_equal(shoal_queue_get(queue, buffer, sizes[i] + 1, 0, &size), 0);
                assert_memory_equal(buffer, data + i, sizes[i]);
                assert_int_equal(buffer[sizes[i]], 0); /* and not a byte more */
            } else {
                shoal_received received;
                assert_int_equal(shoal_queue_get_item(queue, 0, &received), 0);
                size = received.item.size;
                assert_memory_equal(received.item.data, data + i, sizes[i]);
                assert_int_equal(received.item.block_count, 0);
                shoal_queue_release(queue, &received);
            }
            assert_int_equal(size, sizes[i]);
        }
        assert_int_equal(count_blocks(queue).blocks, 0);
    }
    free(data);
    free(buffer);
    shoal_queue_close(queue);
}

static void an_item_too_large_for_the_buffer_stays_the_first(void **state)
{
    (void)state;
    shoal_queue *queue = make_queue(0);
    const size_t sizes[] = {50, 5000};
    uint8_t data[5000], buffer[5000];
    for (size_t i = 0; i < sizeof data; i++)
        data[i] = (uint8_t)(i * 7);
    for (int i = 0; i < 2; i++) {
        size_t size = 0;
        assert_int_equal(shoal_queue_put(queue, data, sizes[i], 0), 0);
        put_number(queue, 5);
        memset(buffer, 0xee, sizeof buffer);
        for (size_t capacity = 0; capacity < sizes[i]; capacity += sizes[i] / 5 - 1) {
            size = 0;
            assert_int_equal(shoal_queue_get(queue, buffer, capacity, SHOAL_SECOND, &size), -EMSGSIZE);
            assert_int_equal(size, sizes[i]);
            assert_int_equal(buffer[0], 0xee);
            assert_int_equal(shoal_queue_count(queue), 2);
        }
        assert_int_equal(shoal_queue_get(queue, buffer, size, 0, &size), 0);
        assert_memory_equal(buffer, data, sizes[i]);
        assert_int_equal(get_number(queue), 5);
    }
    shoal_queue_close(queue);
}

static void an_item_over_two_gigabytes_is_refused(void **state)
{
    (void)state;
    shoal_queue *queue = make_queue(0);
    assert_int_equal(shoal_queue_put(queue, NULL, (size_t)INT32_MAX + 1, 0), -EMSGSIZE);
    assert_int_equal(shoal_queue_count(queue), 0);
    shoal_queue_close(queue);
}

/* --------------------------------------------------------------------- waiting ---- */

static void a_get_waits_no_longer_than_it_may(void **state)
{
    (void)state;
    shoal_queue *queue = make_queue(0);
    shoal_received received;
    uint64_t number;
    size_t size = 77;
    assert_int_equal(shoal_queue_get(queue, &number, 8, 0, &size), -ETIMEDOUT);
    assert_int_equal(shoal_queue_get(queue, &number, 8, -5, &size), -ETIMEDOUT);
    assert_int_equal(shoal_queue_get_item(queue, 0, &received), -ETIMEDOUT);
    int64_t begin = shoal_clock_now();
    assert_int_equal(shoal_queue_get(queue, &number, 8, 30 * SHOAL_MILLISECOND, &size), -ETIMEDOUT);
    assert_true(shoal_clock_now() - begin >= 30 * SHOAL_MILLISECOND);
    assert_int_equal(size, 77);
    put_number(queue, 3);
    assert_int_equal(shoal_queue_get(queue, &number, 8, 0, &size), 0);
    shoal_queue_close(queue);
}

static void a_full_queue_takes_no_more_than_its_capacity(void **state)
{
    (void)state;
    const uint64_t capacities[] = {1, 2, 255, 256, 257, 1000};
    for (size_t i = 0; i < sizeof capacities / sizeof capacities[0]; i++) {
        shoal_queue *queue = make_queue(capacities[i]);
        for (uint64_t j = 0; j < capacities[i]; j++)
            assert_int_equal(shoal_queue_put(queue, &j, sizeof j, 0), 0);
        uint64_t more = capacities[i];
        assert_int_equal(shoal_queue_put(queue, &more, sizeof more, 0), -ETIMEDOUT);
        int64_t begin = shoal_clock_now();
        assert_int_equal(shoal_queue_put(queue, &more, sizeof more, 20 * SHOAL_MILLISECOND), -ETIMEDOUT);
        assert_true(shoal_clock_now() - begin >= 20 * SHOAL_MILLISECOND);
        assert_int_equal(shoal_queue_count(queue), capacities[i]);
        assert_int_equal(get_number(queue), 0);
        assert_int_equal(shoal_queue_put(queue, &more, sizeof more, 0), 0);
        assert_int_equal(shoal_queue_put(queue, &more, sizeof more, 0), -ETIMEDOUT);
        for (uint64_t j = 1; j <= capacities[i]; j++)
            assert_int_equal(get_number(queue), j);
        shoal_queue_close(queue);
    }
}

static void a_large_item_that_found_no_room_leaves_no_memory_behind(void **state)
{
    (void)state;
    shoal_queue *queue = make_queue(1);
    uint8_t *data = calloc(1, MEGABYTE);
    assert_int_equal(shoal_queue_put(queue, "x", 1, 0), 0);
    for (int i = 0; i < 3; i++)
        assert_int_equal(shoal_queue_put(queue, data, MEGABYTE, i * SHOAL_MILLISECOND), -ETIMEDOUT);
    assert_int_equal(count_blocks(queue).blocks, 0);
    free(data);
    shoal_queue_close(queue);
}

static int put_later(void *queue)
{
    sleep_for(30 * SHOAL_MILLISECOND);
    put_number(queue, 99);
    return 0;
}

static int get_later(void *queue)
{
    sleep_for(30 * SHOAL_MILLISECOND);
    CHECK(get_number(queue) == 1);
    return 0;
}

static void who_waits_is_woken_by_what_it_waits_for(void **state)
{
    (void)state;
    shoal_queue *queue = make_queue(1);
    pid_t child = start_child("a put that somebody waits for", put_later, queue);
    assert_int_equal(get_number(queue), 99);
    child_ends_well(child);
    put_number(queue, 1);
    child = start_child("a get that somebody waits for", get_later, queue);
    put_number(queue, 2); /* waits for ever, if need be */
    child_ends_well(child);
    assert_int_equal(get_number(queue), 2);
    shoal_queue_close(queue);
}

static void note_signal(int number)
{
    (void)number;
}

static int send_signals(void *context)
{
    (void)context;
    for (;;) { /* again and again, as one may come before the parent waits */
        sleep_for(20 * SHOAL_MILLISECOND);
        CHECK(kill(getppid(), SIGUSR1) == 0);
    }
}

static void a_signal_interrupts_who_waits_for_ever(void **state)
{
    (void)state;
    shoal_queue *queue = make_queue(1);
    uint64_t number = 0;
    size_t size;
    shoal_received received;
    for (int restart = 0; restart < 2; restart++) {
        struct sigaction action = {.sa_handler = note_signal, .sa_flags = restart != 0 ? SA_RESTART : 0}, before;
        assert_int_equal(sigaction(SIGUSR1, &action, &before), 0);
        pid_t child = start_child("the sending of signals", send_signals, NULL);
        assert_int_equal(shoal_queue_get(queue, &number, 8, SHOAL_FOREVER, &size), -EINTR);
        assert_int_equal(shoal_queue_get_item(queue, SHOAL_FOREVER, &received), -EINTR);
        assert_int_equal(shoal_queue_get(queue, &number, 8, 30 * SHOAL_SECOND, &size), -EINTR);
        while (shoal_queue_put(queue, &number, 8, 0) != 0) {
        }
        assert_int_equal(shoal_queue_put(queue, &number, 8, SHOAL_FOREVER), -EINTR);
        assert_int_equal(shoal_queue_count(queue), 1);
        kill_and_reap(child);
        assert_int_equal(sigaction(SIGUSR1, &before, NULL), 0);
        assert_int_equal(get_number(queue), 0);
    }
    shoal_queue_close(queue);
}

/* ---------------------------------------------------------------------- blocks ---- */

static shoal_block take_block(shoal_queue *queue, size_t size, const char *text)
{
    uint32_t owner;
    shoal_block block;
    CHECK(shoal_queue_owner(queue, &owner) == 0);
    CHECK(owner != 0);
    CHECK(shoal_heap_allocate(shoal_queue_heap(queue), size, owner, &block) == 0);
    CHECK(shoal_heap_write(shoal_queue_heap(queue), block, 0, text, strlen(text) + 1) == 0);
    return block;
}

static uint32_t owner_of(shoal_queue *queue, shoal_block block)
{
    uint32_t owner = UINT32_MAX;
    CHECK(shoal_heap_owner(shoal_queue_heap(queue), block, &owner) == 0);
    return owner;
}

static int take_over_blocks(void *context)
{
    shoal_queue *queue = context;
    uint32_t self;
    CHECK(shoal_queue_owner(queue, &self) == 0);
    for (int i = 0; i < 2; i++) {
        shoal_received received;
        char expected[16];
        CHECK(shoal_queue_get_item(queue, 10 * SHOAL_SECOND, &received) == 0);
        CHECK(received.item.size == (i == 0 ? 5u : 5000u));
        CHECK(received.item.block_count == (i == 0 ? 3u : 40u));
        for (uint32_t j = 0; j < received.item.block_count; j++) {
            (void)snprintf(expected, sizeof expected, "block %d", (int)j);
            shoal_block block = received.item.blocks[j];
            CHECK(owner_of(queue, block) == self);
            CHECK(strcmp(shoal_heap_pointer(shoal_queue_heap(queue), block, NULL), expected) == 0);
        }
        for (uint32_t j = 0; j < received.item.block_count; j++)
            CHECK(shoal_heap_free(shoal_queue_heap(queue), received.item.blocks[j]) == 0);
        shoal_queue_release(queue, &received);
    }
    return 0;
}

static void an_items_blocks_go_from_the_producer_to_who_takes_it(void **state)
{
    (void)state;
    shoal_queue *queue = make_queue(0);
    static const uint8_t data[5000];
    shoal_block blocks[40];
    const uint32_t counts[] = {3, 40};
    const size_t sizes[] = {5, 5000};
    for (int i = 0; i < 2; i++) {
        for (uint32_t j = 0; j < counts[i]; j++) {
            char text[16];
            (void)snprintf(text, sizeof text, "block %d", (int)j);
            blocks[j] = take_block(queue, j % 2 == 0 ? 100 : 100000, text);
        }
        const shoal_item item = {.data = data, .size = sizes[i], .blocks = blocks, .block_count = counts[i]};
        assert_int_equal(shoal_queue_put_item(queue, &item, SHOAL_FOREVER), 0);
        for (uint32_t j = 0; j < counts[i]; j++)
            assert_int_equal(owner_of(queue, blocks[j]), 0); /* the queue's, whatever becomes of this process */
    }
    child_ends_well(start_child("the taking of items with blocks", take_over_blocks, queue));
    assert_int_equal(count_blocks(queue).blocks, 0);
    shoal_queue_close(queue);
}

static void the_mark_of_an_item_goes_along(void **state)
{
    (void)state;
    shoal_queue *queue = make_queue(0);
    const uint32_t kinds[] = {0, 5, SHOAL_ITEM_KINDS - 1};
    for (int i = 0; i < 3; i++) {
        const shoal_item item = {.data = "mark", .size = 4, .kind = kinds[i]};
        assert_int_equal(shoal_queue_put_item(queue, &item, 0), 0);
    }
    const shoal_item other = {.data = "mark", .size = 4, .kind = SHOAL_ITEM_KINDS};
    assert_int_equal(shoal_queue_put_item(queue, &other, 0), -EINVAL);
    const shoal_item large = {.data = "mark", .size = 4, .block_count = SHOAL_ITEM_BLOCKS + 1};
    assert_int_equal(shoal_queue_put_item(queue, &large, 0), -EMSGSIZE);
    for (int i = 0; i < 3; i++) {
        shoal_received received;
        assert_int_equal(shoal_queue_get_item(queue, 0, &received), 0);
        assert_int_equal(received.item.kind, kinds[i]);
        assert_int_equal(received.item.block_count, 0);
        assert_memory_equal(received.item.data, "mark", 4);
        shoal_queue_release(queue, &received);
    }
    shoal_queue_close(queue);
}

static void blocks_of_an_item_that_found_no_room_stay_the_producers(void **state)
{
    (void)state;
    shoal_queue *queue = make_queue(1);
    uint32_t self;
    assert_int_equal(shoal_queue_owner(queue, &self), 0);
    put_number(queue, 1);
    shoal_block blocks[20];
    for (int i = 0; i < 20; i++)
        blocks[i] = take_block(queue, 100, "mine");
    const shoal_item item = {.data = "x", .size = 1, .blocks = blocks, .block_count = 20};
    assert_int_equal(shoal_queue_put_item(queue, &item, SHOAL_MILLISECOND), -ETIMEDOUT);
    for (int i = 0; i < 20; i++)
        assert_int_equal(owner_of(queue, blocks[i]), self);
    assert_int_equal(count_blocks(queue).blocks, 20);
    shoal_queue_close(queue);
}

/* ----------------------------------------------------------------------- watch ---- */

static bool is_readable(int fd)
{
    struct pollfd entry = {.fd = fd, .events = POLLIN};
    return poll(&entry, 1, 0) == 1;
}

static int put_over_attached(void *context)
{
    shoal_queue *attached;
    int fds[SHOAL_QUEUE_FDS];
    shoal_queue_fds(context, fds);
    CHECK(shoal_queue_attach(fds, &attached) == 0);
    put_number(attached, 7);
    shoal_queue_close(attached);
    return 0;
}

static void a_watched_queue_is_readable_while_something_is_in_it(void **state)
{
    (void)state;
    shoal_queue *queue = make_queue(0);
    put_number(queue, 1); /* before anybody asked */
    const int fd = shoal_queue_watch(queue);
    assert_true(is_readable(fd));
    put_number(queue, 2);
    assert_int_equal(get_number(queue), 1);
    assert_true(is_readable(fd));
    assert_int_equal(get_number(queue), 2);
    assert_false(is_readable(fd));
    child_ends_well(start_child("a put into a watched queue", put_over_attached, queue));
    assert_int_equal(shoal_queue_watch(queue), fd);
    assert_true(is_readable(fd));
    assert_int_equal(get_number(queue), 7);
    assert_false(is_readable(fd));
    shoal_queue_close(queue);
}

enum { WATCHED_ITEMS = 20000 };

static int put_many_numbers(void *context)
{
    for (uint64_t i = 0; i < WATCHED_ITEMS; i++)
        put_number(context, i);
    return 0;
}

static void who_polls_for_items_gets_all_of_them(void **state)
{
    (void)state;
    shoal_queue *queue = make_queue(4); /* few: it is empty again and again */
    struct pollfd entry = {.fd = shoal_queue_watch(queue), .events = POLLIN};
    pid_t producer = start_child("puts into a watched queue", put_many_numbers, queue);
    for (uint64_t next = 0; next < WATCHED_ITEMS;) {
        assert_int_equal(poll(&entry, 1, 20000), 1);
        uint64_t number;
        size_t size;
        if (shoal_queue_get(queue, &number, sizeof number, 0, &size) == 0)
            assert_int_equal(number, next++);
    }
    child_ends_well(producer);
    assert_false(is_readable(entry.fd));
    shoal_queue_close(queue);
}

/* ---------------------------------------------------------------------- memory ---- */

static void memory_that_a_burst_took_goes_back_to_the_machine(void **state)
{
    (void)state;
    shoal_queue *queue = make_queue(0);
    int fds[SHOAL_QUEUE_FDS];
    shoal_queue_fds(queue, fds);
    size_t before = bytes_taken(fds[0]);
    for (uint64_t i = 0; i < 300000; i++)
        put_number(queue, i);
    size_t full = bytes_taken(fds[0]);
    assert_true(full - before > 300000 * sizeof(struct queue_slot));
    for (uint64_t i = 0; i < 300000; i++)
        assert_int_equal(get_number(queue), i);
    assert_true(bytes_taken(fds[0]) < before + (full - before) / 3);
    for (uint64_t i = 0; i < 100000; i++) { /* and what was given back can be used again */
        put_number(queue, i);
        put_number(queue, i + 1);
        assert_int_equal(get_number(queue), i / 2 + (i % 2 != 0));
    }
    shoal_queue_close(queue);
}

static void a_heap_that_is_full_is_an_error_until_items_are_taken(void **state)
{
    (void)state;
    const shoal_queue_options options = {.heap_limit = 4 * MEGABYTE};
    shoal_queue *queue;
    assert_int_equal(shoal_queue_create(&options, &queue), 0);
    uint8_t *data = calloc(1, 5 * MEGABYTE);
    int held = 0, error;
    size_t size;
    assert_int_equal(shoal_queue_put(queue, data, 5 * MEGABYTE, 0), -ENOMEM);
    while ((error = shoal_queue_put(queue, data, MEGABYTE, 0)) == 0)
        held++;
    assert_int_equal(error, -ENOMEM);
    assert_int_equal(held, 4);
    assert_int_equal(shoal_queue_put(queue, data, 50, 0), 0); /* what fits into a slot needs no heap */
    for (int i = 0; i < held; i++) {
        assert_int_equal(shoal_queue_get(queue, data, MEGABYTE, 0, &size), 0);
        assert_int_equal(shoal_queue_put(queue, data, MEGABYTE, 0), 0);
    }
    free(data);
    shoal_queue_close(queue);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(an_attached_queue_is_the_same_queue, start_clock),
        cmocka_unit_test_setup(what_is_no_queue_is_not_attached, start_clock),
        cmocka_unit_test_setup(items_come_out_in_the_order_in_which_they_were_put, start_clock),
        cmocka_unit_test_setup(nothing_changes_where_one_segment_ends_and_the_next_begins, start_clock),
        cmocka_unit_test_setup(items_of_any_size_come_out_as_they_were_put, start_clock),
        cmocka_unit_test_setup(an_item_too_large_for_the_buffer_stays_the_first, start_clock),
        cmocka_unit_test_setup(an_item_over_two_gigabytes_is_refused, start_clock),
        cmocka_unit_test_setup(a_get_waits_no_longer_than_it_may, start_clock),
        cmocka_unit_test_setup(a_full_queue_takes_no_more_than_its_capacity, start_clock),
        cmocka_unit_test_setup(a_large_item_that_found_no_room_leaves_no_memory_behind, start_clock),
        cmocka_unit_test_setup(who_waits_is_woken_by_what_it_waits_for, start_clock),
        cmocka_unit_test_setup(a_signal_interrupts_who_waits_for_ever, start_clock),
        cmocka_unit_test_setup(an_items_blocks_go_from_the_producer_to_who_takes_it, start_clock),
        cmocka_unit_test_setup(the_mark_of_an_item_goes_along, start_clock),
        cmocka_unit_test_setup(blocks_of_an_item_that_found_no_room_stay_the_producers, start_clock),
        cmocka_unit_test_setup(a_watched_queue_is_readable_while_something_is_in_it, start_clock),
        cmocka_unit_test_setup(who_polls_for_items_gets_all_of_them, start_clock),
        cmocka_unit_test_setup(memory_that_a_burst_took_goes_back_to_the_machine, start_clock),
        cmocka_unit_test_setup(a_heap_that_is_full_is_an_error_until_items_are_taken, start_clock),
    };
    return cmocka_run_group_tests_name("queue", tests, NULL, NULL);
}
