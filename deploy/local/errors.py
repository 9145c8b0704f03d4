"""What can stop the local stack, each with a message that is one sentence for its user."""


class StackError(Exception):
    """The local stack cannot start or go on; the message says why and what to do about it."""


class HomeInUseError(StackError):
    """Another stack holds the lock of this home."""


class ForeignFolderError(StackError):
    """A data folder holds files that Darkroom did not make; nothing in it was touched."""


class PortTakenError(StackError):
    """A port that was asked for by name is used by another program."""


class ServerFailedError(StackError):
    """A server or a process of Darkroom ended, or did not answer in time."""


class StopRequestedError(Exception):
    """The user asked the stack to stop while it was still waiting for something."""
