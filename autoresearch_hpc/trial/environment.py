"""The environment of what a trial starts: what may travel there, and places of its own."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from autoresearch_hpc import environment

_COMPILERS = 8


def child_environment(
    num_threads: int | None,
    extra: Mapping[str, str],
    caches: Path,
    *,
    pass_env: Sequence[str],
    private: Path | None = None,
) -> dict[str, str]:
    """This process's environment as far as it is allowed, with compilers' caches below `caches`.

    With `private` the home and temporary directories are there, and Python reads nothing from the user's home.
    """
    env = environment.for_trial(pass_env, private=private is not None)
    if private:
        env["PYTHONPATH"] = os.pathsep.join(_outside(env.get("PYTHONPATH", ""), private))
        env.update(HOME=str(private / "home"), TMPDIR=str(private / "tmp"), PYTHONSAFEPATH="1")
        env.update(compiler_caches(caches))
    env.setdefault("TORCHINDUCTOR_CACHE_DIR", str(caches / "inductor"))  # these race on network filesystems
    env.setdefault("TRITON_CACHE_DIR", str(caches / "triton"))
    env.setdefault("GOMP_SPINCOUNT", "1000")  # spinning threads starve each other once a core is shared
    env["PYTHONDONTWRITEBYTECODE"] = "1"
    if num_threads:
        env.update(OMP_NUM_THREADS=str(num_threads), MKL_NUM_THREADS=str(num_threads))
    visible = env.get("CUDA_VISIBLE_DEVICES", "")
    if "," in visible:  # a whole node was given: a trial is a single-GPU program
        env["CUDA_VISIBLE_DEVICES"] = visible.split(",")[0]
    env.update(extra)
    return {name: value for name, value in env.items() if value or name != "PYTHONPATH"}


def compiler_caches(caches: Path) -> dict[str, str]:
    """The variables that make compilers keep what they compile below `caches`."""
    folders = {
        "TORCHINDUCTOR_CACHE_DIR": "inductor",
        "TRITON_CACHE_DIR": "triton",
        "CUDA_CACHE_PATH": "cuda",
        "FLASH_ATTENTION_CUTE_DSL_CACHE_DIR": "flash_attention",
    }
    variables = {name: str(caches / folder) for name, folder in folders.items()}
    return {**variables, "FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED": "1"}  # off unless asked for: 9 s at every start


def shut_in_compilers() -> dict[str, str]:
    """The variables that let torch.compile use several processes behind a barrier.

    The usual ones start CUDA, which wants to write to their /proc, to ask for GPUs. Spawned ones have a torch of their
    own each (0.4 GB), so there are not more of them than help, and ask the driver (NVML), which does not count slices
    of GPUs (MIG): there, one process compiles.
    """
    if os.environ.get("CUDA_VISIBLE_DEVICES", "").startswith("MIG-"):
        return {"TORCHINDUCTOR_COMPILE_THREADS": "1"}
    threads = os.environ.get("TORCHINDUCTOR_COMPILE_THREADS") or min(_COMPILERS, len(os.sched_getaffinity(0)))
    return {
        "TORCHINDUCTOR_COMPILE_THREADS": str(threads),
        "TORCHINDUCTOR_WORKER_START": "spawn",
        "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
    }


def _outside(search_path: str, private: Path) -> list[str]:
    """Absolute entries only: an empty or relative one would be the candidate's own directory."""
    entries = [Path(entry) for entry in search_path.split(os.pathsep) if entry]
    return [str(entry) for entry in entries if entry.is_absolute() and not entry.is_relative_to(private)]
