/* worker_queue.c: five processes put on a shared queue, are waited for, and then what they put is read.
 *
 *     cc worker_queue.c $(pkg-config --cflags --libs shoal) && ./a.out
 */
#include <shoal.h>

#include <stdio.h>
#include <string.h>

#define WORKERS 5

struct worker {
    shoal_queue *queue;
    int index;
};

/* Runs in a process of its own. */
static int work(void *context)
{
    const struct worker *worker = context;
    char text[64];
    snprintf(text, sizeof text, "Process idx=%d is called 'Worker-%d'", worker->index, worker->index + 1);
    return shoal_queue_put(worker->queue, text, strlen(text) + 1, SHOAL_FOREVER) == 0 ? 0 : 1;
}

static int fail(const char *what, int error)
{
    fprintf(stderr, "%s: %s\n", what, shoal_error_text(error));
    return 1;
}

int main(void)
{
    shoal_queue *queue;
    int error = shoal_queue_create(NULL, &queue);
    if (error != 0)
        return fail("cannot make a queue", error);

    struct worker workers[WORKERS];
    shoal_process *processes[WORKERS];
    for (int i = 0; i < WORKERS; i++) {
        workers[i] = (struct worker){queue, i};
        const shoal_process_options options = {.main = work, .context = &workers[i], .die_with_parent = 1};
        error = shoal_process_start(&options, &processes[i]);
        if (error != 0)
            return fail("cannot start a process", error); /* those that were started end with this one */
    }
    for (int i = 0; i < WORKERS; i++) {
        shoal_exit how = {0};
        error = shoal_process_wait(processes[i], SHOAL_FOREVER, &how);
        shoal_process_close(processes[i]);
        if (error != 0 || how.code != 0 || how.signal != 0)
            return fail("a worker failed", error != 0 ? error : SHOAL_EWORKERDIED);
    }
    for (int i = 0; i < WORKERS; i++) {
        char text[64];
        size_t size;
        error = shoal_queue_get(queue, text, sizeof text, SHOAL_SECOND, &size);
        if (error != 0)
            return fail("cannot read a result", error);
        printf("RESULT: %s\n", text);
    }
    shoal_queue_close(queue);
    return 0;
}
