#!/usr/bin/env bash
# The demo from nothing: makes .venv, installs, then trains plain DDPM and the robust model on the
# same contaminated digits and puts them side by side. Arguments go to train-pixel; without any, the
# demo takes fewer steps than RESULTS.md, to stay below ten minutes on two slow cores.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/install.sh ""
[ $# -gt 0 ] || set -- --steps 4000
exec .venv/bin/train-pixel "$@"
