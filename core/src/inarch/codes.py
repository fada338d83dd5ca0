"""The registry of error codes. A test keeps it and the code in step: each is raised somewhere."""

from __future__ import annotations

from typing import Final

CODES: Final[dict[str, str]] = {
    # 1xx trees
    # 2xx weights
    # 3xx plugins and manifests
    # 4xx adapters and stacks
    # 5xx running a model
    # 6xx training
    # 7xx the command line
}
