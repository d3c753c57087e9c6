"""A search under every misfortune at once: `python tests/chaos --seed 1 --minutes 20 --kills 100`, or `make chaos`.

campaign   starts, kills and resumes the controller of one search until its plan is complete
faults     what happens beside the kills, to Slurm and to the trials; each is written into a log
wrappers   sbatch, squeue and sacct that misbehave when told to
verdict    what has to hold at the end, whatever happened
"""
