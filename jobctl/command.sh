#!/bin/sh
# jobctl command: what keeps a command from being executed, and what helps then. Functions for
# runner.sh, which reads this only when something may be wrong: it is no part of most jobs.
#
# They are called where any variable but jobctl_* may have the caller's value, PATH included.
# jobctl_called is what people call the command, and jobctl_named what of it is looked at.

# shellcheck disable=SC2034  # runner.sh uses the variables
jobctl_tools=${jobctl_tools-} jobctl_newline=${jobctl_newline-} jobctl_failure=${jobctl_failure-}
jobctl_called=${jobctl_called-} jobctl_blank=' 	'

# Returns if the command $1, which locate_program has looked for, can be executed, as far as
# that is known before; else refuses.
examine() {
    if [ -z "$jobctl_found" ] || [ ! -e "$jobctl_found" ]; then
        jobctl_why=$(advise "$1")
        refuse 127 "command not found: $(printf '%s' "$1")${jobctl_why:+; $jobctl_why}"
    fi
    executable "$jobctl_found"
}

# Says why the command $1 of somebody who has no job cannot be executed, and ends with its
# status, if that is so.
examine_alone() {
    # shellcheck disable=SC2317  # called by what follows
    refuse() {
        printf 'jobctl: ' >&2
        PATH=$jobctl_tools
        for_people "$2" >&2
        exit "$1"
    }
    unset PATH
    [ -z "${caller_path+set}" ] || PATH=$caller_path
    jobctl_bang='' jobctl_called=$1 jobctl_named=$1 jobctl_depth=0
    jobctl_alone='use -c for shell text, in which variables can be set'
    jobctl_newline='
'
    findable "$1"
}

# Ends with status $1 and reason $2 before the command began.
end_unbegun() {
    umask 077
    jobctl_status=$1
    set -f
    IFS=$jobctl_newline
    # shellcheck disable=SC2086  # one line of it
    set -- $2
    IFS=' '
    for_people "$*" >"$jobctl_failure"
    exit "$jobctl_status"
}

# Prints the line $1 without what could steer a terminal. Files from Windows have carriage
# returns where nobody sees them: so they are named.
for_people() {
    case $1 in
    *[[:cntrl:]]*) printf '%s\n' "$1" | PATH=$jobctl_tools LC_ALL=C awk '
        BEGIN { for (i = 1; i < 128; i++) code[sprintf("%c", i)] = i }
        {
            gsub(/\r/, "\\r")
            gsub(/\t/, "\\t")
            for (line = $0; match(line, /[[:cntrl:]]/); line = substr(line, RSTART + 1)) {
                printf "%s\\x%02x", substr(line, 1, RSTART - 1), code[substr(line, RSTART, 1)]
            }
            print line
        }' ;;
    *) printf '%s\n' "$1" ;;
    esac
}

# Prints what helps who wrote $1 as the name of a command, if that looks like what only a shell
# understands.
advise() {
    case $1 in
    [A-Za-z_]*=*)
        case ${1%%=*} in
        *[!A-Za-z0-9_]*) ;;
        *) printf '%s\n' "${jobctl_alone:-use -e to set a variable, or -c for shell text}" && return ;;
        esac
        ;;
    esac
    if of_print "$1"; then
        echo 'there is a space, dash or quote of printed text in it; type a plain one'
        return
    fi
    case $1 in
    *[[:space:]\;\&\|\<\>\(\)\$\`\"\'\\*\?\[]* | '~'* | *?+=* | . | : | ! | '{' | '}' | alias | \
        bg | break | builtin | case | cd | command | continue | coproc | declare | dirs | disown | \
        do | done | elif | else | 'esac' | eval | exec | exit | export | fg | fi | for | function | \
        getopts | hash | history | if | in | jobs | let | local | popd | pushd | read | readonly | \
        return | select | set | shift | shopt | source | suspend | then | time | times | trap | \
        type | typeset | ulimit | umask | unalias | unset | until | wait | while)
        echo 'use -c for shell text'
        ;;
    esac
}

# Succeeds if $1 has a space, a dash or a quote that is not that of the keyboard, but one that
# comes from a web page, say.
of_print() {
    case $1 in *[!\ -~]*) ;; *) return 1 ;; esac
    for jobctl_character in '\0302\0240' '\0342\0200\0220' '\0342\0200\0221' '\0342\0200\0223' \
        '\0342\0200\0224' '\0342\0210\0222' '\0342\0200\0230' '\0342\0200\0231' \
        '\0342\0200\0234' '\0342\0200\0235'; do
        jobctl_character=$(printf '%b' "$jobctl_character")
        case $1 in *"$jobctl_character"*) return 0 ;; esac
    done
    return 1
}

# Refuses since the directory $1 cannot be entered.
no_entry() {
    jobctl_why=''
    case $1 in
    '~'*) jobctl_why='; ~ is not replaced, and what does not begin with / is in the home directory' ;;
    esac
    refuse 126 "cannot enter directory: $1$jobctl_why"
}

# Returns if the file $1 can be executed, else refuses.
executable() {
    if [ -d "$1" ]; then
        refuse 126 "cannot execute $jobctl_named: it is a directory"
    elif [ ! -x "$1" ]; then
        denied "$1"
    elif [ ! -f "$1" ]; then
        refuse 126 "cannot execute $jobctl_named: it is not a file"
    fi
    if known_good "$1" || [ ! -r "$1" ]; then return; fi
    head_of "$1"
    case $jobctl_head in
    '#!'*) interpreted "$jobctl_head" ;;
    *[[:cntrl:]]*) ! binary "$jobctl_head" || of_this_system "$1" ;;
    esac
}

# Succeeds if the line $1 is none of a text: if there are control characters in it other than
# white space and escape.
binary() {
    case $1 in
    *["$(printf '\001\002\003\004\005\006\007\010\016\017\020\021\022\023\024')"]* | \
        *["$(printf '\025\026\027\030\031\032\034\035\036\037\177')"]*) ;;
    *) false ;;
    esac
}

# Prints what the script $1 is, as draft.py does.
kind_of_script() {
    head_of "$1"
    case $jobctl_head in
    '#!'*) echo executable ;;
    *) if binary "$jobctl_head"; then echo binary; else echo text; fi ;;
    esac
}

# Refuses since the file $1 is not executable.
denied() {
    jobctl_why='permission denied' jobctl_where='its file system'
    [ "$1" != "${jobctl_dir-}/script" ] || jobctl_where='the state directory, where its copy lies,'
    case $(PATH=$jobctl_tools && ls -ldL -- "$1" 2>/dev/null) in
    -??[xs]??[xs]??[xt]*) jobctl_why="$jobctl_where is mounted noexec" ;;
    -??[xs]*) ! [ -O "$1" ] || jobctl_why="$jobctl_where is mounted noexec" ;;
    esac
    refuse 126 "cannot execute $jobctl_named: $jobctl_why"
}

# Sets jobctl_head to the first line of the file $1, of 512 bytes at most, with \016 for NUL: sh
# would read a file byte by byte, and it may have no line at all.
head_of() {
    { jobctl_head=$(PATH=$jobctl_tools LC_ALL=C && dd bs=512 count=1 <"$1" | tr '\000' '\016'); } \
        2>/dev/null
    jobctl_head=${jobctl_head%%"$jobctl_newline"*}
}

# Sets jobctl_interpreter and jobctl_argument to what the line $1, which begins with #!, says,
# as Linux reads it: one argument at most, see execve(2).
parse_bang() {
    jobctl_argument=${1#'#!'}
    jobctl_argument=${jobctl_argument#"${jobctl_argument%%[!"$jobctl_blank"]*}"}
    jobctl_interpreter=${jobctl_argument%%["$jobctl_blank"]*}
    jobctl_argument=${jobctl_argument#"$jobctl_interpreter"}
    jobctl_argument=${jobctl_argument#"${jobctl_argument%%[!"$jobctl_blank"]*}"}
    jobctl_argument=${jobctl_argument%"${jobctl_argument##*[!"$jobctl_blank"]}"}
}

# Sets jobctl_interpreter and jobctl_argument to what the script $1 of the job begins with. Its
# interpreter is called by hand, as the kernel would do it: the folder may lie where nothing is
# executed.
read_script() {
    # It is known to begin with a line of text.
    IFS= read -r jobctl_bang <"$1"
    parse_bang "$jobctl_bang"
    [ -n "$jobctl_interpreter" ] || jobctl_interpreter=/bin/sh
    # Without a slash it is one in the current directory, not one to look for.
    case $jobctl_interpreter in */*) ;; *) jobctl_interpreter=./$jobctl_interpreter ;; esac
}

# Returns if what the line $1 names can interpret a script, else refuses.
interpreted() {
    parse_bang "$1"
    jobctl_depth=$((jobctl_depth + 1))
    # Without a name it is as if there were no such line. One script may interpret another,
    # but the kernel follows only some of them.
    [ -n "$jobctl_interpreter" ] && [ "$jobctl_depth" -le 4 ] || return 0
    jobctl_named="$jobctl_called: its interpreter $jobctl_interpreter"
    [ -e "$jobctl_interpreter" ] || refuse 127 "command not found: $jobctl_named is not there"
    executable "$jobctl_interpreter"
    case $jobctl_interpreter in */env) by_env "$jobctl_argument" ;; esac
    case $jobctl_interpreter/$jobctl_argument in
    */perl*/*) ;;
    *"$(printf '\r')") refuse 126 "cannot execute $jobctl_called: its interpreter $jobctl_interpreter \
is given '$jobctl_argument', as the file has the line ends of DOS" ;;
    esac
}

# Returns if env(1) will find what its argument $1 has it look for, and can execute it, else refuses.
by_env() {
    set -- "${1#-S}"
    set -- "${1#"${1%%[!"$jobctl_blank"]*}"}"
    set -- "${1%%["$jobctl_blank"]*}"
    case $1 in '' | -* | *=* | *[\\\'\"\$]*) return ;; esac
    locate_program "$1"
    jobctl_named="$jobctl_called: its interpreter $1"
    [ -e "$jobctl_found" ] || refuse 127 "command not found: $jobctl_named is not there"
    executable "$jobctl_found"
}

# Returns if this system executes the binary file $1, else refuses: setsid would have a shell
# read it. If the kernel was told of others (binfmt_misc), it may be one of those.
of_this_system() {
    jobctl_itself=/bin/sh
    [ ! -r /proc/self/exe ] || jobctl_itself=/proc/self/exe
    jobctl_why=$(
        PATH=$jobctl_tools
        { od -An -v -tu1 -N 4096 <"$1"; echo own; od -An -v -tu1 -N 20 <"$jobctl_itself"; } 2>/dev/null |
            LC_ALL=C awk "$jobctl_inspect"
    )
    case $jobctl_why in
    /*)
        jobctl_named="$jobctl_called: its interpreter $jobctl_why"
        [ -e "$jobctl_why" ] || refuse 127 "command not found: $jobctl_named is not there"
        ;;
    foreign)
        ! registered "$1" /proc/sys/fs/binfmt_misc || return 0
        refuse 126 "cannot execute $jobctl_named: exec format error: it is not a program for this system"
        ;;
    esac
}

# Succeeds if the kernel has been told, as folder $2 shows, of what executes files that begin as $1
# does, or whose names end so (binfmt_misc). A byte that is compared in part counts as equal.
registered() (
    PATH=$jobctl_tools
    grep -q '^enabled' "$2/status" && {
        od -An -v -tx1 -N 256 <"$1" | tr -d ' \n'
        put_line " .${1##*.}"
        cat "$2"/*
    } | LC_ALL=C awk '
        NR == 1 { bytes = $1; sub(/^[^ ]* /, ""); ending = $0; next }
        /^(enabled|disabled)$/ { judge(); on = $1 == "enabled"; at = 0; magic = mask = "" }
        $1 == "offset" { at = $2 }
        $1 == "magic" { magic = $2 }
        $1 == "mask" { mask = $2 }
        on && $0 == "extension " ending { found = 1 }
        END { judge(); exit !found }
        function judge(   k, kept) {
            for (k = 1; k < length(magic); k += 2) {
                kept = substr(mask, k, 2)
                if ((kept == "" || kept == "ff") && substr(magic, k, 2) != substr(bytes, 2 * at + k, 2)) return
            }
            if (on && magic != "") found = 1
        }'
) 2>/dev/null

# Of the bytes of a file, then "own" and those of a program that runs here, prints "foreign" if
# the first one is none for this system, else what it names as its interpreter: see elf(5). A
# processor of 64 bits may execute the programs of its forerunner of 32, but of no other one. Of
# another kind are, for the kernel, also object files, and what was cut off within its headers.
# shellcheck disable=SC2016  # of awk
jobctl_inspect='
    { for (i = 1; i <= NF; i++) if ($i == "own") { own = 1; size[1] = 0 }
                                else byte[own + 0, size[own + 0]++] = $i }
    END {
        mine = kind(1); its = kind(0)
        if (its != mine || (its ~ /^ELF/ && !is_program())) print "foreign"
        else if (its ~ /^ELF/) print interpreter()
    }
    function kind(f,   magic, machine) {
        magic = byte[f, 0] " " byte[f, 1] " " byte[f, 2] " " byte[f, 3]
        if (magic ~ /^(202 254 186 190|20[67] 250 237 254)$/) return "Mach-O"
        if (magic != "127 69 76 70" || byte[f, 4] !~ /^[12]$/) return "other"
        machine = byte[f, byte[f, 5] == 2 ? 19 : 18] + 256 * byte[f, byte[f, 5] == 2 ? 18 : 19]
        return "ELF " byte[f, 5] " " family(machine)
    }
    function family(machine) {
        if (machine == 3) return 62                     # i386 and x86-64
        if (machine == 40) return 183                   # ARM and AArch64
        if (machine == 20) return 21                    # PowerPC
        if (machine == 2 || machine == 18) return 43    # SPARC
        return machine
    }
    function is_program(   wide, type, each, many) {
        wide = byte[0, 4] == 2
        type = number(16, 2); each = number(wide ? 54 : 42, 2); many = number(wide ? 56 : 44, 2)
        return (type == 2 || type == 3) && each == (wide ? 56 : 32) && many > 0 &&
            (size[0] == 4096 || number(wide ? 32 : 28, wide ? 8 : 4) + each * many <= size[0])
    }
    function number(at, count,   k, n) {
        for (k = 0; k < count; k++)
            n = n * 256 + byte[0, byte[0, 5] == 2 ? at + k : at + count - 1 - k]
        return n
    }
    function interpreter(   wide, word, at, k, name) {
        wide = byte[0, 4] == 2
        word = wide ? 8 : 4
        at = number(wide ? 32 : 28, word)
        for (k = number(wide ? 56 : 44, 2); k > 0 && at + 56 <= size[0]; k--) {
            if (number(at, 4) == 3) {
                at = number(at + (wide ? 8 : 4), word)
                while (at < size[0] && byte[0, at] != 0) name = name sprintf("%c", byte[0, at++] + 0)
                return at < size[0] ? name : ""
            }
            at += number(wide ? 54 : 42, 2)
        }
    }'

# Sleeps, as the disk is full; ends if the job was removed.
wait_for_room() {
    [ -e "$jobctl_dir/spec" ] || [ -h "$jobctl_dir/spec" ] || exit 1
    PATH=$jobctl_tools sleep 1
}

# Writes down as the failure that the command $1 could not be executed, though nothing had
# spoken against it: the last line of file $2 is then from setsid, or from the shell that was to
# become the command.
note_unbegun() {
    # bash says why, and then once more that all is well.
    jobctl_said=$(tail -c 6000 "$2" 2>/dev/null | sed '/: Success$/d' | tail -n 1)
    case $jobctl_said in "$0: "* | 'setsid: '*) ;; *) return 0 ;; esac
    case $jobctl_said in
    *': No such file or directory') jobctl_said="command not found: $1: its interpreter is not there" ;;
    *)
        jobctl_said=$(printf '%s\n' "${jobctl_said##*: }" | tr '[:upper:]' '[:lower:]')
        jobctl_said="cannot execute $1: $jobctl_said"
        ;;
    esac
    for_people "$jobctl_said" >"${failures-}failure"
}

# Becomes the command $ARGV[2], in a session of its own if $ARGV[0] says so, and with the variables
# that the file $ARGV[1] has as words of sh. \x27 is the quote.
# shellcheck disable=SC2016  # of perl
jobctl_perl='my ($lead, $file) = splice(@ARGV, 0, 2);
    delete $ENV{PERL_BADLANG};
    if ($file ne "" && open(my $in, "<:raw", $file)) {
        local $/;
        my $text = <$in>;
        while ($text =~ /((?:\x27[^\x27]*\x27|\\\x27)+) /g) {
            (my $word = $1) =~ s/\x27([^\x27]*)\x27|\\(\x27)/defined $1 ? $1 : $2/ge;
            my ($name, $value) = split(/=/, $word, 2);
            $ENV{$name} = $value;
        }
    }
    if ($lead) { require POSIX; POSIX::setsid() }
    { no warnings; exec { $ARGV[0] } @ARGV }
    my $why = $!;
    print STDERR "setsid: $ARGV[0]: $why\n";
    exit($why == 2 ? 127 : 126)'

# Sets jobctl_odd to shell text that puts before the words $@ what sets the variables of the file $1,
# whose names no shell can hold. They are on no command line, which everybody can read, but for an
# instant that of env where there is no perl.
set_odd() {
    quote "$1"
    # shellcheck disable=SC2154  # quote sets it
    jobctl_odd=". $quoted"
    [ ! -x /usr/bin/perl ] ||
        jobctl_odd="export PERL_BADLANG=0; set -- /usr/bin/perl -e '$jobctl_perl' '' $quoted \"\$@\""
}
