/* store/hash.h: 128-bit digests of bytes in memory, wherever they lie.
 *
 * One definition of the digest of a stream of bytes serves keys and checksums alike, and is part of the format on disk:
 *
 *     up to HASH_CHUNK bytes    XXH3-128 of the bytes
 *     more                      XXH3-128, seeded with the length, of the XXH3-128 digests of its chunks
 *
 * so that large data can be digested by several threads, and the result does not depend on how many. Digests are kept
 * in XXH3's canonical (big endian) form.
 */
#ifndef SHOAL_STORE_HASH_H
#define SHOAL_STORE_HASH_H

#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#define HASH_DIGEST 16u
#define HASH_CHUNK ((size_t)1 << 20)

/* The digest of the bytes of `pieces`, one after the other. */
void hash_pieces(const struct iovec *pieces, size_t count, uint8_t digest[HASH_DIGEST]);

#endif
