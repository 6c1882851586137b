#!/bin/bash
# Trains on all GPUs of one machine: sbatch --gpus-per-node=8 examples/train/slurm/one_node.sh CONFIG.yaml
# Five minutes before the time is up SLURM sends SIGUSR1 to this script, which hands it on: the training writes a
# checkpoint and leaves, and the job queues again.
#SBATCH --job-name=mttt
#SBATCH --nodes=1
#SBATCH --gpus-per-node=8
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x_%j.log
set -euo pipefail
config=${1:?which configuration? sbatch one_node.sh CONFIG.yaml}
train=${MTTT_TRAIN:-build/cuda/bin/train}

export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-8}
# One process a GPU; `srun --mpi=list` names the plugins of this cluster.
srun --mpi="${MTTT_SRUN_MPI:-pmix}" --kill-on-bad-exit=1 "$train" --config "$config" --resume &
training=$!
stopped=
trap 'stopped=1; kill -USR1 "$training"' USR1 # srun hands it on to all processes
status=0
wait "$training" || status=$?
if [[ -n $stopped ]]; then # the first wait ended with the signal
  status=0
  wait "$training" || status=$?
fi

if [[ -n $stopped && $status == 0 ]]; then scontrol requeue "$SLURM_JOB_ID"; fi
exit "$status"
