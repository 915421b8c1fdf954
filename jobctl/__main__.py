"""Where the program begins, as `jobctl` or as `python -m jobctl`."""

import os
import signal
import sys

# Until main() can end in order, ^C ends us as it does any other program: the imports take
# longer than some people's patience.
signal.signal(signal.SIGINT, signal.SIG_DFL)

# Names and commands are UTF-8 for everybody who reads them, whatever the locale here is. Python
# takes another encoding from that, for good, unless it is told not to.
if sys.getfilesystemencoding() != "utf-8" and sys.executable:
    from jobctl.process import words_given

    try:
        program = os.fsencode(sys.executable)
        os.execv(program, [program, b"-X", b"utf8", *words_given()[1:]])
    except UnicodeEncodeError as error:
        from jobctl.cli import render
        from jobctl.errors import BadUsage

        render.open_standard_files()
        render.say(
            f"{error.encoding}, which this locale has for its encoding, cannot hold the words"
            " that were given; set LC_ALL=C.UTF-8"
        )
        sys.exit(BadUsage.status)

from jobctl.cli.main import main  # noqa: E402

if __name__ == "__main__":
    main()
