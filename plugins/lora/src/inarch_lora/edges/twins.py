"""Edges of one adapter: a module is built once for all layers and terms of one form."""

from __future__ import annotations

from collections.abc import Hashable
from operator import attrgetter

from torch import nn

from inarch_lora.edges import NORMS, Layers, SiteEdge, edge_for
from inarch_lora.terms import Term

_NAMES = {"address", "key", "fills", "shapes"}
_settings = attrgetter(*(name for name in Term.__struct_fields__ if name not in _NAMES))


class Twins:
    """Makes edges as `edge_for` does; an equal one is a twin of the first.

    Args:
        layers: of the model.
    """

    def __init__(self, layers: Layers) -> None:
        self.layers = layers
        self._made: dict[Hashable, SiteEdge] = {}

    def edge_for(self, site: nn.Module | None, term: Term) -> SiteEdge:
        """The module that stands beside a layer for a term.

        Raises:
            InarchError: as `edge_for`.
        """
        if isinstance(site, NORMS):
            return edge_for(site, term)
        layer = self.layers[term.address]
        key = (type(site), layer.form, *term.shapes.items(), _settings(term))
        first = self._made.get(key)
        if first is not None:
            return first.twin()
        made = edge_for(site, term)
        if not made._modules:
            self._made[key] = made.twin()
        return made
