"""`python -m benchmarks`: run workloads, print what they gave, and write it down."""

from __future__ import annotations

import datetime
import importlib.util
import os
import sys
import tempfile
import time
import traceback
from pathlib import Path

import click
import torch

from benchmarks.machine import commit, machine
from benchmarks.measure import Setting
from benchmarks.report import printed, read, written
from benchmarks.result import NoResult, NotEqual, NotHere, Result, encoded
from benchmarks.workloads import names, workload

EXIT_DIFFERS, EXIT_BROKEN, EXIT_INTERRUPTED = 1, 3, 130
DTYPES = click.Choice(["float32", "float64", "bfloat16", "float16"])


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("chosen", metavar="[NAME]...", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="All workloads.")
@click.option("--device", default="cpu", show_default=True, help="Where, as torch names it.")
@click.option("--dtype", default="float32", show_default=True, type=DTYPES, help="Of weights.")
@click.option("--quick", is_flag=True, help="Tiny sizes, two repeats: only to see that it runs.")
@click.option("--threads", type=click.IntRange(1), help="How many threads torch takes.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, one result a line.")
@click.option("--out", type=click.Path(path_type=Path), help="A folder for a JSON file each.")
@click.option("--report", type=click.Path(path_type=Path), help="Write the page of results there.")
@click.option("--results", type=click.Path(path_type=Path), help="Folders the page is made from.")
def main(
    chosen: tuple[str, ...],
    everything: bool,
    device: str,
    dtype: str,
    quick: bool,
    threads: int | None,
    as_json: bool,
    out: Path | None,
    report: Path | None,
    results: Path | None,
) -> None:
    """Run workloads beside their peers: B1 to B16, or --all.

    With --report, make the page of what --out, or earlier runs, left in --results: a folder that
    has one folder a device. Exit codes: 0 fine, 1 outputs differ, 2 usage, 3 a peer is missing or
    a workload failed, 130 interrupted.
    """
    unknown = [name for name in chosen if name.upper() not in names()]
    if unknown:
        raise click.UsageError(f"no workload `{unknown[0]}`; there are {', '.join(names())}")
    if not (chosen or everything or report):
        raise click.UsageError("name workloads, or say --all")
    where = _present(device)
    if out is not None:
        _make(out)
    if report is not None:
        _refuse_no_page(report)
    if threads is not None:
        torch.set_num_threads(threads)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    kind = getattr(torch, dtype)
    code = 0
    for name in names() if everything else [name.upper() for name in chosen]:
        setting = Setting(where, kind, quick)
        try:
            code = max(code, _one(name, setting, as_json, out))
        except KeyboardInterrupt:
            click.echo("  interrupted", err=True)
            sys.exit(EXIT_INTERRUPTED)
    if report is not None:
        _report(results or Path(__file__).parent / "results", report)
    sys.exit(code)


def _report(results: Path, page: Path) -> None:
    try:
        if not read(results):
            raise click.UsageError(f"`{results}` has no results: fill it with --out {results}/cpu")
        written(results, page)
    except NoResult as error:
        raise click.UsageError(f"{error}; measure it again, or take the file away") from error


def _present(device: str) -> torch.device:
    """The device of that name, which must be here and hold data."""
    try:
        found = torch.device(device)
        torch.ones(1, device=found).item()
    except (RuntimeError, AssertionError) as error:  # what torch raises, if it wasn't built for it
        reason = str(error).partition("\n")[0].partition(". ")[0]
        raise click.UsageError(f"there is no device `{device}` here: {reason}") from error
    return found


def _make(folder: Path) -> None:
    """Make a folder that is to be written to, before anything takes its time."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise click.UsageError(f"`{folder}` can't be written to: {error.strerror}") from error


def _refuse_no_page(report: Path) -> None:
    """Refuse a page that can't be written, before anything takes its time."""
    if report.is_dir():
        raise click.UsageError(f"`{report}` is a folder: name a page in it, {report}/benchmarks.md")
    if importlib.util.find_spec("matplotlib") is None:
        raise click.UsageError("the page has pictures: pip install matplotlib")
    _make(report.parent)


def _one(name: str, setting: Setting, as_json: bool, out: Path | None) -> int:
    """Run one workload; whatever goes wrong with it, the others still run."""
    module = workload(name)
    told = module.WORKLOAD
    missing = [need for need in told.needs if importlib.util.find_spec(need) is None]
    click.echo(f"{name}: {told.title}", err=True)
    if missing:
        click.echo(f"  not run: pip install {' '.join(missing)} -c constraints.txt", err=True)
        return EXIT_BROKEN
    start = time.perf_counter()
    try:
        result: Result = module.run(setting)
    except NotEqual as unequal:
        click.echo(f"  NOT EQUAL: {unequal}", err=True)
        return EXIT_DIFFERS
    except NotHere as reason:
        click.echo(f"  not run: {reason}", err=True)
        return 0
    except Exception:  # a peer's own failure included: it is shown, and the others run
        traceback.print_exc()
        return EXIT_BROKEN
    result.equal = setting.equal
    result.seconds = round(time.perf_counter() - start, 1)
    result.date = datetime.datetime.now(datetime.UTC).date().isoformat()
    result.commit = commit()
    result.machine = machine(setting.device)
    click.echo(encoded(result, 0).decode().strip() if as_json else printed(result))
    if out is not None:
        (out / f"{name}.json").write_bytes(encoded(result))
    return 0


if __name__ == "__main__":
    main()
