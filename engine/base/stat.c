/* base/stat.c: reads /proc/PID/stat: one line, its fields numbered from 1 in proc(5). */
#include "base/stat.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum field { FIELD_STATE = 3, FIELD_FLAGS = 9, FIELD_THREADS = 20, FIELD_STARTED = 22, FIELD_EXIT_STATUS = 52, FIELDS };

/* The file's text. 0, or as process_stat. */
static int read_text(pid_t pid, char *text, size_t capacity)
{
    char path[40];
    snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        if (errno != ENOENT && errno != ESRCH)
            return -errno;
        /* Not in /proc: gone, or hidden from us, or /proc is not there. */
        return kill(pid, 0) != 0 && errno == ESRCH ? -ESRCH : -ENOENT;
    }
    ssize_t size;
    do
        size = read(fd, text, capacity - 1);
    while (size < 0 && errno == EINTR);
    int error = size < 0 ? -errno : 0; /* ESRCH: it went meanwhile */
    close(fd);
    if (error == 0)
        text[size] = '\0';
    return error;
}

int process_stat(pid_t pid, struct process_stat *out)
{
    char text[1024];
    if (pid <= 0)
        return -ESRCH; /* nobody's; to kill(2) it would mean a group */
    int error = read_text(pid, text, sizeof text);
    if (error != 0)
        return error;
    /* The second field is the program's name in parentheses, which may itself hold spaces and parentheses. */
    const char *at = strrchr(text, ')');
    if (at == NULL || at[1] != ' ' || at[2] == '\0')
        return -EBADMSG;
    unsigned long long fields[FIELDS] = {0};
    int field = FIELD_STATE + 1;
    for (const char *rest = at + 3; field < FIELDS; field++) {
        char *end;
        fields[field] = strtoull(rest, &end, 10);
        if (end == rest)
            break;
        rest = end;
    }
    if (field <= FIELD_STARTED)
        return -EBADMSG;
    *out = (struct process_stat){
        .state = at[2],
        .flags = fields[FIELD_FLAGS],
        .threads = fields[FIELD_THREADS],
        .started = fields[FIELD_STARTED],
        .exit_status = fields[FIELD_EXIT_STATUS],
    };
    return 0;
}
