"""`Parallel(trace=True)`: the timeline of who ran what when."""

from __future__ import annotations

import json
import os
import threading
import time
import xml.etree.ElementTree
from functools import partial
from pathlib import Path

import pytest
import shoal
from helpers import run_program
from shoal.joblib import Parallel, delayed

SVG = "{http://www.w3.org/2000/svg}"


def wait(seconds: float) -> tuple[int, int, int]:
    begun = time.monotonic_ns()
    time.sleep(seconds)
    return os.getpid(), begun, time.monotonic_ns()


def fail(x: int) -> int:
    raise KeyError(x)


def linger(folder: str) -> None:
    Path(folder, "begun").touch()
    time.sleep(30)


def fail_beside(folder: str) -> None:
    """Fails once `linger` has begun."""
    deadline = time.monotonic() + 20
    while not Path(folder, "begun").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    raise KeyError("enough")


def die_at(x: int) -> int:
    if x == 3:
        time.sleep(0.1)
        os.kill(os.getpid(), 9)
    return x


@pytest.mark.parametrize("backend", ["loky", "multiprocessing", "threading", "sequential"])
def test_each_task_is_in_the_timeline_of_who_ran_it(backend: str) -> None:
    calls = Parallel(n_jobs=2, backend=backend, trace=True)
    got = calls(delayed(wait)(0.02) for _ in range(8))
    trace = calls.trace
    assert len(trace) == 8
    assert [event.index for event in trace] == list(range(8))
    for event, (pid, begun, ended) in zip(trace, got, strict=True):
        assert (event.name, event.pid, event.outcome) == ("wait", pid, "done")
        # The task's own clock, and the timeline's around it.
        assert event.submitted <= event.started <= (begun - trace.started) / 1e9 <= event.ended <= trace.duration
        assert event.ended >= (ended - trace.started) / 1e9
    if backend == "threading":
        assert threading.get_native_id() not in {event.thread for event in trace}
    assert 0 < trace.utilization <= 1
    assert "8 tasks" in repr(trace)


def test_nothing_is_recorded_unasked() -> None:
    calls = Parallel(n_jobs=2)
    calls(delayed(wait)(0) for _ in range(2))
    with pytest.raises(RuntimeError, match="trace=True"):
        _ = calls.trace
    with pytest.raises(RuntimeError, match="no call yet"):
        _ = Parallel(trace=True).trace


def test_what_failed_is_told_from_what_was_done(tmp_path: Path) -> None:
    calls = Parallel(n_jobs=2, trace=True, return_exceptions=True)
    tasks = [delayed(die_at)(x) for x in range(6)] + [delayed(fail)(1)]
    got = calls(tasks)
    events = calls.trace.events
    assert isinstance(got[3], shoal.WorkerDied)
    assert [event.outcome for event in events] == ["done"] * 3 + ["lost"] + ["done"] * 2 + ["raised"]
    assert events[3].pid == got[3].pid
    assert events[3].ended - events[3].started >= 0.1
    calls = Parallel(n_jobs=2, trace=True)
    with pytest.raises(KeyError):
        calls([delayed(fail_beside)(str(tmp_path)), delayed(linger)(str(tmp_path))])
    assert [event.outcome for event in calls.trace] == ["raised", "lost"]
    assert calls.trace.duration < 30


def test_a_call_that_runs_has_a_timeline_already() -> None:
    calls = Parallel(n_jobs=2, trace=True, return_as="generator", batch_size=1)
    results = calls([delayed(wait)(0.01), delayed(wait)(0.5)])
    next(results)
    first = calls.trace.events
    assert first[0].outcome == "done"
    assert first[1].outcome in ("running", "waiting")
    list(results)
    assert [event.outcome for event in calls.trace] == ["done", "done"]


def test_files_for_people_and_for_perfetto(tmp_path: Path) -> None:
    calls = Parallel(n_jobs=2, trace=True, return_exceptions=True)
    calls([delayed(wait)(0.01) for _ in range(5)] + [delayed(fail)(1), delayed(partial(wait, 0.001))()])
    trace = calls.trace
    for ending in ("json", "svg", "html"):
        trace.save(tmp_path / f"trace.{ending}")
    with pytest.raises(ValueError, match=r"\.svg"):
        trace.save(tmp_path / "trace.png")

    made = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    spans = [event for event in made if event["ph"] == "X" and event["pid"] != os.getpid()]
    assert len(spans) == 7
    assert sorted(span["args"]["index"] for span in spans) == list(range(7))
    assert {span["name"] for span in spans} == {"wait", "fail"}
    whole = next(event for event in made if event["ph"] == "X" and event["pid"] == os.getpid())
    for span in spans:
        assert whole["ts"] <= span["ts"] <= span["ts"] + span["dur"] <= whole["ts"] + whole["dur"] + 0.01
    named = {(event["pid"], event["tid"]) for event in made if event["ph"] == "M" and event["name"] == "thread_name"}
    assert {(span["pid"], span["tid"]) for span in spans} <= named

    picture = xml.etree.ElementTree.parse(tmp_path / "trace.svg").getroot()
    titles = [title.text or "" for title in picture.iter(f"{SVG}title")]
    assert sum("task" in title for title in titles) == len(titles) >= 1
    assert any("fail (task 5)" in title and "raised" in title for title in titles)
    page = (tmp_path / "trace.html").read_text()
    assert "<svg" in page and "<td>fail</td><td>1</td><td>1</td>" in page
    assert trace._repr_svg_().startswith("<svg")
    assert "<table>" in trace._repr_html_()


def test_names_are_escaped_and_many_short_tasks_make_a_small_picture() -> None:
    calls = Parallel(n_jobs=2, trace=True)
    odd = lambda x: x  # noqa: E731
    odd.__qualname__ = '<odd & "even">'
    calls(delayed(odd)(x) for x in range(20_000))
    picture = calls.trace.to_svg()
    assert len(picture) < 2_000_000
    xml.etree.ElementTree.fromstring(picture)
    assert len(calls.trace) == 20_000
    assert {event.outcome for event in calls.trace} == {"done"}


def test_a_timeline_of_no_tasks_can_be_drawn() -> None:
    calls = Parallel(n_jobs=2, trace=True)
    calls([])
    xml.etree.ElementTree.fromstring(calls.trace.to_svg())
    assert json.loads(calls.trace.to_json())["traceEvents"]
    assert "no tasks" in calls.trace.to_html()


def test_with_a_memory_the_timeline_has_what_was_run(tmp_path: Path) -> None:
    def work(x: int) -> int:
        return x + 1

    Parallel(n_jobs=2, memory=tmp_path)(delayed(work)(x) for x in (0, 2, 3))
    calls = Parallel(n_jobs=2, memory=tmp_path, trace=True)
    assert calls(delayed(work)(x) for x in range(6)) == [1, 2, 3, 4, 5, 6]
    assert [event.index for event in calls.trace] == [1, 4, 5]
    assert {event.name.rpartition(".")[2] for event in calls.trace} == {"work"}


def test_recording_leaves_no_descriptor_open() -> None:
    calls = Parallel(n_jobs=2, backend="threading", trace=True)
    calls(delayed(wait)(0) for _ in range(4))

    def count() -> int:
        return len(os.listdir("/proc/self/fd"))

    before = count()
    for _ in range(20):
        calls(delayed(wait)(0) for _ in range(4))
    assert count() <= before + 1


def test_a_limit_on_the_size_of_files_shortens_the_timeline_alone(tmp_path: Path) -> None:
    done = run_program(
        tmp_path,
        """
        import resource
        from shoal.joblib import Parallel, delayed

        resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))
        calls = Parallel(n_jobs=2, backend="threading", trace=True)
        print(sum(calls(delayed(abs)(-1) for _ in range(2000))))
        print([event.outcome for event in calls.trace][:1000] == ["done"] * 1000, len(calls.trace))
        """,
    )
    assert done.stdout == "2000\nTrue 2000\n", done.stderr
