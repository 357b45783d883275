"""The one exception family of mistakes that the user can mend."""


class UserError(ValueError):
    """Bad input: the message is one sentence that names the file, line or key and what to do.

    The command line prints the message alone and exits 2; any other exception is ours and keeps
    its traceback.
    """


class ConfigError(UserError):
    """A configuration to correct; the message names the key."""


class CorpusError(UserError):
    """A corpus folder, or the text it is made from, that cannot be used."""


class ModelError(UserError):
    """A model folder that cannot be used."""


class CheckpointError(UserError):
    """A checkpoint that cannot be resumed from."""
