#!/bin/sh
# jobctl slots: what can be told of a slot of a job with items by who is not that slot. Functions for
# items.sh, which says what is in the folder of a slot, and for serve.sh. They need runner.sh.

# shellcheck disable=SC2034  # others use the variables
keeper='' keeper_ticks='' keeper_boot='' keeper_host='' slot_fate='' place=${place-} instant=${instant-}
begun='' found='' started='' begun_at='' highest='' born='' condition=''

# Sets keeper, keeper_ticks, keeper_boot and keeper_host to what the slot in folder $1 says of itself,
# and place to where that was; fails where it says nothing that makes sense. Of a command, which is
# what pid and ticks name, it says nothing.
slot_self() {
    keeper='' keeper_host=''
    reading read_words "$1/self" keeper keeper_ticks keeper_boot keeper_host _ 2>/dev/null || return 1
    case $keeper_host/$keeper in /* | */ | *[!A-Za-z0-9._-]*/* | */*[!0-9]*) return 1 ;; esac
    place_of "$keeper_host" "$keeper_boot"
}

# Sets slot_fate to what became of the slot in folder $1: finished, as it says; living; elsewhere, where
# only another machine can tell; begins, as it may be about to; or dead, and then place to where that
# was. One whose record of itself is gone is looked for among all processes.
judge_slot() {
    slot_fate=dead
    if [ -e "$1/done" ]; then
        slot_fate=finished
    elif slot_self "$1"; then
        if [ "$place" = elsewhere ]; then
            slot_fate=elsewhere
        elif alive "$keeper" "$keeper_ticks" "$place"; then
            slot_fate=living
        fi
    elif [ ! -s "$1/journal" ] && is_new "$1"; then
        slot_fate=begins
    else
        place=here
        ! slot_is_seen "$1" || slot_fate=living
    fi
}

# Sets highest to the highest number that a slot of the job in folder $1 was given on a host.
load_highest() {
    highest=0
    reading read_words "$1/highest" highest
    case $highest in '' | *[!0-9]*) highest=0 ;; esac
}

# Makes the folders of slots of the job in folder $1 that are missing, so that these are judged, too.
restore_slots() {
    load_highest "$1"
    number=0
    while [ -d "$1/slots" ] && [ "$number" -lt "$highest" ]; do
        number=$((number + 1))
        [ -d "$1/slots/$number" ] || mkdir "$1/slots/$number"
    done
}

# Succeeds if it is less than three seconds since it was first asked of the slot in folder $1, which
# has written nothing yet.
is_new() {
    missed=''
    instant
    plain "$1/missed"
    [ -s "$1/missed" ] || put_line "$instant" >"$1/missed" || return 0
    reading read_words "$1/missed" missed || return 0
    case $missed in '' | *[!0-9]*) return 1 ;; esac
    [ "$instant" -ge "$missed" ] && [ $((instant - missed)) -lt 300 ]
} 2>/dev/null

# Succeeds if there is a process that was begun as the slot in folder $1, whose path, or that of its
# job, begins at the current directory.
slot_is_seen() {
    case $1 in
    slots/*) jobctl_line=$PWD ;;
    *) jobctl_line=$PWD/${1%/slots/*} ;;
    esac
    commands_of_leaders | grep -qF -e "items.sh slots $jobctl_line ${1##*/} "
}

# Prints the words of the processes that may be slots: those that lead a session, where that is told.
commands_of_leaders() {
    if [ ! -r /proc/self/stat ]; then
        LC_ALL=C ps -A -ww -o args=
        return
    fi
    for leader in $(processes | awk '$1 == $4 { print $1 }'); do
        # Without the NULs between the words.
        read -r jobctl_word <"/proc/$leader/cmdline"
        case $jobctl_word in *items.shslots*) tr '\0' ' ' <"/proc/$leader/cmdline" && echo ;; esac
    done
} 2>/dev/null

# Sets begun, found, started and begun_at to the number of the item that the slot in folder $1 runs,
# to pid and start of its command, and to when that was, in hundredths of a second since boot.
last_begun() {
    begun='' found='' started='' begun_at=''
    while read -r number letter process start _ _ uptime_then; do
        case $letter/$number in B/ | B/*[!0-9]* | [!B]*) continue ;; esac
        [ -n "$uptime_then" ] || continue # a part of a line: it has not begun
        begun=$number found=$process started=$start
        begun_at=${uptime_then%.*}${uptime_then#*.}
    done <<END
$([ ! -f "$1/journal" ] || tail -n 1 "$1/journal")
END
}

# Succeeds if the command that last_begun told of still runs, and sets born to its start. It is the
# one that wrote that line if it was there then; or, where two clocks of the system differ, if it is
# the child of process $1 or bears cookie $2.
still_runs() {
    if [ "$started" != - ]; then
        alive "$found" "$started" here
        return
    fi
    read -r stat <"/proc/$found/stat" || return 1
    parse_stat "$stat"
    case $condition in [ZX]*) return 1 ;; esac
    [ "$born" -le "$begun_at" ] || [ "$(parent_in "$stat")" = "$1" ] || bears "$found" "$2"
} 2>/dev/null

# Prints the parent of the process whose line in /proc is $1.
parent_in() {
    # shellcheck disable=SC2086  # to split is the point
    set -- ${1##*") "}
    put_line "$2"
}

# Succeeds if process $1 has cookie $2.
bears() {
    [ -n "$2" ] && tr '\0' '\n' <"/proc/$1/environ" | grep -qx "JOBCTL_INSTANCE_ID=$2"
} 2>/dev/null

# Prints those lines of the journals $@ that say something, see journal.py: of others a full disk has
# taken a part.
lines_of() {
    # Python ends so what a full disk has left of a line.
    awk 'index($0, "\001") { next }
        /^[1-9][0-9]* [CFX] ([0-9]+|-) ([0-9]+|-) [0-9.]+ [0-9.-]+ / ||
        /^[1-9][0-9]* B [0-9]+ [^ ]+ [0-9]+ [0-9.]+ [0-9.-]+$/' "$@"
}
