/* store.c: the store, and hash_object, for Python. The calls of cached functions are in memo.c. */
#include "store.h"

#include <errno.h>
#include <string.h>

#include "hash.h"

PyObject *store_raise(int error, const char *path)
{
    if (error != -EPERM) {
        PyObject *what = PyUnicode_FromFormat("the store at %s", path);
        const char *text = what != NULL ? PyUnicode_AsUTF8(what) : NULL;
        if (text != NULL)
            module_raise(error, text);
        Py_XDECREF(what);
        return NULL;
    }
    PyObject *arguments = Py_BuildValue(
        "(iN)", EPERM,
        PyUnicode_FromFormat(
            "the store at %s is not used: it, the cache around it, or what lies in it, belongs to another "
            "user, or group or others may write to it, so that its contents could be anybody's; take a "
            "folder of your own, or remove it, or chmod -R go-w all of the cache if you know what it holds",
            path));
    if (arguments != NULL)
        PyErr_SetObject(PyExc_OSError, arguments);
    Py_XDECREF(arguments);
    return NULL;
}

int store_key(PyObject *bytes, shoal_key *key)
{
    if (!PyBytes_Check(bytes) || PyBytes_GET_SIZE(bytes) != sizeof key->bytes) {
        PyErr_SetString(PyExc_ValueError, "a key is 16 bytes");
        return -1;
    }
    memcpy(key->bytes, PyBytes_AS_STRING(bytes), sizeof key->bytes);
    return 0;
}

int part_list_begin(struct part_list *list, Py_ssize_t capacity)
{
    list->views = PyMem_Calloc((size_t)(capacity != 0 ? capacity : 1), sizeof *list->views);
    list->parts = PyMem_Calloc((size_t)(capacity != 0 ? capacity : 1), sizeof *list->parts);
    list->count = 0;
    if (list->views != NULL && list->parts != NULL)
        return 0;
    part_list_end(list);
    PyErr_NoMemory();
    return -1;
}

int part_list_add(struct part_list *list, PyObject *object)
{
    Py_buffer *view = &list->views[list->count];
    if (PyObject_GetBuffer(object, view, PyBUF_ANY_CONTIGUOUS) != 0)
        return -1;
    list->parts[list->count++] = (shoal_part){.data = view->buf, .size = (size_t)view->len};
    return 0;
}

void part_list_end(struct part_list *list)
{
    for (Py_ssize_t i = 0; i < list->count; i++)
        PyBuffer_Release(&list->views[i]);
    PyMem_Free(list->views);
    PyMem_Free(list->parts);
}

static PyObject *store_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"path", "flags", "compression", "level", "bytes_limit", NULL};
    PyObject *path;
    unsigned int flags = 0, compression = 0;
    int level = 0;
    unsigned long long bytes_limit = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O&|IIiK:Store", names, PyUnicode_FSConverter, &path, &flags,
                                     &compression, &level, &bytes_limit))
        return NULL;
    StoreObject *self = (StoreObject *)type->tp_alloc(type, 0);
    if (self != NULL) {
        shoal_store_options options = {
            .flags = flags, .compression = compression, .level = level, .bytes_limit = bytes_limit, .copied_parts = 2};
        shoal_store *store = NULL;
        int error;
        Py_BEGIN_ALLOW_THREADS
        error = shoal_store_open(PyBytes_AS_STRING(path), &options, &store);
        Py_END_ALLOW_THREADS
        self->store = store;
        self->path = Py_NewRef(path);
        if (error != 0) {
            store_raise(error, PyBytes_AS_STRING(path));
            Py_CLEAR(self);
        }
    }
    Py_DECREF(path);
    return (PyObject *)self;
}

static void store_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    shoal_store_close(((StoreObject *)self)->store);
    Py_XDECREF(((StoreObject *)self)->path);
    type->tp_free(self);
    Py_DECREF(type);
}

static shoal_folder *open_folder(PyObject *self, const char *name)
{
    shoal_folder *folder;
    int error = shoal_folder_open(((StoreObject *)self)->store, name, &folder);
    if (error == 0)
        return folder;
    store_raise(error, name);
    return NULL;
}

static PyObject *store_get(PyObject *self, PyTypeObject *type, PyObject *const *args, Py_ssize_t count, PyObject *names)
{
    shoal_key key;
    shoal_entry *entry;
    const char *name = count == 2 && names == NULL ? PyUnicode_AsUTF8(args[0]) : NULL;
    if (name == NULL || store_key(args[1], &key) != 0) {
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_TypeError, "get takes a folder and a key");
        return NULL;
    }
    shoal_folder *folder = open_folder(self, name);
    if (folder == NULL)
        return NULL;
    int error;
    Py_BEGIN_ALLOW_THREADS
    error = shoal_folder_get(folder, &key, &entry);
    Py_END_ALLOW_THREADS
    PyObject *result = NULL;
    if (error == 0)
        result = store_entry_parts((module_state *)PyType_GetModuleState(type), entry, 0, false);
    else if (error == -ENOENT)
        result = Py_NewRef(Py_None);
    else
        store_raise(error, shoal_folder_path(folder));
    shoal_folder_close(folder);
    return result;
}

static PyObject *store_put(PyObject *self, PyObject *args)
{
    const char *name;
    PyObject *bytes, *sequence;
    shoal_key key;
    shoal_entry_numbers numbers = {0};
    long long cost = 0;
    if (!PyArg_ParseTuple(args, "sOO|L:put", &name, &bytes, &sequence, &cost) || store_key(bytes, &key) != 0)
        return NULL;
    numbers.cost = cost;
    struct part_list list;
    PyObject *parts = PySequence_Tuple(sequence), *result = NULL;
    if (parts == NULL || part_list_begin(&list, PyTuple_GET_SIZE(parts)) != 0) {
        Py_XDECREF(parts);
        return NULL;
    }
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(parts); i++)
        if (part_list_add(&list, PyTuple_GET_ITEM(parts, i)) != 0)
            goto done;
    shoal_folder *folder = open_folder(self, name);
    if (folder == NULL)
        goto done;
    int error;
    Py_BEGIN_ALLOW_THREADS
    error = shoal_folder_put(folder, &key, list.parts, (uint32_t)list.count, &numbers);
    Py_END_ALLOW_THREADS
    result = error == 0 ? Py_NewRef(Py_None) : store_raise(error, shoal_folder_path(folder));
    shoal_folder_close(folder);

done:
    part_list_end(&list);
    Py_DECREF(parts);
    return result;
}

static PyObject *store_remove(PyObject *self, PyObject *args)
{
    const char *name;
    PyObject *bytes;
    shoal_key key;
    if (!PyArg_ParseTuple(args, "sO:remove", &name, &bytes) || store_key(bytes, &key) != 0)
        return NULL;
    shoal_folder *folder = open_folder(self, name);
    if (folder == NULL)
        return NULL;
    int error;
    Py_BEGIN_ALLOW_THREADS
    error = shoal_folder_remove(folder, &key);
    Py_END_ALLOW_THREADS
    PyObject *result =
        error == 0 || error == -ENOENT ? PyBool_FromLong(error == 0) : store_raise(error, shoal_folder_path(folder));
    shoal_folder_close(folder);
    return result;
}

static PyObject *store_clear(PyObject *self, PyObject *args)
{
    const char *name = NULL;
    if (!PyArg_ParseTuple(args, "|z:clear", &name))
        return NULL;
    shoal_store *store = ((StoreObject *)self)->store;
    shoal_folder *folder = name != NULL ? open_folder(self, name) : NULL;
    if (name != NULL && folder == NULL)
        return NULL;
    int error;
    Py_BEGIN_ALLOW_THREADS
    error = folder != NULL ? shoal_folder_clear(folder) : shoal_store_clear(store);
    Py_END_ALLOW_THREADS
    shoal_folder_close(folder);
    return error == 0 ? Py_NewRef(Py_None)
                      : store_raise(error, name != NULL ? name : PyBytes_AS_STRING(((StoreObject *)self)->path));
}

/* Called without the GIL's being given up: a listing is for people. */
static int append_entry(const char *folder, const shoal_key *key, const shoal_entry_numbers *numbers, int error,
                        void *context)
{
    PyObject *item =
        Py_BuildValue("(sy#KLLiKL)", folder, key->bytes, (Py_ssize_t)sizeof key->bytes,
                      (unsigned long long)numbers->size, (long long)numbers->created, (long long)numbers->cost, error,
                      (unsigned long long)numbers->hits, (long long)numbers->used);
    int result = item != NULL ? PyList_Append(context, item) : -1;
    Py_XDECREF(item);
    return result;
}

static PyObject *store_entries(PyObject *self, PyObject *unused)
{
    PyObject *list = PyList_New(0);
    if (list == NULL)
        return NULL;
    int error = shoal_store_visit(((StoreObject *)self)->store, append_entry, list);
    if (error == 0)
        return list;
    Py_DECREF(list);
    return PyErr_Occurred() ? NULL : store_raise(error, PyBytes_AS_STRING(((StoreObject *)self)->path));
}

/* Hands each entry to a function; what is not None ends the visit. */
static int tell_entry(const char *folder, const shoal_key *key, const shoal_entry_numbers *numbers, int error,
                      void *context)
{
    PyObject *answer = PyObject_CallFunction(context, "sy#Ki", folder, key->bytes, (Py_ssize_t)sizeof key->bytes,
                                             (unsigned long long)numbers->size, error);
    int result = answer == NULL ? -ECANCELED : answer == Py_None ? 0 : 1;
    Py_XDECREF(answer);
    return result == 0 && PyErr_CheckSignals() != 0 ? -ECANCELED : result;
}

static PyObject *store_verify(PyObject *self, PyObject *args)
{
    PyObject *tell;
    int remove = 0;
    if (!PyArg_ParseTuple(args, "O|p:verify", &tell, &remove))
        return NULL;
    int error = shoal_store_verify(((StoreObject *)self)->store, remove, tell_entry, tell);
    if (PyErr_Occurred())
        return NULL;
    return error >= 0 ? Py_NewRef(Py_None) : store_raise(error, PyBytes_AS_STRING(((StoreObject *)self)->path));
}

static PyObject *store_reduce(PyObject *self, PyObject *args)
{
    shoal_store_limits limits = {.bytes = UINT64_MAX, .items = UINT64_MAX};
    PyObject *bytes = Py_None, *items = Py_None;
    long long age = 0;
    if (!PyArg_ParseTuple(args, "|OOL:reduce", &bytes, &items, &age))
        return NULL;
    limits.age = age;
    if (bytes != Py_None)
        limits.bytes = PyLong_AsUnsignedLongLong(bytes);
    if (items != Py_None && !PyErr_Occurred())
        limits.items = PyLong_AsUnsignedLongLong(items);
    if (PyErr_Occurred())
        return NULL;
    shoal_store_reduced done;
    int error;
    Py_BEGIN_ALLOW_THREADS
    error = shoal_store_reduce(((StoreObject *)self)->store, &limits, &done);
    Py_END_ALLOW_THREADS
    if (error != 0)
        return store_raise(error, PyBytes_AS_STRING(((StoreObject *)self)->path));
    return Py_BuildValue("(KKKK)", (unsigned long long)done.removed, (unsigned long long)done.removed_bytes,
                         (unsigned long long)done.items, (unsigned long long)done.bytes);
}

static PyObject *store_remove_listed(PyObject *self, PyObject *args)
{
    const char *name;
    PyObject *bytes = Py_None;
    shoal_key key;
    if (!PyArg_ParseTuple(args, "s|O:remove_listed", &name, &bytes) ||
        (bytes != Py_None && store_key(bytes, &key) != 0))
        return NULL;
    int error;
    Py_BEGIN_ALLOW_THREADS
    error = shoal_store_remove(((StoreObject *)self)->store, name, bytes != Py_None ? &key : NULL);
    Py_END_ALLOW_THREADS
    return error == 0 || error == -ENOENT ? PyBool_FromLong(error == 0) : store_raise(error, name);
}

static PyMethodDef store_methods[] = {
    {"get", (PyCFunction)(void (*)(void))store_get, METH_METHOD | METH_FASTCALL | METH_KEYWORDS,
     "get(folder, key)\n--\n\nThe entry's parts, or None. OSError without errno: what lies there is damaged."},
    {"put", store_put, METH_VARARGS, "put(folder, key, parts, cost=0)\n--\n\nKeep objects with the buffer protocol."},
    {"remove", store_remove, METH_VARARGS, "remove(folder, key)\n--\n\nWhether there was an entry."},
    {"clear", store_clear, METH_VARARGS, "clear(folder=None)\n--\n\nRemove all entries, of one folder or of all."},
    {"entries", store_entries, METH_NOARGS,
     "entries()\n--\n\n(folder, key, bytes, created ns, cost ns, error, hits, used ns) of each entry."},
    {"verify", store_verify, METH_VARARGS,
     "verify(tell, remove=False)\n--\n\nRead all entries; tell(folder, key, bytes, error) of each, error 0 is sound."},
    {"reduce", store_reduce, METH_VARARGS,
     "reduce(bytes=None, items=None, age=0)\n--\n\nRemove what was used longest ago. age: ns; 0 is no limit.\n\n"
     "(removed, bytes removed, items left, bytes left)"},
    {"remove_listed", store_remove_listed, METH_VARARGS,
     "remove_listed(folder, key=None)\n--\n\nRemove by the folder's name on disk. Whether there was one."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot store_slots[] = {
    {Py_tp_doc, "Store(path, flags=0, compression=0, level=0, bytes_limit=0)\n--\n\nValues on disk under a folder's "
                "name and a 16-byte key."},
    {Py_tp_new, store_new},
    {Py_tp_dealloc, store_dealloc},
    {Py_tp_methods, store_methods},
    {0, NULL},
};

static PyType_Spec store_spec = {
    .name = "shoal._engine.Store",
    .basicsize = sizeof(StoreObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = store_slots,
};

static int add_to_list(void *list, PyObject *object, uint8_t digest[SHOAL_DIGEST_SIZE])
{
    (void)digest;
    return PyList_Append(list, object);
}

static PyObject *hash_object(PyObject *module, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"obj", "coerce_mmap", "met", "by_address", NULL};
    PyObject *object, *met = NULL;
    int coerce = 0, by_address = 0;
    uint8_t digest[SHOAL_DIGEST_SIZE];
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|pO!p:hash_object", names, &object, &coerce, &PyList_Type, &met,
                                     &by_address))
        return NULL;
    struct hash_options options = {.meet = met != NULL ? add_to_list : NULL,
                                   .context = met,
                                   .functions = by_address    ? HASH_BY_ADDRESS
                                                : met != NULL ? HASH_BY_CODE
                                                              : HASH_BY_CONTENTS,
                                   .coerce_mmap = coerce != 0};
    if (hash_digest_with(module_get_state(module), object, &options, digest) != 0)
        return NULL;
    return PyBytes_FromStringAndSize((const char *)digest, sizeof digest);
}

static PyObject *configure_store(PyObject *module, PyObject *describe_function)
{
    Py_XSETREF(module_get_state(module)->describe_function, Py_NewRef(describe_function));
    Py_RETURN_NONE;
}

static PyMethodDef functions[] = {
    {"hash_object", (PyCFunction)(void (*)(void))hash_object, METH_VARARGS | METH_KEYWORDS,
     "hash_object(obj, coerce_mmap=False, met=[], by_address=False)\n--\n\nA 16-byte digest of a value. Functions in "
     "it count by what they hold; with `met`, a list that gets them and the classes of objects, by name and code; "
     "by_address: by which object they are."},
    {"configure_store", configure_store, METH_O,
     "configure_store(describe_function)\n--\n\ndescribe_function(function, contents): what tells it from another."},
    {NULL, NULL, 0, NULL},
};

int store_add(PyObject *module)
{
    module_state *state = module_get_state(module);
    state->store_type = PyType_FromModuleAndSpec(module, &store_spec, NULL);
    if (state->store_type == NULL || PyModule_AddObjectRef(module, "Store", state->store_type) != 0 ||
        PyModule_AddIntConstant(module, "STORE_DURABLE", SHOAL_STORE_DURABLE) != 0 ||
        PyModule_AddIntConstant(module, "STORE_NAMED_FILES", SHOAL_STORE_NAMED_FILES) != 0 ||
        PyModule_AddIntConstant(module, "STORE_COPIES", SHOAL_STORE_COPIES) != 0 ||
        PyModule_AddIntConstant(module, "COMPRESS_ZSTD", SHOAL_COMPRESS_ZSTD) != 0 ||
        PyModule_AddIntConstant(module, "COMPRESS_LZ4", SHOAL_COMPRESS_LZ4) != 0 ||
        PyModule_AddFunctions(module, functions) != 0)
        return -1;
    return part_add(module) != 0 || compress_add(module) != 0 ? -1 : memo_add(module);
}
