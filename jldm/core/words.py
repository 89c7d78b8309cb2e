"""Words of messages."""


def count_text(count: int, noun: str, nouns: str = "") -> str:
  """ "1 picture", "2 pictures", "3 classes" with the plural given where it takes more than an s."""
  return f"{count} {noun if count == 1 else nouns or f'{noun}s'}"
