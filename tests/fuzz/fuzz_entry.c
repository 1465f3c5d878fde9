/* fuzz_entry.c: throws bytes at the parser of store entries (libFuzzer; run_fuzz.sh builds and runs it).
 *
 * Of anything that entry_parse accepts, each part must lie within the entry, and be readable to its last byte (the
 * address sanitiser watches the copy's end); a compressed part must expand to what it says, or say that it does not.
 * Random bytes never get past the checksum, so the parser is also run with verification off, and on bytes whose magic,
 * sizes and checksum were set right first. A changed byte must not verify.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "store/compress.h"
#include "store/entry.h"
#include "store/hash.h"

#define EXPANDED_MOST ((size_t)1 << 20)

static void touch_parts(const uint8_t *data, size_t size)
{
    struct entry_header header;
    memcpy(&header, data, sizeof header);
    uint64_t end = 0;
    volatile uint8_t sum = 0;
    for (uint32_t i = 0; i < header.part_count; i++) {
        struct entry_part part;
        if (entry_part_at(data, size, i, &part) != 0)
            abort();
        if (part.offset < end || part.offset > size || part.stored > size - part.offset || part.offset % 64 != 0)
            abort();
        if (part.encoding == 0 && part.size != part.stored)
            abort();
        if (part.encoding != 0 && part.size < EXPANDED_MOST) {
            uint8_t *out = malloc(part.size != 0 ? part.size : 1);
            if (out == NULL)
                abort();
            if (compress_expand(part.encoding, data + part.offset, part.stored, out, part.size) == 0)
                for (uint64_t at = 0; at < part.size; at += 61)
                    sum = (uint8_t)(sum + out[at]);
            free(out);
        }
        end = part.offset + part.stored;
        for (uint64_t at = part.offset; at < end; at += 61)
            sum = (uint8_t)(sum + data[at]);
        if (end > part.offset)
            sum = (uint8_t)(sum + data[end - 1]);
    }
    (void)sum;
}

static void seal(uint8_t *data, size_t size)
{
    struct entry_header header;
    memcpy(&header, data, sizeof header);
    memcpy(header.magic, ENTRY_MAGIC, sizeof header.magic);
    if (!entry_is_known_version(header.version))
        header.version = header.version % 2 != 0 ? ENTRY_VERSION : ENTRY_VERSION_ENCODED;
    header.byte_order = ENTRY_BYTE_ORDER;
    header.header_size = sizeof header;
    header.file_size = size;
    header.flags = 0;
    memcpy(data, &header, sizeof header);
    struct iovec covered = {data + 32, size - 32};
    hash_pieces(&covered, 1, data + offsetof(struct entry_header, checksum));
}

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *input, size_t size)
{
    uint8_t *data = aligned_alloc(64, (size + 64) & ~(size_t)63);
    uint8_t *exact = malloc(size != 0 ? size : 1); /* its end is guarded to the byte */
    if (data == NULL || exact == NULL)
        abort();
    if (size != 0) {
        memcpy(data, input, size);
        memcpy(exact, input, size);
    }

    if (entry_parse(exact, size, NULL, true) == 0)
        touch_parts(exact, size);
    if (entry_parse(exact, size, NULL, false) == 0)
        touch_parts(exact, size);

    if (size >= sizeof(struct entry_header)) {
        seal(data, size);
        memcpy(exact, data, size);
        if (entry_parse(exact, size, NULL, true) == 0) {
            touch_parts(exact, size);
            size_t at = ((size_t)input[0] | (size_t)input[1] << 8 | (size_t)input[2] << 16) % size;
            exact[at] ^= (uint8_t)(1u << (input[3] % 8));
            if (entry_parse(exact, size, NULL, true) == 0)
                abort();
        }
    }
    free(exact);
    free(data);
    return 0;
}
