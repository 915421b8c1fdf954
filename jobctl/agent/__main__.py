"""Where the agent begins: `python -m jobctl.agent STATE_DIR`."""

from jobctl.agent.server import main

if __name__ == "__main__":
    main()
