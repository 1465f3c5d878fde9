/* job_results.c: what becomes of a job's items: a list of all results, one result, or a ring that an iterator reads.
 *
 *     a single call       the result, or the error
 *     map, apply          a list with a place for each item; NULL where nothing has come yet
 *     imap                a ring of entries from `taken` on: in the items' order, or in that in which they arrived
 *
 * An item is settled once: what comes for it after that, or after the job is complete, is dropped. When all are, the
 * job is complete; it is ready for those who wait once its callback ran, if it has one that they wait for too.
 */
#include "pool.h"

#include <unistd.h>

/* Room for `ahead` entries past `taken`. */
static int enlarge_ring(JobObject *job, size_t ahead)
{
    size_t capacity = job->capacity == 0 ? 64 : job->capacity;
    while (capacity <= ahead)
        capacity *= 2;
    if (capacity == job->capacity)
        return 0;
    struct entry *entries = PyMem_Calloc(capacity, sizeof *entries);
    if (entries == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    for (size_t i = 0; i < job->capacity; i++) {
        size_t position = (size_t)job->taken + i;
        entries[position % capacity] = job->entries[position % job->capacity];
    }
    PyMem_Free(job->entries);
    job->entries = entries;
    job->capacity = capacity;
    return 0;
}

static int settle_iterating(JobObject *job, Py_ssize_t index, PyObject *value, enum entry_kind kind)
{
    Py_ssize_t position = job->ordered ? index : job->arrived;
    if (position < job->taken || enlarge_ring(job, (size_t)(position - job->taken)) != 0) {
        Py_XDECREF(value);
        return position < job->taken ? 0 : -1;
    }
    struct entry *entry = &job->entries[(size_t)position % job->capacity];
    if (entry->value != NULL) {
        Py_XDECREF(value);
        return 0;
    }
    *entry = (struct entry){value, kind};
    job->arrived++;
    job->settled++;
    return 0;
}

/* Not iterating: a place for the result of this item. */
static int make_place(JobObject *job, Py_ssize_t index)
{
    while (index >= PyList_GET_SIZE(job->results)) {
        if (PyList_Append(job->results, Py_None) != 0)
            return -1;
        PyList_SET_ITEM(job->results, PyList_GET_SIZE(job->results) - 1, NULL);
        Py_DECREF(Py_None);
    }
    return 0;
}

static int settle_single(JobObject *job, PyObject *value, bool failed)
{
    if (job->settled != 0) {
        Py_DECREF(value);
        return 0;
    }
    job->settled = 1;
    if (failed)
        job->error = value;
    else
        job->results = value;
    return 0;
}

/* A StopIteration that was made without its __init__, as some libraries unpickle exceptions (tblib, which Dask has),
 * lacks its value, and CPython's `yield from` takes that without a look: a crash. */
static void complete_stop_iteration(PyObject *error)
{
    if (!PyObject_TypeCheck(error, (PyTypeObject *)PyExc_StopIteration))
        return;
    PyStopIterationObject *stop = (PyStopIterationObject *)error;
    const bool told = stop->args != NULL && PyTuple_Check(stop->args) && PyTuple_GET_SIZE(stop->args) > 0;
    if (stop->value == NULL)
        stop->value = Py_NewRef(told ? PyTuple_GET_ITEM(stop->args, 0) : Py_None);
}

int job_settle(JobObject *job, Py_ssize_t index, PyObject *value, bool failed)
{
    if (value == NULL)
        return PyErr_Occurred() ? -1 : (PyErr_BadInternalCall(), -1);
    if (failed && !PyExceptionInstance_Check(value)) {
        /* Only an overwritten message can claim so. */
        Py_DECREF(value);
        value = PyObject_CallFunction(PyExc_RuntimeError, "s", "an error in shared memory is malformed");
        if (value == NULL)
            return -1;
    }
    if (failed)
        complete_stop_iteration(value);
    if (job->complete) {
        Py_DECREF(value);
        return 0;
    }
    if (job->single)
        return settle_single(job, value, failed);
    if (job->iterates)
        return settle_iterating(job, index, value, failed ? ENTRY_ERROR : ENTRY_VALUE);
    if (index >= 0 && make_place(job, index) != 0) {
        Py_DECREF(value);
        return -1;
    }
    if (index < 0 || PyList_GET_ITEM(job->results, index) != NULL) {
        Py_DECREF(value);
        return 0;
    }
    if (failed && !job->values && (job->error == NULL || index < job->error_index)) {
        Py_XSETREF(job->error, Py_NewRef(value));
        job->error_index = index;
    }
    (void)job_settle_place(job, index, value);
    return 0;
}

int job_settle_source(JobObject *job, Py_ssize_t index, PyObject *error)
{
    if (error == NULL)
        return -1;
    if (job->complete) {
        Py_DECREF(error);
        return 0;
    }
    return settle_iterating(job, index, error, ENTRY_RAISES);
}

void job_drop_shared(JobObject *job)
{
    if (job->owns_shared && job->pool->pool != NULL && job->pool->process == getpid())
        shoal_pool_unshare(job->pool->pool, job->shared);
    job->owns_shared = false;
}

void job_make_ready(JobObject *job)
{
    job->ready = true;
    if (job->waiters > 0 && job->pool->pool != NULL)
        shoal_pool_nudge(job->pool->pool);
}

int job_check(JobObject *job)
{
    if (job->iterates &&
        job->told != job->arrived) { /* or who waits, and feeds meanwhile, would wake itself for ever */
        job->told = job->arrived;
        if (job->waiters > 0)
            shoal_pool_nudge(job->pool->pool);
    }
    if (job->complete || job->length < 0 || job->settled < job->length)
        return 0;
    job->complete = true;
    if (job->results != NULL && !job->single)
        PyObject_GC_Track(job->results);
    job_drop_shared(job);
    if (job->callback == NULL || job->watched)
        job_make_ready(job);
    if (job->callback == NULL)
        return 0;
    if (PyList_Append(job->pool->finished, (PyObject *)job) != 0)
        return -1;
    /* Callbacks run in the supervising thread, so that they cannot meet a lock that the waiting thread holds. */
    shoal_pool_request_attention(job->pool->pool, 0, 1);
    return 0;
}

/* -------------------------------------------------------------------- reading ---- */

void job_raise(PyObject *error)
{
    PyErr_SetObject((PyObject *)Py_TYPE(error), error);
}

PyObject *job_take_next(JobObject *job)
{
    if (!job_next_is_there(job))
        return NULL;
    struct entry *entry = job_next_entry(job);
    PyObject *value = entry->value;
    const enum entry_kind kind = entry->kind;
    *entry = (struct entry){NULL, ENTRY_VALUE};
    job->taken++;
    if (kind == ENTRY_RAISES || (kind == ENTRY_ERROR && !job->values)) {
        if (PyErr_GivenExceptionMatches(value, PyExc_StopIteration))
            Py_XSETREF(job->error, Py_NewRef(value)); /* for loops, which take it for the end of the results */
        job_raise(value);
        Py_DECREF(value);
        return NULL;
    }
    return value;
}
