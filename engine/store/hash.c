/* store/hash.c: streaming XXH3-128, and the digest of large data by several threads (hash.h).
 *
 * Helper threads exist only while one call runs: they are started for HASH_PARALLEL bytes or more, where 30 us for a
 * thread do not count, and joined before the call returns, so nothing outlives it and a fork finds no state of ours.
 * Called by entry.c, memo.c and, for keys, by the binding.
 */
#include "store/hash.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

/* Compiled in: the state may then lie on the stack, and short keys are hashed without a call. */
#define XXH_INLINE_ALL
#include <xxhash.h>

#include "base/thread.h"
#include "shoal.h"
#include "store/hash_avx2.h"

#define HASH_PARALLEL ((size_t)16 << 20)
#define HASH_THREADS 8u /* two saturate the memory of a small machine; a large one has more channels */

static_assert(SHOAL_DIGEST_SIZE == sizeof(XXH128_canonical_t) && HASH_DIGEST == SHOAL_DIGEST_SIZE, "one digest");

struct shoal_hash {
    XXH3_state_t state; /* aligned to 64, as its vector code needs */
};

int shoal_hash_create(shoal_hash **out)
{
    shoal_hash *hash = aligned_alloc(_Alignof(shoal_hash), sizeof *hash);
    if (hash == NULL)
        return -ENOMEM;
    shoal_hash_reset(hash);
    *out = hash;
    return 0;
}

void shoal_hash_close(shoal_hash *hash)
{
    free(hash);
}

void shoal_hash_reset(shoal_hash *hash)
{
    (void)XXH3_128bits_reset(&hash->state);
}

void shoal_hash_update(shoal_hash *hash, const void *data, size_t size)
{
    if (size != 0)
        (void)XXH3_128bits_update(&hash->state, data, size);
}

void shoal_hash_digest(const shoal_hash *hash, uint8_t digest[SHOAL_DIGEST_SIZE])
{
    XXH128_canonical_t canonical;
    XXH128_canonicalFromHash(&canonical, XXH3_128bits_digest(&hash->state));
    memcpy(digest, canonical.digest, sizeof canonical.digest);
}

void shoal_digest(const void *data, size_t size, uint8_t digest[SHOAL_DIGEST_SIZE])
{
    struct iovec piece = {(void *)(uintptr_t)data, size};
    hash_pieces(&piece, 1, digest);
}

/* Where a chunk begins: piece `index`, `offset` bytes into it. */
struct position {
    size_t index, offset;
};

static XXH128_hash_t hash_contiguous(const void *data, size_t size)
{
    if (!hash_suits_avx2(size))
        return XXH3_128bits(data, size);
    XXH128_canonical_t canonical;
    hash_avx2(data, size, canonical.digest);
    return XXH128_hashFromCanonical(&canonical);
}

/* The digest of `length` bytes from `from` on; `from` moves behind them. */
static XXH128_hash_t hash_run(const struct iovec *pieces, struct position *from, size_t length)
{
    if (length == 0)
        return XXH3_128bits("", 0);
    while (pieces[from->index].iov_len == from->offset)
        *from = (struct position){from->index + 1, 0};
    const struct iovec *piece = &pieces[from->index];
    if (piece->iov_len - from->offset >= length) {
        XXH128_hash_t hash = hash_contiguous((const char *)piece->iov_base + from->offset, length);
        from->offset += length;
        return hash;
    }

    XXH3_state_t state;
    (void)XXH3_128bits_reset(&state);
    while (length != 0) {
        piece = &pieces[from->index];
        size_t here = piece->iov_len - from->offset;
        if (here > length)
            here = length;
        if (here != 0)
            (void)XXH3_128bits_update(&state, (const char *)piece->iov_base + from->offset, here);
        from->offset += here;
        length -= here;
        if (length != 0)
            *from = (struct position){from->index + 1, 0};
    }
    return XXH3_128bits_digest(&state);
}

/* A large digest that several threads work on. Each takes a span of chunks at a time; digests[i] is written by the
 * thread that took chunk i and read after all were joined. */
struct large {
    const struct iovec *pieces;
    size_t total, chunks;
    XXH128_canonical_t *digests;
    _Atomic size_t next; /* the first chunk that nobody has taken */
};

#define SPAN 8u /* chunks a thread takes at once */

static void *work_on_large(void *context)
{
    struct large *large = context;
    struct position position = {0, 0};
    size_t at = 0; /* the chunk at which `position` is */
    for (;;) {
        /* relaxed: only the number matters, the bytes were there before the threads were started */
        size_t first = atomic_fetch_add_explicit(&large->next, SPAN, memory_order_relaxed);
        if (first >= large->chunks)
            return NULL;
        size_t skip = (first - at) * HASH_CHUNK;
        while (skip != 0) {
            size_t here = large->pieces[position.index].iov_len - position.offset;
            if (here > skip) {
                position.offset += skip;
                skip = 0;
            } else {
                position = (struct position){position.index + 1, 0};
                skip -= here;
            }
        }
        size_t end = first + SPAN < large->chunks ? first + SPAN : large->chunks;
        for (at = first; at < end; at++) {
            size_t offset = at * HASH_CHUNK;
            size_t length = large->total - offset < HASH_CHUNK ? large->total - offset : HASH_CHUNK;
            XXH128_canonicalFromHash(&large->digests[at], hash_run(large->pieces, &position, length));
        }
    }
}

static size_t helpers_for(size_t total)
{
    if (total < HASH_PARALLEL)
        return 0;
    cpu_set_t cpus;
    int count = sched_getaffinity(0, sizeof cpus, &cpus) == 0 ? CPU_COUNT(&cpus) : 1;
    if (count > (int)HASH_THREADS)
        count = (int)HASH_THREADS;
    return count > 1 ? (size_t)count - 1 : 0;
}

static void run_large(struct large *large)
{
    pthread_t threads[HASH_THREADS];
    size_t started = 0, wanted = helpers_for(large->total);
    while (started < wanted && thread_start(&threads[started], work_on_large, large, 0) == 0)
        started++;
    (void)work_on_large(large);
    for (size_t i = 0; i < started; i++)
        (void)pthread_join(threads[i], NULL);
}

/* Without memory for the chunks' digests: one after the other. The same result. */
static XXH128_hash_t run_serially(const struct iovec *pieces, size_t total)
{
    XXH3_state_t state;
    struct position position = {0, 0};
    XXH3_INITSTATE(&state); /* the reset looks at the seed that was there */
    (void)XXH3_128bits_reset_withSeed(&state, (XXH64_hash_t)total);
    for (size_t offset = 0; offset < total; offset += HASH_CHUNK) {
        XXH128_canonical_t digest;
        size_t length = total - offset < HASH_CHUNK ? total - offset : HASH_CHUNK;
        XXH128_canonicalFromHash(&digest, hash_run(pieces, &position, length));
        (void)XXH3_128bits_update(&state, &digest, sizeof digest);
    }
    return XXH3_128bits_digest(&state);
}

void hash_pieces(const struct iovec *pieces, size_t count, uint8_t digest[HASH_DIGEST])
{
    size_t total = 0;
    for (size_t i = 0; i < count; i++)
        total += pieces[i].iov_len;

    XXH128_hash_t hash;
    struct position start = {0, 0};
    if (total <= HASH_CHUNK) {
        hash = hash_run(pieces, &start, total);
    } else {
        struct large large = {.pieces = pieces, .total = total, .chunks = (total + HASH_CHUNK - 1) / HASH_CHUNK};
        large.digests = malloc(large.chunks * sizeof *large.digests);
        if (large.digests != NULL) {
            run_large(&large);
            hash = XXH3_128bits_withSeed(large.digests, large.chunks * sizeof *large.digests, (XXH64_hash_t)total);
            free(large.digests);
        } else {
            hash = run_serially(pieces, total);
        }
    }
    XXH128_canonical_t canonical;
    XXH128_canonicalFromHash(&canonical, hash);
    memcpy(digest, canonical.digest, sizeof canonical.digest);
}
