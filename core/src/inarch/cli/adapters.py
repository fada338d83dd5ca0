"""`inarch adapters`"""

from __future__ import annotations

import click

from inarch.cli.output import Output, json_option
from inarch.plugins import index
from inarch.plugins.fit import misfit, model_named, weights_misfit


@click.command()
@click.option("--for", "model", metavar="MODEL", help="Only what fits this model or checkpoint.")
@json_option
def adapters(model: str | None, as_json: bool) -> None:
    """List adapters and trained weights, all or those that fit a model."""
    output = Output(as_json, "adapters")
    listed = index()
    entry = None if model is None else model_named(model, listed)
    reasons = {
        **{a.id: "" if entry is None else misfit(a, entry) for a in listed.adapters.values()},
        **{
            w.id: "" if entry is None else weights_misfit(w, entry, listed)
            for w in listed.weights.values()
        },
    }
    if as_json:
        kinds = (("adapters", listed.adapters), ("weights", listed.weights))
        data = {k: [e for e in t.values() if not reasons[e.id]] for k, t in kinds}
        output.envelope({**data, "unfit": {i: r for i, r in reasons.items() if r}})
        return
    fit = {i for i, reason in reasons.items() if not reason}
    rows = [(a.id, "adapter", a.distribution, a.summary) for a in listed.adapters.values()]
    rows += [(w.id, w.adapter, w.distribution, w.summary) for w in listed.weights.values()]
    if fit:
        output.table(("id", "kind", "package", "summary"), [r for r in rows if r[0] in fit])
    else:
        output.note("No installed adapter fits. One that fits language models: inarch-lora")
    for name, reason in reasons.items():
        if reason:
            output.note(f"{name} does not fit: {reason}")
