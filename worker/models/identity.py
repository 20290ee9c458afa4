"""What a model is: canonical URLs, the hubs' own ways to name a file, identities, and names that are safe. No I/O."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from enum import StrEnum
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from worker.mentions import stem_of
from worker.models.auth import Auth
from worker.models.base import Entry, Wanted

HUGGING_FACE = "huggingface.co"
CIVITAI = "civitai.com"
PICKLES = (".ckpt", ".pt", ".pt2", ".pth", ".bin", ".pkl", ".patch")
"""Formats that can run code when they are loaded; Fooocus reads ``.patch`` as what PyTorch saved."""

NAME_BYTES = 200
CHOICES = ("type", "format", "size", "fp", "quantType")
"""What Civitai's download URL lets one choose a version's file by, beside its id."""

_HUGGING_FACE_HOSTS = frozenset({HUGGING_FACE, "www.huggingface.co", "hf.co"})
_CIVITAI_HOSTS = frozenset({CIVITAI, "www.civitai.com"})
_PORTS = {"http": 80, "https": 443}
_SIGNING = frozenset(
    {
        "accesskeyid",
        "access_token",
        "api_key",
        "apikey",
        "auth_token",
        "awsaccesskeyid",
        "expires",
        "googleaccessid",
        "hf_token",
        "key-pair-id",
        "ossaccesskeyid",
        "policy",
        "response-cache-control",
        "response-content-disposition",
        "response-content-type",
        "security-token",
        "sig",
        "signature",
        "token",
    }
)
_SIGNING_PREFIXES = ("x-amz-", "x-goog-", "x-oss-", "q-sign-", "x-xet-")
_AZURE = frozenset({"se", "sp", "sr", "st", "sv", "spr", "sip", "ske", "skoid", "sks", "skt", "sktid", "skv"})
"""What stands beside ``sig`` in a shared access signature."""

_RESERVED = frozenset({"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))})
_UNSAFE = re.compile(r'[\x00-\x1f\x7f-\x9f<>:"|?*\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff]')
_EDGES = re.compile(r"^[.\-~\s]+|[.\s]+\Z")
_RFC_5987 = re.compile(r"(utf-8|iso-8859-1)'[^']*'(.*)", re.IGNORECASE | re.DOTALL)
_PARAMETER = re.compile(r';\s*([A-Za-z0-9_-]+\*?)\s*=\s*("(?:[^"\\]|\\.)*"|[^;]*)')
_HF_ROUTES = ("resolve", "blob", "raw")
_AIR = re.compile(
    r"(?:urn:)?air:(?:[a-z0-9._-]+:){2}(?P<source>[a-z0-9._-]+):"
    r"(?P<model>[^@:]+?)(?:@(?P<version>[0-9]+))?(?::[a-z0-9]+)?(?:\.(?P<format>[a-z]+))?",
    re.IGNORECASE,
)
_AIR_FORMATS = {"safetensor": "SafeTensor", "safetensors": "SafeTensor", "ckpt": "PickleTensor", "pt": "PickleTensor"}
_NUMBER = re.compile(r"[0-9]{1,18}")
_PLAIN = "!$&'()*+,;=:@~"
"""What may stand in a URL's path as it is."""


class Match(StrEnum):
    """Whether a file on disk is the model that is wanted; ``UNKNOWN`` until its bytes were hashed."""

    YES = "yes"
    NO = "no"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class HuggingFaceFile:
    """A file at Hugging Face. ``repo`` holds ``datasets/`` or ``spaces/`` in front for what is no model's."""

    repo: str
    revision: str
    path: str

    @property
    def canonical(self) -> str:
        return f"hf:{self.repo}@{quote(self.revision, safe='')}/{quote(self.path, safe='/')}"

    @property
    def host(self) -> str:
        return HUGGING_FACE

    @property
    def name(self) -> str:
        return safe_name(self.path)

    def __str__(self) -> str:
        return f"{HUGGING_FACE}/{self.repo}/{self.path}"


@dataclass(frozen=True, slots=True)
class CivitaiFile:
    """A file of a version of a model at Civitai: by its id, else by `CHOICES`, else the one that Civitai gives.

    ``token`` is what a URL held of the user's own; it is part of no name and no message.
    """

    version: int
    file: int | None = None
    choice: tuple[tuple[str, str], ...] = ()
    token: str | None = field(default=None, repr=False, compare=False)

    @property
    def canonical(self) -> str:
        if self.file is not None:
            return f"civitai:{self.version}/{self.file}"
        return f"civitai:{self.version}" + (f"?{urlencode(self.choice)}" if self.choice else "")

    @property
    def host(self) -> str:
        return CIVITAI

    @property
    def name(self) -> str:
        """Nothing: only Civitai knows it."""
        return ""

    def __str__(self) -> str:
        return f"{CIVITAI} version {self.version}" + (f" file {self.file}" if self.file is not None else "")


Reference = HuggingFaceFile | CivitaiFile


def reference_of(url: str) -> Reference | None:
    """The file of a hub that a URL, ``hf://``, ``civitai://`` or an AIR name stands for; None for any other URL.

    Raises `ValueError`, worded for whoever wrote it, for one that belongs to a hub but names no file.
    """
    lower = url.lower()
    if lower.startswith(("urn:air:", "air:")):
        return _air(url)
    try:
        parts = urlsplit(url)
        host = (parts.hostname or "").rstrip(".")
    except ValueError:
        raise ValueError("is not a valid URL") from None
    if parts.scheme == "hf":
        return _hf_scheme(url)
    if parts.scheme == "civitai":
        return _civitai_scheme(parts.netloc, parts.path, parts.query)
    if parts.scheme not in _PORTS:
        return None
    if host in _HUGGING_FACE_HOSTS:
        return _hf_page(parts.path)
    return _civitai_page(parts.path, parts.query) if host in _CIVITAI_HOSTS else None


def canonical(url: str) -> str:
    """The same for every URL of one file: without credentials, signatures and fragment, the query sorted.

    Raises `ValueError` for what is no URL, or names no file of its hub.
    """
    reference = reference_of(url)
    if reference is not None:
        return reference.canonical
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise ValueError("is not a valid URL") from None
    if not parts.scheme or not host:
        raise ValueError("is not a valid URL")
    if parts.scheme == "s3":
        return f"s3://{parts.netloc}{parts.path}"
    host = f"[{host}]" if ":" in host else host.rstrip(".")
    place = host if port in (None, _PORTS.get(parts.scheme)) else f"{host}:{port}"
    path = "/".join(
        quote(unquote(part, errors="surrogateescape"), safe=_PLAIN, errors="surrogateescape")
        for part in parts.path.split("/")
    )
    query = urlencode(_telling(parts.query))
    return f"{parts.scheme}://{place}{path or '/'}" + (f"?{query}" if query else "")


def _telling(query: str) -> list[tuple[str, str]]:
    """What a query says of the file itself, sorted."""
    pairs = parse_qsl(query, keep_blank_values=True)
    azure = any(name == "sig" for name, _ in pairs)
    return sorted((name, value) for name, value in pairs if not (_signs(name.lower()) or (azure and name in _AZURE)))


def _signs(name: str) -> bool:
    return name in _SIGNING or name.startswith(_SIGNING_PREFIXES)


def _hf_scheme(url: str) -> HuggingFaceFile:
    """``hf://org/repo/path@rev``, or with the revision behind the repository as Hugging Face's own library has it."""
    parts = [unquote(part) for part in re.split("[?#]", url[len("hf://") :])[0].split("/")]
    kind = [parts.pop(0)] if parts[0] in ("datasets", "spaces", "models") else []
    if len(parts) < 3:
        raise ValueError("must be hf://org/repo/file@revision")
    repo, revision = parts[1], ""
    if "@" in repo:
        repo, _, revision = repo.partition("@")
    path = "/".join(parts[2:])
    if not revision and "@" in path:
        path, _, revision = path.rpartition("@")
    return _hf_file("/".join([*(kind if kind != ["models"] else []), parts[0], repo]), revision or "main", path)


def _hf_page(path: str) -> HuggingFaceFile:
    parts = [unquote(part) for part in path.split("/") if part]
    at = next((i for i, part in enumerate(parts) if part in _HF_ROUTES and i), None)
    if at is None or len(parts) < at + 3:
        raise ValueError("names no file at Hugging Face; write https://huggingface.co/org/repo/resolve/main/file")
    return _hf_file("/".join(parts[:at]), parts[at + 1], "/".join(parts[at + 2 :]))


def _hf_file(repo: str, revision: str, path: str) -> HuggingFaceFile:
    if any(part in ("", ".", "..") for part in (*repo.split("/"), *revision.split("/"), *path.split("/"))):
        raise ValueError("names no file at Hugging Face")
    return HuggingFaceFile(repo, revision, path)


def _civitai_scheme(netloc: str, path: str, query: str) -> CivitaiFile:
    file = path.strip("/")
    if not _NUMBER.fullmatch(netloc) or (file and not _NUMBER.fullmatch(file)):
        raise ValueError("must be civitai://version-id, with ?file=id where it has several")
    return _civitai(netloc, file, query)


def _civitai_page(path: str, query: str) -> CivitaiFile:
    """A download URL, one of the API, or a model's page with the version in its query."""
    parts = [part for part in path.split("/") if part]
    match parts:
        case ["api", "download", "models", version] if _NUMBER.fullmatch(version):
            return _civitai(version, "", query)
        case ["api", "v1", "model-versions", version] if _NUMBER.fullmatch(version):
            return _civitai(version, "", query)
        case ["model-versions", version] if _NUMBER.fullmatch(version):
            return _civitai(version, "", query)
        case ["models", *_]:
            version = dict(parse_qsl(query)).get("modelVersionId", "")
            if _NUMBER.fullmatch(version):
                return CivitaiFile(int(version))
            raise ValueError("names a model at Civitai but no version; add ?modelVersionId=")
    raise ValueError("names no file at Civitai; write https://civitai.com/api/download/models/VERSION")


def _civitai(version: str, file: str, query: str) -> CivitaiFile:
    given = dict(parse_qsl(query))
    file = file or given.get("fileId", "") or given.get("file", "")
    token = given.get("token") or None
    if file:
        if not _NUMBER.fullmatch(file):
            raise ValueError("names no file at Civitai: the file's id must be a number")
        return CivitaiFile(int(version), int(file), token=token)
    choice = tuple(sorted((name, given[name]) for name in CHOICES if given.get(name)))
    return CivitaiFile(int(version), choice=choice, token=token)


def _air(urn: str) -> CivitaiFile:
    """``urn:air:<ecosystem>:<type>:civitai:<model>@<version>[.<format>]``."""
    found = _AIR.fullmatch(urn.strip())
    if found is None:
        raise ValueError("is not an AIR name; write urn:air:sdxl:checkpoint:civitai:MODEL@VERSION")
    if found["source"].lower() != "civitai":
        raise ValueError(f"is an AIR name of {found['source']}; only those of civitai can be fetched")
    if found["version"] is None:
        raise ValueError("is an AIR name without a version; add @VERSION")
    form = _AIR_FORMATS.get((found["format"] or "").lower())
    return CivitaiFile(int(found["version"]), choice=(("format", form),) if form else ())


def origin(url: str, auth: Auth | None) -> str:
    """Where bytes come from: the canonical URL, and the credentials where only these open it, by their mark.

    One URL gives different files to different people, and nothing to most: whoever has no credentials, or others,
    does not find by his URL what was fetched with these. Raises `ValueError` as `canonical`.
    """
    return canonical(url) if auth is None else f"{canonical(url)}#{auth.mark}"


def identity(wanted: Wanted) -> str:
    """Kind and sha256, else kind and origin, else kind and name. Raises `ValueError` as `canonical`."""
    kind = wanted.place.kind
    if wanted.sha256:
        return f"{kind} sha256:{wanted.sha256.lower()}"
    return f"{kind} {origin(wanted.url, wanted.auth)}" if wanted.url else f"{kind} name:{wanted.name}"


def matches(entry: Entry, wanted: Wanted) -> Match:
    """Whether this file is what is wanted. Raises `ValueError` as `canonical`.

    A hash settles it; `Match.UNKNOWN` when one is wanted and the file was not hashed yet, and when a URL is wanted
    and nobody knows where the file came from, so that only a hash which the source tells can settle it. By name alone
    any file of that place will do.
    """
    if entry.place.kind != wanted.place.kind or (wanted.size is not None and wanted.size != entry.size):
        return Match.NO
    if wanted.sha256:
        if entry.sha256 is None:
            return Match.UNKNOWN
        return Match.YES if entry.sha256.lower() == wanted.sha256.lower() else Match.NO
    if wanted.url:
        if origin(wanted.url, wanted.auth) in entry.urls:
            return Match.YES
        return Match.NO if entry.urls else Match.UNKNOWN
    return Match.YES if entry.place == wanted.place else Match.NO


def apart(name: str, identity: str) -> str:
    """The name under which a model is stored whose own is another's: ``<stem>~<8 hex>.<ext>``, the same every time."""
    folder, slash, base = name.rpartition("/")
    stem = stem_of(base)
    extension = base[len(stem) :]
    mark = "~" + hashlib.sha256(identity.encode("utf-8", "surrogatepass")).hexdigest()[:8] + extension
    return folder + slash + _cut(stem, NAME_BYTES - len(mark.encode())) + mark


def is_pickle(name: str) -> bool:
    return name.lower().endswith(PICKLES)


def has_extension(name: str) -> bool:
    """Whether the name ends as model files do."""
    return stem_of(name) != name


def name_of(url: str) -> str:
    """The file's name as the URL alone tells it; empty when it does not end as a model file's."""
    try:
        reference = reference_of(url)
        path = urlsplit(url).path
    except ValueError:
        return ""
    name = reference.name if reference is not None else safe_name(unquote(path.rpartition("/")[2]))
    return name if has_extension(name) else ""


def disposition_name(header: str) -> str:
    """The file name of a ``Content-Disposition``, safe; empty without one. ``filename*`` is preferred (RFC 6266)."""
    given = {name.lower(): value.strip() for name, value in _PARAMETER.findall(";" + header.partition(";")[2])}
    extended = _RFC_5987.fullmatch(given.get("filename*", "").strip('"'))
    if extended:
        return safe_name(unquote(extended[2], encoding=extended[1].lower(), errors="replace"))
    plain = given.get("filename", "")
    if plain.startswith('"'):
        plain = re.sub(r"\\(.)", r"\1", plain[1:-1])
    return safe_name(_as_utf8(plain))


def _as_utf8(text: str) -> str:
    """Headers come decoded as Latin-1; many servers send UTF-8."""
    try:
        return text.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return text


def safe_name(text: str) -> str:
    """A file name that any server and file system takes, from one that a stranger chose; may be empty.

    No folders, control or direction characters, no leading dot or hyphen, no name that Windows reserves, at most 200
    bytes of UTF-8; a model file's extension is kept.
    """
    base = _EDGES.sub("", _UNSAFE.sub("", re.split(r"[/\\]", text.strip())[-1]))
    stem = stem_of(base)
    extension = base[len(stem) :]
    stem = _EDGES.sub("", stem)
    if stem.partition(".")[0].strip().lower() in _RESERVED:
        stem = f"_{stem}"
    return _cut(stem, NAME_BYTES - len(extension)) + extension


def _cut(text: str, size: int) -> str:
    """As much of the text as has so many bytes of UTF-8."""
    return _EDGES.sub("", text.encode("utf-8", "replace")[: max(size, 0)].decode("utf-8", "ignore"))
