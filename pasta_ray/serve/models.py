"""The models behind one endpoint, by the names that clients send."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pasta_ray.serve.config import ServeConfig
from pasta_ray.serve.errors import ModelNotFoundError


@dataclass(frozen=True)
class Model:
    """One served model. ``method`` answers the requests that name none; ``adapter`` is its adapter's name."""

    name: str
    method: str
    adapter: str | None = None
    aliases: tuple[str, ...] = ()


class Models:
    """All served models, and their names: first their own, then the aliases."""

    def __init__(self, models: Iterable[Model]) -> None:
        self.all = tuple(models)
        self.by_name = {model.name: model for model in self.all}
        self.by_name |= {alias: model for model in self.all for alias in model.aliases}

    def find(self, name: str) -> Model:
        """The model of that name or alias. Raises ModelNotFoundError, naming all that there are."""
        if name not in self.by_name:
            served = ", ".join(map(repr, self.by_name))
            raise ModelNotFoundError(f"model {name!r} does not exist here; served: {served}")
        return self.by_name[name]


def read_models(config: ServeConfig) -> Models:
    """What ``config`` serves, as its files describe it; no weights are read. Raises ModelError for a model or adapter
    that is not there, is malformed, or does not fit."""
    from pasta_ray.engine.methods import default_method
    from pasta_ray.engine.weights import check_adapter, find_tags, resolve_adapter

    engines = config.engine_configs()
    for engine in engines.values():
        if engine.adapter:
            resolve_adapter(engine.adapter)  # all of them, before a model is perhaps fetched to compare them with
    models = []
    for name, served in config.served.items():
        check_adapter(engines[name])
        method = default_method(find_tags(engines[name]))
        adapter = Path(served.adapter).name if served.adapter else None
        models.append(Model(name, method, adapter, served.aliases))
    return Models(models)
