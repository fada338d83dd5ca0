"""The tests of this folder share `stacks` as a module, under names that no other folder has."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from stacks import base, installed, x

__all__ = ["base", "installed", "x"]
