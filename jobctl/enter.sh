#!/bin/sh
# jobctl enter: an interactive login shell with a marked prompt, and `jobctl` in its PATH.
#
#   sh enter.sh NAME        the prompt begins with [NAME]
#
# Each shell is given its own start-up files first, as by a login. One that is neither
# bash, zsh, fish nor of the Bourne family has no mark in its prompt.

set -u
lib=$(cd -- "$(dirname -- "$0")" && pwd)
export JOBCTL_MARK="[$1] " JOBCTL_BIN="$lib/bin"
export PATH="${PATH:-/usr/bin:/bin}:$JOBCTL_BIN"
cd -- "${HOME:-/}" || cd /
shell=${SHELL:-/bin/sh}
umask_before=$(umask)
umask 077

case ${shell##*/} in
bash)
    [ -f "$lib/rc.bash" ] || cat >"$lib/rc.bash" <<'RC'
[ ! -r /etc/profile ] || . /etc/profile
for jobctl_file in ~/.bash_profile ~/.bash_login ~/.profile; do
    if [ -r "$jobctl_file" ]; then . "$jobctl_file"; break; fi
done
unset jobctl_file
PS1="$JOBCTL_MARK${PS1-\\s-\\v\\$ }"
PATH="$PATH:$JOBCTL_BIN"
unset JOBCTL_MARK JOBCTL_BIN
RC
    set -- --rcfile "$lib/rc.bash" -i
    ;;
zsh)
    mkdir -p "$lib/zsh"
    for file in .zshenv .zprofile .zlogin; do
        echo "[ ! -r \"\$JOBCTL_HOME/$file\" ] || . \"\$JOBCTL_HOME/$file\"" >"$lib/zsh/$file"
    done
    [ -f "$lib/zsh/.zshrc" ] || cat >"$lib/zsh/.zshrc" <<'RC'
ZDOTDIR=$JOBCTL_HOME
[ ! -r "$ZDOTDIR/.zshrc" ] || . "$ZDOTDIR/.zshrc"
PS1="${JOBCTL_MARK//\%/%%}$PS1"
PATH="$PATH:$JOBCTL_BIN"
unset JOBCTL_MARK JOBCTL_BIN
RC
    export JOBCTL_HOME="${ZDOTDIR:-${HOME:-/}}" ZDOTDIR="$lib/zsh"
    set -- -l -i
    ;;
fish)
    # shellcheck disable=SC2016  # of fish
    set -- -l -i -C 'functions -c fish_prompt jobctl_fish_prompt
        function fish_prompt; printf %s $JOBCTL_MARK; jobctl_fish_prompt; end
        set -gx PATH $PATH $JOBCTL_BIN'
    ;;
sh | dash | ash | busybox | ksh | ksh93 | mksh | yash)
    [ -f "$lib/rc.sh" ] || cat >"$lib/rc.sh" <<'RC'
case $- in *i*)
    [ ! -r /etc/profile ] || . /etc/profile
    [ ! -r "${HOME:-/}/.profile" ] || . "${HOME:-/}/.profile"
    PS1="$JOBCTL_MARK${PS1-\$ }"
    PATH="$PATH:$JOBCTL_BIN"
    unset ENV JOBCTL_MARK JOBCTL_BIN
    ;;
esac
RC
    export ENV="$lib/rc.sh"
    set -- -i
    ;;
*) set -- ;;
esac
umask "$umask_before"
exec "$shell" "$@"
