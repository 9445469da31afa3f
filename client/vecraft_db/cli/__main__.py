"""``python -m vecraft_db.cli``: the same as ``vecraft``."""

from vecraft_db.cli.app import main

if __name__ == "__main__":
    main()
