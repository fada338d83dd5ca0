"""Room for a larger rank than a file has, so that others take its place without another shape."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from inarch.adapters import SiteView
from inarch.errors import InarchError
from inarch_lora.edges import Layer
from inarch_lora.terms import Term

_RANKLESS = ("full", "norm", "bias")


def roomy(
    terms: Sequence[Term], capacity: int, covers: Sequence[str], sites: SiteView, adapter: str
) -> list[Term]:
    """The terms with room for a rank, and empty ones for what else is to be covered.

    B and A of zeros add nothing, so a smaller rank is padded and a layer may have none. Grouped
    convolutions keep their rank: which of its channels belong to a group depends on it.

    Args:
        terms: of a file, or fresh.
        capacity: the rank to make room for.
        covers: roles and address patterns; see `Options`.
        sites: the pristine model.
        adapter: its name, for errors.

    Raises:
        InarchError: IA497 for a rank above the capacity, and for terms that can't be padded.
    """
    found: list[Term] = []
    for term in terms:
        if term.algorithm not in ("lora", *_RANKLESS) or term.start or "lora_mid" in term.shapes:
            what = f"a {term.start or term.algorithm}, whose tensors can't be padded with zeros"
            raise _no_room(adapter, term.address, what, "leave capacity out")
        if term.rank > capacity:
            what = f"of rank {term.rank}, and there is room for {capacity}"
            raise _no_room(adapter, term.address, what, f"capacity={term.rank}")
        found.append(_with_room(term, capacity, sites))
    taken = {term.address for term in terms}
    for site in sites.find(covers, modules=True) if covers else ():
        if site.address not in taken:
            empty = Term(address=site.address, algorithm="lora")
            found.append(_with_room(empty, capacity, sites))
    return found


def _with_room(term: Term, capacity: int, sites: SiteView) -> Term:
    if term.algorithm in _RANKLESS:
        return term
    grouped = Layer.of(sites.all[term.address].module, term.address).groups > 1
    return term if grouped else replace(term, room=capacity)


def _no_room(adapter: str, address: str, what: str, remedy: str) -> InarchError:
    return InarchError(
        "IA497",
        f"the adapter `{adapter}` has no room for its terms",
        where=address,
        why=f"the term there is {what}",
        remedy=remedy,
    )
