/* pool.h: what pool.c (the type Pool), job*.c (the type Job) and feed.c (between the two) share.
 *
 * All of it is guarded by the GIL. Encoding, decoding and iterating run the user's code, and so may let other threads
 * in at any such call: state is made consistent before each of them, and looked at anew after it.
 */
#ifndef SHOAL_BINDING_POOL_H
#define SHOAL_BINDING_POOL_H

#include "codec.h"

#include <pythread.h>

/* How a worker calls the function; in the upper half of a task's flags. */
enum call_mode {
    CALL_ONE = 0,   /* f(item) */
    CALL_STAR = 1,  /* f(*item) */
    CALL_APPLY = 2, /* item is (args, kwargs): f(*args, **kwargs) */
    CALL_WHOLE = 3, /* item is (f, args, kwargs): no function is shared */
    CALL_NAMED = 4  /* item is (id, *args), or (-id, args, kwargs): each names its shared function */
};
#define TASK_CALL_SHIFT 16

/* Which thread takes items from a job's source. */
enum job_feeder {
    FEEDER_ANY = 0,    /* whoever waits for something of the pool */
    FEEDER_CALLER = 1, /* the one that made the job: its source may be bound to it */
    FEEDER_OWN = 2     /* one of its own, in feed_source(): its source may block */
};

/* The kind of a result that is a message with the item's error. */
enum { RESULT_ERROR = CODEC_KINDS };

typedef struct PoolObject PoolObject;
typedef struct JobObject JobObject;

/* A task that is out: its tag is its address. */
struct task_note {
    JobObject *job;   /* strong */
    Py_ssize_t start; /* the number of its first item in the job */
    uint32_t items;
    uint32_t settled; /* of its items, when it was given out again */
    uint32_t deaths;  /* of the item that is next, so far */
    size_t bytes;
    struct task_note *previous, *next_note; /* in the pool's list */
};

struct PoolObject {
    PyObject_HEAD
    module_state *state;
    shoal_pool *pool;
    uint32_t workers;
    struct feeder *spare_feeder; /* feed.c's */
    bool foreign_main;           /* the workers' __main__ is another program's */
    PyObject *unreadable;        /* exception of a result that cannot be unpickled -> the item's error; NULL: itself */
    uint32_t feeding;            /* threads in feed_jobs */
    bool more;                   /* the last of them stopped while there was more to hand out */
    bool eager;                  /* hand out all that iterators hold: the pool was closed */
    bool ended;                  /* nothing is handed out any more */
    bool minded;                 /* there may be results that nobody waits for */
    bool forsaken;               /* Python's pool is gone: the supervisor ends the workers */
    PyObject *queue;             /* list of jobs with items left to hand out, in order */
    PyObject *finished;          /* list of jobs that are done and whose callback is due */
    uint32_t waiters;            /* threads in wait_for */
    uint32_t delivering;         /* threads that hand results of a task to its job */
    uint32_t callbacks;          /* jobs with a callback that are not done yet */
    struct task_note *tasks;     /* all that are out */
    size_t bytes_out;
    uint32_t users; /* threads inside of a call that uses `pool`; the last one closes it where that is due */
    bool close_due;
    pid_t process; /* that made it, the only one that may use it */
};

struct JobObject {
    PyObject_HEAD
    PoolObject *pool;    /* strong */
    PyObject *source;    /* a list or tuple, or an iterator; NULL once it is used up */
    PyObject *results;   /* not iterating: the list of all results, with places that are NULL and unknown to the
                            collector until the job is complete; a single call's only one; NULL */
    PyObject *keeper;    /* Python's pool, which must not be collected before the results were read; NULL */
    PyObject *error;     /* of the first item, in order, that failed; iterating: a StopIteration of an item's */
    PyObject *cancelled; /* what the items become that were not begun when the job was cancelled; NULL: it was not */
    Py_ssize_t error_index;
    PyObject *callback; /* what Python runs once the job is done, before it counts as ready; NULL */
    Py_ssize_t length;  /* items; -1 while an iterator has not ended */
    Py_ssize_t next;    /* items handed out */
    Py_ssize_t settled; /* items that have a result or an error */
    Py_ssize_t taken;   /* results that the reader of an iterator took */
    Py_ssize_t arrived; /* results that can be taken now (unordered) */
    Py_ssize_t told;    /* of these, when who waits for the next one was told last */
    Py_ssize_t window;  /* results ahead of the reader, 0: no limit */
    uint32_t chunk;     /* 0: by measured time */
    uint32_t ahead;     /* tasks (without `chunk`: items) that may be out, and no more unless they are short; 0: as
                           many tasks as are of use */
    uint32_t shared, flags, retries;
    int64_t time_limit; /* ns an item may take; 0: no limit */
    uint32_t tasks_out;
    uint32_t waiters;
    shoal_pace pace;
    bool is_sequence, iterates, ordered;
    bool is_range; /* its items are first + index * step, and are made here where they are not sent as words */
    int64_t first, step;
    bool prompt;             /* its source is a sequence or a range: it runs no code of the user's and has a length */
    bool single;             /* one call, made by Pool.call(): its result is no list */
    bool feeding;            /* a thread takes items from its source */
    unsigned long thread;    /* the only one that may, or 0 */
    bool has_feeder;         /* a thread in feed_source() does, and no other */
    PyThread_type_lock call; /* which it waits for when there is no room: taken unless it was called */
    bool called, fed;
    bool values;      /* errors are results, not raised */
    bool owns_shared; /* `shared` is this job's alone: nobody needs it once the job is done */
    bool attended;    /* a thread reads its results as they come, and does nothing else until it is done or withdrawn */
    bool queued, ready, complete;
    bool watched; /* `callback` came by watch(): the job is ready as soon as it is done, and the callback runs after */
    struct entry {
        PyObject *value; /* NULL: not there yet */
        enum entry_kind { ENTRY_VALUE, ENTRY_ERROR, ENTRY_RAISES } kind;
    } * entries; /* iterating: a ring of `capacity` entries from `taken` on */
    size_t capacity;
};

/* call.c */

extern const char pool_call_doc[];
PyObject *pool_call(PyObject *self, PyObject *const *args, Py_ssize_t count);
PyObject *job_get(PyObject *self, PyObject *const *args, Py_ssize_t count, PyObject *names);

/* pool.c */

/* Around every use of pool->pool that may let other threads in. -1 with an exception: not the owner, or closed. */
int pool_enter(PoolObject *pool);
void pool_leave(PoolObject *pool);
bool pool_is_pool(PyObject *object);
bool pool_is_idle(const PoolObject *pool);

/* feed.c */

/* How many tasks are out at the most where their size follows measured time. */
#define TASKS_AHEAD 4u        /* a worker */
#define TASKS_AHEAD_LEAST 32u /* in all: who hands out may be without a core for some milliseconds */
static inline uint32_t tasks_ahead(const PoolObject *pool)
{
    return Py_MAX(TASKS_AHEAD * pool->workers, TASKS_AHEAD_LEAST);
}

/* Hand out what there is room for. 0, or -1 with an exception (only for what is nobody's item: memory). */
int feed_jobs(PoolObject *pool);
/* Collect what is done and deliver it. -1 with an exception as above. *any: whether something was. */
int collect_tasks(PoolObject *pool, bool *any);
/* Fail every item that is out or not handed out yet, with an exception made by `error` (an instance; shared by all). */
int abandon_jobs(PoolObject *pool, PyObject *error);
/* Feed one job until its source is used up or of no use any more, waiting for room: what a job's own thread does.
 * 0, or -1 with an exception. */
int feed_source(PoolObject *pool, JobObject *job);
/* Take a job whose items are all handed out off the queue. 0, or -1 with an exception. */
int leave_queue(PoolObject *pool, JobObject *job);
/* Call the job's own thread, if it has one, where there is room enough to call it for. */
void call_feeder(const PoolObject *pool, JobObject *job);
/* Free what feed.c keeps; NULL is allowed. */
void free_feeder(struct feeder *feeder);
/* Have the supervising thread called when there is something that no waiting thread sees to. */
void request_help(PoolObject *pool);

/* job.c */

/* How a job is made, and handed out. */
struct job_options {
    uint32_t shared, chunk, ahead, retries;
    enum call_mode mode;
    enum job_feeder feeder;
    int64_t time_limit; /* ns an item may take; 0: no limit */
    PyObject *callback; /* borrowed; or NULL */
    bool single, iterates, ordered, values, owns_shared, attended;
    Py_ssize_t window;
};
/* New reference to an instance of `type`, Job or a sub-class; NULL with an exception. */
JobObject *job_make(PyTypeObject *type, PoolObject *pool, PyObject *source, const struct job_options *options);
/* Begin to hand out its items. 0, or -1 with an exception. */
int job_start(JobObject *job);
/* Seconds or None as a job's limit. 0, or -1 with an exception. */
int job_time_limit(PyObject *seconds, int64_t *limit);

int job_add(PyObject *module);

/* job_source.c */

/* Keep what the job's items come from, and make places for their results. 0, or -1 with an exception. */
int job_take_source(JobObject *job, PyObject *source);
/* The next item: new reference; NULL without an exception at the source's end, or where the job needs no more of it
 * (`job->source` is NULL then). May run the user's code. */
PyObject *job_next_item(JobObject *job);
/* Whether what was not handed out yet has no number, or one that may be beyond memory: one error says it all then. */
bool job_is_endless(const JobObject *job);

/* job_results.c */

/* Item `index` has its result or error; steals `value`. */
int job_settle(JobObject *job, Py_ssize_t index, PyObject *value, bool failed);

/* The same for a result in a place that is there, as most are. False: it is another case; `value` is still the
 * caller's. */
static inline bool job_settle_place(JobObject *job, Py_ssize_t index, PyObject *value)
{
    if (job->results == NULL || job->single || job->complete || index < 0 || index >= PyList_GET_SIZE(job->results) ||
        PyList_GET_ITEM(job->results, index) != NULL)
        return false;
    PyList_SET_ITEM(job->results, index, value);
    job->settled++;
    return true;
}
/* As job_settle, for an iterator's own error in the place of the item that it failed to give: raised in any case. */
int job_settle_source(JobObject *job, Py_ssize_t index, PyObject *error);
/* After items were settled or the source ended: is the job done? Then whoever waits is told. */
int job_check(JobObject *job);
/* Callbacks ran, or there are none: the job counts as ready. */
void job_make_ready(JobObject *job);
/* Let the function go that was shared for this job alone. */
void job_drop_shared(JobObject *job);

/* Where an iterating job's next result is or will be; only where there is a ring (`capacity` above 0). */
static inline struct entry *job_next_entry(const JobObject *job)
{
    return &job->entries[(size_t)job->taken % job->capacity];
}
static inline bool job_next_is_there(const JobObject *job)
{
    return job->capacity > 0 && job_next_entry(job)->value != NULL;
}
/* The next result of an iterating job: the value, or NULL with its error, or without one at the end. */
PyObject *job_take_next(JobObject *job);
/* Raise the exception, which is borrowed. */
void job_raise(PyObject *error);

/* job_wait.c */

/* Collect and feed until the job is done (or has a next result, or, without a job, the pool is idle). The GIL is
 * released while waiting. 1: so it is; 0: the time (ns) is over; -1: an exception. */
int wait_for(PoolObject *pool, JobObject *job, bool for_next, int64_t timeout);

/* An instance of the package's WorkerDied, or TaskTimeout, for an item that was not done. */
PyObject *make_outcome(const JobObject *job, Py_ssize_t item, const shoal_completion *completion);

#endif
