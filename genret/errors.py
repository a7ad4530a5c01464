"""The error that a user can mend, kept apart from defects of the program."""


class InputError(Exception):
    """Bad input: a file, a table, a configuration or a request that a person can correct.

    The message names the thing, what was expected and what was found. The command line prints it without a
    traceback and ends with exit code 2.
    """
