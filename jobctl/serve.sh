#!/bin/sh
# jobctl serve: the far end of a connection. Starts, stops and removes jobs that another
# computer has on this host, and sends their output there.
#
# Needs what runner.sh needs, which lies beside it, and mkdir, mkfifo and dd; stat and a
# tail that the kernel wakes spare it looking again and again.
#
#   sh serve.sh control STATE [MOST]  does what the lines of standard input say, and sends what
#                                     jobs write, but not MOST bytes or more of one at a time
#   sh serve.sh put STATE ID NAME     makes a file of job ID from standard input, and
#                                     prints its length
#
# STATE is the state directory. It is the current one; the jobs of other computers are in
# guest/, each in a folder called by its instance id and of the shape that runner.sh describes.
#
# control says "serving BOOT KILLS NOW UPTIME MARK HOST" first; KILLS is "kills" where jobs end at
# logout, NOW and UPTIME are seconds since 1970 and since BOOT, the latter - where that is not told.
#
# A line of standard input is a command of sh: one of the functions below with its words,
# quoted; $nl stands for a newline. Those with a TAG are answered once, in any order, by the
# line "TAG ok ...", "TAG no REASON", or "TAG away REASON" where only another machine that shares this
# state directory can do it; before, there may be lines "TAG more ...".
#
#   accept TAG ID SPEC ENV ODD H OUT ERR   start a job, unless that was done already, and carry
#                                      it: see there
#   share TAG ID SPEC ENV ODD          be ready for items of a job; prints how many CPUs there are.
#                                      Is not to be asked again once it was answered: where the
#                                      folder has gone since, some may have begun
#   feed TAG ID SLOTS COUNT N LINE     take so many items from the Nth on, as items.sh has them;
#                                      the REASON is "gone" where share has not been, or its folder
#                                      was removed. Where the job was stopped, they are journaled as
#                                      stopped
#   end_items TAG FOLDER GRACE REASON ITEM...   stop items, as items.sh names them; prints those of
#                                      which something is left. Number 0: those that were fed and
#                                      have not begun are journaled as stopped
#   signal_items TAG FOLDER NAME ITEM...        send them a signal; prints those not reached
#   end TAG FOLDER GRACE REASON JOB... stop jobs; prints those of which something is left
#   signal TAG FOLDER NAME JOB...      send them a signal
#   hit TAG NAME PID                   send a signal to the group that a process leads, or else to
#                                      it and all that descends from it
#   erase TAG PATH...                  delete finished jobs
#   ping TAG                           nothing: the answer, which goes through both processes, shows
#                                      that they live
#   survey TAG                         print all jobs: "job PATH LETTER OUT ERR SPEC RUN EXIT
#                                      RECEIVED LENGTH", then these four files, of so many bytes,
#                                      LENGTH in all, and a newline. LETTER is that of state, or =
#                                      where the job has ended
#
# Without TAG, and without an answer:
#
#   carry H PATH OUT ERR               send what the job in folder PATH writes, its streams from
#                                      these bytes on; with OUT -, no streams. H is a number of
#                                      the other side's choice
#   carry_items H PATH SLOTS JOURNALS ITEMS    the same for items: JOURNALS are words K:OFFSET,
#                                      ITEMS are N:OUT:ERR, where any of it was sent before;
#                                      SLOTS are to live while there are items
#   drop H                             carry it no longer
#   look                               look soon what is new
#
# What is sent of these jobs:
#
#   out H OFFSET LENGTH, err H ...     bytes of a stream follow, and a newline. The first of them,
#                                      up to 64 or all, were sent before: are they others now, the
#                                      job has emptied its stream meanwhile. Is the file found to
#                                      be shorter than it was, MARK comes right after the last byte
#   emptied H STREAM, emptied H N STREAM   the job, or item N, has emptied a stream, which begins
#                                      anew: its next offset is 0
#   run H LENGTH, progress H LENGTH    what the file holds now follows, and a newline
#   state H LETTER                     of the command: T or t, it is stopped, see proc_pid_stat(5);
#                                      R, it has begun; -, it has not; E, it runs on another
#                                      machine, which shares this state directory
#   exit H LENGTH                      the file exit follows, and a newline. All output that
#                                      there was at the end was sent before. H is free again.
#   gone H [FOLDER]                    the job, with items that folder of it, is not there (any more).
#                                      H is free again.
#   much H                             there is MOST or more to be sent. H is free again.
#   item H N STREAM OFFSET LENGTH      bytes of an item's output follow, and a newline
#   self H K LENGTH                    what the file self of a slot holds follows, and a newline
#   journal H K OFFSET LENGTH          lines of the journal of slot K follow, and a newline. What
#                                      the items that end in them wrote was sent before.
#
# control is two processes. The first one reads the requests. The second one, which is the only
# one to write to standard output, reads from a pipe, descriptor 7, what the first one has to
# say; what it is to do; when it is time to look; and which jobs have ended: their runners,
# begun by the first one, say so.

# The login's own variables, some of which may have the names of ours, and its umask.
jobctl_exports=$(export -p && umask)

set -u

nl='
'
given_umask=${jobctl_exports##*"$nl"} jobctl_exports=${jobctl_exports%"$nl"*}
here=${0%/*}
# Set by functions of runner.sh, or for them.
ear=/dev/fd/7 runner='' runner_ticks='' pid='' ticks='' condition='' instant='' boot_now='' own=''
place='' fate='' host_now='' because='' keeper_host='' slot_fate='' highest=''
# shellcheck disable=SC2034
born='' told_time='' now='' uptime=''
export jobctl_sourced=1
# shellcheck source=/dev/null
. "$here/runner.sh"
unset jobctl_sourced
# shellcheck source=/dev/null
. "$here/slots.sh"
boot
size='' skips='' since='' mark='' seen=''
find_leader

# --- requests -----------------------------------------------------------------

# Answers a request: $1 is its tag, and what there is to say.
answer() {
    put_line "say $1" >&7
}

# Has the other process do $1.
pass() {
    put_line "do $1" >&7
}

# Runs $@ in a shell beside this one, with one more word: the process that it is to kill.
# Not in the background, where sh has INT and QUIT ignored for good: what is run ends the
# subshell that waits for it.
beside() {
    from=$PWD
    # To read the pid would take a system call for each byte of a long line.
    (
        if cd -P /proc/self; then
            above=${PWD##*/}
            cd "$from" || exit
        else
            self
            above=$own
        fi
        ("$@" "$above")
        :
    ) 2>/dev/null
}

# Runs our script $1 with the words after it in a session of its own, with the login's own
# environment. Its process is no part of any job.
detached() {
    jobctl_script=$here/$1
    shift
    if [ -n "$jobctl_leader" ]; then
        set -- "$jobctl_leader" /bin/sh "$jobctl_script" "$@"
    elif [ -x /usr/bin/perl ]; then
        # shellcheck disable=SC2016  # of perl
        set -- /usr/bin/perl -e 'use POSIX; POSIX::setsid(); exec { $ARGV[0] } @ARGV' \
            /bin/sh "$jobctl_script" "$@"
    else
        set -- /bin/sh "$jobctl_script" "$@"
    fi
    umask "$given_umask"
    unset PATH LC_ALL
    eval "$jobctl_exports"
    exec </dev/null >/dev/null 6>&- 7>&-
    exec "$@"
}

# Sets why to why nothing, or not all, could be written in folder $1, in a clause.
why_not() {
    why=$({ mkdir -p "$1" && echo x | cat >"$1/try.$$"; } 2>&1) && why='is the disk full?'
    rm -f "$1/try.$$"
    why=${why##*: }
}

# Takes away the scripts of other releases that nobody has used for 30 days, if no process has them
# and no job is unfinished that is as old, be it on another machine with this home; and what an
# installation that was cut a day ago has left.
sweep_scripts() {
    found=$(cd "$here/.." && { find . -name 'used' -mtime +30; find . -name '*.[0-9]*' -prune -mtime +1; })
    [ -n "$found" ] || return 0
    specs=$(find guest jobs -name spec -mtime +29)
    for path in $specs; do
        path=${path%/spec}
        # Of others the slots, or the jobs on hosts, tell whether they have ended.
        [ -s "$path/exit" ] || [ -d "$path/slots" ] || [ -d "$path/children" ] || return 0
    done
    running=$(commands)
    for old in $found; do
        old=${old#./} old=${old%/used}
        case $old in "${here##*/}" | */* | '') continue ;; esac
        case $running in *"/lib/$old/"*) ;; *) rm -rf "${here%/*}/${old:?}" ;; esac
    done
}

# Prints the words of all processes.
commands() {
    if [ -r /proc/self/cmdline ]; then
        cat /proc/[0-9]*/cmdline | tr '\0' ' '
    else
        ps -A -ww -o args=
    fi
}

# Leaves nothing half written of the job in the current folder, which is ours to begin.
undo() {
    refused=1
    rm -f spec run
}

# Answers request $1: the job in folder $2 was not taken. Nothing of it stays here.
turn_down() {
    cd "$state" || exit
    (cd "$2" && rm -f spec.new env env.odd exit.new script stdin) 2>/dev/null
    why_not "$2"
    answer "$1 no cannot write in $state/$2: $why"
}

# Succeeds if $1 is the folder of one job. A computer whose record of a job is damaged is to reach
# no other one by it, and nothing that sh would take for more than a word.
ours() {
    case $1 in
    guest/*[!0-9A-Za-z-]* | jobs/*[!0-9A-Za-z-]*) false ;;
    guest/?* | jobs/?*) ;;
    *) false ;;
    esac
}

# Succeeds if $2 is the folder of one job; else answers request $1, if it has a tag.
is_ours() {
    ours "$2" || { [ -z "$1" ] || answer "$1 no $2 is no folder of a job"; false; }
}

# Succeeds if all jobs in folder $2 that request $1 names, after $3 words of its own, are such.
named_ours() {
    tag=$1 jobs=$2
    shift "$((3 + $3))"
    for job in "$@"; do is_ours "$tag" "$jobs/${job%%:*}" || return 1; done
}

accept() {
    is_ours "$1" "guest/$2" || return 0
    ours='' refused=''
    if [ ! -s "guest/$2/spec" ]; then
        if ! { mkdir -p "guest/$2" && cd "guest/$2" && plain stdout stderr progress && true >stdout && true >stderr && true >progress; }; then
            refused=1
        elif claim; then
            ours=1
            if ! { echo >exit.new && write_environment "$4" "$5" && add_umask "$3" >spec; }; then
                undo
            fi
        elif [ "$place" = elsewhere ] || alive "$runner" "$runner_ticks" "$place"; then
            :
        elif describe "$3" "$4" "$5"; then
            # Whoever had claimed it was killed. Of several that come now, one begins it.
            beside detached runner.sh begin "$PWD"
        else
            undo
        fi
    fi
    if [ "$refused" ]; then
        turn_down "$1" "guest/$2"
    elif [ "$ours" ]; then
        clock
        put_line "new $6 guest/$2 $7 $8" >&7
        answer "$1 ok"
        beside run_here "$6"
    else
        answer "$1 ok"
        carry "$6" "guest/$2" "$7" "$8"
    fi
    cd "$state" || exit
}

# Succeeds if the job in the current folder is ours to begin, as only one can make the file
# run; else loads that.
claim() {
    set -C
    { printf "runner='%s'\nrunner_ticks='%s'\nboot='%s'\nhost='%s'\n" \
        "$served" "$served_ticks" "$boot_now" "$host_now" >run; } 2>/dev/null
    set -- $?
    set +C
    [ "$1" -eq 0 ] || { load_run .; false; }
}

# Becomes the runner of the job in the current folder, which is carried by number $1. Here
# and not in a session of its own, as that takes two processes more.
run_here() {
    kill -s KILL "$2"
    exec 3>/dev/null </dev/null >/dev/null
    # shellcheck disable=SC2034  # runner.sh asks
    at_end="end $1"
    name_runner
    do_job
}

# Writes down a job in the current folder: what its spec says, its environment, the odd part.
describe() {
    write_environment "$2" "$3" && add_umask "$1" >spec.new
}

add_umask() {
    printf '%s' "${1}umask='$given_umask'$nl"
}

write_environment() {
    printf '%s' "$1" >./env && { [ -z "$2" ] || printf '%s' "$2" >env.odd; }
}

share() {
    is_ours "$1" "guest/$2" || return 0
    if [ ! -s "guest/$2/spec" ]; then
        mkdir -p "guest/$2" && cd "guest/$2" && mkdir -p items taken begun children slots &&
            describe "$3" "$4" "$5" && mv -f spec.new spec
        cd "$state" || exit
    fi
    if [ ! -s "guest/$2/spec" ]; then
        turn_down "$1" "guest/$2"
        return
    fi
    answer "$1 ok $(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1)"
}

feed() {
    is_ours "$1" "guest/$2" || return 0
    file=guest/$2/items/$5
    if [ ! -f "guest/$2/spec" ]; then
        answer "$1 no gone"
        return
    fi
    if lacks "guest/$2"; then
        answer "$1 no damaged: the folder $lacking is missing"
        return
    fi
    # Who brings it again has not heard of its items for long.
    [ ! -e "$file" ] || sh "$here/items.sh" mend "guest/$2" </dev/null 6>&- 7>&-
    plain "guest/$2/next"
    if [ -e "$file" ] || { printf '%s\n' "$6" >"guest/$2/next" && mv -f "guest/$2/next" "$file"; }; then
        if [ -e "guest/$2/stop" ]; then
            (sh "$here/items.sh" withdraw "guest/$2" </dev/null >/dev/null 6>&- 7>&- &)
        else
            more_slots "guest/$2" "$3" "$4"
        fi
        answer "$1 ok"
    elif lacks "guest/$2"; then
        answer "$1 no damaged: the folder $lacking is missing" # since we looked
    else
        why_not "guest/$2/items"
        answer "$1 no cannot write in $state/guest/$2/items: $why"
    fi
}

# Succeeds if one of the folders in $1, that of a job with items, is none any more, and sets lacking
# to its name.
lacks() {
    for lacking in items taken children slots; do
        [ -d "$1/$lacking" ] || return 0
    done
    return 1
}

# Succeeds if folder $1 is that of a job with items, whatever became of what is in it.
with_items() {
    [ -e "$1/items" ] || [ -e "$1/slots" ]
}

# Starts slots of the job in folder $1 until $2 live, but no more than $3.
more_slots() {
    living=0
    # Also of those whose folders are gone: part of what they wrote was sent under their numbers.
    restore_slots "$1"
    for slot in "$1"/slots/[1-9]*; do
        number=${slot##*/}
        # Longer ones slots have given to themselves.
        case $number in *[!0-9]*) continue ;; ??????*) ;; *) [ "$number" -le "$highest" ] || highest=$number ;; esac
        judge_slot "$slot"
        case $slot_fate in living | elsewhere | begins) living=$((living + 1)) ;; esac
    done
    wanted=$(($2 - living))
    [ "$wanted" -le "$3" ] || wanted=$3
    [ "$wanted" -gt 0 ] || return 0
    first=$((highest + 1)) last=$((highest + wanted)) made=''
    while [ "$highest" -lt "$last" ]; do
        highest=$((highest + 1))
        made="$made $1/slots/$highest"
    done
    plain "$1/highest"
    # shellcheck disable=SC2086  # without spaces
    put_line "$last" >"$1/highest" && mkdir $made && beside detached items.sh slots "$PWD/$1" "$first" "$last"
}

end_items() {
    is_ours "$1" "$2" || return 0
    (
        {
            # shellcheck disable=SC2030
            tag=$1 folder=$2 grace=$3 reason=$4
            shift 4
            cd "$folder" || { answer "$tag ok"; exit; }
            find_elsewhere "$@"
            if [ "$away" ]; then
                answer "$tag away $away"
                exit
            fi
            told_to stop items.sh "$tag" . "$grace" "$@"
        } &
    )
}

# Sets away to why some of the items $@ of the job in the current folder can only be ended
# elsewhere; 0: is all that slots have to do.
find_elsewhere() {
    away=''
    for slot in slots/[1-9]*; do
        if [ -e "$slot/done" ] || ! slot_self "$slot" || [ "$place" != elsewhere ]; then continue; fi
        last_begun "$slot"
        case " $*" in *" 0:"* | *" ${begun:-none}:"*) ;; *) continue ;; esac
        away="it runs on $keeper_host, which shares the state directory"
    done
}

signal_items() {
    is_ours "$1" "$2" || return 0
    away=$(cd "$2" && shift 3 && find_elsewhere "$@" && put_line "$away")
    if [ "$away" ]; then answer "$1 away $away"; else told_to signal items.sh "$@"; fi
}

killed='the process that was to do it there was killed; do it again'

# Has script $2 do $1 with the words after tag $3 and with $reason, and answers what it prints.
told_to() {
    verb=$1 script=$2 tag=$3
    shift 3
    printed='' finished=''
    # shellcheck disable=SC2031  # it is the same subshell
    for word in $(put_line "${reason-}" | sh "$here/$script" "$verb" "$@" 7>&-); do
        [ "$word" != 'done' ] || { finished=1 && continue; }
        printed="$printed $word"
        # What several write into a pipe stays whole to 4096 bytes.
        [ "${#printed}" -lt 3000 ] || { answer "$tag more$printed" && printed=''; }
    done
    if [ "$finished" ]; then answer "$tag ok$printed"; else answer "$tag no $killed"; fi
}

end() {
    named_ours "$1" "$2" 4 "$@" || return 0
    # The other requests are not to wait for its grace.
    (
        {
            tag=$1 jobs=$2 grace=$3 reason=$4
            shift 4
            told_to stop runner.sh "$tag" "$jobs" "$grace" "$@"
        } &
    )
}

signal() {
    named_ours "$1" "$2" 3 "$@" || return 0
    told_to signal runner.sh "$@"
}

hit() {
    kill -s "$2" -- "-$3" || {
        # It leads no group where the server makes none and there is no setsid. Those above
        # come first: they are not to go on when those below have ended.
        # shellcheck disable=SC2046  # numbers
        kill -s "$2" $(processes | awk -v top="$3" '
            { above[$1] = $2 }
            END {
                for (pid in above) {
                    at = pid
                    for (n = 0; at != top && (at in above) && n < 1000; n++) at = above[at]
                    if (at == top) print n, pid
                }
            }' | sort -n | sed "s/.* //")
    }
    answer "$1 ok"
}

erase() {
    tag=$1
    shift
    # The other requests are not to wait for what takes long to delete.
    (erase_each "$tag" "$@" &)
}

erase_each() {
    tag=$1
    shift
    for path in "$@"; do
        is_ours "$tag" "$path" || return 0
        if { [ -e "$path/spec" ] || [ -h "$path/spec" ]; } && [ ! -s "$path/exit" ] && ! with_items "$path"; then
            answer "$tag no it is not finished"
            return
        fi
        away=$(cd "$path/slots" 2>/dev/null && cd .. && find_elsewhere 0: && put_line "$away")
        if [ "$away" ]; then
            answer "$tag away $away"
            return
        fi
        # Aside first: who still looks at it makes none of its files anew.
        rm -f "$path/spec"
        rm -rf "$path.gone"
        [ ! -e "$path" ] || mv "$path" "$path.gone"
        rm -rf "$path.gone"
    done
    answer "$tag ok"
}

ping() {
    answer "$1 ok"
}

# The answer may be long.
survey() {
    pass "list_jobs $1"
}

carry() {
    is_ours '' "$2" || return 0
    pass "take_up $*"
}

carry_items() {
    is_ours '' "$2" || return 0
    # One by one, as the lists may be long.
    for entry in $4; do pass "sent_of_slot $1 ${entry%%:*} ${entry#*:}"; done
    for entry in $5; do pass "sent_of_item $1 ${entry%%:*} ${entry#*:}"; done
    pass "take_items $1 $2 $3"
}

drop() {
    pass "let_be $1"
}

look() {
    pass :
}

# --- what is sent -------------------------------------------------------------

list_jobs() {
    tag=$1
    [ "$size" ] || learn_sizes
    for spec in guest/*/spec jobs/*/spec; do
        path=${spec%/spec}
        [ -s "$spec" ] || continue
        ! with_items "$path" || continue
        case ${path##*/} in *[!0-9A-Za-z-]*) continue ;; esac # we make none that is called so
        note_loss "$path"
        if [ -s "$path/exit" ]; then letter='='; else note_condition "$path"; fi
        sizes_of "$path/stdout $path/stderr"
        # shellcheck disable=SC2086  # two numbers
        set -- $sizes
        record='' words="job $path $letter ${1%%,*} ${2%%,*}"
        for name in spec run exit received; do
            content=''
            [ ! -f "$path/$name" ] || read_text "$path/$name" 8000000
            record=$record$content words="$words ${#content}"
        done
        put_line "$words ${#record}"
        printf '%s\n' "$record"
    done
    put_line "$tag ok"
}

# If job folder $1 is unfinished and nothing of it lives, writes that down as its end.
note_loss() {
    judge_fate "$1"
    [ "$fate" != lost ] || settle_for "$1" Failed "$because"
}

# Sets letter to what the command of the job in folder $1, whose fate was judged, does: see `state`.
note_condition() {
    if [ "$fate" = elsewhere ]; then
        letter=E
    elif alive "$pid" "$ticks" "$place" && case $condition in [Tt]) ;; *) false ;; esac then
        letter=$condition
    elif has_begun "$1"; then
        letter=R
    else
        letter=-
    fi
}

# Succeeds if nothing of job $1, in folder $2, has been seen for some seconds. Of it a file is missing
# or damaged, to which because is set, so that no record tells whether it lives.
forsaken() {
    instant
    eval "since=\${alone_$1:=$instant}"
    waited=$((instant - since))
    [ "$waited" -ge 300 ] || return 1
    if held "$2" || cookies | grep -q " ${2##*/}\$"; then
        eval "alone_$1=$instant"
        return 1
    fi
    because='damaged: the file run cannot be read'
    [ -f "$2/spec" ] || because='damaged: the file spec cannot be read'
    # Its last act may have been to write down its end: one more look.
    [ "$waited" -ge 600 ]
}

# The numbers of the jobs carried, $carried, name variables: path_H, out_H and err_H (bytes
# sent), run_H and progress_H (sizes seen) and letter_H.
carried='' path='' out='' err='' run='' progress=''
# Of a job with items, $out_H is items, $slots_H how many slots it is to have, $active_H the
# numbers of those that run. $journal_H_K is what was sent of a journal, $out_H_N and $err_H_N of
# what an item wrote.
growing='' handle='' active='' wanted=''

take_up() {
    eval "path_$1=\$2 out_$1=\$3 err_$1=\$4 run_$1=0 progress_$1=0 letter_$1= alone_$1= asked_$1= stuck_out_$1= stuck_err_$1="
    carried="$carried $1"
}

sent_of_slot() {
    eval "journal_$1_$2=$3"
}

sent_of_item() {
    eval "out_$1_$2=${3%:*} err_$1_$2=${3#*:} active_$1=\"\${active_$1-} \$2\""
}

take_items() {
    eval "path_$1=\$2 slots_$1=\$3 out_$1=items lacks_$1= asked_$1= active_$1=\"\${active_$1-}\""
    carried="$carried $1"
}

let_be() {
    rest=''
    for other in $carried; do
        [ "$other" = "$1" ] || rest="$rest $other"
    done
    carried=$rest
}

stat_of_gnu='stat -L -c %s,%.9Y --'
# Sets sizes to those of the files $1, in bytes, each with the time of its last change. It and others find out only once, when that
# is needed, what the host's utilities can do: each process costs.
sizes_of() {
    sizes='' plain_ones=''
    [ -n "$1" ] || return 0
    for file in $1; do
        # What a job has put in the place of a file, or has deleted, has no bytes.
        { [ -f "$file" ] && [ -r "$file" ]; } || file=/dev/null
        plain_ones="$plain_ones $file"
    done
    # shellcheck disable=SC2086  # without spaces, all of them
    sizes=$(${size:-$stat_of_gnu} $plain_ones 2>/dev/null)
    if [ -z "$size$sizes" ]; then
        learn_sizes
        sizes_of "$1"
        return
    fi
    size=${size:-$stat_of_gnu}
    # shellcheck disable=SC2086  # without spaces, all of them
    have_as_many "$sizes" $plain_ones || sizes_of "$1" # one was deleted just now
}

# Succeeds if there are as many words in $1 as there are after it.
have_as_many() {
    words=$1
    shift
    count=$#
    # shellcheck disable=SC2086  # to split is the point
    set -- $words
    [ $# -eq "$count" ]
}

# Sets size to a command that prints the sizes of files, one a line, and when they last changed
# where it can: SIZE,TIME.
learn_sizes() {
    if [ "$($stat_of_gnu / 2>/dev/null)" ]; then
        size=$stat_of_gnu
    elif [ "$(stat -L -f %z,%Fm / 2>/dev/null)" ]; then
        size='stat -L -f %z,%Fm --'
    else
        size=count
    fi
}

count() {
    for counted in "$@"; do wc -c <"$counted"; done
}

# Sets skips if dd can begin and end at any byte.
learn_parts() {
    skips=no
    [ ! -r /proc/self/fdinfo/0 ] ||
        ! dd if=/dev/null of=/dev/null iflag=skip_bytes,count_bytes 2>/dev/null || skips=yes
}

# Sends bytes of descriptor 8 as a frame that begins with the words $1: from byte $2 on $3 of them, or
# fewer if there are not so many any more. Sets reached to the end of what was sent.
part() {
    if [ "$skips" = yes ]; then
        # The kernel tells how far dd has come in the file that we share with it.
        put_line "$1 $2 $3"
        reached=$2
        dd bs=1048576 skip="$2" count="$3" iflag=skip_bytes,count_bytes 2>/dev/null <&8
        while read -r key value _; do
            [ "$key" != pos: ] || reached=$value
        done </proc/self/fdinfo/8
        [ "$reached" -ge "$2" ] || reached=$2 # it was shorter than that
        [ "$reached" -eq $(($2 + $3)) ] || printf %s "$mark"
        echo
    else
        aside=part.$$
        bytes_from $(($2 + 1)) | head -c "$3" >"$aside"
        sizes_of "$aside"
        put_line "$1 $2 ${sizes%%,*}"
        cat "$aside"
        echo
        reached=$(($2 + ${sizes%%,*}))
        rm -f "$aside"
    fi
}

# Prints what descriptor 8 gives, from byte $1 on, the first being 1.
bytes_from() {
    tail -c "+$1" <&8
}

# Prints the last $1 bytes that descriptor 8 gives.
last_bytes() {
    tail -c "$1" <&8
}

# Sets content to what descriptor 8 gives, if these are $1 bytes, few, and without a NUL, which sh
# passes over. That takes no other process.
small_text() {
    [ "$1" -lt 2000 ] || return 1
    text_within "$(($1 - 1))"
    [ "${#content}" -eq "$1" ]
}

# Sets content to what descriptor 8 gives, line by line while these are no more than $1 bytes.
text_within() {
    content=''
    while [ "${#content}" -le "$1" ] && IFS= read -r line; do content=$content$line$nl line=''; done <&8
    content=$content$line
}

# Sets content to what file $1 holds, which is to be short, without NULs; to nothing if it is longer
# than $2 bytes, which the other side would not take.
read_text() {
    content=''
    reading text_within "$1" "$2"
    [ "${#content}" -le "$2" ] || content=''
}

# Sends what is new of stream $3 of job $1, or of its item $2: file $4, whose size and time are
# $5. No more than $6 bytes at once, and sets rest to what is left then, and took to the hundredths
# of a second if it took another process.
send_stream() {
    name=$3_$1${2:+_$2} bytes=${5%%,*} rest=0 took=''
    eval "from=\${$name:-0} seen=\${at_$name-}"
    [ "$bytes" -ne "$from" ] || { [ "$from" != 0 ] && [ "$5" != "$seen" ]; } || return 0
    [ "$bytes" -ge "$from" ] || {
        { [ -f "$4" ] && [ -r "$4" ]; } || return 0 # what was sent is all there will be
        put_line "emptied $1${2:+ $2} $3"
        from=0
    }
    # A disk that cannot read it, say: there is no more of it than has come.
    eval "stuck=\${stuck_$name-}"
    [ "$stuck" != "$5 3" ] || return 0
    moved=1 reached=$from
    if [ "$2" ]; then frame="item $1 $2 $3"; else frame="$3 $1"; fi
    if [ "$bytes" -eq 0 ]; then
        :
    elif reading small_text "$4" "$bytes"; then
        reached=$bytes
        put_line "$frame 0 $bytes"
        printf '%s\n' "$content"
    else
        [ "$skips" ] || learn_parts
        # What was sent last is sent once more: it shows that it is still there.
        begin=$((from > 64 ? from - 64 : 0))
        length=$((bytes - begin))
        [ "$length" -le "$6" ] || length=$6
        instant
        began=$instant
        reading part "$4" "$frame" "$begin" "$length"
        instant
        took=$((instant - began))
    fi
    if [ "$reached" -le "$from" ] && [ "$bytes" -gt "$from" ]; then
        case $stuck in "$5 "*) stuck=${stuck#* } ;; *) stuck=0 ;; esac
        eval "stuck_$name=\"\$5 $((stuck + 1))\""
    fi
    rest=$((bytes - reached))
    eval "$name=\$reached at_$name=\$5"
}

# Sends a stream as send_stream does, in pieces that grow while they go fast: others are not to
# wait long for their turn, nor are we to start a process for little.
send_piece() {
    send_stream "$1" '' "$2" "$3" "$4" "$piece"
    [ "$rest" -lt 65536 ] || more=1
    if [ "${took:-0}" -gt 30 ]; then
        [ "$piece" -le 65536 ] || piece=$((piece / 2))
    elif [ "$took" ] && [ "$rest" -gt 0 ] && [ "$piece" -lt 33554432 ]; then
        piece=$((piece * 2))
    fi
}

# Sends what file $3 holds, at most its last $4 bytes, as $2 of job $1; $5 is its size.
send_file() {
    if [ ! -f "$3" ]; then
        content=''
    elif [ "$5" -lt 2000 ]; then
        read_text "$3" "$4"
    else
        content=$(reading last_bytes "$3" "$4" | tr -d '\000'; echo .)
        content=${content%.}
    fi
    put_line "$2 $1 ${#content}"
    printf '%s\n' "$content"
}

# Sends the file exit of job $1, with a reason if there is none, but a stream could not be read.
send_exit() {
    unread=''
    eval "case \${stuck_out_$1} in *' 3') unread=stdout ;; esac"
    eval "case \${stuck_err_$1} in *' 3') unread=stderr ;; esac"
    content=''
    [ ! -f "$path/exit" ] || read_text "$path/exit" 60000
    case $content in
    *"reason=''"*) [ -z "$unread" ] || content="${content}reason='cannot read its $unread on the host'$nl" ;;
    esac
    put_line "exit $1 ${#content}"
    printf '%s\n' "$content"
}

# Looks once at the jobs $@, and sends what is new. Sets moved if there was output, and more
# if there is.
look_at_all() {
    moved='' more='' files='' looked='' growing=''
    for h in "$@"; do
        eval "path=\$path_$h out=\$out_$h"
        if [ "$out" = items ]; then
            if [ -f "$path/spec" ]; then look_at_items "$h"; else end_with "gone" "$h"; fi
        elif [ -d "$path" ]; then
            # What there is once it has ended is all there will be.
            ended=''
            [ ! -s "$path/exit" ] || ended=1
            looked="$looked $h:$ended"
            files="$files $path/stdout $path/stderr $path/run $path/progress"
        else
            end_with "gone" "$h"
        fi
    done
    sizes_of "$files"
    files=$plain_ones # to look at others could hang
    # shellcheck disable=SC2086  # numbers
    set -- $sizes
    for entry in $looked; do
        h=${entry%:*}
        [ $# -ge 4 ] || break
        look_at "$h" "${entry#*:}" "$@"
        shift 4
    done
}

# Says $1 of job $2, which ends its being carried.
end_with() {
    put_line "$1 $2"
    let_be "${2%% *}"
}

# Succeeds if more than $1 looks found nothing new, or if job $2 was not looked into for two seconds,
# as others may always have something new.
has_time() {
    instant
    eval "since=\${asked_$2:=$instant}"
    [ "$quiet" -gt "$1" ] || [ $((instant - since)) -ge 200 ] || return 1
    eval "asked_$2=$instant"
}

# Sends what is new of the items of job $1.
look_at_items() {
    eval "path=\$path_$1 active=\$active_$1 wanted=\$slots_$1"
    journals='' texts='' ended='' lives='' dead='' at=0 handle=$1
    # What its slots write down may not come any more. Those that live get three seconds to say so.
    if lacks "$path"; then
        instant
        eval "since=\${lacks_$1:=$instant}"
        if [ $((instant - since)) -ge 300 ]; then
            end_with "gone" "$1 $lacking"
            return
        fi
    fi
    due=''
    ! has_time 4 "$1" || { due=1 && restore_slots "$path"; }
    [ ! -e "$path/unclear" ] || dead=$due
    for slot in "$path"/slots/[0-9]*; do
        [ ! -f "$slot/journal" ] || journals="$journals $slot/journal"
        if [ "$due" ] && [ "${slot##*/}" != 0 ]; then
            judge_slot "$slot"
            [ "$slot_fate" != dead ] || dead=1
        fi
    done
    if [ -n "$dead" ]; then
        sh "$here/items.sh" mend "$path" </dev/null 6>&- 7>&-
        more_slots "$path" "$wanted" "$wanted"
    fi
    [ -n "$journals" ] || return 0
    sizes_of "$journals"
    # shellcheck disable=SC2086  # numbers
    set -- $sizes
    for journal in $journals; do
        [ $# -gt 0 ] || break
        slot=${journal%/journal}
        slot=${slot##*/}
        eval "at=\${journal_${handle}_$slot:-0}"
        if [ "${1%%,*}" -gt "$at" ]; then
            if [ $((${1%%,*} - at)) -le 1000000 ]; then
                text=$(reading bytes_from "$journal" $((at + 1)); echo .)
            else
                text=$(reading bytes_from "$journal" $((at + 1)) | head -c 1000000; echo .)
                more=1
            fi
            text=${text%.}
            text=${text%"${text##*"$nl"}"}
            eval "text_$slot=\$text"
            texts="$texts $slot"
            while read -r number letter _; do
                case $letter/$number in
                */ | */*[!0-9]*) ;;
                B/*) active="$active $number" ;;
                [CFX]/*) ended="$ended $number" ;;
                esac
            done <<EOF
$text
EOF
        fi
        shift
    done
    files_of='' listed=''
    for number in $ended $active; do
        case " $listed " in *" $number "*) continue ;; esac
        listed="$listed $number"
        files_of="$files_of $path/children/$number.stdout $path/children/$number.stderr"
    done
    sizes_of "$files_of"
    # shellcheck disable=SC2086  # numbers
    set -- $sizes
    unsent='' room=$most
    for number in $listed; do
        [ $# -ge 2 ] || break
        send_item "$number" out "$path/children/$number.stdout" "$1"
        send_item "$number" err "$path/children/$number.stderr" "$2"
        if [ "$room" -le 0 ]; then
            end_with much "$handle"
            return
        fi
        case " $ended " in *" $number "*) ;; *) lives="$lives $number" ;; esac
        shift 2
    done
    eval "active_$handle=\$lives"
    for slot in $texts; do
        # Not before all is sent of what ends in it.
        [ -z "$unsent" ] || { more=1; break; }
        eval "text=\$text_$slot at=\${journal_${handle}_$slot:-0}"
        [ "$at" -gt 0 ] || [ ! -s "$path/slots/$slot/self" ] || {
            reading read_words "$path/slots/$slot/self" line || line=''
            [ "${#line}" -le 4000 ] || line=''
            put_line "self $handle $slot ${#line}"
            put_line "$line"
        }
        put_line "journal $handle $slot $at ${#text}"
        printf '%s\n' "$text"
        eval "journal_${handle}_$slot=$((at + ${#text}))"
        moved=1
    done
    for number in $ended; do
        [ -z "$unsent" ] || break
        unset "out_${handle}_$number" "err_${handle}_$number" \
            "at_out_${handle}_$number" "at_err_${handle}_$number"
    done
    [ -z "$unsent" ] || eval "active_$handle=\"\$lives $ended\""
    growing="$growing $journals"
    for number in $lives; do
        growing="$growing $path/children/$number.stdout $path/children/$number.stderr"
    done
}

# Sends what is new of item $1 of job $handle: stream $2, file $3, size and time $4. Sets unsent
# if that is not all. What is taken as a whole there is not to be much.
send_item() {
    eval "from=\${$2_${handle}_$1:-0}"
    bytes=${4%%,*}
    [ "$bytes" -ge "$from" ] || from=0
    room=$((room - bytes + from))
    [ "$room" -gt 0 ] || return 0
    send_stream "$handle" "$1" "$2" "$3" "$4" 1048576
    [ "$rest" -eq 0 ] || unsent=1
}

# Sends what is new of job $1, of which $2 tells whether it has ended: sizes are $3 to $6.
look_at() {
    eval "path=\$path_$1 out=\$out_$1 err=\$err_$1 run=\$run_$1 progress=\$progress_$1"
    set -- "$1" "$2" "$3" "$4" "${5%%,*}" "${6%%,*}"
    [ "$5" = "$run" ] || { send_file "$1" run "$path/run" 1000000 "$5" && eval "run_$1=$5"; }
    [ "$6" = "$progress" ] || {
        eval "progress_$1=$6"
        send_file "$1" progress "$path/progress" 4096 "$6"
    }
    unsent=0
    if [ "$out" != - ]; then
        # Each by itself: one that was emptied does not make up for the other.
        out=$((${3%%,*} - (${3%%,*} < out ? 0 : out))) err=$((${4%%,*} - (${4%%,*} < err ? 0 : err)))
        if [ $((out + err)) -ge "$most" ]; then
            moved=1
            end_with much "$1"
            return
        fi
        send_piece "$1" out "$path/stdout" "$3"
        unsent=$rest
        send_piece "$1" err "$path/stderr" "$4"
        unsent=$((unsent + rest))
    fi
    if [ -z "$2" ]; then
        # To ask ps takes long.
        [ -r /proc/self/stat ] || has_time 3 "$1" || return 0
        note_loss "$path"
        case $fate in ended | unknown) ! forsaken "$1" "$path" || settle_for "$path" Failed "$because" ;; esac
        note_condition "$path"
        [ "$unsent" -gt 0 ] || eval "[ \"\$letter_$1\" = $letter ]" || {
            eval "letter_$1=$letter"
            put_line "state $1 $letter"
        }
        [ ! -s "$path/exit" ] || more=1
    elif [ "$unsent" -le 0 ]; then
        send_exit "$1"
        let_be "$1"
    else
        more=1
    fi
}

# Has a line come to descriptor 7 when one of the jobs' files grows, if there is a tail
# that the kernel wakes. It writes to descriptor 6 what it reads; that it does is enough.
arm() {
    [ "$wakes" ] || learn_wakes
    [ "$wakes" = yes ] && [ "$armed" != "$files$growing" ] || return 0
    disarm
    # shellcheck disable=SC2086  # without spaces, all of them
    tail $ending -q -n 0 -f $files $growing >&6 2>/dev/null &
    tail=$! armed=$files$growing
    [ -z "$listening" ] || return 0
    {
        [ ! -r /proc/self/fd/6 ] || exec 6</proc/self/fd/6
        dd bs=65536 count=1 <&6 >/dev/null 2>&1
        echo wake >"$ear"
    } >/dev/null &
    listening=$!
}

# Sets ending to how tail is told to end, within seconds, when we are killed; the others cannot be.
learn_wakes() {
    wakes=no ending=''
    case $(uname)$(tail --version 2>/dev/null) in
    Linux*GNU*) wakes=yes ending="--pid=$(exec sh -c 'printf %s "$PPID"') -s 5" ;;
    Darwin* | *BSD*) wakes=yes ;;
    *) return ;;
    esac
    own_pipe 6
}

disarm() {
    end_of "$tail"
    tail='' armed=''
}

# Ends, with all that we have in the background.
leave() {
    disarm
    [ -z "$listening" ] || echo >&6
    exit
}

# Ends our child $1, if any. KILL, as between fork and exec it has still our trap.
end_of() {
    [ -z "$1" ] || { kill -s KILL "$1" && wait "$1"; } 2>/dev/null
}

# Has the line "tick" come to descriptor 7 in $1 seconds.
tick_in() {
    serial=$((serial + 1))
    { [ "$1" = 0 ] || sleep "$1" 2>/dev/null || sleep 1; put_line "tick $serial" >"$ear"; } >/dev/null &
    ticker=$!
}

# Makes descriptor $1 a pipe that we both read and write. Where its two ends can be had of a
# here-document, that takes no process.
own_pipe() {
    eval "exec $1<<E${nl}nothing${nl}E$nl"
    if [ -p "/proc/self/fd/$1" ] && [ -w "/proc/self/fd/$1" ]; then
        eval "exec $1<>/proc/self/fd/$1; read -r nothing <&$1"
    else
        mkfifo "fifo.$$.$1" && eval "exec $1<>fifo.$$.$1" || exit 125
        rm -f "fifo.$$.$1"
    fi
}

# Sends what jobs write, until it is told that it is over. $1 is a process to kill.
carry_all() {
    kill -s KILL "$1"
    exec </dev/null
    # Where it can be had, one end only, so that it ends when nobody is left who could write: the
    # other process may be killed.
    [ ! -w /proc/self/fd/7 ] || { exec 7</proc/self/fd/7 && ear=/proc/self/fd/7; }
    trap leave PIPE TERM HUP INT
    wakes='' tail='' armed='' listening='' ticker='' serial=0 quiet=0 piece=262144
    while :; do
        # A runner has its end of the pipe, too: so it may not end with the other process.
        kill -s 0 "$served" || leave
        # shellcheck disable=SC2086  # without spaces, all of them
        look_at_all $carried
        # Soon again while something comes; then we sleep until the kernel wakes us, but
        # for a look now and then: not everything that can happen makes a file grow.
        if [ "$more" ]; then
            quiet=0 && tick_in 0
        elif [ "$moved" ]; then
            quiet=0 && tick_in 0.03
        elif [ "$carried" ]; then
            quiet=$((quiet + 1))
            case $quiet in
            1 | 2) tick_in 0.05 ;;
            3) arm && tick_in 0.05 ;;
            4) tick_in 0.2 ;;
            *)
                arm
                if [ "$wakes" != yes ]; then
                    tick_in 0.2
                elif [ -n "$growing" ]; then
                    tick_in 0.5 # what is to grow next is not known
                else
                    tick_in 2
                fi
                ;;
            esac
        elif [ "$ear" = /dev/fd/7 ]; then
            tick_in 5 # the pipe does not end, as we could write to it
        fi
        hear
    done
}

# Reads descriptor 7 until there is something to do.
hear() {
    while read -r word rest <&7; do
        case $word in
        say) printf '%s\n' "$rest" && continue ;;
        do) eval "$rest" && quiet=0 ;;
        new)
            # It may end soon, and will say so. If it does not, the other side says when to
            # look: sleep would be one more process for each job.
            eval "take_up $rest" && quiet=0 && continue
            ;;
        end)
            case " $carried " in *" $rest "*) look_at_all "$rest" ;; *) continue ;; esac
            [ "$more" ] || continue
            ;;
        wake) listening='' quiet=0 && disarm ;;
        tick) [ "$rest" = "$serial" ] || continue ;;
        over) leave ;;
        esac
        end_of "$ticker"
        ticker=''
        return
    done
    leave
}

# --- what to do ---------------------------------------------------------------

cd -- "$2" && { [ -d guest ] || mkdir -p guest; } || exit 125
state=$PWD
case $1 in
control)
    exec 2>/dev/null
    most=${3:-99999999999999999}
    kills=spares
    if [ -d /run/systemd/system ] && grep -qs '^ *KillUserProcesses *= *\(yes\|true\|on\|1\)' \
        /etc/systemd/logind.conf /etc/systemd/logind.conf.d/*.conf &&
        [ ! -e "/var/lib/systemd/linger/$(id -un)" ]; then
        kills=kills
    fi
    clock
    read -r mark </proc/sys/kernel/random/uuid || mark=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')
    mark=jobctl-short-$mark
    put_line "serving $boot_now $kills $now ${uptime:--} $mark $host_now"
    own_pipe 7
    self
    served=$own served_ticks=$born
    beside carry_all
    # Nowhere else is there anything that is ours to take away.
    brought=''
    case $here in
    "$2"/lib/*)
        brought=1
        true >"$here/used"
        set -- "$here"/../*
        [ $# -eq 1 ] || (sweep_scripts </dev/null >/dev/null 7>&- &)
        ;;
    esac
    set -- guest/*.gone # that nobody deletes any more
    [ ! -e "$1" ] || (rm -rf "$@" >/dev/null 7>&- &)
    # If the other one ends, so does the output.
    exec >/dev/null
    while IFS= read -r line; do
        # Another release may have taken them away, on a machine that does not see this process.
        [ -d "$here" ] || exit
        [ -z "$brought" ] || true >"$here/used"
        eval "$line"
    done
    echo over >&7
    ;;
put)
    ours "guest/$3" || exit 125
    # Aside: the job may be reading it already, if only the answer to accept was lost.
    file=guest/$3/$4
    learn_sizes
    # The size comes last: who reads it has the job begin.
    if mkdir -p "guest/$3" && cat >"$file.$$" && chmod 700 "$file.$$" && mv -f "$file.$$" "$file"; then
        sizes_of "$file" && put_line "${sizes%%,*}"
    else
        rm -f "$file.$$"
    fi
    ;;
esac
