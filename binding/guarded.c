/* guarded.c: the types Guarded and GuardedField: what multiprocessing.sharedctypes' synchronized wrappers rest on.
 *
 * A Guarded holds a ctypes object and the lock that guards it. A GuardedField is a class attribute, such as `value`,
 * that is got and set of the ctypes object while the lock is held. Where the lock is one of ours it is taken and given
 * without a call of Python's; any other is asked by its `acquire` and `release`.
 */
#include "sync.h"

#include <structmember.h>

typedef struct {
    PyObject_HEAD
    PyObject *object;            /* NULL until _bind, as are all */
    PyObject *lock;              /* anything with acquire and release */
    PyObject *acquire, *release; /* the lock's */
    LockObject *own;             /* the lock, where nothing of its acquire and release is another's; not counted */
} GuardedObject;

typedef struct {
    PyObject_HEAD
    PyTypeObject *guarded; /* the type above */
    PyObject *name;
} FieldObject;

static PyObject *guarded_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    return type->tp_alloc(type, 0);
}

static PyObject *guarded_bind(PyObject *object, PyObject *args)
{
    GuardedObject *self = (GuardedObject *)object;
    PyObject *guarded, *lock;
    int is_own;
    if (!PyArg_ParseTuple(args, "OOp:_bind", &guarded, &lock, &is_own))
        return NULL;
    module_state *state = module_find_state(object);
    if (state == NULL)
        return NULL;
    if (is_own && !PyObject_TypeCheck(lock, (PyTypeObject *)state->lock_type)) {
        PyErr_SetString(PyExc_TypeError, "not a Lock of the engine");
        return NULL;
    }
    PyObject *acquire = PyObject_GetAttrString(lock, "acquire");
    if (acquire == NULL)
        return NULL;
    PyObject *release = PyObject_GetAttrString(lock, "release");
    if (release == NULL) {
        Py_DECREF(acquire);
        return NULL;
    }
    if (self->lock != NULL) { /* another thread may wait for that, without a reference */
        Py_DECREF(acquire);
        Py_DECREF(release);
        PyErr_SetString(PyExc_ValueError, "the object has its lock");
        return NULL;
    }
    self->object = Py_NewRef(guarded);
    self->lock = Py_NewRef(lock);
    self->acquire = acquire;
    self->release = release;
    self->own = is_own ? (LockObject *)lock : NULL;
    Py_RETURN_NONE;
}

static int guarded_traverse(PyObject *object, visitproc visit, void *arg)
{
    GuardedObject *self = (GuardedObject *)object;
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->object);
    Py_VISIT(self->lock);
    Py_VISIT(self->acquire);
    Py_VISIT(self->release);
    return 0;
}

static int guarded_clear(PyObject *object)
{
    GuardedObject *self = (GuardedObject *)object;
    self->own = NULL;
    Py_CLEAR(self->object);
    Py_CLEAR(self->lock);
    Py_CLEAR(self->acquire);
    Py_CLEAR(self->release);
    return 0;
}

static void guarded_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    (void)guarded_clear(self);
    type->tp_free(self);
    Py_DECREF(type);
}

/* 0, or -1 with an exception: the lock is held, or is not. */
static int take(GuardedObject *self)
{
    if (self->lock == NULL) {
        sync_raise_not_open((PyObject *)self);
        return -1;
    }
    PyObject *taken = self->own != NULL ? lock_take(self->own, SHOAL_FOREVER) : PyObject_CallNoArgs(self->acquire);
    Py_XDECREF(taken);
    return taken == NULL ? -1 : 0;
}

static int give(GuardedObject *self)
{
    PyObject *given = self->own != NULL ? lock_give(self->own) : PyObject_CallNoArgs(self->release);
    Py_XDECREF(given);
    return given == NULL ? -1 : 0;
}

/* Give the lock back after something went wrong, whose exception is set and stays. */
static void give_after_error(GuardedObject *self)
{
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    if (give(self) != 0)
        PyErr_WriteUnraisable((PyObject *)self);
    PyErr_Restore(type, value, traceback);
}

static PyObject *guarded_get_object(PyObject *object, PyObject *unused)
{
    GuardedObject *self = (GuardedObject *)object;
    return self->object == NULL ? sync_raise_not_open(object) : Py_NewRef(self->object);
}

static PyObject *guarded_get_lock(PyObject *object, PyObject *unused)
{
    GuardedObject *self = (GuardedObject *)object;
    return self->lock == NULL ? sync_raise_not_open(object) : Py_NewRef(self->lock);
}

static PyObject *guarded_enter(PyObject *object, PyObject *unused)
{
    GuardedObject *self = (GuardedObject *)object;
    if (self->own != NULL)
        return lock_take(self->own, SHOAL_FOREVER);
    return self->lock == NULL ? sync_raise_not_open(object) : PyObject_CallMethod(self->lock, "__enter__", NULL);
}

static PyObject *guarded_leave(PyObject *object, PyObject *const *args, Py_ssize_t count)
{
    GuardedObject *self = (GuardedObject *)object;
    if (self->own != NULL)
        return lock_exit(self->own, args, count);
    if (self->lock == NULL)
        return sync_raise_not_open(object);
    PyObject *leave = PyObject_GetAttrString(self->lock, "__exit__");
    if (leave == NULL)
        return NULL;
    PyObject *result = PyObject_Vectorcall(leave, args, (size_t)count, NULL);
    Py_DECREF(leave);
    return result;
}

static PyMethodDef guarded_methods[] = {
    {"_bind", guarded_bind, METH_VARARGS,
     "_bind(obj, lock, is_own)\n--\n\nGuard `obj` by `lock`. Once, by __init__. is_own: `lock` is an engine's Lock "
     "whose "
     "methods nobody replaced."},
    {"get_obj", guarded_get_object, METH_NOARGS, "get_obj($self)\n--\n\nThe object without its lock."},
    {"get_lock", guarded_get_lock, METH_NOARGS, "get_lock($self)\n--\n\nThe lock."},
    {"__enter__", guarded_enter, METH_NOARGS, "__enter__($self)\n--\n\n"},
    {"__exit__", (PyCFunction)(void (*)(void))guarded_leave, METH_FASTCALL, "__exit__($self, *args)\n--\n\n"},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef guarded_members[] = {
    {"_obj", T_OBJECT_EX, offsetof(GuardedObject, object), READONLY, "the object"},
    {"_lock", T_OBJECT_EX, offsetof(GuardedObject, lock), READONLY, "the lock"},
    {"acquire", T_OBJECT_EX, offsetof(GuardedObject, acquire), READONLY, "the lock's"},
    {"release", T_OBJECT_EX, offsetof(GuardedObject, release), READONLY, "the lock's"},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot guarded_slots[] = {
    {Py_tp_doc, "An object and the lock that guards it."},
    {Py_tp_new, guarded_new},
    {Py_tp_dealloc, guarded_dealloc},
    {Py_tp_traverse, guarded_traverse},
    {Py_tp_clear, guarded_clear},
    {Py_tp_methods, guarded_methods},
    {Py_tp_members, guarded_members},
    {0, NULL},
};

static PyType_Spec guarded_spec = {
    .name = "shoal._engine.Guarded",
    .basicsize = sizeof(GuardedObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
    .slots = guarded_slots,
};

/* ------------------------------------------------------------------------ fields ---- */

static PyObject *field_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"", NULL};
    PyObject *name;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "U:GuardedField", names, &name))
        return NULL;
    module_state *state = module_state_of_type(type);
    if (state == NULL)
        return NULL;
    FieldObject *self = (FieldObject *)type->tp_alloc(type, 0);
    if (self == NULL)
        return NULL;
    self->guarded = (PyTypeObject *)Py_NewRef(state->guarded_type);
    self->name = Py_NewRef(name);
    PyUnicode_InternInPlace(&self->name);
    return (PyObject *)self;
}

static int field_traverse(PyObject *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(((FieldObject *)self)->guarded);
    return 0;
}

static int field_clear(PyObject *self)
{
    Py_CLEAR(((FieldObject *)self)->guarded);
    return 0;
}

static void field_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    (void)field_clear(self);
    Py_XDECREF(((FieldObject *)self)->name);
    type->tp_free(self);
    Py_DECREF(type);
}

static GuardedObject *holder_of(FieldObject *self, PyObject *object)
{
    if (self->guarded != NULL && PyObject_TypeCheck(object, self->guarded))
        return (GuardedObject *)object;
    PyErr_Format(PyExc_TypeError, "'%U' is a field of Guarded objects, not of '%.200s'", self->name,
                 Py_TYPE(object)->tp_name);
    return NULL;
}

static PyObject *field_get(PyObject *self, PyObject *object, PyObject *type)
{
    if (object == NULL)
        return Py_NewRef(self);
    GuardedObject *holder = holder_of((FieldObject *)self, object);
    if (holder == NULL || take(holder) != 0)
        return NULL;
    PyObject *value = PyObject_GetAttr(holder->object, ((FieldObject *)self)->name);
    if (value == NULL)
        give_after_error(holder);
    else if (give(holder) != 0)
        Py_CLEAR(value);
    return value;
}

static int field_set(PyObject *self, PyObject *object, PyObject *value)
{
    GuardedObject *holder = holder_of((FieldObject *)self, object);
    if (holder == NULL)
        return -1;
    if (value == NULL) {
        PyErr_Format(PyExc_AttributeError, "'%U' cannot be deleted", ((FieldObject *)self)->name);
        return -1;
    }
    if (take(holder) != 0)
        return -1;
    if (PyObject_SetAttr(holder->object, ((FieldObject *)self)->name, value) == 0)
        return give(holder);
    give_after_error(holder);
    return -1;
}

static PyType_Slot field_slots[] = {
    {Py_tp_doc, "GuardedField(name, /)\n--\n\nA class attribute of Guarded: that of its object, under the lock."},
    {Py_tp_new, field_new},
    {Py_tp_dealloc, field_dealloc},
    {Py_tp_traverse, field_traverse},
    {Py_tp_clear, field_clear},
    {Py_tp_descr_get, field_get},
    {Py_tp_descr_set, field_set},
    {0, NULL},
};

static PyType_Spec field_spec = {
    .name = "shoal._engine.GuardedField",
    .basicsize = sizeof(FieldObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .slots = field_slots,
};

int guarded_add(PyObject *module)
{
    module_state *state = module_get_state(module);
    state->guarded_type = PyType_FromModuleAndSpec(module, &guarded_spec, NULL);
    if (state->guarded_type == NULL || PyModule_AddObjectRef(module, "Guarded", state->guarded_type) != 0)
        return -1;
    PyObject *field_type = PyType_FromModuleAndSpec(module, &field_spec, NULL);
    if (field_type == NULL)
        return -1;
    const int error = PyModule_AddObjectRef(module, "GuardedField", field_type);
    Py_DECREF(field_type);
    return error;
}
