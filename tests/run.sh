#!/bin/sh
# Sets up all that the tests need and runs them; arguments go to pytest. They run in four
# processes, as most of them wait (-n 0: one after the other). The few that need much more
# time than the others are run with --all only; how many were left out is said at the end.
#
# Python packages go into .venv. Programs that are missing are installed through the
# system's package manager, as root or by sudo where that asks for no password; where
# this cannot be done, they are named and nothing is run: no test is skipped.
set -eu
cd -- "$(dirname -- "$0")/.."

# What the tests call, and the package it is in, where that has another name.
needed='dash bash busybox zsh fish tcsh tmux shellcheck mandoc faketime strace man:man-db
    setpriv:util-linux ssh:openssh-client sshd:openssh-server'

# sshd is not where users look for programs.
has() {
    (PATH="$PATH:/usr/sbin:/usr/local/sbin:/sbin:/opt/homebrew/sbin" && command -v "$1") >/dev/null
}

missing=''
for entry in $needed; do
    has "${entry%%:*}" || missing="$missing ${entry#*:}"
done

# Prints the missing packages as others than Debian call those of OpenSSH: $1 is the
# client's name, $2 the server's.
openssh_is() {
    echo "$missing" | sed "s/openssh-client/$1/; s/openssh-server/$2/"
}

install() {
    if command -v apt-get >/dev/null; then
        "$@" apt-get update -qq
        # shellcheck disable=SC2086  # several words
        "$@" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $missing
        # The only one that starts a server with its package. The tests start their own.
        case $missing in
        *openssh-server*)
            "$@" systemctl disable -q --now ssh.service ssh.socket >/dev/null 2>&1 || :
            ;;
        esac
    elif command -v dnf >/dev/null; then
        missing=$(openssh_is openssh-clients openssh-server)
        # shellcheck disable=SC2086
        "$@" dnf install -y -q $missing
    elif command -v apk >/dev/null; then
        missing=$(openssh_is openssh openssh)
        # shellcheck disable=SC2086
        "$@" apk add -q $missing
    elif command -v pacman >/dev/null; then
        missing=$(openssh_is openssh openssh)
        # shellcheck disable=SC2086
        "$@" pacman -S --noconfirm --needed $missing
    elif command -v brew >/dev/null; then
        missing=$(openssh_is openssh openssh)
        # shellcheck disable=SC2086
        brew install -q $missing
    else
        return 1
    fi
}

if [ -n "$missing" ]; then
    echo "installing$missing" >&2
    if [ "$(id -u)" -eq 0 ]; then
        install env >/dev/null || :
    elif command -v brew >/dev/null || sudo -n true 2>/dev/null; then
        install sudo -n >/dev/null || :
    fi
    still=''
    for entry in $needed; do
        has "${entry%%:*}" || still="$still ${entry%%:*}"
    done
    if [ -n "$still" ]; then
        echo "tests/run.sh: these programs are needed and could not be installed:$still" >&2
        exit 1
    fi
fi

python=''
for candidate in python3 python3.14 python3.13 python3.12 python3.11 python3.10; do
    if "$candidate" -c 'import sys, venv; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
        python=$candidate
        break
    fi
done
if [ -z "$python" ]; then
    echo "tests/run.sh: Python 3.10 or newer with its venv module is needed" >&2
    exit 1
fi
[ -x .venv/bin/python ] || "$python" -m venv .venv
# Installed again only when what is needed has changed.
if ! cmp -s setup.cfg .venv/setup.cfg; then
    .venv/bin/python -m pip install -q --disable-pip-version-check -e '.[test]'
    cp setup.cfg .venv/setup.cfg
fi

exec .venv/bin/python -m pytest -n 4 "$@"
