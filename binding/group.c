/* group.c: the type SyncGroup: a region that many locks, semaphores and events lie in. Each of these holds a reference
 * to its group.
 */
#include "sync.h"

#include <errno.h>
#include <sys/stat.h>

typedef struct {
    PyObject_HEAD
    shoal_sync_group *group;
} GroupObject;

static PyObject *group_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"", NULL};
    int fd = -1;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "|i:SyncGroup", names, &fd))
        return NULL;
    GroupObject *self = (GroupObject *)type->tp_alloc(type, 0);
    if (self == NULL)
        return NULL;
    const int error = fd >= 0 ? shoal_sync_group_attach(fd, &self->group) : shoal_sync_group_create(&self->group);
    if (error != 0) {
        Py_DECREF(self);
        return module_raise(error, "cannot make a group of locks");
    }
    return (PyObject *)self;
}

static void group_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    shoal_sync_group_close(((GroupObject *)self)->group);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyObject *group_get_fd(PyObject *self, void *closure)
{
    return PyLong_FromLong(shoal_sync_group_fd(((GroupObject *)self)->group));
}

static PyObject *group_get_number(PyObject *self, void *closure)
{
    struct stat status;
    if (fstat(shoal_sync_group_fd(((GroupObject *)self)->group), &status) != 0)
        return PyErr_SetFromErrno(PyExc_OSError);
    return PyLong_FromUnsignedLongLong((unsigned long long)status.st_ino);
}

int group_find(module_state *state, PyObject *object, shoal_sync_group **group)
{
    *group = NULL;
    if (object == NULL || object == Py_None)
        return 0;
    if (!PyObject_TypeCheck(object, (PyTypeObject *)state->group_type)) {
        PyErr_Format(PyExc_TypeError, "expected a SyncGroup, not %.200s", Py_TYPE(object)->tp_name);
        return -1;
    }
    *group = ((GroupObject *)object)->group;
    return 0;
}

static PyGetSetDef group_properties[] = {
    {"fd", group_get_fd, NULL, "its descriptor", NULL},
    {"number", group_get_number, NULL, "what tells it from all groups that there are now, in every process", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot group_slots[] = {
    {Py_tp_doc, "SyncGroup(fd=-1, /)\n--\n\nA region for many locks: a new one, or the one behind a descriptor."},
    {Py_tp_new, group_new},
    {Py_tp_dealloc, group_dealloc},
    {Py_tp_getset, group_properties},
    {0, NULL},
};

static PyType_Spec group_spec = {
    .name = "shoal._engine.SyncGroup",
    .basicsize = sizeof(GroupObject),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = group_slots,
};

int group_add(PyObject *module)
{
    module_state *state = module_get_state(module);
    state->group_type = PyType_FromModuleAndSpec(module, &group_spec, NULL);
    return state->group_type == NULL ? -1 : PyModule_AddObjectRef(module, "SyncGroup", state->group_type);
}
