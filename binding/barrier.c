/* barrier.c: the type Barrier: the engine's barrier. What each wait does by default is kept in Python
 * (shoal/multiprocessing/synchronize.py).
 *
 * An exception of a signal's handler breaks the barrier: a party that arrived cannot leave it whole.
 */
#include "sync.h"

#include <errno.h>

typedef struct {
    PyObject_HEAD
    module_state *state;
    shoal_barrier *barrier; /* NULL until _open */
} BarrierObject;

static PyObject *barrier_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    return type->tp_alloc(type, 0);
}

static PyObject *barrier_open(PyObject *object, PyObject *args)
{
    BarrierObject *self = (BarrierObject *)object;
    Py_ssize_t parties;
    int fd = -1;
    if (!PyArg_ParseTuple(args, "n|i:_open", &parties, &fd))
        return NULL;
    if (self->barrier != NULL) {
        PyErr_SetString(PyExc_ValueError, "the barrier is open");
        return NULL;
    }
    self->state = module_find_state(object);
    if (self->state == NULL)
        return NULL;
    if (fd < 0 && parties < 1) {
        PyErr_SetString(PyExc_ValueError, "parties must be > 0");
        return NULL;
    }
    if (fd < 0 && parties > (Py_ssize_t)SHOAL_BARRIER_MOST)
        return PyErr_Format(PyExc_ValueError, "parties must be at most %u", SHOAL_BARRIER_MOST);
    const int error =
        fd >= 0 ? shoal_barrier_attach(fd, &self->barrier) : shoal_barrier_create((uint32_t)parties, &self->barrier);
    if (error != 0)
        return module_raise(error, "cannot make a barrier");
    Py_RETURN_NONE;
}

static void barrier_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    shoal_barrier_close(((BarrierObject *)self)->barrier);
    type->tp_free(self);
    Py_DECREF(type);
}

struct action {
    PyObject *callable;
    PyThreadState *thread; /* of the wait that runs it */
};

/* Called by the engine, without the GIL, in the thread that waits. */
static int run_action(void *context)
{
    struct action *action = context;
    PyEval_RestoreThread(action->thread);
    PyObject *result = PyObject_CallNoArgs(action->callable);
    const int outcome = result == NULL ? SYNC_RAISED : 0;
    Py_XDECREF(result);
    action->thread = PyEval_SaveThread();
    return outcome;
}

static PyObject *barrier_wait(PyObject *object, PyObject *args)
{
    BarrierObject *self = (BarrierObject *)object;
    PyObject *seconds, *callable;
    int64_t timeout;
    if (!PyArg_ParseTuple(args, "OO:_wait", &seconds, &callable) || module_timeout(seconds, &timeout) != 0)
        return NULL;
    if (self->barrier == NULL)
        return sync_raise_not_open(object);
    const int64_t deadline = sync_deadline(timeout);
    struct action action = {.callable = callable};
    shoal_barrier_turn turn = {
        .action = callable == Py_None ? NULL : run_action,
        .context = &action,
        .patience = SIGNAL_SLICE,
    };
    int result;
    do {
        const int64_t left = sync_left(deadline);
        action.thread = PyEval_SaveThread();
        result = shoal_barrier_wait(self->barrier, left, &turn);
        PyEval_RestoreThread(action.thread);
        if (result == -EINTR && sync_check_signals() != 0) {
            shoal_barrier_abort(self->barrier, &turn);
            return NULL;
        }
    } while (result == -EINTR);
    switch (result) {
    case 0:
        return PyLong_FromUnsignedLong(turn.index);
    case SYNC_RAISED:
        return NULL;
    case -ETIMEDOUT:
    case -EPIPE:
        PyErr_SetNone(self->state->barrier_broken);
        return NULL;
    case SHOAL_EOWNERDIED:
        return sync_raise_owner_died(self->state, 0, "barrier");
    default:
        return module_raise(result, "cannot wait at the barrier");
    }
}

static PyObject *barrier_reset(PyObject *object, PyObject *unused)
{
    BarrierObject *self = (BarrierObject *)object;
    if (self->barrier == NULL)
        return sync_raise_not_open(object);
    shoal_barrier_reset(self->barrier);
    Py_RETURN_NONE;
}

static PyObject *barrier_abort(PyObject *object, PyObject *unused)
{
    BarrierObject *self = (BarrierObject *)object;
    if (self->barrier == NULL)
        return sync_raise_not_open(object);
    shoal_barrier_abort(self->barrier, NULL);
    Py_RETURN_NONE;
}

static PyObject *barrier_home(PyObject *object, PyObject *unused)
{
    BarrierObject *self = (BarrierObject *)object;
    return self->barrier == NULL ? sync_raise_not_open(object)
                                 : Py_BuildValue("(iOI)", shoal_barrier_fd(self->barrier), Py_None, 0);
}

static PyObject *barrier_get_parties(PyObject *object, void *closure)
{
    BarrierObject *self = (BarrierObject *)object;
    if (self->barrier == NULL)
        return sync_raise_not_open(object);
    return PyLong_FromUnsignedLong(shoal_barrier_parties(self->barrier));
}

static PyObject *barrier_get_waiting(PyObject *object, void *closure)
{
    BarrierObject *self = (BarrierObject *)object;
    if (self->barrier == NULL)
        return sync_raise_not_open(object);
    return PyLong_FromUnsignedLong(shoal_barrier_waiting(self->barrier));
}

static PyObject *barrier_get_broken(PyObject *object, void *closure)
{
    BarrierObject *self = (BarrierObject *)object;
    if (self->barrier == NULL)
        return sync_raise_not_open(object);
    return PyBool_FromLong(shoal_barrier_broken(self->barrier));
}

static PyMethodDef barrier_methods[] = {
    {"_open", barrier_open, METH_VARARGS,
     "_open(parties, fd=-1)\n--\n\nMake the barrier, or map the one behind this descriptor. Once, by __init__."},
    {"_home", barrier_home, METH_NOARGS,
     "_home()\n--\n\n(descriptor, None, 0): where a process that does not inherit it finds it."},
    {"_wait", barrier_wait, METH_VARARGS,
     "_wait(timeout, action)\n--\n\nArrive and wait for the others; the party's number in this round."},
    {"reset", barrier_reset, METH_NOARGS,
     "reset($self)\n--\n\nBegin anew, broken or not. Parties that wait get BrokenBarrierError."},
    {"abort", barrier_abort, METH_NOARGS,
     "abort($self)\n--\n\nBreak the barrier: parties that wait, and that come later, get BrokenBarrierError."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef barrier_properties[] = {
    {"parties", barrier_get_parties, NULL, "how many it waits for", NULL},
    {"n_waiting", barrier_get_waiting, NULL, "how many have arrived", NULL},
    {"broken", barrier_get_broken, NULL, "whether it is broken", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot barrier_slots[] = {
    {Py_tp_doc, "A number of parties, in any processes, that wait for each other."},
    {Py_tp_new, barrier_new},
    {Py_tp_dealloc, barrier_dealloc},
    {Py_tp_methods, barrier_methods},
    {Py_tp_getset, barrier_properties},
    {0, NULL},
};

static PyType_Spec barrier_spec = {
    .name = "shoal._engine.Barrier",
    .basicsize = sizeof(BarrierObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
    .slots = barrier_slots,
};

int barrier_add(PyObject *module)
{
    module_state *state = module_get_state(module);
    state->barrier_type = PyType_FromModuleAndSpec(module, &barrier_spec, NULL);
    return state->barrier_type == NULL ? -1 : PyModule_AddObjectRef(module, "Barrier", state->barrier_type);
}
