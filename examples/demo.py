"""A real pretrained model, two real adapters, and the base given back untouched.

tox run -e demo
"""

from __future__ import annotations

import hashlib
import textwrap
import time

import inarch

QUESTION = "Why is the ocean salty?"


def bits(model: inarch.Model) -> str:
    """A hash over every bit of a model's weights."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()[:16]


def say(model: inarch.Model, title: str) -> None:
    answer = model.generate([{"role": "user", "content": QUESTION}], max_new_tokens=60)
    print(f"\n{title}:")
    print(textwrap.fill(answer, 78, initial_indent="  ", subsequent_indent="  "))


def main() -> None:
    started = time.perf_counter()
    base = inarch.load("smollm2", dtype="float32")
    count = sum(p.numel() for p in base.parameters())
    print(f"SmolLM2-135M-Instruct, {count:,} parameters, in {time.perf_counter() - started:.1f} s")
    before = bits(base)

    print(f"\n> {QUESTION}")
    say(base, "the base")
    pirate = base.adapt(inarch.adapter("pirate"))
    say(pirate, "with pirate")
    terse = base.adapt(inarch.adapter("terse_json"))
    say(terse, "with terse_json")
    both = base.adapt(inarch.adapter("pirate"), inarch.adapter("terse_json"))
    turned = base.adapt(inarch.adapter("terse_json"), inarch.adapter("pirate"))
    if turned.digest != both.digest:
        raise SystemExit("the order mattered")
    say(both, "with both, in either order")

    print("\nWhat pirate changed, as source:\n")
    print(pirate.diff(base))

    say(base, "the base again")
    print(f"\nevery bit of the base before: {before}, after: {bits(base)}")
    if bits(base) != before:
        raise SystemExit("the base was touched")


if __name__ == "__main__":
    main()
