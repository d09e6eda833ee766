"""What can go wrong, and the exit code that a scheduler sees.

FlmrecError                 1  base class; a subclass is raised, never this
  ConfigError               2  a setting, a flag or a template is wrong
  InputError                3  a file, table, column, type or row set is not what the config says
  CheckpointError           4  the checkpoint is missing, damaged, foreign or does not match
  EnvironmentFault          5  Java, the Delta jars, a GPU or a writable folder is missing
  AuditError                6  the refreshed lists failed their audit; the published table is as it was
  ConflictError             7  another run, or the same run id with other inputs, stands in the way
  RejectedError             8  more rows or users were refused than the config allows

Every message names what is wrong, what was found, what was expected and where.
"""

from __future__ import annotations


class FlmrecError(Exception):
    """Base of every error that a user can cause or cure; shown as one line, without a stack trace."""

    exit_code = 1


class ConfigError(FlmrecError, ValueError):
    """A setting, a flag or a template is wrong."""

    exit_code = 2


class InputError(FlmrecError, ValueError):
    """A file, table, column, type or row set is not what the config says."""

    exit_code = 3


class CheckpointError(FlmrecError, ValueError):
    """The checkpoint is missing, damaged, foreign or does not match its tokenizer."""

    exit_code = 4


class EnvironmentFault(FlmrecError, RuntimeError):
    """The machine lacks something: Java, the Delta jars, a GPU, room or rights to write."""

    exit_code = 5


class AuditError(FlmrecError, RuntimeError):
    """The refreshed lists failed their audit; the published table is as it was."""

    exit_code = 6


class ConflictError(FlmrecError, RuntimeError):
    """Another run, or the same run id with other inputs, stands in the way."""

    exit_code = 7


class RejectedError(FlmrecError, RuntimeError):
    """More rows or users were refused than the config allows."""

    exit_code = 8
