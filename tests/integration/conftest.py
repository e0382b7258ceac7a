"""Lends the three tiers to the stories, and other programs."""

from tests.integration.fixtures import debian, person, registry, tier
from tests.integration.programs import docker, peers_folder, podman, registry_host

__all__ = ["debian", "docker", "peers_folder", "person", "podman", "registry", "registry_host", "tier"]
