/* worker.c: the type Worker: the loop of a worker process: takes tasks, decodes items, calls, encodes results.
 *
 * One call of run() serves until the pool shuts, so the way of a task is C from end to end but for the function itself.
 * Whatever an item raises becomes that item's result; SystemExit, KeyboardInterrupt and the like end the worker, and
 * the supervisor fails the item, unless run() was told that they are results too.
 */
#include "pool.h"

#include <errno.h>

#define FUNCTIONS_KEPT 64 /* decoded functions; past that all are dropped, and decoded again when they are needed */

typedef struct {
    PyObject_HEAD
    module_state *state;
    shoal_worker *worker;
    PyObject *functions; /* id -> callable, of those decoded so far */
    uint32_t last_id;    /* of the function used last, which needs no look-up */
    PyObject *last_function;
    struct codec_writer writer;
    bool keeps_exits;     /* SystemExit and the like are results */
    PyObject *unreadable; /* exception of an item that cannot be unpickled -> the item's error; NULL: itself */
    bool unread;          /* the exception that is set came of unpickling an item or its function */
} WorkerObject;

static int worker_parse(PyObject *args, PyObject **pool, int fds[3], unsigned int *place, unsigned int *owner)
{
    PyObject *source;
    if (!PyArg_ParseTuple(args, "OII:Worker", &source, place, owner))
        return -1;
    *pool = pool_is_pool(source) ? source : NULL;
    if (*pool == NULL &&
        !PyArg_ParseTuple(source, "iii;a pool, or the three descriptors of its fds()", fds, fds + 1, fds + 2))
        return -1;
    return 0;
}

static PyObject *worker_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    PyObject *pool;
    int fds[3];
    unsigned int place, owner;
    if (worker_parse(args, &pool, fds, &place, &owner) != 0)
        return NULL;
    PyObject *module = PyType_GetModule(type);
    if (module == NULL)
        return NULL;
    WorkerObject *self = (WorkerObject *)type->tp_alloc(type, 0);
    if (self == NULL)
        return NULL;
    self->state = module_get_state(module);
    codec_writer_begin(&self->writer, NULL, 0);
    self->functions = PyDict_New();
    int error = -EINVAL;
    if (pool == NULL)
        error = shoal_worker_attach(fds, place, owner, &self->worker);
    else if (((PoolObject *)pool)->pool != NULL)
        error = shoal_worker_open(((PoolObject *)pool)->pool, place, owner, &self->worker);
    if (error != 0)
        module_raise(error, "cannot join the pool");
    if (error != 0 || self->functions == NULL) {
        Py_DECREF(self);
        return NULL;
    }
    codec_writer_begin(&self->writer, shoal_worker_heap(self->worker), shoal_worker_owner(self->worker));
    return (PyObject *)self;
}

static int worker_traverse(PyObject *self, visitproc visit, void *arg)
{
    WorkerObject *worker = (WorkerObject *)self;
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(worker->functions);
    Py_VISIT(worker->last_function);
    Py_VISIT(worker->unreadable);
    return 0;
}

static int worker_clear(PyObject *self)
{
    WorkerObject *worker = (WorkerObject *)self;
    Py_CLEAR(worker->functions);
    Py_CLEAR(worker->last_function);
    Py_CLEAR(worker->unreadable);
    return 0;
}

static void worker_dealloc(PyObject *self)
{
    WorkerObject *worker = (WorkerObject *)self;
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    (void)worker_clear(self);
    codec_writer_end(&worker->writer, false);
    shoal_worker_close(worker->worker);
    type->tp_free(self);
    Py_DECREF(type);
}

/* ----------------------------------------------------------------- results ---- */

/* Drop a result that was not sent. */
static void drop_result(WorkerObject *worker)
{
    codec_writer_end(&worker->writer, false);
    codec_writer_begin(&worker->writer, shoal_worker_heap(worker->worker), shoal_worker_owner(worker->worker));
}

static int encode_result(WorkerObject *worker, PyObject *object)
{
    codec_writer_reset(&worker->writer);
    if (codec_encode(worker->state, &worker->writer, object) == 0)
        return 0;
    drop_result(worker);
    return -1;
}

/* Only what `except Exception` catches is a task's failure, unless the worker was told otherwise; the rest ends it. */
static bool ends_worker(const WorkerObject *worker)
{
    return !worker->keeps_exits && !PyErr_ExceptionMatches(PyExc_Exception);
}

/* Encode the exception that is set as the item's error: with its traceback; else in words. */
static int encode_error(WorkerObject *worker, PyObject *result)
{
    if (ends_worker(worker))
        return -1;
    PyObject *error = module_take_raised();
    if (error != NULL && worker->unread && worker->unreadable != NULL)
        Py_SETREF(error, PyObject_CallOneArg(worker->unreadable, error));
    if (error == NULL)
        return -1;
    PyObject *sent = result == NULL ? PyObject_CallFunctionObjArgs(worker->state->remote_error, error, NULL)
                                    : PyObject_CallFunctionObjArgs(worker->state->unsendable, error, result, NULL);
    int code = sent == NULL ? -1 : encode_result(worker, sent);
    Py_XDECREF(sent);
    if (code != 0 && result == NULL && !ends_worker(worker)) {
        /* The exception itself cannot be sent: say so, and what it was. */
        PyObject *second = module_take_raised();
        sent = second == NULL ? NULL : PyObject_CallFunctionObjArgs(worker->state->unsendable, second, error, NULL);
        code = sent == NULL ? -1 : encode_result(worker, sent);
        Py_XDECREF(sent);
        Py_XDECREF(second);
    }
    Py_DECREF(error);
    return code;
}

/* failed: what was written is the item's error. */
static int answer(WorkerObject *worker, shoal_task *task, bool failed)
{
    shoal_item item = codec_item(&worker->writer);
    if (failed)
        item.kind = RESULT_ERROR;
    int error = shoal_task_answer(task, &item);
    if (error == 0) {
        codec_writer_reset(&worker->writer);
        return 0;
    }
    drop_result(worker);
    module_raise(error, "no shared memory for a result");
    return -1;
}

/* Answer with a result that is a word. False: it is none, or there was no memory; nothing was answered. */
static bool answer_word(shoal_task *task, PyObject *result)
{
    uint64_t word;
    const enum codec_kind kind = codec_encode_word(result, &word);
    return kind != CODEC_MESSAGE && shoal_task_answer_word(task, kind, word) == 0;
}

/* ---------------------------------------------------------------- functions ---- */

/* Decode a function, or find it among those decoded before: as find_function. */
static PyObject *load_function(WorkerObject *worker, uint32_t id)
{
    PyObject *key = PyLong_FromUnsignedLong(id);
    if (key == NULL)
        return NULL;
    PyObject *function = Py_XNewRef(PyDict_GetItemWithError(worker->functions, key));
    if (function == NULL && !PyErr_Occurred()) {
        shoal_item item;
        int error = shoal_worker_shared(worker->worker, id, &item);
        if (error != 0)
            module_raise(error, "the task's function is not there");
        else
            function = codec_decode(worker->state, shoal_worker_heap(worker->worker), &item, CODEC_COPY);
        worker->unread = function == NULL;
        if (function != NULL && PyDict_GET_SIZE(worker->functions) >= FUNCTIONS_KEPT)
            PyDict_Clear(worker->functions);
        if (function != NULL && PyDict_SetItem(worker->functions, key, function) != 0)
            Py_CLEAR(function);
    }
    Py_DECREF(key);
    if (function == NULL)
        return NULL;
    worker->last_id = id;
    Py_XSETREF(worker->last_function, function);
    return function;
}

/* The task's function: borrowed; NULL with an exception, which is the item's error. */
static inline PyObject *find_function(WorkerObject *worker, uint32_t id)
{
    if (id == worker->last_id && worker->last_function != NULL)
        return worker->last_function;
    return load_function(worker, id);
}

/* (id, *args) or (-id, args, kwargs). */
static PyObject *call_named(WorkerObject *worker, PyObject *argument)
{
    if (!PyTuple_Check(argument) || PyTuple_GET_SIZE(argument) < 1 || !PyLong_Check(PyTuple_GET_ITEM(argument, 0)))
        return PyErr_BadInternalCall(), NULL;
    long id = PyLong_AsLong(PyTuple_GET_ITEM(argument, 0));
    PyObject *function = find_function(worker, (uint32_t)(id < 0 ? -id : id));
    if (function == NULL)
        return NULL;
    Py_INCREF(function);
    PyObject *result = NULL;
    if (id > 0) {
        PyObject *const *arguments = &PyTuple_GET_ITEM(argument, 0) + 1;
        result = PyObject_Vectorcall(function, arguments, (size_t)PyTuple_GET_SIZE(argument) - 1, NULL);
    } else if (PyTuple_GET_SIZE(argument) == 3 && PyTuple_Check(PyTuple_GET_ITEM(argument, 1)) &&
               PyDict_Check(PyTuple_GET_ITEM(argument, 2))) {
        result = PyObject_Call(function, PyTuple_GET_ITEM(argument, 1), PyTuple_GET_ITEM(argument, 2));
    } else {
        PyErr_BadInternalCall();
    }
    Py_DECREF(function);
    return result;
}

static PyObject *call(PyObject *function, enum call_mode mode, PyObject *argument)
{
    PyObject *arguments, *keywords, *result;
    switch (mode) {
    case CALL_STAR:
        arguments = PySequence_Tuple(argument);
        if (arguments == NULL)
            return NULL;
        result = PyObject_CallObject(function, arguments);
        Py_DECREF(arguments);
        return result;
    case CALL_APPLY:
        if (!PyTuple_Check(argument) || PyTuple_GET_SIZE(argument) != 2)
            return PyErr_BadInternalCall(), NULL;
        arguments = PySequence_Tuple(PyTuple_GET_ITEM(argument, 0));
        keywords = PyTuple_GET_ITEM(argument, 1);
        if (arguments == NULL)
            return NULL;
        result = PyObject_Call(function, arguments, PyDict_Check(keywords) ? keywords : NULL);
        Py_DECREF(arguments);
        return result;
    case CALL_WHOLE:
        if (!PyTuple_Check(argument) || PyTuple_GET_SIZE(argument) != 3)
            return PyErr_BadInternalCall(), NULL;
        arguments = PySequence_Tuple(PyTuple_GET_ITEM(argument, 1));
        keywords = PyTuple_GET_ITEM(argument, 2);
        if (arguments == NULL)
            return NULL;
        result = PyObject_Call(PyTuple_GET_ITEM(argument, 0), arguments, PyDict_Check(keywords) ? keywords : NULL);
        Py_DECREF(arguments);
        return result;
    case CALL_NAMED: /* call_named's */
    case CALL_ONE:
    default:
        return PyObject_CallOneArg(function, argument);
    }
}

/* ---------------------------------------------------------------------- the loop ---- */

/* Answer an item with what its call returned; NULL: with the exception that is set. 0: answered; -1: an exception that
 * ends the worker. Consumes `result`. */
static int answer_result(WorkerObject *worker, shoal_task *task, PyObject *result)
{
    if (result != NULL && answer_word(task, result)) {
        Py_DECREF(result);
        return 0;
    }
    const bool failed = result == NULL || encode_result(worker, result) != 0;
    const int code = failed ? encode_error(worker, result) : 0;
    Py_XDECREF(result);
    if (code != 0)
        return -1;
    if (answer(worker, task, failed) == 0)
        return 0;
    /* The result does not fit into shared memory; that it does not will. */
    if (encode_error(worker, NULL) != 0)
        return -1;
    return answer(worker, task, true);
}

/* Do one item of a task with these flags and this shared function: as answer_result. */
static int do_item(WorkerObject *worker, shoal_task *task, uint32_t flags, uint32_t shared, const shoal_item *item)
{
    const enum codec_blocks how = (flags & SHOAL_TASK_KEEPS_BLOCKS) != 0 ? CODEC_COPY : CODEC_VIEW;
    PyObject *argument = codec_decode(worker->state, shoal_worker_heap(worker->worker), item, how);
    PyObject *result = NULL;
    worker->unread = argument == NULL;
    if (argument != NULL) {
        const enum call_mode mode = (enum call_mode)(flags >> TASK_CALL_SHIFT);
        PyObject *function = NULL;
        if (mode == CALL_NAMED) {
            result = call_named(worker, argument);
        } else if (mode == CALL_WHOLE) {
            result = call(NULL, mode, argument);
        } else if ((function = find_function(worker, shared)) != NULL) {
            Py_INCREF(function); /* the call may drop the cache */
            result = call(function, mode, argument);
            Py_DECREF(function);
        }
        Py_DECREF(argument);
    }
    return answer_result(worker, task, result);
}

/* Do the items at hand that are words, with the shared function: most of what short tasks are given, and without what
 * else an item may need. As answer_result. */
static int do_words(WorkerObject *worker, shoal_task *task, uint32_t shared)
{
    if (worker->last_function == NULL || worker->last_id != shared)
        return 0; /* it could not be loaded, which is an error of each item's own, or the call before dropped it */
    PyObject *function = Py_NewRef(worker->last_function); /* the call may drop it */
    int code = 0;
    uint32_t kind;
    uint64_t word;
    while (code == 0 && shoal_task_next_word(task, &kind, &word) == 0) {
        const shoal_item item = {.data = &word, .size = sizeof word, .kind = kind};
        PyObject *argument = codec_decode(worker->state, NULL, &item, CODEC_COPY);
        worker->unread = argument == NULL;
        PyObject *result = argument == NULL ? NULL : PyObject_CallOneArg(function, argument);
        Py_XDECREF(argument);
        code = answer_result(worker, task, result);
    }
    Py_DECREF(function);
    return code;
}

static int do_task(WorkerObject *worker, shoal_task *task)
{
    const uint32_t flags = shoal_task_flags(task), shared = shoal_task_shared(task);
    const bool plain = flags >> TASK_CALL_SHIFT == CALL_ONE;
    shoal_item item;
    int error;
    while ((error = shoal_task_next(task, &item)) == 0) {
        if (do_item(worker, task, flags, shared, &item) != 0 || (plain && do_words(worker, task, shared) != 0))
            return -1; /* the task stays this worker's, and fails with it */
    }
    shoal_task_finish(task);
    if (error != -ENODATA) {
        module_raise(error, "a task in shared memory is malformed");
        return -1;
    }
    return PyErr_CheckSignals();
}

/* The next task; 0, 1: the pool has shut; -1: an exception. */
static int claim(WorkerObject *worker, shoal_task **task)
{
    int error = shoal_worker_claim(worker->worker, 0, task);
    while (error == -ETIMEDOUT || error == -EINTR) {
        if (error == -EINTR && PyErr_CheckSignals() != 0)
            return -1;
        Py_BEGIN_ALLOW_THREADS
        error = shoal_worker_claim(worker->worker, SHOAL_FOREVER, task);
        Py_END_ALLOW_THREADS
    }
    if (error == -ESHUTDOWN)
        return 1;
    if (error == SHOAL_ECORRUPT) /* the owner fails the task's items; this worker is sound */
        return claim(worker, task);
    if (error != 0) {
        module_raise(error, "cannot take a task");
        return -1;
    }
    return 0;
}

/* Whether this process has more private memory than so many bytes. Asked once a millisecond at most: short tasks must
 * not pay for it, and a task that takes much memory takes longer. */
static bool is_over(uint64_t limit, int64_t *looked_at)
{
    int64_t now = shoal_clock_now();
    uint64_t memory;
    if (now - *looked_at < SHOAL_MILLISECOND)
        return false;
    *looked_at = now;
    return shoal_memory_private(&memory) == 0 && memory > limit;
}

static PyObject *worker_run(PyObject *self, PyObject *args)
{
    WorkerObject *worker = (WorkerObject *)self;
    Py_ssize_t most = 0, done = 0;
    unsigned long long memory_limit = 0;
    int64_t looked_at = 0;
    int keeps_exits = 0;
    PyObject *unreadable = Py_None;
    if (!PyArg_ParseTuple(args, "|nKpO:run", &most, &memory_limit, &keeps_exits, &unreadable))
        return NULL;
    worker->keeps_exits = keeps_exits != 0;
    Py_XSETREF(worker->unreadable, unreadable == Py_None ? NULL : Py_NewRef(unreadable));
    if (worker->state->remote_error == NULL) {
        PyErr_SetString(PyExc_RuntimeError, "shoal._engine.configure_pool() was not called");
        return NULL;
    }
    while (most <= 0 || done < most) {
        shoal_task *task;
        int result = claim(worker, &task);
        if (result < 0)
            return NULL;
        if (result > 0)
            break;
        if (do_task(worker, task) != 0)
            return NULL;
        done++;
        if (memory_limit > 0 && is_over(memory_limit, &looked_at))
            break;
    }
    return PyLong_FromSsize_t(done);
}

static PyMethodDef worker_methods[] = {
    {"run", worker_run, METH_VARARGS,
     "run(tasks=0, memory_limit=0, keeps_exits=False, unreadable=None)\n--\n\nServe until the pool shuts, so many "
     "tasks were done, or "
     "this process has more private memory than so many bytes after a task (0: no limit); how many were done. "
     "keeps_exits: SystemExit and the like do not end the worker: they are the item's error. unreadable: makes the "
     "error "
     "of an item that cannot be unpickled from what that raised."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot worker_slots[] = {
    {Py_tp_doc, "Worker(pool_or_fds, place, owner)\n--\n\nA worker process's place in a pool."},
    {Py_tp_new, worker_new},
    {Py_tp_dealloc, worker_dealloc},
    {Py_tp_traverse, worker_traverse},
    {Py_tp_clear, worker_clear},
    {Py_tp_methods, worker_methods},
    {0, NULL},
};

static PyType_Spec worker_spec = {
    .name = "shoal._engine.Worker",
    .basicsize = sizeof(WorkerObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = worker_slots,
};

int worker_add(PyObject *module)
{
    module_state *state = module_get_state(module);
    state->worker_type = PyType_FromModuleAndSpec(module, &worker_spec, NULL);
    if (state->worker_type == NULL)
        return -1;
    return PyModule_AddObjectRef(module, "Worker", state->worker_type);
}
