"""What may go wrong for a person, one class an exit code."""


class UserError(ValueError):
  """A person's mistake, told in one line: what came, what is legal, what to do.  Exit code 2."""


class NonFiniteError(RuntimeError):
  """Training met too many non-finite updates in a row.  Exit code 3."""
