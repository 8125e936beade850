"""`python -m aiasst`: the command line under the module's name."""

from aiasst.cli.app import main

if __name__ == "__main__":
    main()
