"""The one exception that means "the user can fix this".

Anything raised as :class:`UserError` reaches the console as one line without a traceback and ends
the program with exit code 2 (the traceback is shown with ``debug=true``). Every other exception is
a defect of the program and keeps its traceback.
"""

from __future__ import annotations


class UserError(Exception):
    """A mistake in a setting, a path or an input file.

    The message names the wrong value and the command or setting that fixes it.

    Attributes:
        status: The program's exit code.
    """

    status: int = 2


class StoppedError(UserError):
    """Asked to stop by a signal; the message says how to resume."""

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.signal = signal
        self.status = 128 + signal

    def __reduce__(self) -> tuple[type[StoppedError], tuple[str, int]]:
        return (StoppedError, (str(self), self.signal))


class RejectedSongError(UserError):
    """A song that cannot be used, with a reason from :data:`midigenre.midi.clean.REJECTIONS`.

    Attributes:
        reason: One of the keys of ``REJECTIONS``.
        detail: What is wrong with this file, for ``refused.csv``.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type[RejectedSongError], tuple[str, str]]:
        # Raised in worker processes: the default pickling would pass the message as the reason.
        return (RejectedSongError, (self.reason, self.detail))
