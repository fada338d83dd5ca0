"""B12: `inarch adapters --for llama` where 60, 300 and 1000 distributions are installed.

Each distribution has a manifest with an adapter and a module that imports torch, as adapters do.
The command answers from manifests alone; the peer's way is to import whatever has registered
itself. Whole processes are timed, the interpreter's start included, once the index is in its cache
and modules are compiled, as pip leaves them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from benchmarks import models
from benchmarks.measure import Setting, bandwidth, fitted, interleaved, spread
from benchmarks.result import Mark, NotHere, Picture, Result, Table, Workload, result_of, seconds
from inarch.plugins import index

WORKLOAD = Workload(
    "B12",
    "`adapters --for` with 60, 300, 1000 distributions",
    "importing everything",
    "at most 60 ms, growth at most 20 ms; torch never imported",
)
COUNTS = (60, 300, 1000)
_ADAPTER = """
schema = 1

[[adapter]]
id = "{name}"
summary = "an adapter of a benchmark"
roles = ["attention.query"]
kinds = ["add"]
initial_effect = "acts"
"""
_CODE = """
import torch


class Adapter(torch.nn.Module):
    pass
"""
_ANSWER = "from inarch.cli.main import main; main(['adapters', '--for', 'llama', '--json'])"
_IMPORT = """
from importlib.metadata import entry_points
for point in entry_points(group="inarch.adapters"):
    point.load()
"""
_COUNT = """
import sys
files = calls = 0
def hook(event, arguments):
    global files
    files += event in ("open", "os.listdir", "os.scandir")
sys.addaudithook(hook)
def seen(frame, event, argument):
    global calls
    calls += event in ("call", "c_call")
sys.setprofile(seen)
try:
    from inarch.cli.main import main
    main(["adapters", "--for", "llama", "--json"])
finally:
    sys.setprofile(None)
    print(files, calls, int("torch" in sys.modules), file=sys.stderr)
"""


def installed(count: int, where: Path) -> dict[str, str]:
    """Make a folder of so many distributions; the environment in which Python finds them."""
    site = where / f"site{count}"
    for number in range(count):
        name = f"bench_{number:04}"
        package, info = site / name, site / f"{name}-1.0.dist-info"
        package.mkdir(parents=True)
        info.mkdir()
        (package / "__init__.py").write_text("")
        (package / "adapter.py").write_text(_CODE)
        points = f"[inarch.manifest]\n{name} = {name}:inarch.toml\n"
        points += f"[inarch.adapters]\n{name} = {name}.adapter:Adapter\n"
        (package / "inarch.toml").write_text(_ADAPTER.format(name=name))
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(points)
    yesterday = time.time() - 24 * 3600  # what changed in these two seconds is not cached
    for place in (site, *site.glob("*/inarch.toml")):
        os.utime(place, (yesterday, yesterday))
    environment = {**os.environ, "INARCH_CACHE_DIR": str(where / f"cache{count}")}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    environment["PYTHONPYCACHEPREFIX"] = str(where / "compiled")
    path = os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**environment, "PYTHONPATH": path}


def answered(environment: Mapping[str, str]) -> list[str]:
    """The ids of the adapters that the command lists."""
    command = [sys.executable, "-c", _ANSWER]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return [one["id"] for one in json.loads(done.stdout)["data"]["adapters"]]


def counted(environment: Mapping[str, str]) -> tuple[int, int, int]:
    """Files and folders opened and function calls, imports included, and whether torch was one."""
    command = [sys.executable, "-c", _COUNT]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    files, calls, torch = map(int, done.stderr.split()[-3:])
    return files, calls, torch


def run(setting: Setting) -> Result:
    result = result_of(WORKLOAD, setting, bandwidth(setting))
    if "llama" not in index().models:
        raise NotHere("inarch-llama is not installed as a package")
    counts = (3, 9) if setting.quick else COUNTS
    with models.folder() as where:
        environments = {count: installed(count, where) for count in counts}
        for count, environment in environments.items():
            own = [name for name in answered(environment) if name.startswith("bench_")]
            setting.compare(f"{count}: adapters that are listed", len(own), count)
        runs = {}
        for count, environment in environments.items():
            runs[f"inarch {count}"] = _process(_ANSWER, environment)
            runs[f"importing {count}"] = _process(_IMPORT, environment)
        runs["nothing"] = _process("", environments[counts[0]])
        if setting.quick:  # importing torch is what takes long
            runs = {n: r for n, r in runs.items() if n != f"importing {counts[-1]}"}
        times = interleaved(runs, setting, before=dict.fromkeys(runs, lambda: None))
        for count, environment in environments.items():
            files, calls, torch = counted(environment)
            result.counters[f"{count}: files and folders opened"] = files
            result.counters[f"{count}: function calls"] = calls
            result.marks.append(Mark(f"{count}: torch imported", torch, 0, "exactly", counted=True))
    for count in counts:
        ms = spread([1000 * t for t in times.times[f"inarch {count}"]])
        result.marks.append(Mark(f"{count} distributions, ms", ms.median, 60, spread=ms))
    added = [1000 * t for t in times.added(f"inarch {counts[-1]}", f"inarch {counts[0]}")]
    grown = spread(added)
    what = f"growth from {counts[0]} to {counts[-1]}, ms"
    result.marks.append(Mark(what, grown.median, 20, spread=grown))
    known = [count for count in counts if f"importing {count}" in runs]
    rows = [
        [str(count), *[seconds(times.median(f"{who} {count}")) for who in ("inarch", "importing")]]
        for count in known
    ]
    result.tables.append(Table("A process", ["distributions", "inarch", "importing them"], rows))
    result.remarks.append(
        f"Of each, {seconds(times.median('nothing'))} is an interpreter that does nothing."
    )
    lines = [fitted("inarch", counts, [times.median(f"inarch {count}") for count in counts])]
    if known == list(counts):
        theirs = [times.median(f"importing {count}") for count in counts]
        lines.append(fitted("importing everything", counts, theirs))
    result.pictures.append(Picture("To list what fits a model", "distributions", "seconds", lines))
    return result


def _process(code: str, environment: Mapping[str, str]) -> Callable[[], object]:
    command = [sys.executable, "-c", code]
    return lambda: subprocess.run(command, env=environment, capture_output=True, check=True)
