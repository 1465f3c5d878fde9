"""The project as others build it."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[2]


@pytest.mark.timeout(300)
def test_the_wheel_holds_the_package_with_its_extension_and_works_alone(tmp_path: Path) -> None:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "-q",
            "--no-deps",
            "--no-build-isolation",
            "-w",
            str(tmp_path),
            str(TOP),
        ],
        check=True,
        timeout=280,
        env=environment,
        cwd=tmp_path,
    )
    (wheel,) = tmp_path.glob("shoal-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        assert any(name.startswith("shoal/_engine") and name.endswith(".so") for name in names)
        assert "shoal/py.typed" in names and "shoal/_engine.pyi" in names
        assert all(name.startswith(("shoal/", "shoal-")) for name in names)
        archive.extractall(tmp_path / "site")
    code = "import shoal; from shoal.multiprocessing import Pool; print(shoal.__file__, Pool(1).map(abs, [-1]))"
    environment["PYTHONPATH"] = str(tmp_path / "site")
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=environment, cwd=tmp_path
    )
    assert done.stdout.startswith(str(tmp_path / "site")) and done.stdout.endswith("[1]\n"), done.stderr
