"""The service on Ray Serve: an HTTP ingress, and beside it coordinators that live as long as the deployment."""

import os
from collections.abc import Callable
from functools import partial

import ray
from fastapi import FastAPI
from ray import serve
from ray.serve.config import DeploymentActorConfig

from pasta_ray.actors.cluster import Cluster
from pasta_ray.actors.coordinator_actor import COORDINATOR_OPTIONS, CoordinatorActor, coordinator_name
from pasta_ray.actors.loading import LoadDecoder, LoadModels, LoadTokenizer, TokenizerLike
from pasta_ray.actors.messages import ClusterSpec, DecoderFactory
from pasta_ray.logs import configure
from pasta_ray.serve.config import PROXY_HEADROOM, ServeConfig
from pasta_ray.serve.http import create_app
from pasta_ray.serve.metrics import RayMeter, cluster_metrics
from pasta_ray.serve.models import Models, read_models
from pasta_ray.serve.security import read_keys
from pasta_ray.serve.service import Service


def build_app(args: ServeConfig) -> serve.Application:
    """`serve run pasta_ray.serve.app:build_app model=… adapter=…`: every field of `ServeConfig` is an argument.

    Raises InputError and ModelError for a config that cannot work, before anything is started. Fetches the model where
    it is not there yet.
    """
    models = read_models(args)
    engines = args.engine_configs()
    draft = args.draft_config()
    make_decoder = LoadModels(
        {
            name: LoadDecoder(engine, draft, timed=True, shares=args.most_replicas > 1)
            for name, engine in engines.items()
        }
    )
    tokenizer = LoadTokenizer(next(iter(engines.values())))  # of any: they differ in tags, which no client can write
    return make_app(args, models, make_decoder, tokenizer, read_keys(args.api_keys_file, os.environ))


def make_app(
    config: ServeConfig,
    models: Models,
    make_decoder: DecoderFactory,
    make_tokenizer: Callable[[], TokenizerLike],
    keys: frozenset[str] = frozenset(),
) -> serve.Application:
    """The application over any decoder and tokenizer. ``keys`` are the digests of the API keys."""
    spec = ClusterSpec(
        make_decoder,
        replicas=config.replicas,
        max_replicas=config.max_replicas,
        coordinators=config.num_coordinators,
        scale_up_s=config.scale_up_s,
        scale_down_s=config.scale_down_s,
        drain_s=config.drain_s,
        cpus_per_replica=config.cpus_per_replica,
        gpus_per_replica=config.gpus_per_replica,
        max_ongoing=config.max_ongoing_requests,
        max_queued=config.max_queued_requests,
        placement=config.placement,
        log=config.log,
    )
    admitted = config.max_ongoing_requests + config.max_queued_requests + PROXY_HEADROOM
    deployment = serve.deployment(
        name="pasta",
        num_replicas=config.num_ingress,
        max_ongoing_requests=admitted,  # the coordinators shed load, with a status and a reason; Serve should not
        ray_actor_options={"num_cpus": 0},
        logging_config={"log_level": "WARNING", "enable_access_log": False},  # we log responses, with their ids
        deployment_actors=[
            DeploymentActorConfig(
                name=coordinator_name(index),
                actor_class=ray.remote(CoordinatorActor),
                init_args=(spec, index),
                actor_options=COORDINATOR_OPTIONS,
            )
            for index in range(config.num_coordinators)
        ],
    )(serve.ingress()(Ingress))
    return deployment.bind(config, models, make_tokenizer, keys)


class Ingress:
    """One HTTP worker: parses, tokenizes, streams. It holds no weights."""

    def __init__(
        self,
        config: ServeConfig,
        models: Models,
        make_tokenizer: Callable[[], TokenizerLike],
        keys: frozenset[str] = frozenset(),
    ) -> None:
        configure(config.log)
        names = map(coordinator_name, range(config.num_coordinators))
        cluster = Cluster(*(partial(serve.get_deployment_actor, name) for name in names))  # Serve replaces dead ones
        self._service = Service(config, models, cluster, make_tokenizer(), RayMeter())
        self._keys = keys

    def __serve_build_asgi_app__(self) -> FastAPI:
        return create_app(self._service, self._keys, cluster_metrics, behind_serve=True)
