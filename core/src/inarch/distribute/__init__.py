"""A model over several processes: replicated, sharded with FSDP2, or split by the roles of layers.

The only room that imports `torch.distributed`.
"""

from inarch.distribute.checkpoint import load_tensors, save_tensors
from inarch.distribute.layout import Spread
from inarch.distribute.sharding import shard

__all__ = ["Spread", "load_tensors", "save_tensors", "shard"]
