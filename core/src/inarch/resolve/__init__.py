"""Whether a stack fits and whether its order is meant. So far: what meets at one site."""

from inarch.resolve.order import check_order

__all__ = ["check_order"]
