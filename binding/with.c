/* with.c: the with statement on a lock, which is where most locks are taken.
 *
 * The interpreter asks a lock's type for __enter__ and __exit__ and binds both to the lock, which makes and frees an
 * object each, and costs as much as the lock itself. Here the two bound methods are parts of the lock: to bind is to
 * count a reference.
 *
 * A part's count is 0 while nobody has it. The first reference also holds the lock; when the last one goes, the part is
 * not freed, but lets the lock go. So a lock lives as long as its parts are in use, without a cycle.
 */
#include "sync.h"

#include <structmember.h>

/* A class attribute of Lock: binds to one of its parts. */
typedef struct {
    PyObject_HEAD
    PyTypeObject *lock_type;
    size_t part; /* where in the lock */
} BinderObject;

static LockObject *lock_of_enter(PyObject *part)
{
    return (LockObject *)((char *)part - offsetof(LockObject, enter));
}

static LockObject *lock_of_leave(PyObject *part)
{
    return (LockObject *)((char *)part - offsetof(LockObject, leave));
}

static bool has_no_names(PyObject *names, const char *name)
{
    if (names == NULL || PyTuple_GET_SIZE(names) == 0)
        return true;
    PyErr_Format(PyExc_TypeError, "%s() takes no keyword arguments", name);
    return false;
}

static PyObject *enter(PyObject *part, PyObject *const *args, size_t count, PyObject *names)
{
    if (!has_no_names(names, "__enter__"))
        return NULL;
    if (PyVectorcall_NARGS(count) != 0)
        return PyErr_Format(PyExc_TypeError, "__enter__() takes no arguments (%zd given)", PyVectorcall_NARGS(count));
    return lock_take(lock_of_enter(part), SHOAL_FOREVER);
}

static PyObject *leave(PyObject *part, PyObject *const *args, size_t count, PyObject *names)
{
    if (!has_no_names(names, "__exit__"))
        return NULL;
    return lock_exit(lock_of_leave(part), args, PyVectorcall_NARGS(count));
}

/* ------------------------------------------------------------------------- parts ---- */

static void part_begin(PartObject *part, PyTypeObject *type, vectorcallfunc call)
{
    Py_SET_TYPE(part, (PyTypeObject *)Py_NewRef(type));
    Py_SET_REFCNT(part, 0);
    part->call = call;
}

void with_begin(LockObject *self)
{
    PyTypeObject *type = (PyTypeObject *)self->state->lock_part_type;
    part_begin(&self->enter, type, enter);
    part_begin(&self->leave, type, leave);
}

void with_end(LockObject *self)
{
    if (self->enter.call == NULL)
        return; /* never begun */
    Py_DECREF(Py_TYPE(&self->enter));
    Py_DECREF(Py_TYPE(&self->leave));
}

/* The last reference to a part went. */
static void part_dealloc(PyObject *part)
{
    const bool enters = ((PartObject *)part)->call == enter;
    Py_DECREF(enters ? lock_of_enter(part) : lock_of_leave(part));
}

static PyObject *part_get_self(PyObject *part, void *closure)
{
    const bool enters = ((PartObject *)part)->call == enter;
    return Py_NewRef(enters ? lock_of_enter(part) : lock_of_leave(part));
}

static PyObject *part_get_name(PyObject *part, void *closure)
{
    return PyUnicode_FromString(((PartObject *)part)->call == enter ? "__enter__" : "__exit__");
}

/* For inspect.signature, which asks descriptors for it. */
static PyObject *part_get_signature(PyObject *part, void *closure)
{
    return PyUnicode_FromString(((PartObject *)part)->call == enter ? "()" : "(*args)");
}

/* What is bound already stays so, as a class's attribute too. */
static PyObject *part_get(PyObject *part, PyObject *object, PyObject *type)
{
    return Py_NewRef(part);
}

static PyMemberDef part_members[] = {
    {"__vectorcalloffset__", T_PYSSIZET, offsetof(PartObject, call), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyGetSetDef part_properties[] = {
    {"__self__", part_get_self, NULL, "the lock", NULL},
    {"__name__", part_get_name, NULL, "the method's name", NULL},
    {"__text_signature__", part_get_signature, NULL, "its arguments", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot part_slots[] = {
    {Py_tp_doc, "A lock's method for the with statement, bound to it."},
    {Py_tp_dealloc, part_dealloc},
    {Py_tp_call, PyVectorcall_Call},
    {Py_tp_members, part_members},
    {Py_tp_getset, part_properties},
    {Py_tp_descr_get, part_get},
    {0, NULL},
};

static PyType_Spec part_spec = {
    .name = "shoal._engine.LockPart",
    .basicsize = sizeof(PartObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_VECTORCALL | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = part_slots,
};

/* ----------------------------------------------------------------------- binders ---- */

static PyObject *binder_get(PyObject *binder, PyObject *object, PyObject *type)
{
    const BinderObject *self = (const BinderObject *)binder;
    if (object == NULL)
        return Py_NewRef(binder);
    if (!PyObject_TypeCheck(object, self->lock_type))
        return PyErr_Format(PyExc_TypeError, "a lock's method doesn't apply to a '%.200s' object",
                            Py_TYPE(object)->tp_name);
    PyObject *part = (PyObject *)((char *)object + self->part);
    if (Py_REFCNT(part) == 0) {
        Py_INCREF(object);
        Py_SET_REFCNT(part, 1);
    } else {
        Py_INCREF(part);
    }
    return part;
}

/* Lock.__enter__(lock) */
static PyObject *binder_call(PyObject *binder, PyObject *args, PyObject *keywords)
{
    if (PyTuple_GET_SIZE(args) == 0) {
        PyErr_SetString(PyExc_TypeError, "a lock's method needs a lock as its argument");
        return NULL;
    }
    PyObject *part = binder_get(binder, PyTuple_GET_ITEM(args, 0), NULL);
    if (part == NULL)
        return NULL;
    PyObject *rest = PyTuple_GetSlice(args, 1, PyTuple_GET_SIZE(args));
    PyObject *result = rest == NULL ? NULL : PyObject_Call(part, rest, keywords);
    Py_XDECREF(rest);
    Py_DECREF(part);
    return result;
}

static PyObject *binder_get_name(PyObject *binder, void *closure)
{
    return PyUnicode_FromString(((BinderObject *)binder)->part == offsetof(LockObject, enter) ? "__enter__"
                                                                                              : "__exit__");
}

static PyObject *binder_get_signature(PyObject *binder, void *closure)
{
    return PyUnicode_FromString(((BinderObject *)binder)->part == offsetof(LockObject, enter) ? "($self)"
                                                                                              : "($self, *args)");
}

static PyGetSetDef binder_properties[] = {
    {"__name__", binder_get_name, NULL, "the method's name", NULL},
    {"__text_signature__", binder_get_signature, NULL, "its arguments", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static int binder_traverse(PyObject *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(((BinderObject *)self)->lock_type);
    return 0;
}

static int binder_clear(PyObject *self)
{
    /* The type stays: it is looked at with each use, and all cycles through here go through the module as well. */
    return 0;
}

static void binder_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    Py_XDECREF(((BinderObject *)self)->lock_type);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyType_Slot binder_slots[] = {
    {Py_tp_doc, "A lock's method for the with statement."},
    {Py_tp_dealloc, binder_dealloc},
    {Py_tp_traverse, binder_traverse},
    {Py_tp_clear, binder_clear},
    {Py_tp_call, binder_call},
    {Py_tp_descr_get, binder_get},
    {Py_tp_getset, binder_properties},
    {0, NULL},
};

static PyType_Spec binder_spec = {
    .name = "shoal._engine.LockMethod",
    .basicsize = sizeof(BinderObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = binder_slots,
};

static int add_binder(PyTypeObject *binder_type, PyTypeObject *lock_type, const char *name, size_t part)
{
    BinderObject *binder = (BinderObject *)binder_type->tp_alloc(binder_type, 0);
    if (binder == NULL)
        return -1;
    binder->lock_type = (PyTypeObject *)Py_NewRef(lock_type);
    binder->part = part;
    const int error = PyObject_SetAttrString((PyObject *)lock_type, name, (PyObject *)binder);
    Py_DECREF(binder);
    return error;
}

int with_add(PyObject *module, PyTypeObject *lock_type)
{
    module_state *state = module_get_state(module);
    state->lock_part_type = PyType_FromModuleAndSpec(module, &part_spec, NULL);
    PyObject *binder_type = PyType_FromModuleAndSpec(module, &binder_spec, NULL);
    int error = -1;
    if (state->lock_part_type != NULL && binder_type != NULL &&
        add_binder((PyTypeObject *)binder_type, lock_type, "__enter__", offsetof(LockObject, enter)) == 0)
        error = add_binder((PyTypeObject *)binder_type, lock_type, "__exit__", offsetof(LockObject, leave));
    Py_XDECREF(binder_type);
    return error;
}
