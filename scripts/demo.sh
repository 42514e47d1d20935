#!/usr/bin/env bash
# The demos from nothing: makes .venv, installs, then trains plain and robust models side by side on
# contaminated data, first in pixel space (digits), then in latent space (a LoRA on captioned scenes).
# Usage: demo.sh [pixel|latent [options of train-pixel or finetune-latent]]
set -euo pipefail
cd "$(dirname "$0")/.."
which=${1:-both}
[ $# -eq 0 ] || shift
case $which in
  pixel | latent | both) ;;
  *)
    echo "usage: $0 [pixel|latent [options]]" >&2
    exit 2
    ;;
esac
. scripts/install.sh ""
# The pixel demo takes fewer steps than RESULTS.md, to stay below ten minutes on two slow cores.
[ "$which" = latent ] || .venv/bin/train-pixel --steps 3200 "$@"
[ "$which" = pixel ] || .venv/bin/finetune-latent --lora "$@"
