# Sourced by the other scripts. Sets `root`, the folder of this repository, and `python`, the interpreter of its own
# virtual environment, which is created on first use and renewed when pyproject.toml or constraints.txt change.
#
#   NASPLAT_VENV    where the environment lives (default: .venv in the repository)
#   NASPLAT_PYTHON  the Python to create it with (default: the first of 3.11 or newer on the PATH)

say() { printf 'nasplat: %s\n' "$*" >&2; }

fail() {
    say "$1"
    printf '  %s\n' "$2" >&2
    exit 2
}

# The folder of a script, symbolic links followed (readlink -f is not everywhere).
script_folder() {
    local path=$1 target
    while [ -L "$path" ]; do
        target=$(readlink "$path")
        case $target in
            /*) path=$target ;;
            *) path=$(dirname "$path")/$target ;;
        esac
    done
    (cd "$(dirname "$path")" && pwd -P)
}

find_python() {
    local candidate
    for candidate in ${NASPLAT_PYTHON:+"$NASPLAT_PYTHON"} python3 python3.12 python3.13 python3.11 python3.14 python; do
        if "$candidate" -c 'import sys; raise SystemExit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
            command -v "$candidate"
            return
        fi
        if [ "$candidate" = "${NASPLAT_PYTHON:-}" ]; then
            fail "NASPLAT_PYTHON=$candidate is no Python of 3.11 or newer" "point it at one, or unset it"
        fi
    done
    fail "no Python of 3.11 or newer was found on the PATH" \
        "install one (apt install python3 python3-venv, brew install python), or set NASPLAT_PYTHON to its path"
}

root=$(dirname "$(script_folder "${BASH_SOURCE[0]}")")
venv=${NASPLAT_VENV:-$root/.venv}
case $venv in /*) ;; *) venv=$PWD/$venv ;; esac
python=$venv/bin/python
stamp=$venv/nasplat-stamp
wanted="$root $(cat "$root/pyproject.toml" "$root/constraints.txt" | cksum)"

if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ] || ! "$python" -c '' 2>/dev/null; then
    base=$(find_python) || exit $?
    say "setting up $venv with $("$base" --version) (about 80 packages, some minutes; once)"
    if ! "$python" -m pip --version >/dev/null 2>&1; then
        "$base" -m venv --clear "$venv" ||
            fail "the virtual environment could not be created" "on Debian and Ubuntu: apt install python3-venv"
    fi
    (cd "$root" && "$python" -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[dev]' >&2) ||
        fail "the packages could not be installed" "see pip's message above; a second try goes on where this one ended"
    printf '%s\n' "$wanted" >"$stamp"
    say "ready; the next use starts at once"
fi
