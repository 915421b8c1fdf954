#!/bin/sh
# jobctl enter: an interactive login shell with a marked prompt, and `jobctl` in its PATH.
#
#   sh enter.sh NAME        the prompt begins with [NAME]
#
# Each shell is given its own start-up files first, as by a login. One that is neither
# bash, zsh, fish nor of the Bourne family has no mark in its prompt. In the others `jobctl` is a
# function where our scripts lie on a file system that executes nothing, and in csh an alias.

set -u
lib=$(cd -- "$(dirname -- "$0")" && pwd)
export JOBCTL_MARK="[$1] " JOBCTL_BIN="$lib/bin" JOBCTL_SH="$lib/bare.sh"
export PATH="${PATH:-/usr/bin:/bin}:$JOBCTL_BIN"
# To ask for the permission is not enough: to root, some shells say yes.
if jobctl --version >/dev/null 2>&1; then JOBCTL_SH=''; fi
who='only shells find jobctl there, other programs do not'
cd -- "${HOME:-/}" || cd /
shell=${SHELL:-/bin/sh}
umask_before=$(umask)
umask 077

# Makes file $1 of standard input, as a whole; fails if there is none then.
whole() {
    { cat >"$1.$$" && mv -f "$1.$$" "$1"; } 2>/dev/null || {
        rm -f "$1.$$"
        [ -s "$1" ]
    }
}

case ${shell##*/} in
bash)
    whole "$lib/rc.bash" <<'RC'
[ ! -r /etc/profile ] || . /etc/profile
for jobctl_file in ~/.bash_profile ~/.bash_login ~/.profile; do
    if [ -r "$jobctl_file" ]; then . "$jobctl_file"; break; fi
done
unset jobctl_file
PS1="$JOBCTL_MARK${PS1-\\s-\\v\\$ }"
PATH="$PATH:$JOBCTL_BIN"
if [ -n "$JOBCTL_SH" ]; then
    jobctl_sh=$JOBCTL_SH
    jobctl() { /bin/sh "$jobctl_sh" "$@"; }
fi
unset JOBCTL_MARK JOBCTL_BIN JOBCTL_SH
RC
    set -- --rcfile "$lib/rc.bash" -i
    ;;
zsh)
    mkdir -p "$lib/zsh" 2>/dev/null
    all=1
    for file in .zshenv .zprofile .zlogin; do
        # shellcheck disable=SC2016  # of zsh
        printf '[ ! -r "$JOBCTL_HOME/%s" ] || . "$JOBCTL_HOME/%s"\n' "$file" "$file" |
            whole "$lib/zsh/$file" || all=''
    done
    whole "$lib/zsh/.zshrc" <<'RC' || all=''
ZDOTDIR=$JOBCTL_HOME
[ ! -r "$ZDOTDIR/.zshrc" ] || . "$ZDOTDIR/.zshrc"
PS1="${JOBCTL_MARK//\%/%%}$PS1"
PATH="$PATH:$JOBCTL_BIN"
if [ -n "$JOBCTL_SH" ]; then
    jobctl_sh=$JOBCTL_SH
    jobctl() { /bin/sh "$jobctl_sh" "$@"; }
fi
unset JOBCTL_MARK JOBCTL_BIN JOBCTL_SH
RC
    # Without all of them, zsh would have none of the user's.
    [ -z "$all" ] || export JOBCTL_HOME="${ZDOTDIR:-${HOME:-/}}" ZDOTDIR="$lib/zsh"
    set -- -l -i
    ;;
fish)
    # shellcheck disable=SC2016  # of fish
    set -- -l -i -C 'functions -c fish_prompt jobctl_fish_prompt
        function fish_prompt; printf %s $JOBCTL_MARK; jobctl_fish_prompt; end
        set -gx PATH $PATH $JOBCTL_BIN
        if test -n "$JOBCTL_SH"; function jobctl; /bin/sh $JOBCTL_SH $argv; end; end'
    ;;
sh | dash | ash | busybox | ksh | ksh93 | mksh | yash)
    whole "$lib/rc.sh" <<'RC'
case $- in *i*)
    [ ! -r /etc/profile ] || . /etc/profile
    [ ! -r "${HOME:-/}/.profile" ] || . "${HOME:-/}/.profile"
    PS1="$JOBCTL_MARK${PS1-\$ }"
    PATH="$PATH:$JOBCTL_BIN"
    if [ -n "$JOBCTL_SH" ]; then
        jobctl_sh=$JOBCTL_SH
        jobctl() { /bin/sh "$jobctl_sh" "$@"; }
    fi
    unset ENV JOBCTL_MARK JOBCTL_BIN JOBCTL_SH
    ;;
esac
RC
    export ENV="$lib/rc.sh"
    set -- -i
    ;;
csh | tcsh)
    # It looks for the user's files where HOME says when it begins.
    if [ -n "$JOBCTL_SH" ] && mkdir -p "$lib/csh" 2>/dev/null && whole "$lib/csh/.cshrc" <<'RC'; then
set home = $JOBCTL_HOME:q
setenv HOME $JOBCTL_HOME:q
if ( $?tcsh && -r ~/.tcshrc ) then
    source ~/.tcshrc
else if ( -r ~/.cshrc ) then
    source ~/.cshrc
endif
set path = ( $path:q $JOBCTL_BIN:q )
set jobctl_sh = $JOBCTL_SH:q
alias jobctl '/bin/sh $jobctl_sh:q'
unsetenv JOBCTL_HOME JOBCTL_MARK JOBCTL_BIN JOBCTL_SH
RC
        export JOBCTL_HOME="${HOME:-/}" HOME="$lib/csh"
    else
        who='this shell does not find jobctl there'
    fi
    set --
    ;;
*)
    who='this shell does not find jobctl there'
    set --
    ;;
esac
[ -z "$JOBCTL_SH" ] ||
    printf 'jobctl: %s is mounted noexec: %s; %s\n' "$lib" "$who" \
        'to have it elsewhere, set JOBCTL_STATE_DIR by SetEnv in ssh_config' >&2
umask "$umask_before"
exec "$shell" "$@"
