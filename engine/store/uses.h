/* store/uses.h: when an entry was last used, and how often.
 *
 * The store's file `.uses` is a table of records, mapped and shared by all who use the store, so that a hit notes
 * itself with two stores to memory, once it was made sure that nobody cut the file short. Nothing in it is trusted: a
 * record that is lost, torn or another's moves an entry in the order of eviction, and no more. The file's blocks are
 * all there from the beginning: touching a page that a full disk cannot hold would be a SIGBUS. Where the file cannot
 * be made, nothing is noted, and the time at which an entry was made stands for its last use.
 */
#ifndef SHOAL_STORE_USES_H
#define SHOAL_STORE_USES_H

#include <stdbool.h>
#include <stdint.h>

#include "shoal.h"

#define USES_FILE ".uses"

struct uses;

/* `root`: the store's folder. `create`: make the table where there is none. NULL where there is none in the end. */
struct uses *uses_open(int root, bool create);
void uses_close(struct uses *uses);

/* Note a use now. `fresh`: the entry was put just now, its hits begin at 0. */
void uses_note(struct uses *uses, const shoal_key *key, bool fresh);

/* Seconds since 1970 of the last use, and how often it was used. False: nothing is known. */
bool uses_recall(struct uses *uses, const shoal_key *key, int64_t *last, uint64_t *hits);

#endif
