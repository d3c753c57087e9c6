"""Which environment variables travel from the controller into a job, and from there into what a trial starts.

Both are lists of names that are known to be harmless and wanted. What a site or a run needs beyond them is named in
`task.pass_env` (`NAME` or `PREFIX*`). What looks like a secret does not pass even then.
"""

import os
import re
from collections.abc import Sequence
from fnmatch import fnmatchcase

_SYSTEM = ("PATH", "LANG", "LANGUAGE", "LC_*", "TZ", "TERM", "USER", "LOGNAME", "SHELL", "HOSTNAME", "LD_LIBRARY_PATH")
_NETWORK = (
    "http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY",
    "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE",
)  # fmt: skip
_ANYWHERE = (
    *_SYSTEM,
    # the languages' own
    "LIBRARY_PATH", "CPATH", "C_INCLUDE_PATH", "CPLUS_INCLUDE_PATH", "PKG_CONFIG_PATH", "CC", "CXX", "PYTHONPATH",
    "PYTHONHASHSEED", "PYTHONWARNINGS", "VIRTUAL_ENV", "CONDA_*", "MALLOC_*", "NIX_*",
    # modules
    "MODULEPATH", "MODULESHOME", "LMOD_*", "LOADEDMODULES", "_LMFILES_", "EB*",
    # devices and the libraries for them
    "CUDA*", "NVIDIA_*", "NCCL_*", "CUBLAS*", "CUDNN*", "GPU_DEVICE_ORDINAL", "ROCR_*", "HIP_*", "ROCM_*", "ZE_*",
    "UCX_*", "OMPI_*", "PMIX_*", "PMI_*",
    "OMP_*", "MKL_*", "GOMP_*", "KMP_*", "OPENBLAS_*", "NUMEXPR_*", "VECLIB_*",
    "TORCH*", "PYTORCH_*", "TRITON_*", "XLA_*", "JAX_*", "TF_*", "TOKENIZERS_PARALLELISM",
)  # fmt: skip
# What a job hands on to any trial of its own.
_TRIAL = ("SLURM_*", "SLURMD_*", "AUTORESEARCH_*")
# A command's script is the user's own program: it may live in the home directory and fetch what it needs.
_COMMAND = (
    "HOME", "TMPDIR", "XDG_*", "HF_HOME", "HF_HUB_*", "HF_DATASETS_*", "TRANSFORMERS_*", "WANDB_MODE", "WANDB_DIR",
    "SCRATCH", "WORK", "PROJECT", "PYTHONUSERBASE", "PYTHONUNBUFFERED", *_NETWORK,
)  # fmt: skip
# What the job's own shell needs, for `module load` and the like, and containers around the worker.
_JOB = (
    "MODULE*", "__MODULES_*", "_ModuleTable*", "__LMOD_*", "BASH_ENV", "BASH_FUNC_*module*", "BASH_FUNC_ml*",
    "APPTAINER*", "SINGULARITY*", "ENROOT_*", "KRB5CCNAME",
)  # fmt: skip
_SECRET = re.compile(
    r"KEY|TOKEN(?!IZERS)|SECRET|PASSW|PASSPHRASE|_PWD$|CREDENTIAL|COOKIE|AUTH|_PAT$|JWT", re.IGNORECASE
)
_LOGIN = re.compile(r"://[^/@\s]*:[^/@\s]+@")  # a password within an address, of a proxy or a database


def for_job(pass_env: Sequence[str]) -> dict[str, str]:
    """What a job inherits of this process's environment, without any job's own variables."""
    return _passing([*_ANYWHERE, *_COMMAND, *_JOB, *pass_env])


def for_trial(pass_env: Sequence[str], *, private: bool) -> dict[str, str]:
    """What a trial's process inherits of its job's environment; a `private` one has nothing of the user's own."""
    return _passing([*_ANYWHERE, *_TRIAL, *(() if private else _COMMAND), *pass_env])


def for_cli(keys: Sequence[str]) -> dict[str, str]:
    """What a coding CLI inherits of the controller: the way to the network, and the keys that are named."""
    own = {name: os.environ[name] for name in keys if name in os.environ}
    return {**_passing([*_SYSTEM, *_NETWORK]), **own}


def withheld(pass_env: Sequence[str]) -> list[str]:
    """What `pass_env` names and what does not pass all the same, since it looks like a secret."""
    named = [name for name in pass_env if not name.endswith("*") and name not in os.environ and _SECRET.search(name)]
    return sorted(
        {*named, *(name for name, value in os.environ.items() if _listed(name, pass_env) and _is_secret(name, value))}
    )


def _passing(listed: Sequence[str]) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if _listed(name, listed) and not _is_secret(name, value)}


def _listed(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _is_secret(name: str, value: str) -> bool:
    return bool(_SECRET.search(name) or _LOGIN.search(value))
