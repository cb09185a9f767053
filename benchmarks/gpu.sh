#!/usr/bin/env bash
# Every figure of docs/benchmarks.md that needs a GPU, in under 8 minutes:
#
#     benchmarks/gpu.sh OUTPUT_FOLDER
#     benchmarks/gpu.sh --rehearse OUTPUT_FOLDER    every line on a CPU with tiny sizes: whether it runs, no figures
#
# Each benchmark has a time limit, all of them together 470 s, and those after it run whatever became of it. Its tables are NAME.md in the folder,
# what it printed NAME.log; the summary at the end is summary.md. Ends with 1 if one of them failed. PYTHON is python.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")" || exit 2
here=$PWD
cd - >/dev/null || exit 2

rehearse=
[ "${1:-}" = --rehearse ] && { rehearse=yes; shift; }
[ $# = 1 ] || { echo "usage: gpu.sh [--rehearse] OUTPUT_FOLDER" >&2; exit 2; }
python=${PYTHON:-python}
if [ -z "$rehearse" ] && ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    echo "gpu.sh: PyTorch finds no CUDA GPU here; run it on a machine with one, or with --rehearse." >&2
    exit 2
fi
mkdir -p "$1" || exit 2
out=$(cd "$1" && pwd)
: >"$out/summary.md"
failed=0
whole=470

# measure NAME SECONDS SCRIPT ARGUMENTS...: one benchmark, its tables to NAME.md, within SECONDS.
measure() {
    local name=$1 limit=$2 script=$3 began=$SECONDS status
    shift 3
    [ "$limit" -gt $((whole - SECONDS)) ] && limit=$((whole - SECONDS))
    [ -n "$rehearse" ] && limit=1200
    if [ "$limit" -lt 10 ]; then
        echo "$name: left out, no time was left" | tee -a "$out/summary.md"
        failed=1
        return
    fi
    timeout "$limit" "$python" "$here/$script" "$@" --device "$device" --markdown "$out/$name.md" >"$out/$name.log" 2>&1
    status=$?
    case $status in
        0) status="done in $((SECONDS - began)) s" ;;
        124) status="stopped after $limit s; what there was is in $name.log" failed=1 ;;
        *) status="failed with $status: $(tail -n 1 "$out/$name.log")" failed=1 ;;
    esac
    echo "$name: $status" | tee -a "$out/summary.md"
}

# Triton's kernels run on a CPU by its interpreter, where it is installed.
if [ -n "$rehearse" ]; then
    device=cpu
    export TRITON_INTERPRET=1
    measure head-tiny 0 head_and_loss.py --vocab 512 --student 64 --teacher 64 --tokens 32 --repeats 1
    measure step-tiny 0 train_step.py --sizes tiny --rounds 1 --steps 2
    measure profile-tiny 0 step_profile.py --size tiny
    measure on-policy-tiny 0 on_policy_cost.py --size tiny --prompt 8 --answers 8 --steps 1
    measure plan-tiny 0 plan_accuracy.py --cases "256x4, cached" --steps 1
else
    device=cuda
    # Hidden sizes of Qwen2.5 0.5B, 1.5B and 3B, the teacher's of 7B.
    for student in 896 1536 2048; do
        measure "head-$student" 45 head_and_loss.py --student "$student" --teacher 3584 --tokens 8192 --repeats 3
    done
    measure step-0.5b 90 train_step.py --sizes qwen-0.5b --rounds 1 --steps 12
    measure profile-0.5b 40 step_profile.py --size qwen-0.5b
    measure step-1.5b 80 train_step.py --sizes qwen-1.5b --rounds 1 --steps 6
    measure on-policy 75 on_policy_cost.py --size qwen-0.5b --answers 128 --steps 1
    measure plan 60 plan_accuracy.py
    # Last, since it takes longest: what is left of the time.
    measure step-3b 120 train_step.py --sizes qwen-3b --rounds 1 --steps 4
fi
cat "$out"/summary.md
for table in "$out"/*.md; do
    [ "$table" = "$out/summary.md" ] || { echo; echo "## $(basename "$table" .md)"; echo; cat "$table"; }
done | tee -a "$out/summary.md"
exit "$failed"
