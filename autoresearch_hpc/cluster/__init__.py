"""Where trials run. The only importer of submitit and the only caller of Slurm's commands."""

from autoresearch_hpc.cluster.protocol import Cluster, JobState, Submission, Wait
from autoresearch_hpc.config import ClusterConfig, ClusterKind

__all__ = ["Cluster", "JobState", "Submission", "Wait", "build"]


def build(config: ClusterConfig) -> Cluster:
    """The back end that config names; `auto` is Slurm where it answers. Raises ClusterError where Slurm is missing."""
    from autoresearch_hpc.cluster import slurm

    if config.kind is ClusterKind.slurm or (config.kind is ClusterKind.auto and slurm.answers()):
        return slurm.SlurmCluster(config)
    from autoresearch_hpc.cluster import local

    return local.LocalCluster(config)
