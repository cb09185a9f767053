#!/usr/bin/env bash
# On-policy labels, written once: each student answers every prompt before it is trained, the teacher is asked about these
# answers once, and training reads the cache; beside GKD, where the student writes at every step.
#
#   bash examples/quickstart_pair/lightning.sh runs/quickstart_pair     # after prepare.py; about fifteen minutes of one core
set -euo pipefail
cd "$1"
TIMEFORMAT=%U # processor time
measured=(--limit 250 --prompts 50 --texts 2 --max-new-tokens 64 --batch-size 250)
once=soft,jensen_shannon,reverse_kl,confidence
for student in 0 1 2; do
  { time bridgegarden generate compare.yaml --set teacher.model=student-$student --temperature 1 --seed $student \
    --max-new-tokens 64 --batch-size 250 --keep-truncated --output answers-$student.jsonl 2> generate-$student.log || [ $? -eq 1 ] # empty answers
  } 2> answers-$student.seconds
  bridgegarden compare compare.yaml --set data.train=answers-$student.jsonl --set student.model=student-$student \
    --output lightning-$student --seeds 1 --objectives $once --baseline soft "${measured[@]}"
done
bridgegarden compare compare.yaml --output live --objectives $once,gkd,on_policy_hybrid "${measured[@]}"
