#!/bin/sh
# jobctl runner: runs one job's command and writes down what became of it.
#
# The only program that runs a job's command, on this machine and on any other.
# It needs a POSIX sh with awk, date, grep, ln, mv, rm, sed, sleep and tr, has command.sh and
# after.sh beside it, and uses /proc, setsid (or perl) and flock where the host has them, else ps.
#
#   sh runner.sh run DIR                          run the job in DIR
#   sh runner.sh begin DIR [PID]                  the same, and make it real first; ends
#                                                 PID, a shell that waits for us
#   sh runner.sh stop JOBS GRACE JOB... <REASON   TERM, GRACE hundredths of a second, KILL; prints
#                                                 the numbers of jobs of which something is left
#   sh runner.sh signal JOBS NAME JOB...          send one signal; prints the numbers of jobs of
#                                                 which it reached nothing, and NUMBER:unbegun
#   sh runner.sh announce DIR STATE CODE          say here that a job has ended elsewhere
#   sh runner.sh cookies                          print "pid instance-id" of jobs' processes
#   sh runner.sh advise WORD                      print what helps who took WORD for a command
#
# What `stop` and `signal` print ends with "done", unless they were killed.
# JOBS is the folder of job folders, JOB is NUMBER:ID: a folder in there and the job's
# instance id, which is its cookie. DIR is a job folder. Whoever makes it writes
#   spec            what to run: lines of key='value', quoted for sh. Of a script it says
#                   whether it begins with #! (executable), is a binary, or text for sh
#   env             the command's environment: lines of export NAME='value'
#   env.odd         names that no shell can hold: set -- env 'NAME=value' ... "$@"
#   stdin, script   where the job has them
#   stdout, stderr, lock   empty; a byte in lock says that the command has begun
# and `run` adds
#   run         who runs it: runner, runner_ticks, boot, host; then pid, ticks, began
#               of each attempt, appended: of equal keys the last one counts
#   log         what sh itself had to say, and what --on-finish printed
#   exit        state, code or signal, reason, ended: put in place last, whole, once
# Word passes between processes in stop (a reason), timedout, signals and failure.
#
# `run` speaks with its starter over two pipes. It says "ready" on standard output
# once it has named itself in the file run, then reads one line from standard input:
# the time, in seconds since 1970, which spares it to ask. Is there no spec by then, or
# by the end of the input, the job was never started, and `run` ends. So the starter
# makes the job real by renaming spec into place, and may die at any instant. Next `run`
# says "waiting" or "began"; where it says neither, the file exit tells why.
#
# `begin` is for starters that may be cut off and ask again, over a network: it renames
# spec itself, at most once however often it is called, and reads nothing.
#
# Descriptor 9 may hold a lock, which the kernel lets go when `run` ends, however it
# ends. The command gets neither this nor any other descriptor of jobctl's.
#
# The command is run in the foreground: a background command of sh ignores INT and
# QUIT, for good. And $? cannot tell `exit 137` from death by signal 9, but sh puts
# the name of the signal on its standard error (the file log) when a foreground
# command dies of one; not for INT and PIPE, nor in some builds of bash for TERM, so
# 130, 141 and, in bash, 143 are always taken for the signal.

set -u
newline='
'

# --- processes ----------------------------------------------------------------

# A process is known by its pid, by when it started (clock ticks since boot: field 22
# of proc_pid_stat(5); else the words of ps's lstart) and by the boot: pids come round.

# Sets boot_now, which differs after each start of the system, and host_now, the name that this
# machine gives itself, in characters that mean nothing in a record. See process.py.
boot() {
    read -r boot_now 2>/dev/null </proc/sys/kernel/random/boot_id ||
        boot_now=$(sysctl -n kern.bootsessionuuid 2>/dev/null || sysctl -n kern.boottime)
    read -r host_now 2>/dev/null </proc/sys/kernel/hostname || host_now=$(uname -n)
    case $host_now in
    *[!A-Za-z0-9._-]*) host_now=$(printf '%s' "$host_now" | tr -c 'A-Za-z0-9._-' -) ;;
    esac
}

# Sets place to where a record was written that names host $1 and boot $2: here; before, that is
# here, but the system was started again since; elsewhere, on a machine that shares the state
# directory; or nowhere, as it does not say.
place_of() {
    case $1/$2 in
    /*) if [ -n "$2" ] && [ "$2" = "$boot_now" ]; then place=here; else place=nowhere; fi ;;
    "$host_now/$boot_now") place=here ;;
    "$host_now/") place=nowhere ;;
    "$host_now"/*) place=before ;;
    *) place=elsewhere ;;
    esac
}

# Sets born and condition of the process whose /proc/PID/stat line is $1. The second
# field is the program's name and may hold anything, hence ##.
parse_stat() {
    # shellcheck disable=SC2086  # to split is the point
    set -- ${1##*") "}
    condition=$1
    born=${20}
}

# Sets born of process $1 where there is no /proc.
ask_ps() {
    born=$(LC_ALL=C TZ=UTC0 ps -o lstart= -p "$1" 2>/dev/null |
        awk '{ print $1 "_" $2 "_" $3 "_" $4 "_" $5 }')
    condition=${born:+S}
}

# Sets own and born to pid and start of this very process, subshells included.
self() {
    if read -r stat 2>/dev/null </proc/self/stat; then
        own=${stat%% *}
        parse_stat "$stat"
    else
        own=$(exec sh -c 'printf %s "$PPID"')
        ask_ps "$own"
    fi
}

# Succeeds if process $1, started at $2, of a record from $3, see place_of, still runs; zombies
# do not.
alive() {
    [ -n "$1" ] && [ "$3" = here ] || return 1
    if [ -r /proc/self/stat ]; then
        read -r stat 2>/dev/null <"/proc/$1/stat" || return 1
        parse_stat "$stat"
    else
        ask_ps "$1"
    fi
    [ "$born" = "$2" ] || return 1
    case $condition in [ZX]*) return 1 ;; esac
}

# Prints "pid parent group session condition start" of every process.
processes() {
    if [ -r /proc/self/stat ]; then
        cat /proc/[0-9]*/stat 2>/dev/null |
            awk '{ pid = $1; sub(/^.*\) /, ""); print pid, $2, $3, $4, $1, $20 }'
    else
        LC_ALL=C TZ=UTC0 ps -A -o pid= -o ppid= -o pgid= -o sess= -o state= -o lstart= |
            awk '{ print $1, $2, $3, $4, $5, $6 "_" $7 "_" $8 "_" $9 "_" $10 }'
    fi
}

# Prints "pid instance-id" of every process that bears a job's cookie, and "pid runner" of
# those that are no part of a job though one may have called them: runners, this script.
cookies() {
    if [ ! -r /proc/self/environ ]; then
        LC_ALL=C ps -A -E -ww -o pid= -o command= 2>/dev/null | awk '
            { for (i = 2; i <= NF; i++) {
                if ($i == "JOBCTL_RUNNER=1") { print $1, "runner"; next }
                if (sub(/^JOBCTL_INSTANCE_ID=/, "", $i)) { print $1, $i; next } } }'
    elif echo x | grep -z x >/dev/null 2>&1; then
        grep -Hazx -e 'JOBCTL_INSTANCE_ID=[0-9a-f-]*' -e JOBCTL_RUNNER=1 \
            /proc/[0-9]*/environ 2>/dev/null | tr '\0' '\n' |
            sed 's,^/proc/\([0-9]*\)/environ:JOBCTL_,\1 ,; s/INSTANCE_ID=//; s/RUNNER=1/runner/'
    else
        for file in /proc/[0-9]*/environ; do
            process=${file#/proc/}
            tr '\0' '\n' 2>/dev/null <"$file" |
                sed -n "s,^JOBCTL_INSTANCE_ID=,${process%/environ} ,p
                    s,^JOBCTL_RUNNER=1,${process%/environ} runner,p"
        done
    fi
}

# Sets instant: a clock in hundredths of a second that nobody sets; and uptime (seconds since
# boot, where the system tells).
instant() {
    if read -r uptime _ 2>/dev/null </proc/uptime; then
        instant=${uptime%.*}${uptime#*.}
    else
        uptime='' instant=$(date +%s)00
    fi
}

# Sets now (seconds since 1970), instant and uptime. To ask date takes a process: that is
# done once a minute, as the clock may be set.
clock() {
    instant
    if [ -z "$uptime" ]; then
        now=${told_time:-${instant%00}}
        return
    fi
    [ "$instant" -lt "${asked_until:-0}" ] || set_clock "$(date +%s.%N)"
    now=$((instant + epoch))
    now=${now%??}.${now#"${now%??}"}
}

# Takes $1 for the time at $instant. Both are cut to hundredths: hence one more.
set_clock() {
    case $1 in *[!0-9.]* | *.) set -- "${1%%.*}.00" ;; esac
    fraction=${1#*.}00
    epoch=$((${1%.*}${fraction%"${fraction#??}"} + 1 - instant)) asked_until=$((instant + 6000))
}

pause() {
    sleep 0.05 2>/dev/null || sleep 1
}

# --- files --------------------------------------------------------------------

# Prints the words $@ as one line. Whatever goes into a record, or to another program, is written
# by this: what is in a word never makes a line of its own. (Some shells' echo reads
# backslashes.)
put_line() {
    jobctl_line=$*
    while :; do
        case $jobctl_line in
        *[[:cntrl:]]*) jobctl_line="${jobctl_line%%[[:cntrl:]]*} ${jobctl_line#*[[:cntrl:]]}" ;;
        *) break ;;
        esac
    done
    printf '%s\n' "$jobctl_line"
}

# Sets short to the reason $1 as a record holds it, whose lines are written at once.
shorten() {
    short=$1
    [ "${#1}" -le 1000 ] || short=$(printf '%.1000s' "$1")
}

# Sets quoted to $1 as one word of sh.
quote() {
    quoted="'"
    set -- "$1"
    while :; do
        case $1 in
        *"'"*)
            quoted=$quoted${1%%"'"*}"'\\''"
            set -- "${1#*"'"}"
            ;;
        *) break ;;
        esac
    done
    quoted="$quoted$1'"
}

# Calls function $1 with the words after $2 and with file $2 as descriptor 8; fails if that is no plain
# file. A job may put a pipe in its place at any instant, which is opened only when somebody
# writes to it: so it is opened to be written to as well, and looked at again.
reading() {
    called=$1 opened='' result=1 source=$2
    shift 2
    [ -f "$source" ] && [ -r "$source" ] || return 1
    [ ! -w "$source" ] || {
        opened=1
        { [ -f /dev/fd/8 ] || [ ! -e /dev/fd/8 ]; } && "$called" "$@"
        result=$?
    } 8<>"$source"
    # Of some files of the system the first is refused, be they writable or not.
    [ "$opened" ] || { "$called" "$@"; result=$?; } 8<"$source"
    return "$result"
}

# Sets the variables named to the words of the first line that descriptor 8 gives.
read_words() {
    read -r "$@" <&8
}

# Sets the variables that the file run in folder $1 names. It may be damaged, and is not sourced.
load_run() {
    runner='' runner_ticks='' boot='' host='' pid='' ticks='' waiter='' waiter_ticks=''
    place=nowhere
    reading read_run "$1/run" || return 0
    case $host in *[!A-Za-z0-9._-]*) host='' ;; esac
    place_of "$host" "$boot"
}

read_run() {
    while IFS="='" read -r key _ value _; do
        case $key in
        runner) runner=$value ;;
        runner_ticks) runner_ticks=$value ;;
        boot) boot=$value ;;
        host) host=$value ;;
        pid) pid=$value ;;
        ticks) ticks=$value ;;
        waiter) waiter=$value ;;
        waiter_ticks) waiter_ticks=$value ;;
        esac
    done <&8
}

# Sets fate to what became of the job in folder $1, and because to the reason: living; ended, as it says itself;
# elsewhere, as only the machine that its record names can tell, or it is in a container of
# this one whose processes are not to be seen from here; lost; or unknown, as its record is
# damaged.
judge_fate() {
    load_run "$1"
    fate=living because='' condition=''
    if [ "$place" = elsewhere ]; then
        fate=elsewhere because="runs on $host, which shares this state directory"
    elif alive "$pid" "$ticks" "$place"; then
        return
    elif alive "$runner" "$runner_ticks" "$place"; then
        condition=''
        return
    fi
    # Its last act may have been to write it.
    if [ -s "$1/exit" ] || ! { [ -e "$1/spec" ] || [ -h "$1/spec" ]; }; then
        fate=ended
        return
    fi
    case $fate/$place in
    living/nowhere) fate=unknown ;;
    living/before) fate=lost because='lost: host rebooted' ;;
    living/here)
        fate=lost because='lost: runner was killed'
        # shellcheck disable=SC2034  # for other scripts, as below
        ! held "$1" || fate=elsewhere because='runs in another container of this machine'
        ;;
    esac
}

# Succeeds if a runner holds the lock of the job in folder $1; fails where that is not told, as on a
# file system that has no locks, of which flock says so.
held() {
    [ -f "$1/lock" ] && command -v flock >/dev/null &&
        ! complaint=$(flock -s -n "$1/lock" true 2>&1) && [ -z "$complaint" ]
}

# The same for job $1 of those to act on; other scripts have other ones.
locate() {
    load_run "$1"
}

# Writes the file exit, once: state $1, code $2, signal $3, reason $4. What is there stays,
# so that finished never changes again; an empty one is what a full disk has left. A short one
# any sh writes at once, so that nobody sees a part of it; that takes no process.
settle() {
    clock
    quoted="''"
    [ -z "$4" ] || { shorten "$4" && quote "$(put_line "$short")"; }
    record="state='$1'${newline}code='$2'${newline}signal='$3'${newline}reason=$quoted
ended='$now'${newline}ended_uptime='$uptime'${newline}boot='$boot_now'"
    mine='' # of which a full disk may have taken a part
    set -C
    until
        # Opened once: an empty one may be another one's at any instant.
        { [ "${#record}" -lt 1000 ] && [ ! -e exit ] &&
            { mine=1 && printf '%s\n' "$record"; } >./exit; } 2>/dev/null || settled || {
            { [ -f exit.new ] || [ ! -e exit.new ]; } &&
                printf '%s\n' "$record" 1<>exit.new &&
                { ln exit.new exit 2>/dev/null || settled || mv -f exit.new exit; }
        }
    do
        [ -f spec ] || exit 1 # the folder was removed
        sleep 1
        [ -f exit.new ] || rm -rf exit.new # the job put something in its place
    done
    set +C
    # Whoever carries the job's files to another computer sleeps until this one grows.
    plain run
    echo >>run
}

# Succeeds if somebody else has written the file exit.
settled() {
    [ -z "$mine" ] && [ -s exit ]
}

# The same for the job in folder $1, whose runner is dead: state $2, reason $3.
settle_for() {
    (cd -- "$1" && settle "$2" '' '' "$3" && rm -f env env.odd exit.new spec.new)
}

# Takes away what a job has put in the place of the files $@: to open a pipe, say, could hang.
plain() {
    for spot in "$@"; do
        [ -f "$spot" ] || [ ! -e "$spot" ] || rm -rf "$spot"
    done
}

# --- stop ---------------------------------------------------------------------

# The jobs to act on are words NUMBER:ID; the folder of job folders is the current one.

# Prints "number/pid/start" of everything that the jobs $@ started and that still lives:
# their commands, what bears their cookies or was in $known, and all that descends from
# these or shares a command's session. Not what is apart, as a job may stop itself, or
# start another.
members() {
    {
        for job in "$@"; do
            locate "${job%%:*}"
            [ -z "${begun_only-}" ] || waiter=''
            root=${waiter:-$pid}
            alive "$root" "${waiter_ticks:-$ticks}" "$place" || root=none
            put_line "job ${job%%:*} $root ${job#*:}"
            # Does no record name the command, it is a child of its runner.
            [ "$pid" ] || ! alive "$runner" "$runner_ticks" "$place" || put_line "under ${job%%:*} $runner"
            sessions_of "${job%%:*}"
        done
        for member in $known; do
            put_line "known $member"
        done
        cookies | sed 's/^/cookie /'
        put_line "own $own"
        processes
    } | awk '
        $1 == "job" { if ($3 != "none") { root[$3] = $2; of[$3] = $2 }
                      if ($4 != "") id[$4] = $2
                      next }
        # All that is left of a session whose leader, the command, has gone. Its number is given to
        # no other process meanwhile.
        $1 == "session" { session[$3] = $2; led[$3] = $4; next }
        $1 == "under" { of[$3] = $2; apart[$3] = 1; next }
        $1 == "known" { split($2, part, "/"); known[part[2] "/" part[3]] = part[1]; next }
        $1 == "cookie" { if ($3 == "runner") apart[$2] = 1; if ($3 in id) of[$2] = id[$3]; next }
        $1 == "own" { apart[$2] = 1; next }
        # A command that has not yet taken the place of its runner is a part all the same.
        ($1 in apart && !($1 in root)) || $5 ~ /^[ZX]/ { next }
        { parent[$1] = $2; start[$1] = $6
          if ($1 "/" $6 in known) of[$1] = known[$1 "/" $6]
          if ($3 in root) of[$1] = root[$3]
          if ($4 in root) of[$1] = root[$4]
          # What a slot has for itself is a child of it, as its command is: a watch over the time.
          if (!($1 in of) && $2 == $4 && $4 in session) of[$1] = "none"
          if ($4 in session) { if ($1 != $4) orphan[$1] = $4; else if ($6 != led[$4]) stale[$4] = 1 } }
        # More is known of what has an ancestor than of what only is in the same session.
        END { descend()
              for (p in orphan)
                  if (!(p in of) && !(orphan[p] in stale) && start[p] + 0 >= led[orphan[p]] + 0)
                      of[p] = session[orphan[p]]
              descend()
              # Commands first: each then ends by a signal to all, not because its child did.
              for (p in root) show(p); for (p in of) if (!(p in root)) show(p) }
        function show(p) { if (p in parent && of[p] != "none") print of[p] "/" p "/" start[p] }
        function descend(  more, p) {
            do { more = 0
                 for (p in parent)
                     if (!(p in of) && parent[p] in of) { of[p] = of[parent[p]]; more = 1 }
            } while (more)
        }'
}

# Prints the session that the command of job $1 leads, or led, once it is located.
sessions_of() {
    [ "$place" != here ] || [ -z "$pid" ] || put_line "session $1 $pid $ticks"
}

# Ends everything of the jobs after $1: TERM, and after $1 hundredths of a second KILL.
# Returns when nothing is left, or 5 seconds after that with the rest in $known.
terminate() {
    grace=$1 known='' reached='' missed=''
    shift
    instant
    late=$((instant + grace))
    self
    while :; do
        found=$(members "$@")
        instant
        if [ -z "$found" ] || [ "$instant" -gt $((late + 500)) ]; then
            known=$(printf '%s\n' "$found" | tr '\n' ' ')
            return
        fi
        for member in $found; do
            target=${member#*/} how=KILL
            if [ "$instant" -lt "$late" ]; then
                case " $known " in *" $member "*) continue ;; esac
                how=TERM
            fi
            if kill -s "$how" "${target%%/*}"; then
                reached="$reached ${member%%/*} "
                kill -s CONT "${target%%/*}"
            elif alive "${target%%/*}" "${target#*/}" here; then
                missed="$missed ${member%%/*} "
            fi
        done 2>/dev/null
        # Still known when the command, by which they were found, has gone.
        known=$(printf '%s\n' "$known $found" | tr ' ' '\n' | sort -u | tr '\n' ' ')
        [ -z "${stops-}" ] || take_back "$@"
        pause
    done
}

# Takes the request to stop from those of the jobs $@ of which nothing could be told, though it
# lives: however they end now, they do so by themselves. What has ended may have been told by
# another one who stops it.
take_back() {
    for job in "$@"; do
        number=${job%%:*}
        case $missed in *" $number "*) ;; *) continue ;; esac
        case $reached in *" $number "*) continue ;; esac
        [ -s "$number/exit" ] || eval "rm -f $stops"
    done
}

# Succeeds if the command of the job in folder $1 has begun; load_run was asked before.
has_begun() {
    [ -n "$pid" ] || [ -s "$1/lock" ]
}

# Succeeds if the command of job $number, whose fate was judged, has not begun.
yet_to_begin() {
    case $fate/$pid in
    living/) ! has_begun "$number" ;;
    ended/) ! { [ -e "$number/spec" ] || [ -h "$number/spec" ]; } ;; # it is about to come here
    *) false ;;
    esac
}

# Sets jobs to those of the jobs $@, quoted for sh, that are not unfinished on another machine;
# prints NUMBER@HOST of the others: nothing is done to them from here. With begun_only, neither are
# those whose command has not begun: it prints NUMBER:unbegun.
not_elsewhere() {
    jobs=''
    for job in "$@"; do
        number=${job%%:*}
        judge_fate "$number"
        if [ "$fate" = elsewhere ]; then
            put_line "$number@$host"
        elif [ "${begun_only-}" ] && yet_to_begin; then
            put_line "$number:unbegun"
        else
            quote "$job"
            jobs="$jobs $quoted"
        fi
    done
}

stop() {
    cd -- "$1" || exit 125
    IFS= read -r reason # everybody can read what is on a command line
    grace=$2
    shift 2
    boot
    not_elsewhere "$@"
    eval "set -- $jobs"
    for job in "$@"; do
        # It is there before run is read.
        number=${job%%:*}
        [ -s "$number/exit" ] || note_stop "$reason" "$number/stop"
    done
    # shellcheck disable=SC2016  # of each
    stops='"$number/stop"'
    terminate "$grace" "$@"
    for job in "$@"; do
        number=${job%%:*}
        case " $known" in
        *" $number/"*) put_line "$number" ;;
        *) await_exit "$number" "$reason" ;;
        esac
    done
}

# Writes down the reason $1 for a stop in file $2. The first one counts, if who wrote it was not killed.
note_stop() {
    [ -s "$2" ] || { plain "$2" && (put_line "$1" >"$2"); } 2>/dev/null
}

# Waits until the stopped job in folder $1 has its exit, written by its runner, else here.
await_exit() {
    while judge_fate "$1" && [ "$fate" != ended ]; do
        case $fate in
        lost | unknown) settle_for "$1" Stopped "$2" ;;
        *) pause ;;
        esac
    done
}

send() {
    cd -- "$1" || exit 125
    name=$2
    shift 2
    boot
    self
    begun_only=1
    not_elsewhere "$@"
    eval "set -- $jobs"
    # shellcheck disable=SC2016  # of each
    signals='"$number/signals"'
    signal_all "$name" "$@"
}

# Sends signal $1 to everything of the jobs after it that have begun; prints the numbers of those of
# which it reached nothing, though something lives. What ends by the signal is to find it in a file,
# and what it has not reached is not.
signal_all() {
    name=$1 known='' reached='' missed='' begun_only=1
    shift
    for job in "$@"; do
        number=${job%%:*}
        [ "$number" = 0 ] || eval "plain $signals; put_line \"\$name\" >>$signals"
    done
    for member in $(members "$@"); do
        target=${member#*/} number=${member%%/*}
        if kill -s "$name" "${target%%/*}" 2>/dev/null; then
            reached="$reached $number "
        elif alive "${target%%/*}" "${target#*/}" here; then
            missed="$missed $number"
        fi
    done
    for job in "$@"; do
        number=${job%%:*}
        # What items left is a part of the whole job, of which something was reached then.
        case $number/$reached in 0/?* | *" $number "*) continue ;; esac
        eval "without_line \"\$name\" $signals"
        case " $missed " in *" $number "*) put_line "$number" ;; esac
    done
}

# Takes the last line from file $2 if it is $1.
without_line() {
    [ -f "$2" ] && sed -e "\$ { /^$1\$/d" -e '}' "$2" >"$2.new" && mv -f "$2.new" "$2"
} 2>/dev/null

# --- run ----------------------------------------------------------------------

# Says $1 to the starter, who may have left.
say() {
    put_line "$1" 2>/dev/null >&3
}

run() {
    cd -- "$1" || exit 125
    [ -z "$3" ] || kill -s KILL "$3"
    exec 3>&1 >/dev/null
    boot
    if [ "$2" ]; then
        load_run .
        ! alive "$runner" "$runner_ticks" "$place" && [ "$place" != elsewhere ] &&
            [ ! -f spec ] || exit 0
        exec 9<>lock
        flock -n 9 2>/dev/null
    fi
    name_runner
    say ready
    told_time=''
    if [ "$2" ]; then
        ln spec.new spec 2>/dev/null || exit 0
    else
        read -r told_time || told_time=''
        [ -f spec ] || exit 0
        [ -z "$told_time" ] || { instant && set_clock "$told_time"; }
    fi
    exec </dev/null
    do_job
}

# Makes this very process the runner of the job in the current folder, and writes that down.
name_runner() {
    dir=$PWD
    exec 2>>log
    trap : HUP INT QUIT TERM
    trap '' PIPE
    self
    printf "runner='%s'\nrunner_ticks='%s'\nboot='%s'\nhost='%s'\n" \
        "$own" "$born" "$boot_now" "$host_now" >run || exit 125
    # Its place on the disk is taken now: a full disk shall not swallow the exit status.
    echo >exit.new || exit 125
}

# Runs the job of which there is a spec.
do_job() {
    instance_id='' argv='' words='' script='' text='' init='' cwd=/ umask=022 stdin=/dev/null merge=''
    timeout='' timeout_text='' retries=0 after='' after_ok='' caller='' on_finish=''
    # shellcheck source=/dev/null
    . ./spec
    attempt=0 code='' killed='' refusal=''
    [ -z "$after$after_ok$on_finish" ] || load after
    [ -z "$after$after_ok" ] || await_others
    [ ! -e stop ] || refusal=stopped
    while [ -z "$refusal" ]; do
        attempt=$((attempt + 1))
        try
        verdict ''
        again '' || break
        told_time=''
    done
    [ -z "$refusal" ] || verdict ''
    [ -z "$killed" ] || code=''
    settle "$state" "$code" "$signal" "$reason"
    exec 3>&- 9>&-
    if [ -n "$on_finish" ]; then
        announce >>log 2>&1 &
    elif [ -n "${at_end-}" ]; then
        put_line "$at_end" >&7 # see serve.sh
        # To empty them takes no process, and no person looks into this folder.
        [ ! -f env ] || true >./env
        [ ! -f env.odd ] || true >env.odd
    else
        exec rm -f env env.odd exit.new spec.new
    fi
}

# Sets killed if it was a signal that ended a command with $code; $1 is the file log.
judge() {
    case ${BASH_VERSION:+bash}$code in
    130 | 141 | bash130 | bash141 | bash143) killed=1 ;;
    *) [ "$code" -le 128 ] || [ ! -s "$1" ] || killed=1 ;;
    esac
}

# Runs the command once. Sets code, and killed if a signal ended it.
try() {
    plain log stdout stderr run
    true >log
    time_watch='' caller_watch='' killed=''
    # With the default action until they set their own: else a TERM between would be lost.
    trap - TERM
    [ -z "$timeout" ] || { when_time_is_up 2>/dev/null 3>&- 9>&- & time_watch=$!; }
    [ -z "$caller" ] || { when_caller_ends 2>/dev/null 3>&- 9>&- & caller_watch=$!; }
    trap : TERM
    (command_itself) <"$stdin" >>stdout 2>>stderr
    code=$?
    judge log
    unbegun
    # When the command is being ended, let that be finished.
    [ -z "$time_watch" ] || [ -e timedout ] || kill "$time_watch" 2>/dev/null
    [ -z "$caller_watch" ] || [ -e stop ] || kill "$caller_watch" 2>/dev/null
    [ -z "$time_watch$caller_watch" ] || wait
}

# In the background: sleeps for $1 seconds, and ends if the job has ended meanwhile, as
# its runner may have been killed and not have said so. KILL, as between fork and exec
# the sleep has still our trap.
doze() {
    trap 'kill -s KILL ${!-}; exit' TERM
    sleep "$1" &
    wait $!
    load_run .
    [ ! -s exit ] && [ ! -e stop ] || exit
    alive "$runner" "$runner_ticks" "$place" || alive "$pid" "$ticks" "$place" || exit
}

# In the background: ends the command when its time is up.
when_time_is_up() {
    left=${timeout%%.*}
    case $timeout in *.*) doze "0.${timeout#*.}" ;; esac
    while [ "$left" -gt 60 ]; do
        doze 60
        left=$((left - 60))
    done
    [ "$left" -eq 0 ] || doze "$left"
    time_is_up
}

time_is_up() {
    plain timedout
    echo >timedout
    cd .. && terminate 1000 "${dir##*/}:$instance_id"
}

# In the background: stops the job when its caller, "pid start", ends.
when_caller_ends() {
    while alive "${caller%% *}" "${caller#* }" here; do
        doze 1
    done
    caller_has_ended
}

caller_has_ended() {
    note_stop 'stopped: the process that started it ended' stop
    cd .. && terminate 1000 "${dir##*/}:$instance_id"
}

# In a subshell of its own: becomes the command.
command_itself() {
    exec 7>&-
    [ -n "${jobctl_slot-}" ] || exec 9>&- # see note_begun of items.sh
    [ -z "$merge" ] || exec 2>&1
    eval "set -- $argv"
    # shellcheck disable=SC2034  # command.sh uses them
    jobctl_named=${1-} jobctl_newline=$newline
    jobctl_bang='' jobctl_interpreter='' jobctl_argument=''
    [ -z "$script" ] || { first_of "$words" && jobctl_named=$first; }
    # shellcheck disable=SC2034  # likewise
    jobctl_called=$jobctl_named jobctl_depth=0
    case $script in
    '') ;;
    executable)
        load command
        read_script "$dir/script"
        set -- "$jobctl_interpreter" ${jobctl_argument:+"$jobctl_argument"} "$dir/script" "$@"
        ;;
    binary) set -- "$dir/script" "$@" ;;
    *) set -- /bin/sh "$dir/script" "$@" ;;
    esac
    jobctl_odd=''
    [ ! -e "$dir/env.odd" ] || { load command && set_odd "$dir/env.odd"; }
    if [ -n "$text" ]; then
        set -- /bin/sh -c "${init:+$init
}$text" sh "$@"
    elif [ -n "$init" ]; then
        # The shell of init would drop them.
        set -- /bin/sh -c "$init
$jobctl_odd
exec \"\$@\"" sh "$@"
    fi
    self
    clock
    jobctl_dir=$dir jobctl_own=$own jobctl_born=$born
    jobctl_now=$now jobctl_uptime=$uptime jobctl_attempt=$attempt
    # shellcheck disable=SC2034  # likewise
    jobctl_failure=$dir/${failures-}failure
    find_leader
    # Of a job from another computer it may be relative to the home directory.
    case $cwd in /*) ;; *) cd -- "${HOME:-/}" 2>/dev/null || cd / ;; esac
    CDPATH='' cd -- "${cwd:-.}" 2>/dev/null || { load command && no_entry "$cwd"; }
    umask "$umask"
    # From here on any variable but jobctl_* may have the caller's value.
    jobctl_pwd=$PWD
    eval "${jobctl_exports-}"
    export PWD="$jobctl_pwd"
    unset LC_ALL OLDPWD SHLVL JOBCTL_RUNNER
    [ -z "${caller_locale+set}" ] || export LC_ALL="$caller_locale"
    if [ -n "${caller_path+set}" ]; then PATH=$caller_path; else unset PATH; fi
    # shellcheck source=/dev/null
    . "$jobctl_dir/env" 2>/dev/null
    findable "$1"
    note_begun
    say began
    exec 3>&-
    case $jobctl_leader in
    none) ;;
    ?*) set -- "$jobctl_leader" "$@" ;;
    *)
        # One perl for both: the variables may be such as steer perl.
        # shellcheck disable=SC2154  # of command.sh
        [ ! -x /usr/bin/perl ] || { load command && export PERL_BADLANG=0 &&
            set -- /usr/bin/perl -e "$jobctl_perl" lead "${jobctl_odd:+$jobctl_dir/env.odd}" "$@" && jobctl_odd=''; }
        ;;
    esac
    # Last, as env takes a command with a = in its name for a variable.
    eval "$jobctl_odd"
    trap - PIPE
    exec "$@"
}

# Sets jobctl_leader to the program that runs another one in a session of its own, if there is one.
find_leader() {
    for jobctl_leader in /usr/bin/setsid /bin/setsid /usr/local/bin/setsid ''; do
        [ ! -x "$jobctl_leader" ] || break
    done
}

# The last of command_itself before it becomes the command: says who it is.
note_begun() {
    export JOBCTL_PROGRESS="$jobctl_dir/progress"
    # A full disk may have taken a part of it.
    until printf "\nattempt='%s'\npid='%s'\nticks='%s'\nbegan='%s'\nbegan_uptime='%s'\n" "$jobctl_attempt" \
        "$jobctl_own" "$jobctl_born" "$jobctl_now" "$jobctl_uptime" >>"$jobctl_dir/run" &&
        # The job may do to the file run what it likes: this it leaves.
        { [ "$jobctl_attempt" -gt 1 ] || echo >"$jobctl_dir/lock"; }; do load command && wait_for_room; done
    # Who stops the job writes stop, then reads run; here it is the other way round, so
    # that at least one of both sees the other.
    [ ! -e "$jobctl_dir/stop" ] || kill -s TERM "$jobctl_own"
}

# Ends with status $1 and reason $2 before the command began.
refuse() {
    load command
    end_unbegun "$1" "$2"
}

# Sets first to the first of the words $1, which are quoted for sh.
first_of() {
    eval "set -- $1"
    first=${1-}
}

# Returns if the command $1 can be executed, else refuses. exec would find out only
# after the job was said to have begun.
findable() {
    [ -z "$jobctl_bang" ] || interpreted "$jobctl_bang"
    locate_program "$1"
    if [ -f "$jobctl_found" ] && [ -x "$jobctl_found" ] && known_good "$jobctl_found"; then
        return
    fi
    load command
    examine "$1"
}

# Succeeds if nobody needs to look into the file $1, which takes a process: what the system
# brings is right, and what ran one item will run the next. Else unbegun tells later.
known_good() {
    case ${jobctl_judged-}$1 in 1* | /bin/* | /usr/bin/* | /sbin/* | /usr/sbin/*) ;; *) false ;; esac
}

# Sets jobctl_found to the file that the command $1 means, by PATH if it has no slash; to
# nothing where there is none.
locate_program() {
    jobctl_found=$1
    case $1 in */*) return ;; esac
    jobctl_found='' jobctl_ifs=$IFS
    set -f
    IFS=:
    for jobctl_part in ${PATH-/usr/bin:/bin}; do
        jobctl_part=${jobctl_part:-.}/$1
        [ -f "$jobctl_part" ] || continue
        jobctl_found=$jobctl_part
        [ ! -x "$jobctl_part" ] || break
    done
    IFS=$jobctl_ifs
    set +f
}

# Reads the functions of the script $1 beside this one, once.
load() {
    case $jobctl_loaded in *" $1 "*) return 0 ;; esac
    jobctl_loaded="$jobctl_loaded $1 "
    # shellcheck source=/dev/null
    . "$jobctl_lib/$1.sh"
}

# The last attempt ended with $code: puts it down if the command was never begun.
unbegun() {
    case $code in 126 | 127) [ ! -e "${failures-}failure" ] || return 0 ;; *) return 0 ;; esac
    load command
    first_of "$words"
    note_unbegun "$first" "${failures-}$([ "$merge" ] && echo stdout || echo stderr)"
}

# Sets state, signal and reason from what the last attempt left, for a job, whose files begin with
# $1 = '', as for an item, whose files do with children/N. . Which comes first says what counts.
verdict() {
    state=Failed signal='' reason=''
    if [ -n "$killed" ]; then
        signal=$((code - 128))
        signal_name=$(kill -l "$signal")
    fi
    if [ -e "${1}stop" ]; then
        state=Stopped
        reason_in "${1}stop" || reason='stopped by user'
    elif [ -n "$refusal" ]; then
        state=Stopped reason=$refusal
    elif [ -e "${1}timedout" ]; then
        reason="timed out after $timeout_text"
    elif [ -e "${1}failure" ]; then
        reason_in "${1}failure" || reason='could not be started'
    elif [ -n "$signal" ]; then
        reason="killed by signal $signal ($signal_name)"
        if [ -f "${1}signals" ] && grep -qx "$signal_name" "${1}signals"; then
            state=Stopped reason="stopped by user: signal $signal_name"
        fi
    elif [ "$code" -eq 0 ]; then
        state=Completed
    else
        reason="exit status $code"
    fi
}

# Sets reason to the first line of file $1.
reason_in() {
    reading read_words "$1" reason
}

# Succeeds if the attempt of which verdict $1 told is to be followed by another one.
again() {
    [ "$state" = Failed ] && [ "$attempt" -le "$retries" ] && [ ! -e "${1}failure" ] || return 1
    [ ! -e "${1}timedout" ] || rm -f "${1}timedout"
}

# --- what to do ---------------------------------------------------------------

umask 077
case $0 in
/*) jobctl_lib=${0%/*} ;;
*/*) jobctl_lib=$PWD/${0%/*} ;;
*) jobctl_lib=$PWD ;;
esac
[ -z "${PATH+set}" ] || caller_path=$PATH
[ -z "${LC_ALL+set}" ] || caller_locale=$LC_ALL
jobctl_tools=/usr/bin:/bin:/usr/sbin:/sbin jobctl_loaded=''
export LC_ALL=C PATH="$jobctl_tools"
# A script beside this one may want its functions only.
[ -z "${jobctl_sourced-}" ] || return 0
case ${1-} in
run) run "$2" '' '' ;;
begin) run "$2" itself "${3-}" ;;
stop) shift && stop "$@"; put_line 'done' ;;
signal) shift && send "$@"; put_line 'done' ;;
announce) shift && load after && announce_there "$@" ;;
cookies) cookies ;;
advise | examine_alone) load command && "$1" "$2" ;;
*)
    echo 'runner.sh: run, begin, stop, signal, announce, cookies, advise or examine_alone' >&2
    exit 2
    ;;
esac
exit
