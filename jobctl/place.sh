#!/bin/sh
# jobctl place: finds the state directory for any sh, as paths.py does for Python, makes it, and
# says whether it can be trusted. Sets d to it; w to what is wrong, or to nothing; and s to the
# exit status for that.
#
# agent/far.py sends this as one line between single quotes, which any login shell passes on. So
# there is no single quote, backslash or exclamation mark in what follows, and a blank may stand
# for the end of each line.

# shellcheck disable=SC2034,SC2012  # s is for who reads this; who owns a link, ls alone tells
w="" s=125 d=${JOBCTL_STATE_DIR-} h=${XDG_STATE_HOME-};
case $d in
/*) ;;
?*) d=$PWD/$d ;;
*)
    case $h in
    /*) d=$h/jobctl ;;
    *)
        h=${HOME-$(id -un)};
        case ${HOME+given}$h in
        given* | *[[:space:]]* | *["$&;<>|()"]*) ;;
        *) eval "h=~$h" ;;
        esac;
        case $h in
        /*) ;;
        *) w="there is no home directory to keep jobs in; set JOBCTL_STATE_DIR" ;;
        esac;
        case $(uname) in
        Darwin) d="$h/Library/Application Support/jobctl" ;;
        *) d=$h/.local/state/jobctl ;;
        esac
        ;;
    esac
    ;;
esac;
if [ -z "$w" ]; then
    h=$([ -d "$d" ] || { umask 077; LC_ALL=C mkdir -p -- "$d"; } 2>&1) ||
        w="cannot use the state directory $d: ${h##*: }; set JOBCTL_STATE_DIR";
    case $w in
    *": File exists; "*) w="$d is not a directory; move it away or set JOBCTL_STATE_DIR" ;;
    esac
fi;
if [ -z "$w" ]; then
    [ -O "$d" ] || w=$(ls -ldnL -- "$d");
    if [ -h "$d" ]; then
        case $(ls -ldn -- "$d" | { read -r h h h w; printf %s "$h"; }) in
        "$(id -u)") ;;
        *) w=$(ls -ldn -- "$d") ;;
        esac
    fi;
    if [ "$w" ]; then
        w=$(printf %s "$w" | { read -r h h h w; printf %s "$h"; });
        s=4 w="the state directory $d belongs to user $w, not to you; set JOBCTL_STATE_DIR to one of your own";
    else
        case $(ls -ldL -- "$d") in
        ?????w* | ????????w*) s=4 w="others can write to $d; chmod go-w it" ;;
        ????------*) ;;
        *) [ "$(ls -A -- "$d")" ] || chmod 700 -- "$d" ;;
        esac
    fi
fi
