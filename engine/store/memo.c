/* store/memo.c: calls of C functions on plain data, kept in a store.
 *
 * The key is made of everything that the result depends on as far as we can know: name, input, output size. A value
 * that is damaged, or cannot be kept, costs a computation and nothing else.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "store/folder.h"

static int make_key(const char *name, const void *input, size_t input_size, size_t output_size, shoal_key *key)
{
    shoal_hash *hash;
    int error = shoal_hash_create(&hash);
    if (error != 0)
        return error;
    uint64_t sizes[3] = {strlen(name), input_size, output_size};
    uint8_t digest[SHOAL_DIGEST_SIZE];
    shoal_digest(input_size != 0 ? input : "", input_size, digest); /* by several threads where it is large */
    shoal_hash_update(hash, "memo-1", 6);
    shoal_hash_update(hash, sizes, sizeof sizes);
    shoal_hash_update(hash, name, strlen(name));
    shoal_hash_update(hash, digest, sizeof digest);
    shoal_hash_digest(hash, key->bytes);
    shoal_hash_close(hash);
    return 0;
}

static int64_t now(void)
{
    struct timespec time;
    (void)clock_gettime(CLOCK_MONOTONIC, &time);
    return (int64_t)time.tv_sec * SHOAL_SECOND + time.tv_nsec;
}

/* 1: the output was there and is copied; 0: there is none that can be used; or an error. */
static int look_up(shoal_folder *folder, const shoal_key *key, void *output, size_t output_size)
{
    shoal_entry *entry;
    shoal_part part;
    int error = folder_get_copy(folder, key, &entry);
    if (error != 0)
        return error == -EPERM ? error : 0;
    int found = shoal_entry_part(entry, 0, &part) == 0 && part.size == output_size;
    if (found && output_size != 0)
        memcpy(output, part.data, output_size);
    shoal_entry_close(entry);
    return found;
}

/* How many calls of shoal_memo_call this thread is in. Only the outermost waits for another's claim: two that wait for
 * each other's would wait for ever. */
static _Thread_local unsigned depth;

#define CLAIM_WAIT (INT64_C(600) * SHOAL_SECOND) /* past that we do the work ourselves */

/* Claim the call's entry if that can be: NULL says nothing, the work is done either way. */
static shoal_claim *claim_call(shoal_folder *folder, const shoal_key *key)
{
    shoal_claim *claim = NULL;
    int64_t until = now() + (depth == 0 ? CLAIM_WAIT : 0);
    int error;
    do {
        int64_t left = until - now();
        error = shoal_folder_claim(folder, key, left > 0 ? left : 0, &claim);
    } while (error == -EINTR);
    return error == 0 ? claim : NULL;
}

int shoal_memo_call(shoal_store *store, const char *name, shoal_memo_function function, void *context,
                    const void *input, size_t input_size, void *output, size_t output_size, int *hit)
{
    shoal_folder *folder;
    shoal_claim *claim = NULL;
    shoal_key key;
    if (function == NULL || (input == NULL && input_size > 0) || (output == NULL && output_size > 0))
        return -EINVAL;
    int error = shoal_folder_open(store, name, &folder);
    if (error != 0)
        return error;
    error = make_key(name, input, input_size, output_size, &key);
    if (error != 0)
        goto close_folder;
    int found = look_up(folder, &key, output, output_size);
    if (found < 0) {
        error = found;
        goto close_folder;
    }
    if (found == 0) {
        claim = claim_call(folder, &key);
        found = claim != NULL ? look_up(folder, &key, output, output_size) : 0; /* another may have made it meanwhile */
        if (found < 0) {
            error = found;
            goto close_folder;
        }
    }
    if (found == 0) {
        int64_t started = now();
        depth++;
        error = function(input, input_size, output, output_size, context);
        depth--;
        if (error != 0)
            goto close_folder;
        shoal_part part = {output, output_size, 0};
        shoal_entry_numbers numbers = {.cost = now() - started};
        found = shoal_folder_put(folder, &key, &part, 1, &numbers);
    } else {
        found = 1;
    }
    if (hit != NULL)
        *hit = found;

close_folder:
    shoal_claim_release(claim);
    shoal_folder_close(folder);
    return error;
}
