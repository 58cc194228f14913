"""class_medoids on the CPU."""

from .reference import class_medoids

__all__ = ["class_medoids"]
