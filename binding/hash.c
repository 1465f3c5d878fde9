/* hash.c: the encoder of plain data, the order of sets and dicts, and what was met before (hash.h).
 * Called by memo.c for keys, and from Python as hash_object.
 */
#include "hash.h"

#include <string.h>

#define SINK_FLUSH ((size_t)65536)
#define DEPTH_MOST 4000        /* values inside of values: what fits into a stack of some megabytes */
#define BULK ((size_t)1 << 20) /* bytes from which data goes by its own digest; part of the keys */

void sink_begin(struct sink *sink)
{
    sink->data = sink->first;
    sink->used = 0;
    sink->capacity = sizeof sink->first;
    sink->stream = NULL;
}

void sink_end(struct sink *sink)
{
    if (sink->data != sink->first)
        PyMem_Free(sink->data);
    if (sink->stream != NULL)
        shoal_hash_close(sink->stream);
}

static int sink_flush(struct sink *sink)
{
    if (sink->stream == NULL && shoal_hash_create(&sink->stream) != 0) {
        sink->stream = NULL;
        PyErr_NoMemory();
        return -1;
    }
    shoal_hash_update(sink->stream, sink->data, sink->used);
    sink->used = 0;
    return 0;
}

int sink_add(struct sink *sink, const void *data, size_t size)
{
    if (size > sink->capacity - sink->used) {
        if (sink->used + size >= SINK_FLUSH) {
            if (sink_flush(sink) != 0)
                return -1;
            if (size >= SINK_FLUSH) {
                shoal_hash_update(sink->stream, data, size);
                return 0;
            }
        }
        if (size > sink->capacity - sink->used) {
            size_t capacity = sink->capacity;
            while (capacity - sink->used < size)
                capacity *= 2;
            uint8_t *larger = PyMem_Malloc(capacity);
            if (larger == NULL) {
                PyErr_NoMemory();
                return -1;
            }
            memcpy(larger, sink->data, sink->used);
            if (sink->data != sink->first)
                PyMem_Free(sink->data);
            sink->data = larger;
            sink->capacity = capacity;
        }
    }
    if (size != 0)
        memcpy(sink->data + sink->used, data, size);
    sink->used += size;
    return 0;
}

int sink_digest(struct sink *sink, uint8_t digest[SHOAL_DIGEST_SIZE])
{
    if (sink->stream == NULL) {
        shoal_digest(sink->data, sink->used, digest); /* under 1 MiB: plain XXH3, as the stream's */
        return 0;
    }
    if (sink_flush(sink) != 0)
        return -1;
    shoal_hash_digest(sink->stream, digest);
    return 0;
}

int sink_bytes(struct sink *sink, char small_tag, char large_tag, const void *data, size_t size)
{
    if (sink_tag(sink, size < BULK ? small_tag : large_tag) != 0 || sink_number(sink, size) != 0)
        return -1;
    if (size < BULK)
        return sink_add(sink, data, size);
    uint8_t digest[SHOAL_DIGEST_SIZE];
    Py_BEGIN_ALLOW_THREADS
    shoal_digest(data, size, digest);
    Py_END_ALLOW_THREADS
    return sink_add(sink, digest, sizeof digest);
}

/* ---- what was met before ---- */

struct seen {
    PyObject *object; /* NULL: free */
    uint64_t number;
    char tag;
    uint8_t digest[SHOAL_DIGEST_SIZE];
};

static size_t slot_for(const struct hasher *hasher, const PyObject *object)
{
    size_t mask = hasher->seen_capacity - 1;
    size_t at = (size_t)(((uintptr_t)object >> 4) * UINT64_C(0x9E3779B97F4A7C15) >> 20) & mask;
    while (hasher->seen[at].object != NULL && hasher->seen[at].object != object)
        at = (at + 1) & mask;
    return at;
}

static const struct seen *recall(const struct hasher *hasher, const PyObject *object)
{
    if (hasher->seen_count == 0)
        return NULL;
    const struct seen *seen = &hasher->seen[slot_for(hasher, object)];
    return seen->object != NULL ? seen : NULL;
}

static int remember(struct hasher *hasher, PyObject *object, char tag, const uint8_t *digest, uint64_t number)
{
    if (2 * (hasher->seen_count + 1) > hasher->seen_capacity) {
        struct seen *old = hasher->seen;
        size_t old_capacity = hasher->seen_capacity;
        size_t capacity = old_capacity != 0 ? old_capacity * 2 : 64;
        struct seen *larger = PyMem_Calloc(capacity, sizeof *larger);
        if (larger == NULL) {
            PyErr_NoMemory();
            return -1;
        }
        hasher->seen = larger;
        hasher->seen_capacity = capacity;
        for (size_t i = 0; i < old_capacity; i++)
            if (old[i].object != NULL)
                larger[slot_for(hasher, old[i].object)] = old[i];
        PyMem_Free(old);
    }
    struct seen *seen = &hasher->seen[slot_for(hasher, object)];
    if (seen->object == NULL) {
        seen->object = Py_NewRef(object); /* else its address could stand for another */
        hasher->seen_count++;
    }
    seen->tag = tag;
    seen->number = number;
    if (digest != NULL)
        memcpy(seen->digest, digest, sizeof seen->digest);
    return 0;
}

static void forget_all(struct hasher *hasher)
{
    struct seen *seen = hasher->seen;
    size_t capacity = hasher->seen_capacity;
    hasher->seen = NULL;
    hasher->seen_count = hasher->seen_capacity = 0;
    for (size_t i = 0; i < capacity; i++)
        Py_XDECREF(seen[i].object);
    PyMem_Free(seen);
}

static int enter(struct hasher *hasher, const PyObject *object)
{
    for (size_t i = 0; i < hasher->path_length; i++)
        if (hasher->path[i] == object)
            return HASH_CYCLE;
    if (hasher->path_length == hasher->path_capacity) {
        size_t capacity = hasher->path_capacity != 0 ? 2 * hasher->path_capacity : 32;
        const PyObject **larger = PyMem_Realloc((void *)hasher->path, capacity * sizeof *larger);
        if (larger == NULL) {
            PyErr_NoMemory();
            return -1;
        }
        hasher->path = larger;
        hasher->path_capacity = capacity;
    }
    hasher->path[hasher->path_length++] = object;
    return 0;
}

/* ---- scalars ---- */

static int hash_int(struct sink *sink, PyObject *object)
{
    int overflow;
    long long value = PyLong_AsLongLongAndOverflow(object, &overflow);
    if (overflow == 0) {
        if (value == -1 && PyErr_Occurred())
            return -1;
        return sink_tag(sink, 'i') != 0 ? -1 : sink_number(sink, (uint64_t)value);
    }
    PyObject *bits = PyObject_CallMethod(object, "bit_length", NULL);
    Py_ssize_t size = bits != NULL ? PyLong_AsSsize_t(bits) : -1;
    Py_XDECREF(bits);
    if (size == -1 && PyErr_Occurred())
        return -1;
    PyObject *to_bytes = PyObject_GetAttrString(object, "to_bytes");
    PyObject *arguments = Py_BuildValue("(ns)", size / 8 + 1, "little");
    PyObject *keywords = Py_BuildValue("{sO}", "signed", Py_True);
    PyObject *bytes =
        to_bytes != NULL && arguments != NULL && keywords != NULL ? PyObject_Call(to_bytes, arguments, keywords) : NULL;
    int result =
        bytes == NULL ? -1 : sink_bytes(sink, 'I', 'I', PyBytes_AS_STRING(bytes), (size_t)PyBytes_GET_SIZE(bytes));
    Py_XDECREF(to_bytes);
    Py_XDECREF(arguments);
    Py_XDECREF(keywords);
    Py_XDECREF(bytes);
    return result;
}

/* Equal strings have the same representation: the narrowest that holds them. */
static int hash_str(struct sink *sink, PyObject *object)
{
#if PY_VERSION_HEX < 0x030C0000
    if (PyUnicode_READY(object) != 0)
        return -1;
#endif
    size_t width = (size_t)PyUnicode_KIND(object);
    if (sink_tag(sink, (char)('0' + width)) != 0)
        return -1;
    return sink_bytes(sink, 's', 'S', PyUnicode_DATA(object), (size_t)PyUnicode_GET_LENGTH(object) * width);
}

/* ---- containers ---- */

static int hash_items(struct hasher *hasher, struct sink *sink, PyObject *sequence, bool is_list)
{
    /* A list may change while an item's own code runs: its size is asked for each time. */
    Py_ssize_t size = is_list ? PyList_GET_SIZE(sequence) : PyTuple_GET_SIZE(sequence);
    if (sink_number(sink, (uint64_t)size) != 0)
        return -1;
    for (Py_ssize_t i = 0; i < (is_list ? PyList_GET_SIZE(sequence) : size); i++) {
        PyObject *item = is_list ? PyList_GET_ITEM(sequence, i) : PyTuple_GET_ITEM(sequence, i);
        int result = hash_held(hasher, sink, item);
        if (result != 0)
            return result;
    }
    return 0;
}

static int compare_digests(const void *one, const void *other)
{
    return memcmp(one, other, SHOAL_DIGEST_SIZE);
}

int hash_sorted(struct sink *sink, char tag, uint8_t (*digests)[SHOAL_DIGEST_SIZE], size_t count)
{
    qsort(digests, count, sizeof *digests, compare_digests);
    return sink_tag(sink, tag) != 0 || sink_number(sink, count) != 0 ? -1 : sink_add(sink, digests, count * 16);
}

/* In numbered mode the order must be known before the first number is given: by the keys' own digests. */
struct ranked {
    uint8_t digest[SHOAL_DIGEST_SIZE];
    PyObject *key, *value; /* references of ours; value is NULL in a set */
};

static int hash_in_order(struct hasher *hasher, struct sink *sink, struct ranked *ranked, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        struct hasher alone = {.state = hasher->state,
                               .functions = hasher->functions,
                               .meet = hasher->meet,
                               .context = hasher->context,
                               .coerce_mmap = hasher->coerce_mmap};
        struct sink own;
        sink_begin(&own);
        int result = hash_value(&alone, &own, ranked[i].key);
        if (result == 0)
            result = sink_digest(&own, ranked[i].digest);
        sink_end(&own);
        forget_all(&alone);
        PyMem_Free((void *)alone.path);
        if (result < 0)
            return -1;
        if (result == HASH_CYCLE) /* a key within itself: such are left as they come */
            memset(ranked[i].digest, 0xff, sizeof ranked[i].digest);
    }
    qsort(ranked, count, sizeof *ranked, compare_digests);
    for (size_t i = 0; i < count; i++) {
        int result = hash_value(hasher, sink, ranked[i].key);
        if (result == 0 && ranked[i].value != NULL)
            result = hash_value(hasher, sink, ranked[i].value);
        if (result != 0)
            return result;
    }
    return 0;
}

/* A set, a frozenset or a dict: pairs, without regard to their order. */
static int hash_unordered(struct hasher *hasher, struct sink *sink, PyObject *object, bool is_dict)
{
    Py_ssize_t size = is_dict ? PyDict_GET_SIZE(object) : PySet_GET_SIZE(object), position = 0;
    size_t count = 0, capacity = (size_t)size;
    int result = -1;
    PyObject *iterator = is_dict ? NULL : PyObject_GetIter(object);
    size_t each = hasher->numbered ? sizeof(struct ranked) : SHOAL_DIGEST_SIZE;
    uint8_t *block = PyMem_Malloc((capacity != 0 ? capacity : 1) * each);
    if (block == NULL)
        PyErr_NoMemory();
    if (block == NULL || (!is_dict && iterator == NULL))
        goto done;

    struct ranked *ranked = (struct ranked *)(void *)block;
    uint8_t(*digests)[SHOAL_DIGEST_SIZE] = (uint8_t(*)[SHOAL_DIGEST_SIZE])block;
    for (;;) {
        PyObject *key, *value = NULL;
        if (is_dict) {
            if (!PyDict_Next(object, &position, &key, &value))
                break;
            Py_INCREF(key);
            Py_INCREF(value);
        } else {
            key = PyIter_Next(iterator);
            if (key == NULL)
                break;
        }
        if (count == capacity) {
            Py_DECREF(key);
            Py_XDECREF(value);
            PyErr_SetString(PyExc_RuntimeError, "a dict changed its size while it was hashed");
            goto done;
        }
        if (hasher->numbered) {
            ranked[count++] = (struct ranked){.key = key, .value = value};
            continue;
        }
        struct sink own;
        sink_begin(&own);
        result = hash_value(hasher, &own, key);
        if (result == 0 && value != NULL)
            result = hash_value(hasher, &own, value);
        if (result == 0)
            result = sink_digest(&own, digests[count++]);
        sink_end(&own);
        Py_DECREF(key);
        Py_XDECREF(value);
        if (result != 0)
            goto done;
    }
    result = -1;
    if (PyErr_Occurred())
        goto done;
    if (hasher->numbered)
        result = sink_number(sink, count) != 0 ? -1 : hash_in_order(hasher, sink, ranked, count);
    else
        result = hash_sorted(sink, 'k', digests, count);

done:
    if (hasher->numbered && block != NULL) {
        struct ranked *held = (struct ranked *)(void *)block;
        for (size_t i = 0; i < count; i++) {
            Py_DECREF(held[i].key);
            Py_XDECREF(held[i].value);
        }
    }
    PyMem_Free(block);
    Py_XDECREF(iterator);
    return result;
}

static char tag_of(PyObject *object)
{
    if (PyTuple_CheckExact(object))
        return 't';
    if (PyList_CheckExact(object))
        return 'l';
    if (PyDict_CheckExact(object))
        return 'd';
    if (PySet_CheckExact(object))
        return 'e';
    return PyFrozenSet_CheckExact(object) ? 'z' : 'r';
}

static int hash_contents(struct hasher *hasher, struct sink *sink, PyObject *object, char tag)
{
    switch (tag) {
    case 't':
    case 'l':
        return hash_items(hasher, sink, object, tag == 'l');
    case 'd':
    case 'e':
    case 'z':
        return hash_unordered(hasher, sink, object, tag == 'd');
    default:
        return hash_by_reduction(hasher, sink, object);
    }
}

static int add_digest(struct sink *sink, char tag, const uint8_t digest[SHOAL_DIGEST_SIZE])
{
    return sink_tag(sink, tag) != 0 ? -1 : sink_add(sink, digest, SHOAL_DIGEST_SIZE);
}

/* What holds other things: by the digest of what it holds. */
static int hash_container(struct hasher *hasher, struct sink *sink, PyObject *object)
{
    char tag = tag_of(object);
    bool shared = tag == 'r' || Py_REFCNT(object) > 2; /* its holder's reference, the caller's, and another's */
    const struct seen *seen = shared ? recall(hasher, object) : NULL;
    if (seen != NULL && hasher->numbered)
        return sink_tag(sink, 'R') != 0 ? -1 : sink_number(sink, seen->number);
    if (seen != NULL)
        return add_digest(sink, seen->tag, seen->digest);

    uint64_t number = hasher->number++;
    int result = 0;
    if (hasher->numbered)
        result = shared ? remember(hasher, object, tag, NULL, number) : 0;
    else if (shared)
        result = enter(hasher, object);
    if (result != 0)
        return result;
    /* Python's own bound for C code counts calls, of up to 10,000; each of ours takes a kilobyte of the stack. */
    if (hasher->depth >= DEPTH_MOST || hasher->depth >= Py_GetRecursionLimit()) {
        PyErr_SetString(PyExc_RecursionError, "maximum recursion depth exceeded while hashing an object");
        return -1;
    }
    hasher->depth++;
    uint8_t digest[SHOAL_DIGEST_SIZE];
    struct sink own;
    sink_begin(&own);
    result = hash_contents(hasher, &own, object, tag);
    if (result == 0)
        result = sink_digest(&own, digest);
    sink_end(&own);
    hasher->depth--;
    if (result != 0)
        return result;
    if (!hasher->numbered && shared) {
        hasher->path_length--;
        if (remember(hasher, object, tag, digest, number) != 0)
            return -1;
    }
    return add_digest(sink, tag, digest);
}

int hash_value(struct hasher *hasher, struct sink *sink, PyObject *object)
{
    PyTypeObject *type = Py_TYPE(object);
    if (type == &PyUnicode_Type)
        return hash_str(sink, object);
    if (type == &PyLong_Type)
        return hash_int(sink, object);
    if (type == &PyFloat_Type) {
        double value = PyFloat_AS_DOUBLE(object);
        return sink_tag(sink, 'f') != 0 ? -1 : sink_add(sink, &value, sizeof value);
    }
    if (object == Py_None)
        return sink_tag(sink, 'N');
    if (type == &PyBool_Type)
        return sink_tag(sink, object == Py_True ? 'T' : 'F');
    if (type == &PyBytes_Type)
        return sink_bytes(sink, 'b', 'B', PyBytes_AS_STRING(object), (size_t)PyBytes_GET_SIZE(object));
    if (type == &PyComplex_Type) {
        Py_complex value = PyComplex_AsCComplex(object);
        return sink_tag(sink, 'c') != 0 ? -1 : sink_add(sink, &value, sizeof value);
    }
    if (type == &PyByteArray_Type) {
        Py_buffer view; /* held, so that it is not resized while the GIL is given up */
        if (PyObject_GetBuffer(object, &view, PyBUF_SIMPLE) != 0)
            return -1;
        int result = sink_bytes(sink, 'a', 'A', view.buf, (size_t)view.len);
        PyBuffer_Release(&view);
        return result;
    }
    if (type == &PyTuple_Type || type == &PyList_Type || type == &PyDict_Type || type == &PySet_Type ||
        type == &PyFrozenSet_Type)
        return hash_container(hasher, sink, object);
    bool done = false;
    int result = hash_array(hasher, sink, object, &done);
    return done || result != 0 ? result : hash_container(hasher, sink, object);
}

int hash_held(struct hasher *hasher, struct sink *sink, PyObject *object)
{
    Py_INCREF(object);
    int result = hash_value(hasher, sink, object);
    Py_DECREF(object);
    return result;
}

int hash_digest(module_state *state, PyObject *object, bool coerce_mmap, uint8_t digest[SHOAL_DIGEST_SIZE])
{
    return hash_digest_with(state, object, &(struct hash_options){.coerce_mmap = coerce_mmap}, digest);
}

int hash_digest_with(module_state *state, PyObject *object, const struct hash_options *options,
                     uint8_t digest[SHOAL_DIGEST_SIZE])
{
    int result = HASH_CYCLE;
    for (int numbered = 0; result == HASH_CYCLE && numbered < 2; numbered++) {
        struct hasher hasher = {.state = state,
                                .functions = options->functions,
                                .meet = options->meet,
                                .context = options->context,
                                .coerce_mmap = options->coerce_mmap,
                                .numbered = numbered != 0};
        struct sink sink;
        sink_begin(&sink);
        result = sink_tag(&sink, numbered != 0 ? '2' : '1');
        if (result == 0)
            result = hash_held(&hasher, &sink, object);
        if (result == 0)
            result = sink_digest(&sink, digest);
        sink_end(&sink);
        forget_all(&hasher);
        PyMem_Free((void *)hasher.path);
    }
    return result;
}
