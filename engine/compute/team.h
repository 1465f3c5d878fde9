/* compute/team.h: what dot.c asks the team. */
#ifndef SHOAL_COMPUTE_TEAM_H
#define SHOAL_COMPUTE_TEAM_H

#include "shoal.h"

/* How many threads a loop would use that asks for `threads` (0: as many as there are cpus, or SHOAL_NUM_THREADS). */
uint32_t team_size(uint32_t threads);

#endif
