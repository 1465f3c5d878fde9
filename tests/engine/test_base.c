/* test_base.c: codes have meanings, the clock goes forward, cpus are counted, processes looked at, threads take no
 * signals. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/stat.h"
#include "base/thread.h"
#include "shoal.h"

static void every_code_has_a_meaning_of_its_own(void **state)
{
    (void)state;
    static const int codes[] = {SHOAL_EWORKERDIED, SHOAL_ETASKTIMEOUT, SHOAL_ECANCELLED, SHOAL_ECORRUPT, -EINVAL,
                                -ENOMEM,           -ETIMEDOUT,         -EINTR,           -EPERM,         -ESHUTDOWN,
                                -EMSGSIZE,         -EBADMSG,           -EFBIG,           -ENOSPC,        0};
    for (size_t i = 0; i < sizeof codes / sizeof codes[0]; i++) {
        const char *text = shoal_error_text(codes[i]);
        assert_true(strlen(text) > 3);
        assert_string_not_equal(text, "an unknown error");
        assert_int_not_equal(text[strlen(text) - 1], '.');
        for (size_t k = 0; k < i; k++)
            assert_string_not_equal(text, shoal_error_text(codes[k]));
    }
}

static void a_code_that_nobody_defined_has_a_text_too(void **state)
{
    (void)state;
    assert_string_equal(shoal_error_text(-123456), "an unknown error");
    assert_string_equal(shoal_error_text(INT32_MIN), "an unknown error");
    assert_string_equal(shoal_error_text(5), "an unknown error");
    assert_non_null(shoal_error_text(-EHOSTDOWN)); /* one that Shoal has no text for */
}

static void the_clock_goes_forward_in_nanoseconds(void **state)
{
    (void)state;
    int64_t before = shoal_clock_now();
    usleep(2000);
    int64_t passed = shoal_clock_now() - before;
    assert_true(passed >= 2 * SHOAL_MILLISECOND);
    assert_true(passed < 10 * SHOAL_SECOND);
}

static void a_deadline_never_wraps_around(void **state)
{
    (void)state;
    assert_int_equal(clock_deadline(SHOAL_FOREVER), SHOAL_FOREVER);
    assert_int_equal(clock_deadline(SHOAL_FOREVER - 1), SHOAL_FOREVER);
    int64_t now = shoal_clock_now();
    assert_true(clock_deadline(0) >= now);
    assert_true(clock_deadline(INT64_MIN) >= now);
    assert_true(clock_deadline(SHOAL_SECOND) >= now + SHOAL_SECOND);
}

static void the_cpu_count_follows_the_affinity_mask(void **state)
{
    (void)state;
    cpu_set_t all, one;
    assert_int_equal(sched_getaffinity(0, sizeof all, &all), 0);
    assert_int_equal(shoal_cpu_count(), CPU_COUNT(&all));
    size_t first = 0;
    while (!CPU_ISSET(first, &all))
        first++;
    CPU_ZERO(&one);
    CPU_SET(first, &one);
    assert_int_equal(sched_setaffinity(0, sizeof one, &one), 0);
    assert_int_equal(shoal_cpu_count(), 1);
    assert_int_equal(sched_setaffinity(0, sizeof all, &all), 0);
}

static void a_process_is_seen_as_it_is(void **state)
{
    (void)state;
    struct process_stat stat;
    assert_int_equal(process_stat(0, &stat), -ESRCH);
    assert_int_equal(process_stat(getpid(), &stat), 0);
    assert_int_equal(stat.state, 'R');
    assert_int_equal(stat.threads, 1);
    assert_int_equal(stat.flags & STAT_EXITING, 0);
    const uint64_t started = stat.started;
    const pid_t child = fork();
    if (child == 0) {
        (void)prctl(PR_SET_NAME, "a) Z 1 (b"); /* a name that looks like fields */
        raise(SIGSTOP);
        _exit(7);
    }
    siginfo_t news;
    assert_int_equal(waitid(P_PID, (id_t)child, &news, WSTOPPED), 0);
    assert_int_equal(process_stat(child, &stat), 0);
    assert_int_equal(stat.state, 'T');
    assert_true(stat.started >= started);
    assert_int_equal(kill(child, SIGCONT), 0);
    assert_int_equal(waitid(P_PID, (id_t)child, &news, WEXITED | WNOWAIT), 0);
    assert_int_equal(process_stat(child, &stat), 0);
    assert_int_equal(stat.state, 'Z');
    assert_int_equal(stat.flags & STAT_EXITING, STAT_EXITING);
    assert_int_equal(stat.exit_status, 7 << 8);
    assert_int_equal(waitid(P_PID, (id_t)child, &news, WEXITED), 0);
    assert_int_equal(process_stat(child, &stat), -ESRCH);
}

static void *own_mask(void *out)
{
    (void)pthread_sigmask(SIG_SETMASK, NULL, out);
    return NULL;
}

static void a_thread_of_the_engine_takes_no_signal(void **state)
{
    (void)state;
    sigset_t of_thread, before, after;
    (void)sigemptyset(&of_thread);
    (void)sigemptyset(&before);
    (void)sigaddset(&before, SIGUSR2);
    assert_int_equal(pthread_sigmask(SIG_SETMASK, &before, NULL), 0);
    pthread_t thread;
    assert_int_equal(thread_start(&thread, own_mask, &of_thread, (size_t)256 << 10), 0);
    assert_int_equal(pthread_join(thread, NULL), 0);
    static const int signals[] = {SIGINT, SIGTERM, SIGCHLD, SIGUSR1, SIGALRM, SIGPROF};
    for (size_t i = 0; i < sizeof signals / sizeof signals[0]; i++)
        assert_int_equal(sigismember(&of_thread, signals[i]), 1);
    assert_int_equal(pthread_sigmask(SIG_SETMASK, NULL, &after), 0);
    assert_int_equal(sigismember(&after, SIGUSR2), 1);
    assert_int_equal(sigismember(&after, SIGINT), 0); /* the caller's mask is what it was */
    (void)sigemptyset(&before);
    assert_int_equal(pthread_sigmask(SIG_SETMASK, &before, NULL), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_code_has_a_meaning_of_its_own),
        cmocka_unit_test(a_code_that_nobody_defined_has_a_text_too),
        cmocka_unit_test(the_clock_goes_forward_in_nanoseconds),
        cmocka_unit_test(a_deadline_never_wraps_around),
        cmocka_unit_test(the_cpu_count_follows_the_affinity_mask),
        cmocka_unit_test(a_process_is_seen_as_it_is),
        cmocka_unit_test(a_thread_of_the_engine_takes_no_signal),
    };
    alarm(20);
    return cmocka_run_group_tests_name("base", tests, NULL, NULL);
}
