"""The command line's words: knobs of the recipe set apart, misspelled commands and options met with what was meant."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NoReturn

from sharevl_lite.together import leave_word_to_main_process

EXIT_USAGE = 2
PLAIN_KNOBS = frozenset({"name", "output_dir", "seed"})
"""The recipe's keys outside of its sections."""


class Parser(argparse.ArgumentParser):
    """Of a command, or of the program with its `commands`."""

    commands: Mapping[str, Parser] = MappingProxyType({})

    def error(self, message: str) -> NoReturn:
        """Ends the program with what is wrong."""
        leave_word_to_main_process()
        self.exit(EXIT_USAGE, f"{self.prog}: {message}\nTry '{self.prog} --help'.\n")

    def set_knobs_apart(self, words: Sequence[str]) -> tuple[list[str], list[str]]:
        """The words without the recipe's knobs, and these with their values: argparse does not know that the word after
        an option that it does not know may be its value."""
        own = self.commands.get("".join(words[:1]), self)._option_string_actions
        rest, knobs, left = list[str](), list[str](), list(words)
        while left:
            word = left.pop(0)
            option, equals, _ = word.partition("=")
            is_plain = option.removeprefix("--").replace("-", "_") in PLAIN_KNOBS and option not in own
            is_knob = option.startswith("--") and ("." in option or is_plain)
            (knobs if is_knob else rest).append(word)
            if is_knob and not equals and left and not left[0].startswith("--"):
                knobs.append(left.pop(0))
        return rest, knobs

    def refuse_unknown_command(self, words: Sequence[str]) -> None:
        """Ends the program where the first word is no command, with the one that was meant, or all."""
        word = "".join(words[:1])
        if not word or word.startswith("-") or word in self.commands:
            return
        near = ["train " + word] if word.endswith((".yaml", ".yml")) else difflib.get_close_matches(word, self.commands)
        meant = f"did you mean {near[0]}?" if near else f"there are {', '.join(self.commands)}"
        self.error(f"unknown command {word}; {meant}")

    def refuse_misspelled(self, words: Sequence[str]) -> None:
        """Ends the program where a word (`--dryrun`, `-dry-run`, `--dry`, `--resume-from`) is nearly one of this
        command's options, or begins as one does."""
        known = [option for option in self._option_string_actions if option.startswith("--")]
        for word in words:
            option = word.partition("=")[0]
            name = option.lstrip("-").replace("_", "-").lower()
            if option.startswith("-") and name[:1].isalpha():
                near = difflib.get_close_matches(f"--{name}", known, n=1, cutoff=0.75)
                near += [flag for flag in known if flag.startswith(f"--{name}-") or f"--{name}".startswith(f"{flag}-")]
                if near:
                    self.error(f"unknown option {option}; did you mean {near[0]}?")
