#!/usr/bin/env bash
# The demo from nothing: makes .venv, installs, then trains plain DDPM and the robust model on the
# same contaminated digits and puts them side by side. Arguments go to train-pixel.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/install.sh ""
exec .venv/bin/train-pixel "$@"
