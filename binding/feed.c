/* feed.c: between jobs and the table: encodes items into tasks while there is room, and delivers what comes back.
 *
 * Whoever waits for anything of a pool does this work for all of its jobs; there is no thread for it on the way of a
 * task. Iterating and encoding run the user's code, which may block, end the pool, or use it: so one thread at a time
 * feeds a job (`feeding`), others feed the other jobs meanwhile, each with a feeder of its own; and whatever the user's
 * code may have changed is looked at again after it. Collecting needs no such rule, as a completion is handed to one
 * thread. Called by pool.c, job.c and job_wait.c, with the GIL.
 */
#include "pool.h"

#include <string.h>

#define FIXED_TASKS_AHEAD 512u              /* where the caller chose the size, which may be tiny */
#define TIME_AHEAD (16 * SHOAL_MILLISECOND) /* of work, a worker: who hands out may be without a core for less */
#define BYTES_AHEAD ((size_t)(64 << 20))    /* of arguments, unless fewer than two tasks a worker are out */

#define FEEDER_LOOKS 500000 /* us; a job's own thread looks for room by itself so often, should nobody call it */
#define WORDS_AT_ONCE 64u
/* For so long a thread goes on feeding from an iterator before it looks whether something else is due. */
#define ITERATOR_TURN (2 * SHOAL_MILLISECOND)

/* ----------------------------------------------------------------- feeding ---- */

/* What one thread encodes a task with. */
struct feeder {
    shoal_batch *batch;
    struct codec_writer writer;
};

static void ready_writer(PoolObject *pool, struct feeder *feeder)
{
    codec_writer_begin(&feeder->writer, shoal_pool_heap(pool->pool), 0);
    feeder->writer.foreign_main = pool->foreign_main;
}

/* The spare one, or another where that is in use. NULL with an exception. */
static struct feeder *take_feeder(PoolObject *pool)
{
    struct feeder *feeder = pool->spare_feeder;
    pool->spare_feeder = NULL;
    if (feeder != NULL)
        return feeder;
    feeder = PyMem_Calloc(1, sizeof *feeder);
    if (feeder == NULL || shoal_batch_create(&feeder->batch) != 0) {
        PyMem_Free(feeder);
        PyErr_NoMemory();
        return NULL;
    }
    ready_writer(pool, feeder);
    return feeder;
}

void free_feeder(struct feeder *feeder)
{
    if (feeder == NULL)
        return;
    codec_writer_end(&feeder->writer, true);
    shoal_batch_close(feeder->batch);
    PyMem_Free(feeder);
}

static void give_feeder(PoolObject *pool, struct feeder *feeder)
{
    if (pool->spare_feeder == NULL)
        pool->spare_feeder = feeder;
    else
        free_feeder(feeder);
}

/* How many of the job's tasks may be out. */
static uint32_t tasks_most(const PoolObject *pool, const JobObject *job)
{
    const uint32_t workers = pool->workers;
    uint32_t most = Py_MAX(FIXED_TASKS_AHEAD, TASKS_AHEAD * workers);
    if (job->chunk == 0) /* until an item was measured there is no telling how long tasks take: few, and small */
        most = job->pace.items == 0 ? 2 * workers : tasks_ahead(pool);
    if (job->ahead == 0)
        return most;
    /* Its source is a program's own, which may show how far it has been read, or hold what is large. */
    uint64_t timely = 0;
    uint32_t ahead = job->ahead;
    if (job->pace.items > 0) {
        if (job->chunk == 0) /* it counts items, and a task has more than one by now */
            ahead /= shoal_pace_next(&job->pace, UINT32_MAX);
        const uint64_t elapsed = (uint64_t)Py_MAX(job->pace.elapsed, 1);
        timely = (uint64_t)workers * (uint64_t)TIME_AHEAD * job->pace.items / elapsed / Py_MAX(job->chunk, 1);
    }
    return Py_MAX(ahead, (uint32_t)Py_MIN(most, timely));
}

/* How many items the next task of the job takes; 0: none now. */
static uint32_t next_count(const PoolObject *pool, const JobObject *job)
{
    const uint32_t workers = pool->workers;
    if (job->tasks_out >= 2 * workers && pool->bytes_out >= BYTES_AHEAD)
        return 0;
    uint64_t left = job->length >= 0 ? (uint64_t)(job->length - job->next) : UINT32_MAX;
    if (job->window > 0 && !pool->eager) {
        Py_ssize_t room = job->taken + job->window - job->next;
        if (room <= 0)
            return 0;
        if (left > (uint64_t)room)
            left = (uint64_t)room;
    }
    if (job->tasks_out >= tasks_most(pool, job))
        return 0;
    const uint32_t count = job->chunk > 0 ? job->chunk : shoal_pace_next(&job->pace, left);
    return left < count ? (uint32_t)left : count;
}

/* Whether what the source gives has no use any more: the pool was terminated, the job cancelled. */
static bool is_over(const PoolObject *pool, const JobObject *job)
{
    return pool->ended || job->complete || job->cancelled != NULL || job->source == NULL;
}

/* Append an item that is a word. False: it is none, or there was no memory. Runs no code of the user's. */
static bool encode_word(struct feeder *feeder, PyObject *object)
{
    uint64_t word;
    const enum codec_kind kind = codec_encode_word(object, &word);
    const shoal_item item = {.data = &word, .size = sizeof word, .kind = kind};
    return kind != CODEC_MESSAGE && shoal_batch_add(feeder->batch, &item) == 0;
}

/* Append items of a range, up to `count`. */
static void encode_range(struct feeder *feeder, JobObject *job, uint32_t count)
{
    while (count > 0 && job->source != NULL && job->next < job->length) {
        int64_t words[WORDS_AT_ONCE];
        const Py_ssize_t left = Py_MIN(job->length - job->next, (Py_ssize_t)count);
        const uint32_t most = (uint32_t)Py_MIN(left, (Py_ssize_t)WORDS_AT_ONCE);
        for (uint32_t i = 0; i < most; i++)
            words[i] = job->first + (job->next + (Py_ssize_t)i) * job->step;
        if (shoal_batch_add_words(feeder->batch, CODEC_INTEGER, words, most) != 0)
            return; /* as below */
        job->next += most;
        count -= most;
    }
}

/* Append items of a sequence as long as they are words, up to `count` in all: what most short tasks are given. */
static void encode_words(struct feeder *feeder, JobObject *job, uint32_t count)
{
    if (!job->is_sequence || job->source == NULL)
        return;
    PyObject *const *items = PySequence_Fast_ITEMS(job->source);
    const Py_ssize_t size = PySequence_Fast_GET_SIZE(job->source);
    while (count > 0 && job->next < size) {
        uint64_t words[WORDS_AT_ONCE];
        const uint32_t most = (uint32_t)Py_MIN(Py_MIN(size - job->next, (Py_ssize_t)count), (Py_ssize_t)WORDS_AT_ONCE);
        enum codec_kind kind = CODEC_MESSAGE; /* of those in `words` */
        uint32_t held = 0;
        for (; held < most; held++) {
            const enum codec_kind found = codec_encode_word(items[job->next + held], &words[held]);
            if (found == CODEC_MESSAGE || (held > 0 && found != kind))
                break;
            kind = found;
        }
        if (held == 0 || shoal_batch_add_words(feeder->batch, kind, words, held) != 0)
            return; /* where there is no memory for them they are left to who can say so */
        job->next += held;
        count -= held;
    }
}

static int encode_item(PoolObject *pool, struct feeder *feeder, PyObject *item)
{
    struct codec_writer *writer = &feeder->writer;
    if (encode_word(feeder, item))
        return 0;
    if (codec_encode(pool->state, writer, item) != 0) {
        codec_writer_end(writer, false);
        goto failed;
    }
    const shoal_item encoded = codec_item(writer);
    int error = shoal_batch_add(feeder->batch, &encoded);
    if (error != 0) {
        codec_writer_end(writer, false);
        module_raise(error, "cannot hand out an item (a large one goes best as an array or bytes)");
        goto failed;
    }
    return 0;

failed:
    ready_writer(pool, feeder);
    return -1;
}

/* Whatever was raised becomes the result of this item. What is no Exception (Ctrl-C) is not the item's alone: it goes
 * on to the caller. */
static int settle_raised(JobObject *job, Py_ssize_t index)
{
    const bool is_items = PyErr_ExceptionMatches(PyExc_Exception);
    PyObject *value = module_take_raised();
    PyObject *kept = is_items ? NULL : Py_XNewRef(value);
    int result = job_settle(job, index, value, true);
    if (kept != NULL) {
        PyErr_Clear();
        PyErr_SetObject((PyObject *)Py_TYPE(kept), kept);
        Py_DECREF(kept);
        return -1;
    }
    return result;
}

/* The source ended, with an exception or without. 0, -1: an exception for the caller. */
static int end_source(JobObject *job)
{
    job->length = job->next;
    if (!PyErr_Occurred())
        return 0;
    if (!PyErr_ExceptionMatches(PyExc_Exception))
        return -1;
    if (job->iterates) {
        /* Raised where the reader comes to it, as an item that cannot be a value. */
        job->length = ++job->next;
        return job_settle_source(job, job->next - 1, module_take_raised());
    }
    /* The source's failure is the call's, unless an item failed before. */
    PyObject *error = module_take_raised();
    if (job->error == NULL) {
        job->error = error;
        job->error_index = job->next;
    } else {
        Py_XDECREF(error);
    }
    return 0;
}

static void list_task(PoolObject *pool, struct task_note *note)
{
    note->previous = NULL;
    note->next_note = pool->tasks;
    if (pool->tasks != NULL)
        pool->tasks->previous = note;
    pool->tasks = note;
    pool->bytes_out += note->bytes;
    note->job->tasks_out++;
}

static void unlist_task(PoolObject *pool, struct task_note *note)
{
    if (note->previous != NULL)
        note->previous->next_note = note->next_note;
    else
        pool->tasks = note->next_note;
    if (note->next_note != NULL)
        note->next_note->previous = note->previous;
    pool->bytes_out -= note->bytes;
    note->job->tasks_out--;
}

/* Submit the batch as one task. 1: done; 0: no room now (the batch is kept); -1: an exception. */
static int submit_batch(PoolObject *pool, shoal_batch *batch, JobObject *job, Py_ssize_t start, size_t bytes)
{
    struct task_note *note = PyMem_Malloc(sizeof *note);
    if (note == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    *note = (struct task_note){.job = job, .start = start, .items = shoal_batch_count(batch), .bytes = bytes};
    const shoal_task_options options = {
        .tag = (uint64_t)(uintptr_t)note,
        .group = (uint64_t)(uintptr_t)job,
        .time_limit = job->time_limit,
        .shared = job->shared,
        .flags = job->flags,
    };
    int error = shoal_pool_submit(pool->pool, batch, &options);
    if (error != 0) {
        PyMem_Free(note);
        module_raise(error, "cannot hand out a task");
        return -1;
    }
    Py_INCREF(job);
    list_task(pool, note);
    return 1;
}

/* Submit what was encoded; what cannot be ends as an error of its items. 1, or -1 with an exception. */
static int send_batch(PoolObject *pool, struct feeder *feeder, JobObject *job, Py_ssize_t start, size_t large)
{
    shoal_batch *batch = feeder->batch;
    const bool over = is_over(pool, job);
    if (!over && submit_batch(pool, batch, job, start, large + shoal_batch_size(batch)) == 1)
        return 1;
    /* The items were taken from the source: they must end as something. */
    uint32_t items = shoal_batch_count(batch);
    shoal_batch_clear(batch, shoal_pool_heap(pool->pool));
    if (over && job->cancelled != NULL)
        PyErr_SetObject((PyObject *)Py_TYPE(job->cancelled), job->cancelled);
    else if (over)
        PyErr_SetString(PyExc_RuntimeError, "the pool was terminated");
    PyObject *error = module_take_raised();
    int result = 1;
    for (uint32_t i = 0; i < items && result == 1; i++) {
        if (job_settle(job, start + i, Py_XNewRef(error), true) != 0)
            result = -1;
    }
    Py_XDECREF(error);
    return result;
}

/* Encode and submit one task of the job. 1: submitted, or items settled; 0: no room, or nothing left; -1: an exception.
 */
static int feed_task(PoolObject *pool, struct feeder *feeder, JobObject *job)
{
    shoal_batch *batch = feeder->batch;
    uint32_t count = next_count(pool, job);
    if (count == 0 || shoal_pool_full(pool->pool))
        return 0;
    Py_ssize_t start = job->next;
    bool broken = false;
    shoal_batch_clear(batch, NULL);
    size_t large = 0;
    if (job->is_range)
        encode_range(feeder, job, count);
    else
        encode_words(feeder, job, count);
    while (shoal_batch_count(batch) < count && !broken) {
        PyObject *item = job_next_item(job);
        if (is_over(pool, job)) {
            Py_XDECREF(item);
            if (PyErr_Occurred() && PyErr_ExceptionMatches(PyExc_Exception))
                PyErr_Clear();
            break;
        }
        if (item == NULL) {
            (void)end_source(job); /* an exception that is left is seen below */
            break;
        }
        Py_ssize_t index = job->next++;
        if (encode_item(pool, feeder, item) != 0) {
            broken = true; /* an item that cannot be sent: what came before it goes out without it */
            (void)settle_raised(job, index);
        } else {
            for (uint32_t i = 0; i < feeder->writer.block_count; i++) {
                size_t size = 0;
                if (shoal_heap_pointer(shoal_pool_heap(pool->pool), feeder->writer.blocks[i], &size) != NULL)
                    large += size;
            }
            codec_writer_reset(&feeder->writer);
        }
        Py_DECREF(item);
        if (large >= BYTES_AHEAD || PyErr_Occurred())
            break;
    }
    /* An exception that is not an item's own (Ctrl-C) waits until what was taken from the source has its place. */
    PyObject *interrupt = PyErr_Occurred() ? module_take_raised() : NULL;
    int result = broken || job->length >= 0;
    if (shoal_batch_count(batch) > 0)
        result = send_batch(pool, feeder, job, start, large);
    if (interrupt != NULL) {
        PyErr_Clear();
        PyErr_SetObject((PyObject *)Py_TYPE(interrupt), interrupt);
        Py_DECREF(interrupt);
        return -1;
    }
    return result;
}

static bool all_handed_out(const JobObject *job)
{
    return job->length >= 0 && job->next >= job->length;
}

int leave_queue(PoolObject *pool, JobObject *job)
{
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(pool->queue); i++) {
        if (PyList_GET_ITEM(pool->queue, i) == (PyObject *)job) {
            PyObject *source = job->source;
            job->queued = false;
            job->source = NULL;
            const int error = PyList_SetSlice(pool->queue, i, i + 1, NULL);
            Py_XDECREF(source); /* last: it may run code of its own, and others change the queue meanwhile */
            return error;
        }
    }
    return 0;
}

/* Feed a job as far as it goes, or for a turn. *more: it would have gone further. */
static int feed_job(PoolObject *pool, struct feeder *feeder, JobObject *job, bool *more)
{
    const int64_t end = job->prompt ? SHOAL_FOREVER : shoal_clock_now() + ITERATOR_TURN;
    uint32_t since_wake = 0;
    int result;
    job->feeding = true;
    job->called = false;
    do {
        result = all_handed_out(job) || pool->ended ? 0 : feed_task(pool, feeder, job);
        /* The first tasks start while the others are encoded. */
        if (result == 1 && (++since_wake & 7) == 1)
            shoal_pool_wake(pool->pool);
        if (result == 1 && PyErr_CheckSignals() != 0)
            result = -1;
    } while (result == 1 && shoal_clock_now() < end);
    job->feeding = false;
    if (result == 1) {
        *more = *more || !all_handed_out(job);
        result = 0;
    }
    if (all_handed_out(job) && job->queued && leave_queue(pool, job) != 0)
        return -1;
    return result;
}

/* Whether this thread may take items from the job's source now. */
static bool may_feed(const JobObject *job)
{
    return !job->feeding && !job->has_feeder && (job->thread == 0 || job->thread == PyThread_get_thread_ident());
}

void call_feeder(const PoolObject *pool, JobObject *job)
{
    if (!job->has_feeder || job->feeding || job->called)
        return;
    /* Calling it costs some 50 us: not for each place that gets free. */
    const bool worth_it =
        job->tasks_out <= FIXED_TASKS_AHEAD / 2 && (job->window == 0 || job->next - job->taken <= job->window / 2);
    if (!worth_it && !pool->eager && !is_over(pool, job))
        return;
    job->called = true;
    PyThread_release_lock(job->call);
}

int feed_source(PoolObject *pool, JobObject *job)
{
    struct feeder *feeder = take_feeder(pool);
    int result = feeder == NULL ? -1 : 0;
    pool->feeding++;
    while (result == 0 && job->queued && !is_over(pool, job)) {
        bool more = true;
        while (result == 0 && more && job->queued && !is_over(pool, job)) {
            more = false;
            result = feed_job(pool, feeder, job, &more);
        }
        shoal_pool_wake(pool->pool);
        if (result == 0)
            result = job_check(job);
        if (result != 0 || !job->queued || is_over(pool, job))
            break;
        Py_BEGIN_ALLOW_THREADS
        PyThread_acquire_lock_timed(job->call, FEEDER_LOOKS, 0);
        Py_END_ALLOW_THREADS
    }
    pool->feeding--;
    if (feeder != NULL)
        give_feeder(pool, feeder);
    if (!pool->ended)
        shoal_pool_request_attention(pool->pool, 0, 1); /* a closed pool may be through with this */
    return result;
}

/* Where the job after this one is in the queue, which was at `index` before the user's code may have changed it. */
static Py_ssize_t next_in_queue(const PoolObject *pool, const JobObject *job, Py_ssize_t index)
{
    const Py_ssize_t size = PyList_GET_SIZE(pool->queue);
    if (index < size && PyList_GET_ITEM(pool->queue, index) == (PyObject *)job)
        return index + 1;
    for (Py_ssize_t i = 0; job->queued && i < size; i++) {
        if (PyList_GET_ITEM(pool->queue, i) == (PyObject *)job)
            return i + 1;
    }
    return index; /* it left: the next one has its place */
}

int feed_jobs(PoolObject *pool)
{
    bool more = false;
    int result = 0;
    if (PyList_GET_SIZE(pool->queue) == 0 || shoal_pool_full(pool->pool)) {
        pool->more = false; /* or who waits would come here again and again instead of sleeping */
        shoal_pool_wake(pool->pool);
        return 0;
    }
    struct feeder *feeder = take_feeder(pool);
    if (feeder == NULL)
        return -1;
    pool->feeding++;
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(pool->queue) && result == 0 && !pool->ended;) {
        JobObject *job = (JobObject *)Py_NewRef(PyList_GET_ITEM(pool->queue, i));
        if (may_feed(job)) {
            result = feed_job(pool, feeder, job, &more);
            if (result == 0)
                result = job_check(job);
        }
        i = next_in_queue(pool, job, i);
        Py_DECREF(job);
        if (shoal_pool_full(pool->pool))
            break;
    }
    pool->feeding--;
    give_feeder(pool, feeder);
    pool->more = more;
    shoal_pool_wake(pool->pool);
    return result;
}

/* -------------------------------------------------------------- delivering ---- */

static PyObject *decode_result(PoolObject *pool, const shoal_item *item, bool *failed)
{
    *failed = item->kind == RESULT_ERROR;
    if (!*failed)
        return codec_decode(pool->state, shoal_pool_heap(pool->pool), item, CODEC_VIEW);
    shoal_item error = *item;
    error.kind = CODEC_MESSAGE;
    return codec_decode(pool->state, shoal_pool_heap(pool->pool), &error, CODEC_VIEW);
}

/* A result cannot be unpickled, for the reason that is set: the item's error, in the pool's own words if it has any. A
 * Ctrl-C that came meanwhile is no such reason. */
static int settle_unreadable(PoolObject *pool, JobObject *job, Py_ssize_t index)
{
    if (pool->unreadable == NULL || PyErr_ExceptionMatches(PyExc_KeyboardInterrupt))
        return settle_raised(job, index);
    PyObject *reason = module_take_raised();
    PyObject *error = reason == NULL ? NULL : PyObject_CallOneArg(pool->unreadable, reason);
    Py_XDECREF(reason);
    return error == NULL ? settle_raised(job, index) : job_settle(job, index, error, true);
}

static inline int deliver_result(PoolObject *pool, JobObject *job, Py_ssize_t index, const shoal_item *item)
{
    bool failed = false;
    PyObject *value = decode_result(pool, item, &failed);
    if (value == NULL)
        return settle_unreadable(pool, job, index);
    if (!failed && job_settle_place(job, index, value))
        return 0;
    return job_settle(job, index, value, failed);
}

/* Results that are integers, into places that are there and free, as most are. How many: the rest, from the first that
 * is another case or finds no memory, is deliver_result's. */
static uint32_t deliver_integers(JobObject *job, Py_ssize_t index, const uint8_t *words, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        int64_t integer;
        memcpy(&integer, words + i * sizeof integer, sizeof integer);
        PyObject *value = PyLong_FromLongLong(integer);
        if (value == NULL || !job_settle_place(job, index + (Py_ssize_t)i, value)) {
            PyErr_Clear();
            Py_XDECREF(value);
            return i;
        }
    }
    return count;
}

/* The results of a task that came back, to the job's items. */
static int deliver_results(PoolObject *pool, struct task_note *note, shoal_completion *completion)
{
    JobObject *job = note->job;
    Py_ssize_t index = note->start + (Py_ssize_t)completion->first;
    int result = 0;
    while (result == 0) {
        shoal_item item = {.size = sizeof(uint64_t)};
        uint32_t count = shoal_completion_words(completion, &item.kind, &item.data);
        if (item.kind == CODEC_INTEGER) {
            const uint32_t placed = deliver_integers(job, index, item.data, count);
            index += placed;
            count -= placed;
            item.data = (const uint8_t *)item.data + placed * sizeof(uint64_t);
        }
        for (; count > 0 && result == 0; count--) {
            result = deliver_result(pool, job, index++, &item);
            item.data = (const uint8_t *)item.data + sizeof(uint64_t);
        }
        if (result != 0 || shoal_completion_next(completion, &item) != 0)
            break;
        result = deliver_result(pool, job, index++, &item);
    }
    return result;
}

/* Whether the item that a worker left undone is given out again. */
static bool is_tried_again(struct task_note *note, const shoal_completion *completion)
{
    if (completion->outcome != SHOAL_EWORKERDIED)
        return false;
    if (completion->finished > completion->first)
        note->deaths = 0; /* it is another item that was held this time */
    return completion->blameless || note->deaths++ < note->job->retries;
}

/* The item that a worker left undone, and is not tried again, becomes an error. */
static int settle_undone(struct task_note *note, Py_ssize_t index, const shoal_completion *completion)
{
    JobObject *job = note->job;
    note->deaths = 0;
    if (completion->outcome == SHOAL_EWORKERDIED || completion->outcome == SHOAL_ETASKTIMEOUT) {
        PyObject *error = make_outcome(job, index, completion);
        return error == NULL ? -1 : job_settle(job, index, error, true);
    }
    PyErr_SetString(PyExc_MemoryError, "the worker had no shared memory for the result of this item");
    return settle_raised(job, index);
}

/* What a worker left of a task: the item it held fails or is tried again, the rest goes out again, unless the job was
 * cancelled. *again: the task is out. */
static int settle_rest(PoolObject *pool, struct task_note *note, shoal_completion *completion, bool *again)
{
    JobObject *job = note->job;
    uint32_t from = completion->finished;
    *again = false;
    if (from >= completion->items)
        return 0;
    if (job->cancelled == NULL && !is_tried_again(note, completion)) {
        if (settle_undone(note, note->start + (Py_ssize_t)from, completion) != 0)
            return -1;
        from++;
    }
    /* Looked at only now: making the error lets other threads in, and one that cancels the job finds nothing of this
     * task to take back. From here on none comes between. */
    if (job->cancelled != NULL) {
        for (; from < completion->items; from++) {
            if (job_settle(job, note->start + (Py_ssize_t)from, Py_NewRef(job->cancelled), true) != 0)
                return -1;
        }
        return 0;
    }
    note->settled = from;
    if (from >= completion->items)
        return 0;
    int error = pool->ended ? -ESHUTDOWN : shoal_pool_resume(pool->pool, completion, from);
    if (error == 0) {
        shoal_pool_wake(pool->pool);
        *again = true;
        return 0;
    }
    for (; from < completion->items; from++) {
        module_raise(error, "cannot hand out the rest of a task whose worker died");
        if (settle_raised(job, note->start + (Py_ssize_t)from) != 0)
            return -1;
    }
    return 0;
}

static int deliver(PoolObject *pool, shoal_completion *completion)
{
    struct task_note *note = (struct task_note *)(uintptr_t)completion->tag;
    JobObject *job = note->job;
    bool again = false;
    shoal_pace_note(&job->pace, completion);
    /* Off the list first: decoding lets other threads in, and one of them may abandon what is listed. */
    unlist_task(pool, note);
    pool->delivering++;
    int result = deliver_results(pool, note, completion);
    if (result == 0)
        result = settle_rest(pool, note, completion, &again);
    pool->delivering--;
    if (again) {
        list_task(pool, note);
        return result;
    }
    if (!pool->ended)
        shoal_pool_release(pool->pool, completion);
    PyMem_Free(note);
    if (result == 0)
        result = job_check(job);
    Py_DECREF(job);
    return result;
}

int collect_tasks(PoolObject *pool, bool *any)
{
    shoal_completion completion;
    *any = false;
    while (!pool->ended && shoal_pool_collect(pool->pool, &completion) == 0) {
        *any = true;
        if (deliver(pool, &completion) != 0 || PyErr_CheckSignals() != 0)
            return -1;
    }
    return 0;
}

int abandon_jobs(PoolObject *pool, PyObject *error)
{
    pool->ended = true;
    /* What is out: each task's items that have no result. The table itself is dropped with the pool. */
    while (pool->tasks != NULL) {
        struct task_note *note = pool->tasks;
        JobObject *job = note->job;
        unlist_task(pool, note);
        int result = 0;
        for (uint32_t i = note->settled; i < note->items && result == 0; i++)
            result = job_settle(job, note->start + (Py_ssize_t)i, Py_NewRef(error), true);
        PyMem_Free(note);
        if (result == 0)
            result = job_check(job);
        Py_DECREF(job);
        if (result != 0)
            return -1;
    }
    while (PyList_GET_SIZE(pool->queue) > 0) {
        JobObject *job = (JobObject *)Py_NewRef(PyList_GET_ITEM(pool->queue, 0));
        int result = PyList_SetSlice(pool->queue, 0, 1, NULL);
        job->queued = false;
        Py_CLEAR(job->source);
        if (job_is_endless(job))
            job->length = job->next + 1; /* an iterator: the error is its last item */
        while (result == 0 && job->next < job->length)
            result = job_settle(job, job->next++, Py_NewRef(error), true);
        if (result == 0)
            result = job_check(job);
        Py_DECREF(job);
        if (result != 0)
            return -1;
    }
    return 0;
}

/* Whether there are items to hand out that no thread will come back for. */
static bool has_unattended(const PoolObject *pool)
{
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(pool->queue); i++)
        if (!((JobObject *)PyList_GET_ITEM(pool->queue, i))->attended)
            return true;
    return false;
}

void request_help(PoolObject *pool)
{
    if (pool->ended || pool->waiters > 0)
        return;
    if (pool->more)
        shoal_pool_request_attention(pool->pool, 0, 1);
    else if (pool->callbacks > 0)
        shoal_pool_request_attention(pool->pool, 0, PyList_GET_SIZE(pool->finished) > 0);
    else if (has_unattended(pool))
        shoal_pool_request_attention(pool->pool, pool->workers, 0);
    else if (pool->eager && pool->tasks != NULL)
        shoal_pool_request_attention(pool->pool, 1, 0); /* the supervisor ends the workers when all is done */
}
