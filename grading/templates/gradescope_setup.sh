#!/usr/bin/env bash
# Installs the grader's Python and libraries where the second user can read them: the autograder's own
# folder is closed to that user while a submission is judged.
set -euo pipefail
umask 022
apt-get update -q
DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends python3-venv util-linux
python3 -m venv /opt/uv
/opt/uv/bin/pip install -q << uv >>
export UV_PYTHON_INSTALL_DIR=/opt/python
/opt/uv/bin/uv venv --managed-python --python << python >> /opt/grading
/opt/uv/bin/uv pip install --python /opt/grading/bin/python --torch-backend cpu \
  --requirement /autograder/source/requirements.txt --constraint /autograder/source/constraints.txt
# If this user cannot use them, no submission could be judged: better the image is not built.
setpriv --reuid 61000 --regid 61000 --clear-groups /opt/grading/bin/python -I -c 'import torch, triton'
