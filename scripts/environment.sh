# Sourced by quickstart.sh and test.sh: makes a virtual environment and installs this checkout.
#
# make_environment DIR REQUIREMENT: DIR is created if missing; REQUIREMENT is `.` or
# `.[dev]`. Versions are those of constraints.txt, except for a torch >= 2.11 that the machine's own
# Python has already: that one is used. pip's own settings (index, cache, proxy) are honoured.
# Does nothing if nothing has changed since the last time.

make_environment() {
    local venv=$1 requirement=$2 python=${PYTHON:-python3} stamp wanted pins
    if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
        echo "error: $python is not Python 3.11 or newer" >&2
        echo "  fix: PYTHON=/path/to/python3.11 bash $0" >&2
        return 2
    fi
    stamp=$venv/installed-by-mtrain
    wanted=$(echo "$requirement $PWD"; cat pyproject.toml scripts/constraints.txt)
    if [ "$wanted" = "$(cat "$stamp" 2>/dev/null)" ]; then
        return
    fi
    if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
        echo "making the environment $venv" >&2
        "$python" -m venv --system-site-packages "$venv"
        if ! has_torch "$venv"; then
            "$python" -m venv --clear "$venv"
        fi
    fi
    pins=$(mktemp)
    if has_torch "$venv"; then
        grep -v '^torch==' scripts/constraints.txt >"$pins"
    else
        cp scripts/constraints.txt "$pins"
    fi
    echo "installing mtrain into $venv" >&2
    "$venv/bin/python" -m pip install --quiet -c "$pins" -e "$requirement" >&2
    rm -f "$pins"
    echo "$wanted" >"$stamp"
}

# True where the environment sees a torch that is new enough.
has_torch() {
    "$1/bin/python" - <<'PYTHON'
import re, sys
from importlib.metadata import PackageNotFoundError, version

try:
    numbers = re.findall(r"\d+", version("torch"))
except PackageNotFoundError:
    sys.exit(1)
sys.exit(tuple(map(int, numbers[:2])) < (2, 11))
PYTHON
}
