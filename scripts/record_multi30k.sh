#!/usr/bin/env bash
# Multi30k within a time budget, with several seeds: the scores of test_2016_flickr as the papers
# report them and as plain sacreBLEU does, their mean and their spread.
#
#   scripts/record_multi30k.sh DIR [KEY=VALUE ...]
#   TARGET=fr SEEDS=1 BUDGET=30min scripts/record_multi30k.sh multi30k
#   BUDGET=2min scripts/record_multi30k.sh multi30k train.optim.consistency=rdrop
#   CASE=lower BOTH=10min scripts/record_multi30k.sh multi30k
#
# DIR holds test_2016_flickr.<lang>.gz and tok/ of multi30k/dataset: see scripts/score_multi30k.py.
# Further arguments go to `mtrain train --set`. A seed that is done already is not trained again.
# CASE=lower trains and translates lowercased text, as most papers do; only the papers' score means
# something then. BOTH=10min gives the first ten minutes of the budget to a parent run that learns
# to translate in both directions (Ding et al., 2021), whose weights the run itself begins with;
# both are in whole minutes, as 30min. These two read {train,val,test_2016_flickr}.<lang>.gz in DIR.
set -euo pipefail
reference=${1:?"usage: scripts/record_multi30k.sh DIR [KEY=VALUE ...]"}
shift
target=${TARGET:-de} seeds=${SEEDS:-1 2 3} budget=${BUDGET:-30min} split=test_2016_flickr
case=${CASE:-as-it-is} both=${BOTH:-0min}
mtrain=${MTRAIN:-python -m mtrain}
here=$(dirname "${BASH_SOURCE[0]}")
config=$here/../configs/multi30k-en-$target.yaml
settings=(train.max_steps= "$@")
if [ "$case" = lower ] || [ "$both" != 0min ]; then
    text=data/multi30k-$case
    mkdir -p "$text"
    for part in train val "$split"; do
        for side in en "$target"; do
            gunzip -c "$reference/$part.$side.gz" | case=$case python -c '
import os, sys
text = sys.stdin.read()
sys.stdout.write(text.lower() if os.environ["case"] == "lower" else text)' >"$text/$part.$side"
        done
    done
    cat "$text/train.en" "$text/train.$target" >"$text/both.source"
    cat "$text/train.$target" "$text/train.en" >"$text/both.target"
    settings+=("name=multi30k-$case-$target" data.test=)
    for entry in train:train valid:val "test.$split:$split"; do
        part=$text/${entry#*:} key=data.${entry%%:*}
        settings+=("$key.source=$part.en" "$key.target=$part.$target" "$key.sha256=")
    done
fi
name=runs/record-$target-$(printf '%s\n' "$budget" "$both" "${settings[@]}" | sha256sum | cut -c1-8)

train() { # SETTING...
    local options=() setting
    for setting in "${settings[@]}" "$@"; do options+=(--set "$setting"); done
    $mtrain train "$config" "${options[@]}"
}

for seed in $seeds; do
    run=$name-$seed own=(train.validate_every=auto)
    if [ "$both" != 0min ]; then
        train "run=$run-both" "train.seed=$seed" "train.budget=$both" \
            "name=multi30k-$case-$target-both" "data.train.source=$text/both.source" \
            "data.train.target=$text/both.target" train.optim.schedule=constant \
            train.optim.ema_decay=0.99 train.validate_every=100000
        own+=("train.init_from=$run-both")
    fi
    train "run=$run" "train.seed=$seed" "train.budget=$((${budget%min} - ${both%min}))min" "${own[@]}"
    $mtrain translate "$run" "$run/data/$split.source" -o "$run/$split.$target"
    python "$here/score_multi30k.py" --hypothesis "$run/$split.$target" --data "$reference" \
        --lang "$target" --split "$split" | tee "$run/record.txt"
done

echo
for how in "as the papers score it" "plain sacreBLEU"; do
    for seed in $seeds; do
        sed -n "s/^$how.*: BLEU \([0-9.]*\) .*/\1/p" "$name-$seed/record.txt"
    done | awk -v how="$how" '
        { sum += $1; all = all " " $1; if (NR == 1 || $1 < low) low = $1; if ($1 > high) high = $1 }
        END { printf "%s: mean %.2f, from %.2f to %.2f (%d seeds:%s)\n", how, sum / NR, low, high, NR, all }'
done
