/* delayed.c: what joblib's `delayed` returns: called, it gives the call as a task (function, args, kwargs).
 *
 * Programs make one for each task, and call it once: both must cost next to nothing, as with short tasks they are most
 * of what a call of Parallel does in the program's own thread. Otherwise it looks like the function.
 */
#include "module.h"

#include <string.h>
#include <structmember.h>

typedef struct {
    PyObject_HEAD
    vectorcallfunc call;
    PyObject *function;
    PyObject *weak;
} DelayedObject;

/* (function, args, kwargs) of such a call. */
static PyObject *delayed_call(PyObject *self, PyObject *const *args, size_t flagged, PyObject *names)
{
    const Py_ssize_t count = PyVectorcall_NARGS(flagged);
    const Py_ssize_t named = names == NULL ? 0 : PyTuple_GET_SIZE(names);
    PyObject *task = PyTuple_New(3), *positional = PyTuple_New(count), *keywords = PyDict_New();
    if (task == NULL || positional == NULL || keywords == NULL)
        goto failed;
    for (Py_ssize_t i = 0; i < count; i++)
        PyTuple_SET_ITEM(positional, i, Py_NewRef(args[i]));
    for (Py_ssize_t i = 0; i < named; i++) {
        if (PyDict_SetItem(keywords, PyTuple_GET_ITEM(names, i), args[count + i]) != 0)
            goto failed;
    }
    PyTuple_SET_ITEM(task, 0, Py_NewRef(((DelayedObject *)self)->function));
    PyTuple_SET_ITEM(task, 1, positional);
    PyTuple_SET_ITEM(task, 2, keywords);
    return task;

failed:
    Py_XDECREF(task);
    Py_XDECREF(positional);
    Py_XDECREF(keywords);
    return NULL;
}

/* delayed(function) */
static PyObject *delayed(PyObject *module, PyObject *const *args, Py_ssize_t count, PyObject *names)
{
    const Py_ssize_t named = names == NULL ? 0 : PyTuple_GET_SIZE(names);
    if (count + named != 1 ||
        (named == 1 && PyUnicode_CompareWithASCIIString(PyTuple_GET_ITEM(names, 0), "function") != 0)) {
        PyErr_SetString(PyExc_TypeError, "delayed() takes one argument, 'function'");
        return NULL;
    }
    PyTypeObject *type = (PyTypeObject *)module_get_state(module)->delayed_type;
    DelayedObject *self = PyObject_GC_New(DelayedObject, type);
    if (self == NULL)
        return NULL;
    self->call = delayed_call;
    self->function = Py_NewRef(args[0]);
    self->weak = NULL;
    PyObject_GC_Track(self);
    return (PyObject *)self;
}

/* ---------------------------------------------------------- looking like the function ---- */

/* Names with underscores that are the function's all the same. The others are asked for by protocols, which the
 * function's own answer would mislead. */
static bool is_function_s(PyObject *name)
{
    static const char *const shown[] = {"__name__",   "__qualname__",    "__doc__",
                                        "__module__", "__annotations__", "__type_params__"};
    const char *text = PyUnicode_AsUTF8(name);
    if (text == NULL) {
        PyErr_Clear();
        return false;
    }
    for (size_t i = 0; i < sizeof shown / sizeof shown[0]; i++) {
        if (strcmp(text, shown[i]) == 0)
            return true;
    }
    return strncmp(text, "__", 2) != 0;
}

static PyObject *delayed_getattro(PyObject *self, PyObject *name)
{
    PyObject *function = ((DelayedObject *)self)->function;
    if (PyUnicode_Check(name) && is_function_s(name)) {
        PyObject *value = PyObject_GetAttr(function, name);
        if (value != NULL || !PyErr_ExceptionMatches(PyExc_AttributeError))
            return value;
        PyErr_Clear();
    }
    return PyObject_GenericGetAttr(self, name);
}

/* In a class it is a method, as the function is. */
static PyObject *delayed_get(PyObject *self, PyObject *instance, PyObject *type)
{
    return instance == NULL || instance == Py_None ? Py_NewRef(self) : PyMethod_New(self, instance);
}

static PyObject *delayed_reduce(PyObject *self, PyObject *unused)
{
    PyObject *module = PyType_GetModule(Py_TYPE(self));
    PyObject *maker = module == NULL ? NULL : PyObject_GetAttrString(module, "delayed");
    return maker == NULL ? NULL : Py_BuildValue("N(O)", maker, ((DelayedObject *)self)->function);
}

static int delayed_traverse(PyObject *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(((DelayedObject *)self)->function);
    return 0;
}

static int delayed_clear(PyObject *self)
{
    Py_CLEAR(((DelayedObject *)self)->function);
    return 0;
}

static void delayed_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    if (((DelayedObject *)self)->weak != NULL)
        PyObject_ClearWeakRefs(self);
    Py_XDECREF(((DelayedObject *)self)->function);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyMethodDef delayed_methods[] = {
    {"__reduce__", delayed_reduce, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef delayed_members[] = {
    {"__vectorcalloffset__", T_PYSSIZET, offsetof(DelayedObject, call), READONLY, NULL},
    {"__weaklistoffset__", T_PYSSIZET, offsetof(DelayedObject, weak), READONLY, NULL},
    {"__wrapped__", T_OBJECT, offsetof(DelayedObject, function), READONLY, "the function"},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot delayed_slots[] = {
    {Py_tp_doc, "A function whose calls are captured as tasks."},
    {Py_tp_dealloc, delayed_dealloc},
    {Py_tp_traverse, delayed_traverse},
    {Py_tp_clear, delayed_clear},
    {Py_tp_call, PyVectorcall_Call},
    {Py_tp_getattro, delayed_getattro},
    {Py_tp_descr_get, delayed_get},
    {Py_tp_methods, delayed_methods},
    {Py_tp_members, delayed_members},
    {0, NULL},
};

static PyType_Spec delayed_spec = {
    .name = "shoal._engine.Delayed",
    .basicsize = sizeof(DelayedObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_HAVE_VECTORCALL | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = delayed_slots,
};

static PyMethodDef functions[] = {
    {"delayed", (PyCFunction)(void (*)(void))delayed, METH_FASTCALL | METH_KEYWORDS,
     "delayed($module, /, function)\n--\n\n"
     "Capture a call: `delayed(f)(x, y=1)` is the task of calling `f(x, y=1)`, for `Parallel`."},
    {NULL, NULL, 0, NULL},
};

int delayed_add(PyObject *module)
{
    module_state *state = module_get_state(module);
    state->delayed_type = PyType_FromModuleAndSpec(module, &delayed_spec, NULL);
    if (state->delayed_type == NULL || PyModule_AddFunctions(module, functions) != 0)
        return -1;
    return PyModule_AddObjectRef(module, "Delayed", state->delayed_type);
}
