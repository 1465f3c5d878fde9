/* store/inherit.h: what a child of fork must not take for its own: descriptors whose locks it would keep, and what its
 * parent's threads were at.
 *
 * A lock of an open file description lives until its last descriptor is closed, and a child of fork has descriptors of
 * its parent's descriptions: it would hold the lock of a parent that is dead. So who takes such a lock enters the
 * descriptor here for as long as it is held, and a child closes what is entered before it does anything else. And a
 * word in memory that names who is at work on something names a process by its generation, which is another in a child.
 */
#ifndef SHOAL_STORE_INHERIT_H
#define SHOAL_STORE_INHERIT_H

#include <stdint.h>

#define INHERIT_SLOTS 1024u /* descriptors of one process at a time; what is above outlives a fork in the child */

/* Where it was entered; INHERIT_SLOTS: nowhere. */
uint32_t inherit_forbid(int fd);
void inherit_allow(uint32_t slot);

/* This process's, never 0: it costs no system call, as a process id does. inherit_prepare comes before the first. */
uint32_t inherit_generation(void);
void inherit_prepare(void);

#endif
