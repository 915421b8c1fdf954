"""Where the program begins, as `jobctl` or as `python -m jobctl`."""

import signal

# Until main() can end in order, ^C ends us as it does any other program: the imports take
# longer than some people's patience.
signal.signal(signal.SIGINT, signal.SIG_DFL)

from jobctl.cli.main import main  # noqa: E402

if __name__ == "__main__":
    main()
