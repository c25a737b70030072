"""`python -m autoconv`: the command line."""

from autoconv.cli import main

if __name__ == "__main__":
    main()
