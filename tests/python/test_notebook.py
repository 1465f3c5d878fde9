"""The notebook: the file on Shoal and without, and the .ipynb, at a small length."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

TOP = Path(__file__).resolve().parents[2]
FOLDER = TOP / "examples" / "notebook"
LENGTH = "20000"
PRODUCT = f"{sum(float(i) * i for i in range(int(LENGTH))):.6e}"


def _run(*command: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, timeout=50, env={**os.environ, **environment}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def _check(output: str, products: int) -> None:
    assert "[1, 4, 9, 16]" in output
    assert sum(line.startswith("RESULT: Process idx=") for line in output.splitlines()) == 5
    assert "the same: False" not in output
    values = [line.split()[0] for line in output.splitlines() if "e+" in line or line.startswith("2666")]
    assert len(values) == products
    assert {f"{float(value):.6e}" for value in values} == {PRODUCT}


def test_the_file_runs_on_shoal(tmp_path: Path) -> None:
    times = tmp_path / "times.json"
    output = _run("-m", "shoal", str(FOLDER / "notebook.py"), "--length", LENGTH, "--times", str(times))
    assert "shoal.multiprocessing.pool.Pool" in output
    _check(output, 6)
    assert len(json.loads(times.read_text())["cells"]) == 8


def test_the_same_file_runs_on_the_standard_library_and_joblib() -> None:
    output = _run(str(FOLDER / "notebook.py"), "--length", LENGTH, PYTHONPATH=str(FOLDER / "peers"))
    assert "multiprocessing's pool is multiprocessing.pool.Pool" in output
    _check(output, 6)


def _tool() -> Any:
    spec = importlib.util.spec_from_file_location("notebook_tool", TOP / "tools" / "notebook.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_notebook_has_the_files_cells_and_their_outputs() -> None:
    stored = json.loads((FOLDER / "notebook.ipynb").read_text())
    expected = [text for _, text in _tool().cells()]
    assert ["".join(cell["source"]) for cell in stored["cells"]] == expected
    shown = "".join("".join(output.get("text", "")) for cell in stored["cells"] for output in cell.get("outputs", []))
    assert "shoal.multiprocessing.pool.Pool" in shown
    assert "RESULT:" in shown


@pytest.mark.timeout(120)
def test_the_notebook_executes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTEBOOK_LENGTH", LENGTH)
    tool = _tool()
    done = tool.execute(tool.make(), 60)
    output = "".join(output.get("text", "") for cell in done["cells"] for output in cell.get("outputs", []))
    _check(output, 6)


@pytest.mark.parametrize("arguments", [["--length", "0"], ["--length", "x"], ["--nonsense"]])
def test_wrong_options_are_refused(arguments: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, str(FOLDER / "notebook.py"), *arguments], capture_output=True, text=True, timeout=50
    )
    assert done.returncode == 2
    assert "usage" in done.stderr
