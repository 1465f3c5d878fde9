/* job.c: the type Job: one call of map, apply, imap …, as Python sees it. Its AsyncResult and IMapIterator are
 * sub-classes.
 *
 * Here it is made, begun, withdrawn, and read. What belongs to a job lies in three files beside this one: where its
 * items come from (job_source.c), what becomes of them (job_results.c), and waiting for that (job_wait.c). Handing them
 * to the workers is feed.c's.
 */
#include "pool.h"

#include <structmember.h>
#include <unistd.h>

/* -------------------------------------------------------------------- methods ---- */

int job_start(JobObject *job)
{
    PoolObject *pool = job->pool;
    if (pool_enter(pool) != 0)
        return -1;
    int result = -1;
    if (job->queued || job->complete || pool->ended) {
        PyErr_SetString(PyExc_ValueError, pool->ended ? "the pool was terminated" : "a job is submitted once");
        goto leave;
    }
    if (job->callback != NULL)
        pool->callbacks++;
    job->queued = true;
    result = PyList_Append(pool->queue, (PyObject *)job);
    /* Where the table is full of what is done nobody else may be there to make room. */
    bool any;
    if (result == 0 && shoal_pool_full(pool->pool))
        result = collect_tasks(pool, &any);
    if (result == 0)
        result = feed_jobs(pool);
    if (result == 0)
        result = job_check(job); /* no items: done at once */
    request_help(pool);
leave:
    pool_leave(pool);
    return result;
}

static PyObject *job_submit(PyObject *self, PyObject *unused)
{
    if (job_start((JobObject *)self) != 0)
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *job_feed_source(PyObject *self, PyObject *unused)
{
    JobObject *job = (JobObject *)self;
    if (!job->has_feeder || job->fed) {
        PyErr_SetString(PyExc_ValueError, "not a job with a thread of its own, or it has that thread");
        return NULL;
    }
    job->fed = true;
    if (pool_enter(job->pool) != 0)
        return NULL;
    int result = feed_source(job->pool, job);
    pool_leave(job->pool);
    if (result != 0)
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *job_wait_method(PyObject *self, PyObject *args)
{
    PyObject *seconds = Py_None;
    int64_t timeout;
    if (!PyArg_ParseTuple(args, "|O:wait_ready", &seconds) || module_timeout(seconds, &timeout) != 0)
        return NULL;
    JobObject *job = (JobObject *)self;
    int result = wait_for(job->pool, job, false, timeout);
    return result < 0 ? NULL : PyBool_FromLong(result);
}

static PyObject *job_results(PyObject *self, PyObject *unused)
{
    JobObject *job = (JobObject *)self;
    if (!job->complete || job->iterates) {
        PyErr_SetString(PyExc_ValueError, "the job is not done");
        return NULL;
    }
    if (job->error != NULL) {
        job_raise(job->error);
        return NULL;
    }
    return job->single ? Py_BuildValue("[O]", job->results) : Py_NewRef(job->results);
}

static PyObject *job_iternext(PyObject *self)
{
    JobObject *job = (JobObject *)self;
    if (job->has_feeder && job->pool->pool != NULL && job_next_is_there(job))
        call_feeder(job->pool, job); /* who reads what is there does not come by wait_for() */
    if (wait_for(job->pool, job, true, SHOAL_FOREVER) < 0)
        return NULL;
    return job_take_next(job);
}

static PyObject *job_next_within(PyObject *self, PyObject *args)
{
    JobObject *job = (JobObject *)self;
    PyObject *seconds = Py_None, *late = Py_None;
    int64_t timeout;
    if (!PyArg_ParseTuple(args, "|OO:next_within", &seconds, &late) || module_timeout(seconds, &timeout) != 0)
        return NULL;
    int result = wait_for(job->pool, job, true, timeout);
    if (result < 0)
        return NULL;
    if (result == 0) {
        PyErr_SetNone(late == Py_None ? PyExc_TimeoutError : late);
        return NULL;
    }
    PyObject *value = job_take_next(job);
    if (value == NULL && !PyErr_Occurred())
        PyErr_SetNone(PyExc_StopIteration);
    return value;
}

/* The results that an iterating job has next, at least one: a list. An error is raised where it is the first of them.
 */
static PyObject *job_next_ready(PyObject *self, PyObject *args)
{
    JobObject *job = (JobObject *)self;
    PyObject *first = job_next_within(self, args);
    if (first == NULL)
        return NULL;
    PyObject *list = PyList_New(1);
    if (list == NULL) {
        Py_DECREF(first);
        return NULL;
    }
    PyList_SET_ITEM(list, 0, first);
    while (job_next_is_there(job) &&
           (job_next_entry(job)->kind == ENTRY_VALUE || (job->values && job_next_entry(job)->kind == ENTRY_ERROR))) {
        PyObject *value = job_take_next(job);
        const int error = value == NULL ? -1 : PyList_Append(list, value);
        Py_XDECREF(value);
        if (error != 0) {
            Py_DECREF(list);
            return NULL;
        }
    }
    return list;
}

/* What was not handed out of a cancelled job fails; leaves the pool that the caller entered. Returns `any` as a bool.
 */
static PyObject *take_back_rest(JobObject *job, bool any)
{
    int result = 0;
    if (job_is_endless(job)) /* who reads sees an error at the end, not an end that looks like the source's */
        job->length = job->next + job->iterates;
    while (result == 0 && job->next < job->length)
        result = job_settle(job, job->next++, Py_NewRef(job->cancelled), true);
    /* Only its own thread would take it off, and that one may be gone: the pool would never be idle. Who feeds it now
     * takes it off himself. */
    if (result == 0 && job->queued && !job->feeding)
        result = leave_queue(job->pool, job);
    if (result == 0)
        result = job_check(job);
    request_help(job->pool);
    if (job->pool->eager && !job->pool->ended && pool_is_idle(job->pool))
        shoal_pool_request_attention(job->pool->pool, 0, 1); /* it was the last of a closed pool */
    pool_leave(job->pool);
    return result != 0 ? NULL : PyBool_FromLong(any);
}

/* Fail what no worker has begun; with `kill` also what is at hand. Whether there was any. */
static PyObject *job_withdraw(PyObject *self, PyObject *args)
{
    JobObject *job = (JobObject *)self;
    PoolObject *pool = job->pool;
    PyObject *error;
    int kill = 0;
    if (!PyArg_ParseTuple(args, "O|p:withdraw", &error, &kill))
        return NULL;
    if (!PyExceptionInstance_Check(error)) {
        PyErr_SetString(PyExc_TypeError, "withdraw() takes an exception instance");
        return NULL;
    }
    if (job->complete || pool->pool == NULL)
        Py_RETURN_FALSE;
    if (pool_enter(pool) != 0)
        return NULL;
    if (job->cancelled == NULL)
        job->cancelled = Py_NewRef(error);
    bool any = shoal_pool_cancel(pool->pool, (uint64_t)(uintptr_t)job, kill) > 0;
    return take_back_rest(job, any || job->length < 0 || job->next < job->length);
}

/* As withdraw, but what workers are at goes on by all rules: with its retries, and its own error if its worker dies. */
static PyObject *job_recall(PyObject *self, PyObject *error)
{
    JobObject *job = (JobObject *)self;
    PoolObject *pool = job->pool;
    if (!PyExceptionInstance_Check(error)) {
        PyErr_SetString(PyExc_TypeError, "recall() takes an exception instance");
        return NULL;
    }
    if (job->complete || pool->pool == NULL)
        Py_RETURN_FALSE;
    if (pool_enter(pool) != 0)
        return NULL;
    bool any = shoal_pool_recall(pool->pool, (uint64_t)(uintptr_t)job) > 0;
    any = any || job->length < 0 || job->next < job->length;
    if (any && job->cancelled == NULL)
        job->cancelled = Py_NewRef(error);
    return take_back_rest(job, any);
}

/* Have the supervising thread call `callback` with the job once it is done; nobody who waits for the job waits for the
 * callback. After submit(), and once. */
static PyObject *job_watch(PyObject *self, PyObject *callback)
{
    JobObject *job = (JobObject *)self;
    PoolObject *pool = job->pool;
    if (job->callback != NULL) {
        PyErr_SetString(PyExc_ValueError, "the job has a callback");
        return NULL;
    }
    if (pool_enter(pool) != 0)
        return NULL;
    int result = 0;
    job->watched = true;
    job->callback = Py_NewRef(callback);
    pool->callbacks++;
    if (job->complete) {
        result = PyList_Append(pool->finished, self);
        shoal_pool_request_attention(pool->pool, 0, 1);
    } else {
        request_help(pool);
    }
    pool_leave(pool);
    if (result != 0)
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *job_finish_callback(PyObject *self, PyObject *unused)
{
    JobObject *job = (JobObject *)self;
    if (job->complete && job->callback != NULL) {
        if (job->pool->callbacks > 0)
            job->pool->callbacks--;
        if (!job->ready)
            job_make_ready(job);
        Py_CLEAR(job->callback);
    }
    Py_RETURN_NONE;
}

static PyObject *job_get_begun(PyObject *self, void *closure)
{
    const JobObject *job = (JobObject *)self;
    PoolObject *pool = job->pool;
    bool mine = pool->pool != NULL && pool->process == getpid();
    return PyBool_FromLong(mine && job->tasks_out > 0 && shoal_pool_begun(pool->pool, (uint64_t)(uintptr_t)job));
}

/* ---------------------------------------------------------------- construction ---- */

JobObject *job_make(PyTypeObject *type, PoolObject *pool, PyObject *source, const struct job_options *options)
{
    JobObject *job = (JobObject *)type->tp_alloc(type, 0);
    if (job == NULL)
        return NULL;
    job->pool = (PoolObject *)Py_NewRef(pool);
    job->shared = options->shared;
    job->flags =
        (uint32_t)options->mode << TASK_CALL_SHIFT | (options->retries > 0 ? (uint32_t)SHOAL_TASK_KEEPS_BLOCKS : 0);
    job->chunk = options->chunk;
    job->retries = options->retries;
    job->thread = options->feeder == FEEDER_CALLER ? PyThread_get_thread_ident() : 0;
    job->has_feeder = options->feeder == FEEDER_OWN;
    if (job->has_feeder) {
        job->call = PyThread_allocate_lock();
        if (job->call == NULL) {
            Py_DECREF(job);
            PyErr_NoMemory();
            return NULL;
        }
        (void)PyThread_acquire_lock(job->call, NOWAIT_LOCK);
    }
    job->time_limit = options->time_limit;
    job->single = options->single;
    job->iterates = options->iterates;
    job->ordered = options->ordered;
    job->window = options->window;
    job->ahead = options->ahead;
    job->values = options->values;
    job->owns_shared = options->owns_shared;
    job->attended = options->attended;
    job->pace.workers = pool->workers;
    job->callback = Py_XNewRef(options->callback);
    if (job_take_source(job, source) != 0) {
        Py_DECREF(job);
        return NULL;
    }
    return job;
}

int job_time_limit(PyObject *seconds, int64_t *limit)
{
    if (seconds == Py_None) {
        *limit = 0;
        return 0;
    }
    if (module_timeout(seconds, limit) != 0)
        return -1;
    if (*limit == SHOAL_FOREVER)
        *limit = 0;
    else if (*limit <= 0)
        *limit = 1;
    return 0;
}

static PyObject *job_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"pool",    "source", "shared",   "mode",     "chunk",       "retries",
                            "iterate", "window", "values",   "callback", "owns_shared", "time_limit",
                            "feeder",  "single", "attended", "ahead",    NULL};
    PyObject *pool, *source, *callback = Py_None, *seconds = Py_None;
    struct job_options options = {0};
    int mode = CALL_ONE, iterate = 0, values = 0, owns_shared = 0, feeder = FEEDER_ANY, single = 0, attended = 0;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "OOI|iIIinpOpOippI:Job", names, &pool, &source, &options.shared,
                                     &mode, &options.chunk, &options.retries, &iterate, &options.window, &values,
                                     &callback, &owns_shared, &seconds, &feeder, &single, &attended, &options.ahead) ||
        job_time_limit(seconds, &options.time_limit) != 0)
        return NULL;
    if (!pool_is_pool(pool)) {
        PyErr_SetString(PyExc_TypeError, "a job needs an engine pool");
        return NULL;
    }
    options.mode = (enum call_mode)mode;
    options.feeder = (enum job_feeder)feeder;
    options.single = single != 0;
    options.iterates = iterate != 0;
    options.ordered = iterate == 1;
    options.values = values != 0;
    options.owns_shared = owns_shared != 0;
    options.attended = attended != 0;
    options.callback = callback == Py_None ? NULL : callback;
    return (PyObject *)job_make(type, (PoolObject *)pool, source, &options);
}

static int job_traverse(PyObject *self, visitproc visit, void *arg)
{
    JobObject *job = (JobObject *)self;
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(job->pool);
    Py_VISIT(job->source);
    if (job->single || job->complete) /* or who asks the collector would be shown places that are NULL */
        Py_VISIT(job->results);
    Py_VISIT(job->keeper);
    Py_VISIT(job->error);
    Py_VISIT(job->cancelled);
    Py_VISIT(job->callback);
    for (size_t i = 0; i < job->capacity; i++)
        Py_VISIT(job->entries[i].value);
    return 0;
}

static int job_clear(PyObject *self)
{
    JobObject *job = (JobObject *)self;
    Py_CLEAR(job->source);
    Py_CLEAR(job->results);
    Py_CLEAR(job->keeper);
    Py_CLEAR(job->error);
    Py_CLEAR(job->cancelled);
    Py_CLEAR(job->callback);
    for (size_t i = 0; i < job->capacity; i++)
        Py_CLEAR(job->entries[i].value);
    return 0;
}

static void job_dealloc(PyObject *self)
{
    JobObject *job = (JobObject *)self;
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    (void)job_clear(self);
    PyMem_Free(job->entries);
    if (job->call != NULL)
        PyThread_free_lock(job->call);
    if (job->pool != NULL)
        job_drop_shared(job);
    Py_CLEAR(job->pool);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyMethodDef job_methods[] = {
    {"submit", job_submit, METH_NOARGS, "submit()\n--\n\nBegin to hand out the job's items. Once."},
    {"feed_source", job_feed_source, METH_NOARGS,
     "feed_source()\n--\n\nHand out the items of a job whose source may block, in the calling thread; once, after "
     "submit()."},
    {"wait_ready", job_wait_method, METH_VARARGS,
     "wait_ready(timeout=None)\n--\n\nWait until the job is done and its callback ran; timeout in seconds. Whether it "
     "is."},
    {"get", (PyCFunction)(void (*)(void))job_get, METH_FASTCALL | METH_KEYWORDS,
     "get($self, timeout=None)\n--\n\nWait and return the result (of a mapping call: the list of results), or raise "
     "what the call raised; multiprocessing.TimeoutError after `timeout` seconds."},
    {"results", job_results, METH_NOARGS,
     "results()\n--\n\nAll results in order, or the first failed item's exception."},
    {"next_within", job_next_within, METH_VARARGS,
     "next_within(timeout=None, late=None)\n--\n\nThe next result of an iterating job; `late`, or TimeoutError, after "
     "that many seconds."},
    {"next_ready", job_next_ready, METH_VARARGS,
     "next_ready(timeout=None, late=None)\n--\n\nAs next_within(), and with it what else is there already: a "
     "list of results."},
    {"withdraw", job_withdraw, METH_VARARGS,
     "withdraw(error, kill=False)\n--\n\nFail what no worker has begun (kill: also what is at hand) with this "
     "exception; "
     "whether there was any."},
    {"recall", job_recall, METH_O,
     "recall(error)\n--\n\nFail what no worker has begun with this exception, let the rest go on; whether there was "
     "any."},
    {"watch", job_watch, METH_O,
     "watch(callback)\n--\n\nHave the supervising thread call callback(job) once the job is done, which is ready "
     "before that."},
    {"finish_callback", job_finish_callback, METH_NOARGS,
     "finish_callback()\n--\n\nThe callback ran: the job counts as ready from now on."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef job_properties[] = {
    {"begun", job_get_begun, NULL, "whether a worker is at one of its tasks", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMemberDef job_members[] = {
    {"_pool", T_OBJECT, offsetof(JobObject, keeper), 0, "Python's pool, kept until the results were read; or None"},
    {"callback", T_OBJECT, offsetof(JobObject, callback), READONLY, "what runs when the job is done"},
    {"error", T_OBJECT, offsetof(JobObject, error), READONLY, "of the first failed item; iterating: a StopIteration"},
    {"is_ready", T_BOOL, offsetof(JobObject, ready), READONLY, "done, and its callback ran"},
    {"length", T_PYSSIZET, offsetof(JobObject, length), READONLY, "how many items; -1 while that is not known"},
    {"settled", T_PYSSIZET, offsetof(JobObject, settled), READONLY, "how many items have a result or an error"},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot job_slots[] = {
    {Py_tp_doc, "One call of a pool's mapping methods: its items, its results, and waiting for them."},
    {Py_tp_new, job_new},
    {Py_tp_dealloc, job_dealloc},
    {Py_tp_traverse, job_traverse},
    {Py_tp_clear, job_clear},
    {Py_tp_iter, PyObject_SelfIter},
    {Py_tp_iternext, job_iternext},
    {Py_tp_methods, job_methods},
    {Py_tp_members, job_members},
    {Py_tp_getset, job_properties},
    {0, NULL},
};

static PyType_Spec job_spec = {
    .name = "shoal._engine.Job",
    .basicsize = sizeof(JobObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
    .slots = job_slots,
};

/* A sub-class with a method __next__ has its iteration go through that. One whose method does the same where it is
 * given no arguments has it go straight on. */
static PyObject *iterate_as_job(PyObject *module, PyObject *type)
{
    module_state *state = module_get_state(module);
    if (!PyType_Check(type) || !PyType_IsSubtype((PyTypeObject *)type, (PyTypeObject *)state->job_type)) {
        PyErr_SetString(PyExc_TypeError, "not a class of jobs");
        return NULL;
    }
    ((PyTypeObject *)type)->tp_iternext = job_iternext;
    Py_RETURN_NONE;
}

static PyMethodDef job_functions[] = {
    {"iterate_as_job", iterate_as_job, METH_O,
     "iterate_as_job(type)\n--\n\nHave iterators of this sub-class of Job go on as a Job does, whatever its method "
     "__next__ is."},
    {NULL, NULL, 0, NULL},
};

int job_add(PyObject *module)
{
    module_state *state = module_get_state(module);
    if (PyModule_AddFunctions(module, job_functions) != 0)
        return -1;
    state->job_type = PyType_FromModuleAndSpec(module, &job_spec, NULL);
    if (state->job_type == NULL)
        return -1;
    return PyModule_AddObjectRef(module, "Job", state->job_type);
}
