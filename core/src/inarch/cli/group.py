"""`inarch`: the group of commands, each imported when it is called."""

from __future__ import annotations

import importlib

import click

import inarch
from inarch.errors import InarchError

COMMANDS = {
    "models": "List the foundation models and checkpoints that are installed.",
    "adapters": "List adapters and trained weights, all or those that fit a model.",
    "show": "Show all that is known of a model, adapter, checkpoint, format or weights.",
    "tree": "Print the tree of a model, or of a stack with its adapters marked.",
    "source": "Print the generated source of a Chain.",
    "check": "Check a stack by manifests and file headers, in an instant.",
    "plan": "Decide the order of a stack and prove that it runs, before anything is made.",
    "order": "Write into a stack file which of two adapters comes first.",
    "lock": "Write down what a stack is made of, or say what changed since.",
    "bisect": "Find the adapter of a stack that breaks a command.",
    "run": "Run a model or a stack: to text, or to what else the model makes.",
    "train": "Train an adapter on a file of examples.",
    "combine": "Save the weighted sum of a stack's adapters as one.",
    "explain": "Explain an error code.",
    "validate": "Hold a package's manifest against its entry points and files.",
    "doctor": "Say what is installed, and what is wrong with it.",
    "new": "Begin a package for an adapter or a foundation model.",
}
FROM_PACKAGES = {"train": "inarch-training"}


class Commands(click.Group):
    """A group that imports a command's module only to run it, not to list it."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS or cmd_name in FROM_PACKAGES:
            found = _from_packages().get(cmd_name)
            if found is None and cmd_name in FROM_PACKAGES:
                raise InarchError(
                    "IA706",
                    f"the command `{cmd_name}` comes with another package",
                    remedy=f"pip install {FROM_PACKAGES[cmd_name]}",
                )
            return found
        return getattr(importlib.import_module(f"inarch.cli.{cmd_name}"), cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        known = self.get_command(ctx, args[0]) if args else None
        if args and known is None and not args[0].startswith("-"):
            import difflib

            near = difflib.get_close_matches(args[0], COMMANDS, 1)
            hint = f" Did you mean: inarch {near[0]}" if near else " See: inarch --help"
            raise click.UsageError(f"There is no command `{args[0]}`.{hint}")
        return super().resolve_command(ctx, args)


def _from_packages() -> dict[str, click.Command]:
    """Commands of installed packages, asked for only when a word is none of ours.

    A package that can't be loaded is named, and stops nothing else.
    """
    from inarch.plugins.hooks import hooked, manager

    found: dict[str, click.Command] = {}
    for distribution in hooked():
        try:
            given = manager([distribution]).hook.inarch_commands()
        except InarchError as error:
            click.echo(str(error), err=True)
            continue
        found |= {c.name: c for commands in given for c in commands or () if c.name}
    return found


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(inarch.__version__, package_name="inarch")
def cli() -> None:
    """Adapt foundation models with packages.

    stdout is data, stderr is messages. Exit codes: 0 fine, 1 findings, 2 usage, 3 broken
    environment, 4 stale.
    """
