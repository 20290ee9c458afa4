"""The user that the server's process runs as."""

from __future__ import annotations

import grp
import os
import pwd
from contextlib import suppress
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

    Without a group the user has those of the system's files, as after a login; with one only that, and then a
    number that the system does not know will do. Raises `ConfigError` when there is none of that name, or when
    we may not become that user.
    """
    user, _, group = name.partition(":")
    account = _in_group(user, _group(group)) if group else _as_listed(user)
    if os.geteuid() != 0 and not account.is_ours:
        raise _refused(f"only root may start a process as {name!r}; the worker runs as uid {os.geteuid()}")
    return account


def _as_listed(user: str) -> Account:
    entry = _entry(user)
    if entry is None:
        raise _refused(f"there is no user {user!r}")
    groups = tuple(os.getgrouplist(entry.pw_name, entry.pw_gid))
    return Account(entry.pw_uid, entry.pw_gid, groups, entry.pw_name, entry.pw_dir)


def _in_group(user: str, gid: int) -> Account:
    entry = _entry(user)
    if entry is not None:
        return Account(entry.pw_uid, gid, (gid,), entry.pw_name, entry.pw_dir)
    if user.isdecimal():
        return Account(int(user), gid, (gid,), user, "/")
    raise _refused(f"there is no user {user!r}")


def _entry(name: str) -> pwd.struct_passwd | None:
    """The user of that name, else of that number."""
    with suppress(KeyError):
        return pwd.getpwnam(name)
    with suppress(KeyError, ValueError, OverflowError):
        return pwd.getpwuid(int(name))
    return None


def _group(name: str) -> int:
    with suppress(KeyError):
        return grp.getgrnam(name).gr_gid
    if name.isdecimal():
        return int(name)
    raise _refused(f"there is no group {name!r}")


def _refused(message: str) -> ConfigError:
    return ConfigError((FieldError("WORKER_ENGINE_USER", message),))
