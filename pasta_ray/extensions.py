"""What installed packages add to this one, as entry points: decoding methods and annotators (docs/extending.md)."""

from importlib.metadata import EntryPoint, entry_points
from typing import Any

from pasta_ray.errors import PastaError

METHODS = "pasta_ray.methods"
ANNOTATORS = "pasta_ray.annotators"


class ExtensionError(PastaError):
    """An installed package's addition cannot be used."""


def extension_names(group: str) -> tuple[str, ...]:
    """What installed packages add to ``group``, by name; nothing is imported."""
    return tuple(sorted(entry_points(group=group).names))


def load_extension(group: str, name: str) -> Any:
    """Import the addition of that name. Raises ExtensionError where several packages claim the name, or where its
    import fails."""
    found = tuple(entry_points(group=group, name=name))
    if len(found) > 1:
        raise ExtensionError(
            f"{group}: {name!r} is added by {' and by '.join(sorted(map(_source, found)))}; allowed: one"
        )
    (entry,) = found
    try:
        return entry.load()
    except Exception as error:  # whatever a foreign package does at its import
        raise ExtensionError(f"{group}: {name!r} of {_source(entry)} cannot be imported: {error!r}") from error


def _source(entry: EntryPoint) -> str:
    return f"{entry.dist.name} ({entry.value})" if entry.dist else entry.value
