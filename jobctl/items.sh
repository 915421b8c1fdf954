#!/bin/sh
# jobctl items: one slot of a job that runs its command for each of many items. A slot
# takes the next item that no other has, runs the command, writes down what became of it,
# and goes on; there is nobody above the slots.
#
# Needs what runner.sh needs, which lies beside it.
#
#   sh items.sh slots DIR K LAST [PID]     be slot K of the job in DIR, after starting those
#                                          up to LAST; ends PID, a shell that waits for us
#   sh items.sh stop DIR GRACE ITEM... <REASON  end what runs of these items: TERM, GRACE hundredths
#                                          of a second, KILL; prints the numbers of items of
#                                          which something is left all the same
#   sh items.sh signal DIR NAME ITEM...    send one signal; prints the numbers of items of which it
#                                          reached nothing, and NUMBER:unbegun of those that have
#                                          not begun
#   sh items.sh withdraw DIR               where a share was stopped: write down as stopped what no slot
#                                          has begun, once none lives that could
#   sh items.sh mend DIR                   write down what is lost on a host, and give back what
#                                          was taken and not begun
#
# ITEM is NUMBER:ID, with the cookie of the item's command. Number 0 is the whole job: all that runs,
# what waits for other jobs, and what items that have ended left running. Of the latter, what has no
# cookie is found by the session of its slot, which it shares with what other items left.
# DIR is a job folder, as runner.sh describes it, and holds besides
#   items/N       items from the Nth on, as words: set -- 'one' 'two'
#   taken/N       empty: a slot has item N, or nobody shall have it
#   begun/N       empty: item N has begun, and nobody begins it again
#   children/     N.stdout, N.stderr of each item that was begun, and where there is reason to
#                 N.stop, N.timedout, N.failure, N.signals, N.progress
#   slots/K/      self      pid, its start, boot and host of a slot
#                 journal   what is in self; then a line when an item begins: its number, B, pid, start, attempt, time,
#                           seconds since boot; and one when it has ended: its number, C F or X
#                           (completed, failed, stopped), exit status, signal, time, seconds since
#                           boot, reason. What is not known is -, and so is the start where
#                           /proc tells whose child a process is.
#                 done      there is nothing left for it to do
#                 missed    when it was first asked for what it had not written yet
#   unclear       there are items that run, and of which no journal tells
#
# To make taken/N is to take the item, and to make begun/N is to begin it: only one can, and no item
# looks there, while some delete or move what is in children/, which is theirs. The last slot to end
# writes the file exit, as a runner does. A slot that was killed has no successor until some jobctl
# notices; then an item that was taken, but never begun, is given back, and new slots are started.
# Nobody takes begun/N away: so no item runs twice, whatever else was damaged or misjudged.
#
# Where something has damaged the folder, the job ends all the same: items that cannot be taken any
# more, and those whose record is gone, have failed, once they do not run any more. A slot whose
# folder is gone makes another one.
#
# Descriptor 9 holds the lock of the job, which is free when no slot lives; 5 is the journal.

# shellcheck disable=SC2317,SC2034  # runner.sh calls the functions, and uses the variables
jobctl_exports=$(export -p) # some of it may have the names of our variables
set -u

unrecorded='damaged: the folder slots/ does not tell what became of it'
here=${0%/*}
export jobctl_sourced=1
# shellcheck source=/dev/null
. "$here/runner.sh"
unset jobctl_sourced
# shellcheck source=/dev/null
. "$here/slots.sh"
# Set by functions of runner.sh, and by the spec.
own='' born='' begun='' found='' started='' pid='' ticks='' boot='' boot_now='' known='' now=''
place='' host_now='' keeper='' keeper_ticks='' slot_fate='' short=''
uptime='' killed='' refusal='' instant=''
jobctl_dir='' jobctl_tools=${jobctl_tools-} jobctl_own='' jobctl_born='' jobctl_attempt='' jobctl_now='' jobctl_uptime=''
children='' on_finish='' retries=0 timeout='' timeout_text='' stdin='' caller='' instance_id=''

# --- what differs from the runner of one command --------------------------------

# Sets pid, ticks and place, as load_run does, to those of the command of item $1.
locate() {
    load_run .
    [ "$1" != 0 ] || return 0
    pid='' ticks='' waiter=''
    for slot in slots/[1-9]*; do
        # Without a record of its slot, from after the start of the system or before, by its cookie.
        if ! slot_self "$slot" || [ "$place" != here ]; then continue; fi
        last_begun "$slot"
        [ "$begun" = "$1" ] || continue
        ! still_runs "$keeper" '' || pid=$found ticks=$born
    done
    place=here
}

# Sets own to the pid of this very process, without reading what is only needed elsewhere: sh
# reads byte by byte.
itself() {
    if cd -P /proc/self 2>/dev/null; then
        own=${PWD##*/} born=-
    else
        self
    fi
}

# Prints the sessions that the slots lead or led, for number 0: items have none of their own.
sessions_of() {
    [ "$1" = 0 ] || return 0
    for slot in slots/[1-9]*; do
        slot_self "$slot" && [ "$place" = here ] && put_line "session 0 $keeper $keeper_ticks"
    done
}

# The last of command_itself before it becomes the command: says which item it is.
note_begun() {
    JOBCTL_ID=$JOBCTL_ID.$jobctl_number
    JOBCTL_INSTANCE_ID=$jobctl_cookie
    JOBCTL_ITEM=$jobctl_item
    JOBCTL_PROGRESS=$jobctl_dir/children/$jobctl_number.progress
    export JOBCTL_ID JOBCTL_INSTANCE_ID JOBCTL_ITEM JOBCTL_PROGRESS
    # Who gives it back holds the lock or, on a host, has seen that the slot is dead.
    kill -s 0 "$$" || exit 1
    [ "$jobctl_attempt" != 1 ] || begin_once "$jobctl_dir/begun"
    note "$jobctl_number B $jobctl_own $jobctl_born $jobctl_attempt $jobctl_now ${jobctl_uptime:--}"
    exec 5>&- 9>&-
    # Who stops it makes one of these, then reads the journal; here it is the other way round.
    if [ -e "$jobctl_dir/stop" ] && [ ! -e "$jobctl_dir/children/$jobctl_number.stop" ]; then
        read -r jobctl_line <"$jobctl_dir/stop"
        put_line "${jobctl_line:-stopped by user}" >"$jobctl_dir/children/$jobctl_number.stop"
    fi
    [ ! -e "$jobctl_dir/children/$jobctl_number.stop" ] || kill -s TERM "$jobctl_own"
    # Its slot leads a session already.
    jobctl_leader=none
}

# Returns once the item is marked, in folder $1, as one that has begun; ends if it is already.
begin_once() {
    set -C
    until true >"$1/$jobctl_number" || [ ! -d "$1" ]; do
        [ ! -e "$1/$jobctl_number" ] || exit "$jobctl_not_ours"
        load command && wait_for_room
    done 2>/dev/null
    set +C
}

# Sleeps for $1 seconds; ends, with what it is for, when there is nothing left to watch.
doze() {
    trap 'kill -s KILL ${!-}; exit' TERM
    sleep "$1" &
    wait $!
    [ ! -s exit ] && [ ! -e stop ] || exit
    [ -n "$watched" ] || return 0
    locate "$watched"
    [ -n "$pid" ] || exit
}

time_is_up() {
    plain "children/$jobctl_number.timedout"
    echo >"children/$jobctl_number.timedout"
    terminate 1000 "$jobctl_number:$jobctl_cookie"
}

caller_has_ended() {
    end_items 1000 'stopped: the process that started it ended' "0:$instance_id"
}

# Sets cookie to that of item $1.
cookie() {
    digits=000000000000$1
    cookie=${instance_id%????????????}${digits#"${digits%????????????}"}
}

# --- a slot -------------------------------------------------------------------

slots() {
    cd -- "$1" || exit 125
    [ -z "${4-}" ] || kill -s KILL "$4"
    dir=$PWD jobctl_dir=$PWD jobctl_slot=$2 last=$3
    make_slot "slots/$2" || exit 125
    exec 3>&1 >/dev/null 2>>"slots/$2/log" 5>>"slots/$2/journal" </dev/null
    trap : HUP INT QUIT TERM
    trap '' PIPE
    boot
    self
    itself_line="$own $born $boot_now $host_now"
    put_line "$itself_line" >"slots/$2/self" && put_line "$itself_line" >&5 || exit 125
    instance_id='' argv='' words='' script='' text='' init='' cwd=/ umask=022 stdin=/dev/null merge=''
    timeout='' timeout_text='' retries=0 after='' after_ok='' caller='' on_finish='' watched=''
    jobctl_not_ours=125 # no command of ours ends so without having begun
    item_argv='' item_text='' same_command='' jobctl_judged='' children=0 told='' share='' whole=''
    # shellcheck source=/dev/null
    . ./spec
    [ -z "$whole" ] || instance_id=$whole # of a share of it
    # shellcheck disable=SC2034  # for command_itself
    argv=$item_argv text=$item_text told_time=''
    refusal=''
    if [ "$2" = 1 ] && [ -n "$after$after_ok" ]; then
        printf "boot='%s'\nhost='%s'\n" "$boot_now" "$host_now" >run
        load after
        await_others
        [ ! -e stop ] || refusal=stopped
        rm -f run
    fi
    [ -z "$refusal" ] || note_stop "$refusal" stop
    if [ -n "$caller" ] && [ "$2" = 1 ]; then
        trap - TERM
        when_caller_ends 2>/dev/null 3>&- 5>&- 9>&- &
        trap : TERM
    fi
    next=$2
    while [ "$next" -lt "$last" ]; do
        next=$((next + 1))
        another "$next"
    done
    # Before the items, each of which is run in a shell of its own.
    clock
    [ "$script" != executable ] || load command
    self() { itself; }
    # shellcheck disable=SC2119
    serve_items
    [ -z "$share" ] || linger
    finish
}

# On a host, more items may come. There is a gap between a last look and the end of a slot: so
# it says that it is done, then looks once more, and who brings items does it the other way round.
# shellcheck disable=SC2119
linger() {
    looks=0
    while [ "$looks" -lt 40 ] && [ ! -e stop ]; do
        pause
        looks=$((looks + 1))
        ! news || { serve_items; looks=0; }
    done
    note_done
    if [ ! -e stop ] && news; then
        rm -f "slots/$jobctl_slot/done"
        serve_items
        linger
    fi
}

# `:` would end the shell if that cannot be written.
note_done() {
    recorded || go_on_in_another
    true >"slots/$jobctl_slot/done"
}

# Makes folder $1 of a slot where it is not there any more.
make_slot() {
    [ ! -d "$1" ] || return 0
    [ -d slots ] || rm -rf slots
    mkdir -p "$1"
}

# Succeeds if there are items that this slot has not looked at.
news() {
    for block in items/[0-9]*; do
        block=${block##*/}
        case $block in *[!0-9]*) continue ;; esac
        eval "[ \"\${seen_$block-}\" ]" || return 0
    done
    return 1
}

# Starts slot $1 in a session of its own. Not in the background, where sh has INT and QUIT
# ignored for good: it ends the subshell that waits for it.
another() {
    (
        self
        (
            set -- /bin/sh "$here/items.sh" slots "$dir" "$1" "$1" "$own"
            exec >/dev/null 3>&- 5>&-
            # As we were begun: what is ignored then, sh never changes.
            trap - PIPE
            unset PATH LC_ALL
            eval "$jobctl_exports"
            find_leader
            [ -z "$jobctl_leader" ] || exec "$jobctl_leader" "$@"
            [ ! -x /usr/bin/perl ] ||
                exec /usr/bin/perl -e 'use POSIX; POSIX::setsid(); exec @ARGV' "$@"
            exec "$@"
        )
        :
    )
}

# shellcheck disable=SC2120  # a block of items sets the arguments
serve_items() {
    expected=1
    # shellcheck disable=SC2012  # they are numbers
    for block in $(ls items | sort -n); do
        if [ -n "$share" ]; then
            eval "[ -z \"\${seen_$block-}\" ]" || continue
            eval "seen_$block=1"
        fi
        # One that is missing: what brought it brings it again; here, nobody does.
        [ -n "$share" ] || [ "$block" = "$expected" ] || break
        { [ -f "items/$block" ] && [ -r "items/$block" ]; } || continue
        # shellcheck source=/dev/null
        . "./items/$block"
        jobctl_number=$block
        for jobctl_item in "$@"; do
            [ ! -e stop ] || return
            if take; then
                run_item
                # What is wrong with it is wrong each time, and told of each item.
                [ -e "children/$jobctl_number.failure" ] || jobctl_judged=$same_command
                recorded || go_on_in_another
            elif [ -n "$lacking" ]; then
                # shellcheck disable=SC2119
                spans | fail_unrecorded "damaged: the folder $lacking is missing" CFXB
                return
            fi
            jobctl_number=$((jobctl_number + 1))
        done
        expected=$jobctl_number
    done
    # shellcheck disable=SC2119
    [ -n "$share" ] || [ "$expected" -gt "$children" ] ||
        spans | fail_unrecorded 'damaged: the folder items is missing' CFXB
}

# Succeeds if what this slot writes down is found: its folder may have gone, and another slot have
# made one of the same name, or its journal have been emptied, of which a part was sent already.
recorded() {
    [ -s "slots/$jobctl_slot/self" ] && [ -f "slots/$jobctl_slot/journal" ] || return 1
    jobctl_line=''
    read -r jobctl_line <"slots/$jobctl_slot/journal"
    [ "$jobctl_line" = "$itself_line" ]
} 2>/dev/null

# The folder of this slot is gone, and with it what it has written down. The new one has a number
# that none had: of the journals of others, part may have been sent to another computer.
go_on_in_another() {
    [ -f spec ] || exit 1 # the job was removed
    gone=slots/$jobctl_slot
    make_slot "$gone"
    true >"$gone/done"
    jobctl_slot=$((jobctl_slot + 1000000))
    until mkdir "slots/$jobctl_slot" 2>/dev/null; do
        [ -d "slots/$jobctl_slot" ] || exit 1
        jobctl_slot=$((jobctl_slot + 1))
    done
    put_line "$itself_line" >"slots/$jobctl_slot/self" || exit 1
    exec 5>>"slots/$jobctl_slot/journal"
    put_line "$itself_line" >&5 || exit 1
    until [ ! -f "$gone/journal" ] || lines_of "$gone/journal" >&5; do
        load command && wait_for_room
        echo >&5
    done
    begun_ones | fail_unrecorded "damaged: the folder $gone is missing" CFXB "$jobctl_number"
}

# Prints which items there are: lines of the first one, and how many follow each other.
# shellcheck disable=SC2120  # a block of items sets the arguments
spans() {
    [ -n "$share" ] || { put_line "1 $children"; return; }
    for block in items/[0-9]*; do
        block=${block#items/}
        case $block in *[!0-9]*) continue ;; esac
        # shellcheck source=/dev/null
        [ ! -f "items/$block" ] || (. "./items/$block" && put_line "$block $#")
    done
}

# Prints which items have begun, as spans does; all that were taken where that is not known.
begun_ones() {
    marks=begun
    [ -d begun ] || marks=taken
    printf '%s\n' "$marks"/[1-9]* | sed -n 's,^.*/\([0-9]*\)$,\1 1,p'
}

# Of the items on standard input, as spans prints them, writes down those as failed, with reason $1,
# of which no slot says one of the letters $2, and that do not run; item $3, if given, does not. Makes
# the file unclear if there are others that do. The end is another one with letter $4. Lines "begun" and
# a span are of items that are not meant.
fail_unrecorded() {
    [ -f spec ] || exit 1 # the job was removed
    clock
    mkdir -p slots/0
    # In this order: an item that ends meanwhile is found in a journal.
    { put_line "why $1"; sed 's/^/span /'; cookies | sed 's/^/cookie /'; journals; } |
        awk -v end="${4-F} - - $now ${uptime:--}" \
        -v letters="$2" -v over="${3-}" -v whole="${instance_id%????????????}" '
        NR == 1 { why = substr($0, 5); next }
        /^[1-9][0-9]* [BCFX] / { if (index(letters, $2)) known[$1] }
        /^span begun / { known[$3] }
        /^cookie / && index($3, whole) == 1 { runs[substr($3, length(whole) + 1) + 0] }
        /^span [1-9]/ { for (n = $2 + 0; n < $2 + $3; n++) asked[n] }
        END { for (n in asked) if (!(n in known)) {
                  if ((n in runs) && n != over) print n >"unclear"
                  else print "\n" n, end, why } }' >>slots/0/journal
}

# Succeeds if nobody else has item $jobctl_number, nor ever will. Sets lacking to the folder without
# which no item can be taken, if there is one.
take() {
    lacking=''
    [ ! -e "taken/$jobctl_number" ] || return 1
    [ -d taken ] || lacking=taken
    [ -d children ] || lacking=children
    [ -z "$lacking" ] || return 1
    tried=''
    while :; do
        set -C
        true >"taken/$jobctl_number"
        taken=$?
        set +C
        [ "$taken" -ne 0 ] && [ ! -e "taken/$jobctl_number" ] || return "$taken"
        if no_room_in taken; then
            load command && wait_for_room
        elif [ "$tried" ]; then
            return 1
        else
            tried=1 # there may have been none until now
        fi
    done
}

# Succeeds if no file can be made in folder $1 for want of room.
no_room_in() {
    complaint=$({ true >"$1/room"; } 2>&1)
    case ${complaint##*: } in
    *[Ss]pace* | *[Qq]uota*) ;;
    *) rm -f "$1/room" && false ;;
    esac
}

run_item() {
    cookie "$jobctl_number"
    jobctl_cookie=$cookie failures=children/$jobctl_number. attempt=0
    while :; do
        attempt=$((attempt + 1))
        try_item
        if [ "$code" = "$jobctl_not_ours" ]; then
            last_begun "slots/$jobctl_slot"
            [ "$begun" = "$jobctl_number" ] || return 0 # who has begun it tells its end
        fi
        verdict "$failures"
        if ! again "$failures" || [ ! -d children ] || [ -e stop ]; then break; fi
    done
    case $state in Completed) state=C ;; Stopped) state=X ;; *) state=F ;; esac
    [ -z "$killed" ] || code=-
    [ "$state" != F ] || [ -d children ] || reason='damaged: the folder children is missing'
    clock
    shorten "$reason"
    note "$jobctl_number $state $code ${signal:--} $now ${uptime:--} $short"
    [ -n "$told" ] || { say ended; told=1; }
}

# Writes line $1 into the journal, as soon as there is room on the disk. What a full one has taken of
# it ends with a newline of its own.
note() {
    put_line "$1" >&5 || until { echo && put_line "$1"; } >&5; do load command && wait_for_room; done
}

# To the starter, who wants to hear of the first item only.
say() {
    [ -n "$told" ] || put_line "$1" 2>/dev/null >&3
}

# Runs the command once. Sets code, and killed if a signal ended it.
try_item() {
    plain "children/$jobctl_number.stdout" "children/$jobctl_number.stderr"
    until true >>"children/$jobctl_number.stdout" && true >>"children/$jobctl_number.stderr"; do
        no_room_in children || break
        load command && wait_for_room
    done
    [ ! -s "slots/$jobctl_slot/log" ] || true >"slots/$jobctl_slot/log"
    time_watch='' killed=''
    if [ -n "$timeout" ]; then
        trap - TERM
        watched=$jobctl_number
        when_time_is_up 2>/dev/null 3>&- 5>&- 9>&- &
        time_watch=$!
        trap : TERM
    fi
    (command_itself) <"$stdin" >>"children/$jobctl_number.stdout" 2>>"children/$jobctl_number.stderr"
    code=$?
    judge "slots/$jobctl_slot/log"
    unbegun
    if [ -n "$time_watch" ]; then
        [ -e "children/$jobctl_number.timedout" ] || kill "$time_watch" 2>/dev/null
        wait "$time_watch"
    fi
}

# Prints what all slots have written down.
journals() {
    set --
    for slot in slots/*; do
        [ ! -f "$slot/journal" ] || set -- "$@" "$slot/journal"
    done
    [ $# -eq 0 ] || lines_of "$@"
}

# There is nothing left for this slot. The last one writes down how the job ended.
finish() {
    note_done
    [ -z "$share" ] || exit 0
    for slot in slots/[1-9]*; do
        [ ! -e "$slot/done" ] || continue
        slot_self "$slot" || exit 0 # it is about to begin
        if [ "$place" = elsewhere ] || alive "$keeper" "$keeper_ticks" "$place"; then exit 0; fi
        # It was killed. What it ran may go on: jobctl will notice.
        last_begun "$slot"
        [ -z "$begun" ] || exit 0
    done 2>/dev/null
    [ ! -s exit ] || exit 0
    ended=$(journals | awk '
        $2 == "B" || $1 in seen { next }
        { count++; seen[$1] = 1 }
        $2 == "F" && (!failed || $1 + 0 < failed) { failed = $1 + 0; why = cut() }
        $2 == "X" && (!stopped || $1 + 0 < stopped) { stopped = $1 + 0; because = cut() }
        END { if (failed) print count " Failed " why
              else if (stopped) print count " Stopped " because
              else print count + 0 " Completed " }
        function cut(  i, text) {
            text = $0
            for (i = 0; i < 6; i++) sub(/^[^ ]* /, "", text)
            return text
        }')
    state=${ended#* } reason=${ended#* * }
    state=${state%% *}
    if [ "${ended%% *}" -lt "$children" ]; then
        # Else an item that a killed slot had, or one for which there was no room on the disk.
        [ -e stop ] || exit
        [ "$state" = Failed ] || { state=Stopped && read -r reason <stop; }
    fi
    (set -C && true >concluded) 2>/dev/null || exit
    settle "$state" '' '' "$reason"
    code=''
    # Without the folder, no item can be taken.
    [ -z "$on_finish" ] || { rm -rf taken; load after; announce >>log 2>&1 3>&- 5>&- 9>&-; }
    rm -rf env env.odd exit.new run taken begun unclear
}

# --- from outside -------------------------------------------------------------

# Sets jobs to the items $@, and, where that is number 0, to those that run or left something, too.
with_what_lives() {
    jobs=$*
    case $jobs in 0:*) ;; *) return ;; esac
    instance_id=${jobs#0:}
    for slot in slots/[1-9]*; do
        last_begun "$slot"
        [ -z "$begun" ] || { cookie "$begun" && jobs="$jobs $begun:$cookie"; }
    done
    # Other items of a job on hosts may run in another folder of this machine.
    share=$(grep -s "^share='1'" spec)
    jobs=$({
        printf '%s\n' "$jobs" | tr ' ' '\n'
        { [ -z "$share" ] || spans; cookies | sed 's/^/cookie /'; } |
            awk -v share="$share" -v whole="${instance_id%????????????}" '
                /^[1-9]/ { for (n = $1; n < $1 + $2; n++) ours[n] }
                /^cookie / && whole != "" && index($3, whole) == 1 {
                    n = substr($3, length(whole) + 1) + 0
                    if (share == "" || n in ours) print n ":" $3
                }'
    } | sort -u | tr '\n' ' ')
}

# Ends the items after $1, the hundredths of a second from TERM to KILL, and $2, the reason. Sets
# known to what is left.
end_items() {
    grace=$1 reason=$2
    shift 2
    # It is written before it is read what runs: see note_begun.
    case $1 in
    0:*)
        [ -s exit ] || note_stop "$reason" stop
        [ ! -s stop ] || IFS= read -r reason <stop
        ;;
    esac
    with_what_lives "$@"
    for job in $jobs; do
        stop=children/${job%%:*}.stop
        [ "${job%%:*}" = 0 ] || note_stop "$reason" "$stop"
    done
    # shellcheck disable=SC2016,SC2034  # of each; runner.sh asks
    stops='"children/$number.stop"'
    # shellcheck disable=SC2086  # each is a word
    terminate "$grace" $jobs
} 2>/dev/null

stop_items() {
    cd -- "$1" || return # it was removed
    grace=$2
    shift 2
    IFS= read -r reason
    boot
    end_items "$grace" "$reason" "$@"
    for member in $known; do
        put_line "${member%%/*}"
    done | sort -u
    case $1 in 0:*) [ -z "$share" ] || [ ! -f spec ] || withdraw ;; esac
}

# Of a share that was stopped, writes down as stopped what no slot has begun, once none lives that could.
# So it is always a line in a journal that tells of an end, and it comes after what the item wrote.
withdraw() {
    load_whole
    [ -n "$share" ] && [ -e stop ] && no_slot_lives || return 0
    reason_in stop || reason='stopped by user'
    shorten "$reason"
    # shellcheck disable=SC2119
    { spans; begun_ones | sed 's/^/begun /'; } | fail_unrecorded "$short" CFXB '' X
}

# Succeeds as soon as no slot lives, or is about to; fails if that takes more than ten seconds.
no_slot_lives() {
    instant
    limit=$((instant + 1000))
    while :; do
        living=''
        for slot in slots/[1-9]*; do
            [ -d "$slot" ] || continue
            judge_slot "$slot"
            case $slot_fate in living | elsewhere | begins) living=1 && break ;; esac
        done
        [ -n "$living" ] || return 0
        instant
        [ "$instant" -lt "$limit" ] || return 1
        pause
    done
}

# Sets instance_id to that of the whole job, and share if this is a share of it.
load_whole() {
    [ -f spec ] || exit 1 # the job was removed
    instance_id='' whole='' share=''
    # shellcheck source=/dev/null
    . ./spec
    instance_id=${whole:-$instance_id}
}

send_items() {
    cd -- "$1" || return
    name=$2
    shift 2
    boot
    self
    begun=" $({ begun_ones | sed 's/1$/B/'; journals; } | awk '$2 ~ /^[BCFX]$/ && !seen[$1]++ { print $1 }' | tr '\n' ' ')"
    chosen=''
    for job in "$@"; do
        number=${job%%:*}
        case $number$begun in
        *" $number "* | 0*[1-9]*) chosen="$chosen $job" ;;
        *) put_line "$number:unbegun" ;;
        esac
    done
    # shellcheck disable=SC2086  # each is a word
    with_what_lives $chosen
    # shellcheck disable=SC2016,SC2034  # of each; runner.sh asks
    signals='"children/$number.signals"'
    # shellcheck disable=SC2086  # each is a word
    signal_all "$name" $jobs
}

# Writes down the items that are lost with their slots as failed, and gives back those that
# were taken and not begun. Who calls this starts other slots.
mend() {
    cd -- "$1" || exit 125
    boot
    load_whole
    [ ! -e highest ] || restore_slots .
    rest=''
    for slot in slots/[1-9]*; do
        judge_slot "$slot"
        case $slot_fate in finished) continue ;; dead) mend_slot "$slot" && continue ;; esac
        rest=1 # what was taken may be about to begin
    done
    [ -n "$rest" ] || mend_items
}

# Writes down that the slot in folder $1, which is dead, does nothing more; fails if its item does.
mend_slot() {
    last_begun "$1"
    if [ -n "$begun" ]; then
        letter=F reason='lost: runner was killed'
        [ "$place" = here ] || reason='lost: host rebooted'
        cookie "$begun"
        [ "$place" != here ] || ! still_runs '' "$cookie" || return 1
        [ ! -f "children/$begun.stop" ] || {
            letter=X
            reason_in "children/$begun.stop" || reason='stopped by user'
        }
        clock
        mkdir -p slots/0
        plain slots/0/journal
        # Else, on a full disk, it is tried again.
        { echo && put_line "$begun $letter - - $now ${uptime:--} $reason"; } >>slots/0/journal || return 1
    fi
    # What stands at its end is no part of a line any more.
    [ ! -f "$1/journal" ] || echo >>"$1/journal" || return 1
    plain "$1/done"
    true >"$1/done"
}

# Gives back what no slot has begun, as none is left; of what has begun, every end was written down, or
# nobody does it any more.
mend_items() {
    rm -rf unclear
    # However many items there are, this takes so many processes. What is looked at later is known
    # better: an item is first taken, then begun, then in a journal.
    { printf '%s\n' taken/* begun/*; journals; } | awk -v marked="$([ ! -d begun ] || echo 1)" '
        /^taken\/[1-9][0-9]*$/ { taken[substr($0, 7)]; if (!marked) begun[substr($0, 7)] }
        /^begun\/[1-9][0-9]*$/ { begun[substr($0, 7)] }
        /^[1-9][0-9]* [BCFX] / { begun[$1]; if ($2 != "B") ended[$1] }
        END { for (n in taken) if (!(n in begun)) print "taken/" n
              for (n in begun) if (!(n in ended)) print n, 1 >"unclear" }' | xargs rm -rf
    [ -e unclear ] || return 0
    begun=$(cat unclear)
    rm -f unclear
    printf '%s\n' "$begun" | fail_unrecorded "$unrecorded" CFX
}

case ${1-} in
mend) shift && mend "$@" ;;
withdraw) cd -- "$2" && boot && withdraw ;;
slots) shift && slots "$@" ;;
stop) shift && stop_items "$@"; put_line 'done' ;;
signal) shift && send_items "$@"; put_line 'done' ;;
*)
    echo 'items.sh: slots, stop, signal, withdraw or mend' >&2
    exit 2
    ;;
esac
exit
