# Sourced by demo.sh and test.sh: makes .venv once and installs the project into it.
# Usage: . scripts/install.sh [extra]
set -euo pipefail
target=".${1:+[$1]}"
stamp=".venv/.installed-${1:-base}"
if [ ! -e "$stamp" ] || [ pyproject.toml -nt "$stamp" ]; then
  python=${PYTHON:-python3}
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "error: Python 3.11 or newer is needed; set PYTHON to one" >&2
    exit 2
  }
  [ -x .venv/bin/python ] || "$python" -m venv .venv
  echo "installing into .venv (torch and friends: some minutes and gigabytes the first time)"
  .venv/bin/python -m pip install --quiet -e "$target"
  touch "$stamp"
fi
