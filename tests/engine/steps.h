/* tests/engine/steps.h: lead a child by ptrace to any one instruction of a call, to stop or kill it there.
 *
 * What must hold if a process is stopped, or dies, at whichever instruction is tried at each in turn. A campaign of
 * random kills hits the few instructions between two steps of a protocol once in hours. Where all that others see is
 * what system calls did, it is led to each of those instead: step_lead_calls.
 */
#ifndef SHOAL_TESTS_STEPS_H
#define SHOAL_TESTS_STEPS_H

#include "helpers.h"

#include <sys/ptrace.h>

#define STEPS_ENOUGH (12 * SHOAL_SECOND) /* for one call: each instruction on the way takes some microseconds */
#define STEPS_ALL_OF_THE_LAST 240
#define STEPS_STRIDE 97

/* In the child, around the call in question: before and behind it. What a process does only once comes before. */
static UNUSED void step_mark(bool first)
{
    if (first)
        CHECK(ptrace(PTRACE_TRACEME, 0, NULL, NULL) == 0);
    raise(SIGSTOP);
}

/* Let the child run to `count` instructions behind its first mark, or to the second. Out: how many it came. */
static UNUSED int step_lead(pid_t child, int count)
{
    int status, steps = 0;
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(WIFSTOPPED(status) && WSTOPSIG(status) == SIGSTOP);
    while (steps < count) {
        CHECK(ptrace(PTRACE_SINGLESTEP, child, NULL, NULL) == 0);
        CHECK(waitpid(child, &status, 0) == child);
        CHECK(WIFSTOPPED(status));
        if (WSTOPSIG(status) == SIGSTOP)
            break;
        CHECK(WSTOPSIG(status) == SIGTRAP);
        steps++;
    }
    return steps;
}

/* Let a child that was led by step_lead_calls run `count` such steps further. */
static UNUSED int step_on_calls(pid_t child, int count)
{
    int status, steps = 0;
    while (steps < count) {
        CHECK(ptrace(PTRACE_SYSCALL, child, NULL, NULL) == 0);
        CHECK(waitpid(child, &status, 0) == child);
        CHECK(WIFSTOPPED(status));
        if (WSTOPSIG(status) == SIGSTOP)
            break;
        CHECK(WSTOPSIG(status) == (SIGTRAP | 0x80));
        steps++;
    }
    return steps;
}

/* As step_lead by system calls, each of which is two steps: before it and behind it. Killed before one, it does not do
 * it. */
static UNUSED int step_lead_calls(pid_t child, int count)
{
    int status;
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(WIFSTOPPED(status) && WSTOPSIG(status) == SIGSTOP);
    CHECK(ptrace(PTRACE_SETOPTIONS, child, NULL, (void *)PTRACE_O_TRACESYSGOOD) == 0);
    return step_on_calls(child, count);
}

/* Let the child go on to its end, which must be a good one. */
static UNUSED void step_release(pid_t child)
{
    int status;
    CHECK(ptrace(PTRACE_DETACH, child, NULL, NULL) == 0);
    while (waitpid(child, &status, WUNTRACED) == child && WIFSTOPPED(status))
        kill(child, SIGCONT);
    CHECK(status == 0);
}

/* Try `trial(context, count, number of the trial)`, which returns how many instructions the child came: for each of the
 * last instructions from the end back, and for some of those before; or with `spread` for all, each 13th first, then
 * those between, as far as the time goes. */
static UNUSED void step_through(int (*trial)(void *context, int count, int number), void *context, bool spread)
{
    const int64_t end = shoal_clock_now() + STEPS_ENOUGH;
    /* The first call of all has the functions of the C library looked up, which is a thousand instructions. */
    (void)trial(context, 0, 0);
    const int length = trial(context, INT32_MAX, 0);
    const int stride = 13;
    int tried = 0, count = length, round = 0;
    while (count >= 0 && shoal_clock_now() < end) {
        (void)trial(context, count, tried++);
        if (!spread)
            count -= tried < STEPS_ALL_OF_THE_LAST ? 1 : STEPS_STRIDE;
        else if ((count -= stride) < 0 && ++round < stride)
            count = length - round;
    }
    printf("             %d instructions, %d tried\n", length, tried);
    CHECK(length > 50 && tried > 10);
}

/* The same from the first instruction on, each in turn as far as the time goes: where the call ends in waiting. */
static UNUSED void step_from_first(int (*trial)(void *context, int count, int number), void *context)
{
    const int64_t end = shoal_clock_now() + STEPS_ENOUGH;
    int count = 0;
    while (shoal_clock_now() < end && trial(context, count, count) == count)
        count++;
    printf("             %d instructions tried\n", count);
    CHECK(count > 50);
}

#endif
