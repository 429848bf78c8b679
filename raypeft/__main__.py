"""`python -m raypeft`: the command line, where its script is not on the path (in a Ray job)."""

from raypeft.cli import main

if __name__ == "__main__":
    main()
