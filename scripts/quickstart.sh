#!/usr/bin/env bash
# From a clean clone to a scored translator, in a few minutes on a CPU and without a download of
# data. Safe to run again: finished steps are skipped.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/environment.sh

make_environment .venv .
mtrain=.venv/bin/mtrain
run=runs/quickstart

"$mtrain" prepare configs/quickstart.yaml
"$mtrain" train configs/quickstart.yaml

echo
echo "Phrases that were not in the training data:"
shown=$(mktemp -d)
trap 'rm -rf "$shown"' EXIT
for side in source target; do # six lines, from all over the test set
    awk 'NR % 83 == 1 && ++n <= 6' "$run/data/test.$side" >"$shown/$side"
done
"$mtrain" translate "$run" "$shown/source" >"$shown/translation"
paste -d '\n' "$shown/source" "$shown/translation" "$shown/target" | awk '
    NR % 3 == 1 { print "\n  source       " $0 }
    NR % 3 == 2 { print "  translation  " $0 }
    NR % 3 == 0 { print "  reference    " $0 }'

echo
"$mtrain" eval "$run"
cat <<END

The run:            $run
  the model         $run/model.safetensors
  scores            $run/scores.json
  training log      $run/metrics.jsonl
The prepared data:  data/quickstart
The config:         configs/quickstart.yaml

Next:               $mtrain translate $run
Your own data:      $mtrain new my-project --from my-corpus
END
