"""``python -m volrec`` is the command ``volrec``."""

from volrec.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
