#!/usr/bin/env bash
# The pictures of the README, from the run of quickstart.sh: scripts/images/{report,attention}.png.
# Needs Chromium. MTRAIN is the command to run, CHROMIUM the browser.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

mtrain=${MTRAIN:-.venv/bin/mtrain} browser=${CHROMIUM:-chromium} run=runs/quickstart
mkdir -p scripts/images
page=$(mktemp -d)
trap 'rm -rf "$page"' EXIT

echo "in 5 days, May 3, 2024" |
    "$mtrain" translate "$run" --attention scripts/images/attention.png --attention-kind cross \
        --attention-head mean --force
"$mtrain" report "$run" -o "$page/report.html"
"$browser" --headless --no-sandbox --disable-gpu --hide-scrollbars --user-data-dir="$page/browser" \
    --window-size=1280,900 --screenshot=scripts/images/report.png "file://$page/report.html" 2>/dev/null
