"""Shell completion."""

from enum import StrEnum
from typing import Annotated

import typer

from hopper_cli.cli import Cli, command
from hopper_cli.commands.options import RUN


class Shell(StrEnum):
    """A shell that can be helped."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


_WHERE = {
    Shell.BASH: "~/.local/share/bash-completion/completions/hopper",
    Shell.ZSH: "~/.zfunc/_hopper   (with `fpath+=~/.zfunc; autoload -Uz compinit; compinit` in ~/.zshrc)",
    Shell.FISH: "~/.config/fish/completions/hopper.fish",
}


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    command(
        app,
        "completion",
        panel=RUN,
        examples=(
            'eval "$(hopper completion bash)"',
            "hopper completion zsh > ~/.zfunc/_hopper",
            "hopper completion fish > ~/.config/fish/completions/hopper.fish",
        ),
    )(completion)


def completion(cli: Cli, shell: Annotated[Shell, typer.Argument(help="Which shell.")]) -> None:
    """
    Print a script that completes commands, options, tasks, projects and instances.

    Tasks, projects and instances are asked of the Hopper that answers.
    """
    from typer._completion_shared import get_completion_script  # typer itself only guesses the shell

    script = get_completion_script(prog_name="hopper", complete_var="_HOPPER_COMPLETE", shell=shell.value)
    if cli.json:
        cli.out.document({"shell": shell.value, "script": script, "where": _WHERE[shell]})
        return
    print(script)
    cli.out.note(f"# for good: write it to {_WHERE[shell]}")
