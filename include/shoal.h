/* shoal.h: the public C API of libshoal, all of it.
 *
 * Shoal runs work in parallel over the cores of one Linux machine: processes, pools of them, shared queues and locks,
 * a memo store on disk, many-core kernels. The header is grouped by room, in the order in which a reader meets things.
 *
 * Conventions, which hold unless a call says otherwise:
 *   - A call that can fail returns 0 or a negative code: a negated errno value, or one of the SHOAL_E… codes below.
 *     Out-parameters come last and are written only on success.
 *   - Times are nanoseconds in int64_t; a timeout of 0 does not wait, SHOAL_FOREVER has no limit.
 *     Waiting calls return -EINTR when a signal handler ran, and can be called again.
 *   - Handles (`shoal_noun *`) belong to the process that made them and may be used by all of its threads. What is
 *     shared between processes is the region behind a handle: a child made by fork may go on using a handle it
 *     inherited, unless the call says that it is the owner's alone.
 *   - Nothing is global but what is documented as such, and nothing is printed.
 */
#ifndef SHOAL_H
#define SHOAL_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#ifdef __cplusplus
extern "C" {
#endif

#define SHOAL_VERSION "0.1.0"
#define SHOAL_FOREVER INT64_MAX
#define SHOAL_MICROSECOND INT64_C(1000)
#define SHOAL_MILLISECOND INT64_C(1000000)
#define SHOAL_SECOND INT64_C(1000000000)

#define SHOAL_API __attribute__((visibility("default")))

/* ------------------------------------------------------------------ base ---- */

/** Codes that no errno value expresses. */
enum shoal_error {
    SHOAL_EWORKERDIED = -5001,  /* the worker that held the item died */
    SHOAL_ETASKTIMEOUT = -5002, /* the item ran longer than it may, and its worker was killed */
    SHOAL_ECANCELLED = -5003,   /* the item was taken back before it ran */
    SHOAL_ECORRUPT = -5004,     /* shared memory or a file holds what no sound program writes */
    SHOAL_EOWNERDIED = -5005,   /* the process that held the lock died */
};

/** The meaning of a code, as a sentence without a full stop. Never NULL; static storage; any thread. */
SHOAL_API const char *shoal_error_text(int error);

/** Nanoseconds of the monotonic clock: comparable between the processes of one machine, never set back. */
SHOAL_API int64_t shoal_clock_now(void);

/** How many cpus this process may run on (its affinity mask), at least 1. Not limited by a cgroup's quota. */
SHOAL_API uint32_t shoal_cpu_count(void);

/** Bytes of memory that this process alone has in use: resident, less what it shares (files, regions). Linux's own
 * count, some pages late. Takes some 5 us. Returns 0, -EIO, or why /proc cannot be read. */
SHOAL_API int shoal_memory_private(uint64_t *bytes);

/* ---------------------------------------------------------------- memory ---- */

/** A sealed memfd, mapped shared: close-on-exec, its size fixed for good, sparse, without a name. */
typedef struct shoal_region shoal_region;

/**
 * Make a region of `size` bytes (rounded up to whole pages), all zero. No memory is taken until it is touched.
 *
 * name   up to 200 bytes; shows in /proc/PID/maps, need not be unique
 *
 * Returns 0, -ENOMEM (no address space), -EFBIG (RLIMIT_FSIZE applies to a memfd and is lower than `size`),
 * -EMFILE/-ENFILE, -EINVAL (size 0).
 */
SHOAL_API int shoal_region_create(const char *name, size_t size, shoal_region **out);

/** Map the region behind `fd`, which the call duplicates. -EPERM: the file can still shrink under us (it lacks the
 * seal), so touching it might kill this process; -EINVAL: not a region. */
SHOAL_API int shoal_region_attach(int fd, shoal_region **out);

SHOAL_API void *shoal_region_base(const shoal_region *region);
SHOAL_API size_t shoal_region_size(const shoal_region *region);
/** The descriptor, for handing to another process; it stays the region's. */
SHOAL_API int shoal_region_fd(const shoal_region *region);
/** Unmap and close. NULL is allowed. */
SHOAL_API void shoal_region_close(shoal_region *region);

/**
 * A heap: blocks of any size in one region, allocated and freed by any process that maps it.
 *
 * A block is named by a 64-bit reference that means the same in every process; 0 is never one. Each block has an owner,
 * a number that the users of the heap agree on, so that what a dead process held can be swept up. A process may die
 * at any instruction of any call here: the heap stays sound.
 */
typedef struct shoal_heap shoal_heap;
typedef uint64_t shoal_block;

/** Make a heap that can grow to `limit` bytes; 0: as large as the machine's memory (address space permitting).
 * Memory is taken only as blocks are written. Errors as shoal_region_create. */
SHOAL_API int shoal_heap_create(size_t limit, shoal_heap **out);
SHOAL_API int shoal_heap_attach(int fd, shoal_heap **out);
SHOAL_API int shoal_heap_fd(const shoal_heap *heap);
/** One more holder of this handle; each holder calls shoal_heap_release, the last of which unmaps. Any thread. */
SHOAL_API void shoal_heap_retain(shoal_heap *heap);
SHOAL_API void shoal_heap_release(shoal_heap *heap);

/**
 * Take a block of at least `size` bytes, aligned to 64, or to a page where `size` is SHOAL_VIEW_MINIMUM or more.
 * Blocks freed lately are preferred, as their pages are warm.
 * Returns 0, -ENOMEM (the heap's limit), -EINVAL (size 0).
 */
SHOAL_API int shoal_heap_allocate(shoal_heap *heap, size_t size, uint32_t owner, shoal_block *out);
/** Give a block back. -EINVAL: not an allocated block (nothing is changed). */
SHOAL_API int shoal_heap_free(shoal_heap *heap, shoal_block block);
/** Where the block lies in this process, and its usable size; NULL when it is not an allocated block. `size` may be
 * NULL. */
SHOAL_API void *shoal_heap_pointer(shoal_heap *heap, shoal_block block, size_t *size);
/** Copy `size` bytes into the block at `offset`, the fastest way: memcpy where its pages are warm, else through the
 * descriptor, which is faster than faulting each page in and turns running out of memory into an error.
 * Returns 0, -EINVAL (not a block, or out of its bounds), -ENOMEM, -ENOSPC, -EFBIG. */
SHOAL_API int shoal_heap_write(shoal_heap *heap, shoal_block block, size_t offset, const void *data, size_t size);
/** Who owns the block; -EINVAL where it is none. */
SHOAL_API int shoal_heap_owner(shoal_heap *heap, shoal_block block, uint32_t *owner);
/** Hand the block from one owner to another, in one atomic step. -EPERM: `from` does not own it; -EINVAL: no block. */
SHOAL_API int shoal_heap_give(shoal_heap *heap, shoal_block block, uint32_t from, uint32_t to);
/** Free every block of `owner`, which must not be running any more. Out: how many (may be NULL). */
SHOAL_API int shoal_heap_sweep(shoal_heap *heap, uint32_t owner, size_t *freed);

/** From this size on a block starts on a page and shares none, so that it can be shown as a view. */
#define SHOAL_VIEW_MINIMUM ((size_t)65536)

/**
 * Lend a block of SHOAL_VIEW_MINIMUM bytes or more to code that treats it as its own private memory (an array).
 *
 * If this process forks while the block is lent, parent and child each keep the contents as they were, as with private
 * memory: the block's pages are copied on write from then on. It is used again once the loan was returned and all that
 * descend from the fork are gone. The heap is retained until the loan is returned. A child of fork that inherits the
 * loan returns its own share of it: the block stays the parent's.
 *
 * Returns 0, -EINVAL (no such block, or too small), -ENOMEM.
 */
typedef struct shoal_loan shoal_loan;
SHOAL_API int shoal_heap_lend(shoal_heap *heap, shoal_block block, shoal_loan **out);
SHOAL_API void *shoal_loan_pointer(const shoal_loan *loan);
/** Frees the block (after a fork: as soon as nobody descends from it any more), drops the hold on the heap. */
SHOAL_API void shoal_loan_return(shoal_loan *loan);

/** Give the memory of free blocks back to the machine. For a pool that closes, or idles. */
SHOAL_API int shoal_heap_trim(shoal_heap *heap);

struct shoal_heap_numbers {
    uint64_t limit, used, free,
        touched;     /* bytes: may grow to; in blocks; in free blocks; ever written and not given back */
    uint64_t blocks; /* allocated now */
};
SHOAL_API int shoal_heap_count(shoal_heap *heap, struct shoal_heap_numbers *out);

/* ------------------------------------------------------------------ sync ---- */

/* Lock, semaphore, condition, event, barrier: each lives in a region of its own (or in a group's), which the kernel
 * frees with the last process. A child of fork goes on using the handle it inherited; any other process attaches to the
 * descriptor of shoal_…_fd, which stays the handle's and is duplicated by the attach. Processes that share one must see
 * each other in /proc (one pid namespace), as that is how it is known who lives. All threads may make all calls at
 * once, but for shoal_…_close.
 *
 * Waiting: some microseconds of looking, then sleep. Nobody is woken but who sleeps. A process that is killed at any
 * instruction, waiting, holding or waking, delays the others by half a second at the most; what cannot go on without it
 * says SHOAL_EOWNERDIED. -EINTR is returned only to who sleeps; nothing was taken then.
 *
 * Errors that all of …_create have: -EINVAL (unknown flags, a number out of its range), and those of
 * shoal_region_create. Of …_attach: SHOAL_ECORRUPT (not a lock, semaphore …), and those of shoal_region_attach. Of
 * every call that must know who calls: -ENOSYS (there is no /proc). */

/**
 * A group: one region for 127 locks, semaphores (not owned ones) and events, for programs that have many. One of them
 * that has a region of its own takes a descriptor, a page and a mapping; in a group, 256 bytes.
 *
 * A place in it is not used again. A group must stay open as long as handles to what lies in it. The …_in calls are as
 * those without; in another process the object is found by the group's descriptor and its place. Also:
 *   -ENOSPC    of …_create_in: the group is full, make another
 *   -EMSGSIZE  of …_create_in: an owned semaphore
 *   -EINVAL    of …_attach_in: no such place
 */
typedef struct shoal_sync_group shoal_sync_group;

SHOAL_API int shoal_sync_group_create(shoal_sync_group **out);
SHOAL_API int shoal_sync_group_attach(int fd, shoal_sync_group **out);
SHOAL_API int shoal_sync_group_fd(const shoal_sync_group *group);
SHOAL_API void shoal_sync_group_close(shoal_sync_group *group); /* NULL is allowed */

/** Positive, not an error: what was waited for is the caller's now, but its last owner died with it. */
#define SHOAL_INHERITED 1

/**
 * A lock that one thread holds at a time.
 *
 * Its state is one word that names the owner, so that there is no instant at which it is not known who holds it. Any
 * thread of any process may release it, whoever acquired it, except a recursive one. There is no order among those who
 * wait. A child of fork does not hold what its parent holds. A thread that ends does not release what it holds.
 */
typedef struct shoal_lock shoal_lock;

/** The thread that holds it may acquire it again, and releases it as often; no other thread may release it. */
#define SHOAL_LOCK_RECURSIVE 1u
/** Whoever comes first after the owner's death gets the lock, with SHOAL_INHERITED, to repair what it protects. */
#define SHOAL_LOCK_ROBUST 2u

typedef struct shoal_lock_options {
    uint32_t flags; /* SHOAL_LOCK_… */
} shoal_lock_options;

/** Make a lock, free. `options` may be NULL. The caller owns the handle and ends it with shoal_lock_close. */
SHOAL_API int shoal_lock_create(const shoal_lock_options *options, shoal_lock **out);
SHOAL_API int shoal_lock_attach(int fd, shoal_lock **out);
SHOAL_API int shoal_lock_fd(const shoal_lock *lock);
SHOAL_API int shoal_lock_create_in(shoal_sync_group *group, const shoal_lock_options *options, shoal_lock **out);
SHOAL_API int shoal_lock_attach_in(shoal_sync_group *group, uint32_t place, shoal_lock **out);
SHOAL_API uint32_t shoal_lock_place(const shoal_lock *lock); /* in its group; 0: it is in none */
/** Drop this process's handle. The lock stays as it is, also held. NULL is allowed. */
SHOAL_API void shoal_lock_close(shoal_lock *lock);

/**
 * Take the lock, waiting for it while another holds it. A thread that holds a plain lock waits for itself (another may
 * release it).
 *
 * timeout  nanoseconds to wait; 0 does not wait, SHOAL_FOREVER has no limit
 *
 * Returns 0, or
 *   SHOAL_INHERITED   (robust) taken; the process that held it died, what it protects may be half done
 *   -ETIMEDOUT        others held it all the time
 *   -EINTR            a signal handler ran
 *   SHOAL_EOWNERDIED  (not robust) the process that held it died. So do all calls from now on, until shoal_lock_reset
 * or a shoal_lock_release -EOVERFLOW        (recursive) acquired 4 billion times
 *
 * Free, it costs some tens of nanoseconds and no system call. A death is noticed by who waits within 10 ms at first,
 * within half a second after a long wait; and at the 10 ms by who tries again and again with timeout 0.
 */
SHOAL_API int shoal_lock_acquire(shoal_lock *lock, int64_t timeout);

/**
 * Give the lock back, and wake one that waits for it.
 * Returns 0, -EINVAL (nobody holds it), -EPERM (recursive, and the calling thread does not hold it).
 *
 * Releasing for a process that has died makes the lock usable again: the caller says that all is well.
 */
SHOAL_API int shoal_lock_release(shoal_lock *lock);

/** Make a lock whose owner died free again. Returns 0 (also where nobody holds it), -EBUSY (the owner lives). */
SHOAL_API int shoal_lock_reset(shoal_lock *lock);

/** Who holds a lock, at the instant of the look. */
typedef struct shoal_lock_holder {
    pid_t pid;       /* 0: nobody */
    pid_t thread;    /* its thread id; 0 when `died` */
    uint32_t count;  /* how many times it is to be released: 0 or 1, more where it is recursive */
    int32_t is_mine; /* 1: the calling thread holds it */
    int32_t died;    /* 1: the owner is known to have died (not asked for by this call) */
} shoal_lock_holder;
SHOAL_API void shoal_lock_look(const shoal_lock *lock, shoal_lock_holder *out);

/**
 * A semaphore: a number of units, taken and given back by anybody.
 *
 * By default a unit has no owner: one process may acquire and end, and another release, as where a semaphore counts
 * items or is a signal. So a process that is killed with a unit takes it along, and nobody can tell that from the legal
 * use: a false alarm would be worse than the wait. Where units stand for something that a process has while it lives
 * (one of four licences, a place at a device), say SHOAL_SEMAPHORE_OWNED.
 */
typedef struct shoal_semaphore shoal_semaphore;

#define SHOAL_SEMAPHORE_MOST 2147483647u /* units a semaphore may ever have */
#define SHOAL_SEMAPHORE_OWNED_MOST 256u  /* units an owned one may have */

/** Never more than `maximum` units: a release that would make it more fails. */
#define SHOAL_SEMAPHORE_BOUNDED 1u
/** Each unit belongs to the process that acquired it, and only that process releases it. Starts full: `value` units is
 * all there are. When all are held, and some by the dead, an acquirer gets SHOAL_EOWNERDIED. */
#define SHOAL_SEMAPHORE_OWNED 2u
/** With …_OWNED: the units of the dead are given to the next acquirers, with SHOAL_INHERITED. */
#define SHOAL_SEMAPHORE_ROBUST 4u

typedef struct shoal_semaphore_options {
    uint32_t value;   /* units at first */
    uint32_t maximum; /* with …_BOUNDED: units it may have, at least `value` */
    uint32_t flags;   /* SHOAL_SEMAPHORE_… */
} shoal_semaphore_options;

/** Make a semaphore. The caller owns the handle and ends it with shoal_semaphore_close. */
SHOAL_API int shoal_semaphore_create(const shoal_semaphore_options *options, shoal_semaphore **out);
SHOAL_API int shoal_semaphore_attach(int fd, shoal_semaphore **out);
SHOAL_API int shoal_semaphore_fd(const shoal_semaphore *semaphore);
SHOAL_API int shoal_semaphore_create_in(shoal_sync_group *group, const shoal_semaphore_options *options,
                                        shoal_semaphore **out);
SHOAL_API int shoal_semaphore_attach_in(shoal_sync_group *group, uint32_t place, shoal_semaphore **out);
SHOAL_API uint32_t shoal_semaphore_place(const shoal_semaphore *semaphore); /* in its group; 0: it is in none */
/** Drop this process's handle; units that it holds stay taken. NULL is allowed. */
SHOAL_API void shoal_semaphore_close(shoal_semaphore *semaphore);

/** Take one unit, waiting `timeout` nanoseconds for it. Returns 0, -ETIMEDOUT, -EINTR; of an owned one also
 * SHOAL_INHERITED (robust) and SHOAL_EOWNERDIED (all are held, and some by processes that died). */
SHOAL_API int shoal_semaphore_acquire(shoal_semaphore *semaphore, int64_t timeout);
/**
 * Give back, or add, `count` units, and wake as many that wait. All or none.
 * Returns 0, -EINVAL (count 0), -EOVERFLOW (it would have more than its maximum), -EPERM (owned, and this process does
 * not hold so many).
 */
SHOAL_API int shoal_semaphore_release(shoal_semaphore *semaphore, uint32_t count);
/** How many units are free now. */
SHOAL_API uint32_t shoal_semaphore_value(const shoal_semaphore *semaphore);
SHOAL_API uint32_t shoal_semaphore_maximum(const shoal_semaphore *semaphore);
/** Of an owned one: free the units of the dead. Out: how many (may be NULL). -EINVAL: not an owned one. */
SHOAL_API int shoal_semaphore_reset(shoal_semaphore *semaphore, uint32_t *freed);

/**
 * A condition: waiting, with a lock given up meanwhile, until another says that something changed.
 *
 * A notification goes to those who wait at that time, the longest-waiting first, and to nobody who comes later. One
 * that went to a waiter that was killed is taken over by another of them, within half a second. Apart from that, and
 * from a death between taking a notification over and returning, each wait that returns 0 had a notification of its
 * own. At most 4096 threads wait at a time.
 */
typedef struct shoal_condition shoal_condition;

/** Make a condition over `lock`, a handle that must stay open as long as this one. The caller ends it with
 * shoal_condition_close. */
SHOAL_API int shoal_condition_create(shoal_lock *lock, shoal_condition **out);
/** `lock` must be attached to the same lock as the condition was made over: -EINVAL otherwise. */
SHOAL_API int shoal_condition_attach(int fd, shoal_lock *lock, shoal_condition **out);
SHOAL_API int shoal_condition_fd(const shoal_condition *condition);
/** Drop this process's handle, in which nobody may wait. NULL is allowed. */
SHOAL_API void shoal_condition_close(shoal_condition *condition);

/** How far a wait has come that a signal interrupted. Zero before a wait, but for `patience`; all else but `depth` is
 * the engine's own. */
typedef struct shoal_condition_turn {
    uint64_t word;
    uint32_t stage; /* 0: not waiting */
    uint32_t slot;
    uint32_t depth; /* how many times the lock was held */
    uint32_t unused;
    int64_t patience; /* the caller's: nanoseconds after which a wait that goes on returns -EINTR though no signal came,
                         for who has more to look at than signals; 0: never */
} shoal_condition_turn;

/**
 * Release the lock, which the calling thread must hold (a recursive one wholly), wait for a notification, and take the
 * lock again, as often as it was held.
 *
 * timeout  nanoseconds to wait for the notification; the lock is then waited for without limit
 * turn     NULL: signals do not interrupt the wait. Else a zeroed structure: on -EINTR the lock is not held and the
 * wait goes on; call again with the same turn, or shoal_condition_cancel
 *
 * Returns, holding the lock,
 *   0                 notified
 *   -ETIMEDOUT        not notified in time
 *   SHOAL_INHERITED   (robust lock) the process that held the lock died; notified or not, look at what it protects
 * or, not holding it,
 *   -EINTR            a signal handler ran
 *   SHOAL_EOWNERDIED  (lock not robust) the process that held the lock died, so nobody can notify
 * or, as before, -EPERM (the caller does not hold the lock), -EUSERS (4096 wait).
 */
SHOAL_API int shoal_condition_wait(shoal_condition *condition, int64_t timeout, shoal_condition_turn *turn);
/** End a wait that returned -EINTR, without the lock. A notification that it had got goes to another waiter. */
SHOAL_API void shoal_condition_cancel(shoal_condition *condition, shoal_condition_turn *turn);
/** Wake up to `count` of those who wait. The caller must hold the lock: -EPERM. Never blocks. */
SHOAL_API int shoal_condition_notify(shoal_condition *condition, uint32_t count);
SHOAL_API int shoal_condition_notify_all(shoal_condition *condition);
/** How many wait, and have not been notified, at the instant of the look. */
SHOAL_API uint32_t shoal_condition_waiting(const shoal_condition *condition);

/** An event: a flag that is waited for. */
typedef struct shoal_event shoal_event;

/** Make an event, not set. The caller owns the handle and ends it with shoal_event_close. */
SHOAL_API int shoal_event_create(shoal_event **out);
SHOAL_API int shoal_event_attach(int fd, shoal_event **out);
SHOAL_API int shoal_event_fd(const shoal_event *event);
SHOAL_API int shoal_event_create_in(shoal_sync_group *group, shoal_event **out);
SHOAL_API int shoal_event_attach_in(shoal_sync_group *group, uint32_t place, shoal_event **out);
SHOAL_API uint32_t shoal_event_place(const shoal_event *event); /* in its group; 0: it is in none */
SHOAL_API void shoal_event_close(shoal_event *event);           /* NULL is allowed */
/** Set the flag and wake all who wait. */
SHOAL_API void shoal_event_set(shoal_event *event);
SHOAL_API void shoal_event_clear(shoal_event *event);
SHOAL_API int shoal_event_is_set(const shoal_event *event); /* 1 or 0 */
/** Wait until the flag is set. Returns 0 (also where it was set during the wait and cleared at once), -ETIMEDOUT,
 * -EINTR. */
SHOAL_API int shoal_event_wait(shoal_event *event, int64_t timeout);

/**
 * A barrier: a fixed number of parties wait for each other, again and again.
 *
 * A party is a thread that waits; who they are does not matter. A round that cannot be completed breaks the barrier: a
 * party timed out, its action failed, somebody called shoal_barrier_abort, or a process died while one of its threads
 * waited. Then all waits, those under way and later ones, fail until shoal_barrier_reset. Where more threads than
 * parties use it, those that come too early wait for the next round.
 */
typedef struct shoal_barrier shoal_barrier;

#define SHOAL_BARRIER_MOST 4096u /* parties a barrier may have */

/** Make a barrier of 1 to SHOAL_BARRIER_MOST parties. The caller owns the handle and ends it with
 * shoal_barrier_close. */
SHOAL_API int shoal_barrier_create(uint32_t parties, shoal_barrier **out);
SHOAL_API int shoal_barrier_attach(int fd, shoal_barrier **out);
SHOAL_API int shoal_barrier_fd(const shoal_barrier *barrier);
/** Drop this process's handle, in which nobody may wait. NULL is allowed. */
SHOAL_API void shoal_barrier_close(shoal_barrier *barrier);

/** One wait at a barrier. Zero but for `action`, `context` and `patience`. */
typedef struct shoal_barrier_turn {
    /** NULL, or runs once a round, in the party that came last, before the others go on. What it returns, if not 0,
     * breaks the barrier and is returned by that party's wait. */
    int (*action)(void *context);
    void *context;
    uint32_t index;   /* out: 0 to parties - 1, another for each party of a round */
    uint32_t stage;   /* the engine's own */
    uint64_t word;    /* the engine's own */
    int64_t patience; /* as a condition's */
} shoal_barrier_turn;

/**
 * Arrive, and wait until all parties have.
 *
 * timeout  nanoseconds to wait; running out breaks the barrier
 * turn     NULL: no action, signals do not interrupt the wait, and the index is not told. Else on -EINTR the party
 *          stays arrived; call again with the same turn, or break the barrier (shoal_barrier_abort)
 *
 * Returns 0, or
 *   -ETIMEDOUT        the others did not come in time; the barrier is broken now
 *   -EINTR            a signal handler ran
 *   -EPIPE            the barrier is broken, or was reset meanwhile
 *   SHOAL_EOWNERDIED  it is broken because a process died that waited at it, or in the action
 *   what the action returned
 */
SHOAL_API int shoal_barrier_wait(shoal_barrier *barrier, int64_t timeout, shoal_barrier_turn *turn);
/** Begin anew, broken or not; those who wait get -EPIPE. */
SHOAL_API void shoal_barrier_reset(shoal_barrier *barrier);
/** Break the barrier; those who wait get -EPIPE. With an interrupted wait's `turn`, which may be NULL, that wait is
 * over. */
SHOAL_API void shoal_barrier_abort(shoal_barrier *barrier, shoal_barrier_turn *turn);
SHOAL_API uint32_t shoal_barrier_parties(const shoal_barrier *barrier);
SHOAL_API uint32_t shoal_barrier_waiting(const shoal_barrier *barrier); /* how many have arrived in this round */
SHOAL_API int shoal_barrier_broken(const shoal_barrier *barrier);       /* 1 or 0 */

/* --------------------------------------------------------------- process ---- */

/** How a process ended. */
typedef struct shoal_exit {
    int32_t code;   /* exit status, 0 to 255; 0 when a signal ended it */
    int32_t signal; /* the signal that ended it, or 0 */
} shoal_exit;

typedef struct shoal_process shoal_process;

typedef struct shoal_process_options {
    /** Runs in the new process; what it returns is the exit status. The process ends with _exit: no atexit handlers
     * run. */
    int (*main)(void *context);
    void *context;
    /** Nonzero: the kernel kills the new process as soon as this one is gone, however that happens, also when the
     * thread that calls shoal_process_start ends before. */
    int die_with_parent;
    /** NULL for fork(2). A language runtime passes its own, which must return as fork does (0 in the child). */
    pid_t (*fork)(void *context);
} shoal_process_options;

/**
 * Start a process that runs `options->main`. The caller owns the handle and ends it with shoal_process_close.
 * Returns 0, -EAGAIN (process limit), -ENOMEM, -EMFILE/-ENFILE (each process costs a descriptor, its pidfd).
 */
SHOAL_API int shoal_process_start(const shoal_process_options *options, shoal_process **out);

/** A handle for a process that somebody else started. How it ended is known only if it is a child of the caller's.
 * -ESRCH: no such process. */
SHOAL_API int shoal_process_adopt(pid_t pid, shoal_process **out);

SHOAL_API pid_t shoal_process_pid(const shoal_process *process);
/** Its pidfd: readable (poll, epoll) once the process has ended. It stays the handle's. */
SHOAL_API int shoal_process_fd(const shoal_process *process);

/**
 * Wait until the process has ended, and reap it if it is a child.
 * Returns 0 (again and again, once it has ended), -ETIMEDOUT, -EINTR, -ECHILD (ended, but how is not known: not a
 * child, or reaped by others).
 */
SHOAL_API int shoal_process_wait(shoal_process *process, int64_t timeout, shoal_exit *out);
/** Send a signal; never to a stranger that got the same pid. -ESRCH: it has ended. */
SHOAL_API int shoal_process_signal(shoal_process *process, int signal);
/** Forget the process, which goes on. NULL is allowed. */
SHOAL_API void shoal_process_close(shoal_process *process);

/** Called in a process that was started otherwise: be killed as soon as `parent` is gone (at once if it is gone
 * already). `parent` must be the parent, or a process that outlives it. */
SHOAL_API int shoal_process_die_with(pid_t parent);

/**
 * A zygote: a clean process, started once, that forks clean processes on request, in half a millisecond, however large
 * or threaded the asker is. The asker starts the zygote's program as it likes, with one end of a socket pair (AF_UNIX,
 * SOCK_SEQPACKET); the program, single-threaded, calls shoal_zygote_serve.
 */
typedef struct shoal_zygote shoal_zygote;

typedef struct shoal_zygote_service {
    /** Runs in each new process, with the request's bytes and descriptors, which are its own to close. Returns the exit
     * status. */
    int (*main)(void *context, const void *request, size_t size, const int *fds, uint32_t fd_count);
    void *context;
    pid_t (*fork)(void *context); /* as in shoal_process_options */
} shoal_zygote_service;

#define SHOAL_ZYGOTE_FDS 240u                /* descriptors a request may carry */
#define SHOAL_ZYGOTE_REQUEST ((size_t)65536) /* bytes a request may carry; larger things go in a region */

/** Serve requests until the asker closes its end or is gone; then every process the zygote forked is killed, but for
 * those that outlive it. The asker is the process that made the socket pair. Returns 0, or the socket's error. */
SHOAL_API int shoal_zygote_serve(int socket, const shoal_zygote_service *service);
/** The asker's side. `socket` is the handle's from now on; `pid` is the zygote's process, a child of the caller's or
 * not. */
SHOAL_API int shoal_zygote_attach(int socket, pid_t pid, shoal_zygote **out);

#define SHOAL_ZYGOTE_OUTLIVES 1u /* the process lives on when the asker is gone */

/** Have a process forked. It is killed when the asker is gone, unless `flags` says otherwise, and shoal_process_wait on
 * it tells how it ended (the zygote reports it). It goes on when the zygote is killed, but how it ends is not known
 * then (-ECHILD). It runs the service's `main` only once this call has its handle: where this call fails, or the caller
 * is gone before, `main` never runs, so that the request may safely be made again. -EPIPE: the zygote is gone.
 * -EMSGSIZE: request or descriptors over the limits. -ETIMEDOUT: no answer for a minute, or for a second from a zygote
 * that is stopped. Any thread of the caller's process. */
SHOAL_API int shoal_zygote_start_process(shoal_zygote *zygote, const void *request, size_t size, const int *fds,
                                         uint32_t fd_count, uint32_t flags, shoal_process **out);
/** The same, but as long as the zygote does not answer (it is busy, or stopped), `wanted` is called some twenty times a
 * second, in the calling thread; when it returns 0, -ECANCELED. */
SHOAL_API int shoal_zygote_start_process_while(shoal_zygote *zygote, const void *request, size_t size, const int *fds,
                                               uint32_t fd_count, uint32_t flags, int (*wanted)(void *context),
                                               void *context, shoal_process **out);
/** Whether a signal or a debugger has stopped the zygote, so that another had better be asked: 1, or 0. It may go on at
 * any time. Any thread. */
SHOAL_API int shoal_zygote_is_stopped(const shoal_zygote *zygote);
/** Close the asker's end: the zygote and what it forked are killed. NULL is allowed. */
SHOAL_API void shoal_zygote_close(shoal_zygote *zygote);

/* ----------------------------------------------------------------- queue ---- */

/** Bytes, and the heap blocks that go with them (what is too large to be copied twice). */
typedef struct shoal_item {
    const void *data;
    size_t size;
    const shoal_block *blocks;
    uint32_t block_count; /* at most SHOAL_ITEM_BLOCKS */
    uint32_t kind;        /* the caller's own mark, below SHOAL_ITEM_KINDS: goes along as it is */
} shoal_item;
#define SHOAL_ITEM_BLOCKS 0xffffffu
#define SHOAL_ITEM_KINDS 128u

/**
 * A queue between processes and threads: any number of producers and consumers, items of any size, first in, first out.
 *
 * A put writes into shared memory itself: when it has returned, the item is there, whatever becomes of the producer. A
 * process that dies in the middle of a put or a get does not hurt the others: its unfinished item is skipped, what it
 * was taking is given to another. Items of one producer's thread arrive in its order. Memory is taken as items need it.
 */
typedef struct shoal_queue shoal_queue;

typedef struct shoal_queue_options {
    uint64_t capacity; /* items it may hold; 0: as many as memory has room for, 16.7 million at the most */
    size_t heap_limit; /* bytes for what is too large for a slot; 0: as shoal_heap_create */
} shoal_queue_options;

/** Make a queue; `options` may be NULL. Children of fork use the same handle. Errors as shoal_heap_create. */
SHOAL_API int shoal_queue_create(const shoal_queue_options *options, shoal_queue **out);
#define SHOAL_QUEUE_FDS 3
/** In a process that does not inherit the queue: the descriptors of shoal_queue_fds, which are duplicated.
 * SHOAL_ECORRUPT: not a queue. */
SHOAL_API int shoal_queue_attach(const int fds[SHOAL_QUEUE_FDS], shoal_queue **out);
SHOAL_API void shoal_queue_fds(const shoal_queue *queue, int fds[SHOAL_QUEUE_FDS]);
/** Drop this process's handle; what is in the queue stays for the others. NULL is allowed. */
SHOAL_API void shoal_queue_close(shoal_queue *queue);

/**
 * Put a copy of `size` bytes, waiting `timeout` nanoseconds for room where the capacity is reached.
 * Returns 0, -ETIMEDOUT, -EINTR (nothing was put), -ENOMEM, -EMSGSIZE (over 2 GiB).
 */
SHOAL_API int shoal_queue_put(shoal_queue *queue, const void *data, size_t size, int64_t timeout);

/**
 * Take one item from the queue, waiting for it if there is none.
 *
 * The item's bytes are copied to `buffer`; nothing is copied when they do not fit.
 *
 * buffer   where the item goes; `capacity` bytes
 * timeout  nanoseconds to wait; 0 does not wait, SHOAL_FOREVER has no limit
 * size     out: the item's size in bytes, also when it did not fit
 *
 * Returns 0, or
 *   -ETIMEDOUT  nothing came in time
 *   -EMSGSIZE   the item is larger than `capacity`; it stays first in the queue
 *   -EINTR      a signal arrived first
 *   -EBADMSG    the item was overwritten in shared memory; it is dropped, the queue is sound
 */
SHOAL_API int shoal_queue_get(shoal_queue *queue, void *buffer, size_t capacity, int64_t timeout, size_t *size);

/** How many items are in it now (with those that are being put or taken). */
SHOAL_API uint64_t shoal_queue_count(const shoal_queue *queue);
SHOAL_API uint64_t shoal_queue_capacity(const shoal_queue *queue);

/**
 * A descriptor for poll() that is readable while something is in the queue, for those who wait for other things too. It
 * is the queue's own, until shoal_queue_close: neither read, written nor closed. It may also be readable for moments in
 * which there is nothing to get: another was quicker, or the item is not complete yet.
 * Each put of any process costs a system call more from the first call on.
 */
SHOAL_API int shoal_queue_watch(shoal_queue *queue);

/* -- items with blocks: for what is too large to be copied twice -- */

/** The heap of the queue's blocks, and this process's owner number in it (0 is the queue itself). -EUSERS: over 4096
 * processes. */
SHOAL_API shoal_heap *shoal_queue_heap(const shoal_queue *queue);
SHOAL_API int shoal_queue_owner(shoal_queue *queue, uint32_t *owner);

/** As shoal_queue_put; the item's blocks, which this process must own, go with it (on an error they stay its own).
 * -EMSGSIZE also for too many of them; -EINVAL: kind. */
SHOAL_API int shoal_queue_put_item(shoal_queue *queue, const shoal_item *item, int64_t timeout);

#define SHOAL_RECEIVED_INLINE 104u

/** An item that was taken: `item` points into this structure or into a block, until shoal_queue_release. Its blocks are
 * this process's. */
typedef struct shoal_received {
    shoal_item item;
    shoal_block block;
    uint8_t bytes[SHOAL_RECEIVED_INLINE] __attribute__((aligned(8)));
} shoal_received;

/** As shoal_queue_get, without a copy of what is large. */
SHOAL_API int shoal_queue_get_item(shoal_queue *queue, int64_t timeout, shoal_received *out);
/** `received` was read; its item's blocks stay the caller's. */
SHOAL_API void shoal_queue_release(shoal_queue *queue, shoal_received *received);

/* ------------------------------------------------------------------ pool ---- */

/**
 * A pool: a table of tasks in shared memory, and workers that help themselves from it.
 *
 * A task holds one or more items, done one after the other by one worker. Each item has one result. Bytes go in, bytes
 * come out; what they mean is the caller's affair. When a worker dies, the results it had given are kept, and the
 * caller decides for the item that it held and the rest. The process that made the pool is its owner: only it hands
 * out, collects and supervises, with any number of threads.
 *
 * C programs that map a function over an array need shoal_pool_start, shoal_pool_map and shoal_pool_stop only.
 */
typedef struct shoal_pool shoal_pool;

#define SHOAL_POOL_WORKERS 4096u /* the most workers a pool may have */

typedef struct shoal_pool_options {
    uint32_t workers; /* 1 to SHOAL_POOL_WORKERS */
    uint32_t slots; /* tasks that may be out at a time; 0: 1024, or four a worker if that is more. Rounded up to a power
                       of 2 */
    size_t heap_limit; /* bytes, for what does not fit into the slots; 0: as shoal_heap_create */
} shoal_pool_options;

/** Make the table and the heap, without workers: these are started by the caller (shoal_pool_enlist) or by
 * shoal_pool_start. Errors as shoal_heap_create, and -EINVAL. */
SHOAL_API int shoal_pool_create(const shoal_pool_options *options, shoal_pool **out);
/** Unmap and close everything. The workers must have ended. NULL is allowed; does nothing in a process that is not the
 * owner. */
SHOAL_API void shoal_pool_close(shoal_pool *pool);
SHOAL_API shoal_heap *shoal_pool_heap(const shoal_pool *pool);

/* -- handing out -- */

/** Items on their way into a task, in memory of this process's own. Not for two threads at once. */
typedef struct shoal_batch shoal_batch;
SHOAL_API int shoal_batch_create(shoal_batch **out);
SHOAL_API void shoal_batch_close(shoal_batch *batch);
/** Append a copy of an item; its blocks, whose owner must be 0, are the batch's from now on. Items of 8 bytes and of
 * one kind that follow each other take no more than these 8 bytes each. -ENOMEM; -EMSGSIZE: over 2 GiB in one item, use
 * blocks; or too many of these. -EINVAL: kind. */
SHOAL_API int shoal_batch_add(shoal_batch *batch, const shoal_item *item);
/** Append `count` items of 8 bytes, which need not be aligned, in one step. Errors as shoal_batch_add; -EINVAL: none.
 */
SHOAL_API int shoal_batch_add_words(shoal_batch *batch, uint32_t kind, const void *words, uint32_t count);
SHOAL_API uint32_t shoal_batch_count(const shoal_batch *batch);
SHOAL_API size_t shoal_batch_size(const shoal_batch *batch);
/** Forget the items; their blocks are freed in `heap`, unless it is NULL (they were submitted, or are kept by others).
 */
SHOAL_API void shoal_batch_clear(shoal_batch *batch, shoal_heap *heap);

/** Bytes that many tasks of a pool need (a function, say), stored once. Tasks name it by *id, which is never 0.
 * -ENOMEM, -EAGAIN (4096 at most). */
SHOAL_API int shoal_pool_share(shoal_pool *pool, const shoal_item *item, uint32_t *id);
/** No task that names it may be out any more. */
SHOAL_API void shoal_pool_unshare(shoal_pool *pool, uint32_t id);

typedef struct shoal_task_options {
    uint64_t tag;       /* comes back with the completion */
    uint64_t group;     /* what shoal_pool_cancel names */
    int64_t time_limit; /* ns that one item may take until its worker is killed and it fails with SHOAL_ETASKTIMEOUT;
                           0: none. Kept by the thread that calls shoal_pool_supervise */
    uint32_t shared;    /* id of shoal_pool_share, or 0 */
    uint32_t flags;     /* SHOAL_TASK_… and, in the upper 16 bits, the caller's own for the worker's side */
} shoal_task_options;

#define SHOAL_TASK_KEEPS_BLOCKS                                                                                        \
    1u /* the items' blocks stay the task's, so that it can be given out again; workers must copy */

/**
 * Put a task with the batch's items into the table, where the next free worker takes it; the items' blocks go with it.
 * Wakes a worker only on shoal_pool_wake, so that many submits cost one wake. Returns 0, -EAGAIN (no free slot: collect
 * first), -ENOMEM (heap), -EINVAL (no items), -ESHUTDOWN.
 */
SHOAL_API int shoal_pool_submit(shoal_pool *pool, const shoal_batch *batch, const shoal_task_options *options);
/** Whether shoal_pool_submit would return -EAGAIN now. */
SHOAL_API int shoal_pool_full(shoal_pool *pool);
/** Wake sleeping workers for what was submitted; a load where none sleeps or one is awake already. */
SHOAL_API void shoal_pool_wake(shoal_pool *pool);
/** Begin no further item of the tasks of this group, which come back with SHOAL_ECANCELLED where items are left. Items
 * at hand go on, or with `kill` their workers are killed. Returns how many tasks something was taken back of. */
SHOAL_API uint32_t shoal_pool_cancel(shoal_pool *pool, uint64_t group, int kill);

/** Take back the tasks of this group that no worker has begun; they come back with SHOAL_ECANCELLED. What is at hand
 * goes on as if nothing had been said. Returns how many were taken back. */
SHOAL_API uint32_t shoal_pool_recall(shoal_pool *pool, uint64_t group);
/** Whether a worker has begun a task of this group that is not collected yet. */
SHOAL_API int shoal_pool_begun(shoal_pool *pool, uint64_t group);

/* -- collecting -- */

typedef struct shoal_completion {
    uint64_t tag;
    uint32_t shared;
    uint32_t first, finished, items; /* results are here for items [first, finished) of the task's [0, items) */
    /* 0, or what became of item `finished` (later ones were not begun): SHOAL_EWORKERDIED: it was with a worker that
     * died; SHOAL_ETASKTIMEOUT: it took too long, and its worker was killed; SHOAL_ECANCELLED; SHOAL_ECORRUPT: the
     * worker had no result for it */
    int32_t outcome;
    uint32_t
        blameless; /* with SHOAL_EWORKERDIED: the pool killed that worker for another item: give this one out again */
    int32_t worker_pid;
    shoal_exit exit; /* how that worker ended, where it died */
    int64_t elapsed; /* nanoseconds that the worker spent on it since it took it */
    uint32_t slot;   /* the pool's own, as is the rest */
    uint32_t left, run, kind;
    const uint8_t *next_result, *results_end;
} shoal_completion;

/** The next task that is done, in any order. Its results stay readable until release or resume. -EAGAIN: none now. */
SHOAL_API int shoal_pool_collect(shoal_pool *pool, shoal_completion *out);
/** The next result. Its blocks belong to owner 0 by now, and are the caller's to free or lend. -ENODATA: no more;
 * SHOAL_ECORRUPT. */
SHOAL_API int shoal_completion_next(shoal_completion *completion, shoal_item *out);
/** The next results in one step, as long as they are of 8 bytes, without blocks and of one kind: how many, and where
 * they lie, one behind the other. 0: the next one, if there is one, is another; that is shoal_completion_next's. */
SHOAL_API uint32_t shoal_completion_words(shoal_completion *completion, uint32_t *kind, const void **words);
/** The slot is free again. */
SHOAL_API void shoal_pool_release(shoal_pool *pool, shoal_completion *completion);
/** Give the task out again from item `from` on (finished: the same item again; finished + 1: without it). */
SHOAL_API int shoal_pool_resume(shoal_pool *pool, shoal_completion *completion, uint32_t from);

/**
 * Wait until shoal_pool_collect has something for somebody, or shoal_pool_nudge was called. Looks for some microseconds
 * before it sleeps.
 *
 * low_water  0: return for each task done (of tasks that take less than some 30 us, for groups of them).
 *            n: only when fewer than n tasks are left to be taken: for a caller that needs all results and no single
 *            one.
 * nudges     what shoal_pool_nudges gave before the caller looked whether it has to wait at all
 * waited     ns that the caller has been waiting for the same thing by other calls, or 0: what low_water or a group
 *            keeps back is told of after about an eighth of that again, within 0.2 and 20 ms.
 * timeout    ns, or SHOAL_FOREVER
 *
 * Returns 0 (look again), -ETIMEDOUT, -EINTR.
 */
SHOAL_API int shoal_pool_wait(shoal_pool *pool, uint32_t low_water, uint64_t nudges, int64_t waited, int64_t timeout);
/** Make every shoal_pool_wait of this process return: a thread collected what another waits for. */
SHOAL_API void shoal_pool_nudge(shoal_pool *pool);
SHOAL_API uint64_t shoal_pool_nudges(const shoal_pool *pool);
/** Tasks that are submitted and not yet taken by a worker; and those not yet collected. */
SHOAL_API uint32_t shoal_pool_ready(const shoal_pool *pool);
SHOAL_API uint32_t shoal_pool_outstanding(const shoal_pool *pool);

/**
 * How many items to put into the next task, from the time that items took so far: tasks of about a quarter of a
 * millisecond, that shrink towards the end so that no worker is left with a long one. Single items until the first is
 * measured. Zero it, set `workers`.
 */
typedef struct shoal_pace {
    uint32_t workers;
    uint64_t items;  /* measured */
    int64_t elapsed; /* nanoseconds that they took */
} shoal_pace;
SHOAL_API uint32_t shoal_pace_next(const shoal_pace *pace, uint64_t left);
SHOAL_API void shoal_pace_note(shoal_pace *pace, const shoal_completion *completion);

/* -- workers and their supervision -- */

/** A worker's place is given to a process that is about to be started. Out: the number it must pass to
 * shoal_worker_open or _attach. */
SHOAL_API int shoal_pool_enlist(shoal_pool *pool, uint32_t place, uint32_t *owner);
/** It was started: watch it. The descriptor (a pidfd) is duplicated. */
SHOAL_API int shoal_pool_watch(shoal_pool *pool, uint32_t place, pid_t pid, int pidfd);

enum shoal_pool_event_kind {
    SHOAL_POOL_WORKER_ENDED = 1, /* `place` is free: bury it, then enlist another */
    SHOAL_POOL_ATTENTION = 2,    /* what shoal_pool_request_attention asked for */
    SHOAL_POOL_WORKER_DYING = 3, /* milliseconds before it ends, where that can be told: settle it */
};
typedef struct shoal_pool_event {
    uint32_t kind, place;
    int32_t pid;
    shoal_exit exit; /* how it dies; for SHOAL_POOL_WORKER_DYING alone */
} shoal_pool_event;

/** Wait for something that the owner must see to. One thread. 0, -ETIMEDOUT, -EINTR. Out: up to `capacity` events. */
SHOAL_API int shoal_pool_supervise(shoal_pool *pool, int64_t timeout, shoal_pool_event *events, uint32_t capacity,
                                   uint32_t *count);
/** Have shoal_pool_supervise return once a task is done (low_water as in shoal_pool_wait), for work that nobody waits
 * for; or now. */
SHOAL_API void shoal_pool_request_attention(shoal_pool *pool, uint32_t low_water, int now);
/** No task needs to be told of any more: somebody waits for them now. What was told already stays so. */
SHOAL_API void shoal_pool_forgo_attention(shoal_pool *pool);
/** A worker is dying, as SHOAL_POOL_WORKER_DYING told: what it held is completed with SHOAL_EWORKERDIED now (as it
 * was already where SIGKILL killed it). Its blocks and its place wait for shoal_pool_bury, which must follow once it
 * has ended. `how` as for that call. -EINVAL: of this worker nothing was told. Out: how many tasks it held. */
SHOAL_API int shoal_pool_settle(shoal_pool *pool, uint32_t place, const shoal_exit *how, uint32_t *held);
/** A worker has ended: what it held is completed with SHOAL_EWORKERDIED, its blocks are freed. `how` may be NULL (not
 * known). Out: how many tasks it held (0 when it ended in order). */
SHOAL_API int shoal_pool_bury(shoal_pool *pool, uint32_t place, const shoal_exit *how, uint32_t *held);
/** Workers end once no task is left to take (1), or take none any more (2). Wakes them. */
SHOAL_API void shoal_pool_shut(shoal_pool *pool, int how);

typedef struct shoal_worker_numbers {
    int32_t pid; /* 0: the pool was not told of it yet, though it may serve */
    uint32_t owner;
    uint64_t tasks, items;
    int64_t busy;  /* nanoseconds in tasks */
    int64_t since; /* shoal_clock_now when it began to serve; 0: it has not yet */
    uint64_t bytes_in, bytes_out;
} shoal_worker_numbers;
SHOAL_API int shoal_pool_worker_numbers(const shoal_pool *pool, uint32_t place, shoal_worker_numbers *out);

/** The descriptors that a worker needs which does not inherit the pool: table, heap, attention. They stay the pool's.
 */
SHOAL_API void shoal_pool_fds(const shoal_pool *pool, int fds[3]);

/* -- the worker's side -- */

typedef struct shoal_worker shoal_worker;
typedef struct shoal_task shoal_task;

/** In a child of fork that inherited `pool`. */
SHOAL_API int shoal_worker_open(shoal_pool *pool, uint32_t place, uint32_t owner, shoal_worker **out);
/** In any other process; the descriptors of shoal_pool_fds are duplicated. */
SHOAL_API int shoal_worker_attach(const int fds[3], uint32_t place, uint32_t owner, shoal_worker **out);
/** By the thread that opened it: the end of that thread is what the pool is told of first when the process dies. */
SHOAL_API void shoal_worker_close(shoal_worker *worker);
SHOAL_API shoal_heap *shoal_worker_heap(const shoal_worker *worker);
SHOAL_API uint32_t shoal_worker_owner(const shoal_worker *worker);

/** Take the next task. -ETIMEDOUT, -EINTR, -ESHUTDOWN (none will come). */
SHOAL_API int shoal_worker_claim(shoal_worker *worker, int64_t timeout, shoal_task **out);
SHOAL_API uint32_t shoal_task_flags(const shoal_task *task);
SHOAL_API uint32_t shoal_task_shared(const shoal_task *task);
/** The shared bytes under an id; valid while the task runs. -ENOENT. */
SHOAL_API int shoal_worker_shared(shoal_worker *worker, uint32_t id, shoal_item *out);
/** The next item, which the worker holds until it answers. -ENODATA: no more. SHOAL_ECORRUPT.
 * Unless the task keeps its blocks, the item's blocks belong to the worker from now on (its owner number), to lend or
 * free. */
SHOAL_API int shoal_task_next(shoal_task *task, shoal_item *out);
/** The same for an item that is a word (8 bytes, no blocks) and follows another of its kind, as most numbers do:
 * without the steps that other items need. -ENODATA: the next item is none of these, or there is none;
 * shoal_task_next() tells.
 */
SHOAL_API int shoal_task_next_word(shoal_task *task, uint32_t *kind, uint64_t *word);
/** The result of the item held; its blocks, which must be the worker's, go to the pool. A worker that dies after this
 * has done the item. -ENOMEM. */
SHOAL_API int shoal_task_answer(shoal_task *task, const shoal_item *result);
/** The same for a result that is a word. */
SHOAL_API int shoal_task_answer_word(shoal_task *task, uint32_t kind, uint64_t word);
/** Hand the task back, done. */
SHOAL_API void shoal_task_finish(shoal_task *task);

/* -- a function over an array, for C programs -- */

/** Compute `output` from `input`. Returns 0 or a negative code, which becomes the item's. Runs in a worker. */
typedef int (*shoal_map_function)(const void *input, size_t input_size, void *output, size_t output_size,
                                  void *context);

typedef struct shoal_start_options {
    uint32_t workers; /* 0: one a cpu */
    uint32_t threads; /* of shoal_parallel_for in each worker; 0: the cpus shared out, or SHOAL_NUM_THREADS if set */
    const uint32_t *cpus; /* NULL, or `cpu_count` cpus that workers are pinned to, in turn */
    uint32_t cpu_count;
    uint64_t memory_limit; /* bytes of private memory above which a worker is replaced after a task; 0: none */
    /** In each worker, before its first item; a result other than 0 ends it with that exit status. May be NULL. */
    int (*worker_start)(void *context);
    /** In each worker that ends in order. May be NULL. */
    void (*worker_exit)(void *context);
    void *context; /* of both */
} shoal_start_options;

/** A pool with forked workers and a thread that supervises them. `options` may be NULL; it is copied, `context` is not.
 * The functions given to shoal_pool_map must be loaded by now. Ended by shoal_pool_stop. Errors as shoal_pool_create
 * and shoal_process_start; -EINVAL: a cpu that this process may not use. */
SHOAL_API int shoal_pool_start(const shoal_start_options *options, shoal_pool **out);
/** Workers finish (kill = 0) or are killed (1), and the pool is closed. */
SHOAL_API void shoal_pool_stop(shoal_pool *pool, int kill);

typedef struct shoal_map_options {
    const void *context; /* copied to every worker once */
    size_t context_size;
    uint32_t chunk;     /* items a worker takes at once; 0: chosen from measured time */
    uint32_t retries;   /* how often an item whose worker died is given out again */
    int *codes;         /* NULL, or `count` codes: 0, the function's, or one of those below */
    int64_t time_limit; /* ns that an item may take until its worker is killed; 0: none */
    /** Called now and then in the calling thread, and at the end. A result other than 0 cancels the map: no further
     * item is begun. May be NULL. */
    int (*progress)(size_t done, size_t count, void *context);
    void *progress_context;
} shoal_map_options;

/**
 * Apply `function` to each of `count` inputs, which lie `input_size` bytes apart, as do the outputs. Blocks until every
 * item is done or failed; signals do not interrupt it. Threads that map on one pool take turns. `options` may be NULL.
 *
 * Returns 0, or the code of the first item, in order, that failed (SHOAL_EWORKERDIED for one whose worker died more
 * than `retries` times, SHOAL_ETASKTIMEOUT for one that took too long, SHOAL_ECANCELLED for one that was not begun);
 * -ENOMEM; -EMSGSIZE: an input or an output of 2 GiB or more; -EAGAIN and the like where no worker can be started any
 * more. The output of an item whose function failed is what the function wrote to it, else zeros; that of an item which
 * has one of the codes named above is untouched.
 */
SHOAL_API int shoal_pool_map(shoal_pool *pool, shoal_map_function function, const void *inputs, size_t input_size,
                             void *outputs, size_t output_size, size_t count, const shoal_map_options *options);

/* ----------------------------------------------------------------- store ---- */

#define SHOAL_DIGEST_SIZE 16u /* bytes of a digest, and of a key */

/** A streaming XXH3-128: fast, and sound against accidents, not against an adversary. One thread at a time. */
typedef struct shoal_hash shoal_hash;
SHOAL_API int shoal_hash_create(shoal_hash **out); /* -ENOMEM */
SHOAL_API void shoal_hash_close(shoal_hash *hash); /* NULL is allowed */
SHOAL_API void shoal_hash_reset(shoal_hash *hash);
SHOAL_API void shoal_hash_update(shoal_hash *hash, const void *data, size_t size);
/** The digest of all bytes since the reset, in XXH3's canonical form. More may be added afterwards. */
SHOAL_API void shoal_hash_digest(const shoal_hash *hash, uint8_t digest[SHOAL_DIGEST_SIZE]);

/** The digest of `size` bytes at once. Up to 1 MiB it is XXH3-128; of more it is the digest of the 1 MiB chunks'
 * digests, so that from 16 MiB on several threads share the work. The same bytes always give the same digest. */
SHOAL_API void shoal_digest(const void *data, size_t size, uint8_t digest[SHOAL_DIGEST_SIZE]);

/**
 * A store: values on disk under a folder's name and a 128-bit key, for programs that keep what was expensive to make.
 *
 * An entry is seen whole or not at all, whenever its writer is killed. Large ones are files, the small ones of a folder
 * (up to 4 KiB, unless the store is durable) lie together in one, where putting one takes a tenth of the time.
 * Everything that is read is checked first: an entry that is not exactly what was put is reported as damaged, never
 * returned. Folders and files are the user's alone (0700, 0600, whatever the umask), and those that others own or could
 * have written are refused with -EPERM. Symbolic links are not followed below the store's path. Any number of threads
 * and processes may use a store at the same time, and a child of fork may go on using its parent's handles.
 */
typedef struct shoal_store shoal_store;

#define SHOAL_STORE_DURABLE 1u /* a put returns when the entry would survive a loss of power; 0.3 ms and more each */
/* each entry a file, written under a temporary name, as where there are no unnamed ones */
#define SHOAL_STORE_NAMED_FILES 2u
#define SHOAL_STORE_COPIES 4u /* what is read is never mapped */

#define SHOAL_COMPRESS_NONE 0u
#define SHOAL_COMPRESS_ZSTD 1u
#define SHOAL_COMPRESS_LZ4 2u /* less small, and several times faster to make */

typedef struct shoal_store_options {
    uint32_t flags;       /* SHOAL_STORE_… */
    uint32_t compression; /* SHOAL_COMPRESS_…, of what is put; what is read may be any */
    int level;            /* the method's own; 0: its default */
    /* 0: none. Else puts have the store reduced to it, in the background (see shoal_store_reduce); and a put that finds
     * the disk full removes what was used longest ago, and tries again. */
    uint64_t bytes_limit;
    /* Of what is read the first so many parts are never mapped, however large: those that the program only takes apart,
     * and does not keep. */
    uint32_t copied_parts;
} shoal_store_options;

/**
 * Open the store at `path`, making its folders (0700) where they are missing. `options` may be NULL.
 * Returns 0, -EPERM (the folder belongs to another user, or group or others may write to it), -ENOTDIR (also where
 * `path` is a symbolic link), -EACCES or -EROFS (missing, and cannot be made), -ENOMEM, -ENAMETOOLONG, -EINVAL.
 * A store that can only be read opens without error.
 */
SHOAL_API int shoal_store_open(const char *path, const shoal_store_options *options, shoal_store **out);
/** NULL is allowed. Its folders must be closed before; its entries may live on. */
SHOAL_API void shoal_store_close(shoal_store *store);
/** Remove all entries, and the folders that become empty. Files that are not entries are left. Others may go on using
 * the store meanwhile; what they put may stay. Returns 0 or the first error that left an entry there. */
SHOAL_API int shoal_store_clear(shoal_store *store);

typedef struct shoal_store_limits {
    uint64_t bytes; /* of all entries, as they lie on disk; UINT64_MAX: no limit */
    uint64_t items; /* how many entries; UINT64_MAX: no limit */
    int64_t age;    /* nanoseconds since the last use; 0: no limit */
} shoal_store_limits;

typedef struct shoal_store_reduced {
    uint64_t removed, removed_bytes; /* entries that went */
    uint64_t items, bytes;           /* those that stayed */
} shoal_store_reduced;

/**
 * Remove the entries that were used longest ago until the store is within all limits. A use is a get or a put, known to
 * the second; where nothing could be noted (a store that was read-only, an old one) the time of the put stands for it.
 * Others may go on using the store: a reader keeps what it has. `out` may be NULL. 0, -ENOMEM or the first error.
 */
SHOAL_API int shoal_store_reduce(shoal_store *store, const shoal_store_limits *limits, shoal_store_reduced *out);

typedef struct shoal_key {
    uint8_t bytes[SHOAL_DIGEST_SIZE];
} shoal_key;

typedef struct shoal_part {
    const void *data;
    size_t size;
    uint32_t kind; /* the caller's own, kept with the part */
} shoal_part;

/** What an entry says of itself. */
typedef struct shoal_entry_numbers {
    int64_t created;                /* nanoseconds since 1970; 0 in a put: now */
    int64_t cost;                   /* nanoseconds that it took to make the value, by the caller's account */
    uint64_t size;                  /* bytes that it takes on disk; not looked at in a put */
    uint32_t parts;                 /* how many; not looked at in a put */
    uint64_t hits;                  /* gets since the put, of the entries of a visit only; about: they may be lost */
    int64_t used;                   /* when it was last used, nanoseconds since 1970; of a visit only */
    uint8_t tag[SHOAL_DIGEST_SIZE]; /* the caller's own, kept with the entry */
} shoal_entry_numbers;

/** A folder of a store: the entries of one function, say. */
typedef struct shoal_folder shoal_folder;

/** The folder called `name` (any bytes but none; what a file name cannot hold is encoded). Nothing is made on disk
 * before the first put. The store must stay open. -EINVAL (empty), -ENOMEM. */
SHOAL_API int shoal_folder_open(shoal_store *store, const char *name, shoal_folder **out);
SHOAL_API void shoal_folder_close(shoal_folder *folder); /* NULL is allowed */
/** Where it lies; the handle's. */
SHOAL_API const char *shoal_folder_path(const shoal_folder *folder);

/** A value that was read, in memory of the caller's own: it may be written to, which changes nothing on disk. The first
 * part of 64 KiB or more and those that follow it are a private mapping of the entry's file, read page by page as they
 * are touched. If somebody else cuts that file short, in place, while the entry is open, touching what is gone ends the
 * program with SIGBUS: the store itself never does so, and none of its calls touches such a page, but who must not
 * trust the other programs of the user opens it with SHOAL_STORE_COPIES. */
typedef struct shoal_entry shoal_entry;

/**
 * Read an entry. Its checksum is verified, except for a large one that this process verified before and whose file has
 * not changed since.
 *
 * Returns 0, or
 *   -ENOENT         there is none
 *   SHOAL_ECORRUPT  there is something else in its place, or in that of the folder's small entries: damaged, of another
 *                   version, no file. A put replaces it
 *   -EPERM          the file or its folder is not the user's own, or group or others may write to it
 *   -ENOMEM, -EIO, -EMFILE, -EACCES …
 */
SHOAL_API int shoal_folder_get(shoal_folder *folder, const shoal_key *key, shoal_entry **out);
/** The same, without its being noted as a use. */
SHOAL_API int shoal_folder_look(shoal_folder *folder, const shoal_key *key, shoal_entry **out);
SHOAL_API void shoal_entry_about(const shoal_entry *entry, shoal_entry_numbers *out);
/** Part `index`, aligned to 64 bytes. -EINVAL: no such part; SHOAL_ECORRUPT. */
SHOAL_API int shoal_entry_part(const shoal_entry *entry, uint32_t index, shoal_part *out);
SHOAL_API void shoal_entry_close(shoal_entry *entry); /* NULL is allowed */

/**
 * Put a value of `count` parts, in place of what was there. `numbers` may be NULL.
 * Returns 0, -ENOSPC, -EDQUOT, -EFBIG (RLIMIT_FSIZE, checked before so that no SIGXFSZ is sent), -EROFS, -EACCES,
 * -EPERM (as for get), -EINVAL (more than 2^20 parts), -ENOMEM, -EIO, -ETIMEDOUT (the older entry could not be
 * removed, as another process was at work on the folder's small entries for 5 seconds: it was stopped, perhaps). On an
 * error what was there stays.
 */
SHOAL_API int shoal_folder_put(shoal_folder *folder, const shoal_key *key, const shoal_part *parts, uint32_t count,
                               const shoal_entry_numbers *numbers);
/** Remove an entry, whatever is in its place. -ENOENT: there was none; -ETIMEDOUT as for put. */
SHOAL_API int shoal_folder_remove(shoal_folder *folder, const shoal_key *key);
/** Remove all entries of the folder. As shoal_store_clear. */
SHOAL_API int shoal_folder_clear(shoal_folder *folder);

/** Called for each entry; a result other than 0 ends the visit. `folder` is its name on disk. `error`: 0, or why its
 * header could not be read (SHOAL_ECORRUPT, -EPERM …; `numbers` then holds the size at most). Checksums of large
 * entries are not verified. Where a small one's key cannot be read any more, or nothing of a folder's small entries
 * can, it is what is there, or zeros. */
typedef int (*shoal_store_visitor)(const char *folder, const shoal_key *key, const shoal_entry_numbers *numbers,
                                   int error, void *context);
/** Visit all entries, in no order. Those that are put or removed meanwhile may be seen or not. Returns 0, what the
 * visitor returned, or an error. */
SHOAL_API int shoal_store_visit(shoal_store *store, shoal_store_visitor visitor, void *context);
/** The same, reading each entry to its end: `error` is SHOAL_ECORRUPT for every one that is not exactly what was put,
 * and once, with a key of zeros, for what was cut off a folder's small entries. `remove_damaged`: such are removed. */
SHOAL_API int shoal_store_verify(shoal_store *store, int remove_damaged, shoal_store_visitor visitor, void *context);
/** Remove an entry, or with NULL for the key all of a folder's, by the folder's name on disk as a visitor is told it.
 * -ENOENT: there is none; -EINVAL: not such a name; -EPERM … */
SHOAL_API int shoal_store_remove(shoal_store *store, const char *folder, const shoal_key *key);

/** The right to make a missing entry, which one thread of one process has at a time. */
typedef struct shoal_claim shoal_claim;

/**
 * Claim the making of an entry, so that others who miss it wait instead of making it too. Whoever waited should look
 * for the entry before making it. A claim is advice: nothing else of the store heeds it.
 *
 * timeout  nanoseconds to wait for another's claim; 0 does not wait, SHOAL_FOREVER has no limit
 *
 * Returns 0, -ETIMEDOUT (another has it), -EINTR (a signal arrived), -ENOMEM, -ENOLCK, or why no file can be made there
 * (-EROFS, -EACCES, -EPERM …): then make the entry without. A claimer that dies has none any more. Two claims of one
 * thread that wait for two of another never end: whoever holds one should take the next with timeout 0.
 */
SHOAL_API int shoal_folder_claim(shoal_folder *folder, const shoal_key *key, int64_t timeout, shoal_claim **out);
/** NULL is allowed. A child of fork has none of its parent's. */
SHOAL_API void shoal_claim_release(shoal_claim *claim);

/** The most bytes that compressing `size` bytes can take; 0: no such method. */
SHOAL_API size_t shoal_compress_bound(uint32_t method, size_t size);
/** Compress to one frame of the method's own file format. `level`: the method's, 0 its default.
 * 0 and how many bytes were made, -ENOSPC (`capacity` is less than the bound, and was needed), -EINVAL, -ENOMEM. */
SHOAL_API int shoal_compress(uint32_t method, int level, const void *data, size_t size, void *out, size_t capacity,
                             size_t *made);
/** Expands frames piece by piece. One thread at a time. */
typedef struct shoal_expander shoal_expander;
SHOAL_API int shoal_expander_create(uint32_t method, shoal_expander **out); /* -EINVAL, -ENOMEM */
SHOAL_API void shoal_expander_close(shoal_expander *expander);              /* NULL is allowed */
/** Take some of `data` and make some of `out`. `used`, `made`: out, how many bytes. `ended`: out, a frame ended with
 * what was used; more may follow. Nothing used and nothing made: it needs more of either. 0 or SHOAL_ECORRUPT. */
SHOAL_API int shoal_expander_run(shoal_expander *expander, const void *data, size_t size, size_t *used, void *out,
                                 size_t capacity, size_t *made, int *ended);

/** Compute `output` from `input`: both plain data, of fixed size. Returns 0, or a code: then nothing is kept. */
typedef int (*shoal_memo_function)(const void *input, size_t input_size, void *output, size_t output_size,
                                   void *context);

/**
 * Call `function`, or take what an earlier call with the same `name`, input bytes and output size gave. Of several
 * threads or processes that miss the same at the same time one calls it, the others wait (10 minutes at most) and get
 * it.
 *
 * name      stands for the function and its version: change it when the function's meaning changes
 * context   handed to the function; not part of the key
 * hit       out, may be NULL: 1 the output was taken from the store; 0 it was computed and kept; negative: it was
 *           computed, but could not be kept, and why (-ENOSPC, -EROFS …)
 *
 * Padding in `input` is part of it: zero it. Returns 0, the function's own code, -EPERM (as shoal_folder_get: what
 * others could have written is neither used nor passed over in silence), -EINVAL (also for NULL with a size), -ENOMEM.
 */
SHOAL_API int shoal_memo_call(shoal_store *store, const char *name, shoal_memo_function function, void *context,
                              const void *input, size_t input_size, void *output, size_t output_size, int *hit);

/* --------------------------------------------------------------- compute ---- */

/** One part of a loop: the numbers from `begin` to before `end`. Must not wait for another part. */
typedef void (*shoal_loop_function)(size_t begin, size_t end, void *context);

/**
 * Do a loop's numbers [begin, end) in parts of `grain`, on this process's team of threads, and return when all are
 * done.
 *
 * threads  how many at the most, with the caller's own; 0: one a cpu, or what the environment's SHOAL_NUM_THREADS says
 *
 * The team is made on first need, and by each process for itself. Any thread may call this: a loop that finds the team
 * at another's work, or that runs inside of one, is done by its own thread.
 */
SHOAL_API void shoal_parallel_for(size_t begin, size_t end, size_t grain, shoal_loop_function function, void *context,
                                  uint32_t threads);

/**
 * The dot product of two vectors of `count` elements; alignment does not matter.
 *
 * threads  as shoal_parallel_for; short vectors use one
 * out      the sum, 0 for `count` 0. It does not depend on the number of threads
 *
 * Returns 0, -ENOMEM. The _float variant multiplies and adds in double precision.
 */
SHOAL_API int shoal_dot(const double *a, const double *b, size_t count, uint32_t threads, double *out);
SHOAL_API int shoal_dot_float(const float *a, const float *b, size_t count, uint32_t threads, double *out);

#ifdef __cplusplus
}
#endif
#endif
