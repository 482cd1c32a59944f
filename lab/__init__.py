"""What the notebooks work with, one module for each purpose."""

from lab.experiments import experiment
from lab.sweeps import sweep

__all__ = ["experiment", "sweep"]
