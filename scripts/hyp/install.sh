#!/usr/bin/env bash
# Installs AWS's `hyp`, which tests/integration/operator drives against our operator, into an environment of its own.
#   scripts/hyp/install.sh [FOLDER]      default: ${XDG_CACHE_HOME:-~/.cache}/tierline/hyp; what is there stays
# About 2 minutes and 650 MB. PYTHON names the interpreter that it is made with.
set -euo pipefail

VERSION=3.12.0

folder=${1:-${XDG_CACHE_HOME:-$HOME/.cache}/tierline/hyp}
stamp=$folder/$VERSION
[ ! -e "$stamp" ] || exit 0
echo "== hyp for tests: installing sagemaker-hyperpod $VERSION into $folder (about 2 minutes, 650 MB, once)"
mkdir -p "$(dirname "$folder")"
exec 9>"$folder.lock"
flock 9  # another run on this machine may be at it
[ ! -e "$stamp" ] || exit 0
rm -rf "$folder"
"${PYTHON:-python3}" -m venv "$folder"
"$folder/bin/python" -m pip --disable-pip-version-check install -qq --progress-bar off "sagemaker-hyperpod==$VERSION"
touch "$stamp"
