#!/usr/bin/env bash
# The first hour of mtrain on a GPU: what holds there, and how fast it is. Ends in under an hour.
#
#   scripts/first_hour_on_gpu.sh              in an environment with mtrain[dev] and transformers
#   DEVICE=cpu scripts/first_hour_on_gpu.sh   the same on a CPU, in miniature: tries the script
#
# Each step's output is a file in gpu-hour/ (OUT). A step that fails is marked in the table at the
# end, and the others follow. Started again, the script goes on with what failed or is missing.
# PYTHON is the interpreter. Multi30k is downloaded, or taken from MTRAIN_MIRROR.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

device=${DEVICE:-cuda} out=${OUT:-gpu-hour} python=${PYTHON:-python}
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTEST_DISABLE_PLUGIN_AUTOLOAD=1
if [ "$device" = cpu ]; then
    config=configs/quickstart.yaml split=test vocab_size=1000 budgets=5s sizes="tiny:512"
    timing=(--updates 2 --warm-up 1) rounds=1 decoding=(--small --limit 2)
    smaller=(--set "data.train={cldr: 2000}" --set train.batch_tokens=512) large=("${smaller[@]}")
else
    config=configs/multi30k-en-de.yaml split=test_2016_flickr vocab_size=8000 budgets="2min 4min"
    sizes="tiny:2048 small:4096 base:25000 big:25000"
    timing=(--updates 100 --warm-up 20) rounds=2 decoding=(--base)
    smaller=() large=(--set model.preset=base --set train.batch_tokens=25000)
fi
mkdir -p "$out"

# step NAME SECONDS COMMAND...
step() {
    local file=$out/$1 limit=$2 began_at=$SECONDS status=done
    shift 2
    if grep -qs "^## .*done" "$file"; then return; fi
    if ((limit > 3480 - SECONDS)); then limit=$((3480 - SECONDS)); fi
    if ((limit < 1)); then # the hour is over
        echo "## ${file##*/}: NOT RUN" >"$file"
        return
    fi
    echo "== ${file##*/}" >&2
    if ! timeout --kill-after=30 "$limit" "$@" >"$file.part" 2>&1; then
        status=FAILED
        tail -n 5 "$file.part" >&2
    fi
    echo "## ${file##*/}: $status, $((SECONDS - began_at)) s" >>"$file.part"
    mv "$file.part" "$file"
}

mtrain=("$python" -m mtrain)
bench=("$python" scripts/bench_train.py --device "$device")
first=${sizes%% *} # tiny, as most of a small model's time is launches
first=(--preset "${first%:*}" --batch-tokens "${first#*:}" "${timing[@]}")

step 01-machine 60 "$python" scripts/gpu_probes.py machine "$device"
step 02-tests 600 "$python" -X faulthandler -m pytest -q -m gpu tests/test_gpu.py
step 03-data 300 "${mtrain[@]}" prepare "$config" "${smaller[@]}" --set name=gpu-hour \
    --set "tokenizer.vocab_size=$vocab_size"
data=$(ls -td data/gpu-hour/*/ | head -n 1)
step 04-waits-of-updates 120 "${bench[@]}" "$data" "${first[@]}" --waits
step 05-cudnn-attention 240 "${bench[@]}" "$data" "${first[@]}" --rounds "$rounds" \
    --engines mtrain-bf16 mtrain-bf16-cudnn
for size in $sizes; do
    step "06-train-${size%:*}" 600 "${bench[@]}" "$data" --preset "${size%:*}" \
        --batch-tokens "${size#*:}" "${timing[@]}" --rounds "$rounds"
done
step 07-recompilations 240 env TORCH_LOGS=recompiles,graph_breaks "${bench[@]}" "$data" \
    "${first[@]}" --rounds 1 --engines mtrain-bf16-compiled
step 08-with-8-gib 300 "$python" scripts/gpu_probes.py with-8-gib train "$config" --fresh \
    "${smaller[@]}" "${large[@]}" --set run=runs/gpu-hour-8gib --set "train.device=$device" \
    --set train.max_steps=40 --set train.save_every=10 --set train.validate_every=20 \
    --set train.optim.warmup_steps=10
for budget in $budgets; do
    run=runs/gpu-hour-$budget
    step "09-within-$budget" 600 "${mtrain[@]}" train "$config" "${smaller[@]}" --set "run=$run" \
        --set "train.device=$device" --set train.max_steps= --set train.validate_every=auto \
        --set "train.budget=$budget"
    step "10-score-of-$budget" 120 "${mtrain[@]}" eval "$run" --split "$split" --device "$device"
done
step 11-given-translations 120 "${mtrain[@]}" translate "$run" --device "$device" --format jsonl \
    --score "$run/data/$split.source" "$run/data/$split.target"
step 12-waits-of-a-search 120 "$python" scripts/gpu_probes.py waits-of-a-search "$run" "$device"
step 13-decode 300 "$python" scripts/bench_translate.py "${decoding[@]}" --device "$device" \
    --rounds "$rounds"
step 14-latency 120 "$python" scripts/bench_translate.py "$run" --split "$split" \
    --device "$device" --latency

facts="^(engine|mtrain|marian|transformers|ctranslate2)[-a-z0-9]* |^one sentence|^torch"
facts+="|waits in|waited for|^memory at its|BLEU +[0-9]|^[0-9]+ (passed|failed|skipped)"
facts+="|does not fit|^error"
rm -f "$out"/*.part
for file in "$out"/*; do
    echo
    tail -n 1 "$file"
    grep -E "$facts" "$file"
done
echo
echo "$(grep -c "Recompiling function" "$out/07-recompilations") recompilations"
! grep -Eq "^## .*(FAILED|NOT RUN)" "$out"/*
