"""What the notebooks work with, one module for each purpose."""

from lab.sweeps import sweep

__all__ = ["sweep"]
