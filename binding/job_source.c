/* job_source.c: where a job's items come from: a list or tuple, a range, or an iterator.
 *
 * A list or tuple is read where it lies, by index, and may be changed meanwhile by the user's code. A range is kept as
 * two numbers. Both have a length and run no code of the user's, so a job of them can be fed at any time; all else is
 * an iterator, whose length is known when it ends, and which may block, raise, or end the pool. Which thread may take
 * an item, and when, is feed.c's to know.
 */
#include "pool.h"

#define RANGE_REST 65536 /* items that each fail by themselves when an imap over a range is given up */

/* A range whose numbers all fit into words is taken by its bounds: no object is made of each. */
static void look_for_range(JobObject *job, PyObject *source)
{
    PyObject *ends[2] = {PyObject_GetAttrString(source, "start"), PyObject_GetAttrString(source, "step")};
    int overflow[2] = {1, 1};
    int64_t numbers[2] = {0, 0}, last;
    for (int i = 0; i < 2; i++) {
        if (ends[i] != NULL)
            numbers[i] = PyLong_AsLongLongAndOverflow(ends[i], &overflow[i]);
        Py_XDECREF(ends[i]);
    }
    PyErr_Clear();
    if (overflow[0] != 0 || overflow[1] != 0 || __builtin_mul_overflow(job->length - 1, numbers[1], &last) ||
        __builtin_add_overflow(numbers[0], last, &last))
        return;
    job->is_range = true;
    job->first = numbers[0];
    job->step = numbers[1];
}

int job_take_source(JobObject *job, PyObject *source)
{
    job->is_sequence = PyList_CheckExact(source) || PyTuple_CheckExact(source);
    job->prompt = job->is_sequence || PyRange_Check(source);
    job->length = job->prompt ? PyObject_Size(source) : -1;
    if (job->length < 0 && PyErr_Occurred()) { /* a range longer than any list, which an imap may read */
        if (!job->iterates || !PyErr_ExceptionMatches(PyExc_OverflowError))
            return -1;
        PyErr_Clear();
        job->prompt = false;
    }
    if (job->prompt && !job->is_sequence && job->length > 0)
        look_for_range(job, source);
    job->source = job->is_sequence || job->is_range ? Py_NewRef(source) : PyObject_GetIter(source);
    if (job->source == NULL)
        return -1;
    if (job->iterates || job->single)
        return 0;
    const Py_ssize_t known = job->length > 0 ? job->length : 0;
    job->results = PyList_New(known);
    if (job->results == NULL)
        return -1;
    /* Its places are NULL until their results come, so nobody but the job may know of it before it is full (job_check):
     * not the collector either, through which anyone would. To fill them with something else takes longer than a small
     * item's call, and the workers would wait for that. */
    PyObject_GC_UnTrack(job->results);
    return 0;
}

PyObject *job_next_item(JobObject *job)
{
    if (job->is_range) {
        const bool left = job->source != NULL && job->next < job->length;
        return left ? PyLong_FromLongLong(job->first + job->next * job->step) : NULL;
    }
    if (!job->is_sequence) {
        /* Held: the pool may be terminated while the iterator runs. */
        PyObject *source = Py_XNewRef(job->source);
        PyObject *item = source != NULL ? PyIter_Next(source) : NULL;
        Py_XDECREF(source);
        return item;
    }
    /* A list may have been changed by the user's code meanwhile. */
    if (job->source == NULL || job->next >= PySequence_Fast_GET_SIZE(job->source))
        return NULL;
    return Py_NewRef(PySequence_Fast_GET_ITEM(job->source, job->next));
}

bool job_is_endless(const JobObject *job)
{
    const bool is_range = job->prompt && !job->is_sequence;
    return job->length < 0 || (job->iterates && is_range && job->length - job->next > RANGE_REST);
}
