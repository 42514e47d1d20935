#!/usr/bin/env bash
# Installs the project and its test tools into .venv, then runs the tests. Usage: test.sh [pytest options]
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/install.sh dev
export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1
# One process per core with one thread each: some tests compare results bit for bit.
.venv/bin/python -m pytest -n auto "$@"
