/* sync.c: waiting, arguments and errors of the lock family; and the exception that Python tells it of.
 *
 * A wait gives the GIL up and comes back for signals. Where one arrives between the last look and the sleep, the engine
 * is not interrupted, so waits are cut into slices.
 */
#include "sync.h"

#include <errno.h>

int64_t sync_deadline(int64_t timeout)
{
    const int64_t now = shoal_clock_now();
    return timeout >= SHOAL_FOREVER - now ? SHOAL_FOREVER : now + timeout;
}

int64_t sync_left(int64_t deadline)
{
    if (deadline == SHOAL_FOREVER)
        return SHOAL_FOREVER;
    const int64_t left = deadline - shoal_clock_now();
    return left < 0 ? 0 : left;
}

int sync_wait(sync_step step, void *handle, int64_t timeout)
{
    const int64_t deadline = sync_deadline(timeout);
    for (;;) {
        const int64_t left = sync_left(deadline);
        const int64_t slice = left < SIGNAL_SLICE ? left : SIGNAL_SLICE;
        int result;
        Py_BEGIN_ALLOW_THREADS
        result = step(handle, slice);
        Py_END_ALLOW_THREADS
        if (result != -ETIMEDOUT && result != -EINTR)
            return result;
        if (sync_check_signals() != 0)
            return SYNC_RAISED;
        if (result == -ETIMEDOUT && slice == left)
            return result;
    }
}

int sync_parse_wait(const char *name, PyObject *const *args, Py_ssize_t count, PyObject *names, bool first_is_timeout,
                    int64_t *timeout)
{
    PyObject *values[2] = {NULL, NULL}; /* block, timeout */
    const Py_ssize_t first = first_is_timeout ? 1 : 0;
    const Py_ssize_t named = names == NULL ? 0 : PyTuple_GET_SIZE(names);
    if (count + named > 2 - first) {
        PyErr_Format(PyExc_TypeError, "%s() takes at most %zd argument%s (%zd given)", name, 2 - first,
                     first_is_timeout ? "" : "s", count + named);
        return -1;
    }
    for (Py_ssize_t i = 0; i < count; i++)
        values[first + i] = args[i];
    for (Py_ssize_t i = 0; i < named; i++) {
        PyObject *keyword = PyTuple_GET_ITEM(names, i);
        Py_ssize_t place = PyUnicode_CompareWithASCIIString(keyword, "timeout") == 0 ? 1
                           : PyUnicode_CompareWithASCIIString(keyword, "block") == 0 ? 0
                                                                                     : -1;
        if (place < first) {
            PyErr_Format(PyExc_TypeError, "'%U' is an invalid keyword argument for %s()", keyword, name);
            return -1;
        }
        if (values[place] != NULL) {
            PyErr_Format(PyExc_TypeError, "argument for %s() given by name ('%U') and position (%zd)", name, keyword,
                         place + 1 - first);
            return -1;
        }
        values[place] = args[count + i];
    }
    *timeout = SHOAL_FOREVER;
    if (values[0] != NULL && values[0] != Py_True) {
        if (!PyIndex_Check(values[0])) {
            PyErr_Format(PyExc_TypeError, "'%.200s' object cannot be interpreted as an integer",
                         Py_TYPE(values[0])->tp_name);
            return -1;
        }
        const int block = PyObject_IsTrue(values[0]);
        if (block < 0)
            return -1;
        if (block == 0) {
            *timeout = 0;
            return 0;
        }
    }
    return values[1] == NULL ? 0 : module_timeout(values[1], timeout);
}

PyObject *sync_raise_owner_died(module_state *state, pid_t pid, const char *what)
{
    if (state->owner_died == NULL) {
        PyErr_SetString(PyExc_SystemError, "configure_sync was not called");
        return NULL;
    }
    PyObject *error = PyObject_CallFunction(state->owner_died, "is", (int)pid, what);
    if (error != NULL) {
        PyErr_SetObject((PyObject *)Py_TYPE(error), error);
        Py_DECREF(error);
    }
    return NULL;
}

PyObject *sync_raise_not_open(PyObject *self)
{
    PyErr_Format(PyExc_ValueError, "%.200s object was not initialised: its __init__ did not call its base's",
                 Py_TYPE(self)->tp_name);
    return NULL;
}

static PyObject *configure_sync(PyObject *module, PyObject *args)
{
    module_state *state = module_get_state(module);
    PyObject *died, *broken;
    if (!PyArg_ParseTuple(args, "OO:configure_sync", &died, &broken))
        return NULL;
    Py_XSETREF(state->owner_died, Py_NewRef(died));
    Py_XSETREF(state->barrier_broken, Py_NewRef(broken));
    Py_RETURN_NONE;
}

static PyMethodDef functions[] = {
    {"configure_sync", configure_sync, METH_VARARGS,
     "configure_sync(owner_died, barrier_broken)\n--\n\nWhat locks raise: owner_died(pid, what) makes an exception, "
     "barrier_broken is one."},
    {NULL, NULL, 0, NULL},
};

int sync_add(PyObject *module)
{
    return PyModule_AddFunctions(module, functions);
}
