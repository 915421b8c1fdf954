"""Where the agent begins: `python -m jobctl.agent STATE_DIR`."""

import sys

from jobctl.agent.server import main

if __name__ == "__main__":
    # paramiko would take as long again to load this, which it needs for `Match exec` alone; our
    # configuration comes from ssh itself.
    sys.modules.setdefault("invoke", None)  # type: ignore[arg-type]
    main()
