"""What an adapter is, and models with adapters in them."""

from inarch.adapters.adapter import Adapter, OwnTree, Part, SiteView, TargetSite
from inarch.adapters.edge import Edge
from inarch.adapters.example import Example
from inarch.adapters.guidance import Ahead, Moment, Span
from inarch.adapters.inputs import AddedInput, Request
from inarch.adapters.member import Member, Members
from inarch.adapters.model import Model

__all__ = [
    "Adapter",
    "AddedInput",
    "Ahead",
    "Edge",
    "Example",
    "Member",
    "Members",
    "Model",
    "Moment",
    "OwnTree",
    "Part",
    "Request",
    "SiteView",
    "Span",
    "TargetSite",
]
