/* codec.c: see codec.h. One message, little-endian as the machine is (it never leaves it):
 *
 *   'N' 'T' 'F'                 None, True, False
 *   'i' int64                   an int of 64 bits; larger ones are pickled
 *   'd' double                  a float
 *   's' u32 length, UTF-8       a str (one with lone surrogates is pickled)
 *   'b' u32 length, bytes       bytes, shorter than SHOAL_VIEW_MINIMUM
 *   'B' u64 length              bytes in the message's first block: written once, not twice
 *   't' u8 count, messages      a tuple of the above, not nested, without 'B'
 *   'P' u32 buffers, buffers x u64 length, u64 length, pickle    anything else; the buffers are the message's blocks
 *
 * Called by pool.c, worker.c and queue.c, always with the GIL.
 */
#include "codec.h"

#include <string.h>
#include <unistd.h>

#define KEPT_CAPACITY                                                                                                  \
    ((size_t)1 << 20) /* a writer that is used again keeps no more than this after a large message                     \
                       */

/* ------------------------------------------------------------- the writer ---- */

void codec_writer_begin(struct codec_writer *writer, shoal_heap *heap, uint32_t owner)
{
    writer->data = writer->first;
    writer->size = 0;
    writer->capacity = sizeof writer->first;
    writer->kind = CODEC_MESSAGE;
    writer->blocks = writer->first_blocks;
    writer->block_count = 0;
    writer->block_capacity = sizeof writer->first_blocks / sizeof writer->first_blocks[0];
    writer->heap = heap;
    writer->owner = owner;
    writer->foreign_main = false;
}

void codec_writer_reset(struct codec_writer *writer)
{
    writer->size = 0;
    writer->block_count = 0;
    if (writer->capacity > KEPT_CAPACITY) {
        PyMem_Free(writer->data);
        writer->data = writer->first;
        writer->capacity = sizeof writer->first;
    }
}

static void free_blocks(struct codec_writer *writer)
{
    for (uint32_t i = 0; i < writer->block_count; i++)
        (void)shoal_heap_free(writer->heap, writer->blocks[i]);
    writer->block_count = 0;
}

void codec_writer_end(struct codec_writer *writer, bool keep_blocks)
{
    if (!keep_blocks)
        free_blocks(writer);
    if (writer->data != writer->first)
        PyMem_Free(writer->data);
    if (writer->blocks != writer->first_blocks)
        PyMem_Free(writer->blocks);
    codec_writer_begin(writer, NULL, 0);
}

static int grow(struct codec_writer *writer, size_t more)
{
    size_t capacity = writer->capacity * 2;
    if (capacity < writer->size + more)
        capacity = writer->size + more;
    uint8_t *data = PyMem_Malloc(capacity);
    if (data == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    memcpy(data, writer->data, writer->size);
    if (writer->data != writer->first)
        PyMem_Free(writer->data);
    writer->data = data;
    writer->capacity = capacity;
    return 0;
}

/* Room for `more` bytes at the end, which count as written; NULL with an exception. */
static inline uint8_t *extend(struct codec_writer *writer, size_t more)
{
    if (writer->capacity - writer->size < more && grow(writer, more) != 0)
        return NULL;
    uint8_t *at = writer->data + writer->size;
    writer->size += more;
    return at;
}

/* Copy `size` bytes into a fresh block that the message takes along. held: they stay also without the GIL. */
static int add_block(struct codec_writer *writer, const void *data, size_t size, bool held)
{
    if (writer->block_count == writer->block_capacity) {
        uint32_t capacity = writer->block_capacity * 2;
        shoal_block *blocks = PyMem_Malloc(capacity * sizeof *blocks);
        if (blocks == NULL) {
            PyErr_NoMemory();
            return -1;
        }
        memcpy(blocks, writer->blocks, writer->block_count * sizeof *blocks);
        if (writer->blocks != writer->first_blocks)
            PyMem_Free(writer->blocks);
        writer->blocks = blocks;
        writer->block_capacity = capacity;
    }
    shoal_block block;
    int error = shoal_heap_allocate(writer->heap, size, writer->owner, &block);
    if (error == 0) {
        /* A copy of megabytes is longer than what letting other threads go on costs. */
        if (held && size >= (1u << 20)) {
            Py_BEGIN_ALLOW_THREADS
            error = shoal_heap_write(writer->heap, block, 0, data, size);
            Py_END_ALLOW_THREADS
        } else {
            error = shoal_heap_write(writer->heap, block, 0, data, size);
        }
        if (error != 0)
            (void)shoal_heap_free(writer->heap, block);
    }
    if (error != 0) {
        PyErr_Format(PyExc_MemoryError, "no shared memory for a buffer of %zu bytes: %s", size,
                     shoal_error_text(error));
        return -1;
    }
    writer->blocks[writer->block_count++] = block;
    return 0;
}

/* --------------------------------------------------------------- encoding ---- */

/* pickle's buffer_callback: large buffers go beside the message (false: out of band), small ones stay in it (true).
 * `self` collects. */
static PyObject *take_buffer(PyObject *self, PyObject *buffer)
{
    const Py_buffer *view = PyPickleBuffer_GetBuffer(buffer);
    if (view == NULL)
        return NULL;
    if (view->len < (Py_ssize_t)SHOAL_VIEW_MINIMUM || !PyBuffer_IsContiguous(view, 'A'))
        Py_RETURN_TRUE;
    if (PyList_Append(self, buffer) != 0)
        return NULL;
    Py_RETURN_FALSE;
}

static PyMethodDef take_buffer_method = {"take_buffer", take_buffer, METH_O, NULL};

/* Held for itself: a PickleBuffer is the user's, who may release it while the GIL is given up. */
static int write_buffer(struct codec_writer *writer, PyObject *buffer)
{
    Py_buffer view;
    if (PyObject_GetBuffer(buffer, &view, PyBUF_ANY_CONTIGUOUS) != 0) {
        /* One of a class's own __buffer__ (CPython 3.12) cannot be asked for again, other than one released. */
        if (!PyErr_ExceptionMatches(PyExc_TypeError))
            return -1;
        PyErr_Clear();
        const Py_buffer *first = PyPickleBuffer_GetBuffer(buffer);
        return first == NULL ? -1 : add_block(writer, first->buf, (size_t)first->len, false);
    }
    const int result = add_block(writer, view.buf, (size_t)view.len, true);
    PyBuffer_Release(&view);
    return result;
}

static int write_pickle(struct codec_writer *writer, PyObject *buffers, PyObject *pickled)
{
    Py_buffer bytes;
    if (PyObject_GetBuffer(pickled, &bytes, PyBUF_SIMPLE) != 0)
        return -1;
    int result = -1;
    Py_ssize_t count = buffers == NULL ? 0 : PyList_GET_SIZE(buffers);
    uint32_t count32 = (uint32_t)count;
    uint8_t *at = extend(writer, 1 + 4 + (size_t)count * 8 + 8 + (size_t)bytes.len);
    if (at == NULL)
        goto release;
    *at++ = 'P';
    memcpy(at, &count32, 4);
    at += 4;
    for (Py_ssize_t i = 0; i < count; i++) {
        const Py_buffer *view = PyPickleBuffer_GetBuffer(PyList_GET_ITEM(buffers, i));
        if (view == NULL)
            goto release;
        uint64_t length = (uint64_t)view->len;
        memcpy(at, &length, 8);
        at += 8;
    }
    uint64_t length = (uint64_t)bytes.len;
    memcpy(at, &length, 8);
    memcpy(at + 8, bytes.buf, (size_t)bytes.len);
    for (Py_ssize_t i = 0; i < count; i++) {
        if (write_buffer(writer, PyList_GET_ITEM(buffers, i)) != 0)
            goto release;
    }
    result = 0;
release:
    PyBuffer_Release(&bytes);
    return result;
}

static int encode_pickled(module_state *state, struct codec_writer *writer, PyObject *object)
{
    PyObject *dumps = writer->foreign_main ? state->pickle_dumps_for_foreign_main : state->pickle_dumps;
    if (dumps == NULL) {
        PyErr_SetString(PyExc_RuntimeError, "shoal._engine.configure() was not called");
        return -1;
    }
    PyObject *buffers = NULL, *callback = NULL, *pickled = NULL;
    int result = -1;
    if (writer->heap != NULL) {
        buffers = PyList_New(0);
        if (buffers == NULL)
            goto done;
        callback = PyCFunction_New(&take_buffer_method, buffers);
        if (callback == NULL)
            goto done;
    }
    pickled = PyObject_CallFunctionObjArgs(dumps, object, callback != NULL ? callback : Py_None, NULL);
    if (pickled != NULL)
        result = write_pickle(writer, buffers, pickled);
done:
    Py_XDECREF(pickled);
    Py_XDECREF(callback);
    Py_XDECREF(buffers);
    return result;
}

static inline int put_tag(struct codec_writer *writer, uint8_t tag)
{
    uint8_t *at = extend(writer, 1);
    if (at == NULL)
        return -1;
    *at = tag;
    return 0;
}

static inline int put_word(struct codec_writer *writer, uint8_t tag, const void *word)
{
    uint8_t *at = extend(writer, 9);
    if (at == NULL)
        return -1;
    *at = tag;
    memcpy(at + 1, word, 8);
    return 0;
}

static int put_short(struct codec_writer *writer, uint8_t tag, const char *data, size_t size)
{
    uint8_t *at = extend(writer, 5 + size);
    if (at == NULL)
        return -1;
    uint32_t size32 = (uint32_t)size;
    *at = tag;
    memcpy(at + 1, &size32, 4);
    memcpy(at + 5, data, size);
    return 0;
}

enum plain { NOT_PLAIN = 1 }; /* beside 0 and -1: the object needs pickle; nothing was written */

static inline int encode_plain(struct codec_writer *writer, PyObject *object, bool nested)
{
    PyTypeObject *type = Py_TYPE(object);
    uint64_t word;
    switch (codec_encode_word(object, &word)) {
    case CODEC_INTEGER:
        return put_word(writer, 'i', &word);
    case CODEC_FLOAT:
        return put_word(writer, 'd', &word);
    case CODEC_CONSTANT:
        return put_tag(writer, (uint8_t)word);
    default:
        break;
    }
    if (type == &PyUnicode_Type) {
        Py_ssize_t size;
        const char *text = PyUnicode_AsUTF8AndSize(object, &size);
        if (text == NULL) {
            PyErr_Clear(); /* lone surrogates: pickle knows how */
            return NOT_PLAIN;
        }
        if ((size_t)size >= UINT32_MAX)
            return NOT_PLAIN;
        return put_short(writer, 's', text, (size_t)size);
    }
    if (type == &PyBytes_Type) {
        size_t size = (size_t)PyBytes_GET_SIZE(object);
        if (size < SHOAL_VIEW_MINIMUM || writer->heap == NULL) {
            if (size >= UINT32_MAX)
                return NOT_PLAIN;
            return put_short(writer, 'b', PyBytes_AS_STRING(object), size);
        }
        if (nested)
            return NOT_PLAIN;
        uint64_t size64 = size;
        if (put_word(writer, 'B', &size64) != 0)
            return -1;
        return add_block(writer, PyBytes_AS_STRING(object), size, true);
    }
    return NOT_PLAIN;
}

static int encode_tuple(struct codec_writer *writer, PyObject *object)
{
    Py_ssize_t count = PyTuple_GET_SIZE(object);
    if (count > 255)
        return NOT_PLAIN;
    size_t start = writer->size;
    uint8_t *at = extend(writer, 2);
    if (at == NULL)
        return -1;
    at[0] = 't';
    at[1] = (uint8_t)count;
    for (Py_ssize_t i = 0; i < count; i++) {
        int result = encode_plain(writer, PyTuple_GET_ITEM(object, i), true);
        if (result != 0) {
            writer->size = start;
            return result;
        }
    }
    return 0;
}

int codec_encode(module_state *state, struct codec_writer *writer, PyObject *object)
{
    uint64_t word;
    writer->kind = codec_encode_word(object, &word);
    if (writer->kind != CODEC_MESSAGE) {
        uint8_t *at = extend(writer, sizeof word);
        if (at == NULL)
            return -1;
        memcpy(at, &word, sizeof word);
        return 0;
    }
    int result = PyTuple_CheckExact(object) ? encode_tuple(writer, object) : encode_plain(writer, object, false);
    if (result == NOT_PLAIN)
        result = encode_pickled(state, writer, object);
    return result;
}

/* --------------------------------------------------------------- decoding ---- */

/* Memory that lies in a lent block, shown through the buffer protocol. The block is given back with the last view of
 * it. */
typedef struct {
    PyObject_HEAD
    shoal_loan *loan;
    Py_ssize_t length;
} LoanObject;

static void loan_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    shoal_loan_return(((LoanObject *)self)->loan);
    type->tp_free(self);
    Py_DECREF(type);
}

static int loan_getbuffer(PyObject *self, Py_buffer *view, int flags)
{
    LoanObject *object = (LoanObject *)self;
    return PyBuffer_FillInfo(view, self, shoal_loan_pointer(object->loan), object->length, 0, flags);
}

static PyType_Slot loan_slots[] = {
    {Py_tp_doc, "Shared memory that an object of this process lives in. Given back with the object."},
    {Py_tp_dealloc, loan_dealloc},
    {Py_bf_getbuffer, loan_getbuffer},
    {0, NULL},
};

static PyType_Spec loan_spec = {
    .name = "shoal._engine.Loan",
    .basicsize = sizeof(LoanObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = loan_slots,
};

struct reader {
    const uint8_t *at, *end;
};

static PyObject *malformed(void)
{
    PyErr_SetString(PyExc_ValueError, "a message in shared memory is malformed: was its writer's memory overwritten?");
    return NULL;
}

static inline bool take(struct reader *reader, void *out, size_t size)
{
    if ((size_t)(reader->end - reader->at) < size)
        return false;
    memcpy(out, reader->at, size);
    reader->at += size;
    return true;
}

static PyObject *decode_plain(struct reader *reader, uint8_t tag)
{
    uint32_t size;
    int64_t integer;
    double number;
    PyObject *result;
    switch (tag) {
    case 'i':
        return take(reader, &integer, sizeof integer) ? PyLong_FromLongLong(integer) : malformed();
    case 'd':
        return take(reader, &number, sizeof number) ? PyFloat_FromDouble(number) : malformed();
    case 'N':
        return Py_NewRef(Py_None);
    case 'T':
        return Py_NewRef(Py_True);
    case 'F':
        return Py_NewRef(Py_False);
    case 's':
    case 'b':
        if (!take(reader, &size, 4) || (size_t)(reader->end - reader->at) < size)
            return malformed();
        result = tag == 's' ? PyUnicode_DecodeUTF8((const char *)reader->at, size, NULL)
                            : PyBytes_FromStringAndSize((const char *)reader->at, size);
        reader->at += size;
        return result;
    default:
        return malformed();
    }
}

static PyObject *decode_tuple(struct reader *reader)
{
    uint8_t count, tag;
    if (!take(reader, &count, 1))
        return malformed();
    PyObject *tuple = PyTuple_New(count);
    if (tuple == NULL)
        return NULL;
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *item = take(reader, &tag, 1) ? decode_plain(reader, tag) : malformed();
        if (item == NULL) {
            Py_DECREF(tuple);
            return NULL;
        }
        PyTuple_SET_ITEM(tuple, i, item);
    }
    return tuple;
}

/* A block's first `length` bytes as a writable buffer object. */
static PyObject *block_as_buffer(module_state *state, shoal_heap *heap, shoal_block block, uint64_t length,
                                 enum codec_blocks how)
{
    size_t size;
    const void *memory = shoal_heap_pointer(heap, block, &size);
    if (memory == NULL || length > size || length > (uint64_t)PY_SSIZE_T_MAX)
        return malformed();
    if (how == CODEC_COPY)
        return PyByteArray_FromStringAndSize(memory, (Py_ssize_t)length);
    PyTypeObject *type = (PyTypeObject *)state->loan_type;
    shoal_loan *loan;
    int error = shoal_heap_lend(heap, block, &loan);
    if (error != 0)
        return module_raise(error, "cannot take a buffer out of shared memory");
    LoanObject *object = (LoanObject *)type->tp_alloc(type, 0);
    if (object == NULL) {
        shoal_loan_return(loan);
        return NULL;
    }
    object->loan = loan;
    object->length = (Py_ssize_t)length;
    /* As it is, where nothing is made of it: what was sent as a bare PickleBuffer is used as memory then. */
    PyObject *view = PyMemoryView_FromObject((PyObject *)object);
    Py_DECREF(object);
    return view;
}

static PyObject *decode_pickled(module_state *state, shoal_heap *heap, const shoal_item *item, struct reader *reader,
                                enum codec_blocks how, uint32_t *consumed)
{
    uint32_t count;
    if (!take(reader, &count, 4) || count != item->block_count || (size_t)(reader->end - reader->at) / 8 < count)
        return malformed();
    PyObject *buffers = NULL, *bytes = NULL, *result = NULL;
    if (count > 0) {
        buffers = PyTuple_New(count);
        if (buffers == NULL)
            return NULL;
    }
    for (uint32_t i = 0; i < count; i++) {
        uint64_t length;
        if (!take(reader, &length, 8)) {
            malformed();
            goto done;
        }
        PyObject *buffer = block_as_buffer(state, heap, item->blocks[i], length, how);
        if (buffer == NULL)
            goto done;
        *consumed = i + 1;
        PyTuple_SET_ITEM(buffers, i, buffer);
    }
    uint64_t length;
    if (!take(reader, &length, 8) || length != (uint64_t)(reader->end - reader->at)) {
        malformed();
        goto done;
    }
    /* A copy of the pickle, not a view of shared memory: unpickling runs the user's code, and a view could outlive the
     * message. */
    bytes = PyBytes_FromStringAndSize((const char *)reader->at, (Py_ssize_t)length);
    if (bytes == NULL)
        goto done;
    reader->at = reader->end;
    if (state->pickle_loads == NULL)
        PyErr_SetString(PyExc_RuntimeError, "shoal._engine.configure() was not called");
    else
        result = PyObject_CallFunctionObjArgs(state->pickle_loads, bytes, buffers != NULL ? buffers : Py_None, NULL);
done:
    Py_XDECREF(bytes);
    Py_XDECREF(buffers);
    return result;
}

static PyObject *decode_large_bytes(shoal_heap *heap, const shoal_item *item, struct reader *reader)
{
    uint64_t length;
    size_t size;
    if (item->block_count != 1 || !take(reader, &length, 8))
        return malformed();
    const char *memory = shoal_heap_pointer(heap, item->blocks[0], &size);
    if (memory == NULL || length > size || length > (uint64_t)PY_SSIZE_T_MAX)
        return malformed();
    return PyBytes_FromStringAndSize(memory, (Py_ssize_t)length);
}

/* A word: what codec_encode_word writes. */
static PyObject *decode_word(struct reader *reader, uint32_t kind)
{
    uint64_t name;
    switch (kind) {
    case CODEC_INTEGER:
        return decode_plain(reader, 'i');
    case CODEC_FLOAT:
        return decode_plain(reader, 'd');
    case CODEC_CONSTANT:
        if (take(reader, &name, sizeof name) && (name == 'N' || name == 'T' || name == 'F'))
            return decode_plain(reader, (uint8_t)name);
        return malformed();
    default:
        return malformed();
    }
}

PyObject *codec_decode_item(module_state *state, shoal_heap *heap, const shoal_item *item, enum codec_blocks how)
{
    struct reader reader = {item->data, (const uint8_t *)item->data + item->size};
    uint32_t consumed = 0; /* blocks that a loan gives back by itself */
    uint8_t tag;
    PyObject *result;
    if (item->kind != CODEC_MESSAGE)
        result = decode_word(&reader, item->kind);
    else if (!take(&reader, &tag, 1))
        result = malformed();
    else if (tag == 't')
        result = decode_tuple(&reader);
    else if (tag == 'P')
        result = decode_pickled(state, heap, item, &reader, how, &consumed);
    else if (tag == 'B')
        result = decode_large_bytes(heap, item, &reader);
    else
        result = decode_plain(&reader, tag);
    if (result != NULL && reader.at != reader.end) {
        Py_DECREF(result);
        result = malformed();
    }
    if (how == CODEC_VIEW && consumed < item->block_count) {
        for (uint32_t i = consumed; i < item->block_count; i++)
            (void)shoal_heap_free(heap, item->blocks[i]);
    }
    return result;
}

/* ------------------------------------------------------------------ module ---- */

static PyObject *configure(PyObject *module, PyObject *args)
{
    module_state *state = module_get_state(module);
    PyObject *dumps, *dumps_for_foreign_main, *loads;
    if (!PyArg_ParseTuple(args, "OOO:configure", &dumps, &dumps_for_foreign_main, &loads))
        return NULL;
    Py_XSETREF(state->pickle_dumps, Py_NewRef(dumps));
    Py_XSETREF(state->pickle_dumps_for_foreign_main, Py_NewRef(dumps_for_foreign_main));
    Py_XSETREF(state->pickle_loads, Py_NewRef(loads));
    Py_RETURN_NONE;
}

static PyMethodDef codec_methods[] = {
    {"configure", configure, METH_VARARGS,
     "configure(dumps, dumps_for_foreign_main, loads)\n--\n\nHow the codec pickles: dumps(object, buffer_callback) -> "
     "bytes-like, loads(bytes, buffers) -> object."},
    {NULL, NULL, 0, NULL},
};

int codec_add(PyObject *module)
{
    module_state *state = module_get_state(module);
    state->loan_type = PyType_FromModuleAndSpec(module, &loan_spec, NULL);
    if (state->loan_type == NULL)
        return -1;
    return PyModule_AddFunctions(module, codec_methods);
}
