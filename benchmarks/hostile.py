"""Hostile files, one by one: `python benchmarks/hostile.py [--only NAME] [--mb 64] [--write]`.

Each is made with so many MB, or is small and stands for gigabytes, and is given to a command in a process of its own: `inspect`,
`run` for settings, `explain` for a file of a run. It may take `SECONDS` of the processor and `MEMORY` MB at its peak, and has to
end in an answer or in an error of nncift's own. --write puts the table into docs/reliability.md.
"""

from __future__ import annotations

import argparse
import bz2
import gzip
import json
import lzma
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import IO

SECONDS, MEMORY = 20.0, 1000
"""Most that one file may take: seconds of the processor, and MB of 10^6 bytes of resident memory."""

PAGE = Path(__file__).parents[1] / "docs" / "reliability.md"
BEGIN, END = "<!-- hostile files -->", "<!-- end of hostile files -->"
SHOWN = 110

Fill = Callable[[IO[bytes], int], None]


@dataclass(frozen=True)
class Result:
    """What a command did with a file. seconds: of the processor. peak: MB."""

    name: str
    size: int
    code: int
    seconds: float
    peak: int
    said: str

    @property
    def is_bounded(self) -> bool:
        """Whether it took no more than it may, and ended in an answer or an error of nncift's own."""
        return self.seconds <= SECONDS and self.peak <= MEMORY and self.code in (0, 2, 3, 4, 6)


def around(start: bytes, body: bytes, end: bytes) -> Fill:
    """Return what fills a file with a start, something again and again, and an end."""

    def fill(file: IO[bytes], size: int) -> None:
        file.write(start)
        block = body * max(1, (1 << 20) // len(body))
        for _ in range(max(1, (size - len(start) - len(end)) // len(block))):
            file.write(block)
        file.write(end)

    return fill


ROW = b'{"instruction":"a","output":"b","more":'

SHAPES: dict[str, Fill] = {
    "row of brackets.jsonl": around(ROW + b"[", b"[],", b"1]}\n"),
    "row of brackets.json": around(b"[" + ROW + b"[", b"[],", b"1]}]"),
    "row of turns.jsonl": around(
        b'{"messages":[', b'{"role":"user","content":"a"},{"role":"assistant","content":"b"},', b"{}]}\n"
    ),
    "row of 400,000 turns.jsonl": lambda file, size: around(
        b'{"messages":[',
        b'{"role":"user","content":"a"},{"role":"assistant","content":"b"},',
        b'{"role":"user","content":"a"},{"role":"assistant","content":"b"}]}\n',
    )(file, 13 << 20),
    "row of objects.jsonl": around(ROW + b"[", b'{"a":{}},', b"1]}\n"),
    "row of nested brackets.jsonl": around(ROW, b"[", b"\n"),
    "nested brackets.json": around(b"", b"[", b""),
    "nested objects.json": around(b"", b'{"a":', b""),
    "row of numbers.jsonl": around(ROW + b"[", b"1.5,", b"1]}\n"),
    "row of numbers.json": around(b"[" + ROW + b"[", b"1.5,", b"1]}]"),
    "row of short texts.jsonl": around(ROW + b"[", b'"ab",', b"1]}\n"),
    "row of short texts.json": around(b"[" + ROW + b"[", b'"ab",', b"1]}]"),
    "row of empty texts.json": around(b"[" + ROW + b"[", b'"",', b"1]}]"),
    "half a row of short texts.jsonl": around(b"", ROW + b"[" + b'"ab",' * 5_000_000 + b"1]}\n", b""),
    "row of one text.jsonl": around(ROW + b'"', b"x", b'"}\n'),
    "row of one text.json": around(b"[" + ROW + b'"', b"x", b'"}]'),
    "row of one text of escapes.json": around(b"[" + ROW + b'"', b"\\u0041", b'"}]'),
    "text that never ends.json": around(b"[" + ROW + b'"', b"x", b""),
    "one number.jsonl": around(ROW, b"9", b"}\n"),
    "one number.json": around(b"[" + ROW, b"9", b"}]"),
    "number with a fraction.json": around(b"[" + ROW + b"1.", b"9", b"}]"),
    "one key.json": around(b'[{"', b"k", b'":1}]'),
    "one key.jsonl": around(b'{"', b"k", b'":1}\n'),
    "many keys.json": around(b"[{", b'"k":1,', b'"k":1}]'),
    "array of numbers.json": around(b"[", b"1,", b"1]"),
    "array of texts.json": around(b"[", b'"ab",', b'"ab"]'),
    "array of arrays.json": around(b"[", b"[],", b"[]]"),
    "object of an array of numbers.json": around(b'{"data":[', b"1,", b"1]}"),
    "table by columns of short texts.json": around(b'{"instruction":[', b'"ab",', b'"ab"],"output":["a"]}'),
    "object of numbers.json": around(b"{", b'"k":1,', b'"k":1}'),
    "objects without lines.json": around(b"", b'{"instruction":1}', b""),
    "empty objects.jsonl": around(b"", b"{}\n", b""),
    "numbers on lines.jsonl": around(b"", b"1\n", b""),
    "broken lines.jsonl": around(b"", b"{\n", b""),
    "blanks.json": around(b"", b" ", b""),
    "line feeds.jsonl": around(b"", b"\n", b""),
    "blanks in an array.json": around(b"[", b" ", b"]"),
    "carriage returns.jsonl": around(b"", b"{}\r", b""),
    "zero bytes.jsonl": around(b"", b"\0", b""),
    "UTF-16.jsonl": around(b"\xff\xfe", b"[\0", b""),
    "one cell.csv": around(b"instruction,output\n", b"x", b",b\n"),
    "one quoted cell.csv": around(b'instruction,output\n"', b"x\n", b'",b\n'),
    "quote that never ends.csv": around(b'instruction,output\n"', b"x,", b""),
    "quotes.csv": around(b"instruction,output\n", b'"', b"\n"),
    "row of commas.csv": around(b"instruction,output\n", b",", b"\n"),
    "header of commas.csv": around(b"", b",", b"\na,b\n"),
    "header of names.csv": around(b"a", b",ab", b"\na,b\n"),
    "header of one name.csv": around(b"", b"x", b",output\na,b\n"),
    "rows of too many cells.csv": around(b"instruction,output\n", b"a,b,c\n", b""),
    "rows of one letter.csv": around(b"instruction,output\n", b"a\n", b""),
    "row of short cells.csv": around(b"instruction,output\n", b"ab,", b"\n"),
    "line feeds.csv": around(b"instruction,output\n", b"\n", b""),
    "one cell.tsv": around(b"instruction\toutput\n", b"x", b"\tb\n"),
}


def _packed(pack: Callable[[bytes], bytes]) -> Fill:
    def fill(file: IO[bytes], size: int) -> None:
        file.write(pack(b'{"instruction":"a","output":"b"}\n' * (4 * size // 33)))

    return fill


def _zip(data: bytes) -> bytes:
    import io

    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("pool.jsonl", data)
    return stream.getvalue()


def _dictionary(file: IO[bytes], size: int) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    column = pa.DictionaryArray.from_arrays(pa.array([0] * 8000, pa.int32()), pa.array(["x" * (1 << 18)]))
    pq.write_table(pa.table({"instruction": column, "output": column}), file)


def _one_cell(file: IO[bytes], size: int) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"instruction": ["a" * (1 << 30)], "output": ["b"]}), file, compression="zstd")


def _differences(file: IO[bytes], size: int) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({"instruction": ["y" * 100_000] * 4_000, "output": ["b"] * 4_000})
    pq.write_table(
        table,
        file,
        compression="zstd",
        use_dictionary=False,
        row_group_size=1000,
        column_encoding={"instruction": "DELTA_BYTE_ARRAY"},
    )


def _views(file: IO[bytes], size: int) -> None:
    import numpy as np
    import pyarrow as pa

    rows, length = 20_000, 1 << 20
    view = np.zeros(rows, [("length", "<i4"), ("begin", "S4"), ("buffer", "<i4"), ("offset", "<i4")])
    view["length"], view["begin"] = length, b"xxxx"
    buffers = [None, pa.py_buffer(view.tobytes()), pa.py_buffer(b"x" * length)]
    column = pa.Array.from_buffers(pa.string_view(), rows, buffers)
    table = pa.table({"instruction": column, "output": column})
    with pa.ipc.new_file(file, table.schema) as sink:
        sink.write_table(table)


def _nulls(file: IO[bytes], size: int) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({f"c{at}": pa.nulls(30_000_000, pa.string()) for at in range(4)}), file)


def _long_texts(file: IO[bytes], size: int) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts = [os.urandom(1 << 19).hex() for _ in range(size >> 21)]
    pq.write_table(pa.table({"instruction": texts, "output": texts}), file, compression="none", use_dictionary=False)


SHAPES |= {
    "much in little.jsonl.gz": _packed(lambda data: gzip.compress(data, 6)),
    "much in little.jsonl.bz2": _packed(bz2.compress),
    "much in little.jsonl.xz": _packed(lambda data: lzma.compress(data, preset=1)),
    "much in little.jsonl.zip": _packed(_zip),
    "one value in many rows.parquet": _dictionary,
    "one cell of 1 GB.parquet": _one_cell,
    "differences of one text.parquet": _differences,
    "views of one text.arrow": _views,
    "rows of nothing.parquet": _nulls,
    "long texts.parquet": _long_texts,
    "brackets.yaml": around(b"pool: ", b"[", b""),
    "long text.yaml": around(b"pool: ", b"x", b"\n"),
    "keys.yaml": around(b"", b"k: 1\n", b""),
    "rows.parquet of a run": _dictionary,
    "selection.parquet of a run": _nulls,
    "summary.json of a run": around(b'{"a":[', b"[],", b"1]}"),
    "manifest.yaml of a run": around(b"pool: ", b"[", b""),
}


def make_run(folder: Path) -> Path:
    """Make a small finished run, without a model, and take its marks away: nothing refuses a file by its checksum."""
    rows = [{"id": f"r{at}", "instruction": f"do {at}", "output": f"done {at}"} for at in range(30)]
    pool = folder / "few.jsonl"
    pool.write_text("\n".join(map(json.dumps, rows)) + "\n")
    run = folder / "finished"
    given = (
        "--teacher length --encoder hash --labels 40% --budget 5 --test-items 5 --validation-items 5 --quiet".split()
    )
    subprocess.run([*NNCIFT, "run", str(pool), *given, "--out", str(run)], check=True, capture_output=True)
    shutil.rmtree(run / "stages", ignore_errors=True)
    return run


NNCIFT = (sys.executable, "-m", "nncift")


def _make(name: str, place: Path, size: int) -> None:
    with place.open("wb") as file:
        SHAPES[name](file, size)


def measured(name: str, folder: Path, size: int) -> Result:
    """Make one file, give it to its command, and take it away."""
    place = folder / name.replace(" ", "-")
    if name.endswith(" of a run"):
        run = Path(shutil.copytree(folder / "finished", folder / "run"))
        place = run / name.removesuffix(" of a run")
        command = ["explain", str(run), "--rank", "1"]
    elif name.endswith(".yaml"):
        command = ["run", "--config", str(place), "--print-config"]
    else:
        command = ["inspect", str(place)]
    try:
        # In a process of its own: the peak of a child begins with that of its parent, and some files take gigabytes to make.
        maker = get_context("fork").Process(target=_make, args=(name, place, size))
        maker.start()
        maker.join()
        if maker.exitcode:
            raise RuntimeError(f"{name} could not be made (exit code {maker.exitcode})")
        size = place.stat().st_size
        with tempfile.TemporaryFile() as said:
            child = subprocess.Popen([*NNCIFT, *command], stdout=said, stderr=said, cwd=folder)
            limit = time.monotonic() + 40 * SECONDS
            while not (ended := os.wait4(child.pid, os.WNOHANG))[0]:
                if time.monotonic() > limit:
                    child.kill()
                time.sleep(0.05)
            _, status, used = ended
            child.returncode = os.waitstatus_to_exitcode(status)
            said.seek(0)
            lines = said.read().decode("utf-8", "replace").strip().splitlines() or ["-"]
    finally:
        shutil.rmtree(folder / "run", ignore_errors=True)
        place.unlink(missing_ok=True)
    last = " ".join(" ".join(lines[-6:]).replace(f"{folder}/", "").replace("|", "").split())
    if child.returncode:
        last = last[max(0, last.find("Error:")) :]
    seconds = round(used.ru_utime + used.ru_stime, 1)
    return Result(name, size, child.returncode, seconds, round(used.ru_maxrss / 1000), last[:SHOWN])


def table(results: list[Result], mb: int) -> str:
    """Return the results as a page's table, slowest first."""
    lines = ["| file | MB | exit code | s of the processor | peak MB | said |", "|---|---|---|---|---|---|"]
    for one in sorted(results, key=lambda result: -result.seconds):
        said = one.said.replace("`", "'").replace("<", "&lt;")
        lines.append(
            f"| {one.name} | {one.size / 1e6:.1f} | {one.code} | {one.seconds} | {one.peak} | {'' if one.code == 0 else said} |"
        )
    beyond = sum(not one.is_bounded for one in results)
    lines += [
        "",
        f"{len(results)} files, {beyond} of them beyond {SECONDS:g} s of the processor or {MEMORY} MB. "
        f"{platform.system()} {platform.machine()}, Python {platform.python_version()}.",
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure, print as JSON lines, and exit with 1 where a file took more than it may."""
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--only", action="append", choices=SHAPES)
    asked.add_argument("--mb", type=int, default=64)
    asked.add_argument("--write", action="store_true")
    given = asked.parse_args()
    results = []
    with tempfile.TemporaryDirectory(prefix="nncift-hostile-") as made:
        make_run(Path(made))
        for name in given.only or SHAPES:
            results.append(measured(name, Path(made), given.mb << 20))
            print(json.dumps(asdict(results[-1]) | {"bounded": results[-1].is_bounded}), flush=True)
    if given.write:
        page = PAGE.read_text(encoding="utf-8")
        before, _, rest = page.partition(BEGIN)
        PAGE.write_text(
            f"{before}{BEGIN}\n\n{table(results, given.mb)}\n\n{END}{rest.partition(END)[2]}", encoding="utf-8"
        )
    sys.exit(any(not one.is_bounded for one in results))


if __name__ == "__main__":
    main()
