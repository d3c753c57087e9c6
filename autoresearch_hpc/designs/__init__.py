"""Experimental designs in coded units: which settings to try together. Pure; they know no knobs and no project.

A coded level is -1 (low), 0 (centre) or +1 (high); designs that fill a space give positions between 0 and 1.
"""

from autoresearch_hpc.designs.filling import full_grid, latin_hypercube, sobol
from autoresearch_hpc.designs.two_level import TwoLevel, axial, factors_that_fit, largest, two_level

__all__ = ["TwoLevel", "axial", "factors_that_fit", "full_grid", "largest", "latin_hypercube", "sobol", "two_level"]
