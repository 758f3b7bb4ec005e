"""`caiafs completion SHELL`: what a shell completes, made from the parser.

One description of the commands, `describe`, is read from the parser and written in each shell's own
words. Static text, not a program that is asked at every TAB: a shell that loads it never starts Python.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, field

from caiafs.cli.parser import Parser, build_parser
from caiafs.config import OPTIONS

MOUNT8_WORDS = ("rw", "nodev", "nosuid", "noexec", "noatime", "nodiratime", "sync", "dirsync", "nofail")


@dataclass(slots=True)
class Flag:
    """One flag with all its spellings; *value* is "" for one that takes none."""

    names: list[str]
    help: str
    value: str
    choices: list[str]


@dataclass(slots=True)
class Command:
    """`caiafs NAME`: its flags, what stands in its places, and the commands below it."""

    name: str
    help: str
    flags: list[Flag] = field(default_factory=list)
    places: list[str] = field(default_factory=list)
    choices: list[str] = field(default_factory=list)
    below: list[Command] = field(default_factory=list)


def run(arguments: argparse.Namespace) -> int:
    """Print the script for one shell."""
    print(render(arguments.shell), end="")
    return 0


def render(shell: str) -> str:
    """The script for bash, zsh or fish."""
    return {"bash": _bash, "zsh": _zsh, "fish": _fish}[shell](describe(build_parser()))


def describe(parser: Parser, name: str = "caiafs", said: str = "") -> Command:
    """What *parser* understands."""
    told = Command(name, said)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            helps = {choice.dest: choice.help or "" for choice in action._choices_actions}
            told.below = [describe(below, word, helps[word]) for word, below in action.choices.items()]
        elif action.option_strings:
            said = "" if action.help in (None, argparse.SUPPRESS) else str(action.help)
            setting = action.option_strings[0].removeprefix("--").removeprefix("no-").replace("-", "_")
            option = next((each for each in OPTIONS if each.name == setting), None)
            told.flags.append(
                Flag(
                    list(action.option_strings),
                    said % {"default": action.default} if said else option.help if option else "",
                    "" if action.nargs == 0 else str(action.metavar),
                    list(option.choices) if option and action.nargs != 0 else [],
                )
            )
        else:
            told.places += str(action.metavar).split()
            told.choices += [str(choice) for choice in action.choices or ()]
    return told


def _paths(command: Command, above: str = "") -> Iterator[tuple[str, Command]]:
    """Every command that has none below it, with the words that lead to it."""
    for each in command.below:
        words = f"{above} {each.name}".strip()
        if each.below:
            yield from _paths(each, words)
        else:
            yield words, each


def _groups(command: Command, above: str = "") -> Iterator[tuple[str, Command]]:
    """Every command that has some below it; the first is `caiafs` itself, whose words are ""."""
    yield above, command
    for each in command.below:
        if each.below:
            yield from _groups(each, f"{above} {each.name}".strip())


def _kind(metavar: str) -> str:
    """What is completed for a value: a mount, a folder, a file, or nothing that could be known."""
    kinds = {"MOUNTPOINT": "mounts", "REPO": "folders", "DIR": "folders", "FILE": "files"}
    return kinds.get(metavar, "words" if metavar.startswith("OPTION[") else "")


# -- bash -----------------------------------------------------------------------------------------

_BASH_HEAD = r"""# bash completion for caiafs, made by `caiafs completion bash`

_caiafs_mounts() {
    local mount
    while read -r _ mount _; do
        printf '%b\n' "$mount"
    done < <(grep -s ' fuse\.caiafs ' /proc/self/mounts)
}

_caiafs_files() { # the mounts, folders or files that begin with $2
    local IFS=$'\n'
    compopt -o filenames 2>/dev/null
    case $1 in
    mounts) COMPREPLY=($(compgen -W "$(_caiafs_mounts)" -- "$2") $(compgen -d -- "$2")) ;;
    folders) COMPREPLY=($(compgen -d -- "$2")) ;;
    files) COMPREPLY=($(compgen -f -- "$2")) ;;
    esac
}

_caiafs_option() { # the last word of the list that follows -o
    local list=$1 last=${1##*,} before=
    [[ $list == *,* ]] && before=${list%,*},
    local name=${last%%=*} value=
    if [[ $last == *=* ]]; then
        case $name in
__VALUES__
        esac
        COMPREPLY=($(compgen -W "$value" -- "${last#*=}"))
        # What stands before the last = is a word of its own for bash, and stays as it is.
        return
    fi
    COMPREPLY=($(compgen -W "__WORDS__" -- "$last"))
    [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == *= ]] && compopt -o nospace 2>/dev/null
    [[ $before == *=* ]] && before=${before##*=}
    COMPREPLY=("${COMPREPLY[@]/#/$before}")
}

_caiafs() {
    local line=${COMP_LINE:0:COMP_POINT} word cur prev path= places=0
    local -a words
    read -ra words <<<"$line"
    [[ $line == *[[:space:]] ]] && words+=("")
    cur=${words[${#words[@]} - 1]}
    prev=${words[${#words[@]} - 2]}
    COMPREPLY=()
    for word in "${words[@]:1:${#words[@]}-2}"; do
        case $path,$word in
        *,-*) ;;
__STEPS__
        *) places=$((places + 1)) ;;
        esac
    done
    case "$path,$prev" in
__FLAG_VALUES__
    esac
    case $path in
__COMMANDS__
    esac
}
complete -F _caiafs caiafs
"""


def _bash(top: Command) -> str:
    values = [
        f"        {option.name}) value='{' '.join(option.choices)}' ;;"
        for option in OPTIONS
        if option.choices
    ]
    for name, kind in [("config", "files"), *((option.name, _kind(option.metavar)) for option in OPTIONS)]:
        if kind:
            values.append(f'        {name}) _caiafs_files {kind} "${{last#*=}}"; return ;;')
    steps, flag_values, commands = [], [], []
    for above, group in _groups(top):
        for each in group.below:
            words = f"{above} {each.name}".strip()
            steps.append(f"        '{above},{each.name}') path='{words}' ;;")
        names = " ".join([each.name for each in group.below] + _spellings(group))
        commands.append(f"    '{above}') COMPREPLY=($(compgen -W '{names}' -- \"$cur\")) ;;")
    for words, command in _paths(top):
        for flag in command.flags:
            if not flag.value:
                continue
            pattern = "|".join(f"'{words},{name}'" for name in flag.names)
            flag_values.append(f"    {pattern}) {_bash_value(flag)}; return ;;")
        commands += [
            f"    '{words}')",
            f"        if [[ $cur == -* ]]; then COMPREPLY=($(compgen -W '{' '.join(_spellings(command))}'"
            ' -- "$cur"))',
            f"        else {_bash_places(command)}; fi",
            "        ;;",
        ]
    names = " ".join(option.name + ("" if option.is_switch else "=") for option in OPTIONS)
    text = _BASH_HEAD.replace("__VALUES__", "\n".join(values))
    text = text.replace("__WORDS__", f"{names} config= {' '.join(MOUNT8_WORDS)}")
    text = text.replace("__STEPS__", "\n".join(steps)).replace("__FLAG_VALUES__", "\n".join(flag_values))
    return text.replace("__COMMANDS__", "\n".join(commands))


def _spellings(command: Command) -> list[str]:
    return [name for flag in command.flags for name in flag.names]


def _bash_value(flag: Flag) -> str:
    kind = _kind(flag.value)
    if kind == "words":
        return '_caiafs_option "$cur"'
    if flag.choices:
        return f"COMPREPLY=($(compgen -W '{' '.join(flag.choices)}' -- \"$cur\"))"
    return f'_caiafs_files {kind} "$cur"' if kind else ":"


def _bash_places(command: Command) -> str:
    if command.choices:
        return f"COMPREPLY=($(compgen -W '{' '.join(command.choices)}' -- \"$cur\"))"
    kinds = [_kind(place) for place in command.places if _kind(place)]
    return f'_caiafs_files {kinds[0]} "$cur"' if kinds else ":"


# -- zsh ------------------------------------------------------------------------------------------

_ZSH_HEAD = r"""#compdef caiafs
# zsh completion for caiafs, made by `caiafs completion zsh`

_caiafs_mounts() {
    local -a mounts
    mounts=(${(f)"$(grep -s ' fuse\.caiafs ' /proc/self/mounts | cut -d' ' -f2)"})
    _alternative 'mounts:mount:compadd -a mounts' 'folders:folder:_files -/'
}

_caiafs_options() {
    _values -s , 'option' \
__WORDS__
}

"""


def _zsh(top: Command) -> str:
    words = []
    for option in OPTIONS:
        action = _zsh_action(_kind(option.metavar), list(option.choices))
        value = "" if option.is_switch else f":{option.name}:{action}"
        words.append(f"        '{option.name}[{_zsh_quoted(option.help)}]{value}'")
    words.append("        'config[a file of settings]:file:_files'")
    words += [f"        '{word}'" for word in MOUNT8_WORDS]
    text = _ZSH_HEAD.replace("__WORDS__", " \\\n".join(words))
    for path, command in reversed([*_groups(top), *_paths(top)]):
        text += _zsh_function(path, command)
    return text + '_caiafs "$@"\n'


def _zsh_function(path: str, command: Command) -> str:
    name = "_".join(["_caiafs", *path.split()])
    lines = [f"        {spec}" for flag in command.flags for spec in _zsh_flag(flag)]
    if not command.below:
        lines += [f"        '{spec}'" for spec in _zsh_places(command)]
        return f"{name}() {{\n    _arguments -s \\\n" + " \\\n".join(lines) + "\n}\n\n"
    lines += ["        '1:command:->command'", "        '*::argument:->argument'"]
    described = "\n".join(f"            '{each.name}:{_zsh_quoted(each.help)}'" for each in command.below)
    cases = "\n".join(f"        {each.name}) {name}_{each.name} ;;" for each in command.below)
    joined = " \\\n".join(lines)
    return f"""{name}() {{
    local context state line curcontext=$curcontext
    local -a commands
    typeset -A opt_args
    _arguments -C \\
{joined}
    case $state in
    command)
        commands=(
{described}
        )
        _describe command commands
        ;;
    argument)
        case $line[1] in
{cases}
        esac
        ;;
    esac
}}

"""


def _zsh_flag(flag: Flag) -> Iterator[str]:
    action = _zsh_action(_kind(flag.value), flag.choices)
    for name in flag.names:
        repeat = "*" if flag.value and not name.startswith("--") else ""
        value = f":{flag.names[-1].strip('-')}:{action}" if flag.value else ""
        yield f"'{repeat}{name}[{_zsh_quoted(flag.help)}]{value}'"


def _zsh_places(command: Command) -> Iterator[str]:
    for number, place in enumerate(command.places, 1):
        action = _zsh_action(_kind(place), command.choices)
        yield f"{number if len(command.places) > 1 or place != 'FILE' else '*'}:{place.lower()}:{action}"


def _zsh_action(kind: str, choices: list[str]) -> str:
    actions = {
        "mounts": "_caiafs_mounts",
        "folders": "_files -/",
        "files": "_files",
        "words": "_caiafs_options",
    }
    return _zsh_choice(tuple(choices)) if choices else actions.get(kind, " ")


def _zsh_choice(choices: tuple[str, ...]) -> str:
    return f"({' '.join(choices)})" if choices else " "


def _zsh_quoted(text: str) -> str:
    for special in "\\[]:":
        text = text.replace(special, f"\\{special}")
    return text.replace("'", "'\\''")


# -- fish -----------------------------------------------------------------------------------------

_FISH_HEAD = r"""# fish completion for caiafs, made by `caiafs completion fish`

function __caiafs_mounts
    string match -r '^\S+ \S+ fuse\.caiafs ' </proc/self/mounts | string split -f 2 ' '
end

# Whether the words so far, flags aside, begin with these; with --only, whether they are just these.
function __caiafs_at
    set -l only no
    if test "$argv[1]" = --only
        set only yes
        set -e argv[1]
    end
    set -l words (commandline -opc | string match -v -- '-*')[2..]
    if test $only = yes; and test (count $words) -ne (count $argv)
        return 1
    end
    for number in (seq (count $argv))
        test "$words[$number]" = "$argv[$number]"; or return 1
    end
end

function __caiafs_options
    set -l list (commandline -ct | string replace -r '[^,]*$' '')
    for word in __WORDS__
        echo $list$word
    end
end

complete -c caiafs -f
"""


def _fish(top: Command) -> str:
    words = [option.name + ("" if option.is_switch else "=") for option in OPTIONS]
    for option in OPTIONS:
        words += [f"{option.name}={choice}" for choice in option.choices]
    lines = [_FISH_HEAD.replace("__WORDS__", " ".join([*words, *MOUNT8_WORDS]))]
    for above, group in _groups(top):
        condition = f"-n '{' '.join(['__caiafs_at', '--only', *above.split()])}'"
        for each in group.below:
            lines.append(f"complete -c caiafs {condition} -a {each.name} -d {_fish_quoted(each.help)}")
        lines += [f"complete -c caiafs {condition}{_fish_flag(flag)}" for flag in group.flags]
    for path, command in _paths(top):
        condition = f"-n '__caiafs_at {path}'"
        lines += [f"complete -c caiafs {condition}{_fish_flag(flag)}" for flag in command.flags]
        if command.choices:
            lines.append(f"complete -c caiafs {condition} -a '{' '.join(command.choices)}'")
        kinds = {_kind(place) for place in command.places}
        if "mounts" in kinds:
            lines.append(f"complete -c caiafs {condition} -a '(__caiafs_mounts)'")
        if kinds & {"mounts", "folders"}:
            lines.append(f"complete -c caiafs {condition} -a '(__fish_complete_directories)'")
        if "files" in kinds:
            lines.append(f"complete -c caiafs {condition} -F")
    return "\n".join(lines) + "\n"


def _fish_flag(flag: Flag) -> str:
    text = ""
    for name in flag.names:
        text += f" -l {name.removeprefix('--')}" if name.startswith("--") else f" -s {name.removeprefix('-')}"
    if flag.value:
        kind = _kind(flag.value)
        known = {"words": "(__caiafs_options)", "folders": "(__fish_complete_directories)"}.get(kind)
        choices = " ".join(flag.choices) or known
        text += " -r" + (" -F" if kind == "files" else f" -a '{choices}'" if choices else "")
    return text + (f" -d {_fish_quoted(flag.help)}" if flag.help else "")


def _fish_quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
