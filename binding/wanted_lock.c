/* wanted_lock.c: the type WantedLock: a thread's reentrant lock for the with statement, which tells its holder whether
 * others wait for it, and may ask those whether they are to go on waiting.
 *
 * In Python that would be a class with a count. But a signal's handler may raise wherever Python code begins, or has
 * called something: in __enter__ with the lock taken, or in __exit__ before it is given back, and then nobody gets it
 * any more. Nothing of Python's runs here between taking the lock and the body of the with statement.
 */
#include "module.h"

#include <errno.h>
#include <structmember.h>

#define PATIENCE 0.05 /* s at the lock, after which and after each of which `ask` is called */

typedef struct {
    PyObject_HEAD
    PyObject *lock; /* of threading.RLock */
    PyObject *ask;  /* NULL, or whether one that waits is to go on */
    Py_ssize_t wanted;
} WantedLockObject;

static PyObject *wanted_lock_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"ask", NULL};
    PyObject *ask = Py_None;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "|O:WantedLock", names, &ask))
        return NULL;
    PyObject *threads = PyImport_ImportModule("_thread");
    PyObject *lock = threads == NULL ? NULL : PyObject_CallMethod(threads, "RLock", NULL);
    Py_XDECREF(threads);
    WantedLockObject *self = lock == NULL ? NULL : (WantedLockObject *)type->tp_alloc(type, 0);
    if (self == NULL)
        Py_XDECREF(lock);
    else {
        self->lock = lock;
        self->ask = ask == Py_None ? NULL : Py_NewRef(ask);
    }
    return (PyObject *)self;
}

static int wanted_lock_traverse(PyObject *object, visitproc visit, void *arg)
{
    WantedLockObject *self = (WantedLockObject *)object;
    Py_VISIT(Py_TYPE(object));
    Py_VISIT(self->lock);
    Py_VISIT(self->ask);
    return 0;
}

static int wanted_lock_clear(PyObject *object)
{
    Py_CLEAR(((WantedLockObject *)object)->ask);
    return 0;
}

static void wanted_lock_dealloc(PyObject *object)
{
    PyTypeObject *type = Py_TYPE(object);
    PyObject_GC_UnTrack(object);
    (void)wanted_lock_clear(object);
    Py_XDECREF(((WantedLockObject *)object)->lock);
    type->tp_free(object);
    Py_DECREF(type);
}

/* True once it has the lock; NULL with an exception. */
static PyObject *acquire_asking(WantedLockObject *self)
{
    for (;;) {
        PyObject *got = PyObject_CallMethod(self->lock, "acquire", "id", 1, PATIENCE);
        if (got == NULL || got == Py_True)
            return got;
        Py_DECREF(got);
        PyObject *answer = PyObject_CallNoArgs(self->ask);
        const int goes_on = answer == NULL ? -1 : PyObject_IsTrue(answer);
        Py_XDECREF(answer);
        if (goes_on == 0) {
            errno = ECANCELED;
            return PyErr_SetFromErrno(PyExc_OSError);
        }
        if (goes_on < 0)
            return NULL;
    }
}

static PyObject *wanted_lock_enter(PyObject *object, PyObject *unused)
{
    WantedLockObject *self = (WantedLockObject *)object;
    self->wanted++;
    /* of C: it has it, or raises */
    PyObject *result = self->ask != NULL ? acquire_asking(self) : PyObject_CallMethod(self->lock, "acquire", NULL);
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
    {Py_tp_doc, "WantedLock(ask=None)\n--\n\nA reentrant lock of this process's threads that counts who waits for it.\n"
                "ask() is called now and then while one waits: false ends that with OSError (ECANCELED)."},
    {Py_tp_new, wanted_lock_new},
    {Py_tp_traverse, wanted_lock_traverse},
    {Py_tp_clear, wanted_lock_clear},
    {Py_tp_dealloc, wanted_lock_dealloc},
    {Py_tp_methods, wanted_lock_methods},
    {Py_tp_members, wanted_lock_members},
    {0, NULL},
};

static PyType_Spec wanted_lock_spec = {
    .name = "shoal._engine.WantedLock",
    .basicsize = sizeof(WantedLockObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .slots = wanted_lock_slots,
};

int wanted_lock_add(PyObject *module)
{
    PyObject *type = PyType_FromModuleAndSpec(module, &wanted_lock_spec, NULL);
    const int error = type == NULL ? -1 : PyModule_AddObjectRef(module, "WantedLock", type);
    Py_XDECREF(type);
    return error;
}
