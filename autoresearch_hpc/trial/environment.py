"""The environment of what a trial starts: names that are known to be harmless and wanted, nothing else.

Whatever a site needs beyond these is named in AUTORESEARCH_PASS_ENV, separated by commas (`NAME` or `PREFIX*`). Names
and values that look like secrets do not pass even then.
"""

import os
import re
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path

PASS_VARIABLE = "AUTORESEARCH_PASS_ENV"

_ALLOWED = (
    # the system and the language
    "PATH", "LANG", "LANGUAGE", "LC_*", "TZ", "TERM", "USER", "LOGNAME", "SHELL", "HOSTNAME", "LD_LIBRARY_PATH",
    "LIBRARY_PATH", "CPATH", "C_INCLUDE_PATH", "CPLUS_INCLUDE_PATH", "PKG_CONFIG_PATH", "CC", "CXX", "PYTHONPATH",
    "PYTHONHASHSEED", "PYTHONWARNINGS", "VIRTUAL_ENV", "CONDA_*", "MALLOC_*", "NIX_*",
    # modules
    "MODULEPATH", "MODULESHOME", "LMOD_*", "LOADEDMODULES", "_LMFILES_", "EB*",
    # devices and the libraries for them
    "CUDA*", "NVIDIA_*", "NCCL_*", "CUBLAS*", "CUDNN*", "GPU_DEVICE_ORDINAL", "ROCR_*", "HIP_*", "ROCM_*", "ZE_*",
    "UCX_*", "OMPI_*", "PMIX_*", "PMI_*",
    "OMP_*", "MKL_*", "GOMP_*", "KMP_*", "OPENBLAS_*", "NUMEXPR_*", "VECLIB_*",
    "TORCH*", "PYTORCH_*", "TRITON_*", "XLA_*", "JAX_*", "TF_*", "TOKENIZERS_PARALLELISM",
    # the job
    "SLURM_*", "SLURMD_*", "AUTORESEARCH_*",
)  # fmt: skip
# A command's script is the user's own program: it may live in the home directory and fetch what it needs.
_ALLOWED_COMMAND = (
    "HOME", "TMPDIR", "XDG_*", "HF_HOME", "HF_HUB_*", "HF_DATASETS_*", "TRANSFORMERS_*", "WANDB_MODE", "WANDB_DIR",
    "SCRATCH", "WORK", "PROJECT", "http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY",
    "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "PYTHONUSERBASE", "PYTHONUNBUFFERED",
)  # fmt: skip
_SECRET = re.compile(
    r"KEY|TOKEN(?!IZERS)|SECRET|PASSW|PASSPHRASE|_PWD$|CREDENTIAL|COOKIE|AUTH|_PAT$|JWT", re.IGNORECASE
)
_LOGIN = re.compile(r"://[^/@\s]*:[^/@\s]+@")  # a password within an address, of a proxy or a database


def child_environment(
    num_threads: int | None, extra: Mapping[str, str], caches: Path, *, private: Path | None = None
) -> dict[str, str]:
    """This process's environment as far as it is allowed, with compilers' caches below `caches`.

    With `private` the home and temporary directories are there, and Python reads nothing from the user's home.
    """
    allowed = [*_ALLOWED, *(() if private else _ALLOWED_COMMAND)]
    allowed += [name.strip() for name in os.environ.get(PASS_VARIABLE, "").split(",") if name.strip()]
    env = {name: value for name, value in os.environ.items() if _passes(name, value, allowed)}
    if private:
        env["PYTHONPATH"] = os.pathsep.join(_outside(env.get("PYTHONPATH", ""), private))
        env.update(HOME=str(private / "home"), TMPDIR=str(private / "tmp"), PYTHONSAFEPATH="1")
        env.update(TORCHINDUCTOR_CACHE_DIR=str(caches / "inductor"), TRITON_CACHE_DIR=str(caches / "triton"))
        env.update(CUDA_CACHE_PATH=str(caches / "cuda"))
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


def _passes(name: str, value: str, allowed: list[str]) -> bool:
    if _SECRET.search(name) or _LOGIN.search(value):
        return False
    return any(fnmatchcase(name, pattern) for pattern in allowed)


def _outside(search_path: str, private: Path) -> list[str]:
    """Absolute entries only: an empty or relative one would be the candidate's own directory."""
    entries = [Path(entry) for entry in search_path.split(os.pathsep) if entry]
    return [str(entry) for entry in entries if entry.is_absolute() and not entry.is_relative_to(private)]
