"""`python -m cddnet` is the command `cddnet`."""

from cddnet.cli import main

if __name__ == "__main__":
    main()
