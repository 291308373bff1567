#!/usr/bin/env bash
# What a browser and axe say of the tour's page: accessibility at phone and desktop width, light and
# dark; no message in the console, no request, nothing wider than the window, every figure drawn, moving
# and, with and without JavaScript, the same.
#   tests/tour/axe.sh PAGE.html [FOLDER]     with a folder: screenshots of the page go there
# Needs Chromium and npm, by which axe-core and puppeteer-core come into a temporary folder. Ends with 77
# where they are not there, and nothing was judged.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
browser=$(command -v chromium chromium-browser google-chrome | head -n 1) || true
if [ -z "$browser" ] || ! command -v npm > /dev/null; then
  echo "Chromium or npm is not there: no browser has looked at $1" >&2
  exit 77
fi
modules=$(mktemp -d)
trap 'rm -rf "$modules"' EXIT
npm install --prefix "$modules" --prefer-offline --no-audit --no-fund --loglevel=error \
  axe-core@4.14.1 puppeteer-core@24.43.1
NODE_PATH="$modules/node_modules" node "$here/axe.cjs" "$browser" "$@"
