"""Recipes: one question each, with everything that is trained to answer it. And the command line that runs them.

A recipe is a short module with a LightningModule, a LightningDataModule and ``RECIPE``, and an ordinary LightningCLI
YAML beside it. ``legibility ls`` lists those that come with the package, ``legibility cp`` copies one to change.
"""

from legibility.recipes._recipe import Arm as Arm
from legibility.recipes._recipe import Base as Base
from legibility.recipes._recipe import Control as Control
from legibility.recipes._recipe import Preset as Preset
from legibility.recipes._recipe import Recipe as Recipe

__all__ = ["Arm", "Base", "Control", "Preset", "Recipe"]
