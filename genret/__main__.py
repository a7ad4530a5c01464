"""`python -m genret` is `genret`."""

from genret.cli import main

if __name__ == "__main__":
    main()
