#!/usr/bin/env bash
# A search on a SLURM cluster: one Ray node a machine of the allocation, the search on the first.
#
#   sbatch --nodes=4 --gpus-per-node=4 scripts/ray_slurm.sh experiments/mine.yaml [options of nasplat search]
#
# Submitted from the clone, which lies on a file system that all machines see, as the run directory does. Killed or out
# of time, the same command goes on: the search is started with --resume.
#SBATCH --job-name=nasplat
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --output=%x-%j.log
set -euo pipefail

[ $# -ge 1 ] || { echo "which experiment? sbatch scripts/ray_slurm.sh EXPERIMENT" >&2 && exit 2; }
cd "${SLURM_SUBMIT_DIR:?this runs under sbatch}"
# shellcheck source=scripts/environment.bash
source scripts/environment.bash

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
ip=$(srun --nodes=1 --ntasks=1 --nodelist="$head" hostname --ip-address | awk '{print $1}')
# Jobs of others may share the machine: a port of this job's own.
address=$ip:$((20000 + SLURM_JOB_ID % 20000))
export RAY_USAGE_STATS_ENABLED=0 RAY_AUTH_MODE=token
[ -s "$HOME/.ray/auth_token" ] || "$venv/bin/ray" get-auth-token --generate >/dev/null

resources=(--num-cpus="$SLURM_CPUS_PER_TASK" --num-gpus="${SLURM_GPUS_ON_NODE:-0}" --disable-usage-stats --block)
srun --nodes=1 --ntasks=1 --nodelist="$head" "$venv/bin/ray" start --head --node-ip-address="$ip" \
    --port="${address##*:}" --include-dashboard=false "${resources[@]}" &
sleep 15
if [ "$SLURM_JOB_NUM_NODES" -gt 1 ]; then
    srun --nodes=$((SLURM_JOB_NUM_NODES - 1)) --ntasks=$((SLURM_JOB_NUM_NODES - 1)) --exclude="$head" \
        "$venv/bin/ray" start --address="$address" "${resources[@]}" &
    sleep 15
fi

"$python" -m nasplat doctor --address "$address"
"$python" -m nasplat search "$@" --executor ray --address "$address" --resume
