/* store/inherit.h: descriptors whose locks a child of fork must not keep.
 *
 * A lock of an open file description lives until its last descriptor is closed, and a child of fork has descriptors of
 * its parent's descriptions: it would hold the lock of a parent that is dead. So who takes such a lock enters the
 * descriptor here for as long as it is held, and a child closes what is entered before it does anything else.
 */
#ifndef SHOAL_STORE_INHERIT_H
#define SHOAL_STORE_INHERIT_H

#include <stdint.h>

#define INHERIT_SLOTS 1024u /* descriptors of one process at a time; what is above outlives a fork in the child */

/* Where it was entered; INHERIT_SLOTS: nowhere. */
uint32_t inherit_forbid(int fd);
void inherit_allow(uint32_t slot);

#endif
