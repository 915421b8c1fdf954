#!/bin/sh
# jobctl place: finds the state directory for any sh, as paths.py does for Python, makes it, and
# says whether it can be trusted. Sets d to it; w to what is wrong, or to nothing; and s to the
# exit status for that.
#
# agent/far.py sends this as one line between single quotes, which any login shell passes on. So
# there is no single quote, backslash or exclamation mark in what follows, and a blank may stand
# for the end of each line. Lines that begin with # are left out.

# shellcheck disable=SC2034,SC2012  # s is for who reads this; who owns a file, ls alone tells
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
# Each folder in which something is looked up on the way to $d, and each link, becomes one of the
# words that ls is given: h is where we are, l what is left of the way, and m counts links.
if [ -z "$w" ]; then
    w=$(
        h="" l=$d m=0 t=$(id -u);
        set -- /;
        while [ "$l" ]; do
            w=${l%%/*};
            case $l in
            (*/*) l=${l#*/} ;;
            (*) l="" ;;
            esac;
            case $w in
            ("" | .) continue ;;
            (..) h=${h%/*}; continue ;;
            esac;
            set -- "$@" "${h:-/}";
            h=$h/$w;
            if [ -h "$h" ]; then
                set -- "$@" "$h";
                w=$(QUOTING_STYLE=literal LC_ALL=C ls -ldn -- "$h");
                w=${w#*" $h -> "};
                l=$w/$l;
                case $w in
                (/*) h="" ;;
                (*) h=${h%/*} ;;
                esac;
                m=$((m + 1));
                if [ "$m" -gt 40 ]; then set -- "$@" ""; break; fi
            fi
        done;
        { { LC_ALL=C ls -ldnq -- "$@" || LC_ALL=C ls -ldn -- "$@" || echo; } 2>/dev/null; } | {
            l=0;
            while read -r m h o g h h h h f; do
                if [ "$f" = / ]; then l=$o; fi;
                case $o in
                (0 | "$t" | "$l") ;;
                ("")
                    printf "it cannot be told where that leads; set JOBCTL_STATE_DIR";
                    break
                    ;;
                (*)
                    printf "%s belongs to user %s; set JOBCTL_STATE_DIR" "${f%% -> *}" "$o";
                    break
                    ;;
                esac;
                case $m in
                (l* | ?????????[tT]*) continue ;;
                (????????w*) ;;
                (?????w*)
                    h=$({ getent group "$g" || grep "^[^:]*:[^:]*:$g:" /etc/group; } 2>/dev/null);
                    case "$(id -g) $h" in
                    ("$g $(id -un):"*: | "$g $(id -un):"*:"$(id -un)") continue ;;
                    esac
                    ;;
                (*) continue ;;
                esac;
                printf "they can write to %s; chmod go-w it, or set JOBCTL_STATE_DIR" "$f";
                break;
            done
        }
    );
    [ -z "$w" ] || s=4 w="others can replace the state directory $d: $w";
fi;
if [ -z "$w" ]; then
    if [ -O "$d" ]; then
        case $(ls -ldL -- "$d") in
        ?????w* | ????????w*) s=4 w="others can write to the state directory $d, and may have done so: move it away, or set JOBCTL_STATE_DIR" ;;
        ????------*) ;;
        *) [ "$(ls -A -- "$d")" ] || chmod 700 -- "$d" ;;
        esac
    else
        w=$(ls -ldnL -- "$d" | { read -r h h h w; printf %s "$h"; });
        s=4 w="the state directory $d belongs to user $w, not to you; set JOBCTL_STATE_DIR to one of your own";
    fi
fi
