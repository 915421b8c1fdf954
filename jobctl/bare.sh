#!/bin/sh
# jobctl where there is no Python: the same commands, on the same job folders.
#
#   sh bare.sh start|get|receive|wait|stop|remove ...     sh bare.sh --help says more
#
# For a host with nothing but a POSIX sh. The state directory is the one that the full
# jobctl would use (place.sh), and a job is the same folder in it: either may start what the other
# one receives or stops. runner.sh, beside this file, runs the jobs, says what is in their
# folders, and lends its functions. These files are not its own:
#   last, in the state directory    the highest id given out, 20 digits; and last.copy,
#                                   should one of them be harmed
#   received, in a job's folder     how much was received: stdout, stderr (bytes), told
#                                   (the reason of a failed job), returned (ranges before
#                                   the marks that did not arrive: STREAM:START-END ...)
# Both are changed in place, under the lock of flock(1), else under one of our own.
#
# Besides what runner.sh needs: cat, chmod, dd, env, id, ls, mkdir, sed, sort, xargs.
#
# What is less here: a reader that leaves takes with it what it left in the pipe; a slow one
# holds up others that receive from the same job; nothing is synced to the disk; variables
# whose names sh cannot hold may be lost; and without setsid and perl a job is deaf to INT
# and QUIT.

# --- the caller's environment -------------------------------------------------

# Prints what matches the names of variables that sh cannot hold, keeps for itself, or behaves
# differently by: see draft.py.
odd_names() {
    printf %s '^(BASH(OPTS|PID|_.*)|DIRSTACK|E?[GU]ID|EPOCH(REALTIME|SECONDS)|EXECIGNORE' \
        '|FUNC(NAME|NEST)|GLOB(IGNORE|SORT)|GROUPS|HISTCMD|IFS|KSH.*|LINENO|OPTIND' \
        '|PERL(5OPT|_BADLANG|_UNICODE)|PGRP|PIPESTATUS|PPID|PS4|S?RANDOM|SECONDS|SHELLOPTS|TMOUT|USER(NAME|_ID)' \
        '|jobctl_.*|[0-9].*|.*[^A-Za-z0-9_].*)$'
}

# Prints what goes into the file env, or, with $1, into env.odd. Before anything else: our
# variables may have the names of the caller's. PATH and LC_ALL go another way: see detached.
environment() {
    PATH=/usr/bin:/bin:/usr/sbin:/sbin LC_ALL=C awk -v odd="$1" -v own="$(odd_names)" \
        -v gawks="${AWKPATH+x}${AWKLIBPATH+x}" '
        BEGIN {
            for (name in ENVIRON) {
                if (name ~ /^(_|PWD|PATH|LC_ALL|JOBCTL_(ITEM|PROGRESS|RUNNER))$/) continue
                if (name ~ /^AWK(LIB)?PATH$/ && gawks == "") continue # it adds them itself
                value = name "=" ENVIRON[name]
                gsub("\047", "\047\\\047\047", value)
                if ((name ~ own) != (odd != "")) continue
                if (odd) printf "\047%s\047 ", value
                else print "export \047" value "\047"
            }
        }'
}
[ "${1-}" != start ] || { jobctl_exports=$(environment '') jobctl_odd=$(environment odd); }

caller_umask=$(umask)
unset TIME_STYLE QUOTING_STYLE BLOCK_SIZE LS_BLOCK_SIZE # alter what ls prints
case $0 in */*) home=$(CDPATH='' cd -- "${0%/*}" && pwd) ;; *) home=$PWD ;; esac
# shellcheck disable=SC2034  # runner.sh asks
jobctl_sourced=1
# shellcheck source=/dev/null
. "$home/runner.sh"
verb='' newline='
'
# Whether of several jobs of one name only the newest is meant.
alone=''
# What its functions set.
boot_now='' own='' born='' condition='' instant='' now='' uptime='' d='' w='' s=''
host='' host_now='' place='' fate='' because='' pid=''

# --- text ---------------------------------------------------------------------

# Functions of awk, which reads bytes here.
# shellcheck disable=SC2016  # of awk
library='
BEGIN { for (i = 1; i < 256; i++) ord[sprintf("%c", i)] = i }

# Returns the length of the UTF-8 sequence at s[i], 0 where none is, and sets code.
function sequence(s, i,   w, k, d) {
    code = ord[substr(s, i, 1)]
    if (code < 128) return 1
    w = code < 194 ? 0 : code < 224 ? 2 : code < 240 ? 3 : code < 245 ? 4 : 0
    code -= w == 2 ? 192 : w == 3 ? 224 : 240
    for (k = 1; k < w; k++) {
        d = ord[substr(s, i + k, 1)]
        if (d < 128 || d > 191) return 0
        code = code * 64 + d - 128
    }
    if (w == 3 && (code < 2048 || (code >= 55296 && code < 57344))) return 0
    return w == 4 && (code < 65536 || code > 1114111) ? 0 : w
}

# Returns s as it goes between the quotes of JSON; without json as one line, with what could
# steer a terminal escaped. In pieces: to look at a character, or to append one, may take the
# time of the whole length.
function escaped(s, json,   i, n, from, out, piece, left, done) {
    if (s !~ /[^ -~]/ && !(json && s ~ /["\\]/)) return s
    n = length(s)
    for (from = 1; from <= n; from += i - 1) {
        piece = substr(s, from, 400)
        left = from + 399 < n ? 396 : length(piece)
        for (i = 1; i <= left; i += width) done = done character(piece, i, json)
        out = out done
        done = ""
    }
    return out
}

# Returns the same of the character at s[i], and sets width to its length.
function character(s, i, json,   w, c) {
    w = sequence(s, i)
    width = w ? w : 1
    c = substr(s, i, width)
    if (!w) return sprintf(json ? "\\udc%02x" : "\\x%02x", ord[c])
    if (code > 31 && json) return (code == 34 || code == 92 ? "\\" : "") c
    if (code > 31 && code < 127) return c
    if (code == 9 || code == 10 || code == 13) return code == 9 ? "\\t" : code == 10 ? "\\n" : "\\r"
    if (code < 160) return sprintf(json ? "\\u%04x" : "\\x%02x", code)
    if ((code > 8205 && code < 8208) || (code > 8231 && code < 8239) ||
        (code > 8293 && code < 8298)) return sprintf("\\u%04x", code)
    return c
}
'

# Prints $1 as one line that does not steer a terminal.
printable() {
    printf '%s\n' "$1" | awk "$library"'
        { text = text (NR > 1 ? "\n" : "") $0 }
        END { print escaped(text) }'
}

say() {
    printf 'jobctl: %s\n' "$(printable "$1")" >&2
}

# Ends with status $1 and message $2. To who waits for the job's own status any but that of
# usage would look like it.
fail() {
    say "$2"
    [ "$verb" != start ] || [ -z "${opt_wait-}" ] || [ "$1" -eq 2 ] || exit 125
    exit "$1"
}

bad() {
    fail 2 "$1; see 'jobctl${verb:+ $verb} --help'"
}

# Sets quoted as quote does; that takes time square to the number of quotes.
enquote() {
    if [ ${#1} -lt 1000 ]; then
        quote "$1"
    else
        quoted=$(printf '%s\n' "$1" | sed "s/'/'\\\\''/g; 1s/^/'/; \$s/\$/'/")
    fi
}

lower() {
    printf '%s' "$1" | tr '[:upper:]' '[:lower:]'
}

# Sets seconds, and hundredths of them, to what the duration $1 means.
duration() {
    # shellcheck disable=SC2046  # two words
    set -- "$1" $(awk 'BEGIN {
        left = ARGV[1]
        if (left ~ /^[0-9]+\.$/) left = left "0"
        if (left ~ /^([0-9]+(\.[0-9]+)?|\.[0-9]+)$/) left = left "s"
        if (left == "") exit
        split("d 86400 h 3600 m 60 s 1", unit, " ")
        for (i = 1; i < 8; i += 2)
            if (match(left, "^([0-9]+" (i == 7 ? "(\\.[0-9]+)?|\\.[0-9]+" : "") ")" unit[i])) {
                total += substr(left, 1, RLENGTH - 1) * unit[i + 1]
                left = substr(left, RLENGTH + 1)
            }
        if (left == "" && total <= 100 * 365 * 86400) printf "%.3f %.0f\n", total, total * 100
    }' "$1")
    [ $# -eq 3 ] || bad "'$1' is not a duration; write 90, 90s, 5m, 1h30m or 2d"
    seconds=${2%"${2##*[!0]}"} hundredths=$3
    seconds=${seconds%.}
}

# Sets deadline, for instant, by the option --timeout.
set_deadline() {
    deadline=''
    [ -n "${opt_timeout+set}" ] || return 0
    duration "$opt_timeout"
    instant
    deadline=$((instant + hundredths))
}

late() {
    [ -n "$deadline" ] && instant && [ "$instant" -ge "$deadline" ]
}

# --- options ------------------------------------------------------------------

# Reads the words after $1 and calls do_$verb with those that are no options. $1 are the
# options, each LETTER:NAME and a sign: = takes a value, + takes one and may be repeated
# (the values are quoted for eval), ! is known to the full jobctl only. --a-b is a_b there
# and sets opt_a_b.
parse() {
    # shellcheck disable=SC2086,SC2116  # in one line
    known=" $(put_line $1) h:help " operands=''
    shift
    for entry in $known; do
        entry=${entry#*:}
        case $entry in *=) unset "opt_${entry%=}" ;; *) eval "opt_${entry%[+!]}=''" ;; esac
    done
    while [ $# -gt 0 ]; do
        word=$1 given='' value='' rest=''
        shift
        case $word in
        --) break ;;
        --*)
            shown=${word%%=*}
            name=${shown#--}
            [ "$shown" = "$word" ] || { given=1 value=${word#*=}; }
            ;;
        -?*)
            rest=${word#-?}
            shown=${word%"$rest"} name=''
            case $known in *" ${shown#-}:"*) name=${known#*" ${shown#-}:"} ;; esac
            name=${name%%[=+! ]*}
            ;;
        *)
            [ "$verb" != start ] || { set -- "$word" "$@" && break; }
            quote "$word"
            operands="$operands $quoted"
            continue
            ;;
        esac
        case $shown in '' | --*[!a-z-]*) name='' ;; esac
        while [ "$name" != "${name#*-}" ]; do
            name=${name%%-*}_${name#*-}
        done
        case $known in
        *":$name! "*) bad "$shown is an option of the full jobctl only, which needs Python" ;;
        *":$name= "* | *":$name+ "*)
            if [ -z "$given$rest" ]; then
                [ $# -gt 0 ] || bad "Option '$shown' requires an argument"
                value=$1
                shift
            fi
            value=$value$rest
            ;;
        *":$name "*)
            [ -z "$given" ] || bad "Option '$shown' does not take a value"
            [ -z "$rest" ] || set -- "-$rest" "$@"
            value=1
            ;;
        *) bad "No such option '$shown'" ;;
        esac
        case $known in *":$name+ "*) quote "$value" && eval "value=\$opt_$name\" \$quoted\"" ;; esac
        eval "opt_$name=\$value"
        [ -z "${opt_help-}" ] || { usage && exit; }
    done
    form=${opt_output-${JOBCTL_OUTPUT:-table}}
    [ -z "${opt_quiet-}" ] || form=ids
    case $form in
    table | wide | json | jsonl | ids) ;;
    *) bad "'$form' is none of the forms table, wide, json, jsonl, ids" ;;
    esac
    eval "set -- $operands \"\$@\""
    "do_$verb" "$@"
}

# --- the state directory ------------------------------------------------------

# Enters the folder of job folders.
enter() {
    # shellcheck source=/dev/null
    . "$home/place.sh"
    state_dir=$d
    [ -z "$w" ] || fail "$s" "$w"
    { [ -w "$d/." ] && [ -x "$d/." ]; } ||
        fail 125 "cannot use the state directory $d: Permission denied; set JOBCTL_STATE_DIR"
    [ -d "$state_dir/jobs" ] || mkdir -- "$state_dir/jobs" 2>/dev/null
    CDPATH='' cd -- "$state_dir/jobs" || fail 125 "cannot use $state_dir/jobs; set JOBCTL_STATE_DIR"
    boot
}

# Takes the lock of file $1, which release lets go.
hold() {
    if command -v flock >/dev/null; then
        command exec 8<>"$1" && flock 8
        return
    fi
    self
    held=$1.held
    put_line "$own $born $boot_now $host_now" >"$1.$own" || return
    until ln "$1.$own" "$held" 2>/dev/null; do
        keeper='' since='' when='' where=''
        read -r keeper since when where 2>/dev/null <"$held"
        place_of "$where" "$when"
        if [ -z "$keeper" ] || [ "$place" = elsewhere ] || alive "$keeper" "$since" "$place"; then
            pause
        elif mv "$held" "$held.$own" 2>/dev/null; then
            # Unless somebody else was faster, and it is his by now.
            read -r other _ <"$held.$own"
            [ "$other" = "$keeper" ] || ln "$held.$own" "$held"
        fi
    done
    rm -f "$1.$own" "$held.$own"
}

release() {
    if command -v flock >/dev/null; then exec 8>&-; else rm -f "$held"; fi
}

# Prints the numbers of all jobs.
numbers() {
    folders | while read -r folder; do
        [ ! -f "$folder/spec" ] || put_line "$folder"
    done
}

# Prints the numbers of all folders, also of those that are no job's.
folders() {
    for folder in [1-9]*; do
        case $folder in *[!0-9]* | ???????????????????*) ;; *) put_line "$folder" ;; esac
    done | sort -n
}

# --- what is known of jobs ----------------------------------------------------

# Sets state, location and reason of the unfinished job in folder $1, as Folder.read does in
# folder.py. One that is lost is finished by this.
examine() {
    state=Running location=localhost reason='' condition=''
    judge_fate "$1"
    if [ "$fate" = living ]; then
        if ! has_begun "$1"; then
            other=$(sed -n "s/^waiting='\(.*\)'\$/\1/p" "$1/run" | tail -n 1)
            state=NotStarted reason=${other:+waiting for job $other}
            reason=${reason:-starting}
        elif [ -e "$1/stop" ]; then
            state=Stopping
        else
            case $condition in [Tt]) state=Suspended ;; esac
        fi
        return
    fi
    [ "$fate" != ended ] || return 0
    if [ -d "$1/children" ] || ! grep -q "^type='BackgroundJob'" "$1/spec"; then
        # A job on other hosts, or of several parts.
        state=Disconnected reason='is one that only the full jobctl can handle'
    elif [ "$fate" = elsewhere ]; then
        state=Disconnected location=${host:-localhost} reason=$because
    elif [ "$fate" = unknown ]; then
        # The job deleted the file run, unless nobody holds the lock.
        ! held "$1" || return 0
        reason='damaged: the file run cannot be read'
    else
        reason=$because
    fi
    [ "$state" = Disconnected ] || settle_for "$1" Failed "$reason"
}

finished() {
    [ -s "$1/exit" ] || { examine "$1" && [ -s "$1/exit" ]; }
}

# Prints those of the jobs $2... that pass $states and $more. $1 is one of the forms of -o, or
# names ("number instance-id name"), or facts ("number instance-id state exit-status reason",
# - for no status).
records() {
    style=$1
    shift
    clock
    {
        for number in "$@"; do
            finished "$number" || put_line "state $number $state $location $reason"
        done
        for file in spec run exit received progress stdout stderr; do
            printf "%s/$file\n" "$@"
        done | xargs ls -lndL 2>/dev/null
        printf 'job %s\n' "$@"
    } | awk -v form="$style" -v now="$now" -v uptime="$uptime" -v boot="$boot_now" -v states="${states-}" \
        -v more="${more-}" "$library$reader"
}

# shellcheck disable=SC2016  # of awk
reader='
BEGIN {
    q = "\047"
    columns = split("Id Name Type State HasMoreData Location Command" \
        (form == "wide" ? " Exit Began Elapsed Reason" : ""), title, " ")
    if (form == "json") printf "["
}
/^-/ { size[$NF] = $5; next }
$1 == "state" {
    state_of[$2] = $3
    place_of[$2] = $4
    reason_of[$2] = substr($0, length($1 $2 $3 $4) + 5)
}
$1 == "job" && (($2 "/spec") in size) { show($2) }
END {
    if (form == "json") print "]"
    if (shown && (form == "table" || form == "wide")) table()
}

# Reads the lines of key=value in file, quoted for sh, into record.
function load(file, record,   line, key, raw, chunk, n, i, part) {
    split("", record)
    while ((file in size) && (getline line < file) > 0) {
        if (key == "") {
            if (line !~ "^[a-z_]+=" q) continue
            key = substr(line, 1, index(line, "=") - 1)
            line = substr(line, length(key) + 3)
            raw = chunk = ""
        }
        n = split(line, part, q)
        for (i = 1; i + 3 <= n && part[i + 1] == "\\" && part[i + 2] == ""; i += 3) continue
        if (i >= n) { # the value has more lines
            chunk = chunk line "\n"
            if (length(chunk) > 4000) { raw = raw chunk; chunk = "" }
            continue
        }
        if (i + 1 == n && part[n] == "") record[key] = raw chunk substr(line, 1, length(line) - 1)
        gsub(q "\\\\" q q, q, record[key])
        key = ""
    }
    close(file)
}

# Returns whether a job can have ended so, as end_in does in folder.py.
function possible(state, code, signal) {
    if (state !~ /^(Completed|Failed|Stopped)$/) return 0
    if (code !~ /^[0-9]*$/ || length(code) > 3 || code + 0 > 255) return 0
    if (signal != "" && (signal !~ /^[1-9][0-9]*$/ || length(signal) > 3 || signal + 0 > 127)) return 0
    return state != "Completed" || (code + 0 == 0 && signal == "")
}

function integer(s) { return s ~ /^[0-9]+$/ ? s : "null" }
function text(s) { return "\"" escaped(s, 1) "\"" }

# Returns whether something of a stream of job n is yet to be received.
function pending(n, stream,   range, k, part) {
    if (received[stream] + 0 < size[n "/" stream] + 0) return 1
    # Emptied: see next.
    if (received[stream] + 0 > size[n "/" stream] + 0) return size[n "/" stream] + 0 > 0
    for (k = split(received["returned"], range, " "); k > 0; k--) {
        split(range[k], part, /[:-]/)
        if (part[1] == stream && part[2] + 0 < size[n "/" stream] + 0) return 1
    }
    return 0
}

function show(n,   state, reason, place, open) {
    load(n "/spec", spec)
    state = state_of[n]
    reason = reason_of[n]
    place = "localhost"
    split("", ended)
    if (size[n "/exit"] > 0) {
        load(n "/exit", ended)
        load(n "/received", received)
        state = ended["state"]
        reason = ended["reason"]
        open = pending(n, "stdout") || pending(n, "stderr")
        if (!possible(state, ended["code"], ended["signal"])) {
            ended["code"] = ended["signal"] = ""
            state = "Failed"
            reason = "damaged: the file exit cannot be read"
        }
    } else if (state != "") {
        place = place_of[n]
        open = 1
    } else return
    if (states != "" && index(states, " " tolower(state) " ") == 0) return
    if (more != "" && more != open) return
    if (form == "ids") print n
    else if (form == "names") print n, spec["instance_id"], spec["name"]
    else if (form == "facts") print n, spec["instance_id"], state, status(), escaped(reason)
    else {
        load(n "/run", run)
        shown++
        if (form ~ /json/) object(n, state, reason, place, open)
        else row(n, state, reason, place, open)
    }
}

# Returns the exit status that a shell would give the command.
function status() {
    if (ended["signal"] != "") return ended["signal"] + 128
    return ended["code"] == "" ? "-" : ended["code"]
}

function object(n, state, reason, place, open) {
    printf "%s{\"id\": \"%s\", \"name\": ", (shown == 1 || form == "jsonl" ? "" : ","), n
    printf "%s, \"instance_id\": %s, ", text(spec["name"]), text(spec["instance_id"])
    printf "\"type\": %s, \"state\": \"%s\", \"reason\": ", text(spec["type"]), state
    printf "%s, \"exit_code\": %s, ", text(reason), integer(ended["code"])
    printf "\"signal\": %s, \"has_more_data\": ", integer(ended["signal"])
    printf "%s, \"location\": %s, ", (open ? "true" : "false"), text(place)
    # Of any length, which printf of some awk does not take.
    print "\"session\": null, \"command\": " text(spec["command"]) ", \"argv\": " \
        words(spec["words"]) ", \"cwd\": " text(spec["cwd"]) ", \"pid\": " integer(run["pid"]) \
        ", \"item\": null, \"created_at\": " text_time(spec["created"]) ", \"began_at\": " \
        text_time(run["began"]) ", \"ended_at\": " text_time(ended["ended"]) ", \"progress\": " \
        progress(n "/progress") ", \"parent\": null, \"children\": []}"
}

# Returns as JSON the words that are quoted in s.
function words(s,   n, i, part, start, here, word, out, chunk) {
    n = split(s, part, "[" q "]") # at a single character some awk splits at \n, too
    here = 2
    for (i = 2; i < n; i += 2) {
        for (start = here; i + 3 <= n && part[i + 1] == "\\" && part[i + 2] == ""; i += 3)
            here += length(part[i]) + 4
        here += length(part[i])
        word = substr(s, start, here - start)
        gsub(q "\\\\" q q, q, word)
        chunk = chunk (i > 2 && start > 2 ? ", " : "") text(word)
        if (length(chunk) > 2000) { out = out chunk; chunk = "" }
        here += length(part[i + 1]) + 2
    }
    return "[" out chunk "]"
}

# Returns as JSON the percent and message that a job last wrote to its progress file.
function progress(file,   line, last, first) {
    while ((file in size) && (getline line < file) > 0) if (line ~ /[^ \t\r]/) last = line
    close(file)
    gsub(/^[ \t\r]+|[ \t\r]+$/, "", last)
    if (last == "") return "null"
    first = last
    sub(/%? .*/, "", first)
    sub(/%$/, "", first)
    if (first !~ /^([0-9]+\.?[0-9]*|\.[0-9]+)$/ || first + 0 > 100) first = "null"
    else if (!sub(/^[^ ]* +/, "", last)) last = ""
    return "{\"percent\": " (first == "null" ? first : first + 0) ", \"message\": " text(last) "}"
}

function text_time(s) { return s ~ /^[0-9]/ ? "\"" rfc3339(s) "\"" : "null" }

# Returns s seconds since 1970 as UTC to the millisecond. To the day as in
# https://howardhinnant.github.io/date_algorithms.html#civil_from_days
function rfc3339(s,   day, era, year, month, part) {
    part = substr((s ~ /\./ ? substr(s, index(s, ".") + 1) : "") "000", 1, 3)
    s = int(s)
    day = int(s / 86400) + 719468
    s %= 86400
    era = int(day / 146097)
    day -= era * 146097
    year = int((day - int(day / 1460) + int(day / 36524) - int(day / 146096)) / 365)
    day -= 365 * year + int(year / 4) - int(year / 100)
    month = int((5 * day + 2) / 153)
    day -= int((153 * month + 2) / 5) - 1
    month += month < 10 ? 3 : -9
    return sprintf("%04d-%02d-%02dT%02d:%02d:%02d.%sZ", year + era * 400 + (month < 3), month, \
        day, int(s / 3600), int(s / 60) % 60, s % 60, part)
}

function row(n, state, reason, place, open) {
    cell[shown, 1] = n
    cell[shown, 2] = escaped(spec["name"])
    cell[shown, 3] = spec["type"]
    cell[shown, 4] = state
    cell[shown, 5] = open ? "True" : "False"
    cell[shown, 6] = escaped(place)
    cell[shown, 7] = escaped(spec["command"])
    cell[shown, 8] = ended["signal"] != "" ? "signal " ended["signal"] : ended["code"]
    if (run["began"] != "") {
        cell[shown, 9] = substr(rfc3339(run["began"]), 1, 19) "Z"
        cell[shown, 10] = sprintf("%.1fs", elapsed())
    }
    cell[shown, 11] = escaped(reason)
}

# By the clock since boot, which nobody sets, where both ends are known by it.
function elapsed(   s, t) {
    s = ended["ended"] == "" ? now : ended["ended"]
    t = ended["ended"] == "" ? (run["boot"] == boot ? uptime : "") : ended["boot"] == run["boot"] ? ended["ended_uptime"] : ""
    s = t != "" && run["began_uptime"] != "" ? t - run["began_uptime"] : s - run["began"]
    return s < 0 ? 0 : s
}

# Returns the number of characters in s.
function characters(s,   i, n, count) {
    n = length(s)
    if (s !~ /[^ -~]/) return n
    for (i = 1; i <= n; i += sequence(s, i)) count++
    return count
}

function table(   r, c, width, line) {
    for (c = 1; c <= columns; c++) {
        cell[0, c] = title[c]
        for (r = 0; r <= shown; r++)
            if ((width = characters(cell[r, c])) > widest[c]) widest[c] = width
    }
    for (r = 0; r <= shown; r++) {
        line = ""
        for (c = 1; c < columns; c++)
            line = line cell[r, c] sprintf("%" (widest[c] - characters(cell[r, c]) + 2) "s", "")
        line = line cell[r, columns]
        sub(/ +$/, "", line)
        print line
    }
}
'

# --- which jobs ---------------------------------------------------------------

# Sets chosen to the jobs that the words $@ and the filters mean, all where there is no
# word, and status to 3 if a word means none.
choose() {
    status=0 chosen='' names='' states='' more=''
    eval "set_states ${opt_state-}"
    [ -z "${opt_has_more_data-}" ] || more=1
    [ -z "${opt_no_more_data-}" ] || more=0
    [ $# -gt 0 ] || chosen=$(numbers)
    for selector in "$@"; do
        if [ "$selector" = - ]; then
            check_input
            while read -r line; do [ -z "$line" ] || choose_by "$line"; done
        else
            choose_by "$selector"
        fi
    done
    # shellcheck disable=SC2086  # several numbers
    chosen=$(printf '%s\n' $chosen | sort -nu)
    # shellcheck disable=SC2086
    [ -z "$states$more" ] || chosen=$(records ids $chosen)
    states='' more=''
}

# The same for a command that would not guess: without word and filter it needs --all.
choose_some() {
    filters=$opt_state$opt_has_more_data$opt_no_more_data
    [ $# -eq 0 ] || [ -z "$opt_all" ] || bad '--all and JOB contradict each other; give one of them'
    [ $# -gt 0 ] || [ -n "$opt_all$filters" ] || bad 'name a JOB, a filter, or --all'
    enter
    choose "$@"
}

set_states() {
    for word in "$@"; do
        case $(lower "$word") in
        notstarted | running | completed | failed | stopped | stopping | suspended) ;;
        disconnected | blocked) ;;
        *) bad "'$word' is not a state; try Running, Completed, Failed, Stopped or NotStarted" ;;
        esac
        states="${states:- }$(lower "$word") "
    done
}

# Adds to chosen what the word $1 means: a number, a range, a name, or a word of job control.
choose_by() {
    hits=''
    case $1 in
    '') bad "a job must not be named ''; give an id, a name or a range" ;;
    %% | %+) hits=$(numbers | tail -n 1) ;;
    %-) hits=$(numbers | tail -n 2 | sed '$d') ;;
    *[!0-9-]* | -* | *- | *-*-*) choose_by_name "$1" || return 0 ;;
    *)
        first=${1%%-*} last=${1#*-}
        # No job has a number of 19 digits, and test(1) might not take it.
        [ "$(digits "$first")" -lt 19 ] || first=999999999999999999
        [ "$(digits "$last")" -lt 19 ] || last=999999999999999999
        [ "$first" -le "$last" ] || bad "range $1 runs backwards; write ${1#*-}-${1%%-*}"
        hits=$(numbers | while read -r number; do
            [ "$number" -lt "$first" ] || [ "$number" -gt "$last" ] || put_line "$number"
        done)
        case $1 in *-*) chosen="$chosen $hits" && return ;; esac
        ;;
    esac
    chosen="$chosen $hits"
    [ -n "$hits" ] || missing "no job $1; 'jobctl get' lists those there are"
}

# Prints how many digits the number $1 has, but for zeros in front.
digits() {
    set -- "${1#"${1%%[!0]*}"}"
    put_line "${#1}"
}

missing() {
    say "$1" && status=3
}

# Sets hits to the jobs that are called $1; fails if that is all that there is to be said.
choose_by_name() {
    # shellcheck disable=SC2046  # several numbers
    [ -n "$names" ] || names=$(records names $(numbers))
    hits=$(printf '%s\n' "$names" | awk "$library$picker" "$1" "$alone")
    case $?/$hits in
    0/?*) ;;
    0/) return 1 ;; # a wildcard may match none
    4/*) missing "$1 begins $hits instance ids; give more of it" && return 1 ;;
    *)
        case $1 in
        *[!0-9.]* | *.*.*) missing "no job is called '$1'; 'jobctl get' lists those there are" ;;
        *) missing "no job $1; 'jobctl get' lists those there are" ;;
        esac
        return 1
        ;;
    esac
}

# Prints the numbers of the jobs that a name means, as resolve does in find.py. Its words are the
# name and, where only the newest of those called so is meant, 1; its lines are number, instance
# id and name of each job. Ends with 0, 3 if no job is called so, or 4, and the number of jobs
# whose ids begin so.
# shellcheck disable=SC2016  # of awk
picker='
BEGIN {
    want = ARGV[1] ""
    alone = ARGV[2]
    ARGC = 1
    if (want ~ /^%/) { alone = 1; job_control = 1; want = substr(want, 2) }
    wild = !job_control && want ~ /[*?[]/
    prefix = !job_control && want ~ /^[0-9a-fA-F-]+$/ && length(want) > 7 && length(want) < 37
    np = apart(want, P)
}
NF {
    name = substr($0, length($1 $2) + 3)
    if (name "" == want "") called[++calls] = $1
    if (wild) { ns = apart(name, S); if (fits()) like = like $1 "\n" }
    if (prefix && index($2, tolower(want)) == 1) { begun = $1; count++ }
}
END {
    for (i = alone && calls ? calls : 1; i <= calls; i++) print called[i]
    if (calls) exit
    if (wild) { printf "%s", like; exit }
    if (count) print count == 1 ? begun : count
    exit count == 1 ? 0 : count ? 4 : 3
}

# Puts the characters of s into an array, and returns how many there are.
function apart(s, into,   i, n, width) {
    split("", into)
    for (i = 1; i <= length(s); i += width) {
        width = sequence(s, i)
        if (!width) width = 1
        into[++n] = substr(s, i, width)
    }
    return n + 0
}

# Returns whether the pattern in P fits the text in S: *, ?, and [...], which ! or ^ turns round.
# A backslash is no more than itself.
function fits(   i, j, star, from, next_one) {
    i = j = 1
    while (j <= ns) {
        if (i <= np && P[i] == "*") { star = i++; from = j; continue }
        if (i <= np && (next_one = beyond(i, S[j]))) { i = next_one; j++; continue }
        if (!star) return 0
        i = star + 1
        j = ++from
    }
    while (i <= np && P[i] == "*") i++
    return i > np
}

# Returns where the pattern goes on after what is at P[i], 0 if that is not the character c.
function beyond(i, c,   end, k, turned, within) {
    if (P[i] == "?") return i + 1
    end = P[i] == "[" ? closing(i) : 0
    if (!end) return P[i] == c ? i + 1 : 0
    turned = P[i + 1] == "!" || P[i + 1] == "^"
    within = 0
    for (k = i + 1 + turned; k < end; k++) {
        if (P[k + 1] == "-" && k + 2 < end) {
            if (P[k] <= c && c <= P[k + 2]) within = 1
            k += 2
        } else if (P[k] == c) within = 1
    }
    return within != turned ? end + 1 : 0
}

# Returns where the bracket at P[i] is closed, 0 if nowhere.
function closing(i) {
    i++
    if (P[i] == "!" || P[i] == "^") i++
    for (i++; i <= np; i++) if (P[i] == "]") return i
    return 0
}
'

# --- start --------------------------------------------------------------------

# Runs runner.sh with the words $@ in a session of its own, with nothing of ours but the
# standard files. Without &, after which a command of sh ignores INT and QUIT for good:
# setsid goes to the background by itself where it leads a process group already.
detached() {
    set -- /bin/sh "$home/runner.sh" "$@"
    background='' setsid=$(command -v setsid) perl=$(command -v perl)
    if [ -n "$setsid" ]; then
        set -- "$setsid" "$setsid" "$@"
    elif [ -n "$perl" ]; then
        set -- "$perl" -e 'use POSIX; fork and exit; POSIX::setsid; exec @ARGV' "$@"
    else
        background=1
    fi
    [ -z "${caller_locale+set}" ] || set -- LC_ALL="$caller_locale" "$@"
    [ -z "${caller_path+set}" ] || set -- PATH="$caller_path" "$@"
    set -- JOBCTL_RUNNER=1 "$@"
    # What our caller ignores, as under nohup, the job need not.
    ! env --default-signal true 2>/dev/null || set -- --default-signal "$@"
    {
        # What a shell puts into the background has no standard input but by another number.
        if [ "$background" ]; then { env -i "$@" <&3 3<&- & } 3<&0; else env -i "$@"; fi
    } 3>&- 4>&- 5>&- 6>&- 7>&- 8>&- 9>&-
}

# Has runner.sh act on jobs with the words $@ and with $why, and prints the numbers that it does, or
# "killed" as well if that is what became of it.
acted() {
    said=$(put_line "${why-}" | detached "$@")
    case $newline$said in
    *"${newline}done") printf '%s\n' "${said%done}" ;;
    *) printf '%s\nkilled\n' "$said" ;;
    esac
}

# Tells that the process that was to $1 was killed.
say_killed() {
    say "the process that was to $1 was killed; do it again"
    : $((status = status ? status : 125))
}

# Prints the words $@ quoted for sh, with $1 readable only those that need it.
join() {
    manner=$1 between=''
    shift
    for word in "$@"; do
        case $manner/$word in
        readable/ | readable/*[!A-Za-z0-9_@%+=:,./-]* | exact/*) enquote "$word" ;;
        *) quoted=$word ;;
        esac
        printf '%s%s' "$between" "$quoted"
        between=' '
    done
}

# Adds the line $1='$2' to spec.
entry() {
    enquote "$2"
    spec=$spec$1=$quoted$newline
}

# Sets number to that of the next job, never used before, and makes its folder.
allocate() {
    hold ../last || return
    highest=0
    for counter in ../last ../last.copy; do
        number=''
        [ ! -f "$counter" ] || read -r number <"$counter"
        number=${number#"${number%%[!0]*}"}
        case $number in *[!0-9]* | ???????????????????*) number='' ;; esac
        [ "${number:-0}" -le "$highest" ] || highest=$number
    done
    [ "$highest" -gt 0 ] || highest=$(folders | tail -n 1)
    number=${highest:-0}
    until number=$((number + 1)) && mkdir "$number" 2>/dev/null; do
        [ -d "$number" ] || return
    done
    for counter in ../last.copy ../last; do
        printf '%020d\n' "$number" 1<>"$counter" || { rmdir "$number" && return 1; }
    done
    release
}

# Sets id to a new instance id.
identify() {
    read -r id 2>/dev/null </proc/sys/kernel/random/uuid ||
        id=$(uuidgen 2>/dev/null | tr '[:upper:]' '[:lower:]')
    [ -n "$id" ] || id=$(od -An -tx1 -N16 /dev/urandom | tr -d ' \n' |
        sed 's/\(.\{8\}\)\(.\{4\}\).\(...\).\(...\)\(.*\)/\1-\2-4\3-8\4-\5/')
}

check_name() {
    case $1 in *[![:space:]]*) ;; *) bad 'a name must not be empty' ;; esac
    case $1 in
    -*) bad "name '$1' begins with '-' and would be taken for an option" ;;
    %*) bad "name '$1' begins with '%' and would be taken for a word of job control" ;;
    *[!0-9.-]* | [!0-9]* | *[!0-9] | *[.-]*[.-]*) ;;
    *) bad "name '$1' looks like a job id or a range; put a letter in it" ;;
    esac
    [ "$(printable "$1")" = "$1" ] || bad "name '$1' contains control or unprintable characters"
    [ "${#1}" -le 255 ] || bad "name '$(printf '%.20s' "$1")...' is longer than 255 bytes"
}

# Adds the words $@, NAME or NAME=VALUE each, to the job's environment.
set_variables() {
    odd=$(odd_names)
    for word in "$@"; do
        name=${word%%=*}
        case $name in
        '' | *[[:space:]]*) bad "-e '$word' names no variable; write NAME=VALUE" ;;
        esac
        if [ "$name" = "$word" ]; then
            case "$newline$jobctl_exports$newline $jobctl_odd$newline$name" in
            *"${newline}export '$name="* | *" '$name="*) continue ;;
            *"${newline}PATH" | *"${newline}LC_ALL") continue ;;
            esac
            bad "-e $name: it is not set here; write $name=VALUE"
        fi
        enquote "$word"
        if printf '%s\n' "$name" | grep -Eqe "$odd"; then
            jobctl_odd="$jobctl_odd$quoted "
        else
            jobctl_exports=$jobctl_exports${newline}export\ $quoted
        fi
    done
}

# Ends unless option $1 names a file $2 that can be read.
check_file() {
    { [ -r "$2" ] && [ ! -d "$2" ]; } || bad "cannot read '$2', which $1 names"
}

# Ends unless standard input, which a word - means, can be read.
check_input() {
    if ! (exec 9<&0) 2>/dev/null || grep -q '^flags:.*1$' /proc/self/fdinfo/0 2>/dev/null; then
        bad "cannot read '-': standard input is not open for reading"
    fi
    [ ! -d /dev/stdin ] || bad "cannot read '-': Is a directory"
}

# Succeeds if standard input has something that a person may take the job to read. A file of
# which somebody has read a part is that of a loop, say, which goes on with it.
input_is_left() {
    at=0
    # Not of 0, which is another file while this is read.
    [ ! -r /proc/self/fdinfo/0 ] || { read -r _ at </proc/self/fdinfo/7; } 7<&0
    [ -p /dev/stdin ] || { [ -f /dev/stdin ] && [ -s /dev/stdin ] && [ "$at" = 0 ]; }
}

# Says which of the words $@ of a command is one of the shell's, as in `ls '|' wc`, and reaches no
# shell; as options.py does.
tell_of_shell_words() {
    program=$1
    while [ $# -gt 1 ]; do
        shift
        case $1 in
        '|' | '||' | '|&' | '&&' | ';') command -v -- "${2-}" >/dev/null 2>&1 || continue ;;
        '<' | '>' | '>>' | '2>' | '2>>' | '&>' | '&>>')
            case $#/${program##*/} in 1/* | */expr | */test | */[) continue ;; esac
            ;;
        '2>&1') ;;
        '&') [ $# -eq 1 ] || continue ;;
        *) continue ;;
        esac
        say "'$1' is given to $program as it is; use -c for shell text"
        break
    done
}

# Ends where what is about to be done could not be told of.
ready_output() {
    (exec 9>&1) 2>/dev/null ||
        fail 125 'cannot write to standard output: it is closed; nothing was done'
}

do_start() {
    [ -z "${opt_text+set}" ] || [ -z "${opt_script+set}" ] ||
        bad '-c and -f contradict each other; give one of them'
    [ -n "${opt_text+set}${opt_script+set}${1-}" ] ||
        bad 'there is no command to run; write jobctl start COMMAND [ARG]...'
    case ${opt_text-x} in
    *[![:space:]]*) ;;
    *) bad "-c '' is no command; give it shell text" ;;
    esac
    [ -z "${opt_name+set}" ] || check_name "$opt_name"
    number=${opt_retries=0}
    number=${number#"${number%%[!0]*}"}
    case $opt_retries/$number in /* | *[!0-9]*/* | */????????*) number=1000001 ;; esac
    [ "${number:-0}" -le 1000000 ] ||
        bad "--retries '$opt_retries' is not a number from 0 to 1000000"
    opt_retries=${number:-0}
    seconds='' timeout_text=${opt_timeout-}
    if [ -n "${opt_timeout+set}" ]; then
        duration "$opt_timeout"
        [ "$hundredths" -gt 0 ] || bad "'$opt_timeout' is no time at all; give at least 0.01s"
        case $timeout_text in *[0-9.]) timeout_text=${timeout_text}s ;; esac
    fi
    eval "set_variables ${opt_env-}"
    directory=$PWD
    case ${opt_cwd-} in /*) directory=$opt_cwd ;; ?*) directory=$PWD/$opt_cwd ;; esac
    { [ -d "$directory" ] && [ -x "$directory" ] && [ -n "${opt_cwd-x}" ]; } ||
        bad "'${opt_cwd-$PWD}' is not a directory that can be entered; give one with --cwd"
    case ${opt_script-}/${opt_stdin-} in -/* | */-) check_input ;; esac
    (exec 9<&0) 2>/dev/null || exec </dev/null # it is closed
    case ${opt_script-} in
    -)
        [ "${opt_stdin-}" != - ] ||
            bad '--stdin - and -f - contradict each other; one can read a file'
        exec 6<&0
        ;;
    *) [ -z "${opt_script+set}" ] || { check_file -f "$opt_script" && exec 6<"$opt_script"; } ;;
    esac
    [ "${opt_script-}" = - ] || [ -n "${opt_stdin+set}" ] || [ ! -t 2 ] || ! input_is_left ||
        say 'standard input is not read by the job; to give it to it, use --stdin -'
    case ${opt_stdin--} in
    -) exec 7<&0 ;;
    *) check_file --stdin "$opt_stdin" && exec 7<"$opt_stdin" ;;
    esac
    ready_output
    enter
    eval "others ${opt_after-}" && after=$chosen
    eval "others ${opt_after_ok-}" && after_ok=$chosen
    allocate 2>/dev/null ||
        fail 125 "cannot start a job in $state_dir; is the disk full? Nothing was recorded"
    said=''
    (cd "$number" && write_down "$@") 2>/dev/null && exec 6<&- 7<&- &&
        said=$(detached begin "$PWD/$number" </dev/null 2>/dev/null |
            { read -r first; read -r second; put_line "$first $second"; })
    if [ ! -f "$number/spec" ]; then
        why=$(cat "$number/log" 2>/dev/null)
        rm -rf "$number"
        fail 125 "cannot start a job in $state_dir: ${why:-is the disk full?} Nothing was recorded"
    fi
    [ -n "${opt_text+set}${opt_script+set}" ] || tell_of_shell_words "$@"
    warn_of_emptying "$@"
    unable=''
    if [ "$said" = 'ready ' ] && load_run "$number" && [ -z "$pid" ] &&
        grep -qs "^state='Failed'" "$number/exit"; then
        unable=1
    fi
    if [ -n "$opt_wait" ]; then
        [ -n "$opt_quiet" ] || say "job $number"
        chosen=$number status=0 deadline='' opt_keep='' opt_again=''
        streams='stdout stderr'
        follow
    fi
    if ! records "$form" "$number"; then
        # Who has no id of it cannot end it.
        fail 125 "cannot write to standard output; job $number was started"
    fi
    [ -z "$unable" ] || tell "$number"
    exit "${unable:-0}"
}

# Warns if job $number empties its own output, as far as that is to be seen in the words $@, or
# in its shell text: by a redirection or tee; see emptying.py.
warn_of_emptying() {
    text=${opt_text-}$newline${opt_init-}
    [ -n "${opt_text+set}${opt_script+set}" ] || text=$*$newline$text
    looked=''
    [ -n "${opt_text+set}" ] || script_in "$@"
    case $text${looked:+/fd/1} in */dev/std* | */fd/[12]*) ;; *) return 0 ;; esac
    found=$(
        {
            put_line "$text"
            [ -z "$looked" ] || dd bs=65536 count=1 <"$looked" | tr -d '\000'
        } 2>/dev/null | LC_ALL=C awk '
            BEGIN { name = "(/dev/std(out|err)|/dev/fd/[12]|/proc/self/fd/[12])" }
            function look(before, word,   text) {
                if (!match($0, before name "([^A-Za-z0-9_./-]|$)")) return
                text = substr($0, RSTART, RLENGTH)
                text = substr(text, index(text, word))
                match(text, name)
                if (word == ">" || text !~ / (--a|-[a-z]*a)/) print substr(text, 1, RSTART + RLENGTH - 1)
            }
            { look("(^|[^<>\\\\])>[|&]?[ \t]*", ">"); look("(^|[ \t;&|(/])tee[ \t]([^;&|()<>]*[ \t])?", "tee") }
        ' | head -n 1
    )
    [ -z "$found" ] || say "'$found' empties what the job has written so far; write >&1 or >&2, \
or open it with >> (tee -a)"
}

# Sets looked to the script of the job with the words $@, be it the command itself or what that has a
# shell read; to nothing where there is none. Nobody can mend what the system brings.
# shellcheck disable=SC2154  # runner.sh sets the variables
script_in() {
    program=${1-} sign=''
    case ${opt_script+copied}/${program##*/} in
    copied/*) looked=$PWD/$number/script ;;
    /ash | /bash | /dash | /ksh | /mksh | /sh | /zsh) case ${2--} in [-+]*) ;; *) looked=$2 ;; esac ;;
    *)
        PATH=${caller_path-/usr/bin:/bin}
        locate_program "$1"
        PATH=$jobctl_tools sign='#!'
        known_good "$jobctl_found" || looked=$jobctl_found
        ;;
    esac
    case $looked in '' | /*) ;; *) looked=$directory/$looked ;; esac
    { [ -f "$looked" ] && [ -r "$looked" ] && { [ -z "$sign" ] || [ -x "$looked" ]; } &&
        case $(dd bs=2 count=1 <"$looked" 2>/dev/null | tr -d '\000') in "$sign"*) ;; *) false ;; esac; } ||
        looked=''
}

# Sets chosen to the jobs that the words $@ mean, of those of one name the newest, and ends if
# there are none of one.
others() {
    chosen='' alone=1
    [ $# -eq 0 ] || choose "$@"
    [ $# -eq 0 ] || [ "$status" -eq 0 ] || exit $((opt_wait ? 125 : 3))
    # shellcheck disable=SC2086,SC2116  # in one line
    chosen=$(put_line $chosen)
}

# Writes into the current folder a job that runner.sh can make real. $@ are the words after
# the options.
write_down() {
    identify
    clock
    name=${opt_name-Job$number} argv=$(join exact "$@") spec='' script='' stdin=/dev/null
    printf '%s\n' "$jobctl_exports" >./env || return
    for word in ID="$number" NAME="$name" INSTANCE_ID="$id" HOST=localhost; do
        enquote "JOBCTL_$word"
        printf 'export %s\n' "$quoted" >>./env || return
    done
    # shellcheck disable=SC2016  # of the runner
    [ -z "$jobctl_odd" ] || printf 'set -- /usr/bin/env %s"$@"\n' "$jobctl_odd" >env.odd || return
    true >stdout && true >stderr && true >lock && save_marks . 0 0 '' '' || return
    [ -z "${opt_stdin+set}" ] || { stdin=stdin && cat <&7 >stdin || return; }
    if [ -n "${opt_script+set}" ]; then
        cat <&6 >script && chmod 700 script || return
        load command
        # shellcheck disable=SC2034  # command.sh asks
        jobctl_newline=$newline script=$(kind_of_script script)
        set -- "$opt_script" "$@"
    elif [ -n "${opt_text+set}" ]; then
        [ $# -eq 0 ] || set -- sh "$@"
        set -- sh -c "$opt_text" "$@"
    fi
    command=$(join readable "$@")
    [ $# -ne 3 ] || [ -z "${opt_text+set}" ] || command=$opt_text
    entry format 1
    entry instance_id "$id"
    entry name "$name"
    entry type BackgroundJob
    entry location localhost
    entry command "$command"
    entry text "${opt_text-}"
    entry script "$script"
    entry init "${opt_init-}"
    entry cwd "$directory"
    entry umask "$caller_umask"
    entry stdin "$stdin"
    entry merge "${opt_merge-}"
    entry timeout "$seconds"
    entry timeout_text "$timeout_text"
    entry retries "$opt_retries"
    entry after "$after"
    entry after_ok "$after_ok"
    entry caller ''
    entry on_finish ''
    entry created "$now"
    entry argv "$argv"
    entry words "$(join exact "$@")"
    printf '%s' "$spec" >spec.new
}

# --- receive ------------------------------------------------------------------

# Sets the marks of job $1. With --keep and --again they are kept in a variable.
load_marks() {
    text=''
    if [ -n "$opt_keep$opt_again" ]; then
        eval "text=\${marks_$1-}"
        [ -n "$text" ] || [ -z "$opt_again" ] || text=$newline
    fi
    mark_stdout=0 mark_stderr=0 told='' returned='' traces=''
    if [ -n "$text" ]; then parse_marks <<MARKS
$text
MARKS
    elif [ -f "$1/received" ]; then
        parse_marks <"$1/received"
    fi
}

parse_marks() {
    while IFS="='" read -r key _ value _; do
        case $key/$value in
        stdout/*[!0-9]* | stderr/*[!0-9]* | */) ;;
        stdout/*) mark_stdout=$value ;;
        stderr/*) mark_stderr=$value ;;
        told/*) told=$value ;;
        returned/*) returned=$value ;;
        traces/*) traces=$value ;;
        esac
        [ -n "$key" ] || return 0
    done
}

# Puts down the marks of job $1: stdout $2, stderr $3, told $4, returned $5. And the traces of what
# was received, by which it is seen later whether the job has emptied a stream since.
save_marks() {
    kept=''
    for stream_and_mark in "stdout:$2" "stderr:$3"; do
        trace "$1" "${stream_and_mark%:*}" "${stream_and_mark#*:}"
        [ -z "$sum" ] || kept="$kept${kept:+ }$stream_and_mark-$sum"
    done
    text="stdout='$2'${newline}stderr='$3'${newline}told='$4'${newline}returned='$5'$newline"
    text="${text}traces='$kept'$newline"
    if [ -n "${opt_keep-}${opt_again-}" ]; then
        eval "marks_$1=\$text"
        return
    fi
    # In one go and in place, over what was there: for that a full disk has room.
    pad=$newline$newline$newline$newline$newline$newline$newline$newline
    pad=$pad$pad$pad$pad$pad$pad$pad$pad
    printf "%.$((${#text} + ${#5} < 512 ? 512 : ${#text} + 512))s" \
        "$text$pad$pad$pad$pad$pad$pad$pad$pad" 1<>"$1/received" || return
    # The index of a full jobctl does not look at finished jobs again. It makes a new one.
    [ ! -e ../index.db ] || [ ! -s "$1/exit" ] || rm -f ../index.db
}

# Sets sum to the checksum, as records.py has it, of the 64 bytes, or less, before byte $3 of stream
# $2 of job $1.
trace() {
    sum=''
    [ "$3" -gt 0 ] && [ -f "$1/$2" ] || return 0
    sum=$(dd bs=1 skip=$(($3 > 64 ? $3 - 64 : 0)) count=$(($3 > 64 ? 64 : $3)) <"$1/$2" 2>/dev/null |
        od -An -v -tu1 | awk '
            { for (i = 1; i <= NF; i++) sum = (sum * 257 + $i + 1) % 2147483647 }
            END { printf "%.0f", sum }')
}

# Whether stream $2 of job $1 still holds what was received of it, which ends at $start.
holds() {
    [ "$size" -ge "$start" ] || return
    # Of one that has not grown, and may grow yet, nothing is to be received.
    [ "$size" -gt "$start" ] || finished "$1" || return 0
    case " $traces" in *" $2:$start-"*) ;; *) return 0 ;; esac
    known=${traces#*"$2:$start-"} known=${known%% *}
    trace "$1" "$2" "$start"
    [ "$sum" = "$known" ]
}

# Sets start and end of what is to be received next of stream $2 of job $1, and range to
# the one of $returned that this is in; fails where there is nothing. Sets emptied if the job has
# emptied the stream, so that it does not hold what was received of it any more.
next() {
    # shellcheck disable=SC2046  # to split is the point
    set -- "$1" "$2" $(ls -lndL "$1/$2" 2>/dev/null)
    size=${7-0} range='' emptied=''
    start=$mark_stderr
    [ "$2" = stderr ] || start=$mark_stdout
    if [ -f "$1/$2" ] && ! holds "$1" "$2"; then
        # What it holds is all new. Of that nothing may be there yet, but the marks are to move.
        emptied=1 start=0 end=$size left=''
        [ "$2" = stderr ] && mark_stderr=0 || mark_stdout=0
        for range in $returned; do
            case $range in "$2":*) ;; *) left="$left${left:+ }$range" ;; esac
        done
        range='' returned=$left traces=''
        return 0
    fi
    for range in $returned; do
        start=${range#*:}
        end=${start#*-} start=${start%-*}
        case $range in "$2":*) ;; *) continue ;; esac
        [ "$end" -le "$size" ] || end=$size
        [ "$start" -ge "$end" ] || return 0
    done
    range='' end=$size start=$mark_stderr
    [ "$2" = stderr ] || start=$mark_stdout
    [ "$start" -lt "$end" ]
}

# Writes bytes $2 to $3 of file $1 to descriptor $4. Sets copied to how many arrived, and
# report to what dd said if not all. A pipe takes a block of 4096 bytes whole or not at all.
copy() {
    blocks=$((($3 - $2) / 4096)) rest=$((($3 - $2) % 4096))
    report=$(
        trap '' PIPE
        {
            [ "$2" -eq 0 ] || dd bs=1 skip="$2" count=0 2>/dev/null
            { [ "$blocks" -eq 0 ] || dd bs=4096 count="$blocks"; } &&
                { [ "$rest" -eq 0 ] || dd bs="$rest" count=1; }
        } <"$1" 2>&1 >&"$4"
    )
    copied=$(printf '%s\n' "$report" | awk -v blocks="$blocks" -v rest="$rest" '
        / records out$/ { copied += $1 * (seen++ || blocks == 0 ? rest : 4096) }
        END { print copied + 0 }')
}

# Delivers what there is of stream $2 of job $1. Sets moved if that was anything.
deliver() {
    descriptor=5
    [ "$2" = stderr ] || descriptor=4
    while load_marks "$1" && next "$1" "$2"; do
        [ -n "$opt_keep$opt_again" ] || hold "$1/received" || return
        load_marks "$1"
        copied=0 report=''
        if next "$1" "$2"; then
            # Others who receive get their turn.
            [ $((end - start)) -le 1048576 ] || end=$((start + 1048576))
            [ "$start" -ge "$end" ] || copy "$1/$2" "$start" "$end" "$descriptor"
        fi
        if [ "$copied" -gt 0 ] || [ -n "$emptied" ]; then
            moved=1 start=$((start + copied))
            if [ -z "$range" ]; then
                [ "$2" = stdout ] && mark_stdout=$start || mark_stderr=$start
            else
                left='' end=${range##*-}
                for other in $returned; do
                    [ "$other" != "$range" ] || other=${2}:$start-$end
                    [ "$other" = "$2:$end-$end" ] || left="$left${left:+ }$other"
                done
                returned=$left
            fi
            save_marks "$1" "$mark_stdout" "$mark_stderr" "$told" "$returned"
        fi
        [ -n "$opt_keep$opt_again" ] || release
        [ -z "$emptied" ] || put_line "jobctl: job $1 has emptied its own $2, and what it holds now \
is received; to add to it, open /dev/$2 with >> (tee -a)" >&2
        case $report in
        *Broken\ pipe*) exit 125 ;;
        *dd:*) fail 125 "cannot write to standard output or error: ${report##*: }" ;;
        esac
        [ "$copied" -gt 0 ] || return 0
    done
}

# Delivers what there is of job $1, and at its end why it failed, once.
collect() {
    for stream in $streams; do
        deliver "$1" "$stream"
    done
    finished "$1" && grep -q "^state='Failed'" "$1/exit" && load_marks "$1" && [ -z "$told" ] ||
        return 0
    for stream in $streams; do
        ! next "$1" "$stream" || return 0
    done
    tell "$1"
    [ -n "$opt_keep$opt_again" ] || hold "$1/received" || return
    load_marks "$1"
    save_marks "$1" "$mark_stdout" "$mark_stderr" 1 "$returned"
    [ -n "$opt_keep$opt_again" ] || release
}

# Says why job $1 failed.
tell() {
    why=$(records facts "$1")
    printf 'jobctl: job %s failed: %s\n' "$1" "${why#* * * * }" >&2
}

# Says, once, that job $1, which finished() has just looked at, is waited for as another machine
# has it.
say_who_has_it() {
    case "$state $said_of " in
    Disconnected*" $1 "*) ;;
    Disconnected*) said_of="$said_of $1" && say "waiting: job $1 $reason" ;;
    esac
}

# Delivers the output of $chosen until all are finished, and ends with their status.
follow() {
    exec 4>&1 5>&2
    waiting=$chosen said_of=''
    while :; do
        still='' moved=''
        for number in $waiting; do
            [ -f "$number/spec" ] || continue
            finished "$number" || { still="$still $number" && say_who_has_it "$number"; }
            collect "$number"
        done
        waiting=$still
        [ -n "$waiting" ] || break
        ! late || exit $((status ? status : 124))
        [ -n "$moved" ] || pause
    done
    [ "$status" -eq 0 ] || exit "$status"
    # shellcheck disable=SC2086  # several numbers, or one
    set -- $chosen
    own_status=125 worst=0
    while read -r _ _ state code _; do
        [ "$code" = - ] || own_status=$code
        [ "$state" = Completed ] || worst=1
    done <<FACTS
$(records facts "$@")
FACTS
    [ $# -ne 1 ] || worst=$own_status
    exit "$worst"
}

do_receive() {
    [ -z "$opt_keep" ] || [ -z "$opt_again" ] ||
        bad '--keep and --again contradict each other; --again keeps the mark too'
    case ${opt_stream-both} in
    both) streams='stdout stderr' ;;
    stdout | stderr) streams=$opt_stream ;;
    *) bad "--stream '$opt_stream' is none of stdout, stderr and both" ;;
    esac
    set_deadline
    choose_some "$@"
    [ -z "$opt_wait$opt_follow" ] || follow
    exec 4>&1 5>&2
    for number in $chosen; do
        collect "$number"
    done
    exit "$status"
}

# --- get, wait, stop, remove --------------------------------------------------

do_get() {
    enter
    choose "$@"
    # shellcheck disable=SC2086  # several numbers
    records "$form" $chosen || exit 125
    exit "$status"
}

do_wait() {
    set_deadline
    ready_output
    choose_some "$@"
    waiting=$chosen done='' said_of=''
    while [ -n "$waiting" ]; do
        still=''
        for number in $waiting; do
            if [ ! -f "$number/spec" ]; then
                say "job $number was removed meanwhile"
                : $((status = status ? status : 1))
            elif finished "$number"; then
                done="$done $number"
                [ -z "$opt_any" ] || break 2
            else
                still="$still $number"
                say_who_has_it "$number"
            fi
        done
        waiting=$still
        [ -n "$waiting" ] || break
        if late; then
            [ "$status" -ne 0 ] || status=124
            break
        fi
        # The runner of the last one lets its lock go when it ends: no need to look before.
        [ -n "$deadline$opt_any" ] || flock -s "${waiting##* }/lock" true 2>/dev/null
        [ -s "${waiting##* }/exit" ] || pause
    done
    # shellcheck disable=SC2046,SC2086  # several numbers
    set -- $(printf '%s\n' $done | sort -n)
    records "$form" "$@" || exit 125
    for number in "$@"; do
        grep -q "^state='Completed'" "$number/exit" || : $((status = status ? status : 1))
    done
    exit "$status"
}

# Tells that job $1 can be sent no signal.
say_unbegun() {
    say "job $1 has not begun, so there is nothing to send a signal to; without \
--signal, stop ends it before it begins"
    : $((status = status ? status : 1))
}

# Sets targets to those of the jobs $@ that are not finished, and, with leftovers, the finished
# ones that left something running, for runner.sh.
aim() {
    living='' targets=''
    while read -r number id state _ reason; do
        case $state in
        Disconnected)
            say "job $number $reason; act on it there"
            : $((status = status ? status : 5))
            continue
            ;;
        NotStarted)
            [ -n "$leftovers" ] || {
                say_unbegun "$number"
                continue
            }
            ;;
        Completed | Failed | Stopped | '')
            [ -n "$leftovers" ] || continue
            [ -n "$living" ] || living=" $(detached cookies </dev/null | tr '\n' ' ') $(
                processes | awk '{ print "s" $4 }' | tr '\n' ' ') "
            load_run "$number"
            case $living in *" $id "*) ;; *" s${pid:-none} "*) ;; *) continue ;; esac
            ;;
        esac
        targets="$targets $number:$id"
    done <<FACTS
$(records facts "$@")
FACTS
}

# Ends all that the jobs $3... started, with $1 hundredths of a second of grace and reason
# $2. Sets left to those of which something is left.
end_jobs() {
    grace=$1 why=$2 left='' leftovers=1
    shift 2
    aim "$@"
    # shellcheck disable=SC2086  # several words
    [ -z "$targets" ] || left=$(acted stop "$PWD" "$grace" $targets)
    for number in $left; do
        case $number in
        killed) say_killed "end them" ;;
        *)
            say "job $number: some of its processes cannot be ended; stop it again later"
            : $((status = status ? status : 125))
            ;;
        esac
    done
}

do_stop() {
    duration "${opt_grace-10s}"
    # shellcheck disable=SC2086  # its white space is of no interest
    reason=$(set -f && set -- ${opt_reason-} && put_line "stopped by user${*:+: $*}")
    signal=$(printf '%s' "${opt_signal-TERM}" | tr '[:lower:]' '[:upper:]')
    signal=${signal#SIG}
    case $signal in [1-9] | [1-9][0-9]) signal=$(kill -l "$signal" 2>/dev/null) ;; esac
    # shellcheck disable=SC2020
    kill -l | tr -s ' \t)' '\n\n\n' | sed 's/^SIG//; /^[0-9]*$/d' | grep -qxe "$signal" ||
        bad "'${opt_signal-}' is not a signal; 'kill -l' lists them"
    choose_some "$@"
    leftovers=''
    # shellcheck disable=SC2086  # several words
    if [ -z "${opt_signal+set}" ]; then
        end_jobs "$hundredths" "$reason" $chosen
    elif aim $chosen && [ -n "$targets" ]; then
        for number in $(acted signal "$PWD" "$signal" $targets); do
            case $number in
            killed) say_killed "send signal $signal" ;;
            *:unbegun) say_unbegun "${number%:*}" ;;
            *)
                say "job $number: signal $signal reached none of its processes (another user's)"
                : $((status = status ? status : 1))
                ;;
            esac
        done
    fi
    exit "$status"
}

do_remove() {
    choose_some "$@"
    going=''
    for number in $chosen; do
        if finished "$number" || [ -n "$opt_force" ]; then
            going="$going $number"
        else
            say "job $number is $state; stop it first, or remove it with --force"
            : $((status = status ? status : 4))
        fi
    done
    # shellcheck disable=SC2086  # several words
    end_jobs 1000 'stopped by user: removed' $going
    for number in $going; do
        case $newline$left$newline in *"$newline$number$newline"* | *"${newline}killed"*) continue ;; esac
        # In one step it is no job any more.
        [ ! -s "$number/exit" ] || mv "$number" "$number.gone" || {
            say "job $number cannot be removed"
            : $((status = status ? status : 125))
        }
        rm -rf "$number.gone"
    done
    exit "$status"
}

# --- what to do ---------------------------------------------------------------

# Prints what is to be known of $verb, or of all.
usage() {
    sed -n "/^jobctl ${verb:-start|}[ g]/,/^\$/p" <<'END'
jobctl start|get|receive|wait|stop|remove [OPTIONS]...
Background jobs for the shell: they outlive the terminal that started them. This is the
part of jobctl that needs no Python. 'jobctl start --help' and so on say more.
Example: jobctl start -n nightly -- make -j4 && jobctl wait %nightly

jobctl start [OPTIONS] COMMAND [ARG]...     Start a job in the background.
-c TEXT, -f SCRIPT|-              shell text, or a script, instead of COMMAND
-n, --name NAME                   a name to find the job by
-C, --cwd DIR                     run there
-e, --env NAME[=VALUE]            set a variable
--init TEXT                       shell text to run first
--stdin FILE|-                    its standard input; a copy is kept
--timeout DURATION, --retries N   stop it after this time; run it again when it fails
--after JOB, --after-ok JOB       begin when JOB is finished, or only if it is Completed; of
                                  several of one name the newest is meant
--merge                           standard error into standard output
-w, --wait                        write its output, and end with its status
-o FORM, -q                       as in get
Example: jobctl start -n nightly --timeout 2h -- make -j4

jobctl get [OPTIONS] [JOB]...               Show jobs.
JOB is an id, a range such as 3-8, a name, or a name with wildcards; %NAME is the newest
job of that name, %% the newest of all, %- the one before it.
--state STATE, --has-more-data, --no-more-data     only such jobs
-o, --output table|wide|json|jsonl|ids             -q is -o ids
Example: jobctl get --state Failed -o wide

jobctl receive [OPTIONS] JOB...|--all       Write output that was not received yet.
-k, --keep; --again               do not move the read mark; all output from the start
-w, --wait, -f, --follow          until the jobs are finished, live
--timeout DURATION                give up after this time, with status 124
--stream stdout|stderr|both       which output
Example: jobctl receive --wait %nightly > nightly.log

jobctl wait [OPTIONS] JOB...|--all          Wait until jobs are finished, and show them.
--any; --timeout DURATION         until one is finished; give up, with status 124
Example: jobctl wait --any --timeout 10m build test

jobctl stop [OPTIONS] JOB...|--all          End everything that jobs started.
--grace DURATION, --reason TEXT   time from TERM to KILL, 10s; why, for people to read
--signal NAME                     only send this signal
Example: jobctl stop --reason 'wrong input' %nightly

jobctl remove [OPTIONS] JOB...|--all        Delete jobs and their output.
--force                           stop jobs that are not finished, then delete them
Example: jobctl remove --state Completed
END
}

few=':state+ :has_more_data :no_more_data :name! :command! :location! :session! :before! :after!
:newest!'
print='o:output= q:quiet'
verb=${1-} word=${1-}
[ $# -eq 0 ] || shift
case $verb in
start)
    parse "c:text= f:script= n:name= C:cwd= e:env+ :init= :stdin= :timeout= :retries= :after+
:after_ok+ :merge w:wait $print H:host! s:session! :results! :foreach! t:throttle!
:per_host! 0:null!
:retry_failed! :singleton! :with_parent! :on_finish!" "$@"
    ;;
get) parse "$few $print :watch! :children! :child_state!" "$@" ;;
receive)
    parse "$few :all k:keep :again w:wait f:follow :timeout= :stream= :auto_remove! :write_events!
:force! :no_recurse! :tag! :gather! :output_dir!" "$@"
    ;;
wait) parse "$few $print :all :any :timeout= :force!" "$@" ;;
stop) parse "$few :all :grace= :signal= :reason=" "$@" ;;
remove) parse "$few $print :all :force :older_than! :local_only! :dry_run!" "$@" ;;
--version) echo 'jobctl (sh)' ;;
-h | --help) verb='' && usage ;;
session) verb='' && bad 'session is a command of the full jobctl only, which needs Python' ;;
'') usage >&2 && exit 2 ;;
*) verb='' && bad "No such command '$word'" ;;
esac
