"""Write examples/notebook/notebook.ipynb from notebook.py, with the outputs of a run: tools/notebook.py [--check]

The notebook installs Shoal in a cell of its own before the first; every other cell is the file's, so both stay the
same program.
--check: write nothing, fail if the cells differ.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent.parent / "examples" / "notebook"
INSTALL = "import shoal\n\nshoal.install()"


def cells() -> list[tuple[str, str]]:
    """(kind, text) of each cell of notebook.py."""
    found: list[tuple[str, str]] = []
    text = (FOLDER / "notebook.py").read_text()
    head, *parts = text.split("\n# %%")
    found.append(("markdown", head.strip().strip('"')))
    found.append(("code", INSTALL))
    for part in parts:
        title, _, body = part.partition("\n")
        if "[markdown]" in title:
            found.append(("markdown", "\n".join(line.removeprefix("# ") for line in body.strip().splitlines())))
        else:
            found.append(("code", body.strip()))
    return found


def make() -> Any:
    import nbformat.v4 as v4

    made = [v4.new_markdown_cell(text) if kind == "markdown" else v4.new_code_cell(text) for kind, text in cells()]
    for number, cell in enumerate(made):
        cell["id"] = f"cell-{number}"
    return v4.new_notebook(
        cells=made,
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}},
    )


def execute(notebook: Any, limit: float) -> Any:
    """Run it in a kernel, beside the example's files; raises if a cell does."""
    from nbclient import NotebookClient

    NotebookClient(notebook, timeout=limit, resources={"metadata": {"path": str(FOLDER)}}).execute()
    return notebook


def main() -> None:
    import nbformat

    path = FOLDER / "notebook.ipynb"
    if "--check" in sys.argv:
        stored = nbformat.read(path, as_version=4)
        same = [cell["source"] for cell in stored["cells"]] == [cell["source"] for cell in make()["cells"]]
        sys.exit(0 if same else "notebook.ipynb is not notebook.py's: run tools/notebook.py")
    notebook = execute(make(), 600)
    for cell in notebook["cells"]:
        cell["metadata"] = {}
    notebook["metadata"].pop("language_info", None)
    nbformat.write(notebook, path)


if __name__ == "__main__":
    main()
