# shellcheck shell=bash
# The Python environment from each node's own disk. A process that imports torch asks its filesystem some twenty thousand
# times for files; from here it asks the node, and the shared filesystem gives one large file, once a node.
#
#     bash sbatch/local_env.sh pack .venv /shared/env.tar        # once, and again whenever .venv has changed
#
# and in conf/cluster/mysite.yaml:
#
#     setup: ["source /shared/repository/sbatch/local_env.sh use /shared/env.tar"]
#     python: '"$AUTORESEARCH_ENV/bin/python"'
#
# The first job on a node unpacks below /tmp (or AUTORESEARCH_LOCAL, another directory of the node's own), those beside
# it wait for that, later ones find it there. A new archive is unpacked beside the old one, which running trials may
# still use; both stay until the node cleans up. env.tar.gz is compressed. What a .pth file points to, such as a package
# installed with --editable, stays where it is.

_local_env_pack() { # VENV ARCHIVE
    "$1/bin/python" - "$@" <<'PYTHON'
import os, pathlib, sys, tarfile

venv, archive = pathlib.Path(sys.argv[1]).resolve(), sys.argv[2]
base, part = pathlib.Path(sys.base_prefix).resolve(), f"{archive}.part"

def without_packages(member):  # the venv has its own
    return None if member.name.endswith(("/site-packages", "/test")) else member

with tarfile.open(part, "w:gz" if archive.endswith("gz") else "w") as tar:
    tar.add(venv, "env")
    if base not in (venv, pathlib.Path("/usr")):  # neither conda's, which is whole, nor the system's: every node has that
        for name in ("bin", "lib"):
            tar.add(base / name, f"base/{name}", filter=without_packages)
os.replace(part, archive)
print(f"{archive}: {venv} on the Python of {base}, {os.path.getsize(archive) / 1e9:.1f} GB")
PYTHON
}

_local_env_unpack() { # ARCHIVE PLACE
    local python
    rm -rf "$2.part" && mkdir "$2.part" && tar -xf "$1" -C "$2.part" || return 1
    if [ -d "$2.part/base" ]; then # the venv leads to it
        python=$(basename "$(readlink -f "$2.part/base/bin/python3")")
        ln -sf "../../base/bin/$python" "$2.part/env/bin/python"
        sed -i "s,^home *=.*,home = $2/base/bin," "$2.part/env/pyvenv.cfg" || return 1
    fi
    mv -T "$2.part" "$2"
}

_local_env_use() { # ARCHIVE
    local root place
    root=${AUTORESEARCH_LOCAL:-/tmp}/autoresearch-env-$(id -u)
    place=$root/$(stat -Lc %s-%Y "$1") || return 1
    mkdir -m 700 "$root" 2>/dev/null
    if [ -L "$root" ] || [ ! -O "$root" ]; then # /tmp is everybody's, and what is there runs as us
        echo "local_env: $root is not ours" >&2
        return 1
    fi
    [ -d "$place" ] || (flock 9 && { [ -d "$place" ] || _local_env_unpack "$1" "$place"; }) 9>"$root/lock" || return 1
    export AUTORESEARCH_ENV=$place/env
}

case $1 in
pack) _local_env_pack "$2" "$3" ;;
use) _local_env_use "$2" || { echo "local_env: $2 cannot be used on $(hostname)" >&2 && exit 1; } ;;
*) echo "usage: bash local_env.sh pack VENV ARCHIVE, or source local_env.sh use ARCHIVE" >&2 ;;
esac
