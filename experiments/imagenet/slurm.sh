#!/usr/bin/env bash
# Train on a SLURM cluster with one task per GPU. The tasks find each other.
#   sbatch --nodes=8 experiments/imagenet/slurm.sh resnest50 DATA WORKDIR [--config.KEY=VALUE ...]
# Submit from the repository; WORKDIR must be on a disk that all nodes share. A job that is
# preempted or runs out of time saves a checkpoint, is queued again and resumes.
#SBATCH --job-name=resnest
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=TERM@120
#SBATCH --output=slurm-%j.out
#SBATCH --open-mode=append
set -uo pipefail
if [ $# -lt 3 ]; then
  echo "usage: $0 MODEL DATA WORKDIR [--config.KEY=VALUE ...]" >&2
  exit 2
fi
cd "${SLURM_SUBMIT_DIR:-$(dirname "$0")/../..}"
model=$1 data=$2 workdir=$3
shift 3
srun --kill-on-bad-exit=1 python -m resnest_jax.train "--config=configs/imagenet.py:$model" \
  "--config.dataset=$data" "--workdir=$workdir" "$@" &
srun_id=$!
trap 'kill -TERM $srun_id' TERM
# A trap ends a wait early, so wait again until the run has saved its checkpoint.
while kill -0 $srun_id 2> /dev/null; do
  wait $srun_id
  code=$?
done
# 143: the run got SIGTERM and saved a checkpoint.
if [ "$code" -eq 143 ]; then scontrol requeue "$SLURM_JOB_ID"; fi
exit "$code"
