"""A search for better training code, one Slurm job array a round."""

__version__ = "0.1.0"
