/* tasks.c: the type Tasks: an iterator that makes the items of a job out of the tasks of a call of Parallel.
 *
 * A task (function, args, kwargs) of a function that the workers have, with positional arguments that the codec writes
 * by itself, becomes (number, *args) here. All else is left to Python's `prepare`, whose items are held until the next
 * one is asked for, and so until they are encoded; then `release` is called with them.
 */
#include "module.h"

#include <structmember.h>

typedef struct {
    PyObject_HEAD
    PyObject *source;    /* an iterator; NULL once it has ended */
    PyObject *functions; /* dict of those that the workers have: id -> (number, function) */
    PyObject *prepare;   /* (task) -> item */
    PyObject *release;   /* (item) */
    PyObject *held;      /* the last item of prepare's, or NULL */
    PyObject *function;  /* the last one that was found, or NULL */
    PyObject *number;    /* of that */
    Py_ssize_t taken;
} TasksObject;

static PyObject *tasks_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"tasks", "functions", "prepare", "release", NULL};
    PyObject *source, *functions, *prepare, *release;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "OO!OO:Tasks", names, &source, &PyDict_Type, &functions, &prepare,
                                     &release))
        return NULL;
    TasksObject *self = (TasksObject *)type->tp_alloc(type, 0);
    if (self == NULL)
        return NULL;
    self->source = PyObject_GetIter(source);
    if (self->source == NULL) {
        Py_DECREF(self);
        return NULL;
    }
    self->functions = Py_NewRef(functions);
    self->prepare = Py_NewRef(prepare);
    self->release = Py_NewRef(release);
    return (PyObject *)self;
}

/* Whether the workers have the function, whose number is in `self->number` then. 1, 0; -1: an exception. */
static int find_number(TasksObject *self, PyObject *function)
{
    if (function == self->function)
        return 1;
    PyObject *key = PyLong_FromVoidPtr(function);
    if (key == NULL)
        return -1;
    PyObject *known = PyDict_GetItemWithError(self->functions, key);
    Py_DECREF(key);
    if (known == NULL)
        return PyErr_Occurred() ? -1 : 0;
    if (!PyTuple_CheckExact(known) || PyTuple_GET_SIZE(known) != 2 || PyTuple_GET_ITEM(known, 1) != function)
        return 0;
    Py_XSETREF(self->number, Py_NewRef(PyTuple_GET_ITEM(known, 0)));
    Py_XSETREF(self->function, Py_NewRef(function));
    return 1;
}

static bool is_plain(PyObject *object)
{
    return PyLong_CheckExact(object) || PyFloat_CheckExact(object) || PyUnicode_CheckExact(object) ||
           object == Py_None || PyBool_Check(object) || PyBytes_CheckExact(object);
}

/* (number, *args) where the task is such a one: new reference; NULL without an exception where it is not. */
static PyObject *make_item(TasksObject *self, PyObject *task)
{
    if (!PyTuple_CheckExact(task) || PyTuple_GET_SIZE(task) != 3)
        return NULL;
    PyObject *args = PyTuple_GET_ITEM(task, 1), *keywords = PyTuple_GET_ITEM(task, 2);
    if (!PyTuple_CheckExact(args) || !PyDict_CheckExact(keywords) || PyDict_GET_SIZE(keywords) != 0)
        return NULL;
    const Py_ssize_t count = PyTuple_GET_SIZE(args);
    for (Py_ssize_t i = 0; i < count; i++) {
        if (!is_plain(PyTuple_GET_ITEM(args, i)))
            return NULL;
    }
    if (find_number(self, PyTuple_GET_ITEM(task, 0)) <= 0)
        return NULL;
    PyObject *item = PyTuple_New(1 + count);
    if (item == NULL)
        return NULL;
    PyTuple_SET_ITEM(item, 0, Py_NewRef(self->number));
    for (Py_ssize_t i = 0; i < count; i++)
        PyTuple_SET_ITEM(item, 1 + i, Py_NewRef(PyTuple_GET_ITEM(args, i)));
    return item;
}

static int release_held(TasksObject *self)
{
    PyObject *item = self->held;
    if (item == NULL)
        return 0;
    self->held = NULL;
    PyObject *result = PyObject_CallOneArg(self->release, item);
    Py_DECREF(item);
    Py_XDECREF(result);
    return result == NULL ? -1 : 0;
}

static PyObject *tasks_next(PyObject *object)
{
    TasksObject *self = (TasksObject *)object;
    if (release_held(self) != 0 || self->source == NULL)
        return NULL;
    PyObject *source = Py_NewRef(self->source); /* close() may be called while the user's code runs */
    PyObject *task = PyIter_Next(source);
    Py_DECREF(source);
    if (task == NULL) {
        Py_CLEAR(self->source);
        return NULL;
    }
    PyObject *item = NULL;
    if (self->source != NULL) { /* else it was closed meanwhile: nobody would release an item */
        self->taken++;
        item = make_item(self, task);
    }
    if (item == NULL && self->source != NULL && !PyErr_Occurred()) {
        item = PyObject_CallOneArg(self->prepare, task);
        self->held = Py_XNewRef(item);
        if (item != NULL && self->source == NULL) { /* as above */
            Py_CLEAR(item);
            (void)release_held(self);
        }
    }
    Py_DECREF(task);
    return item;
}

static PyObject *tasks_close(PyObject *object, PyObject *unused)
{
    TasksObject *self = (TasksObject *)object;
    Py_CLEAR(self->source);
    if (release_held(self) != 0)
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *tasks_get_ended(PyObject *self, void *closure)
{
    return PyBool_FromLong(((TasksObject *)self)->source == NULL);
}

static int tasks_traverse(PyObject *object, visitproc visit, void *arg)
{
    TasksObject *self = (TasksObject *)object;
    Py_VISIT(Py_TYPE(object));
    Py_VISIT(self->source);
    Py_VISIT(self->functions);
    Py_VISIT(self->prepare);
    Py_VISIT(self->release);
    Py_VISIT(self->held);
    Py_VISIT(self->function);
    return 0;
}

static int tasks_clear(PyObject *object)
{
    TasksObject *self = (TasksObject *)object;
    Py_CLEAR(self->source);
    Py_CLEAR(self->functions);
    Py_CLEAR(self->prepare);
    Py_CLEAR(self->release);
    Py_CLEAR(self->held);
    Py_CLEAR(self->function);
    Py_CLEAR(self->number);
    return 0;
}

static void tasks_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    (void)tasks_clear(self);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyMethodDef tasks_methods[] = {
    {"close", tasks_close, METH_NOARGS, "close()\n--\n\nTake no more tasks, and release the last item."},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef tasks_members[] = {
    {"taken", T_PYSSIZET, offsetof(TasksObject, taken), READONLY, "how many tasks were taken so far"},
    {NULL, 0, 0, 0, NULL},
};

static PyGetSetDef tasks_properties[] = {
    {"ended", tasks_get_ended, NULL, "whether there are no more tasks to take", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot tasks_slots[] = {
    {Py_tp_doc, "Tasks(tasks, functions, prepare, release)\n--\n\nThe items of a job, from the tasks of a call."},
    {Py_tp_new, tasks_new},
    {Py_tp_dealloc, tasks_dealloc},
    {Py_tp_traverse, tasks_traverse},
    {Py_tp_clear, tasks_clear},
    {Py_tp_iter, PyObject_SelfIter},
    {Py_tp_iternext, tasks_next},
    {Py_tp_methods, tasks_methods},
    {Py_tp_members, tasks_members},
    {Py_tp_getset, tasks_properties},
    {0, NULL},
};

static PyType_Spec tasks_spec = {
    .name = "shoal._engine.Tasks",
    .basicsize = sizeof(TasksObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = tasks_slots,
};

int tasks_add(PyObject *module)
{
    PyObject *type = PyType_FromModuleAndSpec(module, &tasks_spec, NULL);
    if (type == NULL)
        return -1;
    const int error = PyModule_AddObjectRef(module, "Tasks", type);
    Py_DECREF(type);
    return error;
}
