#!/usr/bin/env bash
# Installs what the tests need into .venv, then runs them; arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/install.sh dev
export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1
# One process a core: the tests compare bits and therefore use one thread each.
.venv/bin/python -m pytest -n auto "$@"
