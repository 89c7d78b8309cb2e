"""The errors that end a command, one class per exit code."""

MOST_REASON = 200  # characters of a text that a file had a part in
RESUME_HINT = "the same command goes on from the last checkpoint"


def printable(text: str, limit: int | None = None) -> str:
  """Text with what a terminal would obey, such as the escapes of a name from a file, written out.

  Has at most `limit` characters.
  """
  escape = lambda character: character.encode("unicode_escape").decode()
  return "".join(each if each.isprintable() else escape(each) for each in text[:limit])[:limit]


def is_out_of_memory(error: BaseException) -> bool:
  """Whether the host or a device of JAX has no memory left."""
  return isinstance(error, MemoryError) or (
    isinstance(error, RuntimeError) and "RESOURCE_EXHAUSTED" in str(error)
  )


class UserError(ValueError):
  """A mistake of the user, in one line: what came, what is legal, what to do.  Exit code 2."""


class NonFiniteError(RuntimeError):
  """Too many updates in a row were not finite.  Exit code 3."""


class ReplayMismatchError(RuntimeError):
  """A replay computed other numbers than the log has.  Exit code 4."""


class Preempted(RuntimeError):
  """SIGTERM came, and the run has committed a checkpoint to resume from.

  The exit code is EX_TEMPFAIL of sysexits.h: the same command may be started again.
  """

  EXIT_CODE = 75


class Interrupted(Preempted):
  """The process was asked to end from the keyboard (SIGINT), and kept as much; the shells' exit code."""

  EXIT_CODE = 130
