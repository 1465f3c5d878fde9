/* pool.c: the type Pool: a thin handle on the engine's pool for its owner: places, deaths, shared functions, shutting.
 * The work itself goes through jobs (job.c, feed.c). Python starts the processes; see shoal/multiprocessing/pool.py.
 */
#include "pool.h"

#include <errno.h>
#include <stddef.h>
#include <structmember.h>
#include <unistd.h>

int pool_enter(PoolObject *pool)
{
    if (pool->pool == NULL || pool->close_due) {
        PyErr_SetString(PyExc_ValueError, "the pool was closed");
        return -1;
    }
    if (pool->process != getpid()) {
        PyErr_SetString(PyExc_RuntimeError, "a pool can be used only by the process that made it; make another here");
        return -1;
    }
    pool->users++;
    return 0;
}

static void close_now(PoolObject *pool)
{
    shoal_pool *engine = pool->pool;
    pool->pool = NULL;
    free_feeder(pool->spare_feeder);
    pool->spare_feeder = NULL;
    shoal_pool_close(engine);
}

void pool_leave(PoolObject *pool)
{
    if (--pool->users == 0 && pool->close_due)
        close_now(pool);
}

PyObject *make_outcome(const JobObject *job, Py_ssize_t item, const shoal_completion *completion)
{
    module_state *state = job->pool->state;
    if (state->worker_died == NULL) {
        PyErr_SetString(PyExc_RuntimeError, "shoal._engine.configure_pool() was not called");
        return NULL;
    }
    if (completion->outcome == SHOAL_ETASKTIMEOUT)
        return PyObject_CallFunction(state->task_timeout, "nid", item, (int)completion->worker_pid,
                                     (double)job->time_limit / 1e9);
    return PyObject_CallFunction(state->worker_died, "niii", item, (int)completion->worker_pid,
                                 (int)completion->exit.code, (int)completion->exit.signal);
}

static PyObject *pool_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"workers", "slots", "heap_limit", NULL};
    shoal_pool_options options = {0};
    unsigned int workers, slots = 0;
    Py_ssize_t heap_limit = 0;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "I|In:Pool", names, &workers, &slots, &heap_limit))
        return NULL;
    options.workers = workers;
    options.slots = slots;
    options.heap_limit = heap_limit > 0 ? (size_t)heap_limit : 0;
    PyObject *module = PyType_GetModule(type);
    if (module == NULL)
        return NULL;
    PoolObject *self = (PoolObject *)type->tp_alloc(type, 0);
    if (self == NULL)
        return NULL;
    self->state = module_get_state(module);
    self->workers = workers;
    self->process = getpid();
    self->queue = PyList_New(0);
    self->finished = PyList_New(0);
    int error = shoal_pool_create(&options, &self->pool);
    if (error != 0)
        module_raise(error, "cannot make a pool");
    if (error != 0 || self->queue == NULL || self->finished == NULL) {
        Py_DECREF(self);
        return NULL;
    }
    return (PyObject *)self;
}

static void pool_dealloc(PyObject *self);

bool pool_is_pool(PyObject *object)
{
    return Py_TYPE(object)->tp_dealloc == pool_dealloc; /* the type cannot be sub-classed */
}

static int pool_traverse(PyObject *self, visitproc visit, void *arg)
{
    PoolObject *pool = (PoolObject *)self;
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(pool->queue);
    Py_VISIT(pool->finished);
    Py_VISIT(pool->unreadable);
    return 0;
}

static int pool_clear(PyObject *self)
{
    PoolObject *pool = (PoolObject *)self;
    Py_CLEAR(pool->queue);
    Py_CLEAR(pool->finished);
    Py_CLEAR(pool->unreadable);
    return 0;
}

static void pool_dealloc(PyObject *self)
{
    PoolObject *pool = (PoolObject *)self;
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    (void)pool_clear(self);
    if (pool->pool != NULL)
        close_now(pool);
    type->tp_free(self);
    Py_DECREF(type);
}

/* -------------------------------------------------------------------- methods ---- */

static PyObject *pool_fds(PyObject *self, PyObject *unused)
{
    PoolObject *pool = (PoolObject *)self;
    if (pool_enter(pool) != 0)
        return NULL;
    int fds[3];
    shoal_pool_fds(pool->pool, fds);
    pool_leave(pool);
    return Py_BuildValue("(iii)", fds[0], fds[1], fds[2]);
}

static PyObject *pool_enlist(PyObject *self, PyObject *args)
{
    PoolObject *pool = (PoolObject *)self;
    unsigned int place;
    uint32_t owner;
    if (!PyArg_ParseTuple(args, "I:enlist", &place) || pool_enter(pool) != 0)
        return NULL;
    int error = shoal_pool_enlist(pool->pool, place, &owner);
    pool_leave(pool);
    return error != 0 ? module_raise(error, "cannot give a worker its place") : PyLong_FromUnsignedLong(owner);
}

static PyObject *pool_watch(PyObject *self, PyObject *args)
{
    PoolObject *pool = (PoolObject *)self;
    unsigned int place;
    int pid, pidfd;
    if (!PyArg_ParseTuple(args, "Iii:watch", &place, &pid, &pidfd) || pool_enter(pool) != 0)
        return NULL;
    int error = shoal_pool_watch(pool->pool, place, pid, pidfd);
    pool_leave(pool);
    if (error != 0)
        return module_raise(error, "cannot watch a worker");
    Py_RETURN_NONE;
}

/* bury() and settle(): (place, exitcode=None). */
static PyObject *complete_dead(PoolObject *pool, PyObject *args,
                               int (*complete)(shoal_pool *, uint32_t, const shoal_exit *, uint32_t *))
{
    unsigned int place;
    PyObject *code = Py_None;
    if (!PyArg_ParseTuple(args, "I|O", &place, &code))
        return NULL;
    shoal_exit how = {0}, *known = NULL;
    if (code != Py_None) {
        long value = PyLong_AsLong(code);
        if (value == -1 && PyErr_Occurred())
            return NULL;
        how.code = value >= 0 ? (int32_t)value : 0;
        how.signal = value < 0 ? (int32_t)-value : 0;
        known = &how;
    }
    if (pool_enter(pool) != 0)
        return NULL;
    uint32_t held = 0;
    int error;
    Py_BEGIN_ALLOW_THREADS
    error = complete(pool->pool, place, known, &held);
    Py_END_ALLOW_THREADS
    pool_leave(pool);
    return error != 0 ? module_raise(error, "cannot settle what a worker held") : PyLong_FromUnsignedLong(held);
}

static PyObject *pool_bury(PyObject *self, PyObject *args)
{
    return complete_dead((PoolObject *)self, args, shoal_pool_bury);
}

static PyObject *pool_settle(PyObject *self, PyObject *args)
{
    return complete_dead((PoolObject *)self, args, shoal_pool_settle);
}

static PyObject *pool_supervise(PyObject *self, PyObject *args)
{
    PoolObject *pool = (PoolObject *)self;
    PyObject *seconds = Py_None;
    int64_t timeout;
    if (!PyArg_ParseTuple(args, "|O:supervise", &seconds) || module_timeout(seconds, &timeout) != 0 ||
        pool_enter(pool) != 0)
        return NULL;
    shoal_pool_event events[16];
    uint32_t count = 0;
    int error;
    Py_BEGIN_ALLOW_THREADS
    error = shoal_pool_supervise(pool->pool, timeout, events, 16, &count);
    Py_END_ALLOW_THREADS
    pool_leave(pool);
    if (error == -EINTR && PyErr_CheckSignals() != 0)
        return NULL;
    if (error != 0 && error != -EINTR && error != -ETIMEDOUT)
        return module_raise(error, "cannot wait for a pool's workers");
    PyObject *list = PyList_New(count);
    for (uint32_t i = 0; list != NULL && i < count; i++) {
        PyObject *event = Py_BuildValue("(IIiN)", events[i].kind, events[i].place, (int)events[i].pid,
                                        module_exit_code(&events[i].exit));
        if (event == NULL)
            Py_CLEAR(list);
        else
            PyList_SET_ITEM(list, i, event);
    }
    return list;
}

static PyObject *pool_call_supervisor(PyObject *self, PyObject *unused)
{
    PoolObject *pool = (PoolObject *)self;
    if (pool_enter(pool) != 0)
        return NULL;
    shoal_pool_request_attention(pool->pool, 0, 1);
    pool_leave(pool);
    Py_RETURN_NONE;
}

/* What follows a hand-out, or the end of Python's pool, must not be lost to a signal handler that raises (Ctrl-C)
 * between two steps of Python's: so it is one call of C, and the rest is the supervisor's, in whose thread none runs.
 * Neither raises. In a child of fork, or when all has been closed, there is nobody to tell. */
static void tell_supervisor(PoolObject *pool)
{
    if (pool->pool != NULL && !pool->close_due && pool->process == getpid())
        shoal_pool_request_attention(pool->pool, 0, 1);
}

static PyObject *pool_mind(PyObject *self, PyObject *unused)
{
    PoolObject *pool = (PoolObject *)self;
    if (!pool->minded) {
        pool->minded = true;
        tell_supervisor(pool);
    }
    Py_RETURN_NONE;
}

static PyObject *pool_forsake(PyObject *self, PyObject *reference)
{
    PoolObject *pool = (PoolObject *)self;
    pool->forsaken = true;
    tell_supervisor(pool);
    Py_RETURN_NONE;
}

/* Collect and feed for whoever does not wait; returns the jobs whose callbacks are due. */
static PyObject *pool_pump(PyObject *self, PyObject *unused)
{
    PoolObject *pool = (PoolObject *)self;
    if (pool_enter(pool) != 0)
        return NULL;
    bool any;
    int result = collect_tasks(pool, &any);
    if (result == 0)
        result = feed_jobs(pool);
    PyObject *due = result == 0 ? PyList_New(0) : NULL; /* first: it may have the collector run others' code */
    if (due != NULL) {
        PyObject *none = due;
        due = pool->finished;
        pool->finished = none;
    }
    request_help(pool);
    pool_leave(pool);
    return due;
}

/* The jobs that have something out or left to hand out; one with several tasks out comes several times. */
static PyObject *pool_jobs(PyObject *self, PyObject *unused)
{
    PoolObject *pool = (PoolObject *)self;
    PyObject *jobs = PySequence_List(pool->queue);
    for (struct task_note *note = pool->tasks; jobs != NULL && note != NULL; note = note->next_note) {
        if (PyList_Append(jobs, (PyObject *)note->job) != 0)
            Py_CLEAR(jobs);
    }
    return jobs;
}

static PyObject *pool_share(PyObject *self, PyObject *args)
{
    PoolObject *pool = (PoolObject *)self;
    PyObject *object;
    int foreign_main = 0;
    if (!PyArg_ParseTuple(args, "O|p:share", &object, &foreign_main) || pool_enter(pool) != 0)
        return NULL;
    struct codec_writer writer;
    codec_writer_begin(&writer, shoal_pool_heap(pool->pool), 0);
    writer.foreign_main = foreign_main != 0;
    PyObject *result = NULL;
    bool kept = false;
    if (codec_encode(pool->state, &writer, object) == 0) {
        const shoal_item item = codec_item(&writer);
        uint32_t id;
        int error = shoal_pool_share(pool->pool, &item, &id);
        kept = error == 0;
        result = kept ? PyLong_FromUnsignedLong(id) : module_raise(error, "cannot hand a function to the workers");
    }
    codec_writer_end(&writer, kept);
    pool_leave(pool);
    return result;
}

static PyObject *pool_unshare(PyObject *self, PyObject *args)
{
    PoolObject *pool = (PoolObject *)self;
    unsigned int id;
    if (!PyArg_ParseTuple(args, "I:unshare", &id))
        return NULL;
    if (pool->pool != NULL && pool->process == getpid())
        shoal_pool_unshare(pool->pool, id);
    Py_RETURN_NONE;
}

static PyObject *pool_shut(PyObject *self, PyObject *args)
{
    PoolObject *pool = (PoolObject *)self;
    int how;
    if (!PyArg_ParseTuple(args, "i:shut", &how) || pool_enter(pool) != 0)
        return NULL;
    shoal_pool_shut(pool->pool, how);
    pool_leave(pool);
    Py_RETURN_NONE;
}

static PyObject *pool_hurry(PyObject *self, PyObject *unused)
{
    PoolObject *pool = (PoolObject *)self;
    if (pool_enter(pool) != 0)
        return NULL;
    pool->eager = true;
    int result = feed_jobs(pool);
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(pool->queue); i++)
        call_feeder(pool, (JobObject *)PyList_GET_ITEM(pool->queue, i));
    request_help(pool);
    pool_leave(pool);
    if (result != 0)
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *pool_abandon(PyObject *self, PyObject *error)
{
    PoolObject *pool = (PoolObject *)self;
    if (!PyExceptionInstance_Check(error)) {
        PyErr_SetString(PyExc_TypeError, "abandon() takes an exception instance");
        return NULL;
    }
    if (pool_enter(pool) != 0)
        return NULL;
    int result = abandon_jobs(pool, error);
    shoal_pool_nudge(pool->pool);
    pool_leave(pool);
    if (result != 0)
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *pool_close(PyObject *self, PyObject *unused)
{
    PoolObject *pool = (PoolObject *)self;
    if (pool->pool != NULL && !pool->close_due) {
        pool->ended = true;
        if (pool->users == 0)
            close_now(pool);
        else
            pool->close_due = true;
    }
    Py_RETURN_NONE;
}

bool pool_is_idle(const PoolObject *pool)
{
    return pool->tasks == NULL && PyList_GET_SIZE(pool->queue) == 0 && pool->feeding == 0 && pool->delivering == 0;
}

static PyObject *pool_wait_idle(PyObject *self, PyObject *args)
{
    PyObject *seconds = Py_None;
    int64_t timeout;
    if (!PyArg_ParseTuple(args, "|O:wait_idle", &seconds) || module_timeout(seconds, &timeout) != 0)
        return NULL;
    int result = wait_for((PoolObject *)self, NULL, false, timeout);
    return result < 0 ? NULL : PyBool_FromLong(result);
}

static PyObject *pool_numbers(PyObject *self, PyObject *args)
{
    PoolObject *pool = (PoolObject *)self;
    unsigned int place;
    shoal_worker_numbers numbers;
    if (!PyArg_ParseTuple(args, "I:numbers", &place) || pool_enter(pool) != 0)
        return NULL;
    int error = shoal_pool_worker_numbers(pool->pool, place, &numbers);
    pool_leave(pool);
    if (error != 0)
        return module_raise(error, "no such worker");
    const int64_t served = numbers.since != 0 ? shoal_clock_now() - numbers.since : 0;
    const int64_t idle = served > numbers.busy ? served - numbers.busy : 0;
    return Py_BuildValue("{s:i,s:K,s:K,s:d,s:d,s:K,s:K}", "pid", (int)numbers.pid, "tasks",
                         (unsigned long long)numbers.tasks, "items", (unsigned long long)numbers.items, "busy",
                         (double)numbers.busy / 1e9, "idle", (double)idle / 1e9, "bytes_in",
                         (unsigned long long)numbers.bytes_in, "bytes_out", (unsigned long long)numbers.bytes_out);
}

static PyObject *pool_get_outstanding(PyObject *self, void *closure)
{
    PoolObject *pool = (PoolObject *)self;
    uint32_t out = pool->pool == NULL ? 0 : shoal_pool_outstanding(pool->pool);
    return PyLong_FromUnsignedLong(out);
}

static PyObject *pool_get_idle(PyObject *self, void *closure)
{
    return PyBool_FromLong(pool_is_idle((PoolObject *)self));
}

static PyObject *pool_get_foreign_main(PyObject *self, void *closure)
{
    return PyBool_FromLong(((PoolObject *)self)->foreign_main);
}

static int pool_set_foreign_main(PyObject *self, PyObject *value, void *closure)
{
    int truth = value == NULL ? 0 : PyObject_IsTrue(value);
    if (truth < 0)
        return -1;
    PoolObject *pool = (PoolObject *)self;
    pool->foreign_main = truth != 0;
    free_feeder(pool->spare_feeder); /* the next one is made so */
    pool->spare_feeder = NULL;
    return 0;
}

static PyMethodDef pool_methods[] = {
    {"call", (PyCFunction)(void (*)(void))pool_call, METH_FASTCALL, pool_call_doc},
    {"fds", pool_fds, METH_NOARGS, "fds()\n--\n\nThe descriptors a worker needs that does not inherit the pool."},
    {"enlist", pool_enlist, METH_VARARGS,
     "enlist(place)\n--\n\nThe number for the worker that is about to start there."},
    {"watch", pool_watch, METH_VARARGS, "watch(place, pid, pidfd)\n--\n\nThe worker was started."},
    {"bury", pool_bury, METH_VARARGS,
     "bury(place, exitcode=None)\n--\n\nThe worker there has ended; how many tasks it held."},
    {"settle", pool_settle, METH_VARARGS,
     "settle(place, exitcode=None)\n--\n\nThe worker there is dying; how many tasks it held. bury() follows."},
    {"supervise", pool_supervise, METH_VARARGS,
     "supervise(timeout=None)\n--\n\nWait for events: a list of (kind, place, pid, exitcode); kind 1: a worker ended, "
     "2: pump(), 3: a worker is dying, with that exit code."},
    {"call_supervisor", pool_call_supervisor, METH_NOARGS, "call_supervisor()\n--\n\nMake supervise() return."},
    {"mind", pool_mind, METH_NOARGS,
     "mind()\n--\n\nWork was handed out whose results perhaps nobody waits for: the supervisor has them collected."},
    {"forsake", pool_forsake, METH_O,
     "forsake(reference)\n--\n\nThe callback of a weak reference to whose pool this is: it is gone."},
    {"pump", pool_pump, METH_NOARGS,
     "pump()\n--\n\nCollect and hand out for jobs that nobody waits for; the jobs whose callbacks are due."},
    {"jobs", pool_jobs, METH_NOARGS, "jobs()\n--\n\nThe jobs that are not done, some of them several times."},
    {"share", pool_share, METH_VARARGS,
     "share(object, foreign_main=False)\n--\n\nGive an object (a function) to all workers, once; its id for Job."},
    {"unshare", pool_unshare, METH_VARARGS, "unshare(id)\n--\n\nNo job needs it any more."},
    {"shut", pool_shut, METH_VARARGS, "shut(how)\n--\n\nWorkers end once nothing is left to take (1), or at once (2)."},
    {"hurry", pool_hurry, METH_NOARGS, "hurry()\n--\n\nFrom now on hand out all that iterators hold, read or not."},
    {"abandon", pool_abandon, METH_O, "abandon(error)\n--\n\nFail every item that has no result, with this exception."},
    {"close", pool_close, METH_NOARGS, "close()\n--\n\nDrop the table; arrays that were handed out stay valid."},
    {"wait_idle", pool_wait_idle, METH_VARARGS,
     "wait_idle(timeout=None)\n--\n\nCollect and hand out until nothing is left; timeout in seconds. Whether it is "
     "so."},
    {"numbers", pool_numbers, METH_VARARGS, "numbers(place)\n--\n\nWhat the worker there did so far."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef pool_properties[] = {
    {"outstanding", pool_get_outstanding, NULL, "tasks that are out", NULL},
    {"idle", pool_get_idle, NULL, "nothing is out and nothing is left to hand out", NULL},
    {"foreign_main", pool_get_foreign_main, pool_set_foreign_main,
     "whether the workers' __main__ is another program's, so that what ours defines must travel by value", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMemberDef pool_members[] = {
    {"unreadable", T_OBJECT_EX, offsetof(PoolObject, unreadable), 0,
     "makes the error of an item whose result cannot be unpickled from what that raised"},
    {"minded", T_BOOL, offsetof(PoolObject, minded), 0, "mind() was called, and the supervisor has not seen to it yet"},
    {"forsaken", T_BOOL, offsetof(PoolObject, forsaken), READONLY, "forsake() was called"},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot pool_slots[] = {
    {Py_tp_doc, "The owner's handle on a pool of workers."},
    {Py_tp_new, pool_new},
    {Py_tp_dealloc, pool_dealloc},
    {Py_tp_traverse, pool_traverse},
    {Py_tp_clear, pool_clear},
    {Py_tp_methods, pool_methods},
    {Py_tp_getset, pool_properties},
    {Py_tp_members, pool_members},
    {0, NULL},
};

static PyType_Spec pool_spec = {
    .name = "shoal._engine.Pool",
    .basicsize = sizeof(PoolObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = pool_slots,
};

static PyObject *configure_pool(PyObject *module, PyObject *args)
{
    module_state *state = module_get_state(module);
    PyObject *worker_died, *task_timeout, *remote_error, *unsendable;
    if (!PyArg_ParseTuple(args, "OOOO:configure_pool", &worker_died, &task_timeout, &remote_error, &unsendable))
        return NULL;
    Py_XSETREF(state->task_timeout, Py_NewRef(task_timeout));
    Py_XSETREF(state->worker_died, Py_NewRef(worker_died));
    Py_XSETREF(state->remote_error, Py_NewRef(remote_error));
    Py_XSETREF(state->unsendable, Py_NewRef(unsendable));
    Py_RETURN_NONE;
}

static PyMethodDef functions[] = {
    {"configure_pool", configure_pool, METH_VARARGS,
     "configure_pool(worker_died, task_timeout, remote_error, unsendable)\n--\n\nWhat makes a pool's exceptions."},
    {NULL, NULL, 0, NULL},
};

int pool_add(PyObject *module)
{
    module_state *state = module_get_state(module);
    state->pool_type = PyType_FromModuleAndSpec(module, &pool_spec, NULL);
    if (state->pool_type == NULL || PyModule_AddObjectRef(module, "Pool", state->pool_type) != 0 ||
        PyModule_AddFunctions(module, functions) != 0 ||
        PyModule_AddIntConstant(module, "POOL_WORKERS", SHOAL_POOL_WORKERS) != 0)
        return -1;
    return job_add(module);
}
