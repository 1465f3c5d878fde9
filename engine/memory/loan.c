/* memory/loan.c: blocks shown to code that takes them for its own private memory, and what a fork makes of them.
 *
 * A lent block lies in a shared mapping. Private memory that a process forks with is copied on write; so, before each
 * fork, the pages of all lent blocks are mapped anew as private, at the same addresses: parent and child go on with the
 * contents as they are, each with its own from then on. The pages in the file are what both rest on, so such a block is
 * retired: nobody may use it until the loan was returned and all that were forked meanwhile, and what these forked, are
 * gone. (Their mapping of the block stays private, whether they returned their share or not.)
 *
 * Whether they are gone is told by a token a fork: an empty memory file, which the parent has mapped, shared,
 * during the fork only. Whoever descends from that fork has the mapping for as long as it lives or until it executes
 * another program, exactly as it has the block's; and while anybody has it, the kernel refuses to seal the file against
 * writing. A mapping, not a descriptor: programs close descriptors that they do not know, as daemons do.
 *
 * Invariant: a token is in the list, or nobody descends from its fork any more. A block is free again when no token is
 * left of the forks between its retirement and its return.
 *
 * The lists and their lock are global to the process, and documented as such: fork hooks have no argument. The lock is
 * taken before a heap's own.
 */
#include "memory/heap.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

struct shoal_loan {
    shoal_heap *heap;
    shoal_block block;
    uint32_t start, pages;
    bool inherited;      /* from before a fork: the parent's to give back */
    bool retired;        /* before the fork `first_fork` */
    bool lost;           /* who rests on it is not known: it stays retired for good */
    uint64_t first_fork; /* of those that have a share in it, and once it was returned the last */
    uint64_t last_fork;
    struct shoal_loan *previous, *next;
};

struct token {
    uint64_t fork;
    int fd;
    struct token *next;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* of all below, held across a fork */
static shoal_loan *loans;
static shoal_loan *returned; /* retired, and waiting for the end of those who rest on them; these hold no heap */
static struct token *tokens;
static uint64_t forks; /* the last one that loans were made private for */
static void *token_mapping = MAP_FAILED;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void link_loan(shoal_loan **list, shoal_loan *loan)
{
    loan->previous = NULL;
    loan->next = *list;
    if (*list != NULL)
        (*list)->previous = loan;
    *list = loan;
}

static void unlink_loan(shoal_loan **list, shoal_loan *loan)
{
    if (loan->previous != NULL)
        loan->previous->next = loan->next;
    else
        *list = loan->next;
    if (loan->next != NULL)
        loan->next->previous = loan->previous;
}

static bool map_pages(const shoal_loan *loan, int sharing)
{
    uint8_t *base = (uint8_t *)loan->heap->header + loan->block;
    return mmap(base, (size_t)loan->pages * HEAP_PAGE, PROT_READ | PROT_WRITE, sharing | MAP_FIXED | MAP_NORESERVE,
                shoal_region_fd(loan->heap->region), (off_t)loan->block) != MAP_FAILED;
}

static void make_private(shoal_loan *loan)
{
    /* Retired first: if the mapping fails, the memory stays shared with the child, but nobody else ever writes it. */
    heap_retire(loan->heap, loan->start);
    loan->retired = true;
    loan->first_fork = forks;
    if (!map_pages(loan, MAP_PRIVATE))
        loan->lost = true;
}

/* ----------------------------------------------------- who descends from a fork ---- */

/* The token of the fork that is about to be; false: it will not be known who descends from it. */
static bool make_token(void)
{
    struct token *token = malloc(sizeof *token);
    if (token == NULL)
        return false;
    *token = (struct token){.fork = forks, .fd = memfd_create("shoal-fork", MFD_CLOEXEC | MFD_ALLOW_SEALING)};
    if (token->fd < 0)
        goto free_token;
    /* The file has no page, and needs none: it is never read. */
    token_mapping = mmap(NULL, HEAP_PAGE, PROT_NONE, MAP_SHARED, token->fd, 0);
    if (token_mapping == MAP_FAILED)
        goto close_token;
    token->next = tokens;
    tokens = token;
    return true;

close_token:
    close(token->fd);
free_token:
    free(token);
    return false;
}

/* Drop the token if nobody has it mapped any more. */
static bool drop_spent(struct token **at)
{
    struct token *token = *at;
    /* EBUSY: somebody has. Any other error, as of a descriptor that the program closed: nobody knows, so it stays. */
    if (fcntl(token->fd, F_ADD_SEALS, F_SEAL_WRITE) != 0)
        return false;
    *at = token->next;
    close(token->fd);
    free(token);
    return true;
}

static bool is_rested_on(const shoal_loan *loan)
{
    for (const struct token *token = tokens; token != NULL; token = token->next) {
        if (token->fork >= loan->first_fork && token->fork <= loan->last_fork)
            return true;
    }
    return false;
}

/* Look for forks whose descendants are gone, at so many tokens, and free the blocks that only they rested on. Locked.
 */
static void reclaim(unsigned most)
{
    bool dropped = false;
    struct token **at = &tokens;
    while (*at != NULL && most-- > 0) {
        if (drop_spent(at))
            dropped = true;
        else
            at = &(*at)->next;
    }
    if (*at != NULL && at != &tokens) {
        /* Those that were looked at go behind the others, for the next call to begin there. */
        struct token *rest = *at, **end = &rest;
        *at = NULL;
        while (*end != NULL)
            end = &(*end)->next;
        *end = tokens;
        tokens = rest;
    }
    for (shoal_loan *loan = returned; dropped && loan != NULL;) {
        shoal_loan *next = loan->next;
        if (!is_rested_on(loan)) {
            heap_take_back(loan->heap, loan->start);
            unlink_loan(&returned, loan);
            free(loan);
        }
        loan = next;
    }
}

/* -------------------------------------------------------------------- fork hooks ---- */

static void before_fork(void)
{
    pthread_mutex_lock(&lock);
    reclaim(UINT_MAX);
    bool own = false;
    for (const shoal_loan *loan = loans; loan != NULL && !own; loan = loan->next)
        own = !loan->inherited;
    if (!own)
        return;
    forks++;
    const bool known = make_token();
    for (shoal_loan *loan = loans; loan != NULL; loan = loan->next) {
        if (!loan->retired)
            make_private(loan);
        if (!known)
            loan->lost = true;
    }
}

static void unmap_token(void)
{
    if (token_mapping != MAP_FAILED)
        munmap(token_mapping, HEAP_PAGE);
    token_mapping = MAP_FAILED;
}

static void after_fork_in_parent(void)
{
    unmap_token();
    pthread_mutex_unlock(&lock);
}

static void after_fork_in_child(void)
{
    token_mapping = MAP_FAILED; /* stays mapped: that is what tells of us */
    for (shoal_loan *loan = loans; loan != NULL; loan = loan->next)
        loan->inherited = true;
    /* The rest is the parent's affair. */
    while (returned != NULL) {
        shoal_loan *loan = returned;
        returned = loan->next;
        free(loan);
    }
    while (tokens != NULL) {
        struct token *token = tokens;
        tokens = token->next;
        close(token->fd);
        free(token);
    }
    pthread_mutex_unlock(&lock); /* the forking thread took it, and is the child's only one */
}

static void hook_forks(void)
{
    pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);
}

void loan_forget_heap(const shoal_heap *heap)
{
    pthread_mutex_lock(&lock);
    reclaim(UINT_MAX);
    for (shoal_loan *loan = returned; loan != NULL;) {
        shoal_loan *next = loan->next;
        if (loan->heap == heap) {
            unlink_loan(&returned, loan);
            free(loan);
        }
        loan = next;
    }
    pthread_mutex_unlock(&lock);
}

/* ------------------------------------------------------------------------- loans ---- */

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
    link_loan(&loans, loan);
    reclaim(1);
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
    shoal_heap *heap = loan->heap;
    const shoal_block block = loan->block;
    bool is_free = false, is_done = true;
    pthread_mutex_lock(&lock);
    unlink_loan(&loans, loan);
    if (!loan->inherited && !loan->retired) {
        is_free = true;
    } else if (!loan->inherited && !loan->lost && map_pages(loan, MAP_SHARED)) {
        /* Shared again here, where nobody has a use for it: what is written to it later must reach the others. */
        loan->last_fork = forks;
        is_done = !is_rested_on(loan);
        if (is_done)
            heap_take_back(heap, loan->start);
        else
            link_loan(&returned, loan);
    }
    reclaim(1);
    pthread_mutex_unlock(&lock);
    if (is_free)
        (void)shoal_heap_free(heap, block);
    if (is_done)
        free(loan);
    shoal_heap_release(heap);
}
