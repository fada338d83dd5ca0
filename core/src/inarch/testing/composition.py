"""The table of what composes with what, as a page: `python -m inarch.testing.composition`."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from inarch.plugins import index
from inarch.testing.matrix import Combination, Matrix, matrix
from inarch.testing.tiny import Tiny, tiny_models

_HEAD = """\
# What composes with what

Every pair of the adapters in this repository, and triples of them, on tiny random models: what the
resolver says of them, which `tests/test_composition.py` tries. Whatever stands here as accepted ran
forward and backward, and in every order it can be written in it came to one digest, one program and
the same bits. Made by

```sh
python -m inarch.testing.composition --from . -o docs/composition.md
```

| in the tables | it means |
| --- | --- |
| free | accepted: the order leaves no trace, so any order is the same model |
| *name* first | accepted: the order matters, and a manifest declares it |
| your word | refused until the stack says which is meant, with `after` or `before` |
| **IA...** | refused: no order makes sense; `inarch explain CODE` tells more |

Adapters are asked for with the options they have by default; others of one kind are named after
what is asked for (`lora_dora` is `inarch.adapter("lora", use_dora=True)`).\
"""


_LARGE = 20_000
"""Of models with more weights than this, fewer triples are tried: each run takes long."""


def page(*, below: Path | None = None, triples: int = 120) -> str:
    """The page for what is installed.

    Args:
        below: only of adapters and models whose manifests lie in this folder.
        triples: how many are tried for each model, at most; a tenth of it for large ones.

    Raises:
        AssertionError: where what the resolver says turns out wrong.
    """
    listed = index()
    own = [
        kind
        for kind, entry in sorted(listed.adapters.items())
        if below is None or below.resolve() in Path(entry.manifest).resolve().parents
    ]
    parts = [_HEAD]
    for tiny in tiny_models():
        entry = listed.models.get(tiny.family)
        if not tiny.first or entry is None:
            continue
        if below is not None and below.resolve() not in Path(entry.manifest).resolve().parents:
            continue
        with tempfile.TemporaryDirectory() as folder:
            most = triples if tiny.size < _LARGE else triples // 10
            found = matrix(tiny.build(), own, Path(folder), most=most)
        if found.members:
            parts += _section(tiny, entry.summary, found)
    return "\n".join(parts).rstrip() + "\n"


def _section(tiny: Tiny, summary: str, found: Matrix) -> Iterator[str]:
    yield f"\n## {tiny.family}\n"
    yield f"{summary}; here: {tiny.label}.\n"
    yield from _grid(found)
    yield from _pairs([p for p in found.pairs if p.word == "ordered"], _ORDERED)
    yield from _pairs([p for p in found.pairs if p.word == "undecided"], _UNDECIDED)
    yield from _pairs([p for p in found.pairs if p.word == "refused"], _REFUSED)
    yield from _triples(found)
    if found.absent:
        yield "\n### Not tried\n"
        yield "| adapter | why |\n| --- | --- |"
        for name, error in sorted(found.absent.items()):
            yield f"| {name} | {error.code}: {_cell(error.what)} |"


_ORDERED = ("Ordered by a manifest", "pair | order | why")
_UNDECIDED = ("Waiting for your word", "pair | what you may say | why the order matters")
_REFUSED = ("Refused", "pair | code | why | cure")


def _grid(found: Matrix) -> Iterator[str]:
    names = sorted(found.members)
    said = {frozenset(_kind(n, names) for n in pair.names): pair for pair in found.pairs}
    yield "| | " + " | ".join(names) + " |"
    yield "| --- " * (len(names) + 1) + "|"
    for row in names:
        cells = [_short(said[frozenset((row, column))]) for column in names]
        yield f"| **{row}** | " + " | ".join(cells) + " |"


def _kind(name: str, names: Sequence[str]) -> str:
    return name if name in names else name.removesuffix("_2")


def _short(pair: Combination) -> str:
    match pair.word:
        case "free":
            return "free"
        case "ordered":
            return f"{pair.order[0]} first"
        case "undecided":
            return "your word"
        case _:
            return f"**{pair.code}**"


def _pairs(pairs: Sequence[Combination], about: tuple[str, str]) -> Iterator[str]:
    if not pairs:
        return
    title, columns = about
    yield f"\n### {title}\n"
    yield f"| {columns} |"
    yield "| --- " * len(columns.split("|")) + "|"
    for pair in pairs:
        name = ", ".join(pair.names)
        orders = " or ".join(f"{order[0]} first" for order in pair.orders)
        match pair.word:
            case "ordered":
                cells = [name, ", ".join(pair.order), pair.why]
            case "undecided":
                cells = [name, orders, pair.why]
            case _:
                cells = [name, pair.code, pair.why, pair.cure]
        yield "| " + " | ".join(map(_cell, cells)) + " |"


def _triples(found: Matrix) -> Iterator[str]:
    if not found.triples:
        return
    total = len(found.triples)
    which = f"all {total}" if total == found.of else f"a sample of {total} of the {found.of}"
    words = [(word, [t for t in found.triples if t.word == word]) for word in _WORDS]
    yield "\n### Triples\n"
    counts = ", ".join(f"{len(some)} {_WORDS[word]}" for word, some in words if some)
    yield f"Of three different kinds, {which}: {counts}."
    open_pairs = {frozenset(p.names) for p in found.pairs if p.word in ("undecided", "refused")}
    closed = [t for t in found.triples if t.word in ("undecided", "refused")]
    alone = [t for t in closed if not _culprits(t, open_pairs)]
    if closed and not alone:
        yield "Each that is not accepted holds a pair that is not."
    if not closed:
        return
    yield "\n<details><summary>Those that are not accepted</summary>\n"
    yield "| triple | code | because of |\n| --- | --- | --- |"
    for triple in closed:
        culprits = "; ".join(_culprits(triple, open_pairs)) or _cell(triple.why)
        yield f"| {', '.join(triple.names)} | {triple.code} | {culprits} |"
    yield "\n</details>"


_WORDS = {
    "free": "free",
    "ordered": "ordered by a manifest",
    "undecided": "waiting for a word",
    "refused": "refused",
}


def _culprits(triple: Combination, closed: set[frozenset[str]]) -> list[str]:
    names = triple.names
    pairs = ((a, b) for i, a in enumerate(names) for b in names[i + 1 :])
    return [" and ".join(pair) for pair in pairs if frozenset(pair) in closed]


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m inarch.testing.composition", description=__doc__
    )
    parser.add_argument("--from", dest="below", type=Path, help="only packages in this folder")
    parser.add_argument("-o", dest="output", type=Path, help="a file, instead of stdout")
    parser.add_argument("--triples", type=int, default=120, help="at most so many for each model")
    given = parser.parse_args()
    text = page(below=given.below, triples=given.triples)
    if given.output is None:
        print(text, end="")
    else:
        given.output.write_text(text, "utf-8")


if __name__ == "__main__":
    main()
