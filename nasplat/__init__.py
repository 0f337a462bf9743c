"""nasplat: from images and a budget to a Pareto front of networks.

`choice` is all that a network function of your own needs (see `nasplat.spaces.user`); importing it needs no torch.
"""

from nasplat.spaces.choosing import choice

__all__ = ["__version__", "choice"]
__version__ = "0.1.0"
