"""Where trials run. The only importer of submitit and the only caller of Slurm's commands."""

from collections.abc import Sequence

from autoresearch_hpc.cluster.protocol import Cluster, JobState, Submission, Wait
from autoresearch_hpc.config import ClusterConfig, ClusterKind

__all__ = ["Cluster", "JobState", "Submission", "Wait", "build"]


def build(config: ClusterConfig, pass_env: Sequence[str] = ()) -> Cluster:
    """The back end that config names; `auto` is Slurm where it answers. Raises ClusterError where Slurm is missing.

    Its jobs inherit what `environment.for_job` allows, and what `pass_env` names.
    """
    from autoresearch_hpc.cluster import slurm

    if config.kind is ClusterKind.slurm or (config.kind is ClusterKind.auto and slurm.answers()):
        return slurm.SlurmCluster(config, pass_env)
    from autoresearch_hpc.cluster import local

    return local.LocalCluster(config, pass_env)
