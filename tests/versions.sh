#!/usr/bin/env bash
# The fast tests with the oldest and the newest torch and transformers that the README names.
#
#     tests/versions.sh                  # both
#     tests/versions.sh 2.12.0 5.20.0    # this torch with this transformers
#
# Each pair gets a new virtual environment, with the other packages as requirements.txt pins them.
# VERSIONS_FOLDER=FOLDER keeps the environments there; a second run uses them as they are.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=${VERSIONS_FOLDER:-$(mktemp -d)}
[ -n "${VERSIONS_FOLDER:-}" ] || trap 'rm -rf "$folder"' EXIT

test_with() {
    local torch=$1 transformers=$2 venv=$folder/torch-$1-transformers-$2
    echo "==== torch $torch, transformers $transformers"
    if [ ! -e "$venv/installed" ]; then
        python3 -m venv "$venv"
        sed "s/^torch==.*/torch==$torch/; s/^transformers==.*/transformers==$transformers/" \
            requirements.txt >"$venv/requirements.txt"
        "$venv/bin/pip" install -q -r "$venv/requirements.txt"
        touch "$venv/installed"
    fi
    "$venv/bin/python" -c 'import torch, transformers; print(torch.__version__, transformers.__version__)'
    PATH="$venv/bin:$PATH" "$venv/bin/python" -m pytest -m "not smollm2"
}

if [ $# -eq 2 ]; then
    test_with "$1" "$2"
else
    test_with 2.11.0 5.17.0
    test_with 2.14.1 5.24.0
fi
