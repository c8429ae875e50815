"""The name under which MLflow loads registered models; versions registered earlier hold it, so it stays."""

from models.registry.click_scorer import _load_pyfunc

__all__ = ["_load_pyfunc"]
