"""
Language models that are installed beside the Sage.

The Sage has the port (`ports.LanguageModel`) and no client of its own. Whoever has one declares it as an entry point
of the group `hopper.sage.language_models`: a function without arguments that reads its own settings and returns a
`ports.LanguageModel`. So no library imports a service, and a Sage without an LLM needs nothing that speaks HTTP.
"""

from importlib.metadata import entry_points
from typing import Final, cast

from hopper_common.startup import StartupError
from hopper_sage.ports import LanguageModel

GROUP: Final = "hopper.sage.language_models"


class NoLanguageModel(StartupError):
    """A language model is asked for, and nothing that is installed can speak to one."""

    exit_code = 5


def installed_model(group: str = GROUP) -> LanguageModel:
    """
    Make the language model that is installed; of several the first by name.

    Raises:
        NoLanguageModel: There is none.
    """
    found = sorted(entry_points(group=group), key=lambda entry: entry.name)
    if not found:
        raise NoLanguageModel(
            f"HOPPER_LLM_URL is set, and no package offers a language model ({group}): unset it for the Sage, or "
            "install one that does"
        )
    return cast("LanguageModel", found[0].load()())
