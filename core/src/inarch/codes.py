"""The registry of error codes. A test keeps it and the code in step: each is raised somewhere."""

from __future__ import annotations

from typing import Final

CODES: Final[dict[str, str]] = {
    # 1xx trees
    "IA101": "a name is bound twice",
    "IA102": "a label is used twice or missing",
    "IA103": "a label or name that can't be one",
    "IA104": "values don't fit a step",
    "IA105": "a need nobody binds",
    "IA106": "not a step",
    "IA107": "a function's constants can't be compared",
    "IA108": "a sharded or compiled tree can't be edited",
    "IA110": "an address matches nothing",
    "IA111": "a replacement would lose an edit",
    "IA112": "a wrap must hold what it wraps once",
    "IA113": "a malformed address pattern",
    "IA114": "another number of sites than demanded",
    "IA115": "an adapter's name stands at a site twice",
    "IA116": "a name an adapter can't have",
    "IA117": "an edit that is not complete",
    "IA118": "weights that can't be tied",
    # 2xx weights
    "IA201": "a file that is not there",
    "IA202": "a broken weights file",
    "IA203": "a pickle",
    "IA204": "a place that holds no weights",
    "IA205": "a JSON file that can't be read",
    "IA206": "a checkpoint that does not fit its configuration",
    "IA207": "a tensor the file does not have",
    "IA208": "the hub can't be reached",
    "IA209": "no such device or dtype",
    "IA251": "a GGUF file that can't be understood",
    "IA252": "a GGUF tensor that can't be dequantised",
    "IA253": "a GGUF tokenizer that can't be rebuilt",
    # 3xx plugins and manifests
    "IA301": "a manifest can't be read",
    "IA302": "a malformed manifest",
    "IA303": "a manifest of a newer schema",
    "IA304": "a manifest that is not where it should be",
    "IA305": "an id that two packages have",
    "IA306": "no foundation model for a checkpoint",
    "IA307": "manifest and entry points disagree",
    "IA308": "an id nothing installed has",
    "IA309": "a package that can't be loaded",
    "IA310": "a file that is not installed",
    "IA311": "hooks that don't fit",
    # 4xx adapters and stacks
    "IA401": "an adapter that can't be asked for so",
    "IA402": "a target matches nothing",
    "IA403": "an adapter's name is unknown or taken",
    "IA404": "a stack file can't be read",
    "IA405": "a file that is no stack",
    "IA406": "no such adapter is installed",
    "IA407": "the order of two adapters matters",
    "IA408": "an adapter can't be saved",
    "IA409": "an adapter can't be merged, rescaled or trained so",
    "IA410": "an adapter for another base",
    "IA411": "an adapter's file does not fit",
    "IA412": "a model of several trees",
    "IA421": "a layer LoRA has no term for",
    "IA422": "a rank the groups don't divide",
    "IA423": "a tensor that is no LoRA's",
    "IA424": "a PEFT setting that LoRA does not have",
    "IA425": "an adapted layer the model does not have",
    "IA426": "a LoRA's file and settings disagree",
    # 5xx running a model
    # 6xx training
    # 7xx the command line
    "IA701": "a command used wrongly",
    "IA702": "a word that names nothing",
    "IA703": "no weights to open",
    "IA704": "a model that does not generate text",
}
