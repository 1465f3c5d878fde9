/* files.c: large arrays in memory files: written with their digest, and mapped (python/shoal/joblib/_arrays.py).
 *
 * An array's bytes may lie in several files, one after the other: the kernel lets one thread at a time write to a file,
 * and a fresh page takes longer to get than to fill. All parts but the last have the same length, a multiple of CHUNK,
 * which both sides work out from the size and the number of files. The digest is that of the chunks' digests: each is
 * made while its chunk is on its way to the file, and comes out of the processor's cache.
 */
#include "module.h"

#include <errno.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define CHUNK ((size_t)1 << 20)
#define FILES_MOST 64

static size_t part_length(size_t size, size_t files)
{
    const size_t chunks = (size + CHUNK - 1) / CHUNK;
    return (chunks + files - 1) / files * CHUNK;
}

/* What is written or digested: by the threads of a loop, each with parts, or chunks, of its own. */
struct work {
    const uint8_t *data;
    size_t size, part;
    const int *fds;
    uint8_t *digests; /* of each chunk */
    _Atomic int error;
};

static size_t digest_chunk(const struct work *work, size_t offset)
{
    const size_t length = work->size - offset < CHUNK ? work->size - offset : CHUNK;
    shoal_digest(work->data + offset, length, work->digests + offset / CHUNK * SHOAL_DIGEST_SIZE);
    return length;
}

static int write_all(int fd, const uint8_t *data, size_t size, size_t offset)
{
    while (size > 0) {
        const ssize_t written = pwrite(fd, data, size, (off_t)offset);
        if (written < 0 && errno == EINTR)
            continue;
        if (written <= 0)
            return written == 0 ? -EIO : -errno;
        data += written;
        size -= (size_t)written;
        offset += (size_t)written;
    }
    return 0;
}

static void write_parts(size_t begin, size_t end, void *context)
{
    struct work *work = context;
    for (size_t index = begin; index < end; index++) {
        const size_t start = index * work->part;
        for (size_t at = start; at < work->size && at - start < work->part; at += CHUNK) {
            /* relaxed: the loop's end orders it; here it only saves work */
            if (atomic_load_explicit(&work->error, memory_order_relaxed) != 0)
                return;
            const size_t length = digest_chunk(work, at);
            const int error = write_all(work->fds[index], work->data + at, length, at - start);
            if (error != 0)
                atomic_store_explicit(&work->error, error, memory_order_relaxed); /* as above */
        }
    }
}

static void digest_chunks(size_t begin, size_t end, void *context)
{
    for (size_t index = begin; index < end; index++)
        (void)digest_chunk(context, index * CHUNK);
}

/* Digest the bytes, and write them to `files` files where there are any. New reference: the digest. */
static PyObject *do_work(PyObject *data, const int *fds, size_t files)
{
    Py_buffer view;
    if (PyObject_GetBuffer(data, &view, PyBUF_SIMPLE) != 0)
        return NULL;
    struct work work = {.data = view.buf, .size = (size_t)view.len, .fds = fds};
    const size_t chunks = (work.size + CHUNK - 1) / CHUNK;
    uint8_t digest[SHOAL_DIGEST_SIZE];
    work.digests = PyMem_RawMalloc(chunks * SHOAL_DIGEST_SIZE + 1);
    if (work.digests == NULL) {
        PyBuffer_Release(&view);
        return PyErr_NoMemory();
    }
    Py_BEGIN_ALLOW_THREADS
    if (files > 0) {
        work.part = part_length(work.size, files);
        shoal_parallel_for(0, files, 1, write_parts, &work, 0);
    } else {
        shoal_parallel_for(0, chunks, 8, digest_chunks, &work, 0);
    }
    shoal_digest(work.digests, chunks * SHOAL_DIGEST_SIZE, digest);
    Py_END_ALLOW_THREADS
    const int error = atomic_load_explicit(&work.error, memory_order_relaxed); /* the loop is over */
    PyMem_RawFree(work.digests);
    PyBuffer_Release(&view);
    if (error != 0)
        return module_raise(error, "cannot store an array in shared memory");
    return PyBytes_FromStringAndSize((const char *)digest, sizeof digest);
}

/* The descriptors in a sequence: how many; 0 with an exception. */
static size_t take_fds(PyObject *object, int fds[FILES_MOST])
{
    PyObject *sequence = PySequence_Tuple(object); /* ours: a fileno() may change a list */
    if (sequence == NULL)
        return 0;
    const Py_ssize_t count = PyTuple_GET_SIZE(sequence);
    if (count < 1 || count > FILES_MOST)
        PyErr_Format(PyExc_ValueError, "1 to %d files, not %zd", FILES_MOST, count);
    for (Py_ssize_t i = 0; i < count && !PyErr_Occurred(); i++)
        fds[i] = PyObject_AsFileDescriptor(PyTuple_GET_ITEM(sequence, i));
    Py_DECREF(sequence);
    return PyErr_Occurred() ? 0 : (size_t)count;
}

static PyObject *write_files(PyObject *module, PyObject *args)
{
    PyObject *data, *files;
    int fds[FILES_MOST];
    if (!PyArg_ParseTuple(args, "OO:write_files", &data, &files))
        return NULL;
    const size_t count = take_fds(files, fds);
    return count == 0 ? NULL : do_work(data, fds, count);
}

static PyObject *digest_bytes(PyObject *module, PyObject *data)
{
    return do_work(data, NULL, 0);
}

/* ---------------------------------------------------------------------- mapping ---- */

typedef struct {
    PyObject_HEAD
    void *memory; /* MAP_FAILED: not mapped */
    size_t size;
    bool writable;
} MappingObject;

/* Map the files over the address space that was taken for all of them. */
static int map_parts(const MappingObject *self, const int *fds, size_t count, int protection, int flags)
{
    const size_t part = part_length(self->size, count);
    for (size_t i = 0; i < count && i * part < self->size; i++) {
        const size_t left = self->size - i * part, length = left < part ? left : part;
        struct stat status;
        if (fstat(fds[i], &status) != 0)
            return -errno;
        if (status.st_size < 0 || (size_t)status.st_size < length)
            return -EBADMSG; /* touching what is not there would be a SIGBUS */
        if (mmap((uint8_t *)self->memory + i * part, length, protection, flags | MAP_FIXED, fds[i], 0) == MAP_FAILED)
            return -errno;
    }
    return 0;
}

static PyObject *mapping_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"files", "size", "mode", NULL};
    PyObject *files;
    Py_ssize_t size;
    const char *mode;
    int fds[FILES_MOST];
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "Ons:Mapping", names, &files, &size, &mode))
        return NULL;
    const bool reads = strcmp(mode, "r") == 0, copies = strcmp(mode, "c") == 0;
    if (size < 1 || (!reads && !copies && strcmp(mode, "r+") != 0))
        return PyErr_Format(PyExc_ValueError, "cannot map %zd bytes as %s", size, mode);
    const size_t count = take_fds(files, fds);
    MappingObject *self = count == 0 ? NULL : (MappingObject *)type->tp_alloc(type, 0);
    if (self == NULL)
        return NULL;
    self->size = (size_t)size;
    self->writable = !reads;
    self->memory = mmap(NULL, self->size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    int error = -errno;
    if (self->memory != MAP_FAILED)
        error = map_parts(self, fds, count, reads ? PROT_READ : PROT_READ | PROT_WRITE,
                          copies ? MAP_PRIVATE | MAP_NORESERVE : MAP_SHARED);
    if (error != 0) {
        Py_DECREF(self);
        return module_raise(error, "cannot map an array");
    }
    return (PyObject *)self;
}

static void mapping_dealloc(PyObject *object)
{
    MappingObject *self = (MappingObject *)object;
    PyTypeObject *type = Py_TYPE(object);
    if (self->memory != NULL && self->memory != MAP_FAILED)
        (void)munmap(self->memory, self->size);
    type->tp_free(object);
    Py_DECREF(type);
}

static int mapping_getbuffer(PyObject *object, Py_buffer *view, int flags)
{
    MappingObject *self = (MappingObject *)object;
    return PyBuffer_FillInfo(view, object, self->memory, (Py_ssize_t)self->size, !self->writable, flags);
}

static PyType_Slot mapping_slots[] = {
    {Py_tp_doc, "Mapping(files, size, mode)\n--\n\nThe bytes that write_files() wrote to these files. mode: 'r', 'r+' "
                "(others see what is written), 'c' (what is written stays here)."},
    {Py_tp_new, mapping_new},
    {Py_tp_dealloc, mapping_dealloc},
    {Py_bf_getbuffer, mapping_getbuffer},
    {0, NULL},
};

static PyType_Spec mapping_spec = {
    .name = "shoal._engine.Mapping",
    .basicsize = sizeof(MappingObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = mapping_slots,
};

static PyMethodDef functions[] = {
    {"write_files", write_files, METH_VARARGS,
     "write_files(data, files, /)\n--\n\nWrite a contiguous buffer to these empty files, a part to each; its "
     "digest_bytes()."},
    {"digest_bytes", digest_bytes, METH_O, "digest_bytes(data, /)\n--\n\nA 16-byte digest of a contiguous buffer."},
    {NULL, NULL, 0, NULL},
};

int files_add(PyObject *module)
{
    PyObject *type = PyType_FromModuleAndSpec(module, &mapping_spec, NULL);
    if (type == NULL)
        return -1;
    const int error = PyModule_AddObjectRef(module, "Mapping", type);
    Py_DECREF(type);
    return error != 0 ? error : PyModule_AddFunctions(module, functions);
}
