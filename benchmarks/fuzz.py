"""Hostile input: `python benchmarks/fuzz.py --minutes N [--only TARGET|readers] [--seed S] [--engine mutate|atheris]`.

A target takes bytes, puts them where a user would have them, and lets every exception through that is none of `nncift.errors` or
OSError, which the command line turns into an exit code. The mutating engine starts from the corpus and from valid files; atheris
(`pip install atheris`) is guided by the coverage of nncift, and its minutes are shared out evenly. What fails is written to the
folder given by --finds.
"""

from __future__ import annotations

import argparse
import bz2
import contextlib
import gzip
import hashlib
import io
import json
import lzma
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

CORPUS = Path(__file__).parents[1] / "tests" / "fuzz" / "corpus"
SECONDS, MEMORY = 20, 3 << 30
"""Most that one input may take: seconds, and bytes of memory beyond what there was."""

TOKENS = (
    b"\x00",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"\xed\xa0\x80",
    b"\\ud800",
    b"NaN",
    b"-Infinity",
    b"1e999",
    b"9" * 5000,
    b"[" * 300,
    b'{"a":' * 200,
    b"null",
    b"true",
    b'"role":"assistant"',
    b'"from":"gpt"',
    b"../../../../tmp/x",
    b"/etc/passwd",
    b"<script>",
    b"!!python/object/apply:os.system ['true']",
    b"&a [*a, *a]",
    b"*a",
    b"- ",
    b": ",
    b"\n",
    b"\r",
    b"\xe2\x80\xa8",
    b"{prompt}",
    b"{response}",
    b"100%",
    b"-1",
    b"0x7f",
    b"1_000",
    b"\xd9\xa3",
    b"2Mtok",
    b"min=",
    b"max=",
    b"id",
    b"checksum",
    b'""',
    b"{}",
    b"[]",
)


@cache
def folder() -> Path:
    """Return the folder that this process may write in."""
    made = Path(tempfile.mkdtemp(prefix="nncift-fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    os.environ["NNCIFT_CACHE"] = str(made / "cache")
    return made


def _file(name: str, data: bytes) -> Path:
    path = folder() / name
    path.write_bytes(data)
    return path


def _read(path: Path) -> None:
    """Read rows, and do with them what a run does without a model."""
    from nncift.data import read, write_rejected, write_rows
    from nncift.data.pool import PoolTable

    found = read(path)
    json.dumps([[row.id, row.source, row.raw] for row in found])
    write_rows(folder() / "rows.jsonl", found)
    write_rejected(folder() / "rejected.jsonl", found.rejected)
    if (folder() / "rows.jsonl").read_bytes().count(b"\n") != len(found):
        raise AssertionError("a row's text has a line break")
    PoolTable.of(found)
    for row in found:
        for character in (*row.id, *row.source):
            if character in "\n\r\0" or "\ud800" <= character <= "\udfff":
                raise AssertionError(f"an id or source with {character!r}")


def lines(data: bytes) -> None:
    """Read JSON lines."""
    _read(_file("pool.jsonl", data))


def document(data: bytes) -> None:
    """Read a JSON document."""
    _read(_file("pool.json", data))


def packed(data: bytes) -> None:
    """Read damaged and whole gzip files."""
    _read(_file("pool.jsonl.gz", gzip.compress(data, mtime=0) if data[:1] < b"\x80" else b"\x1f\x8b\x08" + data))


def parquet(data: bytes) -> None:
    """Read a Parquet file."""
    _read(_file("pool.parquet", data))


def table(data: bytes) -> None:
    """Read CSV, or TSV where the first byte is odd."""
    _read(_file("pool.tsv" if data[:1] and data[0] % 2 else "pool.csv", data))


def arrow(data: bytes) -> None:
    """Read an Arrow file or stream."""
    _read(_file("pool.arrow", data))


def unpacked(data: bytes) -> None:
    """Read what is packed in any other way: whole, or with bytes put over it. Byte 0 says how."""
    pack = list(PACKINGS.values())[data[0] % len(PACKINGS) if data else 0]
    _read(_file("pool.jsonl", _changed(pack(data[2:]), data[1:]) if data[1:2] > b"\xf0" else pack(data[2:])))


def _zipped(data: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("pool.jsonl", data)
    return stream.getvalue()


def _zstandard(data: bytes) -> bytes:
    import pyarrow as pa

    packed: bytes = pa.compress(data, codec="zstd", asbytes=True)
    return packed


PACKINGS: Mapping[str, Callable[[bytes], bytes]] = {
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zip": _zipped,
    "zst": _zstandard,
}


def held(data: bytes) -> None:
    """Take rows that Python holds: what a JSON text parses to, or the bytes themselves among other values."""
    from nncift.data import rows_from

    try:
        rows = json.loads(data)
    except (ValueError, RecursionError):
        rows = [{"prompt": data, "completion": data.decode("utf-8", "surrogateescape"), "id": float("nan")}, data, None]
    found = rows_from(rows, strict=False)
    json.dumps([[row.id, row.source, row.raw] for row in found])


def exported(data: bytes) -> None:
    """Export rows to every trainer, whole files with all that lies beside them."""
    from nncift.data import export as exporting
    from nncift.data import read

    found = read(_file("pool.jsonl", data))
    run = folder() / "exporting"
    run.mkdir(exist_ok=True)
    (run / "manifest.yaml").write_text("pool: [pool.jsonl]\n")
    selected = [exporting._Selected(row.id, rank, row.source, row.raw) for rank, row in enumerate(found, start=1)]
    given, exporting._selected = exporting._selected, lambda run: selected
    try:
        for to in exporting.TRAINERS:
            with _allowed():
                exporting.export(
                    run, run / "out" / "train.jsonl", to=to, turns="last" if data[:1] > b"a" and to != "same" else "all"
                )
    finally:
        exporting._selected = given


def trainers(data: bytes) -> None:
    """Make of rows what trainers load."""
    from nncift.data import forms as pairs
    from nncift.data import read
    from nncift.data import trainers as forms
    from nncift.data.conversation import converse
    from nncift.data.layout import Layout
    from nncift.data.turns import UnusableError

    for row in read(_file("pool.jsonl", data)):
        with contextlib.suppress(UnusableError):
            talk = converse(row.row, Layout.from_settings("auto", None))
            for make in (forms.alpaca, forms.sharegpt):
                with contextlib.suppress(UnusableError):
                    make(talk)
            for form in ("messages", "last", "learned"):
                with contextlib.suppress(UnusableError):
                    forms.trl(talk, form=form, parts=False)
            for marks in ("none", "last", "learned"):
                with contextlib.suppress(UnusableError):
                    forms.axolotl(talk, marks=marks, parts=False)
            for last in (False, True):
                with contextlib.suppress(UnusableError):
                    pairs.openai(talk, last=last)
            if talk.rejected is not None:
                for pair in (lambda one: pairs.trl_pair(one, parts=False), pairs.axolotl_pair, pairs.llamafactory_pair):
                    with contextlib.suppress(UnusableError):
                        pair(talk)


def settings(data: bytes) -> None:
    """Read a settings file."""
    from nncift.config import resolve

    resolve({}, _file("settings.yaml", data)).model_dump_json()


def template(data: bytes) -> None:
    """Read a template file."""
    from nncift.models.prompt_format import _plain_template

    _plain_template(str(_file("template.txt", data)))


def constraints(data: bytes) -> None:
    """Read the constraints of a selection and of labels: budget, quota, duplicates, labels, and a file of ids."""
    from nncift.config import resolve
    from nncift.data import Examples, read
    from nncift.data.pool import PoolTable
    from nncift.selection.constraints import Constraints

    given = data.decode("utf-8", "surrogateescape").split("\n", 4)
    names = ("budget", "quota", "dedup", "labels")
    ids = _file("ids.txt", given[4].encode("utf-8", "surrogateescape") if len(given) > 4 else b"a")
    pool: Examples = read(_file("few.jsonl", FEW))
    for name, text in zip(names, given, strict=False):
        with _allowed():
            found = resolve({name: text})
            Constraints.read(found).check(PoolTable.of(pool))
    Constraints.read(resolve({"include": str(ids), "budget": "3"})).check(PoolTable.of(pool))


FEW = b"\n".join(
    json.dumps({"id": f"r{k}", "instruction": f"do {k}", "output": f"done {k}"}).encode() for k in range(30)
)


MANIFEST_SEED = """\
pool: [few.jsonl]
teacher: length
encoder: hash
labels: 40%
budget: '5'
objective: topk
map: {prompt: instruction, completion: output}
option: {rank: 8, subtask: null}
seed: 0
record:
  versions: {nncift: 0.1.0, torch: null}
  machine: {python: 3.11.0}
"""


@cache
def finished() -> Path:
    """Return a small finished run, made without a model."""
    from nncift import pipeline

    given = {
        "teacher": "length",
        "encoder": "hash",
        "labels": "40%",
        "budget": "5",
        "test_items": 5,
        "validation_items": 5,
    }
    from nncift.config import resolve
    from nncift.stages.request import Request

    made = resolve({**given, "pool": [str(_file("few.jsonl", FEW))]})
    run = folder() / "finished"
    pipeline.execute(Request.resolve(made), run)
    return run


def directory(data: bytes) -> None:
    """Read a run in which somebody has put another file: byte 0 says which, byte 1 whether marks of stages stay."""
    from nncift.data import read
    from nncift.data.export import export
    from nncift.runs.compare import compare
    from nncift.runs.explain import explain
    from nncift.runs.finished import FinishedRun
    from nncift.runs.report import write_report
    from nncift.runs.select_again import reselect
    from nncift.runs.student_card import write_card
    from nncift.stages.finish import score_file

    names = sorted(str(path.relative_to(finished())) for path in finished().rglob("*") if path.is_file())
    run, rest = folder() / "run", folder() / "rest"
    for old in (run, rest):
        shutil.rmtree(old, ignore_errors=True)
    shutil.copytree(finished(), run)
    rest.mkdir()
    name = names[data[0] % len(names)] if data else names[0]
    (run / name).write_bytes(_changed((run / name).read_bytes(), data[2:]))
    if data[1:2] < b"\xc0":
        shutil.rmtree(run / "stages")
    before = _outside()

    def explained() -> None:
        found = FinishedRun(run)
        explain(found, next(iter(found.choices)), why_not=True)

    for act in (
        explained,
        lambda: export(run, rest / "a.jsonl", to="trl"),
        lambda: compare(run, finished()),
        lambda: reselect(run, {"budget": "3"}, rest / "other"),
        lambda: write_report(run),
        lambda: write_card(run),
        lambda: score_file(read(folder() / "few.jsonl"), run, rest / "s.parquet", device="cpu"),
        lambda: reselect(run, {"budget": "4"}),
    ):
        with _allowed():
            act()
    if _outside() != before:
        raise AssertionError("a file outside the run directory has changed")


@cache
def unmarked() -> Path:
    """Return a copy of the finished run without marks, so that no checksum refuses a file before it is read."""
    run = folder() / "unmarked"
    shutil.copytree(finished(), run)
    shutil.rmtree(run / "stages")
    return run


def manifest(data: bytes) -> None:
    """Read a run whose manifest somebody has written: as settings, by commands on a finished run, and to go on with it."""
    from nncift import config
    from nncift.data.export import export
    from nncift.runs.finished import FinishedRun
    from nncift.selection.constraints import Constraints
    from nncift.storage.run_directory import MANIFEST, RunDir

    run = unmarked()
    (run / MANIFEST).write_bytes(data)

    def repeated() -> None:
        found = config.resolve({}, run / MANIFEST)
        if config.resolve(json.loads(found.model_dump_json(exclude_none=True))) != found:
            raise AssertionError("settings do not come back as they were written")
        Constraints.read(found)

    def went_on() -> None:
        with RunDir(run, config.resolve({"pool": [str(folder() / "few.jsonl")], "teacher": "length"})) as opened:
            opened.costs()

    before = _outside()
    for act in (
        repeated,
        lambda: FinishedRun(run).settings,
        went_on,
        lambda: export(run, folder() / "rest.jsonl", to="trl"),
    ):
        with _allowed():
            act()
    if _outside() != before:
        raise AssertionError("a file outside the run directory has changed")


def _outside() -> list[tuple[str, int]]:
    skip = {"run", "rest", "rest.jsonl", "rest.trl.py", "rest.card.md", "unmarked", "cache", "last-input"}
    return sorted(
        (str(path), path.stat().st_mtime_ns)
        for path in folder().rglob("*")
        if path.is_file() and path.relative_to(folder()).parts[0] not in skip
    )


def _changed(content: bytes, data: bytes) -> bytes:
    """Return a file's content with an edit that `data` describes: the whole replaced, or bytes put over it somewhere."""
    if len(data) < 4 or data[0] < 64:
        return data[1:]
    at = int.from_bytes(data[1:3], "big") % (len(content) + 1)
    return content[:at] + data[3:] + content[at + (len(data) - 3 if data[0] % 2 else 0) :]


TARGETS: Mapping[str, Callable[[bytes], None]] = {
    made.__name__: made
    for made in (
        *(lines, document, packed, parquet, table, arrow, unpacked, held, trainers, exported),
        *(settings, template, constraints, manifest, directory),
    )
}
READERS = ("lines", "document", "packed", "parquet", "table", "arrow", "unpacked", "held", "trainers", "exported")
"""Targets that read rows, and write them for trainers."""


@contextlib.contextmanager
def _allowed() -> Iterator[None]:
    from nncift.errors import NnciftError

    with contextlib.suppress(NnciftError, OSError):
        yield


def attempt(target: str, data: bytes) -> None:
    """Give one input to a target; what it raises beyond the allowed is a find. It may take `SECONDS` of the processor."""

    def late(*_: Any) -> None:
        raise AssertionError(f"more than {SECONDS} seconds of the processor's time")

    # How long a machine is busy with others is no find.
    before = signal.signal(signal.SIGPROF, late)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    # What ends the whole process can be found here.
    (folder() / "last-input").write_bytes(data)
    try:
        with _allowed():
            TARGETS[target](data)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """Bound the memory of this process to `MEMORY` more than it has."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@cache
def seeds(target: str) -> list[bytes]:
    """Return what mutation starts from: the corpus, and valid inputs."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    talk = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Yes", "tool_calls": [{"name": "f", "arguments": "{}"}]},
    ]
    rows: list[dict[str, Any]] = [
        {"id": "a", "messages": talk, "tools": "[]"},
        {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
        {"instruction": "x", "input": "y", "output": "z", "history": [["a", "b"]]},
        {"prompt": talk[:1], "completion": "c", "images": ["i.png"]},
        {"id": 3, "prompt": "p", "response": "r", "system": "s"},
    ]
    text = "\n".join(json.dumps(row) for row in rows).encode()
    table, stream = (
        pa.table({"id": ["a", "b"], "prompt": ["p", "q"], "completion": ["r", "s"], "n": [1.5, None]}),
        io.BytesIO(),
    )
    pq.write_table(table, stream)
    ipc = io.BytesIO()
    with pa.ipc.new_file(ipc, table.schema) as writer:
        writer.write_table(table)
    cells = b'id,prompt,completion,n\na,"p, q","r ""s""\nt",1.5\nb,"[{""role"": ""user"", ""content"": ""Hi""}]",s,\n'
    own = {
        "lines": [text],
        "trainers": [text],
        "packed": [text],
        "document": [json.dumps(rows).encode(), json.dumps({"data": rows}).encode()],
        "parquet": [stream.getvalue()],
        "table": [cells, cells.replace(b",", b"\t")],
        "arrow": [ipc.getvalue()],
        "unpacked": [bytes([at, mark]) + text for at in range(len(PACKINGS)) for mark in (0, 255)],
        "held": [json.dumps(rows).encode(), json.dumps({"prompt": ["p", "q"], "completion": ["r", "s"]}).encode()],
        "exported": [text],
        "settings": [
            b"pool: [a.jsonl]\nlabels: 5%\nmap: {prompt: q}\noption: {x: 2e-5}\nseed: 3\nquota: 'source:min=5%'\n"
        ],
        "template": [b"Q: {prompt}\nA: {response}"],
        "constraints": [b"30%\nsource:min=5%,max=40%\nnear:0.95\n5%\nr1\nr2"],
        "manifest": [MANIFEST_SEED.encode()],
        "directory": [
            bytes([at, mark, how, 1, 7]) + b"{}" for at in range(40) for mark in (0, 255) for how in (0, 200, 201)
        ],
    }
    kept = sorted((CORPUS / target).glob("*")) if (CORPUS / target).is_dir() else []
    return [*own[target], *(path.read_bytes() for path in kept)]


def mutated(target: str, dice: random.Random) -> bytes:
    """Return a seed with a few changes: bits, bytes, cuts, copies, tokens, and pieces of another seed."""
    pool = seeds(target)
    data = bytearray(dice.choice(pool))
    for _ in range(1 << dice.randrange(5)):
        at, end = sorted(dice.randrange(len(data) + 1) for _ in range(2))
        kind = dice.randrange(7)
        if kind == 0 and data:
            data[at % len(data)] ^= 1 << dice.randrange(8)
        elif kind == 1 and data:
            data[at % len(data)] = dice.randrange(256)
        elif kind == 2:
            del data[at : min(end, at + dice.randrange(1, 40))]
        elif kind == 3:
            data[at:at] = data[at : at + dice.randrange(1, 60)]
        elif kind in (4, 5):
            data[at : at if kind == 4 else end] = dice.choice(TOKENS)
        else:
            other = dice.choice(pool)
            cut = dice.randrange(len(other) + 1)
            data[at:end] = other[cut : cut + dice.randrange(1, 200)]
    return bytes(data[:200_000])


def counted(state: Path | None) -> dict[str, Any]:
    """Return what the sessions before have counted in a file; nothing where there is none."""
    if state is None or not state.exists():
        return {"sessions": 0, "cpu_minutes": 0.0, "inputs": {}, "finds": []}
    found: dict[str, Any] = json.loads(state.read_text())
    return found


def count(state: Path, record: Mapping[str, Any]) -> None:
    """Add a session to the file that counts them."""
    before = counted(state)
    inputs: Counter[str] = Counter(before["inputs"])
    inputs.update({target: inputs_of or 0 for target, inputs_of in record["inputs"].items()})
    total = {
        "sessions": before["sessions"] + 1,
        "cpu_minutes": round(before.get("cpu_minutes", 0.0) + record["cpu_minutes"], 2),
        "total": inputs.total(),
        "inputs": dict(inputs),
        "finds": [*before["finds"], *record["finds"]],
    }
    state.write_text(json.dumps(total, indent=2))


def fuzz(targets: list[str], minutes: float, seed: int, finds: Path, session: int = 0) -> dict[str, Any]:
    """Mutate in turns for so long; return how many inputs each target had, and what was found.

    session: each has inputs of its own.
    """
    dice, began = random.Random(f"{seed} {session}"), time.process_time()
    record: dict[str, Any] = {"inputs": dict.fromkeys(targets, 0), "finds": []}
    known: set[str] = set()
    if {"directory", "manifest"} & set(targets):
        finished()
    # What an interrupted session has found counts.
    with bounded(), contextlib.suppress(KeyboardInterrupt):
        while time.process_time() - began < 60 * minutes:
            for target in targets:
                until = time.process_time() + 1
                while time.process_time() < until:
                    data = mutated(target, dice)
                    record["inputs"][target] += 1
                    try:
                        attempt(target, data)
                    except Exception as error:  # noqa: BLE001 - any of them is a find
                        place = traceback.extract_tb(error.__traceback__)[-1]
                        what = f"{target}: {type(error).__name__} at {Path(place.filename).name}:{place.lineno}"
                        if what not in known:
                            known.add(what)
                            path = finds / target / hashlib.sha256(data).hexdigest()[:12]
                            path.parent.mkdir(parents=True, exist_ok=True)
                            path.write_bytes(data)
                            record["finds"].append({"what": what, "said": str(error)[:200], "file": str(path)})
                            sys.stderr.write(f"{what}: {str(error)[:200]} ({path})\n")
    record["cpu_minutes"] = round((time.process_time() - began) / 60, 2)
    return record


def guided(target: str, minutes: float, finds: Path) -> None:
    """Let atheris look for inputs of one target; it ends the process."""
    import atheris

    with atheris.instrument_imports(include=["nncift", "yaml"]):
        # Modules are imported where they are used: only what is imported in here tells its branches.
        for data in seeds(target):
            attempt(target, data)
    start, kept = folder() / "start", finds / target
    for made in (start, kept):
        made.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(seeds(target)):
        (start / str(number)).write_bytes(data)
    flags = [
        f"-max_total_time={round(60 * minutes)}",
        f"-timeout={SECONDS}",
        "-rss_limit_mb=4096",
        "-print_final_stats=1",
        f"-artifact_prefix={kept}/",
    ]
    atheris.Setup([sys.argv[0], *flags, str(start)], lambda data: attempt(target, data))
    atheris.Fuzz()


def by_coverage(targets: list[str], minutes: float, seed: int, finds: Path) -> dict[str, Any]:
    """Give every target its share of the minutes in a process of its own; return the same as `fuzz`, and branches reached."""
    record: dict[str, Any] = {"inputs": {}, "branches": {}, "finds": [], "cpu_minutes": 0.0}
    for target in targets:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [
            sys.executable,
            __file__,
            "--engine",
            "atheris",
            "--only",
            target,
            "--minutes",
            str(minutes / len(targets)),
        ]
        # Compiled kernels cannot be looked into, and what was prepared for that cannot be compiled.
        plain = {**os.environ, "NUMBA_DISABLE_JIT": "1"}
        asked = [*command, "--finds", str(finds), "--one"]
        said = subprocess.run(asked, capture_output=True, text=True, check=False, env=plain)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        record["cpu_minutes"] += round((after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / 60, 2)
        done = re.search(r"stat::number_of_executed_units:\s*(\d+)", said.stderr)
        record["inputs"][target] = int(done[1]) if done else None
        record["branches"][target] = max((int(found) for found in re.findall(r"cov: (\d+)", said.stderr)), default=None)
        if said.returncode or done is None:
            record["finds"].append(
                {"what": f"{target}: exit code {said.returncode}", "said": said.stderr[-2000:], "file": str(finds)}
            )
    return record


def main() -> None:
    """Fuzz, and print what came of it as JSON."""
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--minutes", type=float, default=1, help="CPU minutes; on the clock with atheris")
    asked.add_argument("--only", choices=(*TARGETS, "readers"), action="append")
    asked.add_argument("--state", type=Path, help="file that counts inputs over sessions")
    asked.add_argument("--seed", type=int, default=0)
    asked.add_argument("--engine", choices=("mutate", "atheris"), default="mutate")
    asked.add_argument("--finds", type=Path, default=Path("fuzz-finds"))
    asked.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    given = asked.parse_args()
    asked_for = given.only or list(TARGETS)
    targets = [name for one in asked_for for name in (READERS if one == "readers" else (one,))]
    try:
        if given.one:
            guided(targets[0], given.minutes, given.finds)
        if given.engine == "atheris":
            record = by_coverage(targets, given.minutes, given.seed, given.finds)
        else:
            record = fuzz(targets, given.minutes, given.seed, given.finds, counted(given.state)["sessions"])
    finally:
        shutil.rmtree(folder(), ignore_errors=True)
    if given.state is not None:
        count(given.state, record)
    print(json.dumps(record, indent=2))
    sys.exit(1 if record["finds"] else 0)


if __name__ == "__main__":
    main()
