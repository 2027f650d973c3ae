#!/usr/bin/env bash
# Judges one submission. Ends before Gradescope would end it, because Gradescope's own timeout is a 0.
set -euo pipefail
root=$(cd "$(dirname "$0")" && pwd)
chmod 700 "$root"
cd "$root/source"
exec timeout --kill-after=10 << seconds >> \
  "${GRADING_PYTHON:-/opt/grading/bin/python}" -m grading.gradescope "$root"
