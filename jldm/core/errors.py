"""What may go wrong for a person, one class an exit code."""

RESUME_HINT = "the same command goes on from the last checkpoint"


class UserError(ValueError):
  """A person's mistake, told in one line: what came, what is legal, what to do.  Exit code 2."""


class NonFiniteError(RuntimeError):
  """Training met too many non-finite updates in a row.  Exit code 3."""


class ReplayMismatchError(RuntimeError):
  """What was computed again came to other numbers.  Exit code 4."""


class Preempted(RuntimeError):
  """The process was asked to end (SIGTERM) and has kept what there is to go on from.

  Its exit code is that of sysexits.h's EX_TEMPFAIL: the same command may be started again.
  """

  EXIT_CODE = 75
