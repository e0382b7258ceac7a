"""Lends the three tiers to the stories."""

from tests.integration.fixtures import person, registry, tier

__all__ = ["person", "registry", "tier"]
