/* codec.h: Python objects as bytes, and back.
 *
 * Exact None, bool, int, float, str, bytes and flat tuples of these have a compact tagged form written here; everything
 * else is pickled with protocol 5. Buffers of SHOAL_VIEW_MINIMUM bytes or more travel beside the bytes, each in a block
 * of the heap, and arrive as views of that block; smaller ones are part of the bytes.
 *
 * A reader trusts no byte: lengths and tags are checked against the message's end.
 */
#ifndef SHOAL_BINDING_CODEC_H
#define SHOAL_BINDING_CODEC_H

#include <string.h>

#include "module.h"

/* What an item is: eight bytes of a number or a name, or a message of any length in the form that codec.c describes. */
enum codec_kind { CODEC_MESSAGE = 0, CODEC_INTEGER = 1, CODEC_FLOAT = 2, CODEC_CONSTANT = 3, CODEC_KINDS = 4 };

/* A message being written. The first bytes need no allocation. Zero-initialise with codec_writer_begin only. */
struct codec_writer {
    uint8_t *data; /* the message: `size` bytes of `capacity` */
    size_t size, capacity;
    enum codec_kind kind;
    shoal_block *blocks; /* what travels beside it, owned by `owner` until handed on */
    uint32_t block_count, block_capacity;
    shoal_heap *heap; /* where large buffers go; NULL: everything goes into the bytes */
    uint32_t owner;
    bool foreign_main; /* the reader's __main__ is another program: what ours defines goes by value. False at first */
    uint8_t first[512];
    shoal_block first_blocks[4];
};

void codec_writer_begin(struct codec_writer *writer, shoal_heap *heap, uint32_t owner);
/* Start the next message in the same writer; the blocks of the last one were handed on. */
void codec_writer_reset(struct codec_writer *writer);
/* Free what the writer holds; `keep_blocks`: they were handed on. */
void codec_writer_end(struct codec_writer *writer, bool keep_blocks);

/* Write an object that is a machine word or less: an int of 64 bits, a float, None, True, False. CODEC_MESSAGE: it is
 * something else, nothing was written. Here, as most short tasks are given and give nothing else. */
static inline enum codec_kind codec_encode_word(PyObject *object, uint64_t *word)
{
    if (PyLong_CheckExact(object)) {
        int overflow;
        *word = (uint64_t)PyLong_AsLongLongAndOverflow(object, &overflow);
        return overflow == 0 ? CODEC_INTEGER : CODEC_MESSAGE;
    }
    if (PyFloat_CheckExact(object)) {
        const double value = PyFloat_AS_DOUBLE(object);
        memcpy(word, &value, sizeof value);
        return CODEC_FLOAT;
    }
    *word = object == Py_None ? 'N' : object == Py_True ? 'T' : 'F';
    return object == Py_None || PyBool_Check(object) ? CODEC_CONSTANT : CODEC_MESSAGE;
}

/* Write one object. 0, or -1 with an exception set (the blocks taken so far stay the writer's). */
int codec_encode(module_state *state, struct codec_writer *writer, PyObject *object);

/* What was written, as long as the writer is not used. */
static inline shoal_item codec_item(const struct codec_writer *writer)
{
    return (shoal_item){
        .data = writer->data,
        .size = writer->size,
        .blocks = writer->blocks,
        .block_count = writer->block_count,
        .kind = writer->kind,
    };
}

/* How the blocks of a message become Python memory. */
enum codec_blocks {
    CODEC_VIEW, /* lent: the object lives in the block, which is freed with it. The message's blocks are consumed, also
                   on error */
    CODEC_COPY, /* copied into memory of the process's own; the blocks are left alone */
};

/* Read one object from an item, all of which it must fill. NULL with an exception set; nothing in the item can crash
 * the reader. */
PyObject *codec_decode_item(module_state *state, shoal_heap *heap, const shoal_item *item, enum codec_blocks how);

/* The same: ints and floats here, as codec_encode_word. */
static inline PyObject *codec_decode(module_state *state, shoal_heap *heap, const shoal_item *item,
                                     enum codec_blocks how)
{
    if (item->kind == CODEC_INTEGER && item->size == sizeof(int64_t) && item->block_count == 0) {
        int64_t integer;
        memcpy(&integer, item->data, sizeof integer);
        return PyLong_FromLongLong(integer);
    }
    if (item->kind == CODEC_FLOAT && item->size == sizeof(double) && item->block_count == 0) {
        double number;
        memcpy(&number, item->data, sizeof number);
        return PyFloat_FromDouble(number);
    }
    return codec_decode_item(state, heap, item, how);
}

#endif
