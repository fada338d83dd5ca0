"""Finding packages: manifests, the index, loading. Knows neither torch nor the tree."""

from inarch.plugins.index import Finding, Index, index
from inarch.plugins.load import load_object, locate_checkpoint, locate_weights

__all__ = ["Finding", "Index", "index", "load_object", "locate_checkpoint", "locate_weights"]
