/* condition.c: the type Condition: the engine's condition over a Lock, with the methods of multiprocessing's.
 *
 * A wait that a signal's exception ends takes the lock again before it raises, as multiprocessing's does: whoever said
 * `with condition:` releases it.
 */
#include "sync.h"

#include <errno.h>

typedef struct {
    PyObject_HEAD
    module_state *state;
    LockObject *lock;           /* NULL until _open, as is the next */
    shoal_condition *condition; /* over lock->lock */
} ConditionObject;

static PyObject *condition_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    return type->tp_alloc(type, 0);
}

static PyObject *condition_open(PyObject *object, PyObject *args)
{
    ConditionObject *self = (ConditionObject *)object;
    PyObject *lock;
    int fd = -1;
    if (!PyArg_ParseTuple(args, "O|i:_open", &lock, &fd))
        return NULL;
    if (self->condition != NULL) {
        PyErr_SetString(PyExc_ValueError, "the condition is open");
        return NULL;
    }
    self->state = module_find_state(object);
    if (self->state == NULL)
        return NULL;
    if (!PyObject_TypeCheck(lock, (PyTypeObject *)self->state->lock_type))
        return PyErr_Format(PyExc_TypeError, "a condition needs a Lock or RLock, not %.200s", Py_TYPE(lock)->tp_name);
    shoal_lock *of_engine = ((LockObject *)lock)->lock;
    if (of_engine == NULL)
        return sync_raise_not_open(lock);
    const int error = fd >= 0 ? shoal_condition_attach(fd, of_engine, &self->condition)
                              : shoal_condition_create(of_engine, &self->condition);
    if (error != 0)
        return module_raise(error, "cannot make a condition");
    self->lock = (LockObject *)Py_NewRef(lock);
    Py_RETURN_NONE;
}

static int condition_traverse(PyObject *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(((ConditionObject *)self)->lock);
    return 0;
}

static int condition_clear(PyObject *object)
{
    ConditionObject *self = (ConditionObject *)object;
    /* The lock must outlive what is over it. */
    shoal_condition *condition = self->condition;
    self->condition = NULL;
    shoal_condition_close(condition);
    Py_CLEAR(self->lock);
    return 0;
}

static void condition_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    (void)condition_clear(self);
    type->tp_free(self);
    Py_DECREF(type);
}

/* Take the lock as often as it was held, keeping the exception that is set. What goes wrong with it is raised in that
 * one's place, as from a `finally`. */
static void take_lock_again(ConditionObject *self, uint32_t depth)
{
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    PyErr_NormalizeException(&type, &value, &traceback);
    for (uint32_t i = 0; i < depth; i++) {
        PyObject *taken = lock_take(self->lock, SHOAL_FOREVER);
        if (taken == NULL) {
            PyObject *new_type, *new_value, *new_traceback;
            PyErr_Fetch(&new_type, &new_value, &new_traceback);
            PyErr_NormalizeException(&new_type, &new_value, &new_traceback);
            PyException_SetContext(new_value, value); /* takes `value` over */
            Py_XDECREF(type);
            Py_XDECREF(traceback);
            PyErr_Restore(new_type, new_value, new_traceback);
            return;
        }
        Py_DECREF(taken);
    }
    PyErr_Restore(type, value, traceback);
}

static PyObject *condition_wait(PyObject *object, PyObject *const *args, Py_ssize_t count, PyObject *names)
{
    ConditionObject *self = (ConditionObject *)object;
    int64_t timeout = SHOAL_FOREVER;
    if (sync_parse_wait("wait", args, count, names, true, &timeout) != 0)
        return NULL;
    if (self->condition == NULL)
        return sync_raise_not_open(object);
    lock_forget_inheritance(self->lock, true);
    const int64_t deadline = sync_deadline(timeout);
    shoal_condition_turn turn = {.patience = SIGNAL_SLICE};
    int result;
    do {
        const int64_t left = sync_left(deadline);
        Py_BEGIN_ALLOW_THREADS
        result = shoal_condition_wait(self->condition, left, &turn);
        Py_END_ALLOW_THREADS
        if (result == -EINTR && sync_check_signals() != 0) {
            shoal_condition_cancel(self->condition, &turn);
            take_lock_again(self, turn.depth);
            return NULL;
        }
    } while (result == -EINTR);
    switch (result) {
    case 0:
    case -ETIMEDOUT:
        return PyBool_FromLong(result == 0);
    case SHOAL_INHERITED:
        self->lock->inherited = true;
        Py_RETURN_TRUE; /* perhaps without a notification: what the lock protects is to be looked at */
    case -EPERM:
        PyErr_SetString(PyExc_AssertionError, "must acquire() condition before using wait()");
        return NULL;
    case SHOAL_EOWNERDIED:
        return lock_raise_died(self->lock);
    default:
        return module_raise(result, "cannot wait for the condition");
    }
}

static PyObject *finish_notify(int error)
{
    if (error == 0)
        Py_RETURN_NONE;
    if (error != -EPERM)
        return module_raise(error, "cannot notify");
    PyErr_SetString(PyExc_AssertionError, "lock is not owned");
    return NULL;
}

static PyObject *condition_notify(PyObject *object, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"n", NULL};
    ConditionObject *self = (ConditionObject *)object;
    PyObject *number = NULL;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "|O:notify", names, &number))
        return NULL;
    if (self->condition == NULL)
        return sync_raise_not_open(object);
    int64_t count = 1;
    if (number != NULL) {
        int overflow;
        count = PyLong_AsLongLongAndOverflow(number, &overflow);
        if (count == -1 && PyErr_Occurred())
            return NULL;
        if (overflow > 0 || count > UINT32_MAX)
            count = UINT32_MAX;
        if (overflow < 0 || count < 0)
            count = 0;
    }
    return finish_notify(shoal_condition_notify(self->condition, (uint32_t)count));
}

static PyObject *condition_notify_all(PyObject *object, PyObject *unused)
{
    ConditionObject *self = (ConditionObject *)object;
    if (self->condition == NULL)
        return sync_raise_not_open(object);
    return finish_notify(shoal_condition_notify_all(self->condition));
}

static PyObject *condition_enter(PyObject *object, PyObject *unused)
{
    ConditionObject *self = (ConditionObject *)object;
    return self->lock == NULL ? sync_raise_not_open(object) : lock_take(self->lock, SHOAL_FOREVER);
}

static PyObject *condition_leave(PyObject *object, PyObject *const *args, Py_ssize_t count)
{
    ConditionObject *self = (ConditionObject *)object;
    return self->lock == NULL ? sync_raise_not_open(object) : lock_exit(self->lock, args, count);
}

static PyObject *condition_acquire(PyObject *object, PyObject *const *args, Py_ssize_t count, PyObject *names)
{
    ConditionObject *self = (ConditionObject *)object;
    int64_t timeout = SHOAL_FOREVER;
    if ((count > 0 || names != NULL) && sync_parse_wait("acquire", args, count, names, false, &timeout) != 0)
        return NULL;
    return self->lock == NULL ? sync_raise_not_open(object) : lock_take(self->lock, timeout);
}

static PyObject *condition_release(PyObject *object, PyObject *unused)
{
    ConditionObject *self = (ConditionObject *)object;
    return self->lock == NULL ? sync_raise_not_open(object) : lock_give(self->lock);
}

static PyObject *condition_waiting(PyObject *object, PyObject *unused)
{
    ConditionObject *self = (ConditionObject *)object;
    if (self->condition == NULL)
        return sync_raise_not_open(object);
    return PyLong_FromUnsignedLong(shoal_condition_waiting(self->condition));
}

static PyObject *condition_home(PyObject *object, PyObject *unused)
{
    ConditionObject *self = (ConditionObject *)object;
    if (self->condition == NULL)
        return sync_raise_not_open(object);
    return Py_BuildValue("(iOI)", shoal_condition_fd(self->condition), Py_None, 0);
}

static PyObject *condition_get_lock(PyObject *object, void *closure)
{
    ConditionObject *self = (ConditionObject *)object;
    return self->lock == NULL ? sync_raise_not_open(object) : Py_NewRef(self->lock);
}

static PyMethodDef condition_methods[] = {
    {"_open", condition_open, METH_VARARGS,
     "_open(lock, fd=-1)\n--\n\nMake the condition, or map the one behind this descriptor. Once, by __init__."},
    {"_home", condition_home, METH_NOARGS,
     "_home($self)\n--\n\n(descriptor, None, 0): where a process that does not inherit it finds it."},
    {"acquire", (PyCFunction)(void (*)(void))condition_acquire, METH_FASTCALL | METH_KEYWORDS,
     "acquire($self, block=True, timeout=None)\n--\n\nTake the lock."},
    {"release", condition_release, METH_NOARGS, "release($self)\n--\n\nGive the lock back."},
    {"__enter__", condition_enter, METH_NOARGS, "__enter__($self)\n--\n\n"},
    {"__exit__", (PyCFunction)(void (*)(void))condition_leave, METH_FASTCALL, "__exit__($self, *args)\n--\n\n"},
    {"wait", (PyCFunction)(void (*)(void))condition_wait, METH_FASTCALL | METH_KEYWORDS,
     "wait($self, timeout=None)\n--\n\nGive the lock up until somebody notifies, and take it again. False: nobody did "
     "in `timeout` seconds.\n\nRaises shoal.OwnerDied, without the lock, if the process that held it meanwhile died, "
     "unless it is robust."},
    {"notify", (PyCFunction)(void (*)(void))condition_notify, METH_VARARGS | METH_KEYWORDS,
     "notify($self, n=1)\n--\n\nWake up to `n` of those who wait, the longest-waiting first."},
    {"notify_all", condition_notify_all, METH_NOARGS, "notify_all($self)\n--\n\nWake all who wait."},
    {"_waiting", condition_waiting, METH_NOARGS, "_waiting($self)\n--\n\nHow many wait."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef condition_properties[] = {
    {"_lock", condition_get_lock, NULL, "the lock", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot condition_slots[] = {
    {Py_tp_doc, "Waiting, between processes, for a change that another announces."},
    {Py_tp_new, condition_new},
    {Py_tp_dealloc, condition_dealloc},
    {Py_tp_traverse, condition_traverse},
    {Py_tp_clear, condition_clear},
    {Py_tp_methods, condition_methods},
    {Py_tp_getset, condition_properties},
    {0, NULL},
};

static PyType_Spec condition_spec = {
    .name = "shoal._engine.Condition",
    .basicsize = sizeof(ConditionObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
    .slots = condition_slots,
};

int condition_add(PyObject *module)
{
    module_state *state = module_get_state(module);
    state->condition_type = PyType_FromModuleAndSpec(module, &condition_spec, NULL);
    return state->condition_type == NULL ? -1 : PyModule_AddObjectRef(module, "Condition", state->condition_type);
}
