"""Recording demonstrations in Meta-World as one call, with a progress bar."""

from __future__ import annotations

from pathlib import Path

from guerdon.recipes import collect_metaworld as recipe
from guerdon.recipes.progress import progress_bar
from guerdon.recipes.settings import callable_with_settings


@callable_with_settings(recipe.Config)
def collect_metaworld(config: recipe.Config) -> Path:
    """Records demonstrations in Meta-World and returns the dataset's folder. Raises EnvironmentFailed, DatasetError, UsageError,
    WriteFailed."""
    with progress_bar("recording demonstrations") as progress:
        return recipe.collect_metaworld(config, progress=progress)
