/* feed.c: between jobs and the table: encodes items into tasks while there is room, and delivers what comes back.
 *
 * Whoever waits for anything of a pool does this work for all of its jobs; there is no thread for it on the way of a
 * task. One thread at a time feeds (`feeding`); one that comes meanwhile asks it to look again and goes on. Collecting
 * needs no such rule, as a completion is handed to one thread. Called by pool.c and job.c, with the GIL.
 */
#include "pool.h"

#include <string.h>

#define TASKS_AHEAD 4u                   /* a worker, where the size of tasks follows measured time */
#define FIXED_TASKS_AHEAD 512u           /* where the caller chose the size, which may be tiny */
#define BYTES_AHEAD ((size_t)(64 << 20)) /* of arguments, unless fewer than two tasks a worker are out */

/* ----------------------------------------------------------------- feeding ---- */

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
    uint32_t count = job->chunk;
    if (count == 0) {
        /* Until an item was measured there is no telling how long tasks take: few, and small. */
        if (job->tasks_out >= (job->pace.items == 0 ? 2 * workers : TASKS_AHEAD * workers))
            return 0;
        count = shoal_pace_next(&job->pace, left);
    } else if (job->tasks_out >= FIXED_TASKS_AHEAD && job->tasks_out >= TASKS_AHEAD * workers) {
        return 0;
    }
    return left < count ? (uint32_t)left : count;
}

/* The next item of the job's source: new reference; NULL without an exception at its end. */
static PyObject *next_item(JobObject *job)
{
    if (!job->is_sequence)
        return PyIter_Next(job->source);
    /* A list may have been changed by the user's code meanwhile. */
    if (job->next >= PySequence_Fast_GET_SIZE(job->source))
        return NULL;
    return Py_NewRef(PySequence_Fast_GET_ITEM(job->source, job->next));
}

static int encode_item(PoolObject *pool, PyObject *item)
{
    struct codec_writer *writer = &pool->writer;
    void *data;
    /* Straight into the batch, where it is a word. */
    if (shoal_batch_begin_item(pool->batch, CODEC_SMALL, &data) == 0) {
        const size_t size = codec_encode_small(item, data);
        if (size > 0)
            return shoal_batch_end_item(pool->batch, size, NULL, 0); /* its room is there: never fails */
    }
    if (codec_encode(pool->state, writer, item) != 0) {
        codec_writer_end(writer, false);
        goto failed;
    }
    int error = shoal_batch_begin_item(pool->batch, writer->size, &data);
    if (error == 0) {
        memcpy(data, writer->data, writer->size);
        error = shoal_batch_end_item(pool->batch, writer->size, writer->blocks, writer->block_count);
    }
    if (error != 0) {
        codec_writer_end(writer, false);
        module_raise(error, "cannot hand out an item (a large one goes best as an array or bytes)");
        goto failed;
    }
    return 0;

failed:
    codec_writer_begin(writer, shoal_pool_heap(pool->pool), 0);
    writer->foreign_main = pool->foreign_main;
    return -1;
}

/* Whatever was raised becomes the result of this item. */
static int settle_raised(JobObject *job, Py_ssize_t index)
{
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    PyErr_NormalizeException(&type, &value, &traceback);
    if (traceback != NULL && value != NULL)
        PyException_SetTraceback(value, traceback);
    Py_XDECREF(type);
    Py_XDECREF(traceback);
    return job_settle(job, index, value, true);
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
static int submit_batch(PoolObject *pool, JobObject *job, Py_ssize_t start, size_t bytes)
{
    struct task_note *note = PyMem_Malloc(sizeof *note);
    if (note == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    *note = (struct task_note){.job = job, .start = start, .items = shoal_batch_count(pool->batch), .bytes = bytes};
    const shoal_task_options options = {
        .tag = (uint64_t)(uintptr_t)note,
        .group = (uint64_t)(uintptr_t)job,
        .time_limit = job->time_limit,
        .shared = job->shared,
        .flags = job->flags,
    };
    int error = shoal_pool_submit(pool->pool, pool->batch, &options);
    if (error != 0) {
        PyMem_Free(note);
        module_raise(error, "cannot hand out a task");
        return -1;
    }
    Py_INCREF(job);
    list_task(pool, note);
    return 1;
}

/* Encode and submit one task of the job. 1: submitted, or items settled; 0: no room, or nothing left; -1: an exception.
 */
static int feed_task(PoolObject *pool, JobObject *job)
{
    uint32_t count = next_count(pool, job);
    if (count == 0 || shoal_pool_full(pool->pool))
        return 0;
    Py_ssize_t start = job->next;
    bool broken = false;
    shoal_batch_clear(pool->batch, NULL);
    size_t large = 0;
    while (shoal_batch_count(pool->batch) < count && !broken) {
        PyObject *item = next_item(job);
        if (job->cancelled != NULL) { /* by another thread, or by the iterator itself */
            Py_XDECREF(item);
            PyErr_Clear();
            break;
        }
        if (item == NULL) {
            job->length = job->next;
            if (PyErr_Occurred()) {
                /* The iterator's own error takes the place of the item it failed to give. */
                job->length = ++job->next;
                if (settle_raised(job, job->next - 1) != 0)
                    return -1;
            }
            break;
        }
        Py_ssize_t index = job->next++;
        if (encode_item(pool, item) != 0) {
            broken = true; /* an item that cannot be sent: what came before it goes out without it */
            if (settle_raised(job, index) != 0) {
                Py_DECREF(item);
                return -1;
            }
        } else {
            for (uint32_t i = 0; i < pool->writer.block_count; i++) {
                size_t size = 0;
                if (shoal_heap_pointer(shoal_pool_heap(pool->pool), pool->writer.blocks[i], &size) != NULL)
                    large += size;
            }
            codec_writer_reset(&pool->writer);
        }
        Py_DECREF(item);
        if (large >= BYTES_AHEAD)
            break;
    }
    if (shoal_batch_count(pool->batch) == 0)
        return broken || job->length >= 0;
    int result = pool->ended || job->cancelled != NULL
                     ? -2
                     : submit_batch(pool, job, start, large + shoal_batch_size(pool->batch));
    if (result == 1)
        return 1;
    /* The items were taken from the source: they must end as something. */
    uint32_t items = shoal_batch_count(pool->batch);
    shoal_batch_clear(pool->batch, shoal_pool_heap(pool->pool));
    PyObject *type, *value, *traceback;
    if (result == -2 && job->cancelled != NULL)
        PyErr_SetObject((PyObject *)Py_TYPE(job->cancelled), job->cancelled);
    else if (result == -2)
        PyErr_SetString(PyExc_RuntimeError, "the pool was terminated");
    PyErr_Fetch(&type, &value, &traceback);
    PyErr_NormalizeException(&type, &value, &traceback);
    Py_XDECREF(type);
    Py_XDECREF(traceback);
    result = 1;
    for (uint32_t i = 0; i < items && result == 1; i++) {
        if (job_settle(job, start + i, Py_XNewRef(value), true) != 0)
            result = -1;
    }
    Py_XDECREF(value);
    return result;
}

static bool all_handed_out(const JobObject *job)
{
    return job->length >= 0 && job->next >= job->length;
}

/* Feed each job in turn as far as it goes. */
static int feed_round(PoolObject *pool)
{
    Py_ssize_t i = 0;
    while (i < PyList_GET_SIZE(pool->queue) && !pool->ended) {
        JobObject *job = (JobObject *)Py_NewRef(PyList_GET_ITEM(pool->queue, i));
        int result;
        uint32_t since_wake = 0;
        do {
            result = all_handed_out(job) ? 0 : feed_task(pool, job);
            /* The first tasks start while the others are encoded. */
            if (result == 1 && (++since_wake & 7) == 1)
                shoal_pool_wake(pool->pool);
        } while (result == 1);
        bool done = all_handed_out(job);
        if (done && i < PyList_GET_SIZE(pool->queue) && PyList_GET_ITEM(pool->queue, i) == (PyObject *)job) {
            job->queued = false;
            Py_CLEAR(job->source);
            if (PyList_SetSlice(pool->queue, i, i + 1, NULL) != 0)
                result = -1;
        } else {
            i++;
        }
        if (result == 0)
            result = job_check(job);
        Py_DECREF(job);
        if (result < 0)
            return -1;
        if (shoal_pool_full(pool->pool))
            break;
    }
    shoal_pool_wake(pool->pool);
    return 0;
}

int feed_jobs(PoolObject *pool)
{
    if (pool->feeding) {
        pool->feed_again = true;
        return 0;
    }
    pool->feeding = true;
    int result;
    do {
        pool->feed_again = false;
        result = feed_round(pool);
    } while (result == 0 && pool->feed_again);
    pool->feeding = false;
    return result;
}

/* -------------------------------------------------------------- delivering ---- */

static PyObject *decode_result(PoolObject *pool, const shoal_item *item, bool *failed)
{
    const uint8_t *bytes = item->data;
    if (item->size < 1 || (bytes[0] != RESULT_VALUE && bytes[0] != RESULT_ERROR)) {
        PyErr_SetString(PyExc_ValueError, "a result in shared memory is malformed");
        return NULL;
    }
    *failed = bytes[0] == RESULT_ERROR;
    const shoal_item message = {bytes + 1, item->size - 1, item->blocks, item->block_count};
    return codec_decode(pool->state, shoal_pool_heap(pool->pool), &message, CODEC_VIEW);
}

/* The results of a task that came back, to the job's items. */
static int deliver_results(PoolObject *pool, struct task_note *note, shoal_completion *completion)
{
    Py_ssize_t index = note->start + (Py_ssize_t)completion->first;
    shoal_item item;
    while (shoal_completion_next(completion, &item) == 0) {
        bool failed = false;
        PyObject *value = decode_result(pool, &item, &failed);
        int result = value != NULL ? job_settle(note->job, index, value, failed) : settle_raised(note->job, index);
        if (result != 0)
            return -1;
        index++;
    }
    return 0;
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
    if (job->cancelled != NULL) {
        for (; from < completion->items; from++) {
            if (job_settle(job, note->start + (Py_ssize_t)from, Py_NewRef(job->cancelled), true) != 0)
                return -1;
        }
        return 0;
    }
    if (!is_tried_again(note, completion)) {
        if (settle_undone(note, note->start + (Py_ssize_t)from, completion) != 0)
            return -1;
        from++;
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
        if (deliver(pool, &completion) != 0)
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
        if (job->length < 0)
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

void request_help(PoolObject *pool)
{
    if (pool->ended || pool->waiters > 0)
        return;
    if (pool->callbacks > 0)
        shoal_pool_request_attention(pool->pool, 0, PyList_GET_SIZE(pool->finished) > 0);
    else if (PyList_GET_SIZE(pool->queue) > 0)
        shoal_pool_request_attention(pool->pool, pool->workers, 0);
    else if (pool->eager && pool->tasks != NULL)
        shoal_pool_request_attention(pool->pool, 1, 0); /* the supervisor ends the workers when all is done */
}
