"""Errors that a user can cause or meet. One base class; each kind knows the HTTP status that it means."""


class PastaError(Exception):
    """Base of every error raised on purpose. Its text says what was wrong, where, and what is allowed."""

    http_status = 500


class InputError(PastaError):
    """The caller's input cannot be used: a value out of range, an unknown name, a prompt that is too long."""

    http_status = 400


class NotFoundError(PastaError):
    """The caller named something that does not exist here, such as a model."""

    http_status = 404


class OverloadedError(PastaError):
    """The service is full; the same request may succeed later, ``retry_after_s`` from now."""

    http_status = 429

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s

    def __reduce__(self) -> tuple[type["OverloadedError"], tuple[str, float]]:
        """An exception is pickled by its message alone otherwise."""
        return type(self), (str(self), self.retry_after_s)


class ModelError(PastaError):
    """A checkpoint, adapter or tokenizer cannot be loaded or does not fit the engine."""


class ReplicaError(PastaError):
    """A decode replica died or cannot be reached."""

    http_status = 503
