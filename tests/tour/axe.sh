#!/usr/bin/env bash
# What a browser and axe say of a page: accessibility at phone and desktop width, light and dark; no
# message in the console, no request, nothing wider than the window, every figure drawn and moving.
#   tests/tour/axe.sh PAGE.html [FOLDER]     with a folder: screenshots of the page go there
# Needs chromium, node and npm, by which axe-core and puppeteer-core come into a temporary folder.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
modules=$(mktemp -d)
trap 'rm -rf "$modules"' EXIT
npm install --prefix "$modules" --prefer-offline --no-audit --no-fund --loglevel=error axe-core@4 puppeteer-core@24
NODE_PATH="$modules/node_modules" node "$here/axe.cjs" "$(command -v chromium)" "$@"
