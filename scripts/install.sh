# Sourced by demo.sh and test.sh. Makes .venv and installs the project into it, again if pyproject.toml
# has changed.
# Usage: . scripts/install.sh [extra]
set -euo pipefail
target=".${1:+[$1]}"
stamp=".venv/.installed-${1:-base}"
if [ ! -e "$stamp" ] || [ pyproject.toml -nt "$stamp" ]; then
  python=${PYTHON:-python3}
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "error: $python is older than Python 3.11; set PYTHON to a newer one" >&2
    exit 2
  }
  [ -x .venv/bin/python ] || "$python" -m venv .venv
  echo "installing into .venv (the first time: several minutes, about 6 GB with torch for CUDA)"
  .venv/bin/python -m pip install --quiet -e "$target"
  touch "$stamp"
fi
