/* hash_array.c: the encoding of arrays, dtypes, array scalars and memoryviews (hash.h).
 *
 * NumPy is never imported: its types are looked up once it is there, and an array's memory is read through the array
 * interface (a structure that NumPy documents and keeps), which, unlike the buffer protocol, covers dates as well.
 * What counts is type, dtype, shape, strides and elements: a C-ordered array and a Fortran-ordered one differ, and so
 * do a view and its copy where their strides differ, as with joblib. Elements that do not lie together are gathered, a
 * chunk at a time. Sub-classes of arrays other than memmap may hold more than elements, so they go by their reduction.
 */
#include "hash.h"

#include <string.h>

#define GATHER ((size_t)1 << 16)
#define RELEASE ((size_t)65536) /* bytes from which hashing gives up the GIL */
#define DIMENSIONS 64

/* The array interface, version 3, as NumPy documents it for C. */
struct array_interface {
    int two, dimensions;
    char kind;
    int item_size, flags;
    Py_ssize_t *shape, *strides;
    void *data;
    PyObject *description;
};

/* NumPy's types, once it has been imported by somebody. False: it has not, or is just being imported. */
static bool find_numpy(module_state *state)
{
    if (state->numpy_array != NULL)
        return true;
    PyObject *name = PyUnicode_InternFromString("numpy");
    PyObject *numpy = name != NULL ? PyImport_GetModule(name) : NULL;
    Py_XDECREF(name);
    PyObject *array = NULL, *generic = NULL, *memmap = NULL, *dtype = NULL;
    if (numpy != NULL) {
        array = PyObject_GetAttrString(numpy, "ndarray");
        generic = array != NULL ? PyObject_GetAttrString(numpy, "generic") : NULL;
        memmap = generic != NULL ? PyObject_GetAttrString(numpy, "memmap") : NULL;
        dtype = memmap != NULL ? PyObject_GetAttrString(numpy, "dtype") : NULL;
        Py_DECREF(numpy);
    }
    PyErr_Clear();
    if (dtype == NULL || !PyType_Check(array) || !PyType_Check(generic) || !PyType_Check(dtype)) {
        Py_XDECREF(array);
        Py_XDECREF(generic);
        Py_XDECREF(memmap);
        Py_XDECREF(dtype);
        return false;
    }
    state->numpy_array = array;
    state->numpy_generic = generic;
    state->numpy_memmap = memmap;
    state->numpy_dtype = dtype;
    return true;
}

/* The attribute as a C truth value; -1 with an exception set. */
static int is_true(PyObject *object, const char *attribute)
{
    PyObject *value = PyObject_GetAttrString(object, attribute);
    int result = value != NULL ? PyObject_IsTrue(value) : -1;
    Py_XDECREF(value);
    return result;
}

/* A dtype that its string ('<f8', '<M8[ns]') tells wholly goes by it, others by their reduction. */
static int hash_dtype(struct hasher *hasher, struct sink *sink, PyObject *dtype)
{
    PyObject *kind = PyObject_GetAttrString(dtype, "kind");
    PyObject *metadata = kind != NULL ? PyObject_GetAttrString(dtype, "metadata") : NULL;
    int result = -1;
    if (metadata == NULL)
        goto done;
    Py_ssize_t length;
    const char *text = PyUnicode_AsUTF8AndSize(kind, &length);
    if (text == NULL)
        goto done;
    if (metadata == Py_None && length == 1 && strchr("biufcmMSU", text[0]) != NULL) {
        PyObject *string = PyObject_GetAttrString(dtype, "str");
        if (string != NULL)
            result = sink_tag(sink, 'y') != 0 ? -1 : hash_value(hasher, sink, string);
        Py_XDECREF(string);
    } else {
        result = sink_tag(sink, 'Y') != 0 ? -1 : 0;
        if (result == 0)
            result = hash_by_reduction(hasher, sink, dtype);
    }

done:
    Py_XDECREF(kind);
    Py_XDECREF(metadata);
    return result;
}

static bool is_contiguous(const Py_ssize_t *shape, const Py_ssize_t *strides, int dimensions, size_t item_size,
                          bool fortran)
{
    Py_ssize_t expected = (Py_ssize_t)item_size;
    for (int i = 0; i < dimensions; i++) {
        int axis = fortran ? i : dimensions - 1 - i;
        if (shape[axis] != 1 && strides[axis] != expected)
            return false;
        expected *= shape[axis];
    }
    return true;
}

/* What lies scattered, on its way into a digest, in C order. Runs without the GIL. */
struct gather {
    shoal_hash *hash;
    uint8_t *chunk;
    size_t used;
};

static void gather_add(struct gather *gather, const char *data, size_t size)
{
    if (gather->used + size > GATHER) {
        shoal_hash_update(gather->hash, gather->chunk, gather->used);
        gather->used = 0;
    }
    if (size > GATHER) {
        shoal_hash_update(gather->hash, data, size);
        return;
    }
    memcpy(gather->chunk + gather->used, data, size);
    gather->used += size;
}

static void gather_run(struct gather *gather, const char *data, const Py_ssize_t *shape, const Py_ssize_t *strides,
                       int dimensions, size_t item_size)
{
    if (dimensions == 0) {
        gather_add(gather, data, item_size);
        return;
    }
    if (dimensions == 1 && strides[0] == (Py_ssize_t)item_size) {
        gather_add(gather, data, (size_t)shape[0] * item_size);
        return;
    }
    for (Py_ssize_t i = 0; i < shape[0]; i++)
        gather_run(gather, data + i * strides[0], shape + 1, strides + 1, dimensions - 1, item_size);
}

/* Shape, strides and elements. */
static int hash_elements(struct sink *sink, const void *data, const Py_ssize_t *shape, const Py_ssize_t *strides,
                         int dimensions, size_t item_size)
{
    size_t count = 1;
    if (dimensions < 0 || dimensions > DIMENSIONS) {
        PyErr_SetString(PyExc_ValueError, "an array of so many dimensions cannot be hashed");
        return -1;
    }
    for (int i = 0; i < dimensions; i++)
        count *= (size_t)shape[i];
    if (sink_number(sink, (uint64_t)dimensions) != 0 ||
        sink_add(sink, shape, (size_t)dimensions * sizeof *shape) != 0 ||
        sink_add(sink, strides, (size_t)dimensions * sizeof *strides) != 0)
        return -1;
    if (count == 0)
        return 0;
    if (is_contiguous(shape, strides, dimensions, item_size, false) ||
        is_contiguous(shape, strides, dimensions, item_size, true))
        return sink_bytes(sink, 'b', 'B', data, count * item_size);

    struct gather gather = {.chunk = PyMem_Malloc(GATHER)};
    uint8_t digest[SHOAL_DIGEST_SIZE];
    if (gather.chunk == NULL || shoal_hash_create(&gather.hash) != 0) {
        PyMem_Free(gather.chunk);
        PyErr_NoMemory();
        return -1;
    }
    PyThreadState *thread = count * item_size >= RELEASE ? PyEval_SaveThread() : NULL;
    gather_run(&gather, data, shape, strides, dimensions, item_size);
    shoal_hash_update(gather.hash, gather.chunk, gather.used);
    shoal_hash_digest(gather.hash, digest);
    if (thread != NULL)
        PyEval_RestoreThread(thread);
    shoal_hash_close(gather.hash);
    PyMem_Free(gather.chunk);
    return sink_tag(sink, 'G') != 0 ? -1 : sink_add(sink, digest, sizeof digest);
}

static int hash_ndarray(struct hasher *hasher, struct sink *sink, PyObject *array, PyObject *dtype)
{
    bool mapped = (PyObject *)Py_TYPE(array) == hasher->state->numpy_memmap && !hasher->coerce_mmap;
    PyObject *capsule = PyObject_GetAttrString(array, "__array_struct__");
    const struct array_interface *interface = capsule != NULL ? PyCapsule_GetPointer(capsule, NULL) : NULL;
    int result = -1;
    if (interface == NULL)
        goto done;
    if (interface->two != 2 || interface->item_size < 0) {
        PyErr_SetString(PyExc_ValueError, "an array says of itself what cannot be");
        goto done;
    }
    result = sink_tag(sink, mapped ? 'M' : 'n') != 0 ? -1 : hash_dtype(hasher, sink, dtype);
    if (result == 0)
        result = hash_elements(sink, interface->data, interface->shape, interface->strides, interface->dimensions,
                               (size_t)interface->item_size);

done:
    Py_XDECREF(capsule);
    return result;
}

static int hash_scalar(struct hasher *hasher, struct sink *sink, PyObject *scalar, PyObject *dtype)
{
    PyObject *bytes = PyObject_CallMethod(scalar, "tobytes", NULL);
    if (bytes == NULL)
        return -1;
    int result = sink_tag(sink, 'x') != 0 ? -1 : hash_dtype(hasher, sink, dtype);
    if (result == 0)
        result = hash_value(hasher, sink, bytes);
    Py_DECREF(bytes);
    return result;
}

static int hash_memoryview(struct sink *sink, PyObject *object)
{
    Py_buffer view;
    if (PyObject_GetBuffer(object, &view, PyBUF_FULL_RO) != 0)
        return -1;
    int result = -1;
    if (view.suboffsets != NULL) {
        PyErr_SetString(PyExc_ValueError, "a memoryview with suboffsets cannot be hashed");
    } else {
        const char *format = view.format != NULL ? view.format : "B";
        result = sink_tag(sink, 'm') != 0 || sink_bytes(sink, 's', 'S', format, strlen(format)) != 0 ||
                         sink_number(sink, (uint64_t)view.itemsize) != 0
                     ? -1
                     : hash_elements(sink, view.buf, view.shape, view.strides, view.ndim, (size_t)view.itemsize);
    }
    PyBuffer_Release(&view);
    return result;
}

int hash_array(struct hasher *hasher, struct sink *sink, PyObject *object, bool *done)
{
    module_state *state = hasher->state;
    PyTypeObject *type = Py_TYPE(object);
    if (type == &PyMemoryView_Type) {
        *done = true;
        return hash_memoryview(sink, object);
    }
    if (!find_numpy(state))
        return 0;
    bool array = (PyObject *)type == state->numpy_array || (PyObject *)type == state->numpy_memmap;
    if (PyObject_TypeCheck(object, (PyTypeObject *)state->numpy_dtype)) {
        *done = true;
        return hash_dtype(hasher, sink, object);
    }
    if (!array && !PyObject_TypeCheck(object, (PyTypeObject *)state->numpy_generic))
        return 0;
    PyObject *dtype = PyObject_GetAttrString(object, "dtype");
    int has_objects = dtype != NULL ? is_true(dtype, "hasobject") : -1;
    int result = has_objects < 0 ? -1 : 0;
    if (has_objects == 0) {
        *done = true;
        result = array ? hash_ndarray(hasher, sink, object, dtype) : hash_scalar(hasher, sink, object, dtype);
    }
    Py_XDECREF(dtype);
    return result;
}
