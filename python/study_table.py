"""Tables that are only ever added to, as CSV. A line that a kill has cut short is dropped."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from pathlib import Path


def append(path: Path, columns: tuple[str, ...], rows: Iterable[dict]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+b") as file:
        file.seek(0)
        whole = file.read().rpartition(b"\n")
        file.truncate(len(whole[0] + whole[1]))
        if not whole[1]:
            writer.writeheader()
        writer.writerows({name: _shown(value) for name, value in row.items()} for row in rows)
        file.write(text.getvalue().encode())


def read(path: Path) -> list[dict]:
    """The whole lines, with numbers as int or float; none if there is no such file."""
    if not path.exists():
        return []
    whole = path.read_text().rpartition("\n")[0]
    return [{name: _value(text) for name, text in row.items()} for row in csv.DictReader(whole.splitlines())]


def _shown(value: object) -> object:
    return f"{value:.6g}" if isinstance(value, float) else value


def _value(text: str) -> str | int | float:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text
