/* memory/loan.c: blocks shown to code that takes them for its own private memory, and what a fork makes of them.
 *
 * A lent block lies in a shared mapping. Private memory that a process forks with is copied on write; so, before each
 * fork, the pages of all lent blocks are mapped anew as private, at the same addresses: parent and child go on with the
 * contents as they are, each with its own from then on. The pages in the file are what both rest on, so such a block is
 * retired: nobody may use it again while the heap lives.
 *
 * The list of loans and its lock are global to the process, and documented as such: fork hooks have no argument.
 */
#include "memory/heap.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>

struct shoal_loan {
    shoal_heap *heap;
    shoal_block block;
    uint32_t start, pages;
    bool inherited; /* from before a fork: the parent's to give back */
    bool retired;
    struct shoal_loan *previous, *next;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* of the list, held across a fork */
static shoal_loan *loans;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void make_private(shoal_loan *loan)
{
    shoal_heap *heap = loan->heap;
    uint8_t *base = (uint8_t *)heap->header + loan->block;
    /* Retired first: if the mapping fails, the memory stays shared with the child, but nobody else ever writes it. */
    heap_lock(heap);
    uint64_t word = atomic_load_explicit(&heap->records[loan->start].word, memory_order_relaxed);
    atomic_store_explicit(&heap->records[loan->start].word,
                          extent_word(EXTENT_RETIRED, EXTENT_WARM, 0, extent_pages_of(word)), memory_order_relaxed);
    heap->header->used_bytes -= (uint64_t)loan->pages * HEAP_PAGE;
    heap->header->blocks--;
    heap_unlock(heap);
    (void)mmap(base, (size_t)loan->pages * HEAP_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED | MAP_NORESERVE,
               shoal_region_fd(heap->region), (off_t)loan->block);
    loan->retired = true;
}

static void before_fork(void)
{
    pthread_mutex_lock(&lock);
    for (shoal_loan *loan = loans; loan != NULL; loan = loan->next) {
        if (!loan->retired)
            make_private(loan);
    }
}

static void after_fork_in_parent(void)
{
    pthread_mutex_unlock(&lock);
}

static void after_fork_in_child(void)
{
    for (shoal_loan *loan = loans; loan != NULL; loan = loan->next)
        loan->inherited = true;
    pthread_mutex_unlock(&lock); /* the forking thread took it, and is the child's only one */
}

static void hook_forks(void)
{
    pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);
}

int shoal_heap_lend(shoal_heap *heap, shoal_block block, shoal_loan **out)
{
    size_t size;
    if (shoal_heap_pointer(heap, block, &size) == NULL || size < SHOAL_VIEW_MINIMUM)
        return -EINVAL;
    uint64_t offset = block - heap->header->data_at;
    if (offset % HEAP_PAGE != 0 || size % HEAP_PAGE != 0)
        return -EINVAL; /* a small block of the largest class */
    shoal_loan *loan = calloc(1, sizeof *loan);
    if (loan == NULL)
        return -ENOMEM;
    pthread_once(&once, hook_forks);
    shoal_heap_retain(heap);
    *loan = (shoal_loan){
        .heap = heap,
        .block = block,
        .start = (uint32_t)(offset / HEAP_PAGE),
        .pages = (uint32_t)(size / HEAP_PAGE),
    };
    pthread_mutex_lock(&lock);
    loan->next = loans;
    if (loans != NULL)
        loans->previous = loan;
    loans = loan;
    pthread_mutex_unlock(&lock);
    *out = loan;
    return 0;
}

void *shoal_loan_pointer(const shoal_loan *loan)
{
    return (uint8_t *)loan->heap->header + loan->block;
}

void shoal_loan_return(shoal_loan *loan)
{
    if (loan == NULL)
        return;
    pthread_mutex_lock(&lock);
    if (loan->previous != NULL)
        loan->previous->next = loan->next;
    else
        loans = loan->next;
    if (loan->next != NULL)
        loan->next->previous = loan->previous;
    pthread_mutex_unlock(&lock);
    if (!loan->retired && !loan->inherited)
        (void)shoal_heap_free(loan->heap, loan->block);
    shoal_heap_release(loan->heap);
    free(loan);
}
