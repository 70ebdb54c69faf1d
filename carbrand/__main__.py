"""`python -m carbrand`."""

from carbrand.cli import main

if __name__ == "__main__":
    main()
