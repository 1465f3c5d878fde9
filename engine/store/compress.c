/* store/compress.c: zstd and lz4, by their own libraries.
 *
 * What is written are whole frames of the two formats, as their command line tools write them, each of which says how
 * long it is; several may follow each other. Called by write.c, read.c and, for files of `dump`, by the binding.
 */
#include "store/compress.h"

#include <errno.h>
#include <lz4frame.h>
#include <stdlib.h>
#include <string.h>
#include <zstd.h>
#include <zstd_errors.h>

#define THREADS_FROM ((size_t)4 << 20) /* bytes from which zstd's helpers are worth their start */
#define THREADS_MOST 4u

size_t shoal_compress_bound(uint32_t method, size_t size)
{
    switch (method) {
    case SHOAL_COMPRESS_ZSTD:
        return ZSTD_compressBound(size);
    case SHOAL_COMPRESS_LZ4:
        return LZ4F_compressFrameBound(size, NULL);
    default:
        return 0;
    }
}

static int compress_zstd(int level, const void *data, size_t size, void *out, size_t capacity, size_t *made)
{
    ZSTD_CCtx *context = ZSTD_createCCtx();
    if (context == NULL)
        return -ENOMEM;
    (void)ZSTD_CCtx_setParameter(context, ZSTD_c_compressionLevel, level != 0 ? level : ZSTD_CLEVEL_DEFAULT);
    uint32_t cpus = shoal_cpu_count();
    if (size >= THREADS_FROM && cpus > 1) /* a library without threads refuses this, which does no harm */
        (void)ZSTD_CCtx_setParameter(context, ZSTD_c_nbWorkers, (int)(cpus < THREADS_MOST ? cpus : THREADS_MOST));
    size_t result = ZSTD_compress2(context, out, capacity, data, size);
    (void)ZSTD_freeCCtx(context);
    if (ZSTD_isError(result))
        return ZSTD_getErrorCode(result) == ZSTD_error_dstSize_tooSmall ? -ENOSPC : -ENOMEM;
    *made = result;
    return 0;
}

static int compress_lz4(int level, const void *data, size_t size, void *out, size_t capacity, size_t *made)
{
    LZ4F_preferences_t preferences = {.compressionLevel = level};
    preferences.frameInfo.contentSize = size;
    preferences.frameInfo.blockSizeID = size > ((size_t)256 << 10) ? LZ4F_max4MB : LZ4F_max256KB;
    if (capacity < LZ4F_compressFrameBound(size, &preferences))
        return -ENOSPC;
    size_t result = LZ4F_compressFrame(out, capacity, data, size, &preferences);
    if (LZ4F_isError(result))
        return -ENOMEM;
    *made = result;
    return 0;
}

int shoal_compress(uint32_t method, int level, const void *data, size_t size, void *out, size_t capacity, size_t *made)
{
    switch (method) {
    case SHOAL_COMPRESS_ZSTD:
        return compress_zstd(level, data, size, out, capacity, made);
    case SHOAL_COMPRESS_LZ4:
        return compress_lz4(level, data, size, out, capacity, made);
    default:
        return -EINVAL;
    }
}

struct shoal_expander {
    ZSTD_DStream *zstd; /* one of the two */
    LZ4F_dctx *lz4;
};

int shoal_expander_create(uint32_t method, shoal_expander **out)
{
    if (method != SHOAL_COMPRESS_ZSTD && method != SHOAL_COMPRESS_LZ4)
        return -EINVAL;
    shoal_expander *expander = calloc(1, sizeof *expander);
    if (expander == NULL)
        return -ENOMEM;
    if (method == SHOAL_COMPRESS_ZSTD)
        expander->zstd = ZSTD_createDStream();
    else if (LZ4F_isError(LZ4F_createDecompressionContext(&expander->lz4, LZ4F_VERSION)))
        expander->lz4 = NULL;
    if (expander->zstd == NULL && expander->lz4 == NULL) {
        free(expander);
        return -ENOMEM;
    }
    *out = expander;
    return 0;
}

void shoal_expander_close(shoal_expander *expander)
{
    if (expander == NULL)
        return;
    (void)ZSTD_freeDStream(expander->zstd);
    (void)LZ4F_freeDecompressionContext(expander->lz4);
    free(expander);
}

int shoal_expander_run(shoal_expander *expander, const void *data, size_t size, size_t *used, void *out,
                       size_t capacity, size_t *made, int *ended)
{
    size_t hint;
    if (expander->zstd != NULL) {
        ZSTD_inBuffer input = {data, size, 0};
        ZSTD_outBuffer output = {out, capacity, 0};
        hint = ZSTD_decompressStream(expander->zstd, &output, &input);
        if (ZSTD_isError(hint))
            return SHOAL_ECORRUPT;
        *used = input.pos;
        *made = output.pos;
    } else {
        *used = size;
        *made = capacity;
        hint = LZ4F_decompress(expander->lz4, out, made, data, used, NULL);
        if (LZ4F_isError(hint)) {
            LZ4F_resetDecompressionContext(expander->lz4);
            return SHOAL_ECORRUPT;
        }
    }
    *ended = hint == 0;
    return 0;
}

int compress_expand(uint32_t method, const void *data, size_t stored, void *out, size_t size)
{
    if (method == SHOAL_COMPRESS_ZSTD) {
        size_t result = ZSTD_decompress(out, size, data, stored);
        return ZSTD_isError(result) || result != size ? SHOAL_ECORRUPT : 0;
    }
    shoal_expander *expander;
    int error = shoal_expander_create(method, &expander);
    if (error != 0)
        return error;
    size_t from = 0, to = 0;
    int ended = 0;
    while (error == 0 && !ended) {
        size_t used, made;
        error = shoal_expander_run(expander, (const char *)data + from, stored - from, &used, (char *)out + to,
                                   size - to, &made, &ended);
        if (error == 0 && used == 0 && made == 0 && !ended)
            error = SHOAL_ECORRUPT; /* it waits for bytes that there are not, or has more than it should */
        if (error == 0) {
            from += used;
            to += made;
        }
    }
    shoal_expander_close(expander);
    return error == 0 && (from != stored || to != size) ? SHOAL_ECORRUPT : error;
}
