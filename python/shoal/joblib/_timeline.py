"""The timeline of a call of `Parallel`: as a picture, as a page, and as a file for Perfetto or chrome://tracing."""

from __future__ import annotations

import html
import json
import math
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

# Told apart also by who sees no red or green (after Okabe and Ito).
_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#8c6d31", "#7570b3")
_FAILED = "#c00000"
_FORMATS = (".json", ".svg", ".html")
_WIDTH, _LEFT, _RIGHT, _ROW, _TOP = 1000, 150, 70, 26, 34  # of the picture, in pixels
_MOST_ROWS = 200  # rows that are drawn; the busiest ones


@dataclass(frozen=True)
class Event:
    """One task. Times are in seconds since the call began.

    index: its place among the tasks of the call. name: its function.
    pid, thread: of who ran it (the kernel's numbers); 0 where nobody did.
    submitted: when it was taken from the iterable. started, ended: None where it did not come to that; the last attempt
    of one that was tried again.
    outcome: "done", "raised" (an exception), "lost" (its worker was killed, or the call was given up: `ended` is when
    that was learnt), "running", "waiting".
    """

    index: int
    name: str
    pid: int
    thread: int
    submitted: float
    started: float | None
    ended: float | None
    outcome: str


class Trace:
    """What each task of a call did when, and where. In a notebook it shows itself as a picture.

    events: an `Event` a task, in the order in which they were handed out.
    duration: seconds that the call took, or takes so far.
    started: when it began, in nanoseconds of CLOCK_MONOTONIC.
    pid: the caller's process.
    """

    def __init__(self, label: str, pid: int, started: int, duration: float, events: list[Event]) -> None:
        self.label = label
        self.pid = pid
        self.started = started
        self.duration = duration
        self.events = events

    def __len__(self) -> int:
        return len(self.events)

    def __iter__(self) -> Iterator[Event]:
        return iter(self.events)

    def __repr__(self) -> str:
        return (
            f"<Trace of {self.label}: {len(self.events)} tasks, {len(self._rows())} workers, {self.duration:.3g} s, "
            f"{100 * self.utilization:.0f} % busy>"
        )

    @property
    def utilization(self) -> float:
        """Which part of the workers' time, while the call lasted, they spent in tasks: 0 to 1."""
        rows = self._rows()
        busy = sum(_length_of(event) for row in rows.values() for event in row)
        return min(busy / (len(rows) * self.duration), 1.0) if rows and self.duration > 0 else 0.0

    def _rows(self) -> dict[tuple[int, int], list[Event]]:
        """The events that took place, by who ran them, in the order in which these began their first."""
        rows: dict[tuple[int, int], list[Event]] = {}
        for event in sorted((event for event in self.events if event.started is not None), key=_start_of):
            rows.setdefault((event.pid, event.thread), []).append(event)
        return rows

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the timeline to a file: ".svg" is a picture, ".html" a page with it and a table, ".json" a trace that
        https://ui.perfetto.dev and chrome://tracing open. ValueError for another ending."""
        ending = os.path.splitext(os.fspath(path))[1].lower()
        if ending not in _FORMATS:
            raise ValueError(f"a trace is saved as {', '.join(_FORMATS)}, by the file's ending, not as {ending!r}")
        text = {".json": self.to_json, ".svg": self.to_svg, ".html": self.to_html}[ending]()
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)

    # -- Perfetto and Chrome --

    def to_json(self) -> str:
        """The timeline in Chrome's trace event format."""
        made: list[dict[str, Any]] = []

        def name(kind: str, pid: int, thread: int, value: str) -> None:
            made.append({"ph": "M", "name": kind, "pid": pid, "tid": thread, "args": {"name": value}})

        def span(pid: int, thread: int, what: str, started: float, ended: float, **args: Any) -> None:
            begin, length = self.started / 1e3 + started * 1e6, max((ended - started) * 1e6, 0.0)
            made.append(
                {"ph": "X", "cat": "task", "name": what, "pid": pid, "tid": thread, "ts": round(begin, 3),
                 "dur": round(length, 3), "args": args}
            )  # fmt: skip

        rows = self._rows()
        name("process_name", self.pid, self.pid, "caller")
        name("thread_name", self.pid, self.pid, "call")
        span(self.pid, self.pid, self.label, 0.0, self.duration, tasks=len(self.events))
        for number, (pid, thread) in enumerate(rows):
            if pid != self.pid:
                name("process_name", pid, thread, "worker")
            name("thread_name", pid, thread, f"worker {number}")
            for event in rows[pid, thread]:
                assert event.started is not None and event.ended is not None
                span(
                    pid, thread, event.name, event.started, event.ended, index=event.index, outcome=event.outcome,
                    waited_ms=round((event.started - event.submitted) * 1e3, 3),
                )  # fmt: skip
        return json.dumps({"traceEvents": made, "displayTimeUnit": "ms"})

    # -- pictures --

    def to_svg(self) -> str:
        """The timeline as a picture: a row a worker, a bar a task, a colour a function; in red what failed."""
        rows = list(self._rows().items())
        if len(rows) > _MOST_ROWS:
            busiest = sorted(rows, key=lambda row: -sum(_length_of(event) for event in row[1]))[:_MOST_ROWS]
            rows = [row for row in rows if row in busiest]
        colours = self._colours()
        height = _TOP + _ROW * max(len(rows), 1) + 34 + 18 * ((len(colours) + 4) // 5)
        span = max(self.duration, 1e-9)
        scale = (_WIDTH - _LEFT - _RIGHT) / span
        bottom = _TOP + _ROW * max(len(rows), 1)
        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" '
            f'height="{height}" font-family="sans-serif" font-size="12">',
            f'<rect width="{_WIDTH}" height="{height}" fill="#ffffff"/>',
            f'<text x="8" y="20" font-weight="bold">{html.escape(self._headline())}</text>',
        ]
        for mark in _marks(span):
            x = _LEFT + mark * scale
            parts.append(f'<line x1="{x:.1f}" y1="{_TOP}" x2="{x:.1f}" y2="{bottom + 4}" stroke="#dddddd"/>')
            parts.append(f'<text x="{x:.1f}" y="{bottom + 17}" text-anchor="middle">{_seconds(mark, span)}</text>')
        for number, ((pid, thread), events) in enumerate(rows):
            y = _TOP + number * _ROW
            who = f"pid {pid}" if thread in (0, pid) else f"pid {pid}, thread {thread}"
            busy = sum(_length_of(event) for event in events)
            parts.append(f'<text x="8" y="{y + 17}">{who if len(who) < 22 else f"thread {thread}"}</text>')
            parts.append(f'<text x="{_WIDTH - _RIGHT + 8}" y="{y + 17}">{100 * busy / span:.0f} %</text>')
            parts.extend(_bar(bar, y, scale, colours) for bar in _merge(events, 0.7 / scale))
        parts.extend(self._legend(colours, bottom + 34))
        return "\n".join([*parts, "</svg>"])

    def _headline(self) -> str:
        outcomes = Counter(event.outcome for event in self.events)
        said = ", ".join(
            f"{outcomes[name]} {name}" for name in ("done", "raised", "lost", "running", "waiting") if outcomes[name]
        )
        return f"{self.label}: {self.duration:.3g} s, {said or 'no tasks'}, workers {100 * self.utilization:.0f} % busy"

    def _colours(self) -> dict[str, str]:
        """A colour a function; those with the most tasks have their own."""
        names = Counter(event.name for event in self.events)
        return {name: _COLOURS[i % len(_COLOURS)] for i, (name, _) in enumerate(names.most_common(20))}

    def _legend(self, colours: dict[str, str], top: int) -> Iterator[str]:
        for i, (name, colour) in enumerate(colours.items()):
            x, y = 8 + 195 * (i % 5), top + 18 * (i // 5)
            short = name if len(name) <= 26 else name[:25] + "…"
            yield f'<rect x="{x}" y="{y - 10}" width="11" height="11" fill="{colour}"/>'
            yield f'<text x="{x + 16}" y="{y}">{html.escape(short)}</text>'

    def to_html(self) -> str:
        """A page: the picture, and what functions and workers did in figures."""
        return (
            '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
            f"<title>{html.escape(self.label)}</title><style>body {{font-family: sans-serif; margin: 1.5em}} "
            "table {border-collapse: collapse; margin: 1em 0} td, th {padding: 2px 12px; text-align: right; "
            "border-bottom: 1px solid #ddd} td:first-child, th:first-child {text-align: left}</style></head>\n"
            f"<body>\n{self._repr_html_()}\n</body></html>\n"
        )

    def _repr_svg_(self) -> str:
        return self.to_svg()

    def _repr_html_(self) -> str:
        by_name: dict[str, list[Event]] = {}
        for event in self.events:
            by_name.setdefault(event.name, []).append(event)
        functions = [(name, *_figures(events, self.duration)) for name, events in by_name.items()]
        workers = [
            (f"pid {pid}, thread {thread}", *_figures(events, self.duration))
            for (pid, thread), events in self._rows().items()
        ]
        heads = ("tasks", "failed", "seconds", "mean ms", "longest ms", "% of the call")
        return "\n".join((self.to_svg(), _table(("function", *heads), functions), _table(("worker", *heads), workers)))


class _Bar(NamedTuple):
    """What is drawn as one: a task, or several that are too short to be seen."""

    started: float
    ended: float
    events: list[Event]


def _start_of(event: Event) -> float:
    return event.started or 0.0


def _length_of(event: Event) -> float:
    return event.ended - event.started if event.started is not None and event.ended is not None else 0.0


def _merge(events: list[Event], shortest: float) -> Iterator[_Bar]:
    """Bars of at least so many seconds, as far as there are tasks to fill them: a picture of a million is as large as
    one of a thousand."""
    bar: _Bar | None = None
    for event in events:
        started, ended = event.started or 0.0, event.ended or 0.0
        if bar is not None and bar.ended - bar.started < shortest and started - bar.ended < shortest:
            bar.events.append(event)
            bar = _Bar(bar.started, max(bar.ended, ended), bar.events)
            continue
        if bar is not None:
            yield bar
        bar = _Bar(started, ended, [event])
    if bar is not None:
        yield bar


def _bar(bar: _Bar, y: int, scale: float, colours: dict[str, str]) -> str:
    x, width = _LEFT + bar.started * scale, max((bar.ended - bar.started) * scale, 0.5)
    failed = any(event.outcome in ("raised", "lost") for event in bar.events)
    first = bar.events[0]
    if len(bar.events) == 1:
        assert first.started is not None
        said = (
            f"{first.name} (task {first.index}): {_length_of(first) * 1e3:.3g} ms, {first.outcome}; "
            f"began at {first.started:.4g} s, waited {(first.started - first.submitted) * 1e3:.3g} ms"
        )
    else:
        said = f"{len(bar.events)} tasks, {first.index} to {bar.events[-1].index}"
    colour = _FAILED if failed else colours.get(first.name, "#888888")
    return (
        f'<rect x="{x:.2f}" y="{y + 3}" width="{width:.2f}" height="{_ROW - 6}" fill="{colour}" stroke="#ffffff" '
        f'stroke-width="0.3"><title>{html.escape(said)}</title></rect>'
    )


def _marks(span: float) -> Iterator[float]:
    """Round numbers along the axis, eight or so."""
    step = 10.0 ** math.floor(math.log10(span / 8))
    step *= next(factor for factor in (1, 2, 5, 10) if step * factor * 8 >= span * 0.999)
    for i in range(int(span / step) + 1):
        yield i * step


def _seconds(moment: float, span: float) -> str:
    if span < 1e-3:
        return f"{moment * 1e6:g} µs"
    return f"{moment * 1e3:g} ms" if span < 1 else f"{round(moment, 9):g} s"


def _figures(events: list[Event], duration: float) -> tuple[str, ...]:
    lengths = [_length_of(event) for event in events if event.started is not None]
    failed = sum(event.outcome in ("raised", "lost") for event in events)
    total = sum(lengths)
    return (
        str(len(events)),
        str(failed),
        f"{total:.3f}",
        f"{1e3 * total / len(lengths):.3f}" if lengths else "",
        f"{1e3 * max(lengths):.3f}" if lengths else "",
        f"{100 * total / duration:.0f}" if duration > 0 else "",
    )


def _table(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = ["<table>", "<tr>" + "".join(f"<th>{head}</th>" for head in heads) + "</tr>"]
    lines += ["<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows]
    return "\n".join((*lines, "</table>"))
