"""The exceptions that are cudakit's own, and the one that carries a failed check to the public function."""

from collections.abc import Iterator
from contextlib import contextmanager

# What things raise that are no arrays, or no sequences, though they look like it.
UNREADABLE = (AttributeError, BufferError, RuntimeError, TypeError, ValueError)


class CompileError(RuntimeError):
    """A compiler refused a kernel.

    Attributes
    ----------
    message : str
        What failed: a command, or NVRTC with which kernel.
    source : str
        The whole text that was compiled, with ``#line`` marks.
    log : str
        What the compiler printed.
    """

    def __init__(self, message: str, source: str, log: str) -> None:
        super().__init__(f"{message}\n{log}")
        self.message = message
        self.source = source
        self.log = log

    def __reduce__(self) -> tuple[type["CompileError"], tuple[str, str, str]]:
        """Pickle what it was made of, for a process that compiles for another."""
        return type(self), (self.message, self.source, self.log)


class BackendUnavailable(RuntimeError):
    """CuPy or a C++ compiler is missing, or what it made cannot be loaded; the message says what helps."""


class InvalidArgument(Exception):
    """An argument breaks a rule. The public function it was passed to adds its own name and raises `kind`."""

    def __init__(self, argument: str, rule: str, got: object, kind: type[Exception] = ValueError) -> None:
        # `Exception.__init__` is not called: it adds nothing, and `torch.compile` cannot trace it.
        self.argument, self.rule, self.got, self.kind = argument, rule, got, kind

    def named(self, function: str) -> Exception:
        """Return the exception to raise from the public function called `function`."""
        return self.kind(f"{function}: {self.argument} must {self.rule}, got {self.got}")


def no_derivatives(name: str, kind: str = "third derivatives") -> RuntimeError:
    """Return the exception to raise where an operator is to be differentiated that has no gradients."""
    return RuntimeError(f"{name}: there are no {kind}")


@contextmanager
def raised_by(name: str) -> Iterator[None]:
    """Let what is refused inside say which public function or class refuses it."""
    try:
        yield
    except InvalidArgument as error:
        raise error.named(name) from None
