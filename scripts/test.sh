#!/usr/bin/env bash
# All checks before a change is merged: format, lint, types, tests, slow tests.
# The environment is .venv-test, or the directory that MTRAIN_VENV names.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/environment.sh

venv=${MTRAIN_VENV:-.venv-test}
make_environment "$venv" ".[dev,ctranslate2,langid,tensorboard]"
python=$venv/bin/python
export PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 # ignore plugins of the machine's own Python
export MTRAIN_FUZZ_INPUTS=${MTRAIN_FUZZ_INPUTS:-5000} # `pytest -m slow` by itself: 100,000

"$python" -m ruff format --check .
"$python" -m ruff check .
"$python" -m mypy
"$python" -m pytest -q -rs --durations=10 -p xdist -n 2 --dist worksteal -m "not gpu and not network"
