"""Rewrite option errors of the parser: the full key, the class that does not accept it, and the nearest known name."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from pfedst.configuration.command_line import CONFIG, options_of, plain
from pfedst.configuration.imports import import_class
from pfedst.configuration.yaml_text import read_yaml
from pfedst.errors import ConfigurationError, nearest


def explain(message: str, arguments: Sequence[str], bases: Mapping[str, type], options: Sequence[str] = ()) -> str:
    """Return a parser message with the whole key and a remedy.

    The parser reports only the last part of a key that a class does not accept. The rest is searched in the arguments
    and configuration files.

    Args:
        message: message of the parser.
        arguments: the command line.
        bases: last part of a key -> base class of the values allowed there.
        options: full keys of the parser.
    """
    # an optional class is parsed as a union; its parser has already explained the error of the relevant branch
    inner = re.search(r"- ((?:unknown option|--[\w.]+:).*?)(?=\n\s*- |\n\s*Given value|$)", message, re.DOTALL)
    if inner:
        return re.sub(r"\n\s+", "\n  ", inner.group(1)).strip()
    pairs = list(given_options(arguments))
    key = _key_in(message)
    full = next((path for path, _ in reversed(pairs) if path == key or path.endswith(f".{key}")), key)
    if key and re.search(r"not accepted|does not accept|unrecognized", message, re.IGNORECASE):
        return _unknown_option(full, pairs, bases, options)
    base = bases.get(full.split(".")[-1])
    of_a_class = r"import path|subclass|Problem with given class_path|not accessible"
    if base is not None and re.search(of_a_class, message, re.IGNORECASE):
        return _unknown_class(full, pairs, base, message)
    # the part after the last arrow of a chain of parsers is the problem; the key is the location
    detail = re.sub(r'^.*?[Kk]ey "[\w.]+":\s*', "", message, flags=re.DOTALL).strip()
    detail = re.sub(r"<class '(\w+)'>", r"\1", detail).replace("typing.Literal", "one of ")
    return f"--{full}: {_of_a_union(detail) or _reasons(detail)}" if key else message


def _of_a_union(detail: str) -> str:
    """Return the error of a value that fits no type of a union in one line; empty if it is another error."""
    if "Union subtypes" not in detail:
        return ""
    if missing := re.search(r"- (the following arguments are required: .*)", detail):  # of a class, one of the types
        return missing.group(1)
    given = re.search(r"Given value: ([^\[{\s]+)$", detail)
    if given is None or given.group(1).startswith("Namespace("):
        return ""
    expected = re.findall(r"- Expected an? (.*)", detail)
    kinds = " or ".join(dict.fromkeys(kind.replace("NoneType", "null") for kind in expected))
    return f"{given.group(1)} is no {kinds}" if kinds else ""


def _reasons(detail: str) -> str:
    """Return the reasons of an error in one line: the parser writes a tree of them for an option of several types."""
    if "Union subtypes" in detail:
        found = [line.strip() for line in re.findall(r"^\s*- (.*)$", detail, re.MULTILINE)]
        reasons = dict.fromkeys(reason for reason in found if "Does not validate" not in reason)
        kept = [reason for reason in reasons if reason != "Expected a NoneType"] or list(reasons)
        given = re.findall(r"Given value: (.*)$", detail, re.MULTILINE)
        detail = "; ".join(kept) + "".join(f" (given: {value})" for value in given[-1:])
    if re.search(r"Expected a str\. Got value: ", detail):
        detail += '; a number, yes, no and null in YAML are no text: write them in quotes, such as "0" or "no"'
    return detail


def given_options(arguments: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) pairs of the configuration files and of the command line, in order."""
    for option in options_of(arguments):
        if option.key == CONFIG:
            try:
                yield from _flat(read_yaml(Path(option.value)))
            except (OSError, ValueError, yaml.YAMLError, ConfigurationError):
                continue
        elif option.key:
            yield option.words[0].partition("=")[0].removeprefix("--").rstrip("+"), option.value


def subclasses(base: type) -> dict[str, type]:
    """Return the classes allowed for `base`, by short name: its subclasses, or `base` itself if it has none."""
    children: list[type] = base.__subclasses__()
    if not children:
        return {base.__name__: base}
    found: dict[str, type] = {}
    for derived in children:
        found |= {derived.__name__: derived} | subclasses(derived)
    return found


def _flat(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items() if isinstance(tree, dict) else ():
        yield f"{prefix}{key}", value
        yield from _flat(value, f"{prefix}{key}.")


def _key_in(message: str) -> str:
    patterns = (
        r"[Oo]ption '([\w.]+)'",
        r"[Uu]nrecognized arguments: --([\w.]+)",
        r"(?:nested )?[Kk]eys?:? [\"']([\w.]+)[\"']",
        r"Parser key \"([\w.]+)\"",
    )
    return next((match.group(1) for pattern in patterns if (match := re.search(pattern, message))), "")


def _chosen(key: str, pairs: Sequence[tuple[str, Any]]) -> str | None:
    """Return the class chosen at `key`, written in either way, with its import path if one is given."""
    for path, value in reversed(pairs):
        if plain(path) == plain(key) and isinstance(value, str):
            return value
    return None


def _unknown_option(
    full: str, pairs: Sequence[tuple[str, Any]], bases: Mapping[str, type], options: Sequence[str]
) -> str:
    parent, _, last = full.rpartition(".")
    base = bases.get(plain(parent).split(".")[-1])
    if base is None:
        meant = _elsewhere(last, bases, options)
        first = (*bases, *(key for key in options if "." not in key))
        told = f" Did you mean {meant}?" if meant else nearest(full.split(".")[0], first)
        return f'unknown option "--{full}".{told} See --help, or --print_config'
    known = subclasses(base)
    owner = known.get((_chosen(parent, pairs) or "").split(".")[-1], base)
    options = list(
        dict.fromkeys(o for cls in ([owner] if owner is not base else known.values()) for o in _options(cls))
    )
    return f'unknown option "--{full}" of {owner.__name__}.{nearest(last, options)}\n  known: {", ".join(options)}'


def _elsewhere(name: str, bases: Mapping[str, type], options: Sequence[str]) -> str:
    """Return the full keys that end with a name: `rounds` is known as `--coordinator.rounds`; empty if none does."""
    found = [key for key in options if key.split(".")[-1] == name]
    for key in options:
        base = bases.get(key.split(".")[-1])
        if base is not None and any(name in _options(of) for of in (base, *subclasses(base).values())):
            found.append(f"{key}.{name}")
    return " or ".join(f'"--{key}"' for key in dict.fromkeys(found))


def _unknown_class(full: str, pairs: Sequence[tuple[str, Any]], base: type, message: str) -> str:
    words = re.search(r"typing\.Literal\[(.*?)\]", message)  # where a word is allowed in place of a class
    known = [*re.findall(r"'(\w+)'", words.group(1) if words else "")]
    known += sorted(name for name in subclasses(base) if not name.startswith("_"))
    given = _chosen(full, pairs) or "?"
    if "." in given:
        try:
            import_class(given)
        except ConfigurationError as error:
            return f"--{full} {given}: {error}"
    chosen = given.split(".")[-1]
    problem = f"{chosen} is no {base.__name__}" if "correspond to a subclass" in message else f'no class "{chosen}"'
    if chosen in known:  # of the same name, and elsewhere
        problem = f"the {chosen} of that import path is no {base.__module__}.{base.__name__}"
    return f"--{full}: {problem}.{nearest(chosen, known)}\n  known: {', '.join(known)} (or an import path)"


def _options(owner: type) -> list[str]:
    """Return the parameters of a class, including those that it passes on to its base classes."""
    options: dict[str, None] = {}
    for cls in inspect.getmro(owner):
        if "__init__" not in vars(cls):
            continue
        parameters = list(inspect.signature(cls.__init__).parameters.values())[1:]  # type: ignore[misc]
        options |= dict.fromkeys(p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY))
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return list(options)
