/* store/inherit.c: descriptors whose locks a child of fork must not keep (inherit.h). Called by claim.c and
 * shelf_write.c. */
#include "store/inherit.h"

#include <pthread.h>
#include <stdatomic.h>
#include <unistd.h>

/* Descriptors, plus one; 0: free. Only for the child of a fork, which has one thread. */
static _Atomic int registered[INHERIT_SLOTS];
static _Atomic uint32_t generation = 1;
static pthread_once_t prepared = PTHREAD_ONCE_INIT;

static void drop_in_child(void)
{
    /* relaxed, here and below: the child has one thread. It may come back to 1 after 2^32 forks of forks. */
    if (atomic_fetch_add_explicit(&generation, 1, memory_order_relaxed) == UINT32_MAX)
        atomic_store_explicit(&generation, 1, memory_order_relaxed);
    for (uint32_t i = 0; i < INHERIT_SLOTS; i++) {
        /* the forking thread sees its own, and another thread's that is half made is at worst kept */
        int fd = atomic_exchange_explicit(&registered[i], 0, memory_order_relaxed) - 1;
        if (fd >= 0)
            (void)close(fd);
    }
}

static void prepare(void)
{
    (void)pthread_atfork(NULL, NULL, drop_in_child);
}

void inherit_prepare(void)
{
    (void)pthread_once(&prepared, prepare);
}

uint32_t inherit_generation(void)
{
    return atomic_load_explicit(&generation, memory_order_relaxed);
}

uint32_t inherit_forbid(int fd)
{
    inherit_prepare();
    for (uint32_t i = 0; i < INHERIT_SLOTS; i++) {
        int expected = 0;
        if (atomic_load_explicit(&registered[i], memory_order_relaxed) == 0 &&
            atomic_compare_exchange_strong_explicit(&registered[i], &expected, fd + 1, memory_order_relaxed,
                                                    memory_order_relaxed))
            return i;
    }
    return INHERIT_SLOTS;
}

void inherit_allow(uint32_t slot)
{
    if (slot < INHERIT_SLOTS)
        atomic_store_explicit(&registered[slot], 0, memory_order_relaxed);
}
