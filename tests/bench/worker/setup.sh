#!/usr/bin/env bash
# The peers' own virtual environments under .state/bench/, from the pinned lists beside this script. Never touches the
# project's environment. Run again, it changes nothing that is up to date.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../../.." && pwd)
uv=$(command -v uv || ls "$root"/.state/tools/uv-*/bin/uv 2>/dev/null | tail -1 || true)
if [ -z "$uv" ]; then
  echo "no uv: run 'make setup' first, or put uv on the PATH" >&2
  exit 1
fi
for peer in st-onnx infinity; do
  target=$root/.state/bench/$peer
  if ! cmp -s "$here/peers/$peer.txt" "$target/.installed"; then
    echo "setup: $peer"
    timeout 1200 "$uv" venv --quiet --clear --python 3.11 "$target"
    timeout 1200 "$uv" pip install --quiet --python "$target" -r "$here/peers/$peer.txt"
    cp "$here/peers/$peer.txt" "$target/.installed"
  fi
done
