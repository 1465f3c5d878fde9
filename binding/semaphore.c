/* semaphore.c: the type Semaphore: the engine's semaphore with the methods of multiprocessing's.
 *
 * A unit has no owner unless the semaphore is `owned`. How many units this process took and has not given back, which
 * multiprocessing's `_count` tells, is counted here, under the GIL; a child of fork begins at 0 (`_after_fork`).
 */
#include "sync.h"

#include <errno.h>

typedef struct {
    PyObject_HEAD
    module_state *state;
    shoal_semaphore *semaphore; /* NULL until _open or _attach */
    PyObject *group;            /* that it lies in, or NULL */
    int64_t count;              /* units taken less units given, by this process */
    unsigned long last_taker;   /* thread */
    bool owned;
    bool inherited; /* the unit taken last was a dead process's */
} SemaphoreObject;

static PyObject *semaphore_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    return type->tp_alloc(type, 0);
}

/* What _open and _attach need first. */
static bool is_ready(SemaphoreObject *self)
{
    if (self->semaphore != NULL) {
        PyErr_SetString(PyExc_ValueError, "the semaphore is open");
        return false;
    }
    self->state = module_find_state((PyObject *)self);
    return self->state != NULL;
}

static PyObject *semaphore_open(PyObject *object, PyObject *args)
{
    SemaphoreObject *self = (SemaphoreObject *)object;
    int value, maximum, owned = 0, robust = 0;
    PyObject *holder = NULL;
    shoal_sync_group *group;
    if (!PyArg_ParseTuple(args, "ii|ppO:_open", &value, &maximum, &owned, &robust, &holder) || !is_ready(self) ||
        group_find(self->state, holder, &group) != 0)
        return NULL;
    int error = -EINVAL;
    if (value >= 0 && maximum >= value) {
        const shoal_semaphore_options options = {
            .value = (uint32_t)value,
            .maximum = (uint32_t)maximum,
            .flags = owned ? SHOAL_SEMAPHORE_OWNED | (robust ? SHOAL_SEMAPHORE_ROBUST : 0) : SHOAL_SEMAPHORE_BOUNDED,
        };
        error = group != NULL ? shoal_semaphore_create_in(group, &options, &self->semaphore)
                              : shoal_semaphore_create(&options, &self->semaphore);
    }
    if (error != 0)
        return module_raise(error, "cannot make a semaphore");
    self->group = group != NULL ? Py_NewRef(holder) : NULL;
    self->owned = owned;
    Py_RETURN_NONE;
}

static PyObject *semaphore_attach(PyObject *object, PyObject *args)
{
    SemaphoreObject *self = (SemaphoreObject *)object;
    int owned, fd;
    unsigned int place;
    PyObject *holder;
    shoal_sync_group *group;
    if (!PyArg_ParseTuple(args, "piOI:_attach", &owned, &fd, &holder, &place) || !is_ready(self) ||
        group_find(self->state, holder, &group) != 0)
        return NULL;
    const int error = group != NULL ? shoal_semaphore_attach_in(group, place, &self->semaphore)
                                    : shoal_semaphore_attach(fd, &self->semaphore);
    if (error != 0)
        return module_raise(error, "cannot attach to a semaphore");
    self->group = group != NULL ? Py_NewRef(holder) : NULL;
    self->owned = owned;
    Py_RETURN_NONE;
}

static void semaphore_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    shoal_semaphore_close(((SemaphoreObject *)self)->semaphore);
    Py_XDECREF(((SemaphoreObject *)self)->group); /* after what lies in it */
    type->tp_free(self);
    Py_DECREF(type);
}

static int semaphore_step(void *handle, int64_t timeout)
{
    return shoal_semaphore_acquire(handle, timeout);
}

static PyObject *take(SemaphoreObject *self, int64_t timeout)
{
    if (self->semaphore == NULL)
        return sync_raise_not_open((PyObject *)self);
    int result = shoal_semaphore_acquire(self->semaphore, 0);
    if (result == -ETIMEDOUT && timeout > 0)
        result = sync_wait(semaphore_step, self->semaphore, timeout);
    if (result >= 0) {
        self->count++;
        self->last_taker = PyThread_get_thread_ident();
        self->inherited = result == SHOAL_INHERITED;
        Py_RETURN_TRUE;
    }
    if (result == -ETIMEDOUT)
        Py_RETURN_FALSE;
    if (result == SHOAL_EOWNERDIED)
        return sync_raise_owner_died(self->state, 0, "semaphore");
    return result == SYNC_RAISED ? NULL : module_raise(result, "cannot acquire the semaphore");
}

static PyObject *give(SemaphoreObject *self)
{
    if (self->semaphore == NULL)
        return sync_raise_not_open((PyObject *)self);
    const int error = shoal_semaphore_release(self->semaphore, 1);
    if (error == 0) {
        self->count--;
        Py_RETURN_NONE;
    }
    if (error == -EOVERFLOW || error == -EPERM) {
        PyErr_SetString(PyExc_ValueError, error == -EPERM ? "this process holds no unit of the semaphore"
                                                          : "semaphore or lock released too many times");
        return NULL;
    }
    return module_raise(error, "cannot release the semaphore");
}

static PyObject *semaphore_acquire(PyObject *self, PyObject *const *args, Py_ssize_t count, PyObject *names)
{
    int64_t timeout = SHOAL_FOREVER;
    if ((count > 0 || names != NULL) && sync_parse_wait("acquire", args, count, names, false, &timeout) != 0)
        return NULL;
    return take((SemaphoreObject *)self, timeout);
}

static PyObject *semaphore_release(PyObject *self, PyObject *unused)
{
    return give((SemaphoreObject *)self);
}

static PyObject *semaphore_enter(PyObject *self, PyObject *unused)
{
    return take((SemaphoreObject *)self, SHOAL_FOREVER);
}

static PyObject *semaphore_leave(PyObject *self, PyObject *const *args, Py_ssize_t count)
{
    return give((SemaphoreObject *)self);
}

static PyObject *semaphore_reset(PyObject *object, PyObject *unused)
{
    SemaphoreObject *self = (SemaphoreObject *)object;
    if (self->semaphore == NULL)
        return sync_raise_not_open(object);
    uint32_t freed = 0;
    const int error = shoal_semaphore_reset(self->semaphore, &freed);
    if (error == -EINVAL) {
        PyErr_SetString(PyExc_ValueError, "units of a semaphore have no owners unless it is made with owned=True");
        return NULL;
    }
    return error != 0 ? module_raise(error, "cannot reset the semaphore") : PyLong_FromUnsignedLong(freed);
}

/* -------------------------------------------------------- what _semlock is asked ---- */

static PyObject *semaphore_is_mine(PyObject *object, PyObject *unused)
{
    SemaphoreObject *self = (SemaphoreObject *)object;
    return PyBool_FromLong(self->count > 0 && self->last_taker == PyThread_get_thread_ident());
}

static PyObject *semaphore_count(PyObject *self, PyObject *unused)
{
    return PyLong_FromLongLong(((SemaphoreObject *)self)->count);
}

static PyObject *semaphore_value(PyObject *object, PyObject *unused)
{
    SemaphoreObject *self = (SemaphoreObject *)object;
    if (self->semaphore == NULL)
        return sync_raise_not_open(object);
    return PyLong_FromUnsignedLong(shoal_semaphore_value(self->semaphore));
}

static PyObject *semaphore_is_zero(PyObject *object, PyObject *unused)
{
    SemaphoreObject *self = (SemaphoreObject *)object;
    if (self->semaphore == NULL)
        return sync_raise_not_open(object);
    return PyBool_FromLong(shoal_semaphore_value(self->semaphore) == 0);
}

static PyObject *semaphore_after_fork(PyObject *self, PyObject *unused)
{
    ((SemaphoreObject *)self)->count = 0;
    Py_RETURN_NONE;
}

static PyObject *semaphore_home(PyObject *object, PyObject *unused)
{
    SemaphoreObject *self = (SemaphoreObject *)object;
    if (self->semaphore == NULL)
        return sync_raise_not_open(object);
    return Py_BuildValue("(iOI)", shoal_semaphore_fd(self->semaphore), self->group == NULL ? Py_None : self->group,
                         shoal_semaphore_place(self->semaphore));
}

static PyObject *semaphore_get_self(PyObject *self, void *closure)
{
    return Py_NewRef(self);
}

static PyObject *semaphore_get_handle(PyObject *object, void *closure)
{
    SemaphoreObject *self = (SemaphoreObject *)object;
    return self->semaphore == NULL ? sync_raise_not_open(object) : PyLong_FromLong(shoal_semaphore_fd(self->semaphore));
}

static PyObject *semaphore_get_kind(PyObject *self, void *closure)
{
    return PyLong_FromLong(1); /* _multiprocessing.SemLock's for what is not recursive */
}

static PyObject *semaphore_get_maximum(PyObject *object, void *closure)
{
    SemaphoreObject *self = (SemaphoreObject *)object;
    if (self->semaphore == NULL)
        return sync_raise_not_open(object);
    return PyLong_FromUnsignedLong(shoal_semaphore_maximum(self->semaphore));
}

static PyObject *semaphore_get_name(PyObject *self, void *closure)
{
    Py_RETURN_NONE; /* as where multiprocessing's semaphores are unlinked at once */
}

static PyObject *semaphore_get_inherited(PyObject *self, void *closure)
{
    return PyBool_FromLong(((SemaphoreObject *)self)->inherited);
}

static PyObject *semaphore_get_owned(PyObject *self, void *closure)
{
    return PyBool_FromLong(((SemaphoreObject *)self)->owned);
}

static PyMethodDef semaphore_methods[] = {
    {"_open", semaphore_open, METH_VARARGS,
     "_open(value, maximum, owned=False, robust=False, group=None)\n--\n\nMake the semaphore, in a group or for "
     "itself. "
     "Once, by __init__."},
    {"_attach", semaphore_attach, METH_VARARGS,
     "_attach(owned, fd, group, place)\n--\n\nBe the semaphore at this place of a group or, if that is None, behind "
     "this "
     "descriptor. Instead of _open."},
    {"_home", semaphore_home, METH_NOARGS,
     "_home($self)\n--\n\n(descriptor, group or None, place in the group): where a process that does not inherit it "
     "finds "
     "it."},
    {"acquire", (PyCFunction)(void (*)(void))semaphore_acquire, METH_FASTCALL | METH_KEYWORDS,
     "acquire($self, block=True, timeout=None)\n--\n\nTake a unit. False: there was none (in `timeout` seconds, or at "
     "once if not `block`).\n\nRaises shoal.OwnerDied if it is owned, all units are held, and some by processes that "
     "died."},
    {"release", semaphore_release, METH_NOARGS,
     "release($self)\n--\n\nGive a unit back, or add one.\n\nRaises ValueError if there would be more than it may "
     "have, or if it is owned and this process holds none."},
    {"__enter__", semaphore_enter, METH_NOARGS, "__enter__($self)\n--\n\n"},
    {"__exit__", (PyCFunction)(void (*)(void))semaphore_leave, METH_FASTCALL, "__exit__($self, *args)\n--\n\n"},
    {"reset", semaphore_reset, METH_NOARGS,
     "reset($self)\n--\n\nFree the units of processes that died, and return how many.\n\nRaises ValueError if it is "
     "not owned."},
    {"_is_mine", semaphore_is_mine, METH_NOARGS,
     "_is_mine($self)\n--\n\nWhether the calling thread took the last unit."},
    {"_count", semaphore_count, METH_NOARGS, "_count($self)\n--\n\nUnits that this process took, less those it gave."},
    {"_get_value", semaphore_value, METH_NOARGS, "_get_value($self)\n--\n\nHow many units are free."},
    {"_is_zero", semaphore_is_zero, METH_NOARGS, "_is_zero($self)\n--\n\nWhether no unit is free."},
    {"_after_fork", semaphore_after_fork, METH_NOARGS,
     "_after_fork($self)\n--\n\nThis process, a child, took none yet."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef semaphore_properties[] = {
    {"_owned", semaphore_get_owned, NULL, "whether units have owners", NULL},
    {"inherited", semaphore_get_inherited, NULL,
     "whether the unit that this process took last was held by one that died (robust semaphores)", NULL},
    {"_semlock", semaphore_get_self, NULL, "itself", NULL},
    {"handle", semaphore_get_handle, NULL, "its descriptor", NULL},
    {"kind", semaphore_get_kind, NULL, "1", NULL},
    {"maxvalue", semaphore_get_maximum, NULL, "units it may have", NULL},
    {"name", semaphore_get_name, NULL, "None", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot semaphore_slots[] = {
    {Py_tp_doc, "A semaphore between processes, in shared memory."},
    {Py_tp_new, semaphore_new},
    {Py_tp_dealloc, semaphore_dealloc},
    {Py_tp_methods, semaphore_methods},
    {Py_tp_getset, semaphore_properties},
    {0, NULL},
};

static PyType_Spec semaphore_spec = {
    .name = "shoal._engine.Semaphore",
    .basicsize = sizeof(SemaphoreObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
    .slots = semaphore_slots,
};

int semaphore_add(PyObject *module)
{
    module_state *state = module_get_state(module);
    state->semaphore_type = PyType_FromModuleAndSpec(module, &semaphore_spec, NULL);
    return state->semaphore_type == NULL ? -1 : PyModule_AddObjectRef(module, "Semaphore", state->semaphore_type);
}
