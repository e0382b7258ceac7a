"""The Dockerfile front end: text to values, and values with an environment to expanded values. Nothing is built here.

`parse` reads a Dockerfile into stages of frozen instructions; `expand` puts variables in when an instruction's turn
comes; `lint` makes BuildKit's checks; `Ignore` answers for a .dockerignore and `Glob` for a pattern of COPY.
"""

from __future__ import annotations

from nbcontainer.dockerfile.expansion import Expanded, assign_arguments, expand, global_arguments
from nbcontainer.dockerfile.globs import Glob, Globs, has_wildcards, split_wildcards
from nbcontainer.dockerfile.ignore import Ignore, Verdict
from nbcontainer.dockerfile.instructions import (
    Add,
    Arg,
    Argument,
    Cmd,
    Command,
    Copy,
    Entrypoint,
    Env,
    ExecForm,
    Expose,
    From,
    Healthcheck,
    Instruction,
    Label,
    Maintainer,
    Onbuild,
    Pair,
    Run,
    Shell,
    ShellForm,
    Stopsignal,
    Transfer,
    User,
    Volume,
    Workdir,
)
from nbcontainer.dockerfile.lines import Directives, Finding, Heredoc, Origin
from nbcontainer.dockerfile.lint import CHECKS, PLATFORM_ARGUMENTS, Check, Report, lint
from nbcontainer.dockerfile.modes import Chmod
from nbcontainer.dockerfile.mounts import (
    BindRunMount,
    CacheRunMount,
    RunMount,
    SecretRunMount,
    Sharing,
    SshRunMount,
    TmpfsRunMount,
)
from nbcontainer.dockerfile.parser import Dockerfile, Stage, parse, parse_trigger
from nbcontainer.dockerfile.ports import exposed_ports
from nbcontainer.dockerfile.words import Expansion, expand_text, expand_word

__all__ = [
    "CHECKS",
    "PLATFORM_ARGUMENTS",
    "Add",
    "Arg",
    "Argument",
    "BindRunMount",
    "CacheRunMount",
    "Check",
    "Chmod",
    "Cmd",
    "Command",
    "Copy",
    "Directives",
    "Dockerfile",
    "Entrypoint",
    "Env",
    "ExecForm",
    "Expanded",
    "Expansion",
    "Expose",
    "Finding",
    "From",
    "Glob",
    "Globs",
    "Healthcheck",
    "Heredoc",
    "Ignore",
    "Instruction",
    "Label",
    "Maintainer",
    "Onbuild",
    "Origin",
    "Pair",
    "Report",
    "Run",
    "RunMount",
    "SecretRunMount",
    "Sharing",
    "Shell",
    "ShellForm",
    "SshRunMount",
    "Stage",
    "Stopsignal",
    "TmpfsRunMount",
    "Transfer",
    "User",
    "Verdict",
    "Volume",
    "Workdir",
    "assign_arguments",
    "expand",
    "expand_text",
    "expand_word",
    "exposed_ports",
    "global_arguments",
    "has_wildcards",
    "lint",
    "parse",
    "parse_trigger",
    "split_wildcards",
]
