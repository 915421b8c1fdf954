#!/bin/sh
# count: the command of every job of the monkey. Writes numbered lines to both streams, and what it
# does into a log of its own, outside jobctl: so that can be compared.
#
#   sh count.sh LOGS TOKEN BURSTS LINES PAUSE GOOD CODE TERM LEAVES
#
# Its log is LOGS/TOKEN, of a child (an item, a host) LOGS/TOKEN.NUMBER. Each run appends, one write a line:
#   B PID UPTIME ATTEMPT ID INSTANCE   it begins: how many-eth time that is, what jobctl calls it
#   W PID UPTIME LINE     it is about to write up to this line of each stream
#   D PID UPTIME LINE     it has
#   T PID UPTIME          it was told to end
#   E PID UPTIME CODE     it ends with this status
# A line is 32 bytes, so that no page of a file ends in it: a full disk takes all of it or nothing,
# and it is written again until it is taken. TERM says what a TERM does: default, polite (ends with
# 143), zero (ends with 0) or deaf. It fails with CODE until attempt GOOD (0: always). With LEAVES
# it leaves a process in a session of its own.
set -u
logs=$1 token=$2 bursts=$3 lines=$4 pause=$5 good=$6 code=$7 term=$8 leaves=$9
case ${JOBCTL_ID-} in *.*) token=$token.${JOBCTL_ID##*.} ;; esac
log=$logs/$token
exec 3>&1 4>&2 2>/dev/null

note() {
    read -r up _ </proc/uptime
    printf '%s\n' "$1 $$ $up${2:+ $2}" >>"$log"
}

attempt=1
[ ! -e "$log" ] || while read -r word _; do
    [ "$word" != B ] || attempt=$((attempt + 1))
done <"$log"
case $term in
polite) trap 'note T; note E 143; exit 143' TERM ;;
zero) trap 'note T; note E 0; exit 0' TERM ;;
deaf) trap '' TERM ;;
esac
note B "$attempt ${JOBCTL_ID-none} ${JOBCTL_INSTANCE_ID-none}"
[ -z "$leaves" ] || setsid sleep 100000 >/dev/null 3>&- 4>&- &

burst=0 line=0
while [ "$burst" -lt "$bursts" ]; do
    burst=$((burst + 1))
    note W "$((burst * lines))"
    while [ "$line" -lt $((burst * lines)) ]; do
        line=$((line + 1))
        until printf '%-31s\n' "o $token $attempt $line" >&3; do sleep 0.1; done
        until printf '%-31s\n' "e $token $attempt $line" >&4; do sleep 0.1; done
    done
    note D "$line"
    sleep "$pause"
done
if [ "$good" -gt 0 ] && [ "$attempt" -ge "$good" ]; then code=0; fi
note E "$code"
exit "$code"
