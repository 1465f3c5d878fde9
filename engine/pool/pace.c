/* pool/pace.c: how many items the next task should hold.
 *
 * Guided self-scheduling (Polychronopoulos and Kuck, 1987) with a bound from measurement: never more than a share of
 * what is left, so that the workers finish together; never more than TASK_TIME's worth, so that results flow and uneven
 * items even out.
 */
#include "shoal.h"

#define TASK_TIME (250 * SHOAL_MICROSECOND)
#define ITEMS_MOST 16384u

uint32_t shoal_pace_next(const shoal_pace *pace, uint64_t left)
{
    if (pace->items == 0)
        return 1;
    int64_t each = pace->elapsed / (int64_t)pace->items;
    uint64_t count = (uint64_t)(TASK_TIME / (each > 0 ? each : 1));
    uint64_t share = left / (2 * (uint64_t)pace->workers);
    if (count > share)
        count = share;
    if (count > ITEMS_MOST)
        count = ITEMS_MOST;
    return count > 0 ? (uint32_t)count : 1;
}

void shoal_pace_note(shoal_pace *pace, const shoal_completion *completion)
{
    uint64_t items = completion->finished - completion->first;
    /* The past fades, so that items that get slower or faster are followed; the first single ones are mostly start-up.
     */
    if (pace->items > 4 * items + 64) {
        pace->items /= 2;
        pace->elapsed /= 2;
    }
    if (items > pace->items * 8) {
        pace->items = 0;
        pace->elapsed = 0;
    }
    pace->items += items;
    pace->elapsed += completion->elapsed;
}
