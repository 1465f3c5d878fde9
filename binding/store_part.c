/* store_part.c: an entry's memory as Python sees it.
 *
 * A part exports its bytes through the buffer protocol, writable: they are this process's own (read, or mapped
 * privately), so an array that is made on them can be changed like any other. The entry lives as long as one of its
 * parts does.
 */
#include "store.h"

typedef struct {
    PyObject_HEAD
    struct held_entry *held;
    shoal_part part;
    bool read_only;
} PartObject;

static void release(struct held_entry *held)
{
    if (--held->references != 0)
        return;
    shoal_entry_numbers numbers;
    shoal_entry_about(held->entry, &numbers);
    if (numbers.size >= SHOAL_VIEW_MINIMUM) { /* unmapping a large entry takes a while */
        Py_BEGIN_ALLOW_THREADS
        shoal_entry_close(held->entry);
        Py_END_ALLOW_THREADS
    } else {
        shoal_entry_close(held->entry);
    }
    PyMem_Free(held);
}

static void part_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    release(((PartObject *)self)->held);
    type->tp_free(self);
    Py_DECREF(type);
}

static int part_get_buffer(PyObject *self, Py_buffer *view, int flags)
{
    PartObject *part = (PartObject *)self;
    return PyBuffer_FillInfo(view, self, (void *)(uintptr_t)part->part.data, (Py_ssize_t)part->part.size,
                             part->read_only, flags);
}

static PyType_Slot part_slots[] = {
    {Py_tp_doc, "Memory of one part of a store's entry, with the buffer protocol."},
    {Py_tp_dealloc, part_dealloc},
    {Py_bf_getbuffer, part_get_buffer},
    {0, NULL},
};

static PyType_Spec part_spec = {
    .name = "shoal._engine.EntryPart",
    .basicsize = sizeof(PartObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = part_slots,
};

PyObject *store_entry_parts(module_state *state, shoal_entry *entry, uint32_t first, bool read_only)
{
    shoal_entry_numbers numbers;
    shoal_entry_about(entry, &numbers);
    struct held_entry *held = PyMem_Malloc(sizeof *held);
    Py_ssize_t count = numbers.parts > first ? (Py_ssize_t)(numbers.parts - first) : 0;
    PyObject *parts = held != NULL ? PyTuple_New(count) : PyErr_NoMemory();
    if (parts == NULL) {
        PyMem_Free(held);
        shoal_entry_close(entry);
        return NULL;
    }
    *held = (struct held_entry){entry, 1}; /* ours, until all parts are made */
    for (Py_ssize_t i = 0; i < count; i++) {
        shoal_part part;
        int error = shoal_entry_part(entry, first + (uint32_t)i, &part);
        PyTypeObject *type = (PyTypeObject *)state->part_type;
        PartObject *object = error == 0 ? (PartObject *)type->tp_alloc(type, 0) : NULL;
        if (object == NULL) {
            if (error != 0)
                module_raise(error, "reading an entry of the store");
            Py_CLEAR(parts);
            break;
        }
        object->held = held;
        object->part = part;
        object->read_only = read_only;
        held->references++;
        PyTuple_SET_ITEM(parts, i, (PyObject *)object);
    }
    release(held);
    return parts;
}

int part_add(PyObject *module)
{
    module_state *state = module_get_state(module);
    state->part_type = PyType_FromModuleAndSpec(module, &part_spec, NULL);
    return state->part_type != NULL ? 0 : -1;
}
