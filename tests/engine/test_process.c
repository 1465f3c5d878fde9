/* Starting, watching and ending processes; the zygote. */
#include <stdarg.h>
#include <setjmp.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "shoal.h"

#define LIMIT 60 /* seconds for each test */

static int start_clock(void **state)
{
    (void)state;
    alarm(LIMIT);
    return 0;
}

static int exit_with(void *context)
{
    return *(int *)context;
}

static int kill_itself(void *context)
{
    raise(*(int *)context);
    return 0;
}

static int sleep_long(void *context)
{
    (void)context;
    sleep(30);
    return 0;
}

static shoal_process *start(int (*function)(void *), void *context, int die_with_parent)
{
    const shoal_process_options options = {.main = function, .context = context, .die_with_parent = die_with_parent};
    shoal_process *process;
    assert_int_equal(shoal_process_start(&options, &process), 0);
    return process;
}

static void a_process_tells_its_exit_status(void **state)
{
    (void)state;
    int status = 7;
    shoal_process *process = start(exit_with, &status, 0);
    shoal_exit how = {-1, -1};
    assert_int_equal(shoal_process_wait(process, SHOAL_FOREVER, &how), 0);
    assert_int_equal(how.code, 7);
    assert_int_equal(how.signal, 0);
    how = (shoal_exit){-1, -1};
    assert_int_equal(shoal_process_wait(process, 0, &how), 0); /* again and again */
    assert_int_equal(how.code, 7);
    assert_int_equal(shoal_process_signal(process, SIGTERM), -ESRCH);
    shoal_process_close(process);
}

static void a_process_tells_the_signal_that_ended_it(void **state)
{
    (void)state;
    int number = SIGKILL;
    shoal_process *process = start(kill_itself, &number, 1);
    shoal_exit how;
    assert_int_equal(shoal_process_wait(process, SHOAL_FOREVER, &how), 0);
    assert_int_equal(how.signal, SIGKILL);
    shoal_process_close(process);
}

static void waiting_ends_with_its_time_and_the_process_goes_on(void **state)
{
    (void)state;
    shoal_process *process = start(sleep_long, NULL, 1);
    shoal_exit how;
    assert_int_equal(shoal_process_wait(process, 0, &how), -ETIMEDOUT);
    assert_int_equal(shoal_process_wait(process, 20 * SHOAL_MILLISECOND, &how), -ETIMEDOUT);
    assert_int_equal(kill(shoal_process_pid(process), 0), 0);
    assert_int_equal(shoal_process_signal(process, SIGTERM), 0);
    assert_int_equal(shoal_process_wait(process, SHOAL_FOREVER, &how), 0);
    assert_int_equal(how.signal, SIGTERM);
    shoal_process_close(process);
}

static void a_child_that_somebody_else_reaped_is_said_to_be_unknown(void **state)
{
    (void)state;
    int status = 3;
    shoal_process *process = start(exit_with, &status, 0);
    int reaped;
    assert_int_equal(waitpid(shoal_process_pid(process), &reaped, 0), shoal_process_pid(process));
    shoal_exit how;
    assert_int_equal(shoal_process_wait(process, SHOAL_FOREVER, &how), -ECHILD);
    assert_int_equal(shoal_process_wait(process, 0, &how), -ECHILD);
    shoal_process_close(process);
}

static void adopting_a_process_that_is_not_there_fails(void **state)
{
    (void)state;
    shoal_process *process;
    assert_int_equal(shoal_process_adopt(0x3ffffff, &process), -ESRCH);
}

/* -- dying with the parent -- */

static void *start_in_thread(void *pids)
{
    shoal_process *process = start(sleep_long, NULL, 1);
    *(pid_t *)pids = shoal_process_pid(process);
    return NULL;
}

/* Wait until nobody holds the pipe's other end: every process that inherited it is gone. */
static void assert_all_gone_within_a_second(int pipe_end)
{
    alarm(LIMIT);
    int64_t begin = shoal_clock_now();
    char byte;
    assert_int_equal(read(pipe_end, &byte, 1), 0);
    assert_true(shoal_clock_now() - begin < SHOAL_SECOND);
}

static void what_dies_with_its_parent_is_gone_when_the_parent_is_killed(void **state)
{
    (void)state;
    for (int threaded = 0; threaded < 2; threaded++) {
        int ends[2];
        assert_int_equal(pipe(ends), 0);
        pid_t parent = fork();
        if (parent == 0) {
            close(ends[0]);
            pid_t child = 0;
            pthread_t thread;
            if (threaded) {
                pthread_create(&thread, NULL, start_in_thread, &child);
                pthread_join(thread, NULL);
                usleep(100000); /* the end of the starting thread must not be mistaken for the process's */
                if (kill(child, 0) != 0)
                    _exit(1);
            } else {
                start(sleep_long, NULL, 1);
            }
            if (write(ends[1], "r", 1) != 1)
                _exit(1);
            pause();
        }
        close(ends[1]);
        char byte = 0;
        assert_int_equal(read(ends[0], &byte, 1), 1);
        kill(parent, SIGKILL);
        waitpid(parent, NULL, 0);
        assert_all_gone_within_a_second(ends[0]);
        close(ends[0]);
    }
}

/* -- the zygote -- */

static int serve_one(void *context, const void *request, size_t size, const int *fds, uint32_t fd_count)
{
    (void)context;
    const char *text = request;
    if (size > 0 && text[0] == 'k')
        raise(SIGKILL);
    if (size > 0 && text[0] == 's')
        sleep(30);
    for (uint32_t i = 0; i < fd_count; i++) {
        if (write(fds[i], request, size) != (ssize_t)size)
            return 99;
    }
    return (int)size;
}

static pid_t zygote_pid;

static shoal_zygote *start_zygote_of(const shoal_zygote_service *service)
{
    int ends[2];
    assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends), 0);
    zygote_pid = fork();
    if (zygote_pid == 0) {
        alarm(0);
        close(ends[0]);
        _exit(shoal_zygote_serve(ends[1], service) == 0 ? 0 : 1);
    }
    close(ends[1]);
    shoal_zygote *zygote;
    assert_int_equal(shoal_zygote_attach(ends[0], zygote_pid, &zygote), 0);
    return zygote;
}

static shoal_zygote *start_zygote(void)
{
    const shoal_zygote_service service = {.main = serve_one};
    return start_zygote_of(&service);
}

static void end_zygote(shoal_zygote *zygote)
{
    int status;
    shoal_zygote_close(zygote);
    assert_int_equal(waitpid(zygote_pid, &status, 0), zygote_pid);
    assert_int_equal(status, 0);
}

static void a_zygotes_process_gets_the_request_and_its_descriptors_and_tells_how_it_ended(void **state)
{
    (void)state;
    shoal_zygote *zygote = start_zygote();
    int ends[2];
    assert_int_equal(pipe(ends), 0);
    const int twice[2] = {ends[1], ends[1]};
    shoal_process *process;
    assert_int_equal(shoal_zygote_start_process(zygote, "hello", 5, twice, 2, 0, &process), 0);
    shoal_exit how;
    assert_int_equal(shoal_process_wait(process, SHOAL_FOREVER, &how), 0);
    assert_int_equal(how.code, 5);
    char text[11] = {0};
    assert_int_equal(read(ends[0], text, 10), 10);
    assert_string_equal(text, "hellohello");
    shoal_process_close(process);

    assert_int_equal(shoal_zygote_start_process(zygote, "k", 1, NULL, 0, 0, &process), 0);
    assert_int_equal(shoal_process_wait(process, SHOAL_FOREVER, &how), 0);
    assert_int_equal(how.signal, SIGKILL);
    shoal_process_close(process);
    close(ends[0]);
    close(ends[1]);
    end_zygote(zygote);
}

static void *ask_zygote(void *zygote)
{
    for (size_t i = 0; i < 20; i++) {
        shoal_process *process;
        shoal_exit how = {-1, -1};
        char request[20];
        memset(request, 'x', sizeof request);
        if (shoal_zygote_start_process(zygote, request, i, NULL, 0, 0, &process) != 0)
            return zygote;
        int error = shoal_process_wait(process, SHOAL_FOREVER, &how);
        shoal_process_close(process);
        if (error != 0 || how.code != (int)i)
            return zygote;
    }
    return NULL;
}

static void threads_that_ask_a_zygote_at_once_each_get_their_own(void **state)
{
    (void)state;
    shoal_zygote *zygote = start_zygote();
    pthread_t threads[4];
    for (int i = 0; i < 4; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, ask_zygote, zygote), 0);
    for (int i = 0; i < 4; i++) {
        void *failed;
        pthread_join(threads[i], &failed);
        assert_null(failed);
    }
    end_zygote(zygote);
}

static void a_killed_zygote_does_its_processes_no_harm(void **state)
{
    (void)state;
    shoal_zygote *zygote = start_zygote();
    shoal_process *process;
    assert_int_equal(shoal_zygote_start_process(zygote, "s", 1, NULL, 0, 0, &process), 0);
    kill(zygote_pid, SIGKILL);
    waitpid(zygote_pid, NULL, 0);
    shoal_exit how;
    assert_int_equal(shoal_process_wait(process, 200 * SHOAL_MILLISECOND, &how), -ETIMEDOUT);
    shoal_process *other;
    assert_int_equal(shoal_zygote_start_process(zygote, "x", 1, NULL, 0, 0, &other), -EPIPE);
    assert_int_equal(shoal_process_signal(process, SIGKILL), 0);
    assert_int_equal(shoal_process_wait(process, 5 * SHOAL_SECOND, &how), -ECHILD);
    shoal_process_close(process);
    shoal_zygote_close(zygote);
}

static int descriptor_count(void)
{
    int count = 0;
    for (int fd = 0; fd < 1024; fd++)
        count += fcntl(fd, F_GETFD) >= 0;
    return count;
}

static int is_wanted_yet(void *context)
{
    int *left = context;
    return (*left)-- > 0;
}

static void nobody_waits_for_a_zygote_that_is_stopped(void **state)
{
    (void)state;
    enum { GIVEN_UP = 12, LARGE = 60000 }; /* more than the socket holds */
    static char large[LARGE];
    memset(large, 'x', sizeof large);
    shoal_zygote *zygote = start_zygote();
    shoal_process *sleeper, *process = NULL;
    int ends[2];
    assert_int_equal(pipe(ends), 0);
    assert_int_equal(shoal_zygote_start_process(zygote, "s", 1, NULL, 0, 0, &sleeper), 0);
    const int before = descriptor_count();
    kill(zygote_pid, SIGSTOP);
    for (int i = 0; i < GIVEN_UP; i++) {
        int left = 1;
        assert_int_equal(
            shoal_zygote_start_process_while(zygote, large, LARGE, &ends[1], 1, 0, is_wanted_yet, &left, &process),
            -ECANCELED);
        assert_int_equal(left, -1);
    }
    /* It is gone, but the zygote alone knows how. */
    shoal_exit how;
    assert_int_equal(shoal_process_signal(sleeper, SIGKILL), 0);
    const int64_t begin = shoal_clock_now();
    assert_int_equal(shoal_process_wait(sleeper, 30 * SHOAL_SECOND, &how), -ECHILD);
    assert_true(shoal_clock_now() - begin < 900 * SHOAL_MILLISECOND);
    shoal_process_close(sleeper);
    /* Nor does one whose answer is wanted whatever it takes. */
    const int64_t asked = shoal_clock_now();
    assert_int_equal(shoal_zygote_start_process(zygote, "x", 1, NULL, 0, 0, &process), -ETIMEDOUT);
    assert_true(shoal_clock_now() - asked < 10 * SHOAL_SECOND);
    assert_int_equal(shoal_zygote_is_stopped(zygote), 1);

    kill(zygote_pid, SIGCONT);
    assert_int_equal(shoal_zygote_is_stopped(zygote), 0);
    int left = 1000;
    assert_int_equal(shoal_zygote_start_process_while(zygote, "xy", 2, NULL, 0, 0, is_wanted_yet, &left, &process), 0);
    assert_int_equal(shoal_process_wait(process, SHOAL_FOREVER, &how), 0);
    assert_int_equal(how.code, 2);
    shoal_process_close(process);
    close(ends[1]);
    char text[1];
    assert_int_equal(read(ends[0], text, 1), 0); /* what was given up never ran */
    close(ends[0]);
    assert_int_equal(descriptor_count(), before - 3); /* the pipe's and the sleeper's */
    end_zygote(zygote);
}

/* Be an asker that has two processes forked, of which the second outlives it; tell their pids, wait to be killed. */
static void run_asker(int ready, bool kill_zygote)
{
    shoal_zygote *zygote = start_zygote();
    shoal_process *bound, *outliving;
    if (shoal_zygote_start_process(zygote, "s", 1, NULL, 0, 0, &bound) != 0 ||
        shoal_zygote_start_process(zygote, "s", 1, NULL, 0, SHOAL_ZYGOTE_OUTLIVES, &outliving) != 0)
        _exit(1);
    usleep(50000); /* a process that was forked a moment ago has yet to bind itself */
    if (kill_zygote)
        kill(zygote_pid, SIGKILL);
    const pid_t pids[2] = {shoal_process_pid(bound), shoal_process_pid(outliving)};
    if (write(ready, pids, sizeof pids) != (ssize_t)sizeof pids)
        _exit(1);
    pause();
}

static void a_killed_askers_processes_end_but_for_those_that_outlive_it(void **state)
{
    (void)state;
    for (int kill_zygote = 0; kill_zygote < 2; kill_zygote++) {
        int ready[2];
        assert_int_equal(pipe(ready), 0);
        pid_t asker = fork();
        if (asker == 0) {
            run_asker(ready[1], kill_zygote != 0);
            _exit(1);
        }
        pid_t pids[2];
        assert_int_equal(read(ready[0], pids, sizeof pids), sizeof pids);
        shoal_process *bound, *outliving;
        assert_int_equal(shoal_process_adopt(pids[0], &bound), 0);
        assert_int_equal(shoal_process_adopt(pids[1], &outliving), 0);
        kill(asker, SIGKILL);
        waitpid(asker, NULL, 0);
        shoal_exit how;
        assert_int_equal(shoal_process_wait(bound, 5 * SHOAL_SECOND, &how), -ECHILD);
        assert_int_equal(shoal_process_wait(outliving, 100 * SHOAL_MILLISECOND, &how), -ETIMEDOUT);
        assert_int_equal(shoal_process_signal(outliving, SIGKILL), 0);
        assert_int_equal(shoal_process_wait(outliving, 5 * SHOAL_SECOND, &how), -ECHILD);
        shoal_process_close(bound);
        shoal_process_close(outliving);
        close(ready[0]);
        close(ready[1]);
    }
}

/* -- what is not let run -- */

struct hooks {
    int ran[2];     /* written to by what runs */
    int forked[2];  /* written to by the zygote, once it has forked */
    int proceed[2]; /* read by the zygote before it dies */
};

static int tell_that_it_ran(void *context, const void *request, size_t size, const int *fds, uint32_t fd_count)
{
    (void)request, (void)size, (void)fds, (void)fd_count;
    return write(((struct hooks *)context)->ran[1], "r", 1) == 1 ? 0 : 1;
}

static pid_t fork_and_kill_the_asker(void *context)
{
    (void)context;
    pid_t asker = getppid();
    pid_t pid = fork();
    if (pid > 0)
        kill(asker, SIGKILL);
    return pid;
}

static void a_request_whose_asker_is_gone_before_the_go_ahead_never_runs(void **state)
{
    (void)state;
    struct hooks hooks;
    assert_int_equal(pipe(hooks.ran), 0);
    pid_t asker = fork();
    if (asker == 0) {
        const shoal_zygote_service service = {
            .main = tell_that_it_ran, .context = &hooks, .fork = fork_and_kill_the_asker};
        shoal_process *process;
        /* One that outlives the asker: the others are killed with it. */
        (void)shoal_zygote_start_process(start_zygote_of(&service), "x", 1, NULL, 0, SHOAL_ZYGOTE_OUTLIVES, &process);
        _exit(1);
    }
    int status;
    assert_int_equal(waitpid(asker, &status, 0), asker);
    assert_true(WIFSIGNALED(status));
    close(hooks.ran[1]);
    assert_all_gone_within_a_second(hooks.ran[0]);
    close(hooks.ran[0]);
}

static pid_t fork_and_die(void *context)
{
    struct hooks *hooks = context;
    pid_t pid = fork();
    if (pid > 0) {
        char byte;
        if (write(hooks->forked[1], "f", 1) == 1 && read(hooks->proceed[0], &byte, 1) == 1)
            raise(SIGKILL);
        _exit(1);
    }
    return pid;
}

static void *start_one(void *zygote)
{
    shoal_process *process;
    /* As an error's number: what a thread returns is a pointer. */
    return (void *)(intptr_t)shoal_zygote_start_process(zygote, "x", 1, NULL, 0, SHOAL_ZYGOTE_OUTLIVES, &process);
}

static void what_a_zygote_forked_that_died_before_it_replied_never_runs(void **state)
{
    (void)state;
    struct hooks hooks;
    assert_int_equal(pipe(hooks.ran) | pipe(hooks.forked) | pipe(hooks.proceed), 0);
    const shoal_zygote_service service = {.main = tell_that_it_ran, .context = &hooks, .fork = fork_and_die};
    shoal_zygote *zygote = start_zygote_of(&service);
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, start_one, zygote), 0);
    char byte;
    assert_int_equal(read(hooks.forked[0], &byte, 1), 1);
    /* A process that was forked meanwhile holds the write end of the go-ahead: its end of file alone will not do. */
    pid_t holder = fork();
    if (holder == 0) {
        alarm(LIMIT);
        close(hooks.ran[1]);
        pause();
    }
    assert_int_equal(write(hooks.proceed[1], "p", 1), 1);
    void *error;
    pthread_join(thread, &error);
    assert_int_equal((intptr_t)error, -EPIPE);
    close(hooks.ran[1]);
    assert_all_gone_within_a_second(hooks.ran[0]);
    assert_int_equal(waitpid(zygote_pid, NULL, 0), zygote_pid);
    kill(holder, SIGKILL);
    assert_int_equal(waitpid(holder, NULL, 0), holder);
    shoal_zygote_close(zygote);
    close(hooks.ran[0]);
    for (int i = 0; i < 2; i++) {
        close(hooks.forked[i]);
        close(hooks.proceed[i]);
    }
}

static int count_descriptors(void *context, const void *request, size_t size, const int *fds, uint32_t fd_count)
{
    (void)context, (void)request, (void)size, (void)fds, (void)fd_count;
    return descriptor_count();
}

static void a_start_leaves_no_descriptor_behind_on_either_side(void **state)
{
    (void)state;
    const shoal_zygote_service service = {.main = count_descriptors};
    shoal_zygote *zygote = start_zygote_of(&service);
    int fds[SHOAL_ZYGOTE_FDS] = {0}; /* as many as there may be */
    const int before = descriptor_count();
    int codes[3];
    for (int i = 0; i < 3; i++) {
        shoal_process *process;
        shoal_exit how;
        assert_int_equal(shoal_zygote_start_process(zygote, "x", 1, fds, i < 2 ? 1 : 100, 0, &process), 0);
        assert_int_equal(shoal_process_wait(process, SHOAL_FOREVER, &how), 0);
        shoal_process_close(process);
        codes[i] = how.code;
    }
    assert_int_equal(codes[1], codes[0]);
    assert_int_equal(codes[2], codes[0] + 99);
    shoal_process *process;
    assert_int_equal(shoal_zygote_start_process(zygote, "x", 1, fds, SHOAL_ZYGOTE_FDS, 0, &process), 0);
    shoal_process_close(process);
    assert_int_equal(descriptor_count(), before);
    end_zygote(zygote);
}

static void what_is_too_large_for_a_zygote_is_refused(void **state)
{
    (void)state;
    shoal_zygote *zygote = start_zygote();
    char *large = calloc(1, SHOAL_ZYGOTE_REQUEST + 1);
    shoal_process *process;
    assert_int_equal(shoal_zygote_start_process(zygote, large, SHOAL_ZYGOTE_REQUEST + 1, NULL, 0, 0, &process),
                     -EMSGSIZE);
    int fds[SHOAL_ZYGOTE_FDS + 1] = {0};
    assert_int_equal(shoal_zygote_start_process(zygote, large, 1, fds, SHOAL_ZYGOTE_FDS + 1, 0, &process), -EMSGSIZE);
    free(large);
    end_zygote(zygote);
}

static void a_zygote_passes_over_what_its_asker_would_not_send(void **state)
{
    (void)state;
    int ends[2];
    assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends), 0);
    pid_t pid = fork();
    if (pid == 0) {
        close(ends[0]);
        const shoal_zygote_service service = {.main = serve_one};
        _exit(shoal_zygote_serve(ends[1], &service) == 0 ? 0 : 1);
    }
    close(ends[1]);
    srand(1);
    for (int i = 0; i < 200; i++) {
        unsigned char garbage[100];
        for (size_t j = 0; j < sizeof garbage; j++)
            garbage[j] = (unsigned char)rand();
        assert_true(send(ends[0], garbage, (size_t)(1 + rand() % 100), MSG_NOSIGNAL) > 0);
    }
    close(ends[0]);
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
}

/* -- forks beside threads that wait -- */

static void *wait_for_process(void *process)
{
    shoal_exit how;
    (void)shoal_process_wait(process, SHOAL_FOREVER, &how);
    return NULL;
}

/* Fork, and have the child do something that must not take long there. */
static void assert_a_child_may(void (*act)(void *), void *handle)
{
    const pid_t pid = fork();
    if (pid == 0) {
        alarm(5);
        act(handle);
        _exit(0);
    }
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
}

static void look_at_a_parents_process(void *process)
{
    shoal_exit how;
    if (shoal_process_wait(process, 0, &how) != -ECHILD)
        _exit(1);
    shoal_process_close(process);
}

static void a_child_forked_while_a_thread_learns_of_an_end_may_ask_too(void **state)
{
    (void)state;
    shoal_zygote *zygote = start_zygote();
    shoal_process *process;
    assert_int_equal(shoal_zygote_start_process(zygote, "s", 1, NULL, 0, 0, &process), 0);
    kill(zygote_pid, SIGSTOP); /* it tells nobody: who asks it waits for a while */
    kill(shoal_process_pid(process), SIGKILL);
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, wait_for_process, process), 0);
    usleep(50000);
    assert_a_child_may(look_at_a_parents_process, process);
    pthread_join(thread, NULL);
    kill(zygote_pid, SIGCONT);
    shoal_process_close(process);
    end_zygote(zygote);
}

static _Atomic int peer_ends;

/* A zygote that answers nothing that it is asked, and never rests. */
static void *babble(void *socket)
{
    while (atomic_load(&peer_ends) == 0)
        (void)send(*(int *)socket, "?", 1, MSG_NOSIGNAL);
    return NULL;
}

static int is_still_wanted(void *context)
{
    (void)context;
    return atomic_load(&peer_ends) == 0;
}

static void *ask_in_vain(void *zygote)
{
    shoal_process *process;
    (void)shoal_zygote_start_process_while(zygote, "", 0, NULL, 0, 0, is_still_wanted, NULL, &process);
    return NULL;
}

static void close_a_parents_zygote(void *zygote)
{
    shoal_zygote_close(zygote);
}

static void a_child_forked_while_a_thread_reads_from_a_zygote_may_close_it(void **state)
{
    (void)state;
    int ends[2];
    assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends), 0);
    shoal_zygote *zygote;
    assert_int_equal(shoal_zygote_attach(ends[0], getpid(), &zygote), 0);
    atomic_store(&peer_ends, 0);
    pthread_t asker, peer;
    assert_int_equal(pthread_create(&asker, NULL, ask_in_vain, zygote), 0);
    assert_int_equal(pthread_create(&peer, NULL, babble, &ends[1]), 0);
    for (int i = 0; i < 200; i++)
        assert_a_child_may(close_a_parents_zygote, zygote);
    atomic_store(&peer_ends, 1);
    pthread_join(peer, NULL);
    pthread_join(asker, NULL);
    shoal_zygote_close(zygote);
    close(ends[1]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(a_process_tells_its_exit_status, start_clock),
        cmocka_unit_test_setup(a_process_tells_the_signal_that_ended_it, start_clock),
        cmocka_unit_test_setup(waiting_ends_with_its_time_and_the_process_goes_on, start_clock),
        cmocka_unit_test_setup(a_child_that_somebody_else_reaped_is_said_to_be_unknown, start_clock),
        cmocka_unit_test_setup(adopting_a_process_that_is_not_there_fails, start_clock),
        cmocka_unit_test_setup(what_dies_with_its_parent_is_gone_when_the_parent_is_killed, start_clock),
        cmocka_unit_test_setup(a_zygotes_process_gets_the_request_and_its_descriptors_and_tells_how_it_ended,
                               start_clock),
        cmocka_unit_test_setup(threads_that_ask_a_zygote_at_once_each_get_their_own, start_clock),
        cmocka_unit_test_setup(a_killed_zygote_does_its_processes_no_harm, start_clock),
        cmocka_unit_test_setup(nobody_waits_for_a_zygote_that_is_stopped, start_clock),
        cmocka_unit_test_setup(a_killed_askers_processes_end_but_for_those_that_outlive_it, start_clock),
        cmocka_unit_test_setup(a_request_whose_asker_is_gone_before_the_go_ahead_never_runs, start_clock),
        cmocka_unit_test_setup(what_a_zygote_forked_that_died_before_it_replied_never_runs, start_clock),
        cmocka_unit_test_setup(a_start_leaves_no_descriptor_behind_on_either_side, start_clock),
        cmocka_unit_test_setup(what_is_too_large_for_a_zygote_is_refused, start_clock),
        cmocka_unit_test_setup(a_zygote_passes_over_what_its_asker_would_not_send, start_clock),
        cmocka_unit_test_setup(a_child_forked_while_a_thread_learns_of_an_end_may_ask_too, start_clock),
        cmocka_unit_test_setup(a_child_forked_while_a_thread_reads_from_a_zygote_may_close_it, start_clock),
    };
    return cmocka_run_group_tests_name("process", tests, NULL, NULL);
}
