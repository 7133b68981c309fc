#!/usr/bin/env bash
# Sets up .venv beside this file (once, and again when pyproject.toml changes), then runs the demo or the tests in it.
# Changes nothing outside this folder, and needs no root.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
venv=$root/.venv
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore PIP_NO_INPUT=1
# Both commands start hundreds of processes. Each would compile all of our code anew where a machine forbids files of bytecode.
unset PYTHONDONTWRITEBYTECODE
export PYTHONPYCACHEPREFIX=$venv/pycache

usage() {
    cat <<'END'
usage: ./gs demo [options of `groundstate demo`]    watch a shop being killed again and again, and its books balance
       ./gs test [options of pytest]                run the tests, with a PostgreSQL of their own
       ./gs test --thorough                         run every test: of those that are nearly alike `./gs test` runs some
       ./gs check                                   all that CI does: format, lint, types and layers, then the tests
END
}

fail() {
    printf 'gs: %s\n' "$*" >&2
    exit 1
}

# The first Python on PATH that is new enough.
find_python() {
    local name
    for name in python3 python3.14 python3.13 python3.12 python3.11 python; do
        if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$name"
            return
        fi
    done
    fail 'needs Python 3.11 or newer, and none of python3, python3.11 ... python3.14 on PATH is. On Debian or Ubuntu: apt install python3.11 (or newer).'
}

# Debian splits ensurepip off into python3-venv. Without it, a pip from elsewhere fills the environment.
make_venv() {
    local python=$1 pip
    if "$python" -m venv --clear "$venv" >/dev/null 2>&1; then
        return
    fi
    "$python" -m venv --clear --without-pip "$venv" || fail "could not make $venv with $python"
    for pip in "$python -m pip" pip3 pip; do
        # Unquoted on purpose: the first one is three words.
        if $pip --python "$venv/bin/python" install --quiet pip >/dev/null 2>&1; then
            return
        fi
    done
    fetch_pip || fail "$python has neither ensurepip nor pip. Install python3-venv, or set PIP_INDEX_URL to the package index that pip should come from."
}

# pip's wheel can install itself: fetched from the index that PIP_INDEX_URL names, its digest checked against the index's.
fetch_pip() {
    [ -n "${PIP_INDEX_URL:-}" ] || return 1
    "$venv/bin/python" - "$venv" <<'END'
import hashlib, html, os, pathlib, re, ssl, subprocess, sys, urllib.parse, urllib.request

page = os.environ["PIP_INDEX_URL"].rstrip("/") + "/pip/"
trust = ssl.create_default_context(cafile=os.environ.get("PIP_CERT"))
with urllib.request.urlopen(page, context=trust, timeout=60) as answer:
    page, text = answer.url, answer.read().decode()
links = [html.unescape(link) for link in re.findall(r'href="([^"]+)"', text)]
wheels = {}
for link in links:
    name = re.search(r"/(pip-([0-9.]+)-py3-none-any\.whl)#sha256=([0-9a-f]{64})$", link)
    if name:
        wheels[tuple(map(int, name[2].split(".")))] = (name[1], name[3], urllib.parse.urljoin(page, link))
if not wheels:
    sys.exit(f"gs: no wheel of pip, with its digest, at {page}")
name, digest, link = wheels[max(wheels)]
with urllib.request.urlopen(link, context=trust, timeout=60) as answer:
    wheel = answer.read()
if hashlib.sha256(wheel).hexdigest() != digest:
    sys.exit(f"gs: {link} is not the file that the index promised")
file = pathlib.Path(sys.argv[1], name)
file.write_bytes(wheel)
subprocess.run([sys.executable, f"{file}/pip", "install", "--quiet", str(file)], check=True)
file.unlink()
END
}

# A stamp tells that this very folder's environment holds what pyproject.toml asks for. A moved copy has paths of its old home inside.
set_up() {
    local extra=$1 stamp wanted
    stamp=$venv/.installed-$extra
    wanted="$root $(cksum <"$root/pyproject.toml")"
    if [ -x "$venv/bin/python" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
        return
    fi
    if [ ! -x "$venv/bin/python" ] || [ "$(cat "$venv/.root" 2>/dev/null)" != "$root" ] || ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
        local python
        python=$(find_python)
        printf 'gs: making %s with %s\n' "$venv" "$python" >&2
        make_venv "$python"
        printf '%s\n' "$root" >"$venv/.root"
    fi
    printf 'gs: installing groundstate[%s] into it; this takes about a minute, once\n' "$extra" >&2
    (cd "$root" && "$venv/bin/python" -m pip install --quiet --editable ".[$extra]") || fail 'the installation failed; what pip said is above'
    printf '%s\n' "$wanted" >"$stamp"
}

case ${1:-} in
    demo)
        shift
        set_up demo
        exec "$venv/bin/groundstate" demo "$@"
        ;;
    test)
        shift
        set_up dev
        cd "$root"
        # Five at a time, a file each: much of a test is waiting for a disk or a server, so that two cores have time for so many. Options given later win, such as -n 0.
        exec "$venv/bin/python" -m pytest -n 5 --dist loadfile --no-loadscope-reorder "$@"
        ;;
    check)
        set_up dev
        cd "$root"
        # What fails first comes first.
        for step in 'ruff format --check' 'ruff check' 'lint-imports' 'mypy --strict'; do
            printf '== %s\n' "$step"
            # Unquoted on purpose: a program and its options.
            "$venv/bin/"$step || fail "$step failed; what it said is above"
        done
        exec "$0" test
        ;;
    -h | --help | help)
        usage
        ;;
    *)
        usage >&2
        exit 2
        ;;
esac
