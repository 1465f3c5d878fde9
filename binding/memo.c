/* memo.c: a call of a cached function, as far as it is a hit.
 *
 * Memo is the base of Python's MemorizedFunc, which leaves tp_call to it: the arguments are bound to the function's
 * parameters, hashed together with what is known of the function, looked up, and the value is unpickled, without a
 * Python frame. All else is the sub-class's, by these methods:
 *
 *     _refresh()                            look at the function (again) and call _describe
 *     _meet(object)                         what a class or function among the arguments means (memo_watch.c)
 *     _call_fully(args, kwargs)             a call that needs more than the short way (messages, validation)
 *     _call_unbound(args, kwargs)           the arguments do not fit the function
 *     _compute(args, kwargs, key, problem)  a miss. problem: None, or what was wrong with the entry
 *
 * The function is looked at again when its code, defaults or the contents of its closure are other objects than before,
 * or what else it rests on has changed (memo_watch.c): mostly some pointers to compare in each call. Parts of an entry:
 * 0 about the call, 1 the pickled value, then its buffers.
 */
#include "memo.h"

#include <errno.h>
#include <string.h>

#define SLOTS 32                        /* parameters that need no allocation */
#define CLAIM_SLICE (SHOAL_SECOND / 10) /* after which a waiter looks for signals */

/* What _describe is told of, or sees. */
#define FOR_EACH_DESCRIBED(self, DO)                                                                                   \
    do {                                                                                                               \
        DO((self)->function);                                                                                          \
        DO((self)->code);                                                                                              \
        DO((self)->defaults);                                                                                          \
        DO((self)->keyword_defaults);                                                                                  \
        DO((self)->cells);                                                                                             \
        DO((self)->contents);                                                                                          \
        DO((self)->watch);                                                                                             \
        DO((self)->identity);                                                                                          \
        DO((self)->names);                                                                                             \
        DO((self)->default_values);                                                                                    \
        DO((self)->nothing);                                                                                           \
        DO((self)->ignored);                                                                                           \
        DO((self)->leading);                                                                                           \
        DO((self)->keywords);                                                                                          \
        DO((self)->met);                                                                                               \
    } while (0)

#define FOR_EACH_MEMBER(self, DO)                                                                                      \
    do {                                                                                                               \
        DO((self)->store);                                                                                             \
        DO((self)->loads);                                                                                             \
        FOR_EACH_DESCRIBED(self, DO);                                                                                  \
    } while (0)

static int memo_traverse(PyObject *object, visitproc visit, void *arg)
{
    MemoObject *self = (MemoObject *)object;
    Py_VISIT(Py_TYPE(object));
    FOR_EACH_MEMBER(self, Py_VISIT);
    return 0;
}

static int memo_clear(PyObject *object)
{
    MemoObject *self = (MemoObject *)object;
    shoal_folder_close(self->folder); /* before the store that it is in */
    self->folder = NULL;
    FOR_EACH_MEMBER(self, Py_CLEAR);
    return 0;
}

static void memo_dealloc(PyObject *object)
{
    PyTypeObject *type = Py_TYPE(object);
    PyObject_GC_UnTrack(object);
    (void)memo_clear(object);
    type->tp_free(object);
    Py_DECREF(type);
}

/* Our own type is a sub-class, made in Python, and the store may be missing: the module is the nearest base's. */
module_state *memo_state(MemoObject *self)
{
    if (self->store != NULL)
        return module_state_of_type(Py_TYPE(self->store));
    PyTypeObject *type = Py_TYPE(self);
    while (type->tp_dealloc != memo_dealloc)
        type = type->tp_base;
    return module_state_of_type(type);
}

/* _open(store, folder, loads). Once: of threads that make the first call at the same time, each finds it not open yet,
 * and what the first of them opened may be in use by others, without the GIL, when the last one comes here. */
static PyObject *memo_open(PyObject *object, PyObject *args)
{
    MemoObject *self = (MemoObject *)object;
    PyObject *store, *loads;
    const char *name;
    shoal_folder *folder;
    if (!PyArg_ParseTuple(args, "OsO:_open", &store, &name, &loads))
        return NULL;
    module_state *state = (module_state *)PyType_GetModuleState(Py_TYPE(store));
    if (state == NULL || (PyObject *)Py_TYPE(store) != state->store_type) {
        PyErr_SetString(PyExc_TypeError, "_open takes a Store");
        return NULL;
    }
    if (self->folder != NULL)
        Py_RETURN_NONE;
    int error = shoal_folder_open(((StoreObject *)store)->store, name, &folder);
    if (error != 0)
        return store_raise(error, name);
    self->folder = folder;
    Py_XSETREF(self->store, Py_NewRef(store));
    Py_XSETREF(self->loads, Py_NewRef(loads));
    Py_RETURN_NONE;
}

/* _describe(function, cells, identity, names, default_values, nothing, ignored, leading, keywords, positional_only,
 *           positional, takes_args, takes_keywords, coerce_mmap, fully, read_only, watch, follow) */
static PyObject *memo_describe(PyObject *object, PyObject *args)
{
    MemoObject *self = (MemoObject *)object;
    PyObject *function, *cells, *identity, *names, *default_values, *nothing, *ignored, *leading, *keywords, *watch;
    Py_ssize_t positional_only, positional;
    int takes_args, takes_keywords, coerce_mmap, fully, read_only, follow;
    if (!PyArg_ParseTuple(args, "OO!SO!O!OSO!O!nnpppppO!p:_describe", &function, &PyTuple_Type, &cells, &identity,
                          &PyTuple_Type, &names, &PyTuple_Type, &default_values, &nothing, &ignored, &PyTuple_Type,
                          &leading, &PyDict_Type, &keywords, &positional_only, &positional, &takes_args,
                          &takes_keywords, &coerce_mmap, &fully, &read_only, &PyTuple_Type, &watch, &follow))
        return NULL;
    Py_ssize_t count = PyTuple_GET_SIZE(names);
    if (PyTuple_GET_SIZE(default_values) != count || PyBytes_GET_SIZE(ignored) != count + 2 || positional < 0 ||
        positional > count || positional_only < 0 || positional_only > positional) {
        PyErr_SetString(PyExc_ValueError, "_describe: the parameters do not fit together");
        return NULL;
    }
    PyObject *contents = PyTuple_New(PyTuple_GET_SIZE(cells));
    if (contents == NULL)
        return NULL;
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(cells); i++) {
        PyObject *cell = PyTuple_GET_ITEM(cells, i);
        PyObject *content = PyCell_Check(cell) ? PyCell_GET(cell) : NULL;
        PyTuple_SET_ITEM(contents, i, Py_NewRef(content != NULL ? content : nothing));
    }
    PyObject *met = follow ? PyDict_New() : NULL;
    if (follow && met == NULL) {
        Py_DECREF(contents);
        return NULL;
    }
    bool watched = PyFunction_Check(function);
    /* All of it first: what goes may run code of its own, and others make calls meanwhile. */
    MemoObject before = *self;
    self->met = met;
    self->function = Py_NewRef(function);
    self->code = watched ? Py_NewRef(PyFunction_GET_CODE(function)) : NULL;
    self->defaults = watched ? Py_XNewRef(PyFunction_GET_DEFAULTS(function)) : NULL;
    self->keyword_defaults = watched ? Py_XNewRef(PyFunction_GET_KW_DEFAULTS(function)) : NULL;
    self->cells = Py_NewRef(cells);
    self->contents = contents;
    self->watch = Py_NewRef(watch);
    self->identity = Py_NewRef(identity);
    self->names = Py_NewRef(names);
    self->default_values = Py_NewRef(default_values);
    self->nothing = Py_NewRef(nothing);
    self->ignored = Py_NewRef(ignored);
    self->leading = Py_NewRef(leading);
    self->keywords = Py_NewRef(keywords);
    self->positional_only = positional_only;
    self->positional = positional;
    self->takes_args = takes_args != 0;
    self->takes_keywords = takes_keywords != 0;
    self->coerce_mmap = coerce_mmap != 0;
    self->fully = fully != 0;
    self->read_only = read_only != 0;
    FOR_EACH_DESCRIBED(&before, Py_XDECREF);
    Py_RETURN_NONE;
}

static int make_current(PyObject *object)
{
    MemoObject *self = (MemoObject *)object;
    if (memo_is_current(self))
        return 0;
    PyObject *result = PyObject_CallMethod(object, "_refresh", NULL);
    if (result == NULL)
        return -1;
    Py_DECREF(result);
    if (self->identity != NULL && (self->store != NULL || self->fully))
        return 0;
    PyErr_SetString(PyExc_RuntimeError, "_refresh did not describe the function");
    return -1;
}

/* ---- binding arguments ---- */

#define UNBOUND 1

static Py_ssize_t find_name(MemoObject *self, PyObject *name)
{
    Py_ssize_t count = PyTuple_GET_SIZE(self->names);
    for (Py_ssize_t i = self->positional_only; i < count; i++)
        if (PyTuple_GET_ITEM(self->names, i) == name)
            return i;
    for (Py_ssize_t i = self->positional_only; i < count; i++)
        if (PyUnicode_Check(name) && PyUnicode_Compare(PyTuple_GET_ITEM(self->names, i), name) == 0)
            return i;
    return -1;
}

/* Keywords into their slots, the rest into *others. `taken`: slots below it were given by position. */
static int bind_keywords(MemoObject *self, PyObject *keywords, Py_ssize_t taken, PyObject **slots, PyObject **others)
{
    PyObject *name, *value;
    Py_ssize_t position = 0;
    while (PyDict_Next(keywords, &position, &name, &value)) {
        Py_ssize_t i = find_name(self, name);
        if (i >= 0 && i < taken)
            return UNBOUND;
        if (i >= 0) {
            slots[i] = value;
            continue;
        }
        if (!self->takes_keywords)
            return UNBOUND;
        if (*others == NULL && (*others = PyDict_New()) == NULL)
            return -1;
        if (PyDict_SetItem(*others, name, value) != 0)
            return -1;
    }
    return 0;
}

/* The call as one tuple: identity, a value for each parameter that counts, *args, **kwargs. 0, -1 or UNBOUND. */
static int bind(MemoObject *self, PyObject *identity, PyObject *args, PyObject *kwargs, PyObject **out)
{
    Py_ssize_t count = PyTuple_GET_SIZE(self->names), before = PyTuple_GET_SIZE(self->leading);
    Py_ssize_t given = before + PyTuple_GET_SIZE(args);
    Py_ssize_t taken = given < self->positional ? given : self->positional;
    PyObject *few[SLOTS], **slots = few, *others = NULL, *rest = NULL, *call = NULL;
    const char *ignored = PyBytes_AS_STRING(self->ignored);
    int result = 0;
    if (given > self->positional && !self->takes_args)
        return UNBOUND;
    if (count > SLOTS && (slots = PyMem_Malloc((size_t)count * sizeof *slots)) == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    for (Py_ssize_t i = 0; i < taken; i++)
        slots[i] = i < before ? PyTuple_GET_ITEM(self->leading, i) : PyTuple_GET_ITEM(args, i - before);
    for (Py_ssize_t i = taken; i < count; i++)
        slots[i] = NULL;
    if (PyDict_GET_SIZE(self->keywords) != 0)
        result = bind_keywords(self, self->keywords, taken, slots, &others);
    if (result == 0 && kwargs != NULL)
        result = bind_keywords(self, kwargs, taken, slots, &others);
    for (Py_ssize_t i = taken; result == 0 && i < count; i++) {
        if (slots[i] == NULL)
            slots[i] = PyTuple_GET_ITEM(self->default_values, i);
        if (slots[i] == self->nothing)
            result = UNBOUND;
    }
    if (result != 0)
        goto done;

    result = -1;
    Py_ssize_t used = 1;
    for (Py_ssize_t i = 0; i < count; i++)
        used += !ignored[i];
    bool with_rest = self->takes_args && !ignored[count], with_others = self->takes_keywords && !ignored[count + 1];
    if (with_rest) {
        rest = PyTuple_New(given - taken);
        if (rest == NULL)
            goto done;
        for (Py_ssize_t i = taken; i < given; i++)
            PyTuple_SET_ITEM(
                rest, i - taken,
                Py_NewRef(i < before ? PyTuple_GET_ITEM(self->leading, i) : PyTuple_GET_ITEM(args, i - before)));
    }
    if (with_others && others == NULL && (others = PyDict_New()) == NULL)
        goto done;
    call = PyTuple_New(used + with_rest + with_others);
    if (call == NULL)
        goto done;
    used = 0;
    PyTuple_SET_ITEM(call, used++, Py_NewRef(identity));
    for (Py_ssize_t i = 0; i < count; i++)
        if (!ignored[i])
            PyTuple_SET_ITEM(call, used++, Py_NewRef(slots[i]));
    if (with_rest)
        PyTuple_SET_ITEM(call, used++, Py_NewRef(rest));
    if (with_others)
        PyTuple_SET_ITEM(call, used++, Py_NewRef(others));
    *out = call;
    result = 0;

done:
    if (slots != few)
        PyMem_Free(slots);
    Py_XDECREF(rest);
    Py_XDECREF(others);
    return result;
}

/* The key of a call. 0, -1 or UNBOUND. */
static int make_key(PyObject *object, PyObject *identity, PyObject *args, PyObject *kwargs, shoal_key *key)
{
    MemoObject *self = (MemoObject *)object;
    PyObject *call = NULL;
    /* As it is now, and held: what bind() allocates may have the collector run code that describes us anew. */
    MemoObject now = *self;
    FOR_EACH_DESCRIBED(&now, Py_XINCREF);
    int result = bind(&now, identity, args, kwargs, &call);
    FOR_EACH_DESCRIBED(&now, Py_XDECREF);
    if (result != 0)
        return result;
    struct memo_meeting meeting = {.memo = self};
    struct hash_options options = {
        .meet = self->met != NULL ? memo_meet : NULL, .context = &meeting, .coerce_mmap = self->coerce_mmap};
    result = hash_digest_with(memo_state(self), call, &options, key->bytes);
    memo_meeting_end(&meeting);
    Py_DECREF(call);
    return result;
}

/* ---- looking up ---- */

/* A key for a folder that is open: 0, or -1 with an exception set. */
static int check_call(MemoObject *self, PyObject *bytes, shoal_key *key)
{
    if (self->folder != NULL && self->identity != NULL)
        return store_key(bytes, key);
    PyErr_SetString(PyExc_RuntimeError, "the function was not described, or its store was closed");
    return -1;
}

/* The value under `key`, or NULL: with an exception set, or without, and then *problem is None (there is no such entry)
 * or says what was wrong with it. */
static PyObject *look_up(MemoObject *self, const shoal_key *key, PyObject **problem)
{
    shoal_entry *entry;
    int error;
    if (self->folder == NULL) {
        PyErr_SetString(PyExc_RuntimeError, "the store was closed");
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    error = shoal_folder_get(self->folder, key, &entry);
    Py_END_ALLOW_THREADS
    if (error == -ENOENT) {
        *problem = Py_NewRef(Py_None);
        return NULL;
    }
    if (error == -EPERM || error == -ENOMEM)
        return store_raise(error, shoal_folder_path(self->folder));
    if (error != 0) {
        *problem = PyUnicode_FromString(shoal_error_text(error));
        return NULL;
    }
    PyObject *parts = store_entry_parts(memo_state(self), entry, 1, self->read_only);
    if (parts == NULL)
        return NULL;
    PyObject *value = NULL;
    Py_ssize_t count = PyTuple_GET_SIZE(parts);
    if (count == 1) {
        value = PyObject_CallOneArg(self->loads, PyTuple_GET_ITEM(parts, 0));
    } else if (count > 1) {
        PyObject *buffers = PyTuple_GetSlice(parts, 1, count);
        PyObject *names = buffers != NULL ? Py_BuildValue("(s)", "buffers") : NULL;
        PyObject *arguments[] = {PyTuple_GET_ITEM(parts, 0), buffers};
        if (names != NULL)
            value = PyObject_Vectorcall(self->loads, arguments, 1, names);
        Py_XDECREF(names);
        Py_XDECREF(buffers);
    } else {
        PyErr_SetString(PyExc_ValueError, "the entry holds no value");
    }
    Py_DECREF(parts);
    /* What cannot be unpickled (a class that is gone, say) is computed again; an interrupt is not the entry's fault. */
    if (value == NULL && PyErr_ExceptionMatches(PyExc_Exception)) {
        PyObject *type, *error_value, *traceback;
        PyErr_Fetch(&type, &error_value, &traceback);
        PyErr_NormalizeException(&type, &error_value, &traceback);
        *problem = error_value != NULL ? Py_NewRef(error_value) : Py_NewRef(Py_None);
        Py_XDECREF(type);
        Py_XDECREF(error_value);
        Py_XDECREF(traceback);
    }
    return value;
}

static PyObject *memo_call(PyObject *object, PyObject *args, PyObject *kwargs)
{
    MemoObject *self = (MemoObject *)object;
    shoal_key key;
    PyObject *problem = NULL;
    if (make_current(object) != 0)
        return NULL;
    PyObject *keywords = kwargs != NULL ? Py_NewRef(kwargs) : NULL;
    if (self->fully)
        goto fully;
    int result = make_key(object, self->identity, args, kwargs, &key);
    if (result < 0)
        goto failed;
    PyObject *value = NULL;
    if (result == 0)
        value = look_up(self, &key, &problem);
    if (value != NULL || (result == 0 && problem == NULL)) {
        Py_XDECREF(keywords);
        return value;
    }
    if (keywords == NULL && (keywords = PyDict_New()) == NULL)
        goto failed;
    if (result == UNBOUND)
        value = PyObject_CallMethod(object, "_call_unbound", "OO", args, keywords);
    else
        value = PyObject_CallMethod(object, "_compute", "OOy#O", args, keywords, (const char *)key.bytes,
                                    (Py_ssize_t)sizeof key.bytes, problem);
    Py_XDECREF(problem);
    Py_DECREF(keywords);
    return value;

fully:
    if (keywords == NULL && (keywords = PyDict_New()) == NULL)
        goto failed;
    value = PyObject_CallMethod(object, "_call_fully", "OO", args, keywords);
    Py_DECREF(keywords);
    return value;

failed:
    Py_XDECREF(keywords);
    return NULL;
}

/* _key(args, kwargs, identity=its own) -> bytes, or None where they do not fit the function */
static PyObject *memo_key(PyObject *object, PyObject *arguments)
{
    PyObject *args, *kwargs, *identity = NULL;
    shoal_key key;
    if (!PyArg_ParseTuple(arguments, "O!O!|S:_key", &PyTuple_Type, &args, &PyDict_Type, &kwargs, &identity) ||
        make_current(object) != 0)
        return NULL;
    if (identity == NULL)
        identity = ((MemoObject *)object)->identity;
    int result = make_key(object, identity, args, kwargs, &key);
    if (result < 0)
        return NULL;
    if (result == UNBOUND)
        Py_RETURN_NONE;
    return PyBytes_FromStringAndSize((const char *)key.bytes, sizeof key.bytes);
}

/* _look_up(key) -> (True, value), or (False, problem) */
static PyObject *memo_look_up(PyObject *object, PyObject *bytes)
{
    shoal_key key;
    PyObject *problem = NULL;
    if (check_call((MemoObject *)object, bytes, &key) != 0)
        return NULL;
    PyObject *value = look_up((MemoObject *)object, &key, &problem);
    if (value != NULL)
        return Py_BuildValue("(ON)", Py_True, value);
    return problem != NULL ? Py_BuildValue("(ON)", Py_False, problem) : NULL;
}

/* _about(key) -> (about the call, created ns, cost ns, identity it was made with), or None */
static PyObject *memo_about(PyObject *object, PyObject *bytes)
{
    MemoObject *self = (MemoObject *)object;
    shoal_key key;
    shoal_entry *entry;
    if (check_call(self, bytes, &key) != 0)
        return NULL;
    int error;
    Py_BEGIN_ALLOW_THREADS
    error = shoal_folder_look(self->folder, &key, &entry);
    Py_END_ALLOW_THREADS
    if (error == -EPERM || error == -ENOMEM)
        return store_raise(error, shoal_folder_path(self->folder));
    if (error != 0)
        Py_RETURN_NONE;
    shoal_entry_numbers numbers;
    shoal_part part;
    PyObject *result = NULL;
    shoal_entry_about(entry, &numbers);
    if (numbers.parts < 2 || shoal_entry_part(entry, 0, &part) != 0)
        result = Py_NewRef(Py_None);
    else
        result = Py_BuildValue("(y#LLy#)", part.data, (Py_ssize_t)part.size, (long long)numbers.created,
                               (long long)numbers.cost, numbers.tag, (Py_ssize_t)sizeof numbers.tag);
    shoal_entry_close(entry);
    return result;
}

/* _keep(key, about, pickled, buffers, cost) */
static PyObject *memo_keep(PyObject *object, PyObject *args)
{
    MemoObject *self = (MemoObject *)object;
    PyObject *bytes, *about, *pickled, *buffers, *result = NULL;
    shoal_key key;
    long long cost;
    if (!PyArg_ParseTuple(args, "OOOO!L:_keep", &bytes, &about, &pickled, &PyList_Type, &buffers, &cost) ||
        check_call(self, bytes, &key) != 0)
        return NULL;
    struct part_list list;
    Py_ssize_t count = PyList_GET_SIZE(buffers);
    if (part_list_begin(&list, count + 2) != 0)
        return NULL;
    int error = part_list_add(&list, about) != 0 || part_list_add(&list, pickled) != 0 ? -1 : 0;
    for (Py_ssize_t i = 0; error == 0 && i < count && i < PyList_GET_SIZE(buffers); i++)
        error = part_list_add(&list, PyList_GET_ITEM(buffers, i));
    if (error == 0) {
        shoal_entry_numbers numbers = {.cost = cost};
        if (PyBytes_GET_SIZE(self->identity) == SHOAL_DIGEST_SIZE)
            memcpy(numbers.tag, PyBytes_AS_STRING(self->identity), sizeof numbers.tag);
        Py_BEGIN_ALLOW_THREADS
        error = shoal_folder_put(self->folder, &key, list.parts, (uint32_t)list.count, &numbers);
        Py_END_ALLOW_THREADS
        result = error == 0 ? Py_NewRef(Py_None) : store_raise(error, shoal_folder_path(self->folder));
    }
    part_list_end(&list);
    return result;
}

/* _remove(key) -> bool; _clear_folder(); _path() */
static PyObject *memo_remove(PyObject *object, PyObject *bytes)
{
    MemoObject *self = (MemoObject *)object;
    shoal_key key;
    if (check_call(self, bytes, &key) != 0)
        return NULL;
    int error;
    Py_BEGIN_ALLOW_THREADS
    error = shoal_folder_remove(self->folder, &key);
    Py_END_ALLOW_THREADS
    return error == 0 || error == -ENOENT ? PyBool_FromLong(error == 0)
                                          : store_raise(error, shoal_folder_path(self->folder));
}

static PyObject *memo_clear_folder(PyObject *object, PyObject *unused)
{
    MemoObject *self = (MemoObject *)object;
    int error = 0;
    Py_BEGIN_ALLOW_THREADS
    if (self->folder != NULL)
        error = shoal_folder_clear(self->folder);
    Py_END_ALLOW_THREADS
    return error == 0 ? Py_NewRef(Py_None) : store_raise(error, shoal_folder_path(self->folder));
}

static PyObject *memo_path(PyObject *object, PyObject *unused)
{
    MemoObject *self = (MemoObject *)object;
    return PyUnicode_DecodeFSDefault(self->folder != NULL ? shoal_folder_path(self->folder) : "");
}

#define CLAIM "shoal._engine.claim"

static void free_claim(PyObject *capsule)
{
    if (PyCapsule_GetContext(capsule) == NULL)
        shoal_claim_release(PyCapsule_GetPointer(capsule, CLAIM));
}

/* _claim(key, timeout ns) -> a claim; False: another has it; None: there are no claims here */
static PyObject *memo_claim(PyObject *object, PyObject *args)
{
    MemoObject *self = (MemoObject *)object;
    PyObject *bytes;
    shoal_key key;
    long long timeout;
    if (!PyArg_ParseTuple(args, "OL:_claim", &bytes, &timeout) || check_call(self, bytes, &key) != 0)
        return NULL;
    shoal_claim *claim = NULL;
    for (;;) {
        int64_t slice = timeout < CLAIM_SLICE ? timeout : CLAIM_SLICE;
        int error;
        Py_BEGIN_ALLOW_THREADS
        error = shoal_folder_claim(self->folder, &key, slice, &claim);
        Py_END_ALLOW_THREADS
        if (error == 0)
            break;
        if (error != -ETIMEDOUT && error != -EINTR)
            Py_RETURN_NONE;
        if (PyErr_CheckSignals() != 0)
            return NULL;
        timeout -= slice;
        if (timeout <= 0)
            Py_RETURN_FALSE;
    }
    PyObject *capsule = PyCapsule_New(claim, CLAIM, free_claim);
    if (capsule == NULL)
        shoal_claim_release(claim);
    return capsule;
}

/* _release(claim): at once, however long a traceback keeps the object */
static PyObject *memo_release(PyObject *object, PyObject *capsule)
{
    shoal_claim *claim = PyCapsule_GetPointer(capsule, CLAIM);
    if (claim == NULL)
        return NULL;
    if (PyCapsule_GetContext(capsule) == NULL) {
        if (PyCapsule_SetContext(capsule, claim) != 0) /* any pointer: it is released */
            return NULL;
        shoal_claim_release(claim);
    }
    Py_RETURN_NONE;
}

static PyMethodDef memo_methods[] = {
    {"_open", memo_open, METH_VARARGS, NULL}, {"_describe", memo_describe, METH_VARARGS, NULL},
    {"_key", memo_key, METH_VARARGS, NULL},   {"_look_up", memo_look_up, METH_O, NULL},
    {"_about", memo_about, METH_O, NULL},     {"_keep", memo_keep, METH_VARARGS, NULL},
    {"_remove", memo_remove, METH_O, NULL},   {"_clear_folder", memo_clear_folder, METH_NOARGS, NULL},
    {"_path", memo_path, METH_NOARGS, NULL},  {"_claim", memo_claim, METH_VARARGS, NULL},
    {"_release", memo_release, METH_O, NULL}, {NULL, NULL, 0, NULL},
};

static PyType_Slot memo_slots[] = {
    {Py_tp_doc, "The short way of a cached function's call; see memo.c."},
    {Py_tp_dealloc, memo_dealloc},
    {Py_tp_traverse, memo_traverse},
    {Py_tp_clear, memo_clear},
    {Py_tp_call, memo_call},
    {Py_tp_methods, memo_methods},
    {0, NULL},
};

static PyType_Spec memo_spec = {
    .name = "shoal._engine.Memo",
    .basicsize = sizeof(MemoObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
    .slots = memo_slots,
};

int memo_add(PyObject *module)
{
    module_state *state = module_get_state(module);
    state->memo_type = PyType_FromModuleAndSpec(module, &memo_spec, NULL);
    return state->memo_type == NULL ? -1 : PyModule_AddObjectRef(module, "Memo", state->memo_type);
}
