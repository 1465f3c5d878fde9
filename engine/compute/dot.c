/* compute/dot.c: the dot product of two vectors, at the speed of memory.
 *
 * The vectors are cut into blocks of fixed length. A block's sum is kept in several accumulators of the widest
 * registers that the cpu has; the blocks' sums are added pairwise. So the rounding error grows with the logarithm of
 * the length, and the result is the same for any number of threads (not for any cpu: the width decides the order inside
 * a block).
 */
#include "compute/team.h"

#include <errno.h>
#include <stdlib.h>

#define BLOCK ((size_t)16384)        /* elements: two blocks of float64 fit into a second-level cache */
#define SMALL_BLOCKS 64u             /* up to here no memory is asked for the sums */
#define THREADS_FROM ((size_t)65536) /* elements; below, waking a thread costs more than it does */

typedef double (*block_function)(const double *a, const double *b, size_t count);
typedef double (*block_function_float)(const float *a, const float *b, size_t count);

static double block_portable(const double *a, const double *b, size_t count)
{
    double sums[8] = {0};
    size_t i = 0;
    for (; i + 8 <= count; i += 8) {
        for (size_t j = 0; j < 8; j++)
            sums[j] += a[i + j] * b[i + j];
    }
    for (; i < count; i++)
        sums[0] += a[i] * b[i];
    return ((sums[0] + sums[4]) + (sums[1] + sums[5])) + ((sums[2] + sums[6]) + (sums[3] + sums[7]));
}

/* float32: products and sums in double, where both are exact enough. */
static double block_float_portable(const float *a, const float *b, size_t count)
{
    double sums[8] = {0};
    size_t i = 0;
    for (; i + 8 <= count; i += 8) {
        for (size_t j = 0; j < 8; j++)
            sums[j] += (double)a[i + j] * (double)b[i + j];
    }
    for (; i < count; i++)
        sums[0] += (double)a[i] * (double)b[i];
    return ((sums[0] + sums[4]) + (sums[1] + sums[5])) + ((sums[2] + sums[6]) + (sums[3] + sums[7]));
}

#if defined(__x86_64__)
#include <immintrin.h>

/* No line is asked for ahead of its use: the hardware does that for two plain streams, and software's asking as well
 * took 15 to 30 percent longer (Zen 3, small pages or large, 64 to 1024 elements ahead). */

__attribute__((target("avx2,fma"))) static double block_avx2(const double *a, const double *b, size_t count)
{
    __m256d s0 = _mm256_setzero_pd(), s1 = s0, s2 = s0, s3 = s0;
    size_t i = 0;
    for (; i + 16 <= count; i += 16) {
        s0 = _mm256_fmadd_pd(_mm256_loadu_pd(a + i), _mm256_loadu_pd(b + i), s0);
        s1 = _mm256_fmadd_pd(_mm256_loadu_pd(a + i + 4), _mm256_loadu_pd(b + i + 4), s1);
        s2 = _mm256_fmadd_pd(_mm256_loadu_pd(a + i + 8), _mm256_loadu_pd(b + i + 8), s2);
        s3 = _mm256_fmadd_pd(_mm256_loadu_pd(a + i + 12), _mm256_loadu_pd(b + i + 12), s3);
    }
    double lanes[4];
    _mm256_storeu_pd(lanes, _mm256_add_pd(_mm256_add_pd(s0, s1), _mm256_add_pd(s2, s3)));
    return (lanes[0] + lanes[2]) + (lanes[1] + lanes[3]) + block_portable(a + i, b + i, count - i);
}

__attribute__((target("avx512f"))) static double block_avx512(const double *a, const double *b, size_t count)
{
    __m512d s0 = _mm512_setzero_pd(), s1 = s0, s2 = s0, s3 = s0;
    size_t i = 0;
    for (; i + 32 <= count; i += 32) {
        s0 = _mm512_fmadd_pd(_mm512_loadu_pd(a + i), _mm512_loadu_pd(b + i), s0);
        s1 = _mm512_fmadd_pd(_mm512_loadu_pd(a + i + 8), _mm512_loadu_pd(b + i + 8), s1);
        s2 = _mm512_fmadd_pd(_mm512_loadu_pd(a + i + 16), _mm512_loadu_pd(b + i + 16), s2);
        s3 = _mm512_fmadd_pd(_mm512_loadu_pd(a + i + 24), _mm512_loadu_pd(b + i + 24), s3);
    }
    double sum = _mm512_reduce_add_pd(_mm512_add_pd(_mm512_add_pd(s0, s1), _mm512_add_pd(s2, s3)));
    return sum + block_portable(a + i, b + i, count - i);
}

__attribute__((target("avx2,fma"))) static double block_float_avx2(const float *a, const float *b, size_t count)
{
    __m256d s0 = _mm256_setzero_pd(), s1 = s0;
    size_t i = 0;
    for (; i + 8 <= count; i += 8) {
        s0 = _mm256_fmadd_pd(_mm256_cvtps_pd(_mm_loadu_ps(a + i)), _mm256_cvtps_pd(_mm_loadu_ps(b + i)), s0);
        s1 = _mm256_fmadd_pd(_mm256_cvtps_pd(_mm_loadu_ps(a + i + 4)), _mm256_cvtps_pd(_mm_loadu_ps(b + i + 4)), s1);
    }
    double lanes[4];
    _mm256_storeu_pd(lanes, _mm256_add_pd(s0, s1));
    return (lanes[0] + lanes[2]) + (lanes[1] + lanes[3]) + block_float_portable(a + i, b + i, count - i);
}

static block_function choose(void)
{
    if (__builtin_cpu_supports("avx512f"))
        return block_avx512;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        return block_avx2;
    return block_portable;
}

static block_function_float choose_float(void)
{
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? block_float_avx2 : block_float_portable;
}
#else
static block_function choose(void)
{
    return block_portable;
}

static block_function_float choose_float(void)
{
    return block_float_portable;
}
#endif

struct dot {
    const double *a, *b;
    const float *a_float, *b_float;
    size_t count;
    block_function block;
    block_function_float block_float;
    double *sums;
};

static void do_blocks(size_t begin, size_t end, void *context)
{
    const struct dot *dot = context;
    for (size_t i = begin; i < end; i++) {
        size_t at = i * BLOCK, count = dot->count - at < BLOCK ? dot->count - at : BLOCK;
        dot->sums[i] = dot->a != NULL ? dot->block(dot->a + at, dot->b + at, count)
                                      : dot->block_float(dot->a_float + at, dot->b_float + at, count);
    }
}

/* Pairwise: the error grows with the logarithm of the count. */
static double add_up(const double *sums, size_t count)
{
    if (count <= 8) {
        double sum = 0;
        for (size_t i = 0; i < count; i++)
            sum += sums[i];
        return sum;
    }
    size_t half = count / 2;
    return add_up(sums, half) + add_up(sums + half, count - half);
}

static int run(struct dot *dot, uint32_t threads, double *out)
{
    size_t blocks = (dot->count + BLOCK - 1) / BLOCK;
    double small[SMALL_BLOCKS];
    dot->sums = small;
    if (blocks > SMALL_BLOCKS) {
        dot->sums = malloc(blocks * sizeof *dot->sums);
        if (dot->sums == NULL)
            return -ENOMEM;
    }
    threads = dot->count < THREADS_FROM ? 1 : team_size(threads);
    /* Parts large enough to stream, many enough to even out a core that is busy otherwise. */
    size_t grain = blocks / ((size_t)threads * 16) + 1;
    shoal_parallel_for(0, blocks, grain, do_blocks, dot, threads);
    *out = add_up(dot->sums, blocks);
    if (dot->sums != small)
        free(dot->sums);
    return 0;
}

int shoal_dot(const double *a, const double *b, size_t count, uint32_t threads, double *out)
{
    struct dot dot = {.a = a, .b = b, .count = count, .block = choose()};
    if (count == 0) {
        *out = 0;
        return 0;
    }
    return run(&dot, threads, out);
}

int shoal_dot_float(const float *a, const float *b, size_t count, uint32_t threads, double *out)
{
    struct dot dot = {.a_float = a, .b_float = b, .count = count, .block_float = choose_float()};
    if (count == 0) {
        *out = 0;
        return 0;
    }
    return run(&dot, threads, out);
}
