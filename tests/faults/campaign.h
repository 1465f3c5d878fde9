/* tests/faults/campaign.h: what the campaigns share: how long they go on, and whom they kill. */
#ifndef SHOAL_TESTS_CAMPAIGN_H
#define SHOAL_TESTS_CAMPAIGN_H

#define LIMIT campaign_limit()
#include <stdlib.h>

/* Rounds of a campaign: SHOAL_FAULT_ROUNDS, or so many as take some seconds. */
static inline int campaign_rounds(int usual)
{
    const char *text = getenv("SHOAL_FAULT_ROUNDS");
    int rounds = text != NULL ? atoi(text) : 0;
    return rounds > 0 ? rounds : usual;
}

/* Seconds for each test: a minute, and more where more rounds are asked for. */
static inline unsigned campaign_limit(void)
{
    return 60 + 5 * (unsigned)campaign_rounds(0);
}

#include "helpers.h"

/* Whether a pidfd's process is a child of this one: a pid alone may be a stranger's by now. */
static UNUSED bool is_child(pid_t pid)
{
    char path[40], text[512];
    (void)snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
    FILE *file = fopen(path, "re");
    if (file == NULL)
        return false;
    size_t size = fread(text, 1, sizeof text - 1, file);
    fclose(file);
    text[size] = '\0';
    const char *after_name = strrchr(text, ')');
    int parent = 0;
    return after_name != NULL && sscanf(after_name + 1, " %*c %d", &parent) == 1 && parent == getpid();
}

/* Kill a worker that a pool started in this process, and nobody else. */
static UNUSED bool kill_child(pid_t pid)
{
    int fd = pid > 0 ? pidfd_open(pid, 0) : -1;
    if (fd < 0)
        return false;
    bool killed = is_child(pid) && pidfd_send_signal(fd, SIGKILL, NULL, 0) == 0;
    close(fd);
    return killed;
}

static UNUSED void no_child_is_left(void)
{
    int64_t begin = shoal_clock_now();
    pid_t found;
    /* What was killed may take a moment to go. Zombies are reaped here, but a pool must not leave any. */
    while ((found = waitpid(-1, NULL, WNOHANG)) == 0 && shoal_clock_now() - begin < 2 * SHOAL_SECOND)
        sleep_for(SHOAL_MILLISECOND);
    assert_int_equal(found, -1);
    assert_int_equal(errno, ECHILD);
}

#endif
