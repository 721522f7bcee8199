"""`python -m gemmantle`."""

from gemmantle.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
