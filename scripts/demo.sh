#!/usr/bin/env bash
# Both demos from a fresh clone. Makes .venv, installs the project, then trains a plain and a robust
# model on contaminated data: first in pixel space (digits), then in latent space (a LoRA on captioned
# scenes). Takes minutes on a CPU after the installation.
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
# Fewer steps than in docs/results/digits.md, so that it takes less than ten minutes on two slow cores.
pixel=(.venv/bin/train-pixel --steps 3200 "$@")
latent=(.venv/bin/finetune-latent --lora "$@")
if [ "$which" != latent ]; then
  echo "demo: ${pixel[*]}"
  "${pixel[@]}"
fi
if [ "$which" != pixel ]; then
  echo "demo: ${latent[*]}"
  "${latent[@]}"
fi
