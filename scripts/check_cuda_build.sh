#!/usr/bin/env bash
# Training and search on tensors that say they are on a GPU, with a CUDA build of torch; no GPU is
# needed. It downloads some gigabytes, into an environment of its own: .venv-cuda, or the directory
# that MTRAIN_VENV names. TORCH is what to install, such as torch==2.11.0; default: the newest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

venv=${MTRAIN_VENV:-.venv-cuda} torch=${TORCH:-torch} python=${PYTHON:-python3}
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
"$venv/bin/python" -m pip install --quiet "$torch" -e ".[dev]"
"$venv/bin/python" - <<'PYTHON'
import sys, torch
print(f"torch {torch.__version__}, CUDA {torch.version.cuda}")
if torch.version.cuda is None:
    sys.exit("error: this is no CUDA build of torch\n  fix: name one by pip's PIP_INDEX_URL and TORCH")
PYTHON
export PYTEST_DISABLE_PLUGIN_AUTOLOAD=1
"$venv/bin/python" -m pytest -q -rs tests/test_device.py tests/test_runtime.py tests/test_trial.py
