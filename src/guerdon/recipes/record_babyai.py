"""Recording demonstrations in the BabyAI world as one call, with a progress bar."""

from __future__ import annotations

from pathlib import Path

from guerdon.recipes import collect_babyai as recipe
from guerdon.recipes.progress import progress_bar
from guerdon.recipes.settings import callable_with_settings


@callable_with_settings(recipe.Config)
def collect_babyai(config: recipe.Config) -> Path:
    """Records demonstrations in the BabyAI world and returns the dataset's folder. Raises EnvironmentFailed, DatasetError, UsageError,
    WriteFailed."""
    with progress_bar("recording demonstrations") as progress:
        return recipe.collect_babyai(config, progress=progress)
