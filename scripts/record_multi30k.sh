#!/usr/bin/env bash
# Multi30k within a time budget, with several seeds: the scores of test_2016_flickr as the papers
# report them and as plain sacreBLEU does, their mean and their spread.
#
#   scripts/record_multi30k.sh DIR [KEY=VALUE ...]
#   TARGET=fr SEEDS=1 BUDGET=30min scripts/record_multi30k.sh multi30k
#   BUDGET=2min scripts/record_multi30k.sh multi30k train.optim.consistency=rdrop
#   CASE=lower scripts/record_multi30k.sh multi30k train.both_directions=0.4
#
# DIR holds test_2016_flickr.<lang>.gz and tok/ of multi30k/dataset: see scripts/score_multi30k.py.
# Further arguments go to `mtrain train --set`. A seed that is done already is not trained again.
# CASE=lower trains and translates lowercased text, as most papers do, made from {train,val,
# test_2016_flickr}.<lang>.gz in DIR; only the papers' score means something then.
set -euo pipefail
reference=${1:?"usage: scripts/record_multi30k.sh DIR [KEY=VALUE ...]"}
shift
target=${TARGET:-de} seeds=${SEEDS:-1 2 3} budget=${BUDGET:-30min} split=test_2016_flickr
mtrain=${MTRAIN:-python -m mtrain}
here=$(dirname "${BASH_SOURCE[0]}")
config=$here/../configs/multi30k-en-$target.yaml
settings=(train.max_steps= train.validate_every=auto "train.budget=$budget" "$@")
if [ "${CASE:-as-it-is}" = lower ]; then
    lower=data/multi30k-lower
    mkdir -p "$lower"
    for part in train val "$split"; do
        for side in en "$target"; do
            gunzip -c "$reference/$part.$side.gz" |
                python -c 'import sys; sys.stdout.write(sys.stdin.read().lower())' >"$lower/$part.$side"
        done
    done
    settings+=("name=multi30k-lower-$target" data.test=)
    for entry in train:train valid:val "test.$split:$split"; do
        part=$lower/${entry#*:} key=data.${entry%%:*}
        settings+=("$key.source=$part.en" "$key.target=$part.$target" "$key.sha256=")
    done
fi
name=runs/record-$target-$(printf '%s\n' "${settings[@]}" | sha256sum | cut -c1-8)

for seed in $seeds; do
    run=$name-$seed
    options=(--set "run=$run" --set "train.seed=$seed")
    for setting in "${settings[@]}"; do options+=(--set "$setting"); done
    $mtrain train "$config" "${options[@]}"
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
