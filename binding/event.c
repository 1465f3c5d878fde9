/* event.c: the type Event: the engine's event with the methods of multiprocessing's. */
#include "sync.h"

#include <errno.h>

typedef struct {
    PyObject_HEAD
    shoal_event *event; /* NULL until _open or _attach */
    PyObject *group;    /* that it lies in, or NULL */
} EventObject;

static PyObject *event_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    return type->tp_alloc(type, 0);
}

/* The group that _open and _attach are given. */
static int find_group(EventObject *self, PyObject *holder, shoal_sync_group **group)
{
    if (self->event != NULL) {
        PyErr_SetString(PyExc_ValueError, "the event is open");
        return -1;
    }
    module_state *state = module_find_state((PyObject *)self);
    return state == NULL ? -1 : group_find(state, holder, group);
}

static PyObject *event_open(PyObject *object, PyObject *args)
{
    EventObject *self = (EventObject *)object;
    PyObject *holder = NULL;
    shoal_sync_group *group;
    if (!PyArg_ParseTuple(args, "|O:_open", &holder) || find_group(self, holder, &group) != 0)
        return NULL;
    const int error = group != NULL ? shoal_event_create_in(group, &self->event) : shoal_event_create(&self->event);
    if (error != 0)
        return module_raise(error, "cannot make an event");
    self->group = group != NULL ? Py_NewRef(holder) : NULL;
    Py_RETURN_NONE;
}

static PyObject *event_attach(PyObject *object, PyObject *args)
{
    EventObject *self = (EventObject *)object;
    int fd;
    unsigned int place;
    PyObject *holder;
    shoal_sync_group *group;
    if (!PyArg_ParseTuple(args, "iOI:_attach", &fd, &holder, &place) || find_group(self, holder, &group) != 0)
        return NULL;
    const int error =
        group != NULL ? shoal_event_attach_in(group, place, &self->event) : shoal_event_attach(fd, &self->event);
    if (error != 0)
        return module_raise(error, "cannot attach to an event");
    self->group = group != NULL ? Py_NewRef(holder) : NULL;
    Py_RETURN_NONE;
}

static void event_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    shoal_event_close(((EventObject *)self)->event);
    Py_XDECREF(((EventObject *)self)->group); /* after what lies in it */
    type->tp_free(self);
    Py_DECREF(type);
}

static PyObject *event_is_set(PyObject *object, PyObject *unused)
{
    EventObject *self = (EventObject *)object;
    return self->event == NULL ? sync_raise_not_open(object) : PyBool_FromLong(shoal_event_is_set(self->event));
}

static PyObject *event_set(PyObject *object, PyObject *unused)
{
    EventObject *self = (EventObject *)object;
    if (self->event == NULL)
        return sync_raise_not_open(object);
    shoal_event_set(self->event);
    Py_RETURN_NONE;
}

static PyObject *event_clear(PyObject *object, PyObject *unused)
{
    EventObject *self = (EventObject *)object;
    if (self->event == NULL)
        return sync_raise_not_open(object);
    shoal_event_clear(self->event);
    Py_RETURN_NONE;
}

static int event_step(void *handle, int64_t timeout)
{
    return shoal_event_wait(handle, timeout);
}

static PyObject *event_wait(PyObject *object, PyObject *const *args, Py_ssize_t count, PyObject *names)
{
    EventObject *self = (EventObject *)object;
    int64_t timeout = SHOAL_FOREVER;
    if (sync_parse_wait("wait", args, count, names, true, &timeout) != 0)
        return NULL;
    if (self->event == NULL)
        return sync_raise_not_open(object);
    int result = shoal_event_wait(self->event, 0);
    if (result == -ETIMEDOUT && timeout > 0)
        result = sync_wait(event_step, self->event, timeout);
    if (result == 0)
        Py_RETURN_TRUE;
    if (result == -ETIMEDOUT)
        Py_RETURN_FALSE;
    return result == SYNC_RAISED ? NULL : module_raise(result, "cannot wait for the event");
}

static PyObject *event_home(PyObject *object, PyObject *unused)
{
    EventObject *self = (EventObject *)object;
    if (self->event == NULL)
        return sync_raise_not_open(object);
    return Py_BuildValue("(iOI)", shoal_event_fd(self->event), self->group == NULL ? Py_None : self->group,
                         shoal_event_place(self->event));
}

static PyMethodDef event_methods[] = {
    {"_open", event_open, METH_VARARGS,
     "_open(group=None)\n--\n\nMake the event, in a group or for itself. Once, by __init__."},
    {"_attach", event_attach, METH_VARARGS,
     "_attach(fd, group, place)\n--\n\nBe the event at this place of a group or, if that is None, behind this "
     "descriptor. Instead of _open."},
    {"_home", event_home, METH_NOARGS,
     "_home()\n--\n\n(descriptor, group or None, place in the group): where a process that does not inherit it finds "
     "it."},
    {"is_set", event_is_set, METH_NOARGS, "is_set($self)\n--\n\nWhether the flag is set."},
    {"set", event_set, METH_NOARGS, "set($self)\n--\n\nSet the flag, and wake all who wait for it."},
    {"clear", event_clear, METH_NOARGS, "clear($self)\n--\n\nClear the flag."},
    {"wait", (PyCFunction)(void (*)(void))event_wait, METH_FASTCALL | METH_KEYWORDS,
     "wait($self, timeout=None)\n--\n\nWait until the flag is set. False: it was not in `timeout` seconds."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot event_slots[] = {
    {Py_tp_doc, "A flag between processes, in shared memory, that can be waited for."},
    {Py_tp_new, event_new},
    {Py_tp_dealloc, event_dealloc},
    {Py_tp_methods, event_methods},
    {0, NULL},
};

static PyType_Spec event_spec = {
    .name = "shoal._engine.Event",
    .basicsize = sizeof(EventObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
    .slots = event_slots,
};

int event_add(PyObject *module)
{
    module_state *state = module_get_state(module);
    state->event_type = PyType_FromModuleAndSpec(module, &event_spec, NULL);
    return state->event_type == NULL ? -1 : PyModule_AddObjectRef(module, "Event", state->event_type);
}
