"""One run of `inarch`: its command, its errors and its exit code."""

from __future__ import annotations

import atexit
import gc
import os
import sys
from typing import Any

_YOUNG = 50_000  # objects; imports and a thousand manifests make fewer, and none is garbage


def main(args: list[str] | None = None) -> None:
    """Run the command line; every refusal is one laid-out error and an exit code."""
    gc.set_threshold(_YOUNG, *gc.get_threshold()[1:])
    atexit.register(_leave)
    import click

    from inarch.cli.group import cli
    from inarch.cli.output import Output, exit_code
    from inarch.errors import InarchError

    given = sys.argv[1:] if args is None else args
    output = Output(as_json="--json" in given, command=given[0] if given else "")
    try:
        result: Any = cli.main(args=given, prog_name="inarch", standalone_mode=False)
    except InarchError as error:
        if _tells():
            output.refuse(error)
        code = exit_code(error)
    except click.exceptions.Exit as stop:
        code = stop.exit_code
    except click.ClickException as error:
        if _tells():
            output.refuse_usage(error)
        code = 2
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        code = 130
    except BrokenPipeError:
        sys.stderr.close()
        code = 0
    except OSError as error:
        if error.filename is None:  # no file of the user's
            raise
        why, where = error.strerror or str(error), str(error.filename)
        what = "a file can't be read or written"
        remedy = "name another place, or see to its permissions"
        if _tells():
            output.refuse(InarchError("IA707", what, where=where, why=why, remedy=remedy))
        code = 1
    else:
        code = result if isinstance(result, int) else 0
    sys.exit(code)


def _tells() -> bool:
    """Whether this process is the one to tell what is wrong: alone, or for all of torchrun's."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":  # a store that outlives us
        return True
    from inarch.distribute.processes import tells

    return tells()


def _leave() -> None:
    """Let the interpreter end without a last search for cycles, where no model was loaded.

    The search takes longer than the answer to a question of manifests does.
    """
    if "torch" not in sys.modules:
        gc.freeze()
