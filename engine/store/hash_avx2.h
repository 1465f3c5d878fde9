/* store/hash_avx2.h: XXH3 in the wide vectors that x86-64 processors of the last ten years have.
 *
 * xxHash chooses its vectors when it is compiled, and this library is compiled for every x86-64: so the same source is
 * compiled once more for those processors, in a file of its own, as nothing else there may run before it is known that
 * the processor has them. The digest is the same. Called by hash.c alone.
 */
#ifndef SHOAL_STORE_HASH_AVX2_H
#define SHOAL_STORE_HASH_AVX2_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* XXH3-128 of the bytes, in canonical form. Only where the processor has AVX2. */
void hash_avx2(const void *data, size_t size, uint8_t digest[16]);

/* Whether it is worth it: this processor has AVX2, and there is enough for it to do. */
static inline bool hash_suits_avx2(size_t size)
{
#ifdef __x86_64__
    return size >= 1024 && __builtin_cpu_supports("avx2");
#else
    (void)size;
    return false;
#endif
}

#endif
