#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Set up everything under this directory, without root and without ROS. Called by make, which knows
# what is out of date:
#
#     scripts/setup.sh packages    .venv with the library, its dependencies and the wheels of ROS 2
#     scripts/setup.sh overlay     messages and package built by colcon into install/
#
# PYTHON=/path/to/python3 chooses the interpreter, EXTRAS=test,fleet adds Ray. Output of the tools
# goes to log/setup_*.log.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
root=$PWD
venv=$root/.venv

TORCH=2.13.0
TRACKEVAL=1.3.0

# A sourced ROS installation must not mix with the wheels.
unset PYTHONPATH AMENT_PREFIX_PATH CMAKE_PREFIX_PATH COLCON_PREFIX_PATH PYTHONHOME \
    _ROS_WHEELS_BOOTSTRAP_COMPLETE

fail() {
    printf '\nsetup: %s\n' "$1" >&2
    exit 1
}

# run_step TITLE LOG COMMAND...: run quietly, show that time passes, show the end of the log if it fails.
run_step() {
    local title=$1 log=log/$2 started=$SECONDS job
    shift 2
    mkdir -p log
    "$@" >"$log" 2>&1 &
    job=$!
    trap 'kill "$job" 2>/dev/null || true' EXIT
    printf '%s ' "$title"
    while kill -0 "$job" 2>/dev/null; do
        sleep 1
        (((SECONDS - started) % 3)) || printf '.'
    done
    trap - EXIT
    if ! wait "$job"; then
        printf ' failed\n\n' >&2
        tail -n 25 "$log" >&2
        return 1
    fi
    printf ' done (%d s)\n' "$((SECONDS - started))"
}

# What a Python lacks for this project, one phrase; empty when it is suitable.
python_lacks() {
    "$1" - 2>/dev/null <<'PYTHON' || echo "does not run"
import importlib.util
import os
import platform
import sys
import sysconfig

if platform.python_implementation() != "CPython" or sys.maxsize < 2**32:
    print("is not a 64-bit CPython")
elif not (3, 10) <= sys.version_info[:2] <= (3, 13):
    print("is version " + platform.python_version())
elif not all(map(importlib.util.find_spec, ("venv", "ensurepip"))):
    print("lacks the modules venv and ensurepip (package python3-venv)")
elif not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")):
    print("lacks the C headers (package python3-dev)")
PYTHON
}

find_python() {
    local candidate lacks tried=""
    for candidate in ${PYTHON:-python3 python3.12 python3.11 python3.13 python3.10}; do
        command -v "$candidate" >/dev/null || continue
        lacks=$(python_lacks "$candidate")
        if [ -z "$lacks" ]; then
            command -v "$candidate"
            return
        fi
        tried+="
    $(command -v "$candidate") $lacks"
    done
    fail "no suitable Python: CPython 3.10 to 3.13 with venv and C headers is needed.${tried:-
    none found as ${PYTHON:-python3}}
On Debian or Ubuntu: sudo apt-get install python3 python3-venv python3-dev
Without root: install one with uv, pyenv or conda, then  make setup PYTHON=/path/to/python3"
}

check_machine() {
    [ "$(uname -s) $(uname -m)" = "Linux x86_64" ] ||
        fail "this machine is $(uname -s) $(uname -m); the wheels of ROS 2 exist for Linux x86_64 only.
On other machines install ROS 2 and build with colcon (README, 'On a robot')."
    local tool missing=""
    for tool in gcc g++ make git; do
        command -v "$tool" >/dev/null || missing+=" $tool"
    done
    [ -z "$missing" ] || fail "missing:$missing
On Debian or Ubuntu: sudo apt-get install build-essential git
On Fedora: sudo dnf install gcc gcc-c++ make git"
}

# Set `torch` to the build to install. The one for CPUs is small, but not on every package index.
choose_torch() {
    torch=torch==$TORCH
    if command -v nvidia-smi >/dev/null && nvidia-smi >/dev/null 2>&1; then
        echo "PyTorch: $torch with CUDA (NVIDIA GPU found)"
    elif "$venv/bin/python" -m pip install --quiet --dry-run --no-deps "$torch+cpu" \
        >log/setup_torch.log 2>&1; then
        torch+=+cpu
        echo "PyTorch: $torch (no NVIDIA GPU found)"
    else
        echo "PyTorch: $torch with CUDA, about 3 GB. No NVIDIA GPU was found, but the package index"
        echo "    lacks the small CPU build: PIP_EXTRA_INDEX_URL can add PyTorch's CPU index (README)."
    fi
}

packages() {
    check_machine
    local python torch
    mkdir -p log
    if "$venv/bin/python" -m pip --version >/dev/null 2>&1 &&
        [ -z "$(python_lacks "$venv/bin/python")" ]; then
        echo "Python: $("$venv/bin/python" --version) in .venv"
    else
        python=$(find_python)
        echo "Python: $("$python" --version) ($python)"
        run_step "Creating .venv" setup_venv.log "$python" -m venv --clear "$venv"
    fi
    choose_torch
    run_step "Installing packages" setup_packages.log "$venv/bin/python" -m pip install \
        --disable-pip-version-check --progress-bar off \
        -r scripts/requirements-ros.txt "$torch" -e ".[${EXTRAS:-test}]" ||
        fail "pip could not install the packages; the whole output is in log/setup_packages.log.
A package index must be reachable. Behind a proxy or a mirror set HTTPS_PROXY or PIP_INDEX_URL,
then call make again."
    # Not with the others: it would bring an OpenCV with windows, which overwrites the headless one.
    # The tests need none of what is left out.
    run_step "Installing trackeval" setup_trackeval.log "$venv/bin/python" -m pip install \
        --disable-pip-version-check --progress-bar off --no-deps "trackeval==$TRACKEVAL" ||
        fail "pip could not install trackeval; the whole output is in log/setup_trackeval.log."
    run_step "Repairing CMake paths" setup_repair.log \
        "$venv/bin/python" scripts/repair_cmake_paths.py
}

overlay() {
    local -x VIRTUAL_ENV=$venv PATH=$venv/bin:$PATH
    local -x AMENT_PREFIX_PATH=$venv CMAKE_PREFIX_PATH=$venv
    # Without this, colcon adds a load limit that starves the build on a busy machine.
    local -x MAKEFLAGS=-j$(nproc)
    run_step "Building messages and package" setup_overlay.log colcon build \
        --symlink-install --base-paths . --event-handlers console_direct+ \
        --cmake-args -DBUILD_TESTING=OFF "-DPython3_EXECUTABLE=$venv/bin/python" ||
        fail "colcon could not build the package; the whole output is in log/setup_overlay.log."
}

case ${1:-} in
    packages | overlay) "$1" ;;
    *) fail "usage: scripts/setup.sh packages | overlay" ;;
esac
