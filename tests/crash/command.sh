#!/bin/sh
# command: what the jobs of the crash points run. It writes into a log of its own, outside jobctl,
# that it begins and how it ends, and three lines to standard output in between.
#
#   sh command.sh LOG CODE
set -u
log=$1 code=$2
case ${JOBCTL_ID-} in *.*) log=$log.${JOBCTL_ID##*.} ;; esac
echo B >>"$log"
trap 'echo T >>"$log"; exit 143' TERM
printf 'line %s\n' 1 2 3
[ "$code" != forever ] || while :; do sleep 0.1; done
printf 'E %s\n' "$code" >>"$log"
exit "$code"
