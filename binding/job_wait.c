/* job_wait.c: waiting for a job, or for a pool to be idle.
 *
 * A thread that waits for one job collects and feeds for all jobs of the pool (feed.c); what it delivers to a job that
 * another thread waits for, it tells that thread (shoal_pool_nudge). It sleeps without the GIL, in slices, between
 * which signals are looked at.
 */
#include "pool.h"

/* A signal that arrives between the last look and the sleep is seen after this long at the latest. */
#define SIGNAL_SLICE (100 * SHOAL_MILLISECOND)

static bool is_satisfied(const PoolObject *pool, const JobObject *job, bool for_next)
{
    if (job == NULL)
        return pool_is_idle(pool);
    /* In a pool that has ended nobody runs the callback that a job still waits for. */
    return for_next ? job_next_is_there(job) || job->complete : job->ready || (job->complete && pool->ended);
}

/* When a thread that waits for all results wants to be called: in time to hand out more, or when nothing is left to
 * take. */
static uint32_t low_water(const PoolObject *pool, const JobObject *job, bool for_next)
{
    if (for_next)
        return 0;
    /* By halves: or all that lies there would be collected at the end, while the workers have nothing to do. */
    if (PyList_GET_SIZE(pool->queue) == 0)
        return shoal_pool_ready(pool->pool) / 2 + 1;
    return job == NULL || job->chunk == 0 ? tasks_ahead(pool) / 2 : 128;
}

int wait_for(PoolObject *pool, JobObject *job, bool for_next, int64_t timeout)
{
    if (is_satisfied(pool, job, for_next))
        return 1;
    if (pool_enter(pool) != 0)
        return -1;
    const int64_t start = shoal_clock_now();
    const int64_t deadline = timeout >= SHOAL_FOREVER - start ? SHOAL_FOREVER : start + timeout;
    int result = -1;
    if (pool->waiters++ == 0 && pool->callbacks == 0)
        shoal_pool_forgo_attention(pool->pool); /* what the supervisor was to be called for, this thread does */
    if (job != NULL)
        job->waiters++;
    for (;;) {
        uint64_t nudges = shoal_pool_nudges(pool->pool);
        bool any = false;
        if (collect_tasks(pool, &any) != 0 || feed_jobs(pool) != 0)
            break;
        if (is_satisfied(pool, job, for_next)) {
            result = 1;
            break;
        }
        if (job != NULL)
            call_feeder(pool, job);
        if (PyErr_CheckSignals() != 0)
            break;
        const int64_t now = shoal_clock_now();
        int64_t left = deadline == SHOAL_FOREVER ? SHOAL_FOREVER : deadline - now;
        if (left <= 0) {
            result = 0;
            break;
        }
        if (any || pool->more)
            continue;
        uint32_t mark = low_water(pool, job, for_next);
        Py_BEGIN_ALLOW_THREADS
        shoal_pool_wait(pool->pool, mark, nudges, now - start, left < SIGNAL_SLICE ? left : SIGNAL_SLICE);
        Py_END_ALLOW_THREADS /* whatever ended the wait is looked for */
    }
    if (job != NULL)
        job->waiters--;
    pool->waiters--;
    request_help(pool);
    /* This thread may have collected the last task of a pool that was closed: the supervisor ends the workers. */
    if (pool->eager && !pool->ended && pool_is_idle(pool))
        shoal_pool_request_attention(pool->pool, 0, 1);
    pool_leave(pool);
    return result;
}
