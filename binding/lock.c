/* lock.c: the type Lock: the engine's lock, plain or recursive, with the methods of multiprocessing's.
 *
 * A free lock is taken with the GIL held and without a look at the clock. The object is also its own `_semlock`: it has
 * what programs look for there. __enter__ and __exit__ are in with.c. The rest of multiprocessing's interface is
 * Python's (shoal/multiprocessing/synchronize.py).
 */
#include "sync.h"

#include <errno.h>
#include <unistd.h>

#define KIND_RECURSIVE 0 /* as in _multiprocessing.SemLock */
#define KIND_SEMAPHORE 1

static PyObject *lock_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    PyObject *self = type->tp_alloc(type, 0);
    if (self == NULL)
        return NULL;
    ((LockObject *)self)->state = module_find_state(self);
    if (((LockObject *)self)->state == NULL) {
        Py_DECREF(self);
        return NULL;
    }
    with_begin((LockObject *)self);
    return self;
}

static bool is_open_already(LockObject *self)
{
    if (self->lock != NULL)
        PyErr_SetString(PyExc_ValueError, "the lock is open");
    return self->lock != NULL;
}

static PyObject *lock_open(PyObject *object, PyObject *args)
{
    LockObject *self = (LockObject *)object;
    int recursive, robust;
    PyObject *holder = NULL;
    shoal_sync_group *group;
    if (!PyArg_ParseTuple(args, "pp|O:_open", &recursive, &robust, &holder) || is_open_already(self) ||
        group_find(self->state, holder, &group) != 0)
        return NULL;
    const shoal_lock_options options = {
        .flags = (recursive ? SHOAL_LOCK_RECURSIVE : 0) | (robust ? SHOAL_LOCK_ROBUST : 0),
    };
    const int error =
        group != NULL ? shoal_lock_create_in(group, &options, &self->lock) : shoal_lock_create(&options, &self->lock);
    if (error != 0)
        return module_raise(error, "cannot make a lock");
    self->group = group != NULL ? Py_NewRef(holder) : NULL;
    self->recursive = recursive;
    Py_RETURN_NONE;
}

static PyObject *lock_attach(PyObject *object, PyObject *args)
{
    LockObject *self = (LockObject *)object;
    int recursive, fd;
    unsigned int place;
    PyObject *holder;
    shoal_sync_group *group;
    if (!PyArg_ParseTuple(args, "piOI:_attach", &recursive, &fd, &holder, &place) || is_open_already(self) ||
        group_find(self->state, holder, &group) != 0)
        return NULL;
    const int error =
        group != NULL ? shoal_lock_attach_in(group, place, &self->lock) : shoal_lock_attach(fd, &self->lock);
    if (error != 0)
        return module_raise(error, "cannot attach to a lock");
    self->group = group != NULL ? Py_NewRef(holder) : NULL;
    self->recursive = recursive;
    Py_RETURN_NONE;
}

static void lock_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    with_end((LockObject *)self);
    shoal_lock_close(((LockObject *)self)->lock);
    Py_XDECREF(((LockObject *)self)->group); /* after what lies in it */
    type->tp_free(self);
    Py_DECREF(type);
}

/* -------------------------------------------------------------- taking, giving ---- */

static int lock_step(void *handle, int64_t timeout)
{
    return shoal_lock_acquire(handle, timeout);
}

PyObject *lock_raise_died(LockObject *self)
{
    shoal_lock_holder holder;
    shoal_lock_look(self->lock, &holder);
    return sync_raise_owner_died(self->state, holder.pid, "lock");
}

PyObject *lock_take(LockObject *self, int64_t timeout)
{
    if (self->lock == NULL)
        return sync_raise_not_open((PyObject *)self);
    int result = shoal_lock_acquire(self->lock, 0);
    if (result == 0)
        Py_RETURN_TRUE;
    if (result == -ETIMEDOUT && timeout > 0)
        result = sync_wait(lock_step, self->lock, timeout);
    if (result == 0)
        Py_RETURN_TRUE;
    if (result == SHOAL_INHERITED) {
        self->inherited = true;
        Py_RETURN_TRUE;
    }
    if (result == -ETIMEDOUT)
        Py_RETURN_FALSE;
    if (result == SHOAL_EOWNERDIED)
        return lock_raise_died(self);
    return result == SYNC_RAISED ? NULL : module_raise(result, "cannot acquire the lock");
}

void lock_forget_inheritance(LockObject *self, bool wholly)
{
    if (!self->inherited)
        return;
    shoal_lock_holder holder;
    shoal_lock_look(self->lock, &holder);
    if (!self->recursive || (holder.is_mine && (wholly || holder.count <= 1)))
        self->inherited = false;
}

PyObject *lock_give(LockObject *self)
{
    if (self->lock == NULL)
        return sync_raise_not_open((PyObject *)self);
    lock_forget_inheritance(self, false);
    const int error = shoal_lock_release(self->lock);
    if (error == 0)
        Py_RETURN_NONE;
    if (error == -EPERM) {
        PyErr_SetString(PyExc_AssertionError, "attempt to release recursive lock not owned by thread");
        return NULL;
    }
    if (error == -EINVAL) {
        PyErr_SetString(PyExc_ValueError, "semaphore or lock released too many times");
        return NULL;
    }
    return module_raise(error, "cannot release the lock");
}

PyObject *lock_exit(LockObject *self, PyObject *const *args, Py_ssize_t count)
{
    if (count > 0 && args[0] != Py_None && self->lock != NULL) {
        /* A wait in the block may have found the lock's owner dead, and so have come back without the lock. To release
         * it then would tell all that what it protects is sound. */
        shoal_lock_holder holder;
        shoal_lock_look(self->lock, &holder);
        if (holder.died)
            Py_RETURN_NONE;
    }
    return lock_give(self);
}

static PyObject *lock_acquire(PyObject *self, PyObject *const *args, Py_ssize_t count, PyObject *names)
{
    int64_t timeout = SHOAL_FOREVER;
    if ((count > 0 || names != NULL) && sync_parse_wait("acquire", args, count, names, false, &timeout) != 0)
        return NULL;
    return lock_take((LockObject *)self, timeout);
}

static PyObject *lock_release(PyObject *self, PyObject *unused)
{
    return lock_give((LockObject *)self);
}

static PyObject *lock_reset(PyObject *object, PyObject *unused)
{
    LockObject *self = (LockObject *)object;
    if (self->lock == NULL)
        return sync_raise_not_open(object);
    const int error = shoal_lock_reset(self->lock);
    if (error == 0)
        Py_RETURN_NONE;
    if (error == -EBUSY) {
        PyErr_SetString(PyExc_ValueError, "the lock's owner lives: only a lock whose owner died can be reset");
        return NULL;
    }
    return module_raise(error, "cannot reset the lock");
}

/* -------------------------------------------------------- what _semlock is asked ---- */

/* False with an exception: not open. */
static bool look(PyObject *object, shoal_lock_holder *holder)
{
    LockObject *self = (LockObject *)object;
    if (self->lock == NULL) {
        sync_raise_not_open(object);
        return false;
    }
    shoal_lock_look(self->lock, holder);
    return true;
}

static PyObject *lock_is_mine(PyObject *self, PyObject *unused)
{
    shoal_lock_holder holder;
    return look(self, &holder) ? PyBool_FromLong(holder.is_mine) : NULL;
}

static PyObject *lock_count(PyObject *self, PyObject *unused)
{
    shoal_lock_holder holder;
    if (!look(self, &holder))
        return NULL;
    return PyLong_FromUnsignedLong(holder.pid == getpid() ? holder.count : 0);
}

static PyObject *lock_get_value(PyObject *self, PyObject *unused)
{
    shoal_lock_holder holder;
    return look(self, &holder) ? PyLong_FromLong(holder.pid == 0) : NULL;
}

static PyObject *lock_is_zero(PyObject *self, PyObject *unused)
{
    shoal_lock_holder holder;
    return look(self, &holder) ? PyBool_FromLong(holder.pid != 0) : NULL;
}

static PyObject *lock_home(PyObject *object, PyObject *unused)
{
    LockObject *self = (LockObject *)object;
    if (self->lock == NULL)
        return sync_raise_not_open(object);
    return Py_BuildValue("(iOI)", shoal_lock_fd(self->lock), self->group == NULL ? Py_None : self->group,
                         shoal_lock_place(self->lock));
}

static PyObject *lock_get_self(PyObject *self, void *closure)
{
    return Py_NewRef(self);
}

static PyObject *lock_get_handle(PyObject *object, void *closure)
{
    LockObject *self = (LockObject *)object;
    return self->lock == NULL ? sync_raise_not_open(object) : PyLong_FromLong(shoal_lock_fd(self->lock));
}

static PyObject *lock_get_kind(PyObject *self, void *closure)
{
    return PyLong_FromLong(((LockObject *)self)->recursive ? KIND_RECURSIVE : KIND_SEMAPHORE);
}

static PyObject *lock_get_maximum(PyObject *self, void *closure)
{
    return PyLong_FromLong(1);
}

static PyObject *lock_get_name(PyObject *self, void *closure)
{
    Py_RETURN_NONE; /* as where multiprocessing's semaphores are unlinked at once */
}

static PyObject *lock_get_inherited(PyObject *self, void *closure)
{
    return PyBool_FromLong(((LockObject *)self)->inherited);
}

static PyMethodDef lock_methods[] = {
    {"_open", lock_open, METH_VARARGS,
     "_open(recursive, robust, group=None)\n--\n\nMake the lock, in a group or for itself. Once, by __init__."},
    {"_attach", lock_attach, METH_VARARGS,
     "_attach(recursive, fd, group, place)\n--\n\nBe the lock at this place of a group or, if that is None, behind "
     "this "
     "descriptor. Instead of _open."},
    {"_home", lock_home, METH_NOARGS,
     "_home($self)\n--\n\n(descriptor, group or None, place in the group): where a process that does not inherit it "
     "finds "
     "it."},
    {"acquire", (PyCFunction)(void (*)(void))lock_acquire, METH_FASTCALL | METH_KEYWORDS,
     "acquire($self, block=True, timeout=None)\n--\n\nTake the lock. False: it was not free (in `timeout` seconds, or "
     "at once if not `block`).\n\nRaises shoal.OwnerDied if the process that held it died, unless it is robust."},
    {"release", lock_release, METH_NOARGS,
     "release($self)\n--\n\nGive the lock back.\n\nRaises ValueError if nobody holds it; AssertionError if it is "
     "recursive and the calling thread does not hold it."},
    {"reset", lock_reset, METH_NOARGS,
     "reset($self)\n--\n\nMake a lock whose owner died free again: the caller says that what it protects is "
     "sound.\n\nRaises ValueError if its owner lives."},
    {"_is_mine", lock_is_mine, METH_NOARGS, "_is_mine($self)\n--\n\nWhether the calling thread holds it."},
    {"_count", lock_count, METH_NOARGS, "_count($self)\n--\n\nHow often this process holds it."},
    {"_get_value", lock_get_value, METH_NOARGS, "_get_value($self)\n--\n\n1 if it is free, else 0."},
    {"_is_zero", lock_is_zero, METH_NOARGS, "_is_zero($self)\n--\n\nWhether somebody holds it."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef lock_properties[] = {
    {"inherited", lock_get_inherited, NULL,
     "whether this process, which holds the lock, has it from one that died holding it (robust locks)", NULL},
    {"_semlock", lock_get_self, NULL, "itself", NULL},
    {"handle", lock_get_handle, NULL, "its descriptor", NULL},
    {"kind", lock_get_kind, NULL, "0: recursive, 1: not", NULL},
    {"maxvalue", lock_get_maximum, NULL, "1", NULL},
    {"name", lock_get_name, NULL, "None", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot lock_slots[] = {
    {Py_tp_doc, "A lock between processes, in shared memory."},
    {Py_tp_new, lock_new},
    {Py_tp_dealloc, lock_dealloc},
    {Py_tp_methods, lock_methods},
    {Py_tp_getset, lock_properties},
    {0, NULL},
};

static PyType_Spec lock_spec = {
    .name = "shoal._engine.Lock",
    .basicsize = sizeof(LockObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
    .slots = lock_slots,
};

int lock_add(PyObject *module)
{
    module_state *state = module_get_state(module);
    state->lock_type = PyType_FromModuleAndSpec(module, &lock_spec, NULL);
    if (state->lock_type == NULL || with_add(module, (PyTypeObject *)state->lock_type) != 0)
        return -1;
    return PyModule_AddObjectRef(module, "Lock", state->lock_type);
}
