/* queue/queue.c: put and get. What lies in shared memory, and why it survives deaths, is said in layout.h.
 *
 * put: large contents go to a block of this process first; then the slot at the tail is claimed, filled, its blocks are
 * given to the queue (owner 0), and it is FULL: from then on the item is there, whatever becomes of the producer. get:
 * the first FULL slot from the head on is claimed, its contents are copied out, its blocks are taken over, and it is
 * DONE. Who waits looks for some microseconds first; it sleeps in short slices only while a slot in its way is in the
 * hands of another process, which may be dead.
 */
#include "queue/queue.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define PASSED_STEP 64u                      /* slots passed in vain before what was passed is kept anew */
#define OWNER_SLICE (10 * SHOAL_MILLISECOND) /* how soon a dead owner of a slot in the way is looked for */

/* ------------------------------------------------------------- construction ---- */

static uint64_t lay_out(struct queue_header *header)
{
    uint64_t at = sizeof *header;
    header->participants_at = at;
    at += PARTICIPANTS * sizeof(struct participant);
    header->directory_at = at;
    at += SEGMENTS * sizeof(uint64_t);
    header->next_free_at = at;
    at += SEGMENTS * sizeof(uint32_t);
    at = (at + 4095) & ~UINT64_C(4095);
    header->segments_at = at;
    return at + (uint64_t)SEGMENTS * sizeof(struct queue_segment);
}

static void point_into(shoal_queue *queue, const struct queue_header *checked)
{
    uint8_t *base = shoal_region_base(queue->region);
    queue->header = (struct queue_header *)(void *)base;
    queue->participants = (struct participant *)(void *)(base + checked->participants_at);
    queue->directory = (_Atomic uint64_t *)(void *)(base + checked->directory_at);
    queue->next_free = (_Atomic uint32_t *)(void *)(base + checked->next_free_at);
    queue->segments = (struct queue_segment *)(void *)(base + checked->segments_at);
    queue->capacity = checked->capacity;
    queue->item_spin = (struct spin_budget)SPIN_INITIALIZER;
    queue->space_spin = (struct spin_budget)SPIN_INITIALIZER;
}

int shoal_queue_create(const shoal_queue_options *options, shoal_queue **out)
{
    static const shoal_queue_options defaults;
    if (options == NULL)
        options = &defaults;
    shoal_queue *queue = calloc(1, sizeof *queue);
    if (queue == NULL)
        return -ENOMEM;
    struct queue_header header = {
        .magic = QUEUE_MAGIC,
        .version = QUEUE_VERSION,
        .slot_size = sizeof(struct queue_slot),
        .capacity = options->capacity,
    };
    header.size = lay_out(&header);
    int error = shoal_heap_create(options->heap_limit, &queue->heap);
    if (error != 0)
        goto free_queue;
    error = watch_open(queue, -1);
    if (error != 0)
        goto release_heap;
    error = shoal_region_create("shoal-queue", header.size, &queue->region);
    if (error != 0)
        goto close_watch;
    memcpy(shoal_region_base(queue->region), &header, offsetof(struct queue_header, unused0));
    point_into(queue, &header);
    /* Not 0: a slot whose memory went back to the machine reads as position 0, and must not be mistaken for one in use.
     */
    atomic_store_explicit(&queue->header->head, SEGMENT_SLOTS, memory_order_relaxed);
    atomic_store_explicit(&queue->header->tail, SEGMENT_SLOTS, memory_order_relaxed);
    atomic_store_explicit(&queue->header->producer_cpu, SPIN_UNKNOWN_CPU, memory_order_relaxed);
    atomic_store_explicit(&queue->header->consumer_cpu, SPIN_UNKNOWN_CPU, memory_order_relaxed);
    *out = queue;
    return 0;

close_watch:
    close(queue->watch_fd);
release_heap:
    shoal_heap_release(queue->heap);
free_queue:
    free(queue);
    return error;
}

int shoal_queue_attach(const int fds[SHOAL_QUEUE_FDS], shoal_queue **out)
{
    shoal_queue *queue = calloc(1, sizeof *queue);
    if (queue == NULL)
        return -ENOMEM;
    int error = shoal_region_attach(fds[0], &queue->region);
    if (error != 0)
        goto free_queue;
    struct queue_header header, expected;
    error = SHOAL_ECORRUPT;
    if (shoal_region_size(queue->region) < sizeof header)
        goto close_region;
    memcpy(&header, shoal_region_base(queue->region), offsetof(struct queue_header, unused0));
    expected = header;
    if (header.magic != QUEUE_MAGIC || header.version != QUEUE_VERSION ||
        header.slot_size != sizeof(struct queue_slot) || lay_out(&expected) != header.size ||
        header.size > shoal_region_size(queue->region) ||
        memcmp(&expected, &header, offsetof(struct queue_header, unused0)) != 0)
        goto close_region;
    error = shoal_heap_attach(fds[1], &queue->heap);
    if (error != 0)
        goto close_region;
    error = fds[2] < 0 ? -EBADF : watch_open(queue, fds[2]);
    if (error != 0)
        goto release_heap;
    point_into(queue, &header);
    *out = queue;
    return 0;

release_heap:
    shoal_heap_release(queue->heap);
close_region:
    shoal_region_close(queue->region);
free_queue:
    free(queue);
    return error;
}

void shoal_queue_fds(const shoal_queue *queue, int fds[SHOAL_QUEUE_FDS])
{
    fds[0] = shoal_region_fd(queue->region);
    fds[1] = shoal_heap_fd(queue->heap);
    fds[2] = queue->watch_fd;
}

void shoal_queue_close(shoal_queue *queue)
{
    if (queue == NULL)
        return;
    shoal_region_close(queue->region);
    shoal_heap_release(queue->heap);
    close(queue->watch_fd);
    free(queue);
}

shoal_heap *shoal_queue_heap(const shoal_queue *queue)
{
    return queue->heap;
}

int shoal_queue_owner(shoal_queue *queue, uint32_t *owner)
{
    uint32_t index;
    int error = participant_self(queue, &index);
    if (error == 0)
        *owner = index + 1;
    return error;
}

uint64_t shoal_queue_count(const shoal_queue *queue)
{
    uint64_t head = atomic_load_explicit(&queue->header->head, memory_order_relaxed);
    uint64_t tail = atomic_load_explicit(&queue->header->tail, memory_order_relaxed);
    return tail > head ? tail - head : 0;
}

uint64_t shoal_queue_capacity(const shoal_queue *queue)
{
    return queue->capacity;
}

/* ------------------------------------------------------------------ contents ---- */

static size_t padded(size_t size)
{
    return (size + 7) & ~(size_t)7;
}

/* The contents of a slot that nobody writes; false: malformed. */
static bool read_contents(shoal_queue *queue, const struct queue_slot *slot, shoal_item *out)
{
    const uint32_t size = slot->size, form = slot->form, blocks = form & SHOAL_ITEM_BLOCKS;
    const shoal_block block = slot->block;
    const size_t span = padded(size) + (size_t)blocks * sizeof(shoal_block);
    const uint8_t *bytes = slot->bytes;
    size_t capacity = SHOAL_RECEIVED_INLINE;
    if (block != 0)
        bytes = shoal_heap_pointer(queue->heap, block, &capacity);
    if (bytes == NULL || span > capacity)
        return false;
    *out = (shoal_item){
        .data = bytes,
        .size = size,
        .blocks = blocks == 0 ? NULL : (const shoal_block *)(const void *)(bytes + padded(size)),
        .block_count = blocks,
        .kind = form >> QSLOT_KIND_SHIFT,
    };
    return true;
}

/* Hand an item's memory from one owner to another, where it is the first one's. */
static void give_contents(shoal_queue *queue, shoal_block block, const shoal_item *item, uint32_t from, uint32_t to)
{
    if (block != 0)
        (void)shoal_heap_give(queue->heap, block, from, to);
    for (uint32_t i = 0; i < item->block_count; i++)
        (void)shoal_heap_give(queue->heap, item->blocks[i], from, to);
}

/* Take the contents of a slot in this process's hands over, with their memory. False: malformed; out->block is this
 * process's all the same, or 0. */
static bool take_contents(shoal_queue *queue, struct queue_slot *slot, uint32_t self, shoal_received *out)
{
    out->block = slot->block;
    bool sound = read_contents(queue, slot, &out->item);
    if (!sound) {
        if (out->block != 0 && shoal_heap_give(queue->heap, out->block, 0, self + 1) != 0)
            out->block = 0;
        return false;
    }
    if (out->block == 0) {
        memcpy(out->bytes, slot->bytes, sizeof out->bytes);
        out->item.data = out->bytes;
        if (out->item.blocks != NULL)
            out->item.blocks = (const shoal_block *)(const void *)(out->bytes + padded(out->item.size));
    }
    give_contents(queue, out->block, &out->item, 0, self + 1);
    return true;
}

static void free_if_owned(shoal_queue *queue, shoal_block block, uint32_t owner)
{
    uint32_t found;
    if (block != 0 && shoal_heap_owner(queue->heap, block, &found) == 0 && found == owner)
        (void)shoal_heap_free(queue->heap, block);
}

/* ------------------------------------------------------------------ the ends ---- */

/* Help the head past slots that are DONE. */
static void advance_head(shoal_queue *queue)
{
    struct queue_header *header = queue->header;
    bool moved = false;
    for (;;) {
        /* acquire: the tail read next is at least as new */
        uint64_t head = atomic_load_explicit(&header->head, memory_order_acquire);
        if (head >= atomic_load_explicit(&header->tail, memory_order_acquire))
            break;
        struct queue_slot *slot = slot_find(queue, head);
        if (slot == NULL) {
            if (atomic_load_explicit(&header->head, memory_order_acquire) == head)
                break; /* claimed by nobody yet: the tail's hint is ahead of nothing */
            continue;
        }
        /* acquire: the reader of a DONE slot is through with it before the slot is used again */
        uint64_t word = atomic_load_explicit(&slot->state, memory_order_acquire);
        if (qslot_position(word) == head && qslot_state(word) != QSLOT_DONE)
            break;
        /* release: whoever sees the new head sees that the slot is DONE */
        if (atomic_compare_exchange_strong_explicit(&header->head, &head, head + 1, memory_order_acq_rel,
                                                    memory_order_relaxed)) {
            moved = true;
            if ((head + 1) % SEGMENT_SLOTS == 0)
                segment_retire(queue, head);
        }
    }
    if (moved && queue->capacity != 0)
        (void)eventcount_notify_one(&header->space);
}

/* The slot of a producer that died half way is this process's (DROPPING): free what it had given to the queue already.
 * What it had not is swept with the rest of its own. */
static void drop(shoal_queue *queue, struct queue_slot *slot, uint64_t position, uint32_t self)
{
    shoal_received dropped;
    bool sound = take_contents(queue, slot, self, &dropped);
    uint64_t dropping = qslot_word(position, self, QSLOT_DROPPING);
    /* release: this process is through with the slot before anybody uses it again */
    atomic_compare_exchange_strong_explicit(&slot->state, &dropping, qslot_word(position, 0, QSLOT_DONE),
                                            memory_order_release, memory_order_relaxed);
    for (uint32_t i = 0; sound && i < dropped.item.block_count; i++)
        free_if_owned(queue, dropped.item.blocks[i], self + 1);
    free_if_owned(queue, dropped.block, self + 1);
}

/* A slot in another's hands: settle it if its owner is dead. True: it was. */
static bool settle_dead(shoal_queue *queue, uint32_t self, struct queue_slot *slot, uint64_t word)
{
    uint32_t owner = qslot_owner(word);
    uint64_t position = qslot_position(word);
    if (participant_alive(queue, owner) || position_is_passed(queue, position)) /* passed: its segment came too late */
        return false;
    if (qslot_state(word) == QSLOT_READING) {
        /* Its item is given to the next one. What it had taken over goes back to the queue before that: as soon as the
         * slot is not the dead one's any more, all that it owns may be swept. */
        shoal_item item;
        if (read_contents(queue, slot, &item))
            give_contents(queue, slot->block, &item, owner + 1, 0);
        /* acq_rel: what the dead process wrote is passed on to the next owner of the slot */
        atomic_compare_exchange_strong_explicit(&slot->state, &word, qslot_next(word, 0, QSLOT_FULL) ^ QSLOT_TURN,
                                                memory_order_acq_rel, memory_order_relaxed);
    } else if (atomic_compare_exchange_strong_explicit(&slot->state, &word, qslot_word(position, self, QSLOT_DROPPING),
                                                       memory_order_acq_rel, memory_order_relaxed)) {
        drop(queue, slot, position, self);
        advance_head(queue);
    }
    return true;
}

enum scan { SCAN_EMPTY, SCAN_CLAIMED, SCAN_BUSY };

/* Whether to ask now if the owners of slots live: that costs a look into /proc, too much for each of a thousand calls.
 */
static bool may_ask(_Atomic int64_t *asked_at)
{
    int64_t now = shoal_clock_now();
    if (now - atomic_load_explicit(asked_at, memory_order_relaxed) < OWNER_SLICE)
        return false;
    atomic_store_explicit(asked_at, now, memory_order_relaxed);
    return true;
}

/* Where to begin the search for a FULL slot: at the head; but while somebody reads the item at the head for long, or
 * died over it, thousands may be taken behind it, and to pass all of those for each item would take for ever (34 s for
 * 100,000). Then at the place up to which all were seen DONE or being read, and only now and then at the head again,
 * with a look at who lives. Never past a slot that is being written: the same producer's next item must not come first
 * (what lies behind such a slot is passed.c's).
 */
static uint64_t scan_from(shoal_queue *queue, uint64_t head, bool *bury)
{
    uint64_t scanned = atomic_load_explicit(&queue->scanned, memory_order_relaxed);
    if (*bury || scanned < head + SEGMENT_SLOTS)
        return head;
    if (!may_ask(&queue->get_asked_at))
        return scanned;
    *bury = true;
    return head;
}

/* The search from the head took long, where much was passed: the next one is put off for four times as long. */
static void put_off_asking(shoal_queue *queue)
{
    int64_t now = shoal_clock_now(), began = atomic_load_explicit(&queue->get_asked_at, memory_order_relaxed);
    if (now > began)
        atomic_store_explicit(&queue->get_asked_at, now + 4 * (now - began), memory_order_relaxed);
}

/* A slot that was being read is FULL again. */
static void scan_from_head(shoal_queue *queue)
{
    static const struct passed nothing;
    atomic_store_explicit(&queue->scanned, 0, memory_order_relaxed);
    if (atomic_load_explicit(&queue->passed.until, memory_order_relaxed) != 0)
        passed_store(queue, &nothing);
}

/* The slot at `at` was claimed by a search from `from` on that began with `before` and passed `passed`. */
static void note_passed(shoal_queue *queue, uint64_t from, uint64_t at, const struct passed *before,
                        struct passed *passed)
{
    atomic_store_explicit(&queue->scanned, passed->count > 0 ? passed->written[0] : at + 1, memory_order_relaxed);
    if (passed->count == 0 || at - from < SEGMENT_SLOTS)
        return;
    if (passed->until == 0)
        passed->until = at + 1;
    if (passed->until >= before->until + PASSED_STEP)
        passed_store(queue, passed);
}

/* Claim the first FULL slot, whose word is *claimed then. SCAN_BUSY: there is none, but some are being written or read.
 * With `bury`, slots of dead owners are settled. */
static enum scan claim_full(shoal_queue *queue, uint32_t self, bool bury, struct queue_slot **out, uint64_t *claimed)
{
    struct queue_header *header = queue->header;
    const bool told_to_bury = bury;
    bool busy = false, again;
    do {
        uint64_t head = atomic_load_explicit(&header->head, memory_order_acquire);
        uint64_t tail = atomic_load_explicit(&header->tail, memory_order_acquire);
        const uint64_t from = scan_from(queue, head, &bury);
        struct passed before, passed;
        before.until = passed.until = 0;
        before.count = passed.count = 0;
        if (!bury && atomic_load_explicit(&queue->passed.until, memory_order_relaxed) != 0)
            passed_load(queue, &before);
        busy = again = false;
        for (uint64_t at = passed_next(&before, from); at < tail; at = passed_next(&before, at + 1)) {
            struct queue_slot *slot = slot_find(queue, at);
            if (slot == NULL)
                continue;
            uint64_t word = atomic_load_explicit(&slot->state, memory_order_relaxed);
            if (qslot_position(word) != at)
                continue; /* passed and used again since */
            if (qslot_state(word) == QSLOT_FULL) {
                if (!bury && at - from >= SEGMENT_SLOTS && may_ask(&queue->get_asked_at)) {
                    /* Much was passed, as it lies behind a slot that is being written: perhaps by a dead producer. */
                    bury = again = true;
                    break;
                }
                const uint64_t reading = qslot_next(word, self, QSLOT_READING);
                /* acquire: pairs with the release in put; the contents come with it */
                if (atomic_compare_exchange_strong_explicit(&slot->state, &word, reading, memory_order_acquire,
                                                            memory_order_relaxed)) {
                    if (bury && !told_to_bury)
                        put_off_asking(queue);
                    note_passed(queue, from, at, &before, &passed);
                    *out = slot;
                    *claimed = reading;
                    return SCAN_CLAIMED;
                }
                busy = true; /* another was faster, and may die with it */
            } else if (qslot_is_held(word)) {
                busy = true;
                if (qslot_state(word) != QSLOT_READING)
                    passed_add(&passed, at);
                if (bury && settle_dead(queue, self, slot, word))
                    again = true;
            }
        }
        if (from > head || before.until > from) {
            /* One that was passed may be FULL again. */
            scan_from_head(queue);
            again = true;
        }
        if (!busy && !again && head < tail)
            advance_head(queue); /* whoever finished these may have died before it could */
    } while (again);
    watch_settle(queue);
    return busy ? SCAN_BUSY : SCAN_EMPTY;
}

static void note_cpu(_Atomic uint32_t *place)
{
    uint32_t cpu = spin_current_cpu();
    if (atomic_load_explicit(place, memory_order_relaxed) != cpu)
        atomic_store_explicit(place, cpu, memory_order_relaxed);
}

static int64_t deadline_after(int64_t timeout)
{
    if (timeout == SHOAL_FOREVER || timeout <= 0)
        return timeout <= 0 ? 0 : SHOAL_FOREVER;
    int64_t now = shoal_clock_now();
    return timeout >= SHOAL_FOREVER - now ? SHOAL_FOREVER : now + timeout;
}

/* How long to sleep at once: never past the deadline. */
static int64_t slice_until(int64_t deadline, int64_t slice)
{
    int64_t now = shoal_clock_now();
    return deadline - now < slice ? deadline : now + slice;
}

/* ----------------------------------------------------------------------- put ---- */

/* Whether one more item may be put. */
static bool has_space(const shoal_queue *queue)
{
    return queue->capacity == 0 || shoal_queue_count(queue) < queue->capacity;
}

/* The head may be held up by a process that died, over its slot or before it could move the head past it. Out: whether
 * the slot is in the hands of any. True: look again. */
static bool settle_head(shoal_queue *queue, uint32_t self, bool *busy)
{
    uint64_t head = atomic_load_explicit(&queue->header->head, memory_order_acquire);
    struct queue_slot *slot = slot_find(queue, head);
    uint64_t word = slot == NULL ? 0 : atomic_load_explicit(&slot->state, memory_order_relaxed);
    *busy = qslot_is_held(word) && qslot_position(word) == head;
    if (qslot_state(word) == QSLOT_DONE && qslot_position(word) == head) {
        advance_head(queue);
        return true;
    }
    return *busy && settle_dead(queue, self, slot, word);
}

/* Sleep until there may be space. 0: look again. */
static int wait_for_space(shoal_queue *queue, uint32_t self, int64_t deadline)
{
    struct queue_header *header = queue->header;
    bool ready = false;
    struct spin spin =
        spin_begin(&queue->space_spin, atomic_load_explicit(&header->consumer_cpu, memory_order_relaxed));
    while (!(ready = has_space(queue)) && spin_again(&spin)) {
    }
    spin_end(&spin, ready);
    if (ready)
        return 0;
    uint32_t seen = eventcount_prepare(&header->space);
    if (has_space(queue))
        return 0;
    bool busy;
    if (settle_head(queue, self, &busy))
        return 0;
    int error = eventcount_wait(&header->space, seen, slice_until(deadline, busy ? OWNER_SLICE : EVENTCOUNT_SLICE));
    if (error == -ETIMEDOUT)
        error = deadline != SHOAL_FOREVER && shoal_clock_now() >= deadline ? -ETIMEDOUT : 0;
    return error;
}

/* Claim the slot at the tail. */
static int claim_free(shoal_queue *queue, uint32_t self, int64_t deadline, struct queue_slot **out, uint64_t *position)
{
    struct queue_header *header = queue->header;
    bool slept = false;
    for (;;) {
        uint64_t tail = atomic_load_explicit(&header->tail, memory_order_acquire);
        if (queue->capacity != 0 && !has_space(queue)) {
            bool busy;
            if (deadline == 0) {
                /* Nobody may ever wait here, and the dead must not keep the queue full all the same. */
                if (!may_ask(&queue->put_asked_at) || !settle_head(queue, self, &busy))
                    return -ETIMEDOUT;
                continue;
            }
            int error = wait_for_space(queue, self, deadline);
            if (error != 0)
                return error;
            slept = true;
            continue;
        }
        struct queue_slot *slot = slot_find(queue, tail);
        if (slot == NULL) {
            if (atomic_load_explicit(&header->tail, memory_order_acquire) != tail)
                continue;
            int error = segment_provide(queue, tail);
            if (error != 0)
                return error;
            continue;
        }
        uint64_t expected = qslot_word(tail, 0, QSLOT_FREE);
        /* acquire: pairs with the hand-over of the segment; nothing of the slot's last use is read after it */
        bool claimed = atomic_compare_exchange_strong_explicit(
            &slot->state, &expected, qslot_word(tail, self, QSLOT_WRITING), memory_order_acquire, memory_order_relaxed);
        /* Whoever claimed it may be dead: everybody helps the tail on. seq_cst: who sees the tail sees the claim, and
         * watch_tell() looks for the flag only then. */
        if (claimed || qslot_position(expected) == tail) {
            uint64_t behind = tail;
            atomic_compare_exchange_strong_explicit(&header->tail, &behind, tail + 1, memory_order_seq_cst,
                                                    memory_order_seq_cst);
        }
        if (claimed && !position_is_passed(queue, tail)) { /* passed: a segment that came too late */
            *out = slot;
            *position = tail;
            if (slept && has_space(queue))
                (void)eventcount_notify_one(&header->space); /* pass the wake on */
            return 0;
        }
    }
}

static void write_contents(uint8_t *at, const shoal_item *item)
{
    if (item->size > 0)
        memcpy(at, item->data, item->size);
    if (item->block_count > 0)
        memcpy(at + padded(item->size), item->blocks, item->block_count * sizeof(shoal_block));
}

static int allocate(shoal_queue *queue, size_t size, uint32_t owner, shoal_block *block)
{
    int error = shoal_heap_allocate(queue->heap, size, owner, block);
    if (error == -ENOMEM) {
        participants_sweep(queue); /* the dead may hold what is needed */
        error = shoal_heap_allocate(queue->heap, size, owner, block);
    }
    return error;
}

int shoal_queue_put_item(shoal_queue *queue, const shoal_item *item, int64_t timeout)
{
    if (item->size > INT32_MAX || item->block_count > SHOAL_ITEM_BLOCKS)
        return -EMSGSIZE;
    if (item->kind >= SHOAL_ITEM_KINDS)
        return -EINVAL;
    const int64_t deadline = deadline_after(timeout);
    uint32_t self;
    int error = participant_self(queue, &self);
    if (error != 0)
        return error;
    const size_t size = padded(item->size) + (size_t)item->block_count * sizeof(shoal_block);
    shoal_block block = 0;
    if (size > SHOAL_RECEIVED_INLINE) {
        error = allocate(queue, size, self + 1, &block);
        if (error != 0)
            return error;
        if (item->block_count == 0) {
            error = shoal_heap_write(queue->heap, block, 0, item->data, item->size);
            if (error != 0)
                goto free_block;
        } else {
            write_contents(shoal_heap_pointer(queue->heap, block, NULL), item);
        }
    }
    struct queue_slot *slot;
    uint64_t position;
    error = claim_free(queue, self, deadline, &slot, &position);
    if (error != 0)
        goto free_block;
    slot->size = (uint32_t)item->size;
    slot->block = block;
    if (block == 0)
        write_contents(slot->bytes, item);
    /* Should this process die from here on, who drops the item finds in the slot what was given to the queue. The fence
     * is one for the compiler: a dead process's stores are all there, in their order. */
    atomic_signal_fence(memory_order_release);
    slot->form = item->block_count | item->kind << QSLOT_KIND_SHIFT;
    give_contents(queue, block, item, self + 1, 0);
    watch_tell(queue);
    uint64_t writing = qslot_word(position, self, QSLOT_WRITING);
    /* release: pairs with the acquire in claim_full; publishes the contents. From here on the item is there. */
    atomic_compare_exchange_strong_explicit(&slot->state, &writing, qslot_word(position, 0, QSLOT_FULL),
                                            memory_order_release, memory_order_relaxed);
    note_cpu(&queue->header->producer_cpu);
    (void)eventcount_notify_one(&queue->header->items);
    return 0;

free_block:
    if (block != 0)
        (void)shoal_heap_free(queue->heap, block);
    return error;
}

int shoal_queue_put(shoal_queue *queue, const void *data, size_t size, int64_t timeout)
{
    const shoal_item item = {.data = data, .size = size};
    return shoal_queue_put_item(queue, &item, timeout);
}

/* ----------------------------------------------------------------------- get ---- */

/* Claim a FULL slot, waiting for one. */
static int wait_and_claim(shoal_queue *queue, uint32_t self, int64_t deadline, struct queue_slot **slot,
                          uint64_t *claimed)
{
    struct queue_header *header = queue->header;
    if (claim_full(queue, self, false, slot, claimed) == SCAN_CLAIMED)
        return 0;
    enum scan found = SCAN_EMPTY;
    if (deadline == 0) {
        /* A dead process's slot must not hide what it held from those who never wait. */
        if (shoal_queue_count(queue) == 0 || !may_ask(&queue->get_asked_at))
            return -ETIMEDOUT;
        return claim_full(queue, self, true, slot, claimed) == SCAN_CLAIMED ? 0 : -ETIMEDOUT;
    }
    struct spin spin = spin_begin(&queue->item_spin, atomic_load_explicit(&header->producer_cpu, memory_order_relaxed));
    while ((found = claim_full(queue, self, false, slot, claimed)) != SCAN_CLAIMED && spin_again(&spin)) {
    }
    spin_end(&spin, found == SCAN_CLAIMED);
    while (found != SCAN_CLAIMED) {
        uint32_t seen = eventcount_prepare(&header->items);
        found = claim_full(queue, self, found == SCAN_BUSY, slot, claimed);
        if (found == SCAN_CLAIMED)
            break;
        int error = eventcount_wait(&header->items, seen,
                                    slice_until(deadline, found == SCAN_BUSY ? OWNER_SLICE : EVENTCOUNT_SLICE));
        if (error == -EINTR)
            return error;
        if (error == -ETIMEDOUT && deadline != SHOAL_FOREVER && shoal_clock_now() >= deadline)
            return -ETIMEDOUT;
    }
    if (shoal_queue_count(queue) > 1)
        (void)eventcount_notify_one(&header->items); /* pass the wake on */
    return 0;
}

/* The same for the calling process, which becomes a participant if it is none yet. */
static int claim_within(shoal_queue *queue, int64_t timeout, uint32_t *self, struct queue_slot **slot,
                        uint64_t *claimed)
{
    const int64_t deadline = deadline_after(timeout);
    const int error = participant_self(queue, self);
    return error != 0 ? error : wait_and_claim(queue, *self, deadline, slot, claimed);
}

/* This process is through with the slot that it claimed, whose word that made `reading`. */
static void finish_reading(shoal_queue *queue, struct queue_slot *slot, uint64_t reading, enum queue_slot_state next)
{
    /* release: this process is through with the slot before anybody uses it again */
    atomic_compare_exchange_strong_explicit(&slot->state, &reading, qslot_next(reading, 0, next), memory_order_release,
                                            memory_order_relaxed);
    if (next == QSLOT_DONE) {
        advance_head(queue);
        watch_settle(queue);
    } else {
        scan_from_head(queue);
        (void)eventcount_notify_one(&queue->header->items);
    }
}

int shoal_queue_get_item(shoal_queue *queue, int64_t timeout, shoal_received *out)
{
    uint32_t self;
    struct queue_slot *slot;
    uint64_t claimed;
    const int error = claim_within(queue, timeout, &self, &slot, &claimed);
    if (error != 0)
        return error;
    bool sound = take_contents(queue, slot, self, out);
    finish_reading(queue, slot, claimed, QSLOT_DONE);
    note_cpu(&queue->header->consumer_cpu);
    if (!sound)
        shoal_queue_release(queue, out);
    return sound ? 0 : -EBADMSG;
}

void shoal_queue_release(shoal_queue *queue, shoal_received *received)
{
    if (received->block != 0)
        (void)shoal_heap_free(queue->heap, received->block);
    received->block = 0;
}

int shoal_queue_get(shoal_queue *queue, void *buffer, size_t capacity, int64_t timeout, size_t *size)
{
    uint32_t self;
    struct queue_slot *slot;
    uint64_t claimed;
    const int error = claim_within(queue, timeout, &self, &slot, &claimed);
    if (error != 0)
        return error;
    shoal_item item;
    const shoal_block block = slot->block;
    bool sound = read_contents(queue, slot, &item);
    if (sound && item.size > capacity) {
        *size = item.size;
        finish_reading(queue, slot, claimed, QSLOT_FULL);
        return -EMSGSIZE;
    }
    if (sound) {
        memcpy(buffer, item.data, item.size);
        *size = item.size;
    }
    /* This process's before the item is DONE: should it die between the two, the block is swept with its own. */
    bool owned = block != 0 && shoal_heap_give(queue->heap, block, 0, self + 1) == 0;
    finish_reading(queue, slot, claimed, QSLOT_DONE);
    if (owned)
        (void)shoal_heap_free(queue->heap, block);
    note_cpu(&queue->header->consumer_cpu);
    return sound ? 0 : -EBADMSG;
}
