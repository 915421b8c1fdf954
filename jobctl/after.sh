#!/bin/sh
# jobctl after: what a job waits for before its command, and what it does after its end. Functions for
# runner.sh, which reads this only for a job with --after, --after-ok or --on-finish.

# shellcheck disable=SC2034  # runner.sh uses the variables
after=${after-} after_ok=${after_ok-} on_finish=${on_finish-} state=${state-} code=${code-} dir=${dir-}
fate=${fate-} own=${own-} born=${born-} refusal=${refusal-} jobctl_leader=${jobctl_leader-}

# Waits for the jobs in $after and $after_ok. Sets refusal when one of the latter is
# not Completed.
await_others() {
    for other in $after $after_ok; do
        parts_of "$other"
        for part in $parts; do
            await "$part"
        done
    done
    for other in $after_ok; do
        parts_of "$other"
        for part in $parts; do
            grep -q "^state='Completed'" "$part/exit" 2>/dev/null ||
                refusal="not begun: job $other did not complete"
        done
    done
}

# Sets parts to the folders of job $1: those of its children, if it has any.
parts_of() {
    case $1 in
    *.*) parts=../${1%.*}/children/${1#*.} ;;
    *) parts=../$1 ;;
    esac
    [ -d "$parts/items" ] || [ -d "$parts/slots" ] || [ ! -d "$parts/children" ] || parts=$(printf '%s ' "$parts"/children/[0-9]*)
}

# Waits until job folder $1 is finished, lost, or gone, or this job is stopped.
await() {
    # Whether it is lost, only its host can tell, or whoever starts slots again.
    others_tell=$(grep -e "^type='RemoteJob'" -e "^type='TaskJob'" "$1/spec" 2>/dev/null)
    until [ -s "$1/exit" ] || ! { [ -e "$1/spec" ] || [ -h "$1/spec" ]; } || [ -e stop ]; do
        told_time='' # is no longer the time
        if [ -z "$others_tell" ]; then
            judge_fate "$1"
            case $fate in ended | lost) break ;; unknown) held "$1" || break ;; esac
        fi
        (
            self
            printf "waiting='%s'\nwaiter='%s'\nwaiter_ticks='%s'\n" "$other" "$own" "$born" >>run
            [ ! -e stop ] || exit
            say waiting
            exec 3>&- 9>&-
            # The kernel tells when the lock is let go; where that cannot be waited for,
            # or the command has outlived its runner, look again in a second.
            flock -s "$1/lock" true 2>/dev/null
            [ -s "$1/exit" ] || exec sleep 1
        )
    done
    printf "waiting=''\nwaiter=''\n" >>run
}

# Runs the shell text of --on-finish, in the job's directory and environment, and in a session of
# its own: what is left in that of a slot is taken for a part of an item.
announce() {
    trap - HUP INT QUIT TERM PIPE
    jobctl_hook=$on_finish jobctl_dir=$dir jobctl_state=$state jobctl_code=$code
    find_leader
    CDPATH='' cd -- "$cwd" || cd /
    # shellcheck source=/dev/null
    . "$jobctl_dir/env"
    (cd "$jobctl_dir" && exec /bin/rm -f env env.odd exit.new spec.new)
    # Without the cookie: to remove the job shall not end what it says at its end.
    unset JOBCTL_INSTANCE_ID JOBCTL_PROGRESS JOBCTL_RUNNER
    export JOBCTL_STATE="$jobctl_state" JOBCTL_EXIT_CODE="$jobctl_code"
    exec ${jobctl_leader:+"$jobctl_leader"} /bin/sh -c "$jobctl_hook"
}

# For a job that ran on another host: does here what is to be done at its end.
announce_there() {
    cd -- "$1" || exit 125
    dir=$PWD state=$2 code=$3 on_finish='' cwd='' caller_cwd=/
    # shellcheck source=/dev/null
    . ./spec
    cwd=$caller_cwd
    [ -z "$on_finish" ] || announce >>log 2>&1
}
