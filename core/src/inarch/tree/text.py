"""The text of a forward: names for its values, then lines of at most a hundred columns."""

from __future__ import annotations

from inarch.tree.lines import WIDTH, Line, Part, Value
from inarch.tree.names import HANDLER
from inarch.tree.write import Writer


def source(writer: Writer, given: list[Value], returned: list[Value]) -> tuple[str, list[str]]:
    """The source of a written forward, and for each of its text lines the site it belongs to."""
    _name(writer, given, returned)
    signature = ", ".join(["self", *(v.name for v in given)])
    if writer.needs:
        signature += f", *, {', '.join(writer.needs)}"
    text = _wrapped(0, "def forward(", signature.split(", "), "):", ", ")
    sites = [""] * len(text)
    lines = list(writer.lines)
    direct = bool(lines) and lines[-1].targets == returned
    last = lines.pop() if direct else None
    for line in lines:
        new = _statement(line, ", ".join(v.name for v in line.targets) + " = ")
        text += new
        sites += [line.site] * len(new)
    if last is not None:
        new = _statement(last, "return ")
        site = last.site
    else:
        new = _wrapped(4, "return ", [v.name for v in returned], "", ", ")
        site = ""
    text += new
    sites += [site] * len(new)
    return "\n".join(text) + "\n", sites


def _name(writer: Writer, given: list[Value], returned: list[Value]) -> None:
    """Give each value a name no value alive at the same time has."""
    end = len(writer.lines)
    last_use: dict[Value, int] = dict.fromkeys(returned, end)
    for number in range(end - 1, -1, -1):
        for value in writer.lines[number].values():
            last_use.setdefault(value, number)
    taken = {*writer.scope, *writer.functions, "self", *HANDLER}
    alive: dict[str, Value] = {}
    for value in given:
        value.name = value.hint
        alive[value.name] = value
    for number, line in enumerate(writer.lines):
        for value in line.values():
            if last_use[value] == number and alive.get(value.name) is value:
                del alive[value.name]
        for target in line.targets:
            if not target.fixed:
                target.name = _free(target.hint, taken, alive)
            alive[target.name] = target
        for target in line.targets:
            if target not in last_use and not target.fixed:
                del alive[target.name]


def _free(hint: str, taken: set[str], alive: dict[str, Value]) -> str:
    if hint in taken:
        hint += "_"
    name, number = hint, 1
    while name in alive or name in taken:
        number += 1
        name = f"{hint.rstrip('_')}_{number}"
    return name


def _statement(line: Line, start: str) -> list[str]:
    arguments = ["".join(_text(part) for part in argument) for argument in line.arguments]
    if not line.head:
        return _wrapped(4, start, arguments, "", line.operator)
    before: list[str] = []
    if len(line.targets) > 1 and len(f"    {start}{line.head}(") > WIDTH:
        *before, last = _broken("    ", "(", [v.name for v in line.targets], ") = ", ", ")
        start = last.lstrip()
    return before + _wrapped(4, f"{start}{line.head}(", arguments, ")", ", ")


def _text(part: Part) -> str:
    return part if isinstance(part, str) else part.name


def _wrapped(indent: int, start: str, items: list[str], end: str, operator: str) -> list[str]:
    """One line where it fits, else broken into several."""
    pad = " " * indent
    line = pad + start + operator.join(items) + end
    if len(line) <= WIDTH:
        return [line]
    return (
        _broken(pad, start, items, end, operator)
        if end
        else _broken(pad, start + "(", items, ")", operator)
    )


def _broken(pad: str, start: str, items: list[str], end: str, operator: str) -> list[str]:
    """The items on a line of their own where they fit, else one line each."""
    inner = pad + "    "
    middle = inner + operator.join(items)
    if len(middle) <= WIDTH:
        return [pad + start, middle, pad + end]
    lines: list[str] = []
    for number, item in enumerate(items):
        if operator != ", ":
            lines.append(inner + (operator.lstrip() if number else "") + item)
        elif len(f"{inner}{item},") > WIDTH and item.startswith("("):
            lines += _broken(inner, "(", item[1:-1].split(", "), "),", ", ")
        else:
            lines.append(f"{inner}{item},")
    return [pad + start, *lines, pad + end]
