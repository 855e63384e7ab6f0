#!/usr/bin/env bash
# Train on a TPU slice: the same command on each host. The hosts find each other.
#   experiments/imagenet/tpu.sh NAME ZONE resnest50 DATA WORKDIR [--config.KEY=VALUE ...]
# NAME and ZONE are those of the slice. Each host needs this repository, installed, in ~/resnest_jax.
# DATA and WORKDIR are gs:// mounts or disks that all hosts see.
set -euo pipefail
if [ $# -lt 5 ]; then
  echo "usage: $0 NAME ZONE MODEL DATA WORKDIR [--config.KEY=VALUE ...]" >&2
  exit 2
fi
name=$1 zone=$2 model=$3 data=$4 workdir=$5
shift 5
command="cd ~/resnest_jax && JAX_COORDINATOR_ADDRESS=auto python -m resnest_jax.train --config=configs/imagenet.py:$model"
command+=" --config.dataset=$data --workdir=$workdir $*"
exec gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --command="$command"
