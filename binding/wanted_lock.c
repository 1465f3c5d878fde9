/* wanted_lock.c: the type WantedLock: a thread's reentrant lock for the with statement, which tells its holder whether
 * others wait for it.
 *
 * In Python that would be a class with a count. But a signal's handler may raise wherever Python code begins, or has
 * called something: in __enter__ with the lock taken, or in __exit__ before it is given back, and then nobody gets it
 * any more. Nothing of Python's runs here between taking the lock and the body of the with statement.
 */
#include "module.h"

#include <structmember.h>

typedef struct {
    PyObject_HEAD
    PyObject *lock; /* of threading.RLock */
    Py_ssize_t wanted;
} WantedLockObject;

static PyObject *wanted_lock_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    static char *names[] = {NULL};
    if (!PyArg_ParseTupleAndKeywords(args, keywords, ":WantedLock", names))
        return NULL;
    PyObject *threads = PyImport_ImportModule("_thread");
    PyObject *lock = threads == NULL ? NULL : PyObject_CallMethod(threads, "RLock", NULL);
    Py_XDECREF(threads);
    WantedLockObject *self = lock == NULL ? NULL : (WantedLockObject *)type->tp_alloc(type, 0);
    if (self == NULL)
        Py_XDECREF(lock);
    else
        self->lock = lock;
    return (PyObject *)self;
}

static void wanted_lock_dealloc(PyObject *object)
{
    PyTypeObject *type = Py_TYPE(object);
    Py_XDECREF(((WantedLockObject *)object)->lock);
    type->tp_free(object);
    Py_DECREF(type);
}

static PyObject *wanted_lock_enter(PyObject *object, PyObject *unused)
{
    WantedLockObject *self = (WantedLockObject *)object;
    self->wanted++;
    PyObject *result = PyObject_CallMethod(self->lock, "acquire", NULL); /* of C: it has it, or raises */
    self->wanted--;
    return result;
}

static PyObject *wanted_lock_exit(PyObject *object, PyObject *unused)
{
    return PyObject_CallMethod(((WantedLockObject *)object)->lock, "release", NULL);
}

static PyMethodDef wanted_lock_methods[] = {
    {"__enter__", wanted_lock_enter, METH_NOARGS,
     "Wait for the lock and take it; once more, where this thread has it."},
    {"__exit__", wanted_lock_exit, METH_VARARGS, "Give the lock back."},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef wanted_lock_members[] = {
    {"wanted", T_PYSSIZET, offsetof(WantedLockObject, wanted), READONLY, "how many threads wait for it"},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot wanted_lock_slots[] = {
    {Py_tp_doc, "WantedLock()\n--\n\nA reentrant lock of this process's threads that counts who waits for it."},
    {Py_tp_new, wanted_lock_new},
    {Py_tp_dealloc, wanted_lock_dealloc},
    {Py_tp_methods, wanted_lock_methods},
    {Py_tp_members, wanted_lock_members},
    {0, NULL},
};

static PyType_Spec wanted_lock_spec = {
    .name = "shoal._engine.WantedLock",
    .basicsize = sizeof(WantedLockObject),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = wanted_lock_slots,
};

int wanted_lock_add(PyObject *module)
{
    PyObject *type = PyType_FromModuleAndSpec(module, &wanted_lock_spec, NULL);
    const int error = type == NULL ? -1 : PyModule_AddObjectRef(module, "WantedLock", type);
    Py_XDECREF(type);
    return error;
}
