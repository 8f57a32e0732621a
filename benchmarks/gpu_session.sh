#!/usr/bin/env bash
# All that a GPU is wanted for, unattended: each step in less than ten minutes, with what it found on
# disk before the next begins.
#
#     benchmarks/gpu_session.sh [step ...]
#
# From a checkout, in an environment with numbabn's requirements, torch, and for its steps CuPy, Keras
# and JAX. Without arguments all steps, in order:
#
#     tests keras-torch keras-jax predictions speed ncu memcheck racecheck bounds
#
# Everything is in benchmarks/results/<GPU>/session/: <step>.txt, and summary.txt with the time of
# each step and its exit status (124: out of time, 77: left out, for want of what its log names).
set -u
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
SECONDS_A_STEP=${SECONDS_A_STEP:-570}

gpus=$(nvidia-smi --query-gpu=name --format=csv,noheader 2>&1) || {
    echo "There is no NVIDIA GPU here: nvidia-smi says $gpus" >&2
    exit 1
}
gpu=$(head -n 1 <<<"$gpus")
folder="benchmarks/results/$(tr '[:upper:]' '[:lower:]' <<<"$gpu" | tr -cs 'a-z0-9' '-' | sed 's/^-//; s/-$//')/session"
mkdir -p "$folder"
steps=("$@")
[ ${#steps[@]} -gt 0 ] || steps=(tests keras-torch keras-jax predictions speed ncu memcheck racecheck bounds)

# has <command or module>: 77 and a line in the log where it is missing.
has() { command -v "$1" >/dev/null || python -c "import $1" 2>/dev/null || { echo "$1 is missing"; return 77; }; }

kernels='regex:(statistics|gradient|gradient_sums|normalize|fold)_'
metrics=dram__throughput.avg.pct_of_peak_sustained_elapsed,dram__bytes_read.sum,dram__bytes_write.sum
metrics+=,sm__inst_issued.avg.pct_of_peak_sustained_active,lts__t_sectors_op_read.sum
metrics+=,lts__t_sectors_op_write.sum,gpu__time_duration.sum

step_tests() {
    local hardware=()
    has cupy || hardware=(--ignore tests/cuda/test_cuda_hardware.py)
    NUMBABN_CUDA=device python -m pytest -q --maxfail=20 tests/cuda tests/operations "${hardware[@]}"
}
step_keras-torch() { has keras && KERAS_BACKEND=torch python -m pytest -q --maxfail=20 tests/keras; }
step_keras-jax() { has keras && has jax && KERAS_BACKEND=jax python -m pytest -q --maxfail=20 tests/keras; }
step_predictions() { python -m benchmarks.gpu_kernels predictions; }
step_speed() { python -m benchmarks.gpu; }
step_ncu() {
    has ncu && ncu --kernel-name "$kernels" --metrics "$metrics" --csv python -m benchmarks.gpu_kernels once
}
step_memcheck() {
    has compute-sanitizer && compute-sanitizer --tool memcheck --error-exitcode 1 \
        python -m benchmarks.gpu_kernels once --small
}
step_racecheck() {
    has compute-sanitizer && compute-sanitizer --tool racecheck --error-exitcode 1 \
        python -m benchmarks.gpu_kernels once --small
}
step_bounds() { python -m benchmarks.gpu_kernels bounds; }

{
    date -u +%FT%TZ
    nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
    git rev-parse HEAD
    python -m numbabn info
} >"$folder/machine.txt" 2>&1

for step in "${steps[@]}"; do
    if ! declare -F "step_$step" >/dev/null; then
        echo "There is no step $step" >&2
        exit 2
    fi
done
for step in "${steps[@]}"; do
    start=$SECONDS
    export -f has "step_$step"
    export kernels metrics
    timeout --kill-after=20 "$SECONDS_A_STEP" bash -c "step_$step" >"$folder/$step.txt" 2>&1
    status=$?
    printf '%-12s status %3d %4d s\n' "$step" "$status" $((SECONDS - start)) | tee -a "$folder/summary.txt"
done
