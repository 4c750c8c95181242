#!/bin/sh
# Makes .venv and installs the kit in it:       sh install.sh
# Makes an empty environment in another folder: sh install.sh venv FOLDER
#
# PYTHON names the Python; otherwise the first suitable one of PATH is taken.  What stands in the way is said in one
# sentence with its remedy, if possible before anything is installed.
set -eu

SUITABLE="3.11 to 3.14"
NEEDED_MB=3000     # the smallest install: torch for the CPU alone
NEEDED_TEMP_MB=1000 # pip unpacks one package at a time
VENV=.venv
[ "${1:-}" = venv ] && VENV=$2
LOG=$VENV/install.log

stop() {
    printf 'install stopped: %s\n' "$*" >&2
    exit 1
}

# Prints the version of a Python; fails where it does not start or is not suitable.
version_of() {
    "$1" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3]); sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' 2>/dev/null
}

# Sets python and version.
find_python() {
    if [ -n "${PYTHON:-}" ]; then
        python=$PYTHON
        command -v "$python" >/dev/null 2>&1 || stop "there is no PYTHON=$python: name another, or leave PYTHON= out"
        version=$(version_of "$python") ||
            stop "PYTHON=$python is Python ${version:-of no known version} and $SUITABLE is needed: name another, or leave PYTHON= out"
        return
    fi
    seen=
    for python in python3 python3.13 python3.12 python3.11 python3.14 python; do
        command -v "$python" >/dev/null 2>&1 || continue
        if version=$(version_of "$python"); then
            [ -z "$seen" ] || printf '%s is not suitable; Python %s is taken: %s\n' "$seen" "$version" "$python"
            return
        fi
        [ -z "$version" ] || seen="${seen:+$seen, }$python ($version)"
    done
    stop "Python $SUITABLE is needed and PATH has ${seen:-none}: install one (apt install python3.12 python3.12-venv, brew install python@3.12, or https://www.python.org/downloads), or add PYTHON=/path/to/python3.12 to the command"
}

# Free MB where a folder lies; nothing where that is not known.
free_mb() {
    df -Pk "$1" 2>/dev/null | awk 'NR == 2 && $4 ~ /^[0-9]+$/ { print int($4 / 1024) }'
}

check_room() {
    free=$(free_mb .)
    [ "${free:-$NEEDED_MB}" -ge "$NEEDED_MB" ] ||
        stop "this disk has $free MB free and the packages take at least $NEEDED_MB: free some, or move the folder to another disk"
    temp=${TMPDIR:-/tmp}
    free=$(free_mb "$temp")
    [ "${free:-$NEEDED_TEMP_MB}" -ge "$NEEDED_TEMP_MB" ] ||
        stop "$temp has $free MB free and pip needs $NEEDED_TEMP_MB there: free some, or name another folder: TMPDIR=DIR make install"
}

check_modules() {
    minor=${version%.*}
    for module in venv ensurepip; do
        "$python" -c "import $module" 2>/dev/null ||
            stop "$python ($version) has no module $module: install it (apt install python$minor-venv), or add PYTHON=/path/to/python3.12 to the command"
    done
    case $PWD in
    *:*) stop "Python makes no environment in a folder whose path has a colon ($PWD): move or rename it" ;;
    esac
}

# One sentence for what the log of a failed command says.
explain() {
    has() { grep -Eqi "$1" "$LOG"; }
    if has 'No space left on device|Errno 28|quota exceeded'; then
        stop "the disk is full ($(free_mb .) MB free here, $(free_mb "${TMPDIR:-/tmp}") MB in ${TMPDIR:-/tmp}): free some, then the same command resumes"
    fi
    if has 'CERTIFICATE_VERIFY_FAILED|SSLError|SSL module is not available'; then
        stop "the certificate of the package index is not accepted: set PIP_CERT to your network's certificate, or name a mirror in PIP_INDEX_URL; details are in $LOG"
    fi
    if has 'NewConnectionError|NameResolution|Name or service not known|Temporary failure in name|Network is unreachable|ConnectTimeout|Connection refused|ProxyError|Read timed out|Connection (broken|aborted)|Could not fetch URL'; then
        stop "the package index cannot be reached (${PIP_INDEX_URL:-https://pypi.org/simple, or what \`pip config list\` names}): check the network or the proxy in https_proxy, or name a mirror in PIP_INDEX_URL; then the same command resumes"
    fi
    if has 'No matching distribution found'; then
        stop "$(sed -n 's/^ERROR: \(No matching distribution found.*\)/\1/p' "$LOG" | tail -n 1) under Python $version on this machine: try another Python (add PYTHON=python3.12 to the command); details are in $LOG"
    fi
    stop "$(grep -v '^ *$' "$LOG" | tail -n 1); details are in $LOG"
}

# pip install with these options, quietly.
pip_install() {
    "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check "$@" >"$LOG" 2>&1 || explain
}

make_environment() {
    find_python
    if [ -x "$VENV/bin/python" ] && there=$(version_of "$VENV/bin/python") && { [ -z "${PYTHON:-}" ] || [ "$there" = "$version" ]; }; then
        version=$there
        return
    fi
    check_modules
    check_room
    mkdir -p "$VENV"
    # What the log says is explained from a place that survives the environment.
    if ! "$python" -m venv --clear "$VENV" >"$VENV.log" 2>&1; then
        LOG=$VENV.log
        (explain) || true
        rm -rf "$VENV" "$VENV.log"
        exit 1
    fi
    rm -f "$VENV.log"
}

make_environment
[ "${1:-}" = venv ] && exit 0
printf 'Python %s: installing the tested packages into %s (some minutes)\n' "$version" "$VENV"
# Every install has the versions that were tested.  Their setuptools comes first, since it builds this project and the
# few others that have no wheel; an isolated build would take the newest.
pip_install --retries 1 --timeout 20 --constraint requirements.lock setuptools
pip_install --constraint requirements.lock --no-build-isolation --editable '.[dev]'
touch "$VENV/installed"
