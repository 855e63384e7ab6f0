#!/usr/bin/env bash
# Train on one machine, with all its GPUs or TPU cores in one process.
#   experiments/imagenet/one_machine.sh resnest50 DATA WORKDIR [--config.KEY=VALUE ...]
# DATA: "imagenet2012", or "folder:DIR" for DIR/train/CLASS/*.JPEG and DIR/val/CLASS/*.JPEG.
set -euo pipefail
if [ $# -lt 3 ]; then
  echo "usage: $0 MODEL DATA WORKDIR [--config.KEY=VALUE ...]" >&2
  exit 2
fi
cd "$(dirname "$0")/../.."
model=$1 data=$2 workdir=$3
shift 3
run=(python -m resnest_jax.train "--config=configs/imagenet.py:$model" "--config.dataset=$data"
  "--workdir=$workdir" "$@")
"${run[@]}" --dry_run
exec "${run[@]}"
