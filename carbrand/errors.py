"""Errors that a user can fix: the command line prints each as one line and exits with its `exit_code`."""


class CarbrandError(Exception):
    """Base of all errors with a message for the user: where, what, the value, and what to do."""

    exit_code = 2


class ConfigError(CarbrandError):
    """A flag, a gin binding, or a combination of them that cannot work."""


class DataError(CarbrandError):
    """Photos, records or a manifest that cannot be used as they are."""


class NotFoundError(DataError):
    """A file that the data name is not there."""


class BuildError(CarbrandError):
    """A dataset build that could not finish."""


class WeightsError(CarbrandError):
    """Pretrained weights that are missing, unreadable, or do not fit the model."""


class CheckpointError(CarbrandError):
    """A training state that is missing, damaged, or belongs to another run."""


class GateError(CarbrandError):
    """A check that the result had to pass, and did not."""

    exit_code = 3


class WorkerError(CarbrandError):
    """One of several processes that train together is missing or gone."""

    exit_code = 1
