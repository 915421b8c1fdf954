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
    os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])

from jobctl.cli.main import main  # noqa: E402

if __name__ == "__main__":
    main()
