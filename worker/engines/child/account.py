"""The user that the server's process runs as."""

from __future__ import annotations

import grp
import os
import pwd
from dataclasses import dataclass
from typing import Any

from worker.errors import ConfigError, FieldError


@dataclass(frozen=True, slots=True)
class Account:
    """Numbers that the kernel knows, and what a login would put into the environment."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    name: str
    home: str

    @property
    def variables(self) -> dict[str, str]:
        return {"HOME": self.home, "USER": self.name, "LOGNAME": self.name}

    @property
    def credentials(self) -> dict[str, Any]:
        """Arguments for the start of a subprocess; none for the user that we are."""
        return {} if self.is_ours else {"user": self.uid, "group": self.gid, "extra_groups": self.groups}

    @property
    def is_ours(self) -> bool:
        return (self.uid, self.gid) == (os.geteuid(), os.getegid())


def account_of(name: str) -> Account:
    """The account of ``user`` or ``user:group``, names or numbers.

    Without a group the user has those of the system's files, as after a login; with one only that. Raises
    `ConfigError` when there is none of that name, or when we may not become that user.
    """
    user, _, group = name.partition(":")
    entry = _user(user)
    gid = _group(group) if group else entry.pw_gid
    groups = (gid,) if group else tuple(os.getgrouplist(entry.pw_name, gid))
    account = Account(entry.pw_uid, gid, groups, entry.pw_name, entry.pw_dir)
    if os.geteuid() != 0 and not account.is_ours:
        raise _refused(f"only root may start a process as {name!r}; the worker runs as uid {os.geteuid()}")
    return account


def _user(name: str) -> pwd.struct_passwd:
    try:
        return pwd.getpwnam(name)
    except KeyError:
        pass
    try:
        return pwd.getpwuid(int(name))
    except (KeyError, ValueError, OverflowError):
        raise _refused(f"there is no user {name!r}") from None


def _group(name: str) -> int:
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        if name.isdecimal():
            return int(name)
    raise _refused(f"there is no group {name!r}")


def _refused(message: str) -> ConfigError:
    return ConfigError((FieldError("WORKER_ENGINE_USER", message),))
