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

/* A message being written. The first bytes need no allocation. Zero-initialise with codec_writer_begin only. */
struct codec_writer {
    uint8_t *data; /* the message: `size` bytes of `capacity` */
    size_t size, capacity;
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

#define CODEC_SMALL ((size_t)9) /* bytes that codec_encode_small writes at the most */

/* Write an object that is a machine word or less (an int of 64 bits, a float, None, True, False) at `at`. How many
 * bytes; 0: it is something else, nothing was written. */
size_t codec_encode_small(PyObject *object, uint8_t *at);

/* Append one object. 0, or -1 with an exception set (the blocks taken so far stay the writer's). */
int codec_encode(module_state *state, struct codec_writer *writer, PyObject *object);

/* How the blocks of a message become Python memory. */
enum codec_blocks {
    CODEC_VIEW, /* lent: the object lives in the block, which is freed with it. The message's blocks are consumed, also
                   on error */
    CODEC_COPY, /* copied into memory of the process's own; the blocks are left alone */
};

/* An int or a float from the eight bytes behind its tag. */
static inline PyObject *codec_decode_number(uint8_t tag, const uint8_t *bytes)
{
    int64_t integer;
    double number;
    if (tag == 'i') {
        memcpy(&integer, bytes, sizeof integer);
        return PyLong_FromLongLong(integer);
    }
    memcpy(&number, bytes, sizeof number);
    return PyFloat_FromDouble(number);
}

/* codec_decode for what is no number. */
PyObject *codec_decode_other(module_state *state, shoal_heap *heap, const shoal_item *item, enum codec_blocks how);

/* Read one object from an item, all of which it must fill. NULL with an exception set; nothing in the message can crash
 * the reader. Numbers here, as most short tasks have nothing else and a call would take longer than the rest. */
static inline PyObject *codec_decode(module_state *state, shoal_heap *heap, const shoal_item *item,
                                     enum codec_blocks how)
{
    const uint8_t *bytes = item->data;
    if (item->size == CODEC_SMALL && item->block_count == 0 && (bytes[0] == 'i' || bytes[0] == 'd'))
        return codec_decode_number(bytes[0], bytes + 1);
    return codec_decode_other(state, heap, item, how);
}

#endif
