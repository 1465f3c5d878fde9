/* call.c: one call of a function, apply's and apply_async's, with as little on its way as there can be: Pool.call(),
 * which makes a job of one item and hands it out, and Job.get().
 *
 * A round trip costs a few microseconds, of which the interpreter's part was the larger one while this was Python: so
 * what each call needs is done here in one step, and what is rare (a function that the workers do not have yet) is left
 * to Python.
 */
#include "pool.h"

#include <unistd.h>

const char pool_call_doc[] =
    "call(type, keeper, functions, function, args, kwargs, retries, callback, time_limit, /)\n--\n\n"
    "Have function(*args, **kwargs) called by a worker: a job of `type`, which was handed out; its `_pool` is "
    "`keeper`. "
    "`functions` are those that the workers have, with their ids; None: this one is not among them.";

/* The id of a function that the workers have. 1; 0: they do not; -1: an exception. */
static int find_function(PyObject *functions, PyObject *function, uint32_t *shared)
{
    PyObject *number = PyDict_GetItemWithError(functions, function);
    if (number == NULL) {
        if (!PyErr_Occurred())
            return 0;
        if (!PyErr_ExceptionMatches(PyExc_TypeError))
            return -1;
        PyErr_Clear(); /* it has no hash */
        return 0;
    }
    const unsigned long found = PyLong_AsUnsignedLong(number);
    if (found == (unsigned long)-1 && PyErr_Occurred())
        return -1;
    *shared = (uint32_t)found;
    return 1;
}

/* What travels for the arguments of a call, in a tuple of one, and how. New reference; NULL with an exception. */
static PyObject *pack_arguments(PyObject *args, PyObject *kwargs, enum call_mode *mode)
{
    PyObject *item = PySequence_Tuple(args); /* the same, where it is one */
    if (item == NULL)
        return NULL;
    *mode = CALL_STAR;
    if (!PyDict_CheckExact(kwargs) || PyDict_GET_SIZE(kwargs) > 0) {
        PyObject *named = PyObject_CallOneArg((PyObject *)&PyDict_Type, kwargs);
        PyObject *both = named == NULL ? NULL : PyTuple_Pack(2, item, named);
        Py_XDECREF(named);
        Py_SETREF(item, both);
        *mode = CALL_APPLY;
    }
    PyObject *source = item == NULL ? NULL : PyTuple_Pack(1, item);
    Py_XDECREF(item);
    return source;
}

/* Nobody will ever see this job: Ctrl-C came while it was handed out, say. Keeps the exception that is set. */
static void take_back(JobObject *job)
{
    if (job->pool->process != getpid())
        return; /* it was not handed out: the pool is another process's */
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    PyObject *result = PyObject_CallMethod((PyObject *)job, "cancel", NULL);
    if (result == NULL)
        PyErr_WriteUnraisable((PyObject *)job);
    Py_XDECREF(result);
    PyErr_Restore(type, value, traceback);
}

PyObject *pool_call(PyObject *self, PyObject *const *args, Py_ssize_t count)
{
    PoolObject *pool = (PoolObject *)self;
    struct job_options options = {.single = true, .chunk = 1};
    if (count != 9 || !PyType_Check(args[0]) ||
        !PyType_IsSubtype((PyTypeObject *)args[0], (PyTypeObject *)pool->state->job_type) || !PyDict_Check(args[2])) {
        PyErr_SetString(PyExc_TypeError, "call() takes a type of jobs, a pool, a dict of functions, and a call");
        return NULL;
    }
    int known = find_function(args[2], args[3], &options.shared);
    if (known <= 0)
        return known < 0 ? NULL : Py_NewRef(Py_None);
    const unsigned long retries = PyLong_AsUnsignedLong(args[6]);
    if (retries == (unsigned long)-1 && PyErr_Occurred())
        return NULL;
    options.retries = retries < UINT32_MAX ? (uint32_t)retries : UINT32_MAX;
    options.callback = args[7] == Py_None ? NULL : args[7];
    if (job_time_limit(args[8], &options.time_limit) != 0)
        return NULL;
    PyObject *source = pack_arguments(args[4], args[5], &options.mode);
    if (source == NULL)
        return NULL;
    JobObject *job = job_make((PyTypeObject *)args[0], pool, source, &options);
    Py_DECREF(source);
    if (job == NULL)
        return NULL;
    job->keeper = Py_NewRef(args[1]);
    if (job_start(job) != 0) {
        take_back(job);
        Py_CLEAR(job);
    }
    return (PyObject *)job;
}

static void raise_timeout(void)
{
    PyObject *context = PyImport_ImportModule("multiprocessing.context");
    PyObject *error = context == NULL ? NULL : PyObject_GetAttrString(context, "TimeoutError");
    if (error != NULL)
        PyErr_SetNone(error);
    Py_XDECREF(error);
    Py_XDECREF(context);
}

PyObject *job_get(PyObject *self, PyObject *const *args, Py_ssize_t count, PyObject *names)
{
    JobObject *job = (JobObject *)self;
    const Py_ssize_t named = names == NULL ? 0 : PyTuple_GET_SIZE(names);
    int64_t timeout = SHOAL_FOREVER;
    if (count + named > 1 ||
        (named == 1 && PyUnicode_CompareWithASCIIString(PyTuple_GET_ITEM(names, 0), "timeout") != 0)) {
        PyErr_SetString(PyExc_TypeError, "get() takes one argument at the most, 'timeout'");
        return NULL;
    }
    if (count + named == 1 && module_timeout(args[0], &timeout) != 0)
        return NULL;
    if (job->iterates) {
        PyErr_SetString(PyExc_TypeError, "an iterator's results are read one by one");
        return NULL;
    }
    int ready = wait_for(job->pool, job, false, timeout);
    if (ready <= 0) {
        if (ready == 0)
            raise_timeout();
        return NULL;
    }
    Py_CLEAR(job->keeper);
    if (job->error != NULL) {
        job_raise(job->error);
        return NULL;
    }
    return Py_NewRef(job->results);
}
