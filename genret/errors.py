"""The errors that a person is told without a traceback, kept apart from defects of the program."""


class InputError(Exception):
    """Bad input: a file, a table, a configuration or a request that a person can correct.

    The message names the thing, what was expected and what was found. The command line prints it without a
    traceback and ends with exit code 2.
    """


class EngineError(Exception):
    """Something outside that a run needs, such as the server of a language model, does not do its work.

    The message says what it did instead, what is done and kept, and how to go on. The command line prints it
    without a traceback and ends with exit code 1.
    """


class RunBusyError(InputError):
    """Another driver works on the run. The command line ends with exit code 3."""
